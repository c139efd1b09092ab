//! The VIPs of the control task on their way to the machine and off it. Nothing here waits for the
//! kernel: what is wanted is handed to a task, what became of it is heard.
//!
//! A VIP that nobody has any more stays while a connection lives there, at most for the drain
//! timeout: to take the address away would cut it.

use std::collections::{BTreeMap, BTreeSet};
use std::future::pending;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use crate::addresses::{Addresses, Outcome, Own};
use crate::reason::Reason;

/// Between two looks at what still lives on a VIP that is to go.
const LOOK: Duration = Duration::from_millis(500);

pub(super) struct Vips {
    drain_timeout: Duration,
    /// Given out now, and to be on this machine.
    current: BTreeSet<IpAddr>,
    /// Given out now, and on another's.
    elsewhere: BTreeSet<IpAddr>,
    /// To go: at this time at the latest.
    leaving: BTreeMap<IpAddr, Instant>,
    look: Instant,
    wanted: watch::Sender<Option<BTreeSet<IpAddr>>>,
    heard: watch::Receiver<Outcome>,
    outcome: Outcome,
    addresses: Result<Arc<Addresses>, Arc<str>>,
    /// Keeps `heard` open where there are no addresses to hear of.
    _silence: watch::Sender<Outcome>,
}

impl Vips {
    pub(super) async fn start(
        interface: Option<String>,
        own: Own,
        drain_timeout: Duration,
    ) -> Vips {
        let addresses = match Addresses::new(interface, own).await {
            Ok(addresses) => Ok(Arc::new(addresses)),
            Err(error) => {
                tracing::error!(%error, "no netlink: addresses cannot be put on this machine");
                Err(format!("no netlink: {error}; allow AF_NETLINK in the sandbox").into())
            }
        };
        let (wanted, mut to_place) = watch::channel(None);
        let (silence, mut heard) = watch::channel(Outcome::default());
        if let Ok(addresses) = &addresses {
            heard = addresses.outcome();
            let addresses = Arc::clone(addresses);
            tokio::spawn(async move {
                while to_place.changed().await.is_ok() {
                    let wanted: Option<BTreeSet<IpAddr>> = to_place.borrow_and_update().clone();
                    if let Some(wanted) = wanted {
                        addresses.ensure(&wanted).await;
                    }
                }
            });
        }
        Vips {
            drain_timeout,
            current: BTreeSet::new(),
            elsewhere: BTreeSet::new(),
            leaving: BTreeMap::new(),
            look: Instant::now(),
            wanted,
            heard,
            outcome: Outcome::default(),
            addresses,
            _silence: silence,
        }
    }

    /// From now on these are given out, those of `elsewhere` on another's interfaces. These leave at once: whoever
    /// lives there is the other's already.
    pub(super) fn want(&mut self, mut vips: BTreeSet<IpAddr>, elsewhere: BTreeSet<IpAddr>) {
        let now = Instant::now();
        vips.retain(|vip| !elsewhere.contains(vip));
        for vip in self.current.difference(&vips) {
            self.leaving.insert(*vip, now + self.drain_timeout);
            self.look = now + LOOK;
        }
        self.leaving
            .retain(|vip, _| !vips.contains(vip) && !elsewhere.contains(vip));
        self.current = vips;
        self.elsewhere = elsewhere;
        self.hand_on();
    }

    /// Returns when it is time to look at what still lives on VIPs that are to go.
    pub(super) fn due(&self) -> impl Future<Output = ()> + use<> {
        let look = (!self.leaving.is_empty()).then_some(self.look);
        async move {
            match look {
                Some(look) => sleep_until(look).await,
                None => pending().await,
            }
        }
    }

    /// Connections live on `live` and on no other.
    pub(super) fn let_go(&mut self, live: &BTreeSet<IpAddr>) {
        let now = Instant::now();
        self.look = now + LOOK;
        let before = self.leaving.len();
        self.leaving
            .retain(|vip, latest| live.contains(vip) && *latest > now);
        if self.leaving.len() != before {
            self.hand_on();
        }
    }

    fn hand_on(&self) {
        let all = self.current.iter().chain(self.leaving.keys()).copied();
        let all = all.collect();
        self.wanted.send_replace(Some(all));
    }

    /// Returns when some VIP fares differently.
    pub(super) fn changed(&self) -> impl Future<Output = ()> + use<> {
        let mut heard = self.heard.clone();
        async move {
            if heard.changed().await.is_err() {
                // Its task ended: the runtime is going down.
                pending::<()>().await;
            }
        }
    }

    /// Takes what is new and returns which VIPs it is about.
    pub(super) fn news(&mut self) -> BTreeSet<IpAddr> {
        let new = self.heard.borrow_and_update().clone();
        let old = std::mem::replace(&mut self.outcome, new);
        let all = old.keys().chain(self.outcome.keys());
        all.filter(|vip| old.get(vip) != self.outcome.get(vip))
            .copied()
            .collect()
    }

    /// Is `vip` kept off this machine on purpose?
    pub(super) fn is_elsewhere(&self, vip: IpAddr) -> bool {
        self.elsewhere.contains(&vip)
    }

    /// Is `vip` on the machine? `None`: not heard of yet.
    pub(super) fn placed(&self, vip: IpAddr) -> Option<Result<(), Reason>> {
        match &self.addresses {
            // Loopback has all of its addresses without being told.
            Err(_) if vip.is_loopback() => Some(Ok(())),
            Err(problem) => Some(Err(Reason::AddressNotAdded {
                address: vip,
                problem: Arc::clone(problem),
            })),
            Ok(_) => {
                let outcome = self.outcome.get(&vip)?;
                Some(outcome.as_ref().map(drop).map_err(Reason::clone))
            }
        }
    }

    /// Takes off what was added: the end.
    pub(super) async fn release_all(&self) {
        if let Ok(addresses) = &self.addresses {
            addresses.release_all().await;
        }
    }
}
