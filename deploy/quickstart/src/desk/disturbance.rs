//! What real clients do to events: send late, send twice, stamp with wrong clocks, break them.
//!
//! Nothing here replaces a good event: every disturbance is an extra copy, an extra broken event or
//! another moment of sending, so that the conversations stay whole.

use serde_json::{Value, json};

use super::draft::{Actor, Draft, Fate, Log, Origin};
use super::tally::LATE;
use crate::world::time::{DAY, HOUR, MINUTE, SECOND, iso};

/// How an event is broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Flaw {
    /// Neither `userId` nor `anonymousId`.
    MissingIdentity,
    /// A timestamp that is none.
    BadTimestamp,
    /// A `track` without event name.
    MissingName,
    /// A `type` that does not exist.
    UnknownType,
    /// Not a JSON object.
    NotAnObject,
    /// `properties` is a list.
    PropertiesNotAnObject,
}

impl Flaw {
    /// All flaws.
    pub const ALL: [Self; 6] = [
        Self::MissingIdentity,
        Self::BadTimestamp,
        Self::MissingName,
        Self::UnknownType,
        Self::NotAnObject,
        Self::PropertiesNotAnObject,
    ];

    /// Returns the `failure_type` under which the event must be quarantined.
    pub fn failure_type(self) -> &'static str {
        match self {
            Self::MissingIdentity => "identity_missing",
            Self::BadTimestamp => "time_invalid",
            Self::MissingName | Self::PropertiesNotAnObject => "schema_violation",
            Self::UnknownType => "protocol",
            Self::NotAnObject => "payload_format",
        }
    }
}

/// Share of events that are sent once more on their own.
const COPIES: f64 = 0.006;
/// Share of events that are sent hours after they happened.
const LATE_SHARE: f64 = 0.012;
/// Broken events for each good one.
const BROKEN: f64 = 0.0016;
/// Events stamped a year ahead for each good one.
const FROM_THE_FUTURE: f64 = 0.0003;

/// Disturbs the events of one company.
pub(super) fn disturb(log: &mut Log<'_>) {
    let good = log.drafts.len();
    for index in 0..good {
        if log.chance.hit(LATE_SHARE) {
            log.drafts[index].deliver_at += LATE + log.chance.between(0, 40 * HOUR);
        }
        if log.chance.hit(COPIES) {
            let mut copy = log.drafts[index].clone();
            copy.deliver_at += log.chance.between(2 * SECOND, 3 * HOUR);
            copy.fate = Fate::Copy;
            stamp_again(&mut copy);
            log.drafts.push(copy);
        }
        if log.chance.hit(BROKEN) {
            break_one(log);
        }
        if log.chance.hit(FROM_THE_FUTURE) {
            stamp_ahead(log);
        }
    }
}

/// Some server SDKs refresh a `sentAt` inside the event at each try, so the agent cannot know the copy
/// by its bytes: its message id is recognised in the tables.
fn stamp_again(copy: &mut Draft) {
    if let (Origin::Server, Some(open)) = (copy.origin, copy.body.strip_suffix('}')) {
        copy.body = format!("{open},\"sentAt\":\"{}\"}}", iso(copy.deliver_at));
    }
}

fn break_one(log: &mut Log<'_>) {
    let flaw = Flaw::ALL[log.chance.weighted(&[3.0, 2.5, 2.0, 1.5, 1.0, 1.0])];
    let at = log.chance.between(log.window.start(), log.window.end());
    let body = broken(log, flaw, at).to_string();
    log.drafts.push(Draft {
        company: log.index,
        origin: Origin::Server,
        at,
        deliver_at: at,
        body,
        fate: Fate::Invalid(flaw),
    });
}

fn broken(log: &mut Log<'_>, flaw: Flaw, at: i64) -> Value {
    let contact = log.chance.index(log.company.contacts.len());
    let mut body = json!({
        "type": "track",
        "event": "Conversation Replied",
        "messageId": log.chance.uuid().to_string(),
        "timestamp": iso(at),
        "userId": log.company.contacts[contact].id,
        "properties": {"conversation_id": log.chance.id("conv_"), "part_type": "comment", "is_visible": true},
    });
    match flaw {
        Flaw::MissingIdentity => {
            body["userId"] = "".into();
            body["anonymousId"] = Value::Null;
        }
        Flaw::BadTimestamp => {
            body["timestamp"] =
                (log.chance
                    .pick(&["yesterday", "20/11/26 9:15", "2026-13-45T00:00:00Z"]))
                .into();
        }
        Flaw::MissingName => body["event"] = Value::Null,
        Flaw::UnknownType => body["type"] = (log.chance.pick(&["trak", "event", ""])).into(),
        Flaw::NotAnObject => {
            let kinds = [json!("ping"), json!(42), json!(["track"]), json!(true)];
            body = kinds[log.chance.index(kinds.len())].clone();
        }
        Flaw::PropertiesNotAnObject => body["properties"] = json!(["comment"]),
    }
    body
}

/// A server whose clock is a year ahead: the event is good, its time is not believed.
fn stamp_ahead(log: &mut Log<'_>) {
    let at = log.chance.between(log.window.start(), log.window.end());
    let admin = log.chance.index(log.company.admins.len());
    let before = log.drafts.len();
    if log.track(
        at,
        Actor::Admin(admin),
        "Feature Used",
        json!({"feature_key": "api"}),
    ) {
        let ahead = at + 365 * DAY + log.chance.between(0, 90 * MINUTE);
        let draft = &mut log.drafts[before];
        draft.body = draft.body.replace(&iso(at), &iso(ahead));
        draft.at = ahead;
    }
}
