//! Keys and values of a generation: a few events per key, none of them large.
//!
//! Pages of the store hold about sixteen values, and a page above 128 KiB would go to a file that
//! the store never syncs. So a value never exceeds [`VALUE_BYTES_MAX`]: small events share a key,
//! a large event is cut into pieces over several keys.
//!
//! ```text
//! key    position of the first event, u64 big-endian | piece, u16 big-endian (0 unless cut)
//! value  CRC-32 over key and the rest of the value, u32 | kind, u8 | number, u16 | payload
//! kind 1 number = events;  payload = (length u32, record)…
//! kind 2 number = pieces of this event;  payload = the bytes of this piece
//! ```

/// Place of an event in the buffer: counts up from 1 for as long as the directory lives. Epochs and
/// sequences are a view on positions (see `epochs`).
pub type Position = u64;

/// Most events that share a key. Eight: measured to be half the cost of one key per event.
pub(super) const EVENTS_PER_KEY_MAX: usize = 8;

/// Largest value, in bytes; × 17 stays far below the 128 KiB at which the store would leave its log.
pub(super) const VALUE_BYTES_MAX: usize = 5_000;

/// Length of a key, in bytes.
pub(super) const KEY_BYTES: usize = 10;

const HEADER_BYTES: usize = 7;
const PIECE_BYTES_MAX: usize = VALUE_BYTES_MAX - HEADER_BYTES;
const KIND_EVENTS: u8 = 1;
const KIND_PIECE: u8 = 2;

/// Largest record that can be stored, in bytes: 65535 pieces.
pub const RECORD_BYTES_MAX: usize = PIECE_BYTES_MAX * u16::MAX as usize;

/// A key of the store.
pub(super) type Key = [u8; KEY_BYTES];

/// Returns the key of a piece (0 for shared keys).
pub(super) fn key(position: Position, piece: u16) -> Key {
    let mut key = [0; KEY_BYTES];
    key[..8].copy_from_slice(&position.to_be_bytes());
    key[8..].copy_from_slice(&piece.to_be_bytes());
    key
}

/// Returns the position inside a key, `None` when the bytes are no key.
pub(super) fn position_of(key: &[u8]) -> Option<Position> {
    let bytes: [u8; 8] = key.get(..8)?.try_into().ok()?;
    (key.len() == KEY_BYTES).then(|| Position::from_be_bytes(bytes))
}

/// Calls `put` with the keys and values of `records`, the first of which stands at `first`.
/// Positions follow each other without holes.
pub(super) fn pack<'a>(
    first: Position,
    records: impl Iterator<Item = &'a [u8]>,
    mut put: impl FnMut(Key, Vec<u8>),
) {
    let mut position = first;
    let mut shared: Vec<&[u8]> = Vec::with_capacity(EVENTS_PER_KEY_MAX);
    let mut shared_bytes = HEADER_BYTES;
    for record in records {
        let entry_bytes = 4 + record.len();
        let fits =
            shared.len() < EVENTS_PER_KEY_MAX && shared_bytes + entry_bytes <= VALUE_BYTES_MAX;
        if !fits && !shared.is_empty() {
            put_events(position, &shared, shared_bytes, &mut put);
            position += shared.len() as u64;
            shared.clear();
            shared_bytes = HEADER_BYTES;
        }
        if HEADER_BYTES + entry_bytes > VALUE_BYTES_MAX {
            put_pieces(position, record, &mut put);
            position += 1;
        } else {
            shared.push(record);
            shared_bytes += entry_bytes;
        }
    }
    if !shared.is_empty() {
        put_events(position, &shared, shared_bytes, &mut put);
    }
}

fn put_events(
    first: Position,
    records: &[&[u8]],
    bytes: usize,
    put: &mut impl FnMut(Key, Vec<u8>),
) {
    let count = u16::try_from(records.len()).expect("at most eight events share a key");
    let mut value = header(bytes, KIND_EVENTS, count);
    for record in records {
        let length = u32::try_from(record.len()).expect("a shared record is below 5 kB");
        value.extend_from_slice(&length.to_be_bytes());
        value.extend_from_slice(record);
    }
    seal_and_put(key(first, 0), value, put);
}

fn put_pieces(position: Position, record: &[u8], put: &mut impl FnMut(Key, Vec<u8>)) {
    let total = record.len().div_ceil(PIECE_BYTES_MAX);
    let total = u16::try_from(total).expect("the buffer refuses records above RECORD_BYTES_MAX");
    for (piece, bytes) in (0..total).zip(record.chunks(PIECE_BYTES_MAX)) {
        let mut value = header(HEADER_BYTES + bytes.len(), KIND_PIECE, total);
        value.extend_from_slice(bytes);
        seal_and_put(key(position, piece), value, put);
    }
}

fn header(bytes: usize, kind: u8, number: u16) -> Vec<u8> {
    let mut value = Vec::with_capacity(bytes);
    value.extend_from_slice(&[0; 4]);
    value.push(kind);
    value.extend_from_slice(&number.to_be_bytes());
    value
}

fn seal_and_put(key: Key, mut value: Vec<u8>, put: &mut impl FnMut(Key, Vec<u8>)) {
    assert!(
        value.len() <= VALUE_BYTES_MAX,
        "a larger value would leave the synced log"
    );
    let crc = checksum(&key, &value[4..]);
    value[..4].copy_from_slice(&crc.to_be_bytes());
    put(key, value);
}

fn checksum(key: &[u8], rest: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(key);
    hasher.update(rest);
    hasher.finalize()
}

/// What a key holds.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Chunk<'a> {
    /// Whole records, at the key's position and those after it.
    Events(Vec<&'a [u8]>),
    /// One piece of the record at the key's position.
    Piece {
        /// Number of this piece, from 0.
        piece: u16,
        /// Number of pieces of the record.
        total: u16,
        /// Bytes of the piece.
        bytes: &'a [u8],
    },
}

/// Reads a value; `None` when the checksum or the layout is wrong.
pub(super) fn unpack<'a>(key: &[u8], value: &'a [u8]) -> Option<Chunk<'a>> {
    let (crc, rest) = value.split_first_chunk::<4>()?;
    if key.len() != KEY_BYTES || u32::from_be_bytes(*crc) != checksum(key, rest) {
        return None;
    }
    let (&[kind, high, low], mut payload) = rest.split_first_chunk::<3>()?;
    let number = u16::from_be_bytes([high, low]);
    match kind {
        KIND_PIECE => Some(Chunk::Piece {
            piece: u16::from_be_bytes([key[8], key[9]]),
            total: number,
            bytes: payload,
        }),
        KIND_EVENTS => {
            let mut events = Vec::with_capacity(usize::from(number));
            for _ in 0..number {
                let (length, after) = payload.split_first_chunk::<4>()?;
                let length = u32::from_be_bytes(*length) as usize;
                events.push(after.get(..length)?);
                payload = &after[length..];
            }
            Some(Chunk::Events(events))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn packed_records_come_back_in_order(lengths in proptest::collection::vec(
            prop_oneof![0_usize..700, 4_900_usize..5_100, 9_000_usize..20_000], 1..40,
        )) {
            let records: Vec<Vec<u8>> = lengths
                .iter()
                .enumerate()
                .map(|(index, &length)| vec![index as u8; length])
                .collect();
            let mut stored = Vec::new();
            pack(7, records.iter().map(Vec::as_slice), |key, value| stored.push((key, value)));
            let mut back: Vec<Vec<u8>> = Vec::new();
            for (key, value) in &stored {
                prop_assert!(value.len() <= VALUE_BYTES_MAX);
                match unpack(key, value).expect("own values are sound") {
                    Chunk::Events(events) => {
                        prop_assert_eq!(position_of(key), Some(7 + back.len() as u64));
                        back.extend(events.into_iter().map(<[u8]>::to_vec));
                    }
                    Chunk::Piece { piece: 0, bytes, .. } => {
                        prop_assert_eq!(position_of(key), Some(7 + back.len() as u64));
                        back.push(bytes.to_vec());
                    }
                    Chunk::Piece { bytes, .. } => {
                        back.last_mut().expect("piece 0 came first").extend_from_slice(bytes);
                    }
                }
            }
            prop_assert_eq!(back, records);
            prop_assert!(stored.is_sorted_by(|a, b| a.0 < b.0));
        }
    }

    #[test]
    fn a_flipped_bit_or_another_key_is_noticed() {
        let mut stored = Vec::new();
        pack(1, [b"event".as_slice()].into_iter(), |key, value| {
            stored.push((key, value))
        });
        let (stored_key, value) = stored.pop().unwrap();
        assert!(unpack(&stored_key, &value).is_some());
        assert!(unpack(&key(2, 0), &value).is_none());
        for index in 0..value.len() {
            let mut damaged = value.clone();
            damaged[index] ^= 1;
            assert!(unpack(&stored_key, &damaged).is_none(), "byte {index}");
        }
    }
}
