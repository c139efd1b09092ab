//! The questions themselves: a task of the control task's runtime.

use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::panic::resume_unwind;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{sleep_until, timeout};

use super::answer::{self, MAX_HEAD};
use super::checks::{Checks, Question};
use super::{Answer, Ask, Limits, Target, Verdicts, Wanted};
use crate::measure;

/// Of an endpoint's response so much is read behind its status, and for so long: a server whose answer is
/// cut short logs that, every few seconds.
const MAX_REST: u64 = 16_384;
const REST: Duration = Duration::from_millis(250);

/// The way to the task that asks.
#[derive(Debug)]
pub(crate) struct Prober {
    wanted: watch::Sender<Wanted>,
    verdicts: watch::Receiver<Arc<Verdicts>>,
}

impl Prober {
    /// Asks these from now on, and nothing else.
    pub(crate) fn want(&self, wanted: Wanted) {
        self.wanted.send_if_modified(|before| {
            let is_news = *before != wanted;
            *before = wanted;
            is_news
        });
    }

    /// What is new, when something is.
    pub(crate) async fn news(&mut self) -> Arc<Verdicts> {
        if self.verdicts.changed().await.is_err() {
            // Its end is told elsewhere.
            std::future::pending::<()>().await;
        }
        Arc::clone(&self.verdicts.borrow_and_update())
    }
}

/// Starts to ask, as one of `tasks`.
pub(crate) fn start(tasks: &mut JoinSet<()>, limits: Limits) -> Prober {
    let (wanted, wants) = watch::channel(Wanted::new());
    let (say, verdicts) = watch::channel(Arc::default());
    // For jitter: where there is no chance any number will do.
    let mut seed = [0; 8];
    let _ = getrandom::fill(&mut seed);
    let checks = Checks::new(limits, u64::from_ne_bytes(seed));
    tasks.spawn(run(wants, say, checks, limits.settle));
    Prober { wanted, verdicts }
}

async fn run(
    mut wants: watch::Receiver<Wanted>,
    say: watch::Sender<Arc<Verdicts>>,
    mut checks: Checks,
    settle: Duration,
) {
    let mut open: JoinSet<(Target, Option<Answer>)> = JoinSet::new();
    // When what is new is said.
    let mut saying: Option<Instant> = None;
    loop {
        let due = checks.due();
        let due = sleep_until(due.unwrap_or_else(Instant::now).into());
        let say_at = sleep_until(saying.unwrap_or_else(Instant::now).into());
        let mut news = false;
        tokio::select! {
            changed = wants.changed() => match changed {
                Ok(()) => news = checks.want(&wants.borrow_and_update(), Instant::now()),
                Err(_) => return,
            },
            Some(ended) = open.join_next() => {
                let mut ended = Some(ended);
                while let Some(one) = ended {
                    match one {
                        Ok((target, answer)) => {
                            let word = answer.map_or(Answer::UNASKED, Answer::word);
                            measure::probed(target.kind(), word);
                            news |= checks.answered(&target, answer, Instant::now());
                        }
                        Err(error) => {
                            if let Ok(cause) = error.try_into_panic() {
                                resume_unwind(cause);
                            }
                        }
                    }
                    ended = open.try_join_next();
                }
            }
            () = say_at, if saying.is_some() => {
                saying = None;
                say.send_replace(Arc::new(checks.verdicts()));
            }
            () = due, if checks.due().is_some() => {
                for question in checks.ask(Instant::now()) {
                    open.spawn(ask(question));
                }
            }
        }
        if news && saying.is_none() {
            saying = Some(Instant::now() + settle);
        }
    }
}

/// Asks; no answer where it could not be asked for a reason that lies here.
async fn ask(question: Question) -> (Target, Option<Answer>) {
    let Question {
        target,
        at,
        timeout: patience,
    } = question;
    // Whose answer is known while the rest of it is on its way.
    let mut left = None;
    let connected = || async { connect(at).await.map(|_| Answer::Good(None)) };
    let asked = async {
        match &target {
            Target::Proxy(_) => healthz(at).await,
            Target::Port(_) => connected().await,
            // Refused by the pod itself, or for it: there is a way.
            Target::Pods(..) => match connected().await {
                Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
                    Ok(Answer::Good(None))
                }
                found => found,
            },
            Target::Endpoint(_, check) => match &check.ask {
                Ask::Tcp => connected().await,
                Ask::Http(path) => status(at, path, &mut left).await,
            },
        }
    };
    let answer = match timeout(patience, asked).await {
        Ok(Ok(answer)) => Some(answer),
        Ok(Err(error)) if error.kind() == ErrorKind::ConnectionRefused => Some(Answer::Refused),
        Ok(Err(error)) if is_ours(&error) => None,
        Ok(Err(_)) | Err(_) => Some(Answer::Silent),
    };
    if let Some(stream) = left {
        let mut rest = TcpStream::take(stream, MAX_REST);
        let _ = timeout(REST, tokio::io::copy(&mut rest, &mut tokio::io::sink())).await;
    }
    (target, answer)
}

/// This machine has no descriptor, memory or local port left, which says nothing of who was to be asked.
fn is_ours(error: &io::Error) -> bool {
    const OURS: [Errno; 5] = [
        Errno::MFILE,
        Errno::NFILE,
        Errno::NOMEM,
        Errno::NOBUFS,
        Errno::ADDRNOTAVAIL,
    ];
    Errno::from_io_error(error).is_some_and(|errno| OURS.contains(&errno))
}

/// A connection, which is reset when it is dropped: nothing was sent, and many in TIME_WAIT would
/// take the ports that backends are dialled from.
async fn connect(at: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(at).await?;
    stream.set_zero_linger()?;
    Ok(stream)
}

async fn healthz(at: SocketAddr) -> io::Result<Answer> {
    let mut stream = get(at, "/healthz").await?;
    head(&mut stream, answer::read).await
}

/// The status of an endpoint; the rest of its answer is `left` to be let go in peace.
async fn status(at: SocketAddr, path: &str, left: &mut Option<TcpStream>) -> io::Result<Answer> {
    let mut stream = get(at, path).await?;
    let answer = head(&mut stream, answer::read_status).await?;
    *left = Some(stream);
    Ok(answer)
}

/// Sends a request.
async fn get(at: SocketAddr, path: &str) -> io::Result<TcpStream> {
    let mut stream = connect(at).await?;
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: {at}\r\nUser-Agent: weir\r\nAccept: */*\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await?;
    Ok(stream)
}

/// What `read` makes of the head of the response.
async fn head(
    stream: &mut TcpStream,
    read: fn(&[u8], bool) -> Option<Answer>,
) -> io::Result<Answer> {
    let mut head = [0; MAX_HEAD];
    let mut filled = 0;
    loop {
        let count = stream.read(&mut head[filled..]).await?;
        filled += count;
        if let Some(answer) = read(&head[..filled], count == 0) {
            return Ok(answer);
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::super::{HealthCheck, NODES, Probe, Tenant};
    use super::*;
    use crate::object::SourceId;

    const PATIENCE: Duration = Duration::from_secs(10);

    fn question(target: Target, at: SocketAddr) -> Question {
        Question {
            target,
            at,
            timeout: PATIENCE,
        }
    }

    async fn listener() -> (TcpListener, SocketAddr) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let at = listener.local_addr().expect("an address");
        (listener, at)
    }

    fn endpoint(at: SocketAddr, ask: Ask) -> Target {
        let tenant = Tenant {
            source: SourceId(0),
            cluster: "".into(),
            namespace: "n".into(),
        };
        let check = HealthCheck {
            ask,
            ..HealthCheck::new(tenant)
        };
        Target::Endpoint(at, Arc::new(check))
    }

    /// Answers one connection with `text`, and leaves it open if that is no whole answer.
    async fn served(
        text: &'static str,
        path: &str,
        target: impl Fn(SocketAddr) -> Target,
    ) -> Option<Answer> {
        let (listener, at) = listener().await;
        let server = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.expect("a connection");
            let mut request = [0; 1_024];
            let count = stream.read(&mut request).await.expect("a request");
            stream.write_all(text.as_bytes()).await.expect("written");
            String::from_utf8_lossy(&request[..count]).into_owned()
        });
        let (_, answer) = ask(question(target(at), at)).await;
        let request = server.await.expect("a server");
        let begin = format!("GET {path} HTTP/1.1\r\nHost: 127.0.0.1:");
        assert!(request.starts_with(&begin), "{request}");
        answer
    }

    #[tokio::test]
    async fn a_service_proxy_is_asked_for_its_health() {
        for (text, answer) in [
            (
                "HTTP/1.1 200 OK\r\nX-Load-Balancing-Endpoint-Weight: 2\r\n\r\n{}",
                Answer::Good(Some(2)),
            ),
            ("HTTP/1.1 503 No\r\n\r\n", Answer::Draining),
            ("what?", Answer::Odd),
        ] {
            let found = served(text, "/healthz", Target::Proxy).await;
            assert_eq!(found, Some(answer), "{text}");
        }
    }

    #[tokio::test]
    async fn an_endpoint_is_asked_for_a_path_or_for_a_connection() {
        let http = |at| endpoint(at, Ask::Http("/ready?x=1".into()));
        for (text, answer) in [
            ("HTTP/1.1 302 Found\r\n", Answer::Good(None)),
            ("HTTP/1.1 200 OK\r\n\r\nhello", Answer::Good(None)),
            ("HTTP/1.1 500 No\r\n\r\n", Answer::Status(500)),
            ("what?", Answer::Odd),
            ("", Answer::Odd),
        ] {
            let found = served(text, "/ready?x=1", http).await;
            assert_eq!(found, Some(answer), "{text}");
        }
        let (listener, at) = listener().await;
        let tcp = || ask(question(endpoint(at, Ask::Tcp), at));
        assert_eq!(tcp().await.1, Some(Answer::Good(None)));
        drop(listener);
        assert_eq!(tcp().await.1, Some(Answer::Refused));
    }

    #[test]
    fn what_is_short_here_says_nothing_of_who_was_to_be_asked() {
        for (errno, ours) in [
            (Errno::MFILE, true),
            (Errno::ADDRNOTAVAIL, true),
            (Errno::HOSTUNREACH, false),
            (Errno::NETUNREACH, false),
            (Errno::CONNRESET, false),
            (Errno::ACCESS, false),
        ] {
            assert_eq!(is_ours(&errno.into()), ours, "{errno}");
        }
        assert!(!is_ours(&ErrorKind::UnexpectedEof.into()));
    }

    #[tokio::test]
    async fn connections_and_refusals_are_told_apart() {
        let pods = Target::Pods(SourceId(0), "".into(), "n".into());
        let (listener, at) = listener().await;
        let (_, answer) = ask(question(Target::Port(at), at)).await;
        assert_eq!(answer, Some(Answer::Good(None)));
        drop(listener);
        let (_, answer) = ask(question(Target::Port(at), at)).await;
        assert_eq!(answer, Some(Answer::Refused));
        let (_, answer) = ask(question(pods, at)).await;
        assert_eq!(answer, Some(Answer::Good(None)), "there is a way");
    }

    #[tokio::test]
    async fn silence_has_an_end() {
        let (_listener, at) = listener().await;
        let asked = Question {
            timeout: Duration::from_millis(50),
            ..question(Target::Proxy(at), at)
        };
        let (_, answer) = ask(asked).await;
        assert_eq!(answer, Some(Answer::Silent));
    }

    #[tokio::test]
    async fn what_is_wanted_is_asked_and_told() {
        let (listener, at) = listener().await;
        let mut tasks = JoinSet::new();
        let mut prober = start(&mut tasks, NODES);
        let target = Target::Port(at);
        let mut wanted = Wanted::new();
        let probe = Probe {
            target: target.clone(),
            at,
        };
        super::super::add(&mut wanted, &probe);
        prober.want(wanted);
        let told = timeout(PATIENCE, prober.news()).await.expect("in time");
        assert_eq!(told.get(&target), Some(&Answer::Good(None)));
        drop(listener);
        let told = timeout(PATIENCE, prober.news()).await.expect("in time");
        assert_eq!(told.get(&target), Some(&Answer::Refused));
        prober.want(Wanted::new());
        let told = timeout(PATIENCE, prober.news()).await.expect("in time");
        assert!(told.is_empty());
    }
}
