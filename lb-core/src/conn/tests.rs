//! The transition table: every phase against every event.

use super::*;
use crate::stats::CloseReason;
use std::time::Duration;

const D: Side = Side::Downstream;
const U: Side = Side::Upstream;

fn at(ms: u64) -> Time {
    Time::from_micros(ms * 1000)
}

fn timeouts() -> Timeouts {
    Timeouts::new(
        Duration::from_millis(250),
        Duration::from_millis(1000),
        Duration::from_millis(60_000),
        Duration::from_millis(5_000),
    )
}

fn failed(side: Side, operation: Operation, cause: Cause) -> Event {
    Event::Failed {
        side,
        operation,
        cause,
    }
}

fn seen(side: Side, cause: Cause) -> Event {
    failed(side, Operation::SendOrWatch, cause)
}

fn got(side: Side, n: u32) -> Event {
    Event::Received { side, n }
}

fn sent(side: Side, n: u32) -> Event {
    Event::Sent { side, n }
}

struct Run {
    conn: Conn,
    now: Time,
}

impl Run {
    fn new() -> Run {
        Run {
            conn: Conn::new(timeouts()),
            now: at(0),
        }
    }

    /// Brought to a state by events whose actions do not matter here.
    fn after(events: &[Event]) -> Run {
        let mut run = Run::new();
        for event in events {
            run.does(*event);
        }
        run
    }

    fn relaying(events: &[Event]) -> Run {
        let start = [
            Event::Accepted { denied: false },
            Event::Picked { round: 0 },
            Event::Connected,
        ];
        Run::after(&[&start[..], events].concat())
    }

    fn does(&mut self, event: Event) -> Vec<Action> {
        let mut out = Actions::new();
        self.conn.step(self.now, event, &mut out);
        out.as_slice().to_vec()
    }

    fn at(&mut self, ms: u64, event: Event) -> Vec<Action> {
        self.now = at(ms);
        self.does(event)
    }

    #[track_caller]
    fn expect(&mut self, event: Event, actions: &[Action]) {
        assert_eq!(self.does(event), actions, "after {event:?}");
    }
}

const RESET_D: Action = Action::Reset { side: D };
const RESET_U: Action = Action::Reset { side: U };
const PICK: Event = Event::Picked { round: 0 };
const ACCEPTED: Event = Event::Accepted { denied: false };

fn close(reason: CloseReason) -> Action {
    Action::Close(reason)
}

fn every_event() -> Vec<Event> {
    let mut all = vec![
        Event::Accepted { denied: false },
        Event::Accepted { denied: true },
        PICK,
        Event::NoBackend,
        Event::Connected,
        Event::ConnectFailed(Cause::Refused),
        Event::Timer,
    ];
    for side in Side::BOTH {
        all.extend([got(side, 0), got(side, 5), sent(side, 0), sent(side, 5)]);
        all.extend([Event::Flushed { side }, Event::FlushProgress { side }]);
        for operation in [Operation::Receive, Operation::SendOrWatch] {
            all.push(failed(side, operation, Cause::Reset));
        }
    }
    all
}

/// In each state exactly the listed events do something; all others are late and ignored.
#[track_caller]
fn only(state: &[Event], expected: &[(Event, &[Action])]) {
    for event in every_event() {
        let actions = Run::after(state).does(event);
        match expected.iter().find(|(e, _)| *e == event) {
            Some((_, want)) => assert_eq!(actions, *want, "{state:?} then {event:?}"),
            None => assert_eq!(actions, [], "{state:?} then {event:?}"),
        }
    }
}

#[test]
fn new() {
    let denied = Event::Accepted { denied: true };
    only(
        &[],
        &[
            (ACCEPTED, &[Action::Pick { attempt: 0 }]),
            (denied, &[RESET_D, close(CloseReason::SourceDenied)]),
        ],
    );
}

#[test]
fn picking() {
    let gone = [RESET_D, close(CloseReason::DownstreamReset)];
    only(
        &[ACCEPTED],
        &[
            (PICK, &[Action::Connect, Action::Arm(at(250))]),
            (Event::NoBackend, &[RESET_D, close(CloseReason::NoBackend)]),
            (failed(D, Operation::Receive, Cause::Reset), &gone),
            (seen(D, Cause::Reset), &gone),
        ],
    );
}

#[test]
fn connecting() {
    let gone = [RESET_U, RESET_D, close(CloseReason::DownstreamReset)];
    only(
        &[ACCEPTED, PICK],
        &[
            (
                Event::Connected,
                &[Action::Receive { side: D }, Action::Receive { side: U }],
            ),
            (
                Event::ConnectFailed(Cause::Refused),
                &[Action::CloseUpstream, Action::Pick { attempt: 1 }],
            ),
            (failed(D, Operation::Receive, Cause::Reset), &gone),
            (seen(D, Cause::Reset), &gone),
            // It fired early.
            (Event::Timer, &[Action::Arm(at(250))]),
        ],
    );
}

#[test]
fn relaying_both_receiving() {
    let flush_u = [Action::AwaitFlush { side: U }, Action::Arm(at(60_000))];
    let flush_d = [Action::AwaitFlush { side: D }, Action::Arm(at(60_000))];
    // The connect timer fired, so none is armed.
    let state = [ACCEPTED, PICK, Event::Connected];
    let mut armed = Run::after(&state);
    armed.expect(Event::Timer, &[Action::Arm(at(60_000))]);
    let half_closed = |side| [Action::Shutdown { side }];
    only(
        &state,
        &[
            (got(D, 5), &[Action::Send { side: U }]),
            (got(U, 5), &[Action::Send { side: D }]),
            (got(D, 0), &half_closed(U)),
            (got(U, 0), &half_closed(D)),
            (failed(D, Operation::Receive, Cause::Reset), &flush_u[..1]),
            (failed(U, Operation::Receive, Cause::Reset), &flush_d[..1]),
            // Seen elsewhere: the receive that is outstanding tells what is left.
            (seen(D, Cause::Reset), &[]),
            (seen(U, Cause::Reset), &[]),
            (Event::Timer, &[Action::Arm(at(60_000))]),
        ],
    );
}

#[test]
fn relaying_while_a_send_is_outstanding() {
    let state = [ACCEPTED, PICK, Event::Connected, got(D, 12)];
    only(
        &state,
        &[
            (sent(U, 5), &[Action::Send { side: U }]),
            (got(U, 5), &[Action::Send { side: D }]),
            (got(U, 0), &[Action::Shutdown { side: D }]),
            // Upstream is gone and its queue used up: what waited for it is dropped.
            (sent(U, 0), &[]),
            (
                failed(U, Operation::Receive, Cause::Reset),
                &[Action::AwaitFlush { side: D }],
            ),
            (Event::Timer, &[Action::Arm(at(60_000))]),
        ],
    );
    let mut run = Run::after(&state);
    run.expect(sent(U, 7), &[Action::Send { side: U }]);
    run.expect(sent(U, 5), &[Action::Receive { side: D }]);
}

#[test]
fn flushing() {
    let state = [
        ACCEPTED,
        PICK,
        Event::Connected,
        failed(U, Operation::Receive, Cause::Reset),
    ];
    let end = [RESET_D, close(CloseReason::UpstreamReset)];
    only(
        &state,
        &[
            (Event::Flushed { side: D }, &end),
            (failed(D, Operation::Receive, Cause::Reset), &end),
            (seen(D, Cause::Reset), &end),
            (Event::Timer, &[Action::Arm(at(60_000))]),
        ],
    );
}

#[test]
fn closed() {
    only(&[Event::Accepted { denied: true }], &[]);
}

#[test]
fn fin_each_way_in_both_orders_completes() {
    for side in Side::BOTH {
        let peer = side.peer();
        let mut run = Run::relaying(&[got(side, 0)]);
        run.expect(got(peer, 9), &[Action::Send { side }]);
        run.expect(sent(side, 9), &[Action::Receive { side: peer }]);
        run.expect(
            got(peer, 0),
            &[Action::Shutdown { side }, close(CloseReason::Finished)],
        );
    }
}

#[test]
fn reset_with_nothing_pending_is_mirrored_at_once() {
    for side in Side::BOTH {
        let peer = side.peer();
        let mut run = Run::relaying(&[]);
        let actions = run.does(failed(side, Operation::Receive, Cause::Reset));
        assert_eq!(actions[0], Action::AwaitFlush { side: peer });
        let reason = match side {
            D => CloseReason::DownstreamReset,
            U => CloseReason::UpstreamReset,
        };
        run.expect(
            Event::Flushed { side: peer },
            &[Action::Reset { side: peer }, close(reason)],
        );
    }
}

#[test]
fn reset_after_fin_stays_a_reset() {
    for side in Side::BOTH {
        let peer = side.peer();
        let mut run = Run::relaying(&[got(side, 0)]);
        let actions = run.does(seen(side, Cause::BrokenPipe));
        assert_eq!(actions[0], Action::AwaitFlush { side: peer });
        let actions = run.does(Event::Flushed { side: peer });
        assert_eq!(actions[0], Action::Reset { side: peer });
    }
}

/// The other side resets after our FIN to it instead of sending its own.
#[test]
fn reset_in_answer_to_a_fin_stays_a_reset() {
    for side in Side::BOTH {
        let peer = side.peer();
        let mut run = Run::relaying(&[got(side, 0)]);
        let actions = run.does(failed(peer, Operation::Receive, Cause::Reset));
        assert_eq!(actions[0], Action::AwaitFlush { side });
        let actions = run.does(Event::Flushed { side });
        assert_eq!(actions[0], Action::Reset { side });
    }
}

#[test]
fn data_fin_reset_to_a_slow_reader_keeps_the_tail() {
    let mut run = Run::relaying(&[got(U, 100), sent(D, 10)]);
    run.expect(seen(U, Cause::BrokenPipe), &[]);
    run.expect(sent(D, 90), &[Action::Receive { side: U }]);
    run.expect(got(U, 50), &[Action::Send { side: D }]);
    run.expect(sent(D, 50), &[Action::Receive { side: U }]);
    run.expect(
        got(U, 0),
        &[Action::Shutdown { side: D }, Action::AwaitFlush { side: D }],
    );
    run.expect(Event::FlushProgress { side: D }, &[]);
    run.expect(
        Event::Flushed { side: D },
        &[RESET_D, close(CloseReason::UpstreamReset)],
    );
}

#[test]
fn end_of_queue_after_a_reset_is_no_fin() {
    for cause in [Cause::Reset, Cause::TimedOut, Cause::Unexpected] {
        let mut run = Run::relaying(&[seen(D, cause)]);
        assert_eq!(run.does(got(D, 0))[0], Action::AwaitFlush { side: U });
    }
}

#[test]
fn both_failed_closes_at_once_and_names_the_first() {
    let mut run = Run::relaying(&[got(U, 100), seen(U, Cause::Reset)]);
    run.expect(
        seen(D, Cause::TimedOut),
        &[RESET_U, RESET_D, close(CloseReason::UpstreamReset)],
    );
}

#[test]
fn a_failed_side_receives_nothing_more() {
    let mut run = Run::relaying(&[got(U, 100)]);
    run.expect(seen(D, Cause::Reset), &[]);
    // The send that failed reports late; upstream's further bytes are for nobody.
    run.expect(sent(D, 10), &[]);
    run.expect(got(U, 10), &[]);
    run.expect(got(D, 7), &[Action::Send { side: U }]);
    run.expect(sent(U, 7), &[Action::Receive { side: D }]);
    assert_eq!(
        run.does(failed(D, Operation::Receive, Cause::Reset))[0],
        Action::AwaitFlush { side: U }
    );
}

#[test]
fn a_stalled_flush_ends() {
    let mut run = Run::relaying(&[]);
    run.at(250, Event::Timer);
    run.at(1_000, failed(U, Operation::Receive, Cause::Reset));
    assert_eq!(
        run.at(60_000, Event::Timer),
        [Action::Arm(at(61_000))],
        "the idle timer fires first"
    );
    run.at(60_500, Event::FlushProgress { side: D });
    assert_eq!(run.at(61_000, Event::Timer), [Action::Arm(at(120_500))]);
    assert_eq!(
        run.at(120_500, Event::Timer),
        [RESET_D, close(CloseReason::UpstreamReset)]
    );
}

#[test]
fn a_failed_side_does_not_wait_for_the_idle_timer_of_a_peer_that_reads_nothing() {
    let hour = Duration::from_secs(3_600);
    let short = Duration::from_millis(250);
    let mut run = Run::new();
    run.conn = Conn::new(Timeouts::new(short, short, hour, hour));
    run.does(Event::Accepted { denied: false });
    run.does(Event::Picked { round: 0 });
    run.does(Event::Connected);
    assert_eq!(run.at(250, Event::Timer), [Action::Arm(at(3_600_000))]);
    assert_eq!(run.at(1_000, got(D, 9)), [Action::Send { side: U }]);
    assert_eq!(
        run.at(2_000, seen(D, Cause::Reset)),
        [Action::Arm(at(62_000))]
    );
    // It reads a little, and no more.
    assert_eq!(run.at(3_000, sent(U, 1)), [Action::Send { side: U }]);
    assert_eq!(run.at(62_000, Event::Timer), [Action::Arm(at(63_000))]);
    assert_eq!(
        run.at(63_000, Event::Timer),
        [RESET_U, RESET_D, close(CloseReason::DownstreamReset)]
    );
}

#[test]
fn bytes_move_the_idle_timer_only_when_it_fires() {
    let mut run = Run::relaying(&[]);
    assert_eq!(run.at(250, Event::Timer), [Action::Arm(at(60_000))]);
    assert_eq!(run.at(40_000, got(D, 1)), [Action::Send { side: U }]);
    run.at(40_000, sent(U, 1));
    assert_eq!(run.at(60_000, Event::Timer), [Action::Arm(at(100_000))]);
    assert_eq!(
        run.at(100_000, Event::Timer),
        [RESET_U, RESET_D, close(CloseReason::IdleTimeout)]
    );
}

#[test]
fn half_close_shortens_the_timer_and_bytes_extend_it() {
    let mut run = Run::relaying(&[]);
    run.at(250, Event::Timer);
    assert_eq!(
        run.at(1_000, got(D, 0)),
        [Action::Shutdown { side: U }, Action::Arm(at(6_000))]
    );
    run.at(5_999, got(U, 1));
    run.at(5_999, sent(D, 1));
    assert_eq!(run.at(6_000, Event::Timer), [Action::Arm(at(10_999))]);
    assert_eq!(
        run.at(10_999, Event::Timer),
        [RESET_U, RESET_D, close(CloseReason::HalfCloseTimeout)]
    );
}

#[test]
fn without_timeouts_nothing_is_armed() {
    let timeouts = Timeouts::new(
        Duration::from_millis(250),
        Duration::from_millis(1000),
        Duration::ZERO,
        Duration::ZERO,
    );
    let mut run = Run::relaying(&[]);
    run.conn = Conn::new(timeouts);
    for event in [ACCEPTED, PICK, Event::Connected] {
        run.does(event);
    }
    assert_eq!(run.at(250, Event::Timer), []);
    assert_eq!(run.at(300, got(D, 0)), [Action::Shutdown { side: U }]);
}

#[test]
fn a_try_that_times_out_goes_to_the_next_until_the_budget_ends() {
    let mut run = Run::after(&[ACCEPTED, PICK]);
    for attempt in 1..4u8 {
        let ms = u64::from(attempt) * 250;
        assert_eq!(
            run.at(ms, Event::Timer),
            [Action::CloseUpstream, Action::Pick { attempt }]
        );
        // All were tried long ago; the budget alone ends it.
        assert_eq!(
            run.does(Event::Picked { round: attempt }),
            [Action::Connect, Action::Arm(at(ms + 250))]
        );
    }
    assert_eq!(
        run.at(1000, Event::Timer),
        [
            Action::CloseUpstream,
            RESET_D,
            close(CloseReason::ConnectFailed)
        ]
    );
}

#[test]
fn the_last_try_is_cut_by_the_budget() {
    let mut run = Run::after(&[ACCEPTED, PICK]);
    run.at(900, Event::ConnectFailed(Cause::Refused));
    run.at(900, PICK);
    // The timer of the first try was never moved.
    assert_eq!(run.at(900, Event::Timer), [Action::Arm(at(1000))]);
    assert_eq!(
        run.at(1000, Event::Timer)[2],
        close(CloseReason::ConnectFailed)
    );
}

#[test]
fn refused_everywhere_is_a_reset_after_two_rounds() {
    let mut run = Run::after(&[ACCEPTED]);
    for round in 0..2 {
        assert_eq!(run.does(Event::Picked { round })[0], Action::Connect);
        let actions = run.does(Event::ConnectFailed(Cause::Refused));
        assert!(matches!(
            actions[..],
            [Action::CloseUpstream, Action::Pick { .. }]
        ));
    }
    run.expect(
        Event::Picked { round: 2 },
        &[RESET_D, close(CloseReason::ConnectFailed)],
    );
}

#[test]
fn out_of_descriptors_no_other_backend_is_tried() {
    let mut run = Run::after(&[ACCEPTED, PICK]);
    run.expect(
        Event::ConnectFailed(Cause::Exhausted),
        &[
            Action::CloseUpstream,
            RESET_D,
            close(CloseReason::DescriptorLimit),
        ],
    );
}

#[test]
fn the_last_backend_vanishing_between_tries_names_the_failure() {
    let mut run = Run::after(&[ACCEPTED, PICK, Event::ConnectFailed(Cause::Refused)]);
    run.expect(
        Event::NoBackend,
        &[RESET_D, close(CloseReason::ConnectFailed)],
    );
}

#[test]
fn tries_are_bounded_in_number() {
    let mut run = Run::after(&[ACCEPTED]);
    let mut tries = 0u8;
    while !run.conn.is_closed() {
        run.does(PICK);
        run.does(Event::ConnectFailed(Cause::Refused));
        tries += 1;
    }
    assert_eq!(tries, machine::MAX_TRIES);
}

#[test]
fn cut_and_shed_reset_whatever_is_open_in_every_state() {
    for (event, reason) in [
        (Event::Cut, CloseReason::DrainDeadline),
        (Event::Shed, CloseReason::MemoryPressure),
    ] {
        let reason = close(reason);
        let mut run = Run::after(&[ACCEPTED]);
        run.expect(event, &[RESET_D, reason]);
        let mut run = Run::after(&[ACCEPTED, PICK]);
        run.expect(event, &[RESET_U, RESET_D, reason]);
        let mut run = Run::relaying(&[got(D, 5)]);
        run.expect(event, &[RESET_U, RESET_D, reason]);
        let mut run = Run::relaying(&[failed(D, Operation::Receive, Cause::Reset)]);
        run.expect(event, &[RESET_U, RESET_D, reason]);
        run.expect(event, &[]);
    }
}

#[test]
fn only_one_with_a_backend_is_silent_and_only_one_that_sends_is_stalled() {
    let state = |run: &Run| (run.conn.silent_since().is_some(), run.conn.is_stalled());
    assert_eq!(state(&Run::after(&[])), (false, false));
    assert_eq!(state(&Run::after(&[ACCEPTED])), (false, false));
    assert_eq!(state(&Run::after(&[ACCEPTED, PICK])), (false, false));
    assert_eq!(state(&Run::relaying(&[])), (true, false));
    assert_eq!(state(&Run::relaying(&[got(D, 5)])), (true, true));
    let reset = failed(D, Operation::Receive, Cause::Reset);
    assert_eq!(state(&Run::relaying(&[reset])), (true, true));
    assert_eq!(state(&Run::relaying(&[reset, Event::Cut])), (false, false));
}

#[test]
fn a_connection_is_small() {
    assert!(size_of::<Conn>() <= 96, "{}", size_of::<Conn>());
}
