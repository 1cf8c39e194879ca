//! What decides whether an event is valid, and the few fields that the agent's front reads, in one
//! pass that keeps nothing else. [`crate::Event`] asks the same rules, so that the verdict which a
//! client hears is the one that the collector comes to.

mod fields;

use std::borrow::Cow;

use crate::event::{EventType, Failure, Invalid, MESSAGE_ID_CHARS_MAX, posthog};
use crate::timestamp;

pub(crate) use fields::Fields;
use fields::{Field, Json};

/// The ids of an event and the verdict on it. Blank ids count as missing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Head<'a> {
    /// `messageId`, or PostHog's `uuid`.
    pub message_id: Option<Cow<'a, str>>,
    /// `userId`, or PostHog's `distinct_id`.
    pub user_id: Option<Cow<'a, str>>,
    /// `anonymousId`. PostHog's stands in properties that are not read here: missing.
    pub anonymous_id: Option<Cow<'a, str>>,
    /// `sentAt` of the event itself.
    pub sent_at: Option<Cow<'a, str>>,
    /// Why the event will be quarantined; `None` when it is valid.
    pub invalid: Option<Invalid>,
}

impl<'a> Head<'a> {
    /// Reads the head of one event. `path_type` is the type that the request's path implies.
    pub fn of(body: &'a [u8], path_type: Option<EventType>) -> Self {
        // The text is checked once as a whole, not string by string.
        let fields = std::str::from_utf8(body)
            .ok()
            .and_then(|text| serde_json::from_str(text).ok());
        let fields: Fields<'a> = match fields {
            Some(Json::Object(fields)) => *fields,
            Some(Json::Other) => return Self::not(Invalid::NOT_AN_OBJECT),
            None => return Self::not(Invalid::NOT_JSON),
        };
        let invalid = judge(&fields, path_type).err();
        let (message_id, user_id) = match Form::of(&fields, path_type) {
            Form::Segment => (fields.message_id, fields.user_id),
            Form::PostHog => (fields.uuid, fields.distinct_id),
        };
        Self {
            message_id: message_id.into_text(),
            user_id: user_id.into_text(),
            anonymous_id: fields.anonymous_id.into_text(),
            sent_at: fields.sent_at.into_text(),
            invalid,
        }
    }

    fn not(invalid: Invalid) -> Self {
        Self {
            invalid: Some(invalid),
            ..Self::default()
        }
    }
}

/// Whose fields an event has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    /// Segment's, RudderStack's, Jitsu's and Headwater's own.
    Segment,
    /// PostHog's, see [`posthog`].
    PostHog,
}

impl Form {
    fn of(fields: &Fields<'_>, path_type: Option<EventType>) -> Self {
        let has_segment_id = [&fields.message_id, &fields.user_id, &fields.anonymous_id]
            .into_iter()
            .any(Field::is_text);
        if path_type.is_none() && fields.distinct_id.is_text() && !has_segment_id {
            Self::PostHog
        } else {
            Self::Segment
        }
    }
}

/// What the rules find out on their way.
pub(crate) struct Verdict {
    pub(crate) form: Form,
    pub(crate) event_type: EventType,
    /// Microseconds since the Unix epoch.
    pub(crate) original_timestamp: Option<i64>,
}

/// The rules. They never look at a clock; the error names the first field at fault.
pub(crate) fn judge(fields: &Fields<'_>, path_type: Option<EventType>) -> Result<Verdict, Invalid> {
    let form = Form::of(fields, path_type);
    let event_type = match form {
        Form::PostHog => fields.event.as_str().map(posthog::event_type),
        Form::Segment => path_type.or_else(|| EventType::parse(fields.kind.as_str()?)),
    };
    let event_type = event_type.ok_or_else(|| match form {
        Form::PostHog => nameless(),
        Form::Segment => Invalid {
            failure: Failure::Protocol,
            path: "$.type",
            keyword: match fields.kind {
                Field::Missing => "required",
                _ => "enum",
            },
            message: "is missing or not a known type",
        },
    })?;
    let (id, id_path) = match form {
        Form::PostHog => (&fields.uuid, "$.uuid"),
        Form::Segment => (&fields.message_id, "$.messageId"),
    };
    if id
        .as_str()
        .is_some_and(|id| !id.trim().is_empty() && id.chars().count() > MESSAGE_ID_CHARS_MAX)
    {
        return Err(Invalid {
            failure: Failure::Protocol,
            path: id_path,
            keyword: "maxLength",
            message: "is longer than 100 characters",
        });
    }
    let is_anybody =
        form == Form::PostHog || fields.user_id.is_text() || fields.anonymous_id.is_text();
    if !is_anybody && event_type != EventType::Alias {
        return Err(Invalid {
            failure: Failure::IdentityMissing,
            path: "$.userId",
            keyword: "required",
            message: "and `anonymousId` are both missing",
        });
    }
    if event_type == EventType::Track && !fields.event.is_text() {
        return Err(nameless());
    }
    let original_timestamp = original_timestamp(fields)?;
    for (field, path) in [
        (&fields.properties, "$.properties"),
        (&fields.context, "$.context"),
        (&fields.traits, "$.traits"),
    ] {
        if !matches!(field, Field::Missing | Field::Object) {
            return Err(Invalid {
                failure: Failure::SchemaViolation,
                path,
                keyword: "type",
                message: "is not an object",
            });
        }
    }
    Ok(Verdict {
        form,
        event_type,
        original_timestamp,
    })
}

fn original_timestamp(fields: &Fields<'_>) -> Result<Option<i64>, Invalid> {
    let time = match &fields.original_timestamp {
        Field::Missing => &fields.timestamp,
        present => present,
    };
    if matches!(time, Field::Missing) {
        return Ok(None);
    }
    let parsed = time.as_str().and_then(timestamp::parse);
    parsed.map(Some).ok_or(Invalid {
        failure: Failure::TimeInvalid,
        path: "$.timestamp",
        keyword: "format",
        message: "is not an ISO-8601 time",
    })
}

/// The refusal of an event without a name where it must have one.
fn nameless() -> Invalid {
    Invalid {
        failure: Failure::SchemaViolation,
        path: "$.event",
        keyword: "required",
        message: "is missing",
    }
}

#[cfg(test)]
mod tests;
