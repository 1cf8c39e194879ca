//! The part of JSON Schema that a plan may use, compiled once and checked per event.
//!
//! Place on the path: staging checks the `properties` of each planned event. Pure. Promise: a schema
//! that loads is checked whole: a keyword that is not known here is refused at load, never passed
//! over. A violation names the path and the keyword, and no value and no key of the event.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use headwater_protocol::json::{Object, Value};
use serde_json::{Map, Number, Value as Json};

use super::format;

/// Violations that are noted of one event.
pub(crate) const VIOLATIONS_MAX: usize = 16;

/// How deep schemas may be nested.
const DEPTH_MAX: usize = 16;

/// Keywords that say nothing about a value.
const ANNOTATIONS: [&str; 7] = [
    "$schema",
    "$id",
    "$comment",
    "title",
    "description",
    "default",
    "examples",
];

/// Keywords that speak of an object and its properties: what an event's schema may say at its top.
const OF_OBJECTS: [&str; 4] = ["type", "properties", "required", "additionalProperties"];

/// Something in an event that is not as its schema says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// Where, as a JSON path of the schema's own names: `$.properties.rating`.
    pub path: String,
    /// The keyword that is broken.
    pub keyword: &'static str,
    /// What the schema wants.
    pub expected: String,
    /// The type of what is there; `missing` where nothing is.
    pub actual_type: &'static str,
}

impl Violation {
    /// Returns the entry of `property_violations`: what a report groups by.
    pub fn short(&self) -> String {
        format!("{}: {}", self.path, self.keyword)
    }

    /// Returns what is wrong, without the place and the keyword.
    pub fn message(&self) -> String {
        format!("{} expected, {} found", self.expected, self.actual_type)
    }
}

impl std::fmt::Display for Violation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}: {}", self.path, self.keyword, self.message())
    }
}

/// A compiled schema.
#[derive(Debug, Default)]
pub(crate) struct Schema {
    types: Option<Types>,
    /// `enum` and `const`: each holds.
    allowed: Vec<Allowed>,
    bounds: Vec<(Bound, Number)>,
    sizes: Vec<(Size, u64)>,
    format: Option<format::Format>,
    items: Option<Box<Schema>>,
    properties: BTreeMap<String, Schema>,
    required: Vec<String>,
    /// `additionalProperties`; `None` is `true`.
    additional: Option<Additional>,
}

#[derive(Debug)]
struct Allowed {
    keyword: &'static str,
    values: Vec<Json>,
}

#[derive(Debug)]
enum Additional {
    None,
    Like(Box<Schema>),
}

/// Types of JSON that a value may have, as bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Types(u8);

const TYPES: [(&str, u8); 7] = [
    ("null", 1),
    ("boolean", 2),
    ("integer", 4),
    ("number", 8 | 4),
    ("string", 16),
    ("array", 32),
    ("object", 64),
];

impl Types {
    fn of(value: &Value<'_>) -> Self {
        Self(match value {
            Value::Null => 1,
            Value::Bool(_) => 2,
            Value::Number(number) if is_whole(number) => 4,
            Value::Number(_) => 8,
            Value::Text(_) => 16,
            Value::Array(_) => 32,
            Value::Object(_) => 64,
        })
    }

    fn names(self) -> String {
        let named = TYPES.iter().filter(|(name, bits)| {
            self.0 & bits == *bits && !(*name == "integer" && self.0 & 8 != 0)
        });
        let names: Vec<&str> = named.map(|(name, _)| *name).collect();
        names.join(" or ")
    }
}

/// JSON Schema counts 1.0 as an integer.
fn is_whole(number: &Number) -> bool {
    !number.is_f64() || number.as_f64().is_some_and(|it| it.fract() == 0.0)
}

#[derive(Debug, Clone, Copy)]
enum Bound {
    Minimum,
    Maximum,
    ExclusiveMinimum,
    ExclusiveMaximum,
}

impl Bound {
    const ALL: [(&'static str, Self); 4] = [
        ("minimum", Self::Minimum),
        ("maximum", Self::Maximum),
        ("exclusiveMinimum", Self::ExclusiveMinimum),
        ("exclusiveMaximum", Self::ExclusiveMaximum),
    ];

    fn keyword(self) -> &'static str {
        Self::ALL[self as usize].0
    }

    fn holds(self, value: &Number, bound: &Number) -> bool {
        let order = compare(value, bound);
        match self {
            Self::Minimum => order != Ordering::Less,
            Self::Maximum => order != Ordering::Greater,
            Self::ExclusiveMinimum => order == Ordering::Greater,
            Self::ExclusiveMaximum => order == Ordering::Less,
        }
    }
}

/// Compares without losing the digits of large integers.
fn compare(left: &Number, right: &Number) -> Ordering {
    if let (Some(left), Some(right)) = (left.as_i128(), right.as_i128()) {
        return left.cmp(&right);
    }
    let float = |number: &Number| number.as_f64().unwrap_or(f64::NAN);
    float(left)
        .partial_cmp(&float(right))
        .unwrap_or(Ordering::Equal)
}

#[derive(Debug, Clone, Copy)]
enum Size {
    MinLength,
    MaxLength,
    MinItems,
    MaxItems,
}

impl Size {
    const ALL: [(&'static str, Self); 4] = [
        ("minLength", Self::MinLength),
        ("maxLength", Self::MaxLength),
        ("minItems", Self::MinItems),
        ("maxItems", Self::MaxItems),
    ];

    fn keyword(self) -> &'static str {
        Self::ALL[self as usize].0
    }

    /// Says whether the keyword speaks of `value` and it is too short or too long.
    fn is_broken_by(self, value: &Value<'_>, bound: u64) -> bool {
        match (self, value) {
            (Self::MinLength, Value::Text(text)) => (text.chars().count() as u64) < bound,
            (Self::MaxLength, Value::Text(text)) => {
                // Bytes are never fewer than characters.
                text.len() as u64 > bound && text.chars().count() as u64 > bound
            }
            (Self::MinItems, Value::Array(items)) => (items.len() as u64) < bound,
            (Self::MaxItems, Value::Array(items)) => items.len() as u64 > bound,
            _ => false,
        }
    }
}

/// Why a schema cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{path}`: {reason}")]
pub struct SchemaError {
    /// JSON path within the file.
    pub path: String,
    /// What to change.
    pub reason: String,
}

impl SchemaError {
    pub(crate) fn new(path: impl Into<String>, reason: impl Into<String>) -> Self {
        Self {
            path: path.into(),
            reason: reason.into(),
        }
    }
}

impl Schema {
    /// Compiles a schema whose place in its file is `path`.
    ///
    /// # Errors
    /// The first keyword that is unknown or has an impossible value.
    pub(crate) fn compile(value: &Json, path: &str) -> Result<Self, SchemaError> {
        Self::compile_at(value, path, 0)
    }

    /// Compiles the schema of an event's `properties`, which [`Schema::check`] takes: they are always an
    /// object.
    ///
    /// # Errors
    /// As [`Schema::compile`]; also for a keyword that says nothing about an object or its properties,
    /// because nothing would check it.
    pub(crate) fn compile_top(value: &Json, path: &str) -> Result<Self, SchemaError> {
        let schema = Self::compile(value, path)?;
        let object = Types::of(&Value::Object(Object::default()));
        if schema.types.is_some_and(|types| types.0 & object.0 == 0) {
            let reason = "must allow `object`, which the properties of an event are";
            return Err(SchemaError::new(format!("{path}.type"), reason));
        }
        let mut keywords = value.as_object().into_iter().flat_map(Map::keys);
        let is_idle =
            |keyword: &str| !OF_OBJECTS.contains(&keyword) && !ANNOTATIONS.contains(&keyword);
        match keywords.find(|keyword| is_idle(keyword.as_str())) {
            None => Ok(schema),
            Some(keyword) => {
                let reason = "says nothing about the properties of an event, so it would not be checked: write it into the schema of a property";
                Err(SchemaError::new(format!("{path}.{keyword}"), reason))
            }
        }
    }

    fn compile_at(value: &Json, path: &str, depth: usize) -> Result<Self, SchemaError> {
        if depth > DEPTH_MAX {
            let reason = format!("schemas are nested deeper than {DEPTH_MAX}");
            return Err(SchemaError::new(path, reason));
        }
        let object = match value {
            Json::Bool(true) => return Ok(Self::default()),
            Json::Object(object) => object,
            _ => return Err(SchemaError::new(path, "a schema is an object or `true`")),
        };
        let mut schema = Self::default();
        for (keyword, value) in object {
            let path = format!("{path}.{keyword}");
            schema.add(keyword, value, &path, depth)?;
        }
        Ok(schema)
    }

    fn add(
        &mut self,
        keyword: &str,
        value: &Json,
        path: &str,
        depth: usize,
    ) -> Result<(), SchemaError> {
        let wrong = |reason: &str| SchemaError::new(path, reason);
        let nested = |value| Self::compile_at(value, path, depth + 1).map(Box::new);
        if let Some((_, bound)) = Bound::ALL.iter().find(|(name, _)| *name == keyword) {
            let Json::Number(number) = value else {
                return Err(wrong("must be a number"));
            };
            self.bounds.push((*bound, number.clone()));
            return Ok(());
        }
        if let Some((_, size)) = Size::ALL.iter().find(|(name, _)| *name == keyword) {
            let count = value.as_u64();
            let count = count.ok_or_else(|| wrong("must be a whole number from 0"))?;
            self.sizes.push((*size, count));
            return Ok(());
        }
        match keyword {
            "type" => self.types = Some(types(value).ok_or_else(|| {
                wrong("must be one or a list of null, boolean, integer, number, string, array, object")
            })?),
            "enum" => match value {
                Json::Array(values) if !values.is_empty() => {
                    let values = values.clone();
                    self.allowed.push(Allowed { keyword: "enum", values });
                }
                _ => return Err(wrong("must be a list of at least one value")),
            },
            "const" => {
                let values = vec![value.clone()];
                self.allowed.push(Allowed { keyword: "const", values });
            }
            "format" => {
                let name = value.as_str().and_then(format::Format::parse);
                let reason = "must be `date-time`, `date` or `uuid`; others cannot be checked";
                self.format = Some(name.ok_or_else(|| wrong(reason))?);
            }
            "items" => self.items = Some(nested(value)?),
            "additionalProperties" => {
                self.additional = match value {
                    Json::Bool(true) => None,
                    Json::Bool(false) => Some(Additional::None),
                    value => Some(Additional::Like(nested(value)?)),
                }
            }
            "properties" => {
                let object = value.as_object();
                for (name, value) in object.ok_or_else(|| wrong("must be an object"))? {
                    let at = format!("{path}.{name}");
                    let schema = Self::compile_at(value, &at, depth + 1)?;
                    self.properties.insert(name.clone(), schema);
                }
            }
            "required" => {
                let names = value.as_array().into_iter().flatten().map(Json::as_str);
                let names: Option<Vec<&str>> = names.collect();
                let names = names.filter(|_| value.is_array());
                let names = names.ok_or_else(|| wrong("must be a list of names"))?;
                self.required = names.into_iter().map(str::to_owned).collect();
            }
            keyword if ANNOTATIONS.contains(&keyword) => {}
            _ => return Err(wrong("this keyword is not known, so it would not be checked: remove it")),
        }
        Ok(())
    }

    /// Adds what holds for every event, where the schema itself says nothing about the name.
    pub(crate) fn add_common(&mut self, common: &Map<String, Json>) -> Result<(), SchemaError> {
        for (name, value) in common {
            if !self.properties.contains_key(name) {
                let schema = Self::compile(value, &format!("$.common.{name}"))?;
                self.properties.insert(name.clone(), schema);
            }
        }
        Ok(())
    }

    /// Returns what of `object`, whose path is `path`, is not as the schema says, which
    /// [`Schema::compile_top`] has compiled; at most [`VIOLATIONS_MAX`] violations.
    pub(crate) fn check(&self, object: &Object<'_>, path: &str, look: Look) -> Found {
        let mut found = Found {
            look,
            ..Found::default()
        };
        self.check_object(object, &Path::Root(path), &mut found);
        found
    }

    fn check_value(&self, value: &Value<'_>, path: &Path<'_>, found: &mut Found) {
        if found.is_done() {
            return;
        }
        let actual = Types::of(value);
        if let Some(types) = self.types.filter(|types| types.0 & actual.0 == 0) {
            // What is of another type breaks everything else too.
            return found.add(path, "type", || types.names(), type_name(value));
        }
        for allowed in &self.allowed {
            if !allowed.values.iter().any(|it| is_same(it, value)) {
                let expected = || Json::from(allowed.values.clone()).to_string();
                found.add(path, allowed.keyword, expected, type_name(value));
            }
        }
        if let Value::Number(number) = value {
            for (bound, limit) in &self.bounds {
                if !bound.holds(number, limit) {
                    found.add(
                        path,
                        bound.keyword(),
                        || limit.to_string(),
                        type_name(value),
                    );
                }
            }
        }
        for (size, limit) in &self.sizes {
            if size.is_broken_by(value, *limit) {
                found.add(path, size.keyword(), || limit.to_string(), type_name(value));
            }
        }
        match value {
            Value::Text(text) => {
                if let Some(format) = self.format.filter(|format| !format.holds(text)) {
                    found.add(path, "format", || format.name().to_owned(), "string");
                }
            }
            Value::Array(items) => {
                if let Some(schema) = &self.items {
                    let path = Path::Items(path);
                    items
                        .iter()
                        .for_each(|item| schema.check_value(item, &path, found));
                }
            }
            Value::Object(object) => self.check_object(object, path, found),
            _ => {}
        }
    }

    fn check_object(&self, object: &Object<'_>, path: &Path<'_>, found: &mut Found) {
        for name in &self.required {
            if !object.contains_key(name) {
                let path = Path::Property(path, name);
                found.add(&path, "required", || "a value".to_owned(), "missing");
            }
        }
        // Both are in order of the names.
        let mut known = self.properties.iter().peekable();
        for (name, value) in object.iter() {
            // Byte by byte: names differ early.
            let order = |it: &str| it.bytes().cmp(name.bytes());
            while known.next_if(|(it, _)| order(it).is_lt()).is_some() {}
            let before = found.broken;
            match (known.next_if(|(it, _)| *it == name), &self.additional) {
                (Some((name, schema)), _) => {
                    schema.check_value(value, &Path::Property(path, name), found);
                }
                (None, None) if matches!(path, Path::Root(_)) => found.has_unplanned = true,
                (None, None) => {}
                // The name is the event's: it may be anything, so it is not repeated.
                (None, Some(Additional::None)) => {
                    let expected = || "no other property".to_owned();
                    found.add(path, "additionalProperties", expected, type_name(value));
                }
                (None, Some(Additional::Like(schema))) => {
                    schema.check_value(value, &Path::Property(path, "*"), found);
                }
            }
            if matches!(path, Path::Root(_)) && found.broken > before {
                found.blame(name);
            }
        }
    }
}

/// Returns a schema without what only explains it: two schemas of which the same is left check alike.
pub(super) fn unexplained<'a>(schema: &Value<'a>) -> Value<'a> {
    let Value::Object(keywords) = schema else {
        return schema.clone();
    };
    let mut left = Object::default();
    for (keyword, value) in keywords.iter() {
        let value = match keyword {
            _ if ANNOTATIONS.contains(&keyword) => continue,
            "items" | "additionalProperties" => unexplained(value),
            "properties" => each_unexplained(value),
            // Within `enum` and `const` there are values, whatever their keys are called.
            _ => value.clone(),
        };
        left.insert(keyword.to_owned(), value);
    }
    Value::Object(left)
}

/// As [`unexplained`], of schemas by the names of their properties, which may be called anything.
pub(super) fn each_unexplained<'a>(schemas: &Value<'a>) -> Value<'a> {
    let Value::Object(schemas) = schemas else {
        return schemas.clone();
    };
    let mut left = Object::default();
    for (name, schema) in schemas.iter() {
        left.insert(name.to_owned(), unexplained(schema));
    }
    Value::Object(left)
}

fn types(value: &Json) -> Option<Types> {
    let bits = |value: &Json| {
        let name = value.as_str()?;
        let found = TYPES.iter().find(|(known, _)| *known == name);
        found.map(|(_, bits)| *bits)
    };
    match value {
        Json::Array(names) if !names.is_empty() => names
            .iter()
            .map(bits)
            .try_fold(0, |all, bits| Some(all | bits?))
            .map(Types),
        value => bits(value).map(Types),
    }
}

/// Says whether a value of the schema and one of an event are the same; 1 and 1.0 are.
fn is_same(allowed: &Json, value: &Value<'_>) -> bool {
    match (allowed, value) {
        (Json::Null, Value::Null) => true,
        (Json::Bool(left), Value::Bool(right)) => left == right,
        (Json::Number(left), Value::Number(right)) => compare(left, right) == Ordering::Equal,
        (Json::String(left), Value::Text(right)) => left == right,
        (Json::Array(left), Value::Array(right)) => {
            left.len() == right.len()
                && left
                    .iter()
                    .zip(right)
                    .all(|(left, right)| is_same(left, right))
        }
        (Json::Object(left), Value::Object(right)) => {
            left.len() == right.iter().count()
                && right
                    .iter()
                    .all(|(key, right)| left.get(key).is_some_and(|left| is_same(left, right)))
        }
        _ => false,
    }
}

pub(super) fn type_name(value: &Value<'_>) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(number) if is_whole(number) => "integer",
        Value::Number(_) => "number",
        Value::Text(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

/// A place in an event, written out only when something is wrong there.
enum Path<'a> {
    Root(&'a str),
    Property(&'a Path<'a>, &'a str),
    Items(&'a Path<'a>),
}

impl std::fmt::Display for Path<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Root(path) => f.write_str(path),
            Self::Property(parent, name) => write!(f, "{parent}.{name}"),
            Self::Items(parent) => write!(f, "{parent}[]"),
        }
    }
}

/// How much of an event is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Look {
    /// Enough to note [`VIOLATIONS_MAX`] violations; the rest is passed over.
    #[default]
    UntilFull,
    /// All of it, so that no property at fault is passed over.
    AtAll,
}

/// What a check has found.
#[derive(Debug, Default)]
pub(crate) struct Found {
    /// What is not as the schema says.
    pub(crate) violations: Vec<Violation>,
    /// Whether the object has properties that the schema does not speak of.
    pub(crate) has_unplanned: bool,
    /// The object's own properties in which something is not as the schema says, noted or not; known
    /// after [`Look::AtAll`] only.
    pub(crate) at_fault: Vec<String>,
    look: Look,
    /// Violations, with those that are not noted.
    broken: usize,
}

impl Found {
    fn is_full(&self) -> bool {
        self.violations.len() >= VIOLATIONS_MAX
    }

    fn is_done(&self) -> bool {
        self.look == Look::UntilFull && self.is_full()
    }

    fn blame(&mut self, property: &str) {
        if self.look == Look::AtAll {
            self.at_fault.push(property.to_owned());
        }
    }

    fn add(
        &mut self,
        path: &Path<'_>,
        keyword: &'static str,
        expected: impl FnOnce() -> String,
        actual_type: &'static str,
    ) {
        self.broken += 1;
        if self.is_full() {
            return;
        }
        self.violations.push(Violation {
            path: path.to_string(),
            keyword,
            expected: expected(),
            actual_type,
        });
    }
}

#[cfg(test)]
mod tests;
