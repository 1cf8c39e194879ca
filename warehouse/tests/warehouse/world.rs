//! A small world: an operational SQLite file, a catalog and events written as the collector writes
//! them, through the tables' own API.

use std::path::Path;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex};

use arrow::array::{
    ArrayRef, FixedSizeBinaryArray, Int32Array, Int64Array, RecordBatch, StringArray,
    TimestampMicrosecondArray,
};
use arrow::datatypes::{Field, Schema};
use arrow::util::display::{ArrayFormatter, FormatOptions};
use chrono::{DateTime, NaiveDate};
use headwater_service::clock::ManualClock;
use headwater_tables::promoted::{ColumnType, Promoted, raw_events_with};
use headwater_tables::query::{Pins, SessionOptions, session};
use headwater_tables::schema::{RAW_EVENTS, raw_events};
use headwater_tables::watermark::Watermarks;
use headwater_tables::{Catalog, CatalogConfig, Change, Operation, write};
use headwater_warehouse::{Config, NightError, NightReport, NoProgress, Progress, nightly};
use sqlx::{Connection, Executor, SqliteConnection};

/// The DDL of the operational database.
pub(crate) const SCHEMA: &str = include_str!("../../schema/operational.sql");

/// Reads an ISO 8601 time.
pub(crate) fn micros(time: &str) -> i64 {
    DateTime::parse_from_rfc3339(time)
        .unwrap()
        .timestamp_micros()
}

/// One event, with what tests care about.
#[derive(Debug, Clone)]
pub(crate) struct Ev {
    company: String,
    id: String,
    name: String,
    time: i64,
    received: i64,
    actor_type: Option<String>,
    actor_id: Option<String>,
    conversation: Option<String>,
    part_type: Option<String>,
    rating: Option<i32>,
    agent: String,
    properties: String,
}

static IDS: AtomicI64 = AtomicI64::new(0);

impl Ev {
    /// An event of company `acme` that was received one second after it happened.
    pub(crate) fn new(name: &str, time: &str) -> Self {
        let time = micros(time);
        Self {
            company: "acme".to_owned(),
            id: format!("m{}", IDS.fetch_add(1, Ordering::SeqCst)),
            name: name.to_owned(),
            time,
            received: time + 1_000_000,
            actor_type: None,
            actor_id: None,
            conversation: None,
            part_type: None,
            rating: None,
            agent: "agent-1".to_owned(),
            properties: "{}".to_owned(),
        }
    }

    pub(crate) fn company(mut self, company: &str) -> Self {
        self.company = company.to_owned();
        self
    }

    pub(crate) fn id(mut self, id: &str) -> Self {
        self.id = id.to_owned();
        self
    }

    pub(crate) fn received(mut self, time: &str) -> Self {
        self.received = micros(time);
        self
    }

    pub(crate) fn agent(mut self, agent: &str) -> Self {
        self.agent = agent.to_owned();
        self
    }

    pub(crate) fn by(mut self, actor_type: &str, actor_id: &str) -> Self {
        self.actor_type = Some(actor_type.to_owned());
        self.actor_id = Some(actor_id.to_owned());
        self
    }

    pub(crate) fn of(mut self, conversation: &str) -> Self {
        self.conversation = Some(conversation.to_owned());
        self
    }

    pub(crate) fn rating(mut self, rating: i32) -> Self {
        self.rating = Some(rating);
        self
    }

    pub(crate) fn with(mut self, properties: &str) -> Self {
        self.properties = properties.to_owned();
        self
    }
}

/// The world of one test.
pub(crate) struct World {
    pub(crate) config: Config,
    pub(crate) clock: Arc<ManualClock>,
    pub(crate) directory: tempfile::TempDir,
    sequence: AtomicI64,
    committed: Mutex<Vec<RecordBatch>>,
}

impl World {
    /// Makes an operational database with one company `acme` in UTC and the time 2026-11-20 02:00.
    pub(crate) async fn new() -> Self {
        let world = Self::without_source();
        world.sql(SCHEMA).await;
        world.company("acme", "UTC").await;
        world
    }

    /// Makes a world whose operational database is not there.
    pub(crate) fn without_source() -> Self {
        // In memory where that is possible: these tests are not about fsync, and a night has dozens.
        let memory = Path::new("/dev/shm");
        let directory = if memory.is_dir() {
            tempfile::tempdir_in(memory).unwrap()
        } else {
            tempfile::tempdir().unwrap()
        };
        let at = |name: &str| directory.path().join(name);
        let mut config = Config {
            catalog: CatalogConfig::local(directory.path()),
            ..Config::default()
        };
        config.source.uri = format!("sqlite://{}", at("operational.db").display());
        config.limits.query_memory_bytes = 256 << 20;
        Self {
            config,
            clock: ManualClock::at(micros("2026-11-20T02:00:00Z")),
            directory,
            sequence: AtomicI64::new(1),
            committed: Mutex::default(),
        }
    }

    /// Runs statements on the operational database.
    pub(crate) async fn sql(&self, sql: &str) {
        let uri = format!("{}?mode=rwc", self.config.source.uri);
        let mut connection = SqliteConnection::connect(&uri).await.unwrap();
        connection.execute(sql).await.unwrap();
        connection.close().await.unwrap();
    }

    /// Adds a company.
    pub(crate) async fn company(&self, id: &str, zone: &str) {
        self.sql(&format!(
            "INSERT INTO companies (company_id, name, created_at, timezone, status, updated_at) VALUES \
             ('{id}', '{id}', '2026-01-01T00:00:00Z', '{zone}', 'active', '2026-01-01T00:00:00Z')"
        ))
        .await;
    }

    /// Adds a plan, priced per seat and month in cents of USD.
    pub(crate) async fn plan(&self, id: &str, cents: i64) {
        self.sql(&format!(
            "INSERT INTO plans (plan_id, name, tier_rank, billing_interval, interval_count, currency, \
             unit_amount_minor, usage_type, active, created_at, updated_at) VALUES \
             ('{id}', '{id}', 1, 'month', 1, 'USD', {cents}, 'licensed', 1, '2026-01-01T00:00:00Z', '2026-01-01T00:00:00Z')"
        ))
        .await;
    }

    /// Adds an active subscription of `acme` with one item.
    pub(crate) async fn subscribe(&self, id: &str, plan: &str, seats: i64) {
        self.sql(&format!(
            "INSERT INTO subscriptions (subscription_id, company_id, status, start_date, cancel_at_period_end, created_at, updated_at) \
             VALUES ('{id}', 'acme', 'active', '2026-02-01T00:00:00Z', 0, '2026-02-01T00:00:00Z', '2026-02-01T00:00:00Z'); \
             INSERT INTO subscription_items (item_id, subscription_id, plan_id, quantity, created_at, updated_at) \
             VALUES ('{id}-item', '{id}', '{plan}', {seats}, '2026-02-01T00:00:00Z', '2026-02-01T00:00:00Z')"
        ))
        .await;
    }

    /// Commits events to `raw.events` with the next sequences, and moves the watermarks.
    pub(crate) async fn events(&self, events: &[Ev]) {
        let catalog = Catalog::open(&self.config.catalog).await.unwrap();
        let table = catalog.ensure(&raw_events()).await.unwrap();
        let first = self
            .sequence
            .fetch_add(events.len() as i64, Ordering::SeqCst);
        let rows = batch(events, first, "b");
        self.committed.lock().unwrap().push(rows.clone());
        let before = Watermarks::of(&table).unwrap();
        let mut after = before.clone();
        for (event, sequence) in events.iter().zip(first.unsigned_abs()..) {
            after.advance(&event.agent, 1, sequence);
        }
        let change = Change {
            operation: Operation::Append,
            add: write::write_batches(&table, vec![rows]).await.unwrap(),
            properties: after.changed_properties(&before),
            ..Change::default()
        };
        catalog.commit(&table, change).await.unwrap();
    }

    /// Adds an event as a replay of the quarantine does: at a position that the watermark has passed.
    pub(crate) async fn replayed(&self, event: Ev, sequence: i64) {
        let catalog = Catalog::open(&self.config.catalog).await.unwrap();
        let table = catalog.load(&RAW_EVENTS).await.unwrap();
        let rows = batch(&[event], sequence, "replay:agent-1/1/1");
        let files = write::write_batches(&table, vec![rows]).await.unwrap();
        catalog.commit(&table, Change::append(files)).await.unwrap();
    }

    /// Gives a property a column of its own, as a collector with such a tracking plan does.
    pub(crate) async fn promote(&self, name: &str, column_type: ColumnType) {
        let catalog = Catalog::open(&self.config.catalog).await.unwrap();
        let name = name.to_owned();
        let spec = raw_events_with(&[Promoted { name, column_type }]).unwrap();
        catalog.ensure(&spec).await.unwrap();
    }

    /// Rewrites all of `raw.events` as maintenance does: the same rows in new files.
    pub(crate) async fn compact(&self) {
        let catalog = Catalog::open(&self.config.catalog).await.unwrap();
        let table = catalog.load(&RAW_EVENTS).await.unwrap();
        let rows = self.committed.lock().unwrap().clone();
        let live = write::live_files(&table).await.unwrap();
        let change = Change {
            operation: Operation::Replace,
            add: write::write_batches(&table, rows).await.unwrap(),
            remove: live
                .iter()
                .map(|file| file.file_path().to_owned())
                .collect(),
            ..Change::default()
        };
        catalog.commit(&table, change).await.unwrap();
    }

    /// Empties a table and sets a property of it.
    pub(crate) async fn truncate(&self, name: &str, property: (&str, &str)) {
        let catalog = Catalog::open(&self.config.catalog).await.unwrap();
        let table = catalog.load(&name.parse().unwrap()).await.unwrap();
        let live = write::live_files(&table).await.unwrap();
        let change = Change {
            operation: Operation::Overwrite,
            remove: live
                .iter()
                .map(|file| file.file_path().to_owned())
                .collect(),
            properties: [(property.0.to_owned(), property.1.to_owned())].into(),
            ..Change::default()
        };
        catalog.commit(&table, change).await.unwrap();
    }

    /// Runs the night of `date`.
    pub(crate) async fn try_night(&self, date: &str) -> Result<NightReport, NightError> {
        let date: NaiveDate = date.parse().unwrap();
        nightly(&self.config, date, self.clock.clone(), &NoProgress).await
    }

    /// Runs the night of `date` and tells `progress`.
    pub(crate) async fn watched_night(&self, date: &str, progress: &dyn Progress) -> NightReport {
        let date: NaiveDate = date.parse().unwrap();
        let night = nightly(&self.config, date, self.clock.clone(), progress);
        night.await.unwrap()
    }

    /// Runs the night of `date`, which must succeed.
    pub(crate) async fn night(&self, date: &str) -> NightReport {
        self.try_night(date).await.unwrap()
    }

    /// Runs a query over the tables; one text per row, values separated by `|`, null empty.
    pub(crate) async fn query(&self, sql: &str) -> Vec<String> {
        let catalog = Catalog::open(&self.config.catalog).await.unwrap();
        let pins = Pins::take(&catalog).await.unwrap();
        let context = session(&pins, &SessionOptions::default()).unwrap();
        let batches = context.sql(sql).await.unwrap().collect().await.unwrap();
        batches.iter().flat_map(lines).collect()
    }

    /// Returns table → snapshot of every table.
    pub(crate) async fn snapshots(&self) -> Vec<(String, Option<i64>)> {
        let catalog = Catalog::open(&self.config.catalog).await.unwrap();
        let tables = catalog.load_all().await.unwrap();
        tables
            .iter()
            .map(|(name, table)| (name.to_string(), table.metadata().current_snapshot_id()))
            .collect()
    }
}

fn lines(batch: &RecordBatch) -> Vec<String> {
    let options = FormatOptions::default().with_timestamp_tz_format(Some("%Y-%m-%dT%H:%M:%S%.fZ"));
    let columns: Vec<ArrayFormatter<'_>> = batch
        .columns()
        .iter()
        .map(|column| ArrayFormatter::try_new(column, &options).unwrap())
        .collect();
    (0..batch.num_rows())
        .map(|row| {
            let values: Vec<String> = columns
                .iter()
                .map(|column| column.value(row).to_string())
                .collect();
            values.join("|")
        })
        .collect()
}

/// Returns the rows as the collector would stage them.
fn batch(events: &[Ev], first_sequence: i64, batch_id: &str) -> RecordBatch {
    let text = |read: &dyn Fn(&Ev) -> Option<String>| -> ArrayRef {
        Arc::new(events.iter().map(read).collect::<StringArray>())
    };
    let time = |read: &dyn Fn(&Ev) -> i64| -> ArrayRef {
        let times: TimestampMicrosecondArray =
            events.iter().map(|event| Some(read(event))).collect();
        Arc::new(times.with_timezone("+00:00"))
    };
    let constant = |value: &str| text(&|_| Some(value.to_owned()));
    let count = events.len();
    let hashes = FixedSizeBinaryArray::try_from_iter(events.iter().map(|_| [7_u8; 16])).unwrap();
    let sequences = Int64Array::from_iter_values(first_sequence..first_sequence + count as i64);
    let columns: Vec<(&str, ArrayRef)> = vec![
        ("company_id", text(&|event| Some(event.company.clone()))),
        ("source_id", constant("web")),
        ("message_id", text(&|event| Some(event.id.clone()))),
        ("payload_sha256", Arc::new(hashes)),
        ("type", constant("track")),
        ("schema_version", Arc::new(Int32Array::from(vec![1; count]))),
        ("event_time", time(&|event| event.time)),
        ("received_at", time(&|event| event.received)),
        ("time_rule", constant("trusted")),
        ("properties", text(&|event| Some(event.properties.clone()))),
        ("context", constant("{}")),
        ("event_name", text(&|event| Some(event.name.clone()))),
        ("actor_type", text(&|event| event.actor_type.clone())),
        ("actor_id", text(&|event| event.actor_id.clone())),
        ("conversation_id", text(&|event| event.conversation.clone())),
        ("part_type", text(&|event| event.part_type.clone())),
        (
            "rating",
            Arc::new(
                events
                    .iter()
                    .map(|event| event.rating)
                    .collect::<Int32Array>(),
            ),
        ),
        ("ingest_batch_id", constant(batch_id)),
        ("_agent_id", text(&|event| Some(event.agent.clone()))),
        ("_epoch", Arc::new(Int64Array::from(vec![1; count]))),
        ("_sequence", Arc::new(sequences)),
    ];
    let fields: Vec<Field> = columns
        .iter()
        .map(|(name, array)| Field::new(*name, array.data_type().clone(), array.null_count() > 0))
        .collect();
    let arrays = columns.into_iter().map(|(_, array)| array).collect();
    RecordBatch::try_new(Arc::new(Schema::new(fields)), arrays).unwrap()
}
