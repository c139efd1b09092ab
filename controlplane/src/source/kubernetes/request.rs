//! One request and its answer, every wait with an end: thin I/O.

use std::sync::Arc;
use std::time::Duration;

use http::{Request, StatusCode, header};
use http_body_util::BodyExt;
use kube::client::Body;
use tokio::time::{Instant, timeout_at};

use super::access::chain;
use super::connection::Lease;
use super::failure::{Asked, Failure, message_of};

/// What is read of a refusal.
const MAX_MESSAGE: usize = 16 << 10;

/// How long to wait for what.
#[derive(Clone, Copy, Debug)]
pub(super) struct Patience {
    /// Until the answer begins.
    pub begin: Duration,
    /// Without a byte.
    pub idle: Duration,
    /// For all of it.
    pub whole: Duration,
}

/// An answer that is coming in.
#[derive(Debug)]
pub(super) struct Answer {
    body: Body,
    server: Arc<str>,
    idle: Duration,
    begun: Instant,
    end: Instant,
}

/// Sends a GET for `path` and waits until its answer begins.
///
/// # Errors
/// No answer in time, or one that is no success.
pub(super) async fn get(
    lease: &Lease,
    path: &str,
    asked: &Asked,
    patience: Patience,
) -> Result<Answer, Failure> {
    let begun = Instant::now();
    let request = Request::get(path)
        .header(header::ACCEPT, "application/json")
        .body(Body::empty())
        .map_err(|error| Failure::Unconfigured {
            problem: error.to_string(),
        })?;
    let sent = timeout_at(begun + patience.begin, lease.client.send(request)).await;
    let response = match sent {
        Err(_) => {
            lease.pace.answered(patience.begin);
            return Err(silent(patience.begin));
        }
        Ok(Err(error)) => return Err(unsent(&lease.server, &error)),
        Ok(Ok(response)) => response,
    };
    lease.pace.answered(begun.elapsed());
    let (parts, body) = response.into_parts();
    let mut answer = Answer {
        body,
        server: Arc::clone(&lease.server),
        idle: patience.idle,
        begun,
        end: begun + patience.whole,
    };
    if parts.status.is_client_error() || parts.status.is_server_error() {
        let body = answer.beginning().await;
        return Err(Failure::of_status(
            parts.status.as_u16(),
            &message_of(&body),
            asked,
        ));
    }
    if parts.status != StatusCode::OK {
        return Err(garbage(format!(
            "it answers with status {}",
            parts.status.as_u16()
        )));
    }
    // Never asked for: what comes packed is not unpacked, however small it looks.
    if let Some(packed) = parts.headers.get(header::CONTENT_ENCODING)
        && packed != "identity"
    {
        return Err(garbage(
            "its answer is compressed, which was not asked for".to_owned(),
        ));
    }
    Ok(answer)
}

impl Answer {
    /// The next bytes; `None` at the end.
    ///
    /// # Errors
    /// The connection broke, fell silent, or the answer takes too long.
    pub(super) async fn next(&mut self) -> Result<Option<bytes::Bytes>, Failure> {
        loop {
            let latest = (Instant::now() + self.idle).min(self.end);
            let waited = latest.saturating_duration_since(self.begun).min(self.idle);
            let frame = match timeout_at(latest, self.body.frame()).await {
                Err(_) => return Err(silent(waited)),
                Ok(None) => return Ok(None),
                Ok(Some(Err(error))) => {
                    return Err(unreachable(&self.server, &error));
                }
                Ok(Some(Ok(frame))) => frame,
            };
            // Trailers say nothing that matters.
            if let Ok(bytes) = frame.into_data()
                && !bytes.is_empty()
            {
                return Ok(Some(bytes));
            }
        }
    }

    /// The first of a refusal's words, if they come.
    async fn beginning(&mut self) -> Vec<u8> {
        let mut text = Vec::new();
        while let Ok(Some(bytes)) = self.next().await {
            let room = MAX_MESSAGE - text.len();
            text.extend_from_slice(&bytes[..bytes.len().min(room)]);
            if text.len() == MAX_MESSAGE {
                break;
            }
        }
        text
    }
}

fn silent(after: Duration) -> Failure {
    Failure::Silent { after }
}

fn garbage(problem: String) -> Failure {
    Failure::Garbage { problem }
}

fn unsent(server: &Arc<str>, error: &kube::Error) -> Failure {
    match error {
        kube::Error::Auth(_) => Failure::Unconfigured {
            problem: chain(error),
        },
        _ => unreachable(server, error),
    }
}

fn unreachable(server: &Arc<str>, error: &kube::Error) -> Failure {
    // The client's own word for all of them says nothing.
    let problem = chain(error).replace("ServiceError: ", "");
    let server = Arc::clone(server);
    Failure::Unreachable { server, problem }
}
