//! VIPs on the machine's interfaces: what the kernel must have before it hands us their packets.
//!
//! `plan` decides (PURE), `netlink` does. One task, started by [`Addresses::new`], owns both; it
//! makes the machine fit what was last asked for, and again whenever somebody else changed the
//! machine's addresses. What is there and not ours is used and never touched; ours carry the mark
//! [`OURS`], so that the next process takes over or removes what a killed one left. `own` (PURE)
//! tells ours from those of another appliance, which carry the same mark. What is added is announced
//! to the neighbours (`announce`, PURE; `tell`).

mod announce;
mod netlink;
mod own;
mod plan;
mod tell;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{FutureExt, Stream, StreamExt};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, MissedTickBehavior, interval_at, sleep};

use self::netlink::{Netlink, StepError};
use self::plan::{Machine, Step, plan};
use self::tell::Teller;
use crate::reason::Reason;

pub use self::netlink::OURS;
pub use self::own::Own;
pub use self::plan::Placed;

/// Changes of a burst are looked at together; also the pace at which two that fight over an
/// address do so.
const SETTLE: Duration = Duration::from_millis(50);
/// What no message told is seen after this: failed additions are tried again, too.
const RESCAN: Duration = Duration::from_secs(30);

/// How each wanted VIP fares.
pub type Outcome = Arc<BTreeMap<IpAddr, Result<Placed, Reason>>>;

enum Command {
    Ensure(BTreeSet<IpAddr>, oneshot::Sender<Outcome>),
    ReleaseAll(oneshot::Sender<()>),
}

/// Puts VIPs on interfaces and takes them off. Dropped, it leaves them as they are.
#[derive(Debug)]
pub struct Addresses {
    commands: mpsc::Sender<Command>,
    outcome: watch::Receiver<Outcome>,
}

impl Addresses {
    /// Changes nothing before the first [`Addresses::ensure`]. `interface`: where to put all VIPs
    /// that are not there yet. `own`: what may be a leftover of ours. Works in the network
    /// namespace of the calling thread, on the current tokio runtime.
    ///
    /// # Errors
    /// No netlink socket can be opened: a sandbox forbids the address family.
    pub async fn new(interface: Option<String>, own: Own) -> io::Result<Addresses> {
        let (commands, receiver) = mpsc::channel(1);
        let (sender, outcome) = watch::channel(Outcome::default());
        let task = Task {
            netlink: Netlink::open()?,
            interface,
            wanted: None,
            own,
            teller: Teller::new(),
            outcome: sender,
        };
        tokio::spawn(task.run(receiver, netlink::changes()?));
        Ok(Addresses { commands, outcome })
    }

    /// Makes `wanted` be on the machine, and what is ours and not in it not, from now on. Returns
    /// how it went; what failed is tried again, see [`Addresses::outcome`].
    pub async fn ensure(&self, wanted: &BTreeSet<IpAddr>) -> Outcome {
        let (answer, answered) = oneshot::channel();
        // Without its task the runtime is going down, and so are we.
        let _ = self
            .commands
            .send(Command::Ensure(wanted.clone(), answer))
            .await;
        answered.await.unwrap_or_default()
    }

    /// The latest outcome, also of repairs that nobody asked for.
    pub fn outcome(&self) -> watch::Receiver<Outcome> {
        self.outcome.clone()
    }

    /// Removes what is ours and forgets what is wanted: the end of an orderly drain.
    pub async fn release_all(&self) {
        let (answer, answered) = oneshot::channel();
        let _ = self.commands.send(Command::ReleaseAll(answer)).await;
        let _ = answered.await;
    }
}

struct Task {
    netlink: Netlink,
    interface: Option<String>,
    /// `None` before the first word and after the last.
    wanted: Option<BTreeSet<IpAddr>>,
    own: Own,
    teller: Teller,
    outcome: watch::Sender<Outcome>,
}

impl Task {
    async fn run(
        mut self,
        mut commands: mpsc::Receiver<Command>,
        mut changes: impl Stream<Item = ()> + Unpin,
    ) {
        let mut rescan = interval_at(Instant::now() + RESCAN, RESCAN);
        rescan.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut listens = true;
        loop {
            tokio::select! {
                command = commands.recv() => match command {
                    Some(Command::Ensure(wanted, answer)) => {
                        self.wanted = Some(wanted);
                        // Who asked may have gone; the work is done all the same.
                        let _ = answer.send(self.pass().await);
                    }
                    Some(Command::ReleaseAll(answer)) => {
                        self.wanted = Some(BTreeSet::new());
                        self.pass().await;
                        self.wanted = None;
                        let _ = answer.send(());
                    }
                    None => return,
                },
                change = changes.next(), if listens => {
                    // A stream that ended would be ready for ever; the rescan still looks.
                    listens = change.is_some();
                    sleep(SETTLE).await;
                    while let Some(Some(())) = changes.next().now_or_never() {}
                    self.pass().await;
                }
                _ = rescan.tick() => { self.pass().await; }
                () = self.teller.due() => self.teller.speak(),
            }
        }
    }

    /// Makes the machine fit, and tells who listens if that changed anything.
    async fn pass(&mut self) -> Outcome {
        let Some(wanted) = self.wanted.clone() else {
            return Outcome::default();
        };
        let outcome = match self.netlink.machine(&self.own).await {
            Ok(machine) => self.fit(&wanted, &machine).await,
            Err(error) => {
                let problem: Arc<str> =
                    format!("this machine's addresses cannot be read: {error}").into();
                let reason = |address| Reason::AddressNotAdded {
                    address,
                    problem: problem.clone(),
                };
                wanted
                    .iter()
                    .map(|address| (*address, Err(reason(*address))))
                    .collect()
            }
        };
        let outcome = Arc::new(outcome);
        self.outcome.send_if_modified(|last| {
            let is_new = *last != outcome;
            *last = outcome.clone();
            is_new
        });
        outcome
    }

    async fn fit(
        &mut self,
        wanted: &BTreeSet<IpAddr>,
        machine: &Machine,
    ) -> BTreeMap<IpAddr, Result<Placed, Reason>> {
        let plan = plan(wanted, machine, self.interface.as_deref());
        let mut outcome: BTreeMap<_, _> = plan
            .outcome
            .into_iter()
            .map(|(address, planned)| {
                let problem = |error: plan::PlanError| error.to_string().into();
                let refused = |error| Reason::AddressNotAdded {
                    address,
                    problem: problem(error),
                };
                (address, planned.map_err(refused))
            })
            .collect();
        let mut added = BTreeSet::new();
        for step in plan.steps {
            match step {
                Step::Add { address, interface } => match self.netlink.run(step).await {
                    Ok(()) => {
                        added.insert((address, interface));
                        let mut all = machine.interfaces.iter();
                        if let Some(found) = all.find(|found| found.index == interface) {
                            self.teller.added(address, found);
                        }
                    }
                    Err(error) => {
                        let failed = failed_addition(&error, address, &name(machine, interface));
                        outcome.insert(address, failed);
                    }
                },
                Step::Remove {
                    address, interface, ..
                } => {
                    // It moves only once it is in its new place; else it stays where it works.
                    if wanted.contains(&address)
                        && outcome.get(&address).is_some_and(Result::is_err)
                    {
                        outcome.insert(address, Ok(Placed::Added { interface }));
                        continue;
                    }
                    self.remove(step, address, interface, machine).await;
                }
            }
        }
        self.note_added(added).await;
        outcome
    }

    async fn remove(&mut self, step: Step, address: IpAddr, interface: u32, machine: &Machine) {
        match self.netlink.run(step).await {
            Ok(()) | Err(StepError::Gone) => {
                self.own.note_removed(address, interface);
                self.teller.removed(address, interface);
            }
            Err(error) => {
                let interface = name(machine, interface);
                tracing::warn!(%address, %interface, %error, "cannot remove an address; it is tried again");
            }
        }
    }

    /// Remembers what was added, and of that what the kernel did not mark.
    async fn note_added(&mut self, added: BTreeSet<(IpAddr, u32)>) {
        if added.is_empty() {
            return;
        }
        for (address, interface) in &added {
            self.own.note_added(*address, *interface);
        }
        let Ok(machine) = self.netlink.machine(&self.own).await else {
            return;
        };
        for present in machine.addresses.iter().filter(|present| !present.is_ours) {
            if added.contains(&(present.address, present.interface))
                && self.own.note_unmarked(present.address, present.interface)
            {
                tracing::warn!(
                    "this kernel does not keep IFA_PROTO (5.18 does): should this process be killed, remove its addresses by hand"
                );
            }
        }
    }
}

fn failed_addition(error: &StepError, address: IpAddr, interface: &str) -> Result<Placed, Reason> {
    match error {
        // Somebody was quicker: theirs, until the next pass says otherwise.
        StepError::Exists => Ok(Placed::Found),
        _ => Err(Reason::AddressNotAdded {
            address,
            problem: explain(error, address, interface).into(),
        }),
    }
}

fn name(machine: &Machine, index: u32) -> String {
    machine
        .interfaces
        .iter()
        .find(|interface| interface.index == index)
        .map_or_else(|| format!("if{index}"), |interface| interface.name.clone())
}

/// What a person can do about it.
fn explain(error: &StepError, address: IpAddr, interface: &str) -> String {
    match error {
        StepError::NotPermitted => format!(
            "this process lacks CAP_NET_ADMIN: grant it (setcap cap_net_admin+ep, or AmbientCapabilities in the unit), or add the address yourself: {}",
            ByHand(address, interface)
        ),
        StepError::Ipv6Disabled => format!(
            "IPv6 is disabled on {interface}: enable it: sysctl net.ipv6.conf.{interface}.disable_ipv6=0"
        ),
        StepError::Gone => format!("interface {interface} is gone; it is tried again"),
        StepError::Exists | StepError::Kernel(_) => format!(
            "{error}; it is tried again, or add it yourself: {}",
            ByHand(address, interface)
        ),
    }
}

/// The command that adds an address.
struct ByHand<'a>(IpAddr, &'a str);

impl fmt::Display for ByHand<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ByHand(address, interface) = self;
        match address {
            IpAddr::V4(_) => write!(f, "ip addr add {address}/32 dev {interface}"),
            IpAddr::V6(_) => write!(f, "ip addr add {address}/128 dev {interface} nodad"),
        }
    }
}
