//! Holds the Lease, or waits for it. Thin I/O; the rules are in `lease`.

use std::sync::Arc;

use http::Method;
use serde_json::Value;
use tokio::sync::watch;
use tokio::time::{Instant, sleep};

use super::api::{Refusal, Write, send};
use super::health::Health;
use super::lease::{Act, Election, RENEW_DEADLINE, RETRY, Record};
use crate::source::kubernetes::Connection;

/// The Lease that decides who writes.
#[derive(Clone, Debug)]
pub struct LeaseName {
    /// Its namespace.
    pub namespace: Arc<str>,
    /// Its name.
    pub name: Arc<str>,
}

/// Stands for election until `stop`, then gives the lease up. `leads` says at every moment whether
/// this process writes.
pub async fn lead(
    connection: Connection,
    lease: LeaseName,
    identity: Arc<str>,
    health: Health,
    leads: watch::Sender<bool>,
    mut stop: watch::Receiver<bool>,
) {
    let mut election = Election::new(&identity, &lease.namespace, &lease.name);
    let mut said = String::new();
    loop {
        let refusal = tokio::select! {
            result = attempt(&connection, &mut election) => result.err(),
            // Whatever the request does, we have stopped by then.
            () = sleep(RENEW_DEADLINE), if election.leads(Instant::now()) => None,
            _ = stop.wait_for(|stop| *stop) => break,
        };
        health.wrote("leases", refusal.as_ref());
        health.leader(election.leads(Instant::now()), election.holder());
        tell(&election, refusal, &leads, &mut said);
        tokio::select! {
            () = sleep(RETRY) => {}
            _ = stop.wait_for(|stop| *stop) => break,
        }
        set(&leads, election.leads(Instant::now()));
    }
    set(&leads, false);
    if let Some(object) = election.release(Instant::now(), &wall()) {
        let _ = put(&connection, &election, &object).await;
    }
}

fn set(leads: &watch::Sender<bool>, now: bool) {
    leads.send_if_modified(|leads| std::mem::replace(leads, now) != now);
}

/// Says who leads when that changes, and why nobody can.
fn tell(
    election: &Election,
    refusal: Option<Refusal>,
    leads: &watch::Sender<bool>,
    said: &mut String,
) {
    let now = election.leads(Instant::now());
    set(leads, now);
    let news = match (now, refusal) {
        (true, _) => "this process writes the status of Services".to_owned(),
        // Somebody was faster: the next look says who.
        (false, Some(Refusal::Conflict(_)) | None) => match election.holder() {
            "" => return,
            holder => {
                format!("{holder:?} writes the status of Services; this process forwards only")
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
