//! The socket file: made with its mode before anybody can see it, taken over only from the dead.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use crate::server::StartError;

/// Owner and group may connect: viewers and operators are members of the group.
const MODE: u32 = 0o660;

/// A bound socket file, removed when dropped if it is still this one.
#[derive(Debug)]
pub(crate) struct SocketFile {
    path: PathBuf,
    identity: (u64, u64),
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let ours = identity(&self.path).is_ok_and(|found| found == self.identity);
        if ours {
            // Gone already is as good as removed.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Binds `path`, making its directory if that is missing.
///
/// # Errors
///
/// The path is taken (by a process that answers, or by a file that is no socket) or cannot be
/// written.
pub(crate) fn bind(path: &Path) -> Result<(UnixListener, SocketFile), StartError> {
    let failed = |source| StartError::Bind {
        address: format!("unix:{}", path.display()),
        source,
    };
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    if !directory.is_dir() {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(directory)
            .map_err(failed)?;
    }
    refuse_if_taken(path)?;
    let listener = bind_hidden(directory, path).map_err(failed)?;
    let identity = identity(path).map_err(failed)?;
    let file = SocketFile {
        path: path.to_owned(),
        identity,
    };
    Ok((listener, file))
}

fn refuse_if_taken(path: &Path) -> Result<(), StartError> {
    let Ok(found) = fs::symlink_metadata(path) else {
        return Ok(());
    };
    if !found.file_type().is_socket() {
        return Err(StartError::NotASocket(path.to_owned()));
    }
    match UnixStream::connect(path) {
        Ok(_) => Err(StartError::Answered(path.to_owned())),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(source) => Err(StartError::Bind {
            address: format!("unix:{}", path.display()),
            source,
        }),
    }
}

/// Binds inside a directory that only we may enter, sets the mode, and moves the socket to its
/// place in one step: at no moment can a stranger connect, and a dead predecessor's file is
/// replaced rather than missing.
fn bind_hidden(directory: &Path, path: &Path) -> io::Result<UnixListener> {
    let hidden = directory.join(format!(".w{}", std::process::id()));
    let inside = hidden.join("s");
    // A killed process with our id may have left one.
    let _ = fs::remove_file(&inside);
    let _ = fs::remove_dir(&hidden);
    fs::DirBuilder::new().mode(0o700).create(&hidden)?;
    let bound = UnixListener::bind(&inside).and_then(|listener| {
        fs::set_permissions(&inside, fs::Permissions::from_mode(MODE))?;
        fs::rename(&inside, path)?;
        Ok(listener)
    });
    let _ = fs::remove_file(&inside);
    let _ = fs::remove_dir(&hidden);
    bound
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    let found = fs::symlink_metadata(path)?;
    Ok((found.dev(), found.ino()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(directory: &tempfile::TempDir) -> PathBuf {
        directory.path().join("run/admin.sock")
    }

    #[test]
    fn made_with_its_mode_and_removed() {
        let directory = tempfile::tempdir().expect("temp");
        let path = path(&directory);
        let (_listener, file) = bind(&path).expect("bind");
        let mode = fs::metadata(&path).expect("metadata").permissions().mode();
        assert_eq!(mode & 0o777, MODE);
        let left: Vec<_> = fs::read_dir(path.parent().expect("parent"))
            .expect("dir")
            .collect();
        assert_eq!(left.len(), 1, "the hidden directory is gone");
        drop(file);
        assert!(!path.exists());
    }

    #[test]
    fn a_dead_socket_is_replaced_and_a_living_one_is_not() {
        let directory = tempfile::tempdir().expect("temp");
        let path = path(&directory);
        let (listener, file) = bind(&path).expect("bind");
        assert!(matches!(bind(&path), Err(StartError::Answered(_))));
        drop(listener);
        let (_second, kept) = bind(&path).expect("the first is dead");
        drop(file);
        assert!(path.exists(), "the first no longer owns the path");
        drop(kept);
        assert!(!path.exists());
    }

    #[test]
    fn a_file_that_is_no_socket_is_left_alone() {
        let directory = tempfile::tempdir().expect("temp");
        let path = directory.path().join("precious");
        fs::write(&path, "text").expect("write");
        assert!(matches!(bind(&path), Err(StartError::NotASocket(_))));
        assert_eq!(fs::read_to_string(&path).expect("read"), "text");
    }
}
