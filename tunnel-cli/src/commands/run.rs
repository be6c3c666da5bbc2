//! `tunnel run`: a batch of commands on one device or on several.

mod output;

use std::sync::Arc;

use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tunnel_proto::batch::{Batch, Ran};
use tunnel_proto::{Code, DeviceId, ServiceName};

use self::output::Device;
use super::Context;
use crate::escape::escape_json;
use crate::failure::Failure;
use crate::home::Login;
use crate::output::Output;
use crate::signals::Signals;
use crate::tunnel::commands::Running;
use crate::tunnel::session::{self, SessionError};
use crate::tunnel::{Ask, Tunnel, Wish};
use crate::{args, batch, ssh};

/// How many outputs wait to be written before devices are read no further.
const QUEUE: usize = 16;

/// What is run, and how tunnels are asked for.
struct Job {
    login: Login,
    service: ServiceName,
    batch: Batch,
    ask: Ask,
    talk: Output,
    stop: CancellationToken,
}

/// What comes of a device, by its number.
enum News {
    Ran(usize, Ran),
    Done(usize, Result<(), Failure>),
}

/// Runs a batch on each of the devices.
///
/// # Errors
/// Tells of the first device, in the order in which they were named, on which not all went well.
pub async fn run(context: &Context, args: args::Run, ask: Ask) -> Result<(), Failure> {
    let batch = match &args.commands {
        Some(file) => batch::from_file(file)?,
        None => batch::of_words(args.command)?,
    };
    let names = args.devices.0.iter().map(|text| ssh::device(text));
    let mut names = names.collect::<Result<Vec<_>, _>>()?;
    let mut seen = std::collections::BTreeSet::new();
    names.retain(|name| seen.insert(name.clone()));
    let mut signals = Signals::new()?;
    let job = Arc::new(Job {
        login: context.home.login()?,
        service: args.service,
        ask: Ask {
            batch: Some(batch.hash()),
            ..ask
        },
        batch,
        talk: context.output,
        stop: CancellationToken::new(),
    });
    let several = names.len() > 1;
    let mut devices: Vec<_> = names
        .iter()
        .map(|name| Device::new(name.clone(), several, &job.batch, context.output))
        .collect();
    let (tell, mut news) = mpsc::channel(QUEUE);
    let (mut running, mut waiting) = (JoinSet::new(), names.into_iter().enumerate());
    let mut broken = None;
    loop {
        while broken.is_none() && running.len() < usize::from(args.parallel) {
            let Some((number, device)) = waiting.next() else {
                break;
            };
            running.spawn(on_device(job.clone(), number, device, tell.clone()));
        }
        if running.is_empty() && news.is_empty() {
            break;
        }
        let told = tokio::select! {
            biased;
            () = signals.any() => Err(Failure::interrupted()),
            Some(told) = news.recv() => match told {
                News::Ran(number, ran) => devices[number].ran(ran),
                News::Done(number, result) => devices[number].done(result),
            },
            Some(ended) = running.join_next() => ended.map_err(|error| {
                Failure::new(Code::Internal, "a device's part failed").detail(error.to_string())
            }),
        };
        if let Err(failure) = told {
            // What runs on devices is ended before this program is.
            job.stop.cancel();
            broken.get_or_insert(failure);
        }
    }
    match broken {
        Some(failure) => Err(failure),
        None => output::verdict(devices),
    }
}

/// Runs the batch on one device and tells what comes of it.
async fn on_device(job: Arc<Job>, number: usize, device: DeviceId, tell: mpsc::Sender<News>) {
    let result = in_tunnel(&job, number, &device, &tell).await;
    // It fails only when nobody listens any more.
    let _ = tell.send(News::Done(number, result)).await;
}

async fn in_tunnel(
    job: &Job,
    number: usize,
    device: &DeviceId,
    tell: &mpsc::Sender<News>,
) -> Result<(), Failure> {
    let wish = Wish {
        device: device.clone(),
        services: vec![job.service.clone()],
        ask: job.ask.clone(),
    };
    let tunnel = tokio::select! {
        tunnel = Tunnel::open(&job.login, &wish, job.talk, |_| Ok(())) => tunnel?,
        () = job.stop.cancelled() => return Err(Failure::interrupted()),
    };
    let result = tokio::select! {
        ran = carry(job, number, device, &tunnel, tell) => match ran {
            Ok(()) => Ok(()),
            Err(SessionError::Tunnel) => Err(tunnel.ended().await),
            Err(error) => Err(failure(&error, device)),
        },
        failure = tunnel.ended() => Err(failure),
        never = tunnel.tell_silence(job.talk) => match never {},
        () = job.stop.cancelled() => Err(Failure::interrupted()),
    };
    tunnel.close().await;
    result
}

async fn carry(
    job: &Job,
    number: usize,
    device: &DeviceId,
    tunnel: &Tunnel,
    tell: &mpsc::Sender<News>,
) -> Result<(), SessionError> {
    let slow = || {
        let text = session::slow_text(&job.service);
        job.talk.note(&format!("{device}: {text}"));
    };
    let mut running = Running::start(tunnel.connection(), &job.service, &job.batch, slow).await?;
    while let Some(ran) = running.next().await? {
        // It fails only when nobody listens any more.
        let _ = tell.send(News::Ran(number, ran)).await;
    }
    Ok(())
}

fn failure(error: &SessionError, device: &DeviceId) -> Failure {
    let what = format!("could not run the commands on `{device}`");
    match error {
        SessionError::Refused(refusal) => Failure::refused(refusal, what),
        SessionError::Broken | SessionError::Tunnel | SessionError::Local(_) => {
            Failure::new(Code::TunnelLost, what)
                .why("the device broke off before every command had ended")
                .next("try again; `tunnel sessions` tells what the device said of it")
        }
    }
}

/// Writes a batch as lines of a file that is the same batch, harmless for a terminal.
pub fn shown(commands: &[Vec<String>]) -> String {
    let lines = commands
        .iter()
        .map(|words| format!("  {}\n", escape_json(&batch::line(words))));
    lines.collect()
}
