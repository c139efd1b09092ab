//! FINs, resets and timeouts: each arrives as what it was, after what came before it.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr};
use std::thread;
use std::time::{Duration, Instant};

use super::harness::*;
use crate::stats::{CloseReason, ConnectError};
use crate::table::Policy;

const MANY: usize = 8 << 20;

#[test]
fn a_fin_each_way_in_every_order() {
    // The client first, the server first, both at once.
    for order in 0..3 {
        let (proxy, mut client, mut server) = pair(policy());
        client.write_all(b"from the client").expect("open");
        server.write_all(b"from the server").expect("open");
        match order {
            0 => {
                client.shutdown(Shutdown::Write).expect("open");
                same(&read_to_fin(&mut server), b"from the client");
                server.shutdown(Shutdown::Write).expect("open");
            }
            1 => {
                server.shutdown(Shutdown::Write).expect("open");
                same(&read_to_fin(&mut client), b"from the server");
                client.shutdown(Shutdown::Write).expect("open");
            }
            _ => {
                client.shutdown(Shutdown::Write).expect("open");
                server.shutdown(Shutdown::Write).expect("open");
            }
        }
        if order != 0 {
            same(&read_to_fin(&mut server), b"from the client");
        }
        if order != 1 {
            same(&read_to_fin(&mut client), b"from the server");
        }
        proxy.settle_as(CloseReason::Finished, 1);
    }
}

#[test]
fn half_closed_each_way_the_other_runs_on() {
    for client_first in [true, false] {
        let (proxy, client, server) = pair(policy());
        let (mut closer, mut talker) = match client_first {
            true => (client, server),
            false => (server, client),
        };
        closer.write_all(b"last words").expect("open");
        closer.shutdown(Shutdown::Write).expect("open");
        let talking = thread::spawn(move || {
            same(&read_to_fin(&mut talker), b"last words");
            talker.write_all(&pattern(6, MANY)).expect("half open");
        });
        same(&read_to_fin(&mut closer), &pattern(6, MANY));
        talking.join().expect("sent");
        proxy.settle_as(CloseReason::Finished, 1);
    }
}

#[test]
fn a_reset_arrives_as_a_reset_and_soon() {
    for by_client in [true, false] {
        let (proxy, mut client, mut server) = pair(policy());
        client.write_all(b"hello").expect("open");
        server.read_exact(&mut [0; 5]).expect("open");
        // Past the delayed acknowledgement of the greeting.
        thread::sleep(Duration::from_millis(60));
        let start = Instant::now();
        let (reason, bytes) = match by_client {
            true => {
                reset(client);
                (CloseReason::DownstreamReset, read_to_reset(&mut server))
            }
            false => {
                reset(server);
                (CloseReason::UpstreamReset, read_to_reset(&mut client))
            }
        };
        // Not when a clock of the policy runs out.
        assert!(start.elapsed() < Duration::from_secs(10), "mirrored late");
        same(&bytes, b"");
        proxy.settle_as(reason, 1);
    }
}

#[test]
fn a_reset_after_half_close_stays_a_reset() {
    // Who sends FIN, and then who resets.
    for (client_fin, client_reset) in [(true, true), (true, false), (false, true), (false, false)] {
        let (proxy, mut client, mut server) = pair(policy());
        match client_fin {
            true => {
                client.shutdown(Shutdown::Write).expect("open");
                same(&read_to_fin(&mut server), b"");
            }
            false => {
                server.shutdown(Shutdown::Write).expect("open");
                same(&read_to_fin(&mut client), b"");
            }
        }
        let (left, reason) = match client_reset {
            true => {
                reset(client);
                (&mut server, CloseReason::DownstreamReset)
            }
            false => {
                reset(server);
                (&mut client, CloseReason::UpstreamReset)
            }
        };
        match client_fin == client_reset {
            // The one left has read the FIN already.
            true => reset_follows(left),
            false => same(&read_to_reset(left), b""),
        }
        proxy.settle_as(reason, 1);
    }
}

#[test]
fn data_and_a_reset_deliver_the_data_first() {
    for with_fin in [true, false] {
        for len in [1, 1_000, 60_000, 400_000] {
            let (proxy, mut client, mut server) = pair(policy());
            // A reset that comes before the proxy has seen the connect succeed is a failed try: the
            // next one would answer.
            client.write_all(&[7]).expect("open");
            server.read_exact(&mut [0]).expect("it is connected");
            let bytes = pattern(len as u64, len);
            server.write_all(&bytes).expect("the proxy takes it");
            if with_fin {
                server.shutdown(Shutdown::Write).expect("open");
            }
            flushed(&server);
            reset(server);
            // The reader is late: most of it waits in the proxy when the reset comes.
            thread::sleep(Duration::from_millis(30));
            let mut got = Vec::new();
            let mut piece = [0; 3_000];
            let end = loop {
                match client.read(&mut piece) {
                    Ok(0) => break Ok(()),
                    Ok(n) => got.extend(&piece[..n]),
                    Err(error) => break Err(error.kind()),
                }
            };
            same(&got, &bytes);
            match end {
                Ok(()) => {
                    assert!(with_fin, "a reset became a FIN");
                    reset_follows(&client);
                }
                Err(kind) => {
                    assert!(!with_fin, "the FIN was lost");
                    assert_eq!(kind, std::io::ErrorKind::ConnectionReset);
                }
            }
            proxy.settle_as(CloseReason::UpstreamReset, 1);
        }
    }
}

#[test]
fn a_client_that_resets_before_it_is_connected_ends_the_dialling() {
    let (_full, address) = black_hole();
    let slow = Policy {
        connect_timeout: Duration::from_secs(120),
        connect_budget: Duration::from_secs(120),
        ..policy()
    };
    let proxy = Proxy::start(V4, &[address], slow);
    let client = proxy.connect();
    until("it is accepted", || {
        proxy.counters.connections_active.value() == 1
    });
    reset(client);
    // Within PATIENCE: long before the dialling would end by itself.
    proxy.settle_as(CloseReason::DownstreamReset, 1);
    assert_eq!(proxy.connect_errors(), []);
}

/// Every other connection tries the backend that never answers, and meanwhile the client is gone.
#[test]
fn what_a_client_sent_before_it_reset_arrives_though_it_was_not_connected_yet() {
    let (_full, dead) = black_hole();
    let (address, streams) = one_backend(V4);
    let proxy = Proxy::start(V4, &[dead, address], policy());
    for _ in 0..2 {
        let mut client = proxy.connect();
        client.write_all(b"fire and forget").expect("open");
        flushed(&client);
        reset(client);
        let mut server = streams.recv_timeout(PATIENCE).expect("it is dialled");
        same(&read_to_reset(&mut server), b"fire and forget");
    }
    proxy.settle_as(CloseReason::DownstreamReset, 2);
    assert_eq!(proxy.connect_errors(), [(ConnectError::Timeout, 1)]);
}

#[test]
fn a_write_to_a_closed_server_comes_back_as_a_reset() {
    let (proxy, mut client, server) = pair(policy());
    // FIN, and then RST in answer to what comes: the server's process is gone.
    drop(server);
    same(&read_to_fin(&mut client), b"");
    until("the reset", || client.write_all(b"too late").is_err());
    proxy.settle_as(CloseReason::UpstreamReset, 1);
}

#[test]
fn timeouts_reset_both_sides() {
    let short = Duration::from_millis(150);
    let half = Policy {
        half_close_timeout: short,
        ..policy()
    };
    let (address, streams) = one_backend(V4);
    let proxy = Proxy::start(V4, &[address], half);
    let mut client = proxy.connect();
    let mut server = streams.recv_timeout(PATIENCE).expect("it is dialled");
    let untouched = (proxy.connect(), streams.recv_timeout(PATIENCE));
    client.shutdown(Shutdown::Write).expect("open");
    same(&read_to_fin(&mut server), b"");
    // Bytes put it off.
    for _ in 0..6 {
        thread::sleep(short / 3);
        server.write_all(b"x").expect("still open");
    }
    let start = Instant::now();
    same(&read_to_reset(&mut client), b"xxxxxx");
    assert!(start.elapsed() >= short / 2);
    until("the reset", || server.write_all(b"x").is_err());
    until("it ends", || {
        proxy.closed(CloseReason::HalfCloseTimeout) == 1
    });
    assert_eq!(proxy.counters.connections_active.value(), 1);
    drop(untouched);

    let idle = Policy {
        idle_timeout: short,
        ..policy()
    };
    let (proxy, mut client, mut server) = pair(idle);
    same(&read_to_reset(&mut client), b"");
    same(&read_to_reset(&mut server), b"");
    proxy.settle_as(CloseReason::IdleTimeout, 1);
}

#[test]
fn a_cut_resets_what_is_left() {
    let (proxy, mut client, mut server) = pair(policy());
    client.write_all(b"x").expect("open");
    server.read_exact(&mut [0]).expect("open");
    proxy.cut();
    same(&read_to_reset(&mut client), b"");
    same(&read_to_reset(&mut server), b"");
    proxy.settle_as(CloseReason::DrainDeadline, 1);
}

/// How many of these are in TIME-WAIT: pairs of a port here and one there. By both, since an old one
/// may have either.
fn time_waits(pairs: &[(u16, u16)]) -> usize {
    let table = std::fs::read_to_string("/proc/net/tcp").expect("proc is mounted");
    let port = |field: &str| {
        let (_, port) = field.rsplit_once(':')?;
        u16::from_str_radix(port, 16).ok()
    };
    let waits = table.lines().filter(|line| {
        let mut fields = line.split_whitespace().skip(1);
        let own = fields.next().and_then(port);
        let peer = fields.next().and_then(port);
        let pair = own.zip(peer);
        fields.next() == Some("06") && pair.is_some_and(|pair| pairs.contains(&pair))
    });
    waits.count()
}

/// Towards backends a TIME-WAIT holds a port for a minute. There is one only where the client
/// closed first: then our FIN went out first as well, and to leave TIME-WAIT early, or to reset
/// instead, could lose the backend's last bytes (RFC 9293 section 3.6.1).
#[test]
fn only_a_client_that_closes_first_leaves_a_port_waiting() {
    const TIMES: usize = 5;
    for (what, expected) in [("client", TIMES), ("server", 0), ("resets", 0), ("cut", 0)] {
        let (address, streams) = one_backend(V4);
        let proxy = Proxy::start(V4, &[address], policy());
        let (mut dials, mut accepted) = (Vec::new(), Vec::new());
        for _ in 0..TIMES {
            let mut client = proxy.connect();
            let mut server = streams.recv_timeout(PATIENCE).expect("it is dialled");
            let port = |end: std::io::Result<SocketAddr>| end.expect("connected").port();
            dials.push((port(server.peer_addr()), address.port()));
            accepted.push((proxy.address.port(), port(client.local_addr())));
            client.write_all(b"request").expect("open");
            server.read_exact(&mut [0; 7]).expect("it comes");
            match what {
                "client" => {
                    drop(client);
                    same(&read_to_fin(&mut server), b"");
                }
                "server" => {
                    drop(server);
                    same(&read_to_fin(&mut client), b"");
                }
                "resets" => {
                    reset(server);
                    same(&read_to_reset(&mut client), b"");
                }
                _ => {
                    proxy.cut();
                    same(&read_to_reset(&mut client), b"");
                }
            }
        }
        proxy.settle();
        until("the last segments have passed", || {
            time_waits(&dials) == expected
        });
        // At the clients' side they hold no port of ours; a reset leaves none there either.
        let ours = time_waits(&accepted);
        assert_eq!(ours, if what == "server" { TIMES } else { 0 }, "{what}");
    }
}
