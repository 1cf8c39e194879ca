//! The body of a batch: records one after the other, compressed with zstd.

use crate::frame::{BatchHeader, Codec};
use crate::record::Record;
use crate::skip::skip_value;

/// zstd level on the wire. 1: three quarters of the gain of level 3 at half of its CPU time.
const ZSTD_LEVEL: i32 = 1;

/// Why a batch body cannot be read. The sender must not send the same bytes again.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    /// The body is not zstd, or longer than its header says.
    #[error("batch body does not decompress to the `{expected}` bytes of its header")]
    Compression {
        /// Length that the header gives.
        expected: u64,
        /// What the decoder said.
        #[source]
        source: std::io::Error,
    },
    /// The body holds another number of records than its header says.
    #[error("batch body holds `{got}` records, its header says `{expected}`")]
    Count {
        /// Number in the header.
        expected: u32,
        /// Number found; counting ends with the first one too many.
        got: u32,
    },
}

/// Compresses `records` (encoded one after the other).
///
/// # Errors
/// Only when zstd cannot allocate.
pub fn compress(records: &[u8]) -> std::io::Result<Vec<u8>> {
    zstd::bulk::compress(records, ZSTD_LEVEL)
}

/// Returns the encoded records of a body. Never allocates more than `header.body_bytes`, which the
/// caller has checked against its limit.
///
/// # Errors
/// [`BodyError::Compression`] when the body is damaged or larger than announced.
pub fn decompress(header: &BatchHeader, body: &[u8]) -> Result<Vec<u8>, BodyError> {
    let expected = header.body_bytes;
    let failed = |source| BodyError::Compression { expected, source };
    match header.codec {
        Codec::Zstd => {
            let capacity =
                usize::try_from(expected).map_err(|error| failed(std::io::Error::other(error)))?;
            let records = zstd::bulk::decompress(body, capacity).map_err(failed)?;
            if records.len() as u64 == expected {
                Ok(records)
            } else {
                Err(failed(std::io::Error::other("shorter than announced")))
            }
        }
    }
}

/// Most bytes of a record that [`substitute`] carries.
const SUBSTITUTE_BYTES_MAX: usize = 60 * 1024;

/// Returns what takes the place of a record that no collector takes: its first 60 KiB as MessagePack
/// binary. That is no record, so it is quarantined under the record's sequence.
pub fn substitute(record: &[u8]) -> Vec<u8> {
    let kept = &record[..record.len().min(SUBSTITUTE_BYTES_MAX)];
    let mut out = Vec::with_capacity(kept.len() + 5);
    rmp_serde::encode::write(&mut out, serde_bytes::Bytes::new(kept))
        .expect("writing to memory cannot fail");
    out
}

/// One place in a body: a record, or the bytes that should have been one.
#[derive(Debug, PartialEq)]
pub enum Slot<'a> {
    /// A record.
    Record(Box<Record>),
    /// MessagePack that is no record; it takes its sequence all the same.
    Undecodable(&'a [u8]),
}

/// Splits an uncompressed body into its slots; decodes each when it is asked for. A value that is not a
/// record becomes [`Slot::Undecodable`], and so does the rest of a body that is not MessagePack at all,
/// so that one bad record never stops the others. Never makes more slots than the header says: a body can
/// hold a value in every byte.
///
/// # Errors
/// [`BodyError::Count`] when the number of slots is not the header's.
pub fn slots<'a>(
    header: &BatchHeader,
    records: &'a [u8],
) -> Result<impl Iterator<Item = Slot<'a>> + use<'a>, BodyError> {
    let wrong = |got| BodyError::Count {
        expected: header.count,
        got,
    };
    let count = header.count as usize;
    let mut values = Vec::new();
    let mut rest = records;
    while !rest.is_empty() {
        if values.len() >= count {
            return Err(wrong(header.count.saturating_add(1)));
        }
        let Some(after) = skip_value(rest) else {
            break;
        };
        values.push(&rest[..rest.len() - after.len()]);
        rest = after;
    }
    if rest.is_empty() && values.len() != count {
        return Err(wrong(u32::try_from(values.len()).unwrap_or(u32::MAX)));
    }
    // The end of the value at which `rest` begins is unknown: it fills the missing slots.
    let missing = count - values.len();
    let unreadable = std::iter::once(rest).chain(std::iter::repeat(&[][..]));
    let decoded = values.into_iter().map(|value| match Record::decode(value) {
        Ok(record) => Slot::Record(Box::new(record)),
        Err(_) => Slot::Undecodable(value),
    });
    Ok(decoded.chain(unreadable.take(missing).map(Slot::Undecodable)))
}
