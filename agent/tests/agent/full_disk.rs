//! The disk runs full, by the agent's own writing or by somebody else's: the agent stays up, answers 503
//! with Retry-After, goes on draining, and recovers by itself.

use std::net::SocketAddr;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::collector::{Collector, Manner, Tables};
use crate::disk::Disk;
use crate::harness::{BASIC, Response, Site, request, soak, until, until_async};
use crate::posters::{batch_of, checked_ids};
use crate::process::{Process, config_at};

const DISK_MIB: u64 = 64;
/// Larger than the disk: only the disk is the bound.
const KEYS: &str = "disk_bytes_max = 8000000000\n generation_events_max = 2000";
const RESERVE: &str = "reserve_bytes = 6000000";

struct Stage {
    site: Site,
    disk: Disk,
    tables: Arc<Mutex<Tables>>,
    /// Where the collector is when it is there.
    collector: SocketAddr,
    answered: Vec<String>,
    refused: usize,
}

impl Stage {
    async fn set() -> Self {
        let site = Site::new();
        let tables: Arc<Mutex<Tables>> = Arc::default();
        let collector = Collector::start(&site, &tables, Manner::Prompt).await;
        let address = collector.address;
        collector.stop().await;
        Self {
            disk: Disk::make(&site.path(""), "disk", DISK_MIB),
            site,
            tables,
            collector: address,
            answered: Vec::new(),
            refused: 0,
        }
    }

    async fn agent(&self, keys: &str) -> Process {
        let directory = self.disk.directory().join("buffer");
        let toml = config_at(&self.site, self.collector, &directory, keys);
        Process::start_with(&self.site, &toml).await
    }

    async fn collector(&self) -> Collector {
        Collector::start_at(&self.site, self.collector, &self.tables, Manner::Prompt).await
    }

    /// Posts batches until one is refused, or `bytes` are accepted.
    async fn post(&mut self, agent: &Process, bytes: usize) -> bool {
        let mut posted = 0;
        while posted < bytes {
            let first = self.answered.len();
            let ids: Vec<String> = (first..first + 100).map(|id| format!("e-{id}")).collect();
            let body = batch_of(&ids);
            let answer = post(agent, &body).await;
            if answer.status == 200 {
                posted += body.len();
                self.answered.extend(ids);
                continue;
            }
            assert_eq!(answer.status, 503, "{answer:?}");
            let wait = answer.header("retry-after").unwrap();
            assert!(wait.parse::<u32>().unwrap() >= 1, "{answer:?}");
            self.refused += 1;
            return false;
        }
        true
    }

    /// Posts until events are taken again.
    async fn until_taken(&mut self, agent: &Process) {
        until_async("events are taken again", async || self.post(agent, 1).await).await;
    }

    async fn until_all_arrived(&self) {
        until("all have arrived", || {
            let tables = self.tables.lock();
            self.answered.iter().all(|id| tables.ids.contains(id))
        })
        .await;
    }

    async fn end(self, test: &str, agent: Process) {
        self.until_all_arrived().await;
        assert!(agent.metric("agent_events_lost_total").await == 0.0);
        assert_eq!(agent.admin("/healthz").await.status, 200);
        assert_eq!(agent.kill().await, Vec::<String>::new());
        let tables = self.tables.lock();
        assert_eq!(tables.epochs().len(), 1);
        let delivered = checked_ids(tables.records()).len();
        println!(
            "full disk, {test}: {} events answered, {} requests refused, {delivered} delivered, 0 lost",
            self.answered.len(),
            self.refused
        );
        assert!(self.answered.len() > 1000 && self.refused > 0);
    }
}

async fn post(agent: &Process, body: &str) -> Response {
    request(
        agent.address,
        "POST",
        "/v1/batch",
        &[BASIC],
        body.as_bytes(),
    )
    .await
    .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn disk_that_the_agent_filled_drains_and_takes_events_again() {
    let mut stage = Stage::set().await;
    let agent = stage.agent(&format!("{KEYS}\n {RESERVE}")).await;
    for _ in 0..soak(1, 5) {
        assert!(!stage.post(&agent, usize::MAX).await);
        assert!(stage.disk.free_bytes() < 16 << 20, "the disk was full");
        // It stays so: whoever asks is refused, nobody is forgotten.
        assert!(!stage.post(&agent, 1).await);
        let collector = stage.collector().await;
        stage.until_all_arrived().await;
        stage.until_taken(&agent).await;
        stage.until_all_arrived().await;
        collector.stop().await;
    }
    let _collector = stage.collector().await;
    stage.end("by itself", agent).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn disk_that_others_filled_drains_and_takes_events_again() {
    let mut stage = Stage::set().await;
    let agent = stage.agent(&format!("{KEYS}\n {RESERVE}")).await;
    for _ in 0..soak(1, 5) {
        assert!(stage.post(&agent, 8 << 20).await);
        // Others take every byte, also those that the agent gives back to go on.
        stage.disk.fill();
        while stage.post(&agent, 1 << 20).await {
            stage.disk.fill();
        }
        stage.disk.fill();
        let collector = stage.collector().await;
        stage.until_all_arrived().await;
        stage.disk.clear();
        stage.until_taken(&agent).await;
        stage.until_all_arrived().await;
        collector.stop().await;
    }
    let _collector = stage.collector().await;
    stage.end("by others", agent).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn agent_starts_on_a_full_disk() {
    for reserve in [RESERVE, "reserve_bytes = 0"] {
        let mut stage = Stage::set().await;
        let keys = format!("{KEYS}\n {reserve}");
        let agent = stage.agent(&keys).await;
        assert!(stage.post(&agent, 8 << 20).await);
        agent.kill().await;
        stage.disk.fill();
        assert_eq!(stage.disk.free_bytes(), 0);

        let agent = stage.agent(&keys).await;
        assert!(!stage.post(&agent, 1 << 20).await, "there is no room");
        let collector = stage.collector().await;
        let waits =
            agent.logged("disk is full; the newest generation is opened when there is room");
        assert_eq!(waits.is_empty(), reserve == RESERVE);
        if reserve == RESERVE {
            // The reserve is what lets it read what it has.
            stage.until_all_arrived().await;
        }
        agent.kill().await;
        let agent = stage.agent(&keys).await;
        stage.disk.clear();
        stage.until_taken(&agent).await;
        stage.end(&format!("cold start, {reserve}"), agent).await;
        collector.stop().await;
    }
}
