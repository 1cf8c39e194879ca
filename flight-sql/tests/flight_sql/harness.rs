//! A server with tables and certificates of its own, and clients for it.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use arrow::array::{
    ArrayRef, BooleanArray, Date32Array, Decimal128Array, Float64Array, Int64Array, ListBuilder,
    RecordBatch, StringArray, StringBuilder, TimestampMicrosecondArray,
};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit};
use arrow_flight::FlightInfo;
use arrow_flight::error::FlightError;
use arrow_flight::flight_service_client::FlightServiceClient;
use arrow_flight::sql::client::FlightSqlServiceClient;
use futures::TryStreamExt as _;
use headwater_flight_sql::config::{LimitsConfig, TlsConfig, UserConfig};
use headwater_flight_sql::{Config, Running, start};
use headwater_service::clock::{SharedClock, SystemClock};
use headwater_tables::{Catalog, CatalogConfig, Change, Partition, TableName, TableSpec};
use tokio_util::sync::CancellationToken;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};

use crate::rest_server;

pub(crate) type Client = FlightSqlServiceClient<Channel>;

/// Longest wait for anything that should be quick.
pub(crate) const SOON: Duration = Duration::from_secs(20);

pub(crate) struct Server {
    pub(crate) catalog: Catalog,
    pub(crate) running: Option<Running>,
    pub(crate) stop: CancellationToken,
    pub(crate) address: String,
    pub(crate) admin: std::net::SocketAddr,
    certificate: String,
    _directory: tempfile::TempDir,
}

impl Server {
    pub(crate) async fn start() -> Self {
        Self::start_with(|_| {}, SystemClock::shared()).await
    }

    /// The same with its catalog on the tests' REST server.
    pub(crate) async fn start_on_rest() -> Self {
        let on_rest = |config: &mut Config| config.catalog.uri = rest_server::new_catalog();
        Self::start_configured(on_rest, SystemClock::shared()).await
    }

    pub(crate) async fn start_with_limits(change: impl FnOnce(&mut LimitsConfig)) -> Self {
        Self::start_with(change, SystemClock::shared()).await
    }

    pub(crate) async fn start_with(
        change: impl FnOnce(&mut LimitsConfig),
        clock: SharedClock,
    ) -> Self {
        Self::start_configured(|config| change(&mut config.limits), clock).await
    }

    pub(crate) async fn start_configured(
        change: impl FnOnce(&mut Config),
        clock: SharedClock,
    ) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        let names = ["localhost".to_owned(), "127.0.0.1".to_owned()];
        let key = rcgen::generate_simple_self_signed(names).unwrap();
        let certificate = key.cert.pem();
        std::fs::write(path("server.pem"), &certificate).unwrap();
        std::fs::write(path("server.key"), key.signing_key.serialize_pem()).unwrap();
        let mut config = Config {
            tls: Some(TlsConfig {
                certificate: path("server.pem"),
                key: path("server.key"),
            }),
            catalog: CatalogConfig::local(directory.path()),
            users: vec![user("demo", "demo"), user("other", "s3cret:with:colons")],
            ..Config::default()
        };
        config.flight.listen = "127.0.0.1:0".parse().unwrap();
        config.admin.listen = "127.0.0.1:0".parse().unwrap();
        change(&mut config);
        let catalog = Catalog::open(&config.catalog).await.unwrap();
        fill(&catalog).await;
        let stop = CancellationToken::new();
        let running = start(config, clock, stop.clone()).await.unwrap();
        Self {
            catalog,
            address: format!("https://localhost:{}", running.address.port()),
            admin: running.admin_address,
            running: Some(running),
            stop,
            certificate,
            _directory: directory,
        }
    }

    pub(crate) async fn channel(&self) -> Channel {
        self.channel_named("test").await
    }

    async fn channel_named(&self, user_agent: &str) -> Channel {
        let tls = ClientTlsConfig::new()
            .ca_certificate(Certificate::from_pem(&self.certificate))
            .domain_name("localhost");
        Endpoint::from_shared(self.address.clone())
            .unwrap()
            .user_agent(user_agent)
            .unwrap()
            .tls_config(tls)
            .unwrap()
            .connect()
            .await
            .unwrap()
    }

    /// A client that has shaken hands.
    pub(crate) async fn client(&self) -> Client {
        self.client_of("demo", "demo").await
    }

    pub(crate) async fn client_of(&self, user: &str, password: &str) -> Client {
        let mut client = FlightSqlServiceClient::new(self.channel().await);
        client.handshake(user, password).await.unwrap();
        client
    }

    /// A client that has shaken hands and calls itself `user_agent`.
    pub(crate) async fn client_named(&self, user_agent: &str) -> Client {
        let mut client = FlightSqlServiceClient::new(self.channel_named(user_agent).await);
        client.handshake("demo", "demo").await.unwrap();
        client
    }

    /// The plain Flight client, without credentials.
    pub(crate) async fn raw(&self) -> FlightServiceClient<Channel> {
        FlightServiceClient::new(self.channel().await)
    }

    /// Commits `rows` to a table.
    pub(crate) async fn append(&self, table: &str, batch: RecordBatch) {
        append(&self.catalog, table, batch).await;
    }
}

fn user(name: &str, password: &str) -> UserConfig {
    UserConfig {
        name: name.to_owned(),
        password: password.to_owned(),
    }
}

/// Adds the bearer token of `client` to a raw request.
pub(crate) fn with_token<T>(client: &Client, body: T) -> tonic::Request<T> {
    let mut request = tonic::Request::new(body);
    let token = format!("Bearer {}", client.token().unwrap());
    request
        .metadata_mut()
        .insert("authorization", token.parse().unwrap());
    request
}

/// Runs a statement and reads its whole result.
pub(crate) async fn query(client: &mut Client, sql: &str) -> Result<Vec<RecordBatch>, FlightError> {
    let info = client.execute(sql.to_owned(), None).await?;
    fetch(client, info).await
}

/// Runs a statement and returns the first column of its result as text.
pub(crate) async fn column(client: &mut Client, sql: &str) -> Vec<String> {
    texts(
        &query(client, sql)
            .await
            .map_err(|error| format!("{sql}: {error}"))
            .unwrap(),
    )
}

pub(crate) async fn fetch(
    client: &mut Client,
    info: FlightInfo,
) -> Result<Vec<RecordBatch>, FlightError> {
    assert_eq!(info.endpoint.len(), 1);
    let ticket = info.endpoint[0].ticket.clone().unwrap();
    client.do_get(ticket).await?.try_collect().await
}

pub(crate) fn texts(batches: &[RecordBatch]) -> Vec<String> {
    let mut texts = Vec::new();
    for batch in batches {
        let text = arrow::compute::cast(batch.column(0), &DataType::Utf8).unwrap();
        let text = text.as_any().downcast_ref::<StringArray>().unwrap().clone();
        texts.extend(text.iter().map(|value| value.unwrap_or("NULL").to_owned()));
    }
    texts
}

/// The gRPC status of a failed call.
pub(crate) fn status(error: FlightError) -> tonic::Status {
    match error {
        FlightError::Tonic(status) => *status,
        other => panic!("not a status: {other}"),
    }
}

pub(crate) async fn heads(catalog: &Catalog) -> HashSet<(String, String)> {
    let heads = catalog.heads().await.unwrap();
    heads
        .into_iter()
        .map(|(name, head)| (name.to_string(), head))
        .collect()
}

async fn fill(catalog: &Catalog) {
    catalog
        .ensure(&headwater_tables::schema::raw_events())
        .await
        .unwrap();
    let zoo = zoo();
    create(catalog, "core.zoo", &zoo.schema()).await;
    append(catalog, "core.zoo", zoo).await;
    create(catalog, "core.counter", &counter(0).schema()).await;
    let day = Schema::new(vec![
        Field::new("company_id", DataType::Utf8, false),
        Field::new("report_date", DataType::Date32, false),
        Field::new("events", DataType::Int64, true),
    ]);
    create(catalog, "reports.company_day", &Arc::new(day)).await;
}

async fn create(catalog: &Catalog, name: &str, schema: &SchemaRef) {
    let name: TableName = name.parse().unwrap();
    let spec = TableSpec::from_arrow(name, schema, Partition::None).unwrap();
    catalog.ensure(&spec).await.unwrap();
}

async fn append(catalog: &Catalog, table: &str, batch: RecordBatch) {
    let base = catalog.load(&table.parse().unwrap()).await.unwrap();
    let files = headwater_tables::write::write_batches(&base, vec![batch])
        .await
        .unwrap();
    catalog.commit(&base, Change::append(files)).await.unwrap();
}

pub(crate) fn counter(n: i64) -> RecordBatch {
    RecordBatch::try_from_iter([("n", Arc::new(Int64Array::from(vec![n])) as ArrayRef)]).unwrap()
}

/// One column of each type, a row of nulls last.
fn zoo() -> RecordBatch {
    let mut tags = ListBuilder::new(StringBuilder::new());
    tags.append_value([Some("a"), Some("b")]);
    tags.append_value([None::<&str>]);
    tags.append_null();
    let schema = Schema::new(vec![
        Field::new("id", DataType::Int64, false),
        Field::new("name", DataType::Utf8, true),
        Field::new("amount", DataType::Decimal128(18, 2), true),
        Field::new("day", DataType::Date32, true),
        Field::new(
            "at",
            DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())),
            true,
        ),
        Field::new("ratio", DataType::Float64, true),
        Field::new("flag", DataType::Boolean, true),
        Field::new(
            "tags",
            DataType::List(Arc::new(Field::new("item", DataType::Utf8, true))),
            true,
        ),
    ]);
    let at = TimestampMicrosecondArray::from(vec![Some(1_750_000_000_123_000), Some(0), None]);
    RecordBatch::try_new(
        Arc::new(schema),
        vec![
            Arc::new(Int64Array::from(vec![1, 2, 3])),
            Arc::new(StringArray::from(vec![
                Some("what?"),
                Some("it's $1"),
                None,
            ])),
            Arc::new(
                Decimal128Array::from(vec![Some(1250), Some(-5), None])
                    .with_precision_and_scale(18, 2)
                    .unwrap(),
            ),
            Arc::new(Date32Array::from(vec![Some(20_000), Some(0), None])),
            Arc::new(at.with_timezone("UTC")),
            Arc::new(Float64Array::from(vec![Some(0.5), Some(-1.0), None])),
            Arc::new(BooleanArray::from(vec![Some(true), Some(false), None])),
            Arc::new(tags.finish()),
        ],
    )
    .unwrap()
}
