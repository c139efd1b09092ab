//! The process runs out of descriptors under UDP. Alone in its process: the limit is the process's.

mod common;

use common::*;
use lb_core::stats::{DropReason, FrontendTotals};
use lb_core::table::Protocol;
use rustix::process::{Resource, getrlimit, setrlimit};

/// Something else in the process takes every descriptor: a datagram that would need a new flow is
/// dropped and counted as that, known flows go on, and service is back as soon as descriptors are.
#[test]
fn flows_without_descriptors() {
    let spec = spec(Protocol::Udp, loopback(), &[udp_echo()]);
    let address = (spec.key.address, spec.key.port.get()).into();
    let rig = Rig::start(2, std::slice::from_ref(&spec));
    let totals = || -> FrontendTotals {
        let owner = spec.owner.clone();
        rig.handle.stats().frontends[&(spec.key, owner)].clone()
    };
    let known: Vec<_> = (0..10).map(|_| udp_client(address)).collect();
    for client in &known {
        ping(client).expect("an echo");
    }
    let new: Vec<_> = (0..20).map(|_| udp_client(address)).collect();
    let before = getrlimit(Resource::Nofile);
    let filler = exhaust();

    for client in &new {
        client.send(b"lost").expect("a route");
    }
    eventually("each is counted", || {
        totals().dropped(DropReason::DescriptorLimit) == new.len() as u64
    });
    for client in &known {
        ping(client).expect("known flows go on");
    }
    let during = totals();
    assert_eq!(during.flows_active, known.len() as u64);
    assert_eq!(during.flows_opened, known.len() as u64);
    let dropped: u64 = DropReason::ALL.iter().map(|r| during.dropped(*r)).sum();
    assert_eq!(dropped, new.len() as u64, "under that reason and no other");

    setrlimit(Resource::Nofile, before).expect("back to the old limit");
    drop(filler);
    for client in &new {
        ping(client).expect("served again");
    }
    assert_eq!(totals().flows_active, (known.len() + new.len()) as u64);
    let workers = rig.handle.stats().workers;
    let held: u64 = workers.iter().map(|w| w.descriptors).sum();
    assert_eq!(held, totals().flows_active, "no failed try kept its place");
}
