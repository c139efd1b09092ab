//! The whole transition table, the pace, and that nothing is lost.

use proptest::prelude::*;

use super::*;
use crate::object::SourceId;
use crate::probe::{self, HealthCheck};
use std::sync::Arc;

const GOOD: Answer = Answer::Good(None);
const ALL: [Answer; 5] = [
    GOOD,
    Answer::Draining,
    Answer::Refused,
    Answer::Odd,
    Answer::Silent,
];

fn at(n: u8) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, n], 10_256))
}

fn proxy(n: u8) -> Target {
    Target::Proxy(at(n))
}

fn wanted(targets: &[Target]) -> Wanted {
    let one = targets.iter().map(|target| (target.clone(), vec![at(1)]));
    one.collect()
}

/// How many answers of a kind it takes from `verdict`.
fn needed(verdict: Option<Answer>, answer: Answer, pace: Pace) -> Option<u32> {
    let mut check = Check {
        verdict,
        ..Check::new()
    };
    (1..100).find(|_| check.take(answer, pace) && check.verdict == Some(answer))
}

#[test]
fn the_whole_transition_table() {
    for (pace, rise) in [(NODES, 2), (PODS, 10)] {
        for verdict in [None].into_iter().chain(ALL.map(Some)) {
            for answer in ALL {
                let expected = match (verdict, answer) {
                    (Some(verdict), _) if verdict == answer => 1,
                    (_, Answer::Draining) => 1,
                    (None, Answer::Silent) => 3,
                    (None, _) => 1,
                    (Some(_), Answer::Good(_)) => rise,
                    (Some(_), _) => 3,
                };
                assert_eq!(
                    needed(verdict, answer, pace),
                    Some(expected),
                    "{verdict:?} {answer:?}"
                );
            }
        }
    }
}

#[test]
fn an_answer_in_between_begins_the_count_anew_and_a_weight_is_new_at_once() {
    let mut check = Check {
        verdict: Some(GOOD),
        ..Check::new()
    };
    for answer in [Answer::Silent, Answer::Silent, GOOD, Answer::Silent] {
        check.take(answer, NODES);
        assert_eq!(check.verdict, Some(GOOD));
    }
    // Silence and refusal are two things.
    for answer in [Answer::Silent, Answer::Refused, Answer::Refused] {
        assert!(!check.take(answer, NODES));
    }
    assert!(check.take(Answer::Refused, NODES));
    assert_eq!(check.verdict, Some(Answer::Refused));
    check.take(Answer::Good(Some(2)), NODES);
    check.take(Answer::Good(Some(3)), NODES);
    assert_eq!(check.verdict, Some(Answer::Good(Some(3))));
    assert!(check.take(Answer::Good(Some(9)), NODES));
    assert_eq!(check.verdict, Some(Answer::Good(Some(9))));
}

/// From the death of a node, at the worst moment, to the verdict.
#[test]
fn a_dead_node_is_found_within_a_second() {
    let begin = Instant::now();
    for seed in 0..50 {
        let mut checks = Checks::new(probe::NODES, seed);
        checks.want(&wanted(&[proxy(1)]), begin);
        let mut now = begin;
        // It answers, and dies behind its answer.
        for _ in 0..5 {
            now = checks.due().expect("is due");
            assert_eq!(checks.ask(now).len(), 1);
            checks.answered(&proxy(1), Some(GOOD), now);
        }
        let died = now;
        loop {
            now = checks.due().expect("is due");
            let asked = checks.ask(now);
            now += asked[0].timeout;
            if checks.answered(&proxy(1), Some(Answer::Silent), now) {
                break;
            }
        }
        let took = now - died;
        assert!(took <= Duration::from_millis(930), "{took:?}");
        assert_eq!(checks.verdicts()[&proxy(1)], Answer::Silent);
    }
}

#[test]
fn questions_are_few_at_once_and_spread_over_time() {
    let mut checks = Checks::new(probe::NODES, 1);
    let begin = Instant::now();
    let all: Vec<Target> = (0..1_000u16)
        .map(|n| Target::Port(SocketAddr::from(([10, 0, (n >> 8) as u8, n as u8], 1))))
        .collect();
    checks.want(&wanted(&all), begin);
    let first = checks.ask(begin);
    assert_eq!(first.len(), probe::NODES.open);
    assert_eq!(checks.due(), None, "until one has ended");
    assert!(checks.ask(begin).is_empty());
    for question in &first {
        checks.answered(&question.target, Some(GOOD), begin);
    }
    // 1,000 targets, 1,000 questions a second: none of these again before 0.9 s.
    let mut soon = begin;
    while checks
        .due()
        .is_some_and(|due| due < begin + Duration::from_millis(900))
    {
        let asked = checks.ask(soon);
        assert!(asked.iter().all(|question| !first.contains(question)));
        for question in asked {
            checks.answered(&question.target, Some(GOOD), soon);
        }
        soon += Duration::from_millis(10);
    }
    assert_eq!(checks.verdicts().len(), 1_000);
}

#[test]
fn what_is_not_wanted_is_forgotten_and_comes_back_as_new() {
    let now = Instant::now();
    let mut checks = Checks::new(probe::NODES, 1);
    checks.want(&wanted(&[proxy(1), proxy(2)]), now);
    assert_eq!(checks.ask(now).len(), 2);
    assert!(checks.answered(&proxy(1), Some(GOOD), now));
    assert!(checks.want(&wanted(&[proxy(2)]), now), "a verdict went");
    assert!(!checks.want(&wanted(&[]), now), "none was there");
    assert!(!checks.answered(&proxy(2), Some(GOOD), now), "nobody asks");
    assert_eq!((checks.due(), checks.open), (None, 0));
    checks.want(&wanted(&[proxy(1)]), now);
    assert!(checks.verdicts().is_empty());
    assert_eq!(checks.ask(now).len(), 1);
}

#[test]
fn where_one_endpoint_is_silent_the_next_is_asked() {
    let now = Instant::now();
    let target = Target::Pods(SourceId(0), "".into(), "n".into());
    let mut checks = Checks::new(probe::NODES, 1);
    checks.want(&[(target.clone(), vec![at(1), at(2)])].into(), now);
    let mut asked = Vec::new();
    for _ in 0..3 {
        let due = checks.due().expect("is due");
        let question = checks.ask(due).remove(0);
        asked.push(question.at);
        let answer = match question.at == at(1) {
            true => Answer::Silent,
            false => Answer::Refused,
        };
        checks.answered(&target, Some(answer), due);
    }
    assert_eq!(asked[..2], [at(1), at(2)]);
    assert_eq!(checks.verdicts()[&target], Answer::Refused);
}

fn endpoint(host: u8, tenant: &str) -> Target {
    let tenant = Tenant {
        source: SourceId(0),
        cluster: "".into(),
        namespace: tenant.into(),
    };
    Target::Endpoint(at(host), Arc::new(HealthCheck::new(tenant)))
}

/// Of endpoints all that is not good is one answer, the first too: so often that the check says.
#[test]
fn the_whole_transition_table_of_endpoints() {
    const ENDPOINT_ANSWERS: [Answer; 5] = [
        GOOD,
        Answer::Refused,
        Answer::Odd,
        Answer::Status(500),
        Answer::Silent,
    ];
    for healthy in 1..=10 {
        for unhealthy in 1..=10 {
            let pace = Pace {
                rise: healthy,
                fall: unhealthy,
                ..pace(&endpoint(1, "n"))
            };
            for verdict in [None].into_iter().chain(ENDPOINT_ANSWERS.map(Some)) {
                for answer in ENDPOINT_ANSWERS {
                    let mut check = Check {
                        verdict,
                        ..Check::new()
                    };
                    let was_good = verdict.map(Answer::is_good);
                    let (times, kept) = match (was_good, answer.is_good()) {
                        (None, true) => (1, false),
                        (Some(false), true) => (healthy, false),
                        (None | Some(true), false) => (unhealthy, false),
                        (Some(true), true) | (Some(false), false) => (1, true),
                    };
                    for time in 1..=times {
                        let settled = check.take(answer, pace);
                        assert_eq!(settled, time == times, "{verdict:?} {answer:?} {time}");
                        let expected = match settled && !kept {
                            true => Some(answer),
                            false => verdict,
                        };
                        assert_eq!(check.verdict, expected, "{verdict:?} {answer:?} {time}");
                    }
                }
            }
        }
    }
}

/// One that is down in another way each time is down all the same.
#[test]
fn failures_of_an_endpoint_count_together_whatever_they_are() {
    let pace = pace(&endpoint(1, "n"));
    let mut check = Check {
        verdict: Some(GOOD),
        ..Check::new()
    };
    for answer in [Answer::Silent, Answer::Refused] {
        assert!(!check.take(answer, pace));
    }
    assert!(check.take(Answer::Status(500), pace));
    assert_eq!(check.verdict, Some(Answer::Status(500)));
    // What else is wrong with it is no news.
    check.take(Answer::Refused, pace);
    assert_eq!(check.verdict, Some(Answer::Status(500)));
}

/// K10: as often as it may say something else, it is not put in or out sooner than the thresholds allow.
#[test]
fn k10_an_endpoint_that_flaps_turns_no_sooner_than_its_thresholds() {
    let begin = Instant::now();
    let target = endpoint(1, "n");
    let mut checks = Checks::new(probe::ENDPOINTS, 3);
    checks.want(&wanted(std::slice::from_ref(&target)), begin);
    let mut turns = Vec::new();
    for step in 0..1_000_u32 {
        let now = checks.due().expect("is due");
        assert_eq!(checks.ask(now).len(), 1);
        // To and fro, two of a kind in a row; then long enough for each to be believed.
        let is_good = step % 30 > 26 || (step % 30 < 20 && step % 4 < 2);
        let answer = if is_good { GOOD } else { Answer::Refused };
        if checks.answered(&target, Some(answer), now) {
            turns.push(now);
        }
    }
    assert!(turns.len() > 2, "{turns:?}");
    for pair in turns.windows(2) {
        // Twice good at the least, a tenth sooner than every 5 s.
        assert!(pair[1] - pair[0] >= Duration::from_millis(2 * 4_500));
    }
}

/// From the death of an endpoint, at the worst moment, to the verdict: the bound in docs/services.md.
#[test]
fn a_dead_endpoint_is_found_in_the_time_that_is_documented() {
    let begin = Instant::now();
    let target = endpoint(1, "n");
    for seed in 0..50 {
        let mut checks = Checks::new(probe::ENDPOINTS, seed);
        checks.want(&wanted(std::slice::from_ref(&target)), begin);
        let mut now = begin;
        for _ in 0..3 {
            now = checks.due().expect("is due");
            assert_eq!(checks.ask(now).len(), 1);
            checks.answered(&target, Some(GOOD), now);
        }
        let died = now;
        loop {
            now = checks.due().expect("is due");
            let asked = checks.ask(now);
            now += asked[0].timeout;
            if checks.answered(&target, Some(Answer::Silent), now) {
                break;
            }
        }
        // unhealthy times (interval + a tenth + timeout)
        assert!(
            now - died <= Duration::from_millis(3 * 7_500),
            "{:?}",
            now - died
        );
    }
}

#[test]
fn what_could_not_be_asked_changes_nothing_and_is_asked_again() {
    let now = Instant::now();
    let target = endpoint(1, "n");
    let mut checks = Checks::new(probe::ENDPOINTS, 1);
    checks.want(&wanted(std::slice::from_ref(&target)), now);
    for _ in 0..20 {
        let due = checks.due().expect("is due");
        checks.ask(due);
        assert!(!checks.answered(&target, None, due));
    }
    assert!(checks.verdicts().is_empty());
    assert!(checks.due().is_some());
}

/// A tenant whose endpoints are silent keeps nobody waiting but itself.
#[test]
fn one_tenant_has_so_many_questions_open_and_others_go_on() {
    let begin = Instant::now();
    let mut checks = Checks::new(probe::ENDPOINTS, 1);
    let most = probe::ENDPOINTS.open_of_one;
    let mut all: Vec<Target> = (0..100).map(|n| endpoint(n, "silent")).collect();
    all.push(endpoint(200, "other"));
    checks.want(&wanted(&all), begin);
    let later = begin + Duration::from_secs(1);
    let asked = checks.ask(later);
    let silent = |question: &&Question| question.target != endpoint(200, "other");
    assert_eq!(asked.iter().filter(silent).count(), most);
    assert_eq!(asked.len(), most + 1, "the other one is asked");
    assert_eq!(checks.due(), None, "the rest is parked");
    // One ends, one begins; those that nobody wants any more are passed over.
    let first = &asked[0].target;
    checks.answered(first, Some(Answer::Silent), later);
    let next = checks.ask(later);
    assert_eq!(next.len(), 1);
    let left: Vec<Target> = all.drain(60..).collect();
    checks.want(&wanted(&left), later);
    for question in asked.iter().skip(1).chain(&next) {
        checks.answered(&question.target, Some(Answer::Silent), later);
    }
    let mut open = checks.ask(later);
    assert_eq!(open.len(), most);
    assert!(open.iter().all(|question| left.contains(&question.target)));
    checks.want(&wanted(&[]), later);
    for question in open.drain(..) {
        checks.answered(&question.target, None, later);
    }
    assert_eq!((checks.open, checks.lanes.len()), (0, 0));
}

#[test]
fn a_target_without_a_place_is_asked_once_it_has_one() {
    let now = Instant::now();
    let target = Target::Pods(SourceId(0), "".into(), "n".into());
    let mut checks = Checks::new(probe::NODES, 1);
    checks.want(&[(target.clone(), vec![])].into(), now);
    assert!(checks.ask(now).is_empty());
    checks.want(&[(target.clone(), vec![at(1)])].into(), now);
    assert_eq!(checks.ask(now).len(), 1);
}

/// What the verdict of an endpoint is, from all its answers: the naive way.
fn naive(answers: &[bool], healthy: usize, unhealthy: usize) -> Option<bool> {
    let mut verdict = None;
    for end in 1..=answers.len() {
        let last = answers[end - 1];
        let in_a_row = answers[..end]
            .iter()
            .rev()
            .take_while(|answer| **answer == last)
            .count();
        let needed = match (verdict, last) {
            (None, true) => 1,
            (_, true) => healthy,
            (_, false) => unhealthy,
        };
        if in_a_row >= needed {
            verdict = Some(last);
        }
    }
    verdict
}

proptest! {
    #[test]
    fn an_endpoints_verdict_is_that_of_the_naive_model(
        answers in prop::collection::vec(0..5_usize, 0..60),
        healthy in 1..=10_u32,
        unhealthy in 1..=10_u32,
    ) {
        const ANSWERS: [Answer; 5] = [GOOD, GOOD, Answer::Refused, Answer::Silent, Answer::Status(404)];
        let pace = Pace { rise: healthy, fall: unhealthy, ..pace(&endpoint(1, "n")) };
        let mut check = Check::new();
        let mut said = Vec::new();
        for answer in answers {
            check.take(ANSWERS[answer], pace);
            said.push(ANSWERS[answer].is_good());
            let expected = naive(&said, healthy as usize, unhealthy as usize);
            prop_assert_eq!(check.verdict.map(Answer::is_good), expected);
        }
    }

    /// Whatever is wanted and answered: a target is due, parked, open or has no place, one of them and
    /// once; no tenant has more open than it may, and none waits beside room.
    #[test]
    fn nothing_is_lost_and_nothing_asked_twice(
        steps in prop::collection::vec((0..3_u8, 0..8_u8, 0..6_usize), 1..120)
    ) {
        const LIMITS: Limits = Limits { open: 5, open_of_one: 2, ..probe::ENDPOINTS };
        let all = |n: u8| -> Vec<Target> {
            let of = |n| if n % 4 == 0 { proxy(n) } else { endpoint(n, if n % 2 == 0 { "a" } else { "b" }) };
            (0..n).map(of).collect()
        };
        let begin = Instant::now();
        let mut now = begin;
        let mut checks = Checks::new(LIMITS, 7);
        let mut open: Vec<Target> = Vec::new();
        for (what, n, answer) in steps {
            now += Duration::from_millis(700);
            match what {
                0 => {
                    checks.want(&wanted(&all(n)), now);
                }
                1 => open.extend(checks.ask(now).into_iter().map(|question| question.target)),
                _ if !open.is_empty() => {
                    let target = open.remove(usize::from(n) % open.len());
                    checks.answered(&target, ALL.get(answer).copied(), now);
                }
                _ => {}
            }
            prop_assert_eq!(checks.open, open.len());
            prop_assert!(open.len() <= LIMITS.open);
            for (target, check) in &checks.all {
                let due = checks.due.iter().filter(|(_, due)| due == target);
                let mut entries: Vec<When> = due.map(|(at, _)| When::Due(*at)).collect();
                let parked = checks.lanes.values().flat_map(|lane| &lane.parked);
                let parked = parked.filter(|(_, parked)| parked == target);
                entries.extend(parked.map(|(at, _)| When::Parked(*at)));
                match check.when {
                    When::Open => prop_assert!(entries.is_empty() && open.contains(target)),
                    when => prop_assert_eq!(entries, [when]),
                }
            }
            prop_assert!(checks.due.iter().all(|(_, target)| checks.all.contains_key(target)));
            for (tenant, lane) in &checks.lanes {
                let of = open.iter().filter(|target| target.tenant() == Some(tenant));
                prop_assert_eq!(lane.open, of.count());
                prop_assert!(lane.open <= LIMITS.open_of_one);
                prop_assert!(lane.open > 0 || !lane.parked.is_empty());
                for (_, target) in &lane.parked {
                    prop_assert!(checks.all.contains_key(target));
                }
                // Whoever is parked has somebody to wait for: an open question, or one that is due.
                let due = checks.due.iter().any(|(_, target)| target.tenant() == Some(tenant));
                prop_assert!(lane.parked.is_empty() || lane.open > 0 || due);
            }
        }
    }
}
