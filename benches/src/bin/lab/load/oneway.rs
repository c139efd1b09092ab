//! Datagrams one way: a thread that sends in the client's namespace and counts in the server's.
//!
//! It knows how many are under way, so this too is a closed loop: at most [`WINDOW`] of them.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::time::Duration;

use anyhow::Result;

use super::poll::{EventFlags, Poll};
use super::udp::{BATCH, Batch, bind, connect};
use super::{Counters, Route, UDP_SINK};
use crate::net::{Door, backends};

/// Datagrams under way.
const WINDOW: usize = 1_024;
/// Flows that send them, a batch each in turn.
const FLOWS: usize = 16;
/// When nothing arrives for this long, what is under way is lost.
const PATIENCE: Duration = Duration::from_millis(50);

/// Sends until it is told to stop. Starts in the client's namespace; `server` leads to the other.
pub fn run(server: &Door, client: &Door, route: &Route, counters: &Counters) -> Result<()> {
    server.enter()?;
    let mut poll = Poll::new()?;
    let mut sinks: Vec<OwnedFd> = Vec::new();
    for address in backends() {
        let sink = bind(SocketAddr::new(address.into(), UDP_SINK))?;
        poll.add(&sink, sinks.len(), EventFlags::IN)?;
        sinks.push(sink);
    }
    client.enter()?;
    let mut flows = Vec::new();
    for n in 0..FLOWS {
        let (source, target) = route.pair(n, UDP_SINK);
        flows.push(connect(source.into(), target.into())?);
    }
    let (mut batch, mut under_way, mut turn) = (Batch::new(), 0, 0);
    while !counters.stopped() {
        while under_way + BATCH <= WINDOW {
            let sent = batch.send(&flows[turn % FLOWS], BATCH, true)?;
            turn += 1;
            under_way += sent;
            if sent == 0 {
                break;
            }
        }
        let mut came = 0;
        for n in 0..poll.wait(PATIENCE)? {
            let (sink, _) = poll.at(n);
            came += batch.receive(&sinks[sink])?;
        }
        if came == 0 {
            Counters::add(&counters.lost, under_way as u64);
            under_way = 0;
        }
        Counters::add(&counters.ops, came as u64);
        under_way = under_way.saturating_sub(came);
    }
    Ok(())
}
