//! The directory source: watches a directory and lists it anew when something in it may have
//! changed. Thin I/O around [`scan`](super::scan).
//!
//! The directory is watched, not its files, so that the `..data` symlink of a mounted ConfigMap
//! may be swapped under them; a slow rescan by content hash sees what no watch reports (network
//! file systems, a file behind a symlink, the directory itself replaced).
//!
//! Runs on the control plane's runtime; reading and parsing happen on a blocking thread.

use std::fs::{self, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::{Instant, timeout_at};

use super::Problem;
use super::file::{self, File, MAX_FILE_BYTES};
use super::parse::Reader;
use super::scan::{Scan, diff};
use crate::object::{Event, SourceId};

/// Most files of a directory, and bytes of all of them together.
const MAX_FILES: usize = 10_000;
const MAX_TOTAL_BYTES: u64 = 256 << 20;

/// How soon to look again for a directory that is not there, and so cannot be watched: it may be
/// about to be replaced.
const RETRY: Duration = Duration::from_millis(250);

/// What a directory source needs to know.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The directory. Files named `*.yaml`, `*.yml` and `*.json` in it are read, hidden ones and
    /// those in directories below are not.
    pub path: PathBuf,
    /// Marks every event.
    pub source: SourceId,
    /// The cluster of every key; "" unless several are served.
    pub cluster: Arc<str>,
    /// After a change, wait for this long without another one: a file is rarely written at once.
    pub settle: Duration,
    /// But never for longer than this.
    pub settle_at_most: Duration,
    /// Rescan this often even if nothing seems to have changed.
    pub rescan: Duration,
}

impl Settings {
    /// The usual times for `path`: a change takes effect after 50 ms of silence, after 150 ms at
    /// the latest; a rescan every 5 s.
    pub fn new(path: PathBuf, source: SourceId) -> Settings {
        Settings {
            path,
            source,
            cluster: Arc::default(),
            settle: Duration::from_millis(50),
            settle_at_most: Duration::from_millis(150),
            rescan: Duration::from_secs(5),
        }
    }
}

/// Watches until `events` is closed. `problems` always holds everything there is to say about the
/// last scan; `rescan` asks for one now (SIGHUP).
pub async fn run(
    settings: Settings,
    events: mpsc::Sender<(SourceId, Event)>,
    problems: watch::Sender<Vec<Problem>>,
    rescan: Arc<Notify>,
) {
    let changed = Arc::new(Notify::new());
    let mut watching = Watching::new(Arc::clone(&changed));
    let mut scan = Scan::default();
    let mut reader = Reader::new(settings.source, Arc::clone(&settings.cluster));
    loop {
        // Watch first, then read: a change in between is seen twice and not never.
        watching.renew(&settings.path);
        let path = settings.path.clone();
        let before = scan.clone();
        let read = tokio::task::spawn_blocking(move || {
            let scan = read(&path, &mut reader, &before);
            (scan, reader)
        });
        // A panic of the reader is a bug of ours, and the runtime has told it: the last good
        // content stays, with a new reader.
        let (mut now, used) = read.await.unwrap_or_else(|_| {
            let reader = Reader::new(settings.source, Arc::clone(&settings.cluster));
            (scan.clone(), reader)
        });
        reader = used;
        now.problems.extend(watching.problem(&settings.path));
        problems.send_if_modified(|said| {
            let all = now.all_problems();
            let news = *said != all;
            *said = all;
            news
        });
        for event in diff(&scan, &now) {
            if events.send((settings.source, event)).await.is_err() {
                return;
            }
        }
        scan = now;
        let slow = match watching.watched {
            Some(_) => settings.rescan,
            None => settings.rescan.min(RETRY),
        };
        tokio::select! {
            () = settled(&changed, &settings, slow) => {}
            () = rescan.notified() => {}
            () = events.closed() => return,
        }
    }
}

/// Returns when a change came and its burst is over, or after `slow`.
async fn settled(changed: &Notify, settings: &Settings, slow: Duration) {
    if timeout_at(Instant::now() + slow, changed.notified())
        .await
        .is_err()
    {
        return;
    }
    let latest = Instant::now() + settings.settle_at_most;
    while Instant::now() < latest {
        let quiet = latest.min(Instant::now() + settings.settle);
        if timeout_at(quiet, changed.notified()).await.is_err() {
            return;
        }
    }
}

/// The watch on the directory. It follows an inode: a directory that was replaced is watched anew.
struct Watching {
    changed: Arc<Notify>,
    watched: Option<(u64, u64, RecommendedWatcher)>,
    failure: Option<String>,
}

impl Watching {
    fn new(changed: Arc<Notify>) -> Watching {
        Watching {
            changed,
            watched: None,
            failure: None,
        }
    }

    fn renew(&mut self, path: &Path) {
        let Ok(metadata) = fs::metadata(path) else {
            self.watched = None;
            return;
        };
        let inode = (metadata.dev(), metadata.ino());
        if let Some((dev, ino, _)) = &self.watched
            && (*dev, *ino) == inode
        {
            return;
        }
        match self.watch(path) {
            Ok(watcher) => {
                self.watched = Some((inode.0, inode.1, watcher));
                self.failure = None;
            }
            Err(error) => {
                self.watched = None;
                self.failure = Some(error.to_string());
            }
        }
    }

    fn watch(&self, path: &Path) -> notify::Result<RecommendedWatcher> {
        let changed = Arc::clone(&self.changed);
        let mut watcher =
            notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
                // Our own reading opens and closes files: only what may change content counts. An
                // error (an overflowed queue) may hide anything.
                if event.is_ok_and(|event| is_reading(&event)) {
                    return;
                }
                changed.notify_one();
            })?;
        watcher.watch(path, RecursiveMode::NonRecursive)?;
        Ok(watcher)
    }

    fn problem(&self, path: &Path) -> Option<Problem> {
        let failure = self.failure.as_ref()?;
        let path = Arc::new(path.to_owned());
        let message = format!(
            "cannot be watched ({failure}): changes take effect with the next slow rescan; raise fs.inotify.max_user_watches and max_user_instances"
        );
        Some(file::whole(&path, message))
    }
}

fn is_reading(event: &notify::Event) -> bool {
    use notify::event::{AccessKind, AccessMode, EventKind};
    match event.kind {
        EventKind::Access(AccessKind::Close(AccessMode::Write)) => false,
        EventKind::Access(_) => true,
        _ => false,
    }
}

/// Reads the directory. Whatever cannot be read keeps what `before` had of it.
pub fn read(path: &Path, reader: &mut Reader, before: &Scan) -> Scan {
    let files = match list(path) {
        Ok(files) => files,
        Err(error) => {
            let what = match error.kind() {
                io::ErrorKind::NotFound => "does not exist".to_owned(),
                _ => format!("cannot be listed: {error}"),
            };
            let message = match before.listed {
                true => format!("{what}; the last good content of its files stays in use"),
                false => format!("{what}; nothing is served until it can be read"),
            };
            let problem = file::whole(&Arc::new(path.to_owned()), message);
            return Scan {
                files: before.files.clone(),
                problems: vec![problem],
                listed: before.listed,
            };
        }
    };
    let mut scan = Scan {
        listed: true,
        ..Scan::default()
    };
    let found = files.len();
    let files = at_most(MAX_FILES, files, before);
    if files.len() < found {
        let message = format!(
            "has {found} files, more than {MAX_FILES}: the rest is not read; put more objects into one file"
        );
        let problem = file::whole(&Arc::new(path.to_owned()), message);
        scan.problems.push(problem);
    }
    let mut total = 0;
    for path in files {
        if let Some((path, file)) = read_one(path, reader, before, &mut total) {
            scan.files.insert(path, file);
        }
    }
    scan
}

/// The first `most` of `files`, in their order; those that are in use before those that are new, so
/// that nobody's many files take another's out of use.
fn at_most(most: usize, files: Vec<PathBuf>, before: &Scan) -> Vec<PathBuf> {
    if files.len() <= most {
        return files;
    }
    let in_use = |path: &PathBuf| before.files.contains_key(path);
    let mut room = most.saturating_sub(files.iter().filter(|path| in_use(path)).count());
    let mut has_room = |path: &PathBuf| {
        let fits = in_use(path) || room > 0;
        room -= usize::from(fits && !in_use(path));
        fits
    };
    let kept = files.into_iter().filter(|path| has_room(path));
    kept.take(most).collect()
}

/// Reads one file; `None` if it is gone meanwhile.
fn read_one(
    path: PathBuf,
    reader: &mut Reader,
    before: &Scan,
    total: &mut u64,
) -> Option<(Arc<PathBuf>, File)> {
    let old = before.files.get_key_value(&path);
    let (path, old) = match old {
        Some((path, old)) => (Arc::clone(path), Some(old)),
        None => (Arc::new(path), None),
    };
    let allowed = MAX_FILE_BYTES.min(MAX_TOTAL_BYTES.saturating_sub(*total));
    let file = match content(&path, allowed) {
        Ok(content) => {
            *total += content.len() as u64;
            contained(&path, &content, old, || {
                File::read(&path, &content, reader, old)
            })
        }
        // Listed and gone a moment later is gone; a symlink that leads nowhere is not.
        Err(ReadError::Open(error))
            if error.kind() == io::ErrorKind::NotFound && fs::symlink_metadata(&*path).is_err() =>
        {
            return None;
        }
        Err(error) => File::unreadable(&path, &error.to_string(), old),
    };
    Some((path, file))
}

/// What `read` makes of the file. If it panics that is a bug of ours, which the runtime tells; it
/// costs this file its news, and no other file.
fn contained(
    path: &Arc<PathBuf>,
    content: &[u8],
    old: Option<&File>,
    read: impl FnOnce() -> File,
) -> File {
    // Behind `read` is the reader's set of shared strings, which is whole whatever happens.
    catch_unwind(AssertUnwindSafe(read)).unwrap_or_else(|_| {
        let problem = "cannot be read by a fault of Weir's own: please report this with the file";
        File::broken(path, content, problem, old)
    })
}

/// Why a file cannot be read.
#[derive(Debug, thiserror::Error)]
enum ReadError {
    #[error("cannot be opened: {0}")]
    Open(#[source] io::Error),
    #[error("cannot be read: {0}")]
    Read(#[from] io::Error),
    #[error("is no regular file")]
    NoFile,
    #[error("is larger than {0} bytes (64 MiB a file, 256 MiB in all): split or remove files")]
    TooLarge(u64),
}

fn content(path: &Path, allowed: u64) -> Result<Vec<u8>, ReadError> {
    // Looked at before it is opened: to open some devices is to do something with them.
    if !fs::metadata(path).map_err(ReadError::Open)?.is_file() {
        return Err(ReadError::NoFile);
    }
    // It may have been swapped meanwhile. Without O_NONBLOCK the open of a named pipe would wait
    // for its writer; a terminal does not become ours.
    let mut file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(path)
        .map_err(ReadError::Open)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(ReadError::NoFile);
    }
    // A file of holes costs its owner nothing, and us as much as any other.
    if metadata.len() > allowed {
        return Err(ReadError::TooLarge(allowed));
    }
    let mut content = Vec::new();
    file.by_ref().take(allowed + 1).read_to_end(&mut content)?;
    if content.len() as u64 > allowed {
        return Err(ReadError::TooLarge(allowed));
    }
    Ok(content)
}

/// The files that are read, in order of their names.
fn list(path: &Path) -> io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        if is_manifest(&entry.file_name().to_string_lossy()) && !entry.path().is_dir() {
            files.push(entry.path());
        }
    }
    files.sort_unstable();
    Ok(files)
}

/// Is a file of this name read?
pub fn is_manifest(name: &str) -> bool {
    let hidden = name.starts_with('.');
    !hidden
        && [".yaml", ".yml", ".json"]
            .iter()
            .any(|end| name.ends_with(end))
}

#[cfg(test)]
mod tests;
