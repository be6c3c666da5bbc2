//! `tunnel lock`: the owner's keys, and what they sign. Nothing here asks the server anything.

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use ring::rand::SecureRandom as _;
use serde::Serialize;
use tunnel_certs::Trust;
use tunnel_net::clock::{Clock as _, SystemClock};
use tunnel_net::files;
use tunnel_proto::Code;
use tunnel_proto::cose::{SigningKey, VerifyingKey};
use tunnel_proto::ids::hex;
use tunnel_proto::keys::Secret;
use tunnel_proto::lock::{
    Access, Lock, LockError, MAX_WINDOW, NewRoot, Permit, Statement, Window, key_from_text, key_to_text,
};

use super::{Context, list_text, time_text};
use crate::args;
use crate::failure::Failure;
use crate::{output, ssh};

/// More bytes than any permit or lock has.
const MAX_FILE: u64 = 16 * 1024;

/// Runs one of the subcommands.
///
/// # Errors
/// Tells what is wrong with arguments or files.
pub fn lock(context: &Context, args: args::Lock) -> Result<(), Failure> {
    match args {
        args::Lock::Init(args) => init(context, &args),
        args::Lock::Request(args) => request(context, args),
        args::Lock::RequestRoot(args) => request_root(context, &args),
        args::Lock::Sign(args) => sign(context, &args),
        args::Lock::Show(args) => show(context, &args),
    }
}

/// Reads a permit and returns it as it travels, for the request of a tunnel.
///
/// # Errors
/// Tells that the file holds none.
pub fn permit_to_show(file: &Path) -> Result<Vec<u8>, Failure> {
    read::<Permit>(file, "could not use the permit").map(|permit| permit.to_bytes())
}

#[derive(Serialize)]
struct Made {
    lock: String,
    lock_file: PathBuf,
    key_files: Vec<PathBuf>,
    threshold: u8,
}

/// Makes keys and lock. The lock comes last: without it the keys lock nothing.
fn init(context: &Context, args: &args::LockInit) -> Result<(), Failure> {
    const WHAT: &str = "could not make the lock";
    let key_files: Vec<_> = (1..=args.keys)
        .map(|number| args.out.join(format!("lock-{number}.key")))
        .collect();
    let lock_file = args.out.join("fleet.lock");
    if let Some(taken) = key_files.iter().chain([&lock_file]).find(|file| exists(file)) {
        return Err(exists_already(WHAT, taken));
    }
    let mut seeds = Vec::new();
    for _ in &key_files {
        seeds.push(Secret::new(random(WHAT)?));
    }
    let keys = seeds.iter().filter_map(SigningKey::from_seed);
    let keys = keys.map(|key| key.verifying_key()).collect();
    let lock = Lock::new(args.threshold, keys).map_err(|error| {
        Failure::new(Code::BadRequest, WHAT).why(error.to_string()).next(
            "choose how many keys there are with `--keys`, and how many of them sign with `--threshold`",
        )
    })?;
    for (file, seed) in key_files.iter().zip(&seeds) {
        write(file, &key_to_text(seed), WHAT)?;
    }
    write(&lock_file, &lock.to_text(), WHAT)?;
    let made = Made {
        lock: lock.to_text(),
        lock_file,
        key_files,
        threshold: args.threshold,
    };
    context.output.result(&made, || {
        let mut rows: Vec<_> = made
            .key_files
            .iter()
            .map(|file| ("key", path_text(file)))
            .collect();
        rows.push(("lock", path_text(&made.lock_file)));
        rows.push(("needed", signatures_text(made.threshold.into())));
        let config = format!("lock = \"{}\"\n", made.lock);
        output::fields(&rows) + "put this line at the top of each agent's configuration:\n" + &config
    })?;
    context
        .output
        .note("each key belongs to another person and place, and none to a machine that the server reaches");
    Ok(())
}

/// Writes what the owner's keys are to sign, so that this login may use locked services.
fn request(context: &Context, args: args::LockRequest) -> Result<(), Failure> {
    const WHAT: &str = "could not make the request";
    let device = ssh::device(&args.device)?;
    let login = context.home.login()?;
    let mut services = args.services;
    services.sort();
    services.dedup();
    let file = args
        .out
        .unwrap_or_else(|| PathBuf::from(format!("{device}.permit")));
    let access = Access {
        trust_domain: login.trust.trust_domain().clone(),
        operator: login.operator,
        holder_key: login.peer.key,
        device,
        services,
        window: window(&args.when)?,
        nonce: random(WHAT)?,
    };
    keep_request(context, Statement::Access(access), &file, WHAT)
}

/// Writes what the owner's keys are to sign, so that devices may change over to another root.
fn request_root(context: &Context, args: &args::LockRequestRoot) -> Result<(), Failure> {
    const WHAT: &str = "could not make the request";
    let text = read_text(&args.root, WHAT)?;
    let root = Trust::from_pem(&text).map_err(|error| {
        wrong_file(WHAT, &args.root)
            .why(format!("`{}` is no root: {error}", args.root.display()))
            .next("name the root certificate of the fleet to come, in PEM")
    })?;
    let file = args.out.clone().unwrap_or_else(|| PathBuf::from("root.permit"));
    let new = NewRoot {
        root: root.fingerprint(),
        window: window(&args.when)?,
        nonce: random(WHAT)?,
    };
    keep_request(context, Statement::NewRoot(new), &file, WHAT)
}

fn keep_request(context: &Context, statement: Statement, file: &Path, what: &str) -> Result<(), Failure> {
    if exists(file) {
        return Err(exists_already(what, file));
    }
    let permit = Permit::request(statement);
    // What no device would read is not worth signing.
    if Permit::from_bytes(&permit.to_bytes()).is_err() {
        return Err(Failure::new(Code::BadRequest, what)
            .why("it asks for too much at once")
            .next("ask for fewer services"));
    }
    write(file, &permit.to_text(), what)?;
    tell(context, &permit, file, None)
}

/// Adds signatures to a request.
fn sign(context: &Context, args: &args::LockSign) -> Result<(), Failure> {
    const WHAT: &str = "could not sign";
    let mut permit: Permit = read(&args.file, WHAT)?;
    for file in &args.key {
        if !permit.sign(&read_key(file, WHAT)?) {
            return Err(Failure::new(Code::BadRequest, WHAT)
                .why("the permit has as many signatures as it can have")
                .next("make a new request"));
        }
    }
    write(&args.file, &permit.to_text(), WHAT)?;
    tell(context, &permit, &args.file, None)
}

/// Shows a permit, and with a lock whether it opens it; or a lock.
fn show(context: &Context, args: &args::LockShow) -> Result<(), Failure> {
    const WHAT: &str = "could not show it";
    let lock = match &args.lock {
        Some(file) => Some(read::<Lock>(file, WHAT)?),
        None => None,
    };
    let text = read_text(&args.file, WHAT)?;
    if let Ok(lock) = text.parse::<Lock>() {
        return show_lock(context, &lock);
    }
    let permit = parse(&text, &args.file, WHAT)?;
    tell(context, &permit, &args.file, lock.as_ref())
}

fn show_lock(context: &Context, lock: &Lock) -> Result<(), Failure> {
    #[derive(Serialize)]
    struct Shown {
        threshold: u8,
        keys: Vec<String>,
    }
    let shown = Shown {
        threshold: lock.threshold(),
        keys: lock.keys().iter().map(key_name).collect(),
    };
    context.output.result(&shown, || {
        let mut rows: Vec<_> = shown.keys.iter().map(|key| ("key", key.clone())).collect();
        rows.push(("needed", signatures_text(shown.threshold.into())));
        output::fields(&rows)
    })
}

/// What is told of a permit.
#[derive(Serialize)]
struct Shown {
    file: PathBuf,
    permits: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    operator: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    holder_key: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    device: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    services: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    root: Option<String>,
    from: u64,
    until: u64,
    signatures: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    opens: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    signed_by: Option<Vec<String>>,
}

fn tell(context: &Context, permit: &Permit, file: &Path, lock: Option<&Lock>) -> Result<(), Failure> {
    let access = permit.access();
    let root = match permit.statement() {
        Statement::NewRoot(new) => Some(hex(&new.root)),
        Statement::Access(_) => None,
    };
    let window = permit.window();
    let shown = Shown {
        file: file.to_owned(),
        permits: if access.is_some() { "access" } else { "new root" },
        operator: access.map(|access| access.operator.to_string()),
        holder_key: access.map(|access| access.holder_key.to_string()),
        device: access.map(|access| access.device.to_string()),
        services: access.map_or_else(Vec::new, |access| {
            access.services.iter().map(ToString::to_string).collect()
        }),
        root,
        from: window.from.as_secs(),
        until: window.until.as_secs(),
        signatures: permit.signatures(),
        opens: lock.map(|lock| lock.verify(permit).is_ok()),
        signed_by: lock.map(|lock| lock.signers(permit).iter().map(key_name).collect()),
    };
    context
        .output
        .result(&shown, || text(&shown, lock.map(Lock::threshold)))
}

fn text(shown: &Shown, threshold: Option<u8>) -> String {
    let mut rows = vec![
        ("file", path_text(&shown.file)),
        ("permits", shown.permits.to_owned()),
    ];
    let some = [
        ("operator", &shown.operator),
        ("with the key", &shown.holder_key),
        ("device", &shown.device),
        ("root", &shown.root),
    ];
    rows.extend(
        some.into_iter()
            .filter_map(|(name, value)| Some((name, value.clone()?))),
    );
    if !shown.services.is_empty() {
        rows.push(("services", list_text(&shown.services)));
    }
    rows.push(("from", time_text(shown.from)));
    rows.push(("until", time_text(shown.until)));
    match (&shown.signed_by, threshold) {
        (Some(signers), Some(threshold)) => {
            rows.push(("signed by", list_text(signers)));
            rows.push(("needed", signatures_text(threshold.into())));
            let opens = if shown.opens == Some(true) { "yes" } else { "no" };
            rows.push(("opens the lock", opens.to_owned()));
        }
        _ => rows.push(("signed by", signatures_text(shown.signatures))),
    }
    output::fields(&rows)
}

fn window(when: &args::When) -> Result<Window, Failure> {
    let start = when.after.map(|span| span.0).unwrap_or_default();
    if when.lasts.0 > MAX_WINDOW {
        let most = MAX_WINDOW.as_secs() / (24 * 3600);
        return Err(Failure::new(Code::BadRequest, "could not make the request")
            .why(format!("a permit holds {most} days at most"))
            .next("ask for less with `--for`"));
    }
    let from = SystemClock.now().after(start);
    Ok(Window {
        from,
        until: from.after(when.lasts.0),
    })
}

fn random<const N: usize>(what: &str) -> Result<[u8; N], Failure> {
    let mut bytes = [0; N];
    ring::rand::SystemRandom::new()
        .fill(&mut bytes)
        .map_err(|_| Failure::new(Code::Internal, what).why("the system has no random bytes"))?;
    Ok(bytes)
}

fn key_name(key: &VerifyingKey) -> String {
    hex(&key.id())
}

fn path_text(path: &Path) -> String {
    path.display().to_string()
}

fn signatures_text(count: usize) -> String {
    let word = if count == 1 { "key" } else { "keys" };
    format!("{count} {word}")
}

fn exists(file: &Path) -> bool {
    file.symlink_metadata().is_ok()
}

fn exists_already(what: &str, file: &Path) -> Failure {
    wrong_file(what, file)
        .why(format!("`{}` is there already", file.display()))
        .next("keep it, and name another place with `--out`")
}

fn wrong_file(what: &str, file: &Path) -> Failure {
    Failure::new(Code::BadRequest, what)
        .why(format!("`{}` cannot be used", file.display()))
        .next("check the file")
}

/// Reads a key, which nobody else may be able to.
fn read_key(file: &Path, what: &str) -> Result<SigningKey, Failure> {
    let text = files::read_private_text(file).map_err(|error| {
        let text = error.to_string();
        let failure = wrong_file(what, file);
        let failure = match text.split_once("; ") {
            Some((why, next)) => failure.why(why).next(next),
            None => failure.why(text),
        };
        match std::error::Error::source(&error) {
            Some(source) => failure.detail(source.to_string()),
            None => failure,
        }
    })?;
    key_from_text(&text).map_err(|error| no(file, what, error, "name a key that `tunnel lock init` made"))
}

fn read<T: std::str::FromStr<Err = LockError>>(file: &Path, what: &str) -> Result<T, Failure> {
    parse(&read_text(file, what)?, file, what)
}

fn parse<T: std::str::FromStr<Err = LockError>>(text: &str, file: &Path, what: &str) -> Result<T, Failure> {
    text.parse()
        .map_err(|error| no(file, what, error, "name the right file, and the whole of it"))
}

fn no(file: &Path, what: &str, error: LockError, next: &str) -> Failure {
    wrong_file(what, file)
        .why(format!("`{}` is not what is needed: {error}", file.display()))
        .next(next)
}

fn read_text(file: &Path, what: &str) -> Result<String, Failure> {
    let mut text = String::new();
    File::open(file)
        .and_then(|opened| opened.take(MAX_FILE).read_to_string(&mut text))
        .map_err(|error| wrong_file(what, file).detail(error.to_string()))?;
    Ok(text)
}

fn write(file: &Path, word: &str, what: &str) -> Result<(), Failure> {
    files::write_private(file, format!("{word}\n").as_bytes()).map_err(|error| {
        let failure = wrong_file(what, file)
            .why(error.to_string())
            .next("check the directory, its owner and its free space");
        match std::error::Error::source(&error) {
            Some(source) => failure.detail(source.to_string()),
            None => failure,
        }
    })
}
