//! Spans of time as people write them: `90s`, `30m`, `1h`, `7d`.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// A span of time: a whole number and a unit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Span(pub Duration);

/// Tells that a text is no span of time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a span of time is a number and `s`, `m`, `h` or `d`, as `30m`")]
pub struct SpanError;

impl FromStr for Span {
    type Err = SpanError;

    fn from_str(text: &str) -> Result<Self, SpanError> {
        let (unit_at, unit) = text.char_indices().last().ok_or(SpanError)?;
        let secs = match unit {
            's' => 1,
            'm' => 60,
            'h' => 3600,
            'd' => 24 * 3600,
            _ => return Err(SpanError),
        };
        let digits = &text[..unit_at];
        if digits.is_empty() || !digits.bytes().all(|c| c.is_ascii_digit()) {
            return Err(SpanError);
        }
        let number: u64 = digits.parse().map_err(|_| SpanError)?;
        let secs = number
            .checked_mul(secs)
            .filter(|&secs| (1..=u64::from(u32::MAX)).contains(&secs))
            .ok_or(SpanError)?;
        Ok(Self(Duration::from_secs(secs)))
    }
}

/// Writes the span in its largest whole unit.
impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let secs = self.0.as_secs();
        let (unit, name) = [(86_400, 'd'), (3600, 'h'), (60, 'm')]
            .into_iter()
            .find(|(unit, _)| secs > 0 && secs.is_multiple_of(*unit))
            .unwrap_or((1, 's'));
        write!(f, "{}{name}", secs / unit)
    }
}

/// Writes a span for people, roughly: `3 s`, `12 min`, `5 h`, `4 d`.
pub fn rough(span: Duration) -> String {
    match span.as_secs() {
        secs @ 0..120 => format!("{secs} s"),
        secs @ 120..7200 => format!("{} min", secs / 60),
        secs @ 7200..172_800 => format!("{} h", secs / 3600),
        secs => format!("{} d", secs / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_read_back() {
        for text in ["90s", "30m", "1h", "7d", "61m"] {
            assert_eq!(
                text.parse::<Span>().map(|span| span.to_string()),
                Ok(text.to_owned())
            );
        }
        for text in [
            "",
            "1",
            "h",
            "-1h",
            "+1h",
            "1.5h",
            "0s",
            "1 h",
            "99999999999999999999d",
            "1ü",
            "900000000h",
        ] {
            assert_eq!(text.parse::<Span>(), Err(SpanError), "{text}");
        }
    }
}
