//! The appliance's own token, renewed where it stands in the kubeconfig.

use std::time::{SystemTime, UNIX_EPOCH};

use admin_api::view::Check;
use controlplane::credential::{Health, renew};
use controlplane::source::kubernetes::Connection;

/// Starts to renew it, on the connection's own threads; `None` without a kubeconfig.
pub fn start(connection: &Connection) -> Option<Health> {
    let kubeconfig = connection.kubeconfig()?;
    let health = Health::default();
    let renewal = renew(connection.clone(), kubeconfig, health.clone());
    connection.handle().spawn(renewal);
    Some(health)
}

/// How it fares; `None` if there is none that we renew.
pub fn check(health: &Health) -> Option<Check> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let (good, text) = health.say(now.map_or(0, |now| now.as_secs()))?;
    Some(match good {
        true => Check::good("token", text),
        false => Check::warning("token", text),
    })
}
