//! Ctrl-C and SIGTERM: the run ends at its next wait, and everything is taken down.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::{SigSet, Signal};

use crate::net;

/// Tells when to end.
pub struct Stop {
    ending: AtomicBool,
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
            ending: AtomicBool::new(false),
            asked: asked.into(),
        })
    }

    /// Asks when its other end says so: for tests.
    #[cfg(test)]
    pub fn by_hand() -> (Stop, std::sync::mpsc::Sender<()>) {
        let (ask, asked) = channel();
        let stop = Stop {
            ending: AtomicBool::new(false),
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
        // Once asked, every later wait says so too.
        if self.ending.load(Ordering::Relaxed)
            || asked.recv_timeout(time) != Err(RecvTimeoutError::Timeout)
        {
            self.ending.store(true, Ordering::Relaxed);
            bail!("interrupted");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_was_asked_once_does_not_wait_again() {
        let (stop, ask) = Stop::by_hand();
        assert!(stop.sleep(Duration::ZERO).is_ok());
        ask.send(()).expect("a listener");
        assert!(stop.sleep(Duration::from_secs(60)).is_err());
        assert!(stop.sleep(Duration::from_secs(60)).is_err());
    }
}
