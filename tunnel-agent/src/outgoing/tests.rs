use proptest::prelude::*;
use tunnel_proto::message::{Report, SessionEnded, TunnelEnded};
use tunnel_proto::{Code, TunnelId};

use super::*;

/// A queue with room for so many messages.
fn queue(count: usize) -> Outgoing {
    window(count, usize::MAX)
}

/// One that tells so many ends before the first is confirmed.
fn window(count: usize, unconfirmed: usize) -> Outgoing {
    Outgoing::new(Bounds {
        count,
        bytes: usize::MAX,
        unconfirmed,
    })
}

fn tunnel(number: u8) -> FromAgent {
    let tunnel = TunnelId::from_bytes([number; 16]);
    FromAgent::TunnelEnded(TunnelEnded {
        tunnel,
        reason: Code::TunnelIdle,
        sessions: 0,
    })
}

fn ended(number: u64) -> SessionEnded {
    SessionEnded {
        tunnel: TunnelId::from_bytes([1; 16]),
        service: "ssh".into(),
        refused: None,
        millis: 0,
        bytes_in: 0,
        bytes_out: 0,
        end: None,
        number: Some(number),
        dropped: None,
    }
}

fn session(number: u64) -> FromAgent {
    FromAgent::SessionEnded(ended(number))
}

fn refused(number: u64) -> FromAgent {
    let refused = Some(Code::ServiceUnknown);
    FromAgent::SessionEnded(SessionEnded {
        refused,
        ..ended(number)
    })
}

/// An end of an agent of before.
fn of_before() -> FromAgent {
    FromAgent::SessionEnded(SessionEnded {
        number: None,
        ..ended(0)
    })
}

/// A session's end that tells of others.
fn telling(number: u64, sessions: u64, refusals: u64) -> FromAgent {
    let dropped = Some(EndsDropped { sessions, refusals });
    FromAgent::SessionEnded(SessionEnded {
        dropped,
        ..ended(number)
    })
}

fn key(number: u64) -> SessionKey {
    ended(number).key().unwrap()
}

fn all(queue: &mut Outgoing) -> Vec<FromAgent> {
    std::iter::from_fn(|| queue.pop()).collect()
}

#[test]
fn ends_outlast_a_link_and_nothing_else_does() {
    let mut queue = queue(10);
    queue.push(FromAgent::Report(Report::default()));
    queue.push(session(1));
    queue.push(FromAgent::Renew(Vec::new()));
    queue.push(tunnel(1));
    queue.link_lost();
    assert_eq!(all(&mut queue), [session(1), tunnel(1)]);
    assert!(queue.is_empty());
}

#[test]
fn an_end_is_told_on_each_link_until_it_is_confirmed() {
    let mut queue = queue(10);
    queue.link_up(true);
    let told = [session(1), refused(2), tunnel(1), session(3)];
    told.into_iter().for_each(|message| queue.push(message));
    assert_eq!(all(&mut queue), [session(1), refused(2), tunnel(1), session(3)]);
    assert!(queue.is_empty() && queue.is_unconfirmed());
    queue.handle_kept(&[key(2), key(9)]);
    queue.push(session(4));
    // In the order of before, and what was said for good is not said again.
    queue.link_lost();
    queue.link_up(true);
    assert_eq!(all(&mut queue), [session(1), session(3), session(4)]);
    queue.link_lost();
    // Confirmed on this link, though it was told on the last.
    queue.handle_kept(&[key(1)]);
    queue.link_up(true);
    assert_eq!(all(&mut queue), [session(3), session(4)]);
    queue.handle_kept(&[key(3), key(4)]);
    assert!(!queue.is_unconfirmed());
    queue.link_lost();
    assert!(queue.is_empty());
    assert_eq!(queue.bytes, 0);
}

#[test]
fn what_is_not_confirmed_can_be_told_again_on_the_same_link() {
    let mut queue = queue(10);
    queue.link_up(true);
    queue.push(session(1));
    queue.push(session(2));
    assert_eq!(queue.pop(), Some(session(1)));
    queue.tell_again();
    assert_eq!(all(&mut queue), [session(1), session(2)]);
}

/// A server whose disk hangs is told some, and all else.
#[test]
fn only_some_are_told_before_they_are_confirmed_and_nothing_else_waits_for_them() {
    let mut queue = window(10, 2);
    queue.link_up(true);
    (1..=4).for_each(|number| queue.push(session(number)));
    // Of the same tunnel, and of another.
    queue.push(tunnel(1));
    queue.push(tunnel(2));
    queue.push(FromAgent::Renew(Vec::new()));
    let told = all(&mut queue);
    assert_eq!(
        told,
        [session(1), session(2), tunnel(2), FromAgent::Renew(Vec::new())]
    );
    assert!(queue.is_empty() && queue.is_unconfirmed());
    queue.handle_kept(&[key(2)]);
    assert_eq!(all(&mut queue), [session(3)]);
    queue.handle_kept(&[key(1), key(3)]);
    assert_eq!(all(&mut queue), [session(4), tunnel(1)]);
    // Again, and on another link, no more at once than at first.
    (5..=6).for_each(|number| queue.push(session(number)));
    queue.tell_again();
    assert_eq!(all(&mut queue), [session(4), session(5)]);
    queue.link_lost();
    queue.link_up(true);
    assert_eq!(all(&mut queue), [session(4), session(5)]);
    queue.handle_kept(&[key(4), key(5)]);
    assert_eq!(all(&mut queue), [session(6)]);
    // One that stops has no time for answers.
    let mut last = window(10, 2);
    last.link_up(true);
    (1..=4).for_each(|number| last.push(session(number)));
    last.tell_all();
    assert_eq!(all(&mut last).len(), 4);
    // One that confirms nothing gets all.
    queue.link_lost();
    queue.link_up(false);
    (7..=9).for_each(|number| queue.push(session(number)));
    assert_eq!(all(&mut queue), [session(6), session(7), session(8), session(9)]);
    queue.link_lost();
    queue.link_up(false);
    assert_eq!(all(&mut queue), [], "once");
}

/// A server of before would take what it is told twice for two sessions.
#[test]
fn nothing_is_told_twice_to_a_server_that_does_not_confirm_nor_what_nobody_can_confirm() {
    for (confirms, message) in [(false, session(1)), (true, of_before())] {
        let mut queue = queue(10);
        queue.link_up(confirms);
        queue.push(message.clone());
        assert_eq!(all(&mut queue), [message]);
        assert!(!queue.is_unconfirmed());
        queue.link_lost();
        assert!(queue.is_empty());
        assert_eq!(queue.bytes, 0);
    }
}

#[test]
fn what_is_handed_over_is_kept_by_the_other_alone() {
    let mut queue = queue(10);
    queue.link_up(true);
    queue.push(session(1));
    queue.push(session(2));
    assert_eq!(queue.pop(), Some(session(1)));
    queue.link_lost();
    assert_eq!(queue.hand_over(), Some(session(1)));
    assert_eq!(queue.hand_over(), Some(session(2)));
    assert_eq!(queue.hand_over(), None);
    assert_eq!((queue.is_unconfirmed(), queue.bytes), (false, 0));
}

#[test]
fn a_flood_of_refusals_pushes_out_no_session_that_took_place() {
    let mut queue = queue(4);
    queue.push(session(1));
    queue.push(refused(2));
    queue.push(session(3));
    (0..100).for_each(|number| queue.push(refused(1000 + number)));
    queue.push(session(4));
    queue.push(tunnel(1));
    let dropped = Dropped {
        refusals: 101,
        others: 0,
    };
    assert_eq!(queue.take_dropped(), Some(dropped));
    (0..100).for_each(|number| queue.push(refused(2000 + number)));
    queue.link_up(true);
    let rest = all(&mut queue);
    // The first of them tells what is missing.
    assert_eq!(rest, [telling(1, 0, 201), session(3), session(4), tunnel(1)]);
}

#[test]
fn a_full_queue_keeps_ends_of_tunnels() {
    let mut queue = queue(3);
    for message in [tunnel(1), session(1), session(2), tunnel(2), tunnel(3), tunnel(4)] {
        queue.push(message);
    }
    let dropped = Dropped {
        refusals: 0,
        others: 3,
    };
    assert_eq!(queue.take_dropped(), Some(dropped));
    assert_eq!(queue.take_dropped(), None, "told once");
    assert_eq!(all(&mut queue), [tunnel(2), tunnel(3), tunnel(4)]);
    // And the next session tells how many others there were.
    queue.link_up(true);
    queue.push(session(3));
    assert_eq!(queue.pop(), Some(telling(3, 2, 0)));
}

/// What was told and is not confirmed takes room as well, and is what makes room first: the server may have it.
#[test]
fn what_is_not_confirmed_is_bounded_and_what_it_told_of_others_is_not_lost_with_it() {
    let mut queue = queue(2);
    queue.link_up(true);
    (1..=3).for_each(|number| queue.push(session(number)));
    assert_eq!(all(&mut queue), [telling(2, 1, 0), session(3)]);
    (4..=5).for_each(|number| queue.push(session(number)));
    // The second had told of the first. What the server may have already is told as it was.
    assert_eq!(queue.pop(), Some(telling(4, 3, 0)));
    queue.link_lost();
    queue.push(session(6));
    queue.link_up(true);
    // The fifth had told nothing yet, the fourth of three.
    assert_eq!(all(&mut queue), [telling(5, 4, 0), session(6)]);
    queue.link_lost();
    queue.link_up(true);
    assert_eq!(all(&mut queue), [telling(5, 4, 0), session(6)]);
}

#[test]
fn names_of_any_length_take_no_more_bytes_than_there_may_be() {
    let mut queue = Outgoing::new(Bounds {
        count: 100,
        bytes: 1000,
        unconfirmed: usize::MAX,
    });
    for number in 0..100 {
        let service = "ß".repeat(64);
        queue.push(FromAgent::SessionEnded(SessionEnded {
            service,
            ..ended(number)
        }));
        assert!(queue.bytes <= 1000);
    }
    assert!(queue.waiting.len() >= 4, "there is room for some");
    // One that alone is too long leaves nothing, and takes nothing down.
    queue.push(FromAgent::Renew(vec![0; 2000]));
    assert_eq!((queue.waiting.len(), queue.bytes), (0, 0));
}

/// What may happen to a queue.
#[derive(Clone, Debug)]
enum Step {
    Push(bool),
    Pop,
    Kept(u64),
    Lost,
    Up,
    Again,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => any::<bool>().prop_map(Step::Push),
        3 => Just(Step::Pop),
        2 => (0..64_u64).prop_map(Step::Kept),
        1 => Just(Step::Lost),
        1 => Just(Step::Up),
        1 => Just(Step::Again),
    ]
}

proptest! {
    /// Each end of a session is confirmed, waits, or is counted as dropped; the bounds hold at each step.
    #[test]
    fn every_end_is_confirmed_or_kept_or_counted(steps in prop::collection::vec(step(), 0..200)) {
        let mut queue = window(5, 2);
        let (mut next, mut confirmed) = (0, BTreeSet::new());
        for step in steps {
            match step {
                Step::Push(true) => {
                    queue.push(session(next));
                    next += 1;
                }
                Step::Push(false) => {
                    queue.push(refused(next));
                    next += 1;
                }
                // Without a link nothing is told.
                Step::Pop if !queue.confirms => {}
                Step::Pop => drop(queue.pop()),
                Step::Kept(number) => {
                    let holds = queue.told.iter().chain(&queue.waiting).any(|waiting| waiting.key() == Some(key(number)));
                    if holds {
                        confirmed.insert(number);
                    }
                    queue.handle_kept(&[key(number)]);
                }
                Step::Lost => queue.link_lost(),
                Step::Up => queue.link_up(true),
                Step::Again => queue.tell_again(),
            }
            let all: Vec<_> = queue.told.iter().chain(&queue.waiting).collect();
            prop_assert!(all.len() <= 5 && queue.told.len() <= 2);
            prop_assert_eq!(queue.bytes, all.iter().map(|waiting| waiting.bytes).sum::<usize>());
            let Dropped { refusals, others } = queue.dropped;
            prop_assert_eq!(all.len() as u64 + confirmed.len() as u64 + refusals + others, next);
        }
        // A server that answers hears of all in the end.
        queue.link_up(true);
        loop {
            all(&mut queue);
            let Some(oldest) = queue.told.front() else { break };
            queue.handle_kept(&[oldest.key().unwrap()]);
        }
        prop_assert!(queue.waiting.is_empty());
    }
}
