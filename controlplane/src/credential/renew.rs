//! Renews the appliance's own token, for ever. Thin: what to do is judged elsewhere.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::time::sleep;

use super::file;
use super::health::Health;
use super::judge::{self, Next};
use super::request::issue;
use super::token::Token;
use crate::source::kubernetes::Connection;

/// Keeps the token in this kubeconfig good: asks for another with the one that is there, and puts it
/// in its place, from where whoever dials the API server takes it within a second or two. Never ends.
pub async fn renew(connection: Connection, kubeconfig: PathBuf, health: Health) {
    let chance = getrandom::u32().map_or(0.5, |random| f64::from(random) / f64::from(u32::MAX));
    loop {
        let wait = step(&connection, &kubeconfig, &health, chance).await;
        sleep(wait).await;
    }
}

/// Does what is to be done now; how long to wait after that.
async fn step(connection: &Connection, path: &Path, health: &Health, chance: f64) -> Duration {
    let Some(text) = read(path).await else {
        return judge::idle();
    };
    let token = Token::read(&text);
    health.uses(token.clone());
    let Some(token) = token else {
        return judge::idle();
    };
    match judge::next(&token, now(), chance) {
        Next::Wait(wait) => wait,
        Next::Renew => match replace(connection, path, &text, &token).await {
            Ok(new) => {
                tracing::info!(account = %new.account, "the token in {} is renewed", path.display());
                health.renewed(new);
                Duration::from_secs(1)
            }
            Err(failure) => {
                if health.failed(failure.clone()) {
                    tracing::warn!(account = %token.account, "the token in {} is not renewed: {failure}", path.display());
                }
                judge::retry(&token, now())
            }
        },
    }
}

async fn replace(
    connection: &Connection,
    path: &Path,
    old: &str,
    token: &Token,
) -> Result<Token, String> {
    let issued = issue(connection, &token.account, token.life()).await;
    let (new, read) = issued.map_err(|refused| refused.to_string())?;
    if read.expires <= token.expires {
        return Err("the API server gives none that lasts longer".to_owned());
    }
    let (path, old) = (path.to_owned(), old.to_owned());
    let written = tokio::task::spawn_blocking(move || file::replace(&path, &old, &new));
    written.await.map_err(|error| error.to_string())??;
    Ok(read)
}

/// A file that cannot be read is said by whoever makes clients of it.
async fn read(path: &Path) -> Option<String> {
    let path = path.to_owned();
    let read = tokio::task::spawn_blocking(move || file::token(&path));
    read.await.ok()?.ok()?
}

fn now() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.map_or(0, |now| now.as_secs())
}
