//! The whole transition table, the pace, and that nothing is lost.

use proptest::prelude::*;

use super::*;
use crate::object::SourceId;

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
        places: vec![at(1)],
        verdict,
        turning: None,
        misses: 0,
        due: None,
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
        places: vec![at(1)],
        verdict: Some(GOOD),
        turning: None,
        misses: 0,
        due: None,
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
        let mut checks = Checks::new(seed);
        checks.want(&wanted(&[proxy(1)]), begin);
        let mut now = begin;
        // It answers, and dies behind its answer.
        for _ in 0..5 {
            now = checks.due().expect("is due");
            assert_eq!(checks.ask(now).len(), 1);
            checks.answered(&proxy(1), GOOD, now);
        }
        let died = now;
        loop {
            now = checks.due().expect("is due");
            let asked = checks.ask(now);
            now += asked[0].timeout;
            if checks.answered(&proxy(1), Answer::Silent, now) {
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
    let mut checks = Checks::new(1);
    let begin = Instant::now();
    let all: Vec<Target> = (0..1_000u16)
        .map(|n| Target::Port(SocketAddr::from(([10, 0, (n >> 8) as u8, n as u8], 1))))
        .collect();
    checks.want(&wanted(&all), begin);
    let first = checks.ask(begin);
    assert_eq!(first.len(), MOST_OPEN);
    assert_eq!(checks.due(), None, "until one has ended");
    assert!(checks.ask(begin).is_empty());
    for question in &first {
        checks.answered(&question.target, GOOD, begin);
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
            checks.answered(&question.target, GOOD, soon);
        }
        soon += Duration::from_millis(10);
    }
    assert_eq!(checks.verdicts().len(), 1_000);
}

#[test]
fn what_is_not_wanted_is_forgotten_and_comes_back_as_new() {
    let now = Instant::now();
    let mut checks = Checks::new(1);
    checks.want(&wanted(&[proxy(1), proxy(2)]), now);
    assert_eq!(checks.ask(now).len(), 2);
    assert!(checks.answered(&proxy(1), GOOD, now));
    assert!(checks.want(&wanted(&[proxy(2)]), now), "a verdict went");
    assert!(!checks.want(&wanted(&[]), now), "none was there");
    assert!(!checks.answered(&proxy(2), GOOD, now), "nobody asks");
    assert_eq!((checks.due(), checks.open), (None, 0));
    checks.want(&wanted(&[proxy(1)]), now);
    assert!(checks.verdicts().is_empty());
    assert_eq!(checks.ask(now).len(), 1);
}

#[test]
fn where_one_endpoint_is_silent_the_next_is_asked() {
    let now = Instant::now();
    let target = Target::Pods(SourceId(0), "".into(), "n".into());
    let mut checks = Checks::new(1);
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
        checks.answered(&target, answer, due);
    }
    assert_eq!(asked[..2], [at(1), at(2)]);
    assert_eq!(checks.verdicts()[&target], Answer::Refused);
}

proptest! {
    /// Whatever is wanted and answered: a target is due once or open, and never both.
    #[test]
    fn nothing_is_lost_and_nothing_asked_twice(
        steps in prop::collection::vec((0..3_u8, 0..4_u8, 0..5_usize), 1..80)
    ) {
        let begin = Instant::now();
        let mut now = begin;
        let mut checks = Checks::new(7);
        let mut open: Vec<Target> = Vec::new();
        for (what, n, answer) in steps {
            now += Duration::from_millis(40);
            match what {
                0 => {
                    let all: Vec<Target> = (0..n).map(proxy).collect();
                    checks.want(&wanted(&all), now);
                }
                1 => open.extend(checks.ask(now).into_iter().map(|question| question.target)),
                _ if !open.is_empty() => {
                    let target = open.remove(usize::from(n) % open.len());
                    checks.answered(&target, ALL[answer], now);
                }
                _ => {}
            }
            prop_assert_eq!(checks.open, open.len());
            for (target, check) in &checks.all {
                let entries = checks.due.iter().filter(|(_, due)| due == target).count();
                prop_assert_eq!(entries, usize::from(check.due.is_some()));
                prop_assert!(check.due.is_some() || open.contains(target));
            }
            prop_assert!(checks.due.iter().all(|(_, target)| checks.all.contains_key(target)));
        }
    }
}
