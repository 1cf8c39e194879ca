//! Paths: which client speaks on which, and what it sends there.

use headwater_protocol::EventType;

/// What a path takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Endpoint {
    /// Segment, RudderStack and PostHog v0: `{"batch":[…]}`, or one event that says its type.
    Batch,
    /// Segment and Jitsu: one event of this type.
    Single(EventType),
    /// Anybody: NDJSON, an array or one object, as JSON or MessagePack.
    Events,
    /// PostHog v1: `{"batch":[…]}`, answered event by event.
    Capture,
    /// PostHog asks which features are on. None are.
    Flags,
    /// Segment's browser library tells how it is itself. Nobody reads it.
    SelfReport,
}

impl Endpoint {
    /// Returns what `path` takes, with or without a slash at its end.
    pub(super) fn of(path: &str) -> Option<Self> {
        let endpoint = match path.strip_suffix('/').unwrap_or(path) {
            "/v1/batch" | "/v1/import" | "/v1/b" | "/batch" | "/i/v0/ai/batch"
            | "/api/s/s2s/event" | "/api/s/s2s/batch" | "/api/s/event" => Self::Batch,
            "/v1/events" => Self::Events,
            "/i/v1/analytics/events" => Self::Capture,
            "/flags" | "/decide" => Self::Flags,
            "/v1/m" => Self::SelfReport,
            "/v1/t" => Self::Single(EventType::Track),
            "/v1/i" => Self::Single(EventType::Identify),
            "/v1/p" => Self::Single(EventType::Page),
            "/v1/s" => Self::Single(EventType::Screen),
            "/v1/g" => Self::Single(EventType::Group),
            "/v1/a" => Self::Single(EventType::Alias),
            other => {
                let name = ["/v1/", "/api/s/s2s/", "/api/s/"]
                    .iter()
                    .find_map(|prefix| other.strip_prefix(prefix))?;
                Self::Single(EventType::parse(name)?)
            }
        };
        Some(endpoint)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_of_every_client_are_known() {
        for path in [
            "/v1/batch",
            "/v1/import/",
            "/v1/b",
            "/batch/",
            "/api/s/s2s/event",
        ] {
            assert_eq!(Endpoint::of(path), Some(Endpoint::Batch), "{path}");
        }
        for (path, kind) in [
            ("/v1/track", EventType::Track),
            ("/v1/a", EventType::Alias),
            ("/v1/page/", EventType::Page),
            ("/api/s/s2s/track", EventType::Track),
            ("/api/s/group", EventType::Group),
        ] {
            assert_eq!(Endpoint::of(path), Some(Endpoint::Single(kind)), "{path}");
        }
        for (path, endpoint) in [
            ("/v1/events", Endpoint::Events),
            ("/i/v1/analytics/events", Endpoint::Capture),
            ("/flags/", Endpoint::Flags),
            ("/v1/m", Endpoint::SelfReport),
        ] {
            assert_eq!(Endpoint::of(path), Some(endpoint), "{path}");
        }
        for path in [
            "/",
            "/v1/",
            "/v1/tracks",
            "/v2/batch",
            "/batch/x",
            "/api/s/s2s/",
            "/api/s/s2s/t",
        ] {
            assert_eq!(Endpoint::of(path), None, "{path}");
        }
    }
}
