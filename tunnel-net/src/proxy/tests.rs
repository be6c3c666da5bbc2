//! Small proxies on real sockets: each refusal beside the answer that is good.

mod environment;
mod http;
mod socks;
mod text;

use std::future::Future;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::task::AbortOnDropHandle;

use super::*;

/// A name that only a proxy can know.
const HOST: &str = "relay.invalid";
const PORT: u16 = 8443;

/// Serves one client by a function; returns the proxy's address without scheme and login.
async fn serve<F>(
    service: impl FnOnce(TcpStream) -> F + Send + 'static,
) -> (String, AbortOnDropHandle<F::Output>)
where
    F: Future<Output: Send> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let answer = async move { service(listener.accept().await.unwrap().0).await };
    let task = AbortOnDropHandle::new(tokio::task::spawn(answer));
    (addr.to_string(), task)
}

fn proxy(text: &str) -> Proxy {
    text.parse().unwrap()
}

/// Shows that a connection leads to whoever echoes behind the proxy.
async fn assert_echo(mut stream: TcpStream) {
    stream.write_all(b"ping").await.unwrap();
    let mut back = [0; 4];
    stream.read_exact(&mut back).await.unwrap();
    assert_eq!(&back, b"ping");
}

async fn echo(mut stream: TcpStream) {
    let (mut reader, mut writer) = stream.split();
    let _ = tokio::io::copy(&mut reader, &mut writer).await;
}
