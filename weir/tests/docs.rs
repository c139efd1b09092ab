//! The documentation says what the code does: every code, label, metric, setting and annotation is
//! in it, its tables name nothing that is not there, the tests that it names exist, and its links
//! lead somewhere.
#![allow(missing_docs, clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use admin_api::metrics::{Page, plane};
use controlplane::annotations::{Known, TABLE};
use controlplane::reason::Reason;
use lb_core::stats::{CloseReason, ConnectError, DropReason, Snapshot, WorkerTotals};
use serde_json::Value;

type Names = BTreeSet<String>;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .unwrap()
        .to_owned()
}

fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// What the real binary prints.
fn weir(args: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_weir"))
        .args(args)
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "weir {args:?}: {text}{errors}");
    text
}

/// The part of a document below the headline `## title`, up to the next of its kind.
fn section(text: &str, title: &str) -> String {
    let headline = format!("## {title}");
    let below = text.lines().skip_while(|line| *line != headline).skip(1);
    let lines: Vec<_> = below.take_while(|line| !line.starts_with("## ")).collect();
    assert!(!lines.is_empty(), "no section {title:?}");
    lines.join("\n")
}

/// The rows of all tables in `text`, cell by cell, without headers and rules.
fn rows(text: &str) -> Vec<Vec<String>> {
    let lines: Vec<&str> = text.lines().collect();
    let is_row = |line: &str| line.starts_with('|');
    let is_rule = |line: &str| line.starts_with("|-");
    let mut rows = Vec::new();
    for (i, line) in lines.iter().enumerate() {
        let heads = lines.get(i + 1).is_some_and(|next| is_rule(next));
        if is_row(line) && !is_rule(line) && !heads {
            let cells = line.trim_matches('|').split('|');
            rows.push(cells.map(|cell| cell.trim().to_owned()).collect());
        }
    }
    rows
}

/// What stands between backticks.
fn quoted(text: &str) -> Vec<String> {
    let quoted = text.split('`').skip(1).step_by(2);
    quoted.map(str::to_owned).collect()
}

/// The names in the first cells of the tables in `text`; none may stand twice.
fn named(text: &str) -> Names {
    let mut names = Names::new();
    for row in rows(text) {
        for name in quoted(&row[0]) {
            assert!(names.insert(name.clone()), "{name} stands twice");
        }
    }
    names
}

fn names<'a>(names: impl IntoIterator<Item = &'a str>) -> Names {
    names.into_iter().map(str::to_owned).collect()
}

#[track_caller]
fn same(what: &str, documented: &Names, there: &Names) {
    let missing: Vec<_> = there.difference(documented).collect();
    let invented: Vec<_> = documented.difference(there).collect();
    assert!(
        missing.is_empty() && invented.is_empty(),
        "{what}: not documented {missing:?}; documented and not there {invented:?}"
    );
}

#[test]
fn every_code_has_its_row_and_no_other_has() {
    let text = read("docs/reasons.md");
    let reasons = names(Reason::CODES.iter().copied());
    same("Reason", &named(&section(&text, "Reasons")), &reasons);
    let close = names(CloseReason::ALL.iter().map(|reason| reason.label()));
    same(
        "CloseReason",
        &named(&section(&text, "CloseReason")),
        &close,
    );
    let drop = names(DropReason::ALL.iter().map(|reason| reason.label()));
    same("DropReason", &named(&section(&text, "DropReason")), &drop);
    let connect = names(ConnectError::ALL.iter().map(|reason| reason.label()));
    same(
        "ConnectError",
        &named(&section(&text, "ConnectError")),
        &connect,
    );

    let source = read("lb-core/src/worker/report.rs");
    let (_, body) = source.split_once("pub enum BindError {").unwrap();
    let (body, _) = body.split_once("\n}").unwrap();
    let variants = body.lines().filter_map(|line| {
        let variant = line.strip_prefix("    ")?.strip_suffix(" {")?;
        variant
            .starts_with(|c: char| c.is_ascii_uppercase())
            .then(|| variant.to_owned())
    });
    let variants: Names = variants.collect();
    assert!(variants.len() > 5, "{variants:?}");
    same("BindError", &named(&section(&text, "BindError")), &variants);
}

/// The arms of `severity` in the source, by the severity that they end in.
#[test]
fn the_severity_of_a_reason_is_the_one_documented() {
    let source = read("controlplane/src/reason/order.rs");
    let (_, body) = source.split_once("fn place(").unwrap();
    let (body, _) = body.split_once("#[cfg(test)]").unwrap();
    let mut severities = BTreeMap::new();
    let mut arm = Vec::new();
    let is_word = |c: char| c.is_ascii_alphanumeric();
    for word in body.split(|c| !is_word(c)) {
        match word {
            "Refused" | "Pending" | "Note" => {
                severities.extend(arm.drain(..).map(|code| (code, word.to_owned())));
            }
            code if Reason::CODES.contains(&code) => arm.push(code.to_owned()),
            _ => {}
        }
    }
    assert_eq!(severities.len(), Reason::CODES.len());
    for row in rows(&section(&read("docs/reasons.md"), "Reasons")) {
        let code = &quoted(&row[0])[0];
        assert_eq!(row[1], severities[code], "{code}");
    }
}

/// The Rust files below a directory, files of tests apart.
fn sources(directory: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut waiting = vec![root().join(directory)];
    while let Some(directory) = waiting.pop() {
        for entry in std::fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                waiting.push(path);
            } else if path.extension().is_some_and(|rust| rust == "rs")
                && !path.ends_with("tests.rs")
            {
                found.push(path);
            }
        }
    }
    found
}

#[test]
fn every_metric_has_its_row_with_its_type_and_no_other_has() {
    let table = section(&read("docs/operate.md"), "Metrics");
    let documented: BTreeMap<String, String> = rows(&table)
        .into_iter()
        .map(|row| (quoted(&row[0])[0].clone(), row[1].clone()))
        .collect();

    // The families of the process and the control plane are recorded where they happen; the names
    // stand there as strings.
    let mut there = Names::new();
    for path in sources("weir/src")
        .into_iter()
        .chain(sources("controlplane/src"))
    {
        let source = std::fs::read_to_string(&path).unwrap();
        // Tests at the foot name series, too.
        let source = source.split("#[cfg(test)]\nmod tests {").next().unwrap();
        for text in source.split("\"weir_").skip(1) {
            let rest = text.split('"').next().unwrap();
            if rest.chars().all(|c| c.is_ascii_lowercase() || c == '_') {
                there.insert(format!("weir_{rest}"));
            }
        }
    }
    assert!(there.len() > 8, "{there:?}");

    // The data plane's families are on the page whatever happened.
    let mut page = Page::default();
    let snapshot = Snapshot {
        workers: vec![WorkerTotals::default()],
        ..Snapshot::default()
    };
    plane::write(&mut page, &snapshot);
    for line in page.finish().lines() {
        if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|l| l.split_once(' ')) {
            assert_eq!(
                documented.get(name).map(String::as_str),
                Some(kind),
                "{name}"
            );
            there.insert(name.to_owned());
        }
    }
    same("metrics", &documented.into_keys().collect(), &there);

    // Nothing else in any document looks like a metric and is none.
    for document in ["docs/operate.md", "docs/services.md", "docs/reasons.md"] {
        for text in quoted(&read(document)) {
            let name = text.split('{').next().unwrap_or_default();
            if name.starts_with("weir_") {
                assert!(there.contains(name), "{document}: {name}");
            }
        }
    }
}

/// The settings of the schema: name -> description.
fn settings() -> BTreeMap<String, String> {
    let schema: Value = serde_json::from_str(&weir(&["config", "schema"])).unwrap();
    let properties = schema["properties"].as_object().unwrap();
    let described = properties.iter().map(|(name, property)| {
        let description = property["description"].as_str().unwrap_or_default();
        (name.clone(), description.to_owned())
    });
    described.collect()
}

#[test]
fn every_setting_has_its_row_with_its_default_and_no_other_has() {
    let table = rows(&section(&read("docs/operate.md"), "Settings"));
    let column = |at: usize| -> Names {
        let names = table.iter().flat_map(|row| quoted(&row[at]));
        names.collect()
    };
    let help = weir(&["serve", "--help"]);
    let flags = help.lines().filter_map(|line| {
        let word = line.trim_start().split([' ', '=', '[']).next()?;
        let own = ["--help", "--version"];
        (word.starts_with("--") && !own.contains(&word)).then(|| word.to_owned())
    });
    same("flags", &column(0), &flags.collect());
    let variables = help.split("[env: ").skip(1);
    let variables = variables.filter_map(|text| text.split(['=', ']']).next());
    same("environment", &column(1), &names(variables));

    let settings = settings();
    same("weir.yaml", &column(2), &settings.keys().cloned().collect());
    for row in &table {
        let Some(name) = quoted(&row[2]).pop() else {
            continue;
        };
        // Where the default is a value and not a rule, the help says it in one word.
        let default = settings[&name].split_once("Default: ");
        let default = default.map(|(_, text)| text.trim_end_matches('.'));
        let word = default.filter(|text| !text.contains([' ', ':']) && *text != "none");
        if let Some(word) = word {
            assert_eq!(quoted(&row[3]), [word], "{name}");
        }
    }
}

/// Every setting, commented out: as it stands, and with the marks taken away, it is a good file.
#[test]
fn the_example_settings_are_all_of_them_and_parse() {
    let text = read("deploy/weir.yaml");
    let is_setting = |line: &str| {
        line.strip_prefix('#')
            .is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_lowercase()))
    };
    let found = text.lines().filter(|line| is_setting(line));
    let found = found.filter_map(|line| line[1..].split(':').next());
    same(
        "deploy/weir.yaml",
        &names(found),
        &settings().into_keys().collect(),
    );
    let path = root().join("deploy/weir.yaml");
    weir(&["check", path.to_str().unwrap()]);

    let open: Vec<&str> = text
        .lines()
        .map(|line| if is_setting(line) { &line[1..] } else { line })
        .collect();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("weir.yaml");
    std::fs::write(&path, open.join("\n")).unwrap();
    weir(&["check", path.to_str().unwrap()]);
    let shown = weir(&["config", "show", "--config", path.to_str().unwrap()]);
    for (name, description) in settings() {
        let line = shown
            .lines()
            .find(|line| line.starts_with(&format!("{name}: ")));
        let line = line.unwrap_or_else(|| panic!("{name} is not set in {shown}"));
        let default = description.split_once("Default: ");
        let default = default.map(|(_, text)| text.trim_end_matches('.'));
        if let Some(word) = default.filter(|text| !text.contains([' ', ':']) && *text != "none") {
            // The text of the file is written in the same words as the help.
            let written = format!("#{name}: {word}");
            assert!(
                text.lines().any(|line| line == written),
                "{written}: {line}"
            );
        }
    }
    let published = read("deploy/weir.schema.json");
    assert_eq!(
        published,
        weir(&["config", "schema"]),
        "deploy/weir.schema.json"
    );
}

#[test]
fn every_annotation_stands_in_the_order_of_its_rank() {
    let table = rows(&section(&read("docs/services.md"), "Annotations"));
    let written = |known: &Known| match known.prefix {
        true => format!("{}*", known.name),
        false => known.name.to_owned(),
    };
    let mut documented: Vec<Vec<String>> = table.iter().map(|row| quoted(&row[1])).collect();
    let mut there: Vec<Vec<String>> = Vec::new();
    let mut meanings = Vec::new();
    for known in TABLE {
        match meanings
            .iter()
            .position(|meaning| *meaning == known.meaning)
        {
            Some(at) => there[at].push(written(known)),
            None => {
                meanings.push(known.meaning);
                there.push(vec![written(known)]);
            }
        }
    }
    documented.sort();
    there.sort();
    assert_eq!(documented, there);
}

/// All code below `directory` that is no test.
fn code(directory: &Path, text: &mut String) {
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if path.is_dir() && name != "tests" {
            code(&path, text);
        } else if name.ends_with(".rs") && name != "tests.rs" {
            let all = std::fs::read_to_string(&path).unwrap();
            text.push_str(all.split("#[cfg(test)]\nmod tests {").next().unwrap());
        }
    }
}

/// A code that nothing says is one that somebody waits for.
#[test]
fn every_code_is_said_somewhere() {
    let mut text = String::new();
    code(&root().join("controlplane/src"), &mut text);
    code(&root().join("lb-core/src"), &mut text);
    let said = |name: String| {
        let mut parts = text.split(name.as_str()).skip(1);
        parts.any(|rest| !rest.starts_with(char::is_alphanumeric))
    };
    for name in Reason::CODES {
        assert!(said(format!("Reason::{name}")), "Reason::{name}");
    }
    for reason in CloseReason::ALL {
        assert!(said(format!("CloseReason::{reason:?}")), "{reason:?}");
    }
    for reason in DropReason::ALL {
        assert!(said(format!("DropReason::{reason:?}")), "{reason:?}");
    }
}

/// Rows of the round that the catalogue must have.
const ROWS: &str = "T1 T2 T3 T4 T5 T6 T7 T8 T9 T10 T11 T12 T13 T14 T15 T16 U1 U2 U3 U4 U5 U6 U7 U8 U9 U10 U11 \
    K1 K2 K3 K4 K5 K6 K7 K8 K9 K10 K14 K17 K18 K19 K20 K21 K22 S1 S2 S3 S4 S11 S15 S16 R1 R2 R3 R4 R5 R6 R7 R8 R9 R10 R12 P1 P2 P3 P4 P5";

#[test]
fn every_fault_names_tests_that_exist() {
    let text = read("docs/faults.md");
    let (catalogue, _) = text
        .split_once("\n## What is smaller here than it should be")
        .unwrap();
    let mut seen = Names::new();
    let mut mentioned = Names::new();
    for row in rows(catalogue) {
        let tests = tests_that_exist(&row[0], &row[3]);
        mentioned.extend(tests);
        assert!(seen.insert(row[0].clone()), "{} stands twice", row[0]);
    }
    same("rows", &seen, &names(ROWS.split_whitespace()));

    // And every end-to-end test that is named after a row is in it.
    for path in sources("weir/tests") {
        let path = path.strip_prefix(root()).unwrap().display().to_string();
        for line in read(&path).lines() {
            let function = line.strip_prefix("fn ").and_then(|l| l.split('(').next());
            let Some(function) = function else { continue };
            let row = function
                .split('_')
                .next()
                .unwrap_or_default()
                .to_uppercase();
            if seen.contains(&row) {
                let test = format!("{path}::{function}");
                assert!(mentioned.contains(&test), "{test} is not in docs/faults.md");
            }
        }
    }
}

/// The tests that a row of a table names, `file::function` each: at least one, and they exist.
fn tests_that_exist(row: &str, cell: &str) -> Vec<String> {
    let tests = quoted(cell);
    assert!(!tests.is_empty(), "{row} has no test");
    for test in &tests {
        let (file, function) = test.split_once("::").unwrap();
        let found = read(file).contains(&format!("fn {function}("));
        assert!(found, "{row}: {test} does not exist");
    }
    tests
}

#[test]
fn every_promise_of_a_service_names_tests_that_exist() {
    let text = read("docs/services.md");
    let (_, shown) = text.split_once("\n## Shown by\n").unwrap();
    let mut promises = 0;
    for row in rows(shown) {
        promises += 1;
        tests_that_exist(&row[0], &row[1]);
    }
    assert!(promises >= 35, "{promises}");
}

/// Every document of the repository.
fn documents(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if path.is_dir() && name != "target" && !name.starts_with('.') {
            documents(&path, found);
        } else if name.ends_with(".md") {
            found.push(path);
        }
    }
}

/// As a headline is linked to: lower case, blanks to dashes, without other signs.
fn anchor(headline: &str) -> String {
    let kept = headline
        .trim_start_matches('#')
        .trim()
        .chars()
        .filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    kept.collect::<String>().to_lowercase().replace(' ', "-")
}

#[test]
fn every_link_leads_somewhere() {
    let mut all = Vec::new();
    documents(&root(), &mut all);
    assert!(all.len() >= 8, "{all:?}");
    let mut links = 0;
    for document in all {
        let text = std::fs::read_to_string(&document).unwrap();
        for part in text.split("](").skip(1) {
            let target = part.split(')').next().unwrap();
            if target.starts_with("http") || target.starts_with("mailto:") {
                continue;
            }
            links += 1;
            let (file, headline) = target.split_once('#').unwrap_or((target, ""));
            let path = match file {
                "" => document.clone(),
                file => document.parent().unwrap().join(file),
            };
            assert!(path.exists(), "{}: {target}", document.display());
            if !headline.is_empty() {
                let there = std::fs::read_to_string(&path).unwrap();
                let mut headlines = there.lines().filter(|line| line.starts_with('#'));
                assert!(
                    headlines.any(|line| anchor(line) == headline),
                    "{}: {target}",
                    document.display()
                );
            }
        }
    }
    assert!(links > 30, "{links}");
}
