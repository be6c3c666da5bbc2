//! Spans of time, sizes and rates as policies and test files write them.

use std::time::Duration;

/// Reads a span of time: a whole number and `s`, `m`, `h` or `d`.
pub(crate) fn span(text: &str) -> Option<Duration> {
    let units = [("s", 1), ("m", 60), ("h", 3600), ("d", 86_400)];
    scaled(text, &units)
        .filter(|secs| *secs > 0)
        .map(Duration::from_secs)
}

/// Reads a number of bytes: a whole number and `B`, `KiB`, `MiB`, `GiB` or `TiB`.
pub(crate) fn size(text: &str) -> Option<u64> {
    let units = [
        ("TiB", 1 << 40),
        ("GiB", 1 << 30),
        ("MiB", 1 << 20),
        ("KiB", 1 << 10),
        ("B", 1),
    ];
    scaled(text, &units).filter(|bytes| *bytes > 0)
}

/// Reads a rate: a size and `/s`.
pub(crate) fn rate(text: &str) -> Option<u64> {
    size(text.strip_suffix("/s")?)
}

/// Reads a count: a whole number, not 0.
pub(crate) fn count(text: &str) -> Option<u32> {
    digits(text)?.try_into().ok().filter(|count| *count > 0)
}

fn scaled(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let (number, factor) = units
        .iter()
        .find_map(|(unit, factor)| Some((text.strip_suffix(unit)?, factor)))?;
    digits(number)?.checked_mul(*factor)
}

fn digits(text: &str) -> Option<u64> {
    let plain = !text.is_empty() && text.bytes().all(|c| c.is_ascii_digit());
    plain.then(|| text.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_units_and_nothing_else() {
        assert_eq!(span("30m"), Some(Duration::from_secs(1800)));
        assert_eq!(span("2d"), Some(Duration::from_secs(172_800)));
        assert_eq!((size("1GiB"), size("7B")), (Some(1 << 30), Some(7)));
        assert_eq!((rate("1MiB/s"), count("12")), (Some(1 << 20), Some(12)));
        for bad in [
            "",
            "m",
            "0m",
            "-1m",
            "1.5h",
            "1 h",
            "30",
            "1w",
            "99999999999999999999s",
            "400000000000000000d",
        ] {
            assert_eq!(span(bad), None, "{bad}");
        }
        for bad in ["", "1", "1GB", "GiB", "0B", "16777216TiB", "1Gib"] {
            assert_eq!(size(bad), None, "{bad}");
        }
        assert_eq!(
            (rate("1MiB"), rate("1/s"), count("0"), count("4294967296")),
            (None, None, None, None)
        );
    }
}
