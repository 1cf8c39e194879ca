//! Connections on which nothing has been asked since they were opened or last answered, in the order
//! in which they fell silent: those that give their places up first.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use parking_lot::Mutex;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

/// The silent connections of a listener; clones share them.
#[derive(Clone, Default)]
pub(super) struct Silent(Arc<Mutex<Row>>);

#[derive(Default)]
struct Row {
    next: u64,
    /// Each waits for the call to give its place up.
    members: BTreeMap<u64, CancellationToken>,
    /// Somebody waits for a place.
    is_waited: bool,
    /// There was a call and nobody to hear it: the next that falls silent does.
    is_owed: bool,
}

impl Row {
    fn call(&mut self) {
        match self.members.pop_first() {
            Some((_, token)) => token.cancel(),
            None => self.is_owed = true,
        }
    }
}

impl Silent {
    /// Adds a connection, which is silent at first.
    pub(super) fn add(&self) -> Member {
        let (token, called) = call();
        let mut member = Member {
            silent: self.clone(),
            token,
            called,
            number: None,
        };
        member.fall_silent();
        member
    }

    /// Calls for a place: the connection that has been silent for longest, or else the next that falls
    /// silent, gives its own up.
    pub(super) fn call(&self) {
        let mut row = self.0.lock();
        row.is_waited = true;
        row.call();
    }

    /// Notes that there is a place: nobody is called any more.
    pub(super) fn take_back(&self) {
        let mut row = self.0.lock();
        (row.is_waited, row.is_owed) = (false, false);
    }
}

/// A connection that may be silent.
pub(super) struct Member {
    silent: Silent,
    token: CancellationToken,
    called: Pin<Box<WaitForCancellationFutureOwned>>,
    /// Place in the row, also when it was called out of it; `None` while something is asked.
    number: Option<u64>,
}

impl Member {
    pub(super) fn fall_silent(&mut self) {
        if self.number.is_some() {
            return;
        }
        let mut row = self.silent.0.lock();
        let number = row.next;
        row.next += 1;
        self.number = Some(number);
        if std::mem::take(&mut row.is_owed) {
            self.token.cancel();
        } else {
            row.members.insert(number, self.token.clone());
        }
    }

    /// Notes that something is asked. A call that came meanwhile goes on to the next.
    pub(super) fn speak(&mut self) {
        let Some(number) = self.number.take() else {
            return;
        };
        let mut row = self.silent.0.lock();
        if row.members.remove(&number).is_none() {
            if row.is_waited {
                row.call();
            }
            (self.token, self.called) = call();
        }
    }

    /// Resolves when the connection is to give its place up.
    pub(super) fn poll_called(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.called.as_mut().poll(cx)
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        if let Some(number) = self.number {
            self.silent.0.lock().members.remove(&number);
        }
    }
}

/// Returns a call that has not come yet, and what resolves when it does.
fn call() -> (CancellationToken, Pin<Box<WaitForCancellationFutureOwned>>) {
    let token = CancellationToken::new();
    let called = Box::pin(token.clone().cancelled_owned());
    (token, called)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_called(member: &mut Member) -> bool {
        let mut cx = Context::from_waker(std::task::Waker::noop());
        member.poll_called(&mut cx).is_ready()
    }

    #[test]
    fn a_call_is_heard_by_who_has_been_silent_for_longest_and_goes_on_when_that_one_speaks() {
        let silent = Silent::default();
        let [mut first, mut second, mut third] = [(); 3].map(|()| silent.add());
        first.speak();
        silent.call();
        assert!(!is_called(&mut first) && is_called(&mut second) && !is_called(&mut third));
        second.speak();
        assert!(!is_called(&mut second), "it is in use after all");
        assert!(is_called(&mut third));
        third.speak();
        assert!(
            ![&mut first, &mut second, &mut third]
                .into_iter()
                .any(is_called)
        );
        second.fall_silent();
        assert!(is_called(&mut second), "the call was owed");
        first.fall_silent();
        assert!(!is_called(&mut first), "one call is heard by one");
    }

    #[test]
    fn a_call_that_was_taken_back_is_owed_to_nobody() {
        let silent = Silent::default();
        silent.call();
        silent.take_back();
        let [mut first, mut second] = [(); 2].map(|()| silent.add());
        assert!(!is_called(&mut first));
        silent.call();
        silent.take_back();
        first.speak();
        assert!(!is_called(&mut second), "nobody waits for a place any more");
    }
}
