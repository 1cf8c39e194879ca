//! JSON of events from arbitrary bytes: what serde_json takes is taken, as the same values, and nothing else.
#![no_main]

use headwater_protocol::json::Value;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &[u8]| {
    let theirs: Option<serde_json::Value> = serde_json::from_slice(text).ok();
    let ours = Value::parse(text).ok();
    assert_eq!(ours.is_some(), theirs.is_some());
    let (Some(Value::Object(ours)), Some(theirs)) = (ours, theirs) else {
        return;
    };
    // Their map is sorted, and the last of equal keys counts there too.
    assert_eq!(ours.to_canonical(), theirs.to_string());
    for (key, value) in theirs.as_object().expect("an object here and there") {
        let found = ours.get(key).expect("each key is found");
        assert_eq!(found.as_str(), value.as_str());
        assert_eq!(found.as_i64(), value.as_i64());
        assert_eq!(found.as_bool(), value.as_bool());
    }
});
