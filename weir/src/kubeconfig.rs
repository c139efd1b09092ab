//! `weir kubeconfig`: writes what an appliance outside the cluster runs by, with credentials that may
//! do so, once.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use controlplane::credential::{Account, create, document, issue};
use controlplane::source::kubernetes::{Access, Connection};

use crate::cli::KubeconfigArgs;
use crate::exit::Usage;

/// Asks for a token of the appliance's ServiceAccount, and writes it down.
pub fn run(args: &KubeconfigArgs) -> anyhow::Result<ExitCode> {
    let from = from(args.kubeconfig.clone())?;
    // Before a token is made that nobody would get.
    if args.output.symlink_metadata().is_ok() && !args.force {
        return Err(Usage(format!(
            "{} is there already; give --force to replace it, or another --output",
            args.output.display()
        ))
        .into());
    }
    let access = match &args.context {
        None => Access::Kubeconfig(from),
        Some(name) => Access::Context(from, name.clone()),
    };
    let mut server = access.server().map_err(Usage)?;
    if let Some(url) = &args.server {
        server.url.clone_from(url);
    }
    let account = Account {
        namespace: args.namespace.as_str().into(),
        name: args.service_account.as_str().into(),
    };
    let connection = Connection::start(access).map_err(|error| Usage(error.to_string()))?;
    let runtime = connection.handle().clone();
    let issued = runtime.block_on(issue(&connection, &account, args.expires_in.0.as_secs()));
    let (text, token) = issued.with_context(|| format!("no token of {account}"))?;
    let until = until(token.expires);
    let note = format!(
        "Weir's own: ServiceAccount {account}. The token is good until {until};\n\
         `weir serve` renews it in this file, which it must be able to write, and so its directory."
    );
    create(&args.output, &document(&server, &text, &note), args.force)
        .with_context(|| format!("cannot write {}", args.output.display()))?;
    println!(
        "{} written: ServiceAccount {account} at {}, good until {until}",
        args.output.display(),
        server.url
    );
    if is_loopback(&server.url) {
        println!(
            "its server is this machine's own loopback: on another machine give --server https://ADDRESS:6443"
        );
    }
    println!(
        "next: weir serve --kubeconfig {} --pool ADDRESSES",
        args.output.display()
    );
    Ok(ExitCode::SUCCESS)
}

/// Where the credentials are that may ask: as kubectl has it.
fn from(given: Option<PathBuf>) -> Result<PathBuf, Usage> {
    if let Some(path) = given {
        return Ok(path);
    }
    if let Some(variable) = std::env::var_os("KUBECONFIG").filter(|text| !text.is_empty()) {
        let mut paths = std::env::split_paths(&variable);
        return match (paths.next(), paths.next()) {
            (Some(path), None) => Ok(path),
            _ => Err(Usage(
                "KUBECONFIG names several files; name one by --kubeconfig FILE".to_owned(),
            )),
        };
    }
    let home = std::env::var_os("HOME").unwrap_or_default();
    let path = Path::new(&home).join(".kube/config");
    match path.is_file() {
        true => Ok(path),
        false => Err(Usage(format!(
            "no credentials to ask with: there is no {}; name a kubeconfig by --kubeconfig FILE (k3s: /etc/rancher/k3s/k3s.yaml, kubeadm: /etc/kubernetes/admin.conf)",
            path.display()
        ))),
    }
}

fn is_loopback(url: &str) -> bool {
    let host = url.split("://").nth(1).unwrap_or_default();
    ["127.", "localhost", "[::1]"]
        .iter()
        .any(|local| host.starts_with(local))
}

fn until(seconds: u64) -> String {
    let seconds = i64::try_from(seconds).unwrap_or(i64::MAX);
    jiff::Timestamp::from_second(seconds).map_or_else(|_| "ever".to_owned(), |at| at.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_that_only_this_machine_reaches_is_seen() {
        for (url, local) in [
            ("https://127.0.0.1:6443", true),
            ("https://localhost:6443/", true),
            ("https://[::1]:6443", true),
            ("https://192.0.2.1:6443", false),
            ("https://k8s.example.com", false),
        ] {
            assert_eq!(is_loopback(url), local, "{url}");
        }
    }
}
