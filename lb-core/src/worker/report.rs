//! What a worker says of itself: the generation it runs and the state of each of its listeners.
//! Readiness, status and announcing follow from this and from nothing else.

use std::sync::Arc;
use std::time::Duration;

use rustix::io::Errno;

use crate::stats::FrontendCounters;
use crate::sys::socket::ListenError;
use crate::table::{FrontendKey, Radix, Slot};

/// A frontend's listener, in one worker or, where they differ, in the worst.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ListenerState {
    /// The worker has not come to it yet.
    #[default]
    Pending,
    /// Open.
    Listening,
    /// Closed, for there is no usable backend (or new work is no longer taken): the kernel
    /// refuses clients.
    Closed,
    /// No listener, for the descriptor limit has no room for it; older frontends go first.
    OverLimit,
    /// Could not be opened. Tried again by itself, every 5 s at the least.
    Failed(BindError),
}

impl ListenerState {
    /// How bad it is, for the worst of several workers.
    fn rank(&self) -> u8 {
        match self {
            ListenerState::Listening => 0,
            ListenerState::Closed => 1,
            ListenerState::Pending => 2,
            ListenerState::OverLimit => 3,
            ListenerState::Failed(_) => 4,
        }
    }
}

/// Why a listener could not be opened, and what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BindError {
    /// EACCES, EPERM.
    #[error(
        "cannot bind {frontend}: permission denied; grant CAP_NET_BIND_SERVICE or choose a port above 1023"
    )]
    PermissionDenied {
        /// Where.
        frontend: FrontendKey,
    },
    /// EADDRINUSE.
    #[error(
        "cannot bind {frontend}: the port is in use by another program; stop it (`ss -lnp` names it) or choose another address"
    )]
    AddressInUse {
        /// Where.
        frontend: FrontendKey,
    },
    /// EADDRNOTAVAIL.
    #[error(
        "cannot bind {frontend}: the address cannot be used on this machine; check that it is no broadcast or multicast address and that its interface is up"
    )]
    AddressNotAvailable {
        /// Where.
        frontend: FrontendKey,
    },
    /// EAFNOSUPPORT, EPROTONOSUPPORT.
    #[error(
        "cannot bind {frontend}: the kernel does not have this address family; enable IPv6 (net.ipv6.conf.all.disable_ipv6, ipv6.disable) or remove the address"
    )]
    FamilyUnsupported {
        /// Where.
        frontend: FrontendKey,
    },
    /// EMFILE, ENFILE.
    #[error(
        "cannot bind {frontend}: no descriptors left; raise the limit of open files (LimitNOFILE, ulimit -n, fs.file-max)"
    )]
    DescriptorsExhausted {
        /// Where.
        frontend: FrontendKey,
    },
    /// ENOMEM, ENOBUFS, ENOSPC.
    #[error(
        "cannot bind {frontend}: the kernel is out of memory for it (in {step}); free memory, or raise the limit of the memory cgroup or fs.epoll.max_user_watches"
    )]
    OutOfMemory {
        /// Where.
        frontend: FrontendKey,
        /// The call that failed.
        step: &'static str,
    },
    /// Any other error.
    #[error("cannot bind {frontend}: {step} failed with error {errno} ({}); see socket(7), ip(7) and ipv6(7)", std::io::Error::from_raw_os_error(*.errno))]
    System {
        /// Where.
        frontend: FrontendKey,
        /// The call that failed.
        step: &'static str,
        /// Its errno.
        errno: i32,
    },
}

impl BindError {
    pub(super) fn new(frontend: FrontendKey, error: ListenError) -> BindError {
        let ListenError { step, errno } = error;
        match errno {
            Errno::ACCESS | Errno::PERM => BindError::PermissionDenied { frontend },
            Errno::ADDRINUSE => BindError::AddressInUse { frontend },
            Errno::ADDRNOTAVAIL => BindError::AddressNotAvailable { frontend },
            Errno::AFNOSUPPORT | Errno::PROTONOSUPPORT => BindError::FamilyUnsupported { frontend },
            Errno::MFILE | Errno::NFILE => BindError::DescriptorsExhausted { frontend },
            Errno::NOMEM | Errno::NOBUFS | Errno::NOSPC => {
                BindError::OutOfMemory { frontend, step }
            }
            errno => BindError::System {
                frontend,
                step,
                errno: errno.raw_os_error(),
            },
        }
    }
}

/// What a worker publishes when it changes. Shares with the one before what did not change.
#[derive(Clone, Debug, Default)]
pub(crate) struct WorkerState {
    /// The newest generation that is applied in full; 0: none yet.
    pub(crate) generation: u64,
    pub(crate) listeners: Radix<ListenerState>,
    pub(crate) counters: Radix<Arc<FrontendCounters>>,
    /// Counters of frontends that are gone, while connections or flows live under them.
    pub(crate) retired: Vec<Arc<FrontendCounters>>,
    /// Drained: no listener, no connection, no flow.
    pub(crate) drained: bool,
}

/// One worker at the moment of the report.
#[derive(Clone, Debug)]
pub struct WorkerReport {
    /// Which worker, from 0.
    pub worker: usize,
    /// The newest generation that it runs in full; 0: none yet.
    pub generation: u64,
    /// How long ago its last turn began. A worker that is well stays below 2 s.
    pub heartbeat: Duration,
    /// Its listeners, by slot of that generation.
    pub listeners: Radix<ListenerState>,
}

/// Every worker at the moment of the report.
#[derive(Clone, Debug)]
pub struct Report {
    /// By number.
    pub workers: Vec<Arc<WorkerReport>>,
}

impl Report {
    /// The newest generation that every worker runs in full.
    pub fn generation(&self) -> u64 {
        self.workers.iter().map(|w| w.generation).min().unwrap_or(0)
    }

    /// The longest time that any worker has not begun a turn.
    pub fn heartbeat(&self) -> Duration {
        self.workers
            .iter()
            .map(|w| w.heartbeat)
            .max()
            .unwrap_or_default()
    }

    /// The worst state of the frontend's listener over all workers. Slots are those of the table
    /// of [`Report::generation`].
    pub fn listener(&self, slot: Slot) -> ListenerState {
        let states = self.workers.iter().map(|w| w.listeners.get(slot.0));
        let states = states.map(|state| state.cloned().unwrap_or_default());
        states.max_by_key(ListenerState::rank).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::worker::testing;

    #[test]
    fn the_worst_worker_speaks_for_all() {
        let frontend = testing::spec("192.0.2.1:80", &[]).key;
        let failed = ListenerState::Failed(BindError::AddressInUse { frontend });
        let rising = [
            ListenerState::Listening,
            ListenerState::Closed,
            ListenerState::Pending,
            ListenerState::OverLimit,
            failed,
        ];
        let report = |states: &[&ListenerState]| Report {
            workers: (0..)
                .zip(states)
                .map(|(worker, &state)| {
                    let mut listeners = Radix::new();
                    listeners.set(3, Some(state.clone()));
                    Arc::new(WorkerReport {
                        worker,
                        generation: 10 - worker as u64,
                        heartbeat: Duration::from_secs(worker as u64),
                        listeners,
                    })
                })
                .collect(),
        };
        for (i, low) in rising.iter().enumerate() {
            for high in &rising[i..] {
                assert_eq!(report(&[low, high]).listener(Slot(3)), *high);
                assert_eq!(report(&[high, low]).listener(Slot(3)), *high);
            }
        }
        let report = report(&[&rising[0], &rising[0], &rising[0]]);
        assert_eq!(report.listener(Slot(4)), ListenerState::Pending);
        assert_eq!(report.generation(), 8);
        assert_eq!(report.heartbeat(), Duration::from_secs(2));
    }

    #[test]
    fn every_error_names_the_frontend_and_what_to_do() {
        let frontend = testing::spec("10.0.0.5:443", &[]).key;
        let error = |errno| {
            BindError::new(
                frontend,
                ListenError {
                    step: "bind",
                    errno,
                },
            )
        };
        assert_eq!(
            error(Errno::ACCESS).to_string(),
            "cannot bind 10.0.0.5:443/tcp: permission denied; grant CAP_NET_BIND_SERVICE or \
             choose a port above 1023"
        );
        for errno in 1..134 {
            let message = error(Errno::from_raw_os_error(errno)).to_string();
            assert!(
                message.starts_with("cannot bind 10.0.0.5:443/tcp: "),
                "{message}"
            );
            assert!(message.contains("; "), "{message}");
        }
    }
}
