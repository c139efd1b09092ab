//! How the API server is reached and who we are there: a kubeconfig, or what a pod finds. Judged
//! here, so that no credential leaves in clear and no proxy is used that nobody named.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use kube::Config;
use kube::config::{AuthInfo, Cluster, ExecAuthCluster, Kubeconfig};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use secrecy::ExposeSecret;
use sha2::{Digest, Sha256};

use crate::credential::ServerOf;

/// No kubeconfig, token or certificate is larger.
const MAX_BYTES: u64 = 1 << 20;
/// Where a pod finds its token and the authority of the API server's certificate.
const IN_CLUSTER: [&str; 2] = [
    "/var/run/secrets/kubernetes.io/serviceaccount/token",
    "/var/run/secrets/kubernetes.io/serviceaccount/ca.crt",
];
/// Set by the kubelet in every pod.
pub const IN_CLUSTER_VARIABLE: &str = "KUBERNETES_SERVICE_HOST";

/// How the API server is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Access {
    /// As this file says; its current context.
    Kubeconfig(PathBuf),
    /// As this file says, in the context of this name.
    Context(PathBuf, String),
    /// As a pod: its service account.
    InCluster,
}

/// Why the API server cannot even be tried.
#[derive(Debug, thiserror::Error)]
pub enum AccessError {
    /// There is no such file, or it cannot be read.
    #[error("{} cannot be read: {source}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is no kubeconfig.
    #[error("{} is larger than {MAX_BYTES} bytes: no kubeconfig is", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
    },
    /// Something in it, or that it names, is wrong.
    #[error("{}: {problem}", path.display())]
    Kubeconfig {
        /// The file.
        path: PathBuf,
        /// What.
        problem: String,
    },
    /// A pod's files or variables are missing.
    #[error(
        "this is no pod with a service account: {0}; give a kubeconfig (--kubeconfig FILE), or mount the token (automountServiceAccountToken)"
    )]
    InCluster(String),
    /// Credentials, or traffic over a network, in clear.
    #[error(
        "the server {server} is spoken to in clear: Weir does that on loopback and without credentials alone; write https:// and name its certificate-authority"
    )]
    Cleartext {
        /// Its address.
        server: String,
    },
}

/// What was loaded.
pub(super) struct Loaded {
    /// For the client.
    pub config: Config,
    /// What it was made of, to see when that changes.
    pub files: Files,
}

/// Files, and what was in them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Files {
    paths: Vec<PathBuf>,
    digests: Vec<Option<[u8; 32]>>,
}

impl Files {
    fn new(paths: Vec<PathBuf>) -> Files {
        let digests = paths.iter().map(|path| digest(path)).collect();
        Files { paths, digests }
    }

    /// Does any of them hold something else now? Blocks.
    pub(super) fn changed(&self) -> bool {
        self.paths
            .iter()
            .map(|path| digest(path))
            .ne(self.digests.iter().copied())
    }
}

/// `None` if it cannot be read.
fn digest(path: &Path) -> Option<[u8; 32]> {
    Some(Sha256::digest(read(path).ok()?).into())
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    if fs::metadata(path)?.len() > MAX_BYTES {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    fs::read(path)
}

impl Access {
    /// The API server's address, if there is enough to try it. Reads files, and runs no plugin.
    ///
    /// # Errors
    /// What is missing or wrong.
    pub fn check(&self) -> Result<String, AccessError> {
        Ok(self.load()?.config.cluster_url.to_string())
    }

    /// The API server, as another kubeconfig can name it. Reads files.
    ///
    /// # Errors
    /// What is missing or wrong; a server whose certificate is not looked at.
    pub fn server(&self) -> Result<ServerOf, String> {
        let config = self.load().map_err(|error| error.to_string())?.config;
        if config.accept_invalid_certs {
            return Err("the kubeconfig says insecure-skip-tls-verify: an appliance's token would go to whoever answers; name the certificate-authority".to_owned());
        }
        let authority = config.root_cert.map(|all| {
            let pem = all.iter().map(|der| {
                let text = BASE64_STANDARD.encode(der);
                let lines: Vec<&str> = text
                    .as_bytes()
                    .chunks(64)
                    .filter_map(|line| std::str::from_utf8(line).ok())
                    .collect();
                format!(
                    "-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n",
                    lines.join("\n")
                )
            });
            pem.collect::<String>()
        });
        Ok(ServerOf {
            url: config.cluster_url.to_string(),
            authority,
            tls_server_name: config.tls_server_name,
            proxy: config.proxy_url.map(|proxy| proxy.to_string()),
        })
    }

    /// Reads everything anew. Blocks.
    pub(super) fn load(&self) -> Result<Loaded, AccessError> {
        let loaded = match self {
            Access::Kubeconfig(path) => kubeconfig(path, None)?,
            Access::Context(path, name) => kubeconfig(path, Some(name))?,
            Access::InCluster => in_cluster()?,
        };
        let Config {
            cluster_url,
            auth_info,
            ..
        } = &loaded.config;
        let is_local = matches!(cluster_url.host(), Some("localhost"))
            || cluster_url.host().is_some_and(is_loopback);
        let is_tls = cluster_url.scheme_str() == Some("https");
        if !is_tls && (!is_local || has_credentials(auth_info)) {
            let server = cluster_url.to_string();
            return Err(AccessError::Cleartext { server });
        }
        Ok(loaded)
    }
}

fn is_loopback(host: &str) -> bool {
    let address = host.trim_start_matches('[').trim_end_matches(']');
    address
        .parse::<std::net::IpAddr>()
        .is_ok_and(|address| address.is_loopback())
}

fn has_credentials(user: &AuthInfo) -> bool {
    user.username.is_some()
        || user.password.is_some()
        || user.token.is_some()
        || user.token_file.is_some()
        || user.client_certificate.is_some()
        || user.client_certificate_data.is_some()
        || user.client_key.is_some()
        || user.client_key_data.is_some()
        || user.auth_provider.is_some()
        || user.exec.is_some()
}

fn in_cluster() -> Result<Loaded, AccessError> {
    let config = Config::incluster_env();
    let mut config = config.map_err(|error| AccessError::InCluster(chain(&error)))?;
    config.proxy_url = None;
    let files = Files::new(IN_CLUSTER.map(PathBuf::from).to_vec());
    Ok(Loaded { config, files })
}

/// The token that stands in this kubeconfig for its current context, if one does. Blocks.
///
/// # Errors
/// What is wrong with the file.
pub(crate) fn current_token(path: &Path) -> Result<Option<String>, AccessError> {
    let current = current(path, None)?;
    Ok(current
        .user
        .token
        .map(|token| token.expose_secret().to_owned()))
}

fn kubeconfig(path: &Path, context: Option<&str>) -> Result<Loaded, AccessError> {
    let current = current(path, context)?;
    let mut files = vec![path.to_owned()];
    let user = &current.user;
    let named = [
        &current.cluster.certificate_authority,
        &user.token_file,
        &user.client_certificate,
        &user.client_key,
    ];
    files.extend(named.into_iter().flatten().map(PathBuf::from));
    let config = current
        .config()
        .map_err(|problem| AccessError::Kubeconfig {
            path: path.to_owned(),
            problem,
        })?;
    Ok(Loaded {
        config,
        files: Files::new(files),
    })
}

fn current(path: &Path, context: Option<&str>) -> Result<Current, AccessError> {
    let unreadable = |source| AccessError::Unreadable {
        path: path.to_owned(),
        source,
    };
    if fs::metadata(path).map_err(unreadable)?.len() > MAX_BYTES {
        let path = path.to_owned();
        return Err(AccessError::TooLarge { path });
    }
    let wrong = |problem: String| AccessError::Kubeconfig {
        path: path.to_owned(),
        problem,
    };
    let kubeconfig = Kubeconfig::read_from(path).map_err(|error| wrong(chain(&error)))?;
    Current::of(kubeconfig, context).map_err(wrong)
}

/// What a kubeconfig's current context names. Put together here and not by kube, which would ask
/// the environment for proxies.
struct Current {
    cluster: Cluster,
    user: AuthInfo,
    namespace: Option<String>,
}

impl Current {
    fn of(kubeconfig: Kubeconfig, context: Option<&str>) -> Result<Current, String> {
        let missing = |what: &str, name: &str| format!("it has no {what} named {name:?}");
        let name = context.map(str::to_owned).or(kubeconfig.current_context);
        let name = name.ok_or("it has no current-context; name one of its contexts")?;
        let mut contexts = kubeconfig.contexts.into_iter();
        let context = contexts
            .find(|context| context.name == name)
            .and_then(|named| named.context)
            .ok_or_else(|| missing("context", &name))?;
        let mut clusters = kubeconfig.clusters.into_iter();
        let cluster = clusters
            .find(|cluster| cluster.name == context.cluster)
            .and_then(|named| named.cluster)
            .ok_or_else(|| missing("cluster", &context.cluster))?;
        let user = match context.user.filter(|user| !user.is_empty()) {
            None => AuthInfo::default(),
            Some(name) => {
                let mut users = kubeconfig.auth_infos.into_iter();
                let user = users.find(|user| user.name == name);
                user.map(|named| named.auth_info.unwrap_or_default())
                    .ok_or_else(|| missing("user", &name))?
            }
        };
        Ok(Current {
            cluster,
            user,
            namespace: context.namespace,
        })
    }

    fn config(self) -> Result<Config, String> {
        let Current {
            cluster,
            mut user,
            namespace,
        } = self;
        let server = cluster.server.as_deref().unwrap_or_default();
        let server = server
            .parse()
            .map_err(|error| format!("server {server:?}: {error}"))?;
        let with_authority = ExecAuthCluster::try_from(&cluster).map_err(|error| chain(&error))?;
        let authority = with_authority.certificate_authority_data.as_deref();
        let authority = authority.map(certificates).transpose()?;
        if let Some(exec) = &mut user.exec
            && exec.provide_cluster_info
        {
            exec.cluster = Some(with_authority);
        }
        let proxy = cluster.proxy_url.filter(|proxy| !proxy.is_empty());
        let proxy = proxy.map(|proxy| {
            let parsed = proxy.parse::<http::Uri>();
            parsed.map_err(|error| format!("proxy-url {proxy:?}: {error}"))
        });
        let mut config = Config::new(server);
        config.root_cert = authority;
        config.accept_invalid_certs = cluster.insecure_skip_tls_verify.unwrap_or(false);
        config.auth_info = user;
        config.default_namespace = namespace.unwrap_or_else(|| "default".to_owned());
        config.proxy_url = proxy.transpose()?;
        config.tls_server_name = cluster.tls_server_name;
        Ok(config)
    }
}

/// The certificates of a PEM file.
fn certificates(pem: &[u8]) -> Result<Vec<Vec<u8>>, String> {
    let certificates = CertificateDer::pem_slice_iter(pem);
    let certificates: Result<Vec<_>, _> = certificates
        .map(|certificate| certificate.map(|der| der.to_vec()))
        .collect();
    match certificates {
        Ok(certificates) if certificates.is_empty() => {
            Err("certificate-authority holds no certificate".to_owned())
        }
        Ok(certificates) => Ok(certificates),
        Err(error) => Err(format!("certificate-authority: {error}")),
    }
}

/// An error and its causes, on one line; what a cause repeats is left out.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    super::failure::said(&text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str) -> Result<String, String> {
        let directory = tempfile::tempdir().expect("temp");
        let path = directory.path().join("config");
        fs::write(&path, text).expect("write");
        let access = Access::Kubeconfig(path);
        access.check().map_err(|error| error.to_string())
    }

    fn config(cluster: &str, user: &str) -> String {
        format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: c\n\
             contexts: [{{name: c, context: {{cluster: k, user: u}}}}]\n\
             clusters: [{{name: k, cluster: {{{cluster}}}}}]\n\
             users: [{{name: u, user: {{{user}}}}}]\n"
        )
    }

    #[test]
    fn nothing_goes_in_clear_over_a_network_and_no_credential_ever() {
        for (server, user, good) in [
            ("https://192.0.2.1:6443", "token: t", true),
            ("http://127.0.0.1:8001", "", true),
            ("http://[::1]:8001", "", true),
            ("http://localhost:8001", "", true),
            ("http://192.0.2.1:8001", "", false),
            ("http://127.0.0.1:8001", "token: t", false),
            ("http://127.0.0.1:8001", "tokenFile: /t", false),
            ("http://127.0.0.1:8001", "username: u, password: p", false),
            ("http://127.0.0.1:8001", "exec: {command: x}", false),
            ("http://127.0.0.1.example.com", "", false),
        ] {
            let checked = check(&config(&format!("server: \"{server}\""), user));
            assert_eq!(checked.is_ok(), good, "{server} {user}: {checked:?}");
            if !good {
                let said = checked.expect_err("in clear");
                assert!(
                    said.contains("in clear") && said.contains("https://"),
                    "{said}"
                );
            }
        }
    }

    #[test]
    fn what_is_wrong_with_a_kubeconfig_is_said() {
        let missing = Access::Kubeconfig("/does/not/exist".into()).check();
        let missing = missing.expect_err("missing").to_string();
        assert!(
            missing.contains("/does/not/exist cannot be read"),
            "{missing}"
        );
        for text in ["", "clusters: [", "current-context: none\nclusters: []\n"] {
            let said = check(text).expect_err(text);
            assert_eq!(said.lines().count(), 1, "{said}");
        }
        let said = check(&config(
            "server: \"https://192.0.2.1\", certificate-authority: /no/ca",
            "",
        ));
        assert!(said.expect_err("no CA").contains("/no/ca"));
    }

    #[test]
    fn a_proxy_is_the_kubeconfigs_or_none() {
        let directory = tempfile::tempdir().expect("temp");
        let path = directory.path().join("config");
        let proxy = |cluster: &str| {
            fs::write(&path, config(cluster, "")).expect("write");
            let loaded = Access::Kubeconfig(path.clone()).load().expect("loads");
            loaded.config.proxy_url.map(|proxy| proxy.to_string())
        };
        assert_eq!(proxy("server: \"https://192.0.2.1\""), None);
        let named = proxy("server: \"https://192.0.2.1\", proxy-url: \"http://192.0.2.2:3128\"");
        assert_eq!(named.as_deref(), Some("http://192.0.2.2:3128/"));
    }

    #[test]
    fn what_is_read_is_looked_at() {
        let directory = tempfile::tempdir().expect("temp");
        let (path, token) = (
            directory.path().join("config"),
            directory.path().join("token"),
        );
        // Relative to the kubeconfig.
        fs::write(
            &path,
            config("server: \"https://192.0.2.1\"", "tokenFile: token"),
        )
        .expect("write");
        fs::write(&token, "one").expect("write");
        let files = Access::Kubeconfig(path).load().expect("loads").files;
        assert!(!files.changed());
        fs::write(&token, "two").expect("write");
        assert!(files.changed());
    }
}
