//! The API server without kubectl, which takes a tenth of a second of CPU to start: `kubectl proxy` is
//! started once, and asked by a unix socket.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::super::http;
use super::{CONVERGED, Cluster};

const MERGE: &str = "application/merge-patch+json";
const APPLY: &str = "application/apply-patch+yaml";

impl Cluster {
    /// A request as `admin`, such as `("GET", "/api/v1/namespaces/default/services/web")`. The answer;
    /// null if there is no such object.
    #[track_caller]
    pub fn call(&self, method: &str, path: &str, body: &Value) -> Value {
        match self.try_call(method, path, body) {
            Ok(value) => value,
            Err((404, _)) => Value::Null,
            Err((status, said)) => panic!("{method} {path}: {status} {said}{}", self.log()),
        }
    }

    /// As [`Cluster::call`]. The body of a PATCH is a merge patch.
    ///
    /// # Errors
    /// The status and what the API server says, if it refuses.
    pub fn try_call(&self, method: &str, path: &str, body: &Value) -> Result<Value, (u16, String)> {
        let kind = if method == "PATCH" {
            MERGE
        } else {
            "application/json"
        };
        let body = if body.is_null() {
            String::new()
        } else {
            body.to_string()
        };
        self.send(method, path, kind, &body)
    }

    /// Applies one object (server-side).
    ///
    /// # Errors
    /// As [`Cluster::try_call`].
    pub fn try_put(&self, object: &Value) -> Result<Value, (u16, String)> {
        let path = format!("{}?fieldManager=test&force=true", path_of(object));
        self.send("PATCH", &path, APPLY, &object.to_string())
    }

    /// Applies one object (server-side).
    #[track_caller]
    pub fn put(&self, object: &Value) -> Value {
        self.try_put(object)
            .unwrap_or_else(|(status, said)| panic!("{object:#}: {status} {said}{}", self.log()))
    }

    /// Waits until an object satisfies `holds`, within [`CONVERGED`]; that.
    #[track_caller]
    pub fn wait_for(&self, what: &str, path: &str, holds: impl Fn(&Value) -> bool) -> Value {
        let deadline = Instant::now() + CONVERGED;
        loop {
            let found = self.call("GET", path, &Value::Null);
            if holds(&found) {
                return found;
            }
            let late = Instant::now() >= deadline;
            assert!(!late, "{path}: never {what}: {found:#}{}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn send(
        &self,
        method: &str,
        path: &str,
        kind: &str,
        body: &str,
    ) -> Result<Value, (u16, String)> {
        let socket = self.dir.path().join("proxy.sock");
        self.proxy.get_or_init(|| {
            let mut command = self.command("kubectl");
            command
                .arg("--kubeconfig")
                .arg(self.admin())
                .arg("proxy")
                .arg(format!("--unix-socket={}", socket.display()));
            self.start_process("proxy", command)
        });
        let deadline = Instant::now() + CONVERGED;
        let (status, said) = loop {
            match http::request(&socket, method, path, kind, body) {
                Ok(answer) => break answer,
                // It has only just been started.
                Err(error) if error.kind() != std::io::ErrorKind::InvalidData => {
                    assert!(Instant::now() < deadline, "{method} {path}: {error}");
                    std::thread::sleep(Duration::from_millis(10));
                }
                Err(error) => panic!("{method} {path}: {error}"),
            }
        };
        match status {
            200..300 => Ok(serde_json::from_str(&said).unwrap_or(json!(said))),
            _ => Err((status, said)),
        }
    }
}

/// Where an object is, by its kind and names.
fn path_of(object: &Value) -> String {
    let name = object["metadata"]["name"].as_str().unwrap();
    let plural = format!("{}s", object["kind"].as_str().unwrap().to_lowercase());
    let group = match object["apiVersion"].as_str().unwrap() {
        "v1" => "/api/v1".to_owned(),
        named => format!("/apis/{named}"),
    };
    match object["metadata"]["namespace"].as_str() {
        Some(namespace) => format!("{group}/namespaces/{namespace}/{plural}/{name}"),
        None => format!("{group}/{plural}/{name}"),
    }
}
