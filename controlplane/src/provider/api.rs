//! Writing to the API server: one request, one answer, every wait with an end and every answer with a
//! bound. Thin I/O.

use std::time::Duration;

use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Limited};
use kube::client::Body;
use serde_json::Value;
use tokio::time::{Instant, timeout};

use crate::source::kubernetes::Connection;

/// For one write, answer included.
const PATIENCE: Duration = Duration::from_secs(10);
/// The largest answer that is read: etcd keeps no object past 1.5 MiB.
const ANSWER: usize = 2 << 20;

/// Why something was not written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    /// It is not there.
    #[error("it is gone")]
    NotFound,
    /// It is another one by now, or somebody was faster.
    #[error("it changed meanwhile: {0}")]
    Conflict(String),
    /// RBAC. The server says which verb on what.
    #[error("{0}; apply deploy/kubernetes/rbac.yaml")]
    Forbidden(String),
    /// Anything else.
    #[error("{0}")]
    Other(String),
}

/// One write.
pub(crate) struct Write<'a> {
    pub(crate) method: Method,
    pub(crate) path: &'a str,
    pub(crate) content: &'static str,
    pub(crate) body: &'a Value,
}

/// Sends it, and returns the object as it is then.
///
/// # Errors
/// See [`Refusal`].
pub(crate) async fn send(connection: &Connection, write: Write<'_>) -> Result<Value, Refusal> {
    let lease = connection.client().await;
    let lease = lease.map_err(|failure| Refusal::Other(failure.to_string()))?;
    let request = Request::builder()
        .method(write.method)
        .uri(write.path)
        .header(header::ACCEPT, "application/json");
    // A read has no body to be of a type.
    let request = match write.body {
        Value::Null => request.body(Body::empty()),
        body => request
            .header(header::CONTENT_TYPE, write.content)
            .body(Body::from(body.to_string().into_bytes())),
    };
    let request = request.map_err(|error| Refusal::Other(error.to_string()))?;
    let begun = Instant::now();
    let answered = timeout(PATIENCE, async {
        let response = lease.client.send(request).await;
        let (parts, body) = response.map_err(|e| e.to_string())?.into_parts();
        lease.pace.answered(begun.elapsed());
        let body = Limited::new(body, ANSWER).collect().await;
        let body = body.map_err(|error| error.to_string())?;
        Ok::<_, String>((parts.status, body.to_bytes()))
    });
    let (status, body) = match answered.await {
        Err(_) => {
            lease.pace.answered(PATIENCE);
            Err(format!("no answer in {}s", PATIENCE.as_secs()))
        }
        Ok(answered) => answered,
    }
    .map_err(Refusal::Other)?;
    if status == StatusCode::UNAUTHORIZED {
        connection.give_up(lease.number);
    }
    let value: Option<Value> = serde_json::from_slice(&body).ok();
    judge(status, value)
}

fn judge(status: StatusCode, value: Option<Value>) -> Result<Value, Refusal> {
    if status.is_success() {
        return value.ok_or_else(|| Refusal::Other("its answer is no JSON".to_owned()));
    }
    let message = value
        .as_ref()
        .and_then(|value| value.get("message")?.as_str())
        .map_or_else(String::new, |message| message.chars().take(512).collect());
    Err(match status {
        StatusCode::NOT_FOUND => Refusal::NotFound,
        StatusCode::CONFLICT => Refusal::Conflict(message),
        StatusCode::FORBIDDEN => Refusal::Forbidden(message),
        status => Refusal::Other(format!("status {}: {message}", status.as_u16())),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn every_answer_has_its_meaning() {
        let says = |message: &str| Some(json!({ "kind": "Status", "message": message }));
        let of = |status: u16, value| judge(StatusCode::from_u16(status).expect("a status"), value);
        assert_eq!(of(200, Some(json!({}))), Ok(json!({})));
        assert!(matches!(of(200, None), Err(Refusal::Other(_))));
        assert_eq!(of(404, says("x")), Err(Refusal::NotFound));
        assert_eq!(of(409, says("x")), Err(Refusal::Conflict("x".into())));
        let forbidden = of(403, says("cannot patch services/status")).expect_err("refused");
        assert!(
            forbidden
                .to_string()
                .contains("cannot patch services/status")
        );
        assert!(matches!(of(500, None), Err(Refusal::Other(text)) if text == "status 500: "));
        let long = of(500, says(&"x".repeat(100_000))).expect_err("refused");
        assert!(long.to_string().len() < 600);
    }
}
