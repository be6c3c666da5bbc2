//! Why a proxy gave no connection, in words that name it and say what to do.

use std::fmt;
use std::io;

/// Tells which proxy gave no connection, and why.
#[derive(Debug, thiserror::Error)]
#[error("could not connect to `{target}` through the proxy `{proxy}`")]
#[non_exhaustive]
pub struct ProxyError {
    /// The proxy, without its login.
    pub proxy: String,
    /// What it was asked for.
    pub target: String,
    /// Why it gave no connection.
    #[source]
    pub refusal: Refusal,
}

/// Why a proxy gave no connection.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// The proxy's name has no address.
    #[error("the proxy's name could not be looked up; check the proxy's address")]
    Resolve(#[source] io::Error),
    /// The proxy does not take connections.
    #[error("the proxy does not accept connections; check its address, and whether this network has one")]
    Connect(#[source] io::Error),
    /// Nothing came in time.
    #[error("the proxy did not answer in time; try again, or check whether it can reach the server")]
    Silent,
    /// The connection to the proxy broke.
    #[error("the connection to the proxy broke")]
    Broken(#[source] io::Error),
    /// The proxy hung up without an answer.
    #[error("the proxy closed the connection without an answer; check whether it is a proxy of this kind")]
    Closed,
    /// The proxy wants a login, and none is known or none that it takes.
    #[error("the proxy wants a login{offers}; {}", advice(.offers))]
    LoginWanted {
        /// The schemes of HTTP logins that it takes.
        offers: Offers,
    },
    /// The proxy does not take the login.
    #[error("the proxy refused the user or the password{offers}; {}", after_refusal(.offers))]
    LoginRefused {
        /// The schemes of HTTP logins that it takes.
        offers: Offers,
    },
    /// The proxy does not connect to the server, in its own words.
    #[error("the proxy refused with `{0}`; ask its owner to let the server's name and port pass")]
    Refused(String),
    /// The proxy could not reach the server, in its own words.
    #[error("the proxy cannot reach the server: `{0}`; check the server's address, or ask the proxy's owner")]
    Unreached(String),
    /// A page was shown in place of a connection.
    #[error("a captive portal answered{}; open a web page in a browser and log in to this network", place(.0))]
    CaptivePortal(
        /// The host that it leads to.
        Option<String>,
    ),
    /// What answers is no proxy.
    #[error("what answers there is no {expected} proxy: {got}; check the proxy's address")]
    NotAProxy {
        /// The kind that was expected.
        expected: &'static str,
        /// What came in its place.
        got: String,
    },
}

/// Schemes of HTTP logins, as a proxy names them (RFC 9110 section 11.7.1).
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Offers(pub Vec<String>);

impl Offers {
    fn has_basic(&self) -> bool {
        self.0.iter().any(|scheme| scheme.eq_ignore_ascii_case("basic"))
    }
}

impl fmt::Display for Offers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, scheme) in self.0.iter().enumerate() {
            write!(f, "{}`{scheme}`", if index == 0 { " by " } else { " or " })?;
        }
        Ok(())
    }
}

fn advice(offers: &Offers) -> &'static str {
    if offers.has_basic() || offers.0.is_empty() {
        "write `user:password@` before the host in the proxy's address"
    } else {
        "only `Basic` is supported: ask its owner for that, or to let this server pass without a login"
    }
}

fn after_refusal(offers: &Offers) -> &'static str {
    if offers.has_basic() || offers.0.is_empty() {
        "correct them in the proxy's address"
    } else {
        advice(offers)
    }
}

fn place(portal: &Option<String>) -> String {
    portal
        .as_ref()
        .map(|host| format!(" and leads to `{host}`"))
        .unwrap_or_default()
}

/// Makes foreign text fit for an error: printable, on one line, and short.
pub(crate) fn plain(text: &str) -> String {
    const LONGEST: usize = 80;
    let printable = |c: char| if c.is_ascii_graphic() || c == ' ' { c } else { '?' };
    text.trim().chars().take(LONGEST).map(printable).collect()
}
