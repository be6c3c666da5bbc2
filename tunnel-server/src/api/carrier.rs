//! The WebSocket carrier: datagrams of circuits and of control links, where only the web passes.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::extract::{Extension, Request, State};
use axum::http::header::{
    CONNECTION, ORIGIN, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL,
    SEC_WEBSOCKET_VERSION, UPGRADE,
};
use axum::http::{HeaderMap, HeaderName, StatusCode};
use axum::response::{IntoResponse, Response};
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::Role;
use tunnel_proto::defaults::CARRIER_PROTOCOL;
use tunnel_proto::{Code, Refusal, api::ErrorBody};

use super::caller::Conn;
use super::error::ApiError;
use crate::control::Control;
use crate::relay::Relay;

/// Turns the connection into a WebSocket that carries datagrams.
///
/// Anybody may ask: what counts is what the datagrams prove. A page in a browser may not: a request with an `Origin`
/// header is refused (THREATS DAT-23).
#[utoipa::path(
    get, path = "/v1/carrier", operation_id = "open_carrier", tag = "relay", security(()),
    responses(
        (status = 101, description = "the connection is a WebSocket with the sub-protocol `tunnel-carrier.1`"),
        (status = "4XX", body = ErrorBody),
    ),
)]
pub(crate) async fn carrier(
    State(control): State<Arc<Control>>,
    Extension(conn): Extension<Conn>,
    mut request: Request,
) -> Result<Response, ApiError> {
    let key = check(request.headers())?;
    let Some(upgrade) = request.extensions_mut().remove::<OnUpgrade>() else {
        return Err(Refusal::new(Code::BadRequest, "this connection cannot be upgraded").into());
    };
    let owner = control.clone();
    control.spawn(async move {
        let Ok(upgraded) = upgrade.await else { return };
        serve(&owner, upgraded, conn.source).await;
        drop(conn.place);
    });
    let headers = [
        (CONNECTION, "upgrade".to_owned()),
        (UPGRADE, "websocket".to_owned()),
        (SEC_WEBSOCKET_ACCEPT, key),
        (SEC_WEBSOCKET_PROTOCOL, CARRIER_PROTOCOL.to_owned()),
    ];
    Ok((StatusCode::SWITCHING_PROTOCOLS, headers).into_response())
}

/// Checks the request (RFC 6455 section 4.2.1) and returns the value of the accept header.
fn check(headers: &HeaderMap) -> Result<String, Refusal> {
    let no = |what: &str| Err(Refusal::new(Code::BadRequest, what));
    if headers.contains_key(ORIGIN) {
        return no("the carrier is not for pages in a browser");
    }
    if !has_word(headers, &CONNECTION, "upgrade") || !has_word(headers, &UPGRADE, "websocket") {
        return no("the request does not ask for a WebSocket");
    }
    if !has_word(headers, &SEC_WEBSOCKET_VERSION, "13") {
        return no("the WebSocket is not of version 13");
    }
    if !has_word(headers, &SEC_WEBSOCKET_PROTOCOL, CARRIER_PROTOCOL) {
        return no("the sub-protocol is not the carrier's");
    }
    match headers.get(SEC_WEBSOCKET_KEY) {
        Some(key) => Ok(derive_accept_key(key.as_bytes())),
        None => no("the WebSocket's key is missing"),
    }
}

/// Says whether one of a header's comma-separated words is the given one.
fn has_word(headers: &HeaderMap, name: &HeaderName, word: &str) -> bool {
    let words = headers
        .get_all(name)
        .iter()
        .filter_map(|value| value.to_str().ok());
    words
        .flat_map(|value| value.split(','))
        .any(|found| found.trim().eq_ignore_ascii_case(word))
}

/// Hands the WebSocket to the relay, without the layers that HTTP had around the TLS stream.
async fn serve(control: &Control, upgraded: Upgraded, from: SocketAddr) {
    let config = Relay::websocket_config();
    match upgraded.downcast::<TokioIo<TlsStream<TcpStream>>>() {
        Ok(parts) => {
            let (stream, read) = (parts.io.into_inner(), parts.read_buf.to_vec());
            let socket = WebSocketStream::from_partially_read(stream, read, Role::Server, Some(config)).await;
            control.relay.serve_websocket(socket, from).await;
        }
        Err(upgraded) => {
            let socket =
                WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Server, Some(config)).await;
            control.relay.serve_websocket(socket, from).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::HeaderValue;

    fn good() -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(CONNECTION, HeaderValue::from_static("keep-alive, Upgrade"));
        headers.insert(UPGRADE, HeaderValue::from_static("WebSocket"));
        headers.insert(SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
        headers.insert(
            SEC_WEBSOCKET_PROTOCOL,
            HeaderValue::from_static("tunnel-carrier.1"),
        );
        headers.insert(
            SEC_WEBSOCKET_KEY,
            HeaderValue::from_static("dGhlIHNhbXBsZSBub25jZQ=="),
        );
        headers
    }

    #[test]
    fn a_good_request_gets_the_answer_of_the_rfc() {
        assert_eq!(check(&good()).unwrap(), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }

    /// THREATS DAT-23.
    #[test]
    fn a_page_in_a_browser_and_other_protocols_are_refused() {
        let mut page = good();
        page.insert(ORIGIN, HeaderValue::from_static("https://relay.example"));
        assert!(check(&page).is_err());
        for name in [
            CONNECTION,
            UPGRADE,
            SEC_WEBSOCKET_VERSION,
            SEC_WEBSOCKET_PROTOCOL,
            SEC_WEBSOCKET_KEY,
        ] {
            let mut headers = good();
            headers.remove(&name);
            assert!(check(&headers).is_err(), "{name}");
        }
    }
}
