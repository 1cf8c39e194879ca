//! Durable appends per second through the sequencer and the buffer, against a plain append-only file
//! with the same group commit and fdatasync, in the same run.
//!
//! `cargo bench -p headwater-agent` prints one line per number of producers. Unit: events of 600 bytes
//! per second, each producer waiting for its event to be durable before it sends the next. The
//! directory is `HEADWATER_BENCH_DIR`, or the target directory: it must lie on a real disk.
//! `HEADWATER_BENCH_SECONDS` (default 2) is the time of one cell. The two take turns for three rounds
//! and the median round of each is shown, because a shared disk is never quiet.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use headwater_agent::Config;
use headwater_agent::buffer::Buffer;
use headwater_agent::config::BufferConfig;
use headwater_agent::reload::Settings;
use headwater_agent::sequencer::{Entry, Sequencer};
use headwater_service::clock::SystemClock;
use headwater_service::tls::TlsFiles;
use tokio::sync::oneshot;

const EVENT_BYTES: usize = 600;
const ROUNDS: usize = 3;

/// Something that makes an event durable before it answers.
trait Log: Clone + Send + 'static {
    fn append(&self, event: Vec<u8>) -> impl Future<Output = ()> + Send;
}

impl Log for Sequencer {
    async fn append(&self, event: Vec<u8>) {
        let entry = Entry {
            record: event,
            fingerprint: None,
        };
        Self::append(self, vec![entry], None)
            .await
            .expect("the bench disk has room");
    }
}

/// The baseline: one thread, one file, the same gathering.
#[derive(Clone)]
struct PlainFile(SyncSender<(Vec<u8>, oneshot::Sender<()>)>);

impl PlainFile {
    fn start(path: &Path, config: &BufferConfig) -> Self {
        let (sender, receiver) = sync_channel(config.queue_requests_max);
        let file = File::create(path).expect("the bench directory is writable");
        let wait = Duration::from_micros(config.group_wait_us);
        let bytes_max = usize::try_from(config.group_bytes_max).unwrap_or(usize::MAX);
        std::thread::spawn(move || write_groups(file, &receiver, wait, bytes_max));
        Self(sender)
    }
}

fn write_groups(
    mut file: File,
    requests: &Receiver<(Vec<u8>, oneshot::Sender<()>)>,
    wait: Duration,
    bytes_max: usize,
) {
    let mut busy = false;
    while let Ok((first, answer)) = requests.recv() {
        let deadline = Instant::now() + if busy { wait } else { Duration::ZERO };
        let (mut bytes, mut answers) = (first, vec![answer]);
        while bytes.len() < bytes_max {
            let left = deadline.saturating_duration_since(Instant::now());
            match requests.recv_timeout(left) {
                Ok((event, answer)) => {
                    bytes.extend_from_slice(&event);
                    answers.push(answer);
                }
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => break,
            }
        }
        busy = answers.len() > 1;
        file.write_all(&bytes).expect("the bench disk has room");
        file.sync_data().expect("the bench disk works");
        for answer in answers {
            let _producer_gone = answer.send(());
        }
    }
}

impl Log for PlainFile {
    async fn append(&self, event: Vec<u8>) {
        let (answer, answered) = oneshot::channel();
        self.0
            .try_send((event, answer))
            .expect("the queue holds every producer");
        answered.await.expect("the writer lives");
    }
}

/// One cell: events per second, and the latencies in microseconds.
async fn measure(log: impl Log, producers: usize, time: Duration) -> (f64, Vec<u64>) {
    let started = Instant::now();
    let tasks: Vec<_> = (0..producers)
        .map(|producer| {
            let log = log.clone();
            tokio::spawn(async move {
                let event = vec![u8::try_from(producer % 251).unwrap_or(0); EVENT_BYTES];
                let mut latencies = Vec::new();
                while started.elapsed() < time {
                    let sent = Instant::now();
                    log.append(event.clone()).await;
                    latencies.push(u64::try_from(sent.elapsed().as_micros()).unwrap_or(u64::MAX));
                }
                latencies
            })
        })
        .collect();
    let mut latencies = Vec::new();
    for task in tasks {
        latencies.extend(task.await.expect("producers do not panic"));
    }
    latencies.sort_unstable();
    #[expect(clippy::cast_precision_loss, reason = "a rate")]
    let rate = latencies.len() as f64 / started.elapsed().as_secs_f64();
    (rate, latencies)
}

fn median(mut rounds: Vec<(f64, Vec<u64>)>) -> (f64, Vec<u64>) {
    rounds.sort_by(|a, b| a.0.total_cmp(&b.0));
    rounds.swap_remove(rounds.len() / 2)
}

fn percentile_ms(latencies: &[u64], percent: usize) -> f64 {
    let index = (latencies.len() * percent / 100).min(latencies.len().saturating_sub(1));
    #[expect(clippy::cast_precision_loss, reason = "milliseconds for people")]
    latencies
        .get(index)
        .map_or(0.0, |micros| *micros as f64 / 1000.0)
}

/// Returns settings with this buffer; what belongs to the network is not used here.
fn settings(buffer: &BufferConfig) -> Settings {
    let tls = TlsFiles {
        certificate: PathBuf::new(),
        key: PathBuf::new(),
        ca: PathBuf::new(),
    };
    let mut config = Config::new(tls, Vec::new());
    config.buffer = buffer.clone();
    Settings::fixed(config)
}

#[tokio::main]
async fn main() {
    let seconds = std::env::var("HEADWATER_BENCH_SECONDS")
        .ok()
        .and_then(|text| text.parse().ok());
    let time = Duration::from_secs(seconds.unwrap_or(2));
    let base = std::env::var_os("HEADWATER_BENCH_DIR")
        .map_or_else(|| PathBuf::from(env!("CARGO_TARGET_TMPDIR")), PathBuf::from);
    println!("producers  plain file ev/s  p50/p99 ms   buffer ev/s  p50/p99 ms   ratio");
    for producers in [1, 16, 256] {
        let directory = base.join(format!("durable-append-{}-{producers}", std::process::id()));
        std::fs::create_dir_all(&directory).expect("the bench directory is writable");
        let config = BufferConfig {
            directory: directory.join("buffer"),
            reserve_bytes: 0,
            disk_free_bytes_min: 0,
            ..BufferConfig::default()
        };
        let file = PlainFile::start(&directory.join("plain"), &config);
        let agent = "bench".parse().expect("a valid id");
        let (buffer, appender) = Buffer::open(&config, &agent, SystemClock::shared())
            .expect("the bench directory is writable");
        let (sequencer, thread) =
            Sequencer::start(appender, None, settings(&config)).expect("a thread starts");
        let (mut files, mut buffers) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            files.push(measure(file.clone(), producers, time).await);
            buffers.push(measure(sequencer.clone(), producers, time).await);
        }
        drop(sequencer);
        thread.join().expect("the sequencer does not panic");
        let answered: usize = buffers.iter().map(|(_, latencies)| latencies.len()).sum();
        assert_eq!(
            buffer.buffered(),
            answered as u64,
            "every answered event is there"
        );
        let (file_rate, file_latencies) = median(files);
        let (rate, latencies) = median(buffers);
        println!(
            "{producers:>9}  {file_rate:>15.0}  {:>4.1} / {:<4.1}  {rate:>11.0}  {:>4.1} / {:<4.1}  {:>5.2}",
            percentile_ms(&file_latencies, 50),
            percentile_ms(&file_latencies, 99),
            percentile_ms(&latencies, 50),
            percentile_ms(&latencies, 99),
            rate / file_rate,
        );
        drop(buffer);
        std::fs::remove_dir_all(&directory).expect("the bench directory is ours");
    }
}
