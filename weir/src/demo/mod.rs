//! `weir demo`: the whole line from a file to a forwarded byte, in one process, without root and
//! without a cluster. Backends and clients are real sockets on loopback; the Service and its
//! EndpointSlice are a file that the directory source watches. Backends are replaced one after
//! another while clients talk, and every answer that does not come is counted.

mod backends;
mod clients;
mod screen;

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::Context;

use crate::cli::DemoArgs;
use crate::serve::Appliance;
use crate::settings::Settings;
use backends::Backend;
use clients::Tally;
use screen::{Screen, Stage};

/// Backends that are ready at any moment.
const READY: usize = 4;
/// Between two steps of the roll.
const STEP: Duration = Duration::from_millis(700);
/// How long a backend lives on after it left the slice, as a pod's grace period has it.
const GRACE: Duration = Duration::from_secs(1);
/// Between two drawings.
const FRAME: Duration = Duration::from_millis(100);
/// Addresses that backends take in turn; loopback has them all without being told.
const ADDRESSES: usize = 200;

/// Runs the demo; success if nothing was lost.
///
/// # Errors
///
/// The appliance or a backend cannot start.
pub fn run(args: &DemoArgs) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()?;
    let place = Place::find()?;
    let tally = runtime.block_on(roll(&place, args.seconds.map(Duration::from_secs)))?;
    println!("\n{}", screen::totals(&tally));
    for loss in tally
        .losses
        .lock()
        .into_iter()
        .flat_map(|losses| losses.clone())
    {
        println!("  lost: {loss}");
    }
    let (lost, answered) = (
        tally.lost.load(Ordering::Relaxed),
        tally.requests.load(Ordering::Relaxed),
    );
    if lost == 0 && answered > 0 {
        println!("Nothing was lost.");
        return Ok(ExitCode::SUCCESS);
    }
    println!("Answers are missing: this is a bug; please report it with the lines above.");
    Ok(ExitCode::from(1))
}

/// Where this run of the demo lives: its directory, its VIP, its port.
#[derive(Debug)]
struct Place {
    dir: PathBuf,
    vip: Ipv4Addr,
    port: u16,
    net: u8,
}

impl Place {
    /// A directory of its own, and a port that is free on loopback for both protocols.
    fn find() -> anyhow::Result<Place> {
        let net = 64 + (std::process::id() % 128) as u8;
        let vip = Ipv4Addr::new(127, net, 255, 1);
        let port = (0..100)
            .find_map(|_| {
                let tcp = TcpListener::bind((vip, 0)).ok()?;
                let port = tcp.local_addr().ok()?.port();
                UdpSocket::bind((vip, port)).ok().map(|_| port)
            })
            .context("no port of 127.0.0.0/8 is free for TCP and UDP")?;
        let dir = std::env::temp_dir().join(format!("weir-demo-{}", std::process::id()));
        std::fs::create_dir_all(dir.join("manifests"))
            .with_context(|| format!("cannot make {}", dir.display()))?;
        Ok(Place {
            dir,
            vip,
            port,
            net,
        })
    }

    fn backend(&self, n: usize) -> Ipv4Addr {
        Ipv4Addr::new(127, self.net, 0, 1 + (n % ADDRESSES) as u8)
    }

    fn settings(&self) -> anyhow::Result<Settings> {
        Settings::demo(
            &self.dir.join("manifests"),
            &self.dir.join("state"),
            &self.dir.join("admin.sock"),
            IpAddr::V4(self.vip),
            &format!("127.{}.0.0/16", self.net),
        )
    }

    /// Writes the Service and its slice, in one step.
    fn publish(&self, endpoints: &[(Ipv4Addr, Stage)]) -> anyhow::Result<()> {
        let temporary = self.dir.join("demo.yaml.tmp");
        std::fs::write(&temporary, manifest(self.port, endpoints))?;
        std::fs::rename(&temporary, self.dir.join("manifests/demo.yaml"))
            .context("cannot write the demo's manifest")
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(Path::new(&self.dir));
    }
}

/// The Service and its slice as a person would write them.
fn manifest(port: u16, endpoints: &[(Ipv4Addr, Stage)]) -> String {
    let mut text = format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: hello, namespace: demo}}\nspec:\n  type: LoadBalancer\n  ports:\n  - {{name: tcp, protocol: TCP, port: {port}}}\n  - {{name: udp, protocol: UDP, port: {port}}}\n---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: hello-1, namespace: demo, labels: {{kubernetes.io/service-name: hello}}}}\naddressType: IPv4\nports:\n- {{name: tcp, protocol: TCP, port: {port}}}\n- {{name: udp, protocol: UDP, port: {port}}}\nendpoints:\n"
    );
    for (address, stage) in endpoints {
        let ready = *stage == Stage::Ready;
        let _ = writeln!(
            text,
            "- {{addresses: [{address}], conditions: {{ready: {ready}, serving: true, terminating: {}}}}}",
            !ready
        );
    }
    text
}

/// Starts everything, rolls until the end, stops everything in order.
async fn roll(place: &Place, limit: Option<Duration>) -> anyhow::Result<Arc<Tally>> {
    let mut backends = Vec::new();
    for n in 0..READY {
        backends.push((
            Backend::start(n, place.backend(n), place.port).await?,
            Stage::Ready,
        ));
    }
    place.publish(&listed(&backends))?;
    let appliance = Appliance::start(place.settings()?)?;
    let vip = SocketAddr::from((place.vip, place.port));
    wait_ready(&appliance).await?;

    let tally = Arc::new(Tally::default());
    let mut clients = clients::start(vip, vip, &tally);
    let title = format!(
        "Weir {}: {READY} backends behind {vip}, TCP and UDP. Ctrl-C ends.",
        env!("CARGO_PKG_VERSION")
    );
    let (mut screen, begun, mut stepped) = (Screen::new(), Instant::now(), Instant::now());
    let mut steps: VecDeque<usize> = VecDeque::new();
    let mut rolled = 0;
    let interrupted = tokio::signal::ctrl_c();
    tokio::pin!(interrupted);
    while limit.is_none_or(|limit| begun.elapsed() < limit) {
        tokio::select! {
            _ = &mut interrupted => break,
            () = tokio::time::sleep(FRAME) => {}
        }
        if stepped.elapsed() >= STEP {
            stepped = Instant::now();
            rolled += step(place, &mut backends, &mut steps).await?;
        }
        end_the_empty(&mut backends);
        screen.show(&title, &backends, &tally, rolled);
    }
    tally.end();
    while clients.join_next().await.is_some() {}
    screen.show(&title, &backends, &tally, rolled);
    // Its own threads end with it, and must not be waited for on this one.
    tokio::task::spawn_blocking(move || appliance.stop()).await?;
    Ok(tally)
}

/// One step of the roll, as a Deployment does it: a new backend is ready, the oldest terminates; a
/// step later the oldest is out of the slice. Returns how many were replaced.
async fn step(
    place: &Place,
    backends: &mut Vec<(Backend, Stage)>,
    steps: &mut VecDeque<usize>,
) -> anyhow::Result<usize> {
    if let Some(old) = steps.pop_front() {
        backends[old].1 = Stage::Removed;
        backends[old].0.leave(Instant::now() + GRACE);
        place.publish(&listed(backends))?;
        return Ok(1);
    }
    let n = backends.len();
    if n >= ADDRESSES
        && let Some((early, _)) = backends.get(n - ADDRESSES)
        && early.served.open.load(Ordering::Relaxed) > 0
    {
        // Its address is still in use: wait.
        return Ok(0);
    }
    backends.push((
        Backend::start(n, place.backend(n), place.port).await?,
        Stage::Ready,
    ));
    if let Some(old) = backends
        .iter()
        .position(|(_, stage)| *stage == Stage::Ready)
    {
        backends[old].1 = Stage::Terminating;
        steps.push_back(old);
    }
    place.publish(&listed(backends))?;
    Ok(0)
}

fn listed(backends: &[(Backend, Stage)]) -> Vec<(Ipv4Addr, Stage)> {
    backends
        .iter()
        .filter(|(_, stage)| matches!(stage, Stage::Ready | Stage::Terminating))
        .map(|(backend, stage)| (backend.address, *stage))
        .collect()
}

/// A pod ends when its connections have.
fn end_the_empty(backends: &mut [(Backend, Stage)]) {
    for (backend, stage) in backends {
        if *stage == Stage::Removed
            && backend.may_end(Instant::now())
            && backend.served.open.load(Ordering::Relaxed) == 0
        {
            backend.close();
            *stage = Stage::Ended;
        }
    }
}

async fn wait_ready(appliance: &Appliance) -> anyhow::Result<()> {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !appliance.ready() {
        anyhow::ensure!(
            Instant::now() < deadline,
            "the appliance was not ready within 10 s: {}",
            appliance.why_not_ready()
        );
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Ok(())
}
