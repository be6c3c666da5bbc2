//! What the tests of several modules share.

use std::time::{Duration, Instant};

use tunnel_certs::{Authority, CertificateRequest, KeyPair, Peer, Trust};
use tunnel_net::clock::{Clock as _, SystemClock};
use tunnel_proto::cose::SigningKey;
use tunnel_proto::grant::{Grant, Limits};
use tunnel_proto::keys::{KeyHash, Secret};
use tunnel_proto::lock::{Access, Lock, Permit, Statement, Window};
use tunnel_proto::{Identity, TunnelId, UnixTime};

use crate::defaults;
use crate::policy::{LocalPolicy, Operators, Service};
use crate::windows::Windows;

/// Returns the one start time of a test.
pub(crate) fn start() -> Instant {
    static START: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
    *START.get_or_init(Instant::now)
}

/// A grant of `ssh` on `pump` for ana.
pub(crate) fn grant() -> Grant {
    Grant {
        trust_domain: "fleet.example".parse().unwrap(),
        tunnel: TunnelId::from_bytes([1; 16]),
        operator: "ana".parse().unwrap(),
        holder_key: KeyHash::from_bytes([2; 32]),
        device: "pump".parse().unwrap(),
        services: vec!["ssh".parse().unwrap()],
        relay: "node-1".parse().unwrap(),
        policy_revision: 1,
        nonce: [3; 16],
        reason: Some("INC-7".into()),
        batch: None,
        issued_at: UnixTime::from_secs(1_800_000_000),
        expires_at: UnixTime::from_secs(1_800_003_600),
        limits: Limits {
            sessions: 4,
            bytes: None,
            bytes_per_sec: None,
            idle_secs: 900,
        },
    }
}

/// A policy with `ssh` for everybody and `web` for bob.
pub(crate) fn policy() -> LocalPolicy {
    let ssh = Service {
        target: "tcp:127.0.0.1:22".parse().unwrap(),
        operators: Operators::Any,
        max_sessions: 16,
        locked: false,
        asks: false,
    };
    let web = Service {
        target: "unix:/run/web.sock".parse().unwrap(),
        operators: Operators::Only(["bob".parse().unwrap()].into()),
        max_sessions: 16,
        locked: false,
        asks: false,
    };
    LocalPolicy {
        services: [("ssh".parse().unwrap(), ssh), ("web".parse().unwrap(), web)].into(),
        operators: Operators::Any,
        max_sessions: defaults::MAX_SESSIONS,
        max_tunnels: 2,
        lock: None,
        windows: Windows::default(),
        consent_timeout: defaults::CONSENT_TIMEOUT,
    }
}

/// A key of the owner.
pub(crate) fn lock_key(seed: u8) -> SigningKey {
    SigningKey::from_seed(&Secret::new([seed; 32])).unwrap()
}

/// The same policy where `ssh` is locked by two of the owner's keys 1 to 3.
pub(crate) fn locked_policy() -> LocalPolicy {
    let mut policy = policy();
    let keys = (1..=3).map(|seed| lock_key(seed).verifying_key()).collect();
    policy.lock = Some(Lock::new(2, keys).unwrap());
    for (name, service) in &mut policy.services {
        service.locked = name.as_str() == "ssh";
    }
    policy
}

/// A permit for what a grant names, half as long as the grant, signed by keys 1 and 3.
pub(crate) fn permit(grant: &Grant) -> Permit {
    let access = Access {
        trust_domain: grant.trust_domain.clone(),
        operator: grant.operator.clone(),
        holder_key: grant.holder_key,
        device: grant.device.clone(),
        services: grant.services.clone(),
        window: Window {
            from: grant.issued_at,
            until: grant.issued_at.after(Duration::from_secs(1800)),
        },
        nonce: [4; 16],
    };
    let mut permit = Permit::request(Statement::Access(access));
    assert!(permit.sign(&lock_key(1)) && permit.sign(&lock_key(3)));
    permit
}

/// A fleet with its authority.
pub(crate) struct Fleet {
    pub(crate) authority: Authority,
    pub(crate) trust: Trust,
}

impl Fleet {
    /// Makes the fleet `fleet.example`.
    pub(crate) fn new() -> Self {
        let new = Authority::create(
            &"fleet.example".parse().unwrap(),
            SystemClock.now(),
            &ring::rand::SystemRandom::new(),
        )
        .unwrap();
        let authority = Authority::load(&new.issuing_pem, &new.issuing_key_pem, &new.root_pem).unwrap();
        Self {
            authority,
            trust: Trust::from_pem(&new.root_pem).unwrap(),
        }
    }

    /// Issues a chain for 90 days.
    pub(crate) fn chain(
        &self,
        authority: &Authority,
        request: &CertificateRequest,
        identity: &Identity,
    ) -> String {
        issue(authority, request, identity, 90)
    }

    /// Returns who a certificate of so many days speaks for.
    pub(crate) fn peer(&self, key: &KeyPair, identity: &str, days: u64) -> Peer {
        let request = CertificateRequest::from_pem(&tunnel_certs::request(key).unwrap()).unwrap();
        let chain = issue(&self.authority, &request, &identity.parse().unwrap(), days);
        self.trust
            .verify(&tunnel_certs::pem::read_chain(&chain).unwrap(), SystemClock.now())
            .unwrap()
    }
}

fn issue(authority: &Authority, request: &CertificateRequest, identity: &Identity, days: u64) -> String {
    let lifetime = Duration::from_secs(days * 24 * 3600);
    authority
        .issue(request, identity, SystemClock.now(), lifetime, [5; 16])
        .unwrap()
        .chain_pem
}
