use super::*;

const SERVICE: &str = "apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec:
  type: LoadBalancer
  ports: [{name: http, port: 80, protocol: TCP}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-1, namespace: shop, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{name: http, port: 8080, protocol: TCP}]
endpoints: [{addresses: [10.0.0.1], conditions: {ready: true}}]
";

fn write(directory: &tempfile::TempDir, name: &str, text: &str) -> PathBuf {
    let path = directory.path().join(name);
    fs::write(&path, text).expect("write");
    path
}

fn text(paths: &[PathBuf]) -> (String, bool) {
    let report = check(paths).expect("paths exist");
    (report.to_string(), report.is_good())
}

#[test]
fn a_good_directory() {
    let directory = tempfile::tempdir().expect("temp");
    write(&directory, "a.yaml", SERVICE);
    let internal = "apiVersion: v1\nkind: Service\nmetadata: {name: db, namespace: shop}\nspec: {type: ClusterIP, ports: [{port: 1}]}\n";
    write(&directory, "b.yaml", internal);
    let (text, good) = text(&[directory.path().to_owned()]);
    assert!(good, "{text}");
    assert!(
        text.contains("shop/web: would be served on 80/tcp; 1 endpoint ready\n"),
        "{text}"
    );
    assert!(
        text.contains("shop/db: would not be served\n  NotALoadBalancer: type is ClusterIP"),
        "{text}"
    );
    assert!(
        text.ends_with("1 Services would be served, 1 would not; no error\n"),
        "{text}"
    );
}

#[test]
fn a_bad_file_has_its_place_and_excerpt() {
    let directory = tempfile::tempdir().expect("temp");
    let path = write(
        &directory,
        "bad.yaml",
        &SERVICE.replace("port: 80,", "port: 80000,"),
    );
    let (text, good) = text(std::slice::from_ref(&path));
    assert!(!good, "{text}");
    let place = format!("{}:6:", path.display());
    assert!(text.starts_with(&place), "{text}");
    assert!(text.contains("80000"), "{text}");
}

#[test]
fn a_service_that_does_not_parse_is_in_the_summary_once() {
    let directory = tempfile::tempdir().expect("temp");
    let bad = SERVICE.replace("port: 80,", "port: 80000,");
    let other = SERVICE.replace("web", "other");
    let path = write(&directory, "a.yaml", &format!("{other}---\n{bad}"));
    let (found, good) = text(std::slice::from_ref(&path));
    assert!(!good, "{found}");
    assert!(
        found.contains("shop/web: would not be served\n  Malformed: "),
        "{found}"
    );
    assert!(
        found.ends_with("1 Services would be served, 1 would not; 1 error\n"),
        "{found}"
    );
    // Good in another file: it is served from there.
    let good = write(&directory, "b.yaml", SERVICE);
    let (found, _) = text(&[path, good]);
    assert!(!found.contains("Malformed"), "{found}");
    assert!(found.contains("2 Services would be served, 0"), "{found}");
}

#[test]
fn what_was_asked_and_is_refused_is_an_error() {
    let directory = tempfile::tempdir().expect("temp");
    let asked = SERVICE.replace(
        "type: LoadBalancer",
        "type: LoadBalancer\n  loadBalancerSourceRanges: [nonsense]",
    );
    let path = write(&directory, "a.yaml", &asked);
    let (text, good) = text(&[path]);
    assert!(!good && text.contains("BadSourceRange"), "{text}");
}

#[test]
fn an_annotation_that_is_not_as_it_should_be_has_its_place() {
    let directory = tempfile::tempdir().expect("temp");
    let asked = SERVICE.replace(
        "metadata: {name: web, namespace: shop}",
        "metadata:\n  name: web\n  namespace: shop\n  annotations:\n    weir.dev/health-check-port: http\n    weir.dev/health-check-pth: /x",
    );
    let path = write(&directory, "a.yaml", &format!("# first\n---\n{asked}"));
    let (found, good) = text(std::slice::from_ref(&path));
    assert!(good, "notes are no errors: {found}");
    let name = path.display();
    for line in [
        format!(
            "  BadAnnotation: annotation weir.dev/health-check-port: \"http\" is not a port from 1 to 65535, or traffic-port, which is used ({name}:9:33)\n"
        ),
        format!("is weir.dev/health-check-path meant? ({name}:10:32)\n"),
    ] {
        assert!(found.contains(&line), "{line}: {found}");
    }
    // The check itself is good.
    let good = asked
        .replace("port: http", "port: \"8081\"")
        .replace("pth", "path");
    let path = write(&directory, "b.yaml", &good);
    let (found, _) = text(&[path]);
    assert!(!found.contains("Annotation"), "{found}");
}

#[test]
fn settings_are_judged_and_used() {
    let directory = tempfile::tempdir().expect("temp");
    let manifest = write(&directory, "a.yaml", SERVICE);
    let settings = write(&directory, "weir.yaml", "defaultProvider: false\n");
    let (found, good) = text(&[manifest.clone(), settings.clone()]);
    assert!(good && found.contains("ForeignClass"), "{found}");
    let bad = write(&directory, "weir.yaml", "defaultProvidr: false\n");
    let (found, good) = text(&[manifest, bad]);
    assert!(
        !good && found.contains("weir.yaml:1:1: unknown setting"),
        "{found}"
    );
    assert!(
        found.contains("did you mean \"defaultProvider\"?"),
        "{found}"
    );
}

#[test]
fn settings_that_cannot_work_are_errors_with_their_place() {
    let directory = tempfile::tempdir().expect("temp");
    let manifest = write(&directory, "a.yaml", SERVICE);
    let text_of = "pools: [192.0.2.0/28, 192.0.2.8/29]\nconnectTimeout: 0s\n";
    let settings = write(&directory, "weir.yaml", text_of);
    let (found, good) = text(&[manifest, settings]);
    assert!(!good, "{found}");
    for part in [
        "weir.yaml:1:1: pools: ",
        "overlap",
        "weir.yaml:2:1: connectTimeout: 0s",
        "2 errors\n",
    ] {
        assert!(found.contains(part), "{found}");
    }
}

#[test]
fn a_path_that_is_not_there_is_bad_usage() {
    let error = check(&["/nonexistent/x.yaml".into()]).expect_err("no such path");
    assert_eq!(exit::of(&error), ExitCode::from(exit::USAGE));
}
