//! The limits that policies put on what they permit, written as annotations.
//!
//! Of all the policies that permit a tunnel, for any of its services, the narrowest of each limit counts: who may do less
//! by one of them never does more by another.

use std::time::Duration;

use cedar_policy::{ActionConstraint, Effect, Policy};

use crate::question::MAX_APPROVALS;
use crate::units;

/// What a tunnel may use at most; `None` where no policy says anything.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Limits {
    /// How long it may live: `@max_lifetime("30m")`.
    pub lifetime: Option<Duration>,
    /// Sessions at once in it: `@max_sessions("2")`.
    pub sessions: Option<u32>,
    /// Tunnels that the operator may have to the device at once: `@max_tunnels("1")`.
    pub tunnels: Option<u32>,
    /// Bytes both ways together: `@max_bytes("1GiB")`.
    pub bytes: Option<u64>,
    /// Bytes in a second both ways together: `@max_rate("1MiB/s")`.
    pub rate: Option<u64>,
}

impl Limits {
    /// Returns the narrower of each limit.
    #[must_use]
    pub fn narrowest(self, other: Self) -> Self {
        Self {
            lifetime: narrower(self.lifetime, other.lifetime),
            sessions: narrower(self.sessions, other.sessions),
            tunnels: narrower(self.tunnels, other.tunnels),
            bytes: narrower(self.bytes, other.bytes),
            rate: narrower(self.rate, other.rate),
        }
    }

    /// Says whether what was granted under the limits `granted` is no more than these ones allow. The number of tunnels
    /// is looked at when one opens, and the lifetime is for who knows the tunnel's.
    pub fn cover(&self, granted: &Self) -> bool {
        self.narrowest(*granted)
            == Self {
                lifetime: narrower(self.lifetime, granted.lifetime),
                tunnels: narrower(self.tunnels, granted.tunnels),
                ..*granted
            }
    }
}

fn narrower<T: Ord>(one: Option<T>, other: Option<T>) -> Option<T> {
    match (one, other) {
        (Some(one), Some(other)) => Some(one.min(other)),
        (one, other) => one.or(other),
    }
}

/// What the annotations of one policy say.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Annotations {
    /// The limits of what it permits.
    pub(crate) limits: Limits,
    /// How many others have to agree: before that it permits nothing, or forbids. 0 if nobody has to.
    pub(crate) approvals: u32,
}

/// Reads the annotations of a policy.
///
/// # Errors
/// Returns what is wrong with each.
pub(crate) fn read(policy: &Policy) -> Result<Annotations, Vec<String>> {
    let (mut read, mut errors) = (Annotations::default(), Vec::new());
    let (opens, connects) = (
        is_only(policy, &["connect", "break-glass"]),
        is_only(policy, &["connect"]),
    );
    for (key, value) in policy.annotations() {
        let limits = &mut read.limits;
        let problem = match key {
            "id" | "note" => None,
            "max_lifetime" => set(&mut limits.lifetime, units::span(value), "a span of time, as `30m`"),
            "max_sessions" => set(&mut limits.sessions, units::count(value), "a number, as `2`"),
            "max_tunnels" => set(&mut limits.tunnels, units::count(value), "a number, as `1`"),
            "max_bytes" => set(&mut limits.bytes, units::size(value), "a size, as `1GiB`"),
            "max_rate" => set(&mut limits.rate, units::rate(value), "a rate, as `1MiB/s`"),
            "requires_approval" => {
                read.approvals = read.approvals.max(1);
                (!value.is_empty()).then(|| "is written without a value".to_owned())
            }
            "approvals" => {
                let count = units::count(value).filter(|count| *count <= MAX_APPROVALS);
                read.approvals = read.approvals.max(count.unwrap_or_default());
                count.is_none().then(|| format!("is not a number up to {MAX_APPROVALS}, as `2`"))
            }
            _ => Some("is not known; there are `id`, `note`, `max_lifetime`, `max_sessions`, `max_tunnels`, `max_bytes`, `max_rate`, `requires_approval` and `approvals`".to_owned()),
        };
        let is_limit = key.starts_with("max_");
        let is_approval = matches!(key, "requires_approval" | "approvals");
        let misplaced = if is_limit && !opens || is_approval && !connects {
            Some("is for policies with `action == Action::\"connect\"`".to_owned())
        } else if is_limit && policy.effect() == Effect::Forbid {
            Some("is for a `permit`".to_owned())
        } else {
            None
        };
        errors.extend(
            problem
                .or(misplaced)
                .map(|problem| format!("the annotation `@{key}` of `{}` {problem}", name(policy))),
        );
    }
    if errors.is_empty() { Ok(read) } else { Err(errors) }
}

/// Returns the name of a policy: its `@id`, or the one that Cedar gives it.
pub(crate) fn name(policy: &Policy) -> String {
    policy
        .annotation("id")
        .map_or_else(|| policy.id().to_string(), str::to_owned)
}

fn set<T>(place: &mut Option<T>, value: Option<T>, wanted: &str) -> Option<String> {
    *place = value;
    place.is_none().then(|| format!("is not {wanted}"))
}

/// Says whether a policy is about no other actions than these.
fn is_only(policy: &Policy, names: &[&str]) -> bool {
    let is_one = |action: &cedar_policy::EntityUid| names.contains(&action.id().unescaped());
    match policy.action_constraint() {
        ActionConstraint::Any => false,
        ActionConstraint::Eq(action) => is_one(&action),
        ActionConstraint::In(actions) => actions.iter().all(is_one),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_narrowest_counts_and_nothing_covers_more() {
        let short = Limits {
            lifetime: Some(Duration::from_secs(60)),
            ..Limits::default()
        };
        let small = Limits {
            bytes: Some(10),
            lifetime: Some(Duration::from_secs(90)),
            ..Limits::default()
        };
        let both = short.narrowest(small);
        assert_eq!(
            (both.lifetime, both.bytes, both.rate),
            (short.lifetime, small.bytes, None)
        );
        assert!(Limits::default().cover(&small) && small.cover(&small) && both.cover(&small));
        assert!(!small.cover(&Limits::default()));
        assert!(!small.cover(&Limits {
            bytes: Some(11),
            ..Limits::default()
        }));
    }
}
