//! Finds the end of a MessagePack value without understanding it.
//!
//! Place on the path: a value in a body that is no record is cut out here. Promise: no recursion, however
//! deep a value is nested, and no memory, whatever length it claims.

use rmp::Marker;

/// Returns what follows the first MessagePack value of `bytes`; `None` when it has no end there.
pub(crate) fn skip_value(bytes: &[u8]) -> Option<&[u8]> {
    let mut rest = bytes;
    let mut values = 1_u64;
    while values > 0 {
        let (marker, after) = rest.split_first()?;
        let (length, inner, after) = content(Marker::from_u8(*marker), after)?;
        rest = after.get(usize::try_from(length).ok()?..)?;
        values = (values - 1).checked_add(inner)?;
    }
    Some(rest)
}

/// Returns how many bytes belong to the value behind its marker and length, how many values stand in it,
/// and what follows the length.
fn content(marker: Marker, after: &[u8]) -> Option<(u64, u64, &[u8])> {
    let bytes = |length: u64| Some((length, 0, after));
    let long = |width: usize, more: u64| {
        let (length, after) = number(after, width)?;
        Some((length + more, 0, after))
    };
    let many = |width: usize, each: u64| {
        let (count, after) = number(after, width)?;
        Some((0, count * each, after))
    };
    match marker {
        Marker::FixPos(_) | Marker::FixNeg(_) | Marker::Null | Marker::True | Marker::False => {
            bytes(0)
        }
        Marker::U8 | Marker::I8 => bytes(1),
        Marker::U16 | Marker::I16 | Marker::FixExt1 => bytes(2),
        Marker::FixExt2 => bytes(3),
        Marker::U32 | Marker::I32 | Marker::F32 => bytes(4),
        Marker::FixExt4 => bytes(5),
        Marker::U64 | Marker::I64 | Marker::F64 => bytes(8),
        Marker::FixExt8 => bytes(9),
        Marker::FixExt16 => bytes(17),
        Marker::FixStr(length) => bytes(u64::from(length)),
        Marker::Str8 | Marker::Bin8 => long(1, 0),
        Marker::Str16 | Marker::Bin16 => long(2, 0),
        Marker::Str32 | Marker::Bin32 => long(4, 0),
        // One more: the type of the extension.
        Marker::Ext8 => long(1, 1),
        Marker::Ext16 => long(2, 1),
        Marker::Ext32 => long(4, 1),
        Marker::FixArray(count) => Some((0, u64::from(count), after)),
        Marker::Array16 => many(2, 1),
        Marker::Array32 => many(4, 1),
        Marker::FixMap(count) => Some((0, u64::from(count) * 2, after)),
        Marker::Map16 => many(2, 2),
        Marker::Map32 => many(4, 2),
        Marker::Reserved => None,
    }
}

/// Reads a big-endian number of `width` bytes.
fn number(bytes: &[u8], width: usize) -> Option<(u64, &[u8])> {
    let (number, after) = bytes.split_at_checked(width)?;
    let number = number
        .iter()
        .fold(0, |sum, byte| sum << 8 | u64::from(*byte));
    Some((number, after))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// What serde makes of it; deep values would overflow its stack.
    fn skip_as_serde(bytes: &[u8]) -> Option<&[u8]> {
        let mut reader = bytes;
        let mut decoder = rmp_serde::Deserializer::new(&mut reader);
        <serde::de::IgnoredAny as serde::Deserialize>::deserialize(&mut decoder).ok()?;
        Some(reader)
    }

    #[test]
    fn every_kind_of_value_ends_where_serde_says() {
        for marker in 0..=u8::MAX {
            // Enough for whatever follows: lengths of at most 3, values of one byte.
            let mut bytes = vec![marker, 0, 0, 0, 3];
            bytes.resize(1024, 1);
            let ours = skip_value(&bytes).map(<[u8]>::len);
            let theirs = skip_as_serde(&bytes).map(<[u8]>::len);
            // An extension's content is asked for by serde, so that it cannot ignore one.
            if !matches!(marker, 0xc7..=0xc9 | 0xd4..=0xd8) {
                assert_eq!(ours, theirs, "{marker:#x}");
            }
        }
        for (marker, length) in [(0xd4, 3), (0xd5, 4), (0xd6, 6), (0xd7, 10), (0xd8, 18)] {
            let rest = skip_value(&[[marker].as_slice(), &[0; 20]].concat()).map(<[u8]>::len);
            assert_eq!(rest, Some(21 - length), "{marker:#x}");
        }
        for (bytes, rest) in [(&[0xc7, 2, 1, 0, 0, 9][..], 1), (&[0xc8, 0, 0, 1, 9], 1)] {
            assert_eq!(skip_value(bytes).map(<[u8]>::len), Some(rest));
        }
    }

    #[test]
    fn depth_and_claimed_lengths_cost_nothing() {
        let mut deep = vec![0x91; 1 << 20];
        assert_eq!(skip_value(&deep), None);
        deep.extend([0xc0, 7]);
        assert_eq!(skip_value(&deep), Some(&[7][..]));
        for marker in [0xdd, 0xdf, 0xdb, 0xc6, 0xc9] {
            assert_eq!(skip_value(&[marker, 0xff, 0xff, 0xff, 0xff, 0]), None);
        }
        let nested = [0xdf, 0xff, 0xff, 0xff, 0xff].repeat(1000);
        assert_eq!(skip_value(&nested), None);
        assert_eq!(skip_value(&[]), None);
    }

    proptest! {
        #[test]
        fn what_serde_reads_to_its_end_ends_there(bytes in prop::collection::vec(any::<u8>(), 1..64)) {
            if let Some(rest) = skip_as_serde(&bytes) {
                prop_assert_eq!(skip_value(&bytes), Some(rest));
            }
        }
    }
}
