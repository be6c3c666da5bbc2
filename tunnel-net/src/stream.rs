//! Messages and bytes on QUIC streams.

use std::io::{self, IoSlice};

use bytes::{Buf as _, Bytes, BytesMut};
use quinn::{RecvStream, SendStream, VarInt};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tunnel_proto::frame::{self, FrameError};

/// Most bytes that are read from a local socket at once, and the room that is kept for them.
const CHUNK: usize = 64 * 1024;

/// Most chunks that are taken from a QUIC stream at once; each is the part of a packet.
const CHUNKS: usize = 64;

/// Error code of a stream whose local side broke off. The peer breaks its own local side off in turn.
pub const BROKEN: VarInt = VarInt::from_u32(1);

/// Tells why a message did not come, or did not go.
#[derive(Debug, thiserror::Error)]
pub enum MessageError {
    /// The stream ended in good order before the message.
    #[error("the stream has ended")]
    Ended,
    /// The stream or its connection broke.
    #[error("the stream broke")]
    Stream(#[from] io::Error),
    /// What came is not the expected message.
    #[error("the peer sent something that is no message")]
    Frame(#[from] FrameError),
}

/// Reads one message. Not cancel-safe: a reader that is dropped half-way loses its place.
///
/// # Errors
/// Tells whether the stream ended, broke, or brought something else.
pub async fn read_message<M>(stream: &mut RecvStream) -> Result<M, MessageError>
where
    M: for<'b> minicbor::Decode<'b, ()>,
{
    let mut header = [0; frame::HEADER];
    match stream.read_exact(&mut header).await {
        Ok(()) => {}
        Err(quinn::ReadExactError::FinishedEarly(0)) => return Err(MessageError::Ended),
        Err(error) => return Err(into_io(error).into()),
    }
    let mut content = vec![0; frame::length(header)?];
    stream.read_exact(&mut content).await.map_err(into_io)?;
    Ok(frame::decode(&content)?)
}

fn into_io(error: quinn::ReadExactError) -> io::Error {
    match error {
        quinn::ReadExactError::FinishedEarly(_) => io::ErrorKind::UnexpectedEof.into(),
        quinn::ReadExactError::ReadError(error) => error.into(),
    }
}

/// Writes one message.
///
/// # Errors
/// Tells that the stream broke.
pub async fn write_message<M: minicbor::Encode<()>>(stream: &mut SendStream, message: &M) -> io::Result<()> {
    stream
        .write_all(&frame::encode(message))
        .await
        .map_err(io::Error::from)
}

/// What passed through a session.
#[derive(Debug, Default)]
pub struct Spliced {
    /// Bytes from the local side to the stream.
    pub sent: u64,
    /// Bytes from the stream to the local side.
    pub received: u64,
    /// Why it ended, if not by the end of both directions.
    pub error: Option<io::Error>,
}

/// Joins a QUIC stream and a local byte stream until both directions have ended.
///
/// Each direction ends by itself: the end of one is passed on as a half-close and leaves the other alone. Nothing is
/// read from one side before the other side has taken what was read before, so that a slow reader slows the sender.
pub async fn splice<R, W>(send: SendStream, recv: RecvStream, reader: R, writer: W) -> Spliced
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let mut spliced = Spliced::default();
    let (up, down) = tokio::join!(
        outwards(send, reader, &mut spliced.sent),
        inwards(recv, writer, &mut spliced.received)
    );
    spliced.error = up.err().or(down.err());
    spliced
}

/// A stream's sending half that ends well only when it is told to. What is dropped half-way, because a session was cut or
/// its other direction failed, is reset: quinn would finish it, and the peer would take a part for the whole.
struct Outgoing {
    send: SendStream,
    finished: bool,
}

impl Outgoing {
    fn finish(mut self) {
        self.finished = true;
        // It fails only when the peer has stopped the stream, and then it wants no end.
        let _ = self.send.finish();
    }
}

impl Drop for Outgoing {
    fn drop(&mut self) {
        if !self.finished {
            let _ = self.send.reset(BROKEN);
        }
    }
}

/// Carries bytes from the local side to the stream, and its end. Dropped before that, it resets the stream.
///
/// # Errors
/// Returns why the local side or the stream broke; the other is told.
pub async fn outwards(
    send: SendStream,
    mut reader: impl AsyncRead + Unpin,
    count: &mut u64,
) -> io::Result<()> {
    let mut buffer = BytesMut::new();
    let stopped = send.stopped();
    let mut outgoing = Outgoing {
        send,
        finished: false,
    };
    tokio::pin!(stopped);
    loop {
        if buffer.capacity() < CHUNK / 4 {
            buffer.reserve(CHUNK);
        }
        // A peer that wants no more is noticed also while the local side has nothing to say.
        let read = tokio::select! {
            read = reader.read_buf(&mut buffer) => read?,
            stopped = &mut stopped => return stopped_early(stopped),
        };
        if read == 0 {
            outgoing.finish();
            return Ok(());
        }
        outgoing.send.write_chunk(buffer.split().freeze()).await?;
        *count += read as u64;
    }
}

fn stopped_early(stopped: Result<Option<VarInt>, quinn::StoppedError>) -> io::Result<()> {
    match stopped {
        Ok(_) => Err(io::ErrorKind::BrokenPipe.into()),
        Err(error) => Err(error.into()),
    }
}

/// Carries bytes from the stream to the local side, and their end.
///
/// # Errors
/// Returns why the stream or the local side broke; the other is told.
pub async fn inwards(
    mut recv: RecvStream,
    mut writer: impl AsyncWrite + Unpin,
    count: &mut u64,
) -> io::Result<()> {
    let mut chunks = [const { Bytes::new() }; CHUNKS];
    while let Some(filled) = recv.read_chunks(&mut chunks).await? {
        let chunks = &mut chunks[..filled];
        let length: u64 = chunks.iter().map(|chunk| chunk.len() as u64).sum();
        if let Err(error) = write_chunks(&mut writer, chunks).await {
            let _ = recv.stop(BROKEN);
            return Err(error);
        }
        *count += length;
        // A chunk keeps the memory of all packets that came with it.
        chunks.fill(Bytes::new());
    }
    writer.flush().await?;
    writer.shutdown().await
}

/// Writes chunks one behind the other, as many in one call as the writer takes.
async fn write_chunks(writer: &mut (impl AsyncWrite + Unpin), mut chunks: &mut [Bytes]) -> io::Result<()> {
    loop {
        while chunks.first().is_some_and(Bytes::is_empty) {
            chunks = &mut chunks[1..];
        }
        if chunks.is_empty() {
            return Ok(());
        }
        let mut slices = [IoSlice::new(&[]); CHUNKS];
        for (slice, chunk) in slices.iter_mut().zip(chunks.iter()) {
            *slice = IoSlice::new(chunk);
        }
        let mut written = writer.write_vectored(&slices[..chunks.len()]).await?;
        if written == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        for chunk in chunks.iter_mut() {
            let taken = written.min(chunk.len());
            chunk.advance(taken);
            written -= taken;
        }
    }
}
