//! Connects to the target of a service.

use std::io;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tunnel_proto::Code;
use tunnel_proto::defaults::TARGET_DEADLINE;

use crate::target::Target;

/// The half of a local connection that is read.
pub type Reader = Box<dyn AsyncRead + Send + Unpin>;

/// The half of a local connection that is written.
pub type Writer = Box<dyn AsyncWrite + Send + Unpin>;

/// Connects to a target within its deadline.
///
/// # Errors
/// Returns [`Code::TargetRefused`], [`Code::TargetTimeout`] or [`Code::TargetUnreachable`].
pub async fn connect(target: &Target) -> Result<(Reader, Writer), Code> {
    match tokio::time::timeout(TARGET_DEADLINE, open(target)).await {
        Ok(Ok(halves)) => Ok(halves),
        Ok(Err(error)) => {
            tracing::debug!(%target, %error, "target not reached");
            Err(code_of(&error))
        }
        Err(_) => Err(Code::TargetTimeout),
    }
}

async fn open(target: &Target) -> io::Result<(Reader, Writer)> {
    match target {
        Target::Tcp(address) => {
            let stream = TcpStream::connect(address).await?;
            // Keystrokes must not wait for the answer to those before them.
            stream.set_nodelay(true)?;
            let (reader, writer) = stream.into_split();
            Ok((Box::new(reader), Box::new(writer)))
        }
        Target::Unix(path) => {
            let (reader, writer) = UnixStream::connect(path).await?.into_split();
            Ok((Box::new(reader), Box::new(writer)))
        }
        Target::Commands(_) => Err(io::ErrorKind::Unsupported.into()),
    }
}

fn code_of(error: &io::Error) -> Code {
    match error.kind() {
        io::ErrorKind::ConnectionRefused | io::ErrorKind::ConnectionReset => Code::TargetRefused,
        io::ErrorKind::TimedOut => Code::TargetTimeout,
        _ => Code::TargetUnreachable,
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    #[tokio::test]
    async fn tcp_and_unix_targets_are_reached() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("app.sock");
        let unix = tokio::net::UnixListener::bind(&path).unwrap();
        let tcp = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (mut reader, mut writer) = connect(&Target::Tcp(tcp.local_addr().unwrap())).await.unwrap();
        let (mut far, _) = tcp.accept().await.unwrap();
        writer.write_all(b"hi").await.unwrap();
        writer.shutdown().await.unwrap();
        let mut text = String::new();
        far.read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "hi");
        far.write_all(b"there").await.unwrap();
        drop(far);
        text.clear();
        reader.read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "there", "a half-close leaves the other half open");
        let (_reader, _writer) = connect(&Target::Unix(path)).await.unwrap();
        assert!(unix.accept().await.is_ok());
    }

    #[tokio::test]
    async fn a_target_that_is_not_there_has_its_reason() {
        let tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = tcp.local_addr().unwrap();
        drop(tcp);
        assert_eq!(
            connect(&Target::Tcp(address)).await.err(),
            Some(Code::TargetRefused)
        );
        let absent = Target::Unix("/nonexistent/app.sock".into());
        assert_eq!(connect(&absent).await.err(), Some(Code::TargetUnreachable));
    }
}
