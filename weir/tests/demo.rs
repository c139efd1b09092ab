//! `weir demo` as a user runs it: no root, nothing prepared, nothing lost.
#![allow(missing_docs, clippy::unwrap_used)]

use std::process::Command;

#[test]
fn the_demo_rolls_backends_and_loses_nothing() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_weir"));
    command.args(["demo", "--seconds", "8"]);
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success(),
        "{text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(
        text.contains("lost: 0") && text.contains("Nothing was lost."),
        "{text}"
    );
    let replaced: u32 = text
        .lines()
        .filter_map(|line| {
            line.split(" replaced")
                .next()?
                .rsplit(' ')
                .next()?
                .parse()
                .ok()
        })
        .max()
        .unwrap();
    assert!(replaced >= 3, "backends were rolled: {text}");
}

#[test]
fn the_demo_needs_no_privilege() {
    if !rustix::process::geteuid().is_root() {
        // The test above was without privilege already.
        return;
    }
    let output = Command::new("setpriv")
        .args([
            "--reuid=65534",
            "--regid=65534",
            "--clear-groups",
            "--inh-caps=-all",
            "--bounding-set=-all",
        ])
        .args([env!("CARGO_BIN_EXE_weir"), "demo", "--seconds", "2"])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success(),
        "{text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
}
