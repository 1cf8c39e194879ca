//! What types cannot express: bounds of single settings, and which fit together.

use std::collections::HashSet;

use headwater_service::config::ConfigError;

use super::{Config, KIB, MIB, REQUEST_EVENTS_MAX};
use crate::buffer::Appender;
use crate::window;

/// Room that a record takes around the event's own bytes; generous.
const RECORD_OVERHEAD_BYTES: u64 = 8 * KIB;

/// Most ids: 400 MB of memory.
const DEDUP_IDS_MAX: usize = 16_000_000;

/// Most devices: 160 MB of memory.
const DEVICES_MAX: usize = 1_000_000;

impl Config {
    /// Checks what types cannot express.
    ///
    /// # Errors
    /// [`ConfigError::Value`] names the first key that cannot be used.
    pub fn validate(&self) -> Result<(), ConfigError> {
        self.validate_sizes()?;
        self.validate_times()?;
        self.validate_collectors()?;
        self.admin.bounds().validate()?;
        let mut seen = HashSet::new();
        for entry in &self.write_keys {
            check(
                !entry.key.is_empty() && !entry.company.is_empty() && !entry.source.is_empty(),
                "write_keys",
                || "has an entry with an empty `key`, `company` or `source`; fill it in".to_owned(),
            )?;
            check(seen.insert(&entry.key), "write_keys", || {
                format!(
                    "holds a key of company `{}` twice; keys must differ",
                    entry.company
                )
            })?;
        }
        Ok(())
    }

    fn validate_collectors(&self) -> Result<(), ConfigError> {
        let collector = &self.collector;
        let addresses = &collector.addresses;
        check(
            (1..=16).contains(&addresses.len()),
            "collector.addresses",
            || format!("holds `{}` entries; use 1 to 16", addresses.len()),
        )?;
        let distinct: HashSet<&String> = addresses.iter().collect();
        check(
            distinct.len() == addresses.len() && addresses.iter().all(|it| it.contains(':')),
            "collector.addresses",
            || "needs `host:port`, each once".to_owned(),
        )?;
        check(
            (1..=64).contains(&collector.batches_prepared_max),
            "collector.batches_prepared_max",
            || "must lie between 1 and 64".to_owned(),
        )?;
        let within_a_day = 1..=86_400_000;
        check(
            within_a_day.contains(&collector.preferred_probe_ms)
                && within_a_day.contains(&collector.stall_timeout_ms),
            "collector.preferred_probe_ms",
            || "and `collector.stall_timeout_ms` must be above 0 and at most a day".to_owned(),
        )
    }

    fn validate_sizes(&self) -> Result<(), ConfigError> {
        let Self {
            http,
            buffer,
            collector,
            ..
        } = self;
        check(
            (KIB..=64 * MIB).contains(&http.body_bytes_max),
            "http.body_bytes_max",
            || format!("is `{}`; use 1 KiB to 64 MiB", http.body_bytes_max),
        )?;
        check(
            (http.body_bytes_max..=256 * MIB).contains(&http.inflated_bytes_max),
            "http.inflated_bytes_max",
            || "must lie between `http.body_bytes_max` and 256 MiB".to_owned(),
        )?;
        check(
            http.memory_bytes_max >= http.body_bytes_max + 3 * http.inflated_bytes_max,
            "http.memory_bytes_max",
            || {
                "must hold one largest body: `http.body_bytes_max` and three times \
                 `http.inflated_bytes_max` (inflated, as JSON where it was MessagePack, as records)"
                    .to_owned()
            },
        )?;
        check(
            http.event_bytes_max >= KIB
                && http.event_bytes_max + RECORD_OVERHEAD_BYTES <= collector.batch_bytes_max,
            "http.event_bytes_max",
            || "must be at least 1 KiB and 8 KiB below `collector.batch_bytes_max`".to_owned(),
        )?;
        check(http.socket_mode <= 0o777, "http.socket_mode", || {
            "must be permissions such as `0o660`, in octal".to_owned()
        })?;
        check(
            (1..=REQUEST_EVENTS_MAX).contains(&http.request_events_max),
            "http.request_events_max",
            || format!("must lie between 1 and {REQUEST_EVENTS_MAX}"),
        )?;
        check(
            (1..=65_536).contains(&http.connections_max),
            "http.connections_max",
            || "must lie between 1 and 65536".to_owned(),
        )?;
        check(
            (1..=100).contains(&self.company.queue_percent),
            "company.queue_percent",
            || "must lie between 1 and 100".to_owned(),
        )?;
        check(
            (1..=3600).contains(&self.company.burst_s),
            "company.burst_s",
            || "must lie between 1 and 3600".to_owned(),
        )?;
        let disk_bytes_min = Appender::disk_bytes_min(
            buffer,
            window::disk_bytes_max(self.dedup.ids_max),
            http.event_bytes_max + RECORD_OVERHEAD_BYTES,
        );
        check(
            buffer.disk_bytes_max >= disk_bytes_min,
            "buffer.disk_bytes_max",
            || {
                format!(
                    "must be at least `{disk_bytes_min}`, so that one event of `http.event_bytes_max` \
                     always fits beside `buffer.reserve_bytes`, `buffer.refused_bytes_max`, \
                     `buffer.group_bytes_max` and the window (`dedup.ids_max`)"
                )
            },
        )?;
        check(self.dedup.ids_max <= DEDUP_IDS_MAX, "dedup.ids_max", || {
            format!("is `{}`; use at most {DEDUP_IDS_MAX}", self.dedup.ids_max)
        })?;
        check(
            self.event_time.devices_max <= DEVICES_MAX,
            "event_time.devices_max",
            || format!("must be at most {DEVICES_MAX}"),
        )?;
        for (key, value) in [
            ("buffer.generation_events_max", buffer.generation_events_max),
            ("buffer.generation_bytes_max", buffer.generation_bytes_max),
            (
                "buffer.queue_requests_max",
                buffer.queue_requests_max as u64,
            ),
            ("buffer.group_bytes_max", buffer.group_bytes_max),
            (
                "collector.batch_events_max",
                u64::from(collector.batch_events_max),
            ),
            (
                "collector.batches_in_flight_max",
                u64::from(collector.batches_in_flight_max),
            ),
            ("collector.send_window_bytes", collector.send_window_bytes),
        ] {
            check(value > 0, key, || "must be above 0".to_owned())?;
        }
        check(
            buffer.queue_bytes_max >= http.inflated_bytes_max.saturating_mul(2),
            "buffer.queue_bytes_max",
            || "must be at least twice `http.inflated_bytes_max`".to_owned(),
        )
    }

    fn validate_times(&self) -> Result<(), ConfigError> {
        let Self {
            buffer, collector, ..
        } = self;
        check(buffer.group_wait_us <= 2000, "buffer.group_wait_us", || {
            format!(
                "is `{}`; more than 2000 slows every answer",
                buffer.group_wait_us
            )
        })?;
        check(
            collector.backoff_min_ms > 0 && collector.backoff_min_ms <= collector.backoff_max_ms,
            "collector.backoff_min_ms",
            || "must be above 0 and at most `collector.backoff_max_ms`".to_owned(),
        )?;
        check(
            collector.keep_alive_ms > 0
                && collector.keep_alive_ms.saturating_mul(2) < collector.idle_timeout_ms,
            "collector.keep_alive_ms",
            || "must be above 0 and below half of `collector.idle_timeout_ms`".to_owned(),
        )?;
        check(
            collector.connect_timeout_ms > 0 && collector.reply_timeout_ms > 0,
            "collector.connect_timeout_ms",
            || "and `collector.reply_timeout_ms` must be above 0".to_owned(),
        )?;
        check(
            collector.stop_drain_ms <= 3000,
            "collector.stop_drain_ms",
            || "must be at most 3000, so that a stop ends within 5 s".to_owned(),
        )?;
        check(
            self.http.idle_timeout_ms >= 1000,
            "http.idle_timeout_ms",
            || "must be at least 1000".to_owned(),
        )?;
        check(
            self.http.read_timeout_ms > 0,
            "http.read_timeout_ms",
            || "must be above 0".to_owned(),
        )
    }
}

fn check(
    holds: bool,
    key: &'static str,
    message: impl FnOnce() -> String,
) -> Result<(), ConfigError> {
    if holds {
        Ok(())
    } else {
        Err(ConfigError::Value {
            key,
            message: message(),
        })
    }
}

#[cfg(test)]
mod tests {
    use headwater_service::tls::TlsFiles;

    use super::*;

    #[test]
    fn the_least_disk_takes_one_largest_event_and_a_byte_less_is_refused() {
        let tls = TlsFiles {
            certificate: "a.pem".into(),
            key: "a.key".into(),
            ca: "ca.pem".into(),
        };
        for (reserve_bytes, refused_bytes_max, ids_max) in
            [(0, 0, 0), (40 * MIB, 64 * MIB, 400_000), (MIB, 4 * MIB, 1)]
        {
            let mut config = Config::new(tls.clone(), Vec::new());
            config.buffer.reserve_bytes = reserve_bytes;
            config.buffer.refused_bytes_max = refused_bytes_max;
            config.dedup.ids_max = ids_max;
            config.buffer.disk_bytes_max = 1;
            let refused = config.validate().unwrap_err().to_string();
            let mut parts = refused.split('`');
            let least = parts.find_map(|part| part.parse().ok()).unwrap();
            config.buffer.disk_bytes_max = least;
            config.validate().unwrap();
            let event = config.http.event_bytes_max + RECORD_OVERHEAD_BYTES;
            assert!(config.request_bytes_max().0 >= event, "{least}");
            config.buffer.disk_bytes_max = least - 1;
            assert!(config.validate().is_err(), "{least}");
        }
    }
}
