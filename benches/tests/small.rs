//! Every scenario, small: that it works and gives the figures that the report needs. The figures themselves mean nothing
//! here.

#![allow(clippy::unwrap_used, reason = "tests may unwrap")]

use std::path::PathBuf;

use tunnel_bench::report::{Column, Report};
use tunnel_bench::settings::Settings;
use tunnel_bench::suite::{self, Name};

/// Columns that need nothing but this crate.
const BASELINES: [Column; 3] = [Column::Direct, Column::HopByHop, Column::Splice];

fn run(name: Name, columns: &[Column]) -> Report {
    let settings = Settings::small(PathBuf::from(env!("CARGO_BIN_EXE_tunnel-bench")));
    suite::run(&settings, &[name], columns, &|_| {}).unwrap()
}

/// Checks that the figures whose names begin so were found for all columns, and are more than nothing.
#[track_caller]
fn expect_figures(report: &Report, names: &[&str], columns: &[Column]) {
    for name in names {
        let row = report.rows.iter().find(|row| row.figure.starts_with(name));
        let row = row.unwrap_or_else(|| panic!("no figure {name} in {}", report.markdown()));
        for column in columns {
            let found = row.cells.get(column).map(tunnel_bench::stats::Samples::median);
            assert!(
                found.is_some_and(|value| value > 0.0),
                "{name} of {column:?}: {found:?}"
            );
        }
    }
}

#[test]
fn baselines_have_latencies_and_times() {
    let report = run(Name::Setup, &BASELINES);
    expect_figures(&report, &["one more connection"], &BASELINES);
    expect_figures(&report, &["start of the near end"], &BASELINES[1..]);
    expect_figures(
        &run(Name::Echo, &BASELINES),
        &["echo of 64 bytes, p50", "echo of 64 bytes, p99"],
        &BASELINES,
    );
}

#[test]
fn baselines_carry_transfers_both_ways() {
    let report = run(Name::Bulk, &BASELINES);
    expect_figures(
        &report,
        &[
            "one stream down",
            "one stream up",
            "16 streams down",
            "16 streams up",
        ],
        &BASELINES,
    );
    expect_figures(
        &report,
        &["most memory of the relay", "most memory of the near end"],
        &BASELINES[1..],
    );
}

#[test]
fn the_tunnel_has_latencies_and_times() {
    let ours = [Column::Udp, Column::WebSocket];
    expect_figures(
        &run(Name::Setup, &ours),
        &["one more connection", "start of the near end"],
        &ours,
    );
    expect_figures(&run(Name::Echo, &ours), &["echo of 64 bytes, p50"], &ours);
}

#[test]
fn the_tunnel_carries_transfers_both_ways() {
    let ours = [Column::Udp, Column::WebSocket];
    let report = run(Name::Bulk, &ours);
    expect_figures(
        &report,
        &[
            "one stream down",
            "one stream up",
            "16 streams down",
            "16 streams up",
        ],
        &ours,
    );
    expect_figures(&report, &["most memory of the relay"], &ours);
}

#[test]
fn keystrokes_are_timed_beside_transfers() {
    let columns = [Column::Direct, Column::Udp, Column::WebSocket];
    let report = run(Name::Typing, &columns);
    expect_figures(
        &report,
        &[
            "keystroke (loopback)",
            "keystroke beside a bulk transfer up",
            "keystroke beside a bulk transfer down",
        ],
        &columns,
    );
}

#[test]
fn ssh_is_timed_where_networks_can_be_emulated() {
    let report = run(Name::Ssh, &[]);
    if report.notes.is_empty() {
        expect_figures(
            &report,
            &["`ssh`"],
            &[Column::Direct, Column::Udp, Column::WebSocket],
        );
    }
}

#[test]
fn a_stream_is_measured_over_a_radio_that_loses_packets() {
    let columns = [Column::Direct, Column::Udp, Column::OpenSsh];
    let report = run(Name::Loss, &columns);
    if report.notes.is_empty() {
        expect_figures(&report, &["one stream down", "one stream up"], &columns);
    }
}

#[test]
fn sessions_outlive_faults() {
    let report = run(Name::Stall, &[Column::Udp, Column::OpenSsh]);
    if report.notes.is_empty() {
        let ours = [Column::Udp];
        expect_figures(
            &report,
            &["stall after an address change of the operator"],
            &[Column::Udp, Column::OpenSsh],
        );
        expect_figures(
            &report,
            &[
                "stall after an address change of the device",
                "stall after a restart",
                "stall after a ban",
            ],
            &ours,
        );
        for row in report.rows.iter().filter(|row| row.unit == "%") {
            assert_eq!(row.cells[&Column::Udp].median(), 0.0, "{}", report.markdown());
        }
    }
}

#[test]
fn idle_devices_cost_memory() {
    let columns = [Column::Udp, Column::HopByHop];
    let report = run(Name::Idle, &columns);
    expect_figures(&report, &["memory of an idle device's program"], &columns);
    expect_figures(&report, &["size of a device's program"], &columns[..1]);
}

#[test]
fn a_crowd_has_tunnels_opened_and_cut() {
    let both = [Column::Udp, Column::AllowAll];
    expect_figures(&run(Name::Open, &both), &["tunnels opened in a second"], &both);
    expect_figures(
        &run(Name::Cut, &both),
        &["commit to last byte, 20 sessions"],
        &both,
    );
}
