//! Redeeming tokens: a leg is admitted once, for who has proved to be its holder.

use tunnel_proto::api::{AttachTunnel, AttachedTunnel};
use tunnel_proto::bind::Role;
use tunnel_proto::ids::hex;
use tunnel_proto::keys::LegKey;
use tunnel_proto::token::{AccessToken, Presenter};
use tunnel_proto::{CircuitId, Code, TunnelId};

use super::table::Phase;
use crate::api::caller::Caller;
use crate::audit::Event;
use crate::control::{Control, from_base64};

impl Control {
    /// Redeems the source token of an operator's tunnel.
    ///
    /// # Errors
    /// Returns what does not fit: the token, its holder, its time, or that the tunnel is over.
    pub(crate) async fn attach(
        &self,
        caller: &Caller,
        tunnel: TunnelId,
        request: &AttachTunnel,
    ) -> Result<AttachedTunnel, Code> {
        let token = from_base64(&request.token).ok_or(Code::TokenMalformed)?;
        let by = Presenter {
            identity: &caller.peer.identity,
            key: caller.key,
            tunnel,
            role: Role::Source,
        };
        let (circuit, key) = self.redeem(&token, &by).await?;
        Ok(AttachedTunnel {
            circuit,
            leg_key: hex(key.secret().expose()),
            udp_port: self.ports.udp,
        })
    }

    /// Redeems a token and admits the leg.
    ///
    /// # Errors
    /// Returns why not. A token that is not the presenter's, or was used before, leaves a record.
    pub(crate) async fn redeem(&self, token: &[u8], by: &Presenter<'_>) -> Result<(CircuitId, LegKey), Code> {
        let redeemed = self.try_redeem(token, by).await;
        if let Err(reason) = redeemed
            && is_suspicious(reason)
        {
            let event = Event::TokenRefused {
                tunnel: Some(by.tunnel),
                role: by.role.as_str().to_owned(),
                presented_by: by.identity.to_string(),
                reason,
            };
            self.note_by(by.identity, event).await;
        }
        redeemed
    }

    async fn try_redeem(&self, token: &[u8], by: &Presenter<'_>) -> Result<(CircuitId, LegKey), Code> {
        let key = self.keys.grant_key.verifying_key();
        let token = AccessToken::verify(token, &key, &self.identity, by, self.now())?;
        let live = self.tunnels.get(token.tunnel).ok_or(Code::TunnelClosed)?;
        let mut phase = live.watch();
        // An agent may be quicker than the disk; it waits until the decision is durable.
        let phase = *phase
            .wait_for(|phase| *phase != Phase::Deciding)
            .await
            .map_err(|_| Code::TunnelClosed)?;
        if let Phase::Ended(why) = phase {
            return Err(why);
        }
        let redeemed = self
            .store
            .redeem(token.id, token.tunnel, token.role, self.now())
            .await;
        redeemed.map_err(|error| self.store_failed(&error))?.admitted()?;
        // If the tunnel was cut meanwhile, its circuit is closed and the relay admits nobody.
        let admitted = self.admit_leg(&live, token.role);
        let key = admitted.map_err(|code| match live.phase() {
            Phase::Ended(why) => why,
            _ => code,
        })?;
        Ok((live.facts.circuit, key))
    }
}

/// Says whether a refusal may mean that somebody has a token that is not theirs.
fn is_suspicious(code: Code) -> bool {
    matches!(
        code,
        Code::TokenMalformed
            | Code::TokenAlg
            | Code::TokenSig
            | Code::TokenExpired
            | Code::TokenNotYet
            | Code::TokenAudience
            | Code::TokenHolder
            | Code::TokenScope
            | Code::TokenReplay
    )
}
