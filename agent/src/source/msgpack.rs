//! MessagePack bodies, rewritten once as JSON. Pure: the same bytes always become the same JSON.
//!
//! | MessagePack | JSON |
//! |---|---|
//! | nil, bool, int, str, array | the same |
//! | map | object, keys in their order; integer keys as digits |
//! | float 32, float 64 | shortest number that reads back; not a number and infinities as null |
//! | bin | base64 text |
//! | timestamp (ext −1) | ISO-8601 text in UTC |
//!
//! Everything else (other extensions, text that is not UTF-8, other keys) makes the body unreadable,
//! because where the next event begins is then a guess.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use headwater_protocol::timestamp;
use rmp::Marker;

use super::body_form::{Limits, Refusal};

/// Deepest nesting; deeper JSON would not be read either.
const DEPTH_MAX: usize = 128;

const DAMAGED: Refusal = Refusal::Unreadable("the body is not MessagePack");

/// Returns the events of a body, an array of them or just one, each as JSON.
pub(super) fn events(body: &[u8], limits: Limits) -> Result<Vec<Vec<u8>>, Refusal> {
    let mut reader = Reader {
        rest: body,
        bytes_left: limits.bytes_max,
    };
    let marker = reader.marker()?;
    let length = match marker {
        Marker::FixArray(length) => Some(usize::from(length)),
        Marker::Array16 => Some(reader.length(2)?),
        Marker::Array32 => Some(reader.length(4)?),
        _ => None,
    };
    if length.is_some_and(|length| length > limits.events_max) {
        return Err(Refusal::TooMany);
    }
    let mut events = Vec::new();
    match length {
        None => events.push(reader.event(marker)?),
        Some(length) => {
            for _ in 0..length {
                let marker = reader.marker()?;
                events.push(reader.event(marker)?);
            }
        }
    }
    if reader.rest.is_empty() {
        Ok(events)
    } else {
        Err(DAMAGED)
    }
}

struct Reader<'a> {
    rest: &'a [u8],
    /// Bytes of JSON that may still be written.
    bytes_left: u64,
}

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize) -> Result<&'a [u8], Refusal> {
        let (taken, rest) = self.rest.split_at_checked(length).ok_or(DAMAGED)?;
        self.rest = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Refusal> {
        self.take(N)?.try_into().map_err(|_| DAMAGED)
    }

    fn marker(&mut self) -> Result<Marker, Refusal> {
        Ok(Marker::from_u8(self.array::<1>()?[0]))
    }

    /// Reads an unsigned number of `width` bytes, big endian.
    fn unsigned(&mut self, width: usize) -> Result<u64, Refusal> {
        let bytes = self.take(width)?;
        Ok(bytes
            .iter()
            .fold(0, |number, byte| number << 8 | u64::from(*byte)))
    }

    fn length(&mut self, width: usize) -> Result<usize, Refusal> {
        usize::try_from(self.unsigned(width)?).map_err(|_| DAMAGED)
    }

    /// Reads a signed number of `width` bytes, big endian.
    fn signed(&mut self, width: usize) -> Result<i64, Refusal> {
        let unused_bits = 64 - 8 * width;
        Ok((self.unsigned(width)? << unused_bits).cast_signed() >> unused_bits)
    }

    fn event(&mut self, marker: Marker) -> Result<Vec<u8>, Refusal> {
        let mut out = Vec::new();
        self.value(marker, DEPTH_MAX, &mut out)?;
        self.bytes_left -= out.len() as u64;
        Ok(out)
    }

    fn value(&mut self, marker: Marker, depth: usize, out: &mut Vec<u8>) -> Result<(), Refusal> {
        match marker {
            Marker::Null => out.extend_from_slice(b"null"),
            Marker::True => out.extend_from_slice(b"true"),
            Marker::False => out.extend_from_slice(b"false"),
            Marker::F32 => {
                let number = f32::from_be_bytes(self.array()?);
                write_json(&number, out);
            }
            Marker::F64 => {
                let number = f64::from_be_bytes(self.array()?);
                write_json(&number, out);
            }
            Marker::FixArray(length) => self.items(usize::from(length), depth, out)?,
            Marker::Array16 => self.items_of(2, depth, out)?,
            Marker::Array32 => self.items_of(4, depth, out)?,
            Marker::FixMap(length) => self.entries(usize::from(length), depth, out)?,
            Marker::Map16 => self.entries_of(2, depth, out)?,
            Marker::Map32 => self.entries_of(4, depth, out)?,
            Marker::Bin8 => self.bin(1, out)?,
            Marker::Bin16 => self.bin(2, out)?,
            Marker::Bin32 => self.bin(4, out)?,
            Marker::FixExt4 => self.time(4, out)?,
            Marker::FixExt8 => self.time(8, out)?,
            Marker::Ext8 => {
                let length = self.length(1)?;
                self.time(length, out)?;
            }
            scalar => match self.text(scalar)? {
                Some(text) => write_json(text, out),
                None => out.extend_from_slice(self.integer(scalar)?.as_bytes()),
            },
        }
        if out.len() as u64 > self.bytes_left {
            return Err(Refusal::TooLarge);
        }
        Ok(())
    }

    /// Reads text, `None` when `marker` begins none.
    fn text(&mut self, marker: Marker) -> Result<Option<&'a str>, Refusal> {
        let length = match marker {
            Marker::FixStr(length) => usize::from(length),
            Marker::Str8 => self.length(1)?,
            Marker::Str16 => self.length(2)?,
            Marker::Str32 => self.length(4)?,
            _ => return Ok(None),
        };
        let text = std::str::from_utf8(self.take(length)?).map_err(|_| DAMAGED)?;
        Ok(Some(text))
    }

    fn integer(&mut self, marker: Marker) -> Result<String, Refusal> {
        Ok(match marker {
            Marker::FixPos(number) => number.to_string(),
            Marker::FixNeg(number) => number.to_string(),
            Marker::U8 => self.unsigned(1)?.to_string(),
            Marker::U16 => self.unsigned(2)?.to_string(),
            Marker::U32 => self.unsigned(4)?.to_string(),
            Marker::U64 => self.unsigned(8)?.to_string(),
            Marker::I8 => self.signed(1)?.to_string(),
            Marker::I16 => self.signed(2)?.to_string(),
            Marker::I32 => self.signed(4)?.to_string(),
            Marker::I64 => self.signed(8)?.to_string(),
            _ => return Err(DAMAGED),
        })
    }

    fn items_of(&mut self, width: usize, depth: usize, out: &mut Vec<u8>) -> Result<(), Refusal> {
        let length = self.length(width)?;
        self.items(length, depth, out)
    }

    fn items(&mut self, length: usize, depth: usize, out: &mut Vec<u8>) -> Result<(), Refusal> {
        let depth = depth.checked_sub(1).ok_or(DAMAGED)?;
        out.push(b'[');
        for index in 0..length {
            if index > 0 {
                out.push(b',');
            }
            let marker = self.marker()?;
            self.value(marker, depth, out)?;
        }
        out.push(b']');
        Ok(())
    }

    fn entries_of(&mut self, width: usize, depth: usize, out: &mut Vec<u8>) -> Result<(), Refusal> {
        let length = self.length(width)?;
        self.entries(length, depth, out)
    }

    fn entries(&mut self, length: usize, depth: usize, out: &mut Vec<u8>) -> Result<(), Refusal> {
        let depth = depth.checked_sub(1).ok_or(DAMAGED)?;
        out.push(b'{');
        for index in 0..length {
            if index > 0 {
                out.push(b',');
            }
            let marker = self.marker()?;
            match self.text(marker)? {
                Some(key) => write_json(key, out),
                None => write_json(&self.integer(marker)?, out),
            }
            out.push(b':');
            let marker = self.marker()?;
            self.value(marker, depth, out)?;
        }
        out.push(b'}');
        Ok(())
    }

    fn bin(&mut self, width: usize, out: &mut Vec<u8>) -> Result<(), Refusal> {
        let length = self.length(width)?;
        write_json(&STANDARD.encode(self.take(length)?), out);
        Ok(())
    }

    /// Reads the timestamp extension, of which `length` bytes follow the type.
    fn time(&mut self, length: usize, out: &mut Vec<u8>) -> Result<(), Refusal> {
        const TIMESTAMP: i64 = -1;
        if self.signed(1)? != TIMESTAMP {
            return Err(DAMAGED);
        }
        let (nanoseconds, seconds) = match length {
            4 => (0, self.unsigned(4)?.cast_signed()),
            8 => {
                let both = self.unsigned(8)?;
                (both >> 34, (both & ((1 << 34) - 1)).cast_signed())
            }
            12 => (self.unsigned(4)?, self.signed(8)?),
            _ => return Err(DAMAGED),
        };
        let microseconds = i64::try_from(nanoseconds / 1000).ok();
        let time = seconds
            .checked_mul(1_000_000)
            .zip(microseconds)
            .and_then(|(seconds, micros)| timestamp::format(seconds.checked_add(micros)?));
        write_json(&time.ok_or(DAMAGED)?, out);
        Ok(())
    }
}

fn write_json<T: serde::Serialize + ?Sized>(value: &T, out: &mut Vec<u8>) {
    serde_json::to_writer(out, value).expect("text and numbers always serialise");
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits {
        events_max: 3,
        bytes_max: 200,
    };

    fn read(body: &[u8]) -> Result<Vec<String>, Refusal> {
        let events = events(body, LIMITS)?.into_iter();
        Ok(events
            .map(|event| String::from_utf8(event).unwrap())
            .collect())
    }

    #[test]
    fn every_type_becomes_json() {
        let cases: &[(&[u8], &str)] = &[
            (b"\xc0", "null"),
            (b"\xc2", "false"),
            (b"\xc3", "true"),
            (b"\x07", "7"),
            (b"\xff", "-1"),
            (b"\xcc\xff", "255"),
            (b"\xcd\xff\xff", "65535"),
            (b"\xce\xff\xff\xff\xff", "4294967295"),
            (
                b"\xcf\xff\xff\xff\xff\xff\xff\xff\xff",
                "18446744073709551615",
            ),
            (b"\xd0\x80", "-128"),
            (b"\xd1\x80\x00", "-32768"),
            (b"\xd2\x80\x00\x00\x00", "-2147483648"),
            (
                b"\xd3\x80\x00\x00\x00\x00\x00\x00\x00",
                "-9223372036854775808",
            ),
            (b"\xca\x3d\xcc\xcc\xcd", "0.1"),
            (b"\xcb\x3f\xb9\x99\x99\x99\x99\x99\x9a", "0.1"),
            (b"\xcb\x7f\xf8\x00\x00\x00\x00\x00\x00", "null"),
            (b"\xa3a\"\n", r#""a\"\n""#),
            (b"\xd9\x01a", r#""a""#),
            (b"\xda\x00\x01a", r#""a""#),
            (b"\xdb\x00\x00\x00\x01a", r#""a""#),
            (b"\xc4\x02\x00\xff", r#""AP8=""#),
            (b"\xc5\x00\x01\x00", r#""AA==""#),
            (b"\xc6\x00\x00\x00\x01\x00", r#""AA==""#),
            (b"\x82\xa1b\x01\xa1a\x92\x01\x90", r#"{"b":1,"a":[1,[]]}"#),
            (b"\xde\x00\x01\x05\xdc\x00\x01\x80", r#"{"5":[{}]}"#),
            (b"\xdf\x00\x00\x00\x00", "{}"),
            (
                b"\xd6\xff\x69\x55\xb9\x00",
                r#""2026-01-01T00:00:00.000000Z""#,
            ),
            (
                b"\xd7\xff\x1d\xcd\x65\x00\x69\x55\xb9\x00",
                r#""2026-01-01T00:00:00.125000Z""#,
            ),
            (
                b"\xc7\x0c\xff\x07\x73\x59\x40\xff\xff\xff\xff\xff\xff\xff\xff",
                r#""1969-12-31T23:59:59.125000Z""#,
            ),
        ];
        for (body, json) in cases {
            assert_eq!(read(body).unwrap(), [*json], "{body:02x?}");
        }
    }

    #[test]
    fn an_array_is_several_events_and_anything_else_is_one() {
        assert_eq!(
            read(b"\x92\x80\x81\xa1a\x01").unwrap(),
            ["{}", r#"{"a":1}"#]
        );
        assert_eq!(read(b"\xdc\x00\x01\x80").unwrap(), ["{}"]);
        assert_eq!(read(b"\xdd\x00\x00\x00\x01\x80").unwrap(), ["{}"]);
        assert_eq!(read(b"\x80").unwrap(), ["{}"]);
        assert!(read(b"\x90").unwrap().is_empty());
    }

    #[test]
    fn damage_and_excess_are_refused() {
        let deep = [vec![0x91; 200], vec![0xc0]].concat();
        let cases: &[(&[u8], Refusal)] = &[
            (b"", DAMAGED),
            (b"\xc1", DAMAGED),
            (b"\x92\x80", DAMAGED),
            (b"\x80\x80", DAMAGED),
            (b"\xa3ab", DAMAGED),
            (b"\xa1\xff", DAMAGED),
            (b"\x81\xc0\x01", DAMAGED),
            (b"\xd6\x05\x00\x00\x00\x00", DAMAGED),
            (b"\xd4\xff\x00", DAMAGED),
            (
                b"\xc7\x0c\xff\x00\x00\x00\x00\x7f\xff\xff\xff\xff\xff\xff\xff",
                DAMAGED,
            ),
            (b"\xdb\xff\xff\xff\xffa", DAMAGED),
            (b"\xdf\xff\xff\xff\xff\x01", DAMAGED),
            (&deep, DAMAGED),
            (b"\x94\x80\x80\x80\x80", Refusal::TooMany),
            (b"\xdd\xff\xff\xff\xff\x80", Refusal::TooMany),
            (
                &[&[0x92, 0xdc, 0, 60], [0xc0; 60].as_slice(), &[0]].concat(),
                Refusal::TooLarge,
            ),
        ];
        for (body, refusal) in cases {
            assert_eq!(read(body), Err(*refusal), "{body:02x?}");
        }
    }
}
