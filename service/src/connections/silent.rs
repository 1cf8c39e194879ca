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
        self.0.lock().call();
    }

    /// Takes a call back that nobody has heard.
    pub(super) fn take_back(&self) {
        self.0.lock().is_owed = false;
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
            row.call();
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
