//! A little of what `make chaos` and `make matrix` do for long.

use std::time::Duration;

use tunnel_e2e::chaos::matrix::{self, Outcome};
use tunnel_e2e::chaos::run::{self, Plan};
use tunnel_e2e::needs;
use tunnel_e2e::skip::{Need, say};
use tunnel_e2e::sshd::NEEDS;

/// The same faults each time. Another seed is for `make chaos`.
const SEED: u64 = 20;

/// THREATS DAT-24, AGT-14, SRV-07, in short.
#[test]
fn random_faults_lose_no_session_and_no_byte() {
    needs!(Need::Namespaces, NEEDS[0], NEEDS[1]);
    let plan = Plan {
        seed: SEED,
        time: Some(Duration::from_secs(30)),
        faults: None,
        longest: Duration::from_secs(3),
    };
    let summary = run::run(plan, &|_| {}).unwrap_or_else(|failure| panic!("{failure}"));
    assert!(summary.count() > 0 && summary.compared > 0, "{}", summary.text());
}

#[test]
fn a_slice_of_the_matrix_loses_no_session_and_no_byte() {
    needs!(Need::Namespaces, NEEDS[0], NEEDS[1]);
    let cells = matrix::run(&matrix::some(), &|_| {});
    let lost: Vec<_> = cells
        .iter()
        .filter(|cell| matches!(cell.outcome, Outcome::Lost(_)))
        .collect();
    if !lost.is_empty() {
        say(&matrix::markdown(&cells));
    }
    assert!(lost.is_empty(), "{lost:#?}");
}
