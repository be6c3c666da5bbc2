//! Runs the commands of a batch one after the other, and tells what each wrote and how it ended.

use std::io;
use std::os::unix::process::ExitStatusExt as _;
use std::process::{ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use quinn::SendStream;
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::AsyncReadExt as _;
use tokio::process::{Child, Command};
use tunnel_proto::batch::{Batch, CommandEnd, Ran};
use tunnel_proto::{Code, Refusal, frame};

use super::Commands;
use crate::connect::Reader;

/// The only variable that a command finds in its environment, for the programs that it starts itself.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Most bytes that are read of an output at once, and that one message holds.
const CHUNK: usize = 16 * 1024;

/// How long an output may be silent after its command has ended: what still holds it has left the command's process group.
const LEFT_OPEN: Duration = Duration::from_millis(200);

/// Where what comes of a batch goes, and how much of it did.
struct Back<'a> {
    send: &'a mut SendStream,
    command: u32,
    count: &'a mut u64,
}

impl Back<'_> {
    async fn tell(&mut self, ran: Ran) -> io::Result<()> {
        let bytes = frame::encode(&Ran {
            command: self.command,
            ..ran
        });
        self.send.write_all(&bytes).await?;
        *self.count += bytes.len() as u64;
        Ok(())
    }
}

/// Runs a batch to its end. Dropped before that, it kills what runs. A command that fails does not keep the next from being
/// run. Each is run by the `rules` that hold when its turn comes.
///
/// # Errors
/// Tells that the operator has broken it off.
pub(crate) async fn run(
    batch: &Batch,
    rules: impl Fn() -> Option<Commands>,
    mut send: SendStream,
    count: &mut u64,
) -> io::Result<()> {
    let stopped = send.stopped();
    let all = async {
        for (words, command) in batch.commands().iter().zip(0..) {
            let mut back = Back {
                send: &mut send,
                command,
                count,
            };
            let rules = rules().filter(|rules| rules.lists(words));
            one(words, rules, &mut back).await?;
        }
        io::Result::Ok(())
    };
    // An operator who is gone, or wants no more, is noticed also while a command is silent.
    tokio::select! {
        ran = all => ran?,
        _ = stopped => return Err(io::ErrorKind::BrokenPipe.into()),
    }
    let _ = send.finish();
    Ok(())
}

/// Runs one command, if the owner still lists it, and tells its end.
async fn one(words: &[String], rules: Option<Commands>, back: &mut Back<'_>) -> io::Result<()> {
    let start = Instant::now();
    let end = match rules {
        Some(rules) => match start_program(words.to_vec()).await {
            Ok((child, group)) => watch(child, &group, &rules, back).await?,
            Err(error) => {
                tracing::debug!(%error, "a command could not be started");
                not_run(Refusal::new(Code::CommandStart, error.kind().to_string()))
            }
        },
        None => not_run(Code::LocalPolicy.into()),
    };
    let millis = u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX);
    back.tell(Ran {
        end: Some(CommandEnd { millis, ..end }),
        ..Ran::default()
    })
    .await
}

fn not_run(why: Refusal) -> CommandEnd {
    CommandEnd {
        why: Some(why),
        ..CommandEnd::default()
    }
}

/// Starts a program, which may take as long as its disk does: all else goes on meanwhile. Given up before that, what has started
/// is killed.
async fn start_program(words: Vec<String>) -> io::Result<(Child, Group)> {
    let started = tokio::task::spawn_blocking(move || spawn(&words)).await;
    started.unwrap_or_else(|error| Err(io::Error::other(error)))
}

/// Starts a program: no shell, nothing of the agent's environment, nothing to read, and a process group of its own.
fn spawn(words: &[String]) -> io::Result<(Child, Group)> {
    let (program, arguments) = words.split_first().ok_or(io::ErrorKind::InvalidInput)?;
    let child = Command::new(program)
        .args(arguments)
        .env_clear()
        .env("PATH", PATH)
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn()?;
    let pid = child
        .id()
        .and_then(|pid| Pid::from_raw(pid.cast_signed()))
        .ok_or(io::ErrorKind::NotFound)?;
    let group = Group {
        pid,
        lives: AtomicBool::new(true),
    };
    Ok((child, group))
}

/// Carries what a command writes until it ends, or has to: after its time, or when it has written too much.
async fn watch(
    mut child: Child,
    group: &Group,
    rules: &Commands,
    back: &mut Back<'_>,
) -> io::Result<CommandEnd> {
    let late = AtomicBool::new(false);
    let carried = carry(&mut child, group, rules.max_output, &late, back);
    let time = tokio::time::sleep(rules.timeout);
    tokio::pin!(carried, time);
    let (status, over) = loop {
        // One place that goes on with it: each takes its own copy of the code.
        tokio::select! {
            carried = &mut carried => break carried?,
            // A message that is half written has to be finished.
            () = &mut time, if !late.load(Ordering::Relaxed) => {
                late.store(true, Ordering::Relaxed);
                group.kill();
            }
        }
    };
    let why = match (late.load(Ordering::Relaxed), over) {
        (true, _) => Some(Code::CommandTimeout.into()),
        (false, true) => Some(Code::CommandOutput.into()),
        (false, false) => None,
    };
    Ok(CommandEnd {
        exit: status.code(),
        signal: status.signal(),
        why,
        millis: 0,
    })
}

/// Carries both outputs and waits for the end; returns that, and whether there was more output than may be.
async fn carry(
    child: &mut Child,
    group: &Group,
    mut left: u64,
    late: &AtomicBool,
    back: &mut Back<'_>,
) -> io::Result<(ExitStatus, bool)> {
    let stdout = child.stdout.take().map(|pipe| Box::new(pipe) as Reader);
    let stderr = child.stderr.take().map(|pipe| Box::new(pipe) as Reader);
    let (mut stdout, mut stderr) = (Output(stdout), Output(stderr));
    let (mut status, mut over) = (None, false);
    loop {
        let all_read = over || (stdout.is_done() && stderr.is_done()) || late.load(Ordering::Relaxed);
        if let Some(status) = status
            && all_read
        {
            return Ok((status, over));
        }
        // All branches are cancel-safe: what is not read yet stays in the pipe.
        let (mut bytes, is_error) = tokio::select! {
            biased;
            bytes = stdout.read(), if !over && !stdout.is_done() => (bytes, false),
            bytes = stderr.read(), if !over && !stderr.is_done() => (bytes, true),
            ended = child.wait(), if status.is_none() => {
                status = Some(ended?);
                group.end();
                continue;
            }
            () = tokio::time::sleep(LEFT_OPEN), if status.is_some() => {
                stdout.leave();
                stderr.leave();
                continue;
            }
        };
        if bytes.len() as u64 > left {
            bytes.truncate(usize::try_from(left).unwrap_or(usize::MAX));
            over = true;
            group.kill();
        }
        left -= bytes.len() as u64;
        if !bytes.is_empty() {
            let (stdout, stderr) = if is_error {
                (None, Some(bytes))
            } else {
                (Some(bytes), None)
            };
            back.tell(Ran {
                stdout,
                stderr,
                ..Ran::default()
            })
            .await?;
        }
    }
}

/// One output of a command, until its end.
struct Output(Option<Reader>);

impl Output {
    fn is_done(&self) -> bool {
        self.0.is_none()
    }

    fn leave(&mut self) {
        self.0 = None;
    }

    /// Reads what there is; nothing at the end, or when the pipe breaks, which is the same.
    async fn read(&mut self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(CHUNK);
        let read = match &mut self.0 {
            Some(pipe) => pipe.read_buf(&mut bytes).await.unwrap_or(0),
            None => 0,
        };
        if read == 0 {
            self.leave();
        }
        bytes
    }
}

/// The process group of a command, with all that it has started in it. Dropped, it is killed.
#[derive(Debug)]
struct Group {
    pid: Pid,
    lives: AtomicBool,
}

impl Group {
    /// Kills all that is in it.
    fn kill(&self) {
        if self.lives.load(Ordering::Relaxed) {
            // It fails only when there is nobody left.
            let _ = kill_process_group(self.pid, Signal::KILL);
        }
    }

    /// The command has ended, and what it has left behind ends with it. Its number is given to nobody else while the group
    /// has anybody in it, and otherwise not before all others were, so this is the last time that it can be used.
    fn end(&self) {
        self.kill();
        self.lives.store(false, Ordering::Relaxed);
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.kill();
    }
}
