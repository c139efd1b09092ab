//! Asks the API server for a ServiceAccount's token (TokenRequest, authentication.k8s.io/v1).

use http::Method;
use serde_json::json;

use super::token::{Account, Token};
use crate::provider::api::{Refusal, Write, send};
use crate::source::kubernetes::Connection;

/// The API server gives none that is shorter.
const SHORTEST: u64 = 600;

/// Why there is no token.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// There is no such ServiceAccount.
    #[error(
        "there is no ServiceAccount {0}: make it and what it may do by `kubectl apply -f deploy/kubernetes/rbac.yaml`"
    )]
    NoAccount(Account),
    /// We may not ask.
    #[error("forbidden: grant the verb \"create\" on \"serviceaccounts/token\": {0}")]
    Forbidden(String),
    /// Anything else.
    #[error("{0}")]
    Other(String),
}

/// Asks for a token of `account` that is good for so many seconds; the API server may give less.
///
/// # Errors
/// See [`Refused`].
pub async fn issue(
    connection: &Connection,
    account: &Account,
    seconds: u64,
) -> Result<(String, Token), Refused> {
    let path = format!(
        "/api/v1/namespaces/{}/serviceaccounts/{}/token",
        account.namespace, account.name
    );
    let body = json!({
        "apiVersion": "authentication.k8s.io/v1",
        "kind": "TokenRequest",
        "spec": {"expirationSeconds": seconds.max(SHORTEST)},
    });
    let write = Write {
        method: Method::POST,
        path: &path,
        content: "application/json",
        body: &body,
    };
    let answer = send(connection, write).await;
    let answer = answer.map_err(|refusal| match refusal {
        Refusal::NotFound => Refused::NoAccount(account.clone()),
        Refusal::Forbidden(said) => Refused::Forbidden(said),
        Refusal::Conflict(said) | Refusal::Other(said) => Refused::Other(said),
    })?;
    let text = answer["status"]["token"].as_str().unwrap_or_default();
    match Token::read(text) {
        Some(token) if token.account == *account => Ok((text.to_owned(), token)),
        _ => Err(Refused::Other(format!(
            "what the API server answered holds no token of {account}"
        ))),
    }
}
