//! Enrolment: a one-time code and a certificate request in, a certificate out.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tunnel_certs::CertificateRequest;
use tunnel_policy::Action;
use tunnel_proto::api::{EnrolAnswer, EnrolRequest, MadeEnrolCode, MakeEnrolCode};
use tunnel_proto::defaults::ENROL_CODE_LIFETIME;
use tunnel_proto::enrol::secret_hash;
use tunnel_proto::ids::unhex;
use tunnel_proto::keys::Secret;
use tunnel_proto::{Code, Identity, Refusal};

use crate::api::caller::Caller;
use crate::control::Control;
use crate::failure::chain;
use crate::init::{CodeOrder, InitError, make_code};
use crate::run::gate::Source;
use crate::store::{Enrolment, Makes};

/// Most ids that one code names.
const MAX_IDS: usize = 100;
/// Most uses of one code.
const MAX_USES: u32 = 100_000;
/// Longest life of a code.
const MAX_LIFETIME: Duration = Duration::from_secs(90 * 24 * 3600);
/// Longest id that is looked at, in bytes.
const MAX_ID: usize = 64;

impl Control {
    /// Enrols a newcomer. Who has no good code is told the same, whatever is wrong with it.
    ///
    /// # Errors
    /// Returns why there is no certificate.
    pub(crate) async fn enrol(
        self: &Arc<Self>,
        request: EnrolRequest,
        source: IpAddr,
    ) -> Result<EnrolAnswer, Refusal> {
        let attempts = Source::of(source);
        if !self.quotas.enrolments.take(Instant::now(), &attempts) {
            return Err(Code::Limit.into());
        }
        let secret = unhex(&request.secret)
            .map(Secret::new)
            .ok_or(Code::EnrolTokenUnknown)?;
        if request.id.as_ref().is_some_and(|id| id.len() > MAX_ID) {
            return Err(Code::BadName.into());
        }
        let csr = CertificateRequest::from_pem(&request.csr)
            .map_err(|error| Refusal::new(error.code(), error.to_string()))?;
        let enrolment = Enrolment {
            secret_hash: secret_hash(&secret),
            wanted: request.id,
            key: csr.key_hash(),
            source: source.to_string(),
        };
        let (issuer, now) = (self.keys.issuer(), self.now());
        let issue = Box::new(move |identity: &Identity| issuer.issue(&csr, identity, now));
        let enrolled = self
            .store
            .enrol(enrolment, now, issue)
            .await
            .map_err(|error| self.store_failed(&error))??;
        self.quotas.enrolments.refund(&attempts);
        if !enrolled.replaced.is_empty() {
            self.reload_revoked(&enrolled.identity.to_string()).await?;
        }
        Ok(EnrolAnswer {
            identity: enrolled.identity.to_string(),
            chain: enrolled.certificate.chain_pem,
            root: self.trust.to_pem(),
            expires_at: enrolled.certificate.not_after.as_secs(),
            udp_port: self.ports.udp,
        })
    }

    /// Makes a one-time code.
    ///
    /// # Errors
    /// Returns what is wrong with the request, or that the code could not be stored.
    pub(crate) async fn make_enrol_code(
        &self,
        caller: &Caller,
        request: MakeEnrolCode,
    ) -> Result<MadeEnrolCode, Refusal> {
        let order = order(request, caller.by())?;
        if self.widens_own_rights(caller, &order).await? {
            return self.deny_own_groups(caller, Action::ManageEnrolment).await;
        }
        let made = make_code(&self.store, &self.address, &self.trust, order, self.now()).await;
        let made = made.map_err(|error| match &error {
            InitError::Store(error) => self.store_failed(error),
            other => {
                tracing::error!(error = %chain(other), "no enrolment code could be made");
                Code::Internal
            }
        })?;
        Ok(MadeEnrolCode {
            code: made.text,
            expires_at: made.expires_at.as_secs(),
        })
    }
}

impl Control {
    /// Says whether a code names the one who makes it, and a group that it is not in (THREATS POL-12). What a code that names
    /// nobody is used for is seen when it is used.
    async fn widens_own_rights(&self, caller: &Caller, order: &CodeOrder) -> Result<bool, Code> {
        match (&order.makes, &order.group) {
            (Makes::Operators(names), Some(group)) if names.contains(&caller.name) => {
                Ok(!self.groups_of(&caller.name).await?.contains(group))
            }
            _ => Ok(false),
        }
    }
}

/// Reads what is asked of a code.
fn order(request: MakeEnrolCode, by: String) -> Result<CodeOrder, Refusal> {
    let bad = |what: String| Refusal::new(Code::BadRequest, what);
    if request.ids.len() > MAX_IDS {
        return Err(bad(format!("`ids` may have {MAX_IDS} ids at most")));
    }
    let makes = match request.kind.as_str() {
        "device" => Makes::Devices(names(&request.ids)?),
        "operator" => Makes::Operators(names(&request.ids)?),
        _ => return Err(bad("`kind` has to be `device` or `operator`".to_owned())),
    };
    let group = request.group.map(|group| group.parse()).transpose();
    let group = group.map_err(|_| Refusal::new(Code::BadName, "`group` is no group name"))?;
    if request.ids.is_empty() && group.is_none() {
        return Err(bad("`ids` or `group` has to say whom the code makes".to_owned()));
    }
    let uses = request.uses.unwrap_or(1);
    if uses == 0 || uses > MAX_USES {
        return Err(bad(format!("`uses` has to be between 1 and {MAX_USES}")));
    }
    let lifetime = request.ttl_secs.map_or(ENROL_CODE_LIFETIME, Duration::from_secs);
    if lifetime.is_zero() || lifetime > MAX_LIFETIME {
        return Err(bad(format!(
            "`ttl_secs` has to be between 1 and {}",
            MAX_LIFETIME.as_secs()
        )));
    }
    Ok(CodeOrder {
        makes,
        group,
        uses,
        lifetime,
        replace: request.replace,
        by,
    })
}

fn names<T: std::str::FromStr>(texts: &[String]) -> Result<Vec<T>, Refusal> {
    let names: Result<_, _> = texts.iter().map(|text| text.parse()).collect();
    names.map_err(|_| {
        Refusal::new(
            Code::BadName,
            "`ids` has an id that is not of the documented form",
        )
    })
}
