//! When a certificate is renewed.

use std::time::Duration;

use tunnel_proto::UnixTime;

/// Returns when a certificate should be renewed: after two thirds of its life, so that a third is left for trying.
pub fn renew_at(not_before: UnixTime, not_after: UnixTime) -> UnixTime {
    let life = not_after.since(not_before).as_secs();
    not_before.after(Duration::from_secs(life - life / 3))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn renewal_is_after_two_thirds() {
        let at = |from, to| renew_at(UnixTime::from_secs(from), UnixTime::from_secs(to)).as_secs();
        assert_eq!(at(1000, 1090), 1060);
        assert_eq!(at(1000, 1000), 1000);
        assert_eq!(at(1000, 0), 1000);
        assert_eq!(at(0, u64::MAX), u64::MAX - u64::MAX / 3);
    }
}
