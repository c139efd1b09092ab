//! A kubeconfig's text (PURE).

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::Value;

/// The API server, as a kubeconfig names it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServerOf {
    /// Its URL.
    pub url: String,
    /// PEM of the authority of its certificate; `None`: the system's.
    pub authority: Option<String>,
    /// The name in its certificate, if that is another than the URL's.
    pub tls_server_name: Option<String>,
    /// The proxy on the way to it.
    pub proxy: Option<String>,
}

/// A kubeconfig for `token`; `note` goes above it, a comment.
pub fn document(server: &ServerOf, token: &str, note: &str) -> String {
    // JSON's strings are YAML's.
    let quoted = |text: &str| Value::from(text).to_string();
    let mut text = String::new();
    for line in note.lines() {
        text.push_str(&format!("# {line}\n"));
    }
    text.push_str("apiVersion: v1\nkind: Config\nclusters:\n- name: cluster\n  cluster:\n");
    let mut cluster = |key: &str, value: Option<&str>| {
        if let Some(value) = value {
            text.push_str(&format!("    {key}: {}\n", quoted(value)));
        }
    };
    cluster("server", Some(&server.url));
    let authority = server.authority.as_deref();
    let authority = authority.map(|pem| BASE64_STANDARD.encode(pem));
    cluster("certificate-authority-data", authority.as_deref());
    cluster("tls-server-name", server.tls_server_name.as_deref());
    cluster("proxy-url", server.proxy.as_deref());
    text.push_str(&format!(
        "users:\n- name: weir\n  user:\n    token: {}\n\
         contexts:\n- name: weir\n  context:\n    cluster: cluster\n    user: weir\n\
         current-context: weir\n",
        quoted(token)
    ));
    text
}

#[cfg(test)]
mod tests {
    use kube::config::Kubeconfig;

    use super::*;

    #[test]
    fn a_document_is_a_kubeconfig() {
        let server = ServerOf {
            url: "https://192.0.2.1:6443".to_owned(),
            authority: Some("PEM \"x\"\n".to_owned()),
            tls_server_name: Some("kubernetes".to_owned()),
            proxy: Some("http://192.0.2.2:3128".to_owned()),
        };
        let text = document(&server, "a.b.c", "one\ntwo");
        assert!(text.starts_with("# one\n# two\napiVersion"), "{text}");
        let read = Kubeconfig::from_yaml(&text).expect("it is one");
        assert_eq!(read.current_context.as_deref(), Some("weir"));
        let cluster = read.clusters[0].cluster.clone().expect("a cluster");
        assert_eq!(cluster.server.as_deref(), Some("https://192.0.2.1:6443"));
        assert_eq!(cluster.tls_server_name.as_deref(), Some("kubernetes"));
        assert_eq!(cluster.proxy_url.as_deref(), Some("http://192.0.2.2:3128"));
        let authority = cluster.certificate_authority_data.expect("PEM");
        let authority = BASE64_STANDARD.decode(authority).expect("base64");
        assert_eq!(authority, b"PEM \"x\"\n");
        let bare = ServerOf {
            url: "https://192.0.2.1".to_owned(),
            ..ServerOf::default()
        };
        let text = document(&bare, "a.b.c", "");
        assert!(
            !text.contains("authority") && !text.contains("proxy"),
            "{text}"
        );
        Kubeconfig::from_yaml(&text).expect("it is one");
    }
}
