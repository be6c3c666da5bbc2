//! Counts the sessions of all tunnels, so that the device's own limits hold.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tunnel_proto::{Code, ServiceName};

use crate::operator::Operator;
use crate::policy::LocalPolicy;

/// The sessions that are open.
#[derive(Clone, Debug, Default)]
pub struct Sessions(Arc<Mutex<Table>>);

#[derive(Debug, Default)]
struct Table {
    open: BTreeMap<u64, Open>,
    next: u64,
}

#[derive(Debug)]
struct Open {
    service: ServiceName,
    operator: Operator,
}

/// One open session; counted out when it is dropped.
#[derive(Debug)]
pub struct Permit {
    sessions: Sessions,
    number: u64,
}

impl Sessions {
    /// Counts a session in. Where there is no room, the tunnel whose operator has been silent longest makes room, if that
    /// is long enough: a ghost blocks nobody.
    ///
    /// # Errors
    /// Returns [`Code::Busy`] when the service or the device has no room for one more.
    pub fn admit(
        &self,
        service: &ServiceName,
        policy: &LocalPolicy,
        operator: &Operator,
        now: Instant,
    ) -> Result<Permit, Code> {
        let mut table = self.table();
        let room = policy
            .services
            .get(service)
            .map_or(0, |service| service.max_sessions);
        if room == 0 || policy.max_sessions == 0 {
            return Err(Code::Busy);
        }
        while table.of(service) >= room as usize {
            table.make_room(now, |open| open.service == *service)?;
        }
        while table.open.len() >= policy.max_sessions as usize {
            table.make_room(now, |_| true)?;
        }
        let number = table.next;
        table.next += 1;
        let (service, operator) = (service.clone(), operator.clone());
        table.open.insert(number, Open { service, operator });
        Ok(Permit {
            sessions: self.clone(),
            number,
        })
    }

    /// Returns how many sessions are open.
    pub fn open(&self) -> usize {
        self.table().open.len()
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    fn of(&self, service: &ServiceName) -> usize {
        self.open.values().filter(|open| open.service == *service).count()
    }

    /// Counts the session of the most silent operator out, and ends its tunnel.
    fn make_room(&mut self, now: Instant, fits: impl Fn(&Open) -> bool) -> Result<(), Code> {
        let silent = |(number, open): (&u64, &Open)| Some((open.operator.silence(now)?, *number));
        let (_, number) = self
            .open
            .iter()
            .filter(|(_, open)| fits(open))
            .filter_map(silent)
            .max()
            .ok_or(Code::Busy)?;
        if let Some(open) = self.open.remove(&number) {
            open.operator.give_way();
        }
        Ok(())
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.sessions.table().open.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::operator::GIVES_WAY_AFTER;
    use crate::testing::policy;

    // AGT-12
    #[test]
    fn the_limits_of_the_device_hold_over_all_tunnels() {
        let (mut policy, sessions) = (policy(), Sessions::default());
        let (ssh, web): (ServiceName, ServiceName) = ("ssh".parse().unwrap(), "web".parse().unwrap());
        policy.services.get_mut(&ssh).unwrap().max_sessions = 2;
        policy.max_sessions = 3;
        let (operator, now) = (Operator::default(), Instant::now());
        let admit = |service: &ServiceName| sessions.admit(service, &policy, &operator, now);
        let first = admit(&ssh).unwrap();
        let _second = admit(&ssh).unwrap();
        assert_eq!(admit(&ssh).unwrap_err(), Code::Busy);
        let _third = admit(&web).unwrap();
        assert_eq!(admit(&web).unwrap_err(), Code::Busy);
        drop(first);
        assert_eq!(sessions.open(), 2);
        assert!(admit(&ssh).is_ok());
        assert_eq!(admit(&"none".parse().unwrap()).unwrap_err(), Code::Busy);
    }

    #[test]
    fn who_has_been_silent_longest_makes_room_and_nobody_who_is_heard() {
        let (mut policy, sessions) = (policy(), Sessions::default());
        let ssh: ServiceName = "ssh".parse().unwrap();
        policy.services.get_mut(&ssh).unwrap().max_sessions = 3;
        let start = Instant::now();
        let now = start + GIVES_WAY_AFTER * 3;
        let heard = |at: Instant| {
            let operator = Operator::default();
            operator.listen(move || Some(at));
            operator
        };
        let (live, quiet, ghost) = (heard(now), heard(start + GIVES_WAY_AFTER), heard(start));
        let admit = |operator| sessions.admit(&ssh, &policy, operator, now);
        let permits = [&live, &quiet, &ghost].map(|operator| admit(operator).unwrap());
        let next = admit(&live).unwrap();
        assert_eq!(
            [&live, &quiet, &ghost].map(Operator::is_gone),
            [false, false, true]
        );
        let after = admit(&live).unwrap();
        assert_eq!(
            [&live, &quiet, &ghost].map(Operator::is_gone),
            [false, true, true]
        );
        assert_eq!(admit(&live).unwrap_err(), Code::Busy);
        assert_eq!(sessions.open(), 3);
        // The ends of those that made room come later, and take nobody else's place with them.
        drop(permits);
        assert_eq!(sessions.open(), 2);
        drop((next, after));
        assert_eq!(sessions.open(), 0);
    }
}
