//! The questions themselves: a task of the control task's runtime.

use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::panic::resume_unwind;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{sleep_until, timeout};

use super::answer::{self, MAX_HEAD};
use super::checks::{Checks, Question};
use super::{Answer, Target, Verdicts, Wanted};
use crate::measure;

/// News waits this long for more: the first answers of many nodes come close together.
const SETTLE: Duration = Duration::from_millis(10);

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
pub(crate) fn start(tasks: &mut JoinSet<()>) -> Prober {
    let (wanted, wants) = watch::channel(Wanted::new());
    let (say, verdicts) = watch::channel(Arc::default());
    // For jitter: where there is no chance any number will do.
    let mut seed = [0; 8];
    let _ = getrandom::fill(&mut seed);
    tasks.spawn(run(wants, say, u64::from_ne_bytes(seed)));
    Prober { wanted, verdicts }
}

async fn run(mut wants: watch::Receiver<Wanted>, say: watch::Sender<Arc<Verdicts>>, seed: u64) {
    let mut checks = Checks::new(seed);
    let mut open: JoinSet<(Target, Answer)> = JoinSet::new();
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
                            measure::probed(target.kind(), answer.word());
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
            saying = Some(Instant::now() + SETTLE);
        }
    }
}

async fn ask(question: Question) -> (Target, Answer) {
    let Question {
        target,
        at,
        timeout: patience,
    } = question;
    let asked = async {
        match &target {
            Target::Proxy(_) => healthz(at).await,
            Target::Port(_) => connect(at).await.map(|_| Answer::Good(None)),
            // Refused by the pod itself, or for it: there is a way.
            Target::Pods(..) => match connect(at).await {
                Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
                    Ok(Answer::Good(None))
                }
                found => found.map(|_| Answer::Good(None)),
            },
        }
    };
    let answer = match timeout(patience, asked).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(error)) if error.kind() == ErrorKind::ConnectionRefused => Answer::Refused,
        Ok(Err(_)) | Err(_) => Answer::Silent,
    };
    (target, answer)
}

/// A connection, which is reset when it is dropped: nothing was sent, and many in TIME_WAIT would
/// take the ports that backends are dialled from.
async fn connect(at: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(at).await?;
    stream.set_zero_linger()?;
    Ok(stream)
}

async fn healthz(at: SocketAddr) -> io::Result<Answer> {
    let mut stream = connect(at).await?;
    let request = format!(
        "GET /healthz HTTP/1.1\r\nHost: {at}\r\nUser-Agent: weir\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await?;
    let mut head = [0; MAX_HEAD];
    let mut filled = 0;
    loop {
        let count = stream.read(&mut head[filled..]).await?;
        filled += count;
        if let Some(answer) = answer::read(&head[..filled], count == 0) {
            return Ok(answer);
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::super::Probe;
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

    /// Answers one connection with `text`, and leaves it open if that is no whole answer.
    async fn served(text: &'static str) -> Answer {
        let (listener, at) = listener().await;
        let server = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.expect("a connection");
            let mut request = [0; 1_024];
            let count = stream.read(&mut request).await.expect("a request");
            stream.write_all(text.as_bytes()).await.expect("written");
            String::from_utf8_lossy(&request[..count]).into_owned()
        });
        let (_, answer) = ask(question(Target::Proxy(at), at)).await;
        let request = server.await.expect("a server");
        assert!(
            request.starts_with("GET /healthz HTTP/1.1\r\nHost: 127.0.0.1:"),
            "{request}"
        );
        answer
    }

    #[tokio::test]
    async fn a_service_proxy_is_asked_for_its_health() {
        let good = served("HTTP/1.1 200 OK\r\nX-Load-Balancing-Endpoint-Weight: 2\r\n\r\n{}").await;
        assert_eq!(good, Answer::Good(Some(2)));
        assert_eq!(served("HTTP/1.1 503 No\r\n\r\n").await, Answer::Draining);
        assert_eq!(served("what?").await, Answer::Odd);
    }

    #[tokio::test]
    async fn connections_and_refusals_are_told_apart() {
        let pods = Target::Pods(SourceId(0), "".into(), "n".into());
        let (listener, at) = listener().await;
        let (_, answer) = ask(question(Target::Port(at), at)).await;
        assert_eq!(answer, Answer::Good(None));
        drop(listener);
        let (_, answer) = ask(question(Target::Port(at), at)).await;
        assert_eq!(answer, Answer::Refused);
        let (_, answer) = ask(question(pods, at)).await;
        assert_eq!(answer, Answer::Good(None), "there is a way");
    }

    #[tokio::test]
    async fn silence_has_an_end() {
        let (_listener, at) = listener().await;
        let asked = Question {
            timeout: Duration::from_millis(50),
            ..question(Target::Proxy(at), at)
        };
        let (_, answer) = ask(asked).await;
        assert_eq!(answer, Answer::Silent);
    }

    #[tokio::test]
    async fn what_is_wanted_is_asked_and_told() {
        let (listener, at) = listener().await;
        let mut tasks = JoinSet::new();
        let mut prober = start(&mut tasks);
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
