//! Staging of arbitrary bodies: no panic, and each sequence becomes one row of one table.
#![no_main]

use headwater_collector::plan::Plan;
use headwater_collector::staging::{self, BatchOrigin};
use headwater_protocol::{BatchHeader, Codec, batch};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (u8, &[u8])| {
    let (count, records) = input;
    let header = BatchHeader {
        epoch: 1,
        first_sequence: 1,
        count: u32::from(count),
        codec: Codec::Zstd,
        body_bytes: records.len() as u64,
    };
    let agent = "fuzz".parse().expect("a name");
    let origin = BatchOrigin::new(agent, header.epoch, &header, 1_790_000_000_000_000);
    let body = batch::compress(records).expect("memory");
    if let Ok(rows) = staging::stage(&origin, &header, &body, &Plan::builtin()) {
        let sum = rows.events.num_rows() + rows.quarantine.num_rows();
        assert_eq!(sum, usize::from(count), "every sequence is one row");
    }
});
