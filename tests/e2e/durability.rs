//! What was answered is there after any end of the server (THREATS SRV-01, I7).

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::json;
use tunnel_e2e::api::Api;
use tunnel_e2e::operator::{Forward, Interactive};
use tunnel_e2e::service::Service;
use tunnel_e2e::{Fleet, Operator};

/// How long the server works between two kills.
const BETWEEN: [u64; 3] = [150, 400, 900];

#[test]
fn kill_9_loses_nothing_that_was_answered() {
    let mut fleet = Fleet::on_loopback();
    let api = Api::of(fleet.server.address(), &fleet.admin.home());
    let codes = Mutex::new(Vec::new());
    for millis in BETWEEN {
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| make_codes(&api, &stop, &codes));
            }
            let before = codes.lock().unwrap().len();
            tunnel_e2e::until("codes to be made", Duration::from_secs(20), || {
                (codes.lock().unwrap().len() > before + 5).then_some(())
            });
            // The instant of the kill is the input of this test, so it is by the clock.
            std::thread::sleep(Duration::from_millis(millis));
            fleet.server.kill();
            stop.store(true, Ordering::Relaxed);
        });
        fleet.server.restart();
        fleet.admin.tunnel(&["audit", "verify"]).ok();
    }

    let codes = codes.into_inner().unwrap();
    let recorded = audit_kinds(&fleet.admin)
        .iter()
        .filter(|kind| *kind == "enrol.code_made")
        .count();
    assert!(
        recorded >= codes.len(),
        "{} codes were answered, {recorded} are in the audit trail",
        codes.len()
    );
    // And each of them is good: the first, the last, and some between.
    for (number, code) in codes
        .iter()
        .enumerate()
        .filter(|(number, _)| number % (codes.len() / 8 + 1) == 0)
    {
        Operator::login(
            &format!("made-{number}"),
            fleet.devices_place(),
            fleet.directory(),
            code,
        );
    }
    Operator::login(
        "made-last",
        fleet.devices_place(),
        fleet.directory(),
        codes.last().unwrap(),
    );
}

fn make_codes(api: &Api, stop: &AtomicBool, codes: &Mutex<Vec<String>>) {
    let body = json!({ "kind": "operator", "group": "technicians", "uses": 1 });
    while !stop.load(Ordering::Relaxed) {
        // The one that the kill interrupts has no answer, and promises nothing.
        let Ok(answer) = api.request("POST", "/v1/enrol-codes", Some(&body)) else {
            continue;
        };
        if let Some(code) = answer.body["code"].as_str() {
            codes.lock().unwrap().push(code.to_owned());
        }
    }
}

/// THREATS TOK-01 over a crash.
#[test]
fn a_redeemed_token_stays_redeemed() {
    let mut fleet = Fleet::on_loopback();
    let echo = Service::echo(fleet.devices_place());
    let _agent = fleet.link(fleet.device("pump-17").service("echo", &echo.target()));
    let api = Api::of(fleet.server.address(), &fleet.admin.home());

    let wish = json!({ "device": "pump-17", "services": ["echo"] });
    let opened = api.request("POST", "/v1/tunnels", Some(&wish)).unwrap();
    assert_eq!(opened.status / 100, 2, "{opened:?}");
    let id = opened.body["tunnel"].as_str().unwrap();
    let (path, token) = (
        format!("/v1/tunnels/{id}/attach"),
        json!({ "token": opened.body["token"] }),
    );
    let attached = api.request("POST", &path, Some(&token)).unwrap();
    assert_eq!(attached.status / 100, 2, "{attached:?}");

    let again = api.request("POST", &path, Some(&token)).unwrap();
    assert_eq!(again.body["code"], "E_TOKEN_REPLAY", "{again:?}");
    fleet.server.kill();
    fleet.server.restart();
    let again = api.request("POST", &path, Some(&token)).unwrap();
    assert_eq!(again.body["code"], "E_TOKEN_REPLAY", "{again:?}");
}

/// THREATS I6 over a crash, ENR-01 over a crash.
#[test]
fn what_was_revoked_and_used_up_stays_so() {
    let mut fleet = Fleet::on_loopback();
    let code = fleet
        .server
        .enrol_code(&["--operator", "ana", "--group", "technicians"]);
    let ana = Operator::login("ana", fleet.devices_place(), fleet.directory(), &code);
    fleet
        .admin
        .tunnel(&["revoke", "spiffe://fleet.test/operator/ana"])
        .ok();
    fleet.server.kill();
    fleet.server.restart();
    assert_eq!(ana.refusal(&["status"]).exit, 3);
    let mut login = fleet.admin.cli(&["login", &code]);
    login.env("TUNNEL_HOME", fleet.directory().join("again"));
    let output = tunnel_e2e::process::run(&mut login, Duration::from_secs(30));
    assert_eq!(output.code, 3, "{}", output.said());
}

#[test]
fn agents_come_back_to_a_restarted_server_by_themselves() {
    let mut fleet = Fleet::on_loopback();
    let echo = Service::echo(fleet.devices_place());
    let _agent = fleet.link(fleet.device("pump-17").service("echo", &echo.target()));
    fleet.server.kill();
    fleet.server.restart();
    tunnel_e2e::until(
        "a tunnel after the server's restart",
        Duration::from_secs(60),
        || {
            let output = fleet.admin.tunnel_with(&["connect", "pump-17", "echo"], b"hello");
            (output.text() == "hello").then_some(())
        },
    );
}

/// The end-to-end connection knows nothing of the relay's process: it waits, and goes on with the next one.
#[test]
fn a_live_session_outlives_kill_9_of_the_server() {
    let mut fleet = Fleet::on_loopback();
    let echo = Service::echo(fleet.devices_place());
    let _agent = fleet.link(fleet.device("pump-17").service("echo", &echo.target()));
    let errors = fleet.directory().join("connect.stderr");
    let mut session = Interactive::start(&mut fleet.admin.cli(&["connect", "pump-17", "echo"]), &errors);
    for number in 0..3 {
        let line = format!("line {number}\n");
        session.stdin().unwrap().write_all(line.as_bytes()).unwrap();
        assert_eq!(
            session.line(),
            line,
            "{}",
            std::fs::read_to_string(&errors).unwrap()
        );
        fleet.server.kill();
        fleet.server.restart();
    }
    session.close_stdin();
    assert_eq!(session.wait(Duration::from_secs(20)), Some(0));
    assert_eq!(echo.count(), 1);
}

/// Sessions on one tunnel, each of which sends another number of bytes.
struct Numbered {
    forward: Forward,
    open: VecDeque<TcpStream>,
    next: u64,
}

impl Numbered {
    fn new(operator: &Operator) -> Self {
        Self {
            forward: operator.forward("pump-17", "echo"),
            open: VecDeque::new(),
            next: 1,
        }
    }

    /// Goes on where these are over, on another tunnel.
    fn after(self, operator: &Operator) -> Self {
        let next = self.next;
        drop(self);
        Self {
            next,
            ..Self::new(operator)
        }
    }

    fn begin(&mut self, count: usize) {
        for _ in 0..count {
            let mut stream = TcpStream::connect(self.forward.address()).unwrap();
            stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
            let mut bytes = vec![b'x'; usize::try_from(self.next).unwrap()];
            stream.write_all(&bytes).unwrap();
            stream.read_exact(&mut bytes).unwrap();
            self.open.push_back(stream);
            self.next += 1;
        }
    }
}

/// The bytes by which the recorded sessions are told apart, and what ended each.
fn recorded(operator: &Operator) -> Vec<(u64, String)> {
    let sessions = operator.json(&["sessions", "--limit", "500"]);
    let of = |session: &serde_json::Value| {
        assert!(session["dropped"].is_null(), "{session}");
        let ended_by = session["ended_by"].as_str().unwrap_or_default();
        (session["bytes_in"].as_u64().unwrap(), ended_by.to_owned())
    };
    let mut recorded: Vec<_> = sessions.as_array().unwrap().iter().map(of).collect();
    recorded.sort_unstable();
    recorded
}

/// Waits until each of so many sessions has one record, and none has two.
#[track_caller]
fn wait_for_records(operator: &Operator, count: u64) -> Vec<(u64, String)> {
    tunnel_e2e::until_ok(
        "each session to be recorded once",
        Duration::from_secs(60),
        || {
            let recorded = recorded(operator);
            let bytes: Vec<_> = recorded.iter().map(|(bytes, _)| *bytes).collect();
            if bytes == (1..=count).collect::<Vec<_>>() {
                Ok(recorded)
            } else {
                Err(format!("{bytes:?}"))
            }
        },
    )
}

/// THREATS I9, SRV-01: a device tells of a session until its record is on the disk.
#[test]
fn sessions_that_end_while_the_server_is_down_are_recorded_once() {
    let mut fleet = Fleet::on_loopback();
    let echo = Service::echo(fleet.devices_place());
    let agent = fleet.link(fleet.device("pump-17").service("echo", &echo.target()));
    let mut sessions = Numbered::new(&fleet.admin);
    sessions.begin(20);
    fleet.server.kill();
    // The owner lets nobody in any more, while nobody hears of it.
    agent.run("access", &["off"]).ok();
    tunnel_e2e::until("the tunnel to end", Duration::from_secs(20), || {
        agent.process().said().contains("tunnel ended").then_some(())
    });
    fleet.server.restart();
    for (_, ended_by) in wait_for_records(&fleet.admin, 20) {
        assert_eq!(ended_by, "tunnel");
    }
    // The next link tells nothing once more.
    fleet.server.kill();
    fleet.server.restart();
    fleet.admin.wait_for_link("pump-17");
    wait_for_records(&fleet.admin, 20);
    // Nor later: what would have been told is told by now.
    agent.run("access", &["on"]).ok();
    let mut last = sessions.after(&fleet.admin);
    last.begin(1);
    drop(last);
    wait_for_records(&fleet.admin, 21);
    fleet.admin.tunnel(&["audit", "verify"]).ok();
}

/// THREATS I9, SRV-01, over kills at any moment between the end of a session, its record, and the answer.
#[test]
fn sessions_that_end_as_the_server_is_killed_are_recorded_once() {
    const EACH: usize = 40;
    let mut fleet = Fleet::on_loopback();
    let echo = Service::echo(fleet.devices_place());
    let _agent = fleet.link(fleet.device("pump-17").service("echo", &echo.target()));
    let mut sessions = Numbered::new(&fleet.admin);
    for millis in &BETWEEN[..2] {
        sessions.begin(EACH);
        std::thread::scope(|scope| {
            let open = &mut sessions.open;
            scope.spawn(move || {
                for stream in open.drain(..) {
                    drop(stream);
                    // The ends are spread over the moments around the kill, which are the input of this test.
                    std::thread::sleep(Duration::from_millis(millis / 10));
                }
            });
            std::thread::sleep(Duration::from_millis(*millis));
            fleet.server.kill();
        });
        fleet.server.restart();
    }
    let count = sessions.next - 1;
    wait_for_records(&fleet.admin, count);
    assert_eq!(echo.count(), count);
    fleet.admin.tunnel(&["audit", "verify"]).ok();
}

#[test]
fn an_ordered_stop_says_goodbye_in_time() {
    let mut fleet = Fleet::on_loopback();
    let echo = Service::echo(fleet.devices_place());
    let _agent = fleet.link(fleet.device("pump-17").service("echo", &echo.target()));
    assert_eq!(fleet.server.stop(), 0);
    fleet.server.restart();
    fleet.admin.tunnel(&["audit", "verify"]).ok();
}

fn audit_kinds(operator: &Operator) -> Vec<String> {
    operator
        .audit()
        .iter()
        .filter_map(|record| Some(record["kind"].as_str()?.to_owned()))
        .collect()
}

/// Who asks while the server restarts is not refused.
#[test]
fn a_tunnel_is_asked_for_again_while_the_server_restarts() {
    let mut fleet = Fleet::on_loopback();
    let echo = Service::echo(fleet.devices_place());
    let mut agent = fleet.link(fleet.device("pump-17").like_sshd(&echo.target()));
    fleet.server.kill();
    let errors = fleet.directory().join("asks.stderr");
    let mut connect = fleet.admin.cli(&["connect", "pump-17", "ssh"]);
    let mut session = Interactive::start(&mut connect, &errors);
    tunnel_e2e::until("it to say that nobody answers", Duration::from_secs(20), || {
        std::fs::read_to_string(&errors)
            .is_ok_and(|said| said.contains("asked again"))
            .then_some(())
    });
    fleet.server.restart();
    // Otherwise it finds out with its next keepalive.
    agent.stop();
    agent.start();
    session.stdin().unwrap().write_all(b"hello\n").unwrap();
    assert_eq!(
        session.line().trim(),
        "hello",
        "{:?}",
        std::fs::read_to_string(&errors)
    );
}
