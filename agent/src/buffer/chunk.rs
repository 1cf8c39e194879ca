//! Keys and values of a generation: a few events per key, none of them large.
//!
//! Pages of the store hold up to sixteen values, and a page above 128 KiB would go to a file that
//! the store never syncs. So a value never exceeds [`VALUE_BYTES_MAX`]: small events share a key,
//! a large event is cut into pieces over several keys. The store keeps whole pages in memory, so what
//! shares a key is compressed. A fence is a key without a value, put there to have pages split early
//! (see `generation`).
//!
//! ```text
//! key    position of the first event, u64 big-endian | piece, u16 big-endian (0 unless cut; 65535: fence)
//! value  CRC-32 over key and the rest of the value, u32 | kind, u8 | number, u16 | payload
//! kind 1 number = events;  payload = (length u32, record)…
//! kind 2 number = pieces of this event;  payload = the bytes of this piece
//! kind 3 number = events;  payload = the payload of kind 1 as a zstd frame
//! ```

use std::borrow::Cow;
use std::{fmt, io};

use zstd::bulk::{Compressor, Decompressor};

/// Place of an event in the buffer: counts up from 1 for as long as the directory lives. Epochs and
/// sequences are a view on positions (see `epochs`).
pub type Position = u64;

/// Most events that share a key. More compress better and make a read of one event dearer.
pub(super) const EVENTS_PER_KEY_MAX: usize = 24;

/// Most bytes of events that share a key, before compression.
const SHARED_BYTES_MAX: usize = 16 * 1024;

/// zstd level in the store. Level 1 makes values a sixth smaller and takes a quarter more time, which
/// here is most of what an event costs beyond a plain file.
const ZSTD_LEVEL: i32 = -1;

/// Largest value, in bytes; × 17 stays far below the 128 KiB at which the store would leave its log.
pub(super) const VALUE_BYTES_MAX: usize = 5_000;

/// Length of a key, in bytes.
pub(super) const KEY_BYTES: usize = 10;

const HEADER_BYTES: usize = 7;
const LENGTH_BYTES: usize = 4;
const PIECE_BYTES_MAX: usize = VALUE_BYTES_MAX - HEADER_BYTES;
const KIND_EVENTS: u8 = 1;
const KIND_PIECE: u8 = 2;
const KIND_COMPRESSED: u8 = 3;

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

/// Piece of a fence; no record has as many (see [`RECORD_BYTES_MAX`]).
const FENCE_PIECE: u16 = u16::MAX;

/// Returns the key of a fence, which has no value and stands behind what is at `position`.
pub(super) fn fence(position: Position) -> Key {
    key(position, FENCE_PIECE)
}

/// Says whether a key is a fence.
pub(super) fn is_fence(key: &[u8]) -> bool {
    key.get(8..) == Some(&FENCE_PIECE.to_be_bytes())
}

/// Returns the position inside a key, `None` when the bytes are no key.
pub(super) fn position_of(key: &[u8]) -> Option<Position> {
    let bytes: [u8; 8] = key.get(..8)?.try_into().ok()?;
    (key.len() == KEY_BYTES).then(|| Position::from_be_bytes(bytes))
}

/// Turns records into keys and values. Kept for as long as records come, because making a compressor
/// costs more than using it.
pub(super) struct Packer {
    compressor: Compressor<'static>,
    raw: Vec<u8>,
}

impl Packer {
    /// Fails only when there is no memory.
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self {
            compressor: Compressor::new(ZSTD_LEVEL)?,
            raw: Vec::with_capacity(SHARED_BYTES_MAX),
        })
    }

    /// Calls `put` with the keys and values of `records`, the first of which stands at `first`.
    /// Positions follow each other without holes.
    pub(super) fn pack<'a>(
        &mut self,
        first: Position,
        records: impl Iterator<Item = &'a [u8]>,
        mut put: impl FnMut(Key, Vec<u8>),
    ) {
        let mut position = first;
        let mut shared: Vec<&[u8]> = Vec::with_capacity(EVENTS_PER_KEY_MAX);
        let mut shared_bytes = 0;
        for record in records {
            let bytes = LENGTH_BYTES + record.len();
            let fits =
                shared.len() < EVENTS_PER_KEY_MAX && shared_bytes + bytes <= SHARED_BYTES_MAX;
            if !fits && !shared.is_empty() {
                self.put_events(position, &shared, &mut put);
                position += shared.len() as u64;
                shared.clear();
                shared_bytes = 0;
            }
            shared.push(record);
            shared_bytes += bytes;
        }
        if !shared.is_empty() {
            self.put_events(position, &shared, &mut put);
        }
    }

    /// Puts events under as few keys as they fit.
    fn put_events(
        &mut self,
        first: Position,
        records: &[&[u8]],
        put: &mut impl FnMut(Key, Vec<u8>),
    ) {
        if let [record] = records
            && record.len() > SHARED_BYTES_MAX
        {
            return put_pieces(first, record, put);
        }
        let count = u16::try_from(records.len()).expect("few events share a key");
        self.raw.clear();
        for record in records {
            let length = u32::try_from(record.len()).expect("a shared record is small");
            self.raw.extend_from_slice(&length.to_be_bytes());
            self.raw.extend_from_slice(record);
        }
        if let Some(value) = self.compressed(count) {
            return seal_and_put(key(first, 0), value, put);
        }
        let bytes = HEADER_BYTES + self.raw.len();
        if bytes <= VALUE_BYTES_MAX {
            let mut value = header(bytes, KIND_EVENTS, count);
            value.extend_from_slice(&self.raw);
            return seal_and_put(key(first, 0), value, put);
        }
        if let [record] = records {
            return put_pieces(first, record, put);
        }
        let (left, right) = records.split_at(records.len() / 2);
        self.put_events(first, left, put);
        self.put_events(first + left.len() as u64, right, put);
    }

    /// Returns the value of what lies in `raw`; `None` when it does not fit or gains nothing.
    fn compressed(&mut self, count: u16) -> Option<Vec<u8>> {
        let most = (VALUE_BYTES_MAX - HEADER_BYTES).min(self.raw.len());
        let mut value = header(HEADER_BYTES + most, KIND_COMPRESSED, count);
        value.resize(HEADER_BYTES + most, 0);
        let length = self
            .compressor
            .compress_to_buffer(&self.raw, &mut value[HEADER_BYTES..])
            .ok()?;
        value.truncate(HEADER_BYTES + length);
        Some(value)
    }
}

impl fmt::Debug for Packer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Packer").finish_non_exhaustive()
    }
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

/// Whole records that share a key.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Events<'a> {
    number: u16,
    payload: Cow<'a, [u8]>,
}

impl<'a> Events<'a> {
    /// Reads a payload; `None` when its layout is wrong.
    fn of(number: u16, payload: Cow<'a, [u8]>) -> Option<Self> {
        let mut rest = &*payload;
        for _ in 0..number {
            (_, rest) = split_record(rest)?;
        }
        Some(Self { number, payload })
    }

    pub(super) fn len(&self) -> usize {
        usize::from(self.number)
    }

    /// Returns the records in order.
    pub(super) fn iter(&self) -> impl Iterator<Item = &[u8]> {
        let mut rest = &*self.payload;
        (0..self.number).map_while(move |_| {
            let (record, after) = split_record(rest)?;
            rest = after;
            Some(record)
        })
    }
}

fn split_record(payload: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, after) = payload.split_first_chunk::<LENGTH_BYTES>()?;
    after.split_at_checked(u32::from_be_bytes(*length) as usize)
}

/// What a key holds.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Chunk<'a> {
    /// Whole records, at the key's position and those after it.
    Events(Events<'a>),
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

/// Reads values; kept for as long as values come.
pub(super) struct Unpacker(Decompressor<'static>);

impl Unpacker {
    /// Fails only when there is no memory.
    pub(super) fn new() -> io::Result<Self> {
        Decompressor::new().map(Self)
    }

    /// Reads a value; `None` when the checksum or the layout is wrong.
    pub(super) fn unpack<'a>(&mut self, key: &[u8], value: &'a [u8]) -> Option<Chunk<'a>> {
        let (crc, rest) = value.split_first_chunk::<4>()?;
        if key.len() != KEY_BYTES || u32::from_be_bytes(*crc) != checksum(key, rest) {
            return None;
        }
        let (&[kind, high, low], payload) = rest.split_first_chunk::<3>()?;
        let number = u16::from_be_bytes([high, low]);
        match kind {
            KIND_PIECE => Some(Chunk::Piece {
                piece: u16::from_be_bytes([key[8], key[9]]),
                total: number,
                bytes: payload,
            }),
            KIND_EVENTS => Events::of(number, Cow::Borrowed(payload)).map(Chunk::Events),
            KIND_COMPRESSED => {
                let bytes_max = SHARED_BYTES_MAX + LENGTH_BYTES;
                let payload = self.0.decompress(payload, bytes_max).ok()?;
                Events::of(number, Cow::Owned(payload)).map(Chunk::Events)
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rand::rngs::StdRng;
    use rand::{RngCore, SeedableRng};

    /// Bytes that shrink to nothing, or that do not shrink at all.
    fn filling(length: usize, seed: usize, random: bool) -> Vec<u8> {
        let mut bytes = vec![seed as u8; length];
        if random {
            StdRng::seed_from_u64(seed as u64).fill_bytes(&mut bytes);
        }
        bytes
    }

    proptest! {
        #[test]
        fn packed_records_come_back_in_order(lengths in proptest::collection::vec(
            prop_oneof![0_usize..700, 4_900_usize..5_100, 9_000_usize..20_000], 1..40,
        ), random in any::<bool>()) {
            let records: Vec<Vec<u8>> = lengths
                .iter()
                .enumerate()
                .map(|(index, &length)| filling(length, index, random))
                .collect();
            let mut stored = Vec::new();
            Packer::new().unwrap().pack(7, records.iter().map(Vec::as_slice), |key, value| stored.push((key, value)));
            let mut unpacker = Unpacker::new().unwrap();
            let mut back: Vec<Vec<u8>> = Vec::new();
            for (key, value) in &stored {
                prop_assert!(value.len() <= VALUE_BYTES_MAX);
                match unpacker.unpack(key, value).expect("own values are sound") {
                    Chunk::Events(events) => {
                        prop_assert_eq!(position_of(key), Some(7 + back.len() as u64));
                        back.extend(events.iter().map(<[u8]>::to_vec));
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
        let events = [[b'e'; 99].as_slice(); 3];
        Packer::new()
            .unwrap()
            .pack(1, events.into_iter(), |key, value| {
                stored.push((key, value))
            });
        let mut unpacker = Unpacker::new().unwrap();
        let mut unpack = |key: &[u8], value: &[u8]| unpacker.unpack(key, value).map(drop);
        let (stored_key, value) = stored.pop().unwrap();
        assert!(unpack(&stored_key, &value).is_some());
        assert!(unpack(&key(2, 0), &value).is_none());
        for index in 0..value.len() {
            let mut damaged = value.clone();
            damaged[index] ^= 1;
            assert!(unpack(&stored_key, &damaged).is_none(), "byte {index}");
        }
    }

    #[test]
    fn values_of_the_uncompressed_kind_are_still_read() {
        let mut value = header(20, KIND_EVENTS, 2);
        for record in [b"one".as_slice(), b"three"] {
            value.extend_from_slice(&(record.len() as u32).to_be_bytes());
            value.extend_from_slice(record);
        }
        seal_and_put(key(5, 0), value, &mut |key, value| {
            let mut unpacker = Unpacker::new().unwrap();
            let Some(Chunk::Events(events)) = unpacker.unpack(&key, &value) else {
                panic!("not read");
            };
            let records: Vec<&[u8]> = events.iter().collect();
            assert_eq!(records, [b"one".as_slice(), b"three"]);
        });
    }
}
