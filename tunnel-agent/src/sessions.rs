//! Counts the sessions of all tunnels, so that the device's own limits hold.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use tunnel_proto::{Code, ServiceName};

use crate::policy::LocalPolicy;

/// The sessions that are open, by service.
#[derive(Clone, Debug, Default)]
pub struct Sessions(Arc<Mutex<BTreeMap<ServiceName, u32>>>);

/// One open session; counted out when it is dropped.
#[derive(Debug)]
pub struct Permit {
    sessions: Sessions,
    service: ServiceName,
}

impl Sessions {
    /// Counts a session in.
    ///
    /// # Errors
    /// Returns [`Code::Busy`] when the service or the device has no room for one more.
    pub fn admit(&self, service: &ServiceName, policy: &LocalPolicy) -> Result<Permit, Code> {
        let mut open = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let room = policy
            .services
            .get(service)
            .map_or(0, |service| service.max_sessions);
        let used = open.get(service).copied().unwrap_or(0);
        if used >= room || open.values().sum::<u32>() >= policy.max_sessions {
            return Err(Code::Busy);
        }
        open.insert(service.clone(), used + 1);
        Ok(Permit {
            sessions: self.clone(),
            service: service.clone(),
        })
    }

    /// Returns how many sessions are open.
    pub fn open(&self) -> u32 {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .values()
            .sum()
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut open = self.sessions.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = open.get_mut(&self.service) {
            *count -= 1;
            if *count == 0 {
                open.remove(&self.service);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::policy;

    // AGT-12
    #[test]
    fn the_limits_of_the_device_hold_over_all_tunnels() {
        let (mut policy, sessions) = (policy(), Sessions::default());
        let (ssh, web): (ServiceName, ServiceName) = ("ssh".parse().unwrap(), "web".parse().unwrap());
        policy.services.get_mut(&ssh).unwrap().max_sessions = 2;
        policy.max_sessions = 3;
        let first = sessions.admit(&ssh, &policy).unwrap();
        let _second = sessions.admit(&ssh, &policy).unwrap();
        assert_eq!(sessions.admit(&ssh, &policy).unwrap_err(), Code::Busy);
        let _third = sessions.admit(&web, &policy).unwrap();
        assert_eq!(sessions.admit(&web, &policy).unwrap_err(), Code::Busy);
        drop(first);
        assert_eq!(sessions.open(), 2);
        assert!(sessions.admit(&ssh, &policy).is_ok());
        assert_eq!(
            sessions.admit(&"none".parse().unwrap(), &policy).unwrap_err(),
            Code::Busy
        );
    }
}
