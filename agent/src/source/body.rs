//! Reads a request's body within its bounds: bytes on the wire, bytes after gzip, memory of all.

use std::io::Read;

use axum::body::{Body as HttpBody, Bytes};
use flate2::read::MultiGzDecoder;
use futures::StreamExt;

use super::answer::Answer;
use super::memory::{Memory, Reservation};

const GZIP_MAGIC: [u8; 2] = [0x1f, 0x8b];

/// A body in memory.
pub(super) struct Body {
    pub(super) bytes: Vec<u8>,
    /// What the request holds, at first for `bytes`.
    pub(super) memory: Reservation,
}

/// Reads a body of at most `bytes_max`.
pub(super) async fn read(body: HttpBody, bytes_max: u64, memory: &Memory) -> Result<Body, Answer> {
    let mut out = Body {
        bytes: Vec::new(),
        memory: memory.reservation(),
    };
    let mut stream = body.into_data_stream();
    while let Some(part) = stream.next().await {
        // The client has gone away; nobody reads this answer.
        let part: Bytes = part.map_err(|_| Answer::Unreadable("the body was cut off"))?;
        if (out.bytes.len() + part.len()) as u64 > bytes_max {
            return Err(Answer::TooLarge {
                bytes_max,
                setting: "http.body_bytes_max",
            });
        }
        out.memory.grow(part.len() as u64)?;
        out.bytes.extend_from_slice(&part);
    }
    Ok(out)
}

impl Body {
    /// Inflates gzip, whatever the headers say: some clients send it as a form. Other bodies stay.
    pub(super) fn inflate(self, bytes_max: u64) -> Result<Self, Answer> {
        if !self.bytes.starts_with(&GZIP_MAGIC) {
            return Ok(self);
        }
        let Self {
            bytes: packed,
            mut memory,
        } = self;
        let mut bytes = Vec::new();
        let mut part = [0; 16 * 1024];
        let mut decoder = MultiGzDecoder::new(packed.as_slice());
        loop {
            let length = decoder
                .read(&mut part)
                .map_err(|_| Answer::Unreadable("gzip is damaged"))?;
            if length == 0 {
                break;
            }
            if (bytes.len() + length) as u64 > bytes_max {
                return Err(Answer::TooLarge {
                    bytes_max,
                    setting: "http.inflated_bytes_max",
                });
            }
            memory.grow(length as u64)?;
            bytes.extend_from_slice(&part[..length]);
        }
        drop(packed);
        memory.hold(bytes.len() as u64)?;
        Ok(Self { bytes, memory })
    }
}
