//! Access tokens: the one-time right to attach one leg of one tunnel. A CWT (RFC 8392) in COSE_Sign1.

use std::time::Duration;

use crate::bind::Role;
use crate::code::Code;
use crate::cose::{Purpose, SigningKey, VerifyingKey};
use crate::defaults;
use crate::grant::{Claims, code_of};
use crate::ids::{TokenId, TunnelId};
use crate::keys::KeyHash;
use crate::names::{Identity, NodeName, TrustDomain};
use crate::time::UnixTime;

/// The right to attach one leg, as the relay reads it.
///
/// # Security
/// Bearer text alone is worth nothing: the token names its holder and the hash of the holder's key, and who presents it
/// has proved that key in the handshake (THREATS TOK-03, T5).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct AccessToken {
    /// Names the token, so that it is redeemed once.
    pub id: TokenId,
    /// The tunnel that it attaches to.
    pub tunnel: TunnelId,
    /// The leg that it attaches.
    pub role: Role,
    /// Who may present it.
    pub holder: Identity,
    /// The key that the holder proves.
    pub holder_key: KeyHash,
    /// The relay that redeems it.
    pub relay: NodeName,
    /// When it was made.
    pub issued_at: UnixTime,
    /// Until when it can be redeemed.
    pub expires_at: UnixTime,
}

/// What the relay knows of who presents a token.
#[derive(Clone, Debug)]
pub struct Presenter<'a> {
    /// The identity that the handshake proved.
    pub identity: &'a Identity,
    /// The key that the handshake proved.
    pub key: KeyHash,
    /// The tunnel that the presenter asks for.
    pub tunnel: TunnelId,
    /// The leg that the presenter asks for.
    pub role: Role,
}

impl AccessToken {
    /// Signs the token.
    pub fn sign(&self, key: &SigningKey, trust_domain: &TrustDomain) -> Vec<u8> {
        let relay = Identity::server(trust_domain, &self.relay);
        let claims = Claims {
            issuer: Some(relay.to_string()),
            subject: Some(self.holder.to_string()),
            audience: Some(relay.to_string()),
            expires_at: Some(self.expires_at),
            issued_at: Some(self.issued_at),
            id: Some(self.id.as_bytes().to_vec()),
            holder_key: Some(self.holder_key),
            tunnel: Some(self.tunnel),
            role: Some(self.role),
            ..Claims::default()
        };
        key.sign(Purpose::AccessToken, &claims.encode())
    }

    /// Checks signature, relay, holder, scope and time. That it was not redeemed before is for the store to say.
    ///
    /// # Errors
    /// Returns the code of the first thing that does not fit, in that order.
    pub fn verify(
        message: &[u8],
        key: &VerifyingKey,
        relay: &Identity,
        by: &Presenter<'_>,
        now: UnixTime,
    ) -> Result<Self, Code> {
        let payload = key.verify(Purpose::AccessToken, message).map_err(code_of)?;
        let (token, audience) = Self::decode(payload).ok_or(Code::TokenMalformed)?;
        if audience != *relay {
            return Err(Code::TokenAudience);
        }
        if token.holder != *by.identity || token.holder_key != by.key {
            return Err(Code::TokenHolder);
        }
        if token.tunnel != by.tunnel || token.role != by.role {
            return Err(Code::TokenScope);
        }
        in_time(token.issued_at, token.expires_at, now, defaults::CLOCK_TOLERANCE)?;
        Ok(token)
    }

    fn decode(payload: &[u8]) -> Option<(Self, Identity)> {
        let claims = Claims::decode(payload)?;
        let audience: Identity = claims.audience?.parse().ok()?;
        let crate::names::Subject::Server(relay) = audience.subject.clone() else {
            return None;
        };
        let token = Self {
            id: TokenId::from_bytes(claims.id?.try_into().ok()?),
            tunnel: claims.tunnel?,
            role: claims.role?,
            holder: claims.subject?.parse().ok()?,
            holder_key: claims.holder_key?,
            relay,
            issued_at: claims.issued_at?,
            expires_at: claims.expires_at?,
        };
        Some((token, audience))
    }
}

/// Says whether `now` lies in a window, give or take the tolerance. The end itself is outside.
///
/// # Errors
/// Returns [`Code::TokenExpired`] or [`Code::TokenNotYet`].
pub fn in_time(from: UnixTime, until: UnixTime, now: UnixTime, tolerance: Duration) -> Result<(), Code> {
    if now >= until.after(tolerance) {
        return Err(Code::TokenExpired);
    }
    if now.after(tolerance) < from {
        return Err(Code::TokenNotYet);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::Secret;

    const TUNNEL: TunnelId = TunnelId::from_bytes([1; 16]);
    const NOW: UnixTime = UnixTime::from_secs(1_800_000_000);

    fn key() -> SigningKey {
        SigningKey::from_seed(&Secret::new([7; 32])).unwrap()
    }

    fn ana() -> Identity {
        "spiffe://f/operator/ana".parse().unwrap()
    }

    fn relay() -> Identity {
        "spiffe://f/server/n1".parse().unwrap()
    }

    fn token() -> AccessToken {
        AccessToken {
            id: TokenId::from_bytes([2; 16]),
            tunnel: TUNNEL,
            role: Role::Source,
            holder: ana(),
            holder_key: KeyHash::of_spki(b"ana"),
            relay: "n1".parse().unwrap(),
            issued_at: NOW,
            expires_at: NOW.after(Duration::from_secs(60)),
        }
    }

    fn verify(
        token: &AccessToken,
        now: UnixTime,
        change: impl Fn(&mut Presenter<'_>),
    ) -> Result<AccessToken, Code> {
        let identity = ana();
        let mut by = Presenter {
            identity: &identity,
            key: KeyHash::of_spki(b"ana"),
            tunnel: TUNNEL,
            role: Role::Source,
        };
        change(&mut by);
        let signed = token.sign(&key(), &"f".parse().unwrap());
        AccessToken::verify(&signed, &key().verifying_key(), &relay(), &by, now)
    }

    #[test]
    fn a_good_token_passes() {
        assert_eq!(verify(&token(), NOW, |_| ()), Ok(token()));
    }

    /// THREATS TOK-02, TOK-03, TOK-06.
    #[test]
    fn a_token_for_anything_else_is_refused() {
        let elsewhere = AccessToken {
            relay: "n2".parse().unwrap(),
            ..token()
        };
        assert_eq!(verify(&elsewhere, NOW, |_| ()), Err(Code::TokenAudience));
        let eve: Identity = "spiffe://f/operator/eve".parse().unwrap();
        let holder = AccessToken {
            holder: eve,
            ..token()
        };
        assert_eq!(verify(&holder, NOW, |_| ()), Err(Code::TokenHolder));
        assert_eq!(
            verify(&token(), NOW, |by| by.key = KeyHash::of_spki(b"eve")),
            Err(Code::TokenHolder)
        );
        assert_eq!(
            verify(&token(), NOW, |by| by.role = Role::Destination),
            Err(Code::TokenScope)
        );
        let other = TunnelId::from_bytes([9; 16]);
        assert_eq!(
            verify(&token(), NOW, |by| by.tunnel = other),
            Err(Code::TokenScope)
        );
    }

    /// THREATS TOK-04, TOK-05.
    #[test]
    fn a_token_out_of_its_time_is_refused() {
        let tolerance = defaults::CLOCK_TOLERANCE;
        let last = token().expires_at.after(tolerance).before(Duration::from_secs(1));
        assert!(verify(&token(), last, |_| ()).is_ok());
        assert_eq!(
            verify(&token(), last.after(Duration::from_secs(1)), |_| ()),
            Err(Code::TokenExpired)
        );
        assert!(verify(&token(), NOW.before(tolerance), |_| ()).is_ok());
        let early = NOW.before(tolerance).before(Duration::from_secs(1));
        assert_eq!(verify(&token(), early, |_| ()), Err(Code::TokenNotYet));
    }
}
