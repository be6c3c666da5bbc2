//! `tunnel login` and `tunnel logout`.

use std::io::Read as _;
use std::sync::Arc;

use ring::digest::{SHA256, digest};
use serde::Serialize;
use tunnel_certs::{KeyPair, Trust, pem};
use tunnel_net::ServerAddr;
use tunnel_net::clock::SystemClock;
use tunnel_net::tls;
use tunnel_proto::api::{EnrolAnswer, EnrolRequest};
use tunnel_proto::enrol::EnrolCode;
use tunnel_proto::ids::hex;
use tunnel_proto::{Code, OperatorName};
use zeroize::Zeroizing;

use super::{Context, time_text};
use crate::api::Api;
use crate::args;
use crate::failure::Failure;
use crate::home::{self, NewLogin, PENDING, Profile};
use crate::output;

const WHAT: &str = "could not log in";

#[derive(Serialize)]
struct LoggedIn {
    identity: String,
    server: String,
    expires_at: u64,
    home: String,
}

/// Makes a key, has it certified, checks what came back, and keeps it.
///
/// # Errors
/// Tells what is wrong with the code, the server or the directory.
pub async fn login(context: &Context, args: args::Login) -> Result<(), Failure> {
    context.home.create()?;
    let text = if args.code == "-" {
        read_code()?
    } else {
        Zeroizing::new(args.code)
    };
    let code = EnrolCode::from_text(&text).map_err(|error| {
        Failure::new(Code::BadRequest, WHAT)
            .why(error.to_string())
            .next("copy the whole code, from `tnl1_` to its end")
    })?;
    let server: ServerAddr = code
        .server
        .parse()
        .map_err(|error: tunnel_net::addr::AddrError| {
            Failure::new(Code::BadRequest, WHAT)
                .why(error.to_string())
                .next("ask for a new code")
        })?;
    let server = context.home.on_the_way(server, context.home.proxy().as_deref())?;
    let pending = pending_name(&text);
    let key = pending_key(context, &pending)?;
    let answer = enrol(&server, &code, &key, args.name.as_ref()).await?;
    let (identity, expires_at) = keep(context, &code, &key, &answer)?;
    context.home.remove_pending()?;
    let logged_in = LoggedIn {
        identity,
        server: server.to_string(),
        expires_at,
        home: context.home.dir().display().to_string(),
    };
    context.output.result(&logged_in, || {
        output::fields(&[
            ("logged in as", logged_in.identity.clone()),
            ("server", logged_in.server.clone()),
            ("until", time_text(logged_in.expires_at)),
        ])
    })
}

/// Forgets the login.
///
/// # Errors
/// Tells which file could not be removed.
pub fn logout(context: &Context) -> Result<(), Failure> {
    #[derive(Serialize)]
    struct LoggedOut {
        was_logged_in: bool,
    }
    let was_logged_in = context.home.forget()?;
    context.output.result(&LoggedOut { was_logged_in }, || {
        if was_logged_in {
            "logged out\n".to_owned()
        } else {
            "nobody was logged in\n".to_owned()
        }
    })
}

/// Reads the code from standard input, so that it stands in no list of processes and no shell history.
fn read_code() -> Result<Zeroizing<String>, Failure> {
    let mut text = Zeroizing::new(String::with_capacity(4096));
    std::io::stdin()
        .take(4096)
        .read_to_string(&mut text)
        .map_err(|error| {
            Failure::new(Code::BadRequest, WHAT)
                .why("standard input could not be read")
                .next("give the code as an argument, or pipe it in")
                .detail(error.to_string())
        })?;
    Ok(text)
}

/// Names the file in which the key waits for its certificate. It is bound to the code: if the answer gets lost, the same
/// code and the same key bring the same certificate.
fn pending_name(code: &str) -> String {
    format!(
        "{PENDING}{}.pem",
        hex(&digest(&SHA256, code.trim().as_bytes()).as_ref()[..8])
    )
}

fn pending_key(context: &Context, name: &str) -> Result<KeyPair, Failure> {
    if let Some(key) = context
        .home
        .read_optional(name)?
        .and_then(|pem| KeyPair::from_pem(&pem).ok())
    {
        return Ok(key);
    }
    let key = KeyPair::generate()
        .map_err(|error| Failure::new(Code::Internal, "could not make a key").detail(error.to_string()))?;
    context.home.write(name, key.to_pem().as_bytes())?;
    Ok(key)
}

async fn enrol(
    server: &ServerAddr,
    code: &EnrolCode,
    key: &KeyPair,
    name: Option<&OperatorName>,
) -> Result<EnrolAnswer, Failure> {
    let csr = tunnel_certs::request(key).map_err(|error| {
        Failure::new(Code::Internal, "could not make a request").detail(error.to_string())
    })?;
    let request = EnrolRequest {
        secret: hex(code.secret.expose()),
        id: name.map(ToString::to_string),
        csr,
    };
    let config = tls::enrol_client(code.root_fingerprint, Arc::new(SystemClock));
    let mut api = Api::with_tls(server.clone(), config);
    api.enrol(&request)
        .await
        .map_err(|error| error.into_failure(WHAT))
}

/// Checks that what came back proves, under the root that the code names, that this key is an operator's, and keeps it.
fn keep(
    context: &Context,
    code: &EnrolCode,
    key: &KeyPair,
    answer: &EnrolAnswer,
) -> Result<(String, u64), Failure> {
    let failed = |code: Code, detail: &str| Failure::new(code, WHAT).detail(detail);
    let root =
        Trust::from_pem(&answer.root).map_err(|error| failed(error.code(), "the server sent no root"))?;
    if root.fingerprint() != code.root_fingerprint {
        return Err(failed(
            Code::CertUnknownCa,
            "the server's root is not the one that the code names",
        ));
    }
    let chain =
        pem::read_chain(&answer.chain).map_err(|error| failed(error.code(), "the server sent no chain"))?;
    let (peer, _) = home::check(&root, &chain, key)?;
    let profile = Profile {
        server: code.server.clone(),
        udp_port: answer.udp_port,
        proxy: context.home.proxy(),
    };
    let chain = pem::write_chain(&chain);
    context.home.save(&NewLogin {
        key,
        chain: &chain,
        root: &root.to_pem(),
        profile: &profile,
    })?;
    Ok((peer.identity.to_string(), peer.not_after.as_secs()))
}
