//! The values of `format` that a plan may use.
//!
//! Pure. Promise: what is accepted here is what the columns and SQL can read as that type.

use headwater_protocol::timestamp;

/// A form of text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    DateTime,
    Date,
    Uuid,
}

impl Format {
    pub(super) fn parse(name: &str) -> Option<Self> {
        let all = [Self::DateTime, Self::Date, Self::Uuid];
        all.into_iter().find(|format| format.name() == name)
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::DateTime => "date-time",
            Self::Date => "date",
            Self::Uuid => "uuid",
        }
    }

    pub(super) fn holds(self, text: &str) -> bool {
        match self {
            Self::DateTime => timestamp::parse(text).is_some(),
            // A date is what makes a time of midnight.
            Self::Date => {
                text.len() == 10 && timestamp::parse(&format!("{text}T00:00:00Z")).is_some()
            }
            Self::Uuid => is_uuid(text),
        }
    }
}

fn is_uuid(text: &str) -> bool {
    let groups = [8, 4, 4, 4, 12];
    text.split('-').count() == groups.len()
        && text.split('-').zip(groups).all(|(group, length)| {
            group.len() == length && group.bytes().all(|byte| byte.is_ascii_hexdigit())
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_are_told_apart() {
        let cases = [
            ("date-time", "2026-11-20T10:00:00.5+01:00", "2026-11-20"),
            ("date", "2026-11-20", "2026-13-20"),
            (
                "uuid",
                "0190d9a2-7a3f-7cc0-8f00-0123456789ab",
                "0190d9a27a3f7cc08f000123456789ab",
            ),
        ];
        for (name, good, bad) in cases {
            let format = Format::parse(name).unwrap();
            assert!(format.holds(good), "{name} {good}");
            assert!(!format.holds(bad), "{name} {bad}");
        }
        assert_eq!(Format::parse("email"), None);
    }
}
