//! The whole sequence of `headwater`: prepare, start, play, wait, run the nights, prove, show, serve.
//!
//! Promise: the sample's numbers add up exactly or the run ends with an error; what is in the data
//! directory already is reused and never removed.

use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::Duration;

use chrono::{DateTime, NaiveDate};
use headwater_service::clock::SharedClock;
use headwater_tables::{Catalog, CatalogError};
use headwater_warehouse::{self as warehouse, NightReport, Outcome};
use tokio_util::sync::CancellationToken;

use crate::conservation::{self, Line, Mismatch, Totals};
use crate::desk::{Desk, Tally};
use crate::node::{AGENT, Layout, Node, NodeError, sqlite_uri};
use crate::operational::{self, WriteError};
use crate::pki::{Pki, PkiError};
use crate::player::{PlayError, Played, play};
use crate::progress::{NightSteps, Stage, Stages, count, seconds};
use crate::query::{Query, QueryFailed};
use crate::sample::{Sample, SampleError};
use crate::settings::Settings;
use crate::world::World;
use crate::world::time::Window;
use crate::{connect, report};

/// How often the buffer is looked at while it drains.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// Time without any event leaving the buffer after which the wait is given up.
const DRAIN_STALLED: Duration = Duration::from_secs(60);

/// Why the quickstart ended early. Nothing that was stored is lost; the next start goes on.
#[derive(Debug, thiserror::Error)]
pub enum QuickstartError {
    /// The data directory cannot be made.
    #[error("cannot use data directory `{path}`: {source}; name another with --data-dir")]
    DataDirectory {
        /// The directory.
        path: String,
        /// What the operating system said.
        #[source]
        source: std::io::Error,
    },
    /// Certificates.
    #[error(transparent)]
    Pki(#[from] PkiError),
    /// The note about the sample.
    #[error(transparent)]
    Sample(#[from] SampleError),
    /// The sample operational database.
    #[error("cannot write the sample operational database: {0}")]
    Operational(#[from] WriteError),
    /// A service.
    #[error(transparent)]
    Node(#[from] NodeError),
    /// The play.
    #[error(transparent)]
    Play(#[from] PlayError),
    /// The catalog.
    #[error("cannot open the catalog: {0}")]
    Catalog(#[from] CatalogError),
    /// A question to the tables.
    #[error(transparent)]
    Query(#[from] QueryFailed),
    /// Events that do not leave the agent.
    #[error("`{events}` events have not been committed for a minute; see http://{admin}/readyz")]
    Stalled {
        /// How many.
        events: u64,
        /// Admin address of the collector.
        admin: std::net::SocketAddr,
    },
    /// A night.
    #[error(
        "the night of `{day}` failed: {source}; nothing of it was published, start again to repeat it"
    )]
    Night {
        /// Its date.
        day: NaiveDate,
        /// What went wrong.
        #[source]
        source: Box<warehouse::NightError>,
    },
    /// The operating system gives no threads.
    #[error("cannot start threads: {0}")]
    Threads(#[source] std::io::Error),
    /// Numbers that do not add up.
    #[error(transparent)]
    Mismatch(#[from] Mismatch),
    /// There is nothing to build reports from.
    #[error(
        "there is no sample in `{0}`; start `headwater` on it first, or name another with --data-dir"
    )]
    NoSample(String),
    /// Ctrl-C before the sample was complete.
    #[error("stopped before the sample was complete; start again to resume")]
    Stopped,
}

/// Runs the quickstart; with `exit` it ends after the report.
///
/// # Errors
/// See [`QuickstartError`].
pub async fn run(
    settings: &Settings,
    exit: bool,
    clock: SharedClock,
    stop: CancellationToken,
) -> Result<(), QuickstartError> {
    println!(
        "\nHeadwater {} · everything in one process, reachable from this machine only\n",
        env!("CARGO_PKG_VERSION")
    );
    let layout = prepare_directory(&settings.data_dir)?;
    println!("  data in {}\n", layout.root.display());
    let sample = note(settings, &layout.root, &clock)?;
    let mut stages = Stages::default();
    let pki = certificates(&mut stages, &layout)?;
    let (world, desk) = draw(&mut stages, &sample, &layout).await?;
    let stage = stages.begin("services", None);
    let node = Node::start(&layout, &pki, settings.ports, &world, &clock).await?;
    stages.end(stage, "collector, agent and SQL server listen");
    let query = Query::new(Catalog::open(&layout.catalog()).await?);
    let show = Show {
        sample: &sample,
        node: &node,
        query: &query,
        ca: &pki.ca(),
    };
    // What was started must also be stopped when the work fails: the agent drains, the collector commits.
    let worked = tokio::select! {
        done = work(&mut stages, desk, &show, &layout, &clock, &stop) => done,
        () = stop.cancelled() => Err(QuickstartError::Stopped),
    };
    let outcome = match worked {
        Ok(account) => {
            if account.is_none() {
                println!("\n  the sample is here already; nothing was played again");
            }
            show.all(account, &stages).await
        }
        Err(error) => Err(error),
    };
    if exit || outcome.is_err() {
        stop.cancel();
    } else {
        println!("Serving until Ctrl-C.\n");
    }
    let served = node.serve(stop).await;
    outcome?;
    Ok(served?)
}

/// Runs the night of one day on the data directory, whether or not `headwater` serves it at this
/// moment, and shows the report: the way of one's own events into the reports.
///
/// # Errors
/// See [`QuickstartError`].
pub async fn run_night(
    settings: &Settings,
    day: Option<NaiveDate>,
    clock: SharedClock,
    stop: CancellationToken,
) -> Result<(), QuickstartError> {
    let directory = &settings.data_dir;
    let sample = Sample::read(directory)?
        .ok_or_else(|| QuickstartError::NoSample(directory.display().to_string()))?;
    let day = day.unwrap_or_else(|| {
        let world = World::new(sample.seed, sample.window());
        let now = DateTime::from_timestamp_micros(clock.now()).unwrap_or_default();
        now.with_timezone(&world.companies[0].profile.timezone)
            .date_naive()
    });
    let layout = prepare_directory(directory)?;
    let mut stages = Stages::default();
    run_nights(&mut stages, [day], &layout, &clock, &stop).await?;
    let query = Query::new(Catalog::open(&layout.catalog()).await?);
    show_report(&query, day).await
}

async fn show_report(query: &Query, day: NaiveDate) -> Result<(), QuickstartError> {
    println!("\nreports.company_day of {day}, the busiest companies\n");
    println!("{}", report::company_day(query, day).await?);
    Ok(())
}

/// Makes the data directory, for its owner alone, and returns it with its absolute path.
fn prepare_directory(directory: &Path) -> Result<Layout, QuickstartError> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)
        .and_then(|()| directory.canonicalize())
        .map(|root| Layout { root })
        .map_err(|source| QuickstartError::DataDirectory {
            path: directory.display().to_string(),
            source,
        })
}

/// Reads what is known of the sample, or decides it now.
fn note(settings: &Settings, root: &Path, clock: &SharedClock) -> Result<Sample, QuickstartError> {
    if let Some(sample) = Sample::read(root)? {
        return Ok(sample);
    }
    let sample = Sample {
        seed: settings.seed,
        last_day: Window::before(clock.now()).last,
        is_complete: false,
    };
    sample.write(root)?;
    Ok(sample)
}

fn certificates(stages: &mut Stages, layout: &Layout) -> Result<Pki, QuickstartError> {
    let stage = stages.begin("certificates", None);
    let pki = Pki::prepare(&layout.pki(), &[AGENT.to_owned()])?;
    stages.end(stage, "development CA, servers, agent");
    Ok(pki)
}

/// Draws the world and, unless the sample is complete, the desk's three days; writes the operational
/// database when it is missing.
async fn draw(
    stages: &mut Stages,
    sample: &Sample,
    layout: &Layout,
) -> Result<(World, Option<Desk>), QuickstartError> {
    let (seed, window) = (sample.seed, sample.window());
    if sample.is_complete && layout.operational().exists() {
        return Ok((World::new(seed, window), None));
    }
    let stage = stages.begin("three days at the desk", None);
    let desk = tokio::task::spawn_blocking(move || Desk::open(seed, window))
        .await
        .expect("the generator does not panic");
    let detail = format!(
        "{} events, {} conversations, {} companies",
        count(desk.tally.sent()),
        count(desk.conversations.len() as u64),
        desk.world.companies.len()
    );
    stages.end(stage, &detail);
    let stage = stages.begin("operational database", None);
    let detail = operational_database(&desk, layout).await?;
    stages.end(stage, &detail);
    Ok((
        World::new(seed, window),
        (!sample.is_complete).then_some(desk),
    ))
}

/// Writes the operational database beside its place and moves it there when it is whole.
async fn operational_database(desk: &Desk, layout: &Layout) -> Result<String, QuickstartError> {
    let path = layout.operational();
    if path.exists() {
        return Ok("is there already".to_owned());
    }
    let unfinished = path.with_extension("new");
    let place = |source| QuickstartError::DataDirectory {
        path: unfinished.display().to_string(),
        source,
    };
    match std::fs::remove_file(&unfinished) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(place(error)),
        _ => {}
    }
    let rows = operational::write(&sqlite_uri(&unfinished), desk).await?;
    std::fs::rename(&unfinished, &path).map_err(place)?;
    Ok(format!("SQLite, {} rows", count(rows as u64)))
}

/// Plays, waits, checks and runs the nights. Returns the conservation line, or `None` when the sample
/// was complete before.
async fn work(
    stages: &mut Stages,
    desk: Option<Desk>,
    show: &Show<'_>,
    layout: &Layout,
    clock: &SharedClock,
    stop: &CancellationToken,
) -> Result<Option<(Line, Tally)>, QuickstartError> {
    let Some(desk) = desk else {
        return Ok(None);
    };
    // Left over from a run that was interrupted: must be in the tables before they are counted.
    drain(show.node, None).await?;
    let before = Totals::count(show.query).await?;
    let tally = desk.tally.clone();
    let played = Played::default();
    send(stages, desk, show.node, &played, clock, stop).await?;
    let stage = stages.begin("committing", Some(show.node.buffered()));
    drain(show.node, Some(&stage)).await?;
    let after = Totals::count(show.query).await?;
    let line = Line::new(&played, before, after);
    stages.end(stage, &format!("{} rows in raw.events", count(after.rows)));
    line.check(&tally, after)?;
    let (rows, positions) = conservation::positions(show.query).await?;
    if rows != positions {
        return Err(QuickstartError::Mismatch(Mismatch {
            what: "distinct (_agent_id, _epoch, _sequence) in `raw.events`",
            expected: rows,
            got: positions,
        }));
    }
    run_nights(stages, show.sample.window().days(), layout, clock, stop).await?;
    let complete = Sample {
        is_complete: true,
        ..show.sample.clone()
    };
    complete.write(&layout.root)?;
    Ok(Some((line, tally)))
}

/// Sends the desk's events, showing how many are acknowledged.
async fn send(
    stages: &mut Stages,
    desk: Desk,
    node: &Node,
    played: &Played,
    clock: &SharedClock,
    stop: &CancellationToken,
) -> Result<(), QuickstartError> {
    let stage = stages.begin("sending over HTTP", Some(desk.tally.sent()));
    let sending = play(&desk, node.http(), clock.clone(), stop.clone(), played);
    tokio::pin!(sending);
    loop {
        tokio::select! {
            result = &mut sending => break result?,
            () = tokio::time::sleep(LOOK_EVERY) => stage.set(played.sent.load(Ordering::Relaxed)),
        }
    }
    let sent = played.sent.load(Ordering::Relaxed);
    let per_second = sent as f64 / stage.elapsed().as_secs_f64().max(0.001);
    let detail = format!(
        "{} events in {} requests, {}/s",
        count(sent),
        count(played.requests.load(Ordering::Relaxed)),
        count(per_second as u64)
    );
    stages.end(stage, &detail);
    Ok(())
}

/// Waits until every accepted event is committed.
async fn drain(node: &Node, stage: Option<&Stage>) -> Result<(), QuickstartError> {
    let began = node.buffered();
    let mut last = began;
    let mut quiet = Duration::ZERO;
    while last > 0 {
        tokio::time::sleep(LOOK_EVERY).await;
        let now = node.buffered();
        quiet = if now == last {
            quiet + LOOK_EVERY
        } else {
            Duration::ZERO
        };
        if quiet >= DRAIN_STALLED {
            return Err(QuickstartError::Stalled {
                events: now,
                admin: node.admin()[1],
            });
        }
        last = now;
        if let Some(stage) = stage {
            stage.set(began.saturating_sub(now));
        }
    }
    Ok(())
}

/// Runs the nights of these days.
async fn run_nights(
    stages: &mut Stages,
    days: impl IntoIterator<Item = NaiveDate>,
    layout: &Layout,
    clock: &SharedClock,
    stop: &CancellationToken,
) -> Result<(), QuickstartError> {
    for day in days {
        let stage = stages.begin(&format!("night of {day}"), None);
        let steps = NightSteps::in_stage(&stage);
        let (config, clock, stop) = (layout.warehouse()?, clock.clone(), stop.clone());
        let night = tokio::task::spawn_blocking(move || night(&config, day, clock, &stop, &steps));
        let report = night.await.expect("a night does not panic")?;
        let detail = match report.outcome {
            Outcome::Published => "reports published",
            Outcome::AlreadyUpToDate => "was published before",
        };
        stages.end(stage, detail);
    }
    Ok(())
}

/// Runs one night on threads of its own, as the separate program would: its queries keep the cores
/// busy, and the services must go on answering meanwhile.
fn night(
    config: &warehouse::Config,
    day: NaiveDate,
    clock: SharedClock,
    stop: &CancellationToken,
    steps: &NightSteps,
) -> Result<NightReport, QuickstartError> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(QuickstartError::Threads)?;
    runtime.block_on(async {
        tokio::select! {
            report = warehouse::nightly(config, day, clock, steps) => {
                report.map_err(|source| QuickstartError::Night { day, source: Box::new(source) })
            }
            () = stop.cancelled() => Err(QuickstartError::Stopped),
        }
    })
}

/// What is shown at the end.
struct Show<'a> {
    sample: &'a Sample,
    node: &'a Node,
    query: &'a Query,
    ca: &'a Path,
}

impl Show<'_> {
    async fn all(
        &self,
        account: Option<(Line, Tally)>,
        stages: &Stages,
    ) -> Result<(), QuickstartError> {
        if let Some((line, tally)) = account {
            println!("\n  {:<28} {line}", "nothing lost, nothing twice");
            println!(
                "  {:<28} {} by the agent, {} by message id in the tables",
                "copies recognised",
                count(line.duplicate_at_agent),
                count(line.duplicate_in_tables)
            );
            println!(
                "  {:<28} {} sent late, {} by wrong clocks, {} from the future",
                "of the stored",
                count(tally.late),
                count(tally.wrong_clock),
                count(tally.future)
            );
            println!("  {:<28} {}", "all of it took", seconds(stages.total()));
        }
        show_report(self.query, self.sample.last_day).await?;
        let text = connect::text(
            self.node.http(),
            self.node.sql(),
            self.node.admin(),
            self.ca,
        );
        println!("{text}");
        Ok(())
    }
}
