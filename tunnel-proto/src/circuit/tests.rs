use super::*;
use proptest::prelude::*;
use std::time::Duration;

/// A place of the model: its number, as the address of a host.
impl Address for u8 {
    fn bytes(&self) -> [u8; 18] {
        [*self; 18]
    }
}

const SOURCE: u8 = 1;
const DESTINATION: u8 = 2;
const ELSEWHERE: u8 = 3;

fn id(number: u8) -> CircuitId {
    CircuitId::from_bytes([number; 16])
}

fn key(circuit: CircuitId, role: Role) -> LegKey {
    LegKey::derive(&Secret::new([7; 32]), circuit, role)
}

fn circuits(max: usize) -> Circuits<u8> {
    Circuits::new(max, &Secret::new([9; 32]))
}

/// A circuit whose two legs are admitted.
fn admitted(opening: Opening) -> Circuits<u8> {
    let mut circuits = circuits(4);
    assert_eq!(circuits.open(id(1), opening), Ok(()));
    for role in [Role::Source, Role::Destination] {
        assert!(circuits.admit(id(1), role, key(id(1), role)));
    }
    circuits
}

/// A circuit whose two legs are bound, each by a bind with counter 5.
fn bound() -> Circuits<u8> {
    let mut circuits = admitted(Opening::default());
    assert_eq!(
        say(&mut circuits, SOURCE, bind(Role::Source, 5, 0)).kind(),
        Some(Kind::Bound)
    );
    assert_eq!(
        say(&mut circuits, DESTINATION, bind(Role::Destination, 5, 0)).kind(),
        Some(Kind::Bound)
    );
    circuits
}

fn bind(role: Role, counter: u64, value: u64) -> Control {
    Control {
        kind: Kind::Bind,
        circuit: id(1),
        role,
        counter,
        value,
    }
}

fn drain(circuits: &mut Circuits<u8>) -> Vec<Output<u8>> {
    assert_eq!(circuits.check(), Ok(()));
    std::iter::from_fn(|| circuits.poll_output()).collect()
}

/// What a bind led to.
struct Said(Vec<Output<u8>>);

impl Said {
    fn answer(&self) -> Option<Control> {
        self.0.iter().find_map(|output| match output {
            Output::Send { datagram, .. } => Control::decode(datagram),
            _ => None,
        })
    }

    fn kind(&self) -> Option<Kind> {
        self.answer().map(|answer| answer.kind)
    }
}

fn say(circuits: &mut Circuits<u8>, from: u8, bind: Control) -> Said {
    let datagram = bind.encode(&key(bind.circuit, bind.role));
    circuits.handle_bind(from, false, &datagram);
    Said(drain(circuits))
}

fn state(circuits: &Circuits<u8>) -> (Option<u8>, Option<u8>, usize) {
    (
        circuits.place(id(1), Role::Source),
        circuits.place(id(1), Role::Destination),
        circuits.len(),
    )
}

#[test]
fn a_first_bind_counts_at_once() {
    let mut circuits = admitted(Opening::default());
    let said = say(&mut circuits, SOURCE, bind(Role::Source, 0, 0));
    assert_eq!(
        said.0[0],
        Output::Bound {
            circuit: id(1),
            role: Role::Source,
            at: SOURCE
        }
    );
    assert_eq!(said.answer().map(|a| (a.kind, a.counter)), Some((Kind::Bound, 0)));
    let Output::Send { to, datagram } = said.0[1] else {
        panic!("an answer")
    };
    assert_eq!(to, SOURCE);
    assert!(Control::is_authentic(&datagram, &key(id(1), Role::Source)));
}

#[test]
fn a_repeated_bind_is_the_probe_of_a_leg() {
    let mut circuits = bound();
    let said = say(&mut circuits, SOURCE, bind(Role::Source, 6, 0));
    assert_eq!(said.answer().map(|a| (a.kind, a.counter)), Some((Kind::Bound, 6)));
    assert_eq!(said.0.len(), 1);
    assert_eq!(say(&mut circuits, SOURCE, bind(Role::Source, 6, 0)).kind(), None);
}

/// THREATS DAT-01: spoofed, replayed, bit-flipped, for another circuit or role.
#[test]
fn dat_01_a_bind_that_is_not_its_legs_gets_silence() {
    let mut circuits = bound();
    let before = state(&circuits);
    let good = bind(Role::Source, 9, 0).encode(&key(id(1), Role::Source));
    for bit in 0..SIZE * 8 {
        let mut bad = good;
        bad[bit / 8] ^= 1 << (bit % 8);
        circuits.handle_bind(ELSEWHERE, false, &bad);
        assert_eq!(drain(&mut circuits), [], "bit {bit}");
    }
    let other_role = bind(Role::Destination, 9, 0).encode(&key(id(1), Role::Source));
    let other_circuit = Control {
        circuit: id(2),
        ..bind(Role::Source, 9, 0)
    }
    .encode(&key(id(1), Role::Source));
    for bad in [other_role, other_circuit] {
        circuits.handle_bind(ELSEWHERE, false, &bad);
        assert_eq!(drain(&mut circuits), []);
    }
    for kind in [Kind::Bound, Kind::Challenge, Kind::Ended] {
        let said = say(
            &mut circuits,
            ELSEWHERE,
            Control {
                kind,
                ..bind(Role::Source, 9, 0)
            },
        );
        assert_eq!(said.0, []);
    }
    assert_eq!(state(&circuits), before);
    assert_eq!(
        say(&mut circuits, SOURCE, bind(Role::Source, 9, 0)).kind(),
        Some(Kind::Bound)
    );
}

#[test]
fn a_leg_that_is_not_admitted_gets_silence() {
    let mut circuits = circuits(1);
    circuits.open(id(1), Opening::default()).unwrap();
    assert_eq!(say(&mut circuits, SOURCE, bind(Role::Source, 0, 0)).0, []);
    assert!(circuits.admit(id(1), Role::Source, key(id(1), Role::Source)));
    assert_eq!(
        say(&mut circuits, SOURCE, bind(Role::Source, 0, 0)).kind(),
        Some(Kind::Bound)
    );
    assert_eq!(
        say(&mut circuits, DESTINATION, bind(Role::Destination, 0, 0)).0,
        []
    );
    assert!(!circuits.admit(id(2), Role::Source, key(id(2), Role::Source)));
}

/// THREATS DAT-02: a captured valid bind replayed from another address.
#[test]
fn dat_02_a_replayed_bind_does_not_move_the_leg() {
    let mut circuits = bound();
    assert_eq!(say(&mut circuits, ELSEWHERE, bind(Role::Source, 5, 0)).0, []);
    assert_eq!(circuits.place(id(1), Role::Source), Some(SOURCE));

    // One that never reached the relay is challenged where it comes from, and that is all.
    let said = say(&mut circuits, ELSEWHERE, bind(Role::Source, 6, 0));
    assert_eq!(said.kind(), Some(Kind::Challenge));
    assert_eq!(circuits.place(id(1), Role::Source), Some(SOURCE));
    assert_eq!(
        say(&mut circuits, SOURCE, bind(Role::Source, 6, 0)).kind(),
        Some(Kind::Bound)
    );
}

/// THREATS DAT-03: a real peer changes its address.
#[test]
fn dat_03_a_leg_moves_once_it_shows_that_it_hears_the_relay_there() {
    let mut circuits = bound();
    let said = say(&mut circuits, ELSEWHERE, bind(Role::Source, 6, 0));
    let challenge = said.answer().unwrap();
    assert_eq!((challenge.kind, challenge.counter), (Kind::Challenge, 6));
    assert_ne!(challenge.value, 0);

    let said = say(&mut circuits, ELSEWHERE, bind(Role::Source, 7, challenge.value));
    assert_eq!(
        said.0[0],
        Output::Bound {
            circuit: id(1),
            role: Role::Source,
            at: ELSEWHERE
        }
    );
    assert_eq!(said.kind(), Some(Kind::Bound));
    assert_eq!(circuits.place(id(1), Role::Source), Some(ELSEWHERE));
}

#[test]
fn a_challenge_is_good_for_its_address_leg_and_process_only() {
    let mut circuits = bound();
    let value = say(&mut circuits, ELSEWHERE, bind(Role::Source, 6, 0))
        .answer()
        .unwrap()
        .value;
    assert_eq!(
        say(&mut circuits, 4, bind(Role::Source, 7, value)).kind(),
        Some(Kind::Challenge)
    );
    assert_eq!(
        say(&mut circuits, ELSEWHERE, bind(Role::Destination, 7, value)).kind(),
        Some(Kind::Challenge)
    );
    assert_eq!(
        say(&mut circuits, ELSEWHERE, bind(Role::Source, 7, value ^ 1)).kind(),
        Some(Kind::Challenge)
    );
    assert_eq!(state(&circuits), (Some(SOURCE), Some(DESTINATION), 1));
}

#[test]
fn what_a_leg_sent_before_it_moved_is_still_its_own() {
    let mut circuits = bound();
    let mut at = SOURCE;
    for (counter, to, forgotten) in [(6, 3, None), (7, 4, Some(SOURCE)), (8, 3, None), (9, 5, Some(4))] {
        let value = say(&mut circuits, to, bind(Role::Source, counter, 0))
            .answer()
            .unwrap()
            .value;
        let said = say(&mut circuits, to, bind(Role::Source, counter, value));
        let released = said.0.iter().find_map(|output| match output {
            Output::Released { address } => Some(*address),
            _ => None,
        });
        assert_eq!(released, forgotten, "from {at} to {to}");
        at = to;
    }
}

/// THREATS DAT-05: random circuit ids and tags.
#[test]
fn dat_05_random_ids_and_tags_change_nothing() {
    let mut circuits = bound();
    let before = state(&circuits);
    let mut bytes = [0x5a; 32];
    for round in 0..20_000u32 {
        bytes = *LegKey::derive(&Secret::new(bytes), id(round as u8), Role::Source)
            .secret()
            .expose();
        let mut datagram = [0; SIZE];
        datagram[..32].copy_from_slice(&bytes);
        datagram[32..].copy_from_slice(&bytes[..18]);
        datagram[0] = Kind::Bind as u8;
        datagram[17] = (round % 2) as u8;
        circuits.handle_bind(ELSEWHERE, false, &datagram);
        assert_eq!(circuits.poll_output(), None);
    }
    assert_eq!(state(&circuits), before);
}

/// A resumed leg with a wrong key, an old counter, a foreign circuit, a tunnel that has ended.
#[test]
fn refused_binds_are_counted_by_cause() {
    let mut circuits = bound();
    assert_eq!(circuits.refused(), RefusedBinds::default());
    let wrong_key = bind(Role::Source, 9, 0).encode(&key(id(2), Role::Source));
    let unknown = Control {
        circuit: id(9),
        ..bind(Role::Source, 9, 0)
    };
    circuits.handle_bind(ELSEWHERE, true, &wrong_key);
    circuits.handle_bind(ELSEWHERE, true, &wrong_key[..SIZE - 1]);
    for (from, refused) in [
        (ELSEWHERE, unknown),
        (SOURCE, bind(Role::Source, 5, 0)),
        (DESTINATION, bind(Role::Source, 9, 0)),
    ] {
        assert_eq!(say(&mut circuits, from, refused).kind(), None);
    }
    assert_eq!(
        say(&mut circuits, SOURCE, bind(Role::Source, 9, 0)).kind(),
        Some(Kind::Bound)
    );
    assert!(circuits.close(id(1), Code::PolicyChanged));
    assert_eq!(drain(&mut circuits).len(), 4);
    assert_eq!(say(&mut circuits, SOURCE, bind(Role::Source, 10, 0)).kind(), None);
    let expected = RefusedBinds {
        malformed: 1,
        wrong_key: 1,
        old_counter: 1,
        unknown_circuit: 1,
        ended_tunnel: 1,
        both_ends: 1,
    };
    assert_eq!(circuits.refused(), expected);
}

#[test]
fn the_memory_of_ended_circuits_is_bounded() {
    let mut ended = Ended::default();
    let id = |number: usize| CircuitId::from_bytes((number as u128).to_be_bytes());
    for number in 0..MAX_ENDED * 2 {
        ended.add(id(number));
        ended.add(id(number));
    }
    assert_eq!((ended.known.len(), ended.order.len()), (MAX_ENDED, MAX_ENDED));
    assert!(ended.known.contains(&id(MAX_ENDED)) && !ended.known.contains(&id(MAX_ENDED - 1)));
}

/// THREATS DAT-06: a circuit that was closed.
#[test]
fn dat_06_a_closed_circuit_is_as_unknown_as_any_other() {
    let mut circuits = bound();
    assert!(circuits.close(id(1), Code::PolicyChanged));
    let outputs = drain(&mut circuits);
    for (place, role) in [(SOURCE, Role::Source), (DESTINATION, Role::Destination)] {
        let ended = outputs.iter().find_map(|output| match output {
            Output::Send { to, datagram } if *to == place => Some(*datagram),
            _ => None,
        });
        let ended = ended.expect("both legs are told");
        assert!(Control::is_authentic(&ended, &key(id(1), role)));
        let ended = Control::decode(&ended).unwrap();
        assert_eq!(
            (ended.kind, ended.value),
            (Kind::Ended, Code::PolicyChanged as u64)
        );
        assert!(outputs.contains(&Output::Released { address: place }));
    }
    assert_eq!(say(&mut circuits, SOURCE, bind(Role::Source, 6, 0)).0, []);
    assert!(!circuits.close(id(1), Code::TunnelClosed));
    assert!(circuits.is_empty() && circuits.addresses.is_empty());
}

/// THREATS DAT-07: a member of one circuit writes the tag of another.
#[test]
fn dat_07_a_member_of_one_circuit_cannot_touch_another() {
    let mut circuits = bound();
    circuits.open(id(2), Opening::default()).unwrap();
    assert!(circuits.admit(id(2), Role::Source, key(id(2), Role::Source)));
    let theirs = Control {
        circuit: id(2),
        ..bind(Role::Source, 6, 0)
    };

    // With its own key: dropped and noted.
    circuits.handle_bind(SOURCE, false, &theirs.encode(&key(id(1), Role::Source)));
    assert_eq!(
        drain(&mut circuits),
        [Output::Foreign {
            circuit: id(1),
            role: Role::Source
        }]
    );

    // With a key of its own circuit, from the spoofed address of another leg: challenged, and the other leg stays.
    assert_eq!(
        say(&mut circuits, DESTINATION, theirs).kind(),
        Some(Kind::Challenge)
    );
    assert_eq!(state(&circuits), (Some(SOURCE), Some(DESTINATION), 2));
}

#[test]
fn an_address_passes_to_the_leg_that_proves_it() {
    let mut circuits = bound();
    circuits.open(id(2), Opening::default()).unwrap();
    assert!(circuits.admit(id(2), Role::Source, key(id(2), Role::Source)));
    let theirs = Control {
        circuit: id(2),
        ..bind(Role::Source, 6, 0)
    };
    let value = say(&mut circuits, SOURCE, theirs).answer().unwrap().value;
    let said = say(&mut circuits, SOURCE, Control { value, ..theirs });
    assert_eq!(
        said.0[..3],
        [
            Output::Lost {
                circuit: id(1),
                role: Role::Source
            },
            Output::Released { address: SOURCE },
            Output::Bound {
                circuit: id(2),
                role: Role::Source,
                at: SOURCE
            },
        ]
    );
    assert_eq!(state(&circuits), (None, Some(DESTINATION), 2));
    assert_eq!(
        say(&mut circuits, ELSEWHERE, bind(Role::Source, 6, 0)).kind(),
        Some(Kind::Challenge)
    );
}

/// THREATS DAT-10: an output names only who sent a bind, or a leg that was bound by one.
#[test]
fn dat_10_nothing_is_sent_but_to_who_has_bound() {
    let mut circuits = admitted(Opening::default());
    assert!(circuits.close(id(1), Code::TunnelClosed));
    assert_eq!(drain(&mut circuits), []);
}

/// THREATS DAT-11: both ends of a circuit are relays, or one and the same place.
#[test]
fn dat_11_a_loop_is_refused() {
    let mut circuits = bound();
    assert_eq!(say(&mut circuits, SOURCE, bind(Role::Destination, 6, 0)).0, []);
    assert_eq!(state(&circuits), (Some(SOURCE), Some(DESTINATION), 1));

    let mut circuits = admitted(Opening::default());
    let datagram = bind(Role::Source, 0, 0).encode(&key(id(1), Role::Source));
    circuits.handle_bind(SOURCE, true, &datagram);
    let said = Said(drain(&mut circuits));
    let challenge = said.answer().unwrap();
    assert_eq!(challenge.kind, Kind::Challenge);
    assert_eq!(circuits.place(id(1), Role::Source), None);

    // What a relay does with a challenge: nothing.
    let Output::Send { datagram, .. } = said.0[0] else {
        panic!("a challenge")
    };
    circuits.handle_bind(ELSEWHERE, true, &datagram);
    assert_eq!(drain(&mut circuits), []);

    // Who is no relay answers it.
    let answer = bind(Role::Source, 1, challenge.value).encode(&key(id(1), Role::Source));
    circuits.handle_bind(SOURCE, true, &answer);
    assert_eq!(Said(drain(&mut circuits)).kind(), Some(Kind::Bound));
}

#[test]
fn a_recovered_circuit_challenges_the_first_bind_too() {
    let mut circuits = admitted(Opening {
        recovered: true,
        ..Opening::default()
    });
    let said = say(&mut circuits, SOURCE, bind(Role::Source, 40, 0));
    let challenge = said.answer().unwrap();
    assert_eq!(challenge.kind, Kind::Challenge);
    let said = say(&mut circuits, SOURCE, bind(Role::Source, 41, challenge.value));
    assert_eq!(said.kind(), Some(Kind::Bound));
}

#[test]
fn an_address_that_is_gone_has_to_be_proved_again() {
    let mut circuits = bound();
    circuits.handle_gone(SOURCE);
    assert_eq!(
        drain(&mut circuits),
        [
            Output::Lost {
                circuit: id(1),
                role: Role::Source
            },
            Output::Released { address: SOURCE }
        ]
    );
    circuits.handle_gone(SOURCE);
    assert_eq!(drain(&mut circuits), []);
    assert_eq!(
        say(&mut circuits, SOURCE, bind(Role::Source, 6, 0)).kind(),
        Some(Kind::Challenge)
    );
}

#[test]
fn a_circuit_that_is_never_bound_is_reported_once() {
    let now = start();
    let deadline = now + Duration::from_secs(10);
    let mut circuits = admitted(Opening {
        deadline: Some(deadline),
        recovered: false,
    });
    assert_eq!(circuits.poll_timeout(), Some(deadline));
    assert_eq!(
        say(&mut circuits, SOURCE, bind(Role::Source, 1, 0)).kind(),
        Some(Kind::Bound)
    );
    circuits.handle_timeout(now);
    assert_eq!(drain(&mut circuits), []);
    circuits.handle_timeout(deadline);
    assert_eq!(drain(&mut circuits), [Output::NeverBound { circuit: id(1) }]);
    assert_eq!(circuits.poll_timeout(), None);
}

#[test]
fn a_circuit_with_both_legs_bound_has_no_deadline() {
    let deadline = start() + Duration::from_secs(10);
    let mut circuits = admitted(Opening {
        deadline: Some(deadline),
        recovered: false,
    });
    say(&mut circuits, SOURCE, bind(Role::Source, 1, 0));
    say(&mut circuits, DESTINATION, bind(Role::Destination, 1, 0));
    assert_eq!(circuits.poll_timeout(), None);
}

#[test]
fn the_map_of_circuits_is_bounded() {
    let mut circuits = circuits(300);
    let ids = (0..300u16).map(|n| CircuitId::from_bytes([n.to_be_bytes(); 8].concat().try_into().unwrap()));
    for id in ids.clone() {
        assert_eq!(circuits.open(id, Opening::default()), Ok(()));
    }
    assert_eq!(
        circuits.open(CircuitId::from_bytes([0xff; 16]), Opening::default()),
        Err(OpenError::Full)
    );
    assert_eq!(
        circuits.open(CircuitId::from_bytes([0; 16]), Opening::default()),
        Err(OpenError::Exists)
    );
    for id in ids {
        assert!(circuits.close(id, Code::TunnelClosed));
    }
    assert_eq!(drain(&mut circuits), []);
    assert!(circuits.is_empty());
}

/// The one place where these tests read a clock.
fn start() -> Instant {
    Instant::now()
}

/// One operation of a random run; numbers name circuits and places.
#[derive(Clone, Debug)]
enum Op {
    Open {
        circuit: u8,
        recovered: bool,
    },
    Admit {
        circuit: u8,
        role: Role,
    },
    Bind {
        circuit: u8,
        role: Role,
        from: u8,
        counter: u64,
        value: Value,
        right_key: bool,
        doubtful: bool,
    },
    Gone {
        address: u8,
    },
    Close {
        circuit: u8,
    },
    Wait,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Value {
    None,
    Wrong,
    /// The last challenge that was sent to the place for the leg.
    Heard,
}

fn op() -> impl Strategy<Value = Op> {
    let role = || prop_oneof![Just(Role::Source), Just(Role::Destination)];
    let value = prop_oneof![2 => Just(Value::None), 1 => Just(Value::Wrong), 3 => Just(Value::Heard)];
    let bind = (
        0..3u8,
        role(),
        0..5u8,
        0..12u64,
        value,
        prop::bool::weighted(0.9),
        prop::bool::weighted(0.1),
    );
    prop_oneof![
        2 => (0..3u8, any::<bool>()).prop_map(|(circuit, recovered)| Op::Open { circuit, recovered }),
        2 => (0..3u8, role()).prop_map(|(circuit, role)| Op::Admit { circuit, role }),
        12 => bind.prop_map(|(circuit, role, from, counter, value, right_key, doubtful)| {
            Op::Bind { circuit, role, from, counter, value, right_key, doubtful }
        }),
        1 => (0..5u8).prop_map(|address| Op::Gone { address }),
        1 => (0..3u8).prop_map(|circuit| Op::Close { circuit }),
        1 => Just(Op::Wait),
    ]
}

/// What the test knows of the run: the reference that the machine is held against.
#[derive(Default)]
struct Model {
    open: BTreeMap<u8, bool>,
    admitted: BTreeSet<(u8, Role)>,
    in_force: BTreeMap<(u8, Role), u64>,
    places: BTreeMap<(u8, Role), u8>,
    heard: BTreeMap<(u8, Role, u8), u64>,
}

impl Model {
    fn step(&mut self, circuits: &mut Circuits<u8>, op: &Op, now: &mut Instant) {
        match *op {
            Op::Open { circuit, recovered } => {
                let opening = Opening {
                    deadline: Some(*now + Duration::from_secs(3)),
                    recovered,
                };
                if circuits.open(id(circuit), opening).is_ok() {
                    self.open.insert(circuit, recovered);
                }
            }
            Op::Admit { circuit, role } => {
                if circuits.admit(id(circuit), role, key(id(circuit), role)) {
                    self.admitted.insert((circuit, role));
                }
            }
            Op::Bind {
                circuit,
                role,
                from,
                counter,
                value,
                right_key,
                doubtful,
            } => {
                let heard = self.heard.get(&(circuit, role, from)).copied();
                let value = match value {
                    Value::None => 0,
                    Value::Wrong => 1234,
                    Value::Heard => heard.unwrap_or(0),
                };
                let bind = Control {
                    kind: Kind::Bind,
                    circuit: id(circuit),
                    role,
                    counter,
                    value,
                };
                let key = if right_key {
                    key(id(circuit), role)
                } else {
                    key(id(99), role)
                };
                circuits.handle_bind(from, doubtful, &bind.encode(&key));
                self.bind_seen(
                    circuits,
                    (circuit, role),
                    from,
                    counter,
                    heard == Some(value),
                    right_key,
                    doubtful,
                );
                return;
            }
            Op::Gone { address } => {
                circuits.handle_gone(address);
                self.places.retain(|_, place| *place != address);
            }
            Op::Close { circuit } => {
                circuits.close(id(circuit), Code::TunnelClosed);
                self.open.remove(&circuit);
                self.admitted.retain(|(c, _)| *c != circuit);
                self.in_force.retain(|(c, _), _| *c != circuit);
                self.places.retain(|(c, _), _| *c != circuit);
            }
            Op::Wait => {
                *now += Duration::from_secs(1);
                circuits.handle_timeout(*now);
            }
        }
        for output in drain(circuits) {
            if let Output::Send { datagram, .. } = output {
                assert_eq!(Control::decode(&datagram).unwrap().kind, Kind::Ended);
            }
        }
    }

    #[expect(clippy::too_many_arguments, reason = "one bind has as many sides")]
    fn bind_seen(
        &mut self,
        circuits: &mut Circuits<u8>,
        leg: (u8, Role),
        from: u8,
        counter: u64,
        proved: bool,
        right_key: bool,
        doubtful: bool,
    ) {
        let outputs = drain(circuits);
        let mut sent = outputs.iter().filter_map(|output| match output {
            Output::Send { to, datagram } => Some((*to, Control::decode(datagram).unwrap())),
            _ => None,
        });
        let answer = sent.next();
        assert!(sent.next().is_none(), "one bind, at most one answer");
        let Some((to, answer)) = answer else { return };
        assert_eq!(to, from, "an answer goes where the bind came from");
        assert!(
            right_key && self.admitted.contains(&leg),
            "an answer needs an admitted leg's key"
        );
        assert_eq!(answer.counter, counter);
        assert!(
            self.in_force.get(&leg).is_none_or(|last| counter > *last),
            "an old counter gets silence"
        );
        match answer.kind {
            Kind::Challenge => {
                self.heard.insert((leg.0, leg.1, from), answer.value);
            }
            Kind::Bound => {
                let first = !self.in_force.contains_key(&leg) && !self.open[&leg.0] && !doubtful;
                let free = !self.places.values().any(|place| *place == from);
                let stays = self.places.get(&leg) == Some(&from);
                assert!(stays || proved || (first && free), "a leg moves by proof only");
                self.in_force.insert(leg, counter);
                self.places.retain(|_, place| *place != from);
                self.places.insert(leg, from);
            }
            Kind::Bind | Kind::Ended => panic!("no answer to a bind: {answer:?}"),
        }
    }
}

proptest! {
    #[test]
    fn random_runs_keep_the_invariants(ops in prop::collection::vec(op(), 0..200)) {
        let mut circuits = circuits(2);
        let mut model = Model::default();
        let mut now = start();
        for op in &ops {
            model.step(&mut circuits, op, &mut now);
            for (&(circuit, role), &place) in &model.places {
                prop_assert_eq!(circuits.place(id(circuit), role), Some(place));
            }
            prop_assert_eq!(circuits.len(), model.open.len());
        }
    }

    #[test]
    fn any_datagram_is_answered_with_no_more_than_it_was(datagram in prop::collection::vec(any::<u8>(), 0..100)) {
        let mut circuits = bound();
        circuits.handle_bind(ELSEWHERE, false, &datagram);
        prop_assert_eq!(drain(&mut circuits), []);
    }
}

/// Who has stolen a leg's key has it for nothing after a rotation, wherever it was bound and however far it had counted.
#[test]
fn after_a_rotation_the_old_key_binds_nothing_and_what_is_bound_goes_on() {
    let mut circuits = bound();
    assert!(circuits.lock(id(1), Role::Source, 1));
    assert!(!circuits.lock(id(2), Role::Source, 1));
    let stolen = bind(Role::Source, u64::MAX - 1, 0);
    for from in [SOURCE, ELSEWHERE] {
        assert_eq!(say(&mut circuits, from, stolen).kind(), None, "locked");
    }
    assert_eq!(circuits.place(id(1), Role::Source), Some(SOURCE));

    let new = LegKey::derive_rotated(&Secret::new([7; 32]), id(1), Role::Source, 1);
    assert!(circuits.admit(id(1), Role::Source, new.clone()));
    for from in [SOURCE, ELSEWHERE] {
        assert_eq!(say(&mut circuits, from, stolen).kind(), None, "rotated");
    }
    circuits.handle_bind(SOURCE, false, &bind(Role::Source, 6, 0).encode(&new));
    let outputs = drain(&mut circuits);
    let rotated = Output::Rotated {
        circuit: id(1),
        role: Role::Source,
        rotation: 1,
    };
    assert!(outputs.contains(&rotated), "{outputs:?}");
    assert_eq!(circuits.place(id(1), Role::Source), Some(SOURCE));
    // It is told once, and the other leg has its own key.
    circuits.handle_bind(SOURCE, false, &bind(Role::Source, 7, 0).encode(&new));
    assert!(!drain(&mut circuits).contains(&rotated));
    assert_eq!(
        say(&mut circuits, DESTINATION, bind(Role::Destination, 6, 0)).kind(),
        Some(Kind::Bound)
    );
}

/// A thief who had moved the leg and counted far loses it to the end that has the new key.
#[test]
fn a_rotation_takes_a_stolen_leg_back() {
    let mut circuits = bound();
    let stolen = say(&mut circuits, ELSEWHERE, bind(Role::Source, u64::MAX - 2, 0));
    let challenge = stolen.answer().unwrap().value;
    assert_eq!(
        say(
            &mut circuits,
            ELSEWHERE,
            bind(Role::Source, u64::MAX - 1, challenge)
        )
        .kind(),
        Some(Kind::Bound)
    );
    let new = LegKey::derive_rotated(&Secret::new([7; 32]), id(1), Role::Source, 1);
    assert!(circuits.lock(id(1), Role::Source, 1) && circuits.admit(id(1), Role::Source, new.clone()));
    circuits.handle_bind(SOURCE, false, &bind(Role::Source, 6, 0).encode(&new));
    let challenge = Said(drain(&mut circuits))
        .answer()
        .map_or(0, |answer| answer.value);
    circuits.handle_bind(SOURCE, false, &bind(Role::Source, 7, challenge).encode(&new));
    drain(&mut circuits);
    assert_eq!(circuits.place(id(1), Role::Source), Some(SOURCE));
}
