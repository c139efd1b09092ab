//! First-in first-out lists threaded through the flows: no allocation, O(1) at both ends and in
//! the middle. The links stand in the flows, the two ends here.

/// Which list a link belongs to.
#[derive(Clone, Copy, Debug)]
pub(super) enum Order {
    /// All flows of one frontend.
    Frontend,
    /// All one-way flows.
    OneWay,
    /// The one-way flows of one source.
    Source,
}

impl Order {
    pub(super) const COUNT: usize = 3;
}

/// Neighbours, as slot + 1; zero for none.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Link {
    before: u32,
    after: u32,
}

impl Link {
    pub(super) fn before(self) -> Option<u32> {
        self.before.checked_sub(1)
    }

    pub(super) fn after(self) -> Option<u32> {
        self.after.checked_sub(1)
    }

    pub(super) fn set_before(&mut self, index: Option<u32>) {
        self.before = index.map_or(0, |i| i + 1);
    }

    pub(super) fn set_after(&mut self, index: Option<u32>) {
        self.after = index.map_or(0, |i| i + 1);
    }
}

/// The ends of a list.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Chain {
    ends: Link,
}

impl Chain {
    /// The oldest.
    pub(super) fn first(&self) -> Option<u32> {
        self.ends.before()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.first().is_none()
    }

    /// Makes `index` the last; returns the link it must carry.
    pub(super) fn push(&mut self, index: u32) -> Link {
        let mut link = Link::default();
        link.set_before(self.ends.after());
        if self.is_empty() {
            self.ends.set_before(Some(index));
        }
        self.ends.set_after(Some(index));
        link
    }

    /// Forgets the member that carried `link`.
    pub(super) fn remove(&mut self, link: Link) {
        if link.before().is_none() {
            self.ends.set_before(link.after());
        }
        if link.after().is_none() {
            self.ends.set_after(link.before());
        }
    }
}
