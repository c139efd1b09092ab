//! The parts of the table against each other: every list, index and sum says the same.

use std::collections::HashMap;
use std::net::IpAddr;

use super::super::chain::Chain;
use super::super::slots::Flow;
use super::*;

impl<T> Flows<T> {
    /// # Panics
    /// If two parts of the table disagree.
    pub(super) fn check(&self) {
        assert_eq!(self.deadlines.len(), self.len(), "an alarm each");
        let mut sources: HashMap<IpAddr, usize> = HashMap::new();
        let (mut one_way, mut copies) = (0, 0);
        for (id, flow) in self.slots.iter() {
            let (index, client) = (id.index(), flow.client);
            let ends = (flow.frontend, client);
            assert_eq!(
                self.index.find(&self.slots, &ends),
                Some(index),
                "the index"
            );
            assert!(flow.armed <= flow.deadline, "looked at too late");
            let alarm = self.deadlines.of(&self.slots, index);
            assert_eq!(alarm, (flow.armed, index), "never looked at");
            assert!(flow.copy.is_none() || !flow.answered, "a copy too many");
            copies += flow.copy.as_ref().map_or(0, Vec::capacity);
            one_way += usize::from(!flow.two_way);
            *sources.entry(client.ip().to_canonical()).or_default() += 1;
        }
        assert_eq!(copies, self.copies.used(), "bytes of copies");
        assert_eq!(sources, self.sources.counts(), "flows by source");

        assert_eq!(
            self.walk(&self.one_way, Order::OneWay, |f| !f.two_way),
            one_way
        );
        let of_frontends: usize = self
            .frontends
            .iter()
            .map(|(id, chain)| self.walk(chain, Order::Frontend, |f| f.frontend == *id))
            .sum();
        assert_eq!(of_frontends, self.len(), "flows by frontend");
        let of_sources: usize = self
            .sources
            .chains()
            .map(|(ip, chain)| {
                self.walk(chain, Order::Source, |f| {
                    f.client.ip().to_canonical() == ip && !f.two_way
                })
            })
            .sum();
        assert_eq!(of_sources, one_way, "one-way flows by source");
    }

    /// How many flows a chain has; each belongs there, in order of opening.
    fn walk(&self, chain: &Chain, order: Order, belongs: impl Fn(&Flow<T>) -> bool) -> usize {
        let (mut count, mut opened) = (0, Time::ZERO);
        let mut next = chain.first();
        while let Some(index) = next {
            let flow = self.slots.get(self.slots.id_at(index)).expect("alive");
            assert!(belongs(flow), "in a chain of others");
            assert!(flow.opened >= opened, "out of order");
            opened = flow.opened;
            count += 1;
            assert!(count <= self.len(), "a ring");
            next = flow.after(order);
        }
        count
    }
}
