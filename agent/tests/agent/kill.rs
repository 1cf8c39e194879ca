//! `kill -9` at random moments, also while starting: nothing that was answered is lost.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::collector::{Collector, Manner, Tables};
use crate::harness::{Site, nobody, seed, soak, until};
use crate::posters::{Posters, checked_ids};
use crate::process::{Process, config};

#[tokio::test(flavor = "multi_thread")]
async fn killed_agent_delivers_every_acknowledged_event() {
    let site = Site::new();
    let mut random = StdRng::seed_from_u64(seed("kill"));
    let tables: Arc<Mutex<Tables>> = Arc::default();
    let collector = Collector::start(&site, &tables, Manner::Prompt).await;
    let kills = soak(15, 100);
    let (mut acknowledged, mut panics) = (Vec::new(), Vec::new());
    let (mut young, mut shipped) = (0, 0);
    for round in 0..kills {
        // In some lives the collector is there, in others not.
        let to = if round % 3 == 2 {
            nobody()
        } else {
            collector.address
        };
        let toml = config(&site, to);
        let start = Process::start_with(&site, &toml);
        let process = if round % 5 == 1 {
            // Some die before or just after they run; the first of them for certain before.
            let age = if young == 0 {
                1
            } else {
                random.random_range(1..80)
            };
            let age = Duration::from_millis(age);
            match tokio::time::timeout(age, start).await {
                Ok(process) => process,
                Err(_) => {
                    young += 1;
                    continue;
                }
            }
        } else {
            start.await
        };
        let before = tables.lock().events.len();
        let posters = Posters::start(process.address, &format!("{round}"), 6);
        let moment = random.random_range(1..600);
        until("enough is acknowledged", || posters.acked() >= moment).await;
        if round % 3 == 0 {
            let ships = || tables.lock().events.len() > before;
            until("some of it is shipped", ships).await;
        }
        panics.extend(process.kill().await);
        acknowledged.extend(posters.gone().await);
        shipped += usize::from(tables.lock().events.len() > before);
    }
    let toml = config(&site, collector.address);
    let process = Process::start_with(&site, &toml).await;
    let arrived = || {
        let tables = tables.lock();
        let missing = |id: &&String| !tables.ids.contains(*id);
        acknowledged.iter().find(missing).is_none()
    };
    until("all have arrived", arrived).await;
    assert!(process.metric("agent_events_lost_total").await == 0.0);
    panics.extend(process.kill().await);
    assert_eq!(panics, Vec::<String>::new());
    let tables = tables.lock();
    assert_eq!(tables.epochs().len(), 1, "a kill needs no new epoch");
    let stored: u64 = checked_ids(tables.records()).values().sum();
    assert_eq!(
        tables.message_ids().len() as u64,
        stored,
        "every record is one of ours"
    );
    println!(
        "kill: {kills} kills ({young} while starting, {shipped} while shipping), {} events \
         answered, {stored} delivered, 0 lost",
        acknowledged.len(),
    );
    assert!(acknowledged.len() > 30 * kills, "the run did something");
    assert!(shipped > kills / 4 && young > 0);
}
