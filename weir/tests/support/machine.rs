//! Settings of the whole machine, which no namespace has for itself.

use std::fs::{File, OpenOptions};
use std::path::Path;

use serde_json::Value;

/// Settings below /proc/sys that differ for as long as this lives. One test of the machine at a
/// time has such; and should one be killed, the next puts back what it left.
pub struct Settings {
    changed: Vec<(String, String)>,
    // Holds the lock; a process that ends loses it.
    _lock: File,
}

const LOCK: &str = "/run/weir-tests.lock";
const LEFT: &str = "/run/weir-tests.left";

impl Settings {
    /// Waits for its turn, then changes them.
    #[track_caller]
    pub fn change(settings: &[(&str, &str)]) -> Settings {
        let lock = OpenOptions::new()
            .create(true)
            .append(true)
            .open(LOCK)
            .unwrap();
        lock.lock().unwrap();
        if let Ok(text) = std::fs::read_to_string(LEFT) {
            for (key, value) in text.lines().filter_map(|line| line.split_once('=')) {
                let _ = std::fs::write(path(key), value);
            }
        }
        let mut changed = Settings {
            changed: Vec::new(),
            _lock: lock,
        };
        let read =
            |key| std::fs::read_to_string(path(key)).unwrap_or_else(|e| panic!("{key}: {e}"));
        for (key, _) in settings {
            let before = read(key).trim().to_owned();
            changed.changed.push(((*key).to_owned(), before));
        }
        let text: String = changed
            .changed
            .iter()
            .map(|(key, value)| format!("{key}={value}\n"))
            .collect();
        std::fs::write(LEFT, text).unwrap();
        for (key, value) in settings {
            std::fs::write(path(key), value).unwrap_or_else(|e| panic!("{key}={value}: {e}"));
        }
        changed
    }

    /// Changes one of them again.
    #[track_caller]
    pub fn set(&self, key: &str, value: &str) {
        std::fs::write(path(key), value).unwrap();
    }
}

impl Drop for Settings {
    fn drop(&mut self) {
        for (key, value) in &self.changed {
            let _ = std::fs::write(path(key), value);
        }
        let _ = std::fs::remove_file(LEFT);
    }
}

fn path(key: &str) -> std::path::PathBuf {
    Path::new("/proc/sys").join(key)
}

/// The engines that this build has and that can run here, best first; WEIR_ENGINE leaves the one
/// that it names.
pub fn engines() -> Vec<String> {
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_weir"))
        .args(["version", "-o", "json"])
        .output()
        .unwrap();
    let version: Value = serde_json::from_slice(&output.stdout).unwrap();
    let listed = version["engines"].as_array().expect("a list of engines");
    let usable = listed.iter().filter_map(|entry| match entry {
        Value::String(name) => Some(name.clone()),
        // With what the probe found.
        entry => {
            let name = entry["name"].as_str().expect("an engine's name");
            (entry["available"] != false).then(|| name.to_owned())
        }
    });
    let asked = std::env::var("WEIR_ENGINE").unwrap_or_default();
    let any = asked.is_empty() || asked == "auto";
    let engines: Vec<String> = usable.filter(|name| any || *name == asked).collect();
    assert!(!engines.is_empty(), "no engine {asked:?} here: {version}");
    engines
}
