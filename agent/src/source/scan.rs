//! Finds single values in the bytes of an event without building a tree: what the privacy rules look
//! at, with its exact place, so that one value can be replaced and every other byte stays.
//!
//! Every copy of a duplicate key is visited, and escapes in keys are understood: the bytes reach the
//! disk, whatever a parser would make of them.

use std::borrow::Cow;
use std::ops::Range;

/// The objects that are looked into.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// The event itself.
    Event,
    /// Its `context`.
    Context,
    /// Its `properties`.
    Properties,
    /// The `device` in its `context`.
    Device,
}

impl Place {
    fn child(self, key: &str) -> Option<Self> {
        match (self, key) {
            (Self::Event, "context") => Some(Self::Context),
            (Self::Event, "properties") => Some(Self::Properties),
            (Self::Context, "device") => Some(Self::Device),
            _ => None,
        }
    }
}

/// Calls `found` with every value of the known objects: where it stands, its key, its bytes' range.
/// Returns `false` when the event is no JSON object; what came before the fault was visited.
pub(crate) fn visit(event: &[u8], mut found: impl FnMut(Place, &str, Range<usize>)) -> bool {
    let mut scanner = Scanner {
        bytes: event,
        at: 0,
    };
    scanner.object(Place::Event, &mut found).is_some()
}

/// Returns the text of a JSON string with its quotes; `None` when it is none.
pub(crate) fn text(token: &[u8]) -> Option<Cow<'_, str>> {
    let inner = token.strip_prefix(b"\"")?.strip_suffix(b"\"")?;
    if inner.contains(&b'\\') {
        serde_json::from_slice(token).ok().map(Cow::Owned)
    } else {
        std::str::from_utf8(inner).ok().map(Cow::Borrowed)
    }
}

/// Returns where the strings of a value stand, quotes included.
pub(crate) fn strings(event: &[u8], value: Range<usize>) -> Vec<Range<usize>> {
    let mut scanner = Scanner {
        bytes: &event[..value.end],
        at: value.start,
    };
    let mut out = Vec::new();
    while let Some(byte) = scanner.peek() {
        let start = scanner.at;
        if byte != b'"' {
            scanner.at += 1;
        } else if scanner.string().is_some() {
            out.push(start..scanner.at);
        } else {
            break;
        }
    }
    out
}

struct Scanner<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Scanner<'a> {
    fn object(
        &mut self,
        place: Place,
        found: &mut impl FnMut(Place, &str, Range<usize>),
    ) -> Option<()> {
        self.take(b'{')?;
        if self.next()? == b'}' {
            return self.take(b'}');
        }
        loop {
            self.next()?;
            let key = text(self.string()?)?;
            self.take(b':')?;
            let first = self.next()?;
            let start = self.at;
            match place.child(&key).filter(|_| first == b'{') {
                Some(child) => self.object(child, found)?,
                None => self.skip_value()?,
            }
            found(place, &key, start..self.at);
            if self.next()? == b'}' {
                return self.take(b'}');
            }
            self.take(b',')?;
        }
    }

    fn peek(&self) -> Option<u8> {
        self.bytes.get(self.at).copied()
    }

    /// Skips white space and returns the byte after it.
    fn next(&mut self) -> Option<u8> {
        while matches!(self.peek()?, b' ' | b'\t' | b'\r' | b'\n') {
            self.at += 1;
        }
        self.peek()
    }

    fn take(&mut self, byte: u8) -> Option<()> {
        let is_it = self.next()? == byte;
        self.at += usize::from(is_it);
        is_it.then_some(())
    }

    /// Takes a string that begins here and returns it with its quotes.
    fn string(&mut self) -> Option<&'a [u8]> {
        let start = self.at;
        if self.peek()? != b'"' {
            return None;
        }
        self.at += 1;
        loop {
            match self.peek()? {
                b'"' => break,
                b'\\' => self.at += 2,
                _ => self.at += 1,
            }
        }
        self.at += 1;
        Some(&self.bytes[start..self.at])
    }

    fn skip_value(&mut self) -> Option<()> {
        let mut depth = 0_usize;
        loop {
            match self.next()? {
                b'"' => {
                    self.string()?;
                }
                b'{' | b'[' => {
                    depth += 1;
                    self.at += 1;
                }
                b'}' | b']' => {
                    depth = depth.checked_sub(1)?;
                    self.at += 1;
                }
                b',' | b':' if depth > 0 => self.at += 1,
                b',' | b':' => return None,
                _ => self.skip_word(),
            }
            if depth == 0 {
                return Some(());
            }
        }
    }

    /// Skips a number, `true`, `false` or `null`.
    fn skip_word(&mut self) {
        while self
            .peek()
            .is_some_and(|byte| !b",:{}[]\" \t\r\n".contains(&byte))
        {
            self.at += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn visited(event: &str) -> Vec<(Place, String, String)> {
        let mut out = Vec::new();
        let whole = visit(event.as_bytes(), |place, key, range| {
            out.push((place, key.to_owned(), event[range].to_owned()));
        });
        assert!(whole, "{event}");
        out
    }

    #[test]
    fn values_are_found_with_their_place() {
        let event = r#" {"a" : 1,"context":{"ip":"1.2.3.4","x":{"ip":[1,{"ip":2}]},"device":{"id":"d"}},
            "\u0063ontext":{"i\u0070":null},"properties":[{"ip":"5"}],"context":"no object","b":-1.5e3}"#;
        let seen = visited(event);
        let at = |place: Place| -> Vec<(&str, &str)> {
            let of = seen.iter().filter(|it| it.0 == place);
            of.map(|(_, key, value)| (key.as_str(), value.as_str()))
                .collect()
        };
        assert_eq!(
            at(Place::Context),
            [
                ("ip", r#""1.2.3.4""#),
                ("x", r#"{"ip":[1,{"ip":2}]}"#),
                ("device", r#"{"id":"d"}"#),
                ("ip", "null"),
            ]
        );
        assert_eq!(at(Place::Device), [("id", r#""d""#)]);
        assert_eq!(at(Place::Properties), []);
        let keys: Vec<&str> = at(Place::Event).into_iter().map(|(key, _)| key).collect();
        assert_eq!(
            keys,
            ["a", "context", "context", "properties", "context", "b"]
        );
    }

    #[test]
    fn what_is_no_object_is_told() {
        for event in [
            "",
            "[]",
            "1",
            "{",
            r#"{"a"}"#,
            r#"{"a":}"#,
            r#"{"a":"x"#,
            r#"{"a":1,}"#,
            r#"{"a":[}"#,
        ] {
            assert!(!visit(event.as_bytes(), |_, _, _| {}), "{event}");
        }
        assert!(visit(b"{}", |_, _, _| {}));
    }

    proptest::proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(proptest::sample::select(br#"{}[]":,\u0 ip1a"#.to_vec()), 0..60)) {
            visit(&bytes, |_, _, range| assert!(range.end <= bytes.len()));
            strings(&bytes, 0..bytes.len());
        }
    }
}
