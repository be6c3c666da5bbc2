//! A service, as the configuration names it.

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::str::FromStr;

use hyper::Uri;
use hyper::http::uri::PathAndQuery;
use rustls::pki_types::ServerName;

use super::Net;

/// A service that is sent messages, and what they are signed with.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Target {
    /// Where it is.
    pub url: Url,
    /// The file of the key that both sides have.
    pub key: PathBuf,
    /// The file of the authorities that may have signed its certificate; those of the system if absent.
    pub ca: Option<PathBuf>,
    /// The addresses that it may have, beside public ones.
    pub allow: Vec<Net>,
}

/// Where a service is: always `https`, and without a name or password in it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Url {
    authority: String,
    host: String,
    port: u16,
    name: ServerName<'static>,
    path: Uri,
}

/// Tells that a text is no address of a service.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("is no address as `https://hooks.example/path`; no other scheme, user or fragment may be in it")]
pub struct UrlError;

impl Url {
    /// Returns host and port, as a request names them.
    pub(super) fn authority(&self) -> &str {
        &self.authority
    }

    /// Returns the host, if it is an address.
    pub(super) fn ip(&self) -> Option<IpAddr> {
        self.host.parse().ok()
    }

    /// Returns host and port, to be resolved.
    pub(super) fn host(&self) -> (&str, u16) {
        (&self.host, self.port)
    }

    /// Returns what the certificate has to name.
    pub(super) fn server_name(&self) -> ServerName<'static> {
        self.name.clone()
    }

    /// Returns path and query.
    pub(super) const fn path(&self) -> &Uri {
        &self.path
    }
}

impl FromStr for Url {
    type Err = UrlError;

    fn from_str(text: &str) -> Result<Self, UrlError> {
        let uri: Uri = text.parse().map_err(|_| UrlError)?;
        let authority = uri.authority().ok_or(UrlError)?;
        let is_plain = uri.scheme_str() == Some("https") && !text.contains('#');
        if !is_plain || authority.as_str().contains('@') {
            return Err(UrlError);
        }
        let host = authority.host().trim_matches(['[', ']']).to_owned();
        let name = ServerName::try_from(host.clone()).map_err(|_| UrlError)?;
        // What stands behind the host is a port or nothing: a wrong one is not the usual one.
        let port = match authority.as_str().strip_prefix(authority.host()) {
            Some("") => 443,
            Some(port) => {
                let port = port.strip_prefix(':').and_then(|port| port.parse().ok());
                port.filter(|port| *port != 0).ok_or(UrlError)?
            }
            None => return Err(UrlError),
        };
        let path = uri.path_and_query().cloned();
        Ok(Self {
            authority: authority.as_str().to_owned(),
            host,
            port,
            name,
            path: path.unwrap_or(PathAndQuery::from_static("/")).into(),
        })
    }
}

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "https://{}{}", self.authority, self.path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_reads_back() {
        for text in [
            "https://hooks.example/",
            "https://hooks.example:8443/a/b?c=d",
            "https://[::1]:9/x",
            "https://10.0.0.1/",
        ] {
            let url: Url = text.parse().unwrap();
            assert_eq!(url.to_string(), text);
        }
        let url: Url = "https://[fd00::1]/".parse().unwrap();
        assert_eq!((url.ip(), url.host().1), ("fd00::1".parse().ok(), 443));
        assert_eq!(
            "https://hooks.example".parse::<Url>().unwrap().to_string(),
            "https://hooks.example/"
        );
    }

    #[test]
    fn srv_15_what_could_lead_elsewhere_is_refused() {
        for bad in [
            "",
            "hooks.example",
            "/path",
            "http://hooks.example/",
            "ftp://hooks.example/",
            "https://user:secret@hooks.example/",
            "https://hooks.example/#x",
            "https://hooks.example:/",
            "https://hooks.example:99999/",
            "https://hooks.example:0/",
            "https://hooks example/",
            "https://0x7f000001/",
            "https://2130706433/",
            "https://127.1/",
        ] {
            assert_eq!(bad.parse::<Url>(), Err(UrlError), "{bad}");
        }
    }
}
