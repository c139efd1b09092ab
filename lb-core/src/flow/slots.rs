//! Where flows live: dense slots, reused, each use with its own generation.

use std::net::SocketAddr;

use crate::time::Time;

use super::chain::{Chain, Link, Order};

/// Names one flow for as long as it lives; afterwards it names nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FlowId {
    index: u32,
    generation: u32,
}

impl FlowId {
    /// The id made of these two numbers, as an event's token carries them.
    pub const fn new(index: u32, generation: u32) -> FlowId {
        FlowId { index, generation }
    }

    /// The slot, below the greatest number of flows that ever lived at once.
    pub const fn index(self) -> u32 {
        self.index
    }

    /// Which use of the slot.
    pub const fn generation(self) -> u32 {
        self.generation
    }
}

/// One client's exchange with one frontend.
#[derive(Debug)]
pub(super) struct Flow<T> {
    pub(super) frontend: u32,
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
    /// The present backend has refused and nothing has been sent to another one yet.
    pub(super) refused: bool,
    /// The latest datagram, while the present backend has not answered.
    pub(super) copy: Option<Vec<u8>>,
    links: [Link; Order::COUNT],
    pub(super) part: T,
}

impl<T> Flow<T> {
    pub(super) fn new(
        frontend: u32,
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
            refused: false,
            copy: None,
            links: [Link::default(); Order::COUNT],
            part,
        }
    }
}

#[derive(Debug)]
struct Slot<T> {
    generation: u32,
    flow: Option<Flow<T>>,
}

#[derive(Debug)]
pub(super) struct Slots<T> {
    slots: Vec<Slot<T>>,
    free: Vec<u32>,
}

impl<T> Default for Slots<T> {
    fn default() -> Slots<T> {
        Slots {
            slots: Vec::new(),
            free: Vec::new(),
        }
    }
}

impl<T> Slots<T> {
    pub(super) fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    pub(super) fn insert(&mut self, flow: Flow<T>) -> FlowId {
        if let Some(index) = self.free.pop() {
            self.slots[index as usize].flow = Some(flow);
            return self.id_at(index);
        }
        let index = u32::try_from(self.slots.len()).expect("a flow costs a descriptor: < 2^31");
        self.slots.push(Slot {
            generation: 0,
            flow: Some(flow),
        });
        FlowId {
            index,
            generation: 0,
        }
    }

    pub(super) fn remove(&mut self, id: FlowId) -> Option<Flow<T>> {
        self.get(id)?;
        let slot = &mut self.slots[id.index as usize];
        slot.generation = slot.generation.wrapping_add(1);
        self.free.push(id.index);
        slot.flow.take()
    }

    pub(super) fn get(&self, id: FlowId) -> Option<&Flow<T>> {
        let slot = self.slots.get(id.index as usize)?;
        (slot.generation == id.generation)
            .then_some(slot.flow.as_ref())
            .flatten()
    }

    pub(super) fn get_mut(&mut self, id: FlowId) -> Option<&mut Flow<T>> {
        let slot = self.slots.get_mut(id.index as usize)?;
        (slot.generation == id.generation)
            .then_some(slot.flow.as_mut())
            .flatten()
    }

    /// The flow in a slot that the index or a chain names.
    pub(super) fn at_mut(&mut self, index: u32) -> &mut Flow<T> {
        self.slots[index as usize]
            .flow
            .as_mut()
            .expect("index and chains name living flows only")
    }

    /// The present id of a slot.
    pub(super) fn id_at(&self, index: u32) -> FlowId {
        FlowId {
            index,
            generation: self.slots[index as usize].generation,
        }
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
