//! Files of the buffer are damaged at random: bits, ranges, lengths, sectors, whole files. The agent starts within
//! 5 s, sets aside and counts what is lost, ships all else, and never ships a wrong event as a good one.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

use crate::collector::{Collector, Manner, Tables};
use crate::harness::{BASIC, Site, copy_directory, request, seed, soak, until, until_async};
use crate::posters::{batch_of, checked_ids};
use crate::power_cut::files_below;
use crate::process::{Process, config_at, preload};

/// What the product promises for the worst start.
const STARTS_WITHIN: Duration = Duration::from_secs(5);

/// Each so many directories one has a sector that cannot be read, whatever chance says of the others.
const SECTOR_EACH: usize = 12;

const KEYS: &str = "reserve_bytes = 65536\n generation_events_max = 60";

#[tokio::test(flavor = "multi_thread")]
async fn damage_costs_only_what_is_damaged() {
    let seed = seed("corruption");
    let base = Base::make().await;
    // A few at a time: most of the work is waiting.
    let lanes = 3;
    let count = soak(60, 1000);
    let lanes = (0..lanes).map(async |lane| {
        let site = Site::new();
        let mut sums = Sums::default();
        for number in (lane..count).step_by(lanes) {
            let random = StdRng::seed_from_u64(seed.wrapping_add(number as u64));
            run(&site, &base, number, random, &mut sums).await;
        }
        sums
    });
    let mut sums = Sums::default();
    for lane in futures::future::join_all(lanes).await {
        sums.runs += lane.runs;
        sums.with_loss += lane.with_loss;
        sums.lost += lane.lost;
        sums.quarantined += lane.quarantined;
        sums.broken += lane.broken;
        sums.slowest = sums.slowest.max(lane.slowest);
    }
    println!(
        "corruption: {} directories of {} events damaged, {} of them with a sector that cannot be \
         read; {} lost {} events, all counted; {} generations set aside, slowest start {:?}",
        sums.runs,
        base.ids.len(),
        sums.broken,
        sums.with_loss,
        sums.lost,
        sums.quarantined,
        sums.slowest,
    );
    assert_eq!(sums.runs, count);
    assert!(sums.broken > count / 50, "{}", sums.broken);
    assert!(sums.with_loss > count / 10 && sums.with_loss < count * 9 / 10);
}

#[derive(Default)]
struct Sums {
    runs: usize,
    with_loss: usize,
    lost: usize,
    quarantined: usize,
    broken: usize,
    slowest: Duration,
}

/// A buffer to damage: some events acknowledged, the rest in several generations, left by a kill.
struct Base {
    site: Site,
    ids: BTreeSet<String>,
    tables: Tables,
}

impl Base {
    async fn make() -> Self {
        let site = Site::new();
        let tables: Arc<Mutex<Tables>> = Arc::default();
        let collector = Collector::start(&site, &tables, Manner::Prompt).await;
        let ids: Vec<String> = (0..420).map(|number| format!("e-{number}")).collect();
        let toml = config_at(&site, collector.address, &site.buffer(), KEYS);
        let process = Process::start_with(&site, &toml).await;
        post(&process, &ids[..90]).await;
        until_async("these are acknowledged", async || {
            process.metric("agent_events_acknowledged_total").await == 90.0
        })
        .await;
        collector.stop().await;
        // A start in the middle leaves a snapshot beside the log.
        for part in ids[90..250].chunks(15) {
            post(&process, part).await;
        }
        process.kill().await;
        let process = Process::start_with(&site, &toml).await;
        for part in ids[250..].chunks(15) {
            post(&process, part).await;
        }
        process.kill().await;
        let tables = std::mem::take(&mut *tables.lock());
        assert_eq!(tables.ids.len(), 90);
        Self {
            site,
            ids: ids.into_iter().collect(),
            tables,
        }
    }
}

async fn post(process: &Process, ids: &[String]) {
    let body = batch_of(ids);
    until_async("events are taken", async || {
        let answer = request(
            process.address,
            "POST",
            "/v1/batch",
            &[BASIC],
            body.as_bytes(),
        );
        answer.await.unwrap().status == 200
    })
    .await;
}

async fn run(site: &Site, base: &Base, number: usize, mut random: StdRng, sums: &mut Sums) {
    let directory = site.path(&format!("buffer-{number}"));
    copy_directory(&base.site.buffer(), &directory);
    let breaks_sector = number.is_multiple_of(SECTOR_EACH);
    let damage = damage(&directory, breaks_sector, &mut random);
    let tables = Arc::new(Mutex::new(Tables {
        events: base.tables.events.clone(),
        ids: base.tables.ids.clone(),
        watermarks: base.tables.watermarks.clone(),
        ..Tables::default()
    }));
    let collector = Collector::start(site, &tables, Manner::Prompt).await;
    let toml = config_at(site, collector.address, &directory, KEYS);
    let (library, file, at);
    let mut environment = Vec::new();
    if let Some(place) = damage.broken_at {
        (library, file) = (preload(site, "broken_sector.c").await, damage.file.clone());
        at = PathBuf::from(place.to_string());
        environment.extend([
            ("LD_PRELOAD", library.as_path()),
            ("BROKEN_FILE", &file),
            ("BROKEN_AT", &at),
        ]);
        sums.broken += 1;
    }
    let starting = Instant::now();
    let process = Process::start_in(site, &toml, &environment).await;
    let started = starting.elapsed();
    assert!(started <= STARTS_WITHIN, "{damage}: {started:?}");
    let new = format!("new-{number}");
    post(&process, std::slice::from_ref(&new)).await;

    let all = base.ids.len() + 1;
    let deadline = Instant::now() + crate::harness::PATIENCE;
    let lost = loop {
        let lost = process.metric("agent_events_lost_total").await as usize;
        let arrived = tables.lock().ids.len();
        // Without marks nobody knows how much there was.
        if arrived + lost == all || (damage.is_of("marks") && arrived == all) {
            break lost;
        }
        assert!(
            Instant::now() < deadline,
            "{damage}: {arrived} arrived and {lost} were counted as lost, of {all}"
        );
        tokio::task::yield_now().await;
    };
    assert!(tables.lock().ids.contains(&new), "{damage}");
    until(&format!("{damage}: the rest has its order"), || {
        tables.lock().message_ids().len() >= all - lost
    })
    .await;
    checked_ids(tables.lock().records());
    let quarantined = || fs::read_dir(directory.join("quarantine")).unwrap().count();
    if lost > 0 && !damage.is_of("marks") {
        until(&format!("{damage}: it is set aside"), || quarantined() > 0).await;
        sums.with_loss += 1;
        sums.lost += lost;
    }
    sums.quarantined += quarantined();
    sums.runs += 1;
    sums.slowest = sums.slowest.max(started);
    process.kill().await;
    collector.stop().await;
    fs::remove_dir_all(directory).unwrap();
}

/// What was done to a file.
struct Damage {
    file: PathBuf,
    how: String,
    /// Where 512 bytes cannot be read any more.
    broken_at: Option<u64>,
}

impl std::fmt::Display for Damage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.file.display(), self.how)
    }
}

impl Damage {
    fn is_of(&self, name: &str) -> bool {
        self.file.ends_with(name)
    }
}

/// Damages one file of the directory; makes it a log's sector that cannot be read if that is wanted.
fn damage(directory: &Path, breaks_sector: bool, random: &mut StdRng) -> Damage {
    let files = files_below(directory);
    // Every file may be hit, the logs of the generations in every second case.
    let logs: Vec<_> = files.iter().filter(|file| file.ends_with("db")).collect();
    let path = if breaks_sector || random.random_ratio(1, 2) {
        (*logs.choose(random).unwrap()).clone()
    } else {
        files.choose(random).unwrap().clone()
    };
    let file = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(&path)
        .unwrap();
    let length = file.metadata().unwrap().len();
    // The first sector fails a store as it opens, others as they are read.
    let place = match breaks_sector && random.random_ratio(1, 2) {
        true => 0,
        false => random.random_range(0..length.max(1)),
    };
    let end = random.random_range(place..length.max(1)) + 1;
    let mut broken_at = None;
    let kind = random.random_range(0..7);
    let how = match if breaks_sector { 5 } else { kind } {
        _ if length == 0 => {
            file.write_all_at(b"garbage", 0).unwrap();
            "garbage in an empty file".to_owned()
        }
        0 | 1 => {
            let bits = if random.random_ratio(1, 2) { 1 } else { 50 };
            for _ in 0..bits {
                let place = random.random_range(0..length);
                let mut byte = [0];
                file.read_exact_at(&mut byte, place).unwrap();
                byte[0] ^= 1 << random.random_range(0..8);
                file.write_all_at(&byte, place).unwrap();
            }
            format!("{bits} bits flipped")
        }
        2 => {
            file.set_len(place).unwrap();
            format!("cut from {length} to {place}")
        }
        3 => {
            fs::remove_file(&path).unwrap();
            "deleted".to_owned()
        }
        4 => {
            let zeros = vec![0; usize::try_from(end - place).unwrap()];
            file.write_all_at(&zeros, place).unwrap();
            format!("zeros from {place} to {end}")
        }
        5 if logs.contains(&&path) => {
            broken_at = Some(place / 512 * 512);
            format!("a sector at {place} that cannot be read")
        }
        _ => {
            let mut noise = vec![0; usize::try_from(end - place).unwrap()];
            random.fill(&mut noise[..]);
            file.write_all_at(&noise, place).unwrap();
            format!("noise from {place} to {end}")
        }
    };
    Damage {
        file: path,
        how,
        broken_at,
    }
}
