//! How long one connection may stay open, by what passes on it.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use metrics::counter;
use tokio::time::{Instant, Sleep};

use super::silent::{Member, Silent};
use super::{Bounds, Patience};

/// The watch over a connection.
pub(super) struct Watch {
    timeout: Duration,
    deadline: Pin<Box<Sleep>>,
    /// `None` under [`Patience::Bytes`].
    request: Option<Request>,
    closed: &'static str,
}

/// The request that comes or is being answered.
struct Request {
    bytes: u64,
    bytes_max: u64,
    /// A part of its answer was written and not flushed.
    is_told: bool,
    member: Member,
}

impl Watch {
    pub(super) fn new(bounds: Bounds, silent: &Silent, closed: &'static str) -> Self {
        let request = match bounds.patience {
            Patience::Bytes => None,
            Patience::Answers { request_bytes_max } => Some(Request {
                bytes: 0,
                bytes_max: request_bytes_max,
                is_told: false,
                member: silent.add(),
            }),
        };
        Self {
            timeout: bounds.timeout,
            deadline: Box::pin(tokio::time::sleep(bounds.timeout)),
            request,
            closed,
        }
    }

    /// Notes that `bytes` came; 0 when the client sends no more.
    ///
    /// # Errors
    /// When they are more than allowed.
    pub(super) fn heard(&mut self, bytes: usize) -> io::Result<()> {
        let Some(request) = &mut self.request else {
            self.restart();
            return Ok(());
        };
        if bytes == 0 {
            return Ok(());
        }
        request.member.speak();
        request.bytes += bytes as u64;
        if request.bytes > request.bytes_max {
            return Err(self.close("request_bytes"));
        }
        Ok(())
    }

    /// Notes that `bytes` of an answer were written.
    pub(super) fn told(&mut self, bytes: usize) {
        let Some(request) = &mut self.request else {
            return;
        };
        if bytes > 0 {
            request.is_told = true;
            self.restart();
        }
    }

    /// Notes that all there was to write is written: after a part of an answer, that was its end.
    pub(super) fn flushed(&mut self) {
        if let Some(request) = self.request.as_mut().filter(|it| it.is_told) {
            request.is_told = false;
            request.bytes = 0;
            request.member.fall_silent();
        }
    }

    /// Resolves to an error when nothing has come for too long, or the place is called for.
    pub(super) fn poll_while_reading(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        let called = |it: &mut Request| it.member.poll_called(cx).is_ready();
        if self.request.as_mut().is_some_and(called) {
            return Poll::Ready(self.close("gave_way"));
        }
        self.deadline
            .as_mut()
            .poll(cx)
            .map(|()| self.close("timeout"))
    }

    /// Resolves to an error when an answer has not been read for too long.
    pub(super) fn poll_while_writing(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        match self.request {
            None => Poll::Pending,
            Some(_) => self.poll_while_reading(cx),
        }
    }

    fn restart(&mut self) {
        let deadline = Instant::now() + self.timeout;
        self.deadline.as_mut().reset(deadline);
    }

    fn close(&self, reason: &'static str) -> io::Error {
        counter!(self.closed, "reason" => reason).increment(1);
        io::ErrorKind::TimedOut.into()
    }
}
