//! The commands of `docs/zero-trust.md` do what the page says.

use std::time::Duration;

use tunnel_e2e::process::run;
use tunnel_e2e::service::Service;
use tunnel_e2e::{Fleet, Operator};

const PAGE: &str = include_str!("../../docs/zero-trust.md");

/// A command of the page: who types it, what, and the fragments that its output has, in this order.
struct Shown {
    who: &'static str,
    words: Vec<String>,
    fragments: Vec<&'static str>,
}

/// Reads the page's blocks of commands.
fn shown() -> Vec<Shown> {
    let mut all: Vec<Shown> = Vec::new();
    let mut inside = false;
    for line in PAGE.lines() {
        match line {
            "```console" => inside = true,
            "```" => inside = false,
            _ if !inside => {}
            line => match line.split_once("$ ") {
                Some((who, command)) => all.push(Shown {
                    who,
                    words: words(command),
                    fragments: Vec::new(),
                }),
                None => all.last_mut().unwrap().fragments.push(line),
            },
        }
    }
    all
}

/// Splits a command at blanks that are not between quotation marks.
fn words(command: &str) -> Vec<String> {
    let parts = command.split('"').enumerate();
    parts
        .flat_map(|(number, part)| match number % 2 {
            0 => part.split_whitespace().map(str::to_owned).collect(),
            _ => vec![part.to_owned()],
        })
        .collect()
}

#[test]
fn what_the_page_on_zero_trust_shows_is_so() {
    let fleet = Fleet::on_loopback();
    let echo = Service::echo(fleet.devices_place());
    let agent = fleet.link(
        fleet
            .device("pump-17")
            .like_sshd(&echo.target())
            .service("admin", &echo.target()),
    );
    let ana = fleet.technician("ana");
    let all = shown();
    assert!(all.len() > 20, "only {} commands", all.len());
    let mut wrong = Vec::new();
    for Shown {
        who,
        words,
        fragments,
    } in all
    {
        let (program, rest) = words.split_first().unwrap();
        let rest: Vec<_> = rest.iter().map(String::as_str).collect();
        let typed = |operator: &Operator| operator.tunnel_with(&rest, b"hello");
        let output = match (who, program.as_str()) {
            ("admin", "tunnel") => typed(&fleet.admin),
            ("ana", "tunnel") => typed(&ana),
            ("nobody", "tunnel") => {
                let mut command = ana.cli(&rest);
                command.env("TUNNEL_HOME", fleet.directory().join("nobody"));
                run(&mut command, Duration::from_secs(30))
            }
            ("device", "tunnel-agent") => agent.run(rest[0], &rest[1..]),
            other => panic!("nobody knows {other:?}"),
        };
        let all = format!("{}{}", output.text(), output.stderr);
        let command = format!("{who}$ {}", words.join(" "));
        if (output.code != 0) != fragments.iter().any(|fragment| fragment.starts_with("E_")) {
            wrong.push(format!("{command}: exit code {}\n{all}", output.code));
        }
        let mut text = all.as_str();
        for fragment in fragments {
            match text.split_once(fragment) {
                Some((_, rest)) => text = rest,
                None => wrong.push(format!("{command} does not say `{fragment}`:\n{all}")),
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
}
