use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::defaults::CLOCK_TOLERANCE;
use crate::grant::Limits;
use crate::ids::TunnelId;
use crate::keys::KeyHash;

const NOW: UnixTime = UnixTime::from_secs(1_800_000_000);

fn key(seed: u8) -> SigningKey {
    SigningKey::from_seed(&Secret::new([seed; 32])).unwrap()
}

/// A lock of keys 1, 2 and 3, of which two have to sign.
fn lock() -> Lock {
    Lock::new(2, (1..=3).map(|seed| key(seed).verifying_key()).collect()).unwrap()
}

fn window() -> Window {
    Window {
        from: NOW,
        until: NOW.after(Duration::from_secs(3600)),
    }
}

fn access() -> Access {
    Access {
        trust_domain: "fleet.example".parse().unwrap(),
        operator: "ana".parse().unwrap(),
        holder_key: KeyHash::of_spki(b"ana"),
        device: "pump-17".parse().unwrap(),
        services: vec!["plc".parse().unwrap(), "ssh".parse().unwrap()],
        window: window(),
        nonce: [4; 16],
    }
}

fn new_root() -> NewRoot {
    NewRoot {
        root: [9; 32],
        window: window(),
        nonce: [4; 16],
    }
}

fn permit(statement: Statement, seeds: &[u8]) -> Permit {
    let mut permit = Permit::request(statement);
    for &seed in seeds {
        assert!(permit.sign(&key(seed)));
    }
    permit
}

fn grant() -> Grant {
    Grant {
        reason: None,
        batch: None,
        trust_domain: "fleet.example".parse().unwrap(),
        tunnel: TunnelId::from_bytes([1; 16]),
        operator: "ana".parse().unwrap(),
        holder_key: KeyHash::of_spki(b"ana"),
        device: "pump-17".parse().unwrap(),
        services: vec!["ssh".parse().unwrap(), "diag".parse().unwrap()],
        relay: "n1".parse().unwrap(),
        policy_revision: 3,
        nonce: [4; 16],
        issued_at: NOW,
        expires_at: NOW.after(Duration::from_secs(3600)),
        limits: Limits {
            sessions: 16,
            bytes: None,
            bytes_per_sec: None,
            idle_secs: 900,
        },
    }
}

/// Asks whether a permit opens the service `ssh` to who has a grant.
fn opens(permit: &Permit, grant: &Grant) -> Result<(), Code> {
    lock().opens(permit, grant, &[&"ssh".parse().unwrap()])
}

#[test]
fn permits_locks_and_keys_read_back() {
    for statement in [Statement::Access(access()), Statement::NewRoot(new_root())] {
        for seeds in [&[][..], &[1], &[3, 1]] {
            let permit = permit(statement.clone(), seeds);
            assert_eq!(format!(" {}\n", permit.to_text()).parse(), Ok(permit.clone()));
            assert_eq!(Permit::from_bytes(&permit.to_bytes()), Ok(permit));
        }
    }
    assert_eq!(lock().to_text().parse(), Ok(lock()));
    let seed = Secret::new([1; 32]);
    let read = key_from_text(&key_to_text(&seed)).unwrap();
    assert_eq!(read.verifying_key(), key(1).verifying_key());
}

#[test]
fn what_is_damaged_or_something_else_is_refused() {
    let (lock, permit) = (
        lock().to_text(),
        permit(Statement::Access(access()), &[1]).to_text(),
    );
    assert_eq!(lock.parse::<Permit>(), Err(LockError::Prefix("tnlpermit1_")));
    assert_eq!(permit.parse::<Lock>(), Err(LockError::Prefix("tnllock1_")));
    assert_eq!(lock[..lock.len() - 1].parse::<Lock>(), Err(LockError::Damaged));
    assert_eq!(
        permit[..permit.len() - 4].parse::<Permit>(),
        Err(LockError::Damaged)
    );
    assert_eq!(key_from_text(&lock).err(), Some(LockError::Prefix("tnlkey1_")));
    let long = format!("tnlpermit1_{}", "A".repeat(1 << 20));
    assert_eq!(long.parse::<Permit>(), Err(LockError::Damaged));
}

#[test]
fn a_lock_has_different_keys_and_a_threshold_among_them() {
    let keys = |seeds: &[u8]| seeds.iter().map(|&seed| key(seed).verifying_key()).collect();
    for (threshold, seeds) in [(0, &[1][..]), (2, &[1]), (1, &[]), (2, &[1, 1]), (1, &[1, 2, 1])] {
        assert_eq!(Lock::new(threshold, keys(seeds)), Err(LockError::Numbers));
    }
    let many: Vec<u8> = (1..=17).collect();
    assert!(Lock::new(16, keys(&many[..16])).is_ok());
    assert_eq!(Lock::new(16, keys(&many)), Err(LockError::Numbers));
    let written = Written {
        threshold: 0,
        keys: keys(&[1]),
    };
    let text = word::write(LOCK_PREFIX, &minicbor::to_vec(&written).unwrap());
    assert_eq!(text.parse::<Lock>(), Err(LockError::Numbers));
}

/// THREATS T12.
#[test]
fn fewer_than_the_threshold_open_nothing() {
    let with = |seeds: &[u8]| opens(&permit(Statement::Access(access()), seeds), &grant());
    for seeds in [&[][..], &[1], &[2, 2], &[1, 8, 9], &[7, 8, 9]] {
        assert_eq!(with(seeds), Err(Code::LockPermit), "{seeds:?}");
    }
    for seeds in [&[1, 2][..], &[3, 1], &[9, 2, 3], &[1, 2, 3]] {
        assert_eq!(with(seeds), Ok(()), "{seeds:?}");
    }
}

/// THREATS T12: what was signed for one thing is good for nothing else.
#[test]
fn a_permit_opens_what_it_names_and_nothing_else() {
    let signed = permit(Statement::Access(access()), &[1, 2]);
    let for_another = |change: &dyn Fn(&mut Grant)| {
        let mut grant = grant();
        change(&mut grant);
        opens(&signed, &grant)
    };
    assert_eq!(for_another(&|_| ()), Ok(()));
    let changes: [&dyn Fn(&mut Grant); 4] = [
        &|grant| grant.operator = "eve".parse().unwrap(),
        &|grant| grant.holder_key = KeyHash::of_spki(b"eve"),
        &|grant| grant.device = "pump-18".parse().unwrap(),
        &|grant| grant.trust_domain = "elsewhere".parse().unwrap(),
    ];
    for change in changes {
        assert_eq!(for_another(change), Err(Code::LockScope));
    }
    let shell = "shell".parse().unwrap();
    assert_eq!(lock().opens(&signed, &grant(), &[&shell]), Err(Code::LockScope));
    let root = permit(Statement::NewRoot(new_root()), &[1, 2]);
    assert_eq!(opens(&root, &grant()), Err(Code::LockScope));
    assert_eq!(lock().opens_root(&root, &[9; 32], NOW), Ok(()));
    assert_eq!(lock().opens_root(&root, &[8; 32], NOW), Err(Code::LockScope));
    assert_eq!(lock().opens_root(&signed, &[9; 32], NOW), Err(Code::LockScope));
    assert_eq!(
        lock().opens_root(&root, &[9; 32], window().until),
        Err(Code::LockTime)
    );
    let half = permit(Statement::NewRoot(new_root()), &[1]);
    assert_eq!(lock().opens_root(&half, &[9; 32], NOW), Err(Code::LockPermit));
}

#[test]
fn a_permit_holds_in_its_window() {
    let (second, window) = (Duration::from_secs(1), window());
    let first = window.from.before(CLOCK_TOLERANCE);
    assert_eq!(window.holds(first), Ok(()));
    assert_eq!(window.holds(first.before(second)), Err(Code::LockTime));
    assert_eq!(window.holds(window.until.before(second)), Ok(()));
    assert_eq!(window.holds(window.until), Err(Code::LockTime));
}

#[test]
fn a_window_that_is_empty_or_too_long_is_no_permit() {
    let read = |until: UnixTime| {
        let access = Access {
            window: Window { from: NOW, until },
            ..access()
        };
        Permit::from_bytes(&permit(Statement::Access(access), &[1, 2]).to_bytes()).map(drop)
    };
    assert_eq!(read(NOW.after(MAX_WINDOW)), Ok(()));
    for until in [NOW, NOW.after(MAX_WINDOW + Duration::from_secs(1))] {
        assert_eq!(read(until), Err(Code::LockPermit));
    }
}

/// THREATS TOK-07.
#[test]
fn every_flipped_bit_of_a_permit_closes_it() {
    let good = permit(Statement::Access(access()), &[1, 2]).to_bytes();
    let opened = |bytes: &[u8]| Permit::from_bytes(bytes).and_then(|permit| opens(&permit, &grant()));
    assert_eq!(opened(&good), Ok(()));
    for bit in 0..good.len() * 8 {
        let mut bad = good.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        assert!(opened(&bad).is_err(), "bit {bit}");
    }
}

proptest! {
    /// THREATS TOK-16.
    #[test]
    fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..300), text in "tnl(lock|permit|key)1_[A-Za-z0-9_-]{0,200}") {
        let _ = Permit::from_bytes(&bytes);
        let _ = text.parse::<Permit>();
        let _ = text.parse::<Lock>();
        let _ = key_from_text(&text);
    }
}
