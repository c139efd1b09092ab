//! Types docs/walkthrough.md as it stands and compares what it prints: the main job on a real dump,
//! with real clients and real servers.
#![allow(missing_docs, clippy::unwrap_used)]

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

/// Whatever happens, nothing is left behind.
struct CleanUp;

impl Drop for CleanUp {
    fn drop(&mut self) {
        let script = "for ns in walk-client walk-weir walk-pods; do ip netns pids $ns 2>/dev/null | xargs -r kill -9; ip netns del $ns 2>/dev/null; done; rm -rf /tmp/weir-walk";
        let _ = Command::new("bash").args(["-c", script]).status();
    }
}

#[test]
fn the_walk_through_works_as_typed() {
    if !rustix::process::geteuid().is_root() {
        println!("SKIP: walk-through: network namespaces need root");
        return;
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let markdown = std::fs::read_to_string(root.join("docs/walkthrough.md")).unwrap();
    let (mut script, mut expectations) = (
        String::from("set -eu\nPATH=\"$PATH:/usr/sbin:/sbin\"\n"),
        Vec::new(),
    );
    let mut section = 0;
    for block in blocks(&markdown) {
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
    assert!(
        section >= 6 && expectations.len() >= 4,
        "the document has its blocks"
    );
    drop(CleanUp);
    let _clean = CleanUp;
    let binary = Path::new(env!("CARGO_BIN_EXE_weir")).parent().unwrap();
    let path = format!("{}:{}", binary.display(), std::env::var("PATH").unwrap());
    let mut child = Command::new("timeout")
        .args(["50", "bash", "-c", &format!("{script}echo '=== end'\n")])
        .current_dir(root)
        .env("PATH", path)
        .stdin(Stdio::null())
        .stdout(std::fs::File::create("/tmp/weir-walk.out").unwrap())
        .stderr(std::fs::File::create("/tmp/weir-walk.err").unwrap())
        .spawn()
        .unwrap();
    let status = child.wait().unwrap();
    let output = std::fs::read_to_string("/tmp/weir-walk.out").unwrap();
    let errors = std::fs::read_to_string("/tmp/weir-walk.err").unwrap();
    let log = std::fs::read_to_string("/tmp/weir-walk/weir.log").unwrap_or_default();
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
        !String::from_utf8_lossy(&left.stdout).contains("walk-"),
        "it cleans up after itself"
    );
}
