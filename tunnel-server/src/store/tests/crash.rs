//! Crashes: what was answered is there, what was not is there wholly or not at all (THREATS SRV-01, I7).

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use tunnel_proto::audit::{Head, verify};
use tunnel_proto::bind::Role;

use super::*;

/// What a child process of [`killed_at_any_moment_nothing_that_was_answered_is_lost`] reads its store's path from.
const CHILD: &str = "TUNNEL_TEST_CRASH_STORE";

fn numbered(number: u64) -> NewTunnel {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&number.to_be_bytes());
    NewTunnel {
        id: TunnelId::from_bytes(bytes),
        circuit: CircuitId::from_bytes(bytes),
        ..tunnel(0)
    }
}

/// Opens a tunnel and redeems its token, and returns only when both were answered.
async fn open_and_redeem(store: &Store, number: u64) {
    let new = numbered(number);
    let id = new.id;
    store
        .open_tunnel(new, Basis::default(), NOW)
        .await
        .unwrap()
        .unwrap();
    let token = TokenId::from_bytes(*id.as_bytes());
    assert_eq!(
        store.redeem(token, id, Role::Source, NOW).await.unwrap(),
        Redeemed::First
    );
}

/// Checks a store after a crash: the chain is whole, each tunnel has its record and the other way round, and of the
/// tunnels that were answered for none is missing and no token can be redeemed again.
async fn check(path: &Path, answered: impl Iterator<Item = u64>) {
    let store = Store::open(path, &fleet()).await.unwrap();
    let mut head = Head::START;
    let (mut opened, mut attached) = (0, 0);
    loop {
        let records = store.audit(head.seq, 1000).await.unwrap();
        if records.is_empty() {
            break;
        }
        head = verify(head, &records).unwrap();
        opened += records
            .iter()
            .filter(|record| record.kind == "tunnel.opened")
            .count();
        attached += records
            .iter()
            .filter(|record| record.kind == "tunnel.attached")
            .count();
    }
    let tunnels = store.live_tunnels().await.unwrap();
    assert_eq!(
        tunnels.len(),
        opened,
        "each tunnel has its record, and each record its tunnel"
    );
    assert!(attached <= opened);
    for number in answered {
        let id = numbered(number).id;
        assert!(
            tunnels.iter().any(|tunnel| tunnel.decided.id == id),
            "tunnel {number} was answered and is lost"
        );
        let again = store
            .redeem(TokenId::from_bytes(*id.as_bytes()), id, Role::Source, NOW)
            .await
            .unwrap();
        assert_eq!(
            again,
            Redeemed::Again,
            "the token of tunnel {number} can be redeemed twice"
        );
    }
    // It works on.
    open_and_redeem(&store, u64::MAX).await;
    store.close().await;
}

/// The writer is gone in the middle of a batch: the connection closes as it stands.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_writer_that_vanishes_in_a_batch_leaves_only_whole_operations() {
    for round in 0..20 {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("store.db");
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        let answered = Arc::new(std::sync::Mutex::new(Vec::new()));
        let (here, path_there) = (Arc::clone(&answered), path.clone());
        let store = runtime.spawn(async move {
            let store = Store::open(&path_there, &fleet()).await.unwrap();
            store
                .set_policy("// one".into(), None, "test".into(), NOW)
                .await
                .unwrap()
                .unwrap();
            store
        });
        let store = store.await.unwrap();
        for number in 0..200 {
            let (store, answered) = (store.clone(), Arc::clone(&here));
            runtime.spawn(async move {
                open_and_redeem(&store, number).await;
                answered.lock().unwrap().push(number);
            });
        }
        // Lets the writer come a different way in each round.
        while here.lock().unwrap().len() < round * 5 {
            tokio::task::yield_now().await;
        }
        // All tasks are dropped where they stand, the writer's too.
        runtime.shutdown_background();
        drop(store);
        let answered = answered.lock().unwrap().clone();
        check(&path, answered.into_iter()).await;
    }
}

/// The files are copied as a power cut would leave them, at random moments while others write.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_image_of_any_moment_has_all_that_was_answered_before() {
    let fixture = Fixture::with_policy().await;
    let path = fixture.directory.path().join("store.db");
    let answered = Arc::new(AtomicU64::new(0));
    // Somebody who reads keeps the log from being wound back, so that a copy of the database and a later copy of the log
    // fit together as the two files on a disk do.
    let mut reader = fixture.inner.readers.begin().await.unwrap();
    sqlx::query("SELECT count(*) FROM audit")
        .execute(&mut *reader)
        .await
        .unwrap();
    let (store, counter) = (fixture.store.clone(), Arc::clone(&answered));
    let mut writer = tokio::task::JoinSet::new();
    writer.spawn(async move {
        for number in 0..400 {
            open_and_redeem(&store, number).await;
            counter.store(number + 1, Ordering::SeqCst);
        }
    });
    let seed = fastrand::u64(..);
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut images = Vec::new();
    let mut next = 0;
    while answered.load(Ordering::SeqCst) < 400 {
        if answered.load(Ordering::SeqCst) < next {
            tokio::task::yield_now().await;
            continue;
        }
        next = answered.load(Ordering::SeqCst) + rng.u64(..20);
        let image = tempfile::tempdir().unwrap();
        let known = answered.load(Ordering::SeqCst);
        std::fs::copy(&path, image.path().join("store.db")).unwrap();
        let mut log = std::fs::read(fixture.directory.path().join("store.db-wal")).unwrap();
        // A write that was under way may be torn.
        if rng.bool() {
            let torn = rng.usize(..5000);
            log.extend(std::iter::repeat_with(|| rng.u8(..)).take(torn));
        }
        std::fs::write(image.path().join("store.db-wal"), log).unwrap();
        images.push((image, known));
    }
    writer.join_all().await;
    drop(reader);
    assert!(images.len() > 5, "{} images were taken", images.len());
    for (image, known) in images {
        check(&image.path().join("store.db"), 0..known).await;
    }
}

/// A real process is killed. It tells what it was answered on its standard output.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_at_any_moment_nothing_that_was_answered_is_lost() {
    let seed = fastrand::u64(..);
    let mut rng = fastrand::Rng::with_seed(seed);
    for round in 0..10 {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("store.db");
        let store = Store::open(&path, &fleet()).await.unwrap();
        store
            .set_policy("// one".into(), None, "test".into(), NOW)
            .await
            .unwrap()
            .unwrap();
        store.close().await;
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "store::tests::crash::child_that_writes",
                "--nocapture",
                "--test-threads=1",
            ])
            .env(CHILD, &path)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let enough = rng.usize(1..60);
        let mut answered: Vec<u64> = lines
            .by_ref()
            .map_while(Result::ok)
            .filter_map(number)
            .take(enough)
            .collect();
        child.kill().unwrap();
        // What it said before it died counts too; the last line may be torn.
        answered.extend(lines.map_while(Result::ok).filter_map(number));
        child.wait().unwrap();
        assert!(
            answered.len() >= enough,
            "seed {seed}, round {round}: the child said too little"
        );
        check(&path, answered.into_iter()).await;
    }
}

fn number(line: String) -> Option<u64> {
    line.trim()
        .strip_prefix("answered ")?
        .strip_suffix('.')?
        .parse()
        .ok()
}

/// The process that is killed; without its variable it does nothing.
#[test]
fn child_that_writes() {
    use std::io::Write as _;
    let Some(path) = std::env::var_os(CHILD) else {
        return;
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let store = Store::open(Path::new(&path), &fleet()).await.unwrap();
        let mut tasks = tokio::task::JoinSet::new();
        for lane in 0..8_u64 {
            let store = store.clone();
            tasks.spawn(async move {
                for turn in 0..2000 {
                    let number = turn * 8 + lane;
                    open_and_redeem(&store, number).await;
                    // One write for each line, so that a line is whole or not there.
                    let line = format!("\nanswered {number}.\n");
                    let _ = std::io::stdout().write_all(line.as_bytes());
                }
            });
        }
        tasks.join_all().await;
    });
}
