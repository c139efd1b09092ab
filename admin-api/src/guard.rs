//! What is refused before any route sees it.

use std::net::{IpAddr, SocketAddr};

use axum::extract::{Request, State};
use axum::http::{HeaderMap, Method, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use crate::error::Problem;

/// Target and headers of a request together, bytes. A scraper's head is below 1 KiB.
const HEAD_LIMIT: usize = 8 * 1024;
/// A request's body, bytes. No route reads one.
const BODY_LIMIT: u64 = 4 * 1024;

/// How the request arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Arrival {
    /// Over the socket file, whose mode is the permission.
    Unix,
    /// Over loopback TCP, where any local process, and a browser, can speak.
    Tcp,
}

pub(crate) async fn guard(
    State(arrival): State<Arrival>,
    request: Request,
    next: Next,
) -> Response {
    match judge(arrival, &request) {
        Ok(()) => next.run(request).await,
        Err(problem) => problem.into_response(),
    }
}

fn judge(arrival: Arrival, request: &Request) -> Result<(), Problem> {
    if head_bytes(request) > HEAD_LIMIT {
        return Err(Problem::HeadTooLarge);
    }
    if has_large_body(request.headers()) {
        return Err(Problem::BodyTooLarge);
    }
    if arrival == Arrival::Tcp {
        if !names_loopback(request.headers()) {
            return Err(Problem::HostRefused);
        }
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            return Err(Problem::ReadOnlyListener);
        }
    }
    Ok(())
}

fn head_bytes(request: &Request) -> usize {
    let target = request
        .uri()
        .path_and_query()
        .map_or(0, |t| t.as_str().len());
    let headers = request.headers().iter();
    target
        + headers
            .map(|(n, v)| n.as_str().len() + v.len() + 4)
            .sum::<usize>()
}

/// A body of unknown length is as large as its sender likes.
fn has_large_body(headers: &HeaderMap) -> bool {
    if headers.contains_key(header::TRANSFER_ENCODING) {
        return true;
    }
    let Some(length) = headers.get(header::CONTENT_LENGTH) else {
        return false;
    };
    let length = length.to_str().ok().and_then(|text| text.parse().ok());
    length.is_none_or(|bytes: u64| bytes > BODY_LIMIT)
}

/// A page of a foreign site can make its own name resolve to 127.0.0.1 and read us through the
/// user's browser; the browser then sends that name.
fn names_loopback(headers: &HeaderMap) -> bool {
    let mut hosts = headers.get_all(header::HOST).iter();
    let (Some(host), None) = (hosts.next(), hosts.next()) else {
        return false;
    };
    host.to_str().is_ok_and(is_loopback_authority)
}

fn is_loopback_authority(host: &str) -> bool {
    if let Ok(address) = host.parse::<SocketAddr>() {
        return address.ip().is_loopback();
    }
    let bare = host.strip_prefix('[').and_then(|h| h.strip_suffix(']'));
    if let Ok(address) = bare.unwrap_or(host).parse::<IpAddr>() {
        return address.is_loopback();
    }
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.parse::<u16>().is_ok() => name,
        Some(_) => return false,
        None => host,
    };
    name.eq_ignore_ascii_case("localhost")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_hosts() {
        for host in [
            "127.0.0.1",
            "127.0.0.1:9",
            "[::1]",
            "[::1]:9",
            "localhost",
            "LOCALHOST:9",
        ] {
            assert!(is_loopback_authority(host), "{host}");
        }
        let foreign = [
            "evil.example",
            "evil.example:9",
            "10.0.0.1",
            "10.0.0.1:9",
            "localhost.evil.example",
            "localhost:evil",
            "",
            "127.0.0.1.evil.example",
            "127.0.0.1:9:9",
            "[::2]:9",
        ];
        for host in foreign {
            assert!(!is_loopback_authority(host), "{host}");
        }
    }
}
