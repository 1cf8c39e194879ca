//! Events as NDJSON: what `headwater-agent export` writes.

use std::borrow::Cow;
use std::io::{self, Write};
use std::ops::{ControlFlow, RangeInclusive};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use headwater_protocol::{Epoch, Record, Sequence, timestamp};
use serde::Serialize;
use serde_json::value::RawValue;

use super::chunk::Position;
use super::refused::Kept;
use super::stopped::StoppedError;

/// An export under way.
pub(super) struct Export<'a> {
    positions: RangeInclusive<Position>,
    acked: Position,
    out: &'a mut dyn Write,
    written: u64,
    over: bool,
    failed: Option<io::Error>,
}

/// One line of an export.
#[derive(Serialize)]
struct Line<'a> {
    position: Position,
    #[serde(skip_serializing_if = "Option::is_none")]
    epoch: Option<Epoch>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sequence: Option<Sequence>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'a str>,
    received_at: Option<String>,
    company: &'a str,
    source: &'a str,
    kind: headwater_protocol::SourceKind,
    path: &'a str,
    event_type: Option<headwater_protocol::EventType>,
    sent_at: Option<&'a str>,
    ip: Option<&'a str>,
    user_agent: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    body: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    body_base64: Option<String>,
}

impl<'a> Export<'a> {
    pub(super) fn new(
        positions: RangeInclusive<Position>,
        acked: Position,
        out: &'a mut dyn Write,
    ) -> Self {
        Self {
            positions,
            acked,
            out,
            written: 0,
            over: false,
            failed: None,
        }
    }

    /// Returns the last position that is not wanted.
    pub(super) fn before(&self) -> Position {
        self.positions.start().saturating_sub(1)
    }

    pub(super) fn is_over(&self) -> bool {
        self.over || self.failed.is_some()
    }

    pub(super) fn write(&mut self, position: Position, record: &[u8]) -> ControlFlow<()> {
        if position > *self.positions.end() {
            self.over = true;
            return ControlFlow::Break(());
        }
        if position <= self.acked || position < *self.positions.start() {
            return ControlFlow::Continue(());
        }
        // One that cannot be decoded is what `fsck` tells about.
        let Ok(record) = Record::decode(record) else {
            return ControlFlow::Continue(());
        };
        self.write_record(position, &record, None)
    }

    /// Writes an event of `refused/`; those are in no order of positions.
    pub(super) fn write_refused(&mut self, kept: &Kept) -> ControlFlow<()> {
        if !self.positions.contains(&kept.position) {
            return ControlFlow::Continue(());
        }
        self.write_record(kept.position, &kept.record, Some(kept))
    }

    fn write_record(
        &mut self,
        position: Position,
        record: &Record,
        refused: Option<&Kept>,
    ) -> ControlFlow<()> {
        match self.write_line(position, record, refused) {
            Ok(()) => {
                self.written += 1;
                ControlFlow::Continue(())
            }
            Err(error) => {
                self.failed = Some(error);
                ControlFlow::Break(())
            }
        }
    }

    fn write_line(
        &mut self,
        position: Position,
        record: &Record,
        refused: Option<&Kept>,
    ) -> io::Result<()> {
        // A line must stay one line. JSON has line breaks only where a space may stand as well.
        let is_break = |byte: &u8| matches!(byte, b'\n' | b'\r');
        let mut text = Cow::Borrowed(record.body.as_slice());
        if text.iter().any(is_break) {
            let bytes = text.iter();
            text = bytes
                .map(|byte| if is_break(byte) { b' ' } else { *byte })
                .collect();
        }
        let body: Option<&RawValue> = serde_json::from_slice(&text).ok();
        let line = Line {
            position,
            epoch: refused.map(|kept| kept.epoch),
            sequence: refused.map(|kept| kept.sequence),
            reason: refused.map(|kept| kept.reason.as_str()),
            received_at: timestamp::format(record.received_at),
            company: &record.company_id,
            source: &record.source_id,
            kind: record.source_kind,
            path: &record.path,
            event_type: record.event_type,
            sent_at: record.sent_at.as_deref(),
            ip: record.ip.as_deref(),
            user_agent: record.user_agent.as_deref(),
            body,
            body_base64: body.is_none().then(|| STANDARD.encode(&record.body)),
        };
        serde_json::to_writer(&mut *self.out, &line)?;
        self.out.write_all(b"\n")
    }

    pub(super) fn finish(self) -> Result<u64, StoppedError> {
        if let Some(error) = self.failed {
            return Err(error.into());
        }
        self.out.flush()?;
        Ok(self.written)
    }
}
