//! Where requests come in: the TCP port, or the Unix socket beside it.

use std::io;
use std::net::SocketAddr;

use axum::extract::connect_info::Connected;
use axum::serve::IncomingStream;
use headwater_service::connections::{self, Connections};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio_util::either::Either;

use super::socket::Socket;

/// What is listened on.
pub(super) enum Door {
    Tcp(TcpListener),
    Unix(Socket),
}

impl connections::Door for Door {
    type Stream = Either<TcpStream, UnixStream>;
    type Peer = Peer;

    async fn accept(&self) -> io::Result<(Self::Stream, Peer)> {
        match self {
            Self::Tcp(listener) => {
                let (stream, peer) = connections::Door::accept(listener).await?;
                Ok((Either::Left(stream), Peer(Some(peer))))
            }
            Self::Unix(socket) => Ok((Either::Right(socket.accept().await?), Peer(None))),
        }
    }

    fn local_addr(&self) -> io::Result<Peer> {
        Ok(match self {
            Self::Tcp(listener) => Peer(Some(listener.local_addr()?)),
            Self::Unix(_) => Peer(None),
        })
    }
}

/// Address of the client of a connection; `None` on the Unix socket.
#[derive(Debug, Clone, Copy)]
pub(super) struct Peer(pub(super) Option<SocketAddr>);

impl Connected<IncomingStream<'_, Connections<Door>>> for Peer {
    fn connect_info(stream: IncomingStream<'_, Connections<Door>>) -> Self {
        *stream.remote_addr()
    }
}
