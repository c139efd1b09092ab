//! The whole transition table, one state and event after the other, and the limits.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::fixture::{Fixed, backend, client, rules};
use super::*;

fn secs(s: u64) -> Time {
    Time::from_micros(s * 1_000_000)
}

fn small() -> Limits {
    Limits {
        flows: 4,
        flows_per_source: 2,
        ..Limits::default()
    }
}

fn flows() -> Flows<&'static str> {
    Flows::new(Limits::default(), [7; 16])
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    OneWay,
    OneWayRefused,
    TwoWay,
    TwoWayRefused,
}

fn open(f: &mut Flows<&'static str>, now: Time, from: SocketAddr, r: &Fixed) -> FlowId {
    match f.datagram(now, from, r) {
        Verdict::Open {
            admission,
            shed: None,
        } => f.open(now, admission, r.backends[0], "a"),
        other => panic!("expected Open, got {other:?}"),
    }
}

/// A table with one flow in `state`, last used at one second.
fn in_state(state: State) -> (Flows<&'static str>, FlowId, Fixed) {
    let (mut f, r) = (flows(), rules());
    let id = open(&mut f, secs(1), client(1, 9), &r);
    assert!(!f.sent(id, b"one"));
    if matches!(state, State::TwoWay | State::TwoWayRefused) {
        f.replied(secs(1), id, r.timeouts);
    }
    if matches!(state, State::OneWayRefused | State::TwoWayRefused) {
        f.refused(id);
    }
    (f, id, r)
}

const STATES: [State; 4] = [
    State::OneWay,
    State::OneWayRefused,
    State::TwoWay,
    State::TwoWayRefused,
];

#[test]
fn a_datagram_is_forwarded_unless_the_backend_has_refused() {
    for state in STATES {
        let (mut f, id, r) = in_state(state);
        let verdict = f.datagram(secs(2), client(1, 9), &r);
        match (state, verdict) {
            (State::OneWay | State::TwoWay, Verdict::Forward(flow)) => assert_eq!(flow, id),
            (State::OneWayRefused | State::TwoWayRefused, Verdict::Move { flow, avoid }) => {
                assert_eq!((flow, avoid), (id, Some(backend(1))));
            }
            (state, verdict) => panic!("{state:?}: {verdict:?}"),
        }
    }
}

#[test]
fn a_vanished_backend_moves_the_flow_and_a_draining_one_keeps_it() {
    for state in STATES {
        let (mut f, id, mut r) = in_state(state);
        r.epoch = 2;
        r.backends = vec![backend(2)];
        match f.datagram(secs(2), client(1, 9), &r) {
            Verdict::Move { flow, avoid: None } => assert_eq!(flow, id),
            other => panic!("{state:?}: {other:?}"),
        }
        assert_eq!(f.moved(secs(2), id, backend(2), &r, "b"), Some("a"));
        assert!(matches!(
            f.datagram(secs(3), client(1, 9), &r),
            Verdict::Forward(flow) if flow == id
        ));
        assert_eq!(f.backend(id), Some(backend(2)));
    }
    // Still held, so it stays: draining is a state of a backend that the pool has.
    let (mut f, id, mut r) = in_state(State::TwoWay);
    r.epoch = 2;
    r.backends.rotate_left(1);
    assert!(matches!(
        f.datagram(secs(2), client(1, 9), &r),
        Verdict::Forward(flow) if flow == id
    ));
}

#[test]
fn a_source_denied_later_is_dropped_at_its_next_datagram_and_its_flow_ends() {
    for state in STATES {
        let (mut f, id, mut r) = in_state(state);
        r.epoch = 2;
        r.denied = vec![client(1, 9).ip()];
        match f.datagram(secs(2), client(1, 9), &r) {
            Verdict::Drop {
                reason: Refusal::SourceDenied,
                closed: Some(closed),
            } => assert_eq!(closed.part, "a"),
            other => panic!("{state:?}: {other:?}"),
        }
        assert!(f.is_empty() && f.part(id).is_none());
        assert_eq!(f.copy_bytes(), 0);
    }
}

/// The move answers a refusal, not a datagram: nobody has asked then whether the client may go on.
#[test]
fn a_move_does_not_hide_a_change_of_policy() {
    for state in STATES {
        let (mut f, id, mut r) = in_state(state);
        r.epoch = 2;
        r.denied = vec![client(1, 9).ip()];
        f.refused(id);
        f.moved(secs(2), id, backend(2), &r, "b");
        match f.datagram(secs(2), client(1, 9), &r) {
            Verdict::Drop {
                reason: Refusal::SourceDenied,
                closed: Some(_),
            } => {}
            other => panic!("{state:?}: {other:?}"),
        }
    }
}

#[test]
fn a_denied_source_never_gets_a_flow() {
    let (mut f, mut r) = (flows(), rules());
    r.denied = vec![client(1, 9).ip()];
    assert!(matches!(
        f.datagram(secs(1), client(1, 9), &r),
        Verdict::Drop {
            reason: Refusal::SourceDenied,
            closed: None
        }
    ));
}

#[test]
fn a_refusal_gives_the_copy_back_once_and_only_before_the_first_reply() {
    for (state, copy) in [
        (State::OneWay, Some(b"one".to_vec())),
        (State::OneWayRefused, None),
        (State::TwoWay, None),
        (State::TwoWayRefused, None),
    ] {
        let (mut f, id, _) = in_state(state);
        let refused = f.refused(id).expect("alive");
        assert_eq!((refused.backend, refused.copy), (backend(1), copy));
        assert_eq!(f.copy_bytes(), 0, "{state:?}");
    }
}

#[test]
fn the_copy_is_of_the_latest_datagram_and_starts_anew_with_each_backend() {
    let (mut f, id, r) = in_state(State::OneWay);
    f.sent(id, b"two");
    f.sent(id, b"three!");
    f.sent(id, b"");
    assert_eq!(f.refused(id).and_then(|r| r.copy), Some(vec![]));
    f.moved(secs(2), id, backend(2), &r, "b");
    assert_eq!(f.refused(id).and_then(|r| r.copy), None);
    f.moved(secs(2), id, backend(1), &r, "c");
    f.sent(id, b"four");
    f.moved(secs(2), id, backend(2), &r, "d");
    assert_eq!(
        f.refused(id).and_then(|r| r.copy),
        None,
        "kept for another backend"
    );
    // Two-way, but not yet answered by its new backend.
    f.moved(secs(2), id, backend(1), &r, "e");
    f.replied(secs(2), id, r.timeouts);
    f.moved(secs(2), id, backend(2), &r, "f");
    f.sent(id, b"five");
    assert_eq!(f.refused(id).and_then(|r| r.copy), Some(b"five".to_vec()));
}

#[test]
fn a_flow_that_stays_with_the_only_backend_is_forwarded_again() {
    for state in [State::OneWayRefused, State::TwoWayRefused] {
        let (mut f, id, r) = in_state(state);
        f.stayed(id);
        assert!(matches!(
            f.datagram(secs(2), client(1, 9), &r),
            Verdict::Forward(flow) if flow == id
        ));
    }
}

#[test]
fn copies_stop_at_their_limits() {
    let limits = Limits {
        copy_bytes: COPY_MAX + 10,
        ..Limits::default()
    };
    let (mut f, r) = (Flows::new(limits, [7; 16]), rules());
    let one = open(&mut f, secs(1), client(1, 1), &r);
    let two = open(&mut f, secs(1), client(1, 2), &r);
    assert!(!f.sent(one, &[1; COPY_MAX]));
    assert!(!f.sent(two, &[2; 10]));
    assert!(f.sent(two, &[2; 11]), "over the worker's budget");
    assert!(f.sent(one, &[1; COPY_MAX + 1]), "too long");
    assert_eq!(f.copy_bytes(), 0);
    assert_eq!(f.refused(one).and_then(|r| r.copy), None);
    assert!(!f.sent(two, &[2; 11]), "there is room again");
}

#[test]
fn each_state_expires_exactly_at_its_own_timeout() {
    for state in STATES {
        let (mut f, id, _) = in_state(state);
        let timeout = match state {
            State::OneWay | State::OneWayRefused => 30,
            State::TwoWay | State::TwoWayRefused => 120,
        };
        let deadline = secs(1 + timeout);
        let just_before = Time::from_micros(deadline.as_micros() - 1);
        assert_eq!(f.expire(just_before), None, "{state:?} early");
        assert!(f.next_deadline().is_some_and(|at| at <= deadline));
        let closed = f.expire(deadline).expect("due");
        assert_eq!(closed.two_way, timeout == 120);
        assert!(f.part(id).is_none() && f.is_empty());
        assert_eq!((f.copy_bytes(), f.sources.len()), (0, 0));
        assert!(f.frontends.is_empty() && f.one_way.is_empty());
    }
}

#[test]
fn use_moves_the_deadline_from_either_side() {
    let (mut f, id, r) = in_state(State::OneWay);
    f.datagram(secs(20), client(1, 9), &r);
    assert_eq!(f.expire(secs(31)), None);
    assert_eq!(f.next_deadline(), Some(secs(50)));
    f.replied(secs(49), id, r.timeouts);
    assert_eq!(f.expire(secs(168)), None);
    f.replied(secs(168), id, r.timeouts);
    assert_eq!(f.expire(secs(287)), None);
    assert!(f.expire(secs(288)).is_some());
}

#[test]
fn a_shorter_timeout_counts_from_the_next_datagram() {
    let (mut f, _, mut r) = in_state(State::TwoWay);
    r.epoch = 2;
    r.timeouts.two_way = Duration::from_secs(1);
    f.datagram(secs(2), client(1, 9), &r);
    assert_eq!(f.next_deadline(), Some(secs(3)));
    assert!(f.expire(secs(3)).is_some());
    assert_eq!(f.expire(secs(500)), None, "the alarms left behind are deaf");
}

#[test]
fn at_the_cap_the_oldest_unanswered_flow_makes_room_and_answered_ones_never() {
    let (mut f, r) = (Flows::new(small(), [7; 16]), rules());
    let ids: Vec<FlowId> = (1..=4)
        .map(|source| open(&mut f, secs(1), client(source, 1), &r))
        .collect();
    f.replied(secs(1), ids[0], r.timeouts);
    // Too young to shed: its reply may be on the way.
    assert!(matches!(
        f.datagram(secs(1), client(9, 1), &r),
        Verdict::Drop {
            reason: Refusal::FlowLimit,
            closed: None
        }
    ));
    for (n, gone) in ids.iter().enumerate().skip(1) {
        let newcomer = client(9 + n as u8, 1);
        match f.datagram(secs(2), newcomer, &r) {
            Verdict::Open {
                admission,
                shed: Some(shed),
            } => {
                assert!(!shed.two_way && f.part(*gone).is_none());
                let id = f.open(secs(2), admission, backend(1), "b");
                f.replied(secs(2), id, r.timeouts);
            }
            other => panic!("{other:?}"),
        }
    }
    assert!(f.part(ids[0]).is_some());
    assert!(matches!(
        f.datagram(secs(9), client(99, 1), &r),
        Verdict::Drop {
            reason: Refusal::FlowLimit,
            closed: None
        }
    ));
    assert_eq!(f.len(), 4);
}

#[test]
fn a_source_at_its_cap_pays_with_its_own_flows() {
    let (mut f, r) = (Flows::new(small(), [7; 16]), rules());
    let other = open(&mut f, secs(1), client(2, 1), &r);
    let first = open(&mut f, secs(1), client(1, 1), &r);
    let second = open(&mut f, secs(1), client(1, 2), &r);
    match f.datagram(secs(2), client(1, 3), &r) {
        Verdict::Open {
            admission,
            shed: Some(_),
        } => f.open(secs(2), admission, backend(1), "c"),
        verdict => panic!("{verdict:?}"),
    };
    assert!(f.part(first).is_none() && f.part(other).is_some());
    f.replied(secs(2), second, r.timeouts);
    assert!(matches!(
        f.datagram(secs(2), client(1, 4), &r),
        Verdict::Drop {
            reason: Refusal::SourceFlowLimit,
            ..
        }
    ));
    // The v4-mapped form of the address is the same source.
    let mapped = SocketAddr::new(
        IpAddr::V6(std::net::Ipv4Addr::new(192, 0, 2, 1).to_ipv6_mapped()),
        5,
    );
    assert!(matches!(
        f.datagram(secs(2), mapped, &r),
        Verdict::Drop {
            reason: Refusal::SourceFlowLimit,
            ..
        }
    ));
}

#[test]
fn a_frontend_closes_alone() {
    let (mut f, r) = (flows(), rules());
    let other = Fixed {
        frontend: 2,
        ..rules()
    };
    for port in 1..=3 {
        open(&mut f, secs(1), client(1, port), &r);
    }
    let kept = open(&mut f, secs(1), client(1, 1), &other);
    let mut closed = 0;
    while let Some(c) = f.close_one_of(1) {
        assert_eq!(c.frontend, 1);
        closed += 1;
    }
    assert_eq!((closed, f.len()), (3, 1));
    assert!(f.part(kept).is_some());
}

#[test]
fn events_of_a_dead_flow_are_ignored_even_when_its_slot_lives_again() {
    let (mut f, id, r) = in_state(State::OneWay);
    f.close(id);
    let again = open(&mut f, secs(2), client(1, 9), &r);
    assert_eq!(again.index(), id.index());
    assert_ne!(again, id);
    assert_eq!(f.refused(id), None);
    assert_eq!(f.replied(secs(2), id, r.timeouts), None);
    assert_eq!(f.moved(secs(2), id, backend(2), &r, "x"), None);
    assert_eq!(f.close(id), None);
    assert!(!f.sent(id, b"x"));
    assert_eq!(f.backend(again), Some(backend(1)));
}

#[test]
fn a_flow_takes_its_alarm_with_it() {
    let (mut f, r) = (Flows::new(small(), [7; 16]), rules());
    for n in 0..20_000u64 {
        let now = secs(n);
        let from = client((n % 200) as u8, 1);
        if let Verdict::Open { admission, .. } = f.datagram(now, from, &r) {
            let id = f.open(now, admission, backend(1), "a");
            f.close(id);
        }
    }
    assert_eq!((f.deadlines.len(), f.next_deadline()), (0, None));
}

/// Timeouts that shrink again and again leave an alarm behind for every flow each time.
#[test]
fn alarms_replaced_by_earlier_ones_do_not_pile_up() {
    let (mut f, mut r) = (flows(), rules());
    let ports = 1..=1_000;
    for port in ports.clone() {
        open(&mut f, secs(1), client(1, port), &r);
    }
    for seconds in (10..20).rev() {
        r.epoch += 1;
        r.timeouts.one_way = Duration::from_secs(seconds);
        for port in ports.clone() {
            f.datagram(secs(1), client(1, port), &r);
        }
    }
    assert!(f.deadlines.len() > 10_000);
    f.close_any();
    assert_eq!(f.deadlines.len(), f.len());
}
