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
        let is_first = request.bytes == 0;
        request.bytes += bytes as u64;
        if request.bytes > request.bytes_max {
            return Err(self.close("request_bytes"));
        }
        if is_first {
            self.restart();
        }
        Ok(())
    }

    /// Notes that `bytes` of an answer were written.
    pub(super) fn told(&mut self, bytes: usize) {
        if bytes == 0 {
            return;
        }
        if let Some(request) = &mut self.request {
            request.is_told = true;
        }
        self.restart();
    }

    /// Notes that all there was to write is written: after a part of an answer, that was its end.
    pub(super) fn flushed(&mut self) {
        if let Some(request) = self.request.as_mut().filter(|it| it.is_told) {
            request.is_told = false;
            request.bytes = 0;
            request.member.fall_silent();
        }
    }

    /// Resolves to an error when what is waited for has not come for too long, or an answer has not been
    /// read for so long, or the place is called for.
    pub(super) fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        let called = |it: &mut Request| it.member.poll_called(cx).is_ready();
        if self.request.as_mut().is_some_and(called) {
            return Poll::Ready(self.close("gave_way"));
        }
        self.deadline
            .as_mut()
            .poll(cx)
            .map(|()| self.close("timeout"))
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

#[cfg(test)]
mod tests {
    use super::*;

    fn watch(patience: Patience) -> Watch {
        let bounds = Bounds {
            connections_max: 1,
            timeout: Duration::from_secs(3600),
            patience,
        };
        Watch::new(bounds, &Silent::default(), "unused")
    }

    /// Says whether the wait begins again with what `happens`.
    fn restarts(watch: &mut Watch, happens: impl FnOnce(&mut Watch)) -> bool {
        let before = watch.deadline.deadline();
        happens(watch);
        watch.deadline.deadline() > before
    }

    #[tokio::test]
    async fn a_request_and_each_part_of_its_answer_that_is_read_have_the_whole_time() {
        let mut watch = watch(Patience::Answers {
            request_bytes_max: 100,
        });
        for _ in 0..2 {
            assert!(restarts(&mut watch, |it| it.heard(10).unwrap()), "asked");
            assert!(
                !restarts(&mut watch, |it| it.heard(10).unwrap()),
                "its rest"
            );
            assert!(!restarts(&mut watch, |it| it.heard(0).unwrap()), "no more");
            assert!(restarts(&mut watch, |it| it.told(1000)), "answered");
            assert!(restarts(&mut watch, |it| it.told(1000)), "its rest");
            assert!(!restarts(&mut watch, Watch::flushed));
        }
        assert!(watch.heard(101).is_err(), "above the bound");
    }

    #[tokio::test]
    async fn a_large_request_may_come_slowly() {
        let mut watch = watch(Patience::Bytes);
        for _ in 0..2 {
            assert!(restarts(&mut watch, |it| it.heard(1000).unwrap()));
            assert!(restarts(&mut watch, |it| it.told(1000)));
        }
    }
}
