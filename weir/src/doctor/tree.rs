//! /proc and /sys, or a copy of them below another directory.

use std::fs;
use std::path::{Path, PathBuf};

/// The files of one machine.
#[derive(Debug)]
pub struct Tree {
    root: PathBuf,
}

impl Tree {
    /// The machine whose /proc and /sys are below `root`.
    pub fn new(root: &Path) -> Tree {
        Tree {
            root: root.to_owned(),
        }
    }

    /// What a file says, without the blanks around it; `None` if it is not there or not for us.
    pub fn text(&self, path: &str) -> Option<String> {
        let text = fs::read_to_string(self.root.join(path)).ok()?;
        Some(text.trim().to_owned())
    }

    /// A sysctl by its name with dots. An interface's name may hold dots of its own, so those come
    /// by [`Tree::text`].
    pub fn sysctl(&self, name: &str) -> Option<String> {
        self.text(&format!("proc/sys/{}", name.replace('.', "/")))
    }

    /// The same, if it is a number.
    pub fn number(&self, name: &str) -> Option<u64> {
        self.sysctl(name)?.parse().ok()
    }

    /// The names in a directory, in order.
    pub fn names(&self, path: &str) -> Vec<String> {
        let entries = fs::read_dir(self.root.join(path)).into_iter().flatten();
        let names = entries.flatten().map(|entry| entry.file_name());
        let mut names: Vec<_> = names.filter_map(|name| name.into_string().ok()).collect();
        names.sort();
        names
    }

    /// The last part of where a symlink leads.
    pub fn link(&self, path: &str) -> Option<String> {
        let target = fs::read_link(self.root.join(path)).ok()?;
        Some(target.file_name()?.to_string_lossy().into_owned())
    }

    /// How many CPUs run: `0-1,4` is three.
    pub fn cpus(&self) -> usize {
        let online = self.text("sys/devices/system/cpu/online");
        online.map_or(1, |list| list_len(&list)).max(1)
    }
}

/// How many numbers a list such as `0-1,4` holds.
pub fn list_len(list: &str) -> usize {
    let range = |part: &str| -> Option<usize> {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (usize, usize) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
        last.checked_sub(first).map(|more| more + 1)
    };
    list.split(',').filter_map(range).sum()
}
