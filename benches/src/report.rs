//! What a run found: rows of figures, limits that they are held against, and the table that shows them.

use std::collections::BTreeMap;
use std::fmt::Write;

use clap::ValueEnum;
use serde::Serialize;

use crate::machine::Origin;
use crate::stats::Samples;

/// What was measured: a column of the table.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Column {
    /// No tunnel at all.
    Direct,
    /// Ours over UDP carriers.
    Udp,
    /// Ours over WebSocket carriers.
    #[value(name = "websocket")]
    WebSocket,
    /// Hop-by-hop QUIC with TLS from end to end inside.
    HopByHop,
    /// A blind TCP relay without any cryptography.
    Splice,
    /// rathole with TLS between its relay and the device.
    Rathole,
    /// OpenSSH's port forward through a middle host.
    #[value(name = "openssh")]
    OpenSsh,
    /// Ours with a policy that allows everything: no path, but what decisions are compared with.
    AllowAll,
}

impl Column {
    /// All of them, in the order of the table.
    pub const ALL: [Self; 8] = [
        Self::Direct,
        Self::Udp,
        Self::WebSocket,
        Self::HopByHop,
        Self::Splice,
        Self::Rathole,
        Self::OpenSsh,
        Self::AllowAll,
    ];

    /// Returns the heading.
    pub const fn title(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Udp => "**tunnel, UDP**",
            Self::WebSocket => "**tunnel, WebSocket**",
            Self::HopByHop => "hop-by-hop QUIC, TLS inside",
            Self::Splice => "TCP relay, no TLS",
            Self::Rathole => "rathole, TLS on one leg",
            Self::OpenSsh => "OpenSSH through a middle host",
            Self::AllowAll => "tunnel, everything allowed",
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Udp => "UDP",
            Self::WebSocket => "WebSocket",
            Self::HopByHop => "hop-by-hop QUIC",
            Self::Splice => "TCP relay",
            Self::Rathole => "rathole",
            Self::OpenSsh => "OpenSSH",
            Self::AllowAll => "everything allowed",
        }
    }
}

/// What a figure must keep to.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Limit {
    /// A value of its own.
    AtMost(f64),
    /// A value of its own.
    AtLeast(f64),
    /// A multiple of another column's figure.
    AtMostTimes(f64, Column),
    /// A multiple of another column's figure.
    AtLeastTimes(f64, Column),
    /// Another column's figure and something on top.
    AtMostAbove(f64, Column),
}

/// Whether a figure kept to its limit.
#[derive(Clone, Debug, Serialize)]
pub struct Verdict {
    /// Whose figure.
    pub column: Column,
    /// What was asked for.
    pub limit: Limit,
    /// The figure, or its ratio or difference to the other column's, as the limit has it.
    pub reached: f64,
    /// Whether that is enough.
    pub holds: bool,
}

/// One figure of all columns that have it.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// What it is.
    pub figure: String,
    /// In what it is measured.
    pub unit: &'static str,
    /// What was found.
    pub cells: BTreeMap<Column, Samples>,
    limits: Vec<(Column, Limit)>,
}

impl Row {
    /// Makes a row without figures.
    pub fn new(figure: impl Into<String>, unit: &'static str) -> Self {
        Self {
            figure: figure.into(),
            unit,
            cells: BTreeMap::new(),
            limits: Vec::new(),
        }
    }

    /// Holds a column against a limit.
    #[must_use]
    pub fn limit(mut self, column: Column, limit: Limit) -> Self {
        self.limits.push((column, limit));
        self
    }

    /// Adds the figure of a run.
    pub fn push(&mut self, column: Column, value: f64) {
        self.cells.entry(column).or_default().push(value);
    }

    /// Returns the verdicts on the columns that were measured.
    pub fn verdicts(&self) -> Vec<Verdict> {
        self.limits
            .iter()
            .filter_map(|(column, limit)| self.verdict(*column, *limit))
            .collect()
    }

    fn verdict(&self, column: Column, limit: Limit) -> Option<Verdict> {
        let of = |column: Column| self.cells.get(&column).map(Samples::median);
        let own = of(column)?;
        let (reached, holds) = match limit {
            Limit::AtMost(most) => (own, own <= most),
            Limit::AtLeast(least) => (own, own >= least),
            Limit::AtMostTimes(most, other) => (own / of(other)?, own / of(other)? <= most),
            Limit::AtLeastTimes(least, other) => (own / of(other)?, own / of(other)? >= least),
            Limit::AtMostAbove(most, other) => (own - of(other)?, own - of(other)? <= most),
        };
        Some(Verdict {
            column,
            limit,
            reached,
            holds,
        })
    }
}

/// All that a run found.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Where it comes from.
    #[serde(flatten)]
    pub origin: Origin,
    /// The figures.
    pub rows: Vec<Row>,
    /// What a reader must know beside them.
    pub notes: Vec<String>,
}

impl Report {
    /// Writes the report as a Markdown table with its origin.
    pub fn markdown(&self) -> String {
        let Origin {
            commit,
            machine,
            command,
            time,
        } = &self.origin;
        let mut text = format!("Commit {commit}, {time}; {machine}; `{command}`.\n");
        text += "Median of the runs, with the smallest and the largest in brackets.\n\n";
        let columns: Vec<_> = Column::ALL
            .into_iter()
            .filter(|column| self.has(*column))
            .collect();
        let titles: Vec<_> = columns.iter().map(|column| column.title()).collect();
        let _ = writeln!(text, "| figure | {} | limit |", titles.join(" | "));
        let _ = writeln!(text, "|---|{}---|", "---|".repeat(columns.len()));
        for row in &self.rows {
            let cells: Vec<_> = columns.iter().map(|column| cell(row.cells.get(column))).collect();
            let verdicts: Vec<_> = row.verdicts().iter().map(verdict).collect();
            let limits = if verdicts.is_empty() {
                "–".to_owned()
            } else {
                verdicts.join("; ")
            };
            let _ = writeln!(
                text,
                "| {}, {} | {} | {limits} |",
                row.figure,
                row.unit,
                cells.join(" | ")
            );
        }
        if !self.notes.is_empty() {
            text.push('\n');
        }
        for note in &self.notes {
            let _ = writeln!(text, "- {note}");
        }
        text
    }

    /// Writes the report as JSON, with every single figure.
    pub fn json(&self) -> serde_json::Result<String> {
        let mut value = serde_json::to_value(self)?;
        let verdicts: Vec<_> = self
            .rows
            .iter()
            .flat_map(|row| row.verdicts().into_iter().map(|v| (&row.figure, v)))
            .collect();
        value["verdicts"] = serde_json::to_value(verdicts)?;
        serde_json::to_string_pretty(&value)
    }

    /// Tells whether all limits were kept.
    pub fn holds(&self) -> bool {
        self.rows
            .iter()
            .flat_map(Row::verdicts)
            .all(|verdict| verdict.holds)
    }

    fn has(&self, column: Column) -> bool {
        self.rows.iter().any(|row| row.cells.contains_key(&column))
    }
}

fn cell(samples: Option<&Samples>) -> String {
    match samples {
        None => "–".to_owned(),
        Some(samples) if samples.len() == 1 => number(samples.median()),
        Some(samples) => {
            format!(
                "{} ({}–{})",
                number(samples.median()),
                number(samples.min()),
                number(samples.max())
            )
        }
    }
}

fn verdict(verdict: &Verdict) -> String {
    let Verdict {
        column,
        limit,
        reached,
        holds,
    } = verdict;
    let reached = number(*reached);
    let (asked, reached) = match limit {
        Limit::AtMost(most) => (format!("≤ {most}"), reached),
        Limit::AtLeast(least) => (format!("≥ {least}"), reached),
        Limit::AtMostTimes(most, other) => (format!("≤ {most} × {}", other.name()), format!("{reached} ×")),
        Limit::AtLeastTimes(least, other) => {
            (format!("≥ {least} × {}", other.name()), format!("{reached} ×"))
        }
        Limit::AtMostAbove(most, other) => (format!("≤ {} + {most}", other.name()), format!("+ {reached}")),
    };
    let word = if *holds { "holds" } else { "**missed**" };
    format!("{} {asked}: {reached}, {word}", column.name())
}

/// Writes three figures that count, and no more than that is known.
fn number(value: f64) -> String {
    let size = value.abs();
    match () {
        () if !value.is_finite() => "?".to_owned(),
        () if size >= 100.0 => format!("{value:.0}"),
        () if size >= 10.0 => format!("{value:.1}"),
        () if size >= 0.1 || size == 0.0 => format!("{value:.2}"),
        () => format!("{value:.3}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(limit: Limit) -> Row {
        let mut row = Row::new("one stream down", "MB/s").limit(Column::Udp, limit);
        for value in [370.0, 390.0, 380.0] {
            row.push(Column::Udp, value);
        }
        row.push(Column::HopByHop, 200.0);
        row
    }

    fn report(row: Row) -> Report {
        let origin = Origin {
            commit: "c".into(),
            machine: "m".into(),
            command: "bench".into(),
            time: "t".into(),
        };
        Report {
            origin,
            rows: vec![row],
            notes: vec!["a note".into()],
        }
    }

    #[test]
    fn a_limit_is_held_against_the_medians() {
        for (limit, holds) in [
            (Limit::AtLeastTimes(1.5, Column::HopByHop), true),
            (Limit::AtLeastTimes(2.0, Column::HopByHop), false),
            (Limit::AtMostTimes(2.0, Column::HopByHop), true),
            (Limit::AtMostTimes(1.5, Column::HopByHop), false),
            (Limit::AtMost(380.0), true),
            (Limit::AtMost(379.0), false),
            (Limit::AtLeast(380.0), true),
            (Limit::AtLeast(381.0), false),
            (Limit::AtMostAbove(180.0, Column::HopByHop), true),
            (Limit::AtMostAbove(179.0, Column::HopByHop), false),
        ] {
            let report = report(row(limit));
            assert_eq!(report.holds(), holds, "{limit:?}");
            assert_eq!(report.markdown().contains("missed"), !holds, "{limit:?}");
        }
    }

    #[test]
    fn a_limit_without_its_figures_gives_no_verdict() {
        assert!(
            row(Limit::AtMostTimes(1.0, Column::Rathole))
                .verdicts()
                .is_empty()
        );
    }

    #[test]
    fn the_table_has_the_columns_that_were_measured() {
        let text = report(row(Limit::AtLeastTimes(1.5, Column::HopByHop))).markdown();
        let expected =
            "| one stream down, MB/s | 380 (370–390) | 200 | UDP ≥ 1.5 × hop-by-hop QUIC: 1.90 ×, holds |";
        assert!(text.contains(expected), "{text}");
        assert!(!text.contains("rathole"), "{text}");
        assert!(text.contains("- a note"), "{text}");
    }

    #[test]
    fn json_holds_every_single_figure() {
        let text = report(row(Limit::AtMost(380.0))).json().unwrap();
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(
            value["rows"][0]["cells"]["udp"],
            serde_json::json!([370.0, 390.0, 380.0])
        );
        assert_eq!(value["verdicts"][0][1]["holds"], true);
    }

    #[test]
    fn numbers_show_what_is_known() {
        let shown = [0.0, 0.0123, 0.123, 1.234, 12.34, 123.4, f64::NAN].map(number);
        assert_eq!(shown, ["0.00", "0.012", "0.12", "1.23", "12.3", "123", "?"]);
    }
}
