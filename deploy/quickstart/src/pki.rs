//! Development certificates: a CA of its own, the servers' and the agents' certificates.
//!
//! Off every event's path; agent and collector meet over what is made here. Promise: keys are
//! readable by their owner alone, what exists is reused, and the CA's name says that it is not for
//! production.

use std::fs;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use headwater_service::tls::DEVELOPMENT_CA_NAME;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, date_time_ymd,
};

/// Names under which the servers are reached.
const SERVER_NAMES: [&str; 3] = ["localhost", "127.0.0.1", "::1"];

/// Why certificates cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// A file cannot be read or written.
    #[error("cannot {action} `{}`: {source}; check the directory's owner and permissions", path.display())]
    File {
        /// `read` or `write`.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        #[source]
        source: std::io::Error,
    },
    /// A certificate cannot be made, or the CA's key in the directory is none.
    #[error("cannot make certificates in `{}`: {source}; if a file there is damaged, remove the directory and start again", path.display())]
    Certificate {
        /// The directory.
        path: PathBuf,
        /// What rcgen said.
        #[source]
        source: rcgen::Error,
    },
    /// An agent's name cannot be a certificate's name.
    #[error("agent name `{0}` is not 1 to 64 characters of `a-z 0-9 - _ .`")]
    AgentName(String),
}

/// Certificate and key of one party.
#[derive(Debug, Clone)]
pub struct Files {
    /// Certificate, PEM.
    pub certificate: PathBuf,
    /// Private key, PEM, mode 0600.
    pub key: PathBuf,
}

/// A directory of development certificates.
#[derive(Debug)]
pub struct Pki {
    directory: PathBuf,
}

impl Pki {
    /// Makes what is missing in `directory`: the CA, the collector's and the SQL server's
    /// certificates and one for each of `agents`. What is there stays.
    ///
    /// # Errors
    /// See [`PkiError`].
    pub fn prepare(directory: &Path, agents: &[String]) -> Result<Self, PkiError> {
        for name in agents {
            check_agent_name(name)?;
        }
        fs::create_dir_all(directory).map_err(|source| PkiError::File {
            action: "write",
            path: directory.to_owned(),
            source,
        })?;
        let pki = Self {
            directory: directory.to_owned(),
        };
        let issuer = pki.authority()?;
        for server in ["collector", "flight-sql"] {
            pki.issue(&issuer, &pki.files(server), server_params(server))?;
        }
        for agent in agents {
            pki.issue(&issuer, &pki.agent(agent), Ok(agent_params(agent)))?;
        }
        Ok(pki)
    }

    /// Returns the CA's certificate.
    pub fn ca(&self) -> PathBuf {
        self.files("ca").certificate
    }

    /// Returns the collector's files.
    pub fn collector(&self) -> Files {
        self.files("collector")
    }

    /// Returns the SQL server's files.
    pub fn flight_sql(&self) -> Files {
        self.files("flight-sql")
    }

    /// Returns the files of the agent `name`: `agent-1.pem` for `agent-1`, `agent-paris.pem` for
    /// `paris`.
    pub fn agent(&self, name: &str) -> Files {
        let place = name.strip_prefix("agent-").unwrap_or(name);
        self.files(&format!("agent-{place}"))
    }

    fn files(&self, name: &str) -> Files {
        Files {
            certificate: self.directory.join(format!("{name}.pem")),
            key: self.directory.join(format!("{name}.key")),
        }
    }

    /// Reads the CA's key, or makes the CA.
    fn authority(&self) -> Result<Issuer<'static, KeyPair>, PkiError> {
        let files = self.files("ca");
        if !files.key.exists() || !files.certificate.exists() {
            let key = KeyPair::generate().map_err(|source| self.failed(source))?;
            let certificate = authority_params()
                .self_signed(&key)
                .map_err(|source| self.failed(source))?;
            write(&files.key, &key.serialize_pem(), 0o600)?;
            write(&files.certificate, &certificate.pem(), 0o644)?;
        }
        let text = fs::read_to_string(&files.key).map_err(|source| PkiError::File {
            action: "read",
            path: files.key.clone(),
            source,
        })?;
        let key = KeyPair::from_pem(&text).map_err(|source| self.failed(source))?;
        // The CA's name and usages are always the same, so they need not be read back.
        Ok(Issuer::new(authority_params(), key))
    }

    fn issue(
        &self,
        issuer: &Issuer<'_, KeyPair>,
        files: &Files,
        params: Result<CertificateParams, rcgen::Error>,
    ) -> Result<(), PkiError> {
        if files.certificate.exists() && files.key.exists() {
            return Ok(());
        }
        let made = params.and_then(|params| {
            let key = KeyPair::generate()?;
            Ok((params.signed_by(&key, issuer)?, key))
        });
        let (certificate, key) = made.map_err(|source| self.failed(source))?;
        write(&files.key, &key.serialize_pem(), 0o600)?;
        write(&files.certificate, &certificate.pem(), 0o644)
    }

    fn failed(&self, source: rcgen::Error) -> PkiError {
        PkiError::Certificate {
            path: self.directory.clone(),
            source,
        }
    }
}

/// The common name is the agent's id; the rules are those of the wire.
fn check_agent_name(name: &str) -> Result<(), PkiError> {
    let is_allowed =
        |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '_' | '.');
    if (1..=64).contains(&name.len()) && name.chars().all(is_allowed) {
        Ok(())
    } else {
        Err(PkiError::AgentName(name.to_owned()))
    }
}

/// Replaces the file in one step, so that a stop in between leaves no half of a key.
fn write(path: &Path, text: &str, mode: u32) -> Result<(), PkiError> {
    let failed = |source| PkiError::File {
        action: "write",
        path: path.to_owned(),
        source,
    };
    let temporary = path.with_extension("new");
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(mode)
        .open(&temporary)
        .map_err(failed)?;
    file.write_all(text.as_bytes()).map_err(failed)?;
    file.sync_all().map_err(failed)?;
    fs::rename(&temporary, path).map_err(failed)
}

fn named(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.not_before = date_time_ymd(2026, 1, 1);
    params.not_after = date_time_ymd(2036, 1, 1);
    params.use_authority_key_identifier_extension = true;
    params
}

fn authority_params() -> CertificateParams {
    let mut params = named(DEVELOPMENT_CA_NAME);
    params.use_authority_key_identifier_extension = false;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

fn server_params(name: &str) -> Result<CertificateParams, rcgen::Error> {
    let mut params = named(name);
    params.subject_alt_names =
        CertificateParams::new(SERVER_NAMES.map(str::to_owned))?.subject_alt_names;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    Ok(params)
}

fn agent_params(name: &str) -> CertificateParams {
    let mut params = named(name);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    params
}
