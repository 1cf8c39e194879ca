//! Listeners that together hold a bounded number of connections; more wait in the kernel's queue. One
//! that says nothing for too long is closed, so that silent clients cannot keep the others out.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::extract::connect_info::Connected;
use axum::serve::{IncomingStream, Listener};
use metrics::gauge;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, Sleep};
use tokio_util::either::Either;

use super::places::Places;
use super::socket::Socket;
use crate::metrics::CONNECTIONS;
use crate::reload::Settings;

/// What is listened on.
pub(super) enum Door {
    Tcp(TcpListener),
    Unix(Socket),
}

impl Door {
    async fn accept(&self) -> io::Result<(Stream, Peer)> {
        match self {
            Self::Tcp(listener) => {
                let (stream, peer) = listener.accept().await?;
                if let Err(error) = stream.set_nodelay(true) {
                    tracing::debug!(%error, "TCP_NODELAY cannot be set");
                }
                Ok((Stream::Left(stream), Peer(Some(peer))))
            }
            Self::Unix(socket) => Ok((Stream::Right(socket.accept().await?), Peer(None))),
        }
    }
}

type Stream = Either<TcpStream, UnixStream>;

/// A listener; several share the places.
pub(super) struct Connections {
    door: Door,
    places: Places,
    settings: Settings,
}

impl Connections {
    pub(super) fn new(door: Door, places: Places, settings: Settings) -> Self {
        Self {
            door,
            places,
            settings,
        }
    }
}

impl Listener for Connections {
    type Io = Connection;
    type Addr = Peer;

    async fn accept(&mut self) -> (Connection, Peer) {
        self.places.resize(self.settings.now().http.connections_max);
        let place = self.places.acquire().await;
        loop {
            match self.door.accept().await {
                Ok((stream, peer)) => {
                    let idle_timeout =
                        Duration::from_millis(self.settings.now().http.idle_timeout_ms);
                    gauge!(CONNECTIONS).increment(1.0);
                    let connection = Connection {
                        stream,
                        idle_timeout,
                        idle: Box::pin(tokio::time::sleep(idle_timeout)),
                        _place: place,
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

    fn local_addr(&self) -> io::Result<Peer> {
        Ok(match &self.door {
            Door::Tcp(listener) => Peer(Some(listener.local_addr()?)),
            Door::Unix(_) => Peer(None),
        })
    }
}

/// Address of the client of a connection; `None` on the Unix socket.
#[derive(Debug, Clone, Copy)]
pub(super) struct Peer(pub(super) Option<SocketAddr>);

impl Connected<IncomingStream<'_, Connections>> for Peer {
    fn connect_info(stream: IncomingStream<'_, Connections>) -> Self {
        *stream.remote_addr()
    }
}

/// A connection and its place.
pub(super) struct Connection {
    stream: Stream,
    idle_timeout: Duration,
    idle: Pin<Box<Sleep>>,
    _place: OwnedSemaphorePermit,
}

impl Drop for Connection {
    fn drop(&mut self) {
        gauge!(CONNECTIONS).decrement(1.0);
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let read = Pin::new(&mut self.stream).poll_read(cx, buffer);
        if read.is_ready() {
            let deadline = Instant::now() + self.idle_timeout;
            self.idle.as_mut().reset(deadline);
            return read;
        }
        self.idle
            .as_mut()
            .poll(cx)
            .map(|()| Err(io::ErrorKind::TimedOut.into()))
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
