//! A service that runs commands, with real programs: what is run, what is not, and what ends with whom.

#![allow(clippy::unwrap_used, reason = "tests may unwrap")]

mod common;

use std::path::Path;
use std::time::{Duration, Instant};

use common::server::{Device, Link, Server, Tunnel, soon};
use quinn::RecvStream;
use tunnel_net::stream;
use tunnel_proto::Code;
use tunnel_proto::batch::{Batch, CommandEnd, Ran};
use tunnel_proto::grant::Grant;
use tunnel_proto::message::{EndTunnel, FromAgent, FromServer, OpenSession, SessionAnswer};

/// What the device's owner lets operators run in most tests.
const ALLOW: &str = "allow = [\"/bin/sh *\", \"/bin/echo *\", \"/bin/cat *\"]";

struct World {
    server: Server,
    device: Device,
    link: Link,
}

impl World {
    async fn new(settings: &str) -> Self {
        let server = Server::start().await;
        let services = format!("[services.diag]\ntarget = \"exec:\"\n{settings}\n");
        let device = Device::start(&server, &services).await;
        let link = server.link().await;
        assert_eq!(link.hello.report.runs, ["diag".parse().unwrap()]);
        Self { server, device, link }
    }

    /// Opens a tunnel, which is for one batch only if that is given.
    async fn tunnel(&mut self, number: u8, bound: Option<&Batch>) -> (Tunnel, Grant) {
        let grant = Grant {
            batch: bound.map(Batch::hash),
            ..self.server.grant(&self.link, number, &["diag"])
        };
        (self.server.tunnel(&mut self.link, &grant).await, grant)
    }
}

fn batch(commands: &[&[&str]]) -> Batch {
    let words = |words: &&[&str]| words.iter().map(|word| (*word).to_owned()).collect();
    Batch::new(commands.iter().map(words).collect()).unwrap()
}

/// Asks for a batch; what comes of it can be read when it is not refused.
async fn ask(tunnel: &Tunnel, batch: &Batch) -> (Option<Code>, RecvStream) {
    let (mut send, mut recv) = soon("a stream", tunnel.connection.open_bi()).await.unwrap();
    let open = OpenSession {
        service: "diag".into(),
    };
    stream::write_message(&mut send, &open).await.unwrap();
    stream::write_message(&mut send, batch).await.unwrap();
    send.finish().unwrap();
    let answer = stream::read_message::<SessionAnswer>(&mut recv);
    let answer = soon("an answer", answer).await.unwrap();
    (answer.refused.map(|why| why.code), recv)
}

/// What a command wrote, and how it ended.
#[derive(Debug, Default)]
struct Said {
    stdout: Vec<u8>,
    stderr: Vec<u8>,
    end: CommandEnd,
}

impl Said {
    fn out(&self) -> String {
        String::from_utf8(self.stdout.clone()).unwrap()
    }

    fn why(&self) -> Option<Code> {
        self.end.why.as_ref().map(|why| why.code)
    }
}

/// Reads what comes of a batch to its end.
async fn read(mut recv: RecvStream) -> Vec<Said> {
    let (mut all, mut said): (Vec<Said>, _) = (Vec::new(), Said::default());
    while let Ok(ran) = soon("an output", stream::read_message::<Ran>(&mut recv)).await {
        assert_eq!(ran.command as usize, all.len(), "in the order of the batch");
        said.stdout.extend(ran.stdout.unwrap_or_default());
        said.stderr.extend(ran.stderr.unwrap_or_default());
        if let Some(end) = ran.end {
            said.end = end;
            all.push(std::mem::take(&mut said));
        }
    }
    assert!(said.stdout.is_empty() && said.stderr.is_empty());
    all
}

/// Reads the first line of the first command.
async fn first_line(recv: &mut RecvStream) -> String {
    let ran = soon("an output", stream::read_message::<Ran>(recv))
        .await
        .unwrap();
    String::from_utf8(ran.stdout.unwrap()).unwrap().trim().to_owned()
}

fn is_there(pid: &str) -> bool {
    // What has ended and was not yet waited for is not there any more.
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat
        .rsplit_once(')')
        .map(|(_, rest)| rest.trim_start().chars().next());
    matches!(state, Some(Some(state)) if !"ZX".contains(state))
}

async fn gone(pid: &str) {
    soon("the end of a process", async {
        while is_there(pid) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_batch_is_run_in_order_and_each_command_has_its_end() {
    let mut world = World::new(ALLOW).await;
    let (tunnel, _) = world.tunnel(1, None).await;
    let all = batch(&[
        &["/bin/echo", "one", "$HOME; *"],
        &["/bin/sh", "-c", "echo out; echo err >&2; exit 3"],
        &["/bin/sh", "-c", "kill -TERM $$"],
        &["/bin/echo", "last"],
    ]);
    let (refused, recv) = ask(&tunnel, &all).await;
    assert_eq!(refused, None);
    let said = read(recv).await;
    assert_eq!(said.len(), 4, "{said:?}");
    assert_eq!(said[0].out(), "one $HOME; *\n", "no shell reads it");
    assert!(said[0].end.is_good());
    assert_eq!(said[1].end.exit, Some(3));
    assert_eq!(
        (said[1].out().as_str(), &*said[1].stderr),
        ("out\n", &b"err\n"[..])
    );
    assert_eq!((said[2].end.exit, said[2].end.signal), (None, Some(15)));
    assert_eq!(
        said[3].out(),
        "last\n",
        "one that fails keeps none from being run"
    );
    match world.link.next().await {
        FromAgent::SessionEnded(ended) => {
            assert_eq!((ended.service.as_str(), ended.refused), ("diag", None));
            assert!(ended.bytes_in > 40 && ended.bytes_out > 40, "{ended:?}");
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn only_the_batch_that_the_grant_is_for_is_run() {
    let mut world = World::new(ALLOW).await;
    let file = tempfile::tempdir().unwrap();
    let file = file.path().join("made");
    let make = format!("echo x > {}", file.display());
    let approved = batch(&[&["/bin/echo", "approved"]]);
    let (tunnel, _) = world.tunnel(1, Some(&approved)).await;
    for other in [
        batch(&[&["/bin/sh", "-c", &make]]),
        batch(&[&["/bin/echo", "approved"], &["/bin/sh", "-c", &make]]),
        batch(&[&["/bin/echo", "approved", ""]]),
    ] {
        assert_eq!(ask(&tunnel, &other).await.0, Some(Code::BatchDenied));
    }
    assert!(!file.exists(), "nothing of it was run");
    for _ in 0..2 {
        let (refused, recv) = ask(&tunnel, &approved).await;
        assert_eq!(refused, None);
        assert_eq!(read(recv).await[0].out(), "approved\n");
    }
    let (tunnel, _) = world.tunnel(2, None).await;
    let (refused, recv) = ask(&tunnel, &batch(&[&["/bin/sh", "-c", &make]])).await;
    assert_eq!(refused, None);
    assert!(read(recv).await[0].end.is_good() && file.exists());
}

#[tokio::test]
async fn what_is_no_batch_or_not_listed_is_refused() {
    let mut world = World::new(ALLOW).await;
    let (tunnel, _) = world.tunnel(1, None).await;
    let unlisted = batch(&[&["/bin/echo", "x"], &["/bin/ls"]]);
    assert_eq!(ask(&tunnel, &unlisted).await.0, Some(Code::LocalPolicy));
    for bytes in [&b"\0\0\0\x01\xa0"[..], b"\xff\xff\xff\xff", b"\0\0\0\x05SSH-2"] {
        let (mut send, mut recv) = soon("a stream", tunnel.connection.open_bi()).await.unwrap();
        let open = OpenSession {
            service: "diag".into(),
        };
        stream::write_message(&mut send, &open).await.unwrap();
        send.write_all(bytes).await.unwrap();
        let answer = stream::read_message::<SessionAnswer>(&mut recv);
        let answer = soon("an answer", answer).await.unwrap();
        assert_eq!(answer.refused.map(|why| why.code), Some(Code::Protocol));
    }
    let absent = World::new("allow = [\"*\"]").await;
    let mut world = absent;
    let (tunnel, _) = world.tunnel(1, None).await;
    let (refused, recv) = ask(&tunnel, &batch(&[&["/nonexistent/x"], &["/bin/ls", "/"]])).await;
    assert_eq!(refused, None);
    let said = read(recv).await;
    assert_eq!(said[0].why(), Some(Code::CommandStart));
    assert!(said[1].end.is_good(), "{said:?}");
}

/// An owner who takes a command off the list while a batch runs is heard before its turn comes.
#[tokio::test]
async fn what_the_owner_lists_no_more_is_not_begun() {
    let mut world = World::new(ALLOW).await;
    let (tunnel, _) = world.tunnel(1, None).await;
    let file = tempfile::tempdir().unwrap();
    let go = file.path().join("go");
    let wait = format!("echo begun; while ! [ -e {} ]; do sleep 0.02; done", go.display());
    let all = batch(&[
        &["/bin/sh", "-c", &wait],
        &["/bin/echo", "listed no more"],
        &["/bin/sh", "-c", "echo last"],
    ]);
    let (refused, mut recv) = ask(&tunnel, &all).await;
    assert_eq!(refused, None);
    assert_eq!(first_line(&mut recv).await, "begun");
    let narrower = "[services.diag]\ntarget = \"exec:\"\nallow = [\"/bin/sh *\"]\n";
    world.device.reconfigure(narrower).await;
    while !matches!(world.link.next().await, FromAgent::Report(_)) {}
    std::fs::write(&go, "").unwrap();
    let said = read(recv).await;
    assert!(said[0].end.is_good(), "what runs goes on: {said:?}");
    assert_eq!(
        (said[1].why(), said[1].out().as_str()),
        (Some(Code::LocalPolicy), "")
    );
    assert_eq!(said[2].out(), "last\n");
}

#[tokio::test]
async fn without_a_list_nothing_is_run() {
    let mut world = World::new("").await;
    let (tunnel, _) = world.tunnel(1, None).await;
    let refused = ask(&tunnel, &batch(&[&["/bin/echo"]])).await.0;
    assert_eq!(refused, Some(Code::LocalPolicy));
}

/// THREATS AGT-20: a program that is listed alone gets no arguments, with which it could write what stands for a person's yes.
#[tokio::test]
async fn agt_20_a_listed_program_gets_the_listed_words_and_no_file_of_the_agent() {
    let mut world = World::new("allow = [\"/usr/bin/tee\", \"/usr/bin/touch -h\", \"/bin/echo *\"]").await;
    let (tunnel, grant) = world.tunnel(1, None).await;
    let yes = world
        .device
        .state
        .path()
        .join("site")
        .join(format!("{}.allow", grant.tunnel));
    let yes = yes.to_str().unwrap();
    for attack in [
        &["/usr/bin/tee", yes][..],
        &["/usr/bin/touch", yes],
        &["/usr/bin/touch", "-h", yes],
        &["/usr/bin/tee", "--", yes],
    ] {
        let refused = ask(&tunnel, &batch(&[&["/bin/echo", "x"], attack])).await.0;
        assert_eq!(refused, Some(Code::LocalPolicy), "{attack:?}");
    }
    let good = batch(&[&["/usr/bin/tee"], &["/bin/echo", yes]]);
    let (refused, recv) = ask(&tunnel, &good).await;
    assert_eq!(refused, None);
    let said = read(recv).await;
    assert!(said[0].end.is_good() && said[1].end.is_good(), "{said:?}");
    assert!(!Path::new(yes).exists(), "nobody has said yes");
}

/// THREATS AGT-19: a command gets nothing of the agent: no variable, no descriptor, no input, and not its directory.
#[tokio::test]
async fn a_command_finds_nothing_of_the_agent() {
    // What this test was started with is not the agent's.
    let before: Vec<_> = descriptors().collect();
    let mut world = World::new("allow = [\"*\"]").await;
    let (tunnel, _) = world.tunnel(1, None).await;
    assert!(descriptors().count() > before.len());
    let all = batch(&[
        &["/bin/cat", "/proc/self/environ"],
        &["/bin/sh", "-c", "pwd; cat"],
        &["/bin/ls", "-l", "/proc/self/fd"],
    ]);
    let (_, recv) = ask(&tunnel, &all).await;
    let said = read(recv).await;
    assert!(
        said[0].out().starts_with("PATH=") && said[0].out().matches('\0').count() == 1,
        "{said:?}"
    );
    assert_eq!(said[1].out(), "/\n", "{said:?}");
    let listed = said[2].out();
    let open = listed
        .lines()
        .filter_map(|line| line.split_once(" -> "))
        .map(|(_, target)| target);
    let foreign: Vec<_> = open
        .filter(|target| !before.iter().any(|before| before == target))
        .collect();
    assert!(
        matches!(foreign[..], [_, _, own] if own.contains("/fd")),
        "its outputs and its own: {foreign:?}"
    );
}

/// What this process has open.
fn descriptors() -> impl Iterator<Item = String> {
    let open = std::fs::read_dir("/proc/self/fd").unwrap();
    let targets = open.filter_map(|one| std::fs::read_link(one.ok()?.path()).ok());
    targets
        .map(|target| target.to_string_lossy().into_owned())
        .chain(["/dev/null".to_owned()])
}

#[tokio::test]
async fn a_command_ends_at_its_bounds() {
    let mut world = World::new(&format!("{ALLOW}\ntimeout_secs = 1\nmax_output_bytes = 100000")).await;
    let (tunnel, _) = world.tunnel(1, None).await;
    let start = Instant::now();
    let all = batch(&[
        &["/bin/sh", "-c", "echo begun; sleep 600"],
        &["/bin/cat", "/dev/zero"],
        &["/bin/sh", "-c", "head -c 100000 /dev/zero"],
        &[
            "/bin/sh",
            "-c",
            "head -c 60000 /dev/zero; head -c 40001 /dev/zero >&2",
        ],
    ]);
    let (_, recv) = ask(&tunnel, &all).await;
    let said = read(recv).await;
    assert_eq!(said[0].why(), Some(Code::CommandTimeout));
    assert_eq!((said[0].out().as_str(), said[0].end.signal), ("begun\n", Some(9)));
    assert!(start.elapsed() < Duration::from_secs(600));
    assert_eq!(
        (said[1].why(), said[1].stdout.len()),
        (Some(Code::CommandOutput), 100_000)
    );
    assert!(
        said[2].end.is_good() && said[2].stdout.len() == 100_000,
        "{:?}",
        said[2].end
    );
    assert_eq!(said[3].why(), Some(Code::CommandOutput), "both outputs together");
}

/// THREATS AGT-13: an operator who does not read keeps no command beyond its time, and holds up nobody else.
#[tokio::test]
async fn a_reader_that_stands_still_holds_no_command_beyond_its_time() {
    let mut world = World::new(&format!("{ALLOW}\ntimeout_secs = 1\nmax_output_bytes = 16777216")).await;
    let (tunnel, _) = world.tunnel(1, None).await;
    let (_, mut recv) = ask(
        &tunnel,
        &batch(&[&["/bin/sh", "-c", "echo $$; exec cat /dev/zero"]]),
    )
    .await;
    let command = first_line(&mut recv).await;
    gone(command.lines().next().unwrap()).await;
    let (_, other) = ask(&tunnel, &batch(&[&["/bin/echo", "other"]])).await;
    assert_eq!(read(other).await[0].out(), "other\n");
    // What was on its way is still read, up to an end that says why.
    let mut last = Ran::default();
    while let Ok(ran) = soon("an output", stream::read_message::<Ran>(&mut recv)).await {
        last = ran;
    }
    let why = last.end.and_then(|end| end.why).map(|why| why.code);
    assert!(
        matches!(why, Some(Code::CommandTimeout | Code::CommandOutput)),
        "{why:?}"
    );
}

/// THREATS AGT-13.
#[tokio::test]
async fn a_cut_ends_what_runs_with_its_children() {
    let mut world = World::new(ALLOW).await;
    let (tunnel, grant) = world.tunnel(1, None).await;
    let (_, mut recv) = ask(
        &tunnel,
        &batch(&[
            &["/bin/sh", "-c", "sleep 600 & echo $!; wait"],
            &["/bin/echo", "never"],
        ]),
    )
    .await;
    let child = first_line(&mut recv).await;
    assert!(is_there(&child) && Path::new("/proc").exists());
    let cut = EndTunnel {
        tunnel: grant.tunnel,
        reason: Code::Cut.into(),
    };
    world.link.say(FromServer::EndTunnel(cut)).await;
    gone(&child).await;
    assert!(stream::read_message::<Ran>(&mut recv).await.is_err());

    // An operator who wants no more, or is gone.
    for leave in [true, false] {
        let (tunnel, _) = world.tunnel(if leave { 2 } else { 3 }, None).await;
        let (_, mut recv) = ask(&tunnel, &batch(&[&["/bin/sh", "-c", "echo $$; sleep 600"]])).await;
        let child = first_line(&mut recv).await;
        assert!(is_there(&child));
        if leave {
            recv.stop(0u32.into()).unwrap();
        } else {
            tunnel.connection.close(0u32.into(), b"");
        }
        gone(&child).await;
    }
}

#[tokio::test]
async fn what_a_command_leaves_behind_ends_with_it() {
    let mut world = World::new(ALLOW).await;
    let (tunnel, _) = world.tunnel(1, None).await;
    let (_, recv) = ask(
        &tunnel,
        &batch(&[&["/bin/sh", "-c", "sleep 600 & echo $!"], &["/bin/echo", "next"]]),
    )
    .await;
    let said = read(recv).await;
    assert!(said[0].end.is_good() && said[1].out() == "next\n", "{said:?}");
    gone(said[0].out().trim()).await;
}
