//! The real kernel, in a network namespace of the test's own. The test runs itself again inside.

use std::process::{Child, Command as Process, Stdio};

use super::*;
use crate::allocate::{Pools, Record};

/// Set inside the namespace, to what the process there is to do.
const ROLE: &str = "WEIR_ADDRESSES_TEST_ROLE";

fn this_test(wrapper: &[&str], test: &str, role: &str) -> Process {
    let mut process = Process::new(wrapper[0]);
    process
        .args(&wrapper[1..])
        .arg(std::env::current_exe().expect("the test's own path"))
        .args([
            "--exact",
            &format!("addresses::tests::{test}"),
            "--nocapture",
        ])
        .env(ROLE, role);
    process
}

/// Runs `inside` in a fresh namespace, or another `role` as asked for by `this_test`.
fn in_namespace(test: &str, inside: impl AsyncFnOnce(&str)) {
    if let Ok(role) = std::env::var(ROLE) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        return runtime.expect("a runtime").block_on(inside(&role));
    }
    let can = Process::new("unshare").args(["-n", "true"]).output();
    if !can.is_ok_and(|output| output.status.success()) {
        println!("SKIP: {test}: a network namespace needs root and unshare(1)");
        return;
    }
    let output = this_test(&["unshare", "-n"], test, "main")
        .output()
        .expect("unshare runs");
    let text =
        [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
    assert!(output.status.success(), "{}", text.join("\n"));
    assert!(text[0].contains("1 passed"), "the test is not named {test}");
}

fn ip(line: &str) -> String {
    let output = Process::new("ip")
        .args(line.split_whitespace())
        .output()
        .expect("ip(8)");
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "ip {line}: {error}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// A link up with both families.
fn link() {
    ip("link set lo up");
    ip("link add eth0 type veth peer name eth1");
    ip("link set eth0 up");
    ip("link set eth1 up");
    ip("addr add 192.0.2.1/24 dev eth0");
    ip("addr add 2001:db8::1/64 dev eth0 nodad");
}

fn set(text: &str) -> BTreeSet<IpAddr> {
    text.split_whitespace()
        .map(|text| text.parse().expect("an address"))
        .collect()
}

/// Of an appliance whose pools are `ranges`.
fn own_of(ranges: &str) -> Own {
    let ranges = ranges.split_whitespace().map(|range| range.parse());
    let ranges = ranges.collect::<Result<_, _>>().expect("ranges");
    let pools = Pools::new([(None, ranges)], []).expect("one pool");
    Own::new(pools, &Record::default())
}

/// Of an appliance that has every address of these tests.
fn own() -> Own {
    own_of("192.0.2.0/24 198.51.100.0/24 203.0.113.0/24 2001:db8::/32")
}

fn has(interface: &str, address: &str) -> bool {
    ip(&format!("-o addr show dev {interface}")).contains(&format!(" {address} "))
}

/// A deadline, not a sleep.
async fn eventually(what: &str, holds: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(5);
    while !holds() {
        assert!(Instant::now() < deadline, "{what}");
        sleep(Duration::from_millis(10)).await;
    }
}

fn placed(outcome: &Outcome, address: &str) -> Placed {
    let address: IpAddr = address.parse().expect("an address");
    *outcome[&address]
        .as_ref()
        .unwrap_or_else(|reason| panic!("{reason}"))
}

#[test]
fn added_used_as_it_is_moved_and_removed() {
    in_namespace("added_used_as_it_is_moved_and_removed", async |_| {
        link();
        let vips = "192.0.2.7 198.51.100.1 2001:db8::7 2001:db8:9::1";
        let addresses = Addresses::new(None, own()).await.expect("netlink");
        let outcome = addresses
            .ensure(&set(&format!("{vips} 192.0.2.1 127.0.0.9")))
            .await;
        assert_eq!(placed(&outcome, "192.0.2.1"), Placed::Found);
        assert_eq!(placed(&outcome, "127.0.0.9"), Placed::Found);
        assert!(has("eth0", "192.0.2.7/32") && has("eth0", "2001:db8::7/128"));
        assert!(has("lo", "198.51.100.1/32") && has("lo", "2001:db8:9::1/128"));
        let v6 = ip("-d -o addr show to 2001:db8::7/128");
        assert!(v6.contains("nodad") && !v6.contains("tentative"), "{v6}");
        for vip in vips.split(' ') {
            std::net::TcpListener::bind((vip, 0)).expect("usable at once");
        }
        // Given up: ours goes, theirs stays.
        addresses.ensure(&set("2001:db8::7")).await;
        assert!(!has("eth0", "192.0.2.7/32") && !has("lo", "198.51.100.1/32"));
        assert!(has("eth0", "192.0.2.1/24") && has("eth0", "2001:db8::7/128"));
        // Another process takes it away: it is back, without a word from us.
        ip("addr del 2001:db8::7/128 dev eth0");
        eventually("repaired", || has("eth0", "2001:db8::7/128")).await;
        // A subnet that comes later draws its VIP from lo.
        addresses.ensure(&set("203.0.113.9 2001:db8::7")).await;
        assert!(has("lo", "203.0.113.9/32"));
        ip("addr add 203.0.113.1/24 dev eth0");
        eventually("moved", || {
            has("eth0", "203.0.113.9/32") && !has("lo", "203.0.113.9/32")
        })
        .await;
        addresses.release_all().await;
        assert!(!has("eth0", "203.0.113.9/32") && !has("eth0", "2001:db8::7/128"));
        assert!(has("eth0", "203.0.113.1/24") && has("eth0", "2001:db8::1/64"));
        // Released, nothing is repaired or touched.
        ip("addr add 203.0.113.50/32 dev lo");
        let configured = Addresses::new(Some("eth1".into()), own())
            .await
            .expect("netlink");
        let outcome = configured.ensure(&set("203.0.113.50 203.0.113.51")).await;
        assert_eq!(placed(&outcome, "203.0.113.50"), Placed::Found);
        assert!(has("eth1", "203.0.113.51/32"));
        configured.release_all().await;
        assert!(has("lo", "203.0.113.50/32") && !has("eth1", "203.0.113.51/32"));
        let missing = Addresses::new(Some("eth9".into()), own())
            .await
            .expect("netlink");
        let outcome = missing.ensure(&set("203.0.113.51")).await;
        let text = outcome
            .values()
            .next()
            .and_then(|one| one.as_ref().err())
            .map(ToString::to_string);
        assert!(text.is_some_and(|text| text.contains("there is no interface eth9")));
    });
}

/// Killed with its test, whatever happens.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn leftovers_of_a_killed_process_are_taken_over_or_cleaned() {
    let test = "leftovers_of_a_killed_process_are_taken_over_or_cleaned";
    in_namespace(test, async |role| {
        let vips = set("192.0.2.7 192.0.2.8 2001:db8::7");
        if role == "hold" {
            Addresses::new(None, own())
                .await
                .expect("netlink")
                .ensure(&vips)
                .await;
            return std::future::pending().await;
        }
        link();
        let holder = this_test(&["env"], test, "hold")
            .stdout(Stdio::null())
            .spawn();
        let holder = Killed(holder.expect("started"));
        eventually("held", || {
            has("eth0", "192.0.2.8/32") && has("eth0", "2001:db8::7/128")
        })
        .await;
        drop(holder);
        assert!(has("eth0", "192.0.2.7/32"), "killed, it left them");
        let marked = ip("-d -o addr show to 192.0.2.7/32");
        assert!(
            marked.contains("proto 0x77") || !marked.contains("proto"),
            "{marked}"
        );
        let addresses = Addresses::new(None, own()).await.expect("netlink");
        assert!(
            has("eth0", "192.0.2.8/32"),
            "nothing is cleaned before the first word"
        );
        let outcome = addresses.ensure(&set("192.0.2.7")).await;
        assert!(
            matches!(placed(&outcome, "192.0.2.7"), Placed::Added { .. }),
            "taken over"
        );
        assert!(has("eth0", "192.0.2.7/32"));
        assert!(
            !has("eth0", "192.0.2.8/32") && !has("eth0", "2001:db8::7/128"),
            "cleaned"
        );
        addresses.release_all().await;
        assert!(!has("eth0", "192.0.2.7/32") && has("eth0", "192.0.2.1/24"));
    });
}

#[test]
fn what_another_appliance_added_is_left_alone() {
    in_namespace("what_another_appliance_added_is_left_alone", async |_| {
        link();
        let a = Addresses::new(None, own_of("192.0.2.0/28"))
            .await
            .expect("netlink");
        a.ensure(&set("192.0.2.7 203.0.113.7")).await;
        let b = Addresses::new(None, own_of("192.0.2.16/28"))
            .await
            .expect("netlink");
        let there = || has("eth0", "192.0.2.7/32") && has("lo", "203.0.113.7/32");
        for wanted in ["", "192.0.2.17", "192.0.2.7 192.0.2.17"] {
            let outcome = b.ensure(&set(wanted)).await;
            assert!(there(), "{wanted}");
            if wanted.contains("192.0.2.7 ") {
                assert_eq!(placed(&outcome, "192.0.2.7"), Placed::Found);
            }
        }
        b.release_all().await;
        assert!(there() && !has("eth0", "192.0.2.17/32"));
        // What this process added is its own, in a pool or not.
        a.release_all().await;
        assert!(!has("eth0", "192.0.2.7/32") && !has("lo", "203.0.113.7/32"));
    });
}

#[test]
fn without_the_privilege_it_says_what_to_do() {
    let test = "without_the_privilege_it_says_what_to_do";
    in_namespace(test, async |role| {
        if role == "main" {
            link();
            let unprivileged = ["setpriv", "--bounding-set=-net_admin"];
            let status = this_test(&unprivileged, test, "unprivileged").status();
            assert!(status.expect("setpriv(1) runs").success());
            return;
        }
        let addresses = Addresses::new(None, own()).await.expect("netlink");
        let outcome = addresses
            .ensure(&set("192.0.2.1 192.0.2.7 2001:db8::7"))
            .await;
        assert_eq!(
            placed(&outcome, "192.0.2.1"),
            Placed::Found,
            "what is there works"
        );
        for (vip, command) in [
            ("192.0.2.7", "CAP_NET_ADMIN: grant it"),
            ("192.0.2.7", "ip addr add 192.0.2.7/32 dev eth0"),
            ("2001:db8::7", "ip addr add 2001:db8::7/128 dev eth0 nodad"),
        ] {
            let address: IpAddr = vip.parse().expect("an address");
            let reason = outcome[&address].as_ref().expect_err("not permitted");
            assert_eq!(reason.code(), "AddressNotAdded");
            assert!(reason.to_string().contains(command), "{reason}");
        }
    });
}

/// A neighbour that knew the addresses at another machine finds them here without asking, and again
/// should it have missed the first word.
#[test]
fn k14_neighbours_are_told_of_what_was_added() {
    let test = "k14_neighbours_are_told_of_what_was_added";
    in_namespace(test, async |_| {
        link();
        let neighbour = Neighbour::start().await;
        let shown = ip("-o link show dev eth0");
        let (_, after) = shown.split_once("link/ether ").expect("an Ethernet link");
        let here = after.split_whitespace().next().expect("a MAC").to_owned();
        let (vips, elsewhere) = (["192.0.2.7", "2001:db8::7"], "02:00:00:00:00:63");
        let forget = || {
            for vip in vips {
                let entry = format!("neigh replace {vip} lladdr {elsewhere} dev eth1 nud stale");
                neighbour.ip(&entry);
            }
        };
        let knows = |mac: &str| {
            let all = neighbour.ip("neigh show dev eth1");
            vips.iter()
                .all(|vip| all.contains(&format!("{vip} lladdr {mac} ")))
        };
        forget();
        assert!(knows(elsewhere));
        let addresses = Addresses::new(None, own()).await.expect("netlink");
        addresses.ensure(&set(&vips.join(" "))).await;
        eventually("it is told", || knows(&here)).await;
        forget();
        eventually("it is told again", || knows(&here)).await;
        // What is gone is not announced: it may be another's.
        addresses.ensure(&set("")).await;
        forget();
        sleep(Duration::from_millis(2_500)).await;
        assert!(knows(elsewhere));
    });
}

/// Another machine, at the other end of the link.
struct Neighbour(Child);

impl Neighbour {
    async fn start() -> Neighbour {
        let child = Process::new("unshare").args(["-n", "sleep", "60"]).spawn();
        let neighbour = Neighbour(child.expect("unshare(1) runs"));
        let pid = neighbour.0.id();
        let net = |pid: &str| std::fs::read_link(format!("/proc/{pid}/ns/net")).ok();
        eventually("it is on its own", || {
            let there = net(&pid.to_string());
            there.is_some() && there != net("self")
        })
        .await;
        ip(&format!("link set eth1 netns {pid}"));
        neighbour.ip("link set eth1 up");
        neighbour.ip("addr add 192.0.2.2/24 dev eth1");
        neighbour.ip("addr add 2001:db8::2/64 dev eth1 nodad");
        neighbour
    }

    fn ip(&self, line: &str) -> String {
        let output = Process::new("nsenter")
            .args(["-n", "-t", &self.0.id().to_string(), "ip"])
            .args(line.split_whitespace())
            .output()
            .expect("nsenter(1) runs");
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "ip {line}: {error}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }
}

impl Drop for Neighbour {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
