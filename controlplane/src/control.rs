//! The control task: one thread that owns every datum of the control plane and decides everything.
//!
//! It takes events from the sources, lets a burst settle (`task`), sends what changed down the line
//! (`line`), publishes, and hears from the workers. It shows a [`Snapshot`]
//! and takes [`Command`]s; nobody else touches what it owns.
//!
//! # When it panics
//!
//! Forwarding does not notice: the workers run the table published last. The thread logs the panic,
//! waits a little longer each time, and starts the task from nothing but the sources: they list
//! anew, and only the first complete list replaces the table. Who holds which address survives in
//! memory and on disk, so that no VIP moves.

mod burst;
mod causes;
mod checked;
mod denied;
mod files;
mod line;
mod nodes;
mod said;
mod sources;
#[cfg(test)]
mod sources_agree;
mod task;
#[cfg(test)]
mod tests;
mod vips;
mod voice;

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use std::{io, thread};

use lb_core::plane::Handle;
use lb_core::table::Table;
use tokio::sync::{Notify, mpsc};

pub(crate) use self::causes::{Cause, Undated};
use crate::allocate::{Pools, Record};
use crate::compile::Defaults;
use crate::measure::{self, Recorder};
use crate::provider::Provided;
use crate::source::{directory, kubernetes};
use crate::state::{Saver, StateFile};
use crate::status::{Board, Snapshot};
use crate::translate::Rules;

/// After a panic the task starts anew after this; twice as long after the next.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// And never later than this.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// A task that ran for this long is well: the next pause is the first again.
const WELL_AFTER: Duration = Duration::from_secs(60);

/// What the control plane has to know.
#[derive(Clone, Debug)]
pub struct Settings {
    /// What a Service means here.
    pub rules: Rules,
    /// The addresses to give.
    pub pools: Pools,
    /// What a Service that does not say otherwise gets.
    pub defaults: Defaults,
    /// The directories to serve.
    pub directories: Vec<directory::Settings>,
    /// The API server to serve.
    pub kubernetes: Option<kubernetes::Settings>,
    /// Where who holds what is kept; `None`: nowhere, and addresses may move at a restart.
    pub state_dir: Option<PathBuf>,
    /// Where to write a file per Service.
    pub status_dir: Option<PathBuf>,
    /// The interface to put VIPs on; `None`: the one whose subnet holds the VIP, else lo.
    pub vip_interface: Option<String>,
    /// How long the VIP of a Service that is gone stays for the connections that still live there.
    pub drain_timeout: Duration,
    /// Let every deletion happen, however many at once.
    pub confirm_deletions: bool,
    /// The cluster that is provided for, if any.
    pub provider: Option<Provided>,
}

/// What a person asks of the control task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// List every source anew, now.
    Rescan,
    /// What the deletion guard holds was meant to go.
    ConfirmDeletions,
    /// Listeners close on purpose from now on: not a word of single Services.
    Drain,
    /// Take the VIPs that were added off the machine, and end.
    Stop,
    /// Panic, as a bug would.
    #[cfg(test)]
    Panic,
}

/// The running control plane.
#[derive(Debug)]
pub struct Control {
    commands: mpsc::Sender<Command>,
    board: Board,
    watches: kubernetes::Watches,
    pace: Option<kubernetes::Pace>,
    thread: Option<JoinHandle<()>>,
}

/// The way to the control task for those who only look and ask; clones are the same.
#[derive(Clone, Debug)]
pub struct Desk {
    commands: mpsc::Sender<Command>,
    board: Board,
    watches: kubernetes::Watches,
    pace: Option<kubernetes::Pace>,
}

impl Desk {
    /// What it showed last.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.board.snapshot()
    }

    /// How the watches of the API server fare; none without one.
    pub fn watches(&self) -> BTreeMap<kubernetes::Scope, kubernetes::Watch> {
        self.watches.all()
    }

    /// How the API server's answers come; `None` without one.
    pub fn answers(&self) -> Option<kubernetes::Answers> {
        self.pace.as_ref().map(kubernetes::Pace::seen)
    }

    /// Asks; false if it is not taken, because many are waiting or the task ended.
    pub fn command(&self, command: Command) -> bool {
        self.commands.try_send(command).is_ok()
    }
}

/// What outlives a task that panics.
struct Keep {
    plane: Handle,
    /// Published last.
    table: Arc<Table>,
    /// Who holds what.
    record: Arc<Record>,
    saver: Option<Saver<Record>>,
    state_notes: Arc<[String]>,
    board: Board,
    commands: mpsc::Receiver<Command>,
    /// The workers have something new to report.
    reported: Arc<Notify>,
    restarts: u64,
}

impl Control {
    /// Starts the control task, which goes on where `table`, the one that `plane` runs, ends. Who
    /// held which address is read first, so that what cannot be read is known at once. What it measures goes to
    /// `recorder`.
    ///
    /// # Errors
    ///
    /// No thread can be made.
    pub fn start(
        settings: Settings,
        plane: Handle,
        table: Arc<Table>,
        recorder: Recorder,
    ) -> io::Result<Control> {
        metrics::with_local_recorder(&*recorder, measure::begin);
        let (commands, waiting) = mpsc::channel(16);
        let board = Board::default();
        let reported = Arc::new(Notify::new());
        let hook = Arc::clone(&reported);
        plane.on_change(Box::new(move || hook.notify_one()));
        let (record, state_notes, saver) = restore(&settings, &reported)?;
        let keep = Keep {
            plane,
            table,
            record,
            saver,
            state_notes,
            board: board.clone(),
            commands: waiting,
            reported,
            restarts: 0,
        };
        let watches = settings.kubernetes.as_ref();
        let watches = watches
            .map(|settings| settings.watches.clone())
            .unwrap_or_default();
        let pace = settings.kubernetes.as_ref();
        let pace = pace.map(|settings| settings.connection.pace().clone());
        let thread = thread::Builder::new()
            .name("weir-control".into())
            .spawn(move || {
                let _here = metrics::set_default_local_recorder(&*recorder);
                supervise(&settings, keep);
            })?;
        Ok(Control {
            commands,
            board,
            watches,
            pace,
            thread: Some(thread),
        })
    }

    /// A way to it for others.
    pub fn desk(&self) -> Desk {
        Desk {
            commands: self.commands.clone(),
            board: self.board.clone(),
            watches: self.watches.clone(),
            pace: self.pace.clone(),
        }
    }

    /// Takes the VIPs off the machine and ends the task. What is published stays.
    pub fn stop(mut self) {
        // Full or closed: the task is far behind, or gone. The process ends either way, and the
        // next start cleans up what this one leaves.
        let asked = self.commands.try_send(Command::Stop).is_ok();
        if let Some(thread) = self.thread.take()
            && asked
        {
            // A panic of the supervisor was reported by its own hook.
            let _ = thread.join();
        }
    }
}

type Restored = (Arc<Record>, Arc<[String]>, Option<Saver<Record>>);

fn restore(settings: &Settings, changed: &Arc<Notify>) -> io::Result<Restored> {
    let Some(directory) = &settings.state_dir else {
        return Ok((Arc::default(), Arc::default(), None));
    };
    let mut file = StateFile::new::<Record>(directory);
    let (record, problems) = file.load::<Record>();
    let notes: Vec<String> = problems.iter().map(ToString::to_string).collect();
    for note in &notes {
        tracing::warn!("{note}");
    }
    let changed = Arc::clone(changed);
    let saver = Saver::start(file, move |error| {
        match error {
            Some(error) => tracing::error!("{error}"),
            None => tracing::info!("the state directory takes writes again"),
        }
        changed.notify_one();
    })?;
    Ok((
        Arc::new(record.unwrap_or_default()),
        notes.into(),
        Some(saver),
    ))
}

/// Runs the task until it is told to stop, whatever it does.
fn supervise(settings: &Settings, mut keep: Keep) {
    let mut pause = FIRST_PAUSE;
    loop {
        let begun = Instant::now();
        // Nothing of the task survives but `keep`, whose values are replaced whole.
        let ended = catch_unwind(AssertUnwindSafe(|| attempt(settings, &mut keep)));
        match ended {
            Ok(Ok(())) => return,
            Ok(Err(error)) => tracing::error!(%error, "the control task cannot start"),
            Err(_) => tracing::error!(
                "the control task panicked; forwarding goes on, and it starts anew: please report this"
            ),
        }
        keep.restarts += 1;
        measure::restarted();
        if begun.elapsed() > WELL_AFTER {
            pause = FIRST_PAUSE;
        }
        thread::sleep(pause);
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

fn attempt(settings: &Settings, keep: &mut Keep) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(task::run(settings, keep));
    // A reader that hangs on a dead file system does not hold the end.
    runtime.shutdown_background();
    Ok(())
}
