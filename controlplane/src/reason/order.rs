//! Which reason comes first: of several, the one that has to go before the others matter. A Service
//! whose pool is full and that has no pods waits for an address first; more pods would not help it.
//! A condition is named after the first, and the log spells out a few: the order is the answer to
//! "why is EXTERNAL-IP pending".

use super::{Reason, Severity};

/// What a reason is in the way of, the gravest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Stops {
    /// The whole Service: there is no load balancer.
    Service,
    /// Its addresses: without them nothing is served, and EXTERNAL-IP stays pending.
    Address,
    /// A listener on an address that it has.
    Listener,
    /// All clients of an open or closed port: nobody may come, or nobody is there for them.
    Traffic,
    /// A port beside others that are served.
    Port,
    /// Nothing; its owner should know.
    Nothing,
}

/// Puts `reasons` into their canonical order, the gravest first, each once.
pub(crate) fn arrange(reasons: &mut Vec<Reason>) {
    reasons.sort_unstable_by(|a, b| place(a).0.cmp(&place(b).0).then_with(|| a.cmp(b)));
    reasons.dedup();
}

/// What a reason is in the way of, and what it does to traffic.
pub(super) fn place(reason: &Reason) -> (Stops, Severity) {
    use Reason::*;
    match reason {
        NotALoadBalancer { .. }
        | ForeignClass { .. }
        | RivalProvider { .. }
        | Ignored { .. }
        | Deleting
        | Malformed { .. }
        | NotSupported { .. }
        | NoPorts
        | TooManyBackends { .. } => (Stops::Service, Severity::Refused),
        BadAddressRequest { .. } | ConflictingRequest { .. } | RequestedFamily { .. } => {
            (Stops::Address, Severity::Refused)
        }
        NoPool { .. }
        | PoolExhausted { .. }
        | UnknownPool { .. }
        | AddressNotInPool { .. }
        | AddressTaken { .. }
        | SharingRefused { .. }
        | AddressGivenElsewhere
        | AddressNotAdded { .. } => (Stops::Address, Severity::Pending),
        FrontendInvalid { .. } => (Stops::Listener, Severity::Refused),
        FrontendTaken { .. }
        | NotListening { .. }
        | TakenByKubeProxy { .. }
        | DescriptorLimit { .. } => (Stops::Listener, Severity::Pending),
        BadSourceRange { .. } => (Stops::Traffic, Severity::Refused),
        NodesUnknown
        | NoEligibleNode { .. }
        | NoUsableEndpoint { .. }
        | PortNameMismatch { .. } => (Stops::Traffic, Severity::Pending),
        NoNodePort { .. } | PortProtocolNotSupported { .. } | DuplicatePort { .. } => {
            (Stops::Port, Severity::Refused)
        }
        ForeignServiceProxy
        | FamilyDenied { .. }
        | BadAnnotation { .. }
        | AnnotationIgnored { .. }
        | EndpointRefused { .. }
        | MoreEndpointsRefused { .. }
        | UnhealthyEndpoints { .. }
        | NoHealthyEndpoint { .. }
        | EndpointsNotChecked { .. }
        | OnlyTerminatingEndpoints { .. }
        | CrossFamily { .. }
        | MaglevTooManyPorts { .. }
        | MaglevPoolTooLarge { .. }
        | ClientAddressNotKept
        | NoHealthyNode { .. }
        | PodsUnreachable { .. }
        | NoFallback { .. }
        | AffinityAtNodes
        | AddressOutsidePools { .. }
        | StaleObject { .. }
        | DuplicateObject { .. }
        | Contested { .. }
        | NotWritten { .. }
        | VerbMissing { .. }
        | HeldByDeletionGuard => (Stops::Nothing, Severity::Note),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::object::Family;

    /// One of each rank and more, as they have to come.
    fn in_order() -> Vec<Reason> {
        let (not_ready, terminating) = (0, 0);
        vec![
            Reason::NoPorts,
            Reason::NoPool { family: Family::V4 },
            Reason::PoolExhausted { family: Family::V4 },
            Reason::PoolExhausted { family: Family::V6 },
            Reason::AddressNotAdded {
                address: [192, 0, 2, 1].into(),
                problem: "no right".into(),
            },
            Reason::FrontendInvalid {
                problem: "port 0".into(),
            },
            Reason::BadSourceRange { range: "x".into() },
            Reason::PortNameMismatch {
                port: 80,
                name: "web".into(),
            },
            Reason::NoUsableEndpoint {
                not_ready,
                terminating,
            },
            Reason::PortProtocolNotSupported { port: 9 },
            Reason::ClientAddressNotKept,
            Reason::HeldByDeletionGuard,
        ]
    }

    #[test]
    fn a_note_never_comes_before_what_stops_something() {
        for reason in in_order() {
            let is_note = reason.severity() == Severity::Note;
            assert_eq!(place(&reason).0 == Stops::Nothing, is_note, "{reason}");
        }
    }

    proptest! {
        #[test]
        fn whatever_comes_in_which_order_the_gravest_is_first_and_each_stands_once(
            shuffled in Just(in_order()).prop_shuffle(),
            again in prop::collection::vec(0..in_order().len(), 0..8),
        ) {
            let mut reasons = shuffled;
            reasons.extend(again.into_iter().map(|i| in_order()[i].clone()));
            arrange(&mut reasons);
            prop_assert_eq!(reasons, in_order());
        }
    }
}
