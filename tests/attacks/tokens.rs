//! Tokens that are stolen, repeated, forged, or not tokens at all, presented to the server by an operator.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};
use tunnel_e2e::api::{Answer, Api};
use tunnel_e2e::bytes::noise;
use tunnel_e2e::puppet::{Puppet, credentials};
use tunnel_e2e::wait::{SOON, until};
use tunnel_e2e::{Fleet, Operator};
use tunnel_net::clock::{Clock, SystemClock};
use tunnel_proto::bind::Role;
use tunnel_proto::cose::{Purpose, SigningKey};
use tunnel_proto::ids::unhex;
use tunnel_proto::keys::Secret;
use tunnel_proto::token::AccessToken;
use tunnel_proto::{TokenId, TunnelId};

use crate::world::world;

/// A tunnel that was opened and not attached, as its operator sees it.
struct Opened {
    api: Api,
    tunnel: String,
    token: String,
}

impl Opened {
    fn new(fleet: &Fleet, puppet: &mut Puppet) -> Self {
        Self::by(api(fleet), puppet)
    }

    /// Opens it as who has this access to the API.
    fn by(api: Api, puppet: &mut Puppet) -> Self {
        let wish = json!({ "device": puppet.id(), "services": ["echo"] });
        let opened = std::thread::scope(|scope| {
            let opening = scope.spawn(|| api.request("POST", "/v1/tunnels", Some(&wish)).unwrap());
            puppet.accept();
            opening.join().unwrap()
        });
        assert_eq!(opened.status, 200, "{}", opened.body);
        let text = |name: &str| opened.body[name].as_str().unwrap().to_owned();
        let (tunnel, token) = (text("tunnel"), text("token"));
        Self { api, tunnel, token }
    }

    fn attach(&self, token: &str) -> Answer {
        attach(&self.api, &self.tunnel, token)
    }

    /// Checks that a token is refused with a code.
    #[track_caller]
    fn refused(&self, token: &str, code: &str) {
        let answer = self.attach(token);
        assert_eq!(
            (answer.body["code"].as_str(), answer.status >= 400),
            (Some(code), true),
            "{}",
            answer.body
        );
    }

    /// Checks that the token is still good, once.
    #[track_caller]
    fn good(&self) {
        let answer = self.attach(&self.token);
        assert_eq!(answer.status, 200, "{}", answer.body);
    }
}

fn api(fleet: &Fleet) -> Api {
    Api::of(fleet.server.address(), &fleet.admin.home())
}

fn attach(api: &Api, tunnel: &str, token: &str) -> Answer {
    let body = json!({ "token": token });
    api.request("POST", &format!("/v1/tunnels/{tunnel}/attach"), Some(&body))
        .unwrap()
}

/// Who can sign what: the keys of a server, which no attacker has.
struct Forge {
    key: SigningKey,
    token: AccessToken,
}

impl Forge {
    /// Makes a token that would be good for an opened tunnel, but for what a test changes in it.
    fn new(fleet: &Fleet, opened: &Opened, key: &str) -> Self {
        let now = SystemClock.now();
        let tunnel: TunnelId = opened.tunnel.parse().unwrap();
        let (ends, own) = credentials(&fleet.admin.home());
        let peer = ends.trust.verify(own.chain(), now).unwrap();
        let token = AccessToken {
            id: TokenId::from_bytes(noise(16, now.as_secs()).try_into().unwrap()),
            tunnel,
            role: Role::Source,
            holder: peer.identity,
            holder_key: peer.key,
            relay: "relay-1".parse().unwrap(),
            issued_at: now,
            expires_at: now.after(Duration::from_secs(60)),
        };
        let key = signing_key(fleet, key);
        Self { key, token }
    }

    fn with(&self, change: impl FnOnce(&mut AccessToken)) -> String {
        let mut token = self.token.clone();
        change(&mut token);
        let domain = tunnel_e2e::server::TRUST_DOMAIN.parse().unwrap();
        URL_SAFE_NO_PAD.encode(token.sign(&self.key, &domain))
    }
}

/// Reads a key of the server, which who has taken it over has too.
pub(crate) fn signing_key(fleet: &Fleet, name: &str) -> SigningKey {
    let text = std::fs::read_to_string(fleet.server.data().join(name)).unwrap();
    SigningKey::from_seed(&Secret::new(unhex(text.trim()).unwrap())).unwrap()
}

#[test]
fn tok_01_a_token_is_redeemed_once_however_many_try() {
    let (mut fleet, mut puppet) = world();
    let opened = Opened::new(&fleet, &mut puppet);
    let codes: Vec<_> = std::thread::scope(|scope| {
        let tries: Vec<_> = (0..40)
            .map(|_| scope.spawn(|| opened.attach(&opened.token)))
            .collect();
        tries.into_iter().map(|one| one.join().unwrap()).collect()
    });
    assert_eq!(codes.iter().filter(|answer| answer.status == 200).count(), 1);
    let replayed = codes
        .iter()
        .filter(|answer| answer.body["code"] == "E_TOKEN_REPLAY")
        .count();
    assert_eq!(replayed, 39);
    // A crash does not make it new.
    fleet.server.kill();
    fleet.server.restart();
    opened.refused(&opened.token, "E_TOKEN_REPLAY");
}

/// A redemption that was answered stays so, and of those that the kill left unanswered at most one counts.
#[test]
fn tok_01_of_many_that_try_while_the_server_is_killed_at_most_one_gets_in() {
    let mut fleet = Fleet::on_loopback();
    let mut redeemed = 0;
    for (number, millis) in [0, 1, 3, 10, 500].into_iter().enumerate() {
        let mut puppet = Puppet::new(&fleet, &format!("pump-{number}"));
        let opened = Opened::new(&fleet, &mut puppet);
        let try_all = |meanwhile: &mut dyn FnMut()| {
            let path = format!("/v1/tunnels/{}/attach", opened.tunnel);
            let body = json!({ "token": opened.token });
            let attempt = || {
                let answer = opened.api.request("POST", &path, Some(&body));
                answer.is_ok_and(|answer| answer.status == 200)
            };
            std::thread::scope(|scope| {
                let tries: Vec<_> = (0..24).map(|_| scope.spawn(attempt)).collect();
                meanwhile();
                let answers = tries.into_iter().map(|one| one.join().unwrap());
                answers.filter(|&is_in| is_in).count()
            })
        };
        let before = try_all(&mut || {
            // The instant of the kill is the input of this test, so it is by the clock.
            std::thread::sleep(Duration::from_millis(millis));
            fleet.server.kill();
        });
        fleet.server.restart();
        let after = try_all(&mut || {});
        assert!(
            before + after <= 1,
            "killed after {millis} ms: {before} and {after}"
        );
        redeemed += before;
    }
    assert!(redeemed > 0, "half a second is enough for one");
}

#[test]
fn tok_02_a_token_of_another_relay_is_refused() {
    let (fleet, mut puppet) = world();
    let opened = Opened::new(&fleet, &mut puppet);
    let forge = Forge::new(&fleet, &opened, "grant-key");
    opened.refused(
        &forge.with(|token| token.relay = "relay-2".parse().unwrap()),
        "E_TOKEN_AUDIENCE",
    );
    opened.good();
    // That of another fleet has the right name, and the wrong signature.
    let other = fleet.another();
    let mut other_puppet = Puppet::new(&other, "pump-18");
    let theirs = Opened::new(&other, &mut other_puppet);
    theirs.refused(&opened.token, "E_TOKEN_ALG");
    theirs.good();
}

#[test]
fn tok_03_a_stolen_token_is_worthless_and_noticed() {
    let (fleet, mut puppet) = world();
    let thief = fleet.technician("mallory");
    let opened = Opened::new(&fleet, &mut puppet);
    let stolen = Api::of(fleet.server.address(), &thief.home());
    let answer = attach(&stolen, &opened.tunnel, &opened.token);
    assert_eq!(answer.body["code"], "E_TOKEN_HOLDER", "{}", answer.body);
    let audit = serde_json::to_string(&fleet.admin.audit()).unwrap();
    assert!(audit.contains("E_TOKEN_HOLDER") && audit.contains("operator/mallory"));
    assert!(!audit.contains(&opened.token));
    opened.good();
}

#[test]
fn tok_04_a_token_that_has_expired_is_refused() {
    let (fleet, mut puppet) = world();
    let opened = Opened::new(&fleet, &mut puppet);
    let forge = Forge::new(&fleet, &opened, "grant-key");
    let now = SystemClock.now();
    for ago in [61, 3600, 366 * 24 * 3600] {
        let late = forge.with(|token| {
            token.issued_at = now.before(Duration::from_secs(ago + 60));
            token.expires_at = now.before(Duration::from_secs(ago));
        });
        opened.refused(&late, "E_TOKEN_EXPIRED");
    }
    let tolerated = forge.with(|token| token.expires_at = now.before(Duration::from_secs(1)));
    assert_eq!(opened.attach(&tolerated).status, 200);
}

#[test]
fn tok_05_a_token_of_the_future_is_refused() {
    let (fleet, mut puppet) = world();
    let opened = Opened::new(&fleet, &mut puppet);
    let forge = Forge::new(&fleet, &opened, "grant-key");
    let now = SystemClock.now();
    for later in [300, 366 * 24 * 3600] {
        let early = forge.with(|token| {
            token.issued_at = now.after(Duration::from_secs(later));
            token.expires_at = now.after(Duration::from_secs(later + 60));
        });
        opened.refused(&early, "E_TOKEN_NOT_YET");
    }
    opened.good();
}

#[test]
fn tok_06_a_token_is_good_for_its_tunnel_and_leg_alone() {
    let (fleet, mut puppet) = world();
    let (one, two) = (Opened::new(&fleet, &mut puppet), Opened::new(&fleet, &mut puppet));
    one.refused(&two.token, "E_TOKEN_SCOPE");
    two.refused(&one.token, "E_TOKEN_SCOPE");
    let forge = Forge::new(&fleet, &one, "grant-key");
    one.refused(
        &forge.with(|token| token.role = Role::Destination),
        "E_TOKEN_SCOPE",
    );
    one.good();
    two.good();
}

#[test]
fn tok_07_a_token_with_a_flipped_bit_is_refused() {
    let (fleet, mut puppet) = world();
    let opened = Opened::new(&fleet, &mut puppet);
    let good = URL_SAFE_NO_PAD.decode(&opened.token).unwrap();
    let codes = ["E_TOKEN_SIG", "E_TOKEN_MALFORMED", "E_TOKEN_ALG"];
    for at in 0..good.len() {
        let mut bad = good.clone();
        bad[at] ^= 1 << (at % 8);
        let answer = opened.attach(&URL_SAFE_NO_PAD.encode(bad));
        let code = answer.body["code"].as_str().unwrap().to_owned();
        assert!(codes.contains(&code.as_str()), "byte {at}: {}", answer.body);
    }
    opened.good();
}

#[test]
fn tok_09_a_token_by_a_key_of_another_purpose_is_refused() {
    let (fleet, mut puppet) = world();
    let opened = Opened::new(&fleet, &mut puppet);
    opened.refused(
        &Forge::new(&fleet, &opened, "audit-key").with(|_| {}),
        "E_TOKEN_ALG",
    );
    let forge = Forge::new(&fleet, &opened, "grant-key");
    let payload = noise(100, 9);
    for purpose in [Purpose::Grant, Purpose::AuditCheckpoint] {
        let signed = URL_SAFE_NO_PAD.encode(forge.key.sign(purpose, &payload));
        opened.refused(&signed, "E_TOKEN_ALG");
    }
    opened.good();
}

#[test]
fn tok_17_a_rotation_prolongs_nothing_and_ends_with_the_right() {
    let (fleet, mut puppet) = world();
    let code = fleet
        .server
        .enrol_code(&["--operator", "mallory", "--group", "admins"]);
    let mallory = Operator::login("mallory", fleet.devices_place(), fleet.directory(), &code);
    let opened = Opened::by(Api::of(fleet.server.address(), &mallory.home()), &mut puppet);
    opened.good();
    let path = format!("/v1/tunnels/{}", opened.tunnel);
    let shown = || opened.api.request("GET", &path, None).unwrap().body;
    let rotate = || {
        let body = json!({ "source": true });
        let answer = opened.api.request("POST", &format!("{path}/rotate"), Some(&body));
        answer.unwrap()
    };
    let before = shown();
    assert_eq!(rotate().status, 200);
    assert_eq!(shown()["expires_at"], before["expires_at"]);

    fleet
        .admin
        .tunnel(&["group", "remove", "admins", "operator/mallory"])
        .ok();
    until("the tunnel to be cut", SOON, || {
        (shown()["end_reason"] == "E_POLICY_CHANGED").then_some(())
    });
    let refused = rotate();
    assert_eq!(
        (refused.status / 100, shown()["end_reason"].as_str()),
        (4, Some("E_POLICY_CHANGED"))
    );
    let wish = json!({ "device": puppet.id(), "services": ["echo"] });
    let anew = opened.api.request("POST", "/v1/tunnels", Some(&wish)).unwrap();
    assert_eq!(anew.status / 100, 4, "{}", anew.body);
}

#[test]
fn tok_15_a_token_elsewhere_than_in_its_place_is_refused_and_written_nowhere() {
    let (fleet, mut puppet) = world();
    let opened = Opened::new(&fleet, &mut puppet);
    let path = format!("/v1/tunnels/{}/attach", opened.tunnel);
    let refused = |method: &str, path: &str, body: Option<&Value>| {
        let answer = opened.api.request(method, path, body).unwrap();
        assert!((400..500).contains(&answer.status), "{path}: {}", answer.body);
        let text = answer.body.to_string();
        assert!(!text.contains(&opened.token), "{text}");
    };
    refused(
        "POST",
        &format!("{path}?token={}", opened.token),
        Some(&json!({})),
    );
    refused("GET", &format!("{path}?token={}", opened.token), None);
    refused("POST", &format!("{path}/{}", opened.token), None);
    refused(
        "POST",
        &path,
        Some(&json!({ "token": opened.token, "tunnel": opened.tunnel })),
    );
    let said = fleet.server.process().said();
    assert!(!said.contains(&opened.token));
    opened.good();
}

#[test]
fn tok_16_what_is_no_token_is_refused_at_once() {
    let (fleet, mut puppet) = world();
    let opened = Opened::new(&fleet, &mut puppet);
    let nested = vec![0x81; 10_000];
    let huge = noise(40_000, 16);
    let number = [&[0xd2, 0x84, 0x5b][..], &[0xff; 8]].concat();
    for bytes in [
        Vec::new(),
        vec![0],
        nested,
        huge,
        number,
        vec![0xd2; 5_000],
        vec![0xbf; 5_000],
    ] {
        opened.refused(&URL_SAFE_NO_PAD.encode(bytes), "E_TOKEN_MALFORMED");
    }
    for text in ["", " ", "\u{0}", "../..", "=====", "\u{fffd}", "e30="] {
        opened.refused(text, "E_TOKEN_MALFORMED");
    }
    for body in [
        json!({ "token": 5 }),
        json!({ "token": null }),
        json!([]),
        json!({}),
    ] {
        let answer = opened.api.request(
            "POST",
            &format!("/v1/tunnels/{}/attach", opened.tunnel),
            Some(&body),
        );
        assert_eq!(answer.unwrap().body["code"], "E_BAD_REQUEST");
    }
    let too_large = opened.attach(&"a".repeat(100_000));
    assert!((400..500).contains(&too_large.status), "{}", too_large.body);
    opened.good();
}
