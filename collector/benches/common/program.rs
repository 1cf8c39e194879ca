//! The collector's program in a process of its own, and agents that speak the wire to it.

use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use headwater_protocol::{
    ALPN, BatchHeader, BatchReply, Hello, HelloReply, PROTOCOL_VERSION, Welcome, frame,
};
use headwater_service::tls::{TlsFiles, mutual_client};
use quinn::crypto::rustls::QuicClientConfig;
use quinn::{Connection, Endpoint, RecvStream, SendStream};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, Issuer, KeyPair,
};
use serde::de::DeserializeOwned;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

pub(crate) const EPOCH: u64 = 1_790_000_000_000;
const START_WITHIN: Duration = Duration::from_secs(20);
/// Clock ticks a second in `/proc/PID/stat`: what Linux says to every program.
const TICKS: f64 = 100.0;

/// A running collector with its certificates, catalog and warehouse.
pub(crate) struct Program {
    pub(crate) directory: TempDir,
    issuer: Issuer<'static, KeyPair>,
    pub(crate) child: Child,
    quic: SocketAddr,
    pub(crate) admin: SocketAddr,
    endpoint: Endpoint,
}

impl Drop for Program {
    fn drop(&mut self) {
        // It may have ended already.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

impl Program {
    /// Starts the program on free ports, with the default settings but for `settings`, and waits until it
    /// is ready.
    pub(crate) async fn start(settings: &str) -> Result<Self> {
        let directory = TempDir::new()?;
        let mut params = CertificateParams::new(Vec::new())?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate()?;
        let ca = params.self_signed(&key)?;
        std::fs::write(directory.path().join("ca.pem"), ca.pem())?;
        let issuer = Issuer::new(params, key);
        certificate(directory.path(), &issuer, "collector")?;
        let quic = UdpSocket::bind("127.0.0.1:0")?.local_addr()?;
        let admin = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let config = directory.path().join("collector.toml");
        let text = format!(
            "[quic]\nlisten = '{quic}'\n[admin]\nlisten = '{admin}'\n\
             [tls]\ncertificate = 'collector.pem'\nkey = 'collector.key'\nca = 'ca.pem'\n\
             [catalog]\nuri = 'sqlite://catalog.db'\nwarehouse = 'warehouse'\n[log]\nlevel = 'error'\n{settings}"
        );
        std::fs::write(&config, text)?;
        let child = Command::new(env!("CARGO_BIN_EXE_headwater-collector"))
            .arg("--config")
            .arg(&config)
            .current_dir(directory.path())
            .stdin(Stdio::null())
            .spawn()?;
        let mut program = Self {
            directory,
            issuer,
            child,
            quic,
            admin,
            endpoint: Endpoint::client("127.0.0.1:0".parse()?)?,
        };
        let started = Instant::now();
        while program.get("/readyz").await.is_err() {
            ensure!(
                started.elapsed() < START_WITHIN,
                "the collector does not answer"
            );
            if let Some(status) = program.child.try_wait()? {
                bail!("the collector ended: {status}");
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(program)
    }

    pub(crate) fn warehouse(&self) -> PathBuf {
        self.directory.path().join("warehouse")
    }

    /// Connects an agent; all of them share one socket of this process.
    pub(crate) fn agent(&self, name: &str) -> impl Future<Output = Result<Agent>> + Send + use<> {
        let files = certificate(self.directory.path(), &self.issuer, name);
        let (endpoint, address, name) = (self.endpoint.clone(), self.quic, name.to_owned());
        async move {
            let crypto = QuicClientConfig::try_from(mutual_client(&files?, ALPN)?)?;
            let config = quinn::ClientConfig::new(Arc::new(crypto));
            let connecting = endpoint.connect_with(config, address, "localhost")?;
            let connection = connecting.await?;
            let hello = Hello {
                protocol_version: PROTOCOL_VERSION,
                agent_id: name.parse()?,
                epoch: EPOCH,
                lowest_unacknowledged: 1,
                build: "bench".to_owned(),
                host: "bench".to_owned(),
            };
            let (mut send, mut recv) = connection.open_bi().await?;
            send.write_all(&frame::encode(&hello)).await?;
            match read(&mut recv).await? {
                HelloReply::Welcome(welcome) => Ok(Agent {
                    welcome,
                    connection,
                    _session: (send, recv),
                }),
                HelloReply::Refused { reason } => bail!("refused: {reason}"),
            }
        }
    }

    /// Returns the CPU time that the process has used.
    pub(crate) fn cpu(&self) -> Result<Duration> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id()))?;
        let (_, after_name) = stat.rsplit_once(')').context("no name in stat")?;
        let fields: Vec<&str> = after_name.split_whitespace().collect();
        // utime and stime; the name ended at the second field.
        let ticks = fields[11].parse::<f64>()? + fields[12].parse::<f64>()?;
        Ok(Duration::from_secs_f64(ticks / TICKS))
    }

    /// Returns the bytes of memory that the process holds.
    pub(crate) fn rss(&self) -> Result<u64> {
        self.status("VmRSS:")
    }

    /// Returns the most bytes of memory that the process has held.
    pub(crate) fn peak_rss(&self) -> Result<u64> {
        self.status("VmHWM:")
    }

    fn status(&self, name: &str) -> Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        let kib = line.and_then(|line| line.trim().strip_suffix(" kB"));
        Ok(kib.context("no such line")?.trim().parse::<u64>()? * 1024)
    }

    /// Returns the value of a metric without labels, 0 where it is not there yet.
    pub(crate) async fn metric(&self, name: &str) -> Result<f64> {
        let text = self.get("/metrics").await?;
        let value = text.lines().find_map(|line| {
            let value = line.strip_prefix(name)?.strip_prefix(' ')?;
            Some(value.parse::<f64>())
        });
        Ok(value.transpose()?.unwrap_or(0.0))
    }

    /// Returns the answer of the admin endpoint, if it is 200.
    async fn get(&self, path: &str) -> Result<String> {
        let mut stream = tokio::net::TcpStream::connect(self.admin).await?;
        let request =
            format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        ensure!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        Ok(answer)
    }

    /// Makes every commit fail, until [`Program::give_metadata_back`].
    pub(crate) fn take_metadata_away(&self) -> Result<()> {
        let metadata = self.warehouse().join("raw/events/metadata");
        std::fs::rename(&metadata, metadata.with_extension("away"))?;
        // A file where a directory is wanted: nothing can be made there.
        Ok(std::fs::write(metadata, "")?)
    }

    pub(crate) fn give_metadata_back(&self) -> Result<()> {
        let metadata = self.warehouse().join("raw/events/metadata");
        std::fs::remove_file(&metadata)?;
        Ok(std::fs::rename(metadata.with_extension("away"), metadata)?)
    }
}

fn certificate(
    directory: &Path,
    issuer: &Issuer<'static, KeyPair>,
    name: &str,
) -> Result<TlsFiles> {
    let files = TlsFiles {
        certificate: directory.join(format!("{name}.pem")),
        key: directory.join(format!("{name}.key")),
        ca: directory.join("ca.pem"),
    };
    let mut params = CertificateParams::new(vec!["localhost".to_owned()])?;
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    let key = KeyPair::generate()?;
    let certificate = params.signed_by(&key, issuer)?;
    std::fs::write(&files.certificate, certificate.pem())?;
    std::fs::write(&files.key, key.serialize_pem())?;
    Ok(files)
}

/// An agent that has been welcomed.
pub(crate) struct Agent {
    pub(crate) welcome: Welcome,
    pub(crate) connection: Connection,
    _session: (SendStream, RecvStream),
}

impl Agent {
    /// Sends a batch and returns the answer.
    pub(crate) async fn send(&self, header: &BatchHeader, body: &[u8]) -> Result<BatchReply> {
        let (mut send, mut recv) = self.connection.open_bi().await?;
        send.write_all(&frame::encode(header)).await?;
        send.write_all(body).await?;
        send.finish()?;
        read(&mut recv).await
    }
}

async fn read<T: DeserializeOwned>(recv: &mut RecvStream) -> Result<T> {
    let mut prefix = [0; 4];
    recv.read_exact(&mut prefix).await?;
    let mut message = vec![0; frame::length(prefix)?];
    recv.read_exact(&mut message).await?;
    Ok(frame::decode(&message)?)
}
