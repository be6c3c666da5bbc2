//! Grants: the signed statement of one tunnel. A CWT (RFC 8392) with a holder key (RFC 8747) in COSE_Sign1.

use std::time::Duration;

use minicbor::{Decoder, Encoder};

use crate::batch::BatchHash;
use crate::bind::Role;
use crate::code::Code;
use crate::cose::{CoseError, Purpose, SigningKey, VerifyingKey};
use crate::defaults::{CLOCK_TOLERANCE, TUNNEL_LIFETIME_MAX};
use crate::ids::TunnelId;
use crate::keys::KeyHash;
use crate::names::{DeviceId, Identity, NodeName, OperatorName, ServiceName, Subject, TrustDomain};
use crate::time::UnixTime;

/// Most services that one grant names.
pub const MAX_SERVICES: usize = 16;

/// Longest reason that a grant carries, in bytes.
pub const MAX_REASON: usize = 512;

/// A number that an agent makes for each control link: a grant from before is worth nothing afterwards.
pub type LinkNonce = [u8; 16];

/// One tunnel as the control plane decided it, and as the agent checks it for itself.
///
/// # Security
/// A grant opens nothing without the private key that `holder_key` is the hash of, and no grant widens what the device's
/// own policy allows (THREATS I1, I12).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Grant {
    /// The fleet.
    pub trust_domain: TrustDomain,
    /// The tunnel.
    pub tunnel: TunnelId,
    /// Who may use it.
    pub operator: OperatorName,
    /// The key that the operator proves to the agent.
    pub holder_key: KeyHash,
    /// The device that it leads to.
    pub device: DeviceId,
    /// What may be used there: at least one, at most [`MAX_SERVICES`].
    pub services: Vec<ServiceName>,
    /// The relay that forwards.
    pub relay: NodeName,
    /// The revision of the policy that decided.
    pub policy_revision: u64,
    /// The nonce of the agent's control link.
    pub nonce: LinkNonce,
    /// When the decision was made.
    pub issued_at: UnixTime,
    /// When the tunnel ends.
    pub expires_at: UnixTime,
    /// What the tunnel may use.
    pub limits: Limits,
    /// Why it was asked for, in the operator's words, for those on site.
    pub reason: Option<String>,
    /// The only batch of commands that may be run. There is one, and then the tunnel is for nothing else.
    pub batch: Option<BatchHash>,
}

/// What one tunnel may use at most.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Sessions at once.
    pub sessions: u32,
    /// Bytes in both directions together, as the relay counts them; no limit if `None`.
    pub bytes: Option<u64>,
    /// Bytes in a second in both directions together, as the relay counts them; no limit if `None`.
    pub bytes_per_sec: Option<u64>,
    /// How long it may be without a session, in seconds.
    pub idle_secs: u32,
}

impl Grant {
    /// Signs the grant.
    pub fn sign(&self, key: &SigningKey) -> Vec<u8> {
        let claims = Claims {
            issuer: Some(Identity::server(&self.trust_domain, &self.relay).to_string()),
            subject: Some(Identity::operator(&self.trust_domain, &self.operator).to_string()),
            audience: Some(Identity::device(&self.trust_domain, &self.device).to_string()),
            expires_at: Some(self.expires_at),
            issued_at: Some(self.issued_at),
            id: Some(self.tunnel.as_bytes().to_vec()),
            holder_key: Some(self.holder_key),
            services: Some(self.services.clone()),
            policy_revision: Some(self.policy_revision),
            nonce: Some(self.nonce),
            max_sessions: Some(self.limits.sessions),
            max_bytes: self.limits.bytes,
            max_bytes_per_sec: self.limits.bytes_per_sec,
            idle_secs: Some(self.limits.idle_secs),
            reason: self.reason.clone(),
            batch: self.batch,
            ..Claims::default()
        };
        key.sign(Purpose::Grant, &claims.encode())
    }

    /// Checks the signature and reads the grant. Whether it fits the reader is for [`Grant::check`].
    ///
    /// # Errors
    /// Returns why the message is no grant of this key.
    pub fn verify(message: &[u8], key: &VerifyingKey) -> Result<Self, Code> {
        let payload = key.verify(Purpose::Grant, message).map_err(code_of)?;
        Self::decode(payload).ok_or(Code::TokenMalformed)
    }

    /// Checks, as the agent of `device`, that the grant is for it, for this link and for this time.
    ///
    /// `tolerance` is how far the caller's clock may be off; an agent leans on the nonce first.
    ///
    /// # Errors
    /// Returns the code of the first thing that does not fit.
    pub fn check(
        &self,
        device: &Identity,
        nonce: &LinkNonce,
        now: UnixTime,
        tolerance: Duration,
    ) -> Result<(), Code> {
        if Identity::device(&self.trust_domain, &self.device) != *device {
            return Err(Code::TokenAudience);
        }
        if self.nonce != *nonce {
            return Err(Code::TokenReplay);
        }
        // Longer than any tunnel may live: nobody adds it to a time of its own.
        if self.expires_at.since(self.issued_at) > TUNNEL_LIFETIME_MAX + CLOCK_TOLERANCE {
            return Err(Code::TokenMalformed);
        }
        crate::token::in_time(self.issued_at, self.expires_at, now, tolerance)
    }

    /// Returns the identity of the operator.
    pub fn operator_identity(&self) -> Identity {
        Identity::operator(&self.trust_domain, &self.operator)
    }

    /// Returns the identity of the device.
    pub fn device_identity(&self) -> Identity {
        Identity::device(&self.trust_domain, &self.device)
    }

    fn decode(payload: &[u8]) -> Option<Self> {
        let claims = Claims::decode(payload)?;
        let issuer: Identity = claims.issuer?.parse().ok()?;
        let subject: Identity = claims.subject?.parse().ok()?;
        let audience: Identity = claims.audience?.parse().ok()?;
        if issuer.trust_domain != subject.trust_domain || issuer.trust_domain != audience.trust_domain {
            return None;
        }
        let (Subject::Server(relay), Subject::Operator(operator), Subject::Device(device)) =
            (issuer.subject, subject.subject, audience.subject)
        else {
            return None;
        };
        let services = claims.services?;
        if services.is_empty() || services.len() > MAX_SERVICES {
            return None;
        }
        Some(Self {
            trust_domain: issuer.trust_domain,
            tunnel: TunnelId::from_bytes(claims.id?.try_into().ok()?),
            operator,
            holder_key: claims.holder_key?,
            device,
            services,
            relay,
            policy_revision: claims.policy_revision?,
            nonce: claims.nonce?,
            issued_at: claims.issued_at?,
            expires_at: claims.expires_at?,
            limits: Limits {
                sessions: claims.max_sessions?,
                bytes: claims.max_bytes,
                bytes_per_sec: claims.max_bytes_per_sec,
                idle_secs: claims.idle_secs?,
            },
            reason: claims.reason.filter(|reason| reason.len() <= MAX_REASON),
            batch: claims.batch,
        })
    }
}

/// Returns the code of a signature that is not accepted.
pub(crate) fn code_of(error: CoseError) -> Code {
    match error {
        CoseError::Malformed => Code::TokenMalformed,
        CoseError::Header => Code::TokenAlg,
        CoseError::Signature => Code::TokenSig,
    }
}

/// The claims of our CWTs: the registered ones by their numbers, ours in the range for private use.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Claims {
    pub(crate) issuer: Option<String>,
    pub(crate) subject: Option<String>,
    pub(crate) audience: Option<String>,
    pub(crate) expires_at: Option<UnixTime>,
    pub(crate) not_before: Option<UnixTime>,
    pub(crate) issued_at: Option<UnixTime>,
    pub(crate) id: Option<Vec<u8>>,
    pub(crate) holder_key: Option<KeyHash>,
    pub(crate) tunnel: Option<TunnelId>,
    pub(crate) role: Option<Role>,
    pub(crate) services: Option<Vec<ServiceName>>,
    pub(crate) policy_revision: Option<u64>,
    pub(crate) nonce: Option<LinkNonce>,
    pub(crate) max_sessions: Option<u32>,
    pub(crate) max_bytes: Option<u64>,
    pub(crate) idle_secs: Option<u32>,
    pub(crate) max_bytes_per_sec: Option<u64>,
    pub(crate) root: Option<[u8; 32]>,
    pub(crate) reason: Option<String>,
    pub(crate) batch: Option<BatchHash>,
}

/// Registered claims (RFC 8392 section 4, RFC 8747 section 3.1).
mod key {
    pub(super) const ISS: i64 = 1;
    pub(super) const SUB: i64 = 2;
    pub(super) const AUD: i64 = 3;
    pub(super) const EXP: i64 = 4;
    pub(super) const NBF: i64 = 5;
    pub(super) const IAT: i64 = 6;
    pub(super) const CTI: i64 = 7;
    pub(super) const CNF: i64 = 8;
    /// Confirmation method "kid": here the SHA-256 of the holder's SubjectPublicKeyInfo.
    pub(super) const CNF_KID: i64 = 3;
    pub(super) const TUNNEL: i64 = -70_001;
    pub(super) const ROLE: i64 = -70_002;
    pub(super) const SERVICES: i64 = -70_003;
    pub(super) const POLICY_REVISION: i64 = -70_004;
    pub(super) const NONCE: i64 = -70_005;
    pub(super) const MAX_SESSIONS: i64 = -70_006;
    pub(super) const MAX_BYTES: i64 = -70_007;
    pub(super) const IDLE_SECS: i64 = -70_008;
    pub(super) const MAX_BYTES_PER_SEC: i64 = -70_009;
    pub(super) const ROOT: i64 = -70_010;
    pub(super) const REASON: i64 = -70_011;
    pub(super) const BATCH: i64 = -70_012;
}

impl Claims {
    /// Writes the claims that are there, in the order of RFC 8949 section 4.2.1.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut e = Encoder::new(Vec::with_capacity(320));
        let written = self.write(&mut e);
        debug_assert!(written.is_ok(), "a Vec takes every byte");
        e.into_writer()
    }

    fn write(
        &self,
        e: &mut Encoder<Vec<u8>>,
    ) -> Result<(), minicbor::encode::Error<std::convert::Infallible>> {
        let present = [
            self.issuer.is_some(),
            self.subject.is_some(),
            self.audience.is_some(),
            self.expires_at.is_some(),
            self.not_before.is_some(),
            self.issued_at.is_some(),
            self.id.is_some(),
            self.holder_key.is_some(),
            self.tunnel.is_some(),
            self.role.is_some(),
            self.services.is_some(),
            self.policy_revision.is_some(),
            self.nonce.is_some(),
            self.max_sessions.is_some(),
            self.max_bytes.is_some(),
            self.idle_secs.is_some(),
            self.max_bytes_per_sec.is_some(),
            self.root.is_some(),
            self.reason.is_some(),
            self.batch.is_some(),
        ];
        e.map(present.iter().filter(|&&there| there).count() as u64)?;
        if let Some(issuer) = &self.issuer {
            e.i64(key::ISS)?.str(issuer)?;
        }
        if let Some(subject) = &self.subject {
            e.i64(key::SUB)?.str(subject)?;
        }
        if let Some(audience) = &self.audience {
            e.i64(key::AUD)?.str(audience)?;
        }
        if let Some(time) = self.expires_at {
            e.i64(key::EXP)?.u64(time.as_secs())?;
        }
        if let Some(time) = self.not_before {
            e.i64(key::NBF)?.u64(time.as_secs())?;
        }
        if let Some(time) = self.issued_at {
            e.i64(key::IAT)?.u64(time.as_secs())?;
        }
        if let Some(id) = &self.id {
            e.i64(key::CTI)?.bytes(id)?;
        }
        if let Some(holder) = &self.holder_key {
            e.i64(key::CNF)?
                .map(1)?
                .i64(key::CNF_KID)?
                .bytes(holder.as_bytes())?;
        }
        if let Some(tunnel) = &self.tunnel {
            e.i64(key::TUNNEL)?.bytes(tunnel.as_bytes())?;
        }
        if let Some(role) = self.role {
            e.i64(key::ROLE)?.u8(role as u8)?;
        }
        if let Some(services) = &self.services {
            e.i64(key::SERVICES)?.array(services.len() as u64)?;
            for service in services {
                e.str(service.as_str())?;
            }
        }
        if let Some(revision) = self.policy_revision {
            e.i64(key::POLICY_REVISION)?.u64(revision)?;
        }
        if let Some(nonce) = &self.nonce {
            e.i64(key::NONCE)?.bytes(nonce)?;
        }
        if let Some(sessions) = self.max_sessions {
            e.i64(key::MAX_SESSIONS)?.u32(sessions)?;
        }
        if let Some(bytes) = self.max_bytes {
            e.i64(key::MAX_BYTES)?.u64(bytes)?;
        }
        if let Some(secs) = self.idle_secs {
            e.i64(key::IDLE_SECS)?.u32(secs)?;
        }
        if let Some(rate) = self.max_bytes_per_sec {
            e.i64(key::MAX_BYTES_PER_SEC)?.u64(rate)?;
        }
        if let Some(root) = &self.root {
            e.i64(key::ROOT)?.bytes(root)?;
        }
        if let Some(reason) = &self.reason {
            e.i64(key::REASON)?.str(reason)?;
        }
        if let Some(batch) = &self.batch {
            e.i64(key::BATCH)?.bytes(batch.as_bytes())?;
        }
        Ok(())
    }

    /// Reads claims; a claim that stands twice refuses the whole, one that is not known is passed over.
    pub(crate) fn decode(payload: &[u8]) -> Option<Self> {
        let mut claims = Self::default();
        let mut d = Decoder::new(payload);
        for _ in 0..d.map().ok()?? {
            match d.i64().ok()? {
                key::ISS => once(&mut claims.issuer, d.str().ok()?.to_owned())?,
                key::SUB => once(&mut claims.subject, d.str().ok()?.to_owned())?,
                key::AUD => once(&mut claims.audience, d.str().ok()?.to_owned())?,
                key::EXP => once(&mut claims.expires_at, UnixTime::from_secs(d.u64().ok()?))?,
                key::NBF => once(&mut claims.not_before, UnixTime::from_secs(d.u64().ok()?))?,
                key::IAT => once(&mut claims.issued_at, UnixTime::from_secs(d.u64().ok()?))?,
                key::CTI => once(&mut claims.id, d.bytes().ok()?.to_vec())?,
                key::CNF => {
                    if d.map().ok()? != Some(1) || d.i64().ok()? != key::CNF_KID {
                        return None;
                    }
                    once(
                        &mut claims.holder_key,
                        KeyHash::from_bytes(d.bytes().ok()?.try_into().ok()?),
                    )?;
                }
                key::TUNNEL => {
                    once(
                        &mut claims.tunnel,
                        TunnelId::from_bytes(d.bytes().ok()?.try_into().ok()?),
                    )?;
                }
                key::ROLE => once(&mut claims.role, Role::from_number(d.u8().ok()?)?)?,
                key::SERVICES => {
                    let count = d.array().ok()??;
                    if count > MAX_SERVICES as u64 {
                        return None;
                    }
                    let services: Option<Vec<ServiceName>> =
                        (0..count).map(|_| d.str().ok()?.parse().ok()).collect();
                    once(&mut claims.services, services?)?;
                }
                key::POLICY_REVISION => once(&mut claims.policy_revision, d.u64().ok()?)?,
                key::NONCE => once(&mut claims.nonce, d.bytes().ok()?.try_into().ok()?)?,
                key::MAX_SESSIONS => once(&mut claims.max_sessions, d.u32().ok()?)?,
                key::MAX_BYTES => once(&mut claims.max_bytes, d.u64().ok()?)?,
                key::IDLE_SECS => once(&mut claims.idle_secs, d.u32().ok()?)?,
                key::MAX_BYTES_PER_SEC => once(&mut claims.max_bytes_per_sec, d.u64().ok()?)?,
                key::REASON => once(&mut claims.reason, d.str().ok()?.to_owned())?,
                key::BATCH => once(
                    &mut claims.batch,
                    BatchHash::from_bytes(d.bytes().ok()?.try_into().ok()?),
                )?,
                key::ROOT => once(&mut claims.root, d.bytes().ok()?.try_into().ok()?)?,
                _ => d.skip().ok()?,
            }
        }
        (d.position() == payload.len()).then_some(claims)
    }
}

/// Fills a place that must be empty.
fn once<T>(place: &mut Option<T>, value: T) -> Option<()> {
    place.replace(value).is_none().then_some(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::Secret;
    use proptest::prelude::*;

    const NOW: UnixTime = UnixTime::from_secs(1_800_000_000);

    fn key() -> SigningKey {
        SigningKey::from_seed(&Secret::new([7; 32])).unwrap()
    }

    fn grant() -> Grant {
        Grant {
            trust_domain: "fleet.example".parse().unwrap(),
            tunnel: TunnelId::from_bytes([1; 16]),
            operator: "ana".parse().unwrap(),
            holder_key: KeyHash::of_spki(b"ana"),
            device: "pump-17".parse().unwrap(),
            services: vec!["ssh".parse().unwrap(), "diag".parse().unwrap()],
            relay: "n1".parse().unwrap(),
            policy_revision: 3,
            nonce: [4; 16],
            reason: Some("INC-7".into()),
            batch: Some(BatchHash::from_bytes([5; 32])),
            issued_at: NOW,
            expires_at: NOW.after(Duration::from_secs(3600)),
            limits: Limits {
                sessions: 16,
                bytes: Some(1 << 40),
                bytes_per_sec: Some(1 << 20),
                idle_secs: 900,
            },
        }
    }

    fn check(grant: &Grant, device: &str, nonce: LinkNonce, now: UnixTime) -> Result<(), Code> {
        grant.check(&device.parse().unwrap(), &nonce, now, Duration::from_secs(60))
    }

    #[test]
    fn a_grant_reads_back_and_fits_its_device() {
        let read = Grant::verify(&grant().sign(&key()), &key().verifying_key()).unwrap();
        assert_eq!(read, grant());
        assert_eq!(
            check(&read, "spiffe://fleet.example/device/pump-17", [4; 16], NOW),
            Ok(())
        );
    }

    /// THREATS TOK-04, TOK-05, TOK-06, TOK-10.
    #[test]
    fn a_grant_for_anything_else_is_refused() {
        let me = "spiffe://fleet.example/device/pump-17";
        for other in [
            "spiffe://fleet.example/device/pump-18",
            "spiffe://other.example/device/pump-17",
        ] {
            assert_eq!(check(&grant(), other, [4; 16], NOW), Err(Code::TokenAudience));
        }
        assert_eq!(check(&grant(), me, [5; 16], NOW), Err(Code::TokenReplay));
        let late = NOW.after(Duration::from_secs(3600 + 60));
        assert_eq!(check(&grant(), me, [4; 16], late), Err(Code::TokenExpired));
        assert_eq!(
            check(&grant(), me, [4; 16], NOW.before(Duration::from_secs(61))),
            Err(Code::TokenNotYet)
        );
    }

    /// THREATS TOK-06: a server that names a time without end.
    #[test]
    fn a_grant_that_lasts_longer_than_any_may_is_refused() {
        let me = "spiffe://fleet.example/device/pump-17";
        let lasts = |span| Grant {
            expires_at: NOW.after(span),
            ..grant()
        };
        assert_eq!(check(&lasts(TUNNEL_LIFETIME_MAX), me, [4; 16], NOW), Ok(()));
        for span in [
            TUNNEL_LIFETIME_MAX + CLOCK_TOLERANCE + Duration::from_secs(1),
            Duration::MAX,
        ] {
            assert_eq!(check(&lasts(span), me, [4; 16], NOW), Err(Code::TokenMalformed));
        }
    }

    /// THREATS TOK-07.
    #[test]
    fn every_flipped_bit_is_refused() {
        let message = grant().sign(&key());
        for bit in 0..message.len() * 8 {
            let mut bad = message.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(Grant::verify(&bad, &key().verifying_key()).is_err(), "bit {bit}");
        }
    }

    /// THREATS TOK-08: a claim that stands twice.
    #[test]
    fn a_claim_that_stands_twice_refuses_the_grant() {
        let mut payload = Claims {
            issuer: Some("a".into()),
            ..Claims::default()
        }
        .encode();
        assert!(Claims::decode(&payload).is_some());
        payload[0] = 0xa2;
        payload.extend_from_slice(&[0x01, 0x61, b'b']);
        assert_eq!(Claims::decode(&payload), None);
    }

    #[test]
    fn a_grant_without_a_service_or_with_too_many_is_refused() {
        for count in [0, MAX_SERVICES + 1] {
            let services = (0..count).map(|i| format!("s{i}").parse().unwrap()).collect();
            let message = Grant { services, ..grant() }.sign(&key());
            assert_eq!(
                Grant::verify(&message, &key().verifying_key()),
                Err(Code::TokenMalformed)
            );
        }
    }

    proptest! {
        #[test]
        fn any_payload_is_read_or_refused(payload in prop::collection::vec(any::<u8>(), 0..400)) {
            if let Some(claims) = Claims::decode(&payload) {
                prop_assert_eq!(Claims::decode(&claims.encode()), Some(claims));
            }
        }
    }
}
