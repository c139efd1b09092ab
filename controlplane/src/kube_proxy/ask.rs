//! Asks kube-proxy of this machine in which mode it runs. Thin I/O.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::Mode;

/// Where it answers, unless it was told another place (kube-proxy's metricsBindAddress).
const AT: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 10_249);
const QUESTION: &[u8] = b"GET /proxyMode HTTP/1.0\r\nHost: localhost\r\n\r\n";
/// Between two questions.
const EVERY: Duration = Duration::from_secs(10);
/// For one answer.
const PATIENCE: Duration = Duration::from_secs(1);
/// The longest answer that is read.
const LONGEST: u64 = 4_096;

/// Asks from now on, as one of `tasks`. What it said last stays: its rules are in the kernel without it too.
pub(crate) fn start(tasks: &mut JoinSet<()>) -> watch::Receiver<Option<Mode>> {
    let (say, said) = watch::channel(None);
    tasks.spawn(async move {
        loop {
            if let Ok(Some(mode)) = timeout(PATIENCE, ask(AT)).await {
                say.send_if_modified(|before| before.replace(mode) != Some(mode));
            }
            tokio::select! {
                () = sleep(EVERY) => {}
                () = say.closed() => return,
            }
        }
    });
    said
}

/// `None` for whoever is no kube-proxy.
async fn ask(at: SocketAddr) -> Option<Mode> {
    let mut stream = TcpStream::connect(at).await.ok()?;
    stream.write_all(QUESTION).await.ok()?;
    let mut answer = Vec::new();
    let mut stream = stream.take(LONGEST);
    stream.read_to_end(&mut answer).await.ok()?;
    read(&answer)
}

fn read(answer: &[u8]) -> Option<Mode> {
    let text = str::from_utf8(answer).ok()?;
    let (head, body) = text.split_once("\r\n\r\n")?;
    let mut status = head.lines().next()?.split(' ');
    let version = status.next()?;
    if !version.starts_with("HTTP/1.") || status.next()? != "200" {
        return None;
    }
    match body.trim() {
        "iptables" | "ipvs" => Some(Mode::Everywhere),
        "nftables" => Some(Mode::OwnAddresses),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_kube_proxys_words_count() {
        let head = "HTTP/1.0 200 OK\r\nContent-Type: text/plain; charset=utf-8\r\n\r\n";
        for (answer, mode) in [
            (format!("{head}nftables"), Some(Mode::OwnAddresses)),
            (format!("{head}iptables\n"), Some(Mode::Everywhere)),
            (format!("{head}ipvs"), Some(Mode::Everywhere)),
            (format!("{head}userspace"), None),
            (format!("{head}<html>nftables"), None),
            ("HTTP/1.1 404 Not Found\r\n\r\nnftables".to_owned(), None),
            ("HTTP/1.1 200 OK\r\nX: nftables".to_owned(), None),
            ("nftables".to_owned(), None),
            (String::new(), None),
        ] {
            assert_eq!(read(answer.as_bytes()), mode, "{answer}");
        }
        assert_eq!(read(b"HTTP/1.0 200 OK\r\n\r\n\xff"), None);
    }

    #[tokio::test]
    async fn it_is_asked_where_it_listens_and_nobody_is_none() {
        let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await;
        let listener = listener.expect("a listener");
        let at = listener.local_addr().expect("its address");
        let server = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.expect("a question");
            let mut question = vec![0; QUESTION.len()];
            stream.read_exact(&mut question).await.expect("a question");
            assert_eq!(question, QUESTION);
            let answer = b"HTTP/1.0 200 OK\r\n\r\nnftables";
            stream.write_all(answer).await.expect("an answer");
        });
        assert_eq!(ask(at).await, Some(Mode::OwnAddresses));
        server.await.expect("the server");
        assert_eq!(ask(at).await, None, "nobody listens there any more");
    }
}
