//! The device's own policy: which services exist, who may use them, and how much at once.
//!
//! Pure. The device has the last word: what stands here narrows what the server allows, and nothing that comes from the
//! network can change it (THREATS I12, AGT-04).

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tunnel_proto::grant::Grant;
use tunnel_proto::lock::{Lock, Permit};
use tunnel_proto::{Code, OperatorName, ServiceName, UnixTime};

use crate::moment::Moment;
use crate::target::Target;
use crate::windows::Windows;

/// What the owner of the device lets happen.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LocalPolicy {
    /// The services that exist; there are no others.
    pub services: BTreeMap<ServiceName, Service>,
    /// Who may use anything here at all.
    pub operators: Operators,
    /// Sessions at once, of all tunnels together.
    pub max_sessions: u32,
    /// Tunnels at once.
    pub max_tunnels: u32,
    /// Whose signatures locked services need, and another root.
    pub lock: Option<Lock>,
    /// When operators are let in.
    pub windows: Windows,
    /// How long a person on site has to answer, where a service asks for consent.
    pub consent_timeout: Duration,
}

/// One service.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Service {
    /// Where it is reached on the device.
    pub target: Target,
    /// Who may use it, of those who may use anything.
    pub operators: Operators,
    /// Sessions at once, of all tunnels together.
    pub max_sessions: u32,
    /// Whether a grant alone is not enough: the owner's offline keys have to have signed too.
    pub locked: bool,
    /// Whether a person on site has to say yes to each tunnel first.
    pub asks: bool,
}

impl Service {
    /// Says whether it runs commands.
    pub const fn runs(&self) -> bool {
        matches!(self.target, Target::Commands(_))
    }

    /// A tunnel that is for a batch of commands is for nothing else.
    fn fits(&self, grant: &Grant) -> Result<(), Code> {
        match grant.batch {
            Some(_) if !self.runs() => Err(Code::BatchDenied),
            _ => Ok(()),
        }
    }
}

/// By what an operator is here: what the control plane granted, and what the owner's keys signed, if that is needed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Right {
    /// The grant.
    pub grant: Grant,
    /// The permit, if the grant names locked services.
    pub permit: Option<Permit>,
}

impl Right {
    /// Returns when it ends: with the grant, or earlier with the permit.
    pub fn expires_at(&self) -> UnixTime {
        let permit = self.permit.as_ref().map(|permit| permit.window().until);
        permit.map_or(self.grant.expires_at, |until| until.min(self.grant.expires_at))
    }

    /// Returns how long it still holds: the grant by the server's clock, the permit by whichever clock is later, so that a
    /// server that turns its own back does not stretch what the owner's keys signed (THREATS T12, AGT-10).
    pub fn left(&self, now: Moment) -> Duration {
        let grant = self.grant.expires_at.since(now.server);
        let permit = self.permit.as_ref().map(|permit| permit.window().until);
        permit.map_or(grant, |until| grant.min(until.since(now.latest())))
    }
}

/// A list of operators.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub enum Operators {
    /// Whoever the server allows.
    #[default]
    Any,
    /// Of those whom the server allows, only these.
    Only(BTreeSet<OperatorName>),
}

impl Operators {
    /// Says whether an operator is in the list.
    pub fn has(&self, operator: &OperatorName) -> bool {
        match self {
            Self::Any => true,
            Self::Only(names) => names.contains(operator),
        }
    }
}

impl LocalPolicy {
    /// Says whether an operator may use a service here.
    ///
    /// # Errors
    /// Returns [`Code::ServiceUnknown`] or [`Code::LocalPolicy`].
    pub fn admits(&self, operator: &OperatorName, service: &ServiceName) -> Result<&Service, Code> {
        let found = self.services.get(service).ok_or(Code::ServiceUnknown)?;
        if self.operators.has(operator) && found.operators.has(operator) {
            Ok(found)
        } else {
            Err(Code::LocalPolicy)
        }
    }

    /// Says whether a grant names a service to which a person on site has to say yes.
    pub fn asks(&self, grant: &Grant) -> bool {
        let asks = |service| self.services.get(service).is_some_and(|service| service.asks);
        grant.services.iter().any(asks)
    }

    /// Says whether a grant names a service that the owner locked.
    pub fn locks(&self, grant: &Grant) -> bool {
        grant.services.iter().any(|service| self.is_locked(service))
    }

    /// Says whether everything that a grant names may happen here. Asked when a tunnel is offered, and again for each
    /// live tunnel when the owner has changed the policy.
    ///
    /// # Errors
    /// Returns the code of the first service that may not be used, or of what the permit lacks.
    pub fn admits_all(&self, right: &Right) -> Result<(), Code> {
        let services = &right.grant.services;
        for service in services {
            self.admits(&right.grant.operator, service)?.fits(&right.grant)?;
        }
        let locked: Vec<_> = services.iter().filter(|name| self.is_locked(name)).collect();
        self.opens(right, &locked)
    }

    /// Decides about one session from the text that the operator sent. `own` is the device's own time, which is never
    /// earlier than what a server has proven: by that alone a window closes and a permit ends, though the server turns its
    /// clock back.
    ///
    /// # Errors
    /// Returns [`Code::OutsideWindow`], [`Code::ServiceUnknown`] for what is no name or is not declared, [`Code::TokenScope`] for what the grant
    /// does not cover, [`Code::LocalPolicy`], [`Code::BatchDenied`] for what runs no commands in a tunnel that is for a batch, and for a locked service the code of what the permit lacks.
    pub fn session(
        &self,
        right: &Right,
        asked: &str,
        own: UnixTime,
    ) -> Result<(ServiceName, &Service), Code> {
        if !self.windows.is_open(own) {
            return Err(Code::OutsideWindow);
        }
        let name: ServiceName = asked.parse().map_err(|_| Code::ServiceUnknown)?;
        let service = self.admits(&right.grant.operator, &name);
        if service == Err(Code::ServiceUnknown) {
            return Err(Code::ServiceUnknown);
        }
        if !right.grant.services.contains(&name) {
            return Err(Code::TokenScope);
        }
        let service = service?;
        service.fits(&right.grant)?;
        if service.locked {
            self.opens(right, &[&name])?;
            if let Some(permit) = &right.permit {
                permit.window().holds(own)?;
            }
        }
        Ok((name, service))
    }

    fn is_locked(&self, service: &ServiceName) -> bool {
        self.services.get(service).is_some_and(|service| service.locked)
    }

    /// Says whether the permit opens locked services, in its time.
    fn opens(&self, right: &Right, locked: &[&ServiceName]) -> Result<(), Code> {
        if locked.is_empty() {
            return Ok(());
        }
        let (Some(lock), Some(permit)) = (&self.lock, &right.permit) else {
            return Err(Code::LockRequired);
        };
        lock.opens(permit, &right.grant, locked)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{grant, lock_key, locked_policy, permit, policy};

    /// When the grant of the tests was made.
    const NOW: UnixTime = UnixTime::from_secs(1_800_000_000);

    fn right(grant: Grant) -> Right {
        Right { grant, permit: None }
    }

    #[test]
    fn a_declared_and_granted_service_is_admitted() {
        let policy = policy();
        let (name, service) = policy.session(&right(grant()), "ssh", NOW).unwrap();
        assert_eq!(name.as_str(), "ssh");
        assert_eq!(service.target, "tcp:127.0.0.1:22".parse().unwrap());
    }

    // AGT-01
    #[test]
    fn what_is_not_declared_does_not_exist() {
        let policy = policy();
        for asked in [
            "",
            "http",
            "0",
            "65536",
            "22",
            "127.0.0.1:22",
            "tcp:127.0.0.1:22",
            "unix:/run/docker.sock",
            "/etc/passwd",
            "../ssh",
            "http://127.0.0.1/",
            "root@ssh",
            "SSH",
            "ssh ",
            "ssh\0",
        ] {
            assert_eq!(
                policy.session(&right(grant()), asked, NOW).unwrap_err(),
                Code::ServiceUnknown,
                "{asked:?}"
            );
        }
    }

    #[test]
    fn a_declared_service_needs_the_grant_too() {
        assert_eq!(
            policy().session(&right(grant()), "web", NOW).unwrap_err(),
            Code::TokenScope
        );
    }

    #[test]
    fn a_grant_for_a_batch_opens_nothing_but_what_runs_commands() {
        let mut policy = policy();
        let mut bound = right(grant());
        bound.grant.batch = Some(tunnel_proto::batch::BatchHash::from_bytes([7; 32]));
        assert_eq!(policy.admits_all(&bound), Err(Code::BatchDenied));
        assert_eq!(policy.session(&bound, "ssh", NOW).unwrap_err(), Code::BatchDenied);
        let ssh: ServiceName = "ssh".parse().unwrap();
        policy.services.get_mut(&ssh).unwrap().target = "exec:".parse().unwrap();
        assert_eq!(policy.admits_all(&bound), Ok(()));
        assert!(policy.session(&bound, "ssh", NOW).is_ok());
        assert!(policy.session(&right(grant()), "ssh", NOW).is_ok());
    }

    // AGT-04
    #[test]
    fn a_grant_never_widens_the_local_policy() {
        let mut right = right(grant());
        right.grant.services.push("web".parse().unwrap());
        assert_eq!(
            policy().admits_all(&right),
            Err(Code::LocalPolicy),
            "`web` is for bob alone"
        );
        assert_eq!(
            policy().session(&right, "web", NOW).unwrap_err(),
            Code::LocalPolicy
        );
        right.grant.services.push("shell".parse().unwrap());
        assert_eq!(
            policy().session(&right, "shell", NOW).unwrap_err(),
            Code::ServiceUnknown
        );
        right.grant.operator = "bob".parse().unwrap();
        assert_eq!(policy().admits_all(&right), Err(Code::ServiceUnknown));
        right.grant.services.pop();
        assert_eq!(policy().admits_all(&right), Ok(()));
    }

    // AGT-04, T12
    #[test]
    fn a_locked_service_wants_the_owners_keys_too() {
        let (policy, permit) = (locked_policy(), permit(&grant()));
        let with = |permit| Right {
            grant: grant(),
            permit,
        };
        assert!(policy.locks(&grant()));
        for (right, expected) in [
            (with(None), Err(Code::LockRequired)),
            (with(Some(permit.clone())), Ok(())),
        ] {
            assert_eq!(policy.admits_all(&right), expected);
            assert_eq!(policy.session(&right, "ssh", NOW).map(drop), expected);
        }
        let mut other = with(Some(permit));
        other.grant.operator = "eve".parse().unwrap();
        assert_eq!(policy.session(&other, "ssh", NOW).unwrap_err(), Code::LockScope);
    }

    #[test]
    fn a_live_tunnel_is_weighed_by_the_lock_of_the_day() {
        let mut policy = locked_policy();
        let right = Right {
            permit: Some(permit(&grant())),
            grant: grant(),
        };
        assert_eq!(policy.admits_all(&right), Ok(()));
        let until = right.permit.as_ref().unwrap().window().until;
        assert_eq!(right.expires_at(), until, "the grant lasts longer");
        policy.lock = Some(Lock::new(1, vec![lock_key(9).verifying_key()]).unwrap());
        assert_eq!(policy.admits_all(&right), Err(Code::LockPermit));
        assert_eq!(policy.session(&right, "ssh", NOW).unwrap_err(), Code::LockPermit);
        policy.lock = None;
        assert_eq!(
            policy.admits_all(&right),
            Err(Code::LockRequired),
            "without a lock a locked service is shut"
        );
    }

    // T12, AGT-10, I12
    #[test]
    fn a_server_that_turns_its_clock_back_stretches_no_permit_and_no_window() {
        let hour = Duration::from_secs(3600);
        let now = |server, own| Moment { server, own };
        let from = grant().issued_at;
        let half = hour / 2;
        let with = Right {
            permit: Some(permit(&grant())),
            grant: grant(),
        };
        for (now, left) in [
            (now(from, from), half),
            (now(from.before(hour), from), half),
            (now(from.before(hour), from.before(hour)), half + hour),
            (now(from.before(hour), from.after(half)), Duration::ZERO),
            (now(from.after(half), from), Duration::ZERO),
        ] {
            assert_eq!(with.left(now), left, "{now:?}");
        }
        // A grant is the server's own, and ends by its clock.
        let without = right(grant());
        assert_eq!(without.left(now(from, from.after(hour * 9))), hour);
        assert_eq!(without.left(now(from.after(hour), from)), Duration::ZERO);

        let mut policy = locked_policy();
        let ssh = |policy: &LocalPolicy, own| policy.session(&with, "ssh", own).map(drop);
        let last = from.after(half).before(Duration::from_secs(1));
        assert_eq!(ssh(&policy, last), Ok(()));
        assert_eq!(ssh(&policy, from.after(half)), Err(Code::LockTime));
        // It is of Friday 2027-01-15, 08:00 UTC.
        policy.windows = Windows(vec!["fri 08:00-08:29".parse().unwrap()]);
        assert_eq!(ssh(&policy, from), Ok(()));
        assert_eq!(ssh(&policy, last), Err(Code::OutsideWindow));
    }

    #[test]
    fn both_lists_of_operators_narrow() {
        let mut policy = policy();
        policy.operators = Operators::Only(["ana".parse().unwrap()].into());
        let ssh = "ssh".parse().unwrap();
        assert!(policy.admits(&"ana".parse().unwrap(), &ssh).is_ok());
        assert_eq!(
            policy.admits(&"bob".parse().unwrap(), &ssh),
            Err(Code::LocalPolicy)
        );
        let web = "web".parse().unwrap();
        assert_eq!(
            policy.admits(&"bob".parse().unwrap(), &web),
            Err(Code::LocalPolicy)
        );
    }

    #[test]
    fn an_empty_list_admits_nobody() {
        assert!(!Operators::Only(BTreeSet::new()).has(&"ana".parse().unwrap()));
        assert!(Operators::Any.has(&"ana".parse().unwrap()));
    }
}
