//! One night over 200 000 generated events: seconds and rows per second.
//!
//! `cargo bench -p headwater-warehouse`; `HEADWATER_BENCH_EVENTS` sets another number of events.
//! Measures the whole library call: source, core tables, reports and every commit, on the disk of
//! the temporary directory. The second figure is the night of the next day with a tenth as many new
//! events; the third one is a night that has nothing to do.

#![allow(clippy::unwrap_used, reason = "a bench that cannot go on says where")]

#[path = "../tests/warehouse/world.rs"]
#[allow(dead_code, reason = "the tests use more of it")]
mod world;

use std::sync::Mutex;
use std::time::Instant;

use headwater_warehouse::Progress;

use world::{Ev, World, micros};

/// Events per commit, as a busy collector makes them.
const COMMIT_EVENTS: usize = 20_000;
/// Events of one conversation below.
const CONVERSATION_EVENTS: usize = 8;

fn time(at: i64) -> String {
    chrono::DateTime::from_timestamp_micros(at)
        .expect("a time of 2026 is in range")
        .to_rfc3339()
}

/// Conversations of eight events, spread evenly over a day and 20 companies; one in fifty events
/// comes twice.
fn day(date: &str, count: usize) -> Vec<Ev> {
    let start = micros(&format!("{date}T00:00:00Z"));
    let conversations = count / CONVERSATION_EVENTS;
    let mut events = Vec::with_capacity(count + count / 50);
    for number in 0..conversations {
        let offset = number as i64 * 80_000_000_000 / conversations as i64;
        events.extend(conversation(start + offset, date, number));
    }
    let copies: Vec<Ev> = events.iter().step_by(50).cloned().collect();
    events.extend(copies);
    events
}

fn conversation(start: i64, date: &str, number: usize) -> Vec<Ev> {
    let company = format!("company-{}", number % 20);
    let admin = format!("admin-{}", number % 200);
    let assigned = format!(r#"{{"assigned_to_type":"admin","assigned_to_id":"{admin}"}}"#);
    let steps = [
        (
            "Conversation Started",
            "contact_user",
            r#"{"initiated_type":"customer_initiated"}"#,
        ),
        ("Conversation Assigned", "system", assigned.as_str()),
        ("Conversation Replied", "admin", r#"{"is_visible":true}"#),
        ("Conversation Replied", "contact_user", "{}"),
        ("Conversation Replied", "admin", r#"{"is_visible":true}"#),
        ("Conversation Closed", "admin", "{}"),
        ("Conversation Rating Requested", "system", "{}"),
        ("Conversation Rated", "contact_user", "{}"),
    ];
    let mut events = Vec::with_capacity(CONVERSATION_EVENTS);
    for (step, (name, actor, properties)) in steps.into_iter().enumerate() {
        let at = start + step as i64 * 60_000_000;
        let event = Ev::new(name, &time(at))
            .company(&company)
            .of(&format!("{date}-{number}"))
            .by(actor, if actor == "admin" { &admin } else { "contact" })
            .with(properties);
        let is_rating = name == "Conversation Rated";
        events.push(if is_rating {
            event.rating(1 + (number % 5) as i32)
        } else {
            event
        });
    }
    events
}

/// Prints how long each step took.
#[derive(Default)]
struct Steps(Mutex<Option<Instant>>);

impl Progress for Steps {
    fn started(&self, _step: &str, _total: Option<u64>) {
        *self.0.lock().unwrap() = Some(Instant::now());
    }

    fn advanced(&self, _step: &str, _done: u64) {}

    fn finished(&self, step: &str, detail: &str) {
        let started = self.0.lock().unwrap().take();
        let seconds = started.map_or(0.0, |started| started.elapsed().as_secs_f64());
        println!("    {step:22} {seconds:7.2} s  {detail}");
    }
}

async fn measured(world: &World, what: &str, date: &str, rows: usize) {
    println!("{what}");
    let started = Instant::now();
    let report = world.watched_night(date, &Steps::default()).await;
    let seconds = started.elapsed().as_secs_f64();
    println!(
        "{what}: {rows} new rows, {seconds:.2} s, {:.0} rows/s ({:?})",
        rows as f64 / seconds,
        report.outcome
    );
}

async fn load(world: &World, events: &[Ev]) {
    for commit in events.chunks(COMMIT_EVENTS) {
        world.events(commit).await;
    }
}

#[tokio::main]
async fn main() {
    let count = std::env::var("HEADWATER_BENCH_EVENTS")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(200_000);
    let world = World::new().await;
    world.plan("small", 1000).await;
    world.subscribe("s", "small", 5).await;
    for number in 0..20 {
        world
            .company(&format!("company-{number}"), "America/New_York")
            .await;
    }
    let mut rows = 0;
    for date in ["2026-11-16", "2026-11-17", "2026-11-18", "2026-11-19"] {
        let events = day(date, count / 4);
        rows += events.len();
        load(&world, &events).await;
    }
    measured(&world, "first night", "2026-11-19", rows).await;
    let next = day("2026-11-20", count / 10);
    load(&world, &next).await;
    measured(&world, "next night", "2026-11-20", next.len()).await;
    measured(&world, "same night again", "2026-11-20", 0).await;
}
