//! Reads a request's body within its bounds: bytes on the wire, bytes after gzip, memory of all.

use std::io::Read;

use axum::body::{Body as HttpBody, Bytes};
use flate2::read::MultiGzDecoder;
use futures::StreamExt;
use headwater_service::places::Places;
use metrics::gauge;
use tokio::sync::OwnedSemaphorePermit;

use super::answer::Answer;
use crate::metrics::BODY_BYTES;

/// Memory is counted in units of this many bytes.
const UNIT_BYTES: u64 = 4096;

const GZIP_MAGIC: [u8; 2] = [0x1f, 0x8b];

/// The memory that all bodies in progress may take.
pub(super) struct Memory(Places);

impl Memory {
    pub(super) fn new(bytes: u64) -> Self {
        Self(Places::new(units(bytes)))
    }

    /// Changes the bound; what is held above a lower one stays until its body is done.
    pub(super) fn set_bytes(&self, bytes: u64) {
        self.0.resize(units(bytes));
    }

    fn reservation(&self) -> Reservation {
        Reservation {
            memory: self.0.clone(),
            permit: None,
            bytes: 0,
        }
    }
}

fn units(bytes: u64) -> usize {
    usize::try_from(bytes.div_ceil(UNIT_BYTES)).unwrap_or(usize::MAX)
}

/// What one body holds of it; given back when dropped.
pub(super) struct Reservation {
    memory: Places,
    permit: Option<OwnedSemaphorePermit>,
    bytes: u64,
}

impl Reservation {
    fn grow(&mut self, bytes: usize) -> Result<(), Answer> {
        self.bytes += bytes as u64;
        let held = self
            .permit
            .as_ref()
            .map_or(0, OwnedSemaphorePermit::num_permits) as u64;
        let wanted = self.bytes.div_ceil(UNIT_BYTES).saturating_sub(held);
        if wanted == 0 {
            return Ok(());
        }
        let units = u32::try_from(wanted).unwrap_or(u32::MAX);
        let more = self.memory.try_acquire_many(units);
        let more = more.ok_or(Answer::Busy { retry_after_s: 1 })?;
        gauge!(BODY_BYTES).increment(bytes_of(&more));
        match &mut self.permit {
            Some(permit) => permit.merge(more),
            none => *none = Some(more),
        }
        Ok(())
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        gauge!(BODY_BYTES).decrement(self.permit.as_ref().map_or(0.0, bytes_of));
    }
}

#[expect(clippy::cast_precision_loss, reason = "gauges are floating point")]
fn bytes_of(permit: &OwnedSemaphorePermit) -> f64 {
    (permit.num_permits() as u64 * UNIT_BYTES) as f64
}

/// A body in memory.
pub(super) struct Body {
    pub(super) bytes: Vec<u8>,
    reservation: Reservation,
}

/// Reads a body of at most `bytes_max`.
pub(super) async fn read(body: HttpBody, bytes_max: u64, memory: &Memory) -> Result<Body, Answer> {
    let mut out = Body {
        bytes: Vec::new(),
        reservation: memory.reservation(),
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
        out.reservation.grow(part.len())?;
        out.bytes.extend_from_slice(&part);
    }
    Ok(out)
}

impl Body {
    /// Inflates gzip, whatever the headers say: some clients send it as a form. Other bodies stay.
    pub(super) fn inflate(mut self, bytes_max: u64) -> Result<Self, Answer> {
        if !self.bytes.starts_with(&GZIP_MAGIC) {
            return Ok(self);
        }
        let mut inflated = Vec::new();
        let mut part = [0; 16 * 1024];
        let mut decoder = MultiGzDecoder::new(self.bytes.as_slice());
        loop {
            let length = decoder
                .read(&mut part)
                .map_err(|_| Answer::Unreadable("gzip is damaged"))?;
            if length == 0 {
                break;
            }
            if (inflated.len() + length) as u64 > bytes_max {
                return Err(Answer::TooLarge {
                    bytes_max,
                    setting: "http.inflated_bytes_max",
                });
            }
            self.reservation.grow(length)?;
            inflated.extend_from_slice(&part[..length]);
        }
        Ok(Self {
            bytes: inflated,
            reservation: self.reservation,
        })
    }
}
