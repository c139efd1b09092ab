//! Where things go when nobody said: the system's directories as far as this user may write there,
//! else the user's own (XDG base directories).

use std::fs::{self, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};

use crate::exit::Denied;

/// The state directory: `asked`, or the first of the defaults that can be written. Made if
/// missing.
///
/// # Errors
///
/// None can be made or written.
pub fn state_dir(asked: Option<PathBuf>) -> anyhow::Result<PathBuf> {
    if let Some(asked) = asked {
        return match usable(&asked) {
            Ok(()) => Ok(asked),
            Err(error) if asked.is_dir() && is_of_the_disk(&error) => {
                tracing::warn!("state directory {}: {error}", asked.display());
                Ok(asked)
            }
            Err(error) => Err(denied(&asked, &error)),
        };
    }
    let system = PathBuf::from("/var/lib/weir");
    let Err(error) = usable(&system) else {
        return Ok(system);
    };
    let home = std::env::var_os("XDG_STATE_HOME")
        .map(PathBuf::from)
        .or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".local/state")));
    match home.map(|home| home.join("weir")) {
        Some(own) if usable(&own).is_ok() => Ok(own),
        _ => Err(denied(&system, &error)),
    }
}

fn denied(path: &Path, error: &io::Error) -> anyhow::Error {
    let message = format!(
        "state directory {}: {error}; choose one that can be written with --state-dir DIR",
        path.display()
    );
    Denied(message).into()
}

/// A disk that takes nothing now may take it later: serving does not wait for it.
fn is_of_the_disk(error: &io::Error) -> bool {
    use io::ErrorKind::{QuotaExceeded, ReadOnlyFilesystem, StorageFull};
    matches!(
        error.kind(),
        StorageFull | ReadOnlyFilesystem | QuotaExceeded
    )
}

fn usable(directory: &Path) -> io::Result<()> {
    fs::create_dir_all(directory)?;
    let probe = directory.join(".probe");
    OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .open(&probe)?;
    fs::remove_file(&probe)
}

/// Where the admin socket goes by default, in order of preference.
pub fn admin_sockets() -> Vec<PathBuf> {
    let system = PathBuf::from("/run/weir/admin.sock");
    let own = std::env::var_os("XDG_RUNTIME_DIR");
    let own = own.map(|directory| PathBuf::from(directory).join("weir/admin.sock"));
    std::iter::once(system).chain(own).collect()
}
