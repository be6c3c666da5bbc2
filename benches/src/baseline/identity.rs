//! A certificate that all parts of a baseline share. They trust it and no other.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result};
use rustls::crypto::ring::default_provider;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName};

/// Name in the certificate.
pub(super) const NAME: &str = "bench.internal";

/// Makes a certificate and its key as files in a directory, both in DER and in PEM.
///
/// # Errors
/// Fails when the files cannot be written.
pub fn create(directory: &Path) -> Result<()> {
    let made =
        rcgen::generate_simple_self_signed([NAME.to_owned()]).context("could not make a certificate")?;
    fs::write(directory.join("cert.der"), made.cert.der())?;
    fs::write(directory.join("key.der"), made.signing_key.serialize_der())?;
    fs::write(directory.join("cert.pem"), made.cert.pem())?;
    fs::write(directory.join("key.pem"), made.signing_key.serialize_pem())?;
    Ok(())
}

pub(super) fn server_name() -> Result<ServerName<'static>> {
    Ok(ServerName::try_from(NAME)?)
}

pub(super) fn server(directory: &Path, alpn: &[&[u8]]) -> Result<ServerConfig> {
    let key = PrivatePkcs8KeyDer::from(fs::read(directory.join("key.der"))?);
    let mut config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_no_client_auth()
        .with_single_cert(vec![certificate(directory)?], key.into())?;
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    Ok(config)
}

pub(super) fn client(directory: &Path, alpn: &[&[u8]]) -> Result<ClientConfig> {
    let mut roots = RootCertStore::empty();
    roots.add(certificate(directory)?)?;
    let mut config = ClientConfig::builder_with_provider(Arc::new(default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    Ok(config)
}

fn certificate(directory: &Path) -> Result<CertificateDer<'static>> {
    Ok(CertificateDer::from(fs::read(directory.join("cert.der"))?))
}
