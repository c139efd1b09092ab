//! `weir release`: leaves a cluster, with nothing but its API server.

use std::process::ExitCode;
use std::sync::Arc;

use controlplane::provider::{Which, release};
use controlplane::source::kubernetes::{Access, Connection};

use crate::cli::ReleaseArgs;
use crate::exit::{NEGATIVE, Usage};

/// Takes our finalizers, status and conditions off Services, and says what became of each.
pub fn run(args: &ReleaseArgs) -> anyhow::Result<ExitCode> {
    let which = match (&args.service, args.all) {
        (Some(name), false) => one(name)?,
        (None, true) => Which::All,
        (Some(_), true) | (None, false) => {
            let text = "name one Service as NAMESPACE/NAME, or give --all";
            return Err(Usage(text.to_owned()).into());
        }
    };
    let access = match &args.kubeconfig {
        Some(file) => Access::Kubeconfig(file.clone()),
        None => Access::InCluster,
    };
    let connection = Connection::start(access).map_err(|error| Usage(error.to_string()))?;
    let runtime = connection.handle().clone();
    let released = runtime.block_on(release(&connection, &which))?;
    let mut code = ExitCode::SUCCESS;
    for service in &released {
        match &service.problem {
            None => println!("service/{} released", service.key),
            Some(problem) => {
                eprintln!("weir: service/{} not released: {problem}", service.key);
                code = ExitCode::from(NEGATIVE);
            }
        }
    }
    if released.is_empty() {
        println!(
            "nothing to release: no such Service carries the finalizer weir.dev/load-balancer"
        );
    }
    Ok(code)
}

fn one(text: &str) -> Result<Which, Usage> {
    let named = text.split_once('/');
    let named = named.filter(|(namespace, name)| is_name(namespace) && is_name(name));
    let (namespace, name) = named.ok_or_else(|| {
        Usage(format!(
            "{text:?} names no Service; write NAMESPACE/NAME, for example shop/web"
        ))
    })?;
    Ok(Which::One {
        namespace: Arc::from(namespace),
        name: Arc::from(name),
    })
}

/// It becomes a part of a path.
fn is_name(text: &str) -> bool {
    let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '.';
    !text.is_empty()
        && text.len() <= 253
        && text.chars().all(fits)
        && text.chars().any(|c| c != '.')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_is_named_by_two_names() {
        let web = Which::One {
            namespace: "shop".into(),
            name: "web".into(),
        };
        assert_eq!(one("shop/web").expect("a name"), web);
        for bad in [
            "web", "a/b/c", "/web", "shop/", "..", "../x", "a/..", "a b/c", "a/B", "a/b?x",
        ] {
            let error = one(bad).expect_err(bad);
            assert!(error.to_string().contains("NAMESPACE/NAME"), "{error}");
        }
    }
}
