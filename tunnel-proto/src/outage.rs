//! What a device tells of the times when it had no link to the server.

use crate::time::UnixTime;

/// Causes that one outage tells of at most.
pub const MAX_CAUSES: usize = 16;

/// Outages in one message: as large as they can be, they fit.
pub const PER_MESSAGE: usize = 8;

/// Longest detail of a cause, in bytes.
pub const MAX_DETAIL: usize = 200;

macro_rules! causes {
    ($($(#[$doc:meta])* $variant:ident = $number:literal, $text:literal;)*) => {
        /// What stood against a link. The number travels, the text is for scripts; neither ever changes its meaning.
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
        #[non_exhaustive]
        pub enum Cause {
            $($(#[$doc])* $variant = $number,)*
        }

        impl Cause {
            /// Every cause, for the documentation.
            pub const ALL: &[Self] = &[$(Self::$variant),*];

            /// Returns the cause of a number; a number of a newer version reads as [`Cause::Other`].
            pub const fn from_number(number: u64) -> Self {
                match number { $($number => Self::$variant,)* _ => Self::Other }
            }

            /// Returns the stable text, as `udp-silent`.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text,)* }
            }
        }
    };
}

causes! {
    /// Something that this version has no name for.
    Other = 0, "other";
    /// The server's name, or the proxy's, could not be looked up.
    Dns = 1, "dns";
    /// The machine has no way to the server: no network, no route.
    NoRoute = 2, "no-route";
    /// Nothing came back over UDP.
    UdpSilent = 3, "udp-silent";
    /// The server's TCP port does not accept connections.
    TcpRefused = 4, "tcp-refused";
    /// Nothing came back over TCP.
    TcpSilent = 5, "tcp-silent";
    /// The proxy wants another login.
    ProxyLogin = 6, "proxy-login";
    /// The proxy gave no connection for another cause.
    Proxy = 7, "proxy";
    /// A certificate of somebody else was shown: TLS is intercepted. The detail names the issuer.
    ForeignTls = 8, "foreign-tls";
    /// A captive portal stands in the way.
    CaptivePortal = 9, "captive-portal";
    /// A certificate is out of its time: one of the clocks may be wrong.
    Clock = 10, "clock";
    /// The server ended the link in good order, or sent the device away for a while. The detail has its word.
    Server = 11, "server";
    /// The link was up, and nothing came back over it any more.
    LinkSilent = 12, "link-silent";
    /// The link was up, and broke.
    LinkBroken = 13, "link-broken";
    /// Server or device does not trust the other's certificate.
    Refused = 14, "refused";
    /// The agent was started: by a reboot, an update or its owner.
    Start = 15, "start";
}

impl<C> minicbor::Encode<C> for Cause {
    fn encode<W: minicbor::encode::Write>(
        &self,
        e: &mut minicbor::Encoder<W>,
        _: &mut C,
    ) -> Result<(), minicbor::encode::Error<W::Error>> {
        e.u64(*self as u64)?.ok()
    }
}

impl<'b, C> minicbor::Decode<'b, C> for Cause {
    fn decode(d: &mut minicbor::Decoder<'b>, _: &mut C) -> Result<Self, minicbor::decode::Error> {
        d.u64().map(Self::from_number)
    }
}

/// One outage, as the device saw it.
#[derive(Clone, PartialEq, Eq, Debug, minicbor::Encode, minicbor::Decode)]
#[cbor(map)]
pub struct Outage {
    /// Random; the same outage has the same one whenever it is told.
    #[n(0)]
    pub id: u64,
    /// When the link was lost, by the device's clock.
    #[n(1)]
    pub from: UnixTime,
    /// When there was one again.
    #[n(2)]
    pub until: UnixTime,
    /// How many times the device tried to get a link.
    #[n(3)]
    pub attempts: u32,
    /// How many times the agent was started in the meantime.
    #[n(4)]
    pub starts: u32,
    /// What was seen, in the order in which it was seen first.
    #[n(5)]
    pub causes: Vec<Seen>,
}

/// A cause, and how often it was seen in one outage.
#[derive(Clone, PartialEq, Eq, Debug, minicbor::Encode, minicbor::Decode)]
#[cbor(map)]
pub struct Seen {
    /// The cause.
    #[n(0)]
    pub cause: Cause,
    /// How often.
    #[n(1)]
    pub count: u32,
    /// When first.
    #[n(2)]
    pub first: UnixTime,
    /// When last.
    #[n(3)]
    pub last: UnixTime,
    /// The particulars of the last time, as text of the device: escape before printing.
    #[n(4)]
    pub detail: Option<String>,
}

impl Outage {
    /// Notes that something was seen. What is one cause too many only counts as another one.
    pub fn note(&mut self, now: UnixTime, cause: Cause, detail: &str) {
        let detail = (!detail.is_empty()).then(|| bounded(detail));
        let full = self.causes.len() >= MAX_CAUSES;
        let same = self.causes.iter_mut().find(|seen| seen.cause == cause);
        match same {
            Some(seen) => {
                seen.count = seen.count.saturating_add(1);
                seen.last = now;
                seen.detail = detail.or(seen.detail.take());
            }
            None if full => {}
            None => self.causes.push(Seen {
                cause,
                count: 1,
                first: now,
                last: now,
                detail,
            }),
        }
    }
}

/// Cuts a text to what a detail may be.
pub fn bounded(text: &str) -> String {
    let end = (0..=MAX_DETAIL.min(text.len()))
        .rev()
        .find(|at| text.is_char_boundary(*at));
    text[..end.unwrap_or(0)].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_texts_of_causes_are_unique() {
        let mut seen = std::collections::BTreeSet::new();
        for cause in Cause::ALL {
            assert_eq!(Cause::from_number(*cause as u64), *cause);
            assert!(seen.insert(cause.as_str()), "{cause:?} twice");
        }
        assert_eq!(Cause::from_number(999), Cause::Other);
        assert!(seen.len() <= MAX_CAUSES, "an outage has room for each of them");
    }

    #[test]
    fn a_detail_is_cut_between_characters() {
        assert_eq!(bounded("short"), "short");
        let long = bounded(&"ä".repeat(200));
        assert_eq!(long.len(), MAX_DETAIL);
        assert!(long.chars().all(|c| c == 'ä'));
    }
}
