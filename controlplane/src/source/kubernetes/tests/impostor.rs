//! S11: what stands at the API server's address is not the API server, or sends elsewhere. The token is
//! told to nobody else, and never in clear.

use super::*;

/// A source that would tell its token to whatever `server` is, until it says `said`.
#[track_caller]
fn refused(server: &Server, said: &str) -> Harness {
    let directory = tempfile::tempdir().expect("temp");
    let mut harness = Harness::with(server, times(), &[], "token: secret", directory);
    harness.until(said, |now| {
        now.problems().iter().any(|text| text.contains(said))
    });
    // And it stays so.
    harness.hear(Duration::from_secs(1));
    assert!(!harness.cluster.complete());
    harness
}

#[test]
fn s11_who_has_no_certificate_of_the_authority_is_asked_nothing() {
    let mut impostor = Server::start_tls();
    impostor.authority = Server::start_tls().authority.clone();
    impostor.put(service("shop", "web", 80));
    let _harness = refused(&impostor, "certificate");
    assert!(impostor.asked().is_empty(), "{:?}", impostor.asked());
}

#[test]
fn s11_who_speaks_in_clear_where_tls_is_due_is_asked_nothing() {
    let mut clear = Server::start();
    clear.authority = Server::start_tls().authority.clone();
    clear.put(service("shop", "web", 80));
    let _harness = refused(&clear, "did not say");
    assert!(clear.asked().is_empty(), "{:?}", clear.asked());
}

#[test]
fn s11_nobody_is_asked_whom_a_redirect_names() {
    let elsewhere = Server::start();
    elsewhere.put(service("shop", "stolen", 80));
    let server = Server::start_tls();
    let to = format!("Location: http://{}/api/v1/services\r\n", elsewhere.address);
    for verb in ["list", "stream", "watch"] {
        for plural in ["/services", "/endpointslices"] {
            server.always(verb, plural, Fault::Redirect(to.clone()));
        }
    }
    let _harness = refused(&server, "302");
    assert!(!server.asked().is_empty());
    assert!(elsewhere.asked().is_empty(), "{:?}", elsewhere.asked());
}
