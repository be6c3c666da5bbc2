//! Sessions that live through faults and check every byte.

use std::io::{BufRead, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::chaos::field::{CHECKED, DEVICE, Opener};
use crate::chaos::pulse::Pulse;
use crate::chaos::service::{Findings, Wish, hold, pour};
use crate::checked::End;
use crate::operator::{CARRIER, Interactive};

/// How a session uses its bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Use {
    /// Both directions at once, at this many bytes each second.
    Bulk(u32),
    /// A few bytes and their answer, then a pause.
    Keys(Duration),
}

/// How a session has gone.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum State {
    /// It is there.
    Live,
    /// It was ended from here, and all has arrived.
    Done,
    /// It was never there: what the program said.
    Refused(String),
    /// It ended by itself, or its bytes are wrong.
    Lost(String),
}

/// What is known of a session.
#[derive(Debug)]
pub struct Shared {
    /// How it has gone, and when that was known.
    state: Mutex<(State, Instant)>,
    stop: AtomicBool,
    /// Whether anything has ever come back.
    opened: AtomicBool,
    /// Whether the pause that it is in is to end.
    poked: AtomicBool,
    /// The pulse of what comes to the client.
    pub pulse: Pulse,
}

impl Shared {
    fn settle(&self, state: State) {
        self.pulse.stop();
        let mut now = hold(&self.state);
        // The first reason counts.
        if now.0 == State::Live {
            *now = (state, Instant::now());
        }
    }

    fn stops(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    fn heard(&self, more: bool) {
        self.opened.store(true, Ordering::Relaxed);
        self.pulse.beat(Instant::now(), more);
    }
}

/// A session with its threads.
#[derive(Debug)]
pub struct Session {
    /// Its name in what is told to people.
    pub name: String,
    /// Whether it may use every carrier; one that is bound to one waits while that is banned.
    pub free: bool,
    /// What is known of it.
    pub shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

/// The client's side of the bytes.
struct Ends {
    write: Box<dyn Write + Send>,
    read: Box<dyn Read + Send>,
    /// Ends the direction of what is written.
    close: Box<dyn FnOnce(Box<dyn Write + Send>) + Send>,
    program: Option<(Interactive, PathBuf)>,
}

impl Session {
    /// Starts a session through a `tunnel forward` that listens at an address of the operator's host.
    ///
    /// # Panics
    /// When nobody listens there.
    pub fn through(
        opener: Opener<'_>,
        name: &str,
        address: std::net::SocketAddr,
        wish: Wish,
        how: Use,
    ) -> Self {
        let stream = opener
            .operator
            .place()
            .on(|| TcpStream::connect(address).expect("`tunnel forward` listens"));
        let _ = stream.set_nodelay(true);
        let (write, close) = (share(&stream), share(&stream));
        let ends = Ends {
            write: Box::new(write),
            read: Box::new(stream),
            close: Box::new(move |_| drop(close.shutdown(Shutdown::Write))),
            program: None,
        };
        Self::start(opener, name, true, ends, wish, how)
    }

    /// Starts a session with a tunnel of its own.
    pub fn connect(opener: Opener<'_>, name: &str, carrier: &str, wish: Wish, how: Use) -> Self {
        let mut command = opener.operator.cli(&["connect", DEVICE, CHECKED]);
        command.env(CARRIER, carrier).env("TUNNEL_TTL", "12h");
        let errors = opener.operator.directory().join(format!("{name}.log"));
        let ends = Ends::of(Interactive::start(&mut command, &errors), errors);
        Self::start(opener, name, carrier == "auto", ends, wish, how)
    }

    /// Starts an ssh session in which the other end counts the lines that it gets.
    pub fn ssh(opener: Opener<'_>, name: &str, pause: Duration) -> Self {
        let count = "n=0; while read -r line; do n=$((n + 1)); echo \"$n $line\"; done";
        let mut command = opener.operator.ssh_command(DEVICE, opener.sshd, &[], &[count]);
        command.env("TUNNEL_TTL", "12h");
        let errors = opener.operator.directory().join(format!("{name}.log"));
        let ends = Ends::of(Interactive::start(&mut command, &errors), errors);
        Self::spawn(name, true, move |shared| count_lines(ends, pause, shared))
    }

    fn start(opener: Opener<'_>, name: &str, free: bool, ends: Ends, wish: Wish, how: Use) -> Self {
        let findings = opener.findings.clone();
        Self::spawn(name, free, move |shared| match how {
            Use::Bulk(rate) => bulk(ends, wish, rate, shared, &findings),
            Use::Keys(pause) => keys(ends, wish, pause, shared, &findings),
        })
    }

    fn spawn(name: &str, free: bool, work: impl FnOnce(&Arc<Shared>) + Send + 'static) -> Self {
        let shared = Arc::new(Shared {
            state: Mutex::new((State::Live, Instant::now())),
            stop: AtomicBool::new(false),
            opened: AtomicBool::new(false),
            poked: AtomicBool::new(false),
            pulse: Pulse::new(Instant::now()),
        });
        let of_thread = Arc::clone(&shared);
        Self {
            name: name.to_owned(),
            free,
            shared,
            thread: Some(std::thread::spawn(move || work(&of_thread))),
        }
    }

    /// Returns how it has gone so far.
    pub fn state(&self) -> State {
        hold(&self.shared.state).0.clone()
    }

    /// Returns when it was known how it has gone, if it is known.
    pub fn ended(&self) -> Option<Instant> {
        let state = hold(&self.shared.state);
        (state.0 != State::Live).then_some(state.1)
    }

    /// Says whether anything has ever come back.
    pub fn is_open(&self) -> bool {
        self.shared.opened.load(Ordering::Relaxed)
    }

    /// Says why it is lost, if it is.
    pub fn lost(&self) -> Option<String> {
        match self.state() {
            State::Live | State::Done => None,
            State::Refused(why) | State::Lost(why) => Some(format!("{}: {why}", self.name)),
        }
    }

    /// Ends the pause that it is in.
    pub fn poke(&self) {
        self.shared.poked.store(true, Ordering::Relaxed);
    }

    /// Asks it to end; [`Session::state`] tells when it has.
    pub fn stop(&self) {
        self.shared.stop.store(true, Ordering::Relaxed);
    }

    /// Waits for the end of a session that was asked to end; how it has gone.
    pub fn finish(mut self, deadline: Duration) -> State {
        let start = Instant::now();
        while self.state() == State::Live {
            if start.elapsed() > deadline {
                return State::Lost(format!("it has not ended within {deadline:?}"));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        self.state()
    }
}

impl Ends {
    fn of(mut program: Interactive, errors: PathBuf) -> Self {
        let write = program.take_stdin().expect("it is piped");
        let read = program.take_stdout();
        Self {
            write: Box::new(write),
            read: Box::new(read),
            close: Box::new(drop),
            program: Some((program, errors)),
        }
    }
}

/// How long a program may take to end after its session has.
const END: Duration = Duration::from_secs(30);

/// Tells how a session has gone whose bytes have ended: `checked` says what their end says of them.
fn judge(shared: &Shared, program: Option<(Interactive, PathBuf)>, checked: Result<(), String>) {
    let said = |errors: &Path| last_words(&std::fs::read_to_string(errors).unwrap_or_default());
    let (code, said) = match program {
        None => (Some(0), String::new()),
        Some((mut program, errors)) => (program.wait_until(END), said(&errors)),
    };
    let opened = shared.opened.load(Ordering::Relaxed);
    shared.settle(match (shared.stops(), checked, code) {
        (true, Ok(()), Some(0)) => State::Done,
        (_, Err(why), Some(0)) => State::Lost(format!("{why} {said}")),
        (_, _, Some(code)) if !opened && code != 0 => State::Refused(format!("exit code {code}: {said}")),
        (_, checked, code) => {
            let why = checked.err().unwrap_or_default();
            State::Lost(format!("it has ended, {why}; exit code {code:?}: {said}"))
        }
    });
}

/// Returns the end of what a program said.
fn last_words(said: &str) -> String {
    let lines: Vec<&str> = said.lines().filter(|line| !line.contains(" DEBUG ")).collect();
    lines[lines.len().saturating_sub(6)..].join(" | ")
}

/// Both directions at once.
fn bulk(ends: Ends, wish: Wish, rate: u32, shared: &Arc<Shared>, findings: &Findings) {
    let end = Arc::new(Mutex::new(End::client(wish.seed)));
    let Ends {
        mut write,
        read,
        close,
        program,
    } = ends;
    shared.pulse.wait(Instant::now());
    let writer = {
        let (end, shared) = (Arc::clone(&end), Arc::clone(shared));
        std::thread::spawn(move || {
            if write.write_all(&wish.greeting()).is_ok() {
                pour(&mut write, &end, rate, &shared.stop);
            }
            close(write);
        })
    };
    let checked = read_to_end(read, &end, shared, findings, true);
    if checked.is_err() {
        shared.stop.store(true, Ordering::Relaxed);
    }
    let checked = checked.and_then(|()| hold(&end).check_end().map_err(|wrong| wrong.to_string()));
    let ended_by_us = shared.stops();
    judge(
        shared,
        program,
        if ended_by_us {
            checked
        } else {
            Err("too early".into())
        },
    );
    shared.stop.store(true, Ordering::Relaxed);
    let _ = writer.join();
}

/// Reads and checks until the other end is done.
fn read_to_end(
    mut read: Box<dyn Read + Send>,
    end: &Mutex<End>,
    shared: &Shared,
    findings: &Findings,
    more: bool,
) -> Result<(), String> {
    let mut buffer = vec![0; 32 * 1024];
    loop {
        match read.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(length) => {
                hold(end)
                    .take(&buffer[..length])
                    .map_err(|wrong| format!("from service to client, {wrong}"))?;
                findings.count(length as u64);
                shared.heard(more);
            }
            Err(error) => return Err(error.to_string()),
        }
    }
}

/// A few bytes and their answer, then a pause.
fn keys(mut ends: Ends, wish: Wish, pause: Duration, shared: &Shared, findings: &Findings) {
    let end = Mutex::new(End::client(wish.seed));
    let talk = |ends: &mut Ends| -> Result<(), String> {
        let text = |error: std::io::Error| error.to_string();
        ends.write.write_all(&wish.greeting()).map_err(text)?;
        let mut buffer = [0; 4096];
        while !shared.stops() {
            let record = {
                let mut end = hold(&end);
                let length = 1 + end.compared() as usize % 40;
                end.record(length)
            };
            shared.pulse.wait(Instant::now());
            ends.write
                .write_all(&record)
                .and_then(|()| ends.write.flush())
                .map_err(text)?;
            let mut whole = 0;
            while whole == 0 {
                let length = ends.read.read(&mut buffer).map_err(text)?;
                if length == 0 {
                    return Err("too early".to_owned());
                }
                whole = hold(&end)
                    .take(&buffer[..length])
                    .map_err(|wrong| format!("from service to client, {wrong}"))?;
                findings.count(length as u64);
            }
            shared.heard(false);
            nap(pause, shared);
        }
        Ok(())
    };
    let talked = talk(&mut ends);
    let Ends {
        write,
        read,
        close,
        program,
    } = ends;
    close(write);
    let checked = talked
        .and_then(|()| read_to_end(read, &end, shared, findings, false))
        .and_then(|()| hold(&end).check_end().map_err(|wrong| wrong.to_string()));
    judge(shared, program, checked);
}

/// Lines that the other end counts.
fn count_lines(mut ends: Ends, pause: Duration, shared: &Shared) {
    let mut read = std::io::BufReader::new(ends.read);
    let mut number = 0u64;
    let mut talk = || -> Result<(), String> {
        let text = |error: std::io::Error| error.to_string();
        while !shared.stops() {
            number += 1;
            shared.pulse.wait(Instant::now());
            writeln!(ends.write, "{number}").map_err(text)?;
            let mut line = String::new();
            read.read_line(&mut line).map_err(text)?;
            if line != format!("{number} {number}\n") {
                return Err(format!("line {number} came back as `{}`", line.trim_end()));
            }
            shared.heard(false);
            nap(pause, shared);
        }
        Ok(())
    };
    let talked = talk();
    (ends.close)(ends.write);
    let mut rest = Vec::new();
    let checked = talked.and_then(|()| match read.read_to_end(&mut rest) {
        Ok(0) => Ok(()),
        Ok(more) => Err(format!("{more} bytes came after the last line")),
        Err(error) => Err(error.to_string()),
    });
    judge(shared, ends.program, checked);
}

/// Pauses, and not much longer than until it is to stop.
fn nap(pause: Duration, shared: &Shared) {
    let start = Instant::now();
    while start.elapsed() < pause && !shared.stops() && !shared.poked.swap(false, Ordering::Relaxed) {
        std::thread::sleep((pause - start.elapsed().min(pause)).min(Duration::from_millis(50)));
    }
}

fn share(stream: &TcpStream) -> TcpStream {
    stream.try_clone().expect("a stream can be shared")
}
