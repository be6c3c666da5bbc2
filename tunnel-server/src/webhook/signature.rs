//! The signature of the Standard Webhooks scheme: HMAC-SHA256 over id, time and body, so that a receiver knows who sent a
//! message, that it is whole, fresh, and whether it has had it before.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::hmac;
use tunnel_proto::UnixTime;
use zeroize::Zeroizing;

use super::Message;

/// How the text of a key begins.
const PREFIX: &str = "whsec_";

/// The key that both sides have. It is shown to nobody.
pub(super) struct Key(hmac::Key);

/// Why a text is no key.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("is not `{PREFIX}` with 24 to 64 bytes in base64 behind it, on one line")]
pub struct KeyError;

impl Key {
    pub(super) fn parse(text: &str) -> Result<Self, KeyError> {
        let text = text.trim_end().strip_prefix(PREFIX).ok_or(KeyError)?;
        let bytes = Zeroizing::new(STANDARD.decode(text).map_err(|_| KeyError)?);
        if !(24..=64).contains(&bytes.len()) {
            return Err(KeyError);
        }
        Ok(Self(hmac::Key::new(hmac::HMAC_SHA256, &bytes)))
    }

    /// Returns the headers that a message goes out with.
    pub(super) fn headers(&self, message: &Message, now: UnixTime) -> [(&'static str, String); 3] {
        let time = now.as_secs().to_string();
        let mut context = hmac::Context::with_key(&self.0);
        for part in [message.id.as_bytes(), b".", time.as_bytes(), b".", &message.body] {
            context.update(part);
        }
        let signature = format!("v1,{}", STANDARD.encode(context.sign()));
        [
            ("webhook-id", message.id.clone()),
            ("webhook-timestamp", time),
            ("webhook-signature", signature),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of the Standard Webhooks specification's reference libraries.
    #[test]
    fn the_signature_is_that_of_the_standard() {
        let key = Key::parse("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw\n").unwrap();
        let message = Message {
            id: "msg_p5jXN8AQM9LWM0D4loKWxJek".into(),
            body: r#"{"test": 2432232314}"#.into(),
        };
        let headers = key.headers(&message, UnixTime::from_secs(1_614_265_330));
        assert_eq!(headers[1].1, "1614265330");
        assert_eq!(headers[2].1, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
    }

    #[test]
    fn a_short_or_damaged_key_is_none() {
        for bad in [
            "",
            "whsec_",
            "whsec_c2hvcnQ=",
            "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
            "whsec_%%%%",
        ] {
            assert!(Key::parse(bad).is_err(), "{bad}");
        }
    }
}
