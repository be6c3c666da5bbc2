//! Which rows of `docs/threats.md` are tried, and by what: checked on each run, and written to `docs/attacks.md`.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};

/// The groups whose every row must be answered for here.
const GROUPS: [&str; 4] = ["TOK", "POL", "DAT", "AUD"];

/// Rows that a test elsewhere holds, beside those here or in their place: row, file, test.
const ELSEWHERE: &[(&str, &str, &str)] = &[
    (
        "AUD-01",
        "tunnel-proto/src/audit.rs",
        "every_edit_is_found_at_its_first_record",
    ),
    (
        "AUD-01",
        "tests/e2e/audit.rs",
        "verify_names_the_record_that_was_edited_in_the_store",
    ),
    (
        "AUD-02",
        "tests/e2e/audit.rs",
        "what_was_dropped_for_its_age_is_vouched_for_and_one_record_more_is_missed",
    ),
    (
        "AUD-03",
        "tunnel-server/src/control/evidence.rs",
        "live_tunnels_end_after_a_minute_without_records_in_strict_mode_alone",
    ),
    (
        "AUD-05",
        "tunnel-server/src/control/gathered.rs",
        "a_million_refusals_are_few_records_and_each_counts",
    ),
    (
        "AUD-06",
        "tunnel-server/src/store/tests/crash.rs",
        "killed_at_any_moment_nothing_that_was_answered_is_lost",
    ),
    (
        "AUD-06",
        "tunnel-server/src/store/tests/audit.rs",
        "two_stores_on_one_file_make_one_chain",
    ),
    (
        "DAT-01",
        "tunnel-proto/src/circuit/tests.rs",
        "random_runs_keep_the_invariants",
    ),
    (
        "DAT-03",
        "tunnel-net/tests/network/moves.rs",
        "a_session_goes_on_at_once_after_a_move",
    ),
    (
        "DAT-05",
        "tunnel-proto/src/circuit/tests.rs",
        "dat_05_random_ids_and_tags_change_nothing",
    ),
    (
        "DAT-06",
        "tunnel-server/src/relay/tests/silence.rs",
        "refused_binds_are_counted_and_not_answered",
    ),
    (
        "DAT-12",
        "tunnel-server/src/run/gate.rs",
        "one_source_does_not_shut_others_out",
    ),
    (
        "DAT-22",
        "tunnel-server/src/relay/tests/websockets.rs",
        "dat_22_a_receiver_that_does_not_read_costs_only_itself",
    ),
    (
        "DAT-24",
        "tests/e2e/carriers.rs",
        "a_session_goes_back_to_udp_when_it_passes_again",
    ),
    (
        "DAT-26",
        "tunnel-server/src/relay/budget.rs",
        "dat_26_small_datagrams_have_a_rate_and_full_ones_none",
    ),
    (
        "POL-01",
        "tunnel-policy/src/tests.rs",
        "what_no_policy_permits_is_denied",
    ),
    (
        "POL-01",
        "tunnel-policy/src/tests.rs",
        "every_problem_is_told_with_its_line",
    ),
    (
        "POL-01",
        "tunnel-server/tests/control/facts.rs",
        "pol_01_an_explanation_tells_no_more_than_one_may_know",
    ),
    (
        "POL-02",
        "tunnel-policy/src/tests/reference.rs",
        "the_engine_decides_as_a_plain_evaluator_does",
    ),
    (
        "POL-02",
        "tunnel-policy/src/tests.rs",
        "a_forbid_wins_in_any_order_and_is_named",
    ),
    (
        "POL-04",
        "tunnel-server/src/store/tests/tunnels.rs",
        "pol_04_a_decision_from_older_facts_opens_nothing",
    ),
    (
        "POL-06",
        "tunnel-policy/src/tests.rs",
        "a_text_that_is_too_large_or_too_deep_is_refused",
    ),
    (
        "POL-06",
        "tunnel-policy/src/tests/facts.rs",
        "a_rule_about_a_group_names_it_and_speaks_of_devices_only",
    ),
    (
        "POL-08",
        "tunnel-policy/src/tests/facts.rs",
        "pol_08_reported_facts_are_no_asserted_ones",
    ),
    (
        "POL-09",
        "tunnel-proto/src/names.rs",
        "names_that_could_mean_something_else_are_refused",
    ),
    (
        "POL-10",
        "tunnel-policy/src/tests.rs",
        "a_pattern_bomb_is_matched_in_no_time",
    ),
    (
        "POL-10",
        "tunnel-policy/src/tests.rs",
        "long_chains_of_operators_stop_nothing",
    ),
    (
        "POL-11",
        "tunnel-policy/src/tests/facts.rs",
        "pol_11_a_clock_that_jumped_denies_what_depends_on_it",
    ),
    (
        "POL-11",
        "tunnel-policy/src/tests/facts.rs",
        "pol_11_a_clock_that_jumped_knows_no_ages",
    ),
    (
        "POL-11",
        "tunnel-server/src/control/steadiness.rs",
        "pol_11_a_jump_either_way_is_seen_and_settles",
    ),
    (
        "POL-12",
        "tunnel-server/tests/control/approvals.rs",
        "pol_12_leads_approve_each_other_and_never_themselves",
    ),
    (
        "POL-13",
        "tunnel-agent/tests/device.rs",
        "what_is_not_declared_or_not_granted_is_refused_by_name",
    ),
    (
        "TOK-01",
        "tests/e2e/durability.rs",
        "a_redeemed_token_stays_redeemed",
    ),
    (
        "TOK-02",
        "tunnel-agent/tests/device.rs",
        "a_grant_of_another_relay_is_refused",
    ),
    (
        "TOK-06",
        "tunnel-proto/src/grant.rs",
        "a_grant_for_anything_else_is_refused",
    ),
    (
        "TOK-07",
        "tunnel-proto/src/cose.rs",
        "every_flipped_bit_and_every_cut_is_refused",
    ),
    (
        "TOK-08",
        "tunnel-proto/src/cose.rs",
        "another_key_or_purpose_is_refused",
    ),
    (
        "TOK-08",
        "tunnel-proto/src/grant.rs",
        "a_claim_that_stands_twice_refuses_the_grant",
    ),
    (
        "TOK-10",
        "tunnel-agent/src/acceptance.rs",
        "a_grant_of_another_link_or_device_is_refused",
    ),
    (
        "TOK-10",
        "tunnel-agent/src/acceptance.rs",
        "a_fitting_offer_is_accepted_once",
    ),
    (
        "TOK-11",
        "tunnel-agent/src/acceptance.rs",
        "server_time_runs_with_the_monotonic_clock",
    ),
    (
        "TOK-12",
        "tunnel-net/src/tls/tests/early.rs",
        "nothing_is_resumed_and_nothing_is_early",
    ),
    (
        "TOK-13",
        "tunnel-agent/tests/device.rs",
        "only_the_operator_of_the_grant_gets_in",
    ),
    (
        "TOK-14",
        "tunnel-server/tests/control/suspension.rs",
        "a_thousand_revocations_race_an_opening_and_none_opens_afterwards",
    ),
    (
        "TOK-18",
        "tunnel-agent/tests/device.rs",
        "a_control_plane_that_was_taken_over_opens_nothing_that_is_locked",
    ),
    (
        "TOK-19",
        "tunnel-proto/src/lock/tests.rs",
        "a_permit_opens_what_it_names_and_nothing_else",
    ),
    (
        "TOK-20",
        "tunnel-agent/src/acceptance.rs",
        "a_server_that_turns_its_clock_revives_no_permit",
    ),
    (
        "TOK-21",
        "tunnel-agent/src/enrol.rs",
        "a_locked_device_changes_over_to_no_root_that_the_owner_has_not_signed",
    ),
];

/// What rows cost, and what measures it: no test fails for being slow on a machine that is busy.
const MEASURED: &[(&str, &str)] = &[(
    "POL-02",
    "the time of a decision by 1,000 policies: `cargo bench -p tunnel-policy --bench decide`",
)];

/// Rows that do not apply, and why.
const NOT_APPLICABLE: &[(&str, &str)] = &[];

/// Has the table written where it differs; without it that is a failure.
const UPDATE: &str = "TUNNEL_UPDATE_ATTACKS";

/// A row of the catalogue.
struct Row {
    id: String,
    attack: String,
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The rows of the catalogue, in their order.
fn rows() -> Vec<Row> {
    let text = read(&root().join("docs/threats.md"));
    let row = |line: &str| {
        let mut cells = line.strip_prefix("| ")?.split(" | ");
        let (id, attack) = (cells.next()?, cells.next()?);
        let (group, number) = id.split_once('-')?;
        let is_id = group.len() == 3 && group.bytes().all(|byte| byte.is_ascii_uppercase());
        (is_id && number.parse::<u32>().is_ok()).then(|| Row {
            id: id.to_owned(),
            attack: attack.trim_end_matches(" |").to_owned(),
        })
    };
    text.lines().filter_map(row).collect()
}

/// The tests of this suite by the row that their names begin with.
fn tests() -> BTreeMap<String, Vec<String>> {
    let mut found = BTreeMap::<String, Vec<String>>::new();
    let mut files: Vec<_> = std::fs::read_dir(root().join("tests/attacks"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    files.sort();
    for file in files {
        let (text, module) = (
            read(&file),
            file.file_stem().unwrap().to_string_lossy().into_owned(),
        );
        for (before, after) in text.lines().zip(text.lines().skip(1)) {
            let Some(name) = after.strip_prefix("fn ").and_then(|rest| rest.split('(').next()) else {
                continue;
            };
            let mut parts = name.splitn(3, '_');
            if let (Some(group), Some(number), Some(_)) = (parts.next(), parts.next(), parts.next())
                && before == "#[test]"
                && number.parse::<u32>().is_ok()
            {
                let id = format!("{}-{number}", group.to_uppercase());
                found.entry(id).or_default().push(format!("`{module}::{name}`"));
            }
        }
    }
    found
}

/// What answers for a row; nothing if nothing does.
fn answer(id: &str, tests: &BTreeMap<String, Vec<String>>) -> Option<String> {
    let mut answers = tests.get(id).cloned().unwrap_or_default();
    for (_, file, test) in ELSEWHERE.iter().filter(|(row, ..)| *row == id) {
        answers.push(format!("`{test}` in `{file}`"));
    }
    let measured = MEASURED.iter().filter(|(row, _)| *row == id);
    answers.extend(measured.map(|(_, what)| format!("measured: {what}")));
    let reason = NOT_APPLICABLE.iter().find(|(row, _)| *row == id);
    match (answers.is_empty(), reason) {
        (false, None) => Some(answers.join("<br>")),
        (true, Some((_, why))) => Some(format!("does not apply: {why}")),
        (true, None) => None,
        (false, Some(_)) => panic!("{id} does not apply, and is tried"),
    }
}

fn table() -> String {
    let (tests, rows) = (tests(), rows());
    let of_groups = rows.iter().filter(|row| GROUPS.contains(&&row.id[..3]));
    let (mut lines, mut tried, mut not_applicable) = (String::new(), 0, 0);
    for row in of_groups {
        let Some(answer) = answer(&row.id, &tests) else {
            panic!("{} has no test, none elsewhere, and no reason", row.id);
        };
        if answer.starts_with("does not apply") {
            not_applicable += 1;
        } else {
            tried += 1;
        }
        writeln!(lines, "| {} | {} | {answer} |", row.id, row.attack).unwrap();
    }
    format!(
        "# Attacks that are tried on each run of the tests\n\n\
         Written by `make attacks` once all of them were held off; a test fails where it is not current. The rows are \
         those of [threats.md](threats.md), groups: {}. Tests without a file stand in `tests/attacks/`; what they attack \
         is `tunnel-server`, `tunnel-agent` and `tunnel` as processes, over sockets of this machine.\n\n\
         {tried} rows tried, {tried} held, {not_applicable} not applicable.\n\n\
         | row | attack | held off in |\n|---|---|---|\n{lines}",
        GROUPS.join(", ")
    )
}

#[test]
fn every_row_is_answered_for_and_the_table_is_current() {
    let file = root().join("docs/attacks.md");
    let table = table();
    if std::env::var_os(UPDATE).is_some() {
        std::fs::write(&file, &table).unwrap();
    }
    assert!(
        read(&file) == table,
        "docs/attacks.md is not current: `make attacks` writes it"
    );
}

#[test]
fn every_test_has_a_row_and_every_test_elsewhere_exists() {
    let rows = rows();
    let known = |id: &str| rows.iter().any(|row| row.id == id);
    for id in tests().keys() {
        assert!(known(id), "{id} is tested, and is no row of docs/threats.md");
    }
    for (id, file, test) in ELSEWHERE {
        assert!(known(id), "{id} is no row of docs/threats.md");
        let text = read(&root().join(file));
        assert!(text.contains(&format!("fn {test}(")), "{file} has no test {test}");
    }
    for (id, _) in NOT_APPLICABLE.iter().chain(MEASURED) {
        assert!(known(id), "{id} is no row of docs/threats.md");
    }
}

#[test]
fn the_catalogue_has_every_row_once() {
    let rows = rows();
    let mut ids: Vec<_> = rows.iter().map(|row| row.id.as_str()).collect();
    ids.sort_unstable();
    let count = ids.len();
    ids.dedup();
    assert_eq!(ids.len(), count, "a row stands twice in docs/threats.md");
    let data_plane = ids.iter().filter(|id| id.starts_with("DAT-")).count();
    assert_eq!(data_plane, 28);
}
