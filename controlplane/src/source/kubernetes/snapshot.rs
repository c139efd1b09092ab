//! The objects last seen, kept in the state directory for a start while no API server answers.
//!
//! `cluster.jsonl` is lines of JSON: first what it is and of which server; then an object a line,
//! as an API server would send it; last the SHA-256 of every byte before. It is written beside and
//! renamed, so that a crash leaves the old one or the new one. One that is damaged or of another
//! server is said and not used: the API server has the truth. Lines, and not one of `state`'s
//! documents: of 100,000 endpoints only one object is in memory twice.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, BufRead, BufReader, BufWriter, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::encode::encode;
use super::items::MAX_OBJECT;
use super::store::MAX_OBJECTS;
use crate::object::{Object, SourceId};
use crate::source::parse::Reader;

const NAME: &str = "cluster.jsonl";
const DOCUMENT: &str = "kubernetes-objects";
const SCHEMA: u32 = 1;
/// Larger files are not read.
const MAX_BYTES: u64 = 512 << 20;

/// What the objects are of; a snapshot of anything else is not used.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Origin {
    /// The API server's address.
    pub server: String,
    /// The namespaces that were watched; empty: all.
    pub namespaces: Vec<Arc<str>>,
}

#[derive(Serialize, Deserialize)]
struct Header {
    document: String,
    schema: u32,
    #[serde(flatten)]
    origin: Origin,
}

#[derive(Serialize, Deserialize)]
struct Trailer {
    sha256: String,
}

/// Why a snapshot is not used.
#[derive(Debug, thiserror::Error)]
pub(super) enum SnapshotError {
    /// It is there and cannot be read.
    #[error("cannot be read: {0}")]
    Io(#[from] io::Error),
    /// Cut short, or changed.
    #[error("is damaged: {0}")]
    Damaged(&'static str),
    /// Of another release.
    #[error("has schema {0}, and this release reads {SCHEMA}")]
    Schema(u32),
    /// Of another API server or of other namespaces.
    #[error("is of {0}")]
    OtherOrigin(String),
}

/// The snapshot of one state directory.
#[derive(Clone, Debug)]
pub(super) struct Snapshot {
    directory: PathBuf,
    origin: Origin,
}

impl Snapshot {
    pub(super) fn new(directory: &Path, origin: Origin) -> Snapshot {
        Snapshot {
            directory: directory.to_owned(),
            origin,
        }
    }

    /// The file.
    pub(super) fn path(&self) -> PathBuf {
        self.directory.join(NAME)
    }

    /// What was kept; `None` if nothing was. Blocks.
    ///
    /// # Errors
    /// What is there is not used.
    pub(super) fn load(&self, source: SourceId) -> Result<Option<Vec<Object>>, SnapshotError> {
        let file = match File::open(self.path()) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            file => file?,
        };
        let mut lines = Lines {
            input: BufReader::new(file.take(MAX_BYTES)),
            digest: Sha256::new(),
        };
        let damaged = SnapshotError::Damaged;
        let first = lines.next()?.ok_or(damaged("it is empty"))?;
        let header: Header =
            serde_json::from_slice(&first).map_err(|_| damaged("its first line is no header"))?;
        if header.document != DOCUMENT {
            return Err(damaged("it is another document"));
        }
        if header.schema != SCHEMA {
            return Err(SnapshotError::Schema(header.schema));
        }
        let mut reader = Reader::new(source, Arc::default()).with_status();
        let mut objects = Vec::new();
        loop {
            let digest = hex(&lines.digest.clone().finalize());
            let line = lines.next()?.ok_or(damaged("it is cut short"))?;
            if let Ok(trailer) = serde_json::from_slice::<Trailer>(&line) {
                if trailer.sha256 != digest {
                    return Err(damaged("its checksum does not match"));
                }
                break;
            }
            let value = serde_json::from_slice(&line).map_err(|_| damaged("a line is no JSON"))?;
            let object = reader.object(&value, None);
            objects.push(object.map_err(|_| damaged("a line is no object"))?);
            if objects.len() > 3 * MAX_OBJECTS {
                return Err(damaged("it has too many objects"));
            }
        }
        // Judged last: what is damaged is said as such.
        if header.origin != self.origin {
            return Err(SnapshotError::OtherOrigin(header.origin.to_string()));
        }
        Ok(Some(objects))
    }

    /// Replaces what is kept; it is on the disk when this returns. Blocks.
    ///
    /// # Errors
    /// The disk's; what was kept before is still whole.
    pub(super) fn save(&self, objects: &[Object]) -> io::Result<()> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o750)
            .create(&self.directory)?;
        let temporary = self.directory.join(format!("{NAME}.new"));
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&temporary)?;
        let mut output = Hashed {
            output: BufWriter::new(file),
            digest: Sha256::new(),
        };
        output.line(&Header {
            document: DOCUMENT.to_owned(),
            schema: SCHEMA,
            origin: self.origin.clone(),
        })?;
        for value in objects.iter().filter_map(encode) {
            output.line(&value)?;
        }
        let sha256 = hex(&output.digest.clone().finalize());
        output.line(&Trailer { sha256 })?;
        let file = output
            .output
            .into_inner()
            .map_err(io::IntoInnerError::into_error)?;
        file.sync_all()?;
        fs::rename(&temporary, self.path())?;
        File::open(&self.directory)?.sync_all()
    }
}

impl std::fmt::Display for Origin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.server)?;
        match self.namespaces.is_empty() {
            true => Ok(()),
            false => write!(f, " and the namespaces {}", self.namespaces.join(",")),
        }
    }
}

/// Lines that are read, each bounded, and the digest of all of them.
struct Lines<R> {
    input: BufReader<R>,
    digest: Sha256,
}

impl<R: Read> Lines<R> {
    /// The next one with its end; `None` after the last.
    fn next(&mut self) -> Result<Option<Vec<u8>>, SnapshotError> {
        // Twice an object: ours are written without blanks, and with fewer fields.
        let most = 2 * MAX_OBJECT as u64;
        let mut line = Vec::new();
        self.input
            .by_ref()
            .take(most)
            .read_until(b'\n', &mut line)?;
        self.digest.update(&line);
        match line.last() {
            None => Ok(None),
            Some(b'\n') => Ok(Some(line)),
            Some(_) => Err(SnapshotError::Damaged("it is cut short")),
        }
    }
}

struct Hashed<W> {
    output: W,
    digest: Sha256,
}

impl<W: Write> Hashed<W> {
    fn line(&mut self, value: &impl Serialize) -> io::Result<()> {
        let mut line = serde_json::to_vec(value)?;
        line.push(b'\n');
        self.digest.update(&line);
        self.output.write_all(&line)
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn snapshot(directory: &Path) -> Snapshot {
        let origin = Origin {
            server: "https://192.0.2.1:6443/".to_owned(),
            namespaces: Vec::new(),
        };
        Snapshot::new(directory, origin)
    }

    fn objects() -> Vec<Object> {
        let mut reader = Reader::new(SourceId(7), Arc::default()).with_status();
        let mut object = |value| reader.object(&value, None).expect("it is read");
        vec![
            object(json!({"apiVersion": "v1", "kind": "Service",
                "metadata": {"name": "web", "uid": "u"}, "spec": {"ports": [{"port": 80}]}})),
            object(
                json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
                "metadata": {"name": "web-1"}, "addressType": "IPv4",
                "endpoints": [{"addresses": ["10.0.0.1"]}]}),
            ),
        ]
    }

    #[test]
    fn what_is_kept_returns() {
        let directory = tempfile::tempdir().expect("temp");
        let snapshot = snapshot(&directory.path().join("new"));
        assert_eq!(snapshot.load(SourceId(7)).expect("no fault"), None);
        snapshot.save(&objects()).expect("saved");
        snapshot.save(&objects()).expect("and again");
        assert_eq!(snapshot.load(SourceId(7)).expect("whole"), Some(objects()));
    }

    #[test]
    fn k4_a_damaged_snapshot_is_not_used_wherever_the_damage() {
        let directory = tempfile::tempdir().expect("temp");
        let snapshot = snapshot(directory.path());
        snapshot.save(&objects()).expect("saved");
        let good = fs::read(snapshot.path()).expect("read");
        for at in 0..good.len() {
            fs::write(snapshot.path(), &good[..at]).expect("write");
            snapshot.load(SourceId(7)).expect_err("cut short");
            let mut bad = good.clone();
            bad[at] ^= 1;
            fs::write(snapshot.path(), &bad).expect("write");
            snapshot.load(SourceId(7)).expect_err("changed");
        }
        fs::write(snapshot.path(), [&good[..], b"{}\n"].concat()).expect("write");
        assert!(
            snapshot.load(SourceId(7)).is_ok(),
            "what follows is nobody's"
        );
    }

    #[test]
    fn the_snapshot_of_another_server_is_not_used() {
        let directory = tempfile::tempdir().expect("temp");
        let mut snapshot = snapshot(directory.path());
        snapshot.save(&objects()).expect("saved");
        snapshot.origin.namespaces = vec!["shop".into()];
        let error = snapshot.load(SourceId(7)).expect_err("other namespaces");
        assert_eq!(error.to_string(), "is of https://192.0.2.1:6443/");
        snapshot.save(&objects()).expect("saved");
        snapshot.origin.server = "https://other".to_owned();
        let error = snapshot.load(SourceId(7)).expect_err("another server");
        assert!(
            error.to_string().ends_with("and the namespaces shop"),
            "{error}"
        );
    }
}
