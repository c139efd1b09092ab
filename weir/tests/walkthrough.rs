//! Types docs/walkthrough.md, and the walk-through of docs/kubernetes.md, as they stand and compares what
//! they print: the main job on a real dump and on a real API server, with real clients and real servers.
#![allow(missing_docs, clippy::unwrap_used)]

mod support;

use std::path::Path;
use std::process::{Command, Stdio};

/// A fenced block: its info string and its lines.
struct Block {
    info: String,
    text: String,
}

fn blocks(markdown: &str) -> Vec<Block> {
    let mut blocks = Vec::new();
    let mut open: Option<Block> = None;
    for line in markdown.lines() {
        match (&mut open, line.strip_prefix("```")) {
            (None, Some(info)) => {
                open = Some(Block {
                    info: info.trim().to_owned(),
                    text: String::new(),
                })
            }
            (Some(_), Some(_)) => blocks.extend(open.take()),
            (Some(block), None) => block.text += &format!("{line}\n"),
            (None, None) => {}
        }
    }
    blocks
}

/// Does some line of `output` contain the parts of `expected` between its ellipses, in order?
fn shown(output: &str, expected: &str) -> bool {
    output.lines().any(|line| {
        let mut rest = line;
        expected
            .trim()
            .split('…')
            .all(|part| match rest.find(part.trim()) {
                Some(at) => {
                    rest = &rest[at + part.trim().len()..];
                    true
                }
                None => false,
            })
    })
}

/// What one leaves behind while it runs, and nothing does when it ends.
struct Walk {
    document: &'static str,
    /// Of its network namespaces.
    names: &'static str,
    directory: &'static str,
    /// Seconds that it may take.
    within: &'static str,
}

impl Drop for Walk {
    fn drop(&mut self) {
        let (names, directory) = (self.names, self.directory);
        let script = format!(
            "for ns in $(ip netns list | grep -o '^{names}[a-z]*'); do \
               ip netns pids $ns | xargs -r kill -9; ip netns del $ns; done; rm -rf {directory}"
        );
        let _ = Command::new("bash").args(["-c", &script]).status();
    }
}

#[test]
fn the_walk_through_works_as_typed() {
    let walk = || Walk {
        document: "docs/walkthrough.md",
        names: "walk-",
        directory: "/tmp/weir-walk",
        within: "50",
    };
    typed(walk, 6, 4);
}

/// "Shown by" of the live cluster: EXTERNAL-IP, an answer, changes under load, the story in events.
#[test]
fn the_walk_through_on_a_real_api_server_works_as_typed() {
    if support::cluster::skip() {
        return;
    }
    let walk = || Walk {
        document: "docs/kubernetes.md",
        names: "kube-",
        directory: "/tmp/weir-kube",
        within: "120",
    };
    typed(walk, 7, 4);
}

/// Types the blocks of a document and compares what they print. It has at least so many of each kind.
fn typed(walk: impl Fn() -> Walk, least_blocks: usize, least_outputs: usize) {
    if !rustix::process::geteuid().is_root() {
        println!("SKIP: walk-through: network namespaces need root");
        return;
    }
    // What an earlier one has left, and this one will.
    drop(walk());
    let walk = walk();
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let markdown = std::fs::read_to_string(root.join(walk.document)).unwrap();
    // The whole document, or the part of it that is to be typed.
    let part = match markdown.split_once("\n## Walk-through\n") {
        Some((_, rest)) => rest.split("\n## ").next().unwrap(),
        None => &markdown,
    };
    let (script, expectations, sections) = read(part);
    assert!(
        sections >= least_blocks && expectations.len() >= least_outputs,
        "the document has its blocks"
    );
    let out = tempfile::tempdir().unwrap();
    let file = |name: &str| std::fs::File::create(out.path().join(name)).unwrap();
    let text = |path: &Path| std::fs::read_to_string(path).unwrap_or_default();
    let mut child = Command::new("timeout")
        .args([walk.within, "bash", "-c", &script])
        .current_dir(root)
        .env("PATH", path(root))
        .stdin(Stdio::null())
        .stdout(file("out"))
        .stderr(file("err"))
        .spawn()
        .unwrap();
    let status = child.wait().unwrap();
    let output = text(&out.path().join("out"));
    let errors = text(&out.path().join("err"));
    let log = text(&Path::new(walk.directory).join("weir.log"));
    assert!(
        status.success() && output.contains("=== end"),
        "{status}\n{output}\n{errors}\n{log}"
    );
    for (section, expected) in expectations {
        let begin = output.find(&format!("=== {section}\n")).unwrap();
        let end = output[begin + 4..]
            .find("=== ")
            .map_or(output.len(), |at| begin + 4 + at);
        for line in expected.lines() {
            assert!(
                shown(&output[begin..end], line),
                "block {section} did not print {line:?}:\n{}",
                &output[begin..end]
            );
        }
    }
    let left = Command::new("ip").args(["netns", "list"]).output().unwrap();
    assert!(
        !String::from_utf8_lossy(&left.stdout).contains(walk.names),
        "it cleans up after itself"
    );
}

/// The script of a document, what its blocks print by their numbers, and how many there are.
fn read(markdown: &str) -> (String, Vec<(usize, String)>, usize) {
    let mut script = String::from("set -eu\n");
    let mut expectations = Vec::new();
    let mut section = 0;
    for block in blocks(markdown) {
        match block.info.as_str() {
            "sh" => {
                section += 1;
                script += &format!("echo '=== {section}'\n{}", block.text);
            }
            "text" => expectations.push((section, block.text)),
            "sh build" => {}
            other => panic!("a block of an unknown kind: {other}"),
        }
    }
    script += "echo '=== end'\n";
    (script, expectations, section)
}

/// Where the programs are: this build, and that of the fixture's cluster.
fn path(root: &Path) -> String {
    let weir = Path::new(env!("CARGO_BIN_EXE_weir")).parent().unwrap();
    let kubernetes = match std::env::var_os("KUBEBUILDER_ASSETS") {
        Some(assets) if !assets.is_empty() => assets.into(),
        _ => root.join("target/kubernetes/bin"),
    };
    let (weir, kubernetes) = (weir.display(), kubernetes.display());
    let system = std::env::var("PATH").unwrap();
    format!("{weir}:{kubernetes}:{system}:/usr/sbin:/sbin")
}
