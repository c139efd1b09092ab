//! Ctrl-C and SIGTERM: the run ends at its next wait, and everything is taken down.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::{SigSet, Signal};

use crate::net;

/// Tells when to end.
pub struct Stop {
    asked: std::sync::Mutex<Receiver<()>>,
}

impl Stop {
    /// Takes the signals over. Call it before any other thread exists: they inherit the mask.
    /// Processes that we start do not: std clears it.
    pub fn listen() -> Result<Stop> {
        let mut signals = SigSet::empty();
        for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
            signals.add(signal);
        }
        signals.thread_block().context("cannot block signals")?;
        let (ask, asked) = channel();
        let waiting = Arc::new(signals);
        std::thread::spawn(move || {
            while waiting.wait().is_ok() {
                if ask.send(()).is_err() {
                    break;
                }
                if waiting.wait().is_ok() {
                    eprintln!("asked twice: removing the namespaces and ending at once");
                    net::sweep_own();
                    std::process::exit(130);
                }
            }
        });
        Ok(Stop {
            asked: asked.into(),
        })
    }

    /// Never asks: for tests.
    #[cfg(test)]
    pub fn never() -> (Stop, std::sync::mpsc::Sender<()>) {
        let (ask, asked) = channel();
        let stop = Stop {
            asked: asked.into(),
        };
        (stop, ask)
    }

    /// Waits for so long.
    ///
    /// # Errors
    /// We were asked to end.
    pub fn sleep(&self, time: Duration) -> Result<()> {
        let asked = self.asked.lock().map_err(|_| anyhow::anyhow!("poisoned"))?;
        match asked.recv_timeout(time) {
            Err(RecvTimeoutError::Timeout) => Ok(()),
            Ok(()) | Err(RecvTimeoutError::Disconnected) => bail!("interrupted"),
        }
    }
}
