//! What is asked for when a tunnel is to be opened, once its form is checked.

use std::collections::BTreeSet;
use std::time::Duration;

use tunnel_policy::{Approval, Terms};
use tunnel_proto::api::OpenTunnel;
use tunnel_proto::batch::BatchHash;
use tunnel_proto::defaults::{BREAK_GLASS_LIFETIME, TUNNEL_LIFETIME, TUNNEL_LIFETIME_MAX};
use tunnel_proto::grant::MAX_SERVICES;
use tunnel_proto::{Code, DeviceId, Refusal, ServiceName};

use crate::audit::MAX_TEXT;
use crate::control::authoriser::Said;
use crate::control::from_base64;

/// A request that is of the documented form.
#[derive(Clone, Debug)]
pub(super) struct Wish {
    pub(super) device: DeviceId,
    pub(super) services: Vec<ServiceName>,
    pub(super) lifetime: Duration,
    pub(super) reason: Option<String>,
    /// What the owner's keys signed, for the device alone: nothing is decided by it here.
    pub(super) permit: Option<Vec<u8>>,
    /// What others have agreed to, where policy asks for that.
    pub(super) approval: Option<Approval>,
    /// Whether it is asked for without that.
    pub(super) break_glass: bool,
    /// The only batch of commands that it is to be for.
    pub(super) batch: Option<BatchHash>,
    /// What the authoriser said.
    pub(super) said: Option<Said>,
}

impl Wish {
    /// Reads a request.
    pub(super) fn read(request: OpenTunnel) -> Result<Self, Refusal> {
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
        let permit = request.permit.map(|permit| from_base64(&permit));
        if permit == Some(None) {
            return Err(Refusal::new(Code::BadRequest, "`permit` is none"));
        }
        let lifetime = match request.break_glass {
            true if request
                .reason
                .as_ref()
                .is_none_or(|reason| reason.trim().is_empty()) =>
            {
                return Err(Refusal::new(
                    Code::BadRequest,
                    "`break_glass` needs a `reason` that says why",
                ));
            }
            true => lifetime.min(BREAK_GLASS_LIFETIME),
            false => lifetime,
        };
        Ok(Self {
            device,
            services: services.into_iter().collect(),
            lifetime,
            reason: request.reason,
            permit: permit.flatten(),
            approval: None,
            break_glass: request.break_glass,
            batch: request.batch,
            said: None,
        })
    }

    /// Returns the same with an approval; where it gives no reason of its own, that of the approval counts.
    pub(super) fn resting_on(&self, approval: Approval, reason: &str) -> Self {
        Self {
            reason: self.reason.clone().or_else(|| Some(reason.to_owned())),
            approval: Some(approval),
            ..self.clone()
        }
    }

    /// Returns what policies are asked with.
    pub(super) fn terms(&self) -> Terms {
        Terms {
            services: self.services.clone(),
            ttl: self.lifetime,
            reason: self.reason.clone(),
            approval: self.approval.clone(),
            break_glass: self.break_glass,
            batch: self.batch.is_some(),
            authoriser: self.said.as_ref().map(|said| said.facts.clone()),
        }
    }
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
            permit: None,
            break_glass: false,
            batch: None,
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
        let glass = |reason: Option<&str>| OpenTunnel {
            break_glass: true,
            reason: reason.map(str::to_owned),
            ..request()
        };
        assert_eq!(code(glass(Some("fire"))), Ok(()));
        for reason in [None, Some(" ")] {
            assert_eq!(code(glass(reason)), Err(Code::BadRequest));
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
        for permit in ["?", &"A".repeat(1 << 20)] {
            assert_eq!(
                code(OpenTunnel {
                    permit: Some(permit.into()),
                    ..request()
                }),
                Err(Code::BadRequest)
            );
        }
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
