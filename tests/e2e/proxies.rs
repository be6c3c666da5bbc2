//! Networks that let nothing out but what goes through a proxy.

use std::process::Command;
use std::time::Duration;

use tunnel_e2e::bytes::{noise, sha256};
use tunnel_e2e::process::{Process, run, run_with};
use tunnel_e2e::skip::Need;
use tunnel_e2e::sshd::NEEDS;
use tunnel_e2e::wait::SOON;
use tunnel_e2e::{needs, until};

use crate::world::{DEVICE, NAT, World};

const TINYPROXY: Need = Need::Program("tinyproxy", "tinyproxy");

/// A proxy beside the server.
const PROXY_HOST: &str = "[host.proxy]\naddress = \"198.51.100.9\"\n";
const PROXY: &str = "http://ana:secret@198.51.100.9:3128";

/// Starts a proxy that wants a login.
fn start_proxy(world: &World) -> Process {
    let directory = world.fleet.directory().join("proxy");
    std::fs::create_dir(&directory).unwrap();
    let file = directory.join("tinyproxy.conf");
    std::fs::write(
        &file,
        "Port 3128\nTimeout 600\nMaxClients 50\nBasicAuth ana secret\n",
    )
    .unwrap();
    let place = world.lab.host("proxy");
    let mut command = place.command("tinyproxy");
    let process = Process::start("tinyproxy", command.args(["-d", "-c"]).arg(&file), &directory);
    until("the proxy listens", SOON, || {
        place.on(|| std::net::TcpStream::connect("127.0.0.1:3128")).ok()
    });
    process
}

/// Lets a host reach the proxy and nobody else.
fn fence(mut nft: Command) {
    let rules = "table inet fence {
        chain output {
            type filter hook output priority 0; policy drop;
            oifname lo accept
            ip daddr 198.51.100.9 accept
        }
    }";
    run_with(nft.args(["-f", "-"]), rules.as_bytes(), SOON).ok();
}

#[test]
fn a_device_that_only_a_proxy_lets_out_is_reached() {
    needs!(Need::Namespaces, NEEDS[0], NEEDS[1], TINYPROXY);
    let world = World::new(&format!("{NAT}{PROXY_HOST}"));
    let _proxy = start_proxy(&world);
    let sshd = world.fleet.sshd("sshd");
    fence(world.lab.host(DEVICE).command("nft"));
    let device = world
        .fleet
        .device("pump-17")
        .sshd(&sshd)
        .variable("HTTPS_PROXY", PROXY);
    let agent = world.fleet.link(device);

    let input = noise(4 << 20, 1);
    let mut ssh = world
        .fleet
        .admin
        .ssh_command("pump-17", &sshd, &[], &["sha256sum"]);
    // The technician goes through the proxy too.
    ssh.env("HTTPS_PROXY", PROXY).env("TUNNEL_CARRIER", "websocket");
    let output = run_with(&mut ssh, &input, Duration::from_secs(60));
    assert!(output.text().starts_with(&sha256(&input)), "{}", output.said());

    let link = &world.fleet.admin.device("pump-17").unwrap()["link"];
    assert_eq!(link["carrier"], "websocket");
    let said = agent.process().said();
    assert!(!said.contains("secret"), "{said}");
}

#[test]
fn a_proxy_that_refuses_is_named_to_the_technician() {
    needs!(Need::Namespaces, NEEDS[0], NEEDS[1], TINYPROXY);
    let world = World::new(&format!("{NAT}{PROXY_HOST}"));
    let _proxy = start_proxy(&world);
    let ask = |proxy: &str| {
        let mut command = world.fleet.admin.cli(&["devices"]);
        run(command.env("HTTPS_PROXY", proxy), SOON)
    };
    ask(PROXY).ok();
    for (proxy, words) in [
        ("http://198.51.100.9:3128", "wants a login by `Basic`"),
        ("http://ana:wrong@198.51.100.9:3128", "refused"),
        ("http://198.51.100.9:3129", "does not accept connections"),
    ] {
        let output = ask(proxy);
        assert_eq!(output.code, 4, "{}", output.said());
        let named = output.stderr.contains("198.51.100.9:312") && output.stderr.contains(words);
        assert!(named && !output.stderr.contains("wrong"), "{}", output.said());
    }
    let output = ask("https://198.51.100.9:3128");
    assert_eq!(output.code, 2, "{}", output.said());
    assert!(output.stderr.contains("HTTPS_PROXY"), "{}", output.said());
}
