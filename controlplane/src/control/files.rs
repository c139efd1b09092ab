//! The status directory: one JSON file per Service, replaced in one step, only when it changed,
//! and removed with its Service. Owned by the control task. What cannot be written is said once and
//! stops nothing.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use lb_core::table::Protocol;
use serde_json::json;

use crate::object::Key;
use crate::status::{ServiceStatus, State};

/// The files of one directory.
pub(super) struct StatusFiles {
    directory: PathBuf,
    failing: bool,
}

impl StatusFiles {
    /// Begins with an empty directory: what an earlier process left is out of date. Only files of
    /// our own form are removed.
    pub(super) fn new(directory: &Path) -> StatusFiles {
        let mut files = StatusFiles {
            directory: directory.to_owned(),
            failing: false,
        };
        let cleaned = files.clean();
        files.note(&cleaned);
        files
    }

    fn clean(&self) -> io::Result<()> {
        fs::create_dir_all(&self.directory)?;
        for entry in fs::read_dir(&self.directory)? {
            let entry = entry?;
            let name = entry.file_name();
            let ours = name
                .to_str()
                .is_some_and(|name| name.contains('_') && name.ends_with(".json"));
            if ours && entry.file_type()?.is_file() {
                fs::remove_file(entry.path())?;
            }
        }
        Ok(())
    }

    /// Writes what became of `key`, or removes its file.
    pub(super) fn set(&mut self, key: &Key, status: Option<&ServiceStatus>) {
        let Some(path) = self.path(key) else {
            return;
        };
        let done = match status {
            Some(status) => self.write(&path, &text(status)),
            None => match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
                _ => Ok(()),
            },
        };
        self.note(&done);
    }

    fn write(&self, path: &Path, text: &str) -> io::Result<()> {
        let temporary = self.directory.join(".new");
        fs::write(&temporary, text)?;
        fs::rename(&temporary, path)
    }

    /// `NAMESPACE_NAME.json`: neither may hold an underscore. A name that no API server would take
    /// gets no file.
    fn path(&self, key: &Key) -> Option<PathBuf> {
        let is_good = |text: &str| {
            let fits =
                |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '.');
            !text.is_empty() && text.len() <= 120 && text.chars().all(fits)
        };
        let good = is_good(&key.namespace) && is_good(&key.name);
        good.then(|| {
            self.directory
                .join(format!("{}_{}.json", key.namespace, key.name))
        })
    }

    fn note(&mut self, done: &io::Result<()>) {
        let failed = done.is_err();
        if let Err(error) = done
            && !self.failing
        {
            let directory = self.directory.display();
            tracing::error!(
                "status directory {directory}: {error}; free space or choose another with --status-dir"
            );
        }
        self.failing = failed;
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
    use crate::load_balancer::EndpointCounts;
    use crate::object::{Kind, SourceId};

    fn status(name: &str, state: State) -> ServiceStatus {
        ServiceStatus {
            key: Key {
                source: SourceId(0),
                cluster: "".into(),
                kind: Kind::Service,
                namespace: "shop".into(),
                name: name.into(),
                uid: "".into(),
            },
            state,
            addresses: Vec::new(),
            ports: Vec::new(),
            endpoints: EndpointCounts::default(),
            reasons: Vec::new(),
            settling: false,
        }
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
        fs::write(inside.join("shop_old.json"), "{}").expect("write");
        fs::write(inside.join("README"), "theirs").expect("write");
        let mut files = StatusFiles::new(&inside);
        assert_eq!(names(), ["README"]);
        let web = status("web", State::Serving);
        files.set(&web.key, Some(&web));
        let hostile = status("../../web", State::Serving);
        files.set(&hostile.key, Some(&hostile));
        assert_eq!(names(), ["README", "shop_web.json"]);
        let text = fs::read_to_string(inside.join("shop_web.json")).expect("read");
        assert!(text.contains("\"state\": \"serving\""), "{text}");
        files.set(&web.key, None);
        assert_eq!(names(), ["README"]);
        assert!(!files.failing);
    }
}
