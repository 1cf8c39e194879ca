//! Cuts client addresses to their network before anything is written.
//!
//! Place on the path: the source passes each event through [`cut_addresses`] before it becomes a
//! record. Promise: what the disk gets of `ip`, `context.ip` and `properties.$ip` is at most the /24 (IPv4) or /48 (IPv6); every other byte is as the client sent it.

use std::borrow::Cow;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::Range;

use super::scan::{self, Place};

/// Returns the network of an address: /24 for IPv4, /48 for IPv6.
pub(super) fn network(ip: IpAddr) -> IpAddr {
    match ip.to_canonical() {
        IpAddr::V4(ip) => {
            let [a, b, c, _] = ip.octets();
            IpAddr::from([a, b, c, 0])
        }
        IpAddr::V6(ip) => {
            let [a, b, c, ..] = ip.segments();
            IpAddr::V6(Ipv6Addr::new(a, b, c, 0, 0, 0, 0, 0))
        }
    }
}

/// Returns the event with its addresses cut. Most events have none and are returned as they are.
pub(super) fn cut_addresses(event: &[u8]) -> Cow<'_, [u8]> {
    if !may_have_address(event) {
        return Cow::Borrowed(event);
    }
    let mut cuts = Vec::new();
    let is_whole = scan::visit(event, |place, key, value| {
        let is_address = match place {
            Place::Event | Place::Context => key == "ip",
            Place::Properties => key == "$ip",
            Place::Device => false,
        };
        if is_address {
            cuts.extend(cuts_of(event, value));
        }
    });
    if !is_whole {
        cuts = cuts_of_damaged(event);
    }
    splice(event, &cuts)
}

/// Says whether a key that ends with `ip`, or one with an escape in it, can be there.
fn may_have_address(event: &[u8]) -> bool {
    event.windows(2).enumerate().any(|(at, pair)| match pair {
        b"\\u" => true,
        b"p\"" => at > 0 && event[at - 1] == b'i',
        _ => false,
    })
}

/// A string in the event, quotes included, and what it becomes.
type Cut = (Range<usize>, String);

fn cuts_of(event: &[u8], value: Range<usize>) -> impl Iterator<Item = Cut> {
    let strings = scan::strings(event, value).into_iter();
    strings.filter_map(|place| {
        let cut = cut_text(&scan::text(&event[place.clone()])?)?;
        Some((place, format!("\"{cut}\"")))
    })
}

/// An event that is no JSON is kept for quarantine: there, whatever follows a key `ip` is cut.
fn cuts_of_damaged(event: &[u8]) -> Vec<Cut> {
    let key_ends = event
        .windows(4)
        .enumerate()
        .filter(|(_, window)| *window == b"\"ip\"" || *window == b"$ip\"")
        .map(|(at, _)| at + 4);
    key_ends
        .filter_map(|after| {
            let skip = |at: usize, bytes: &[u8]| {
                let rest = event.get(at..).unwrap_or_default().iter();
                at + rest.take_while(|byte| bytes.contains(byte)).count()
            };
            let start = skip(after, b" \t\r\n:");
            let end = skip(start + 1, b"0123456789abcdefABCDEF.:,/[] ");
            let token = event.get(start..end)?.strip_prefix(b"\"")?;
            let cut = cut_text(std::str::from_utf8(token).ok()?)?;
            Some((start + 1..end, cut))
        })
        .collect()
}

fn splice<'a>(event: &'a [u8], cuts: &[Cut]) -> Cow<'a, [u8]> {
    if cuts.is_empty() {
        return Cow::Borrowed(event);
    }
    let mut out = Vec::with_capacity(event.len());
    let mut at = 0;
    for (place, cut) in cuts {
        out.extend_from_slice(&event[at..place.start]);
        out.extend_from_slice(cut.as_bytes());
        at = place.end;
    }
    out.extend_from_slice(&event[at..]);
    Cow::Owned(out)
}

/// Returns a text with every address in it cut; `None` when there is nothing to cut. Proxies write
/// lists with commas, ports and brackets.
fn cut_text(text: &str) -> Option<String> {
    let parts: Vec<Cow<'_, str>> = text
        .split(',')
        .map(|part| match address(part.trim()) {
            Some(ip) => Cow::Owned(network(ip).to_string()),
            None => Cow::Borrowed(part.trim()),
        })
        .collect();
    let cut = parts.join(", ");
    let is_address = |part: &str| address(part.trim()).is_some();
    (cut != text && text.split(',').any(is_address)).then_some(cut)
}

/// Reads an address with or without brackets, port, zone and prefix length.
fn address(text: &str) -> Option<IpAddr> {
    let bare = match text.strip_prefix('[') {
        Some(bracketed) => bracketed.split_once(']')?.0,
        None => match text.split_once(':') {
            // A second colon makes it IPv6.
            Some((host, port)) if !port.contains(':') => host,
            _ => text,
        },
    };
    let bare = bare.split(['%', '/']).next()?;
    bare.parse().ok().or_else(|| padded(bare).map(IpAddr::V4))
}

/// Reads an IPv4 address with leading zeros, decimal.
fn padded(text: &str) -> Option<Ipv4Addr> {
    let octets: Option<Vec<u8>> = text
        .split('.')
        .map(|octet| octet.parse::<u8>().ok().filter(|_| octet.len() <= 3))
        .collect();
    <[u8; 4]>::try_from(octets?).ok().map(Ipv4Addr::from)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;

    fn cut(event: &str) -> String {
        String::from_utf8(cut_addresses(event.as_bytes()).into_owned()).unwrap()
    }

    #[test]
    fn addresses_are_cut_to_their_network() {
        for (ip, expected) in [
            ("203.0.113.77", "203.0.113.0"),
            ("2001:db8:1:2:3:4:5:6", "2001:db8:1::"),
            ("::ffff:203.0.113.77", "203.0.113.0"),
            ("203.0.113.77:8080", "203.0.113.0"),
            ("203.000.113.077", "203.0.113.0"),
            ("[2001:db8:1:2::9]:443", "2001:db8:1::"),
            ("fe80:1:2:3::9%eth0", "fe80:1:2::"),
            ("203.0.113.77/32", "203.0.113.0"),
            (" 203.0.113.77", "203.0.113.0"),
            (
                "203.0.113.77, 2001:db8:1:2::9,unknown",
                "203.0.113.0, 2001:db8:1::, unknown",
            ),
        ] {
            assert_eq!(cut_text(ip).as_deref(), Some(expected), "{ip}");
        }
        for kept in [
            "203.0.113.0",
            "2001:db8:1::",
            "",
            "unknown",
            "v1.2.3.4",
            "1.2.3",
            "a,b",
        ] {
            assert_eq!(cut_text(kept), None, "{kept}");
        }
    }

    #[test]
    fn only_the_address_changes() {
        for (event, expected) in [
            (
                r#"{"ip":"203.0.113.77","a":1}"#,
                r#"{"ip":"203.0.113.0","a":1}"#,
            ),
            (
                r#"{ "context" : {"ip" : "203.0.113.77" , "locale":"de"}}"#,
                r#"{ "context" : {"ip" : "203.0.113.0" , "locale":"de"}}"#,
            ),
            (
                r#"{"properties":{"$ip":"203.0.113.77"}}"#,
                r#"{"properties":{"$ip":"203.0.113.0"}}"#,
            ),
            // Every copy, whatever the key looks like.
            (
                r#"{"context":{"ip":"203.0.113.77","i\u0070":"203.0.113.78"},"\u0063ontext":{"ip":"\u0032.3.4.5"}}"#,
                r#"{"context":{"ip":"203.0.113.0","i\u0070":"203.0.113.0"},"\u0063ontext":{"ip":"2.3.4.0"}}"#,
            ),
            (
                r#"{"ip":["203.0.113.77","2001:db8:1:2::9"]}"#,
                r#"{"ip":["203.0.113.0","2001:db8:1::"]}"#,
            ),
            // No JSON: it goes to quarantine as it is, but for the address.
            (
                r#"{"a":tru,"context":{"ip" : "203.0.113.77"}"#,
                r#"{"a":tru,"context":{"ip" : "203.0.113.0"}"#,
            ),
            (r#"{"$ip":"203.0.113.77"#, r#"{"$ip":"203.0.113.0"#),
        ] {
            assert_eq!(cut(event), expected);
        }
        for kept in [
            r#"{"zip":"203.0.113.77","properties":{"page":{"ip":"203.0.113.77"}}}"#,
            r#"{"context":{"ip":null},"ip":7}"#,
            r#"{"event":"membership","text":"\"ip\":\"203.0.113.77\""}"#,
        ] {
            assert!(
                matches!(cut_addresses(kept.as_bytes()), Cow::Borrowed(_)),
                "{kept}"
            );
        }
    }

    fn ip() -> impl Strategy<Value = String> {
        prop_oneof![
            any::<[u8; 4]>().prop_map(|octets| Ipv4Addr::from(octets).to_string()),
            any::<[u16; 8]>().prop_map(|segments| Ipv6Addr::from(segments).to_string()),
        ]
    }

    /// A key, now and then with an escape in it.
    fn key() -> impl Strategy<Value = String> {
        let keys = [
            "ip",
            "$ip",
            "context",
            "properties",
            "a\"b",
            "ip ",
            "zip",
            "ü",
            "device",
        ];
        (prop::sample::select(keys.to_vec()), any::<bool>()).prop_map(|(key, escaped)| {
            let json = serde_json::to_string(key).unwrap();
            match key.chars().next() {
                Some(first) if escaped && first.is_ascii() => {
                    format!("\"\\u{:04x}{}", u32::from(first), &json[2..])
                }
                _ => json,
            }
        })
    }

    /// JSON text with duplicate keys, odd white space and addresses everywhere.
    fn json() -> impl Strategy<Value = String> {
        let leaf = prop_oneof![
            3 => ip().prop_map(|ip| format!("\"{ip}\"")),
            1 => Just("null".to_owned()),
            1 => any::<i32>().prop_map(|n| n.to_string()),
            1 => any::<String>().prop_map(|text| serde_json::to_string(&text).unwrap()),
        ];
        leaf.prop_recursive(4, 40, 6, |inner| {
            let entry = (key(), inner.clone()).prop_map(|(key, value)| format!("{key} :{value}"));
            prop_oneof![
                3 => prop::collection::vec(entry, 0..6)
                    .prop_map(|entries| format!("{{ {}\n}}", entries.join(" ,\t"))),
                1 => prop::collection::vec(inner, 0..4)
                    .prop_map(|items| format!("[{}]", items.join(","))),
            ]
        })
    }

    /// The rule once more, on the tree: the same but for the addresses.
    fn expected(mut value: Value) -> Value {
        fn cut_all(value: &mut Value) {
            match value {
                Value::String(text) => {
                    if let Some(cut) = cut_text(text) {
                        *text = cut;
                    }
                }
                Value::Array(items) => items.iter_mut().for_each(cut_all),
                Value::Object(map) => {
                    for (key, mut value) in std::mem::take(map) {
                        cut_all(&mut value);
                        map.insert(cut_text(&key).unwrap_or(key), value);
                    }
                }
                _ => {}
            }
        }
        let Value::Object(event) = &mut value else {
            return value;
        };
        if let Some(ip) = event.get_mut("ip") {
            cut_all(ip);
        }
        for (place, key) in [("context", "ip"), ("properties", "$ip")] {
            let map = event.get_mut(place).and_then(Value::as_object_mut);
            if let Some(ip) = map.and_then(|map| map.get_mut(key)) {
                cut_all(ip);
            }
        }
        value
    }

    proptest! {
        #[test]
        fn the_rest_of_the_event_stays(entries in prop::collection::vec((key(), json()), 0..8)) {
            let entries: Vec<String> = entries.iter().map(|(key, value)| format!("{key}: {value}")).collect();
            let event = format!("{{{}}}", entries.join(" , "));
            let cut = cut(&event);
            let before: Value = serde_json::from_str(&event).unwrap();
            let after: Value = serde_json::from_str(&cut).unwrap();
            prop_assert_eq!(after, expected(before));
            // Once is enough.
            prop_assert_eq!(&self::cut(&cut), &cut);
        }

        /// No copy of an address stays, wherever duplicate keys hide it.
        #[test]
        fn no_address_stays(ip in any::<[u8; 3]>(), last in 1_u8.., keys in prop::collection::vec(prop::sample::select(vec!["ip", "i\\u0070"]), 1..5)) {
            let address = format!("{}.{}.{}.{last}", ip[0], ip[1], ip[2]);
            let entries: Vec<String> = keys.iter().map(|key| format!("\"{key}\":\"{address}\"")).collect();
            let inner = entries.join(",");
            let event = format!("{{{inner},\"context\":{{{inner}}},\"context\":{{{inner}}},\"context\":{{}}}}");
            let whole = format!("\"{address}\"");
            prop_assert!(!cut(&event).contains(&whole));
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(prop::sample::select(br#"{}[]":,\ip$1.2"#.to_vec()), 0..80)) {
            cut_addresses(&bytes);
        }
    }
}
