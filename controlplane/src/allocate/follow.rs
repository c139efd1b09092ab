//! Where another process gives the addresses: what an API server names is taken, nothing else given. PURE.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::waiting::Cause;
use super::{Allocator, Assignment, Member, Turn, in_order, take};
use crate::object::{Key, SourceId};
use crate::reason::Reason;

impl Allocator {
    /// From now on another process gives the addresses of `source`; `None`: we give all. What is held and not
    /// published is let go then; what is held when we begin to give stays. Returns whose assignment changed.
    pub fn follow(&mut self, source: Option<SourceId>) -> BTreeSet<Key> {
        let mut turn = Turn::default();
        let before = std::mem::replace(&mut self.followed, source);
        if before == source {
            return BTreeSet::new();
        }
        let concerned = self.members.values().map(|member| &member.order);
        let concerned = concerned.filter(|order| {
            let of = Some(order.key.source);
            of == before || of == source
        });
        let concerned: Vec<_> = concerned.cloned().collect();
        for order in concerned {
            self.let_go(&order.key, &mut turn);
            turn.queue.insert(order);
        }
        self.settle(&mut turn);
        self.finish(turn)
    }

    /// An API server says that `key`, which asks as before, has these.
    pub(super) fn publish(&mut self, key: &Key, published: &[IpAddr], turn: &mut Turn) {
        let Some(member) = self.members.get_mut(key) else {
            return;
        };
        if member.published == published {
            return;
        }
        published.clone_into(&mut member.published);
        if self.followed == Some(key.source) {
            turn.queue.insert(member.order.clone());
            self.let_go(key, turn);
        }
    }

    /// Of what another process gives, keeps what that one says.
    fn let_go(&mut self, key: &Key, turn: &mut Turn) {
        let Some(member) = self.members.get_mut(key) else {
            return;
        };
        if self.followed != Some(key.source) {
            return;
        }
        let said = |address: &IpAddr| {
            let mut published = member.published.iter();
            published.any(|published| published.to_canonical() == *address)
        };
        let (kept, gone) = member.held.iter().partition(|address| said(address));
        member.held = kept;
        let gone: Vec<IpAddr> = gone;
        if !gone.is_empty() {
            turn.before
                .entry(key.clone())
                .or_insert_with(|| member.assignment.clone());
        }
        for address in gone {
            self.holdings.release(address, &member.claim);
            turn.addresses.insert(address);
            turn.sharing.extend(member.claim.sharing.clone());
        }
    }

    /// Takes what is published for `member`, as far as it may; returns what the rest waits for.
    pub(super) fn place_published(&mut self, member: &mut Member, turn: &mut Turn) -> Vec<Cause> {
        let mut causes = Vec::new();
        let published: Vec<IpAddr> = member.published.iter().map(IpAddr::to_canonical).collect();
        for address in published {
            let has_one = |held: &IpAddr| held.is_ipv4() == address.is_ipv4();
            if member.held.iter().any(has_one)
                || self.holdings.pools().of(address).is_none()
                || !self.may_keep(&member.wish, address, None)
            {
                continue;
            }
            match self.holdings.check(address, &member.claim, true) {
                Ok(()) => take(&mut self.holdings, member, address, turn),
                Err(_) => causes.push(Cause::Address(address)),
            }
        }
        let addresses = in_order(&member.wish.families, &member.held);
        member.assignment = Assignment {
            reasons: match addresses.is_empty() {
                true => vec![Reason::AddressGivenElsewhere],
                false => Vec::new(),
            },
            addresses,
        };
        causes
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU16;
    use std::sync::Arc;

    use lb_core::balance::Algorithm;
    use lb_core::table::Protocol;

    use super::*;
    use crate::allocate::{Pools, Record};
    use crate::load_balancer::{Addressing, LoadBalancer, Port};
    use crate::object::Family;

    const CLUSTER: SourceId = SourceId(9);

    fn key(source: SourceId, name: &str) -> Key {
        Key {
            source,
            uid: name.into(),
            ..crate::testing::service("default", name)
        }
    }

    fn ips(text: &str) -> Vec<IpAddr> {
        text.split_whitespace()
            .map(|ip| ip.parse().expect("an address"))
            .collect()
    }

    fn balancer(key: &Key, published: &str) -> (Key, Option<Arc<LoadBalancer>>) {
        let balancer = LoadBalancer {
            key: key.clone(),
            created: Some(0),
            addressing: Addressing::Pools {
                families: vec![Family::V4],
                all: false,
                requested: Vec::new(),
                pool: None,
                sharing: None,
            },
            ports: vec![Port {
                name: "".into(),
                port: NonZeroU16::MIN,
                protocol: Protocol::Tcp,
                v4: vec![],
                v6: vec![],
            }],
            algorithm: Algorithm::default(),
            affinity: None,
            published: ips(published),
            sources: None,
            idle_timeout: None,
        };
        (key.clone(), Some(Arc::new(balancer)))
    }

    fn pools() -> Pools {
        let range = "192.0.2.0/29".parse().expect("a range");
        Pools::new([(None, vec![range])], []).expect("apart")
    }

    /// Says what is published now, one Service at a time.
    fn say(allocator: &mut Allocator, all: &[(&Key, &str)]) {
        for (key, published) in all {
            allocator.apply([balancer(key, published)]);
        }
    }

    fn has(allocator: &Allocator, key: &Key) -> Vec<IpAddr> {
        allocator.assignment(key).addresses
    }

    #[test]
    fn who_follows_gives_nothing_and_takes_what_is_published() {
        let (a, b, own) = (
            key(CLUSTER, "a"),
            key(CLUSTER, "b"),
            key(SourceId(0), "own"),
        );
        let mut allocator = Allocator::new(pools(), Record::default());
        allocator.follow(Some(CLUSTER));
        say(&mut allocator, &[(&a, ""), (&b, "192.0.2.5"), (&own, "")]);
        let waits = allocator.assignment(&a);
        assert!(waits.addresses.is_empty());
        assert_eq!(waits.reasons, [Reason::AddressGivenElsewhere]);
        assert_eq!(has(&allocator, &b), ips("192.0.2.5"));
        assert_eq!(
            has(&allocator, &own),
            ips("192.0.2.0"),
            "a directory's: as ever"
        );
        // It comes; one of no pool, and one that a Service of a directory has, are not taken.
        say(&mut allocator, &[(&a, "203.0.113.1")]);
        assert!(has(&allocator, &a).is_empty());
        say(&mut allocator, &[(&a, "192.0.2.0")]);
        assert!(has(&allocator, &a).is_empty());
        say(&mut allocator, &[(&a, "192.0.2.4")]);
        assert_eq!(has(&allocator, &a), ips("192.0.2.4"));
        // Two change places, in two steps.
        say(&mut allocator, &[(&a, "192.0.2.5"), (&b, "192.0.2.4")]);
        assert_eq!(has(&allocator, &a), ips("192.0.2.5"));
        assert_eq!(has(&allocator, &b), ips("192.0.2.4"));
        // Withdrawn.
        say(&mut allocator, &[(&b, "")]);
        assert!(has(&allocator, &b).is_empty());
    }

    #[test]
    fn who_takes_over_moves_nobody_and_serves_those_that_waited() {
        let (a, b) = (key(CLUSTER, "a"), key(CLUSTER, "b"));
        let mut allocator = Allocator::new(pools(), Record::default());
        allocator.follow(Some(CLUSTER));
        say(&mut allocator, &[(&a, ""), (&b, "192.0.2.0")]);
        let changed = allocator.follow(None);
        assert!(changed.into_iter().eq([a.clone()]));
        assert_eq!(has(&allocator, &a), ips("192.0.2.1"));
        assert_eq!(has(&allocator, &b), ips("192.0.2.0"));
        // From now on our word counts, whatever is published.
        say(&mut allocator, &[(&b, "192.0.2.7")]);
        assert_eq!(has(&allocator, &b), ips("192.0.2.0"));
    }

    #[test]
    fn who_has_to_follow_lets_go_of_what_is_not_published() {
        let (a, b) = (key(CLUSTER, "a"), key(CLUSTER, "b"));
        let mut allocator = Allocator::new(pools(), Record::default());
        say(&mut allocator, &[(&a, ""), (&b, "")]);
        say(&mut allocator, &[(&b, "192.0.2.1")]);
        allocator.follow(Some(CLUSTER));
        assert!(has(&allocator, &a).is_empty());
        assert_eq!(has(&allocator, &b), ips("192.0.2.1"));
        // Free for whom the other gives it to.
        say(&mut allocator, &[(&b, "192.0.2.0"), (&a, "192.0.2.1")]);
        assert_eq!(has(&allocator, &a), ips("192.0.2.1"));
        assert_eq!(has(&allocator, &b), ips("192.0.2.0"));
        let held = allocator.record().entries;
        assert_eq!(held.len(), 2, "{held:?}");
    }

    #[test]
    fn an_old_record_yields_to_what_is_published() {
        let (a, b) = (key(CLUSTER, "a"), key(CLUSTER, "b"));
        let mut before = Allocator::new(pools(), Record::default());
        say(&mut before, &[(&a, ""), (&b, "")]);
        let mut allocator = Allocator::new(pools(), before.record());
        allocator.follow(Some(CLUSTER));
        // Their addresses as another has given them since.
        allocator.apply([balancer(&a, "192.0.2.1"), balancer(&b, "192.0.2.0")]);
        allocator.complete();
        assert_eq!(has(&allocator, &a), ips("192.0.2.1"));
        assert_eq!(has(&allocator, &b), ips("192.0.2.0"));
        allocator.follow(None);
        assert_eq!(has(&allocator, &a), ips("192.0.2.1"));
    }
}
