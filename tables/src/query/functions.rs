//! SQL functions that DataFusion lacks: local days, exact durations, JSON fields.
//!
//! Place on the event's path: the read side; models of the night and ad-hoc SQL have the same ones, so
//! that an analyst can take a report apart. Promise: each is a pure function of its arguments, so that
//! a night can be run again (R-2).

use std::borrow::Cow;
use std::collections::HashMap;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, BooleanArray, Date32Array, Float64Array, Int64Array, StringArray,
    StringBuilder, TimestampMicrosecondArray,
};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Date32Type, Int64Type, TimeUnit, TimestampMicrosecondType};
use chrono::{DateTime, Days, NaiveDate, TimeDelta, TimeZone, Utc};
use chrono_tz::Tz;
use datafusion::common::Result;
use datafusion::logical_expr::{
    ColumnarValue, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility,
};
use serde_json::Value;
use serde_json::value::RawValue;

use crate::promoted::Scalar;

type Body = fn(&[ArrayRef]) -> Result<ArrayRef>;

/// Returns the type of points in time in every table.
pub fn timestamp_type() -> DataType {
    DataType::Timestamp(TimeUnit::Microsecond, Some("+00:00".into()))
}

/// Returns the functions, to be registered in a session:
///
/// * `local_date(time, zone)`: the calendar date at `time` in the IANA zone; UTC where the zone is
///   null or unknown.
/// * `local_midnight(date, zone)`: the first instant of the date in the zone.
/// * `micros_between(from, to)`, `seconds_between(from, to)`: the duration, negative when `to` is
///   earlier; seconds are whole, rounded down.
/// * `json_text(json, key)`: the value of a top-level key as text, null where it is absent or null.
/// * `json_string`, `json_long`, `json_double`, `json_boolean`, `json_timestamp(json, key)`: the same where
///   the value is of that type, null otherwise: what a promoted column holds of it.
pub fn all() -> Vec<ScalarUDF> {
    vec![
        function("local_date", 2, DataType::Date32, local_date),
        function("local_midnight", 2, timestamp_type(), local_midnight),
        function("micros_between", 2, DataType::Int64, micros_between),
        function("seconds_between", 2, DataType::Int64, seconds_between),
        function("json_text", 2, DataType::Utf8, json_text),
        function("json_string", 2, DataType::Utf8, json_string),
        function("json_long", 2, DataType::Int64, json_long),
        function("json_double", 2, DataType::Float64, json_double),
        function("json_boolean", 2, DataType::Boolean, json_boolean),
        function("json_timestamp", 2, timestamp_type(), json_timestamp),
    ]
}

fn function(name: &'static str, arity: usize, returns: DataType, body: Body) -> ScalarUDF {
    ScalarUDF::from(Function {
        name,
        returns,
        signature: Signature::any(arity, Volatility::Immutable),
        body,
    })
}

#[derive(Debug)]
struct Function {
    name: &'static str,
    returns: DataType,
    signature: Signature,
    body: Body,
}

// The name identifies the function; comparing function pointers means nothing.
impl PartialEq for Function {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

impl Eq for Function {}

impl Hash for Function {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.name.hash(state);
    }
}

impl ScalarUDFImpl for Function {
    fn name(&self) -> &str {
        self.name
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _arguments: &[DataType]) -> Result<DataType> {
        Ok(self.returns.clone())
    }

    fn invoke_with_args(&self, arguments: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let scalar = arguments
            .args
            .iter()
            .all(|value| matches!(value, ColumnarValue::Scalar(_)));
        let rows = if scalar { 1 } else { arguments.number_rows };
        let arrays: Vec<ArrayRef> = arguments
            .args
            .into_iter()
            .map(|value| value.into_array(rows))
            .collect::<Result<_>>()?;
        Ok(ColumnarValue::Array((self.body)(&arrays)?)).and_then(|value| match value {
            ColumnarValue::Array(array) if scalar => Ok(ColumnarValue::Scalar(
                datafusion::common::ScalarValue::try_from_array(&array, 0)?,
            )),
            other => Ok(other),
        })
    }
}

fn times(array: &ArrayRef) -> Result<TimestampMicrosecondArray> {
    let array = cast(array, &timestamp_type())?;
    Ok(array.as_primitive::<TimestampMicrosecondType>().clone())
}

fn texts(array: &ArrayRef) -> Result<StringArray> {
    Ok(cast(array, &DataType::Utf8)?.as_string::<i32>().clone())
}

/// Remembers parsed zones: a batch has few different ones.
#[derive(Default)]
struct Zones(HashMap<String, Tz>);

impl Zones {
    fn get(&mut self, name: Option<&str>) -> Tz {
        let Some(name) = name else { return Tz::UTC };
        if let Some(zone) = self.0.get(name) {
            return *zone;
        }
        let zone = name.parse().unwrap_or(Tz::UTC);
        self.0.insert(name.to_owned(), zone);
        zone
    }
}

fn local_date(arguments: &[ArrayRef]) -> Result<ArrayRef> {
    let times = times(&arguments[0])?;
    let names = texts(&arguments[1])?;
    let mut zones = Zones::default();
    let dates: Date32Array = times
        .iter()
        .zip(names.iter())
        .map(|(time, name)| {
            let time = DateTime::<Utc>::from_timestamp_micros(time?)?;
            let date = time.with_timezone(&zones.get(name)).date_naive();
            Some(Date32Type::from_naive_date(date))
        })
        .collect();
    Ok(Arc::new(dates))
}

fn local_midnight(arguments: &[ArrayRef]) -> Result<ArrayRef> {
    let dates = cast(&arguments[0], &DataType::Date32)?;
    let names = texts(&arguments[1])?;
    let mut zones = Zones::default();
    let times: TimestampMicrosecondArray = dates
        .as_primitive::<Date32Type>()
        .iter()
        .zip(names.iter())
        .map(|(date, name)| {
            let date = Date32Type::to_naive_date_opt(date?)?;
            first_instant(date, zones.get(name)).map(|time| time.timestamp_micros())
        })
        .collect();
    Ok(Arc::new(times.with_timezone("+00:00")))
}

/// The first instant of a date; where a clock change skips midnight it is the first time after it.
fn first_instant(date: NaiveDate, zone: Tz) -> Option<DateTime<Utc>> {
    let mut local = date.and_hms_opt(0, 0, 0)?;
    let next_day = date.checked_add_days(Days::new(1))?;
    while local.date() < next_day {
        if let Some(time) = zone.from_local_datetime(&local).earliest() {
            return Some(time.with_timezone(&Utc));
        }
        local += TimeDelta::minutes(15);
    }
    // A whole day that a zone skipped (Apia, 2011-12-30): the next day begins where it would have.
    first_instant(next_day, zone)
}

fn durations(arguments: &[ArrayRef], unit_micros: i64) -> Result<ArrayRef> {
    let from = times(&arguments[0])?;
    let to = times(&arguments[1])?;
    let durations: Int64Array = from
        .iter()
        .zip(to.iter())
        .map(|(from, to)| Some(to?.checked_sub(from?)?.div_euclid(unit_micros)))
        .collect();
    let durations: ArrayRef = Arc::new(durations);
    debug_assert_eq!(durations.as_primitive::<Int64Type>().len(), from.len());
    Ok(durations)
}

fn micros_between(arguments: &[ArrayRef]) -> Result<ArrayRef> {
    durations(arguments, 1)
}

fn seconds_between(arguments: &[ArrayRef]) -> Result<ArrayRef> {
    durations(arguments, 1_000_000)
}

fn json_text(arguments: &[ArrayRef]) -> Result<ArrayRef> {
    let documents = texts(&arguments[0])?;
    let keys = texts(&arguments[1])?;
    let mut values = StringBuilder::with_capacity(documents.len(), documents.len() * 8);
    for (document, key) in documents.iter().zip(keys.iter()) {
        values.append_option(
            document
                .zip(key)
                .and_then(|(text, key)| json_field(text, key)),
        );
    }
    Ok(Arc::new(values.finish()))
}

/// Reads the value of a key of each document.
fn json_values<T>(
    arguments: &[ArrayRef],
    read: impl Fn(Scalar<'_>) -> Option<T>,
) -> Result<Vec<Option<T>>> {
    let documents = texts(&arguments[0])?;
    let keys = texts(&arguments[1])?;
    let values = documents.iter().zip(keys.iter()).map(|(document, key)| {
        let (document, key) = document.zip(key)?;
        let value: Value = serde_json::from_str(&raw_field(document, key)?).ok()?;
        read(Scalar::from(&value))
    });
    Ok(values.collect())
}

fn json_string(arguments: &[ArrayRef]) -> Result<ArrayRef> {
    let values = json_values(arguments, |value| value.text().map(Cow::into_owned))?;
    Ok(Arc::new(StringArray::from(values)))
}

fn json_long(arguments: &[ArrayRef]) -> Result<ArrayRef> {
    let values = json_values(arguments, |value| value.long())?;
    Ok(Arc::new(Int64Array::from(values)))
}

fn json_double(arguments: &[ArrayRef]) -> Result<ArrayRef> {
    let values = json_values(arguments, |value| value.double())?;
    Ok(Arc::new(Float64Array::from(values)))
}

fn json_boolean(arguments: &[ArrayRef]) -> Result<ArrayRef> {
    let values = json_values(arguments, |value| value.boolean())?;
    Ok(Arc::new(BooleanArray::from(values)))
}

fn json_timestamp(arguments: &[ArrayRef]) -> Result<ArrayRef> {
    let values = json_values(arguments, |value| value.timestamp())?;
    let values = TimestampMicrosecondArray::from(values);
    Ok(Arc::new(values.with_timezone("+00:00")))
}

fn json_field(document: &str, key: &str) -> Option<String> {
    let raw = raw_field(document, key)?;
    if raw == "null" {
        return None;
    }
    if raw.starts_with('"') {
        return serde_json::from_str(&raw).ok();
    }
    Some(raw)
}

/// Returns the JSON text of a top-level key.
fn raw_field(document: &str, key: &str) -> Option<String> {
    // Most documents lack most keys, and a search is far cheaper than a parse. An escaped key is
    // written with a backslash, so only then can the plain search miss it.
    if !document.contains(key) && !document.contains('\\') {
        return None;
    }
    let fields: HashMap<String, &RawValue> = serde_json::from_str(document).ok()?;
    Some(fields.get(key)?.get().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn midnight(date: &str, zone: &str) -> String {
        first_instant(date.parse().unwrap(), zone.parse().unwrap())
            .unwrap()
            .to_rfc3339()
    }

    #[test]
    fn a_local_day_begins_where_the_zone_says() {
        assert_eq!(
            midnight("2026-11-01", "America/New_York"),
            "2026-11-01T04:00:00+00:00"
        );
        assert_eq!(
            midnight("2026-11-02", "America/New_York"),
            "2026-11-02T05:00:00+00:00"
        );
        assert_eq!(
            midnight("2026-11-20", "Asia/Kolkata"),
            "2026-11-19T18:30:00+00:00"
        );
        // Half an hour of daylight saving.
        assert_eq!(
            midnight("2026-07-01", "Australia/Lord_Howe"),
            "2026-06-30T13:30:00+00:00"
        );
        assert_eq!(
            midnight("2026-12-01", "Australia/Lord_Howe"),
            "2026-11-30T13:00:00+00:00"
        );
        // Midnight itself is skipped.
        assert_eq!(
            midnight("2024-04-26", "Africa/Cairo"),
            "2024-04-25T22:00:00+00:00"
        );
        // A day that never was.
        assert_eq!(
            midnight("2011-12-30", "Pacific/Apia"),
            "2011-12-30T10:00:00+00:00"
        );
    }

    #[test]
    fn json_fields_are_text_or_absent() {
        let document = r#"{"a":"x\"y","n":12,"b":true,"z":null,"o":{"a":1}}"#;
        assert_eq!(json_field(document, "a").as_deref(), Some("x\"y"));
        assert_eq!(json_field(document, "n").as_deref(), Some("12"));
        assert_eq!(json_field(document, "b").as_deref(), Some("true"));
        assert_eq!(json_field(document, "z"), None);
        assert_eq!(json_field(document, "missing"), None);
        assert_eq!(json_field("not json a", "a"), None);
    }
}
