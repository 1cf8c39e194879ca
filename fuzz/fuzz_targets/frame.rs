//! Messages of a session from arbitrary bytes: no panic, and what was read is written as it was meant.
#![no_main]

use std::fmt::Debug;

use headwater_protocol::frame::{self, FRAME_BYTES_MAX};
use headwater_protocol::{BatchHeader, BatchReply, Hello, HelloReply};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Some((prefix, message)) = bytes.split_first_chunk::<4>() else {
        return;
    };
    if let Ok(length) = frame::length(*prefix) {
        assert!(length <= FRAME_BYTES_MAX);
    }
    survives::<Hello>(message);
    survives::<HelloReply>(message);
    survives::<BatchHeader>(message);
    survives::<BatchReply>(message);
});

fn survives<T>(message: &[u8])
where
    T: serde::Serialize + serde::de::DeserializeOwned + PartialEq + Debug,
{
    let Ok(read) = frame::decode::<T>(message) else {
        return;
    };
    let again = frame::encode(&read);
    let (prefix, message) = again.split_first_chunk::<4>().expect("a frame has a length");
    assert_eq!(u32::from_be_bytes(*prefix) as usize, message.len());
    assert_eq!(frame::decode::<T>(message).expect("our own"), read);
}
