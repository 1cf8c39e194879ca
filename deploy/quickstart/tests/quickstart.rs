//! Promises of the sample: the generator is exact and seeded, certificates are sound, the operational
//! database fits the events. The whole run is exercised by the end-to-end test.

#![expect(clippy::unwrap_used, reason = "a test fails where it unwraps")]

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::{Arc, LazyLock};

use chrono::NaiveDate;
use headwater_collector::plan::Plan;
use headwater_protocol::Event;
use headwater_protocol::json::Value;
use headwater_quickstart::desk::{Desk, Fate, Sdk};
use headwater_quickstart::operational::{self, Cell, Table, WriteError};
use headwater_quickstart::pki::{Files, Pki, PkiError};
use headwater_quickstart::sample::Sample;
use headwater_quickstart::world::SEED;
use headwater_quickstart::world::time::Window;
use rustls::client::danger::ServerCertVerifier;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use sqlx::{AnyConnection, Connection, Executor, Row};

/// Tuesday to Thursday.
fn window() -> Window {
    Window {
        last: NaiveDate::from_ymd_opt(2026, 11, 19).unwrap(),
    }
}

/// Generating is the slow part of these tests, so all of them share one desk.
static DESK: LazyLock<Desk> = LazyLock::new(|| Desk::open(SEED, window()));

/// A desk that is quick to make.
fn small(seed: u64, window: Window) -> Desk {
    Desk::sized(seed, window, 600.0)
}

#[test]
fn the_same_seed_gives_the_same_requests() {
    let (first, again) = (small(SEED, window()), small(SEED, window()));
    let bytes = |desk: &Desk| {
        let requests = desk.batches.iter();
        requests
            .map(|batch| batch.render(&batch.write_key(&desk.world), 0))
            .collect::<Vec<_>>()
    };
    assert_eq!(first.tally, again.tally);
    assert!(bytes(&first) == bytes(&again), "same seed, other requests");
    let other = small(SEED + 1, window());
    assert!(bytes(&first) != bytes(&other), "other seed, same requests");
}

#[test]
fn the_sample_is_as_large_and_as_disturbed_as_it_says() {
    let tally = &DESK.tally;
    assert!((190_000..210_000).contains(&tally.sent()), "{tally:?}");
    assert_eq!(tally.invalid.len(), 6, "every flaw occurs: {tally:?}");
    assert!(tally.copies > 1_000, "{tally:?}");
    assert!(tally.late > 1_000, "{tally:?}");
    assert!(tally.wrong_clock > 500, "{tally:?}");
    assert!(tally.future > 20, "{tally:?}");
    assert!(DESK.batches.iter().any(|batch| batch.attempt > 0));
    for sdk in [Sdk::Node, Sdk::Python, Sdk::Browser] {
        assert!(DESK.batches.iter().any(|batch| batch.sdk == sdk), "{sdk:?}");
    }
}

#[test]
fn a_weekend_has_nearly_as_many_conversations_and_parts() {
    let sunday = NaiveDate::from_ymd_opt(2026, 11, 22).unwrap();
    let weekend = small(SEED, Window { last: sunday });
    let week = small(SEED, window());
    assert_eq!(weekend.conversations.len(), week.conversations.len());
    let (few, many) = (weekend.tally.sent(), week.tally.sent());
    assert!(
        few * 10 > many * 7,
        "{few} on a weekend, {many} in the week"
    );
}

#[test]
fn every_event_parses_or_fails_as_the_tally_says() {
    let mut payloads: HashMap<(usize, Cow<'_, str>), [u8; 16]> = HashMap::new();
    let (mut distinct, mut copies) = (0_u64, 0_u64);
    let mut invalid = BTreeMap::new();
    for batch in &DESK.batches {
        for item in &batch.items {
            let parsed = Event::parse(item.body.as_bytes(), None, None);
            match (item.fate, parsed) {
                (Fate::Invalid(flaw), Err(error)) => {
                    assert_eq!(error.failure.as_str(), flaw.failure_type(), "{}", item.body);
                    *invalid.entry(flaw).or_default() += 1;
                }
                (Fate::New | Fate::Copy, Ok(event)) => {
                    assert!(!event.id_from_server, "{}", item.body);
                    let key = (batch.company, event.message_id);
                    match payloads.insert(key, event.payload_sha256) {
                        None => distinct += 1,
                        Some(before) => {
                            assert_eq!(before, event.payload_sha256, "{}", item.body);
                            copies += 1;
                        }
                    }
                }
                (fate, parsed) => panic!("{fate:?} but {parsed:?}: {}", item.body),
            }
        }
    }
    assert_eq!((distinct, copies), (DESK.tally.distinct, DESK.tally.copies));
    assert_eq!(invalid, DESK.tally.invalid);
}

#[test]
fn a_request_is_what_an_sdk_sends() {
    let batch = DESK.batches.iter().find(|b| b.clock_offset > 0).unwrap();
    let text = batch.render("key", 1_000);
    let body: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(body["batch"].as_array().unwrap().len(), batch.items.len());
    assert_eq!(body["writeKey"], "key");
    let sent_at = headwater_protocol::timestamp::parse(body["sentAt"].as_str().unwrap()).unwrap();
    assert_eq!(sent_at, (1_000 + batch.clock_offset) * 1_000);
}

/// Properties that each planned event must have.
const REQUIRED: &[(&str, &[&str])] = &[
    ("Signed In", &["method"]),
    ("Signed Out", &["reason"]),
    ("Sign In Failed", &["failure_reason"]),
    ("Availability Changed", &["away_mode_enabled"]),
    ("Widget Loaded", &["page_url"]),
    ("Widget Opened", &[]),
    ("Widget Closed", &[]),
    (
        "Conversation Started",
        &["conversation_id", "channel", "initiated_type"],
    ),
    (
        "Conversation Replied",
        &["conversation_id", "part_id", "part_type", "is_visible"],
    ),
    (
        "Conversation Assigned",
        &["conversation_id", "assigned_to_type", "assigned_to_id"],
    ),
    ("Conversation Noted", &["conversation_id", "part_id"]),
    ("Conversation Closed", &["conversation_id"]),
    ("Conversation Reopened", &["conversation_id", "reason"]),
    (
        "Conversation Snoozed",
        &["conversation_id", "snoozed_until"],
    ),
    ("Conversation Unsnoozed", &["conversation_id"]),
    ("Conversation Rating Requested", &["conversation_id"]),
    (
        "Conversation Rated",
        &["conversation_id", "rating", "rated_type"],
    ),
    ("Conversation Tagged", &["conversation_id", "tag_id"]),
    (
        "Conversation Priority Changed",
        &["conversation_id", "priority"],
    ),
    ("SLA Applied", &["conversation_id", "sla_name", "target"]),
    ("SLA Hit", &["conversation_id", "sla_name", "target"]),
    ("SLA Missed", &["conversation_id", "sla_name", "target"]),
    ("AI Agent Involved", &["conversation_id", "source_type"]),
    (
        "AI Agent Answered",
        &["conversation_id", "part_id", "answer_type"],
    ),
    (
        "AI Agent Resolution Recorded",
        &["conversation_id", "resolution_state"],
    ),
    ("Ticket Created", &["ticket_id", "category"]),
    ("Call Started", &["call_id"]),
    ("Call Ended", &["call_id"]),
    ("Article Viewed", &["article_id"]),
    ("Article Reacted", &["article_id", "reaction"]),
    ("Lead Created", &["contact_id"]),
    ("Seat Changed", &["seat_type", "change", "admin_id"]),
    ("Plan Changed", &["plan_id"]),
    ("Subscription Cancelled", &["plan_id"]),
    ("Feature Used", &["feature_key"]),
    ("Report Viewed", &["report_id"]),
];

/// Good events of the desk, each once.
fn good_events() -> impl Iterator<Item = (usize, Event<'static>)> {
    DESK.batches.iter().flat_map(|batch| {
        let items = batch.items.iter().filter(|item| item.fate == Fate::New);
        items.map(|item| {
            let event = Event::parse(item.body.as_bytes(), None, None).unwrap();
            (batch.company, event)
        })
    })
}

#[test]
fn every_planned_event_occurs_with_its_required_properties() {
    let plan: HashMap<_, _> = REQUIRED.iter().copied().collect();
    let mut seen = HashSet::new();
    for (_, event) in good_events() {
        let Some(name) = event.name.filter(|_| event.event_type.as_str() == "track") else {
            continue;
        };
        let required = plan
            .get(&*name)
            .unwrap_or_else(|| panic!("unplanned `{name}`"));
        for property in *required {
            let value = event.properties.get(property);
            assert!(
                value.is_some_and(|v| *v != Value::Null),
                "`{name}` without `{property}`"
            );
        }
        assert!(event.properties.contains_key("actor_type"), "{name}");
        seen.insert(name);
    }
    let missing: Vec<_> = plan.keys().filter(|name| !seen.contains(**name)).collect();
    assert!(missing.is_empty(), "never happened: {missing:?}");
}

/// Ids of a table's column, by company.
/// A new installation sees no violation but those that somebody makes.
#[test]
fn the_sample_keeps_to_the_tracking_plan() {
    let plan = Plan::builtin();
    let mut wrong: BTreeMap<String, u64> = BTreeMap::new();
    let mut judged = 0;
    for (_, event) in good_events() {
        let judgement = plan.judge(&event);
        judged += u64::from(judgement.version > 0);
        let name = event.name.as_deref().unwrap_or("-");
        for violation in &judgement.violations {
            *wrong.entry(format!("{name}: {violation}")).or_default() += 1;
        }
        if judgement.has_unplanned_properties {
            *wrong.entry(format!("{name}: unplanned")).or_default() += 1;
        }
    }
    assert_eq!(wrong, BTreeMap::new());
    assert!(judged > 100_000, "{judged}");
}

fn ids(tables: &[Table], table: &str, column: &str) -> HashSet<(String, String)> {
    let table = tables.iter().find(|t| t.name == table).unwrap();
    let companies = table.column("company_id");
    let texts = |cell: &Cell| match cell {
        Cell::Text(text) => text.clone(),
        other => panic!("{other:?} is not an id"),
    };
    companies
        .into_iter()
        .zip(table.column(column))
        .map(|(company, id)| (texts(company), texts(id)))
        .collect()
}

#[test]
fn ids_in_the_events_are_those_of_the_operational_database() {
    let tables = operational::tables(&DESK);
    let known: HashMap<&str, HashSet<(String, String)>> = [
        ("admin_id", ids(&tables, "admins", "admin_id")),
        ("contact_id", ids(&tables, "contacts", "contact_id")),
        ("team_id", ids(&tables, "teams", "team_id")),
        (
            "conversation_id",
            ids(&tables, "conversations", "conversation_id"),
        ),
    ]
    .into();
    let mut started = HashSet::new();
    for (company, event) in good_events() {
        let company = DESK.world.companies[company].profile.id.to_owned();
        for (property, known) in &known {
            if let Some(id) = event.properties.get(property).and_then(|id| id.as_str()) {
                let id = (company.clone(), id.to_owned());
                assert!(known.contains(&id), "{property} {id:?} is in no table");
                if event.name.as_deref() == Some("Conversation Started")
                    && *property == "conversation_id"
                {
                    assert!(started.insert(id), "started twice");
                }
            }
        }
    }
    // The control total: what the application counted is what the events say.
    assert_eq!(started, known["conversation_id"]);
}

/// Column of one table whose values are keys of another.
const FOREIGN_KEYS: &[(&str, &str, &str, &str)] = &[
    ("companies", "owner_admin_id", "admins", "admin_id"),
    ("subscriptions", "company_id", "companies", "company_id"),
    (
        "subscription_items",
        "subscription_id",
        "subscriptions",
        "subscription_id",
    ),
    ("subscription_items", "plan_id", "plans", "plan_id"),
    (
        "subscription_changes",
        "subscription_id",
        "subscriptions",
        "subscription_id",
    ),
    ("subscription_changes", "old_plan_id", "plans", "plan_id"),
    ("subscription_changes", "new_plan_id", "plans", "plan_id"),
    (
        "discounts",
        "subscription_id",
        "subscriptions",
        "subscription_id",
    ),
    ("invoices", "company_id", "companies", "company_id"),
    (
        "invoices",
        "subscription_id",
        "subscriptions",
        "subscription_id",
    ),
    ("invoice_line_items", "invoice_id", "invoices", "invoice_id"),
    (
        "invoice_line_items",
        "subscription_item_id",
        "subscription_items",
        "item_id",
    ),
    ("invoice_line_items", "plan_id", "plans", "plan_id"),
    ("payments", "invoice_id", "invoices", "invoice_id"),
    ("refunds", "payment_id", "payments", "payment_id"),
    ("admins", "company_id", "companies", "company_id"),
    ("teams", "company_id", "companies", "company_id"),
    ("team_admins", "team_id", "teams", "team_id"),
    ("team_admins", "admin_id", "admins", "admin_id"),
    ("contacts", "company_id", "companies", "company_id"),
    ("conversations", "company_id", "companies", "company_id"),
];

async fn number(connection: &mut AnyConnection, sql: &str) -> i64 {
    let row = connection.fetch_one(sql).await.unwrap();
    row.try_get(0).unwrap()
}

#[tokio::test]
async fn the_operational_database_loads_and_its_keys_resolve() {
    let directory = tempfile::tempdir().unwrap();
    let uri = format!("sqlite://{}", directory.path().join("sample.db").display());
    let rows = operational::write(&uri, &DESK).await.unwrap();
    assert!(rows > 15_000, "{rows}");
    let mut connection = AnyConnection::connect(&uri).await.unwrap();
    for (table, column, other, key) in FOREIGN_KEYS {
        let dangling = format!(
            "SELECT count(*) FROM {table} WHERE {column} IS NOT NULL
             AND {column} NOT IN (SELECT {key} FROM {other})"
        );
        assert_eq!(
            number(&mut connection, &dangling).await,
            0,
            "{table}.{column}"
        );
        let all = format!("SELECT count({column}) FROM {table}");
        assert!(
            number(&mut connection, &all).await > 0,
            "{table}.{column} is empty"
        );
    }
    for (what, sql, at_least) in [
        ("companies", "SELECT count(*) FROM companies", 40),
        (
            "time zones",
            "SELECT count(DISTINCT timezone) FROM companies",
            20,
        ),
        (
            "unpaid invoices",
            "SELECT count(*) FROM invoices WHERE status = 'open' AND amount_remaining_minor > 0",
            2,
        ),
        (
            "changes in the window",
            "SELECT count(*) FROM subscription_changes WHERE changed_at >= '2026-11-17' AND changed_at < '2026-11-20'",
            3,
        ),
        (
            "exchange rates",
            "SELECT count(*) FROM fx_rates_daily WHERE date = '2026-11-19'",
            4,
        ),
    ] {
        let got = number(&mut connection, sql).await;
        assert!(got >= at_least, "{what}: {got}");
    }
    let unbalanced = "SELECT count(*) FROM invoices WHERE amount_due_minor <> amount_paid_minor + amount_remaining_minor
        OR subtotal_minor <> (SELECT sum(amount_minor) FROM invoice_line_items l WHERE l.invoice_id = invoices.invoice_id)";
    assert_eq!(number(&mut connection, unbalanced).await, 0);
    let error = operational::write(&uri, &DESK).await.unwrap_err();
    assert!(matches!(error, WriteError::NotEmpty(40)), "{error}");
}

#[tokio::test]
async fn a_uri_of_another_kind_is_refused_with_what_would_do() {
    let error = operational::write("mysql://localhost/db", &DESK)
        .await
        .unwrap_err();
    let text = error.to_string();
    assert!(
        text.contains("mysql") && text.contains("postgres://"),
        "{text}"
    );
}

fn pki(directory: &Path) -> Pki {
    Pki::prepare(directory, &["agent-1".to_owned(), "paris".to_owned()]).unwrap()
}

fn certificate(files: &Files) -> CertificateDer<'static> {
    CertificateDer::from_pem_file(&files.certificate).unwrap()
}

#[test]
fn keys_are_private_and_are_reused() {
    let directory = tempfile::tempdir().unwrap();
    pki(directory.path());
    let contents = || {
        let mut files = BTreeMap::new();
        for entry in std::fs::read_dir(directory.path()).unwrap() {
            let path = entry.unwrap().path();
            let mode = std::fs::metadata(&path).unwrap().permissions().mode() & 0o777;
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            files.insert(name, (mode, std::fs::read(&path).unwrap()));
        }
        files
    };
    let first = contents();
    let names: Vec<_> = first.keys().map(String::as_str).collect();
    assert_eq!(
        names,
        [
            "agent-1.key",
            "agent-1.pem",
            "agent-paris.key",
            "agent-paris.pem",
            "ca.key",
            "ca.pem",
            "collector.key",
            "collector.pem",
            "flight-sql.key",
            "flight-sql.pem",
        ]
    );
    for (name, (mode, _)) in &first {
        if name.ends_with(".key") {
            assert_eq!(*mode, 0o600, "{name}");
        }
    }
    pki(directory.path());
    assert!(first == contents(), "the second start changed a file");
}

#[test]
fn chains_verify_for_their_purpose_only() {
    let directory = tempfile::tempdir().unwrap();
    let pki = pki(directory.path());
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut roots = rustls::RootCertStore::empty();
    roots
        .add(CertificateDer::from_pem_file(pki.ca()).unwrap())
        .unwrap();
    let roots = Arc::new(roots);
    let servers = rustls::client::WebPkiServerVerifier::builder_with_provider(
        roots.clone(),
        provider.clone(),
    )
    .build()
    .unwrap();
    let clients = rustls::server::WebPkiClientVerifier::builder_with_provider(roots, provider)
        .build()
        .unwrap();
    let noon = Window {
        last: window().last,
    }
    .end()
        / 1_000;
    let now = UnixTime::since_unix_epoch(std::time::Duration::from_secs(noon as u64));
    for files in [pki.collector(), pki.flight_sql()] {
        for name in ["localhost", "127.0.0.1", "::1"] {
            let name = ServerName::try_from(name).unwrap();
            servers
                .verify_server_cert(&certificate(&files), &[], &name, &[], now)
                .unwrap();
        }
        assert!(
            clients
                .verify_client_cert(&certificate(&files), &[], now)
                .is_err()
        );
    }
    for name in ["agent-1", "paris"] {
        let agent = certificate(&pki.agent(name));
        clients.verify_client_cert(&agent, &[], now).unwrap();
        let localhost = ServerName::try_from("localhost").unwrap();
        assert!(
            servers
                .verify_server_cert(&agent, &[], &localhost, &[], now)
                .is_err()
        );
    }
}

#[test]
fn an_agent_name_that_the_wire_refuses_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let error = Pki::prepare(directory.path(), &["Paris 1".to_owned()]).unwrap_err();
    assert!(matches!(error, PkiError::AgentName(_)), "{error}");
}

#[test]
fn the_note_of_the_sample_survives_and_a_damaged_one_is_named() {
    let directory = tempfile::tempdir().unwrap();
    assert_eq!(Sample::read(directory.path()).unwrap(), None);
    let sample = Sample {
        seed: 7,
        last_day: window().last,
        is_complete: false,
    };
    sample.write(directory.path()).unwrap();
    assert_eq!(Sample::read(directory.path()).unwrap(), Some(sample));
    std::fs::write(Sample::file(directory.path()), "{").unwrap();
    let error = Sample::read(directory.path()).unwrap_err().to_string();
    assert!(error.contains("sample.json"), "{error}");
}
