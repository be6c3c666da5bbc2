//! Decides about offers: whether the device takes a tunnel that the server has decided. Pure.

use std::cmp::Ordering;
use std::time::Instant;

use tunnel_proto::cose::VerifyingKey;
use tunnel_proto::defaults::CLOCK_TOLERANCE;
use tunnel_proto::grant::{Grant, LinkNonce};
use tunnel_proto::lock::Permit;
use tunnel_proto::message::Offer;
use tunnel_proto::{Code, Identity, UnixTime};

use crate::moment::Moment;
use crate::operator::Operator;
use crate::policy::{LocalPolicy, Right};
use crate::replay::ReplayMemory;

/// The server's time as it was proven on the control link, carried on by the monotonic clock.
///
/// The device's own clock has no say in whether a grant is in time (THREATS AGT-09, AGT-10).
#[derive(Clone, Copy, Debug)]
pub struct ServerTime {
    proven: UnixTime,
    at: Instant,
}

impl ServerTime {
    /// Takes a time that the server said at `at`.
    pub const fn new(proven: UnixTime, at: Instant) -> Self {
        Self { proven, at }
    }

    /// Returns the server's time.
    pub fn now(&self, now: Instant) -> UnixTime {
        self.proven.after(now.saturating_duration_since(self.at))
    }
}

/// What an offer is weighed against.
#[derive(Clone, Copy, Debug)]
pub struct Situation<'a> {
    /// The key that the server signs grants with, as the link's welcome told.
    pub grant_key: &'a VerifyingKey,
    /// The nonce of this control link.
    pub nonce: &'a LinkNonce,
    /// Who is proven to be at the other end of it.
    pub server: &'a Identity,
    /// The time: what the owner laid down or signed does not hold longer for a server that turns its clock back.
    pub now: Moment,
    /// The owner's policy.
    pub policy: &'a LocalPolicy,
    /// Whether the owner lets anybody in.
    pub access: bool,
    /// Tunnels that live.
    pub tunnels: usize,
    /// The operator of the one that gives way where there is no room for one more.
    pub ghost: Option<&'a Operator>,
}

/// Accepts or refuses offers for one device.
#[derive(Debug)]
pub struct Acceptance {
    device: Identity,
    replay: ReplayMemory,
}

impl Acceptance {
    /// Makes the judge of a device's offers.
    pub const fn new(device: Identity, replay: ReplayMemory) -> Self {
        Self { device, replay }
    }

    /// Checks an offer: signature, device, link, time, relay, that it is new, the owner's switch, windows, policy and
    /// lock, and room. Only what fits in all else makes room for itself: a ghost blocks nobody then.
    ///
    /// # Errors
    /// Returns the code of the first thing that does not fit, in that order.
    pub fn judge(&mut self, offer: &Offer, now: &Situation<'_>) -> Result<Right, Code> {
        let grant = Grant::verify(&offer.grant, now.grant_key)?;
        grant.check(&self.device, now.nonce, now.now.server, CLOCK_TOLERANCE)?;
        if Identity::server(&grant.trust_domain, &grant.relay) != *now.server {
            return Err(Code::TokenAudience);
        }
        if grant.tunnel != offer.tunnel {
            return Err(Code::TokenScope);
        }
        self.replay.remember(
            grant.tunnel,
            grant.expires_at.after(CLOCK_TOLERANCE),
            now.now.server,
        )?;
        if !now.access {
            return Err(Code::AccessOff);
        }
        if !now.policy.windows.are_open(now.now) {
            return Err(Code::OutsideWindow);
        }
        let permit = match (now.policy.locks(&grant), &offer.permit) {
            (true, Some(permit)) => Some(Permit::from_bytes(permit)?),
            _ => None,
        };
        let right = Right { grant, permit };
        now.policy.admits_all(&right)?;
        if let Some(permit) = &right.permit {
            permit.window().holds(now.now.latest())?;
        }
        match now.tunnels.cmp(&(now.policy.max_tunnels as usize)) {
            Ordering::Less => {}
            Ordering::Equal => now.ghost.ok_or(Code::Busy)?.give_way(),
            Ordering::Greater => return Err(Code::Busy),
        }
        Ok(right)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tunnel_proto::cose::SigningKey;
    use tunnel_proto::keys::Secret;

    use super::*;
    use crate::testing::{grant, lock_key, locked_policy, permit, policy, start};
    use crate::windows::Windows;

    struct World {
        key: SigningKey,
        verifying: VerifyingKey,
        policy: LocalPolicy,
        acceptance: Acceptance,
        nonce: LinkNonce,
        server: Identity,
        now: UnixTime,
        own_time: UnixTime,
        access: bool,
        tunnels: usize,
        ghost: Option<Operator>,
    }

    impl World {
        fn new() -> Self {
            let key = SigningKey::from_seed(&Secret::new([7; 32])).unwrap();
            let grant = grant();
            Self {
                verifying: key.verifying_key(),
                key,
                policy: policy(),
                acceptance: Acceptance::new(grant.device_identity(), ReplayMemory::new(8)),
                nonce: grant.nonce,
                server: Identity::server(&grant.trust_domain, &grant.relay),
                now: grant.issued_at,
                own_time: UnixTime::default(),
                access: true,
                tunnels: 0,
                ghost: None,
            }
        }

        fn judge(&mut self, grant: &Grant) -> Result<Grant, Code> {
            self.judge_with(grant, None)
        }

        fn judge_with(&mut self, grant: &Grant, permit: Option<Vec<u8>>) -> Result<Grant, Code> {
            let offer = Offer {
                grant: grant.sign(&self.key),
                token: Vec::new(),
                tunnel: grant.tunnel,
                permit,
            };
            self.offer(&offer)
        }

        fn offer(&mut self, offer: &Offer) -> Result<Grant, Code> {
            let now = Situation {
                grant_key: &self.verifying,
                nonce: &self.nonce,
                server: &self.server,
                now: Moment {
                    server: self.now,
                    own: self.own_time,
                },
                policy: &self.policy,
                access: self.access,
                tunnels: self.tunnels,
                ghost: self.ghost.as_ref(),
            };
            self.acceptance.judge(offer, &now).map(|right| right.grant)
        }
    }

    #[test]
    fn a_fitting_offer_is_accepted_once() {
        let mut world = World::new();
        assert_eq!(world.judge(&grant()), Ok(grant()));
        assert_eq!(world.judge(&grant()), Err(Code::TokenReplay));
    }

    #[test]
    fn a_refused_offer_cannot_come_again_when_the_switch_is_on() {
        let mut world = World::new();
        world.access = false;
        assert_eq!(world.judge(&grant()), Err(Code::AccessOff));
        world.access = true;
        assert_eq!(world.judge(&grant()), Err(Code::TokenReplay));
    }

    #[test]
    fn a_foreign_signature_is_refused() {
        let mut world = World::new();
        world.verifying = SigningKey::from_seed(&Secret::new([8; 32]))
            .unwrap()
            .verifying_key();
        assert_eq!(
            world.judge(&grant()),
            Err(Code::TokenAlg),
            "the key id is that of another key"
        );
    }

    #[test]
    fn every_flipped_bit_is_refused() {
        let mut world = World::new();
        let good = Offer {
            grant: grant().sign(&world.key),
            token: Vec::new(),
            tunnel: grant().tunnel,
            permit: None,
        };
        for bit in 0..good.grant.len() * 8 {
            let mut offer = good.clone();
            offer.grant[bit / 8] ^= 1 << (bit % 8);
            assert!(world.offer(&offer).is_err(), "bit {bit}");
        }
        assert!(world.offer(&good).is_ok(), "none of them was remembered");
    }

    // TOK-10
    #[test]
    fn a_grant_of_another_link_or_device_is_refused() {
        let mut world = World::new();
        world.nonce = [0; 16];
        assert_eq!(world.judge(&grant()), Err(Code::TokenReplay));
        let mut world = World::new();
        let other = Grant {
            device: "other".parse().unwrap(),
            ..grant()
        };
        assert_eq!(world.judge(&other), Err(Code::TokenAudience));
        let other = Grant {
            trust_domain: "elsewhere".parse().unwrap(),
            ..grant()
        };
        assert_eq!(world.judge(&other), Err(Code::TokenAudience));
    }

    #[test]
    fn a_grant_out_of_its_time_is_refused() {
        let mut world = World::new();
        world.now = grant().expires_at.after(CLOCK_TOLERANCE);
        assert_eq!(world.judge(&grant()), Err(Code::TokenExpired));
        world.now = grant().issued_at.before(CLOCK_TOLERANCE + Duration::from_secs(1));
        assert_eq!(world.judge(&grant()), Err(Code::TokenNotYet));
    }

    #[test]
    fn an_offer_that_names_another_tunnel_than_its_grant_is_refused() {
        let mut world = World::new();
        let tunnel = tunnel_proto::TunnelId::from_bytes([9; 16]);
        let offer = Offer {
            grant: grant().sign(&world.key),
            token: Vec::new(),
            tunnel,
            permit: None,
        };
        assert_eq!(world.offer(&offer), Err(Code::TokenScope));
    }

    // TOK-02
    #[test]
    fn a_grant_of_another_relay_than_the_links_is_refused() {
        let mut world = World::new();
        world.server = "spiffe://fleet.example/server/node-2".parse().unwrap();
        assert_eq!(world.judge(&grant()), Err(Code::TokenAudience));
        let mut world = World::new();
        let other = Grant {
            relay: "node-2".parse().unwrap(),
            ..grant()
        };
        assert_eq!(world.judge(&other), Err(Code::TokenAudience));
        assert_eq!(world.judge(&grant()), Ok(grant()));
    }

    /// Asks a device whose owner locked `ssh`, with a fresh tunnel each time.
    fn locked(permit: Option<Vec<u8>>, change: impl Fn(&mut World)) -> Result<Grant, Code> {
        let mut world = World::new();
        world.policy = locked_policy();
        change(&mut world);
        world.judge_with(&grant(), permit)
    }

    // T12
    #[test]
    fn a_grant_by_the_true_key_opens_no_locked_service_without_a_permit() {
        let good = permit(&grant()).to_bytes();
        assert_eq!(locked(None, |_| ()), Err(Code::LockRequired));
        assert_eq!(locked(Some(good.clone()), |_| ()), Ok(grant()));
        let mut one = Permit::request(permit(&grant()).statement().clone());
        assert_eq!(locked(Some(one.to_bytes()), |_| ()), Err(Code::LockPermit));
        assert!(one.sign(&lock_key(2)));
        assert_eq!(locked(Some(one.to_bytes()), |_| ()), Err(Code::LockPermit));
        // The control plane's own key is none of the owner's.
        assert!(one.sign(&World::new().key));
        assert_eq!(locked(Some(one.to_bytes()), |_| ()), Err(Code::LockPermit));
        for other in [&b"permit"[..], b"", &[0xd8; 5000], &grant().sign(&lock_key(1))] {
            assert_eq!(locked(Some(other.to_vec()), |_| ()), Err(Code::LockPermit));
        }
        let elsewhere = Grant {
            device: "valve".parse().unwrap(),
            ..grant()
        };
        let elsewhere = permit(&elsewhere).to_bytes();
        assert_eq!(locked(Some(elsewhere), |_| ()), Err(Code::LockScope));
    }

    // T12, AGT-10
    #[test]
    fn a_server_that_turns_its_clock_revives_no_permit() {
        let good = permit(&grant());
        let until = good.window().until;
        let good = || Some(good.to_bytes());
        let second = Duration::from_secs(1);
        assert_eq!(locked(good(), |world| world.now = until), Err(Code::LockTime));
        assert_eq!(
            locked(good(), |world| world.own_time = until),
            Err(Code::LockTime),
            "whatever the server says the time is"
        );
        assert!(locked(good(), |world| world.own_time = until.before(second)).is_ok());
    }

    #[test]
    fn what_is_not_locked_needs_no_permit_and_heeds_none() {
        let mut world = World::new();
        world.policy.lock = locked_policy().lock;
        assert_eq!(world.judge_with(&grant(), Some(vec![0; 9000])), Ok(grant()));
    }

    // AGT-04
    #[test]
    fn the_owner_has_the_last_word() {
        let mut world = World::new();
        let wide = Grant {
            services: vec!["ssh".parse().unwrap(), "shell".parse().unwrap()],
            ..grant()
        };
        assert_eq!(world.judge(&wide), Err(Code::ServiceUnknown));
        let mut world = World::new();
        let web = Grant {
            services: vec!["web".parse().unwrap()],
            ..grant()
        };
        assert_eq!(world.judge(&web), Err(Code::LocalPolicy));
        let mut world = World::new();
        world.tunnels = world.policy.max_tunnels as usize;
        assert_eq!(world.judge(&grant()), Err(Code::Busy));
    }

    #[test]
    fn a_ghost_gives_way_to_what_is_accepted_and_to_nothing_else() {
        let mut world = World::new();
        let ghost = Operator::default();
        world.ghost = Some(ghost.clone());
        world.tunnels = world.policy.max_tunnels as usize;
        let another = |n| Grant {
            tunnel: tunnel_proto::TunnelId::from_bytes([n; 16]),
            ..grant()
        };
        let web = Grant {
            services: vec!["web".parse().unwrap()],
            ..another(1)
        };
        assert_eq!(world.judge(&web), Err(Code::LocalPolicy));
        assert_eq!(world.judge(&web), Err(Code::TokenReplay));
        let foreign = Grant {
            nonce: [0; 16],
            ..another(2)
        };
        assert_eq!(world.judge(&foreign), Err(Code::TokenReplay));
        world.access = false;
        assert_eq!(world.judge(&another(3)), Err(Code::AccessOff));
        world.access = true;
        world.tunnels += 1;
        assert_eq!(world.judge(&another(4)), Err(Code::Busy), "one is not enough");
        world.tunnels = 0;
        assert!(world.judge(&another(5)).is_ok(), "there is room");
        assert!(!ghost.is_gone());
        world.tunnels = world.policy.max_tunnels as usize;
        assert!(world.judge(&another(6)).is_ok());
        assert!(ghost.is_gone());
    }

    /// THREATS I12: neither clock alone opens a window.
    #[test]
    fn outside_of_the_owners_windows_nothing_is_accepted() {
        // The grant is of Friday 2027-01-15, 08:00 UTC.
        for (windows, own_time, answer) in [
            (&["fri 08:00-09:00"] as &[&str], 0, Ok(())),
            (
                &["fri 09:00-10:00", "mon-thu 00:00-24:00"],
                0,
                Err(Code::OutsideWindow),
            ),
            (&["fri 08:00-09:00"], 3600, Err(Code::OutsideWindow)),
            (&["fri 09:00-10:00"], 3600, Err(Code::OutsideWindow)),
        ] {
            let mut world = World::new();
            world.policy.windows = Windows(windows.iter().map(|text| text.parse().unwrap()).collect());
            world.own_time = world.now.after(Duration::from_secs(own_time));
            assert_eq!(world.judge(&grant()).map(drop), answer, "{windows:?} {own_time}");
        }
    }

    #[test]
    fn server_time_runs_with_the_monotonic_clock() {
        let time = ServerTime::new(UnixTime::from_secs(100), start());
        assert_eq!(
            time.now(start() + Duration::from_secs(5)),
            UnixTime::from_secs(105)
        );
        assert_eq!(time.now(start()), UnixTime::from_secs(100));
    }
}
