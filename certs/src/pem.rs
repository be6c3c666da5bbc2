//! The textual encoding of keys, requests and chains (RFC 7468).

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use zeroize::Zeroizing;

use crate::error::CertError;
use crate::trust::{MAX_CHAIN_BYTES, MAX_CHAIN_CERTS};

/// Longest text of a chain that is looked at: base64 and line ends make it half as long again.
const MAX_CHAIN_TEXT: usize = MAX_CHAIN_BYTES * 2;

/// Reads the certificates of a text, in their order.
///
/// # Errors
/// Fails where the text has none, has more than a chain may have, or is damaged.
pub fn read_chain(text: &str) -> Result<Vec<CertificateDer<'static>>, CertError> {
    if text.len() > MAX_CHAIN_TEXT {
        return Err(CertError::TooLarge);
    }
    let mut chain = Vec::new();
    for certificate in CertificateDer::pem_slice_iter(text.as_bytes()) {
        if chain.len() == MAX_CHAIN_CERTS {
            return Err(CertError::TooLarge);
        }
        chain.push(certificate.map_err(|_| CertError::Malformed)?);
    }
    if chain.is_empty() {
        Err(CertError::Missing)
    } else {
        Ok(chain)
    }
}

/// Writes certificates, in their order.
pub fn write_chain(chain: &[CertificateDer<'_>]) -> String {
    chain
        .iter()
        .map(|certificate| write("CERTIFICATE", certificate))
        .collect()
}

/// Writes one block.
pub(crate) fn write(label: &str, der: &[u8]) -> String {
    let body = Zeroizing::new(STANDARD.encode(der));
    // All at once, so that no shorter copy of a key stays behind in memory.
    let mut text = String::with_capacity(body.len() + body.len() / 64 + 2 * label.len() + 40);
    text.extend(["-----BEGIN ", label, "-----\n"]);
    let mut rest = body.as_str();
    while !rest.is_empty() {
        let (line, tail) = rest.split_at(rest.len().min(64));
        text.extend([line, "\n"]);
        rest = tail;
    }
    text.extend(["-----END ", label, "-----\n"]);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chain_reads_back() {
        let chain = [
            CertificateDer::from(vec![1; 100]),
            CertificateDer::from(vec![2; 48]),
        ];
        assert_eq!(read_chain(&write_chain(&chain)).unwrap(), chain);
    }

    #[test]
    fn bad_texts_are_refused() {
        assert_eq!(read_chain("").unwrap_err(), CertError::Missing);
        let cut = &write_chain(&[CertificateDer::from(vec![1; 100])])[..80];
        assert!(read_chain(cut).is_err());
        let many = vec![CertificateDer::from(vec![1; 10]); MAX_CHAIN_CERTS + 1];
        assert_eq!(read_chain(&write_chain(&many)).unwrap_err(), CertError::TooLarge);
        assert_eq!(
            read_chain(&" ".repeat(MAX_CHAIN_TEXT + 1)).unwrap_err(),
            CertError::TooLarge
        );
    }
}
