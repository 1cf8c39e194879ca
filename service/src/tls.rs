//! Certificates, keys and CA roots from PEM files. Keys never reach a log or an error.

use std::fs::Metadata;
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use serde::Deserialize;

/// Common name of the CA that `headwater certificates` makes. Its certificates work on loopback only.
pub const DEVELOPMENT_CA_NAME: &str = "Headwater development CA, not for production";

/// Where a program's own certificate and key and the CA it trusts lie.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
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
    /// A development certificate on an address that other hosts reach.
    #[error("certificate `{}` is for development and `{address}` is not loopback; issue certificates of your own CA, or use 127.0.0.1", path.display())]
    Development {
        /// The certificate file.
        path: PathBuf,
        /// Address that was to use it.
        address: SocketAddr,
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

/// What tells one state of some files from another: device, inode, length and times of each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stamp(Vec<Option<[i64; 7]>>);

impl Stamp {
    /// Looks at the files as they are now; one that cannot be looked at is like one that is missing.
    pub fn of<'a>(paths: impl IntoIterator<Item = &'a Path>) -> Self {
        let stamp = |file: Metadata| {
            [
                file.dev().cast_signed(),
                file.ino().cast_signed(),
                file.size().cast_signed(),
                file.mtime(),
                file.mtime_nsec(),
                file.ctime(),
                file.ctime_nsec(),
            ]
        };
        let look = |path: &Path| std::fs::metadata(path).ok().map(stamp);
        Self(paths.into_iter().map(look).collect())
    }
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

/// What a certificate says about itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leaf {
    /// Its first common name.
    pub common_name: Option<String>,
    /// Serial number, hexadecimal.
    pub serial: String,
    /// Valid from, seconds since the Unix epoch.
    pub not_before_s: i64,
    /// Valid until, seconds since the Unix epoch.
    pub not_after_s: i64,
}

/// Reads what the first certificate of `path` says about itself.
///
/// # Errors
/// [`TlsError::File`] when the file holds no certificate or one that cannot be parsed.
pub fn leaf(path: &Path) -> Result<Leaf, TlsError> {
    let chain = certificates("certificate", path)?;
    let first = chain.first().map(AsRef::as_ref).unwrap_or_default();
    let (_, parsed) =
        x509_parser::parse_x509_certificate(first).map_err(|error| TlsError::File {
            what: "certificate",
            path: path.to_owned(),
            message: error.to_string(),
        })?;
    let name = parsed.subject().iter_common_name().next();
    Ok(Leaf {
        common_name: name.and_then(|name| name.as_str().ok()).map(str::to_owned),
        serial: parsed.raw_serial_as_string(),
        not_before_s: parsed.validity().not_before.timestamp(),
        not_after_s: parsed.validity().not_after.timestamp(),
    })
}

/// Refuses a certificate of [`DEVELOPMENT_CA_NAME`] on an `address` that is not loopback.
///
/// # Errors
/// [`TlsError::Development`], or [`TlsError::File`] when the certificate cannot be read.
pub fn refuse_development_certificate(path: &Path, address: SocketAddr) -> Result<(), TlsError> {
    if address.ip().is_loopback() {
        return Ok(());
    }
    for certificate in certificates("certificate", path)? {
        let (_, parsed) =
            x509_parser::parse_x509_certificate(&certificate).map_err(|error| TlsError::File {
                what: "certificate",
                path: path.to_owned(),
                message: error.to_string(),
            })?;
        let by_development_ca = parsed
            .issuer()
            .iter_common_name()
            .any(|name| name.as_str().is_ok_and(|name| name == DEVELOPMENT_CA_NAME));
        if by_development_ca {
            return Err(TlsError::Development {
                path: path.to_owned(),
                address,
            });
        }
    }
    Ok(())
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
    // A resumed session does not check certificates again, so a revoked or expired one would live on.
    config.resumption = rustls::client::Resumption::disabled();
    Ok(config)
}

/// Returns a TLS 1.3 server configuration that demands a certificate of the client (mutual TLS).
///
/// # Errors
/// See [`TlsError`].
pub fn mutual_server(files: &TlsFiles, alpn: &[u8]) -> Result<rustls::ServerConfig, TlsError> {
    Ok(mutual_server_with(files, None, alpn)?.config)
}

/// A server that demands a certificate of the client, and what it believes.
#[derive(Debug)]
pub struct MutualServer {
    /// The configuration, TLS 1.3 alone.
    pub config: rustls::ServerConfig,
    /// Says of any chain what a handshake would.
    pub verifier: Arc<dyn ClientCertVerifier>,
    /// When the first of the revocation lists should have been renewed, seconds since the Unix epoch.
    pub revocations_end_s: Option<i64>,
}

/// As [`mutual_server`], without the clients that stand in the revocation lists (CRL) of the file
/// `revoked`. An issuer without a list there has revoked nobody. A list that should have been renewed
/// counts all the same: whom it names stays out, and a forgotten renewal locks nobody else out.
///
/// # Errors
/// See [`TlsError`].
pub fn mutual_server_with(
    files: &TlsFiles,
    revoked: Option<&Path>,
    alpn: &[u8],
) -> Result<MutualServer, TlsError> {
    let unusable = |source| TlsError::Unusable {
        path: files.certificate.clone(),
        source,
    };
    let (lists, revocations_end_s) = match revoked {
        Some(path) => revocation_lists(path, &files.ca)?,
        None => (Vec::new(), None),
    };
    let verifier =
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots(&files.ca)?), provider())
            .with_crls(lists)
            .allow_unknown_revocation_status()
            .build()
            .map_err(|error| TlsError::Verifier {
                path: files.ca.clone(),
                message: error.to_string(),
            })?;
    let mut config = rustls::ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(unusable)?
        .with_client_cert_verifier(verifier.clone())
        .with_single_cert(
            certificates("certificate", &files.certificate)?,
            private_key(&files.key)?,
        )
        .map_err(unusable)?;
    config.alpn_protocols = vec![alpn.to_vec()];
    // A resumed session does not check certificates again, so a revoked or expired one would live on.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(MutualServer {
        config,
        verifier,
        revocations_end_s,
    })
}

/// Reads the revocation lists of `path`, PEM (any number) or DER (one), each of an issuer in the file
/// `ca`; and when the first of them should have been renewed. A list of somebody else would revoke
/// nobody, and one with a wrong signature would lock out everybody, so they are errors.
fn revocation_lists(
    path: &Path,
    ca: &Path,
) -> Result<(Vec<CertificateRevocationListDer<'static>>, Option<i64>), TlsError> {
    let failed = |message: String| TlsError::File {
        what: "revocation list",
        path: path.to_owned(),
        message,
    };
    let bytes = std::fs::read(path).map_err(|error| failed(error.to_string()))?;
    let mut lists = CertificateRevocationListDer::pem_slice_iter(&bytes)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| failed(error.to_string()))?;
    if lists.is_empty() {
        lists.push(CertificateRevocationListDer::from(bytes));
    }
    let issuers = certificates("CA", ca)?;
    let mut ends = Vec::new();
    for list in &lists {
        let (_, list) =
            x509_parser::parse_x509_crl(list).map_err(|error| failed(error.to_string()))?;
        let is_ours = issuers.iter().any(|issuer| {
            x509_parser::parse_x509_certificate(issuer).is_ok_and(|(_, issuer)| {
                issuer.subject().as_raw() == list.issuer().as_raw()
                    && list.verify_signature(issuer.public_key()).is_ok()
            })
        });
        if !is_ours {
            let issuer = list.issuer();
            let message = format!("no certificate in the CA file has signed it as `{issuer}`");
            return Err(failed(message));
        }
        ends.extend(list.next_update().map(|end| end.timestamp()));
    }
    Ok((lists, ends.into_iter().min()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn development_certificate_works_on_loopback_only() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("server.pem");
        let mut params = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        params
            .distinguished_name
            .push(rcgen::DnType::CommonName, DEVELOPMENT_CA_NAME);
        let key = rcgen::KeyPair::generate().unwrap();
        std::fs::write(&path, params.self_signed(&key).unwrap().pem()).unwrap();
        refuse_development_certificate(&path, "127.0.0.1:1".parse().unwrap()).unwrap();
        refuse_development_certificate(&path, "[::1]:1".parse().unwrap()).unwrap();
        let refused = refuse_development_certificate(&path, "0.0.0.0:1".parse().unwrap());
        assert!(matches!(refused, Err(TlsError::Development { .. })));
    }

    #[test]
    fn a_missing_file_is_named_with_what_to_do() {
        let files = TlsFiles {
            certificate: "no.pem".into(),
            key: "no.key".into(),
            ca: "no-ca.pem".into(),
        };
        let error = mutual_server(&files, b"x").unwrap_err().to_string();
        assert!(
            error.contains("no-ca.pem") && error.contains("headwater certificates"),
            "{error}"
        );
    }

    /// Writes a CA to `path` and returns a list in its name.
    fn ca_with_list(path: &Path) -> rcgen::CertificateRevocationList {
        let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let key = rcgen::KeyPair::generate().unwrap();
        std::fs::write(path, params.self_signed(&key).unwrap().pem()).unwrap();
        let list = rcgen::CertificateRevocationListParams {
            this_update: rcgen::date_time_ymd(2026, 1, 1),
            next_update: rcgen::date_time_ymd(2026, 1, 2),
            crl_number: 1.into(),
            issuing_distribution_point: None,
            revoked_certs: Vec::new(),
            key_identifier_method: rcgen::KeyIdMethod::Sha256,
        };
        list.signed_by(&rcgen::Issuer::new(params, key)).unwrap()
    }

    #[test]
    fn a_list_counts_only_with_the_signature_of_the_ca() {
        let directory = tempfile::tempdir().unwrap();
        let file = |name: &str| directory.path().join(name);
        let (ca, revoked) = (file("ca.pem"), file("revoked"));
        let ours = ca_with_list(&ca);
        // The same name, another key.
        let theirs = ca_with_list(&file("other.pem"));
        let sound = [ours.pem().unwrap().into_bytes(), ours.der().to_vec()];
        for bytes in sound {
            std::fs::write(&revoked, bytes).unwrap();
            let (lists, ends_s) = revocation_lists(&revoked, &ca).unwrap();
            assert_eq!((lists.len(), ends_s), (1, Some(1_767_312_000)));
        }
        let both = theirs.pem().unwrap() + &ours.pem().unwrap();
        let broken = [
            Vec::new(),
            b"nothing".to_vec(),
            theirs.der().to_vec(),
            both.into_bytes(),
        ];
        for bytes in broken {
            std::fs::write(&revoked, &bytes).unwrap();
            let error = revocation_lists(&revoked, &ca).unwrap_err().to_string();
            assert!(error.contains("revocation list"), "{bytes:?}: {error}");
        }
    }
}
