//! Everything that is not an answer: RFC 9457 problem details with a stable code and a hint.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

/// Why a request got no answer. The variant's name is the `code` in the body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Problem {
    /// No such route.
    NotFound,
    /// The route exists, not with this method.
    MethodNotAllowed,
    /// A write over TCP.
    ReadOnlyListener,
    /// `Host` names neither loopback nor localhost: DNS rebinding.
    HostRefused,
    /// The body is larger than any route takes.
    BodyTooLarge,
    /// The head is larger than any client needs.
    HeadTooLarge,
    /// No deletion is held.
    NothingHeld,
}

#[derive(Serialize)]
struct Body {
    #[serde(rename = "type")]
    kind: &'static str,
    title: &'static str,
    status: u16,
    code: &'static str,
    hint: &'static str,
}

impl Problem {
    /// Status, code, title, hint.
    fn parts(self) -> (StatusCode, &'static str, &'static str, &'static str) {
        match self {
            Problem::NotFound => (
                StatusCode::NOT_FOUND,
                "NotFound",
                "no such resource",
                "see /livez, /readyz?verbose, /metrics, /version, /api/v1/services",
            ),
            Problem::MethodNotAllowed => (
                StatusCode::METHOD_NOT_ALLOWED,
                "MethodNotAllowed",
                "this resource does not know this method",
                "read with GET; the Allow header lists what is possible",
            ),
            Problem::ReadOnlyListener => (
                StatusCode::FORBIDDEN,
                "ReadOnlyListener",
                "the TCP listener only reads",
                "send writes over the UNIX socket (--admin unix:PATH), as a member of its group",
            ),
            Problem::HostRefused => (
                StatusCode::MISDIRECTED_REQUEST,
                "HostRefused",
                "the Host header names no loopback address",
                "dial 127.0.0.1, [::1] or localhost and let the client say so in Host",
            ),
            Problem::BodyTooLarge => (
                StatusCode::PAYLOAD_TOO_LARGE,
                "BodyTooLarge",
                "the body is larger than any resource takes",
                "send no body with this request",
            ),
            Problem::HeadTooLarge => (
                StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
                "HeadTooLarge",
                "target and headers together pass 8 KiB",
                "send fewer or shorter headers",
            ),
            Problem::NothingHeld => (
                StatusCode::CONFLICT,
                "NothingHeld",
                "no deletion is held",
                "nothing to do; /readyz?verbose says when the guard holds one",
            ),
        }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let (status, code, title, hint) = self.parts();
        let body = Body {
            kind: "about:blank",
            title,
            status: status.as_u16(),
            code,
            hint,
        };
        let mut response = (status, axum::Json(body)).into_response();
        response.headers_mut().insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/problem+json"),
        );
        response
    }
}
