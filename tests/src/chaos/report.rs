//! What a run has shown, in words and numbers.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::io;
use std::path::Path;
use std::time::Duration;

use crate::chaos::fault::Kind;

/// What is known of the faults of one kind.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// How many there were.
    pub count: u64,
    /// The longest wait of each one that came alone, in sessions that may use every carrier.
    pub stalls: Vec<Duration>,
    /// How long after the end of each one that came alone all sessions were at work again.
    pub back: Vec<Duration>,
    /// The longest wait in a round in which it was not alone.
    pub in_company: Duration,
}

/// What a random run has shown.
#[derive(Clone, Debug, Default)]
pub struct Summary {
    /// By kind of fault.
    pub faults: BTreeMap<Kind, Tally>,
    /// Sessions that were there from the start to the end.
    pub lasting: usize,
    /// Sessions that were opened and ended in the middle of it.
    pub brief: u64,
    /// How often a session could not be opened, by what the program said.
    pub refused: BTreeMap<String, u64>,
    /// Bytes that were compared, at both ends.
    pub compared: u64,
    /// How long single answers took.
    pub answers: Vec<Duration>,
    /// How long the run took.
    pub took: Duration,
}

impl Summary {
    /// Returns how many faults there were.
    pub fn count(&self) -> u64 {
        self.faults.values().map(|tally| tally.count).sum()
    }

    /// Returns the summary of a run in which nothing was lost.
    pub fn text(&self) -> String {
        let mut text = String::from(
            "fault                          count   stall p50     p99     max   back p50     p99   in company\n",
        );
        for (kind, tally) in &self.faults {
            let stall = |share| seconds(percentile(&tally.stalls, share));
            let back = |share| seconds(percentile(&tally.back, share));
            let _ = writeln!(
                text,
                "{:<30} {:>5} {:>11} {:>7} {:>7} {:>10} {:>7} {:>12}",
                kind.as_str(),
                tally.count,
                stall(0.5),
                stall(0.99),
                stall(1.0),
                back(0.5),
                back(0.99),
                seconds(Some(tally.in_company).filter(|time| *time > Duration::ZERO)),
            );
        }
        let _ = writeln!(
            text,
            "\n{} faults in {:.0} s; {} lasting and {} brief sessions, lost: 0; {} bytes compared, wrong: 0",
            self.count(),
            self.took.as_secs_f64(),
            self.lasting,
            self.brief,
            self.compared
        );
        let answer = |share| seconds(percentile(&self.answers, share));
        let _ = writeln!(
            text,
            "single answers: {}; p50 {}, p99 {}, max {}",
            self.answers.len(),
            answer(0.5),
            answer(0.99),
            answer(1.0)
        );
        for (why, count) in &self.refused {
            let _ = writeln!(text, "not opened, {count} times: {why}");
        }
        text
    }
}

/// Returns the value below or at which a share of the values lies.
pub fn percentile(values: &[Duration], share: f64) -> Option<Duration> {
    let mut sorted = values.to_vec();
    sorted.sort();
    let at = (sorted.len() as f64 * share).ceil() as usize;
    sorted.get(at.saturating_sub(1)).copied()
}

/// Writes seconds, or a dash.
pub fn seconds(time: Option<Duration>) -> String {
    time.map_or("-".to_owned(), |time| format!("{:.2} s", time.as_secs_f64()))
}

/// Returns the code in what a program said, or all of it.
pub fn reason(said: &str) -> String {
    let code = said
        .split(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_')
        .find(|word| word.starts_with("E_"));
    code.unwrap_or(said).to_owned()
}

/// Puts text between the marks `<!-- name -->` and `<!-- end name -->` of a file.
///
/// # Errors
/// Fails when the file cannot be read or written, or has no such marks.
pub fn replace(path: &Path, name: &str, text: &str) -> io::Result<()> {
    let (start, end) = (format!("<!-- {name} -->"), format!("<!-- end {name} -->"));
    let whole = std::fs::read_to_string(path)?;
    let parts = whole
        .split_once(&start)
        .and_then(|(before, rest)| Some((before, rest.split_once(&end)?.1)));
    let Some((before, after)) = parts else {
        return Err(io::Error::other(format!(
            "{} has no mark {start}",
            path.display()
        )));
    };
    std::fs::write(
        path,
        format!("{before}{start}\n{}\n{end}{after}", text.trim_end()),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_of_the_sorted_values() {
        let values: Vec<_> = (1..=100).rev().map(Duration::from_secs).collect();
        assert_eq!(percentile(&values, 0.5), Some(Duration::from_secs(50)));
        assert_eq!(percentile(&values, 0.99), Some(Duration::from_secs(99)));
        assert_eq!(percentile(&values, 1.0), Some(Duration::from_secs(100)));
        assert_eq!(percentile(&[], 0.5), None);
    }
}
