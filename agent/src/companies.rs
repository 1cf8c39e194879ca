//! What one company may take of the agent: a share of what waits for the disk, and, where a person sets
//! it, a rate of events. One that sends too much hears 429 and comes back; the others do not notice.
//!
//! Place on the path: between a request that has been read and the sequencer. Promise: a company alone
//! on a host has all of it; of several, none can fill the queue, so that there is always room for the
//! next one.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use metrics::{Counter, counter};
use parking_lot::Mutex;

use crate::config::Config;
use crate::metrics::COMPANY_LIMITED;
use crate::reload::Live;

/// Longest time that a company is sent away for, in seconds: Segment's SDKs wait as long.
const RETRY_AFTER_S_MAX: f64 = 300.0;

/// What every company that has sent something takes now; as many as there are in the write keys.
#[derive(Debug, Default)]
pub(crate) struct Companies(Mutex<HashMap<String, Arc<Mutex<Company>>>>);

#[derive(Debug)]
struct Company {
    waiting: Taken,
    bucket: Bucket,
}

/// What waits for the disk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Taken {
    requests: u64,
    bytes: u64,
}

/// A company takes its part already; the request is to come again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Limited {
    /// Of what waits for the disk.
    Queue,
    /// Of events a second; more are taken after so many seconds.
    Rate(u32),
}

impl Limited {
    fn counter(self, company: &str) -> Counter {
        let reason = match self {
            Self::Queue => "queue",
            Self::Rate(_) => "rate",
        };
        counter!(COMPANY_LIMITED, "company" => company.to_owned(), "reason" => reason)
    }
}

/// A company's place for a request that waits for the disk. It travels with the request, because that
/// waits also when its client has gone; dropping it leaves the place.
#[derive(Debug)]
pub struct Place {
    company: Arc<Mutex<Company>>,
    bytes: u64,
}

impl Drop for Place {
    fn drop(&mut self) {
        let taken = &mut self.company.lock().waiting;
        taken.requests -= 1;
        taken.bytes -= self.bytes;
    }
}

impl Companies {
    /// Begins with nothing taken, and shows the counters of the companies that may send.
    pub(crate) fn new(live: &Live) -> Self {
        let config: &Config = live;
        for key in &config.write_keys {
            Limited::Queue.counter(&key.company).increment(0);
            Limited::Rate(0).counter(&key.company).increment(0);
        }
        Self::default()
    }

    /// Lets a request of so many events and bytes wait for the disk.
    ///
    /// # Errors
    /// [`Limited`] when the company takes its share already, or sends faster than it may.
    pub(crate) fn enter(
        &self,
        live: &Live,
        name: &str,
        events: u64,
        bytes: u64,
    ) -> Result<Place, Limited> {
        let now = Instant::now();
        let company = self.company(name, now);
        let taken = company.lock().take(live, now, events, bytes);
        if let Err(limited) = taken {
            limited.counter(name).increment(1);
        }
        taken.map(|()| Place { company, bytes })
    }

    fn company(&self, name: &str, now: Instant) -> Arc<Mutex<Company>> {
        let mut by_name = self.0.lock();
        if let Some(company) = by_name.get(name) {
            return Arc::clone(company);
        }
        let company = Arc::new(Mutex::new(Company {
            waiting: Taken::default(),
            bucket: Bucket { debt: 0.0, at: now },
        }));
        by_name.insert(name.to_owned(), Arc::clone(&company));
        company
    }
}

impl Company {
    fn take(&mut self, live: &Live, now: Instant, events: u64, bytes: u64) -> Result<(), Limited> {
        if live.companies() > 1 && !self.waiting.fits(&Taken::share(live), bytes) {
            return Err(Limited::Queue);
        }
        let rate = f64::from(live.company.events_per_s);
        let burst = rate * f64::from(live.company.burst_s);
        if rate > 0.0 {
            let taken = self.bucket.take(now, events, rate, burst);
            taken.map_err(Limited::Rate)?;
        }
        self.waiting.requests += 1;
        self.waiting.bytes += bytes;
        Ok(())
    }
}

impl Taken {
    /// What one of several companies may take.
    fn share(live: &Live) -> Self {
        let part = |all: u64| all * u64::from(live.company.queue_percent) / 100;
        Self {
            requests: part(live.buffer.queue_requests_max as u64).max(1),
            bytes: part(live.buffer.queue_bytes_max),
        }
    }

    /// Says whether one more request of so many bytes stays within `share`. One that is larger than the
    /// share waits alone.
    fn fits(self, share: &Self, bytes: u64) -> bool {
        self.requests == 0
            || (self.requests < share.requests && self.bytes.saturating_add(bytes) <= share.bytes)
    }
}

/// A token bucket, told as the events that were taken and not yet earned. A request is taken whole while
/// the debt is below the burst, so that none is too large for ever.
#[derive(Debug)]
struct Bucket {
    debt: f64,
    at: Instant,
}

impl Bucket {
    /// Takes so many events at a rate a second.
    ///
    /// # Errors
    /// Seconds until the next request would be taken.
    fn take(&mut self, now: Instant, events: u64, rate: f64, burst: f64) -> Result<(), u32> {
        let passed: Duration = now.saturating_duration_since(self.at);
        self.debt = (self.debt - passed.as_secs_f64() * rate).max(0.0);
        self.at = self.at.max(now);
        if self.debt >= burst {
            let wait = ((self.debt - burst) / rate).ceil();
            return Err(wait.clamp(1.0, RETRY_AFTER_S_MAX) as u32);
        }
        self.debt += events as f64;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use headwater_protocol::SourceKind;
    use headwater_service::tls::TlsFiles;

    use super::*;
    use crate::config::WriteKey;
    use crate::reload::Settings;

    #[test]
    fn a_rate_is_kept_over_time_and_a_burst_is_let_through() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut bucket = Bucket {
            debt: 0.0,
            at: start,
        };
        // 100 a second, two seconds of burst: requests of 50.
        let mut take = |ms, events| bucket.take(at(ms), events, 100.0, 200.0);
        for _ in 0..4 {
            assert_eq!(take(0, 50), Ok(()));
        }
        assert_eq!(take(0, 50), Err(1));
        // Half a second earns 50.
        assert_eq!(take(500, 50), Ok(()));
        assert_eq!(take(500, 50), Err(1));
        // One far above the burst is taken whole, and paid for.
        assert_eq!(take(1000, 1000), Ok(()));
        assert_eq!(take(1000, 1), Err(10));
        assert_eq!(take(10_499, 1), Err(1));
        assert_eq!(take(10_501, 1), Ok(()));
        // What is not used does not add up beyond the burst.
        assert_eq!(take(99_000_000, 250), Ok(()));
        assert_eq!(take(99_000_000, 1), Err(1));
        // A clock that stands still or goes back earns nothing.
        assert_eq!(take(98_000_000, 1), Err(1));
        assert_eq!(take(99_000_000, 1), Err(1));
    }

    fn live(companies: &[&str], queue_requests_max: usize) -> Arc<Live> {
        let tls = TlsFiles {
            certificate: "a.pem".into(),
            key: "a.key".into(),
            ca: "ca.pem".into(),
        };
        let keys = companies.iter().map(|company| WriteKey {
            key: format!("key of {company}"),
            company: (*company).to_owned(),
            source: "web".to_owned(),
            kind: SourceKind::Server,
        });
        let mut config = Config::new(tls, keys.collect());
        config.buffer.queue_requests_max = queue_requests_max;
        Settings::fixed(config).now()
    }

    #[test]
    fn a_flood_of_one_company_leaves_room_for_the_others() {
        let live = live(&["acme", "globex"], 8);
        let companies = Companies::default();
        let enter = |name| companies.enter(&live, name, 1, 100);
        let mut places: Vec<Place> = (0..4).map(|_| enter("acme").unwrap()).collect();
        assert_eq!(enter("acme").unwrap_err(), Limited::Queue);
        let _other = enter("globex").unwrap();
        places.pop();
        enter("acme").unwrap();
    }

    #[test]
    fn a_company_alone_has_the_whole_queue() {
        let live = live(&["acme", "acme"], 8);
        let companies = Companies::default();
        let enter = || companies.enter(&live, "acme", 1, 100).unwrap();
        let _places: Vec<Place> = (0..100).map(|_| enter()).collect();
    }

    #[test]
    fn a_share_is_kept_and_one_request_always_fits() {
        let share = Taken {
            requests: 3,
            bytes: 100,
        };
        let cases = [
            (0, 0, 500, true),
            (1, 50, 50, true),
            (1, 50, 51, false),
            (3, 30, 1, false),
            (2, 30, 1, true),
            (1, 500, 1, false),
        ];
        for (requests, bytes, more, fits) in cases {
            let taken = Taken { requests, bytes };
            assert_eq!(taken.fits(&share, more), fits, "{taken:?} and {more}");
        }
    }
}
