//! Alarms: one per flow, which rings at the deadline that the flow had when it was set. A flow in
//! use moves its deadline on every datagram and its alarm only when that rings, so that expiry
//! costs a datagram nothing.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use crate::time::Time;

use super::FlowId;

#[derive(Debug, Default)]
pub(super) struct Deadlines(BinaryHeap<Reverse<(Time, FlowId)>>);

impl Deadlines {
    pub(super) fn arm(&mut self, at: Time, id: FlowId) {
        self.0.push(Reverse((at, id)));
    }

    /// The first alarm, maybe of a flow that is no more.
    pub(super) fn next(&self) -> Option<Time> {
        self.0.peek().map(|Reverse((at, _))| *at)
    }

    pub(super) fn pop_due(&mut self, now: Time) -> Option<(Time, FlowId)> {
        if self.next()? > now {
            return None;
        }
        self.0.pop().map(|Reverse(alarm)| alarm)
    }

    /// A flow has ended; `living` are left. Alarms that are deaf (of the dead, or replaced by an
    /// earlier one) are swept out once they outnumber the living, so that a flood of short-lived
    /// flows costs memory in proportion to the cap and, spread over the flows, constant time.
    pub(super) fn forget(&mut self, living: usize, is_heard: impl Fn(Time, FlowId) -> bool) {
        const SLACK: usize = 1024;
        if self.0.len() > 2 * living + SLACK {
            self.0.retain(|Reverse((at, id))| is_heard(*at, *id));
        }
    }

    /// Is there an alarm of this flow for this time?
    #[cfg(any(test, fuzzing))]
    pub(super) fn contains(&self, at: Time, id: FlowId) -> bool {
        self.0.iter().any(|Reverse(alarm)| *alarm == (at, id))
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }
}
