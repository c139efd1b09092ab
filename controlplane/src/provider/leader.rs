//! Holds the Lease, or waits for it. Thin I/O; the rules are in `lease`.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use http::Method;
use serde_json::Value;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until};

use super::api::{Refusal, Write, send};
use super::health::Health;
use super::lease::{Act, Election, RETRY, Record};
use super::standing::{Look, Standing};
use crate::source::kubernetes::Connection;

/// A start waits so long for the first word of the Lease; then it goes on without.
const FIRST_WORD: Duration = Duration::from_secs(2);

/// The Lease that decides who writes.
#[derive(Clone, Debug)]
pub struct LeaseName {
    /// Its namespace.
    pub namespace: Arc<str>,
    /// Its name.
    pub name: Arc<str>,
}

/// Stands for election until `stop`, then gives the lease up. `standing` says at every moment where this
/// process stands.
pub async fn lead(
    connection: Connection,
    lease: LeaseName,
    identity: Arc<str>,
    health: Health,
    standing: watch::Sender<Standing>,
    mut stop: watch::Receiver<bool>,
) {
    let mut election = Election::new(&identity, &lease.namespace, &lease.name);
    let mut said = String::new();
    loop {
        let first = *standing.borrow() == Standing::Unknown;
        let result = tokio::select! {
            result = attempt_in_time(&connection, &mut election, &standing) => result,
            _ = stop.wait_for(|stop| *stop) => break,
        };
        let now = Instant::now();
        set(&standing, look(&election, &result, now));
        health.wrote("leases", result.as_ref().err());
        health.leader(election.leads(now), election.holder());
        tell(&election, result, &mut said);
        tokio::select! {
            () = sleep(if first { RETRY / 10 } else { RETRY }) => {}
            _ = stop.wait_for(|stop| *stop) => break,
        }
    }
    // Nobody is told: it ends, and takes its addresses off by itself.
    if let Some(object) = election.release(Instant::now(), &wall()) {
        let _ = put(&connection, &election, &object).await;
    }
}

/// One attempt. While it lasts, who led stops when its time is over, and who starts goes on after a while.
async fn attempt_in_time(
    connection: &Connection,
    election: &mut Election,
    standing: &watch::Sender<Standing>,
) -> Result<(), Refusal> {
    let until = match *standing.borrow() {
        Standing::Unknown => Some(Instant::now() + FIRST_WORD),
        _ => election.leads_until(),
    };
    let mut attempt = pin!(attempt(connection, election));
    if let Some(until) = until {
        tokio::select! {
            result = &mut attempt => return result,
            () = sleep_until(until) => set(standing, Look::Failed),
        }
    }
    attempt.await
}

/// What an attempt has shown.
fn look(election: &Election, result: &Result<(), Refusal>, now: Instant) -> Look {
    match result {
        _ if election.leads(now) => Look::Ours,
        Ok(()) if election.is_anothers() => Look::Theirs,
        Ok(()) | Err(Refusal::Conflict(_)) => Look::Unclear,
        Err(_) => Look::Failed,
    }
}

fn set(standing: &watch::Sender<Standing>, look: Look) {
    standing.send_if_modified(|standing| {
        let now = standing.after(look);
        std::mem::replace(standing, now) != now
    });
}

/// Says who leads when that changes, and why nobody can.
fn tell(election: &Election, result: Result<(), Refusal>, said: &mut String) {
    let news = match (election.leads(Instant::now()), result.err()) {
        (true, _) => "this process writes the status of Services".to_owned(),
        // Somebody was faster: the next look says who.
        (false, Some(Refusal::Conflict(_)) | None) => match election.holder() {
            "" => return,
            holder => {
                format!(
                    "{holder:?} writes the status of Services; this process forwards, and keeps their addresses off its interfaces"
                )
            }
        },
        (false, Some(refusal)) => format!(
            "nobody may write the status of Services from here: the lease {} cannot be had: {refusal}",
            election.path()
        ),
    };
    if *said != news {
        tracing::info!("{news}");
        *said = news;
    }
}

async fn attempt(connection: &Connection, election: &mut Election) -> Result<(), Refusal> {
    let path = election.path();
    let get = Write {
        method: Method::GET,
        path: &path,
        content: "",
        body: &Value::Null,
    };
    let found = match send(connection, get).await {
        Ok(value) => Some(Record::read(&value)),
        Err(Refusal::NotFound) => None,
        Err(refusal) => return Err(refusal),
    };
    let sent = Instant::now();
    if let Act::Put(object) = election.act(found, sent, &wall()) {
        let stored = put(connection, election, &object).await?;
        election.wrote(Record::read(&stored), sent);
    }
    Ok(())
}

/// Replaces it, or makes it where there is none.
async fn put(
    connection: &Connection,
    election: &Election,
    object: &Value,
) -> Result<Value, Refusal> {
    let exists = object["metadata"].get("resourceVersion").is_some();
    let (method, path) = match exists {
        true => (Method::PUT, election.path()),
        false => (Method::POST, election.collection()),
    };
    let write = Write {
        method,
        path: &path,
        content: "application/json",
        body: object,
    };
    send(connection, write).await
}

/// The time as a Lease has it.
fn wall() -> String {
    jiff::Timestamp::now()
        .strftime("%Y-%m-%dT%H:%M:%S%.6fZ")
        .to_string()
}
