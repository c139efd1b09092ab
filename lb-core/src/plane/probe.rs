//! What the kernel lets this process do, in words: each thing tried, and for what is missing a
//! sentence that names it and says how to get it.
//!
//! `sys::probe` tries; all here but [`Probe::run`] is PURE.

#[cfg(test)]
mod tests;

use std::thread;

use rustix::io::Errno;

use crate::sys::probe::{self as trial, Rings};

/// The size that splicing asks of its pipes, in bytes.
const PIPE: usize = 256 << 10;

/// Its number (linux/capability.h).
const CAP_BPF: u32 = 39;

/// Capabilities that Weir has a use for: their numbers (linux/capability.h), and what is lost
/// without them.
const CAPABILITIES: [(&str, u32, &str); 5] = [
    (
        "CAP_NET_BIND_SERVICE",
        10,
        "ports below net.ipv4.ip_unprivileged_port_start cannot be served",
    ),
    (
        "CAP_NET_ADMIN",
        12,
        "VIPs are not put on interfaces, and UDP queues stay within net.core.rmem_max",
    ),
    (
        "CAP_NET_RAW",
        13,
        "telling neighbours of VIPs that come to this machine",
    ),
    (
        "CAP_SYS_RESOURCE",
        24,
        "pipes shrink past fs.pipe-user-pages-soft, and bulk is copied then",
    ),
    (
        "CAP_BPF",
        CAP_BPF,
        "connections are spread over the workers by a hash, and not by turns",
    ),
];

/// Why something cannot be had. Shown as one sentence without its full stop.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what}; {fix}")]
pub struct Lack {
    /// What the kernel said; `None` where it says no without an error, as of an operation that it
    /// does not know or a capability that this process does not hold.
    pub errno: Option<i32>,
    /// What is missing, and what is lost by that.
    pub what: String,
    /// How to get it, with the command to type where one will do.
    pub fix: String,
}

/// What is missing and how to get it.
type Said = (String, String);

/// One thing that was tried.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Stable: the name of the call, operation, option or capability.
    pub name: &'static str,
    /// `None`: it is there.
    pub lack: Option<Lack>,
}

/// Everything that was tried; by default nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Probe {
    /// What the io_uring engine needs, all of it. Nothing follows a refusal that leaves no ring to
    /// try the rest on.
    pub io_uring: Vec<Finding>,
    /// What either engine makes use of, and can do without.
    pub optional: Vec<Finding>,
}

impl Probe {
    /// Tries everything once, in a few milliseconds, with three descriptors at a time. Needs no
    /// privilege.
    pub fn run() -> Probe {
        let host = Host::read();
        // The kernel ends a ring some milliseconds after it was closed, by a signal to the thread that
        // used it: one that is gone by then, or a system call of our caller would be interrupted.
        let rings = thread::Builder::new()
            .name("lb-probe".into())
            .spawn(trial::rings)
            .map(thread::JoinHandle::join);
        let rings = match rings {
            Ok(Ok(rings)) => rings,
            Ok(Err(_)) | Err(_) => trial::rings(),
        };
        Probe {
            io_uring: host.of_rings(&rings),
            optional: host.of_the_rest(),
        }
    }

    /// The first thing that the io_uring engine lacks; `None` if it can run.
    pub fn io_uring_lack(&self) -> Option<String> {
        if self.io_uring.is_empty() {
            return Some("it was not tried".to_owned());
        }
        let mut lacks = self.io_uring.iter().filter_map(|found| found.lack.as_ref());
        lacks.next().map(Lack::to_string)
    }
}

/// What explains a refusal.
struct Host {
    /// As uname(2) has it.
    kernel: String,
    /// kernel.io_uring_disabled (Linux 6.6).
    io_uring_disabled: Option<String>,
    /// A seccomp filter is in force for this process.
    confined: bool,
    /// The effective capabilities, a bit each.
    capabilities: u64,
}

impl Host {
    fn read() -> Host {
        let read = |path: &str| std::fs::read_to_string(path).ok();
        let status = read("/proc/self/status").unwrap_or_default();
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            line.map_or("", str::trim).to_owned()
        };
        let disabled = read("/proc/sys/kernel/io_uring_disabled");
        Host {
            kernel: rustix::system::uname().release().to_string_lossy().into(),
            io_uring_disabled: disabled.map(|text| text.trim().to_owned()),
            confined: field("Seccomp:") == "2",
            capabilities: u64::from_str_radix(&field("CapEff:"), 16).unwrap_or(0),
        }
    }

    fn of_rings(&self, rings: &Rings) -> Vec<Finding> {
        let Rings {
            setup,
            enter,
            opcodes,
            buffers,
        } = rings;
        let mut findings = vec![finding("io_uring_setup", *setup, |e| self.no_ring(e))];
        if let Some(enter) = enter {
            findings.push(finding("io_uring_enter", *enter, |errno| match errno {
                Errno::OPNOTSUPP => self.too_old("IORING_ENTER_EXT_ARG", "5.11"),
                errno => self.refused("io_uring_enter", errno),
            }));
        }
        match opcodes {
            Some(Ok(known)) => {
                let each = trial::OPCODES.iter().zip(known);
                findings.extend(each.map(|(&(name, _), &known)| Finding {
                    name,
                    lack: (!known).then(|| lack(None, self.too_old(name, "6.1"))),
                }));
            }
            Some(Err(errno)) => {
                findings.push(finding("IORING_REGISTER_PROBE", Err(*errno), |errno| {
                    self.refused("io_uring_register", errno)
                }));
            }
            None => {}
        }
        if let Some(buffers) = buffers {
            let name = "IORING_REGISTER_PBUF_RING";
            findings.push(finding(name, *buffers, |errno| match errno {
                Errno::INVAL => self.too_old(name, "5.19"),
                errno => self.refused("io_uring_register", errno),
            }));
        }
        findings
    }

    fn of_the_rest(&self) -> Vec<Finding> {
        let option = |name, lost: &str, since, result| {
            finding(name, result, |errno| {
                let (what, fix) = match errno {
                    Errno::NOPROTOOPT => self.too_old(name, since),
                    errno => self.refused("setsockopt", errno),
                };
                (format!("{lost}: {what}"), fix)
            })
        };
        let mut findings = vec![
            finding("splice", trial::splices(), |errno| {
                let (what, fix) = self.refused("splice", errno);
                (format!("bulk is copied: {what}"), fix)
            }),
            of_pipes(trial::pipe_size(PIPE)),
            option(
                "UDP_SEGMENT",
                "datagrams are sent one by one",
                "4.18",
                trial::cuts_datagrams(),
            ),
            option(
                "UDP_GRO",
                "datagrams come one by one",
                "5.0",
                trial::joins_datagrams(),
            ),
            option(
                "SO_ATTACH_REUSEPORT_CBPF",
                "clients of affinity frontends are not kept on one worker",
                "4.5",
                trial::selects_sockets(),
            ),
        ];
        findings.push(finding(
            "BPF_PROG_LOAD",
            trial::rotates_sockets(),
            |errno| self.no_rotation(errno),
        ));
        findings.extend(CAPABILITIES.map(|(name, number, lost)| {
            let granted = self.capabilities >> number & 1 == 1;
            let fix = format!("`setcap {}+ep /usr/local/bin/weir`", name.to_lowercase());
            Finding {
                name,
                lack: (!granted).then(|| lack(None, (format!("not granted: {lost}"), fix))),
            }
        }));
        findings
    }

    fn no_rotation(&self, errno: Errno) -> Said {
        let lost = "connections are spread over the workers by a hash, and not by turns";
        let (what, fix) = match errno {
            Errno::PERM if self.capabilities >> CAP_BPF & 1 == 0 => (
                "bpf(2) needs CAP_BPF (EPERM)".to_owned(),
                "`setcap cap_bpf+ep /usr/local/bin/weir`".to_owned(),
            ),
            Errno::INVAL => self.too_old("eBPF atomics that fetch", "5.12"),
            errno => self.refused("bpf", errno),
        };
        (format!("{lost}: {what}"), fix)
    }

    fn no_ring(&self, errno: Errno) -> Said {
        let (what, fix) = match (errno, self.io_uring_disabled.as_deref()) {
            (Errno::PERM, Some("2")) => (
                "io_uring is turned off on this machine (kernel.io_uring_disabled is 2)",
                "`sysctl -w kernel.io_uring_disabled=0`",
            ),
            (Errno::PERM, Some("1")) => (
                "io_uring is kept for CAP_SYS_ADMIN and one group (kernel.io_uring_disabled is 1)",
                "put this user into the group that `sysctl kernel.io_uring_group` names, or `sysctl -w kernel.io_uring_disabled=0`",
            ),
            (Errno::INVAL, _) => {
                let flags = "IORING_SETUP_SINGLE_ISSUER and IORING_SETUP_DEFER_TASKRUN";
                return self.too_old(flags, "6.1");
            }
            _ => return self.refused("io_uring_setup", errno),
        };
        (what.to_owned(), fix.to_owned())
    }

    /// A call that somebody or something forbids.
    fn refused(&self, call: &str, errno: Errno) -> Said {
        let (name, kernel) = (name(errno), &self.kernel);
        let (what, fix) = match errno {
            Errno::PERM | Errno::ACCESS | Errno::NOSYS if self.confined => (
                format!("a seccomp filter forbids {call} ({name})"),
                "allow it in the profile of the container or service",
            ),
            Errno::NOSYS => (
                format!("kernel {kernel} has no {call} ({name})"),
                "boot one of 6.1 or later that was built with it",
            ),
            Errno::PERM | Errno::ACCESS => (
                format!("{call} is forbidden ({name}), by no sysctl and no seccomp filter"),
                "`journalctl -k` names the security module",
            ),
            Errno::NOMEM => (
                format!("{call} finds no memory ({name})"),
                "raise the limit of locked memory (LimitMEMLOCK, ulimit -l) or of the memory cgroup",
            ),
            Errno::MFILE | Errno::NFILE => (
                format!("{call} finds no descriptor ({name})"),
                "raise the limit of open files (LimitNOFILE, ulimit -n, fs.file-max)",
            ),
            _ => (
                format!("{call} failed with {name}"),
                "see its manual page, section 2",
            ),
        };
        (what, fix.to_owned())
    }

    fn too_old(&self, what: &str, since: &str) -> Said {
        let kernel = &self.kernel;
        (
            format!("kernel {kernel} has no {what}"),
            format!("boot {since} or later"),
        )
    }
}

fn of_pipes(size: Result<usize, Errno>) -> Finding {
    let lack = match size {
        Ok(size) if size >= PIPE => None,
        Ok(size) => Some(lack(
            None,
            (
                format!("bulk is copied: pipes stay at {size} of {PIPE} bytes"),
                "`sysctl -w fs.pipe-max-size=1048576 fs.pipe-user-pages-soft=0`, or grant CAP_SYS_RESOURCE".to_owned(),
            ),
        )),
        Err(errno) => Some(lack(
            Some(errno),
            (
                format!("bulk is copied: no pipe ({})", name(errno)),
                "raise the limit of open files (LimitNOFILE, ulimit -n)".to_owned(),
            ),
        )),
    };
    Finding {
        name: "F_SETPIPE_SZ",
        lack,
    }
}

fn finding(
    name: &'static str,
    result: Result<(), Errno>,
    said: impl FnOnce(Errno) -> Said,
) -> Finding {
    Finding {
        name,
        lack: result.err().map(|errno| lack(Some(errno), said(errno))),
    }
}

fn lack(errno: Option<Errno>, (what, fix): Said) -> Lack {
    Lack {
        errno: errno.map(Errno::raw_os_error),
        what,
        fix,
    }
}

/// An errno as manuals have it.
fn name(errno: Errno) -> String {
    let known = match errno {
        Errno::PERM => "EPERM",
        Errno::ACCESS => "EACCES",
        Errno::NOSYS => "ENOSYS",
        Errno::INVAL => "EINVAL",
        Errno::NOMEM => "ENOMEM",
        Errno::MFILE => "EMFILE",
        Errno::NFILE => "ENFILE",
        Errno::OPNOTSUPP => "EOPNOTSUPP",
        other => {
            let error = std::io::Error::from(other);
            return format!("error {} ({error})", other.raw_os_error());
        }
    };
    known.to_owned()
}
