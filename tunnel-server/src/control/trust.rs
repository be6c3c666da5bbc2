//! Taking trust away.

use std::sync::Arc;

use arc_swap::ArcSwap;
use tunnel_certs::Peer;
use tunnel_net::tls::Revocations;
use tunnel_proto::names::Subject;
use tunnel_proto::{Code, Identity, Refusal};

use super::Control;
use crate::audit::MAX_TEXT;
use crate::store::{Certificate, RevokedSet};

/// Everybody who has lost all trust, for handshakes and requests to look up. It only ever grows.
#[derive(Debug, Default)]
pub(crate) struct Revoked {
    set: ArcSwap<RevokedSet>,
}

impl Revoked {
    /// Says whether a peer has lost its trust.
    pub(crate) fn holds(&self, peer: &Peer) -> bool {
        self.set.load().holds(&peer.identity, &peer.key)
    }

    /// Says whether an identity has lost its trust, whatever its key.
    pub(crate) fn names(&self, identity: &Identity) -> bool {
        self.set.load().identities.contains(identity)
    }

    /// Adds to those who have lost their trust. Two at once both count.
    pub(crate) fn add(&self, more: &RevokedSet) {
        self.set.rcu(|set| {
            let mut all = RevokedSet::clone(set);
            all.identities.extend(more.identities.iter().cloned());
            all.keys.extend(more.keys.iter().copied());
            all
        });
    }
}

impl Revocations for Revoked {
    fn is_revoked(&self, peer: &Peer) -> bool {
        self.holds(peer)
    }
}

impl Control {
    /// Takes all trust away from an identity: it gets no handshake, no request, no link and no tunnel any more, and what
    /// it has is cut. Returns how many tunnels that were.
    ///
    /// # Errors
    /// Refuses what is no identity of a device or operator of this fleet; fails if it cannot be recorded.
    pub(crate) async fn revoke(
        self: &Arc<Self>,
        identity: &str,
        reason: Option<String>,
        by: &str,
    ) -> Result<u64, Refusal> {
        let identity: Identity = identity
            .parse()
            .map_err(|_| Refusal::new(Code::BadName, "`identity` is no SPIFFE id of this fleet"))?;
        if identity.trust_domain != self.identity.trust_domain {
            return Err(Refusal::new(Code::BadName, "`identity` is of another fleet"));
        }
        if matches!(identity.subject, Subject::Server(_)) {
            return Err(Refusal::new(Code::BadRequest, "a server cannot revoke servers"));
        }
        if reason.as_ref().is_some_and(|reason| reason.len() > MAX_TEXT) {
            return Err(Refusal::new(
                Code::BadRequest,
                format!("`reason` may have {MAX_TEXT} bytes at most"),
            ));
        }
        let revoked = self
            .store
            .revoke(&identity, reason, by.to_owned(), self.now())
            .await;
        revoked.map_err(|error| self.store_failed(&error))?;
        self.revoked.add(&RevokedSet {
            identities: [identity.clone()].into(),
            ..RevokedSet::default()
        });
        let mut cut = self.cut_untrusted(Some(&identity), by).await;
        if let Subject::Operator(name) = &identity.subject {
            cut += self.agreement_fell(name, by).await;
        }
        Ok(cut)
    }

    /// Takes in what the store knows of revocations, and cuts what they touch.
    ///
    /// # Errors
    /// Fails if the store cannot be read.
    pub(crate) async fn reload_revoked(self: &Arc<Self>, by: &str) -> Result<u64, Code> {
        let set = self
            .store
            .revoked()
            .await
            .map_err(|error| self.store_failed(&error))?;
        self.revoked.add(&set);
        Ok(self.cut_untrusted(None, by).await)
    }

    /// Cuts the tunnels and links of an identity, or of everybody whose trust is gone.
    async fn cut_untrusted(self: &Arc<Self>, identity: Option<&Identity>, by: &str) -> u64 {
        let revoked = self.revoked.set.load_full();
        let live = match identity {
            Some(identity) => self.tunnels.table().of_identity(identity),
            None => self.tunnels.table().live(),
        };
        let domain = &self.identity.trust_domain;
        let lost = live.iter().map(|live| &live.facts).filter(|facts| {
            revoked.holds(&Identity::operator(domain, &facts.operator), &facts.holder_key)
                || revoked.holds(&Identity::device(domain, &facts.device), &facts.device_key)
        });
        let cut = self
            .end_tunnels(lost.map(|facts| facts.id), Code::Revoked, by)
            .await;
        for link in self.links.all() {
            if self.revoked.holds(&link.peer) {
                self.close_link(link, Code::Revoked);
            }
        }
        cut
    }

    /// Notes a renewed certificate.
    ///
    /// # Errors
    /// Returns why it must not be handed out.
    pub(crate) async fn renewed(&self, identity: &Identity, certificate: Certificate) -> Result<(), Refusal> {
        let noted = self.store.renewed(identity, certificate, self.now()).await;
        noted.map_err(|error| self.store_failed(&error))?
    }
}
