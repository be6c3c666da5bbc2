//! `tunnel notifications`, where nobody takes them.

use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;

use tunnel_e2e::service::Service;
use tunnel_e2e::wait::SOON;
use tunnel_e2e::{Fleet, until};

#[test]
fn what_was_given_up_is_listed_sent_again_and_dropped() {
    let mut fleet = Fleet::on_loopback();
    let eve = fleet.technician("eve");
    fleet.server.stop();
    let data = fleet.server.data();
    let private = |name: &str| {
        let mut options = std::fs::OpenOptions::new();
        options
            .append(true)
            .create(true)
            .mode(0o600)
            .open(data.join(name))
            .unwrap()
    };
    writeln!(private("siem.key"), "whsec_{}", "A".repeat(40)).unwrap();
    std::fs::copy(data.join("root.pem"), data.join("siem-ca.pem")).unwrap();
    let refuses = Service::refuses();
    let port = refuses.target().rsplit(':').next().unwrap().to_owned();
    write!(
        private("server.toml"),
        "[[notify]]\nname = \"siem\"\nurl = \"https://127.0.0.1:{port}/\"\nkey = \"siem.key\"\nca = \"siem-ca.pem\"\n\
         allow = [\"127.0.0.1\"]\ntopics = [\"decisions\"]\ntries = 1\n"
    )
    .unwrap();
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
