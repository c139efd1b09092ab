//! Whole files: the golden dump, hostile texts, and what is kept of a file that went bad.

use std::fmt::Write;

use proptest::prelude::*;

use super::*;
use crate::object::{ServiceType, SourceId};

const DUMP: &str = include_str!("../../../testdata/cluster-dump.yaml");

fn load(name: &str, content: &[u8], before: Option<&File>) -> File {
    let mut reader = Reader::new(SourceId(0), Arc::default());
    File::read(&Arc::new(PathBuf::from(name)), content, &mut reader, before)
}

fn yaml(text: &str) -> File {
    load("web.yaml", text.as_bytes(), None)
}

fn names(file: &File) -> Vec<String> {
    let keys = file.objects.values().map(Object::key);
    keys.map(|key| format!("{:?} {key}", key.kind)).collect()
}

fn said(file: &File) -> Vec<String> {
    file.problems.iter().map(ToString::to_string).collect()
}

fn service(name: &str, port: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata:\n  name: {name}\nspec:\n  type: LoadBalancer\n  ports:\n  - name: http\n    port: {port}\n"
    )
}

/// `kubectl get -o json | jq -c` is one line, and a format's width ends at 65,535.
#[test]
fn a_refused_object_far_to_the_right_is_located() {
    let many: Vec<String> = (0..2_000)
        .map(|at| {
            format!(r#"{{"apiVersion":"v1","kind":"Service","metadata":{{"name":"s{at}"}},"spec":{{}}}}"#)
        })
        .collect();
    let bad = r#"{"apiVersion":"v1","kind":"Service","metadata":{"name":"bad"},"spec":{"ports":[{"port":99999}]}}"#;
    let before = format!(
        r#"{{"apiVersion":"v1","kind":"List","items":[{},"#,
        many.join(",")
    );
    let text = format!("{before}{bad}]}}");
    // Of what else stands on its line its field cannot be told: the place is the object's.
    let column = before.len() + 1;
    assert!(column > 65_536, "{column}");
    for name in ["web.json", "web.yaml"] {
        let file = load(name, text.as_bytes(), None);
        assert_eq!(file.objects.len(), 2_000);
        let said = said(&file);
        let at = format!("{name}:1:{column}: spec.ports[0].port: 99999");
        assert!(said.len() == 1 && said[0].starts_with(&at), "{said:?}");
    }
}

#[test]
fn the_dump_of_a_normal_cluster_is_read_untouched() {
    let file = yaml(DUMP);
    assert_eq!(said(&file), Vec::<String>::new());
    assert_eq!(file.objects.len(), 22);
    let services = file.objects.values().filter_map(|object| match object {
        Object::Service(service) => Some(service),
        _ => None,
    });
    let balanced: Vec<String> = services
        .filter(|service| service.kind == ServiceType::LoadBalancer)
        .map(|service| {
            format!(
                "{} {}",
                service.meta.key,
                service.class.as_deref().unwrap_or("-")
            )
        })
        .collect();
    assert_eq!(
        balanced,
        [
            "default/dns weir.dev/l4",
            "default/web -",
            "media/iperf weir.dev/l4",
            "shop/api io.cilium/bgp-control-plane",
            "shop/checkout -"
        ]
    );
    let checkout = (Kind::Service, Arc::from("shop"), Arc::from("checkout"));
    let Some(Object::Service(checkout)) = file.objects.get(&checkout) else {
        panic!("not read");
    };
    assert_eq!(checkout.source_ranges.len(), 2);
    assert_eq!(
        checkout.meta.annotations.len(),
        1,
        "the last applied configuration is not kept"
    );
    let nothing = crate::object::Stored::default();
    assert_eq!(checkout.stored, nothing, "a file's status is ignored");
    let location = checkout.meta.location.as_ref().expect("a file says where");
    let line = DUMP.lines().nth(location.line as usize - 1);
    assert_eq!((line, location.column), (Some("- apiVersion: v1"), 3));
}

#[test]
fn the_same_dump_as_json_means_the_same() {
    let documents = text::decode(DUMP, Format::Yaml).expect("valid");
    let json = serde_json::to_string_pretty(&documents[0].value).expect("a value");
    let file = load("web.json", json.as_bytes(), None);
    assert_eq!(said(&file), Vec::<String>::new());
    assert_eq!(file.objects, yaml(DUMP).objects);
    let place = |object: &Object| object.location().map(|at| at.line);
    let lines: Vec<Option<u32>> = file.objects.values().map(place).collect();
    assert!(
        lines.iter().all(|line| line.is_some_and(|line| line > 3)),
        "{lines:?}"
    );
}

#[test]
fn an_error_is_said_with_its_line_column_and_excerpt() {
    let text = format!(
        "# comment\n{}---\n{}",
        service("web", "80"),
        service("bad", "99999")
    );
    let file = load("manifests/web.yaml", text.as_bytes(), None);
    assert_eq!(
        said(&file),
        ["manifests/web.yaml:20:11: spec.ports[0].port: 99999 is not a port (1 to 65535)"]
    );
    assert_eq!(
        file.problems[0].excerpt,
        "18 |   ports:\n19 |   - name: http\n20 |     port: 99999\n   |           ^"
    );
    let key = file.problems[0]
        .object
        .as_ref()
        .expect("its name can be read");
    assert_eq!(key.to_string(), "default/bad");
    assert_eq!(names(&file), ["Service default/web"]);
}

#[test]
fn an_error_within_a_list_is_found_in_yaml_and_in_json() {
    let text = "apiVersion: v1\nkind: List\nitems:\n- apiVersion: v1\n  kind: Service\n  metadata: {name: a}\n  spec:\n    ports: [{port: 1},\n      {port: \"2\"}]\n- apiVersion: v1\n  kind: Service\n  metadata: {name: b}\n  spec: {}\n";
    let file = yaml(text);
    assert_eq!(
        said(&file),
        ["web.yaml:9:14: spec.ports[1].port: \"2\" is not a port (1 to 65535)"]
    );
    assert_eq!(names(&file), ["Service default/b"]);

    let json = "{\"kind\": \"List\", \"apiVersion\": \"v1\",\n\t\"items\": [\n\t\t{\"apiVersion\": \"v1\", \"kind\": \"Service\", \"metadata\": {\"name\": \"a\"},\n\t\t \"spec\": {\"type\": \"No\\/ne\"}}]}";
    let file = load("web.json", json.as_bytes(), None);
    assert_eq!(
        said(&file),
        [
            "web.json:4:21: spec.type: \"No/ne\" is unknown; write one of ClusterIP, NodePort, LoadBalancer, ExternalName"
        ]
    );
}

#[test]
fn a_missing_field_is_shown_where_it_belongs() {
    let text =
        "apiVersion: v1\nkind: Service\nmetadata:\n  name: a\nspec:\n  ports:\n  - name: http\n";
    assert_eq!(
        said(&yaml(text)),
        ["web.yaml:7:5: spec.ports[0].port: is missing"]
    );
}

#[test]
fn typed_lists_name_the_kind_of_their_items() {
    let text = "apiVersion: v1\nkind: ServiceList\nitems:\n- metadata: {name: a}\n  spec: {}\n---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSliceList\nitems:\n- metadata: {name: a-1}\n  addressType: IPv6\n";
    let file = yaml(text);
    assert_eq!(said(&file), Vec::<String>::new());
    assert_eq!(
        names(&file),
        ["Service default/a", "EndpointSlice default/a-1"]
    );
}

#[test]
fn unknown_kinds_are_noted_and_counted() {
    let one = "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: x}\n---\n";
    let file = yaml(&format!("{}---\n{one}{one}", service("web", "80")));
    assert_eq!(names(&file), ["Service default/web"]);
    assert_eq!(file.problems.len(), 1);
    assert_eq!(file.problems[0].level, Level::Note);
    assert_eq!(
        file.problems[0].message,
        "\"apps/v1\" \"Deployment\" is not read here: 2 skipped"
    );
}

#[test]
fn a_duplicate_names_both_places_and_the_first_is_used() {
    let text = format!("{}---\n{}", service("web", "80"), service("web", "81"));
    let file = yaml(&text);
    assert_eq!(
        said(&file),
        [
            "web.yaml:11:1: Service default/web is also defined in web.yaml:1:1, which is used; remove one of the two"
        ]
    );
    let Some(Object::Service(web)) = file.objects.values().next() else {
        panic!("not read");
    };
    assert_eq!(web.ports[0].port.get(), 80);
}

#[test]
fn a_text_that_does_not_parse_keeps_the_whole_file() {
    let good = yaml(&format!(
        "{}---\n{}",
        service("a", "80"),
        service("b", "80")
    ));
    let bad = load(
        "web.yaml",
        format!("{}---\nspec: [", service("a", "81")).as_bytes(),
        Some(&good),
    );
    assert_eq!(bad.objects, good.objects);
    assert_eq!(bad.problems.len(), 1);
    assert!(
        bad.problems[0]
            .message
            .ends_with("its last good content (2 objects) stays in use"),
        "{}",
        bad.problems[0]
    );
    assert!(bad.problems[0].location.line >= 11);
}

#[test]
fn a_refused_object_keeps_its_own_last_good_version() {
    let good = yaml(&format!(
        "{}---\n{}",
        service("a", "80"),
        service("b", "80")
    ));
    let half = load(
        "web.yaml",
        format!("{}---\n{}", service("a", "0"), service("b", "81")).as_bytes(),
        Some(&good),
    );
    assert_eq!(names(&half), names(&good));
    let ports: Vec<u16> = half
        .objects
        .values()
        .map(|object| match object {
            Object::Service(service) => service.ports[0].port.get(),
            _ => 0,
        })
        .collect();
    assert_eq!(ports, [80, 81]);
    assert!(said(&half)[0].ends_with("; the last good version stays in use"));
    let gone = load("web.yaml", service("b", "81").as_bytes(), Some(&half));
    assert_eq!(
        names(&gone),
        ["Service default/b"],
        "what is really removed goes"
    );
}

fn slice(service: &str, ready: &str) -> String {
    format!(
        "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: x-1, labels: {{kubernetes.io/service-name: {service}}}}}\naddressType: IPv4\nendpoints: [{{addresses: [10.0.0.1], conditions: {{ready: {ready}}}}}]\n"
    )
}

#[test]
fn a_refused_slice_names_the_service_that_uses_it() {
    let service = |file: &File| -> Vec<Option<String>> {
        let services = file.problems.iter().map(|problem| &problem.service);
        services
            .map(|key| key.as_ref().map(ToString::to_string))
            .collect()
    };
    // Never good: its own label counts, with or without a name.
    let bad = yaml(&slice("a", "perhaps"));
    assert_eq!(service(&bad), [Some("default/a".to_owned())]);
    let unnamed = yaml(&slice("a", "true").replace("x-1", "[1]"));
    assert_eq!(service(&unnamed), [Some("default/a".to_owned())]);
    assert!(unnamed.problems[0].object.is_none());
    let unlabelled = yaml(&slice("[1]", "true"));
    assert_eq!(service(&unlabelled), [None]);
    // What is in use is the last good one: its label counts.
    let good = yaml(&slice("a", "true"));
    let bad = load("web.yaml", slice("b", "perhaps").as_bytes(), Some(&good));
    assert_eq!(service(&bad), [Some("default/a".to_owned())]);
    let twice = yaml(&format!("{0}---\n{0}", slice("a", "true")));
    assert_eq!(service(&twice), [Some("default/a".to_owned())]);
}

#[test]
fn an_object_whose_name_cannot_be_read_deletes_nothing() {
    let good = yaml(&format!(
        "{}---\n{}",
        service("a", "80"),
        service("b", "80")
    ));
    let text = format!("{}---\n{}", service("a", "81"), service("[1]", "80"));
    let now = load("web.yaml", text.as_bytes(), Some(&good));
    assert_eq!(names(&now), ["Service default/a", "Service default/b"]);
}

#[test]
fn unchanged_objects_stay_the_very_same() {
    let good = yaml(&format!(
        "{}---\n{}",
        service("a", "80"),
        service("b", "80")
    ));
    let now = load(
        "web.yaml",
        format!("{}---\n{}", service("a", "80"), service("b", "8080")).as_bytes(),
        Some(&good),
    );
    let same: Vec<bool> = good
        .objects
        .values()
        .zip(now.objects.values())
        .map(|pair| match pair {
            (Object::Service(old), Object::Service(new)) => Arc::ptr_eq(old, new),
            _ => false,
        })
        .collect();
    assert_eq!(same, [true, false]);
}

/// K5 of the fault catalogue in the form that a directory can show.
#[test]
fn garbage_is_refused_with_its_place_and_spoils_nothing_else() {
    let mut nested = String::from("a: ");
    nested.push_str(&"[".repeat(100_000));
    let mut laughs = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
    for level in 1..12 {
        let alias = format!("*a{}", level - 1);
        writeln!(
            laughs,
            "a{level}: &a{level} [{}]",
            vec![alias; 10].join(", ")
        )
        .expect("to a string");
    }
    let whole_file: [(&str, Vec<u8>); 10] = [
        ("x.yaml", b"apiVersion: v1\nkind: Service\0\n".to_vec()),
        (
            "x.json",
            b"{\"apiVersion\": \"v1\", \"kind\": \"Serv".to_vec(),
        ),
        ("x.json", "[".repeat(100_000).into_bytes()),
        (
            "x.json",
            b"{\"apiVersion\": \"v1\", \"apiVersion\": \"v1\"}".to_vec(),
        ),
        ("x.yaml", nested.into_bytes()),
        ("x.yaml", laughs.into_bytes()),
        ("x.yaml", b"a: 1\na: 2\n".to_vec()),
        ("x.yaml", b"a: b: c\n".to_vec()),
        ("x.yaml", vec![0xff, 0xfe, 0x00]),
        ("x.yaml", vec![0x1f, 0x8b, 0x08, 0x00]),
    ];
    let good = yaml(&service("a", "80"));
    for (name, content) in whole_file {
        let shown = String::from_utf8_lossy(&content[..content.len().min(40)]).into_owned();
        let file = load(name, &content, Some(&good));
        assert_eq!(file.objects, good.objects, "{shown}");
        assert_eq!(file.problems.len(), 1, "{shown}");
        assert!(file.problems[0].message.len() < 500, "{}", file.problems[0]);
    }
    let one_object = [
        "<html><body>502 Bad Gateway</body></html>",
        "just text",
        "- a\n- b",
        "apiVersion: v1\nkind: Service\nmetadata: {name: x}\nspec: {ports: [{port: 99999999999999999999999999999999}]}",
        "apiVersion: v1\nkind: Service\nmetadata: {name: x}\nspec: {ports: [{port: 340282366920938463463374607431768211456000}]}",
        "apiVersion: v1\nkind: Service\nmetadata: {name: x}\nspec: {ports: [{port: .inf}]}",
        "apiVersion: v1\nkind: Service\nmetadata: {name: x}\nspec: {ports: [{port: -5}]}",
        "apiVersion: v1\nkind: Service\nmetadata: {name: x}\nspec: {ports: [{port: 80.5}]}",
        "apiVersion: v1\nkind: Service\nmetadata: {name: x}\nspec: {type: Unheard}",
        "apiVersion: v1\nkind: List\nitems: 7",
        "apiVersion: v1\nkind: Service",
    ];
    for bad in one_object {
        let file = yaml(&format!("{}---\n{bad}\n", service("a", "80")));
        assert_eq!(names(&file), ["Service default/a"], "{bad}");
        assert_eq!(file.problems.len(), 1, "{bad}: {:?}", said(&file));
        assert!(
            file.problems[0].location.line >= 11,
            "{bad}: {}",
            file.problems[0]
        );
    }
}

#[test]
fn a_megabyte_of_notes_is_not_kept() {
    let mut text = service("a", "80").replace("name: a", "name: a\n  annotations:\n    note: NOTE");
    text = text.replace("NOTE", &"x".repeat(1 << 20));
    let file = yaml(&text);
    assert_eq!(said(&file), Vec::<String>::new());
    assert_eq!(names(&file), ["Service default/a"]);
}

#[test]
fn an_empty_file_has_no_objects_and_no_problems() {
    for (name, content) in [
        ("a.yaml", ""),
        ("a.json", " \n"),
        ("a.yaml", "---\n# nothing\n"),
        ("a.yaml", "\u{feff}"),
    ] {
        let file = load(name, content.as_bytes(), None);
        assert!(
            file.objects.is_empty() && file.problems.is_empty(),
            "{name} {content:?} {:?}",
            said(&file)
        );
    }
}

#[test]
fn control_characters_never_reach_a_message() {
    let text = service("a", "\"\\e[31m\"");
    let file = yaml(&text);
    let shown = format!("{}{}", file.problems[0], file.problems[0].excerpt);
    assert!(
        !shown.chars().any(|c| c.is_control() && c != '\n'),
        "{shown:?}"
    );
}

#[test]
fn a_file_of_refused_objects_lists_some_and_counts_the_rest() {
    let text: String = (0..2000)
        .map(|at| format!("---\n{}", service(&format!("s{at}"), "x")))
        .collect();
    let file = yaml(&text);
    assert_eq!(file.problems.len(), MAX_PROBLEMS + 1);
    let last = file.problems.last().expect("some");
    assert_eq!(last.message, "1900 more problems are not listed");
}

#[test]
fn the_number_of_values_is_bounded_before_they_are_decoded() {
    let file = load(
        "x.json",
        format!("[{}1]", "1,".repeat(8_000_000)).as_bytes(),
        None,
    );
    assert_eq!(
        said(&file),
        ["x.json:1:1: more than 8000000 values in one file"]
    );
}

/// The lines of a good document with some of them changed by chance.
fn mutated() -> impl Strategy<Value = String> {
    let lines: Vec<String> = service("victim", "80").lines().map(str::to_owned).collect();
    let count = lines.len();
    let change = (0..count, "[ -~]{0,12}", 0..5_u8);
    proptest::collection::vec(change, 1..4).prop_map(move |changes| {
        let mut lines = lines.clone();
        for (line, text, how) in changes {
            let indent = lines[line].len() - lines[line].trim_start().len();
            lines[line] = match how {
                0 => text,
                1 => format!("{}{text}", lines[line]),
                2 => format!("{:indent$}{text}", ""),
                3 => match lines[line].split_once(": ") {
                    Some((name, _)) => format!("{name}: {text}"),
                    None => lines[line].clone(),
                },
                _ => String::new(),
            };
        }
        lines.join("\n")
    })
}

proptest! {
    #[test]
    fn garbage_never_panics(content in proptest::collection::vec(any::<u8>(), 0..400)) {
        for name in ["x.yaml", "x.json"] {
            let file = load(name, &content, None);
            prop_assert!(file.problems.len() <= MAX_PROBLEMS + 21);
        }
    }

    #[test]
    fn punctuation_never_panics(text in "[-{}\\[\\]:,&*!|>'\"%@#?a1 \t\n]{0,120}") {
        for name in ["x.yaml", "x.json"] {
            load(name, text.as_bytes(), None);
        }
    }

    /// A changed document is read, or refused at a place that exists; its neighbours are as they
    /// were, unless the text as a whole does not parse any more.
    #[test]
    fn a_mutation_is_located_and_stays_alone(victim in mutated()) {
        let text = format!("{}---\n{victim}\n---\n{}", service("a", "80"), service("z", "80"));
        let good = yaml(&format!("{}---\n{}---\n{}", service("a", "80"), service("victim", "80"), service("z", "80")));
        let file = load("web.yaml", text.as_bytes(), Some(&good));
        let lines = u32::try_from(text.lines().count()).expect("a few lines");
        for problem in &file.problems {
            prop_assert!(problem.location.line <= lines + 1, "{problem}");
            prop_assert!(problem.location.column >= 1);
        }
        for neighbour in ["a", "z"] {
            let name = (Kind::Service, Arc::from("default"), Arc::from(neighbour));
            prop_assert_eq!(file.objects.get(&name), good.objects.get(&name));
        }
    }
}
