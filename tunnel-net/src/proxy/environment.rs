//! The proxy that the environment names, as curl and others read it.

use std::net::IpAddr;
use std::sync::Arc;

use super::{Proxy, ProxyTextError};

/// The variables that name a proxy; the first that is set counts.
const VARIABLES: [&str; 4] = ["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"];

/// The variables that name hosts without a proxy; the first that is set counts.
const EXCEPTIONS: [&str; 2] = ["NO_PROXY", "no_proxy"];

/// Tells that a variable names no proxy that could be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the variable `{variable}` names no proxy that can be used")]
pub struct ProxyVariableError {
    /// The variable.
    pub variable: &'static str,
    /// What is wrong with its value.
    #[source]
    pub source: ProxyTextError,
}

impl Proxy {
    /// Returns the variable of the environment that names a proxy, if one does.
    pub fn variable() -> Option<&'static str> {
        let is_set = |name: &&&str| std::env::var(name).is_ok_and(|value| !value.trim().is_empty());
        VARIABLES.iter().find(is_set).copied()
    }

    /// Returns the proxy that the environment names for a host: in `HTTPS_PROXY` or `ALL_PROXY`, capital or small.
    ///
    /// This machine itself is never reached through a proxy, nor is what `NO_PROXY` lists: names (each with everything
    /// below it), IP addresses, networks like `10.0.0.0/8`, or `*` for all.
    ///
    /// # Errors
    /// Names the variable whose value is no proxy. To go on without one would show the owner's network what the owner
    /// did not mean it to see.
    pub fn from_env(host: &str) -> Result<Option<Arc<Self>>, ProxyVariableError> {
        choose(host, |name| std::env::var(name).ok())
    }
}

pub(super) fn choose(
    host: &str,
    variable: impl Fn(&str) -> Option<String>,
) -> Result<Option<Arc<Proxy>>, ProxyVariableError> {
    let first = |names: &[&'static str]| {
        let set = |name: &&'static str| variable(name).filter(|value| !value.trim().is_empty());
        names.iter().find_map(|name| Some((*name, set(name)?)))
    };
    let Some((name, value)) = first(&VARIABLES) else {
        return Ok(None);
    };
    let excepted = first(&EXCEPTIONS).is_some_and(|(_, list)| is_listed(host, &list));
    if is_this_machine(host) || excepted {
        return Ok(None);
    }
    match value.parse() {
        Ok(proxy) => Ok(Some(Arc::new(proxy))),
        Err(source) => Err(ProxyVariableError {
            variable: name,
            source,
        }),
    }
}

fn is_this_machine(host: &str) -> bool {
    host.eq_ignore_ascii_case("localhost") || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

fn is_listed(host: &str, list: &str) -> bool {
    let mut rules = list.split([',', ' ', '\t']).filter(|rule| !rule.is_empty());
    match host.parse() {
        Ok(ip) => rules.any(|rule| rule == "*" || covers_address(rule, ip)),
        Err(_) => rules.any(|rule| rule == "*" || covers_name(rule, host)),
    }
}

/// Says whether a rule is the name, or one above it. `.example.com` and `*.example.com` mean the same as `example.com`.
fn covers_name(rule: &str, host: &str) -> bool {
    let rule = rule.strip_prefix('*').unwrap_or(rule);
    let rule = rule.strip_prefix('.').unwrap_or(rule);
    let rule = rule.rsplit_once(':').map_or(rule, |(name, _port)| name);
    let (host, rule) = (
        host.trim_end_matches('.').to_ascii_lowercase(),
        rule.to_ascii_lowercase(),
    );
    let above = || {
        host.strip_suffix(rule.as_str())
            .is_some_and(|rest| rest.ends_with('.'))
    };
    !rule.is_empty() && (host == rule || above())
}

/// Says whether a rule is the address, or a network that it is in.
fn covers_address(rule: &str, ip: IpAddr) -> bool {
    let (network, bits) = match rule.split_once('/') {
        Some((network, bits)) => (network, bits.parse::<u32>().ok()),
        None => (rule, Some(u32::MAX)),
    };
    let network = network.trim_start_matches('[').trim_end_matches(']');
    match (network.parse(), ip, bits) {
        (Ok(IpAddr::V4(network)), IpAddr::V4(ip), Some(bits)) => {
            let apart = u32::from(network) ^ u32::from(ip);
            apart.leading_zeros() >= bits.min(32)
        }
        (Ok(IpAddr::V6(network)), IpAddr::V6(ip), Some(bits)) => {
            let apart = u128::from(network) ^ u128::from(ip);
            apart.leading_zeros() >= bits.min(128)
        }
        _ => false,
    }
}
