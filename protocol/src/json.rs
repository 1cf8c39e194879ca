//! The JSON of events: read without copying what needs no copy, written canonically.
//!
//! Place on the path: an [`Event`](crate::Event) holds its properties and context in this form between
//! the body of its record and the columns of its row. `serde_json` reads the text and writes numbers
//! and escapes; its own tree would copy every key and every text of every event. Promise: the same
//! texts are JSON here and there, and they mean the same values.

use std::borrow::Cow;
use std::fmt::{self, Write as _};
use std::ops::{Deref, DerefMut, Range};

use serde::de::{Deserialize, DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::Number;

/// A JSON value; texts are borrowed unless they hold escapes.
#[derive(Debug, Clone, PartialEq)]
pub enum Value<'a> {
    /// `null`.
    Null,
    /// `true` or `false`.
    Bool(bool),
    /// Whole numbers of 64 bits as they are, others as the nearest double.
    Number(Number),
    /// A text.
    Text(Cow<'a, str>),
    /// A list.
    Array(Vec<Value<'a>>),
    /// An object.
    Object(Object<'a>),
}

impl<'a> Value<'a> {
    /// Reads one JSON text.
    ///
    /// # Errors
    /// Where `serde_json` finds none: also text that is not UTF-8, and what is nested too deeply.
    pub fn parse(text: &'a [u8]) -> Result<Self, serde_json::Error> {
        // Checked once as a whole, not text by text.
        let text = std::str::from_utf8(text).map_err(serde_json::Error::custom)?;
        serde_json::from_str(text)
    }

    /// Returns the text, `None` for another type.
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            _ => None,
        }
    }

    /// Returns the truth value, `None` for another type.
    pub fn as_bool(&self) -> Option<bool> {
        match self {
            Self::Bool(value) => Some(*value),
            _ => None,
        }
    }

    /// Returns the whole number, `None` for another type and for what 64 bits do not hold.
    pub fn as_i64(&self) -> Option<i64> {
        self.as_number().and_then(Number::as_i64)
    }

    /// Returns the number, `None` for another type.
    pub fn as_number(&self) -> Option<&Number> {
        match self {
            Self::Number(number) => Some(number),
            _ => None,
        }
    }

    /// Returns the object, `None` for another type.
    pub fn as_object(&self) -> Option<&Object<'a>> {
        match self {
            Self::Object(object) => Some(object),
            _ => None,
        }
    }

    fn write(&self, out: &mut String) {
        match self {
            Self::Null => out.push_str("null"),
            Self::Bool(true) => out.push_str("true"),
            Self::Bool(false) => out.push_str("false"),
            Self::Number(number) => {
                write!(out, "{number}").expect("writing to memory cannot fail");
            }
            Self::Text(text) => write_text(text, out),
            Self::Array(items) => {
                out.push('[');
                for (index, item) in items.iter().enumerate() {
                    if index > 0 {
                        out.push(',');
                    }
                    item.write(out);
                }
                out.push(']');
            }
            Self::Object(object) => object.write(out, |_, _| {}),
        }
    }
}

impl<'a> From<&'a str> for Value<'a> {
    fn from(text: &'a str) -> Self {
        Self::Text(Cow::Borrowed(text))
    }
}

/// A JSON object: its entries in order of their keys, each key once. Of a key that comes twice the last
/// value counts.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Object<'a> {
    entries: Vec<Entry<'a>>,
}

/// Entries up to which looking at all is faster than a search: most differ in length already.
const SCANNED_MAX: usize = 24;

type Entry<'a> = (Cow<'a, str>, Value<'a>);

impl<'a> Object<'a> {
    fn of(mut entries: Vec<Entry<'a>>) -> Self {
        // Stable: the last of equal keys stays the last. Byte by byte, because keys differ early.
        entries.sort_by(|(left, _), (right, _)| left.bytes().cmp(right.bytes()));
        entries.dedup_by(|later, earlier| {
            let is_same = later.0 == earlier.0;
            if is_same {
                std::mem::swap(later, earlier);
            }
            is_same
        });
        Self { entries }
    }

    fn place(&self, key: &str) -> Result<usize, usize> {
        self.entries
            .binary_search_by(|(at, _)| at.as_ref().cmp(key))
    }

    /// Returns the value of a key.
    pub fn get(&self, key: &str) -> Option<&Value<'a>> {
        if self.entries.len() > SCANNED_MAX {
            return self.place(key).ok().map(|at| &self.entries[at].1);
        }
        // Keys of one length mostly differ in their first byte.
        let first = key.as_bytes().first();
        let mut entries = self.entries.iter();
        entries
            .find(|(at, _)| at.len() == key.len() && at.as_bytes().first() == first && at == key)
            .map(|(_, value)| value)
    }

    /// Says whether there is a value of this key, if only null.
    pub fn contains_key(&self, key: &str) -> bool {
        self.get(key).is_some()
    }

    /// Takes the value of a key out.
    pub fn remove(&mut self, key: &str) -> Option<Value<'a>> {
        self.place(key).ok().map(|at| self.entries.remove(at).1)
    }

    /// Sets the value of a key.
    pub fn insert(&mut self, key: impl Into<Cow<'a, str>>, value: Value<'a>) {
        let key = key.into();
        match self.place(&key) {
            Ok(at) => self.entries[at].1 = value,
            Err(at) => self.entries.insert(at, (key, value)),
        }
    }

    /// Returns the entries in order of their keys.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Value<'a>)> {
        self.entries
            .iter()
            .map(|(key, value)| (key.as_ref(), value))
    }

    /// Returns the object as canonical JSON: keys sorted at every level, no white space.
    pub fn to_canonical(&self) -> String {
        let mut out = String::with_capacity(512);
        self.write(&mut out, |_, _| {});
        out
    }

    /// Appends the object as canonical JSON; tells `written` each key and where in `out` its value stands.
    pub(crate) fn write(&self, out: &mut String, mut written: impl FnMut(&str, Range<usize>)) {
        out.push('{');
        for (index, (key, value)) in self.entries.iter().enumerate() {
            if index > 0 {
                out.push(',');
            }
            write_text(key, out);
            out.push(':');
            let start = out.len();
            value.write(out);
            written(key, start..out.len());
        }
        out.push('}');
    }
}

/// An object that knows its canonical text where somebody had to write it already.
#[derive(Debug, Clone, Default)]
pub struct Document<'a> {
    object: Object<'a>,
    text: Option<String>,
}

impl<'a> Document<'a> {
    /// Takes an object whose canonical text is known.
    pub(crate) fn written(object: Object<'a>, text: &str) -> Self {
        Self {
            object,
            text: Some(text.to_owned()),
        }
    }

    /// Returns the object as [`Object::to_canonical`] writes it.
    pub fn canonical(&self) -> Cow<'_, str> {
        match &self.text {
            Some(text) => Cow::Borrowed(text),
            None => Cow::Owned(self.object.to_canonical()),
        }
    }
}

impl<'a> From<Object<'a>> for Document<'a> {
    fn from(object: Object<'a>) -> Self {
        Self { object, text: None }
    }
}

impl<'a> Deref for Document<'a> {
    type Target = Object<'a>;

    fn deref(&self) -> &Object<'a> {
        &self.object
    }
}

impl DerefMut for Document<'_> {
    /// Forgets the text: the object may become another one.
    fn deref_mut(&mut self) -> &mut Self::Target {
        self.text = None;
        &mut self.object
    }
}

impl PartialEq for Document<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.object == other.object
    }
}

fn write_text(text: &str, out: &mut String) {
    // No early end, so that the compiler looks at many bytes at once.
    let needs_escapes = text.bytes().fold(false, |any, byte| {
        any | (byte < b' ') | matches!(byte, b'"' | b'\\')
    });
    if needs_escapes {
        out.push_str(&serde_json::to_string(text).expect("writing to memory cannot fail"));
    } else {
        out.push('"');
        out.push_str(text);
        out.push('"');
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Value<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ValueVisitor)
    }
}

struct ValueVisitor;

impl<'de> Visitor<'de> for ValueVisitor {
    type Value = Value<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Value<'de>, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value<'de>, E> {
        Ok(Value::Bool(value))
    }

    fn visit_u64<E>(self, number: u64) -> Result<Value<'de>, E> {
        Ok(Value::Number(number.into()))
    }

    fn visit_i64<E>(self, number: i64) -> Result<Value<'de>, E> {
        Ok(Value::Number(number.into()))
    }

    fn visit_f64<E>(self, number: f64) -> Result<Value<'de>, E> {
        Ok(Number::from_f64(number).map_or(Value::Null, Value::Number))
    }

    fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Value<'de>, E> {
        Ok(Value::Text(Cow::Borrowed(text)))
    }

    fn visit_str<E>(self, text: &str) -> Result<Value<'de>, E> {
        Ok(Value::Text(Cow::Owned(text.to_owned())))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value<'de>, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = seq.next_element()? {
            items.push(item);
        }
        Ok(Value::Array(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value<'de>, A::Error> {
        let mut entries = Vec::with_capacity(8);
        while let Some(key) = map.next_key_seed(Key)? {
            entries.push((key, map.next_value()?));
        }
        Ok(Value::Object(Object::of(entries)))
    }
}

/// Reads a key: serde's own `Cow` is always a copy.
struct Key;

impl<'de> DeserializeSeed<'de> for Key {
    type Value = Cow<'de, str>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Cow<'de, str>, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl<'de> Visitor<'de> for Key {
    type Value = Cow<'de, str>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Cow<'de, str>, E> {
        Ok(Cow::Borrowed(text))
    }

    fn visit_str<E>(self, text: &str) -> Result<Cow<'de, str>, E> {
        Ok(Cow::Owned(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What serde_json makes of a text, in canonical form; its map is sorted.
    fn reference(text: &[u8]) -> Option<String> {
        let value: serde_json::Value = serde_json::from_slice(text).ok()?;
        Some(serde_json::to_string(&value).unwrap())
    }

    fn ours(text: &[u8]) -> Option<String> {
        let mut out = String::new();
        Value::parse(text).ok()?.write(&mut out);
        Some(out)
    }

    #[test]
    fn texts_are_read_and_written_as_serde_json_does() {
        let deep = |levels: usize| format!("{}{}", "[".repeat(levels), "]".repeat(levels));
        let texts = [
            r#"{"b":1,"a":{"d":[1,2.50,-0.0,1e300,18446744073709551615],"c":null},"b":2}"#,
            r#"{"\u0061":"x","a":"y","z":"a\"b\\c\u0000\n\u00e9\ud83d\ude00","é":true}"#,
            "{\"\u{7f}\u{80}\":\"\u{2028}\"}",
            r#"[{},[],"",false,-9223372036854775808,123456789012345678901234567890]"#,
            r#"{"a":1,"a":null,"a":{"x":1}}"#,
            r#""\ud800""#,
            "\"\u{1}\"",
            "1e999",
            "{\"a\":1} x",
            "",
            &deep(100),
            &deep(200),
        ];
        for text in texts {
            assert_eq!(ours(text.as_bytes()), reference(text.as_bytes()), "{text}");
        }
        assert_eq!(ours(b"\"\xff\""), None);
        assert_eq!(reference(b"\"\xff\""), None);
        assert!(ours(texts[0].as_bytes()).is_some_and(|text| text.ends_with(r#""b":2}"#)));
    }

    #[test]
    fn an_object_keeps_its_order_whatever_is_done_to_it() {
        let value = Value::parse(br#"{"c":1,"a":2}"#).unwrap();
        let mut object = value.as_object().unwrap().clone();
        object.insert("b", "x".into());
        object.insert("a", Value::Null);
        assert_eq!(object.to_canonical(), r#"{"a":null,"b":"x","c":1}"#);
        assert_eq!(object.remove("c").and_then(|it| it.as_i64()), Some(1));
        assert!(object.contains_key("a") && !object.contains_key("c"));
        assert_eq!(object.get("b").and_then(Value::as_str), Some("x"));
    }

    #[test]
    fn a_document_forgets_its_text_when_it_may_change() {
        let object = Object::default();
        let mut document = Document::written(object.clone(), "known");
        assert_eq!(document.canonical(), "known");
        assert_eq!(document, Document::from(object));
        document.insert("a", Value::Null);
        assert_eq!(document.canonical(), r#"{"a":null}"#);
    }

    proptest! {
        #[test]
        fn any_object_is_what_serde_json_makes_of_it(
            entries in prop::collection::vec((".{0,3}", ".{0,8}", any::<f64>(), any::<i64>()), 0..12),
        ) {
            let mut text = String::from("{");
            for (n, (key, value, float, whole)) in entries.iter().enumerate() {
                let separator = if n > 0 { "," } else { "" };
                let key = serde_json::to_string(key).unwrap();
                let value = serde_json::to_string(&(value, float, whole)).unwrap();
                text.push_str(&format!("{separator}{key}:{value}"));
            }
            text.push('}');
            let expected = reference(text.as_bytes());
            prop_assert!(expected.is_some());
            prop_assert_eq!(ours(text.as_bytes()), expected);
        }
    }
}
