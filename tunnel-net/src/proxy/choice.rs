//! What a program's own settings say of the proxy.

use std::str::FromStr;
use std::sync::Arc;

use super::{Proxy, ProxyTextError, ProxyVariableError};
use crate::addr::ServerAddr;

/// How the proxy on the way to a server is found.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub enum ProxyChoice {
    /// As the environment says.
    #[default]
    Environment,
    /// There is none, whatever the environment says.
    Direct,
    /// This one.
    Fixed(Arc<Proxy>),
}

impl ProxyChoice {
    /// Puts the proxy on the way to a server.
    ///
    /// # Errors
    /// Names the variable of the environment whose value is no proxy.
    pub fn on_the_way(&self, server: ServerAddr) -> Result<ServerAddr, ProxyVariableError> {
        let proxy = match self {
            Self::Environment => Proxy::from_env(&server.host)?,
            Self::Direct => None,
            Self::Fixed(proxy) => Some(Arc::clone(proxy)),
        };
        Ok(server.with_proxy(proxy))
    }

    /// Says whether it holds a user or a password.
    pub fn has_login(&self) -> bool {
        matches!(self, Self::Fixed(proxy) if proxy.login.is_some())
    }
}

/// Reads `none`, or a proxy.
impl FromStr for ProxyChoice {
    type Err = ProxyTextError;

    fn from_str(text: &str) -> Result<Self, ProxyTextError> {
        match text.trim() {
            "none" => Ok(Self::Direct),
            text => Ok(Self::Fixed(Arc::new(text.parse()?))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_win_over_the_environment() {
        let server: ServerAddr = "127.0.0.1:1".parse().unwrap();
        let through = |choice: ProxyChoice| choice.on_the_way(server.clone()).unwrap().proxy;
        let fixed: ProxyChoice = "http://ana:pw@proxy.example:1".parse().unwrap();
        assert!(fixed.has_login());
        let proxy = through(fixed).map(|proxy| proxy.to_string());
        assert_eq!(proxy.as_deref(), Some("http://***@proxy.example:1"));
        let direct: ProxyChoice = " none ".parse().unwrap();
        assert!(!direct.has_login());
        assert_eq!(through(direct), None);
        // This machine has no proxy in any environment.
        assert_eq!(through(ProxyChoice::default()), None);
        assert_eq!(
            "nothing at all".parse::<ProxyChoice>(),
            Err(ProxyTextError::Malformed)
        );
    }
}
