//! How one shard of watermarks is written: small, because every metadata file of the table carries it.
//!
//! Place on the event's path: inside [`Watermarks`](super::Watermarks). Pure. Promise: what was written
//! is read back, in this format and in every older one; damage is an error, never a panic.
//!
//! ```text
//! base64 of  2, then deflated:  number of agents
//!                               per agent: length of its id (0: a UUID), number of its epochs
//!                               the ids: text, or the 16 bytes of a UUID
//!                               the smallest epoch
//!                               planes of every epoch, less the smallest
//!                               planes of every watermark
//! base64 of  1, then per agent: length of the id, id, number of epochs, then (epoch, watermark)*
//! ```
//! Numbers are LEB128 varints. *Planes* are a width in bytes, then the lowest byte of all numbers, then
//! the next one of all numbers, and so on: high bytes are alike and cost nearly nothing once deflated.
//! Ten thousand agents that are named by UUIDs take 250 kB so, which is 7 % above what their ids, the
//! milliseconds of a year and 24 bits of sequence hold; in format 1 they took 394 kB.

use std::collections::BTreeMap;
use std::io::{Read, Write};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use flate2::Compression;
use flate2::read::DeflateDecoder;
use flate2::write::DeflateEncoder;
use uuid::Uuid;

/// Agents of one shard: per agent, its epochs and their watermarks.
pub(super) type Agents = BTreeMap<String, BTreeMap<u64, u64>>;

const FORMAT: u8 = 2;
const FORMAT_PLAIN: u8 = 1;
/// Most bytes that a shard may inflate to; 500,000 agents.
const INFLATED_MAX: u64 = 32 << 20;
/// Stands for the length of an id that is a UUID. Ids have at least one character.
const IS_UUID: u64 = 0;

/// Returns the property value of a shard.
pub(super) fn encode(agents: &Agents) -> String {
    let mut plain = Vec::new();
    put_varint(&mut plain, agents.len() as u64);
    let mut ids = Vec::new();
    for (agent, epochs) in agents {
        match as_uuid(agent) {
            Some(uuid) => {
                put_varint(&mut plain, IS_UUID);
                ids.extend_from_slice(uuid.as_bytes());
            }
            None => {
                put_varint(&mut plain, agent.len() as u64);
                ids.extend_from_slice(agent.as_bytes());
            }
        }
        put_varint(&mut plain, epochs.len() as u64);
    }
    plain.extend_from_slice(&ids);
    let epochs = || agents.values().flat_map(|epochs| epochs.keys().copied());
    let smallest = epochs().min().unwrap_or(0);
    put_varint(&mut plain, smallest);
    put_planes(&mut plain, || epochs().map(|epoch| epoch - smallest));
    put_planes(&mut plain, || {
        agents.values().flat_map(|epochs| epochs.values().copied())
    });
    let mut deflate = DeflateEncoder::new(vec![FORMAT], Compression::default());
    let deflated = deflate
        .write_all(&plain)
        .and_then(|()| deflate.finish())
        .expect("writing to memory does not fail");
    STANDARD.encode(deflated)
}

/// Reads the property value of a shard; the error says what is wrong with it.
pub(super) fn decode(value: &str) -> Result<Agents, &'static str> {
    let bytes = STANDARD.decode(value).map_err(|_| "it is not base64")?;
    match bytes.split_first() {
        Some((&FORMAT, deflated)) => decode_planes(&inflate(deflated)?),
        Some((&FORMAT_PLAIN, plain)) => decode_plain(plain),
        _ => Err("its format is unknown: it was written by a newer version"),
    }
}

fn inflate(deflated: &[u8]) -> Result<Vec<u8>, &'static str> {
    let mut plain = Vec::new();
    DeflateDecoder::new(deflated)
        .take(INFLATED_MAX + 1)
        .read_to_end(&mut plain)
        .map_err(|_| "it cannot be inflated")?;
    if plain.len() as u64 > INFLATED_MAX {
        return Err("it is too large");
    }
    Ok(plain)
}

fn decode_planes(mut rest: &[u8]) -> Result<Agents, &'static str> {
    let count = take_varint(&mut rest)?;
    let mut heads = Vec::new();
    for _ in 0..count {
        heads.push((take_varint(&mut rest)?, take_varint(&mut rest)?));
    }
    let mut ids = Vec::with_capacity(heads.len());
    for (length, _) in &heads {
        ids.push(if *length == IS_UUID {
            let bytes = take(&mut rest, 16)?;
            let uuid = Uuid::from_slice(bytes).map_err(|_| "it is cut off")?;
            uuid.hyphenated().to_string()
        } else {
            text(take(&mut rest, *length)?)?
        });
    }
    let mut numbers = 0_u64;
    for (_, epochs) in &heads {
        numbers = numbers.checked_add(*epochs).ok_or("it is cut off")?;
    }
    let smallest = take_varint(&mut rest)?;
    let mut epochs = take_planes(&mut rest, numbers)?.into_iter();
    let mut watermarks = take_planes(&mut rest, numbers)?.into_iter();
    if !rest.is_empty() {
        return Err("there is something behind it");
    }
    let mut agents = Agents::new();
    for (id, (_, count)) in ids.into_iter().zip(heads) {
        let mut of_agent = BTreeMap::new();
        for _ in 0..count {
            let (epoch, watermark) = epochs
                .next()
                .zip(watermarks.next())
                .ok_or("it is cut off")?;
            let epoch = smallest.checked_add(epoch);
            of_agent.insert(epoch.ok_or("an epoch is too large")?, watermark);
        }
        agents.insert(id, of_agent);
    }
    Ok(agents)
}

fn decode_plain(mut rest: &[u8]) -> Result<Agents, &'static str> {
    let mut agents = Agents::new();
    while !rest.is_empty() {
        let length = take_varint(&mut rest)?;
        let id = text(take(&mut rest, length)?)?;
        let mut epochs = BTreeMap::new();
        for _ in 0..take_varint(&mut rest)? {
            let epoch = take_varint(&mut rest)?;
            epochs.insert(epoch, take_varint(&mut rest)?);
        }
        agents.insert(id, epochs);
    }
    Ok(agents)
}

/// Returns the UUID that `id` is, if it is written as UUIDs usually are: so it comes back the same.
fn as_uuid(id: &str) -> Option<Uuid> {
    let uuid = Uuid::try_parse(id).ok().filter(|_| id.len() == 36)?;
    (uuid.hyphenated().to_string() == id).then_some(uuid)
}

fn text(bytes: &[u8]) -> Result<String, &'static str> {
    let text = std::str::from_utf8(bytes).map_err(|_| "an agent id is not UTF-8")?;
    Ok(text.to_owned())
}

fn take<'a>(rest: &mut &'a [u8], count: u64) -> Result<&'a [u8], &'static str> {
    let count = usize::try_from(count).map_err(|_| "it is cut off")?;
    let (taken, after) = rest.split_at_checked(count).ok_or("it is cut off")?;
    *rest = after;
    Ok(taken)
}

fn put_planes<I: Iterator<Item = u64>>(bytes: &mut Vec<u8>, numbers: impl Fn() -> I) {
    let largest = numbers().max().unwrap_or(0);
    let width = (u64::BITS - largest.leading_zeros()).div_ceil(8);
    bytes.push(width as u8);
    for plane in 0..width {
        bytes.extend(numbers().map(|number| (number >> (8 * plane)) as u8));
    }
}

fn take_planes(rest: &mut &[u8], count: u64) -> Result<Vec<u64>, &'static str> {
    let width = take(rest, 1)?[0];
    if width > 8 {
        return Err("a number is too long");
    }
    // A width of 0 is nothing but zeros, whose count was read with the agents.
    if width == 0 && count > INFLATED_MAX {
        return Err("it is cut off");
    }
    let mut numbers = Vec::new();
    for plane in 0..width {
        let bytes = take(rest, count)?;
        numbers.resize(bytes.len(), 0);
        for (number, byte) in numbers.iter_mut().zip(bytes) {
            *number |= u64::from(*byte) << (8 * plane);
        }
    }
    numbers.resize(usize::try_from(count).map_err(|_| "it is cut off")?, 0);
    Ok(numbers)
}

fn put_varint(bytes: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        bytes.push((number as u8) | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
}

fn take_varint(bytes: &mut &[u8]) -> Result<u64, &'static str> {
    let mut number = 0;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = bytes.split_first().ok_or("it is cut off")?;
        *bytes = rest;
        let part = u64::from(byte & 0x7f);
        if shift == 63 && part > 1 {
            return Err("a number is too large");
        }
        number |= part << shift;
        if byte < 0x80 {
            return Ok(number);
        }
    }
    Err("a number is too long")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::catalog::METADATA_GZIP_LEVEL;

    fn agents() -> impl Strategy<Value = Agents> {
        let epochs = prop::collection::btree_map(any::<u64>(), any::<u64>(), 1..4);
        let uuid = any::<u128>().prop_map(|number| Uuid::from_u128(number).to_string());
        let id = prop_oneof![
            "[a-zA-Z0-9._äπ-]{1,40}".boxed(),
            uuid.clone().boxed(),
            // Not as UUIDs are written: it has to come back as it was.
            uuid.prop_map(|id| id.to_uppercase()).boxed(),
        ];
        prop::collection::btree_map(id, epochs, 0..50)
    }

    proptest! {
        #[test]
        fn a_shard_reads_back_as_it_was_written(agents in agents()) {
            prop_assert_eq!(decode(&encode(&agents)).unwrap(), agents);
        }

        #[test]
        fn damaged_shards_are_errors_and_never_panic(
            agents in agents(),
            at in any::<prop::sample::Index>(),
            byte in any::<u8>(),
            cut in any::<prop::sample::Index>(),
            noise in prop::collection::vec(any::<u8>(), 0..60),
        ) {
            // Either answer is fine; only a panic is not.
            drop(decode(&STANDARD.encode(&noise)));
            drop(decode_plain(&noise));
            drop(decode_planes(&noise));
            let mut plain = inflate(&STANDARD.decode(encode(&agents)).unwrap()[1..]).unwrap();
            let index = at.index(plain.len());
            plain[index] = byte;
            drop(decode_planes(&plain));
            prop_assert!(decode_planes(&plain[..cut.index(plain.len())]).is_err());
        }
    }

    #[test]
    fn shards_of_every_format_are_read() {
        let agents = Agents::from([("agent-1".to_owned(), BTreeMap::from([(1, 300), (2, 5)]))]);
        let uuid = "67e55044-10b1-426f-9247-bb680e5fe0c8";
        let named = Agents::from([(uuid.to_owned(), BTreeMap::from([(7, 1)]))]);
        assert_eq!(decode("AQdhZ2VudC0xAgGsAgIF"), Ok(agents.clone()));
        assert_eq!(decode("AmNkZ09MTz9R"), Err("it cannot be inflated"));
        assert_eq!(decode(&encode(&agents)), Ok(agents));
        assert_eq!(decode(&encode(&named)), Ok(named));
        assert!(decode("Aw==").unwrap_err().contains("newer version"));
    }

    /// The bound of the product: what ten thousand agents add to each metadata file.
    #[test]
    fn ten_thousand_agents_add_at_most_250_kb() {
        use rand::{Rng, SeedableRng};
        let mut chance = rand::rngs::StdRng::seed_from_u64(1);
        let year_ms = 31_536_000_000;
        let mut size = |name: &dyn Fn(usize, u128) -> String| {
            let mut shards = vec![Agents::new(); 64];
            for n in 0..10_000 {
                let id = name(n, chance.random());
                let epoch = 1_760_000_000_000 + chance.random_range(0..year_ms);
                let watermark = chance.random_range(1..20_000_000);
                shards[n % 64].insert(id, BTreeMap::from([(epoch, watermark)]));
            }
            let values: Vec<String> = shards.iter().map(encode).collect();
            let json = serde_json::to_vec(&values).unwrap();
            let level = Compression::new(METADATA_GZIP_LEVEL);
            let mut gzip = flate2::write::GzEncoder::new(Vec::new(), level);
            gzip.write_all(&json).unwrap();
            gzip.finish().unwrap().len()
        };
        let uuids = size(&|_, number| Uuid::from_u128(number).to_string());
        let pods = size(&|_, number| format!("support-web-{:010x}", number as u64 >> 24));
        let hosts = size(&|n, _| format!("web-{:03}.eu-west-1.example-{}.com", n % 250, n / 250));
        assert!(uuids <= 250_000, "{uuids} bytes");
        assert!(pods <= 200_000, "{pods} bytes");
        assert!(hosts <= 150_000, "{hosts} bytes");
    }
}
