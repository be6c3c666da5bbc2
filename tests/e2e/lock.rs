//! The fleet lock as its page describes it: each command of `docs/fleet-lock.md`, in its order.

use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::process::Signal;
use tunnel_e2e::agent::Agent;
use tunnel_e2e::operator::ssh_options;
use tunnel_e2e::process::{Output, run};
use tunnel_e2e::service::Service;
use tunnel_e2e::sshd::{NEEDS, Sshd, user};
use tunnel_e2e::wait::{SOON, until};
use tunnel_e2e::{Fleet, Operator, needs};

/// What a page has its reader do.
enum Step {
    /// Run a command as somebody; it fails with this code, or succeeds.
    Run {
        who: String,
        command: String,
        code: Option<String>,
    },
    /// Write the device's configuration.
    Configure(String),
}

/// Reads the steps of a page: prompts in `console` blocks, with an error below those that fail, and `toml` blocks.
fn steps(page: &str) -> Vec<Step> {
    let mut steps = Vec::new();
    for block in page.split("```").skip(1).step_by(2) {
        if let Some(text) = block.strip_prefix("toml\n") {
            steps.push(Step::Configure(text.to_owned()));
        }
        for line in block.strip_prefix("console\n").into_iter().flat_map(str::lines) {
            let prompt = line.split_once("$ ").or_else(|| line.split_once("# "));
            match (prompt, steps.last_mut()) {
                (Some((who, command)), _) => steps.push(Step::Run {
                    who: who.to_owned(),
                    command: command.to_owned(),
                    code: None,
                }),
                (None, Some(Step::Run { code, .. })) => {
                    let named = line.split_once('(').and_then(|(_, rest)| rest.strip_suffix(')'));
                    *code = Some(named.expect("an error names its code").to_owned());
                }
                (None, _) => panic!("no command, and no answer to one: {line}"),
            }
        }
    }
    steps
}

/// The people and machines of the page.
struct World {
    fleet: Fleet,
    ana: Operator,
    sshd: Sshd,
    diag: Service,
    devices: Vec<Agent>,
    directory: PathBuf,
}

impl World {
    fn new() -> Self {
        let fleet = Fleet::on_loopback();
        let sshd = fleet.sshd("sshd");
        let diag = Service::echo(fleet.devices_place());
        let device = |id| fleet.link(fleet.device(id).sshd(&sshd).service("diag", &diag.target()));
        let devices = vec![device("pump-17"), device("pump-18")];
        let code = fleet
            .server
            .enrol_code(&["--operator", "ana", "--group", "admins"]);
        let ana = Operator::login("ana", fleet.devices_place(), fleet.directory(), &code);
        let directory = fleet.directory().join("stick");
        std::fs::create_dir(&directory).unwrap();
        std::fs::copy(ana.home().join("root.pem"), directory.join("next-root.pem")).unwrap();
        Self {
            fleet,
            ana,
            sshd,
            diag,
            devices,
            directory,
        }
    }

    /// Puts a configuration in the place of each device's, with what is different here.
    fn configure(&self, text: &str) {
        let lock = std::fs::read_to_string(self.directory.join("fleet.lock")).unwrap();
        let text = text
            .replace("tnllock1_...", lock.trim())
            .replace("tcp:127.0.0.1:22", &self.sshd.target())
            .replace("tcp:127.0.0.1:8080", &self.diag.target());
        for device in &self.devices {
            let old = std::fs::read_to_string(device.config()).unwrap();
            let (state, host_keys) = (old.lines().next().unwrap(), &old[old.find("[ssh]").unwrap()..]);
            std::fs::write(device.config(), format!("{state}\n{text}\n{host_keys}")).unwrap();
        }
    }

    /// Has the devices read their configuration again.
    fn reload(&self) {
        for device in &self.devices {
            device.process().signal(Signal::HUP);
            until("the configuration to be read", SOON, || {
                let said = device.process().said();
                said.contains("configuration read again").then_some(())
            });
        }
    }

    fn run(&self, who: &str, command: &str) -> Output {
        // The test's sshd lets a key of the test in, and this machine's settings are none of its business.
        let options = ssh_options(&self.sshd).join(" ");
        let command = ["pump-17", "pump-18"]
            .iter()
            .fold(command.to_owned(), |text, device| {
                let host = format!(" {options} {}@{device} -- ", user());
                text.replace(&format!(" {device} -- "), &host)
            });
        let mut shell: Command = self.ana.command("sh");
        shell.args(["-c", &command]).current_dir(&self.directory);
        match who {
            "ana" => {}
            "owner" => drop(shell.env("TUNNEL_HOME", self.directory.join("nobody"))),
            _ => drop(shell.env("TUNNEL_AGENT_CONFIG", self.devices[0].config())),
        }
        run(&mut shell, SOON)
    }
}

#[test]
fn the_page_about_the_fleet_lock_is_true() {
    needs!(NEEDS[0], NEEDS[1]);
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/fleet-lock.md");
    let steps = steps(&std::fs::read_to_string(page).unwrap());
    let world = World::new();
    let (mut refused, mut connected) = (0, 0);
    for step in &steps {
        let (who, command, code) = match step {
            Step::Configure(text) => {
                world.configure(text);
                continue;
            }
            Step::Run { who, command, code } => (who.as_str(), command.as_str(), code),
        };
        let output = world.run(who, command);
        let said = output.said();
        match code {
            None => assert_eq!(output.code, 0, "{who}: {command}\n{said}"),
            Some(code) => {
                assert_ne!(output.code, 0, "{who}: {command}\n{said}");
                assert!(said.contains(&format!("({code})")), "{who}: {command}\n{said}");
                refused += 1;
            }
        }
        if who.starts_with("pump") {
            world.reload();
        }
        if command.starts_with("tunnel ssh") && code.is_none() {
            connected += 1;
        }
        // Nothing that the owner does needs a login, or leaves one.
        assert!(!world.directory.join("nobody").exists());
    }
    assert_eq!((refused, connected), (3, 1), "the page shows both");
    // What the server has heard of it: who was refused and why, and no permit.
    let audit = serde_json::to_string(&world.fleet.admin.audit()).unwrap();
    for code in ["E_LOCK_REQUIRED", "E_LOCK_PERMIT", "E_LOCK_SCOPE"] {
        assert!(audit.contains(code), "{code}");
    }
    assert!(!audit.contains("permit"), "{audit}");
}
