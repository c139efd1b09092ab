use std::net::{Ipv4Addr, Ipv6Addr, TcpListener, TcpStream, UdpSocket};

use super::*;

/// Both ways of reading, by name.
type Count = fn(&Asked) -> io::Result<HashMap<SocketAddr, usize>>;
const WAYS: [(&str, Count); 2] = [("sock_diag", sock_diag::count), ("proc", proc_net::count)];

fn asked(protocol: Protocol, is_v4: bool, time_wait: bool) -> Asked {
    let range = local_ports().expect("proc");
    Asked {
        protocol,
        is_v4,
        range,
        time_wait,
    }
}

#[test]
fn what_this_process_dials_is_seen() {
    for here in [
        IpAddr::from(Ipv4Addr::LOCALHOST),
        Ipv6Addr::LOCALHOST.into(),
    ] {
        let Ok(listener) = TcpListener::bind((here, 0)) else {
            println!("{here}: not here, skipped");
            continue;
        };
        let to = listener.local_addr().expect("bound");
        let datagrams = UdpSocket::bind((here, 0)).expect("a socket");
        let datagrams_to = datagrams.local_addr().expect("bound");
        let dialled: Vec<_> = (0..20).map(|_| TcpStream::connect(to)).collect();
        let flow = UdpSocket::bind((here, 0)).expect("a socket");
        flow.connect(datagrams_to).expect("connected");
        for (way, count) in WAYS {
            let of = |protocol| count(&asked(protocol, here.is_ipv4(), true)).expect(way);
            assert_eq!(of(Protocol::Tcp).get(&to), Some(&20), "{way} {here}");
            let flows = of(Protocol::Udp);
            assert_eq!(flows.get(&datagrams_to), Some(&1), "{way} {here}");
            assert_eq!(flows.get(&SocketAddr::new(here, 0)), None, "{way}");
        }
        assert!(dialled.iter().all(Result::is_ok));
        let used = PortUse::read(&[]).expect("proc");
        let range = local_ports().expect("proc");
        assert!(used.tcp >= 20.0 / range.count() as f64, "{used:?}");
    }
}

#[test]
fn time_wait_counts_when_it_is_asked_for() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a listener");
    let to = listener.local_addr().expect("bound");
    let open = TcpStream::connect(to).expect("connected");
    for _ in 0..5 {
        // The dialling side closes first, so the TIME_WAIT is its own.
        let dialled = TcpStream::connect(to).expect("connected");
        let (mut accepted, _) = listener.accept().expect("accepted");
        if accepted.peer_addr().ok() == open.local_addr().ok() {
            (accepted, _) = listener.accept().expect("accepted");
        }
        drop(dialled);
        assert_eq!(io::copy(&mut accepted, &mut io::sink()).expect("an end"), 0);
    }
    for (way, count) in WAYS {
        let of = |time_wait| count(&asked(Protocol::Tcp, true, time_wait)).expect(way);
        assert_eq!(of(true).get(&to), Some(&6), "{way}");
        assert_eq!(of(false).get(&to), Some(&1), "{way}");
    }
}

#[test]
fn ports_outside_the_range_are_left_out_by_the_kernel() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a listener");
    let to = listener.local_addr().expect("bound");
    let dialled = TcpStream::connect(to).expect("connected");
    let port = dialled.local_addr().expect("connected").port();
    for (way, count) in WAYS {
        let of = |range| {
            let asked = Asked {
                range,
                ..asked(Protocol::Tcp, true, true)
            };
            count(&asked).expect(way).get(&to).copied()
        };
        assert_eq!(of(port..=port), Some(1), "{way}");
        assert_eq!(of(1..=port - 1), None, "{way}");
        assert_eq!(of(port + 1..=u16::MAX), None, "{way}");
    }
}
