//! One session: one stream of a tunnel, decided by itself, joined to one local connection.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Instant;

use quinn::{RecvStream, SendStream, VarInt};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tunnel_net::clock::Clock;
use tunnel_net::stream::{self, MessageError};
use tunnel_proto::ServiceName;
use tunnel_proto::batch::Batch;
use tunnel_proto::code::Code;
use tunnel_proto::frame;
use tunnel_proto::message::{EndedBy, FromAgent, OpenSession, SessionAnswer, SessionEnd, SessionEnded};

use crate::acceptance::ServerTime;
use crate::commands::{self, Commands};
use crate::connect::{Reader, Writer, connect};
use crate::consent::Consent;
use crate::defaults::OPEN_DEADLINE;
use crate::lifetime::Lifetime;
use crate::operator::Operator;
use crate::policy::{LocalPolicy, Right};
use crate::sessions::{Permit, Sessions};
use crate::target::Target;

/// Longest name of a service that a report repeats, in characters.
const MAX_REPORTED: usize = 64;

/// What the owner lets happen at this moment, and whether the server can record it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Settings {
    /// The owner's policy.
    pub policy: LocalPolicy,
    /// Whether the owner lets anybody in.
    pub access: bool,
    /// Whether the server can record what happens, as it said last.
    pub recording: bool,
}

/// What all sessions of one tunnel share.
#[derive(Debug)]
pub(crate) struct Context {
    pub(crate) right: Right,
    pub(crate) settings: watch::Receiver<Arc<Settings>>,
    pub(crate) sessions: Sessions,
    pub(crate) life: Mutex<Lifetime>,
    pub(crate) reports: mpsc::Sender<FromAgent>,
    pub(crate) operator: Operator,
    /// What a person on site says to it.
    pub(crate) consent: Consent,
    /// The server's time.
    pub(crate) time: ServerTime,
    /// The device's own.
    pub(crate) clock: Arc<dyn Clock>,
    /// Ends all sessions of the tunnel.
    pub(crate) cut: CancellationToken,
    /// Why the tunnel has ended, once it has.
    pub(crate) ended: OnceLock<Code>,
    /// How many sessions of the tunnel have a number.
    pub(crate) numbered: AtomicU64,
}

/// A session that was let in; counted out when it is dropped.
struct Admitted<'a> {
    context: &'a Context,
    name: ServiceName,
    target: Target,
    _permit: Permit,
}

impl Admitted<'_> {
    /// Returns what the owner says of commands at this moment; nothing where none are run any more.
    fn commands(&self) -> Option<Commands> {
        let settings = self.context.settings.borrow();
        match &settings.policy.services.get(&self.name)?.target {
            Target::Commands(commands) => Some(commands.clone()),
            _ => None,
        }
    }
}

impl Drop for Admitted<'_> {
    fn drop(&mut self) {
        self.context.life().session_ended(Instant::now());
    }
}

impl Context {
    pub(crate) fn life(&self) -> std::sync::MutexGuard<'_, Lifetime> {
        self.life.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says when a session started and what ended it. A stream that breaks because the tunnel has ended is not broken off.
    fn end(&self, record: &Record) -> SessionEnd {
        let ended = self.ended.get().copied();
        let by = match (record.by, ended) {
            (EndedBy::Operator | EndedBy::Tunnel, Some(_)) => EndedBy::Tunnel,
            (by, _) => by,
        };
        SessionEnd {
            started_at: self.time.now(record.started),
            by,
            cause: ended.filter(|_| by == EndedBy::Tunnel),
        }
    }

    /// Waits until somebody on site has said yes, where the service that is wanted asks for that.
    async fn consented(&self, asked: &str) -> Result<(), Code> {
        let settings = Arc::clone(&self.settings.borrow());
        let (_, service) = settings.policy.session(&self.right, asked, self.clock.now())?;
        match service.asks {
            true => self.consent.given().await,
            false => Ok(()),
        }
    }

    /// Decides about one session: the owner's switch, grant and local policy, then room on the device and in the grant.
    fn admit(&self, asked: &str) -> Result<Admitted<'_>, Code> {
        let settings = Arc::clone(&self.settings.borrow());
        if !settings.access {
            return Err(Code::AccessOff);
        }
        if !settings.recording {
            return Err(Code::AuditUnavailable);
        }
        let (name, service) = settings.policy.session(&self.right, asked, self.clock.now())?;
        let permit = self
            .sessions
            .admit(&name, &settings.policy, &self.operator, Instant::now())?;
        self.life().session_started()?;
        Ok(Admitted {
            context: self,
            target: service.target.clone(),
            name,
            _permit: permit,
        })
    }
}

/// What an admitted session is joined to.
enum Service {
    /// A connection on the device.
    Connection(Reader, Writer),
    /// Commands that were admitted.
    Commands(Batch),
}

/// What is told of a session when it is over.
struct Record {
    service: String,
    refused: Option<Code>,
    /// Whether it has got no further than to wait for somebody on site.
    waits: bool,
    started: Instant,
    bytes_in: u64,
    bytes_out: u64,
    /// Who ended it; the tunnel's end, unless something else did before.
    by: EndedBy,
}

/// Serves one stream to its end, or until the tunnel is cut.
pub(crate) async fn run(context: Arc<Context>, send: SendStream, recv: RecvStream) {
    let mut record = None;
    tokio::select! {
        () = serve(&context, send, recv, &mut record) => {}
        () = context.cut.cancelled() => {}
    }
    if let Some(record) = record {
        let end = context.end(&record);
        let ended = SessionEnded {
            tunnel: context.right.grant.tunnel,
            service: record.service,
            refused: record
                .refused
                .or_else(|| record.waits.then(|| context.consent.missing())),
            millis: u64::try_from(record.started.elapsed().as_millis()).unwrap_or(u64::MAX),
            bytes_in: record.bytes_in,
            bytes_out: record.bytes_out,
            end: Some(end),
            number: Some(context.numbered.fetch_add(1, Ordering::Relaxed)),
            dropped: None,
        };
        // It fails only when the agent stops without waiting.
        let _ = context.reports.send(FromAgent::SessionEnded(ended)).await;
    }
}

async fn serve(context: &Context, mut send: SendStream, mut recv: RecvStream, record: &mut Option<Record>) {
    let asked = match read_first(stream::read_message::<OpenSession>(&mut recv)).await {
        Ok(Some(asked)) => asked.service,
        Ok(None) => return,
        Err(code) => return refuse(send, recv, code).await,
    };
    let record = record.insert(Record {
        service: asked.chars().take(MAX_REPORTED).collect(),
        refused: None,
        waits: true,
        started: Instant::now(),
        bytes_in: 0,
        bytes_out: 0,
        by: EndedBy::Tunnel,
    });
    let consented = context.consented(&asked).await;
    record.waits = false;
    let opened = async {
        consented?;
        let admitted = context.admit(&asked)?;
        let service = match &admitted.target {
            Target::Commands(rules) => {
                let batch = read_batch(&mut recv, record).await?;
                rules.admit(&batch, context.right.grant.batch)?;
                Service::Commands(batch)
            }
            target => {
                let (reader, writer) = connect(target).await?;
                Service::Connection(reader, writer)
            }
        };
        Ok((admitted, service))
    };
    match opened.await {
        Ok((admitted, service)) => {
            tracing::debug!(service = record.service, "session");
            if stream::write_message(&mut send, &SessionAnswer { refused: None })
                .await
                .is_ok()
            {
                match service {
                    Service::Connection(reader, writer) => join(send, recv, reader, writer, record).await,
                    Service::Commands(batch) => run_batch(&batch, &admitted, send, record).await,
                }
            }
        }
        Err(code) => {
            tracing::debug!(service = record.service, %code, "session refused");
            record.refused = Some(code);
            record.by = EndedBy::Both;
            refuse(send, recv, code).await;
        }
    }
}

/// Reads what the operator says first; `None` when the stream broke before it was said.
async fn read_first<M>(reading: impl Future<Output = Result<M, MessageError>>) -> Result<Option<M>, Code> {
    match tokio::time::timeout(OPEN_DEADLINE, reading).await {
        Ok(Ok(message)) => Ok(Some(message)),
        Ok(Err(MessageError::Frame(_))) => Err(Code::Protocol),
        Ok(Err(MessageError::Ended | MessageError::Stream(_))) => Ok(None),
        Err(_) => Err(Code::Deadline),
    }
}

/// Reads which commands are to be run.
async fn read_batch(recv: &mut RecvStream, record: &mut Record) -> Result<Batch, Code> {
    let batch: Batch = read_first(stream::read_message(recv))
        .await?
        .ok_or(Code::Protocol)?;
    record.bytes_in = frame::encode(&batch).len() as u64;
    Ok(batch)
}

/// Tells the operator why there is no session. The code is all that it learns.
async fn refuse(mut send: SendStream, mut recv: RecvStream, code: Code) {
    let _ = recv.stop(VarInt::from_u32(0));
    let answer = SessionAnswer {
        refused: Some(code.into()),
    };
    if stream::write_message(&mut send, &answer).await.is_ok() {
        let _ = send.finish();
    }
}

/// Carries bytes both ways; each direction ends by itself (THREATS AGT-13).
async fn join(send: SendStream, recv: RecvStream, reader: Reader, writer: Writer, record: &mut Record) {
    // Counted in the record as they go, so that a session that is cut has its figures too.
    let (up, down) = tokio::join!(
        stream::outwards(send, reader, &mut record.bytes_out),
        stream::inwards(recv, writer, &mut record.bytes_in),
    );
    record.by = EndedBy::Both;
    if let Some(error) = up.err().or(down.err()) {
        tracing::debug!(%error, "session broke off");
        record.by = who_broke_off(&error);
    }
}

/// Runs commands; dropped, it ends them (THREATS AGT-13).
async fn run_batch(batch: &Batch, admitted: &Admitted<'_>, send: SendStream, record: &mut Record) {
    tracing::info!(batch = %batch.hash(), commands = batch.commands().len(), "commands");
    let rules = || admitted.commands();
    let ran = commands::run::run(batch, rules, send, &mut record.bytes_out).await;
    record.by = EndedBy::Both;
    if let Err(error) = ran {
        tracing::debug!(%error, "commands were broken off");
        record.by = who_broke_off(&error);
    }
}

/// Says whose side an error is of: what the system says of a socket is the service's, and all else the stream's.
fn who_broke_off(error: &io::Error) -> EndedBy {
    match error.raw_os_error() {
        Some(_) => EndedBy::Service,
        None => EndedBy::Operator,
    }
}
