//! Notifications: where nobody takes them, and where a name leads somewhere else than it did.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::OpenOptionsExt as _;
use std::sync::Arc;

use rustls::{ServerConfig, ServerConnection, StreamOwned};
use tunnel_e2e::dns::{Dns, Zone};
use tunnel_e2e::service::Service;
use tunnel_e2e::skip::Need;
use tunnel_e2e::wait::SOON;
use tunnel_e2e::{Fleet, Lab, Operator, Plan, needs, until};

/// Has the server tell a service at a URL of decisions, once each; its certificates are of an authority.
fn tell(fleet: &Fleet, url: &str, authority: &str) {
    let data = fleet.server.data();
    let private = |name: &str| {
        let mut options = std::fs::OpenOptions::new();
        let options = options.append(true).create(true).mode(0o600);
        options.open(data.join(name)).unwrap()
    };
    writeln!(private("siem.key"), "whsec_{}", "A".repeat(40)).unwrap();
    std::fs::write(data.join("siem-ca.pem"), authority).unwrap();
    write!(
        private("server.toml"),
        "[[notify]]\nname = \"siem\"\nurl = \"{url}\"\nkey = \"siem.key\"\nca = \"siem-ca.pem\"\n\
         allow = [\"127.0.0.1\"]\ntopics = [\"decisions\"]\ntries = 1\n"
    )
    .unwrap();
}

#[test]
fn what_was_given_up_is_listed_sent_again_and_dropped() {
    let mut fleet = Fleet::on_loopback();
    let eve = fleet.technician("eve");
    fleet.server.stop();
    let refuses = Service::refuses();
    let port = refuses.target().rsplit(':').next().unwrap().to_owned();
    let root = std::fs::read_to_string(fleet.server.data().join("root.pem")).unwrap();
    tell(&fleet, &format!("https://127.0.0.1:{port}/"), &root);
    fleet.server.restart();

    assert_eq!(eve.refusal(&["audit", "list"]).code, "E_POLICY_DENY");
    let list = || fleet.admin.json(&["notifications", "list"]);
    let dead = until("a notification to be given up", SOON, || {
        list()["dead"].as_array().unwrap().first().cloned()
    });
    assert_eq!(
        (&dead["target"], &dead["record"]["kind"]),
        (&"siem".into(), &"access.denied".into())
    );
    let table = fleet.admin.tunnel(&["notifications", "list"]).ok();
    assert!(
        table.contains("access.denied") && table.contains("could not connect"),
        "{table}"
    );

    let refusal = fleet.admin.refusal(&["notifications", "retry", "siem"]);
    assert_eq!(refusal.code, "E_UNAVAILABLE");
    assert_eq!(
        eve.refusal(&["notifications", "drop", "siem"]).code,
        "E_POLICY_DENY"
    );
    // What eve was refused is given up too.
    until("the second to be given up", SOON, || {
        (list()["dead"].as_array().unwrap().len() == 2).then_some(())
    });
    let number = dead["record"]["seq"].to_string();
    let drop = |words: &[&str]| {
        fleet
            .admin
            .tunnel(&[&["notifications", "drop", "siem"], words].concat())
            .ok()
    };
    assert!(drop(&["--record", &number]).contains("1 dropped"));
    assert!(drop(&[]).contains("1 dropped"));
    assert!(list()["dead"].as_array().unwrap().is_empty());
}

/// Makes an authority, in PEM, and what a service of a name needs for TLS.
fn certified(name: &str) -> (String, Arc<ServerConfig>) {
    let key = || rcgen::KeyPair::generate().unwrap();
    let authority = key();
    let mut about = rcgen::CertificateParams::new(Vec::new()).unwrap();
    about.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let root = about.self_signed(&authority).unwrap().pem();
    let own = key();
    let leaf = rcgen::CertificateParams::new(vec![name.to_owned()]).unwrap();
    let leaf = leaf
        .signed_by(&own, &rcgen::Issuer::new(about, authority))
        .unwrap();
    let config = ServerConfig::builder_with_provider(tunnel_net::tls::provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![leaf.der().clone()], own.serialize_der().try_into().unwrap());
    (root, Arc::new(config.unwrap()))
}

/// Takes one message over HTTPS, and ends the connection: the next message needs another look at the name.
fn take(stream: TcpStream, tls: &Arc<ServerConfig>) -> std::io::Result<()> {
    let server = ServerConnection::new(tls.clone()).map_err(std::io::Error::other)?;
    let mut stream = StreamOwned::new(server, stream);
    let (mut request, mut buffer) = (Vec::new(), [0; 4096]);
    let is_whole = |request: &[u8]| {
        let text = String::from_utf8_lossy(request).to_lowercase();
        let (head, body) = text.split_once("\r\n\r\n")?;
        let length = head
            .split("content-length:")
            .nth(1)?
            .lines()
            .next()?
            .trim()
            .parse()
            .ok()?;
        Some(body.len() >= length)
    };
    while is_whole(&request) != Some(true) {
        match stream.read(&mut buffer)? {
            0 => return Err(ErrorKind::UnexpectedEof.into()),
            length => request.extend_from_slice(&buffer[..length]),
        }
    }
    stream.write_all(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")?;
    stream.conn.send_close_notify();
    stream.flush()
}

/// THREATS SRV-15: a name that led to where it may is turned to an address that is not listed. Nobody there is spoken to.
#[test]
fn a_name_that_turns_to_a_private_address_is_not_followed() {
    needs!(Need::Namespaces);
    const NAME: &str = "hooks.test";
    let lab = Lab::up("[host.server]\naddress = \"198.51.100.1\"\n");
    lab.ask_own_dns();
    let (place, zone) = (lab.host("server"), Zone::default());
    let _dns = Dns::start(&place, &zone);
    let mut fleet = Fleet::start(Plan {
        server: place.clone(),
        ip: "198.51.100.1".parse().unwrap(),
        operators: place.clone(),
        devices: place.clone(),
        alone: false,
    });
    let eve = fleet.technician("eve");
    let (authority, tls) = certified(NAME);
    let siem = Service::start(&place, move |stream, taken| {
        if take(stream, &tls).is_ok() {
            taken.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        }
    });
    let port: u16 = siem.target().rsplit(':').next().unwrap().parse().unwrap();
    // At the same port of another address of this host: what an attacker wants the server to speak to.
    let inside = place.on(|| TcpListener::bind(("127.0.0.2", port)).unwrap());
    inside.set_nonblocking(true).unwrap();
    fleet.server.stop();
    tell(&fleet, &format!("https://{NAME}:{port}/"), &authority);
    zone.set(NAME, &["127.0.0.1"]);
    fleet.server.restart();

    let deny = |by: &Operator| assert_eq!(by.refusal(&["audit", "list"]).code, "E_POLICY_DENY");
    let taken = |count: u64| {
        until("a message to be taken", SOON, || {
            (siem.count() == count).then_some(())
        })
    };
    deny(&eve);
    taken(1);
    zone.set(NAME, &["127.0.0.2"]);
    deny(&eve);
    let list = || fleet.admin.json(&["notifications", "list"]);
    let dead = until("a notification to be given up", SOON, || {
        list()["dead"].as_array().unwrap().first().cloned()
    });
    let error = dead["error"].as_str().unwrap();
    assert!(error.contains("127.0.0.2, which is no public address"), "{error}");
    // Of two addresses the one that may be is spoken to.
    zone.set(NAME, &["127.0.0.2", "127.0.0.1"]);
    fleet.admin.tunnel(&["notifications", "retry", "siem"]).ok();
    taken(2);
    let spoken_to = inside.accept().map(|(_, from)| from);
    assert_eq!(spoken_to.unwrap_err().kind(), ErrorKind::WouldBlock);
}
