//! The whole appliance: started from the packet's side outwards, stopped the other way.

use std::fs::File;
use std::sync::Arc;
use std::time::Duration;

use admin_api::metrics::Registry;
use admin_api::{Address, Server};
use anyhow::Context;
use controlplane::control::{self, Command, Control};
use controlplane::measure;
use controlplane::object::SourceId;
use controlplane::provider::{Outbox, Provided, Standing, Yielded};
use controlplane::source::{directory, kubernetes};
use controlplane::state;
use controlplane::translate::Rules;
use lb_core::plane::{Config, Engine, Limits, Plane};
use lb_core::table::{HashKey, TableBuilder};
use tokio::sync::watch;

use super::credential;
use super::lock::lock;
use super::memory;
use super::places;
use super::ports::{Ports, Watch};
use super::provider::Provider;
use super::view::View;
use crate::check;
use crate::exit::Usage;
use crate::settings::{EngineName, Settings};
use crate::telemetry::Dropped;
use crate::version::VERSION;

/// A running appliance. Dropped without [`Appliance::stop`], it leaves its VIPs on the machine.
#[derive(Debug)]
pub struct Appliance {
    plane: Plane,
    control: Control,
    provider: Option<Provider>,
    admin: Option<Server>,
    view: Arc<View>,
    ports: Watch,
    /// Of the state directory; let go last.
    lock: Option<File>,
}

impl Appliance {
    /// As [`Appliance::launch`], without a log of its own.
    ///
    /// # Errors
    ///
    /// See there.
    pub fn start(settings: Settings) -> anyhow::Result<Appliance> {
        Appliance::launch(settings, Dropped::default())
    }

    /// Starts the workers on an empty table, the control plane that fills it, and the admin
    /// listener. `dropped` counts the lines that the log lost.
    ///
    /// # Errors
    ///
    /// Something cannot start; what had started is stopped.
    pub fn launch(settings: Settings, dropped: Dropped) -> anyhow::Result<Appliance> {
        let state_dir = places::state_dir(settings.state_dir.clone())?;
        let lock = lock(&state_dir)?;
        let key = state::hash_key(Some(&state_dir), settings.hash_key.map(|key| key.0))
            .context("cannot make a random hash key")?;
        let notes = key.problems.iter().map(ToString::to_string);
        let notes = notes.chain(key.unsaved.iter().map(ToString::to_string));
        notes.for_each(|note| tracing::warn!("hash key: {note}"));

        // Judged before a thread runs: a mistake in the settings is a mistake of the command.
        let mut control_settings = control_settings(&settings, &state_dir)?;
        let outbox = Outbox::default();
        let cluster = control_settings.kubernetes.as_ref();
        let connection = cluster.map(|cluster| cluster.connection.clone());
        let yielded = Yielded::default();
        let (standing, stands) = watch::channel(Standing::default());
        control_settings.provider = cluster.map(|_| Provided {
            source: kubernetes::SOURCE,
            outbox: outbox.clone(),
            standing: stands,
            yielded: yielded.clone(),
        });
        let table = TableBuilder::new(HashKey(key.bytes)).freeze();
        let config = config(&settings)?;
        let workers = config.workers;
        let plane =
            Plane::start(config, Arc::clone(&table)).context("cannot start the data plane")?;
        memory::watch(&plane.handle());
        let registry = Registry::start(&[
            (measure::PROGRAMMING, &measure::PROGRAMMING_BOUNDS),
            (measure::ENDPOINTS, &measure::ENDPOINTS_BOUNDS),
        ])?;
        let recorder = registry.recorder();
        let control = Control::start(
            control_settings,
            plane.handle(),
            table,
            Arc::clone(&recorder),
        )
        .context("cannot start the control plane")?;
        let token = connection.as_ref().and_then(credential::start);
        let provider = connection.map(|connection| {
            let class = &settings.class;
            Provider::start(
                connection, outbox, yielded, standing, class, &state_dir, recorder,
            )
        });
        let provider = provider.transpose()?;
        let ports = Ports::new(settings.source_addresses.clone());
        let view = View::new(
            plane.handle(),
            control.desk(),
            registry,
            dropped,
            Arc::clone(&ports),
            provider.as_ref().map(Provider::health),
        );
        let view = Arc::new(view.with_token(token));
        let ports = Watch::start(ports)?;
        let admin = admin(&settings, &view)?;
        let address = admin.as_ref().map(|admin| admin.address().to_string());
        let handle = plane.handle();
        let engine = handle.engine();
        tracing::info!(
            version = VERSION,
            engine = engine.driver.label(),
            why = %engine.why,
            workers,
            admin = address.as_deref().unwrap_or("none"),
            state_dir = %state_dir.display(),
            pools = pools_text(&settings),
            "weir serves"
        );
        if settings.pools.is_empty() && settings.node_port_addresses.is_empty() {
            tracing::warn!(
                "no Service gets an address: there is no pool; give one, for example --pool 192.0.2.0/28"
            );
        }
        Ok(Appliance {
            plane,
            control,
            provider,
            admin,
            view,
            ports,
            lock,
        })
    }

    /// Is everything as it should be?
    pub fn ready(&self) -> bool {
        self.view.failures().is_empty()
    }

    /// What is not as it should be.
    pub fn why_not_ready(&self) -> String {
        self.view.failures().join("; ")
    }

    /// Lists every source anew, now.
    pub fn rescan(&self) {
        tracing::info!("rescan asked for");
        self.control.desk().command(Command::Rescan);
    }

    /// Confirms what the deletion guard holds; false if it holds nothing.
    pub fn confirm_deletions(&self) -> bool {
        admin_api::Appliance::confirm_deletions(&*self.view) > 0
    }

    /// Takes no new work from now on. Returns the connections and flows that still live.
    pub fn drain(&self, deadline: Duration) -> (u64, u64) {
        self.view.set_draining();
        self.control.desk().command(Command::Drain);
        let handle = self.plane.handle();
        handle.drain(deadline);
        handle.active()
    }

    /// Has a drain ended?
    pub fn is_drained(&self) -> bool {
        self.plane.handle().is_drained()
    }

    /// Ends it: what lives is cut, VIPs that were added leave the machine.
    pub fn stop(self) {
        let Appliance {
            plane,
            control,
            provider,
            admin,
            view: _,
            ports,
            lock,
        } = self;
        // The lease first: another process may take over while this one ends.
        if let Some(provider) = provider {
            provider.stop();
        }
        plane.stop();
        control.stop();
        drop(admin);
        ports.stop();
        drop(lock);
    }
}

fn config(settings: &Settings) -> anyhow::Result<Config> {
    let default = Config::default();
    Ok(Config {
        workers: settings
            .workers
            .map_or(default.workers, |workers| workers.get()),
        pin: settings.pin,
        engine: match settings.engine {
            EngineName::Auto => Engine::Auto,
            EngineName::IoUring => Engine::IoUring,
            EngineName::Epoll => Engine::Epoll,
        },
        limits: Limits {
            peer_timeout: settings.peer_timeout,
            memory: settings.watermarks()?,
            source_addresses: settings.source_addresses.clone(),
            ..default.limits
        },
    })
}

fn control_settings(
    settings: &Settings,
    state_dir: &std::path::Path,
) -> anyhow::Result<control::Settings> {
    let directories = settings
        .manifests
        .iter()
        .enumerate()
        .map(|(number, path)| directory::Settings::new(path.clone(), SourceId(number as u16)));
    let own = settings.own_addresses();
    let rules = Rules {
        own_addresses: own.clone(),
        ..check::rules(settings)
    };
    Ok(control::Settings {
        rules,
        pools: settings.pools(own)?,
        defaults: settings.defaults(),
        directories: directories.collect(),
        kubernetes: cluster(settings, state_dir)?,
        state_dir: Some(state_dir.to_owned()),
        status_dir: settings.status_dir.clone(),
        vip_interface: settings.vip_interface.clone(),
        drain_timeout: settings.drain_timeout,
        confirm_deletions: settings.confirm_deletions,
        provider: None,
    })
}

/// The API server, if one is to be served.
fn cluster(
    settings: &Settings,
    state_dir: &std::path::Path,
) -> anyhow::Result<Option<kubernetes::Settings>> {
    let Some(access) = settings.access() else {
        return Ok(None);
    };
    let connection = kubernetes::Connection::start(access).map_err(|error| match error {
        kubernetes::ConnectionError::Access(error) => anyhow::Error::from(Usage(error.to_string())),
        error => error.into(),
    })?;
    let namespaces = settings.namespaces.iter().map(|name| Arc::from(&**name));
    let state_dir = Some(state_dir.to_owned());
    let cluster = kubernetes::Settings::new(connection, namespaces.collect(), state_dir);
    Ok(Some(cluster))
}

fn pools_text(settings: &Settings) -> String {
    let pools: Vec<_> = settings.pools.iter().map(ToString::to_string).collect();
    pools.join(",")
}

/// The admin listener where it was asked for, or at the first default place that can be made. No
/// default place is no reason not to serve.
fn admin(settings: &Settings, view: &Arc<View>) -> anyhow::Result<Option<Server>> {
    let start = |address: &Address| {
        let view: Arc<dyn admin_api::Appliance> = Arc::clone(view) as _;
        Server::start(address, view, admin_api::Limits::default())
    };
    if let Some(asked) = &settings.admin {
        return Ok(Some(start(&asked.0)?));
    }
    for path in places::admin_sockets() {
        match start(&Address::Unix(path)) {
            Ok(server) => return Ok(Some(server)),
            Err(error) if error.is_denied() => tracing::debug!("{error}"),
            Err(error) => return Err(error.into()),
        }
    }
    tracing::warn!(
        "no admin listener: neither /run/weir nor XDG_RUNTIME_DIR can be written; give one with --admin unix:PATH"
    );
    Ok(None)
}
