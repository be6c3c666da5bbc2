//! Standard input and output as fast streams, with an end of their own for each direction.
//!
//! Under `ssh` they are pipes or sockets, which the event loop can wait for; a terminal or a file goes through tokio's
//! threads. Not to block belongs to what is open, not to the process, so it is put back at the end.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::pin::Pin;
use std::task::{Context, Poll};

use rustix::fs::{FileType, OFlags};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::UnixStream;
use tokio::net::unix::pipe;

/// Size that is asked for a pipe: fewer and larger reads and writes. The system may give less.
const PIPE_BYTES: usize = 256 * 1024;

/// Standard input.
#[derive(Debug)]
pub struct Input {
    from: Source,
    _flags: Flags,
}

/// Standard output. Its end is passed on: the reader sees end of file although this process lives on.
#[derive(Debug)]
pub struct Output {
    to: Sink,
    _flags: Flags,
}

#[derive(Debug)]
enum Source {
    Pipe(pipe::Receiver),
    /// Any stream socket: reading and writing is the same for all of them.
    Socket(UnixStream),
    Other(tokio::io::Stdin),
}

#[derive(Debug)]
enum Sink {
    Pipe(pipe::Sender),
    Socket(UnixStream),
    Other(tokio::io::Stdout),
    Ended,
}

/// Puts the flags of what is open back: it may be shared with programs that do not expect it not to block.
#[derive(Debug)]
struct Flags(Option<(OwnedFd, OFlags)>);

impl Flags {
    fn of(fd: impl AsFd) -> io::Result<Self> {
        let copy = fd.as_fd().try_clone_to_owned()?;
        let flags = rustix::fs::fcntl_getfl(&copy)?;
        Ok(Self(Some((copy, flags))))
    }
}

impl Drop for Flags {
    fn drop(&mut self) {
        if let Some((fd, flags)) = self.0.take() {
            let _ = rustix::fs::fcntl_setfl(&fd, flags);
        }
    }
}

fn kind(fd: impl AsFd) -> io::Result<FileType> {
    Ok(FileType::from_raw_mode(rustix::fs::fstat(fd)?.st_mode))
}

/// Takes a copy of a pipe, made larger.
fn pipe_copy(fd: impl AsFd) -> io::Result<OwnedFd> {
    let copy = fd.as_fd().try_clone_to_owned()?;
    // A refusal is no harm: the pipe keeps the size that it has.
    let _ = rustix::pipe::fcntl_setpipe_size(&copy, PIPE_BYTES);
    Ok(copy)
}

fn socket_copy(fd: impl AsFd) -> io::Result<UnixStream> {
    let socket = std::os::unix::net::UnixStream::from(fd.as_fd().try_clone_to_owned()?);
    socket.set_nonblocking(true)?;
    UnixStream::from_std(socket)
}

impl Input {
    /// Takes standard input; must be called in a tokio runtime.
    ///
    /// # Errors
    /// Tells what the system refuses.
    pub fn new() -> io::Result<Self> {
        Self::of(io::stdin())
    }

    fn of(fd: impl AsFd) -> io::Result<Self> {
        let kind = kind(&fd)?;
        if kind != FileType::Fifo && kind != FileType::Socket {
            return Ok(Self {
                from: Source::Other(tokio::io::stdin()),
                _flags: Flags(None),
            });
        }
        let flags = Flags::of(&fd)?;
        let from = match kind {
            FileType::Fifo => Source::Pipe(pipe::Receiver::from_owned_fd(pipe_copy(&fd)?)?),
            _ => Source::Socket(socket_copy(&fd)?),
        };
        Ok(Self { from, _flags: flags })
    }
}

impl Output {
    /// Takes standard output; must be called in a tokio runtime.
    ///
    /// # Errors
    /// Tells what the system refuses.
    pub fn new() -> io::Result<Self> {
        Self::of(io::stdout())
    }

    fn of(fd: impl AsFd) -> io::Result<Self> {
        let kind = kind(&fd)?;
        if kind != FileType::Fifo && kind != FileType::Socket {
            return Ok(Self {
                to: Sink::Other(tokio::io::stdout()),
                _flags: Flags(None),
            });
        }
        let flags = Flags::of(&fd)?;
        let to = match kind {
            FileType::Fifo => Sink::Pipe(pipe::Sender::from_owned_fd(pipe_copy(&fd)?)?),
            _ => Sink::Socket(socket_copy(&fd)?),
        };
        Ok(Self { to, _flags: flags })
    }
}

impl AsyncRead for Input {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().from {
            Source::Pipe(pipe) => Pin::new(pipe).poll_read(cx, buf),
            Source::Socket(socket) => Pin::new(socket).poll_read(cx, buf),
            Source::Other(stdin) => Pin::new(stdin).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Output {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.get_mut().to {
            Sink::Pipe(pipe) => Pin::new(pipe).poll_write(cx, buf),
            Sink::Socket(socket) => Pin::new(socket).poll_write(cx, buf),
            Sink::Other(stdout) => Pin::new(stdout).poll_write(cx, buf),
            Sink::Ended => Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut self.get_mut().to {
            Sink::Pipe(pipe) => Pin::new(pipe).poll_write_vectored(cx, bufs),
            Sink::Socket(socket) => Pin::new(socket).poll_write_vectored(cx, bufs),
            Sink::Other(stdout) => Pin::new(stdout).poll_write_vectored(cx, bufs),
            Sink::Ended => Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
        }
    }

    fn is_write_vectored(&self) -> bool {
        matches!(self.to, Sink::Pipe(_) | Sink::Socket(_))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().to {
            Sink::Other(stdout) => Pin::new(stdout).poll_flush(cx),
            Sink::Pipe(_) | Sink::Socket(_) | Sink::Ended => Poll::Ready(Ok(())),
        }
    }

    /// Ends standard output. A pipe ends when its last descriptor is closed, so number 1 is turned elsewhere, and the
    /// copies are dropped.
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        match &mut this.to {
            Sink::Other(stdout) => return Pin::new(stdout).poll_shutdown(cx),
            Sink::Socket(socket) => {
                // A peer that is gone needs no end.
                let _ = rustix::net::shutdown(socket, rustix::net::Shutdown::Write);
                this.to = Sink::Ended;
            }
            Sink::Pipe(_) => {
                this.to = Sink::Ended;
                this._flags = Flags(None);
                close_stdout()?;
            }
            Sink::Ended => {}
        }
        Poll::Ready(Ok(()))
    }
}

fn close_stdout() -> io::Result<()> {
    let null = std::fs::OpenOptions::new().write(true).open("/dev/null")?;
    Ok(rustix::stdio::dup2_stdout(&null)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    #[tokio::test]
    async fn a_pipe_is_read_to_its_end_and_left_as_it_was() {
        let (reader, mut writer) = std::io::pipe().unwrap();
        let mut input = Input::of(&reader).unwrap();
        let sent = vec![7; 300_000];
        let copy = sent.clone();
        let thread = std::thread::spawn(move || writer.write_all(&copy).unwrap());
        let mut received = Vec::new();
        input.read_to_end(&mut received).await.unwrap();
        thread.join().unwrap();
        assert_eq!(received, sent);
        drop(input);
        assert!(
            !rustix::fs::fcntl_getfl(&reader)
                .unwrap()
                .contains(OFlags::NONBLOCK)
        );
    }

    #[tokio::test]
    async fn a_socket_ends_one_way_and_stays_open_the_other() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let ours = OwnedFd::from(ours.into_std().unwrap());
        let (mut input, mut output) = (Input::of(&ours).unwrap(), Output::of(&ours).unwrap());
        let (mut reader, mut writer) = theirs.into_split();
        output.write_all(b"ping").await.unwrap();
        output.shutdown().await.unwrap();
        let mut text = String::new();
        reader.read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "ping");
        writer.write_all(b"pong").await.unwrap();
        drop(writer);
        let mut text = String::new();
        input.read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "pong");
    }
}
