//! Opening: decide, write down, offer, answer.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tunnel_proto::api::{OpenTunnel, OpenedTunnel};
use tunnel_proto::bind::Role;
use tunnel_proto::defaults::{
    SESSIONS_PER_TUNNEL, TOKEN_LIFETIME, TUNNEL_IDLE, TUNNEL_LIFETIME, TUNNEL_LIFETIME_MAX,
};
use tunnel_proto::grant::{Grant, Limits, MAX_SERVICES};
use tunnel_proto::keys::KeyHash;
use tunnel_proto::message::Offer;
use tunnel_proto::token::AccessToken;
use tunnel_proto::{CircuitId, Code, DeviceId, Identity, Refusal, ServiceName, TokenId, TunnelId, UnixTime};

use super::table::{Facts, Live, Phase};
use crate::api::caller::Caller;
use crate::audit::{Event, MAX_TEXT, bounded};
use crate::control::decide::{Asker, InForce, Terms, Verdict};
use crate::control::{Control, to_base64};
use crate::links::Link;
use crate::relay::CircuitSpec;
use crate::store::{Denied, DeviceRecord, NewTunnel, NotOpened};

/// How often a decision is made anew because the policy changed under it (THREATS POL-03).
const ATTEMPTS: usize = 3;

/// A request that is of the documented form.
#[derive(Clone, Debug)]
struct Wish {
    device: DeviceId,
    services: Vec<ServiceName>,
    lifetime: Duration,
    reason: Option<String>,
}

/// Why an attempt came to nothing.
enum Failed {
    /// The policy is not the one that decided: wait for this revision and decide anew.
    Stale(u64),
    /// For good.
    Refused(Refusal),
}

impl<T: Into<Refusal>> From<T> for Failed {
    fn from(refusal: T) -> Self {
        Self::Refused(refusal.into())
    }
}

/// A tunnel that policy permits, with what is needed to go on.
struct Permitted {
    live: Arc<Live>,
    link: Arc<Link>,
    revision: u64,
    policies: Vec<String>,
}

/// A refusal with what the record says of it.
struct Denial {
    refusal: Refusal,
    revision: u64,
    verdict: Verdict,
}

impl Denial {
    fn new(refusal: impl Into<Refusal>, in_force: &InForce, verdict: Verdict) -> Self {
        Self {
            refusal: refusal.into(),
            revision: in_force.revision,
            verdict,
        }
    }
}

impl Wish {
    fn read(request: OpenTunnel) -> Result<Self, Refusal> {
        let device = request
            .device
            .parse()
            .map_err(|_| Refusal::new(Code::BadName, "`device` is no device id"))?;
        let names = request.services.iter().map(|name| name.parse::<ServiceName>());
        let services: BTreeSet<_> = names
            .collect::<Result<_, _>>()
            .map_err(|_| Refusal::new(Code::BadName, "`services` has no service name"))?;
        if services.is_empty() || services.len() > MAX_SERVICES {
            return Err(Refusal::new(
                Code::BadRequest,
                format!("`services` has to name 1 to {MAX_SERVICES} services"),
            ));
        }
        let lifetime = request.ttl_secs.map_or(TUNNEL_LIFETIME, Duration::from_secs);
        if lifetime.is_zero() || lifetime > TUNNEL_LIFETIME_MAX {
            let most = TUNNEL_LIFETIME_MAX.as_secs();
            return Err(Refusal::new(
                Code::BadRequest,
                format!("`ttl_secs` has to be between 1 and {most}"),
            ));
        }
        if request
            .reason
            .as_ref()
            .is_some_and(|reason| reason.len() > MAX_TEXT)
        {
            return Err(Refusal::new(
                Code::BadRequest,
                format!("`reason` may have {MAX_TEXT} bytes at most"),
            ));
        }
        Ok(Self {
            device,
            services: services.into_iter().collect(),
            lifetime,
            reason: request.reason,
        })
    }
}

impl Control {
    /// Opens a tunnel for an operator.
    ///
    /// # Errors
    /// Returns why there is none. Nothing is left behind but the record.
    pub(crate) async fn open_tunnel(
        self: &Arc<Self>,
        caller: &Caller,
        request: OpenTunnel,
    ) -> Result<OpenedTunnel, Refusal> {
        let wish = Wish::read(request)?;
        if !self.quotas.decisions.take(Instant::now(), &caller.peer.identity) {
            return Err(Code::Limit.into());
        }
        for _ in 0..ATTEMPTS {
            match self.try_open(caller, &wish).await {
                Ok(opened) => return Ok(opened),
                Err(Failed::Refused(refusal)) => return Err(refusal),
                Err(Failed::Stale(revision)) => self.policy_at_least(revision).await,
            }
        }
        Err(Code::Busy.into())
    }

    async fn try_open(self: &Arc<Self>, caller: &Caller, wish: &Wish) -> Result<OpenedTunnel, Failed> {
        let changes = self.tunnels.changes();
        let (groups, device) = tokio::join!(self.groups_of(&caller.name), self.store.device(&wish.device));
        let device = device.map_err(|error| self.store_failed(&error))?;
        let asker = Asker::new(caller, groups?, self.now());
        self.make_room(&caller.name, &wish.device).await;
        let permitted = match self.decide(caller, wish, &asker, device.as_ref()) {
            Ok(permitted) => permitted,
            Err(denial) => {
                self.note_denial(caller, wish, &denial).await?;
                return Err(denial.refusal.into());
            }
        };
        if changes != self.tunnels.changes() {
            // What was read may be of before a change whose tunnels were gone through already: decide anew.
            let mut table = self.tunnels.table();
            let _ = table.end(permitted.live.facts.id, Code::PolicyChanged);
            table.forget(permitted.live.facts.id);
            return Err(Failed::Stale(permitted.revision));
        }
        self.establish(caller, &permitted).await
    }

    /// Decides. What is permitted stands in the table from before the decision on, so that whoever takes trust away at
    /// this moment finds it.
    fn decide(
        &self,
        caller: &Caller,
        wish: &Wish,
        asker: &Asker,
        device: Option<&DeviceRecord>,
    ) -> Result<Permitted, Denial> {
        let Some(link) = self.links.get(&wish.device) else {
            let (in_force, verdict) = self.weigh(caller, wish, asker, device)?;
            return Err(Denial::new(Code::DeviceOffline, &in_force, verdict));
        };
        let facts = self.facts(caller, wish, link.peer.key);
        let inserted = self
            .tunnels
            .table()
            .insert(facts, Phase::Deciding, Instant::now());
        let live = inserted.map_err(|code| Denial::new(code, &self.in_force(), Verdict::default()))?;
        let decided = self
            .weigh(caller, wish, asker, device)
            .and_then(|(in_force, verdict)| {
                let is_gone = self.revoked.holds(&link.peer);
                if is_gone {
                    Err(Denial::new(Code::DeviceOffline, &in_force, verdict))
                } else {
                    Ok((in_force, verdict))
                }
            });
        match decided {
            Ok((in_force, verdict)) => Ok(Permitted {
                live,
                link,
                revision: in_force.revision,
                policies: verdict.policies,
            }),
            Err(denial) => {
                let mut table = self.tunnels.table();
                let _ = table.end(live.facts.id, denial.refusal.code);
                table.forget(live.facts.id);
                Err(denial)
            }
        }
    }

    /// Asks the policy in force.
    fn weigh(
        &self,
        caller: &Caller,
        wish: &Wish,
        asker: &Asker,
        device: Option<&DeviceRecord>,
    ) -> Result<(Arc<InForce>, Verdict), Denial> {
        let in_force = self.in_force();
        if let Some(why) = self.fallen(&caller.peer) {
            return Err(Denial::new(why, &in_force, Verdict::default()));
        }
        // A device that the caller may not see is as one that is not there.
        let Some(device) = device.filter(|device| in_force.may_view(asker, device)) else {
            return Err(Denial::new(Code::NotFound, &in_force, Verdict::default()));
        };
        let identity = Identity::device(&self.identity.trust_domain, &device.id);
        if let Some(why) = self.suspended.code(&identity) {
            return Err(Denial::new(why, &in_force, Verdict::default()));
        }
        let terms = Terms {
            services: &wish.services,
            ttl: wish.lifetime,
            reason: wish.reason.as_deref(),
        };
        let verdict = in_force.may_connect(asker, device, terms);
        let Some(service) = &verdict.denied else {
            return Ok((in_force, verdict));
        };
        let detail = match in_force.may_know_why(asker) {
            true if verdict.policies.is_empty() => format!("service `{service}`; no policy fits"),
            true => format!("service `{service}`; decided by {}", verdict.policies.join(", ")),
            false => format!("service `{service}`"),
        };
        Err(Denial::new(
            Refusal::new(Code::PolicyDeny, detail),
            &in_force,
            verdict,
        ))
    }

    fn facts(&self, caller: &Caller, wish: &Wish, device_key: KeyHash) -> Facts {
        let now = self.now();
        Facts {
            id: TunnelId::from_bytes(self.random()),
            circuit: CircuitId::from_bytes(self.random()),
            operator: caller.name.clone(),
            holder_key: caller.key,
            certified_at: caller.certified_at,
            device: wish.device.clone(),
            device_key,
            services: wish.services.clone(),
            reason: wish.reason.clone(),
            source: caller.source.ip(),
            opened_at: now,
            expires_at: now.after(wish.lifetime),
            deadline: Instant::now() + wish.lifetime,
        }
    }

    /// Writes the decision down and offers the tunnel to the device, both at once: the device cannot attach before the
    /// decision is durable, because redeeming its token waits for that.
    async fn establish(
        self: &Arc<Self>,
        caller: &Caller,
        permitted: &Permitted,
    ) -> Result<OpenedTunnel, Failed> {
        let Permitted {
            live,
            link,
            revision,
            policies,
        } = permitted;
        let facts = &live.facts;
        self.deadline_changed();
        let grant = self.grant(facts, link, *revision);
        let token = self.token(facts, Role::Destination, &link.peer.identity, link.peer.key);
        let offer = link.offer(Offer {
            grant: grant.clone(),
            token,
            tunnel: facts.id,
        });
        let mut offer = std::pin::pin!(offer);
        let written = self.write_down(permitted);
        let mut written = std::pin::pin!(written);
        let mut early = None;
        loop {
            tokio::select! {
                biased;
                written = written.as_mut() => {
                    written?;
                    break;
                }
                answer = offer.as_mut(), if early.is_none() => early = Some(answer),
            }
        }
        let answer = match early {
            Some(answer) => answer,
            None => offer.await,
        };
        if let Err(refusal) = answer {
            // The tunnel may have been cut while the device was asked; then that is the reason.
            if let Phase::Ended(why) = live.phase() {
                return Err(why.into());
            }
            // A record that fails was logged and is tried again.
            let _ = match refusal.code {
                // The device may still be about to accept, so it is told.
                Code::DeviceSilent | Code::DeviceOffline | Code::Busy => {
                    self.end_tunnel(facts.id, refusal.code, "server").await.map(drop)
                }
                code => self.end_at_device(facts.id, code, &facts.device).await,
            };
            return Err(refusal.into());
        }
        if let Phase::Ended(why) = live.phase() {
            return Err(why.into());
        }
        Ok(OpenedTunnel {
            tunnel: facts.id,
            grant: to_base64(&grant),
            token: to_base64(&self.token(facts, Role::Source, &caller.peer.identity, caller.key)),
            device_identity: Identity::device(&self.identity.trust_domain, &facts.device).to_string(),
            ssh_host_keys: link.report().ssh_host_keys,
            expires_at: facts.expires_at.as_secs(),
            policies: policies.clone(),
        })
    }

    /// Makes the decision durable, and then lets the legs come.
    async fn write_down(self: &Arc<Self>, permitted: &Permitted) -> Result<(), Failed> {
        let Permitted {
            live,
            link,
            revision,
            policies,
        } = permitted;
        let facts = &live.facts;
        let tunnel = NewTunnel {
            id: facts.id,
            circuit: facts.circuit,
            operator: facts.operator.clone(),
            holder_key: facts.holder_key,
            device: facts.device.clone(),
            device_key: link.peer.key,
            services: facts.services.clone(),
            reason: facts.reason.clone(),
            expires_at: facts.expires_at,
            policy_revision: *revision,
            policies: policies.clone(),
            source: facts.source.to_string(),
        };
        let written = self.store.open_tunnel(tunnel, facts.opened_at).await;
        let not_opened = match written {
            Ok(Ok(())) => return self.let_legs_come(live).await.map_err(Failed::from),
            Ok(Err(NotOpened::PolicyStale { current })) => Failed::Stale(current),
            Ok(Err(NotOpened::Revoked)) => Code::Revoked.into(),
            Ok(Err(NotOpened::Suspended(why))) => why.into(),
            Err(error) => self.store_failed(&error).into(),
        };
        // Nothing was written, so nothing is to be ended there; but the device may have accepted.
        let _ = self.cut(facts.id, Code::TunnelClosed);
        self.tunnels.table().forget(facts.id);
        Err(not_opened)
    }

    /// Opens the circuit of a tunnel whose decision is durable, unless it was cut in the meantime.
    async fn let_legs_come(self: &Arc<Self>, live: &Arc<Live>) -> Result<(), Code> {
        let facts = &live.facts;
        let opened = self.relay.open(CircuitSpec::new(facts.circuit));
        let recorded = self.tunnels.table().recorded(facts.id);
        match (opened, recorded) {
            (Ok(()), Ok(())) => Ok(()),
            (Err(code), Ok(())) => {
                let _ = self.end_tunnel(facts.id, code, "relay").await;
                Err(code)
            }
            (opened, Err(why)) => {
                // Whoever cut it found no circuit and no record: both are for us to end.
                if opened.is_ok() {
                    self.relay.close(facts.circuit, why);
                }
                self.record_cut_at_birth(live, why).await;
                Err(why)
            }
        }
    }

    fn grant(&self, facts: &Facts, link: &Link, policy_revision: u64) -> Vec<u8> {
        let grant = Grant {
            trust_domain: self.identity.trust_domain.clone(),
            tunnel: facts.id,
            operator: facts.operator.clone(),
            holder_key: facts.holder_key,
            device: facts.device.clone(),
            services: facts.services.clone(),
            relay: self.node.clone(),
            policy_revision,
            nonce: link.nonce,
            issued_at: facts.opened_at,
            expires_at: facts.expires_at,
            limits: Limits {
                sessions: SESSIONS_PER_TUNNEL,
                bytes: None,
                idle_secs: secs(TUNNEL_IDLE),
            },
        };
        grant.sign(&self.keys.grant_key)
    }

    pub(super) fn token(&self, facts: &Facts, role: Role, holder: &Identity, holder_key: KeyHash) -> Vec<u8> {
        let now: UnixTime = self.now();
        let token = AccessToken {
            id: TokenId::from_bytes(self.random()),
            tunnel: facts.id,
            role,
            holder: holder.clone(),
            holder_key,
            relay: self.node.clone(),
            issued_at: now,
            expires_at: now.after(TOKEN_LIFETIME),
        };
        token.sign(&self.keys.grant_key, &self.identity.trust_domain)
    }

    /// Records a refusal; without the record there is no definite answer either.
    async fn note_denial(&self, caller: &Caller, wish: &Wish, denial: &Denial) -> Result<(), Code> {
        if !denial.verdict.errors.is_empty() {
            let errors = denial.verdict.errors.iter().map(|error| bounded(error)).collect();
            let event = Event::PolicyFailed {
                operator: caller.name.clone(),
                action: "connect".to_owned(),
                errors,
            };
            self.note(event).await;
        }
        let denied = Denied {
            operator: caller.name.clone(),
            device: wish.device.to_string(),
            services: wish.services.iter().map(ToString::to_string).collect(),
            reason: wish.reason.clone(),
            code: denial.refusal.code,
            policy_revision: denial.revision,
            policies: denial.verdict.policies.clone(),
            source: caller.source.ip().to_string(),
        };
        self.store
            .deny(denied)
            .await
            .map_err(|error| self.store_failed(&error))
    }
}

fn secs(span: Duration) -> u32 {
    u32::try_from(span.as_secs()).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request() -> OpenTunnel {
        OpenTunnel {
            device: "pump".into(),
            services: vec!["ssh".into()],
            ttl_secs: None,
            reason: None,
        }
    }

    fn code(request: OpenTunnel) -> Result<(), Code> {
        Wish::read(request).map(drop).map_err(|refusal| refusal.code)
    }

    #[test]
    fn a_wish_has_defaults_and_no_service_twice() {
        let wish = Wish::read(OpenTunnel {
            services: vec!["ssh".into(), "ssh".into()],
            ..request()
        })
        .unwrap();
        assert_eq!(wish.services.len(), 1);
        assert_eq!(wish.lifetime, TUNNEL_LIFETIME);
    }

    #[test]
    fn a_wish_beyond_bounds_is_refused() {
        let most = TUNNEL_LIFETIME_MAX.as_secs();
        assert_eq!(
            code(OpenTunnel {
                ttl_secs: Some(most),
                ..request()
            }),
            Ok(())
        );
        for ttl in [0, most + 1, u64::MAX] {
            assert_eq!(
                code(OpenTunnel {
                    ttl_secs: Some(ttl),
                    ..request()
                }),
                Err(Code::BadRequest)
            );
        }
        let many = (0..=MAX_SERVICES).map(|i| format!("s{i}")).collect();
        assert_eq!(
            code(OpenTunnel {
                services: many,
                ..request()
            }),
            Err(Code::BadRequest)
        );
        assert_eq!(
            code(OpenTunnel {
                services: vec![],
                ..request()
            }),
            Err(Code::BadRequest)
        );
        assert_eq!(
            code(OpenTunnel {
                reason: Some("x".repeat(513)),
                ..request()
            }),
            Err(Code::BadRequest)
        );
        assert_eq!(
            code(OpenTunnel {
                device: "-oProxyCommand=x".into(),
                ..request()
            }),
            Err(Code::BadName)
        );
        assert_eq!(
            code(OpenTunnel {
                services: vec!["a b".into()],
                ..request()
            }),
            Err(Code::BadName)
        );
    }
}
