//! Paths that carry less than the usual 1,500 bytes, and say so or not.

use tunnel_net::link::Try;
use tunnel_proto::carrier::Carrier;

use super::support::in_time;
use super::support::skip;
use super::{World, plan};

const BYTES: usize = 2 << 20;

/// Sends much each way at once.
async fn bulk(world: &World) {
    let (mut send, mut recv) = world.ends.operator.open_bi().await.unwrap();
    let device = world.ends.device.clone();
    let there = async {
        send.write_all(&vec![1; BYTES]).await.unwrap();
        send.finish().unwrap();
        recv.read_to_end(BYTES).await.unwrap().len()
    };
    let back = async {
        let (mut send, mut recv) = device.accept_bi().await.unwrap();
        let read = async { recv.read_to_end(BYTES).await.unwrap().len() };
        let write = async {
            send.write_all(&vec![2; BYTES]).await.unwrap();
            send.finish().unwrap();
        };
        tokio::join!(read, write).0
    };
    let both = in_time("all bytes arrive", async { tokio::join!(there, back) }).await;
    assert_eq!(both, (BYTES, BYTES));
}

fn active(world: &World) -> [Option<Carrier>; 2] {
    [&world.ends.source, &world.ends.destination].map(|leg| leg.state().borrow().active)
}

/// The smallest path of IPv6, which swallows what is larger without a word.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bulk_passes_a_black_hole_at_1280_over_udp() {
    if skip::without_namespaces("bulk_passes_a_black_hole_at_1280_over_udp") {
        return;
    }
    for v6 in [false, true] {
        let narrow = |lab: &mut super::Lab| lab.set("laptop", &["mtu=1280", "pmtud=false"]);
        let world = World::start(&plan(v6, 5), Try::Both, narrow).await;
        bulk(&world).await;
        assert_eq!(active(&world), [Some(Carrier::Udp); 2], "IPv6: {v6}");
        assert!(world.lab.too_big("laptop") > 0, "larger packets were tried");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_path_may_become_narrow_under_a_session() {
    if skip::without_namespaces("a_path_may_become_narrow_under_a_session") {
        return;
    }
    let mut world = World::start(&plan(false, 5), Try::Both, |_| {}).await;
    bulk(&world).await;
    assert!(
        world.ends.operator.stats().path.current_mtu > 1400,
        "{:?}",
        world.ends.operator.stats().path
    );
    world.lab.set("laptop", &["mtu=1280", "pmtud=false"]);
    bulk(&world).await;
    assert_eq!(active(&world), [Some(Carrier::Udp); 2]);
}

/// QUIC cannot do with less than 1,200 bytes; TCP can.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_path_too_narrow_for_quic_takes_websocket() {
    if skip::without_namespaces("a_path_too_narrow_for_quic_takes_websocket") {
        return;
    }
    let narrow = |lab: &mut super::Lab| lab.set("laptop", &["mtu=1200"]);
    let world = World::start(&plan(false, 5), Try::Both, narrow).await;
    assert_eq!(active(&world), [Some(Carrier::WebSocket), Some(Carrier::Udp)]);
    bulk(&world).await;
    assert_eq!(active(&world), [Some(Carrier::WebSocket), Some(Carrier::Udp)]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_leaves_udp_when_its_path_becomes_too_narrow() {
    if skip::without_namespaces("a_session_leaves_udp_when_its_path_becomes_too_narrow") {
        return;
    }
    let mut world = World::start(&plan(false, 5), Try::Both, |_| {}).await;
    bulk(&world).await;
    assert_eq!(active(&world), [Some(Carrier::Udp); 2]);
    world.lab.set("laptop", &["mtu=1200"]);
    bulk(&world).await;
    assert_eq!(active(&world), [Some(Carrier::WebSocket), Some(Carrier::Udp)]);
}
