//! Cutting by hand: one tunnel, or all that lead to a device or a group of them, or are an operator's or a group's.

use std::collections::BTreeSet;
use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tunnel_policy::Action;
use tunnel_proto::api::{CutReport, CutTunnel, CutTunnels};
use tunnel_proto::names::GroupName;
use tunnel_proto::{Code, DeviceId, OperatorName, Refusal, TunnelId};

use super::reconsider::Touched;
use super::table::{Live, Phase};
use crate::api::caller::Caller;
use crate::audit::{Event, MAX_TEXT, MemberKind};
use crate::control::Control;

/// How long the answer waits for devices that are linked to confirm.
const PATIENCE: Duration = Duration::from_secs(5);

/// What is to be cut.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Target {
    Tunnel(TunnelId),
    Device(DeviceId),
    Operator(OperatorName),
    DeviceGroup(GroupName),
    OperatorGroup(GroupName),
}

impl Target {
    /// Reads the one target that a request has to name.
    fn read(request: &CutTunnels) -> Result<Self, Refusal> {
        let targets = [
            parse(request.tunnel.as_deref(), "tunnel", Self::Tunnel)?,
            parse(request.device.as_deref(), "device", Self::Device)?,
            parse(request.operator.as_deref(), "operator", Self::Operator)?,
            parse(request.device_group.as_deref(), "device_group", Self::DeviceGroup)?,
            parse(
                request.operator_group.as_deref(),
                "operator_group",
                Self::OperatorGroup,
            )?,
        ];
        let mut named = targets.into_iter().flatten();
        match (named.next(), named.next()) {
            (Some(target), None) => Ok(target),
            _ => Err(Refusal::new(
                Code::BadRequest,
                "one of `tunnel`, `device`, `operator`, `device_group` and `operator_group` has to say what is cut",
            )),
        }
    }

    /// Names the target in the record.
    fn text(&self) -> String {
        match self {
            Self::Tunnel(id) => format!("tunnel/{id}"),
            Self::Device(id) => format!("device/{id}"),
            Self::Operator(name) => format!("operator/{name}"),
            Self::DeviceGroup(group) => format!("device-group/{group}"),
            Self::OperatorGroup(group) => format!("operator-group/{group}"),
        }
    }
}

fn parse<T: FromStr>(
    text: Option<&str>,
    field: &str,
    target: impl FnOnce(T) -> Target,
) -> Result<Option<Target>, Refusal> {
    let value = text.map(str::parse).transpose();
    let value =
        value.map_err(|_| Refusal::new(Code::BadName, format!("`{field}` is not of the documented form")))?;
    Ok(value.map(target))
}

/// A tunnel that was cut, with when the relay had stopped and when its device confirmed.
struct Done {
    live: Arc<Live>,
    stopped: Duration,
    confirmed: Option<Duration>,
}

impl Control {
    /// Cuts what an operator with the right to do so names, and waits a little for the devices to confirm.
    ///
    /// # Errors
    /// Refuses who may not cut, and a tunnel that is not alive; fails if it cannot be recorded.
    pub(crate) async fn cut_by_hand(
        self: &Arc<Self>,
        caller: &Caller,
        request: CutTunnels,
    ) -> Result<CutReport, Refusal> {
        let target = Target::read(&request)?;
        if request
            .reason
            .as_ref()
            .is_some_and(|reason| reason.len() > MAX_TEXT)
        {
            let why = format!("`reason` may have {MAX_TEXT} bytes at most");
            return Err(Refusal::new(Code::BadRequest, why));
        }
        self.demand(caller, Action::Cut).await?;
        let begun = Instant::now();
        let selected = self.select(&target).await?;
        let (mut cuts, mut done) = (Vec::new(), Vec::new());
        for live in selected {
            if let Some(cut) = self.cut(live.facts.id, Code::Cut) {
                let stopped = begun.elapsed();
                cuts.push(cut);
                done.push(Done {
                    live,
                    stopped,
                    confirmed: None,
                });
            }
        }
        if let (Target::Tunnel(_), []) = (&target, done.as_slice()) {
            return Err(Code::NotFound.into());
        }
        let by = caller.by();
        let event = Event::CutOrdered {
            target: target.text(),
            reason: request.reason,
            tunnels: done.len() as u64,
            by: by.clone(),
        };
        // The devices confirm while the disk works.
        let (ordered, (), ()) = tokio::join!(
            self.store.record(event),
            self.record_ends(cuts, &by),
            self.watch_confirmations(begun, &mut done),
        );
        ordered.map_err(|error| self.store_failed(&error))?;
        Ok(report(&done))
    }

    /// Returns the live tunnels of a target; no others are looked at.
    async fn select(&self, target: &Target) -> Result<Vec<Arc<Live>>, Code> {
        let touched = match target {
            Target::Tunnel(id) => {
                let live = self.tunnels.get(*id);
                let live = live.filter(|live| !matches!(live.phase(), Phase::Ended(_)));
                return Ok(live.into_iter().collect());
            }
            Target::Device(id) => Touched::Devices([id.clone()].into()),
            Target::Operator(name) => Touched::Operators([name.clone()].into()),
            Target::DeviceGroup(group) => Touched::Devices(self.members(MemberKind::Device, group).await?),
            Target::OperatorGroup(group) => {
                Touched::Operators(self.members(MemberKind::Operator, group).await?)
            }
        };
        Ok(self.tunnels.table().touched(&touched))
    }

    /// Returns the members of a group that was set by hand.
    async fn members<T: FromStr + Ord>(
        &self,
        kind: MemberKind,
        group: &GroupName,
    ) -> Result<BTreeSet<T>, Code> {
        let members = self.store.members(kind, group).await;
        members.map_err(|error| self.store_failed(&error))
    }

    /// Waits until the devices that are linked have confirmed, in bounded time.
    async fn watch_confirmations(&self, begun: Instant, done: &mut [Done]) {
        let mut confirmations = self.tunnels.confirmations.subscribe();
        let watched = async {
            loop {
                // Marked as seen first, so that a confirmation between the look and the wait is not missed.
                confirmations.borrow_and_update();
                let mut waits = false;
                for done in done.iter_mut().filter(|done| done.confirmed.is_none()) {
                    let facts = &done.live.facts;
                    if !self.tunnels.unconfirmed().is_pending(facts.id) {
                        done.confirmed = Some(begun.elapsed());
                    } else if self.links.get(&facts.device).is_some() {
                        waits = true;
                    }
                }
                if !waits || confirmations.changed().await.is_err() {
                    return;
                }
            }
        };
        tokio::select! {
            _ = tokio::time::timeout(PATIENCE, watched) => {}
            () = self.stopping() => {}
        }
    }
}

fn report(done: &[Done]) -> CutReport {
    let cuts = done.iter().map(|done| {
        let facts = &done.live.facts;
        CutTunnel {
            tunnel: facts.id,
            device: facts.device.to_string(),
            operator: facts.operator.to_string(),
            services: facts.services.iter().map(ToString::to_string).collect(),
            stopped_micros: micros(done.stopped),
            confirmed_micros: done.confirmed.map(micros),
        }
    });
    CutReport { cuts: cuts.collect() }
}

fn micros(span: Duration) -> u64 {
    u64::try_from(span.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_names_one_target() {
        let request = CutTunnels {
            device: Some("pump".into()),
            ..CutTunnels::default()
        };
        assert_eq!(
            Target::read(&request).unwrap(),
            Target::Device("pump".parse().unwrap())
        );
        let two = CutTunnels {
            operator: Some("ana".into()),
            ..request.clone()
        };
        let odd = CutTunnels {
            device: Some("-x".into()),
            ..CutTunnels::default()
        };
        for (bad, code) in [
            (two, Code::BadRequest),
            (CutTunnels::default(), Code::BadRequest),
            (odd, Code::BadName),
        ] {
            assert_eq!(Target::read(&bad).unwrap_err().code, code);
        }
    }
}
