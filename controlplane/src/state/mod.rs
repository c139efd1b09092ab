//! Files that outlive the process: what was decided and must not be decided otherwise after a
//! restart. One document a file, in the state directory.
//!
//! A file `NAME.json` is one JSON object. Its first line holds the SHA-256 of every byte after that
//! line; then come the document's name, its schema number and its data. It is replaced like this:
//!
//! 1. `NAME.json.new` is written and fsynced,
//! 2. `NAME.json` becomes `NAME.json.previous`, if it is known to be good,
//! 3. `NAME.json.new` becomes `NAME.json`,
//! 4. the directory is fsynced.
//!
//! At every point of this one of the two generations is whole, so a crash or a power cut leaves
//! the old document or the new one. A file that is damaged, or written by a newer release, is
//! moved aside as `NAME.json.damaged-N` for a person to look at, the previous generation is used,
//! and the start goes on.

mod disk;
mod hash_key;
mod saver;
#[cfg(test)]
mod tests;

use std::fmt::Write as _;
use std::io;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use sha2::{Digest, Sha256};

pub use self::disk::{Disk, Files, MAX_FILE_BYTES};
pub use self::hash_key::{HashKey, HashKeyError, hash_key, parse_hash_key};
pub use self::saver::{SaveState, Saver};

/// How many damaged files of one name are kept; the last one is overwritten.
const MAX_DAMAGED: u32 = 8;

/// Something that is kept in a file.
pub trait Document: Sized {
    /// The file's name without `.json`.
    const NAME: &'static str;
    /// The schema that is written. Raise it when older releases could misread the data.
    const SCHEMA: u32;

    /// The data as JSON.
    fn encode(&self) -> serde_json::Value;

    /// From data of `schema`, which may be older than `SCHEMA`.
    ///
    /// # Errors
    /// A schema that this release cannot read, or data of another shape.
    fn decode(schema: u32, data: serde_json::Value) -> Result<Self, Undecodable>;
}

/// Why data with a good checksum is no document.
#[derive(Debug, thiserror::Error)]
pub enum Undecodable {
    /// Written by another release.
    #[error(
        "its schema is {found}, this release reads {known}; go back to the release that wrote it to use it"
    )]
    Schema {
        /// The file's.
        found: u32,
        /// Ours.
        known: u32,
    },
    /// Not what the schema says.
    #[error("its data does not fit its schema: {0}")]
    Shape(serde_json::Error),
}

/// Why a file is damaged.
#[derive(Debug, thiserror::Error)]
pub enum Damage {
    /// The first line is not there.
    #[error("it does not begin with a checksum: cut short, or not a state file")]
    NoChecksum,
    /// The rest does not match the first line.
    #[error("its checksum does not match: cut short, or changed by a disk error or by hand")]
    Checksum,
    /// It is another document.
    #[error("it is no {expected:?} document")]
    OtherDocument {
        /// What it should be.
        expected: &'static str,
    },
    /// The checksum is good, and the rest is no JSON of ours.
    #[error("it is not of the form of a state file: {0}")]
    Form(serde_json::Error),
    /// See there.
    #[error(transparent)]
    Undecodable(#[from] Undecodable),
}

/// What went wrong while loading; the start goes on.
#[derive(Debug, thiserror::Error)]
pub enum Problem {
    /// A damaged file was moved aside.
    #[error("state file {} is not used: {damage}; moved to {}", path.display(), aside.display())]
    Quarantined {
        /// The file.
        path: PathBuf,
        /// Where it is now.
        aside: PathBuf,
        /// What is wrong.
        damage: Damage,
    },
    /// A damaged file could not be moved aside.
    #[error("state file {} is not used: {damage}; it cannot be moved aside: {source}", path.display())]
    NotQuarantined {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        damage: Damage,
        /// Why it is still there.
        source: io::Error,
    },
    /// A file is there and cannot be read.
    #[error("state file {} cannot be read: {source}; check its owner (it must be the user that runs weir) and the disk", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The last generation is lost; the one before is used.
    #[error("the previous generation {} is used instead", path.display())]
    PreviousUsed {
        /// The file.
        path: PathBuf,
    },
    /// Nothing is left.
    #[error("no generation of {} is usable: starting without", path.display())]
    NothingLeft {
        /// The file.
        path: PathBuf,
    },
}

/// Why a document was not saved. The one before is still there.
#[derive(Debug, thiserror::Error)]
#[error("cannot {doing} {}: {source}; {}", path.display(), advice(source))]
pub struct SaveError {
    /// What was being done.
    pub doing: &'static str,
    /// To which file or directory.
    pub path: PathBuf,
    /// Why not.
    pub source: io::Error,
}

fn advice(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            "free some space; it is tried again"
        }
        io::ErrorKind::ReadOnlyFilesystem => {
            "remount it for writing or choose another --state-dir; it is tried again"
        }
        io::ErrorKind::PermissionDenied => {
            "make the user that runs weir its owner or choose another --state-dir; it is tried again"
        }
        _ => "check the disk; it is tried again",
    }
}

/// The file of one document. One process owns it.
#[derive(Debug)]
pub struct StateFile<D = Files> {
    disk: D,
    directory: PathBuf,
    path: PathBuf,
    previous: PathBuf,
    temporary: PathBuf,
    /// What is at `path` is whole. Only then may it replace the previous generation.
    is_good: bool,
}

impl StateFile<Files> {
    /// The file of `T` in `directory`. Nothing is touched yet.
    pub fn new<T: Document>(directory: &Path) -> StateFile {
        StateFile::on::<T>(Files, directory)
    }
}

impl<D: Disk> StateFile<D> {
    /// On a disk of the caller's.
    pub fn on<T: Document>(disk: D, directory: &Path) -> StateFile<D> {
        let name = T::NAME;
        StateFile {
            disk,
            directory: directory.to_owned(),
            path: directory.join(format!("{name}.json")),
            previous: directory.join(format!("{name}.json.previous")),
            temporary: directory.join(format!("{name}.json.new")),
            is_good: false,
        }
    }

    /// The newest generation that is whole, and what is wrong with those that are not. No file at
    /// all is a first start and no problem.
    pub fn load<T: Document>(&mut self) -> (Option<T>, Vec<Problem>) {
        let mut problems = Vec::new();
        let mut lost = false;
        for path in [self.path.clone(), self.previous.clone()] {
            match self.disk.read(&path) {
                Ok(content) => match decode(&content) {
                    Ok(document) => {
                        self.is_good = path == self.path;
                        if lost {
                            problems.push(Problem::PreviousUsed { path });
                        }
                        return (Some(document), problems);
                    }
                    Err(damage) => problems.push(self.quarantine(path, damage)),
                },
                // Between steps 2 and 3 only the previous one is there: it is the old document.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(source) => problems.push(Problem::Unreadable { path, source }),
            }
            lost = true;
        }
        if lost {
            let path = self.path.clone();
            problems.push(Problem::NothingLeft { path });
        }
        (None, problems)
    }

    fn quarantine(&self, path: PathBuf, damage: Damage) -> Problem {
        let names = (1..=MAX_DAMAGED).map(|n| {
            let mut name = path.clone().into_os_string();
            name.push(format!(".damaged-{n}"));
            PathBuf::from(name)
        });
        let mut aside = path.clone();
        for name in names {
            aside = name;
            if !self.disk.exists(&aside) {
                break;
            }
        }
        match self.disk.rename(&path, &aside) {
            Ok(()) => Problem::Quarantined {
                path,
                aside,
                damage,
            },
            Err(source) => Problem::NotQuarantined {
                path,
                damage,
                source,
            },
        }
    }

    /// Replaces the document; it is on the disk when this returns. Blocks: fsync(2) may take
    /// seconds.
    ///
    /// # Errors
    /// The disk's. The old generation is still whole; call again to retry.
    pub fn save<T: Document>(&mut self, document: &T) -> Result<(), SaveError> {
        let content = encode(document);
        let failed = |doing, path: &Path| {
            let path = path.to_owned();
            move |source| SaveError {
                doing,
                path,
                source,
            }
        };
        self.make_directory()
            .map_err(failed("create the directory", &self.directory))?;
        self.disk
            .write(&self.temporary, &content)
            .map_err(failed("write", &self.temporary))?;
        if std::mem::replace(&mut self.is_good, false) {
            match self.disk.rename(&self.path, &self.previous) {
                Ok(()) => {}
                // Somebody removed it: there is nothing to keep.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(source) => {
                    self.is_good = true;
                    return Err(failed("replace", &self.previous)(source));
                }
            }
        }
        self.disk
            .rename(&self.temporary, &self.path)
            .map_err(failed("replace", &self.path))?;
        self.is_good = true;
        self.disk
            .sync_directory(&self.directory)
            .map_err(failed("sync the directory", &self.directory))
    }

    /// A new directory is an entry of its parent, which is to be on the disk too.
    fn make_directory(&self) -> io::Result<()> {
        if self.disk.exists(&self.directory) {
            return Ok(());
        }
        self.disk.create_directory(&self.directory)?;
        match self.directory.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => self.disk.sync_directory(parent),
            _ => Ok(()),
        }
    }
}

/// The file after its first line.
#[derive(Deserialize)]
struct Envelope {
    document: String,
    schema: u32,
    data: serde_json::Value,
}

const PREFIX: &[u8] = b"{\"sha256\":\"";
const SUFFIX: &[u8] = b"\",\n";
const DIGEST_CHARS: usize = 64;

fn encode<T: Document>(document: &T) -> Vec<u8> {
    let data = serde_json::to_string_pretty(&document.encode())
        .expect("a JSON value has string keys only and always serializes");
    let (name, schema) = (T::NAME, T::SCHEMA);
    let rest = format!("\"document\":\"{name}\",\n\"schema\":{schema},\n\"data\":{data}\n}}\n");
    let digest = digest(rest.as_bytes());
    [PREFIX, digest.as_bytes(), SUFFIX, rest.as_bytes()].concat()
}

fn decode<T: Document>(content: &[u8]) -> Result<T, Damage> {
    let after = content.strip_prefix(PREFIX).ok_or(Damage::NoChecksum)?;
    let (said, after) = after
        .split_at_checked(DIGEST_CHARS)
        .ok_or(Damage::NoChecksum)?;
    let rest = after.strip_prefix(SUFFIX).ok_or(Damage::NoChecksum)?;
    if digest(rest).as_bytes() != said {
        return Err(Damage::Checksum);
    }
    let object = [b"{", rest].concat();
    let Envelope {
        document,
        schema,
        data,
    } = serde_json::from_slice(&object).map_err(Damage::Form)?;
    if document != T::NAME {
        return Err(Damage::OtherDocument { expected: T::NAME });
    }
    if schema > T::SCHEMA {
        let known = T::SCHEMA;
        return Err(Undecodable::Schema {
            found: schema,
            known,
        }
        .into());
    }
    Ok(T::decode(schema, data)?)
}

fn digest(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

fn hex(bytes: &[u8]) -> String {
    bytes
        .iter()
        .fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
            // Writing to a String cannot fail.
            let _ = write!(text, "{byte:02x}");
            text
        })
}
