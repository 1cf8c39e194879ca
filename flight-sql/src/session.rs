//! A session: who is connected and the few options a client may set.
//!
//! Place on the event's path: found by the bearer token of each call. Promise: an option either has
//! its effect on the next statement or is refused by name; nothing is accepted and ignored.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::result::Timestamps;
use crate::snapshot::{CATALOG, DEFAULT_SCHEMA};

/// One authenticated connection.
pub(crate) struct Session {
    /// Name of the user.
    pub(crate) principal: Arc<str>,
    /// How the client gets points in time.
    pub(crate) timestamps: Timestamps,
    schema: Mutex<String>,
}

impl Session {
    /// Makes a session with default options for a client that calls itself `user_agent`.
    pub(crate) fn new(principal: Arc<str>, user_agent: &str) -> Self {
        Self {
            principal,
            timestamps: timestamps_of(user_agent),
            schema: Mutex::new(DEFAULT_SCHEMA.to_owned()),
        }
    }

    /// Returns the schema of table names that name none.
    pub(crate) fn schema(&self) -> String {
        self.schema.lock().clone()
    }

    /// Sets the options of `request`; each refused one is named in the result.
    pub(crate) fn set(
        &self,
        request: SetSessionOptionsRequest,
        schema_exists: impl Fn(&str) -> bool,
    ) -> SetSessionOptionsResult {
        let mut errors = HashMap::new();
        for (name, value) in request.session_options {
            if let Err(error) = self.set_one(&name, value, &schema_exists) {
                let value = error as i32;
                errors.insert(name, SetError { value });
            }
        }
        SetSessionOptionsResult { errors }
    }

    /// Returns all options.
    pub(crate) fn options(&self) -> GetSessionOptionsResult {
        let text = |value: String| SessionOptionValue {
            option_value: Some(OptionValue::StringValue(value)),
        };
        GetSessionOptionsResult {
            session_options: HashMap::from([
                ("catalog".to_owned(), text(CATALOG.to_owned())),
                ("schema".to_owned(), text(self.schema())),
            ]),
        }
    }

    fn set_one(
        &self,
        name: &str,
        value: SessionOptionValue,
        schema_exists: &impl Fn(&str) -> bool,
    ) -> Result<(), SetErrorValue> {
        // An absent or empty value asks for the default.
        let text = match value.option_value {
            None => String::new(),
            Some(OptionValue::StringValue(text)) => text,
            Some(_) => return Err(SetErrorValue::InvalidValue),
        };
        match name {
            "catalog" if text.is_empty() || text == CATALOG => Ok(()),
            "schema" if text.is_empty() => {
                DEFAULT_SCHEMA.clone_into(&mut self.schema.lock());
                Ok(())
            }
            "schema" if schema_exists(&text) => {
                *self.schema.lock() = text;
                Ok(())
            }
            "catalog" | "schema" => Err(SetErrorValue::InvalidValue),
            _ => Err(SetErrorValue::InvalidName),
        }
    }
}

/// JDBC drivers up to 18 fail on `getObject` of a timestamp with a zone, and read the others alike.
/// They do not name themselves: their user agent is that of gRPC for Java alone.
fn timestamps_of(user_agent: &str) -> Timestamps {
    if user_agent.starts_with("grpc-java") {
        Timestamps::Plain
    } else {
        Timestamps::Zoned
    }
}

/// Body of the action `SetSessionOptions` (Flight.proto).
#[derive(Clone, PartialEq, prost::Message)]
pub struct SetSessionOptionsRequest {
    /// Options by name.
    #[prost(map = "string, message", tag = "1")]
    pub session_options: HashMap<String, SessionOptionValue>,
}

/// Answer to `SetSessionOptions`: the options that were refused.
#[derive(Clone, PartialEq, prost::Message)]
pub struct SetSessionOptionsResult {
    /// Refused options by name.
    #[prost(map = "string, message", tag = "1")]
    pub errors: HashMap<String, SetError>,
}

/// Why an option was refused.
#[derive(Clone, PartialEq, prost::Message)]
pub struct SetError {
    /// See [`SetErrorValue`].
    #[prost(enumeration = "SetErrorValue", tag = "1")]
    pub value: i32,
}

/// Reasons of `SetSessionOptionsResult`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum SetErrorValue {
    /// No reason given.
    Unspecified = 0,
    /// There is no such option.
    InvalidName = 1,
    /// The option does not take this value.
    InvalidValue = 2,
    /// The option could not be set.
    Error = 3,
}

/// Body of the action `GetSessionOptions`.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct GetSessionOptionsRequest {}

/// Answer to `GetSessionOptions`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct GetSessionOptionsResult {
    /// Options by name.
    #[prost(map = "string, message", tag = "1")]
    pub session_options: HashMap<String, SessionOptionValue>,
}

/// Value of an option.
#[derive(Clone, PartialEq, prost::Message)]
pub struct SessionOptionValue {
    /// The value; absent means "unset".
    #[prost(oneof = "OptionValue", tags = "1, 2, 3, 4, 5")]
    pub option_value: Option<OptionValue>,
}

/// Kinds of values.
#[derive(Clone, PartialEq, prost::Oneof)]
pub enum OptionValue {
    /// Text.
    #[prost(string, tag = "1")]
    StringValue(String),
    /// Truth value.
    #[prost(bool, tag = "2")]
    BoolValue(bool),
    /// Whole number.
    #[prost(sfixed64, tag = "3")]
    Int64Value(i64),
    /// Number.
    #[prost(double, tag = "4")]
    DoubleValue(f64),
    /// Texts.
    #[prost(message, tag = "5")]
    StringListValue(StringListValue),
}

/// A list of texts.
#[derive(Clone, PartialEq, prost::Message)]
pub struct StringListValue {
    /// The texts.
    #[prost(string, repeated, tag = "1")]
    pub values: Vec<String>,
}

/// Answer to `CloseSession`.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct CloseSessionResult {
    /// See [`CloseSessionStatus`].
    #[prost(enumeration = "CloseSessionStatus", tag = "1")]
    pub status: i32,
}

/// What became of the session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum CloseSessionStatus {
    /// Not known.
    Unspecified = 0,
    /// It has ended.
    Closed = 1,
    /// It is ending.
    Closing = 2,
    /// It cannot be ended.
    NotCloseable = 3,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(session: &Session, name: &str, value: Option<OptionValue>) -> SetSessionOptionsResult {
        let value = SessionOptionValue {
            option_value: value,
        };
        let request = SetSessionOptionsRequest {
            session_options: HashMap::from([(name.to_owned(), value)]),
        };
        session.set(request, |schema| schema == "reports")
    }

    #[test]
    fn options_take_effect_or_are_refused_by_name() {
        let session = Session::new("demo".into(), "test");
        let text = |text: &str| Some(OptionValue::StringValue(text.to_owned()));
        assert!(
            set(&session, "catalog", text("headwater"))
                .errors
                .is_empty()
        );
        assert!(set(&session, "schema", text("reports")).errors.is_empty());
        assert_eq!(session.schema(), "reports");
        assert_eq!(
            set(&session, "catalog", text("other")).errors["catalog"].value(),
            SetErrorValue::InvalidValue
        );
        assert_eq!(
            set(&session, "colour", text("red")).errors["colour"].value(),
            SetErrorValue::InvalidName
        );
        assert!(set(&session, "schema", None).errors.is_empty());
        assert_eq!(session.schema(), "public");
    }

    #[test]
    fn only_old_jdbc_drivers_get_plain_timestamps() {
        for (user_agent, expected) in [
            ("grpc-java-netty/1.71.0", Timestamps::Plain),
            (
                "JDBC Flight SQL Driver 19.0.0 grpc-java-netty/1.76.0",
                Timestamps::Zoned,
            ),
            ("ADBC Flight SQL Driver 1.13.0", Timestamps::Zoned),
            ("", Timestamps::Zoned),
        ] {
            assert_eq!(timestamps_of(user_agent), expected, "{user_agent}");
        }
    }
}
