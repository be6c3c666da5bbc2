//! Batches of commands with the real programs: approved, run on several devices, held to what was approved, and ended.

use std::path::PathBuf;

use serde_json::Value;
use tunnel_cli::home::Home;
use tunnel_cli::output::Output;
use tunnel_cli::tunnel::commands::Running;
use tunnel_cli::tunnel::session::SessionError;
use tunnel_cli::tunnel::{Ask, Tunnel, Wish};
use tunnel_e2e::process::Process;
use tunnel_e2e::service::Service;
use tunnel_e2e::wait::{SOON, until};
use tunnel_e2e::{Agent, Fleet, Operator};
use tunnel_proto::Code;
use tunnel_proto::batch::Batch;

/// Technicians connect once somebody agrees, and leads agree; to what runs commands for a batch alone.
const POLICY: &str = r#"
@id("admins") permit (principal in OperatorGroup::"admins", action, resource);
@id("view") permit (principal, action == Action::"view", resource);
@id("asks") @requires_approval
permit (principal in OperatorGroup::"technicians", action == Action::"connect", resource)
when { resource.name != "diag" || context.batch };
@id("approve") permit (principal in OperatorGroup::"leads", action == Action::"approve", resource)
when { resource.name == "diag" && context.batch };
"#;

/// What devices let operators run.
const ALLOW: &str =
    "allow = [\"/bin/sh *\", \"/bin/echo *\", \"/bin/cat *\"]\ntimeout_secs = 2\nmax_output_bytes = 100000";

struct World {
    fleet: Fleet,
    ana: Operator,
    lea: Operator,
    _agents: Vec<Agent>,
    _echo: Service,
}

impl World {
    fn new(devices: &[&str]) -> Self {
        Self::allowing(ALLOW, devices)
    }

    fn allowing(settings: &str, devices: &[&str]) -> Self {
        let fleet = Fleet::on_loopback();
        let echo = Service::echo(fleet.devices_place());
        let agents = devices
            .iter()
            .map(|device| {
                let builder = fleet.device(device).service_with("diag", "exec:", settings);
                fleet.link(builder.service("echo", &echo.target()))
            })
            .collect();
        let policy = fleet.directory().join("commands.cedar");
        std::fs::write(&policy, POLICY).unwrap();
        fleet
            .admin
            .tunnel(&["policy", "apply", policy.to_str().unwrap()])
            .ok();
        let code = fleet
            .server
            .enrol_code(&["--operator", "lea", "--group", "leads"]);
        let lea = Operator::login("lea", fleet.devices_place(), fleet.directory(), &code);
        Self {
            ana: fleet.technician("ana"),
            lea,
            fleet,
            _agents: agents,
            _echo: echo,
        }
    }

    fn file(&self, name: &str, text: &str) -> String {
        let file: PathBuf = self.fleet.directory().join(name);
        std::fs::write(&file, text).unwrap();
        file.to_str().unwrap().to_owned()
    }

    /// Has ana ask for the commands of a file, and lea agree; the approval.
    fn approved(&self, devices: &str, file: &str) -> Value {
        let asked = self.ana.json(&[
            "request",
            devices,
            "diag",
            "--commands",
            file,
            "--reason",
            "INC-7",
        ]);
        self.lea.json(&["approve", asked["id"].as_str().unwrap()])
    }

    fn refusal(&self, words: &[&str]) -> (i32, String) {
        let refusal = self.ana.refusal(words);
        (refusal.exit, refusal.code)
    }
}

fn objects(text: &str) -> Vec<Value> {
    let lines = text.lines();
    lines.map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn an_approved_batch_is_run_where_it_was_approved_and_no_other_is() {
    let world = World::new(&["pump-17", "pump-18"]);
    let (ana, lea) = (&world.ana, &world.lea);
    let file = world.file(
        "look",
        "# look\n/bin/echo 'a b' \"\u{202e}c\"\n\n[\"/bin/cat\", \"/etc/hostname\"]\n",
    );
    let needs_approval = (6, "E_APPROVAL_REQUIRED".to_owned());
    let run = ["run", "pump-17", "--commands", &file];
    assert_eq!(world.refusal(&run), needs_approval);

    // Who decides sees what is to be run, harmless, and its hash.
    let asked = ana.json(&[
        "request",
        "pump-17",
        "diag",
        "--commands",
        &file,
        "--reason",
        "INC-7",
    ]);
    let (id, batch) = (asked["id"].as_str().unwrap(), asked["batch"].as_str().unwrap());
    let shown = lea.tunnel(&["approvals", id]).ok();
    assert!(
        shown.contains("\n  /bin/cat /etc/hostname\n") && shown.contains(batch),
        "{shown}"
    );
    assert!(shown.contains("[\"/bin/echo\",\"a b\",\"\\u202ec\"]"), "{shown}");
    assert!(lea.tunnel(&["approvals"]).ok().contains("diag, 2 commands"));
    assert_eq!(lea.json(&["approvals", id])["commands"][1][0], "/bin/cat");
    lea.tunnel(&["approve", id]).ok();

    let done = ana.tunnel(&run);
    assert!(done.text().starts_with("a b "), "{}", done.said());
    done.ok();
    // It is for nothing else: no other batch, device, or service, and not the service without a batch.
    let more = world.file(
        "more",
        "/bin/echo 'a b' \"\u{202e}c\"\n/bin/cat /etc/hostname\n/bin/echo more\n",
    );
    for words in [
        &["run", "pump-17", "--commands", &more][..],
        &["run", "pump-17", "--", "/bin/echo", "a b"],
        &["run", "pump-18", "--commands", &file],
        &["connect", "pump-17", "echo"],
    ] {
        assert_eq!(world.refusal(words), needs_approval, "{words:?}");
    }
    for words in [
        &["connect", "pump-17", "diag", "--reason", "x"],
        &["request", "pump-17", "diag", "--reason", "x"],
    ] {
        let policy_says_no = (3, "E_POLICY_DENY".to_owned());
        assert_eq!(world.refusal(words), policy_says_no, "{words:?}");
    }

    // The trail has the list, its hash, and what each tunnel and session was for.
    let trail = world.fleet.admin.audit();
    let body = |kind: &str| {
        let record = trail.iter().find(|record| record["kind"] == kind).unwrap();
        let body = &record["body"];
        body.as_str()
            .map_or_else(|| body.clone(), |text| serde_json::from_str(text).unwrap())
    };
    let requested = body("approval.requested");
    assert_eq!(
        (&requested["batch"], &requested["commands"][1][0]),
        (&asked["batch"], &"/bin/cat".into())
    );
    assert_eq!(body("tunnel.opened")["batch"], asked["batch"]);
    let session = &world.fleet.admin.json(&["sessions"])[0];
    assert_eq!(session["opening"]["batch"], asked["batch"], "{session}");
    let tunnels = world.fleet.admin.json(&["tunnels", "--all"]);
    assert_eq!(tunnels[0]["batch"], asked["batch"], "{tunnels}");
}

#[test]
fn a_client_that_has_the_tunnel_and_runs_something_else_is_refused_by_the_device() {
    let world = World::new(&["pump-17"]);
    let file = world.file("look", "/bin/echo approved\n");
    world.approved("pump-17", &file);
    let made = world.fleet.directory().join("made");
    let batch =
        |words: &[&str]| Batch::new(vec![words.iter().map(|&word| word.to_owned()).collect()]).unwrap();
    let approved = batch(&["/bin/echo", "approved"]);
    let other = batch(&["/bin/sh", "-c", &format!("echo x > {}", made.display())]);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let login = Home::find(Some(&world.ana.home())).unwrap().login().unwrap();
        let wish = Wish {
            device: "pump-17".parse().unwrap(),
            services: vec!["diag".parse().unwrap()],
            ask: Ask {
                batch: Some(approved.hash()),
                ..Ask::default()
            },
        };
        let tunnel = Tunnel::open(&login, &wish, Output { json: true }, |_| Ok(()))
            .await
            .unwrap();
        let run = async |batch: &Batch| {
            let mut wrote = Vec::new();
            let mut running = Running::start(tunnel.connection(), &wish.services[0], batch, || {}).await?;
            while let Some(ran) = running.next().await? {
                wrote.extend(ran.stdout.unwrap_or_default());
            }
            Ok::<_, SessionError>(wrote)
        };
        match run(&other).await {
            Err(SessionError::Refused(refusal)) => assert_eq!(refusal.code, Code::BatchDenied),
            ran => panic!("{ran:?}"),
        }
        assert_eq!(run(&approved).await.unwrap(), b"approved\n");
        tunnel.close().await;
    });
    assert!(!made.exists(), "nothing of it was run");
    let refused = until("the record of the refusal", SOON, || {
        let sessions = world.fleet.admin.json(&["sessions"]);
        let refused = sessions
            .as_array()?
            .iter()
            .find(|session| !session["refused"].is_null());
        refused.cloned()
    });
    assert_eq!(refused["refused"], "E_BATCH_DENIED");
}

#[test]
fn what_runs_ends_when_the_approval_is_taken_back() {
    // Its own time would not end it: that is longer than the test waits.
    let world = World::allowing("allow = [\"/bin/sh *\"]\ntimeout_secs = 3600", &["pump-17"]);
    let file = world.file("wait", "/bin/sh -c 'sleep 6137 & echo $!; wait'\n");
    let approval = world.approved("pump-17", &file);
    let mut run = world.ana.cli(&["--json", "run", "pump-17", "--commands", &file]);
    let mut run = Process::start("run", &mut run, world.fleet.directory());
    let sleeps = || {
        let sleeps = |(pid, words): (u32, Vec<String>)| (words == ["sleep", "6137"]).then_some(pid);
        tunnel_e2e::process::all()
            .into_iter()
            .filter_map(sleeps)
            .collect::<Vec<_>>()
    };
    let sleeping = until("the command to sleep", SOON, || sleeps().first().copied());
    world
        .lea
        .tunnel(&["withdraw", approval["id"].as_str().unwrap()])
        .ok();
    assert_eq!(run.wait(SOON), 3, "{}", run.said());
    assert!(run.said().contains("E_APPROVAL_WITHDRAWN"), "{}", run.said());
    until("the end of the command", SOON, || {
        (!sleeps().contains(&sleeping)).then_some(())
    });
}

#[test]
fn each_command_has_its_end_and_the_exit_code_tells_the_cause() {
    let world = World::new(&["pump-17", "pump-18"]);
    let admin = &world.fleet.admin;
    let both = admin.tunnel(&[
        "run",
        "pump-18,pump-17",
        "--",
        "/bin/sh",
        "-c",
        "echo one; echo two >&2",
    ]);
    assert_eq!(both.code, 0, "{}", both.said());
    assert!(both.text().contains("pump-17: one\n") && both.text().contains("pump-18: one\n"));
    assert!(both.stderr.contains("pump-17: two\n"), "{}", both.stderr);

    let file = world.file(
        "mixed",
        "/bin/echo fine\n/bin/sh -c 'exit 3'\n/bin/cat /dev/zero\n/bin/sh -c \"printf '\\\\377'\"\n/bin/sh -c 'sleep 600'\n",
    );
    let mixed = admin.tunnel(&["--json", "run", "pump-17,pump-18,pump-19", "--commands", &file]);
    assert_eq!(mixed.code, 1, "{}", mixed.said());
    let objects = objects(&mixed.text());
    for device in ["pump-17", "pump-18"] {
        let of: Vec<_> = objects.iter().filter(|one| one["device"] == device).collect();
        assert_eq!(of.len(), 5, "{objects:?}");
        assert_eq!((&of[0]["exit"], &of[0]["stdout"]), (&0.into(), &"fine\n".into()));
        assert_eq!((&of[1]["exit"], &of[1]["code"]), (&3.into(), &Value::Null));
        assert_eq!(of[2]["code"], "E_COMMAND_OUTPUT");
        assert_eq!(of[3]["stdout"]["base64"], "/w==");
        assert_eq!(of[4]["code"], "E_COMMAND_TIMEOUT");
    }
    let absent: Vec<_> = objects.iter().filter(|one| one["device"] == "pump-19").collect();
    assert!(
        absent.len() == 1 && absent[0]["error"]["code"] == "E_NOT_FOUND",
        "{absent:?}"
    );

    for (words, exit, code) in [
        (&["run", "pump-17", "--", "/bin/ls"][..], 3, "E_LOCAL_POLICY"),
        (&["run", "pump-17", "--", "ls"], 2, "E_BAD_REQUEST"),
        (
            &["run", "pump-17", "--service", "echo", "--", "/bin/echo"],
            3,
            "E_BATCH_DENIED",
        ),
        (
            &["run", "pump-17", "--", "/bin/sh", "-c", "exit 7"],
            1,
            "E_COMMAND_FAILED",
        ),
        (
            &["run", "pump-17", "--", "/bin/sh", "-c", "sleep 600"],
            5,
            "E_COMMAND_TIMEOUT",
        ),
        (
            &["connect", "pump-17", "diag", "--reason", "no batch"],
            70,
            "E_PROTOCOL",
        ),
    ] {
        let refusal = admin.tunnel_with(&[&["--json"], words].concat(), b"SSH-2.0-x\r\n");
        let refusal = tunnel_e2e::operator::Refusal::of(&refusal);
        assert_eq!(
            (refusal.exit, refusal.code.as_str()),
            (exit, code),
            "{words:?} {}",
            refusal.text
        );
    }
}
