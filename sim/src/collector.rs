//! A collector: life after life of the real engine and the real committer, on the shared table.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use headwater_collector::commit::{CommitHook, CommitPoint, HookAction};
use headwater_collector::config::{CommitConfig, Config, LimitsConfig};
use headwater_collector::engine::{Engine, EngineParts};
use headwater_collector::plan::Plan as TrackingPlan;
use headwater_collector::plan::live::LivePlan;
use headwater_protocol::AgentId;
use headwater_service::tls::TlsFiles;
use headwater_tables::Catalog;
use headwater_tables::catalog::Parts;
use headwater_tables::schema::{RAW_EVENTS, RAW_QUARANTINE};
use parking_lot::Mutex;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::heads::{FaultyHeads, LATE_MAX_MS};
use crate::host::{Host, Plan, Point};
use crate::store::{Store, WAREHOUSE};
use crate::world::World;

/// One life of a collector.
pub(crate) struct Life {
    pub(crate) host: Arc<Host>,
    pub(crate) engine: Engine,
    /// From here on no swap of a life before this one is done any more.
    pub(crate) alone_from: Instant,
    /// The open connection of each agent.
    pub(crate) sessions: Mutex<BTreeMap<AgentId, CancellationToken>>,
}

impl std::fmt::Debug for Life {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Life")
            .field("host", &self.host.name)
            .finish_non_exhaustive()
    }
}

/// Lets the committer die at the points that it names itself.
struct Hook(Arc<Host>);

impl CommitHook for Hook {
    fn at(&self, point: CommitPoint) -> HookAction {
        let Self(host) = self;
        let point = match point {
            CommitPoint::Planned => {
                host.quarantined(false);
                Point::Planned
            }
            // Most attempts have nothing for the quarantine.
            CommitPoint::BetweenCommits if !host.has_quarantined() => return HookAction::Continue,
            CommitPoint::BetweenCommits => Point::BetweenCommits,
            CommitPoint::BeforeAcks => Point::BeforeAcks,
        };
        match host.dies_at(point) {
            true => HookAction::Kill,
            false => HookAction::Continue,
        }
    }
}

/// Returns the catalog as `host` sees it.
pub(crate) fn catalog(world: &Arc<World>, host: &Arc<Host>) -> Catalog {
    let clock = world.clock.clone();
    Catalog::assemble(Parts {
        heads: Arc::new(FaultyHeads {
            world: world.clone(),
            host: host.clone(),
        }),
        warehouse: WAREHOUSE.to_owned(),
        file_io: Store::of(world, host),
        now: Arc::new(move || clock.now()),
    })
}

/// Version of the schema of the mild plan, which omits a property that the strict one stores.
pub(crate) const OMITTING_VERSION: i32 = 2;

/// Returns the plan of a new life: collectors of one run differ in what they let through and in what
/// they store of it.
fn tracking_plan(world: &World) -> Arc<TrackingPlan> {
    let is_strict = world.dice.says(world.knobs.strict);
    let mode = if is_strict { "quarantine" } else { "allow" };
    world.trace.count(match is_strict {
        true => "collector: with the strict plan",
        false => "collector: with the mild plan",
    });
    let all = format!(r#"{{"unplanned_events":"{mode}"}}"#);
    let signed_in = match is_strict {
        true => r#"{"event":"Signed In","version":1}"#.to_owned(),
        false => format!(
            r#"{{"event":"Signed In","version":{OMITTING_VERSION},"mode":"omit",
                "schema":{{"properties":{{"code":{{"type":"null"}}}}}}}}"#
        ),
    };
    let files = [
        ("plan.json", all.as_str()),
        ("signed_in.json", signed_in.as_str()),
    ];
    Arc::new(TrackingPlan::of_texts(&files).expect("a plan of two files"))
}

fn config(world: &World) -> Config {
    let nowhere = TlsFiles {
        certificate: "-".into(),
        key: "-".into(),
        ca: "-".into(),
    };
    Config {
        quic: Default::default(),
        admin: Default::default(),
        tls: nowhere.into(),
        catalog: Default::default(),
        commit: CommitConfig {
            interval_ms: world.knobs.commit_interval_ms,
            retry_max_ms: 2_000,
            ..CommitConfig::default()
        },
        plan: Default::default(),
        quarantine: Default::default(),
        limits: LimitsConfig {
            batches_in_flight_max: 8,
            park_ms: 500,
            retry_after_ms: 200,
            ..LimitsConfig::default()
        },
        log: Default::default(),
    }
}

/// Draws where a life ends, if it is to end at a point of a commit.
pub(crate) fn draw_death(world: &World) -> Option<Plan> {
    let (dice, knobs) = (&world.dice, &world.knobs);
    knobs.strikes(dice, knobs.crashes).then(|| Plan {
        point: Point::ALL[dice.index(Point::ALL.len())],
        times: u32::try_from(dice.within(1..=2)).unwrap_or(1),
    })
}

/// Lives and dies until `stop`.
pub(crate) async fn run(world: Arc<World>, name: String, stop: CancellationToken) {
    let mut lives = 0;
    while !stop.is_cancelled() {
        lives += 1;
        let plan = draw_death(&world);
        let host = Host::new(
            format!("{name}#{lives}"),
            world.trace.clone(),
            world.dice.clone(),
            plan,
        );
        world
            .trace
            .line(format_args!("{} starts, {plan:?}", host.name));
        let parts = EngineParts {
            config: config(&world),
            catalog: catalog(&world, &host),
            clock: world.clock.clone(),
            chance: Arc::new(world.dice.clone()),
            hook: Arc::new(Hook(host.clone())),
            plan: LivePlan::fixed(tracking_plan(&world)),
        };
        let (engine, committer) = parts.assemble(&CancellationToken::new());
        let late_ms = if lives > 1 { LATE_MAX_MS } else { 0 };
        let life = Arc::new(Life {
            host: host.clone(),
            engine,
            alone_from: Instant::now() + Duration::from_millis(late_ms),
            sessions: Mutex::default(),
        });
        host.spawn(async move { drop(committer.run().await) });
        world.lives(&name, Some(life));
        tokio::select! {
            biased;
            () = stop.cancelled() => {}
            () = host.died() => note_fences(&world, &host),
        }
        world.lives(&name, None);
        host.end();
        tokio::time::sleep(world.dice.ms(50..=3_000)).await;
    }
}

/// Counts a death between the fences: the newest one of `raw.events` is of this life, and `raw.quarantine`
/// does not have it.
fn note_fences(world: &World, host: &Host) {
    let (events, quarantine) = (&*RAW_EVENTS, &*RAW_QUARANTINE);
    let fence = host.fence();
    if fence.is_some()
        && fence == world.truth.fence(events)
        && fence != world.truth.fence(quarantine)
    {
        world.trace.count("crash: between the fences");
    }
}

/// Freezes collectors and breaks connections now and then, until the faults are over.
pub(crate) async fn disturb(world: Arc<World>, healed: CancellationToken) {
    loop {
        tokio::select! {
            biased;
            () = healed.cancelled() => return,
            () = tokio::time::sleep(world.dice.ms(200..=4_000)) => {}
        }
        let Some(life) = world.any_life() else {
            continue;
        };
        match world.dice.index(4) {
            0 => {
                world.trace.count("collector: frozen");
                world.trace.line(format_args!("{} freezes", life.host.name));
                life.host.freeze();
                let (healed, most) = (healed.clone(), world.dice.ms(100..=15_000));
                tokio::spawn(async move {
                    tokio::select! {
                        biased;
                        () = healed.cancelled() => {}
                        () = tokio::time::sleep(most) => {}
                    }
                    life.host.thaw();
                });
            }
            1 => life.host.die(Point::Other),
            _ => {
                if world.break_a_connection() {
                    world.trace.count("link: a connection breaks");
                }
            }
        }
    }
}
