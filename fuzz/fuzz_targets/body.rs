//! Bodies of batches from arbitrary bytes: no panic, no memory for what is only claimed, as many slots as
//! announced or none.
#![no_main]

use headwater_protocol::batch::{self, Slot};
use headwater_protocol::{BatchHeader, Codec, Record};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (u8, u32, &[u8])| {
    let (count, body_bytes, bytes) = input;
    let mut header = BatchHeader {
        epoch: 1,
        first_sequence: 1,
        count: u32::from(count),
        codec: Codec::Zstd,
        body_bytes: u64::from(body_bytes % (1 << 20)),
    };
    if let Ok(records) = batch::decompress(&header, bytes) {
        assert_eq!(records.len() as u64, header.body_bytes);
    }
    header.body_bytes = bytes.len() as u64;
    let Ok(slots) = batch::slots(&header, bytes) else {
        return;
    };
    let mut seen = 0;
    for slot in slots {
        seen += 1;
        if let Slot::Record(record) = slot {
            assert_eq!(Record::decode(&record.encode()).expect("our own"), *record);
        }
    }
    assert_eq!(seen, usize::from(count));
    // The same bytes, compressed as an agent does it, come out again.
    let compressed = batch::compress(bytes).expect("memory");
    assert_eq!(batch::decompress(&header, &compressed).expect("our own"), bytes);
});
