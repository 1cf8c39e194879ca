//! Times of the sample world: milliseconds since the Unix epoch, UTC days, local clocks.

use chrono::{DateTime, Days, NaiveDate, NaiveTime, SecondsFormat, TimeZone, Utc};
use chrono_tz::Tz;

/// Milliseconds since the Unix epoch.
pub type Millis = i64;

/// One second.
pub const SECOND: Millis = 1_000;
/// One minute.
pub const MINUTE: Millis = 60 * SECOND;
/// One hour.
pub const HOUR: Millis = 60 * MINUTE;
/// One day of 24 hours.
pub const DAY: Millis = 24 * HOUR;

/// Days that the desk is played for.
pub const DAYS: u64 = 3;

/// The days of the sample: [`DAYS`] UTC days ending with `last`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    /// Last day.
    pub last: NaiveDate,
}

impl Window {
    /// Returns the last complete days before `now`.
    pub fn before(now_micros: i64) -> Self {
        let today = DateTime::from_timestamp_micros(now_micros)
            .unwrap_or_default()
            .date_naive();
        Self {
            last: today - Days::new(1),
        }
    }

    /// Returns the first day.
    pub fn first(self) -> NaiveDate {
        self.last - Days::new(DAYS - 1)
    }

    /// Returns the days in order.
    pub fn days(self) -> impl Iterator<Item = NaiveDate> {
        self.first().iter_days().take(DAYS as usize)
    }

    /// Returns the first instant.
    pub fn start(self) -> Millis {
        midnight(self.first())
    }

    /// Returns the first instant after the window.
    pub fn end(self) -> Millis {
        midnight(self.last) + DAY
    }

    /// Says whether `at` lies inside.
    pub fn contains(self, at: Millis) -> bool {
        (self.start()..self.end()).contains(&at)
    }
}

/// Returns the instant at which `day` begins in UTC.
pub fn midnight(day: NaiveDate) -> Millis {
    day.and_time(NaiveTime::MIN).and_utc().timestamp_millis()
}

/// Returns the instant at which the clocks of `zone` show `seconds` after midnight of `day`; where
/// the clocks skip that time, the same time an hour later.
pub fn local(zone: Tz, day: NaiveDate, seconds: u32) -> Millis {
    let seconds = seconds.min(86_399);
    let time = NaiveTime::from_num_seconds_from_midnight_opt(seconds, 0).unwrap_or(NaiveTime::MIN);
    let wall = day.and_time(time);
    zone.from_local_datetime(&wall)
        .earliest()
        .or_else(|| {
            zone.from_local_datetime(&(wall + chrono::Duration::hours(1)))
                .earliest()
        })
        .map_or_else(|| midnight(day), |time| time.timestamp_millis())
}

/// Writes `at` as ISO-8601 in UTC with milliseconds, as the SDKs do.
pub fn iso(at: Millis) -> String {
    DateTime::<Utc>::from_timestamp_millis(at)
        .unwrap_or_default()
        .to_rfc3339_opts(SecondsFormat::Millis, true)
}
