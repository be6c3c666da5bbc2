//! Renewal of the device's certificate over the control link.

use std::time::Instant;

use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, CertificateSigningRequestDer};
use tunnel_certs::{KeyPair, Peer};
use tunnel_net::clock::Clock as _;
use tunnel_net::files;
use tunnel_net::tls::Credentials;
use tunnel_proto::UnixTime;
use tunnel_proto::code::Refusal;
use tunnel_proto::message::{FromAgent, Renewed};

use super::Agent;
use crate::defaults::RENEW_RETRY;
use crate::failure::plain;

/// Whether a renewal is under way, and when the next may be tried.
#[derive(Debug, Default)]
pub(super) struct Renewal {
    asked: bool,
    not_before: Option<Instant>,
}

impl Renewal {
    /// A question that the link took with it is asked again on the next.
    pub(super) const fn link_lost(&mut self) {
        self.asked = false;
    }
}

impl Agent {
    /// Asks for a fresh certificate once two thirds of the life of this one are over.
    pub(super) fn renew_if_due(&mut self, now: UnixTime) {
        let due = now >= tunnel_certs::renew_at(self.own.not_before, self.own.not_after);
        let early = self.renewal.not_before.is_some_and(|at| Instant::now() < at);
        if !due || self.renewal.asked || early || self.linked.is_none() {
            return;
        }
        match request(self.credentials.key()) {
            Some(request) => {
                self.renewal.asked = true;
                self.outgoing.push(FromAgent::Renew(request));
            }
            None => tracing::warn!("no request for a fresh certificate could be signed"),
        }
    }

    /// Takes a fresh certificate, if it is this device's.
    pub(super) fn handle_renewed(&mut self, renewed: &Renewed) {
        if !std::mem::take(&mut self.renewal.asked) {
            return;
        }
        match self.take_chain(renewed) {
            Ok(()) => {
                tracing::info!(not_after = %self.own.not_after, "certificate renewed");
                self.renewal.not_before = None;
            }
            Err(why) => {
                tracing::warn!(why, "the fresh certificate is not used; the old one stays");
                self.renewal.not_before = Some(Instant::now() + RENEW_RETRY);
            }
        }
    }

    pub(super) fn handle_renew_refused(&mut self, refusal: &Refusal) {
        if std::mem::take(&mut self.renewal.asked) {
            let detail = refusal.detail.as_deref().map(plain);
            tracing::warn!(code = %refusal.code, detail, "the certificate was not renewed");
            self.renewal.not_before = Some(Instant::now() + RENEW_RETRY);
        }
    }

    /// Writes the chain down first, so that a crash leaves the old one or the new one (THREATS CRT-11, AGT-14).
    fn take_chain(&mut self, renewed: &Renewed) -> Result<(), String> {
        let chain: Vec<_> = renewed
            .chain
            .iter()
            .map(|der| CertificateDer::from(der.as_slice().to_vec()))
            .collect();
        let own = self
            .ends
            .trust
            .verify(&chain, self.clock.now())
            .map_err(|error| error.to_string())?;
        fits(&self.own, &own)?;
        let key = KeyPair::from_pem(&self.credentials.key().to_pem()).map_err(|error| error.to_string())?;
        let text = tunnel_certs::pem::write_chain(&chain);
        let credentials = Credentials::new(chain, key).map_err(|error| error.to_string())?;
        files::write_private(&self.state.chain(), text.as_bytes()).map_err(|error| error.to_string())?;
        (self.own, self.credentials) = (own, credentials);
        Ok(())
    }
}

/// Makes the request, as DER.
fn request(key: &KeyPair) -> Option<Vec<u8>> {
    let pem = tunnel_certs::request(key).ok()?;
    let der = CertificateSigningRequestDer::from_pem_slice(pem.as_bytes()).ok()?;
    Some(der.as_ref().to_vec())
}

/// Checks that a fresh certificate carries on the old one.
fn fits(old: &Peer, new: &Peer) -> Result<(), String> {
    if new.identity != old.identity {
        Err(format!("it names {}", new.identity))
    } else if new.key != old.key {
        Err("it is for another key".into())
    } else if new.not_after <= old.not_after {
        Err("it does not last longer".into())
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Fleet;

    #[test]
    fn a_request_is_signed_by_the_key() {
        let key = KeyPair::generate().unwrap();
        let request = tunnel_certs::CertificateRequest::from_der(&request(&key).unwrap()).unwrap();
        assert_eq!(request.key_hash(), key.key_hash());
    }

    #[test]
    fn only_a_longer_certificate_of_the_same_device_and_key_fits() {
        let fleet = Fleet::new();
        let (key, other) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
        let old = fleet.peer(&key, "spiffe://fleet.example/device/pump", 90);
        let longer = fleet.peer(&key, "spiffe://fleet.example/device/pump", 91);
        assert_eq!(fits(&old, &longer), Ok(()));
        assert!(fits(&old, &old).is_err());
        assert!(fits(&longer, &old).is_err());
        assert!(
            fits(
                &old,
                &fleet.peer(&other, "spiffe://fleet.example/device/pump", 91)
            )
            .is_err()
        );
        assert!(fits(&old, &fleet.peer(&key, "spiffe://fleet.example/device/valve", 91)).is_err());
    }
}
