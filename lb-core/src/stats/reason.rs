//! Why a connection, flow or datagram ended: closed enums whose variants are metric labels.

/// An enum with one label for each variant, numbered from 0.
macro_rules! reasons {
    ($(#[$meta:meta])* $name:ident { $($(#[$doc:meta])* $variant:ident = $label:literal,)+ }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum $name {
            $($(#[$doc])* $variant,)+
        }

        impl $name {
            /// Every variant, in the order of their numbers.
            pub const ALL: &'static [$name] = &[$($name::$variant,)+];
            /// How many variants there are.
            pub const COUNT: usize = $name::ALL.len();

            /// The metric label, in snake case.
            pub const fn label(self) -> &'static str {
                match self {
                    $($name::$variant => $label,)+
                }
            }
        }
    };
}

reasons! {
    /// Why a TCP connection, or a UDP flow, is over.
    CloseReason {
        /// Both sides have sent their FIN and all data was delivered.
        Finished = "finished",
        /// The client sent RST; so did we to the backend.
        DownstreamReset = "downstream_reset",
        /// The backend sent RST; so did we to the client.
        UpstreamReset = "upstream_reset",
        /// The client stopped answering: the kernel gave up.
        DownstreamTimedOut = "downstream_timed_out",
        /// The backend stopped answering: the kernel gave up.
        UpstreamTimedOut = "upstream_timed_out",
        /// No byte either way for the idle timeout.
        IdleTimeout = "idle_timeout",
        /// One side sent its FIN and the other nothing for the half-close timeout.
        HalfCloseTimeout = "half_close_timeout",
        /// No backend could be connected to within the budget.
        ConnectFailed = "connect_failed",
        /// There was no usable backend.
        NoBackend = "no_backend",
        /// The client's address is not in the frontend's source ranges.
        SourceDenied = "source_denied",
        /// Shed: the process is short of descriptors.
        DescriptorLimit = "descriptor_limit",
        /// Idle, and closed because memory was short.
        MemoryPressure = "memory_pressure",
        /// Still open at the end of a drain.
        DrainDeadline = "drain_deadline",
        /// A local error that is none of the above (memory, ports, routes).
        LocalError = "local_error",
        /// A flow that never saw a reply was idle for its one-way timeout.
        OneWayTimeout = "one_way_timeout",
        /// A flow that saw replies was idle for its two-way timeout.
        TwoWayTimeout = "two_way_timeout",
        /// A flow's backend or frontend is gone from the table.
        Removed = "removed",
        /// A flow that never saw a reply made room for a newer one.
        Shed = "shed",
    }
}

reasons! {
    /// Why a datagram was discarded.
    DropReason {
        /// The client's address is not in the frontend's source ranges.
        SourceDenied = "source_denied",
        /// There was no usable backend.
        NoBackend = "no_backend",
        /// The flow table is full.
        FlowLimit = "flow_limit",
        /// This client address has as many flows as one may have.
        SourceFlowLimit = "source_flow_limit",
        /// The process is short of descriptors.
        DescriptorLimit = "descriptor_limit",
        /// It came for a new flow while memory was short.
        MemoryPressure = "memory_pressure",
        /// No local port is left to reach a backend from.
        PortsExhausted = "ports_exhausted",
        /// Larger than the next hop takes.
        TooLarge = "too_large",
        /// The kernel did not have the room to send it.
        SendBufferFull = "send_buffer_full",
        /// The backend's host refused it (ICMP) and no other backend took it.
        Refused = "refused",
        /// Another error of the send call.
        SendFailed = "send_failed",
        /// It came for a new flow during a drain.
        Draining = "draining",
        /// A reply that no flow waits for any more.
        NoFlow = "no_flow",
    }
}

reasons! {
    /// Why a try to reach a backend failed (connect(2), tcp(7), udp(7)).
    ConnectError {
        /// Nobody listens there: an RST, or an ICMP port unreachable.
        Refused = "refused",
        /// The backend sent RST right after its handshake.
        Reset = "reset",
        /// No answer within the deadline of one try.
        Timeout = "timeout",
        /// No route, or the answer of a router or firewall.
        Unreachable = "unreachable",
        /// No local port was left to reach the backend from; not the backend's fault.
        PortsExhausted = "ports_exhausted",
        /// No descriptor or memory was left for the socket; not the backend's fault.
        DescriptorLimit = "descriptor_limit",
        /// A local error that is none of the above.
        LocalError = "local_error",
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn labels_are_distinct_and_snake_case() {
        fn check(labels: impl Iterator<Item = &'static str>) {
            let mut seen = HashSet::new();
            for label in labels {
                assert!(seen.insert(label), "{label} twice");
                assert!(label.chars().all(|c| c.is_ascii_lowercase() || c == '_'));
            }
        }
        check(CloseReason::ALL.iter().map(|r| r.label()));
        check(DropReason::ALL.iter().map(|r| r.label()));
        check(ConnectError::ALL.iter().map(|r| r.label()));
    }

    #[test]
    fn a_reason_is_the_index_of_its_counter() {
        for (index, &reason) in CloseReason::ALL.iter().enumerate() {
            assert_eq!(reason as usize, index);
        }
        for (index, &reason) in DropReason::ALL.iter().enumerate() {
            assert_eq!(reason as usize, index);
        }
        for (index, &reason) in ConnectError::ALL.iter().enumerate() {
            assert_eq!(reason as usize, index);
        }
    }
}
