//! A device behind NAT: nobody can reach it, it listens on nothing, and ssh works.

use std::collections::BTreeSet;
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use tunnel_e2e::process::run;
use tunnel_e2e::skip::Need;
use tunnel_e2e::sshd::NEEDS;
use tunnel_e2e::{Place, needs};

use crate::world::{DEVICE, NAT, TECHNICIAN, World};

/// The state `LISTEN` of a TCP socket in the kernel's lists.
const LISTEN: &str = "0A";
/// The state of a UDP socket that takes datagrams from anybody; one that is connected has another.
const UNCONNECTED: &str = "07";

/// The sockets that a host listens on, by the kernel's own lists: protocol, local address and inode.
fn listening(host: &Place) -> BTreeSet<(String, String, String)> {
    let mut found = BTreeSet::new();
    for (protocol, state) in [
        ("tcp", LISTEN),
        ("tcp6", LISTEN),
        ("udp", UNCONNECTED),
        ("udp6", UNCONNECTED),
    ] {
        // `/proc/net` is that of the one who reads it.
        let list = run(
            host.command("cat").arg(format!("/proc/net/{protocol}")),
            Duration::from_secs(10),
        )
        .ok();
        for line in list.lines().skip(1) {
            let fields: Vec<_> = line.split_whitespace().collect();
            if fields.get(3) == Some(&state) {
                found.insert((protocol.to_owned(), fields[1].to_owned(), fields[9].to_owned()));
            }
        }
    }
    found
}

/// The inodes of the sockets of a process.
fn sockets(pid: u32) -> BTreeSet<String> {
    let entries = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten();
    let links = entries.filter_map(|entry| std::fs::read_link(entry.path()).ok());
    let inode = |link: std::path::PathBuf| {
        Some(
            link.to_str()?
                .strip_prefix("socket:[")?
                .strip_suffix(']')?
                .to_owned(),
        )
    };
    links.filter_map(inode).collect()
}

/// THREATS AGT-18.
#[test]
fn a_device_behind_nat_listens_on_nothing_and_is_reached() {
    needs!(
        Need::Namespaces,
        NEEDS[0],
        NEEDS[1],
        Need::Program("ss", "iproute2")
    );
    let world = World::new(NAT);
    let (fleet, device) = (&world.fleet, world.lab.host(DEVICE));
    let sshd = fleet.sshd("sshd");
    let before = listening(&device);
    assert_eq!(before.len(), 1, "sshd, on loopback: {before:?}");
    let agent = fleet.link(fleet.device("pump-17").sshd(&sshd));
    let check = |when: &str| {
        let of_agent = sockets(agent.process().pid());
        assert!(!of_agent.is_empty(), "the agent has a socket to its server");
        for (protocol, address, inode) in listening(&device) {
            assert!(
                !of_agent.contains(&inode),
                "{when}: the agent listens on {protocol} {address}"
            );
        }
        assert_eq!(listening(&device), before, "{when}");
        let ss = run(
            device.command("ss").args(["-H", "-l", "-n", "-t", "-u"]),
            Duration::from_secs(10),
        )
        .ok();
        assert_eq!(ss.lines().count(), 1, "{when}: {ss}");
    };

    check("with a link");
    let errors = fleet.directory().join("ssh.stderr");
    let mut command = fleet.admin.ssh_command("pump-17", &sshd, &[], &["cat"]);
    let mut ssh = tunnel_e2e::operator::Interactive::start(&mut command, &errors);
    std::io::Write::write_all(ssh.stdin().unwrap(), b"hello\n").unwrap();
    assert_eq!(
        ssh.line(),
        "hello\n",
        "{}",
        std::fs::read_to_string(&errors).unwrap()
    );
    check("with a session");
    ssh.close_stdin();
    assert_eq!(ssh.wait(Duration::from_secs(10)), Some(0));
    agent.run("access", &["off"]).ok();
    check("with access off");
}

#[test]
fn nobody_reaches_the_device_from_outside() {
    needs!(Need::Namespaces, NEEDS[0], NEEDS[1]);
    let world = World::new(NAT);
    let fleet = &world.fleet;
    let sshd = fleet.sshd("sshd");
    let agent = fleet.link(fleet.device("pump-17").sshd(&sshd));
    let inside: u16 = sshd.target().rsplit(':').next().unwrap().parse().unwrap();
    let mapped = own_ports(agent.process().pid());
    assert!(!mapped.is_empty(), "the agent's sockets have ports");

    // From elsewhere, every port that means something is tried, the mapping of the control link too.
    let ports: Vec<u16> = [22, 80, 443, 8443, inside].into_iter().chain(mapped).collect();
    world.lab.host(TECHNICIAN).on(|| {
        for port in ports {
            let address = SocketAddr::new("203.0.113.20".parse().unwrap(), port);
            let result = TcpStream::connect_timeout(&address, Duration::from_millis(200));
            assert!(result.is_err(), "{address} answers");
        }
    });
    fleet.admin.ssh("pump-17", &sshd, &[], &["true"]).ok();
}

/// The local ports of a process's UDP sockets, which the NAT keeps where it can.
fn own_ports(pid: u32) -> Vec<u16> {
    let inodes = sockets(pid);
    let list = |name: &str| std::fs::read_to_string(format!("/proc/{pid}/net/{name}")).unwrap_or_default();
    (list("udp") + &list("udp6"))
        .lines()
        .filter_map(|line| {
            let fields: Vec<_> = line.split_whitespace().collect();
            inodes.contains(*fields.get(9)?).then_some(())?;
            u16::from_str_radix(fields[1].rsplit(':').next()?, 16).ok()
        })
        .collect()
}
