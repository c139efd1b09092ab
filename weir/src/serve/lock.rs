//! One process to a state directory: two that write one record would lose each other's addresses,
//! and both would serve the same ports (SO_REUSEPORT lets processes of one user share them).

use std::fs::{File, TryLockError};
use std::path::Path;

/// Locks the directory itself (flock(2)), so that a full or read-only disk is no obstacle. The
/// kernel lets go when the file is dropped or the process ends, however it ends. `None` where the
/// file system has no such locks.
///
/// # Errors
///
/// Another process holds it.
pub fn lock(directory: &Path) -> anyhow::Result<Option<File>> {
    let shown = directory.display();
    let file = match File::open(directory) {
        Ok(file) => file,
        Err(error) => {
            tracing::warn!("state directory {shown} cannot be locked: {error}");
            return Ok(None);
        }
    };
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => Err(anyhow::anyhow!(
            "state directory {shown} is in use by another weir; stop that one (`fuser {shown}` names it), or give this one a directory of its own with --state-dir DIR"
        )),
        Err(TryLockError::Error(error)) => {
            tracing::warn!("state directory {shown} cannot be locked: {error}");
            Ok(None)
        }
    }
}
