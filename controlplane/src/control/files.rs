//! The status directory: one JSON file per Service, replaced in one step, only when it changed,
//! and removed with its Service. Written by a thread of its own. What cannot be written is said once and
//! stops nothing.
//!
//! The directory may hold files of others. Ours are named `NAMESPACE_NAME.status.json` and say
//! `"writtenBy": "weir"`; a file that does not do both is neither replaced nor removed.

mod writer;

use std::fs;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use lb_core::table::Protocol;
use serde_json::json;

use crate::object::Key;
use crate::status::{ServiceStatus, State};

use writer::Writer;

/// The end of our files' names.
const SUFFIX: &str = ".status.json";
/// What is not yet a file of ours; hidden, so that no reader of the directory takes it for one.
const TEMPORARY: &str = ".weir.status.json.new";
/// Under this key our files say [`WRITER`].
const MARKER: &str = "writtenBy";
const WRITER: &str = "weir";
/// Larger files are not read: a Service of 1,000 ports takes 100 KiB.
const SIZE_LIMIT: u64 = 4 << 20;

/// The files of one directory, written soon.
pub(super) struct StatusFiles {
    writer: Writer,
    /// More waited than may.
    overtaken: bool,
}

impl StatusFiles {
    /// Begins without a file of ours: what an earlier process left is out of date.
    ///
    /// # Errors
    /// No thread can be started.
    pub(super) fn start(directory: &Path) -> io::Result<StatusFiles> {
        let directory = directory.to_owned();
        let writer = Writer::start(move || {
            let mut files = Directory::new(&directory);
            move |key: &Key, status: Option<&ServiceStatus>| files.set(key, status)
        })?;
        Ok(StatusFiles {
            writer,
            overtaken: false,
        })
    }

    /// Says what became of `key`; `None`: it is gone. Never blocks.
    pub(super) fn set(&mut self, key: &Key, status: Option<Arc<ServiceStatus>>) {
        let overtaken = !self.writer.put(key, status);
        if overtaken && !self.overtaken {
            tracing::error!(
                "the status directory takes no files as fast as they change: some are out of date until their Services change again; look for a disk that hangs, or choose another with --status-dir"
            );
        }
        self.overtaken = overtaken;
    }
}

/// The directory itself.
struct Directory {
    path: PathBuf,
    failing: bool,
}

impl Directory {
    fn new(path: &Path) -> Directory {
        let mut files = Directory {
            path: path.to_owned(),
            failing: false,
        };
        let cleaned = files.clean();
        files.note(&cleaned);
        files
    }

    fn clean(&self) -> io::Result<()> {
        fs::create_dir_all(&self.path)?;
        for entry in fs::read_dir(&self.path)? {
            let entry = entry?;
            let name = entry.file_name();
            if name.to_str().is_some_and(is_named_as_ours) && is_ours(&entry.path())? {
                fs::remove_file(entry.path())?;
            }
        }
        Ok(())
    }

    /// Writes what became of `key`, or removes its file.
    fn set(&mut self, key: &Key, status: Option<&ServiceStatus>) {
        let Some(path) = self.path_of(key) else {
            return;
        };
        let done = match status {
            Some(status) => self.write(&path, &text(status)),
            None => remove(&path),
        };
        self.note(&done);
    }

    fn write(&self, path: &Path, text: &str) -> io::Result<()> {
        if fs::symlink_metadata(path).is_ok() && !is_ours(path)? {
            let problem = format!("{} is not ours and stays as it is", path.display());
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, problem));
        }
        let temporary = self.path.join(TEMPORARY);
        // Whatever lies there is an earlier try of ours, or a trap: a link to be written through, a
        // named pipe to wait at.
        match fs::remove_file(&temporary) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = fs::File::create_new(&temporary)?;
        file.write_all(text.as_bytes())?;
        fs::rename(&temporary, path)
    }

    /// `NAMESPACE_NAME.status.json`. A name that no API server would take gets no file.
    fn path_of(&self, key: &Key) -> Option<PathBuf> {
        let name = format!("{}_{}{SUFFIX}", key.namespace, key.name);
        is_named_as_ours(&name).then(|| self.path.join(name))
    }

    fn note(&mut self, done: &io::Result<()>) {
        let failed = done.is_err();
        if let Err(error) = done
            && !self.failing
        {
            let directory = self.path.display();
            tracing::error!(
                "status directory {directory}: {error}; free space or choose another with --status-dir"
            );
        }
        self.failing = failed;
    }
}

/// Could `name` be a file of ours? Neither namespace nor name may hold an underscore.
fn is_named_as_ours(name: &str) -> bool {
    let is_good = |text: &str| {
        let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '.');
        !text.is_empty() && text.len() <= 120 && text.chars().all(fits)
    };
    name.strip_suffix(SUFFIX)
        .and_then(|rest| rest.split_once('_'))
        .is_some_and(|(namespace, name)| is_good(namespace) && is_good(name))
}

/// Does the file itself say that it is ours? A symlink never is.
fn is_ours(path: &Path) -> io::Result<bool> {
    if !fs::symlink_metadata(path)?.is_file() {
        return Ok(false);
    }
    let mut content = Vec::new();
    fs::File::open(path)?
        .take(SIZE_LIMIT)
        .read_to_end(&mut content)?;
    let value = serde_json::from_slice::<serde_json::Value>(&content);
    Ok(value.is_ok_and(|value| value.get(MARKER).is_some_and(|writer| writer == WRITER)))
}

fn remove(path: &Path) -> io::Result<()> {
    let removed = match is_ours(path) {
        Ok(true) => fs::remove_file(path),
        Ok(false) => Ok(()),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn text(status: &ServiceStatus) -> String {
    let ServiceStatus {
        key,
        state,
        addresses,
        ports,
        endpoints,
        reasons,
        settling: _,
    } = status;
    let ports = ports.iter().map(|port| {
        let protocol = match port.protocol {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
        };
        json!({"name": port.name, "port": port.port, "protocol": protocol})
    });
    let reasons = reasons
        .iter()
        .map(|reason| json!({"code": reason.code(), "message": reason.to_string()}));
    let value = json!({
        MARKER: WRITER,
        "namespace": key.namespace,
        "name": key.name,
        "state": word(*state),
        "addresses": addresses,
        "ports": ports.collect::<Vec<_>>(),
        "endpoints": {
            "ready": endpoints.ready,
            "serving": endpoints.serving,
            "terminating": endpoints.terminating,
            "notReady": endpoints.not_ready,
            "refused": endpoints.refused,
            "unhealthy": endpoints.unhealthy,
        },
        "reasons": reasons.collect::<Vec<_>>(),
    });
    format!("{value:#}\n")
}

/// A state as logs and files say it.
pub(super) fn word(state: State) -> &'static str {
    match state {
        State::Serving => "serving",
        State::Degraded => "degraded",
        State::Closed => "closed",
        State::Pending => "pending",
        State::Refused => "refused",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn status(name: &str, state: State) -> ServiceStatus {
        let key = crate::testing::service("shop", name);
        ServiceStatus::without(&key, state, Vec::new())
    }

    #[test]
    fn no_link_in_the_directory_is_written_through() {
        let directory = tempfile::tempdir().expect("temp");
        let precious = directory.path().join("precious");
        fs::write(&precious, "text").expect("write");
        let mut files = Directory::new(&directory.path().join("status"));
        let trap = directory.path().join("status").join(TEMPORARY);
        std::os::unix::fs::symlink(&precious, &trap).expect("link");
        let status = status("web", State::Serving);
        files.set(&status.key, Some(&status));
        assert!(!files.failing);
        assert_eq!(fs::read_to_string(&precious).expect("read"), "text");
        let written = directory.path().join("status/shop_web.status.json");
        assert!(fs::symlink_metadata(written).expect("there").is_file());
    }

    #[test]
    fn a_file_per_service_and_nothing_outside() {
        let directory = tempfile::tempdir().expect("temp");
        let inside = directory.path().join("status");
        let names = || -> Vec<String> {
            let entries = fs::read_dir(&inside).expect("dir");
            let mut names: Vec<_> = entries
                .map(|e| e.expect("entry").file_name().into_string().expect("text"))
                .collect();
            names.sort();
            names
        };
        fs::create_dir(&inside).expect("dir");
        let ours = text(&status("old", State::Serving));
        fs::write(inside.join("shop_old.status.json"), &ours).expect("write");
        fs::write(inside.join("README"), "theirs").expect("write");
        let mut files = Directory::new(&inside);
        assert_eq!(names(), ["README"]);
        let web = status("web", State::Serving);
        files.set(&web.key, Some(&web));
        let hostile = status("../../web", State::Serving);
        files.set(&hostile.key, Some(&hostile));
        assert_eq!(names(), ["README", "shop_web.status.json"]);
        let text = fs::read_to_string(inside.join("shop_web.status.json")).expect("read");
        assert!(text.contains("\"state\": \"serving\""), "{text}");
        files.set(&web.key, None);
        assert_eq!(names(), ["README"]);
        assert!(!files.failing);
    }

    #[test]
    fn files_of_others_are_never_replaced_or_removed() {
        let directory = tempfile::tempdir().expect("temp");
        let inside = directory.path();
        let ours = text(&status("web", State::Serving));
        let theirs = [
            ("shop_web.json", ours.as_str()), // ours inside, not by name
            ("Shop_web.status.json", &ours),
            ("shop.status.json", &ours),
            ("_web.status.json", &ours),
            ("shop_web.status.json", "{\"state\": \"serving\"}"), // ours by name, not inside
            ("shop_api.status.json", "{\"writtenBy\": \"somebody\"}"),
            ("shop_db.status.json", "no JSON"),
            ("shop_empty.status.json", ""),
            ("n_accounts.json", "[1, 2]"),
            (".new", "theirs"),
        ];
        for (name, text) in theirs {
            fs::write(inside.join(name), text).expect("write");
        }
        fs::create_dir(inside.join("shop_dir.status.json")).expect("dir");
        let elsewhere = directory.path().join("elsewhere");
        fs::write(&elsewhere, &ours).expect("write");
        let link = inside.join("shop_link.status.json");
        std::os::unix::fs::symlink(&elsewhere, &link).expect("link");

        let mut files = Directory::new(inside);
        assert!(!files.failing);
        for name in ["web", "dir", "link"] {
            let status = status(name, State::Closed);
            files.set(&status.key, Some(&status));
            assert!(files.failing, "{name}: said once, and nothing else");
            files.set(&status.key, None);
        }
        for (name, text) in theirs {
            let now = fs::read_to_string(inside.join(name)).expect(name);
            assert_eq!(now, text, "{name}");
        }
        assert!(inside.join("shop_dir.status.json").is_dir());
        assert!(fs::symlink_metadata(&link).expect("link").is_symlink());
        assert_eq!(fs::read_to_string(&elsewhere).expect("read"), ours);
    }
}
