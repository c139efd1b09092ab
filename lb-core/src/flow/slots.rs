//! Where flows live: dense slots, reused, each use with its own generation.

use std::hash::Hasher;
use std::net::{IpAddr, SocketAddr};

use crate::slab::Slab;
use crate::time::Time;

use super::FlowId;
use super::chain::{Chain, Link, Order};
use super::expiry::Places;
use super::index::{Entries, Key};

/// One client's exchange with one frontend.
#[derive(Debug)]
pub(super) struct Flow<T> {
    pub(super) frontend: u64,
    pub(super) client: SocketAddr,
    pub(super) backend: SocketAddr,
    /// The rules that it was last found to obey.
    pub(super) epoch: u64,
    pub(super) opened: Time,
    /// Ends here if nothing happens.
    pub(super) deadline: Time,
    /// Looked at here; never after `deadline`.
    pub(super) armed: Time,
    /// The client has been answered once.
    pub(super) two_way: bool,
    /// The present backend has answered once.
    pub(super) answered: bool,
    /// Something has been sent to the present backend since it last refused.
    pub(super) sent: bool,
    /// The present backend has refused and nothing has been sent to another one yet.
    pub(super) refused: bool,
    /// Refusals in a row, since the last reply.
    pub(super) refusals: u8,
    /// The latest datagram, while the present backend has not answered.
    pub(super) copy: Option<Vec<u8>>,
    links: [Link; Order::COUNT],
    /// The next flow of the index's chain.
    after: u32,
    /// Where the alarm stands among the others.
    place: u32,
    pub(super) part: T,
}

impl<T> Flow<T> {
    pub(super) fn new(
        frontend: u64,
        client: SocketAddr,
        backend: SocketAddr,
        epoch: u64,
        now: Time,
        deadline: Time,
        part: T,
    ) -> Flow<T> {
        Flow {
            frontend,
            client,
            backend,
            epoch,
            opened: now,
            deadline,
            armed: deadline,
            two_way: false,
            answered: false,
            sent: false,
            refused: false,
            refusals: 0,
            copy: None,
            links: [Link::default(); Order::COUNT],
            after: 0,
            place: 0,
            part,
        }
    }

    /// The one behind it in a chain that it is in.
    #[cfg(any(test, fuzzing))]
    pub(super) fn after(&self, order: Order) -> Option<u32> {
        self.links[order as usize].after()
    }
}

/// The flows, and the links between them.
#[derive(Debug)]
pub(super) struct Slots<T>(Slab<Flow<T>>);

impl<T> Slots<T> {
    pub(super) fn new() -> Slots<T> {
        Slots(Slab::new())
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn insert(&mut self, flow: Flow<T>) -> FlowId {
        self.0.insert(flow)
    }

    pub(super) fn remove(&mut self, id: FlowId) -> Option<Flow<T>> {
        self.0.remove(id)
    }

    #[cfg(any(test, fuzzing))]
    pub(super) fn iter(&self) -> impl Iterator<Item = (FlowId, &Flow<T>)> {
        self.0.iter()
    }

    pub(super) fn get(&self, id: FlowId) -> Option<&Flow<T>> {
        self.0.get(id)
    }

    pub(super) fn get_mut(&mut self, id: FlowId) -> Option<&mut Flow<T>> {
        self.0.get_mut(id)
    }

    /// The flow in a slot that a chain names.
    fn at(&self, index: u32) -> &Flow<T> {
        let id = self.id_at(index);
        self.0.get(id).expect("the slab gave this key as present")
    }

    /// As [`Slots::at`], to be changed.
    pub(super) fn at_mut(&mut self, index: u32) -> &mut Flow<T> {
        let id = self.id_at(index);
        self.0
            .get_mut(id)
            .expect("the slab gave this key as present")
    }

    /// The id of the flow in a slot that a chain names.
    pub(super) fn id_at(&self, index: u32) -> FlowId {
        self.0.key_at(index).expect("chains name living flows only")
    }

    /// Appends a flow to a chain.
    pub(super) fn push(&mut self, chain: &mut Chain, order: Order, index: u32) {
        let link = chain.push(index);
        if let Some(before) = link.before() {
            self.link(order, before).set_after(Some(index));
        }
        *self.link(order, index) = link;
    }

    /// Takes a flow out of a chain it is in.
    pub(super) fn unlink(&mut self, chain: &mut Chain, order: Order, index: u32) {
        let link = std::mem::take(self.link(order, index));
        if let Some(before) = link.before() {
            self.link(order, before).set_after(link.after());
        }
        if let Some(after) = link.after() {
            self.link(order, after).set_before(link.before());
        }
        chain.remove(link);
    }

    fn link(&mut self, order: Order, index: u32) -> &mut Link {
        &mut self.at_mut(index).links[order as usize]
    }
}

/// What a flow is found by: its frontend's number, and the client.
pub(super) type Ends = (u64, SocketAddr);

impl Key for Ends {
    fn feed(&self, hasher: &mut impl Hasher) {
        let (frontend, client) = self;
        let ip = match client.ip() {
            IpAddr::V4(v4) => v4.to_ipv6_mapped(),
            IpAddr::V6(v6) => v6,
        };
        let mut bytes = [0; 26];
        bytes[..8].copy_from_slice(&frontend.to_ne_bytes());
        bytes[8..24].copy_from_slice(&ip.octets());
        bytes[24..].copy_from_slice(&client.port().to_ne_bytes());
        hasher.write(&bytes);
    }
}

impl<T> Entries<Ends> for Slots<T> {
    fn is(&self, at: u32, key: &Ends) -> bool {
        let flow = self.at(at);
        flow.client == key.1 && flow.frontend == key.0
    }

    fn after(&self, at: u32) -> u32 {
        self.at(at).after
    }

    fn set_after(&mut self, at: u32, after: u32) {
        self.at_mut(at).after = after;
    }
}

impl<T> Places for Slots<T> {
    fn set_place(&mut self, index: u32, place: u32) {
        self.at_mut(index).place = place;
    }

    fn place(&self, index: u32) -> u32 {
        self.at(index).place
    }
}
