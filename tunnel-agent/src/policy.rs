//! The device's own policy: which services exist, who may use them, and how much at once.
//!
//! Pure. The device has the last word: what stands here narrows what the server allows, and nothing that comes from the
//! network can change it (THREATS I12, AGT-04).

use std::collections::{BTreeMap, BTreeSet};

use tunnel_proto::grant::Grant;
use tunnel_proto::{Code, OperatorName, ServiceName};

use crate::target::Target;

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

    /// Says whether everything that a grant names may happen here. Asked when a tunnel is offered, and again for each
    /// live tunnel when the owner has changed the policy.
    ///
    /// # Errors
    /// Returns the code of the first service that may not be used.
    pub fn admits_all(&self, grant: &Grant) -> Result<(), Code> {
        grant
            .services
            .iter()
            .try_for_each(|service| self.admits(&grant.operator, service).map(drop))
    }

    /// Decides about one session from the text that the operator sent.
    ///
    /// # Errors
    /// Returns [`Code::ServiceUnknown`] for what is no name or is not declared, [`Code::TokenScope`] for what the grant
    /// does not cover, and [`Code::LocalPolicy`].
    pub fn session(&self, grant: &Grant, asked: &str) -> Result<(ServiceName, &Service), Code> {
        let name: ServiceName = asked.parse().map_err(|_| Code::ServiceUnknown)?;
        let service = self.admits(&grant.operator, &name);
        if service == Err(Code::ServiceUnknown) {
            return Err(Code::ServiceUnknown);
        }
        if !grant.services.contains(&name) {
            return Err(Code::TokenScope);
        }
        Ok((name, service?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{grant, policy};

    #[test]
    fn a_declared_and_granted_service_is_admitted() {
        let policy = policy();
        let (name, service) = policy.session(&grant(), "ssh").unwrap();
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
                policy.session(&grant(), asked).unwrap_err(),
                Code::ServiceUnknown,
                "{asked:?}"
            );
        }
    }

    #[test]
    fn a_declared_service_needs_the_grant_too() {
        assert_eq!(policy().session(&grant(), "web").unwrap_err(), Code::TokenScope);
    }

    // AGT-04
    #[test]
    fn a_grant_never_widens_the_local_policy() {
        let mut grant = grant();
        grant.services.push("web".parse().unwrap());
        assert_eq!(
            policy().admits_all(&grant),
            Err(Code::LocalPolicy),
            "`web` is for bob alone"
        );
        assert_eq!(policy().session(&grant, "web").unwrap_err(), Code::LocalPolicy);
        grant.services.push("shell".parse().unwrap());
        assert_eq!(
            policy().session(&grant, "shell").unwrap_err(),
            Code::ServiceUnknown
        );
        grant.operator = "bob".parse().unwrap();
        assert_eq!(policy().admits_all(&grant), Err(Code::ServiceUnknown));
        grant.services.pop();
        assert_eq!(policy().admits_all(&grant), Ok(()));
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
