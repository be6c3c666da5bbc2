//! Who has issued a certificate that is not of the fleet: a proxy that intercepts TLS is to be named, never trusted.

use std::cell::RefCell;
use std::io;

use rustls::{Error, InvalidMessage};
use rustls_pki_types::CertificateDer;
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer as _;

use crate::proxy::plain;

tokio::task_local! {
    /// The issuer that the verifier saw in the handshake that this task does.
    static SEEN: RefCell<Option<String>>;
}

/// Runs a handshake, and returns with its result the issuer of a certificate that was refused as not of the fleet.
pub(crate) async fn watch<F: Future>(handshake: F) -> (F::Output, Option<String>) {
    let watched = async {
        let output = handshake.await;
        (output, SEEN.with(RefCell::take))
    };
    SEEN.scope(RefCell::default(), watched).await
}

/// Keeps the issuer of a certificate that is refused, if anybody wants to know.
pub(super) fn note(leaf: &CertificateDer<'_>) {
    let _ = SEEN.try_with(|seen| seen.replace(Some(issuer(leaf))));
}

/// Says whether TLS failed because what came was no TLS.
pub(crate) fn is_plain_text(error: &io::Error) -> bool {
    let tls = error.get_ref().and_then(|error| error.downcast_ref::<Error>());
    matches!(
        tls,
        Some(Error::InvalidMessage(InvalidMessage::InvalidContentType))
    )
}

/// Returns how a certificate names its issuer; whoever made it may have written anything.
fn issuer(leaf: &CertificateDer<'_>) -> String {
    let Ok((_, certificate)) = X509Certificate::from_der(leaf) else {
        return "nobody".into();
    };
    let name = certificate.issuer();
    let short = name
        .iter_common_name()
        .chain(name.iter_organization())
        .find_map(|part| part.as_str().ok());
    match short {
        Some(short) => plain(short),
        None => plain(&name.to_string()),
    }
}
