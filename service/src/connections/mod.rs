//! Listeners that together hold a bounded number of connections, none of them for longer than it is of
//! use: silent clients cannot keep the others out.
//!
//! More connections wait in the kernel's queue. What a connection may do meanwhile is [`Patience`].

mod silent;
mod watch;

use std::fmt::Debug;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::serve::Listener;
use metrics::gauge;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::OwnedSemaphorePermit;

use crate::places::Places;
use silent::Silent;
use watch::Watch;

/// What is listened on.
pub trait Door: Send + Sync + 'static {
    /// A connection.
    type Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static;
    /// Who is at its other end.
    type Peer: Debug + Send;

    /// Waits for the next connection. Cancelling the wait loses none.
    fn accept(&self) -> impl Future<Output = io::Result<(Self::Stream, Self::Peer)>> + Send;

    /// Returns the address that is listened on.
    ///
    /// # Errors
    /// What the operating system says.
    fn local_addr(&self) -> io::Result<Self::Peer>;
}

impl Door for TcpListener {
    type Stream = TcpStream;
    type Peer = SocketAddr;

    async fn accept(&self) -> io::Result<(TcpStream, SocketAddr)> {
        let (stream, peer) = Self::accept(self).await?;
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "TCP_NODELAY cannot be set");
        }
        Ok((stream, peer))
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Self::local_addr(self)
    }
}

/// The bounds of open connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Most open connections.
    pub connections_max: usize,
    /// How long a connection stays open while what it is waited for does not come.
    pub timeout: Duration,
    /// What that is.
    pub patience: Patience,
}

/// What is waited for on an open connection; each time that it comes, the wait begins again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Patience {
    /// Any byte of the client, or that it reads one of an answer: for requests that are large and come
    /// slowly.
    Bytes,
    /// The first byte of a request, or that a byte of its answer is read: a head that never ends is no
    /// better than silence. A request above `request_bytes_max` ends the connection. Whoever takes the
    /// last place makes the connection go that has been silent for longest.
    Answers {
        /// Most bytes of a client between two answers.
        request_bytes_max: u64,
    },
}

/// The metrics that show the bounds.
#[derive(Debug, Clone, Copy)]
pub struct Shown {
    /// Gauge: open connections.
    pub open: &'static str,
    /// Counter: connections that were closed at a bound, label `reason`: one of [`REASONS`].
    pub closed: &'static str,
}

/// Why a connection is closed at a bound.
pub const REASONS: [&str; 3] = ["timeout", "request_bytes", "gave_way"];

/// A listener; several may share the places.
pub struct Connections<D> {
    door: D,
    places: Places,
    /// The place of the next connection, where one that is silent has given it up already.
    next: Option<OwnedSemaphorePermit>,
    silent: Silent,
    bounds: Arc<dyn Fn() -> Bounds + Send + Sync>,
    shown: Shown,
}

impl<D: Door> Connections<D> {
    /// Listens on `door`; `bounds` are asked for at each connection.
    pub fn new(
        door: D,
        places: Places,
        bounds: impl Fn() -> Bounds + Send + Sync + 'static,
        shown: Shown,
    ) -> Self {
        Self {
            door,
            places,
            next: None,
            silent: Silent::default(),
            bounds: Arc::new(bounds),
            shown,
        }
    }

    /// Waits for a place; silent connections give theirs up, as many as a lower bound asks for.
    async fn make_room(&self) -> OwnedSemaphorePermit {
        loop {
            let place = match self.places.try_acquire_many(1) {
                Some(place) => place,
                None => {
                    self.silent.call();
                    let place = self.places.acquire().await;
                    self.silent.take_back();
                    place
                }
            };
            if self.places.resize((self.bounds)().connections_max) {
                return place;
            }
            drop(place);
            self.places.resize((self.bounds)().connections_max);
        }
    }
}

impl<D: Door> Listener for Connections<D> {
    type Io = Connection<D::Stream>;
    type Addr = D::Peer;

    async fn accept(&mut self) -> (Connection<D::Stream>, D::Peer) {
        self.places.resize((self.bounds)().connections_max);
        let place = match self.next.take() {
            Some(place) => place,
            None => self.places.acquire().await,
        };
        loop {
            match self.door.accept().await {
                Ok((stream, peer)) => {
                    let open = Open::new(self.shown.open, place);
                    let bounds = (self.bounds)();
                    if matches!(bounds.patience, Patience::Answers { .. }) {
                        // It is served when the next one would have a place too: only somebody who is
                        // there makes others go.
                        self.next = Some(self.make_room().await);
                    }
                    let connection = Connection {
                        stream,
                        watch: Watch::new(bounds, &self.silent, self.shown.closed),
                        _open: open,
                    };
                    return (connection, peer);
                }
                Err(error) => {
                    // Out of descriptors, most likely: they come back when connections end.
                    tracing::warn!(%error, "a connection cannot be accepted");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }

    fn local_addr(&self) -> io::Result<D::Peer> {
        self.door.local_addr()
    }
}

/// A connection and its place.
pub struct Connection<S> {
    stream: S,
    watch: Watch,
    _open: Open,
}

/// The place, and that it shows.
struct Open {
    shown: &'static str,
    _place: OwnedSemaphorePermit,
}

impl Open {
    fn new(shown: &'static str, place: OwnedSemaphorePermit) -> Self {
        gauge!(shown).increment(1.0);
        Self {
            shown,
            _place: place,
        }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        gauge!(self.shown).decrement(1.0);
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Connection<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        match Pin::new(&mut self.stream).poll_read(cx, buffer) {
            Poll::Ready(Ok(())) => {
                let bytes = buffer.filled().len() - before;
                Poll::Ready(self.watch.heard(bytes))
            }
            Poll::Ready(error) => Poll::Ready(error),
            Poll::Pending => self.watch.poll_end(cx).map(Err),
        }
    }
}

impl<S: AsyncWrite + Unpin> Connection<S> {
    fn note(
        &mut self,
        cx: &mut Context<'_>,
        written: Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        match written {
            Poll::Ready(Ok(bytes)) => self.watch.told(bytes),
            Poll::Ready(Err(_)) => {}
            Poll::Pending => return self.watch.poll_end(cx).map(Err),
        }
        written
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Connection<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.note(cx, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, parts);
        self.note(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(cx);
        if let Poll::Ready(Ok(())) = flushed {
            self.watch.flushed();
        }
        flushed
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
