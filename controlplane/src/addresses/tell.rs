//! Tells neighbours what [`announce`](super::announce) says is due: thin I/O.

use std::future::pending;
use std::io;
use std::net::IpAddr;
use std::time::Instant;

use lb_core::link::Packets;
use tokio::time::sleep_until;

use super::announce::Announcer;
use super::plan::Interface;

/// What goes out to the links.
pub(super) struct Teller {
    announcer: Announcer,
    /// `None` once it was said why there is none.
    packets: Option<io::Result<Packets>>,
}

impl Teller {
    /// In the network namespace of the calling thread.
    pub(super) fn new() -> Teller {
        Teller {
            announcer: Announcer::default(),
            packets: Some(Packets::open()),
        }
    }

    /// `address` was put on `interface`.
    pub(super) fn added(&mut self, address: IpAddr, interface: &Interface) {
        // Loopback and tunnels have no neighbours that ask.
        if let (Some(mac), false) = (interface.mac, interface.is_loopback) {
            let now = Instant::now();
            self.announcer.add(address, interface.index, mac, now);
        }
    }

    /// It was taken from there.
    pub(super) fn removed(&mut self, address: IpAddr, interface: u32) {
        self.announcer.remove(address, interface);
    }

    /// Returns when something is due.
    pub(super) fn due(&self) -> impl Future<Output = ()> + use<> {
        let due = self.announcer.due();
        async move {
            match due {
                Some(due) => sleep_until(due.into()).await,
                None => pending().await,
            }
        }
    }

    /// Says what is due.
    pub(super) fn speak(&mut self) {
        let due = self.announcer.take(Instant::now());
        if due.is_empty() {
            return;
        }
        let packets = match self.packets.take() {
            Some(Ok(packets)) => packets,
            Some(Err(error)) => return unable(&error),
            None => return,
        };
        for announcement in due {
            for (ether_type, to, payload) in announcement.frames() {
                let sent = packets.send(announcement.interface, ether_type, to, &payload);
                if let Err(error) = sent {
                    // It is said again; past that neighbours find out by themselves.
                    tracing::debug!(address = %announcement.address, %error, "an announcement was not sent");
                }
            }
        }
        self.packets = Some(Ok(packets));
    }
}

/// Once: a machine that takes no address over from another needs none of it.
fn unable(error: &io::Error) {
    tracing::warn!(
        %error,
        "no packet socket: neighbours are not told of addresses that come to this machine, and those that knew one elsewhere may go on sending there for minutes; grant CAP_NET_RAW (and AF_PACKET in a sandbox)"
    );
}
