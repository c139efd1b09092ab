//! Writes back to the API server what became of its Services, while this process is the one that
//! may.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use controlplane::measure::Recorder;
use controlplane::provider::{self, Health, LeaseName, Outbox, Standing, Yielded};
use controlplane::source::kubernetes::Connection;
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// Where the Lease is, and what it is called for our own class.
const NAMESPACE: &str = "weir-system";
const LEASE: &str = "weir";
/// What giving the lease up may take at the end.
const FAREWELL: Duration = Duration::from_secs(2);

/// The running writer.
#[derive(Debug)]
pub struct Provider {
    connection: Connection,
    health: Health,
    stop: watch::Sender<bool>,
    election: JoinHandle<()>,
    writer: JoinHandle<()>,
}

impl Provider {
    /// Starts on the connection's own threads, as the appliance of `state_dir`.
    ///
    /// # Errors
    /// The system has no randomness.
    pub fn start(
        connection: Connection,
        outbox: Outbox,
        yielded: Yielded,
        standing: watch::Sender<Standing>,
        class: &str,
        state_dir: &Path,
        recorder: Recorder,
    ) -> anyhow::Result<Provider> {
        let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        let host: Arc<str> = host.trim().into();
        let identity = provider::identity(&host, state_dir)?;
        let lease = LeaseName {
            namespace: NAMESPACE.into(),
            name: lease_of(class).into(),
        };
        let health = Health::default();
        let (stop, stopped) = watch::channel(false);
        let stands = standing.subscribe();
        let handle = connection.handle().clone();
        let election = handle.spawn(provider::lead(
            connection.clone(),
            lease,
            identity.into(),
            health.clone(),
            standing,
            stopped,
        ));
        let writer = handle.spawn(provider::run(provider::Settings {
            connection: connection.clone(),
            outbox,
            yielded,
            identity: host,
            standing: stands,
            health: health.clone(),
            recorder,
        }));
        Ok(Provider {
            connection,
            health,
            stop,
            election,
            writer,
        })
    }

    /// How writing fares.
    pub fn health(&self) -> Health {
        self.health.clone()
    }

    /// Ends it, and gives the lease up if the API server lets us within a moment.
    pub fn stop(self) {
        self.writer.abort();
        // Nobody listens only if it has ended.
        let _ = self.stop.send(true);
        let election = self.election;
        self.connection.handle().block_on(async {
            let _ = tokio::time::timeout(FAREWELL, election).await;
        });
    }
}

/// Appliances of different classes are no rivals.
fn lease_of(class: &str) -> String {
    if class == "weir.dev/l4" {
        return LEASE.to_owned();
    }
    let fits = |c: char| {
        if c.is_ascii_alphanumeric() {
            c.to_ascii_lowercase()
        } else {
            '-'
        }
    };
    let name: String = class.chars().take(200).map(fits).collect();
    format!("{LEASE}-{}", name.trim_matches('-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_class_has_a_lease_of_its_own() {
        assert_eq!(lease_of("weir.dev/l4"), "weir");
        assert_eq!(lease_of("example.com/Edge"), "weir-example-com-edge");
    }
}
