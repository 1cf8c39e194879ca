//! An event as the agent accepted it: the request's facts and the untouched body.

use serde::ser::{SerializeStruct, Serializer};
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

use crate::EventType;
use crate::frame::VALUE_DEPTH_MAX;

/// Where a source runs; decides whether its clock is trusted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SourceKind {
    /// The company's own servers: the clock is trusted.
    Server,
    /// A browser: the clock may be wrong.
    Browser,
    /// A phone or desktop app: the clock may be wrong.
    Mobile,
}

/// Longest `Content-Type` and longest `Content-Encoding` that a record keeps, in bytes.
pub const FORM_BYTES_MAX: usize = 64;

/// Fields that every record has.
const FIELDS_ALWAYS: usize = 11;

/// One accepted event. Its MessagePack form (an array in field order) is what the buffer stores and
/// the wire carries; new fields go last and have a default. Fields at the end that are `None` are not
/// written, so that the usual event takes no byte for them and looks the same to an older reader; one
/// before a field that is written is nil. An older reader takes an array that is longer than it knows
/// for no record, so collectors are upgraded before agents.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Record {
    /// When the agent accepted the request: microseconds since the Unix epoch.
    pub received_at: i64,
    /// Paying company; from the write key, never from the body.
    pub company_id: String,
    /// Source within the company; from the write key.
    pub source_id: String,
    /// Where the source runs; from the write key.
    pub source_kind: SourceKind,
    /// Path of the request, such as `/v1/batch`.
    pub path: String,
    /// Type that the path implies (`/v1/track`); `None` on batch paths, where each body says it.
    pub event_type: Option<EventType>,
    /// `sentAt` of the batch around the event, as sent.
    pub sent_at: Option<String>,
    /// How often the client had tried before, where it says so (`X-Retry-Count`).
    pub attempt: Option<u32>,
    /// Client address, already truncated to /24 (IPv4) or /48 (IPv6).
    pub ip: Option<String>,
    /// `User-Agent` of the request, at most 512 bytes.
    pub user_agent: Option<String>,
    /// Exact bytes of the event as the client sent them (JSON where the client is sane).
    pub body: ByteBuf,
    /// How far the device's clock is behind the agent's, in milliseconds (negative: ahead): the
    /// smallest `received_at - sent_at` that the agent saw lately from this device. `None` when it
    /// knows none.
    #[serde(default)]
    pub skew_ms: Option<i64>,
    /// `Content-Type` of the request, at most [`FORM_BYTES_MAX`] bytes; `None` for plain JSON and where
    /// the request says nothing.
    #[serde(default)]
    pub content_type: Option<String>,
    /// `Content-Encoding` of the request, at most [`FORM_BYTES_MAX`] bytes; `None` without one.
    #[serde(default)]
    pub encoding: Option<String>,
    /// Says that `body` is only the first part of what the client sent.
    #[serde(default)]
    pub cut: Option<Cut>,
}

/// What a record says whose body was cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cut {
    /// Length of what the client sent.
    pub sent_bytes: u64,
    /// How long an event may be for its agent (`http.event_bytes_max`), where this one is longer. `None`
    /// for the body of a request that could not be read.
    pub allowed_bytes: Option<u64>,
}

impl Serialize for Record {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let more = self.fields_at_end();
        let mut fields = serializer.serialize_struct("Record", FIELDS_ALWAYS + more)?;
        fields.serialize_field("received_at", &self.received_at)?;
        fields.serialize_field("company_id", &self.company_id)?;
        fields.serialize_field("source_id", &self.source_id)?;
        fields.serialize_field("source_kind", &self.source_kind)?;
        fields.serialize_field("path", &self.path)?;
        fields.serialize_field("event_type", &self.event_type)?;
        fields.serialize_field("sent_at", &self.sent_at)?;
        fields.serialize_field("attempt", &self.attempt)?;
        fields.serialize_field("ip", &self.ip)?;
        fields.serialize_field("user_agent", &self.user_agent)?;
        fields.serialize_field("body", &self.body)?;
        if more >= 1 {
            fields.serialize_field("skew_ms", &self.skew_ms)?;
        }
        if more >= 2 {
            fields.serialize_field("content_type", &self.content_type)?;
        }
        if more >= 3 {
            fields.serialize_field("encoding", &self.encoding)?;
        }
        if more >= 4 {
            fields.serialize_field("cut", &self.cut)?;
        }
        fields.end()
    }
}

impl Record {
    /// Makes a record of which nothing else is known: all other fields are `None`. Code that carries
    /// facts over, from a request or out of the quarantine, names every field instead, so that a new one
    /// is not forgotten there.
    pub fn new(
        received_at: i64,
        company_id: impl Into<String>,
        source_id: impl Into<String>,
        source_kind: SourceKind,
        path: impl Into<String>,
        body: impl Into<Vec<u8>>,
    ) -> Self {
        Self {
            received_at,
            company_id: company_id.into(),
            source_id: source_id.into(),
            source_kind,
            path: path.into(),
            event_type: None,
            sent_at: None,
            attempt: None,
            ip: None,
            user_agent: None,
            body: ByteBuf::from(body),
            skew_ms: None,
            content_type: None,
            encoding: None,
            cut: None,
        }
    }

    /// Returns how many fields are written after those that every record has.
    fn fields_at_end(&self) -> usize {
        let are_there = [
            self.skew_ms.is_some(),
            self.content_type.is_some(),
            self.encoding.is_some(),
            self.cut.is_some(),
        ];
        are_there.iter().rposition(|it| *it).map_or(0, |at| at + 1)
    }

    /// Appends the MessagePack form to `out`.
    pub fn encode_into(&self, out: &mut Vec<u8>) {
        rmp_serde::encode::write(out, self).expect("writing to memory cannot fail");
    }

    /// Returns how many bytes its MessagePack form takes at most; a few dozen too many.
    pub fn encoded_bytes_max(&self) -> usize {
        /// Fifteen fields: their markers and lengths, numbers, and the names of kind and type.
        const FIXED_BYTES: usize = 120;
        let texts = [
            &self.sent_at,
            &self.ip,
            &self.user_agent,
            &self.content_type,
            &self.encoding,
        ];
        let texts = texts.into_iter().flatten().map(String::len).sum::<usize>();
        let ids = self.company_id.len() + self.source_id.len() + self.path.len();
        FIXED_BYTES + ids + texts + self.body.len()
    }

    /// Returns the MessagePack form.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.encoded_bytes_max());
        self.encode_into(&mut out);
        out
    }

    /// Reads one record from its MessagePack form.
    ///
    /// # Errors
    /// Returns the decoder's message when `bytes` is not a record.
    pub fn decode(bytes: &[u8]) -> Result<Self, rmp_serde::decode::Error> {
        let mut decoder = rmp_serde::Deserializer::from_read_ref(bytes);
        decoder.set_max_depth(VALUE_DEPTH_MAX);
        Self::deserialize(&mut decoder)
    }
}
