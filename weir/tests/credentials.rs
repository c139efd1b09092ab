//! Who the appliance is at an API server: the kubeconfig that it writes for itself, and its own token,
//! which ends and is renewed.
#![allow(missing_docs, clippy::unwrap_used)]

mod support;

use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};
use support::cluster::{self, Cluster};
use support::net::POOL_V4;
use support::weir::Weir;
use support::*;

const RBAC: &str = include_str!("../../deploy/kubernetes/rbac.yaml");
const TOKEN: &str = include_str!("../../deploy/kubernetes/token.yaml");
/// Seconds that a token of ours is good for.
const LIFE: u64 = 20;
/// The API server takes a token for a minute after its end, and remembers for ten seconds that it was
/// good: one that has ended so long ago dies while a test can wait for it.
const ENDED: u64 = 30;

fn kubeconfig(lab: &Lab, args: &[&str]) -> Output {
    let mut command = lab.lb.command(env!("CARGO_BIN_EXE_weir"));
    command.arg("kubeconfig").args(args);
    command.env_remove("KUBECONFIG").output().unwrap()
}

fn said(output: &Output) -> String {
    let both = [&output.stdout[..], &output.stderr[..]].concat();
    String::from_utf8_lossy(&both).into_owned()
}

fn now() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.unwrap().as_secs()
}

/// The token in a kubeconfig of ours.
fn token_in(path: &Path) -> String {
    let text = std::fs::read_to_string(path).unwrap();
    let line = text
        .lines()
        .find_map(|line| line.trim().strip_prefix("token: "));
    line.unwrap().trim_matches('"').to_owned()
}

/// Base64 as JSON Web Tokens have it.
fn encoded(bytes: &[u8]) -> String {
    let text = piped(Command::new("base64").arg("-w0"), bytes);
    let text = String::from_utf8(text).unwrap();
    text.trim_end_matches('=')
        .replace('+', "-")
        .replace('/', "_")
}

fn piped(command: &mut Command, input: &[u8]) -> Vec<u8> {
    let piped = command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = piped.spawn().unwrap();
    child.stdin.take().unwrap().write_all(input).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    output.stdout
}

/// A token as the API server signs them, but shorter than any that it gives.
fn short_token(cluster: &Cluster, issued: u64) -> String {
    let account = cluster.get(&["serviceaccount", "weir", "-n", "weir-system"]);
    let claims = json!({
        "iss": "https://fixture", "aud": ["https://fixture"],
        "sub": "system:serviceaccount:weir-system:weir",
        "iat": issued, "nbf": issued, "exp": issued + LIFE,
        "kubernetes.io": {"namespace": "weir-system",
            "serviceaccount": {"name": "weir", "uid": account["metadata"]["uid"]}},
    });
    let part = |value: &Value| encoded(value.to_string().as_bytes());
    let signed = format!(
        "{}.{}",
        part(&json!({"alg": "RS256", "typ": "JWT"})),
        part(&claims)
    );
    let key = cluster.ca_file().with_extension("key");
    let mut openssl = Command::new("openssl");
    let signature = piped(
        openssl.args(["dgst", "-sha256", "-sign"]).arg(key),
        signed.as_bytes(),
    );
    format!("{signed}.{}", encoded(&signature))
}

/// K3: the token that the appliance was given dies while it runs, and a Service that is made after
/// that gets its address all the same.
#[test]
fn k3_a_token_is_renewed_before_it_dies() {
    if skip("kubeconfig") || cluster::skip() {
        return;
    }
    let lab = Lab::new();
    let cluster = Cluster::start_in(&lab.lb, [10, 2, 0, 1].into());
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("weir.kubeconfig");
    let (admin, output) = (cluster.admin(), path.display().to_string());
    let from = ["--kubeconfig", admin.to_str().unwrap(), "--output", &output];

    // Nothing is there yet that a token could be of.
    let refused = kubeconfig(&lab, &from);
    let text = said(&refused);
    assert_eq!(refused.status.code(), Some(1), "{text}");
    assert!(text.contains("deploy/kubernetes/rbac.yaml"), "{text}");
    assert!(!path.exists());

    cluster.apply(RBAC);
    cluster.apply(TOKEN);
    let written = kubeconfig(&lab, &from);
    assert_eq!(written.status.code(), Some(0), "{}", said(&written));
    assert!(
        said(&written).contains("weir serve --kubeconfig"),
        "{}",
        said(&written)
    );
    assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    let first = token_in(&path);
    let again = kubeconfig(&lab, &from);
    assert_eq!(again.status.code(), Some(2), "{}", said(&again));
    assert_eq!(token_in(&path), first, "it stays");
    let forced = kubeconfig(&lab, &[&from[..], &["--force"]].concat());
    assert_eq!(forced.status.code(), Some(0), "{}", said(&forced));

    // One that dies while we look.
    let short = short_token(&cluster, now() - LIFE - ENDED);
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, text.replace(&token_in(&path), &short)).unwrap();
    let services = ["get", "services", "-n", "default"];
    let as_short = |args: &[&str]| {
        let mut all = vec!["--token", &short, "--server"];
        let server = format!("https://{}", cluster.api());
        let ca = cluster.ca_file();
        all.extend([&*server, "--certificate-authority", ca.to_str().unwrap()]);
        all.extend(args);
        // A kubeconfig without a user: the token is all that it goes by.
        cluster.try_kubectl(Path::new("/dev/null"), &all)
    };
    as_short(&services).expect("it is good now");

    let weir = Weir::prepare()
        .without_manifests()
        .args(["--kubeconfig", &output, "--pool", POOL_V4])
        .launch(&lab.lb);
    eventually("another token", Duration::from_secs(60), || {
        token_in(&path) != short
    });
    let (_, verbose) = weir.get("/readyz?verbose");
    assert!(verbose.contains("[+]token"), "{verbose}");
    assert_eq!(
        weir.metric("weir_token_renewals_total", &["result=\"ok\""]),
        1.0
    );
    eventually("the first one is dead", Duration::from_secs(90), || {
        as_short(&services).is_err_and(|error| error.contains("Unauthorized"))
    });
    let mut web = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"}});
    web["spec"] = json!({"type": "LoadBalancer", "loadBalancerClass": "weir.dev/l4",
        "ports": [{"port": 80}]});
    cluster.apply(&web.to_string());
    cluster.wait("an address", &["service", "web"], |service| {
        service["status"]["loadBalancer"]["ingress"][0]["ip"].is_string()
    });
    assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
}

/// Without the right to renew: said while the token is good, with the verb.
#[test]
fn a_token_that_may_not_be_renewed_is_said_while_it_is_good() {
    if skip("kubeconfig") || cluster::skip() {
        return;
    }
    let lab = Lab::new();
    let cluster = Cluster::start_in(&lab.lb, [10, 2, 0, 1].into());
    cluster.apply(RBAC);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("weir.kubeconfig");
    let (admin, output) = (cluster.admin(), path.display().to_string());
    let written = kubeconfig(
        &lab,
        &["--kubeconfig", admin.to_str().unwrap(), "--output", &output],
    );
    assert_eq!(written.status.code(), Some(0), "{}", said(&written));
    // Most of its life is over, and some of it is left.
    let short = short_token(&cluster, now() - LIFE * 3 / 4);
    let long = token_in(&path);
    let text = std::fs::read_to_string(&path).unwrap();
    let weir = Weir::prepare()
        .without_manifests()
        .args(["--kubeconfig", &output, "--pool", POOL_V4])
        .launch(&lab.lb);
    let (_, verbose) = weir.get("/readyz?verbose");
    assert!(verbose.contains("[+]token"), "{verbose}");
    let weir = weir.stop();
    std::fs::write(&path, text.replace(&long, &short)).unwrap();
    let weir = weir
        .without_manifests()
        .args(["--kubeconfig", &output, "--pool", POOL_V4])
        .launch(&lab.lb);
    eventually("it says so", Duration::from_secs(20), || {
        let (_, verbose) = weir.get("/readyz?verbose");
        verbose.contains("serviceaccounts/token") || verbose.contains("expired")
    });
    assert!(weir.metric("weir_token_renewals_total", &["result=\"failed\""]) >= 1.0);
}
