//! A catalog and a PKI in a temporary directory, collectors on them, an agent that speaks the wire,
//! and what the tables really hold.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::AsArray;
use arrow::datatypes::Int64Type;
use arrow::record_batch::RecordBatch;
use futures::TryStreamExt;
use headwater_collector::commit::{CommitHook, NoHook};
use headwater_collector::{Config, RunError, Running, start_with};
use headwater_protocol::{
    ALPN, BatchHeader, BatchReply, Codec, Hello, HelloReply, Record, SourceKind, Welcome, batch,
    frame,
};
use headwater_service::clock::SystemClock;
use headwater_service::tls::{TlsFiles, mutual_client};
use headwater_tables::watermark::Watermarks;
use headwater_tables::{Catalog, CatalogConfig, Table, TableName, schema};
use parking_lot::Mutex;
use quinn::crypto::rustls::QuicClientConfig;
use quinn::{Connection, ConnectionError, Endpoint, RecvStream, SendStream};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DistinguishedName,
    DnType, IsCa, Issuer, KeyIdMethod, KeyPair, RevokedCertParams,
};
use sqlx::Connection as _;
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

use crate::s3_server::S3;
use crate::{postgres, rest_server};

pub(crate) const NOW: i64 = 1_790_000_000_000_000;
pub(crate) const EPOCH: u64 = 1_790_000_000_000;

pub(crate) struct World {
    dir: TempDir,
    pub(crate) catalog: CatalogConfig,
    issuer: Issuer<'static, KeyPair>,
    /// Of the newest certificate of each name.
    serials: Mutex<BTreeMap<String, u64>>,
    /// Where the tables are, unless on the local disk.
    s3: Option<S3>,
}

impl World {
    /// A catalog in a SQLite file.
    pub(crate) fn new() -> Self {
        let dir = TempDir::new().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let ca = params.self_signed(&key).unwrap();
        std::fs::write(dir.path().join("ca.pem"), ca.pem()).unwrap();
        let world = Self {
            catalog: CatalogConfig::local(dir.path()),
            dir,
            issuer: Issuer::new(params, key),
            serials: Mutex::default(),
            s3: None,
        };
        world.certificate("collector");
        world
    }

    /// A catalog in a schema of its own of the tests' PostgreSQL.
    pub(crate) async fn on_postgres() -> Self {
        let mut world = Self::new();
        world.catalog.uri = postgres::schema().await;
        world
    }

    /// A catalog in a SQLite file, with its tables in a bucket of an S3 service of its own.
    pub(crate) fn on_s3() -> Self {
        let mut world = Self::new();
        let service = S3::start();
        world.catalog = service.warehouse(world.catalog);
        world.s3 = Some(service);
        world
    }

    /// What an installation of several machines has: PostgreSQL, and a bucket.
    pub(crate) async fn on_postgres_and_s3() -> Self {
        let mut world = Self::on_s3();
        world.catalog.uri = postgres::schema().await;
        world
    }

    /// Returns the S3 service of a world that has one.
    pub(crate) fn s3(&mut self) -> &mut S3 {
        self.s3.as_mut().unwrap()
    }

    /// A catalog of its own of the tests' REST server.
    pub(crate) fn on_rest() -> Self {
        let mut world = Self::new();
        world.catalog.uri = rest_server::new_catalog();
        world
    }

    /// Writes a certificate for the common name and returns its files.
    pub(crate) fn certificate(&self, name: &str) -> TlsFiles {
        let files = self.files(name);
        let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        let serial = rand::random::<u64>() >> 1;
        params.serial_number = Some(serial.into());
        self.serials.lock().insert(name.to_owned(), serial);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        std::fs::write(&files.certificate, certificate.pem()).unwrap();
        std::fs::write(&files.key, key.serialize_pem()).unwrap();
        files
    }

    /// Puts a list of those who are revoked in the place of the one before, and returns its file.
    pub(crate) fn revoke(&self, names: &[&str]) -> PathBuf {
        let serials = self.serials.lock();
        let revoked = names.iter().map(|name| RevokedCertParams {
            serial_number: serials[*name].into(),
            revocation_time: rcgen::date_time_ymd(2026, 1, 1),
            reason_code: None,
            invalidity_date: None,
        });
        let list = CertificateRevocationListParams {
            this_update: rcgen::date_time_ymd(2026, 1, 1),
            // Long past: it counts all the same.
            next_update: rcgen::date_time_ymd(2026, 1, 2),
            crl_number: 1.into(),
            issuing_distribution_point: None,
            revoked_certs: revoked.collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        let list = list.signed_by(&self.issuer).unwrap();
        self.replace("revoked.pem", &list.pem().unwrap())
    }

    /// Replaces a file at once and returns its path.
    pub(crate) fn replace(&self, name: &str, text: &str) -> PathBuf {
        let new = self.path("new");
        std::fs::write(&new, text).unwrap();
        std::fs::rename(new, self.path(name)).unwrap();
        self.path(name)
    }

    pub(crate) fn files(&self, name: &str) -> TlsFiles {
        TlsFiles {
            certificate: self.path(&format!("{name}.pem")),
            key: self.path(&format!("{name}.key")),
            ca: self.path("ca.pem"),
        }
    }

    /// Renames a table of the catalog's database: one way to lose a catalog.
    pub(crate) async fn rename_table(&self, from: &str, to: &str) {
        self.in_database(&format!("ALTER TABLE {from} RENAME TO {to}"))
            .await;
    }

    /// Sets `raw.events` back to an earlier head, as a catalog is that was restored from a backup.
    pub(crate) async fn set_back(&self, head: &str) {
        self.in_database(&format!(
            "UPDATE iceberg_tables SET metadata_location = '{head}' WHERE table_name = 'events'"
        ))
        .await;
    }

    /// Runs a statement in the catalog's database.
    pub(crate) async fn in_database(&self, statement: &str) {
        let mut database = sqlx::SqliteConnection::connect(&self.catalog.uri)
            .await
            .unwrap();
        sqlx::query(statement).execute(&mut database).await.unwrap();
        database.close().await.unwrap();
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Settings with short times and free ports.
    pub(crate) fn config(&self) -> Config {
        let path = |path: &Path| format!("{:?}", path.display().to_string());
        let tls = self.files("collector");
        let text = format!(
            "[quic]\nlisten = '127.0.0.1:0'\n[admin]\nlisten = '127.0.0.1:0'\n\
             [tls]\ncertificate = {}\nkey = {}\nca = {}\n\
             [commit]\ninterval_ms = 20\nretry_min_ms = 5\nretry_max_ms = 50\n\
             [limits]\npark_ms = 50\nretry_after_ms = 1\n",
            path(&tls.certificate),
            path(&tls.key),
            path(&tls.ca),
        );
        let mut config: Config = toml::from_str(&text).unwrap();
        config.catalog = self.catalog.clone();
        config.validate().unwrap();
        config
    }

    pub(crate) async fn collector(&self) -> Collector {
        self.collector_with(self.config(), Arc::new(NoHook)).await
    }

    pub(crate) async fn collector_with(
        &self,
        config: Config,
        hook: Arc<dyn CommitHook>,
    ) -> Collector {
        let stop = CancellationToken::new();
        let running = start_with(config, SystemClock::shared(), stop.clone(), hook)
            .await
            .unwrap();
        Collector {
            address: running.address,
            running,
            stop,
        }
    }

    /// Connects `name` with a certificate of that name.
    pub(crate) async fn agent(&self, name: &str, collector: &Collector) -> Agent {
        let hello = hello(name, EPOCH);
        self.connect(name, hello, collector.address).await.unwrap()
    }

    /// Connects with the certificate of `certified` and says `hello`; the error is the refusal.
    pub(crate) async fn connect(
        &self,
        certified: &str,
        hello: Hello,
        address: SocketAddr,
    ) -> Result<Agent, String> {
        let files = self.certificate(certified);
        let (endpoint, connection) = dial(mutual_client(&files, ALPN).unwrap(), address).await;
        let connection = connection.unwrap();
        let (mut send, mut recv) = connection.open_bi().await.unwrap();
        send.write_all(&frame::encode(&hello)).await.unwrap();
        match read_reply(&mut recv).await.unwrap() {
            HelloReply::Welcome(welcome) => Ok(Agent {
                epoch: hello.epoch,
                connection,
                welcome,
                _endpoint: endpoint,
                _session: (send, recv),
            }),
            HelloReply::Refused { reason } => Err(reason),
        }
    }

    /// Connects `name` with a certificate of that name, without a word.
    pub(crate) async fn silent(
        &self,
        name: &str,
        address: SocketAddr,
    ) -> (Endpoint, Result<Connection, ConnectionError>) {
        let tls = mutual_client(&self.certificate(name), ALPN).unwrap();
        dial(tls, address).await
    }

    /// Opens a connection to which not a byte can be sent on a stream.
    pub(crate) async fn deaf(&self, name: &str, address: SocketAddr) -> (Endpoint, Connection) {
        let tls = mutual_client(&self.certificate(name), ALPN).unwrap();
        let crypto = QuicClientConfig::try_from(tls).unwrap();
        let mut config = quinn::ClientConfig::new(Arc::new(crypto));
        let mut transport = quinn::TransportConfig::default();
        transport.stream_receive_window(0u32.into());
        config.transport_config(Arc::new(transport));
        let mut endpoint = Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
        endpoint.set_default_client_config(config);
        let connection = endpoint.connect(address, "localhost").unwrap().await;
        (endpoint, connection.unwrap())
    }

    async fn table(&self, name: &TableName) -> Table {
        let catalog = Catalog::open(&self.catalog).await.unwrap();
        catalog.load(name).await.unwrap()
    }

    pub(crate) async fn events(&self) -> Table {
        self.table(&schema::RAW_EVENTS).await
    }

    /// Returns every row of `raw.events`, in no order.
    pub(crate) async fn event_rows(&self) -> Vec<RecordBatch> {
        let scan = self.events().await.scan().build().unwrap();
        let rows = scan.to_arrow().await.unwrap();
        rows.try_collect().await.unwrap()
    }

    pub(crate) async fn quarantine(&self) -> Table {
        self.table(&schema::RAW_QUARANTINE).await
    }

    pub(crate) async fn watermark(&self, agent: &str, epoch: u64) -> u64 {
        let marks = Watermarks::of(&self.events().await).unwrap();
        marks.get(agent, epoch)
    }

    /// Checks that the events of the agent are exactly these sequences, each once (EO-1).
    pub(crate) async fn assert_events(&self, agent: &str, expected: impl Iterator<Item = u64>) {
        let stored = sequences(&self.events().await).await;
        let expected: Vec<u64> = expected.collect();
        assert_eq!(stored.get(agent).unwrap_or(&Vec::new()), &expected);
    }

    pub(crate) async fn assert_quarantine(&self, agent: &str, expected: impl Iterator<Item = u64>) {
        let stored = sequences(&self.quarantine().await).await;
        let expected: Vec<u64> = expected.collect();
        assert_eq!(stored.get(agent).unwrap_or(&Vec::new()), &expected);
    }
}

/// Reads every row and returns the sorted sequences of each agent, all epochs together.
async fn sequences(table: &Table) -> BTreeMap<String, Vec<u64>> {
    let mut found: BTreeMap<String, Vec<u64>> = BTreeMap::new();
    if table.metadata().current_snapshot().is_none() {
        return found;
    }
    let scan = table.scan().select(["_agent_id", "_sequence"]).build();
    let rows = scan.unwrap().to_arrow().await.unwrap();
    for rows in rows.try_collect::<Vec<_>>().await.unwrap() {
        let agents = rows.column_by_name("_agent_id").unwrap();
        let sequences = rows.column_by_name("_sequence").unwrap();
        let sequences = sequences.as_primitive::<Int64Type>().values();
        for (agent, sequence) in agents.as_string::<i32>().iter().zip(sequences) {
            let agent = agent.unwrap().to_owned();
            found.entry(agent).or_default().push(*sequence as u64);
        }
    }
    for sequences in found.values_mut() {
        sequences.sort_unstable();
    }
    found
}

pub(crate) struct Collector {
    pub(crate) address: SocketAddr,
    pub(crate) running: Running,
    pub(crate) stop: CancellationToken,
}

impl Collector {
    pub(crate) async fn stop(self) {
        self.stop.cancel();
        self.running.finished().await.unwrap();
    }

    /// Waits for the end that a fault hook brings.
    pub(crate) async fn killed(self) -> RunError {
        self.running.finished().await.unwrap_err()
    }
}

pub(crate) struct Agent {
    pub(crate) epoch: u64,
    pub(crate) connection: Connection,
    pub(crate) welcome: Welcome,
    _endpoint: Endpoint,
    _session: (SendStream, RecvStream),
}

impl Agent {
    /// Sends the events of `range`; every seventh is invalid where `mixed`.
    pub(crate) async fn send(&self, range: RangeInclusive<u64>) -> Option<BatchReply> {
        self.send_records(*range.start(), &range.map(good).collect::<Vec<_>>())
            .await
    }

    /// Sends records; `None` when the connection ends before the answer.
    pub(crate) async fn send_records(&self, first: u64, records: &[Record]) -> Option<BatchReply> {
        let mut body = Vec::new();
        for record in records {
            record.encode_into(&mut body);
        }
        let header = self.header(first, records.len() as u32, body.len());
        self.send_raw(&header, &batch::compress(&body).unwrap())
            .await
    }

    pub(crate) fn header(&self, first: u64, count: u32, body_bytes: usize) -> BatchHeader {
        BatchHeader {
            epoch: self.epoch,
            first_sequence: first,
            count,
            codec: Codec::Zstd,
            body_bytes: body_bytes as u64,
        }
    }

    pub(crate) async fn send_raw(&self, header: &BatchHeader, body: &[u8]) -> Option<BatchReply> {
        let mut recv = self.post(header, body).await?;
        read_reply(&mut recv).await
    }

    /// Sends a batch and returns where its answer will come.
    pub(crate) async fn post(&self, header: &BatchHeader, body: &[u8]) -> Option<RecvStream> {
        let (mut send, recv) = self.connection.open_bi().await.ok()?;
        send.write_all(&frame::encode(header)).await.ok()?;
        send.write_all(body).await.ok()?;
        send.finish().ok()?;
        Some(recv)
    }

    /// Sends records and returns what waits for the answer.
    pub(crate) async fn post_records(
        &self,
        first: u64,
        records: &[Record],
    ) -> impl Future<Output = Option<BatchReply>> + use<> {
        let body: Vec<u8> = records.iter().flat_map(Record::encode).collect();
        let header = self.header(first, records.len() as u32, body.len());
        let compressed = batch::compress(&body).unwrap();
        let mut recv = self.post(&header, &compressed).await.unwrap();
        async move { read_reply(&mut recv).await }
    }

    /// Waits until everything before `next` is staged: a batch that comes too early is told which
    /// sequence is expected.
    pub(crate) async fn until_staged(&self, next: u64) {
        let expected = format!("sequence `{next}` comes first");
        loop {
            match self.send(next + 1..=next + 1).await.unwrap() {
                BatchReply::Retry { reason, .. } if reason.contains(&expected) => return,
                BatchReply::Retry { .. } => {}
                other => panic!("{other:?}"),
            }
        }
    }
}

/// Connects without a word. The endpoint lives as long as the connection should.
pub(crate) async fn dial(
    tls: rustls::ClientConfig,
    address: SocketAddr,
) -> (Endpoint, Result<Connection, ConnectionError>) {
    let crypto = QuicClientConfig::try_from(tls).unwrap();
    let mut endpoint = Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
    endpoint.set_default_client_config(quinn::ClientConfig::new(Arc::new(crypto)));
    let connection = endpoint.connect(address, "localhost").unwrap().await;
    (endpoint, connection)
}

pub(crate) async fn read_reply<T: serde::de::DeserializeOwned>(recv: &mut RecvStream) -> Option<T> {
    let mut prefix = [0; 4];
    recv.read_exact(&mut prefix).await.ok()?;
    let mut message = vec![0; frame::length(prefix).unwrap()];
    recv.read_exact(&mut message).await.ok()?;
    Some(frame::decode(&message).unwrap())
}

pub(crate) fn hello(agent: &str, epoch: u64) -> Hello {
    Hello {
        protocol_version: headwater_protocol::PROTOCOL_VERSION,
        agent_id: agent.parse().unwrap(),
        epoch,
        lowest_unacknowledged: 1,
        build: "test".to_owned(),
        host: "test".to_owned(),
    }
}

fn record(body: String) -> Record {
    Record::new(NOW, "acme", "web", SourceKind::Server, "/v1/batch", body)
}

/// A valid event that names its sequence.
pub(crate) fn good(sequence: u64) -> Record {
    record(format!(
        r#"{{"type":"track","event":"Signed In","messageId":"m-{sequence}","userId":"u"}}"#
    ))
}

/// An event without any identity.
pub(crate) fn bad(sequence: u64) -> Record {
    record(format!(
        r#"{{"type":"track","event":"Signed In","messageId":"m-{sequence}"}}"#
    ))
}

/// A valid event that lacks a property which some plans demand, or has it.
pub(crate) fn debatable(sequence: u64, lacks_it: bool) -> Record {
    let properties = if lacks_it {
        "{}"
    } else {
        r#"{"method":"sso"}"#
    };
    record(format!(
        r#"{{"type":"track","event":"Signed In","messageId":"m-{sequence}","userId":"u","properties":{properties}}}"#
    ))
}

/// A valid event with `bytes` that do not compress well.
pub(crate) fn large(sequence: u64, bytes: usize) -> Record {
    let noise: String = (0..bytes / 2)
        .map(|_| format!("{:02x}", rand::random::<u8>()))
        .collect();
    record(format!(
        r#"{{"type":"track","event":"E","messageId":"m-{sequence}","userId":"u","properties":{{"noise":"{noise}"}}}}"#
    ))
}

pub(crate) fn is_bad(sequence: u64) -> bool {
    sequence % 7 == 3
}

/// Valid and invalid events mixed.
pub(crate) fn mixed(range: RangeInclusive<u64>) -> Vec<Record> {
    let record = |sequence| {
        if is_bad(sequence) {
            bad(sequence)
        } else {
            good(sequence)
        }
    };
    range.map(record).collect()
}

/// Returns how far an Ack reaches.
pub(crate) fn acked(reply: Option<BatchReply>) -> u64 {
    match reply {
        Some(BatchReply::Ack {
            committed_through, ..
        }) => committed_through,
        other => panic!("no ack but {other:?}"),
    }
}
