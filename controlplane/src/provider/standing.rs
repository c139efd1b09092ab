//! Where this process stands among those that may serve one cluster. PURE.

/// What the Lease says of this process. Who writes is `Holder`; who keeps off is `Follower`; the others go
/// on as they were.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Standing {
    /// It was not asked yet: nothing is decided before the answer.
    #[default]
    Unknown,
    /// It cannot be held from here, and nobody else was seen to hold it since it was ours.
    Alone,
    /// This process holds it: it writes, and gives addresses.
    Holder,
    /// Another was seen to hold it, and it is not known to have ended: addresses are taken as that one publishes them,
    /// and kept off the interfaces.
    Follower,
}

/// One look at the Lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Look {
    /// We hold it.
    Ours,
    /// Another does.
    Theirs,
    /// Somebody was faster at writing it: the next look says who.
    Unclear,
    /// It cannot be read or written.
    Failed,
}

impl Standing {
    /// What `look` makes of it. Who saw another hold it and sees nothing any more does not know that the other
    /// ended, and stays off.
    pub(super) fn after(self, look: Look) -> Standing {
        match (self, look) {
            (_, Look::Ours) => Standing::Holder,
            (_, Look::Theirs) => Standing::Follower,
            (Standing::Unknown, Look::Unclear) => Standing::Unknown,
            (Standing::Follower, Look::Unclear | Look::Failed) => Standing::Follower,
            (_, Look::Unclear | Look::Failed) => Standing::Alone,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_look_at_another_holder_keeps_a_process_off_and_only_the_lease_brings_it_back() {
        use Standing::{Alone, Follower, Holder, Unknown};
        for (before, ours, theirs, unclear, failed) in [
            (Unknown, Holder, Follower, Unknown, Alone),
            (Alone, Holder, Follower, Alone, Alone),
            (Holder, Holder, Follower, Alone, Alone),
            (Follower, Holder, Follower, Follower, Follower),
        ] {
            assert_eq!(before.after(Look::Ours), ours, "{before:?}");
            assert_eq!(before.after(Look::Theirs), theirs, "{before:?}");
            assert_eq!(before.after(Look::Unclear), unclear, "{before:?}");
            assert_eq!(before.after(Look::Failed), failed, "{before:?}");
        }
    }
}
