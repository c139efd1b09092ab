//! The few operations on a disk that durable files need, behind a trait: tests stop after each of
//! them.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

/// No state file is larger; what is, is damaged. 100,000 addresses with long names take 30 MB.
pub const MAX_FILE_BYTES: u64 = 256 << 20;

/// A disk. Every operation either happened as a whole when it returns, or may be torn.
pub trait Disk: Send {
    /// Makes a directory and its parents, mode 0750; fine if it exists.
    ///
    /// # Errors
    /// mkdir(2).
    fn create_directory(&self, path: &Path) -> io::Result<()>;

    /// The whole file.
    ///
    /// # Errors
    /// open(2), read(2); `FileTooLarge` past [`MAX_FILE_BYTES`].
    fn read(&self, path: &Path) -> io::Result<Vec<u8>>;

    /// Creates or truncates a file, mode 0600, writes it and waits until it is on the disk.
    ///
    /// # Errors
    /// open(2), write(2), fsync(2).
    fn write(&self, path: &Path, content: &[u8]) -> io::Result<()>;

    /// Moves a file over another.
    ///
    /// # Errors
    /// rename(2).
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Waits until the directory's entries are on the disk.
    ///
    /// # Errors
    /// open(2), fsync(2).
    fn sync_directory(&self, path: &Path) -> io::Result<()>;

    /// Is there anything of this name?
    fn exists(&self, path: &Path) -> bool;
}

/// The machine's own file system.
#[derive(Clone, Copy, Debug, Default)]
pub struct Files;

impl Disk for Files {
    fn create_directory(&self, path: &Path) -> io::Result<()> {
        DirBuilder::new().recursive(true).mode(0o750).create(path)
    }

    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        let mut content = Vec::new();
        File::open(path)?
            .take(MAX_FILE_BYTES + 1)
            .read_to_end(&mut content)?;
        if content.len() as u64 > MAX_FILE_BYTES {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        Ok(content)
    }

    fn write(&self, path: &Path, content: &[u8]) -> io::Result<()> {
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(path)?;
        file.write_all(content)?;
        file.sync_all()
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn sync_directory(&self, path: &Path) -> io::Result<()> {
        File::open(path)?.sync_all()
    }

    fn exists(&self, path: &Path) -> bool {
        path.symlink_metadata().is_ok()
    }
}
