//! Certificates, keys and CA roots from PEM files. Keys never reach a log or an error.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use serde::Deserialize;

/// Where a program's own certificate and key and the CA it trusts lie.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TlsFiles {
    /// Certificate chain, PEM, leaf first.
    pub certificate: PathBuf,
    /// Private key of the leaf, PEM (PKCS#8, SEC1 or PKCS#1).
    pub key: PathBuf,
    /// CA certificates that the peer's chain must end in, PEM.
    pub ca: PathBuf,
}

/// Why TLS cannot be set up. None is worth a retry before a file changes.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The file is missing, unreadable or holds no such PEM section.
    #[error("cannot read {what} from `{}`: {message}; check the [tls] section or make development files with `headwater certificates`", path.display())]
    File {
        /// `certificate`, `private key` or `CA`.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What went wrong, without contents.
        message: String,
    },
    /// The certificate, key or CA do not fit together.
    #[error("certificate `{}` and its key or CA cannot be used: {source}", path.display())]
    Unusable {
        /// The certificate file.
        path: PathBuf,
        /// What rustls said.
        #[source]
        source: rustls::Error,
    },
    /// The CA cannot be used to check peers.
    #[error("CA `{}` cannot be used to check clients: {message}", path.display())]
    Verifier {
        /// The CA file.
        path: PathBuf,
        /// What rustls said.
        message: String,
    },
}

/// Reads the certificate chain of `path`.
///
/// # Errors
/// [`TlsError::File`] when the file holds no certificate.
pub fn certificates(
    what: &'static str,
    path: &Path,
) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let failed = |message: String| TlsError::File {
        what,
        path: path.to_owned(),
        message,
    };
    let chain = CertificateDer::pem_file_iter(path)
        .map_err(|error| failed(error.to_string()))?
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| failed(error.to_string()))?;
    if chain.is_empty() {
        return Err(failed("no certificate in the file".to_owned()));
    }
    Ok(chain)
}

fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    PrivateKeyDer::from_pem_file(path).map_err(|error| TlsError::File {
        what: "private key",
        path: path.to_owned(),
        message: error.to_string(),
    })
}

fn roots(path: &Path) -> Result<RootCertStore, TlsError> {
    let mut store = RootCertStore::empty();
    for certificate in certificates("CA", path)? {
        store
            .add(certificate)
            .map_err(|source| TlsError::Unusable {
                path: path.to_owned(),
                source,
            })?;
    }
    Ok(store)
}

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// Returns a TLS 1.3 client configuration that shows its certificate (mutual TLS).
///
/// # Errors
/// See [`TlsError`].
pub fn mutual_client(files: &TlsFiles, alpn: &[u8]) -> Result<rustls::ClientConfig, TlsError> {
    let unusable = |source| TlsError::Unusable {
        path: files.certificate.clone(),
        source,
    };
    let mut config = rustls::ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(unusable)?
        .with_root_certificates(roots(&files.ca)?)
        .with_client_auth_cert(
            certificates("certificate", &files.certificate)?,
            private_key(&files.key)?,
        )
        .map_err(unusable)?;
    config.alpn_protocols = vec![alpn.to_vec()];
    Ok(config)
}

/// Returns a TLS 1.3 server configuration that demands a certificate of the client (mutual TLS).
///
/// # Errors
/// See [`TlsError`].
pub fn mutual_server(files: &TlsFiles, alpn: &[u8]) -> Result<rustls::ServerConfig, TlsError> {
    let unusable = |source| TlsError::Unusable {
        path: files.certificate.clone(),
        source,
    };
    let verifier =
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots(&files.ca)?), provider())
            .build()
            .map_err(|error| TlsError::Verifier {
                path: files.ca.clone(),
                message: error.to_string(),
            })?;
    let mut config = rustls::ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(unusable)?
        .with_client_cert_verifier(verifier)
        .with_single_cert(
            certificates("certificate", &files.certificate)?,
            private_key(&files.key)?,
        )
        .map_err(unusable)?;
    config.alpn_protocols = vec![alpn.to_vec()];
    Ok(config)
}
