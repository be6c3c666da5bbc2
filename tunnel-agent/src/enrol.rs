//! Enrolment: turns a one-time code into this device's certificate.
//!
//! The key is made here and written down before anything is sent. A run that was interrupted is taken up with the same
//! key, and the server answers the same code and key with the same certificate (THREATS ENR-06, AGT-14).

mod root;

pub use root::read_permit;

use std::path::Path;
use std::sync::Arc;

use tunnel_certs::{KeyPair, Trust};
use tunnel_net::clock::{Clock as _, FloorClock};
use tunnel_net::{ServerAddr, files, tls, websocket};
use tunnel_proto::api::{EnrolAnswer, EnrolRequest, ErrorBody};
use tunnel_proto::code::{Code, Refusal};
use tunnel_proto::enrol::EnrolCode;
use tunnel_proto::ids::hex;
use tunnel_proto::lock::Permit;
use tunnel_proto::names::Subject;
use tunnel_proto::{DeviceId, Identity, UnixTime};

use crate::config::Config;
use crate::defaults::ENROL_DEADLINE;
use crate::failure::{Failure, plain};
use crate::http::{self, HttpError};
use crate::state::{StateDir, facts_text, file_failure};

/// What is asked for.
#[derive(Debug)]
pub struct Enrolment<'a> {
    /// The code.
    pub code: &'a EnrolCode,
    /// The id that the device wants; the code may leave a choice.
    pub id: Option<&'a DeviceId>,
    /// Whether an identity that is there already is given up.
    pub replace: bool,
    /// What the owner's keys signed, if the device has a lock and is to believe another root.
    pub permit: Option<Permit>,
    /// The settings, which say how the server is reached.
    pub config: &'a Config,
}

/// What came of it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Enrolled {
    /// Who the device is.
    pub identity: Identity,
    /// Where its server is.
    pub server: ServerAddr,
    /// When its certificate ends.
    pub expires_at: UnixTime,
}

/// What the answer of a server proved.
#[derive(Debug)]
struct Proven {
    trust: Trust,
    identity: Identity,
    expires_at: UnixTime,
    udp_port: u16,
    chain: String,
}

/// Reads an enrolment code.
///
/// # Errors
/// Says what is wrong with it.
pub fn read_code(text: &str) -> Result<EnrolCode, Failure> {
    EnrolCode::from_text(text).map_err(|error| {
        Failure::local(
            "E_ENROL_CODE",
            "could not read the enrolment code",
            error,
            "copy the code once more, from `tnl1_` to its last character",
        )
    })
}

/// Enrols this device.
///
/// # Errors
/// Says what failed, why, and what to do; nothing of an earlier identity is lost then.
pub async fn enrol(asked: &Enrolment<'_>, state: &StateDir) -> Result<Enrolled, Failure> {
    let server: ServerAddr = asked.code.server.parse().map_err(|error| {
        Failure::local(
            "E_ENROL_CODE",
            "could not use the enrolment code",
            error,
            "ask for a new code",
        )
    })?;
    let server = asked.config.on_the_way(server)?;
    state.create()?;
    let _lock = state.lock()?;
    if state.is_enrolled() && !asked.replace {
        return Err(Failure::local(
            "E_ENROLLED",
            "could not enrol",
            format!(
                "`{}` holds the identity of a device already",
                state.path().display()
            ),
            "use `--replace` to give that identity up, or `--state` for another directory",
        ));
    }
    let clock = Arc::new(state.clock());
    root::unlock(asked, state, clock.now())?;
    let key = pending_key(state)?;
    let answer = tokio::time::timeout(ENROL_DEADLINE, ask(asked, &server, &key, Arc::clone(&clock)))
        .await
        .unwrap_or_else(|_| Err(Failure::of(Code::Deadline, failed(&server))))?;
    let proven = prove(&answer, asked, &key, &clock).map_err(|why| {
        Failure::of(Code::CertName, failed(&server))
            .because(why)
            .next("ask the fleet's owner for a new code")
    })?;
    let server = server.with_udp_port(proven.udp_port);
    keep(state, &proven, &server, &key).map_err(|error| {
        file_failure(
            "could not write the device's identity",
            &error,
            "make room and run the same command again",
        )
    })?;
    Ok(Enrolled {
        identity: proven.identity,
        server,
        expires_at: proven.expires_at,
    })
}

fn failed(server: &ServerAddr) -> String {
    format!("could not enrol with `{server}`")
}

/// Returns the key of an enrolment that did not come to its end, or makes a new one and writes it down.
fn pending_key(state: &StateDir) -> Result<KeyPair, Failure> {
    let read = |path: &Path| match files::read_private_text(path) {
        Ok(text) => Ok(KeyPair::from_pem(&text).ok()),
        Err(error) if error.is_missing() => Ok(None),
        Err(error) => {
            let next = format!("remove `{}` and run the command again", path.display());
            Err(file_failure("could not read the device's key", &error, next))
        }
    };
    if let Some(key) = read(&state.pending_key())? {
        return Ok(key);
    }
    // The last steps are: put the key in its place, then write the certificate. In between there is only the key.
    if !state.is_enrolled()
        && let Some(key) = read(&state.key())?
    {
        return Ok(key);
    }
    let key = KeyPair::generate().map_err(|error| {
        Failure::local(
            "E_KEY",
            "could not make a key",
            error,
            "wait until the system has random bytes",
        )
    })?;
    files::write_private(&state.pending_key(), key.to_pem().as_bytes()).map_err(|error| {
        file_failure(
            "could not write the device's key",
            &error,
            "let the agent's user write in the directory",
        )
    })?;
    Ok(key)
}

/// Sends the request and reads the answer.
async fn ask(
    asked: &Enrolment<'_>,
    server: &ServerAddr,
    key: &KeyPair,
    clock: Arc<FloorClock>,
) -> Result<EnrolAnswer, Failure> {
    let csr = tunnel_certs::request(key).map_err(|error| {
        Failure::local(
            "E_KEY",
            "could not sign a request",
            error,
            "wait until the system has random bytes",
        )
    })?;
    let request = EnrolRequest {
        secret: hex(asked.code.secret.expose()),
        id: asked.id.map(ToString::to_string),
        csr,
    };
    let body = serde_json::to_string(&request)
        .map_err(|error| Failure::of(Code::Internal, failed(server)).because(error))?;
    let tls = Arc::new(tls::enrol_client(asked.code.root_fingerprint, clock));
    let mut stream = websocket::connect_tls(server, tls)
        .await
        .map_err(|error| http_failure(&error.into(), server))?;
    let request = http::post(server, "/v1/enrol", &body);
    let answer = http::exchange(&mut stream, &request)
        .await
        .map_err(|error| http_failure(&error, server))?;
    if answer.status == 200 {
        return serde_json::from_slice(&answer.body).map_err(|_| http_failure(&HttpError::Answer, server));
    }
    Err(match serde_json::from_slice::<ErrorBody>(&answer.body) {
        Ok(body) => Failure::refused(
            &Refusal {
                code: body.code,
                detail: body.detail,
            },
            failed(server),
        ),
        Err(_) => Failure::of(Code::Protocol, failed(server))
            .because(format!("it answered with status {} and no reason", answer.status)),
    })
}

/// Checks that the answer holds what was asked for, under the root that the code names.
fn prove(
    answer: &EnrolAnswer,
    asked: &Enrolment<'_>,
    key: &KeyPair,
    clock: &FloorClock,
) -> Result<Proven, String> {
    let trust = Trust::from_pem(&answer.root).map_err(|error| format!("its root is not usable: {error}"))?;
    if trust.fingerprint() != asked.code.root_fingerprint {
        return Err("it sent another root than the code names".into());
    }
    let chain = tunnel_certs::pem::read_chain(&answer.chain).map_err(|error| error.to_string())?;
    let own = crate::state::verify_own(&trust, &chain, clock).map_err(|error| error.to_string())?;
    if own.identity.to_string() != answer.identity {
        return Err(format!(
            "it says `{}`, and its certificate says another name",
            plain(&answer.identity)
        ));
    }
    let Subject::Device(id) = &own.identity.subject else {
        return Err("the code is not for a device, but for an operator's `tunnel login`".into());
    };
    if asked.id.is_some_and(|wanted| wanted != id) {
        return Err(format!(
            "it sent a certificate for `{id}`, which was not asked for"
        ));
    }
    if own.key != key.key_hash() {
        return Err("it sent a certificate for another key".into());
    }
    let chain = tunnel_certs::pem::write_chain(&chain);
    Ok(Proven {
        trust,
        identity: own.identity,
        expires_at: own.not_after,
        udp_port: answer.udp_port,
        chain,
    })
}

/// Writes the new identity. The certificate comes last: without it the device counts as not enrolled, and the same
/// command mends it.
fn keep(
    state: &StateDir,
    proven: &Proven,
    server: &ServerAddr,
    key: &KeyPair,
) -> Result<(), files::FileError> {
    match std::fs::remove_file(state.chain()) {
        Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
            return Err(files::FileError::Io {
                action: "removed",
                path: state.chain(),
                source,
            });
        }
        _ => {}
    }
    files::write_private(&state.key(), key.to_pem().as_bytes())?;
    files::write_private(&state.root(), proven.trust.to_pem().as_bytes())?;
    files::write_private(&state.facts(), facts_text(server, &proven.identity).as_bytes())?;
    files::write_private(&state.chain(), proven.chain.as_bytes())?;
    // Left behind it would only be taken up by a later enrolment, for this same key.
    let _ = std::fs::remove_file(state.pending_key());
    Ok(())
}

/// Makes a failure of an exchange that did not work.
pub(crate) fn http_failure(error: &HttpError, server: &ServerAddr) -> Failure {
    let why = match std::error::Error::source(error) {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    };
    Failure::of(error.code(), failed(server)).because(why)
}

#[cfg(test)]
mod tests {
    use tunnel_certs::{Authority, CertificateRequest};
    use tunnel_proto::keys::Secret;
    use tunnel_proto::lock::{NewRoot, Statement, Window};

    use super::*;
    use crate::testing::{Fleet, lock_key};

    fn code(fleet: &Fleet) -> EnrolCode {
        EnrolCode {
            server: "127.0.0.1:1".into(),
            root_fingerprint: fleet.trust.fingerprint(),
            secret: Secret::new([1; 32]),
        }
    }

    fn answer(authority: &Authority, fleet: &Fleet, key: &KeyPair, who: &str) -> EnrolAnswer {
        let request = CertificateRequest::from_pem(&tunnel_certs::request(key).unwrap()).unwrap();
        let identity: Identity = who.parse().unwrap();
        let chain = fleet.chain(authority, &request, &identity);
        EnrolAnswer {
            identity: who.into(),
            chain,
            root: fleet.trust.to_pem(),
            expires_at: 0,
            udp_port: 7,
        }
    }

    struct World {
        fleet: Fleet,
        key: KeyPair,
        state: StateDir,
        _dir: tempfile::TempDir,
    }

    fn world() -> World {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::new(&dir.path().join("state"));
        state.create().unwrap();
        World {
            fleet: Fleet::new(),
            key: KeyPair::generate().unwrap(),
            state,
            _dir: dir,
        }
    }

    impl World {
        fn prove(&self, answer: &EnrolAnswer, id: Option<&str>) -> Result<Proven, String> {
            let id: Option<DeviceId> = id.map(|id| id.parse().unwrap());
            let code = code(&self.fleet);
            let asked = Enrolment {
                code: &code,
                id: id.as_ref(),
                replace: false,
                permit: None,
                config: &Config::empty(),
            };
            prove(answer, &asked, &self.key, &self.state.clock())
        }
    }

    const PUMP: &str = "spiffe://fleet.example/device/pump";

    #[test]
    fn a_fitting_answer_is_kept_and_loads() {
        let world = world();
        let answer = answer(&world.fleet.authority, &world.fleet, &world.key, PUMP);
        let proven = world.prove(&answer, Some("pump")).unwrap();
        let server: ServerAddr = "relay.example:8443".parse().unwrap();
        keep(
            &world.state,
            &proven,
            &server.clone().with_udp_port(7),
            &world.key,
        )
        .unwrap();
        let enrolled = world.state.load(&world.state.clock()).unwrap();
        assert_eq!(enrolled.own.identity.to_string(), PUMP);
        assert_eq!((enrolled.server.udp_port, enrolled.server.tcp_port), (7, 8443));
        assert!(world.prove(&answer, None).is_ok());
    }

    #[test]
    fn an_answer_that_does_not_fit_is_refused() {
        let world = world();
        let good = answer(&world.fleet.authority, &world.fleet, &world.key, PUMP);
        let why = |answer: &EnrolAnswer, id| world.prove(answer, id).unwrap_err();
        assert!(why(&good, Some("other")).contains("not asked for"));
        let other = EnrolAnswer {
            identity: "spiffe://fleet.example/device/x".into(),
            ..good.clone()
        };
        assert!(why(&other, None).contains("another name"));
        let other_key = answer(
            &world.fleet.authority,
            &world.fleet,
            &KeyPair::generate().unwrap(),
            PUMP,
        );
        assert!(why(&other_key, None).contains("another key"));
        let operator = answer(
            &world.fleet.authority,
            &world.fleet,
            &world.key,
            "spiffe://fleet.example/operator/ana",
        );
        assert!(why(&operator, None).contains("tunnel login"));
        let foreign = Fleet::new();
        let foreign_answer = answer(&foreign.authority, &foreign, &world.key, PUMP);
        assert!(why(&foreign_answer, None).contains("another root"));
        let mixed = EnrolAnswer {
            root: world.fleet.trust.to_pem(),
            ..foreign_answer
        };
        assert!(why(&mixed, None).contains("not of this fleet"));
    }

    // ENR-06, AGT-14
    #[test]
    fn an_interrupted_enrolment_goes_on_with_its_key() {
        let world = world();
        let first = pending_key(&world.state).unwrap();
        assert_eq!(pending_key(&world.state).unwrap().key_hash(), first.key_hash());
        // Cut off after the key was put in its place, before the certificate was written.
        std::fs::rename(world.state.pending_key(), world.state.key()).unwrap();
        assert_eq!(pending_key(&world.state).unwrap().key_hash(), first.key_hash());
        // A whole identity keeps its key until the new one is proven.
        files::write_private(&world.state.chain(), b"x").unwrap();
        assert_ne!(pending_key(&world.state).unwrap().key_hash(), first.key_hash());
        assert_eq!(
            *files::read_private_text(&world.state.key()).unwrap(),
            *first.to_pem()
        );
    }

    #[tokio::test]
    async fn an_identity_is_not_given_up_by_accident() {
        let world = world();
        files::write_private(&world.state.chain(), b"x").unwrap();
        let code = code(&world.fleet);
        let asked = Enrolment {
            code: &code,
            id: None,
            replace: false,
            permit: None,
            config: &Config::empty(),
        };
        assert_eq!(enrol(&asked, &world.state).await.unwrap_err().code, "E_ENROLLED");
        let asked = Enrolment {
            replace: true,
            ..asked
        };
        let failure = enrol(&asked, &world.state).await.unwrap_err();
        assert_eq!((failure.code, failure.exit as u8), ("E_SERVER_UNREACHABLE", 4));
        assert!(world.state.is_enrolled(), "the old identity is still there");
    }

    // T12
    #[tokio::test]
    async fn a_locked_device_changes_over_to_no_root_that_the_owner_has_not_signed() {
        let (world, old) = (world(), Fleet::new());
        files::write_private(&world.state.root(), old.trust.to_pem().as_bytes()).unwrap();
        files::write_private(&world.state.chain(), b"x").unwrap();
        let mut config = Config::empty();
        config.policy.lock = crate::testing::locked_policy().lock;
        let ask = async |code: &EnrolCode, permit: Option<Permit>| {
            let asked = Enrolment {
                code,
                id: None,
                replace: true,
                permit,
                config: &config,
            };
            enrol(&asked, &world.state).await.unwrap_err().code
        };
        let permit = |root, seeds: &[u8]| {
            let window = Window {
                from: world.state.clock().now(),
                until: world.state.clock().now().after(ENROL_DEADLINE),
            };
            let nonce = [1; 16];
            let mut permit = Permit::request(Statement::NewRoot(NewRoot { root, window, nonce }));
            for &seed in seeds {
                assert!(permit.sign(&lock_key(seed)));
            }
            Some(permit)
        };
        let (here, new) = (code(&old), code(&world.fleet));
        let (one, root) = (new.root_fingerprint, here.root_fingerprint);
        assert_eq!(ask(&new, None).await, "E_LOCK_REQUIRED");
        assert_eq!(ask(&new, permit(one, &[1])).await, "E_LOCK_PERMIT");
        assert_eq!(ask(&new, permit(root, &[1, 2])).await, "E_LOCK_SCOPE");
        // What is let through comes as far as the server, which is not there.
        assert_eq!(ask(&new, permit(one, &[1, 2])).await, "E_SERVER_UNREACHABLE");
        assert_eq!(ask(&here, None).await, "E_SERVER_UNREACHABLE");
    }
}
