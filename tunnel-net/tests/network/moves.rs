//! A machine that changes its address, beside one on which something else changes.

use std::time::{Duration, Instant};

use tokio::time::MissedTickBehavior;
use tokio_util::task::AbortOnDropHandle;
use tunnel_net::link::Try;
use tunnel_net::network::{Changes, Sign, source};
use tunnel_proto::carrier::Carrier;

use super::support::{in_time, skip};
use super::{World, plan};

/// One way from an end to the relay, in milliseconds.
const DELAY_MS: u32 = 20;

/// From end to end and back.
const ROUND_TRIP: Duration = Duration::from_millis(4 * DELAY_MS as u64);

/// Below this a pause shows that the change was noticed as it happened: by silence alone it takes 800 ms to doubt the path.
/// What a move costs on an idle machine is a figure, and no condition of a test.
const AT_ONCE: Duration = Duration::from_millis(700);

/// How often each end sends a little.
const TICK: Duration = Duration::from_millis(10);

/// Sends a little all the time.
fn tick(mut send: quinn::SendStream) -> AbortOnDropHandle<()> {
    AbortOnDropHandle::new(tokio::task::spawn(async move {
        let mut clock = tokio::time::interval(TICK);
        clock.set_missed_tick_behavior(MissedTickBehavior::Skip);
        loop {
            clock.tick().await;
            send.write_all(&[1; 100]).await.unwrap();
        }
    }))
}

/// Receives for a while; returns for how long nothing came at most.
fn watch(mut recv: quinn::RecvStream, time: Duration) -> AbortOnDropHandle<Duration> {
    AbortOnDropHandle::new(tokio::task::spawn(async move {
        let start = Instant::now();
        let (mut last, mut longest) = (start, Duration::ZERO);
        while start.elapsed() < time {
            recv.read_exact(&mut [0; 100]).await.unwrap();
            longest = longest.max(last.elapsed());
            last = Instant::now();
        }
        longest
    }))
}

/// Does something while both ends send; returns the longest pause at the operator and at the device.
async fn pauses(world: &mut World, event: impl FnOnce(&mut World)) -> [Duration; 2] {
    let time = Duration::from_millis(1000);
    let (send, recv) = world.ends.operator.open_bi().await.unwrap();
    let up = tick(send);
    let (send, at_device) = in_time("a stream", world.ends.device.accept_bi()).await.unwrap();
    let down = tick(send);
    let watches = [watch(recv, time), watch(at_device, time)];
    tokio::time::sleep(time / 4).await;
    tokio::task::block_in_place(|| event(world));
    let [operator, device] = watches;
    let longest = [
        in_time("received", operator).await.unwrap(),
        in_time("received", device).await.unwrap(),
    ];
    drop((up, down));
    longest
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_goes_on_at_once_after_a_move() {
    if skip::without_namespaces("a_session_goes_on_at_once_after_a_move") {
        return;
    }
    for (v6, addresses) in [
        (
            false,
            [
                ("laptop", "203.0.113.11"),
                ("device", "203.0.113.21"),
                ("laptop", "203.0.113.12"),
            ],
        ),
        (
            true,
            [
                ("laptop", "2001:db8:2::11"),
                ("laptop", "2001:db8:2::12"),
                ("device", "2001:db8:2::21"),
            ],
        ),
    ] {
        let mut world = World::start(&plan(v6, DELAY_MS), Try::Both, |_| {}).await;
        for (host, address) in addresses {
            let address = address.parse().unwrap();
            let pauses = pauses(&mut world, |world| world.lab.move_host(host, address)).await;
            assert!(
                pauses.iter().all(|pause| *pause <= AT_ONCE),
                "{host} to {address}: {pauses:?}"
            );
        }
        assert_eq!(world.ends.source.state().borrow().active, Some(Carrier::Udp));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_move_over_websocket_is_survived() {
    if skip::without_namespaces("a_move_over_websocket_is_survived") {
        return;
    }
    let mut world = World::start(&plan(false, DELAY_MS), Try::Only(Carrier::WebSocket), |_| {}).await;
    let address = "203.0.113.11".parse().unwrap();
    // TCP, TLS and the upgrade take three round trips to the relay, and the bind two more.
    let pauses = pauses(&mut world, |world| world.lab.move_host("laptop", address)).await;
    assert!(
        pauses.iter().all(|pause| *pause <= AT_ONCE + ROUND_TRIP * 3),
        "{pauses:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_machine_that_was_nowhere_goes_on_when_it_is_back() {
    if skip::without_namespaces("a_machine_that_was_nowhere_goes_on_when_it_is_back") {
        return;
    }
    let mut world = World::start(&plan(false, DELAY_MS), Try::Both, |_| {}).await;
    let old = "203.0.113.10/32";
    world.lab.ip("laptop", &["address", "delete", old, "dev", "wan0"]);
    let mut state = world.ends.source.state();
    in_time("silence", state.wait_for(|state| state.silent))
        .await
        .unwrap();
    let back = Instant::now();
    tokio::task::block_in_place(|| {
        world.lab.ip("laptop", &["address", "add", old, "dev", "wan0"]);
        world
            .lab
            .ip("laptop", &["route", "replace", "default", "dev", "wan0"]);
    });
    in_time("heard again", state.wait_for(|state| !state.silent))
        .await
        .unwrap();
    assert!(back.elapsed() < AT_ONCE, "{:?}", back.elapsed());
    pauses(&mut world, |_| {}).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_others_do_to_the_network_disturbs_nothing() {
    if skip::without_namespaces("what_others_do_to_the_network_disturbs_nothing") {
        return;
    }
    let mut world = World::start(&plan(false, DELAY_MS), Try::Both, |_| {}).await;
    let mut state = world.ends.source.state();
    state.mark_unchanged();
    let before = world.relay.binds();
    let pauses = pauses(&mut world, |world| {
        for _ in 0..5 {
            world.lab.ip(
                "laptop",
                &["link", "add", "veth0", "type", "veth", "peer", "name", "veth1"],
            );
            world
                .lab
                .ip("laptop", &["address", "add", "172.17.0.1/16", "dev", "veth0"]);
            world.lab.ip("laptop", &["link", "set", "veth0", "up"]);
            world.lab.ip("laptop", &["link", "delete", "veth0"]);
        }
    })
    .await;
    assert!(pauses.iter().all(|pause| *pause <= ROUND_TRIP), "{pauses:?}");
    assert!(!state.has_changed().unwrap(), "{:?}", state.borrow());
    assert_eq!(world.relay.binds(), before, "the leg stays on its socket");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_kernel_tells_of_changes() {
    if skip::without_namespaces("the_kernel_tells_of_changes") {
        return;
    }
    let mut lab = super::support::lab::Lab::up(&plan(false, 0));
    let host = lab.host("laptop");
    let relay = std::net::SocketAddr::new(lab.address("relay"), 1);
    let from = async |host: &super::Host| host.run(async move { source(relay) }).await;
    assert_eq!(from(&host).await, Some(lab.address("laptop")));
    let mut changes = host.run(async { Changes::listen() }).await;
    let quiet = tokio::time::timeout(Duration::from_millis(50), changes.changed()).await;
    assert!(quiet.is_err(), "nothing has changed");

    lab.ip(
        "laptop",
        &["link", "add", "veth0", "type", "veth", "peer", "name", "veth1"],
    );
    assert_eq!(in_time("an interface", changes.changed()).await, Sign::Changed);
    assert_eq!(from(&host).await, Some(lab.address("laptop")));
    lab.move_host("laptop", "203.0.113.11".parse().unwrap());
    // Several changes are told as one, and one that nobody waited for is not lost.
    assert!(futures_util::FutureExt::now_or_never(changes.changed()).is_none());
    assert_eq!(in_time("an address", changes.changed()).await, Sign::Changed);
    assert_eq!(from(&host).await, Some(lab.address("laptop")));
    lab.ip("laptop", &["link", "set", "wan0", "down"]);
    assert_eq!(in_time("no interface", changes.changed()).await, Sign::Changed);
    assert_eq!(from(&host).await, None);
}
