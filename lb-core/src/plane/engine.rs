//! PURE: which I/O driver runs, from what was asked for and what the probe found.

use std::fmt;

use super::{Probe, StartError};

/// Which I/O driver is asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Engine {
    /// The best that the probe finds.
    #[default]
    Auto,
    /// io_uring, or fail to start.
    IoUring,
    /// epoll.
    Epoll,
}

/// An I/O driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Driver {
    /// Completions, by io_uring(7).
    IoUring,
    /// Readiness, by epoll(7).
    Epoll,
}

impl Driver {
    /// Every driver.
    pub const ALL: [Driver; 2] = [Driver::IoUring, Driver::Epoll];

    /// As it stands in settings, metrics and logs.
    pub fn label(self) -> &'static str {
        match self {
            Driver::IoUring => "io_uring",
            Driver::Epoll => "epoll",
        }
    }
}

impl fmt::Display for Driver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.label())
    }
}

/// The driver that runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chosen {
    /// Which.
    pub driver: Driver,
    /// Why, for a person: what was asked for, or what else is missing and how to get it.
    pub why: String,
}

/// Chooses the driver.
///
/// # Errors
/// [`StartError::NoIoUring`]: io_uring was asked for and cannot run here.
pub fn choose(engine: Engine, probe: &Probe) -> Result<Chosen, StartError> {
    let (driver, why) = match (engine, probe.io_uring_lack()) {
        (Engine::Epoll, _) => (Driver::Epoll, "asked for".to_owned()),
        (Engine::IoUring, None) => (Driver::IoUring, "asked for".to_owned()),
        (Engine::IoUring, Some(why)) => return Err(StartError::NoIoUring { why }),
        (Engine::Auto, None) => {
            let why = "the kernel has all that it needs";
            (Driver::IoUring, why.to_owned())
        }
        (Engine::Auto, Some(why)) => (Driver::Epoll, format!("io_uring cannot run here: {why}")),
    };
    Ok(Chosen { driver, why })
}

#[cfg(test)]
mod tests {
    use super::super::probe::{Finding, Lack};
    use super::*;

    fn probe(lacks: &[Option<&str>]) -> Probe {
        let findings = lacks.iter().map(|lack| Finding {
            name: "io_uring_setup",
            lack: lack.map(|what| Lack {
                errno: Some(1),
                what: what.to_owned(),
                fix: "boot 6.1".to_owned(),
            }),
        });
        Probe {
            io_uring: findings.collect(),
            optional: Vec::new(),
        }
    }

    #[test]
    fn every_engine_meets_every_kernel() {
        let all = probe(&[None, None]);
        let some = probe(&[None, Some("no ACCEPT"), Some("no RECV")]);
        let because = |why: &str| format!("io_uring cannot run here: {why}");
        let (io_uring, epoll) = (Driver::IoUring, Driver::Epoll);
        let asked = || "asked for".to_owned();
        let all_there = || "the kernel has all that it needs".to_owned();
        let lacks = || because("no ACCEPT; boot 6.1");
        let table = [
            (&all, Engine::Auto, Some((io_uring, all_there()))),
            (&all, Engine::IoUring, Some((io_uring, asked()))),
            (&all, Engine::Epoll, Some((epoll, asked()))),
            (&some, Engine::Auto, Some((epoll, lacks()))),
            (&some, Engine::IoUring, None),
            (&some, Engine::Epoll, Some((epoll, asked()))),
        ];
        for (probe, engine, expected) in table {
            let found = choose(engine, probe);
            match (&found, &expected) {
                (Ok(Chosen { driver, why }), Some((expected, because))) => {
                    assert_eq!((driver, why), (expected, because), "{engine:?}");
                }
                (Err(StartError::NoIoUring { .. }), None) => {}
                _ => panic!("{engine:?}: {found:?}, and not {expected:?}"),
            }
        }
    }

    #[test]
    fn a_refusal_names_the_first_thing_missing_and_what_to_do() {
        let some = probe(&[None, Some("no ACCEPT"), Some("no RECV")]);
        let error = choose(Engine::IoUring, &some).expect_err("refused");
        assert_eq!(
            error.to_string(),
            "cannot run the io_uring engine: no ACCEPT; boot 6.1; or use `--engine auto` or `--engine epoll`"
        );
    }

    #[test]
    fn a_probe_that_tried_nothing_chooses_nothing() {
        let chosen = choose(Engine::Auto, &Probe::default()).expect("epoll always runs");
        assert_eq!(chosen.driver, Driver::Epoll);
    }
}
