//! Approvals: the agreement of others to exactly what somebody asks for. Pure: what changes one is handed the time.
//!
//! ```text
//! pending ──as many agree as are needed──> approved
//!    ├────────somebody says no──> denied
//!    └────────────────────────────┴──who asked, or who may approve, takes it back──> withdrawn
//! ```
//!
//! A pending one expires when nobody decides in time, an approved one when its window is over. That is for good, wherever
//! the clock is set to afterwards.

use std::collections::BTreeSet;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tunnel_proto::batch::{Batch, BatchHash};
use tunnel_proto::{ApprovalId, Code, DeviceId, OperatorName, ServiceName, UnixTime};

/// How long an approval waits for those who decide: a night and the day after.
pub const PENDING: Duration = Duration::from_secs(24 * 3600);

/// What is asked for. It never changes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Asked {
    /// Who asks, and nobody else may use it.
    pub requester: OperatorName,
    /// The devices, without any twice.
    pub devices: Vec<DeviceId>,
    /// The services on each of them, without any twice.
    pub services: Vec<ServiceName>,
    /// Why.
    pub reason: String,
    /// For how long after it was given it counts.
    pub window: Duration,
    /// The address that it was asked for from.
    pub source: String,
    /// The commands that are to be run; it is for nothing else then.
    pub commands: Option<Batch>,
}

/// One who has agreed.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Agreement {
    /// Who.
    pub by: OperatorName,
    /// When.
    pub at: UnixTime,
}

/// How far an approval is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum State {
    /// It waits for those who decide.
    Pending,
    /// As many have agreed as were needed.
    Approved,
    /// Somebody has said no.
    Denied,
    /// It was taken back.
    Withdrawn,
    /// Its time is over, and somebody has seen that.
    Expired,
}

/// How an approval ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct End {
    /// By whom.
    pub by: String,
    /// Why.
    pub reason: Option<String>,
}

/// An approval, as it stands.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Approval {
    /// Which it is.
    pub id: ApprovalId,
    /// What is asked for.
    pub asked: Asked,
    /// How many have to agree.
    pub needed: u32,
    /// Who has agreed.
    pub agreements: Vec<Agreement>,
    /// How far it is.
    pub state: State,
    /// When it was asked for.
    pub asked_at: UnixTime,
    /// When nobody can decide any more, or the end of its window.
    pub expires_at: UnixTime,
    /// How it ended, if somebody ended it.
    pub end: Option<End>,
}

impl State {
    const ALL: [Self; 5] = [
        Self::Pending,
        Self::Approved,
        Self::Denied,
        Self::Withdrawn,
        Self::Expired,
    ];

    /// Returns the state as the API and the store write it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Approved => "approved",
            Self::Denied => "denied",
            Self::Withdrawn => "withdrawn",
            Self::Expired => "expired",
        }
    }

    /// Reads a state.
    pub fn from_text(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.as_str() == text)
    }
}

impl Approval {
    /// Begins with an approval that nobody has decided about.
    pub fn new(id: ApprovalId, asked: Asked, needed: u32, now: UnixTime) -> Self {
        Self {
            id,
            asked,
            needed: needed.max(1),
            agreements: Vec::new(),
            state: State::Pending,
            asked_at: now,
            expires_at: now.after(PENDING),
            end: None,
        }
    }

    /// Says whether its time is over.
    pub fn is_over(&self, now: UnixTime) -> bool {
        now >= self.expires_at
    }

    /// Returns the state as the API calls it.
    pub fn state_at(&self, now: UnixTime) -> &'static str {
        match self.state {
            State::Pending | State::Approved if self.is_over(now) => State::Expired.as_str(),
            state => state.as_str(),
        }
    }

    /// Says whether somebody can still decide about it or use it.
    ///
    /// # Errors
    /// Returns the code of its end.
    pub fn is_alive(&self, now: UnixTime) -> Result<(), Code> {
        match self.state {
            State::Denied => Err(Code::ApprovalDenied),
            State::Withdrawn => Err(Code::ApprovalWithdrawn),
            State::Expired => Err(Code::ApprovalExpired),
            State::Pending | State::Approved if self.is_over(now) => Err(Code::ApprovalExpired),
            State::Pending | State::Approved => Ok(()),
        }
    }

    /// Takes in that somebody agrees; says whether that makes a difference. The window begins when enough have. More may
    /// agree after that, for rules that have come to ask for more.
    ///
    /// # Errors
    /// Refuses the requester, and one that has ended.
    pub fn agree(&mut self, by: &OperatorName, now: UnixTime) -> Result<bool, Code> {
        if *by == self.asked.requester {
            return Err(Code::SelfApproval);
        }
        self.is_alive(now)?;
        if self.is_agreed_by(by) {
            return Ok(false);
        }
        let by = by.clone();
        self.agreements.push(Agreement { by, at: now });
        if self.state == State::Pending && self.agreements.len() >= self.needed as usize {
            self.state = State::Approved;
            self.expires_at = now.after(self.asked.window);
        }
        Ok(true)
    }

    /// Takes out the agreement of one who has lost trust: trust that comes back does not bring it back. The window stays as
    /// it is, and whether those who are left are enough is for policy to say.
    pub fn strike(&mut self, by: &OperatorName) {
        self.agreements.retain(|agreement| agreement.by != *by);
    }

    /// Says whether somebody has agreed.
    pub fn is_agreed_by(&self, by: &OperatorName) -> bool {
        self.agreements.iter().any(|agreement| agreement.by == *by)
    }

    /// Takes in that somebody says no.
    ///
    /// # Errors
    /// Refuses the requester, one that has ended, and one that is approved: that can be withdrawn.
    pub fn deny(&mut self, by: &OperatorName, reason: Option<String>, now: UnixTime) -> Result<(), Code> {
        if *by == self.asked.requester {
            return Err(Code::SelfApproval);
        }
        self.is_alive(now)?;
        if self.state == State::Approved {
            return Err(Code::BadRequest);
        }
        self.close(State::Denied, by, reason);
        Ok(())
    }

    /// Takes in that it is taken back.
    ///
    /// # Errors
    /// Refuses one that has ended.
    pub fn withdraw(&mut self, by: &OperatorName, reason: Option<String>, now: UnixTime) -> Result<(), Code> {
        self.is_alive(now)?;
        self.close(State::Withdrawn, by, reason);
        Ok(())
    }

    fn close(&mut self, state: State, by: &OperatorName, reason: Option<String>) {
        self.state = state;
        self.end = Some(End {
            by: by.to_string(),
            reason,
        });
    }

    /// Returns the agreement that a tunnel can rest on: if it is exactly of this operator, within what was asked for, and
    /// in the window. Only those who `stand` count. One for a batch of commands covers a tunnel for that batch alone; the
    /// device holds whoever has the tunnel to it.
    pub fn covers(
        &self,
        operator: &OperatorName,
        device: &DeviceId,
        services: &[ServiceName],
        batch: Option<BatchHash>,
        now: UnixTime,
        stands: impl Fn(&OperatorName) -> bool,
    ) -> Option<tunnel_policy::Approval> {
        let asked = &self.asked;
        let fits = self.state == State::Approved
            && !self.is_over(now)
            && asked.requester == *operator
            && asked.devices.contains(device)
            && services.iter().all(|service| asked.services.contains(service))
            && asked
                .commands
                .as_ref()
                .is_none_or(|commands| batch == Some(commands.hash()));
        let approvers: BTreeSet<_> = self.agreements.iter().map(|agreement| &agreement.by).collect();
        let approvers = approvers.into_iter().filter(|by| stands(by)).cloned();
        fits.then(|| tunnel_policy::Approval {
            id: Some(self.id),
            approvers: approvers.collect(),
            until: self.expires_at,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: UnixTime = UnixTime::from_secs(1_800_000_000);
    const HOUR: Duration = Duration::from_secs(3600);

    fn name(text: &str) -> OperatorName {
        text.parse().unwrap()
    }

    fn asked() -> Asked {
        Asked {
            requester: name("ana"),
            devices: vec!["pump-17".parse().unwrap(), "pump-18".parse().unwrap()],
            services: vec!["ssh".parse().unwrap(), "web".parse().unwrap()],
            reason: "INC-7".into(),
            window: HOUR,
            source: "192.0.2.1".into(),
            commands: None,
        }
    }

    fn approval(needed: u32) -> Approval {
        Approval::new(ApprovalId::from_bytes([1; 16]), asked(), needed, NOW)
    }

    fn covers(approval: &Approval, operator: &str, device: &str, services: &[&str], now: UnixTime) -> usize {
        let services: Vec<ServiceName> = services.iter().map(|name| name.parse().unwrap()).collect();
        let found = approval.covers(
            &name(operator),
            &device.parse().unwrap(),
            &services,
            None,
            now,
            |by| by.as_str() != "fallen",
        );
        found.map_or(0, |found| found.approvers.len())
    }

    #[test]
    fn the_window_begins_when_enough_have_agreed() {
        let mut approval = approval(2);
        assert_eq!(approval.agree(&name("ben"), NOW), Ok(true));
        assert_eq!(
            approval.agree(&name("ben"), NOW),
            Ok(false),
            "one who agrees twice is one"
        );
        assert_eq!(
            (approval.state, covers(&approval, "ana", "pump-17", &["ssh"], NOW)),
            (State::Pending, 0)
        );
        let later = NOW.after(HOUR * 2);
        assert_eq!(approval.agree(&name("cid"), later), Ok(true));
        assert_eq!(
            (approval.state, approval.expires_at),
            (State::Approved, later.after(HOUR))
        );
        assert_eq!(covers(&approval, "ana", "pump-17", &["ssh"], later), 2);
        assert_eq!(approval.agree(&name("fallen"), later), Ok(true));
        assert_eq!(
            covers(&approval, "ana", "pump-17", &["ssh"], later),
            2,
            "who fell counts no more"
        );
        assert_eq!(
            approval.expires_at,
            later.after(HOUR),
            "nobody makes the window longer"
        );
    }

    /// THREATS POL-12.
    #[test]
    fn pol_12_the_requester_decides_nothing() {
        let mut approval = approval(1);
        assert_eq!(approval.agree(&name("ana"), NOW), Err(Code::SelfApproval));
        assert_eq!(approval.deny(&name("ana"), None, NOW), Err(Code::SelfApproval));
        assert_eq!(approval, self::approval(1));
        assert_eq!(approval.agree(&name("ben"), NOW), Ok(true));
        assert_eq!(approval.agree(&name("ana"), NOW), Err(Code::SelfApproval));
        assert_eq!(approval.withdraw(&name("ana"), None, NOW), Ok(()));
    }

    #[test]
    fn it_is_for_exactly_what_was_asked() {
        let mut approval = approval(1);
        approval.agree(&name("ben"), NOW).unwrap();
        let end = NOW.after(HOUR);
        for (operator, device, services, now, count) in [
            ("ana", "pump-17", &["ssh"] as &[&str], NOW, 1),
            ("ana", "pump-18", &["web", "ssh"], NOW, 1),
            ("eve", "pump-17", &["ssh"], NOW, 0),
            ("ana", "pump-19", &["ssh"], NOW, 0),
            ("ana", "pump-17", &["ssh", "diag"], NOW, 0),
            ("ana", "pump-17", &["ssh"], end.before(Duration::from_secs(1)), 1),
            ("ana", "pump-17", &["ssh"], end, 0),
        ] {
            let found = covers(&approval, operator, device, services, now);
            assert_eq!(found, count, "{operator} {device} {services:?} {now}");
        }
    }

    #[test]
    fn one_for_commands_covers_nothing_else() {
        let batch = |word: &str| Batch::new(vec![vec!["/bin/echo".into(), word.into()]]).unwrap();
        let (asked_for, other) = (batch("a"), batch("b"));
        let mut bound = approval(1);
        bound.asked.commands = Some(asked_for.clone());
        let mut unbound = approval(1);
        for approval in [&mut bound, &mut unbound] {
            approval.agree(&name("ben"), NOW).unwrap();
        }
        let (device, services) = ("pump-17".parse().unwrap(), ["ssh".parse().unwrap()]);
        for (batch, is_covered) in [
            (Some(asked_for.hash()), true),
            (Some(other.hash()), false),
            (None, false),
        ] {
            let covers = |approval: &Approval| {
                let found = approval.covers(&name("ana"), &device, &services, batch, NOW, |_| true);
                found.is_some()
            };
            assert_eq!(covers(&bound), is_covered, "{batch:?}");
            assert!(
                covers(&unbound),
                "what is for a service is for any of its batches"
            );
        }
    }

    #[test]
    fn what_has_ended_stays_so() {
        let ben = name("ben");
        let denied = {
            let mut approval = approval(1);
            approval.deny(&ben, Some("not today".into()), NOW).unwrap();
            approval
        };
        let withdrawn = {
            let mut approval = approval(1);
            approval.agree(&ben, NOW).unwrap();
            assert_eq!(approval.deny(&ben, None, NOW), Err(Code::BadRequest));
            approval.withdraw(&ben, None, NOW).unwrap();
            approval
        };
        let late = NOW.after(PENDING);
        for (approval, now, code, state) in [
            (denied, NOW, Code::ApprovalDenied, "denied"),
            (withdrawn, NOW, Code::ApprovalWithdrawn, "withdrawn"),
            (approval(1), late, Code::ApprovalExpired, "expired"),
        ] {
            let mut tried = approval.clone();
            assert_eq!(tried.agree(&ben, now), Err(code));
            assert_eq!(tried.deny(&ben, None, now), Err(code));
            assert_eq!(tried.withdraw(&ben, None, now), Err(code));
            assert_eq!((tried, approval.state_at(now)), (approval.clone(), state));
            assert_eq!(covers(&approval, "ana", "pump-17", &["ssh"], now), 0);
        }
    }
}
