//! `tunnel policy test`: cases of a file against a policy, on this machine and without a server.

use std::path::Path;

use serde::Serialize;
use tunnel_policy::{CaseResult, Cases, Engine, MAX_CASES_BYTES};
use tunnel_proto::Code;
use tunnel_proto::code::Exit;

use super::{not_valid, read, read_bounded};
use crate::args;
use crate::escape::escape;
use crate::failure::Failure;
use crate::output::Output;

/// The code of a case that went otherwise than expected.
const FAILED: &str = "E_POLICY_TEST";

#[derive(Serialize)]
struct Tested {
    passed: usize,
    failed: usize,
    cases: Vec<CaseResult>,
}

/// Runs the cases, and shows how they went.
///
/// # Errors
/// Tells what cannot be read, and that a case went otherwise than expected.
pub(super) fn test(output: Output, args: &args::PolicyTest) -> Result<(), Failure> {
    let what = format!("could not test by `{}`", args.file.display());
    let cases = Cases::parse(&read_bounded(&args.file, &what, MAX_CASES_BYTES)?).map_err(|error| {
        Failure::new(Code::BadRequest, &what)
            .why("the file of cases is not of the documented form")
            .next("correct it; `docs/policies.md` shows the form")
            .detail(error.to_string())
    })?;
    let named = || {
        let beside = args.file.parent().unwrap_or(Path::new("."));
        cases.policy.as_ref().map(|name| beside.join(name))
    };
    let policy = args.policy.clone().or_else(named).ok_or_else(|| {
        Failure::new(Code::BadRequest, &what)
            .why("nothing says which policy is to be tested")
            .next("name it with `--policy FILE`, or in the file as `policy = \"fleet.cedar\"`")
    })?;
    let engine = Engine::new(&read(&policy, &what)?).map_err(|error| not_valid(&error, &what))?;
    if cases.is_empty() {
        return Err(Failure::new(Code::BadRequest, &what)
            .why("there is no case in it")
            .next("write at least one `[[case]]`"));
    }
    let cases = cases.run(&engine);
    let failed = cases.iter().filter(|case| !case.ok).count();
    let tested = Tested {
        passed: cases.len() - failed,
        failed,
        cases,
    };
    output.result(&tested, || text(&tested))?;
    if failed == 0 {
        return Ok(());
    }
    Err(Failure::new(
        Code::PolicyDeny,
        format!("`{}` does not pass its cases", policy.display()),
    )
    .code_text(FAILED)
    .why(format!(
        "{failed} of {} cases went otherwise than expected",
        tested.cases.len()
    ))
    .next("correct the policy or the cases")
    .exit(Exit::Failed as u8))
}

fn text(tested: &Tested) -> String {
    let mut text: String = tested
        .cases
        .iter()
        .filter(|case| !case.ok)
        .map(case_text)
        .collect();
    text.push_str(&format!("{} passed, {} failed\n", tested.passed, tested.failed));
    text
}

/// Shows what was expected beside what came.
fn case_text(case: &CaseResult) -> String {
    let by = |policies: &[String]| {
        if policies.is_empty() {
            String::new()
        } else {
            format!(" by {}", policies.join(", "))
        }
    };
    let mut text = format!("FAILED {}\n", escape(&case.name));
    let expected = case.expected_policies.as_deref().unwrap_or_default();
    text.push_str(&escape(&format!("  - {}{}", case.expected, by(expected))));
    text.push('\n');
    text.push_str(&escape(&format!("  + {}{}", case.got, by(&case.policies))));
    text.push('\n');
    for error in &case.errors {
        text.push_str(&format!("    {}\n", escape(error)));
    }
    text
}
