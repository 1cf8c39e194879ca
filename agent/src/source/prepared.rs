//! What is to be stored of a request, and what the client hears then.

use super::answer::{Answer, Rejected, Verdict};
use super::memory::Reservation;
use crate::sequencer::Entry;
use crate::window::Fingerprint;

/// Memory of what a client hears of one event beside its id, in bytes, and how often the id is in it: as
/// it is, and as JSON.
const TOLD_BYTES: u64 = 256;
const TOLD_IDS: u64 = 7;

/// What is to be stored, and what the client hears then.
pub(super) struct Prepared {
    /// Whose events these are.
    pub(super) company: String,
    pub(super) entries: Vec<Entry>,
    /// Bytes of the records.
    pub(super) bytes: u64,
    /// What the client hears of events that are stored for quarantine, by their place in `entries`.
    rejected: Vec<(usize, Rejected)>,
    /// Events of suppressed subjects, of which nothing is kept.
    pub(super) suppressed: u64,
    /// What becomes of every event that has an id, where the answer names each.
    pub(super) verdicts: Option<Vec<Verdict>>,
    /// The body as a whole was unreadable: this is the answer, once its bytes are stored.
    pub(super) unreadable: Option<Answer>,
    /// What all of this takes.
    memory: Reservation,
    /// The part of it that the client hears.
    told_bytes: u64,
}

/// What became of the events of a request; the sum is what was received (C-1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Counts {
    pub(super) accepted: u64,
    pub(super) rejected: u64,
    pub(super) duplicates: u64,
    pub(super) suppressed: u64,
}

impl Prepared {
    /// Begins with nothing and room for so many `entries`, for which `memory` is held.
    pub(super) fn new(company: &str, memory: Reservation, entries: usize) -> Self {
        Self {
            company: company.to_owned(),
            entries: Vec::with_capacity(entries),
            bytes: 0,
            rejected: Vec::new(),
            suppressed: 0,
            verdicts: None,
            unreadable: None,
            memory,
            told_bytes: 0,
        }
    }

    /// Adds an event; `fingerprint` is `None` when it has no id by which a retry could be told from
    /// another event.
    pub(super) fn add(&mut self, record: Vec<u8>, fingerprint: Option<Fingerprint>) {
        self.bytes += record.len() as u64;
        self.entries.push(Entry {
            record,
            fingerprint,
        });
    }

    /// Notes what the client hears of an event where it hears of each by its id.
    ///
    /// # Errors
    /// As [`Reservation::hold`].
    pub(super) fn tell(
        &mut self,
        id: Option<String>,
        refused: Option<&'static str>,
    ) -> Result<(), Answer> {
        if let (Some(verdicts), Some(id)) = (&mut self.verdicts, id) {
            let bytes = TOLD_BYTES + TOLD_IDS * id.len() as u64;
            verdicts.push(Verdict { id, refused });
            self.hold_told(bytes)?;
        }
        Ok(())
    }

    /// Notes that the event which is added next is stored for quarantine.
    ///
    /// # Errors
    /// As [`Reservation::hold`].
    pub(super) fn reject(&mut self, rejected: Rejected) -> Result<(), Answer> {
        let id_bytes = rejected.message_id.as_ref().map_or(0, String::len);
        self.rejected.push((self.entries.len(), rejected));
        self.hold_told(TOLD_BYTES + TOLD_IDS * id_bytes as u64)
    }

    fn hold_told(&mut self, bytes: u64) -> Result<(), Answer> {
        self.told_bytes += bytes;
        self.memory.add(bytes)
    }

    /// Gives memory back but for so many bytes of entries, and what the client hears.
    pub(super) fn release_all_but(&mut self, entries_bytes: u64) {
        self.memory.shrink(entries_bytes + self.told_bytes);
    }

    /// Counts `all` events, once it is known which of them, by their place, were duplicates.
    pub(super) fn counts(&self, all: usize, duplicates: &[usize]) -> Counts {
        let all = all as u64;
        let is_stored = |place: &usize| duplicates.binary_search(place).is_err();
        let rejected = self.rejected.iter().filter(|(place, _)| is_stored(place));
        let rejected = rejected.count() as u64;
        let duplicates = duplicates.len() as u64;
        Counts {
            accepted: all - rejected - duplicates,
            rejected,
            duplicates,
            suppressed: self.suppressed,
        }
    }

    /// Returns the answer, once the events are durable and their memory is free. Of duplicates the
    /// client was told before.
    pub(super) fn into_answer(mut self, duplicates: &[usize], counts: Counts) -> Answer {
        self.memory.shrink(self.told_bytes);
        let (mut rejected, memory) = (self.rejected, self.memory);
        match (self.unreadable, self.verdicts) {
            (Some(answer), _) => answer,
            (None, Some(verdicts)) => Answer::StoredEach { verdicts, memory },
            (None, None) => {
                // They are in order.
                rejected.retain(|(place, _)| duplicates.binary_search(place).is_err());
                Answer::Stored {
                    counts,
                    rejected,
                    memory,
                }
            }
        }
    }

    /// Returns what was allocated for entries, and for what the client hears, in bytes.
    #[cfg(test)]
    pub(super) fn memory_taken(&self) -> (u64, u64) {
        let records = self.entries.iter().map(|entry| entry.record.capacity());
        let entries = self.entries.capacity() * size_of::<Entry>();
        let rejected = self.rejected.iter();
        let ids = rejected.filter_map(|(_, it)| Some(it.message_id.as_ref()?.capacity()));
        let verdicts = self.verdicts.iter().flatten().map(|it| it.id.capacity());
        let lists = self.rejected.capacity() * size_of::<(usize, Rejected)>()
            + self.verdicts.as_ref().map_or(0, Vec::capacity) * size_of::<Verdict>();
        let stored = records.sum::<usize>() + entries;
        let told = ids.sum::<usize>() + verdicts.sum::<usize>() + lists;
        (stored as u64, told as u64)
    }
}
