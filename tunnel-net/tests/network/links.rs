//! A control link whose device changes its address.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use tunnel_net::ServerAddr;
use tunnel_net::link::{self, Try};
use tunnel_proto::carrier::Carrier;

use super::support::fleet::Fleet;
use super::support::lab::Lab;
use super::support::{in_time, skip};

const PLAN: &str = "[host.relay]\naddress = \"198.51.100.1\"\n\
    [host.device]\naddress = \"203.0.113.20\"\nlink = { delay = \"20ms\" }\n";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_link_goes_along_when_its_device_moves() {
    if skip::without_namespaces("a_link_goes_along_when_its_device_moves") {
        return;
    }
    let fleet = Fleet::new();
    let mut lab = Lab::up(PLAN);
    let (relay, device) = (lab.host("relay"), lab.host("device"));
    let (at, config) = (lab.address("relay"), fleet.link_server());
    let server = relay
        .run(async move { quinn::Endpoint::server(config, SocketAddr::new(at, 0)).unwrap() })
        .await;
    let port = server.local_addr().unwrap().port();
    let addr: ServerAddr = format!("{at}:{port}").parse().unwrap();
    let (link_tls, websocket_tls) = (fleet.link_client(), fleet.api_client());
    let only = Try::Only(Carrier::Udp);
    let dial = device.run(async move { link::connect(&addr, link_tls, websocket_tls, only).await.unwrap() });
    let (link, accepted) = in_time("a link", async {
        tokio::join!(dial, async { server.accept().await.unwrap().await.unwrap() })
    })
    .await;
    let (mut to_server, _) = link.connection.open_bi().await.unwrap();
    to_server.write_all(b"a").await.unwrap();
    let (_, mut from_device) = in_time("a stream", accepted.accept_bi()).await.unwrap();
    from_device.read_exact(&mut [0]).await.unwrap();

    for address in ["203.0.113.21", "203.0.113.22"] {
        let address = address.parse().unwrap();
        tokio::task::block_in_place(|| lab.move_host("device", address));
        // The server hears from the new address although the device has nothing to say.
        let start = Instant::now();
        in_time("the server hears of it", async {
            while accepted.remote_address().ip() != address {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        })
        .await;
        assert!(
            start.elapsed() < Duration::from_millis(200),
            "{:?}",
            start.elapsed()
        );
        to_server.write_all(b"b").await.unwrap();
        in_time("data", from_device.read_exact(&mut [0])).await.unwrap();
    }
}
