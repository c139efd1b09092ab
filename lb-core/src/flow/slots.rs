//! Where flows live: dense slots, reused, each use with its own generation.

use std::net::SocketAddr;

use crate::slab::Slab;
use crate::time::Time;

use super::FlowId;
use super::chain::{Chain, Link, Order};

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

    pub(super) fn get(&self, id: FlowId) -> Option<&Flow<T>> {
        self.0.get(id)
    }

    pub(super) fn get_mut(&mut self, id: FlowId) -> Option<&mut Flow<T>> {
        self.0.get_mut(id)
    }

    /// The flow in a slot that a chain names.
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
