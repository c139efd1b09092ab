//! Kubeconfigs on the disk: a new one, and a token in another's place. In one step each: a reader
//! finds the old one whole or the new one whole. Blocks.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use crate::source::kubernetes::current_token;

/// Writes a file that only its owner reads. One that is there stays, unless `force`: then its owner
/// stays.
///
/// # Errors
/// It is there, or cannot be written.
pub fn create(path: &Path, text: &str, force: bool) -> io::Result<()> {
    if !force && path.symlink_metadata().is_ok() {
        return Err(io::ErrorKind::AlreadyExists.into());
    }
    replace_file(path, text.as_bytes(), 0o600)
}

/// The token that stands in this kubeconfig for its current context, if one does.
///
/// # Errors
/// The file cannot be read, or is no kubeconfig.
pub(super) fn token(path: &Path) -> Result<Option<String>, String> {
    current_token(path).map_err(|error| error.to_string())
}

/// Puts `new` where `old` stands; everything else in the file, and its mode, stays.
///
/// # Errors
/// `old` is not there any more, or the file cannot be written.
pub(super) fn replace(path: &Path, old: &str, new: &str) -> Result<(), String> {
    let said = |error: io::Error| format!("{} cannot be written: {error}", path.display());
    // Through a link, so that the link stays.
    let path = fs::canonicalize(path).map_err(said)?;
    let text = fs::read_to_string(&path).map_err(said)?;
    if !text.contains(old) {
        return Err(format!(
            "{} holds another token by now: somebody else renews it",
            path.display()
        ));
    }
    let mode = fs::metadata(&path).map_err(said)?.permissions().mode();
    replace_file(&path, text.replace(old, new).as_bytes(), mode & 0o777).map_err(said)
}

fn replace_file(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    };
    let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
    let mut beside = std::ffi::OsString::from(".");
    beside.push(name);
    beside.push(format!(".{}", std::process::id()));
    let beside = directory.join(beside);
    // What a crash of this process's namesake left.
    let _ = fs::remove_file(&beside);
    let written = write(&beside, bytes, mode)
        .and_then(|()| give(&beside, path))
        .and_then(|()| fs::rename(&beside, path));
    if written.is_err() {
        let _ = fs::remove_file(&beside);
    }
    written?;
    File::open(&directory)?.sync_all()
}

/// Whose the old one was, the new one is: an administrator writes it, and Weir's user reads it.
fn give(new: &Path, old: &Path) -> io::Result<()> {
    let (Ok(old), own) = (fs::metadata(old), fs::metadata(new)?) else {
        return Ok(());
    };
    if (old.uid(), old.gid()) == (own.uid(), own.gid()) {
        return Ok(());
    }
    chown(new, Some(old.uid()), Some(old.gid()))
}

fn write(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let mut options = OpenOptions::new();
    let mut file = options
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?;
    file.write_all(bytes)?;
    file.set_permissions(fs::Permissions::from_mode(mode))?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).expect("there").permissions().mode() & 0o777
    }

    #[test]
    fn a_new_file_is_its_owners_and_none_is_overwritten_unasked() {
        let directory = tempfile::tempdir().expect("temp");
        let path = directory.path().join("weir.kubeconfig");
        create(&path, "one", false).expect("new");
        assert_eq!(mode(&path), 0o600);
        let error = create(&path, "two", false).expect_err("there");
        assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(fs::read_to_string(&path).expect("read"), "one");
        let another = chown(&path, Some(4_242), Some(4_242)).is_ok();
        create(&path, "two", true).expect("forced");
        let uid = fs::metadata(&path).expect("there").uid();
        assert!(!another || uid == 4_242, "whose it was: {uid}");
        assert_eq!(fs::read_to_string(&path).expect("read"), "two");
        let left = fs::read_dir(directory.path()).expect("read").count();
        assert_eq!(left, 1, "nothing beside it");
        assert!(create(&directory.path().join("no/such"), "x", false).is_err());
    }

    #[test]
    fn a_token_changes_and_nothing_else_does() {
        let directory = tempfile::tempdir().expect("temp");
        let path = directory.path().join("config");
        let text = "# mine\ncurrent-context: c\ncontexts: [{name: c, context: {cluster: k, user: u}}]\nclusters: [{name: k, cluster: {server: https://192.0.2.1}}]\nusers: [{name: u, user: {token: old.to.ken}}] # here\n";
        fs::write(&path, text).expect("write");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).expect("mode");
        let link = directory.path().join("link");
        std::os::unix::fs::symlink(&path, &link).expect("link");
        assert_eq!(token(&link), Ok(Some("old.to.ken".to_owned())));
        replace(&link, "old.to.ken", "new.to.ken").expect("written");
        assert_eq!(
            fs::read_to_string(&path).expect("read"),
            text.replace("old.to.ken", "new.to.ken")
        );
        assert_eq!(mode(&path), 0o640);
        assert!(link.symlink_metadata().expect("there").is_symlink());
        let gone = replace(&path, "old.to.ken", "x").expect_err("it is another's");
        assert!(gone.contains("somebody else renews it"), "{gone}");
        fs::write(&path, text.replace("token: old.to.ken", "tokenFile: /t")).expect("write");
        assert_eq!(token(&path), Ok(None));
        fs::write(&path, "nonsense: [").expect("write");
        assert!(token(&path).is_err());
    }
}
