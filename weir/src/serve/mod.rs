//! `weir serve`: settings in, an appliance out, until a signal ends it.
//!
//! - `appliance`: data plane, control plane and admin listener, wired and started in order;
//! - `cluster`: what readiness and metrics say of an API server's watches;
//! - `gauges`: what the metrics say of the control plane and the process;
//! - `places`: where the state and the admin socket go when nobody said;
//! - `ports`: how many local ports are in use towards backends;
//! - `lock`: no second process on one state directory;
//! - `memory`: what is said when memory is short;
//! - `view`: what the admin listener sees of the other two.

mod appliance;
mod cluster;
mod credential;
mod gauges;
mod lock;
mod memory;
mod places;
mod ports;
mod provider;
mod view;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use controlplane::source::kubernetes::IN_CLUSTER_VARIABLE;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::cli::ServeArgs;
use crate::exit::Usage;
use crate::settings::{self, Layer, Settings};
use crate::telemetry::Telemetry;
pub use appliance::Appliance;

/// A second SIGHUP within this of the first confirms what the deletion guard holds.
const CONFIRM_WITHIN: Duration = Duration::from_secs(10);
/// Between two looks at whether a drain is over.
const LOOK: Duration = Duration::from_millis(50);
/// What a drain may take past its deadline before it is given up.
const SLACK: Duration = Duration::from_secs(2);

pub fn run(args: Box<ServeArgs>) -> anyhow::Result<ExitCode> {
    let ServeArgs { config, mut layer } = *args;
    // What everything written in Rust listens to counts where our own variable does not speak.
    layer.log = layer.log.or_else(|| std::env::var("RUST_LOG").ok());
    let file = settings::load(config.as_deref())?;
    let problems = settings::judge(&layer, &file, config.as_deref());
    let said = |layer: &Layer| {
        layer.manifests.is_some() || layer.kubeconfig.is_some() || layer.in_cluster.is_some()
    };
    let in_a_pod = std::env::var_os(IN_CLUSTER_VARIABLE).is_some();
    if in_a_pod && !said(&layer) && !said(&file) {
        layer.in_cluster = Some(true);
    }
    let settings = Settings::new(layer, file);
    if settings.manifests.is_none() && settings.access().is_none() {
        let hint = "say where the Services are: weir serve --manifests DIR or --kubeconfig FILE (or manifests: or kubeconfig: in the settings file)";
        return Err(Usage(hint.to_owned()).into());
    }
    if !problems.is_empty() {
        let problems: Vec<_> = problems.iter().map(ToString::to_string).collect();
        return Err(Usage(problems.join("\n")).into());
    }
    let telemetry = Telemetry::start(settings.log_format, &settings.log)?;
    let drain_timeout = settings.drain_timeout;
    let appliance = Appliance::launch(settings, telemetry.dropped())?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(until_told(&appliance, drain_timeout))?;
    appliance.stop();
    tracing::info!("ended");
    Ok(ExitCode::SUCCESS)
}

/// Serves until a signal asks for the end, and until that end's drain is over.
async fn until_told(appliance: &Appliance, drain_timeout: Duration) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hangup = signal(SignalKind::hangup())?;
    let mut last_hangup: Option<Instant> = None;
    loop {
        tokio::select! {
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            _ = hangup.recv() => {
                let twice = last_hangup.is_some_and(|last| last.elapsed() <= CONFIRM_WITHIN);
                last_hangup = Some(Instant::now());
                if !(twice && appliance.confirm_deletions()) {
                    appliance.rescan();
                }
            }
        }
    }
    drain(appliance, drain_timeout, &mut terminate, &mut interrupt).await;
    Ok(())
}

/// Ends when nothing lives any more, at the deadline, or at the second signal.
async fn drain(
    appliance: &Appliance,
    timeout: Duration,
    terminate: &mut Signal,
    interrupt: &mut Signal,
) {
    let (connections, flows) = appliance.drain(timeout);
    tracing::info!(
        connections,
        flows,
        timeout_s = timeout.as_secs_f64(),
        "draining; a second signal ends it now"
    );
    let deadline = Instant::now() + timeout + SLACK;
    while !appliance.is_drained() {
        if Instant::now() > deadline {
            tracing::warn!("the drain did not end in time");
            return;
        }
        tokio::select! {
            _ = terminate.recv() => return,
            _ = interrupt.recv() => return,
            () = tokio::time::sleep(LOOK) => {}
        }
    }
}
