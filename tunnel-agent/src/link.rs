//! The control link: one connection at a time, one stream in it, messages both ways, and a keepalive that proves it.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use quinn::{RecvStream, SendStream};
use rustls::ClientConfig;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::task::AbortOnDropHandle;
use tunnel_net::link::{AttemptError, Link, LinkError, Try};
use tunnel_net::stream::{self, MessageError};
use tunnel_net::{ServerAddr, tls};
use tunnel_proto::UnixTime;
use tunnel_proto::carrier::Carrier;
use tunnel_proto::code::Code;
use tunnel_proto::defaults::KEEPALIVE_ANSWER;
use tunnel_proto::frame::FrameError;
use tunnel_proto::keepalive::{Action, Keepalive};
use tunnel_proto::message::{FromAgent, FromServer, Hello, Ping, Pong};
use tunnel_proto::outage::Cause;

use crate::causes::{self, Found};
use crate::defaults::{CLOSE_DEADLINE, WELCOME_DEADLINE};
use crate::http::connect_code;

/// Messages from the server that wait to be handled; the stream's own window bounds what waits beyond.
const INBOX: usize = 16;

/// How often a ping tells what the link has cost: with each so many. A byte a ping is 3 kB a day behind a bad NAT.
const COST_EACH: u64 = 4;

/// How often it is believed at most that the server was started anew.
const RESTARTS_EVERY: Duration = Duration::from_secs(10);

/// How a link is made.
#[derive(Clone, Debug)]
pub(crate) struct Dial {
    pub(crate) server: ServerAddr,
    pub(crate) tls: quinn::ClientConfig,
    pub(crate) websocket_tls: Arc<ClientConfig>,
    pub(crate) carriers: Try,
    /// How long to wait first.
    pub(crate) pause: Duration,
    /// How often the server is to be asked at least, as the owner's setting wants it.
    pub(crate) ask_every: watch::Receiver<Option<Duration>>,
}

/// What a link tells the agent. `Ended` is the last of them.
#[derive(Debug)]
pub(crate) enum Event {
    /// There is a connection; the agent says how it introduces itself.
    Connected {
        carrier: Carrier,
        server_ip: Option<IpAddr>,
        connection: quinn::Connection,
        opening: oneshot::Sender<Opening>,
    },
    /// The server said something.
    Message(FromServer),
    /// The link goes on over another carrier.
    Moved(Carrier),
    /// The server answered a keepalive.
    Proven { clock: UnixTime, rtt: Option<Duration> },
    /// There is no link any more.
    Ended(End),
}

/// How the agent introduces itself, and what it says afterwards.
#[derive(Debug)]
pub(crate) struct Opening {
    pub(crate) hello: Hello,
    pub(crate) outbox: mpsc::Receiver<FromAgent>,
}

/// Why there is no link.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct End {
    /// The cause, for the log.
    pub(crate) why: String,
    /// Its code.
    pub(crate) code: Code,
    /// What stood against the link, for the black box.
    pub(crate) causes: Vec<Found>,
}

/// Waits, connects and serves one link, and tells its end.
pub(crate) async fn run(dial: Dial, events: mpsc::Sender<Event>) {
    tokio::time::sleep(dial.pause).await;
    let end = match connect(&dial).await {
        Ok(link) => serve(link, &dial, &events).await,
        Err(error) => End {
            why: error.to_string(),
            code: code_of(&error),
            causes: causes::of_attempts(&error),
        },
    };
    let _ = events.send(Event::Ended(end)).await;
}

async fn connect(dial: &Dial) -> Result<Link, LinkError> {
    let (tls, websocket_tls) = (dial.tls.clone(), Arc::clone(&dial.websocket_tls));
    tunnel_net::link::connect(&dial.server, tls, websocket_tls, dial.carriers).await
}

/// Returns the code of what stood against a link; a matter of trust says more than silence.
pub(crate) fn code_of(error: &LinkError) -> Code {
    let trust = |error: &AttemptError| match error {
        AttemptError::Handshake(error) => tls::connection_refusal(error),
        AttemptError::WebSocket(error) => {
            Some(connect_code(error)).filter(|code| *code != Code::ServerUnreachable)
        }
        _ => None,
    };
    trust(&error.udp)
        .or_else(|| trust(&error.websocket))
        .unwrap_or(Code::ServerUnreachable)
}

async fn serve(link: Link, dial: &Dial, events: &mpsc::Sender<Event>) -> End {
    let (opening, answer) = oneshot::channel();
    let connected = Event::Connected {
        carrier: *link.carrier.borrow(),
        server_ip: link.server_ip,
        connection: link.connection.clone(),
        opening,
    };
    let _ = events.send(connected).await;
    let Ok(opening) = answer.await else {
        return stopped();
    };
    let mut channel = match Channel::open(&link, opening, dial).await {
        Ok(channel) => channel,
        Err(end) => return explain(&link, end),
    };
    let end = match channel.run(events).await {
        Ok(()) => {
            channel.finish().await;
            stopped()
        }
        Err(end) => explain(&link, end),
    };
    let _ = tokio::time::timeout(CLOSE_DEADLINE, async {
        link.connection.close(0u32.into(), b"agent ends the link");
        link.endpoint.wait_idle().await;
    })
    .await;
    end
}

fn stopped() -> End {
    End {
        why: "the agent stops".into(),
        code: Code::TunnelClosed,
        causes: Vec::new(),
    }
}

/// Puts the cause that the connection knows in the place of its effect on a stream.
fn explain(link: &Link, end: End) -> End {
    match link.connection.close_reason() {
        Some(reason) => End {
            code: tls::connection_refusal(&reason).unwrap_or(end.code),
            causes: vec![causes::of_end(&reason)],
            why: reason.to_string(),
        },
        None => end,
    }
}

/// The one stream of a link, with its keepalive.
struct Channel {
    connection: quinn::Connection,
    /// Bytes of headers around each datagram.
    headers: u64,
    send: SendStream,
    inbox: mpsc::Receiver<FromServer>,
    reader: AbortOnDropHandle<String>,
    outbox: mpsc::Receiver<FromAgent>,
    keepalive: Keepalive,
    ask_every: watch::Receiver<Option<Duration>>,
    proof: u64,
    /// The address from which the server hears this agent, as it said last.
    seen_as: String,
    /// How many packets had been sent at the last answer.
    sent: u64,
    carrier: watch::Receiver<Carrier>,
    restarts: watch::Receiver<u64>,
    /// Before then no restart is believed.
    deaf_until: Instant,
}

impl Channel {
    async fn open(link: &Link, opening: Opening, dial: &Dial) -> Result<Self, End> {
        let greet = async {
            let (mut send, recv) = link
                .connection
                .open_bi()
                .await
                .map_err(|error| error.to_string())?;
            let hello = FromAgent::Hello(opening.hello);
            stream::write_message(&mut send, &hello)
                .await
                .map_err(|error| error.to_string())?;
            Ok::<_, String>((send, recv))
        };
        let greeted = tokio::time::timeout(WELCOME_DEADLINE, greet).await;
        let (send, recv) = greeted
            .unwrap_or_else(|_| Err("the server took no message in time".into()))
            .map_err(broken)?;
        let (to_inbox, inbox) = mpsc::channel(INBOX);
        let reader = AbortOnDropHandle::new(tokio::task::spawn(read(recv, to_inbox)));
        let mut channel = Self {
            connection: link.connection.clone(),
            headers: headers(link),
            send,
            inbox,
            reader,
            outbox: opening.outbox,
            keepalive: Keepalive::new(Instant::now()),
            ask_every: dial.ask_every.clone(),
            proof: 0,
            seen_as: String::new(),
            sent: 0,
            carrier: link.carrier.clone(),
            restarts: link.restarts.clone(),
            deaf_until: Instant::now(),
        };
        channel.ask_often_enough();
        Ok(channel)
    }

    /// Lets the keepalive know what the owner wants.
    fn ask_often_enough(&mut self) {
        let longest = *self.ask_every.borrow_and_update();
        self.keepalive.ask_every(Instant::now(), longest);
    }

    /// Runs until the link breaks, or the agent has nothing more to say.
    async fn run(&mut self, events: &mpsc::Sender<Event>) -> Result<(), End> {
        let mut welcome = Some(Instant::now() + WELCOME_DEADLINE);
        loop {
            let next = self.keepalive.next_timeout();
            let timeout = welcome.map_or(next, |welcome| next.min(welcome));
            // All branches are cancel-safe: channels and a timer.
            tokio::select! {
                message = self.inbox.recv() => match message {
                    Some(FromServer::Pong(pong)) => self.handle_pong(pong, events).await,
                    Some(FromServer::Echo(seq)) => self.handle_echo(seq),
                    Some(message) => {
                        if matches!(message, FromServer::Welcome(_)) {
                            welcome = None;
                        }
                        let _ = events.send(Event::Message(message)).await;
                    }
                    None => {
                        let why = (&mut self.reader).await.unwrap_or_else(|error| error.to_string());
                        return Err(broken(why));
                    }
                },
                message = self.outbox.recv() => match message {
                    Some(message) => self.write(&message).await?,
                    None => return Ok(()),
                },
                carrier = changed(&mut self.carrier) => {
                    // What was learnt is of another binding of another NAT.
                    self.keepalive = Keepalive::new(Instant::now());
                    self.ask_often_enough();
                    let _ = events.send(Event::Moved(carrier)).await;
                }
                _ = changed(&mut self.ask_every) => self.ask_often_enough(),
                _ = changed(&mut self.restarts) => self.handle_restart(),
                () = tokio::time::sleep_until(timeout.into()) => {
                    if welcome.is_some_and(|welcome| Instant::now() >= welcome) {
                        return Err(broken("the server did not welcome this agent in time"));
                    }
                    self.handle_timeout().await?;
                }
            }
        }
    }

    async fn handle_pong(&mut self, pong: Pong, events: &mpsc::Sender<Event>) {
        if let Some(seen_as) = pong.seen_as {
            self.seen_as = seen_as;
        }
        self.keepalive
            .handle_pong(Instant::now(), pong.seq, &self.seen_as);
        self.proof = pong.proof;
        self.sent = self.connection.stats().udp_tx.datagrams;
        let _ = events
            .send(Event::Proven {
                clock: pong.clock,
                rtt: self.keepalive.rtt(),
            })
            .await;
    }

    fn handle_echo(&mut self, seq: u64) {
        // The acknowledgement of the first answer went out; whatever else came or went would have had another one go out.
        let alone = self.connection.stats().udp_tx.datagrams <= self.sent + 1;
        self.keepalive.handle_echo(Instant::now(), seq, alone);
    }

    /// Somebody says that the server was started anew: it is asked now and not with the next keepalive. That may be a lie, so
    /// it costs a keepalive now and then and no more.
    fn handle_restart(&mut self) {
        let now = Instant::now();
        if now < self.deaf_until {
            return;
        }
        self.deaf_until = now + RESTARTS_EVERY;
        tracing::info!("the server says that it was started anew");
        self.keepalive.probe(now);
    }

    async fn handle_timeout(&mut self) -> Result<(), End> {
        while let Some(action) = self.keepalive.handle_timeout(Instant::now()) {
            match action {
                Action::Ping { seq, echo_after } => {
                    let ping = self.ping(seq, echo_after);
                    self.write(&FromAgent::Ping(ping)).await?;
                }
                Action::Dead => return Err(silent("the server does not answer the keepalive")),
            }
        }
        Ok(())
    }

    fn ping(&self, seq: u64, echo_after: Option<Duration>) -> Ping {
        let millis = |time: Duration| u32::try_from(time.as_millis()).unwrap_or(u32::MAX);
        let next = self.keepalive.longest_silence().as_secs() + 1;
        Ping {
            seq,
            proof: self.proof,
            next_secs: u32::try_from(next).unwrap_or(u32::MAX),
            rtt_millis: self.keepalive.rtt().map(millis),
            cost_bytes: seq.is_multiple_of(COST_EACH).then(|| self.cost()),
            echo_after_millis: echo_after.map(millis),
        }
    }

    /// Returns what the link has cost so far, both ways, with the headers below it.
    fn cost(&self) -> u64 {
        let stats = self.connection.stats();
        let datagrams = stats.udp_tx.datagrams + stats.udp_rx.datagrams;
        stats.udp_tx.bytes + stats.udp_rx.bytes + datagrams * self.headers
    }

    async fn write(&mut self, message: &FromAgent) -> Result<(), End> {
        let written =
            tokio::time::timeout(KEEPALIVE_ANSWER, stream::write_message(&mut self.send, message)).await;
        match written {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(broken(error.to_string())),
            Err(_) => Err(silent("the server takes no messages")),
        }
    }

    /// Waits until the server has all that was said.
    async fn finish(&mut self) {
        let _ = self.send.finish();
        let _ = tokio::time::timeout(CLOSE_DEADLINE, self.send.stopped()).await;
    }
}

/// Waits until a value changes, as the link's carrier does.
async fn changed<T: Copy>(value: &mut watch::Receiver<T>) -> T {
    match value.changed().await {
        Ok(()) => *value.borrow_and_update(),
        // Nobody can change it any more.
        Err(_) => std::future::pending().await,
    }
}

/// Returns the bytes around each datagram of a link: headers of IP and UDP, or of IP and TCP with those of WebSocket and
/// TLS, and the acknowledgement that TCP answers with.
fn headers(link: &Link) -> u64 {
    let ip = match link.server_ip {
        Some(IpAddr::V6(_)) => 40,
        _ => 20,
    };
    match *link.carrier.borrow() {
        Carrier::Udp => ip + 8,
        Carrier::WebSocket => 2 * (ip + 32) + 8 + 22,
    }
}

fn broken(why: impl Into<String>) -> End {
    let why = why.into();
    End {
        causes: vec![(Cause::LinkBroken, why.clone())],
        why,
        code: Code::ServerUnreachable,
    }
}

/// Nothing comes back over the link any more.
fn silent(why: &str) -> End {
    End {
        causes: vec![(Cause::LinkSilent, why.to_owned())],
        ..broken(why)
    }
}

/// Reads messages into the inbox until the stream ends, and says why it did.
///
/// Kinds of messages that this version does not know are passed over; anything else that is no message ends the link
/// (THREATS AGT-15).
async fn read(mut recv: RecvStream, inbox: mpsc::Sender<FromServer>) -> String {
    loop {
        match stream::read_message(&mut recv).await {
            Ok(message) => {
                if inbox.send(message).await.is_err() {
                    return "the agent ended the link".into();
                }
            }
            Err(MessageError::Frame(FrameError::Content(error))) if error.is_unknown_variant() => {
                tracing::debug!("the server said something that this version does not know");
            }
            Err(error) => return error.to_string(),
        }
    }
}
