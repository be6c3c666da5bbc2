//! Fresh certificates for agents whose old one runs out.

use std::time::{Duration, Instant};

use minicbor::bytes::ByteVec;
use tunnel_certs::CertificateRequest;
use tunnel_proto::keys::KeyHash;
use tunnel_proto::message::{FromServer, Renewed};
use tunnel_proto::{Code, Refusal};

use super::Link;
use crate::control::Control;

/// How long the same request gets the same answer, and how long another one gets none.
const PAUSE: Duration = Duration::from_secs(60);

/// What a link has been given.
#[derive(Debug, Default)]
pub(super) struct Renewals {
    last: Option<Given>,
}

#[derive(Debug)]
struct Given {
    at: Instant,
    key: KeyHash,
    chain: Vec<ByteVec>,
}

impl Renewals {
    /// Answers a request. Asking a thousand times with one key gives one certificate (THREATS CRT-12).
    pub(super) async fn answer(&mut self, control: &Control, link: &Link, der: &[u8]) {
        link.send(match self.renew(control, link, der).await {
            Ok(chain) => FromServer::Renewed(Renewed { chain }),
            Err(refusal) => FromServer::RenewRefused(refusal),
        });
    }

    async fn renew(&mut self, control: &Control, link: &Link, der: &[u8]) -> Result<Vec<ByteVec>, Refusal> {
        let request = CertificateRequest::from_der(der)
            .map_err(|error| Refusal::new(Code::EnrolCsr, error.to_string()))?;
        let key = request.key_hash();
        if let Some(last) = self.last.as_ref().filter(|last| last.at.elapsed() < PAUSE) {
            return if last.key == key {
                Ok(last.chain.clone())
            } else {
                Err(Code::Limit.into())
            };
        }
        if let Some(why) = control.fallen(&link.peer) {
            return Err(why.into());
        }
        let certificate = control
            .keys
            .issuer()
            .issue(&request, &link.peer.identity, control.now())?;
        let chain = tunnel_certs::pem::read_chain(&certificate.chain_pem).map_err(|_| Code::Internal)?;
        control.renewed(&link.peer.identity, certificate).await?;
        let chain: Vec<_> = chain.iter().map(|der| ByteVec::from(der.to_vec())).collect();
        self.last = Some(Given {
            at: Instant::now(),
            key,
            chain: chain.clone(),
        });
        Ok(chain)
    }
}
