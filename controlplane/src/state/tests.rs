//! P1 to P5 of the fault list: killed at every operation, power cut, full and read-only disks,
//! flipped bits, other schemas.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::*;

#[derive(Clone, Debug, PartialEq, Eq)]
struct Words(Vec<String>);

impl Document for Words {
    const NAME: &'static str = "words";
    const SCHEMA: u32 = 2;

    fn encode(&self) -> serde_json::Value {
        self.0.clone().into()
    }

    fn decode(schema: u32, data: serde_json::Value) -> Result<Words, Undecodable> {
        match schema {
            // Schema 1 was one string.
            1 => serde_json::from_value(data).map(|word| Words(vec![word])),
            2 => serde_json::from_value(data).map(Words),
            found => {
                return Err(Undecodable::Schema {
                    found,
                    known: Self::SCHEMA,
                });
            }
        }
        .map_err(Undecodable::Shape)
    }
}

/// In memory where there is such a place: the tests wait for the disk some thousand times.
fn scratch() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").unwrap_or_else(|_| tempfile::tempdir().expect("a directory"))
}

fn words(text: &str) -> Words {
    Words(text.split(' ').map(str::to_owned).collect())
}

fn load(directory: &Path) -> (Option<Words>, Vec<Problem>) {
    StateFile::new::<Words>(directory).load()
}

/// A directory with the generations `first` and, newer, `second`.
fn two_generations() -> tempfile::TempDir {
    let directory = scratch();
    let mut file = StateFile::new::<Words>(directory.path());
    for text in ["first", "second"] {
        file.save(&words(text)).expect("saved");
    }
    directory
}

/// The real file system until the operation `stop` (from 0), of which a write does the first
/// `prefix` bytes; nothing happens from then on.
struct Dying {
    left: Cell<u32>,
    prefix: usize,
}

impl Dying {
    fn step(&self, torn: impl FnOnce(), whole: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        match self.left.replace(self.left.get().saturating_sub(1)) {
            0 => Err(io::ErrorKind::Interrupted.into()),
            1 => {
                torn();
                Err(io::ErrorKind::Interrupted.into())
            }
            _ => whole(),
        }
    }
}

impl Disk for Dying {
    fn create_directory(&self, path: &Path) -> io::Result<()> {
        self.step(|| {}, || Files.create_directory(path))
    }
    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        Files.read(path)
    }
    fn write(&self, path: &Path, content: &[u8]) -> io::Result<()> {
        let torn = || drop(fs::write(path, &content[..self.prefix.min(content.len())]));
        self.step(torn, || Files.write(path, content))
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.step(|| {}, || Files.rename(from, to))
    }
    fn sync_directory(&self, path: &Path) -> io::Result<()> {
        self.step(|| {}, || Files.sync_directory(path))
    }
    fn exists(&self, path: &Path) -> bool {
        Files.exists(path)
    }
}

#[test]
fn p1_killed_at_every_operation_and_every_byte_leaves_old_or_new() {
    let (old, new) = (words("the old words"), words("quite new words"));
    let length = encode(&new).len();
    let (mut seen_old, mut seen_new) = (0, 0);
    for generations in 0..3 {
        // A save has at most five operations; `stop` 1 tears the first.
        for stop in 1..=6 {
            for prefix in 0..=length {
                let directory = scratch();
                let path = directory.path().join("state");
                let mut file = StateFile::new::<Words>(&path);
                for _ in 0..generations {
                    file.save(&old).expect("saved");
                }
                let disk = Dying {
                    left: Cell::new(stop),
                    prefix,
                };
                let mut file = StateFile::on::<Words>(disk, &path);
                let _ = file.load::<Words>();
                let outcome = file.save(&new);
                let (found, problems) = load(&path);
                let at = format!("{generations} generations, stop {stop}, prefix {prefix}");
                assert!(problems.is_empty(), "{at}: {problems:?}");
                match found {
                    Some(words) if words == new => seen_new += 1,
                    found => {
                        assert!(outcome.is_err(), "{at}: saved and lost");
                        assert_eq!(found, (generations > 0).then(|| old.clone()), "{at}");
                        seen_old += 1;
                    }
                }
                // And the next start can save again.
                let mut file = StateFile::new::<Words>(&path);
                let _ = file.load::<Words>();
                file.save(&words("next")).expect("saved");
                assert_eq!(load(&path).0, Some(words("next")), "{at}");
                if stop > 3 {
                    break; // The write is the third operation at most; others have no prefix.
                }
            }
        }
    }
    assert!(
        seen_old > 100 && seen_new > 5,
        "{seen_old} old, {seen_new} new"
    );
}

/// A disk whose names reach the platter only by `sync_directory`; content does by `write`.
#[derive(Default)]
struct Platter {
    names: Mutex<BTreeMap<PathBuf, usize>>,
    durable: Mutex<BTreeMap<PathBuf, usize>>,
    inodes: Mutex<Vec<Vec<u8>>>,
    /// Name changes since the last sync: (from, to, inode).
    volatile: Mutex<Vec<(Option<PathBuf>, PathBuf, usize)>>,
    /// Every state that a power cut up to now could have left: name -> content.
    cuts: Mutex<BTreeSet<BTreeMap<PathBuf, Vec<u8>>>>,
}

impl Platter {
    /// Any subset of the pending name changes may have reached the platter, in order.
    fn note_cuts(&self) {
        let pending = self.volatile.lock().expect("one thread");
        for subset in 0..1u32 << pending.len() {
            let mut names = self.durable.lock().expect("one thread").clone();
            for (at, (from, to, inode)) in pending.iter().enumerate() {
                if subset >> at & 1 == 1 {
                    if let Some(from) = from
                        && names.get(from) == Some(inode)
                    {
                        names.remove(from);
                    }
                    names.insert(to.clone(), *inode);
                }
            }
            let inodes = self.inodes.lock().expect("one thread");
            let state = names
                .into_iter()
                .map(|(name, inode)| (name, inodes[inode].clone()));
            self.cuts
                .lock()
                .expect("one thread")
                .insert(state.collect());
        }
    }
}

impl Disk for Arc<Platter> {
    fn create_directory(&self, _: &Path) -> io::Result<()> {
        Ok(())
    }
    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        let names = self.names.lock().expect("one thread");
        let inode = names.get(path).ok_or(io::ErrorKind::NotFound)?;
        Ok(self.inodes.lock().expect("one thread")[*inode].clone())
    }
    fn write(&self, path: &Path, content: &[u8]) -> io::Result<()> {
        let known = self.names.lock().expect("one thread").get(path).copied();
        let inode = known.unwrap_or_else(|| {
            self.inodes.lock().expect("one thread").push(Vec::new());
            let inode = self.inodes.lock().expect("one thread").len() - 1;
            self.names
                .lock()
                .expect("one thread")
                .insert(path.to_owned(), inode);
            self.volatile
                .lock()
                .expect("one thread")
                .push((None, path.to_owned(), inode));
            inode
        });
        for prefix in 0..=content.len() {
            self.inodes.lock().expect("one thread")[inode] = content[..prefix].to_vec();
            self.note_cuts();
        }
        Ok(())
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut names = self.names.lock().expect("one thread");
        let inode = names.remove(from).ok_or(io::ErrorKind::NotFound)?;
        names.insert(to.to_owned(), inode);
        self.volatile.lock().expect("one thread").push((
            Some(from.to_owned()),
            to.to_owned(),
            inode,
        ));
        drop(names);
        self.note_cuts();
        Ok(())
    }
    fn sync_directory(&self, _: &Path) -> io::Result<()> {
        *self.durable.lock().expect("one thread") = self.names.lock().expect("one thread").clone();
        self.volatile.lock().expect("one thread").clear();
        self.note_cuts();
        Ok(())
    }
    fn exists(&self, path: &Path) -> bool {
        path == Path::new("/s") || self.names.lock().expect("one thread").contains_key(path)
    }
}

#[test]
fn p2_a_power_cut_at_any_moment_leaves_old_or_new() {
    let platter: Arc<Platter> = Arc::default();
    let mut file = StateFile::on::<Words>(platter.clone(), Path::new("/s"));
    let texts = ["one", "two two", "three", "four 4"];
    let mut total = 0;
    for (at, text) in texts.iter().enumerate() {
        file.save(&words(text)).expect("saved");
        let allowed = [
            at.checked_sub(1).map(|old| words(texts[old])),
            Some(words(text)),
        ];
        let cuts = std::mem::take(&mut *platter.cuts.lock().expect("one thread"));
        total += cuts.len();
        for cut in cuts {
            let after: Arc<Platter> = Arc::default();
            for (name, content) in &cut {
                after
                    .inodes
                    .lock()
                    .expect("one thread")
                    .push(content.clone());
                let inode = after.inodes.lock().expect("one thread").len() - 1;
                after
                    .names
                    .lock()
                    .expect("one thread")
                    .insert(name.clone(), inode);
            }
            let mut file = StateFile::on::<Words>(after.clone(), Path::new("/s"));
            let (found, _) = file.load::<Words>();
            assert!(
                allowed.contains(&found),
                "after {text}: {found:?} from {cut:?}"
            );
        }
        // Once saved, only the new one is left.
        platter.note_cuts();
        let cuts = std::mem::take(&mut *platter.cuts.lock().expect("one thread"));
        assert_eq!(cuts.len(), 1, "something is still volatile after {text}");
        let newest = cuts
            .first()
            .and_then(|cut| cut.get(Path::new("/s/words.json")));
        assert_eq!(
            newest.and_then(|content| decode(content).ok()),
            Some(words(text))
        );
    }
    assert!(total > 300, "{total} cuts");
}

#[test]
fn p3_a_full_disk_is_an_error_and_heals() {
    let directory = scratch();
    let mounted = Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=64k", "weir-test"])
        .arg(directory.path())
        .status()
        .is_ok_and(|status| status.success());
    if !mounted {
        println!("SKIP: p3_a_full_disk_is_an_error_and_heals: mounting a tmpfs needs root");
        return;
    }
    let outcome = std::panic::catch_unwind(|| full_disk(directory.path()));
    let unmounted = Command::new("umount").arg(directory.path()).status();
    assert!(unmounted.is_ok_and(|status| status.success()));
    outcome.expect("the test inside");
}

fn full_disk(directory: &Path) {
    let mut file = StateFile::new::<Words>(directory);
    file.save(&words("small")).expect("fits");
    fs::write(directory.join("ballast"), vec![0; 52 << 10]).expect("ballast fits");
    let big = Words(vec!["x".repeat(20 << 10)]);
    let error = file.save(&big).expect_err("full").to_string();
    assert!(
        error.contains("words.json.new") && error.contains("free some space"),
        "{error}"
    );
    assert_eq!(load(directory).0, Some(words("small")));
    fs::remove_file(directory.join("ballast")).expect("removed");
    file.save(&big).expect("room again");
    assert_eq!(load(directory).0, Some(big));
    // Read-only: loading works, a damaged file is passed over where it stands, saving says why.
    fs::write(directory.join("words.json"), "{}").expect("damaged");
    let remount = |how: &str| {
        let options = format!("remount,{how}");
        let status = Command::new("mount")
            .args(["-o", &options])
            .arg(directory)
            .status();
        assert!(status.is_ok_and(|status| status.success()), "{options}");
    };
    remount("ro");
    let mut file = StateFile::new::<Words>(directory);
    let (found, problems) = file.load::<Words>();
    assert_eq!(found, Some(words("small")));
    assert!(
        matches!(problems[0], Problem::NotQuarantined { .. }),
        "{problems:?}"
    );
    let error = file
        .save(&words("lost"))
        .expect_err("read-only")
        .to_string();
    assert!(error.contains("remount it for writing"), "{error}");
    remount("rw");
    file.save(&words("back")).expect("writable again");
    assert_eq!(load(directory).0, Some(words("back")));
    let previous = fs::read(directory.join("words.json.previous")).expect("kept");
    assert_eq!(
        decode::<Words>(&previous).ok(),
        Some(words("small")),
        "damage never becomes the previous one"
    );
}

#[test]
fn p4_every_flipped_bit_and_every_cut_is_noticed() {
    let good = encode(&words("some words here"));
    assert!(decode::<Words>(&good).is_ok());
    for at in 0..good.len() * 8 {
        let mut bad = good.clone();
        bad[at / 8] ^= 1 << (at % 8);
        assert!(decode::<Words>(&bad).is_err(), "bit {at}");
    }
    for length in 0..good.len() {
        assert!(decode::<Words>(&good[..length]).is_err(), "cut to {length}");
    }
    assert!(
        decode::<Words>(&[&good[..], b"\n"].concat()).is_err(),
        "grown"
    );
    assert!(
        serde_json::from_slice::<serde_json::Value>(&good).is_ok(),
        "one JSON object"
    );
}

#[test]
fn p4_a_damaged_file_is_moved_aside_and_the_previous_one_used() {
    let directory = two_generations();
    let path = directory.path().join("words.json");
    for round in 1..=MAX_DAMAGED + 2 {
        let mut content = fs::read(&path).expect("there");
        content[90] ^= 4;
        fs::write(&path, &content).expect("damaged");
        let mut file = StateFile::new::<Words>(directory.path());
        let (found, problems) = file.load::<Words>();
        assert_eq!(found, Some(words("first")), "round {round}");
        let [
            Problem::Quarantined {
                aside,
                damage: Damage::Checksum,
                ..
            },
            Problem::PreviousUsed { .. },
        ] = &problems[..]
        else {
            panic!("{problems:?}");
        };
        assert_eq!(fs::read(aside).expect("moved"), content);
        assert!(!path.exists());
        file.save(&words("second")).expect("saved");
        assert_eq!(load(directory.path()).0, Some(words("second")));
    }
    let damaged = fs::read_dir(directory.path()).expect("listed").count();
    assert_eq!(damaged as u32, MAX_DAMAGED + 2, "damaged files are bounded");
}

#[test]
fn p4_with_both_generations_damaged_the_start_goes_on_without() {
    let directory = two_generations();
    for name in ["words.json", "words.json.previous"] {
        fs::write(directory.path().join(name), "").expect("truncated");
    }
    let (found, problems) = load(directory.path());
    assert_eq!(found, None);
    assert!(
        matches!(problems.last(), Some(Problem::NothingLeft { .. })),
        "{problems:?}"
    );
    assert_eq!(load(directory.path()).1.len(), 0, "reported once");
}

/// A whole file of another schema or name.
fn foreign(name: &str, schema: u32, data: &str) -> Vec<u8> {
    let rest = format!("\"document\":\"{name}\",\"schema\":{schema},\"data\":{data}}}");
    let digest = digest(rest.as_bytes());
    [PREFIX, digest.as_bytes(), SUFFIX, rest.as_bytes()].concat()
}

#[test]
fn p5_an_older_schema_is_read_and_a_newer_one_moved_aside() {
    let directory = two_generations();
    let path = directory.path().join("words.json");
    fs::write(&path, foreign("words", 1, "\"lone\"")).expect("written");
    assert_eq!(load(directory.path()).0, Some(words("lone")));
    for (content, part) in [
        (
            foreign("words", 3, "{\"unknown\":1}"),
            "its schema is 3, this release reads 2",
        ),
        (foreign("words", 0, "[]"), "its schema is 0"),
        (foreign("words", 2, "{}"), "does not fit"),
        (foreign("other", 2, "[]"), "no \"words\" document"),
        (b"not even json".to_vec(), "checksum"),
    ] {
        fs::write(&path, &content).expect("written");
        let (found, problems) = load(directory.path());
        assert_eq!(found, Some(words("first")), "{part}");
        assert!(problems[0].to_string().contains(part), "{}", problems[0]);
    }
}

#[test]
fn the_hash_key_is_made_once_and_kept_from_others() {
    let directory = scratch();
    let state = directory.path().join("a/b");
    let made = hash_key(Some(&state), None).expect("random");
    assert!(made.problems.is_empty() && made.unsaved.is_none() && made.bytes != [0; 16]);
    let again = hash_key(Some(&state), None).expect("kept");
    assert_eq!(again.bytes, made.bytes);
    for entry in fs::read_dir(&state).expect("listed") {
        let mode = entry
            .and_then(|entry| entry.metadata())
            .expect("there")
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
    }
    fs::write(state.join("hash-key.json"), "?").expect("damaged");
    let survived = hash_key(Some(&state), None).expect("previous");
    assert_eq!((survived.bytes, survived.problems.len()), (made.bytes, 2));
    assert_eq!(
        hash_key(Some(&state), Some([7; 16])).expect("given").bytes,
        [7; 16]
    );
    let blocked = hash_key(Some(&state.join("hash-key.json.previous")), None).expect("random");
    assert!(
        blocked.unsaved.is_some() && blocked.bytes != [0; 16],
        "the start goes on"
    );
    assert_eq!(
        parse_hash_key("000102030405060708090a0B0c0d0e0F"),
        Ok(std::array::from_fn(|n| n as u8))
    );
    for bad in [
        "",
        "00",
        "000102030405060708090a0b0c0d0e0g",
        "0001020304050607 8090a0b0c0d0e0ff",
    ] {
        assert_eq!(parse_hash_key(bad), Err(HashKeyError));
    }
}

/// Refuses writes while `broken` is not 0.
struct Flaky(Arc<AtomicU32>);

impl Disk for Flaky {
    fn create_directory(&self, path: &Path) -> io::Result<()> {
        Files.create_directory(path)
    }
    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        Files.read(path)
    }
    fn write(&self, path: &Path, content: &[u8]) -> io::Result<()> {
        match self.0.load(Ordering::SeqCst) {
            0 => Files.write(path, content),
            _ => Err(io::ErrorKind::StorageFull.into()),
        }
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        Files.rename(from, to)
    }
    fn sync_directory(&self, path: &Path) -> io::Result<()> {
        Files.sync_directory(path)
    }
    fn exists(&self, path: &Path) -> bool {
        Files.exists(path)
    }
}

#[test]
fn p3_a_saver_reports_once_retries_and_writes_the_latest() {
    let directory = scratch();
    let broken = Arc::new(AtomicU32::new(1));
    let (told, heard) = mpsc::channel();
    let file = StateFile::on::<Words>(Flaky(broken.clone()), directory.path());
    let saver = Saver::start(file, move |error| {
        let _ = told.send(error.map(ToString::to_string));
    })
    .expect("a thread");
    let before = Instant::now();
    saver.save(Arc::new(words("one")));
    let number = saver.save(Arc::new(words("two")));
    assert!(
        before.elapsed() < Duration::from_secs(20),
        "saving does not block its caller"
    );
    let first = heard
        .recv_timeout(Duration::from_secs(20))
        .expect("reported");
    assert!(first.is_some_and(|error| error.contains("free some space")));
    assert!(!saver.flush(Duration::from_millis(10)));
    assert!(saver.state().error.is_some());
    broken.store(0, Ordering::SeqCst);
    assert!(saver.flush(Duration::from_secs(20)), "retried by itself");
    assert_eq!(
        heard.recv_timeout(Duration::from_secs(20)),
        Ok(None),
        "reported once, then well"
    );
    assert_eq!(
        saver.state(),
        SaveState {
            saved: number,
            wanted: number,
            error: None
        }
    );
    assert_eq!(load(directory.path()).0, Some(words("two")));
    saver.save(Arc::new(words("last")));
    drop(saver);
    assert_eq!(
        load(directory.path()).0,
        Some(words("last")),
        "an orderly end saves first"
    );
}
