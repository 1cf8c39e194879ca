//! Tells systemd how a service stands (`sd_notify(3)`): ready, reloading, stopping, alive.
//!
//! Without `NOTIFY_SOCKET` in the environment nothing is sent, so that a program behaves the same under
//! another supervisor.

use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

/// How a service stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// The service does its work.
    Ready,
    /// It reads its settings again; [`State::Ready`] follows.
    Reloading,
    /// It ends.
    Stopping,
    /// It is alive, within the interval of [`watchdog_interval`].
    Alive,
}

impl State {
    fn as_str(self) -> &'static str {
        match self {
            Self::Ready => "READY=1",
            Self::Reloading => "RELOADING=1",
            Self::Stopping => "STOPPING=1",
            Self::Alive => "WATCHDOG=1",
        }
    }
}

/// Tells the supervisor; a failure is logged, because the service works all the same.
pub fn notify(state: State) {
    if let Some(socket) = std::env::var_os("NOTIFY_SOCKET")
        && let Err(error) = send(&socket, state.as_str())
    {
        tracing::warn!(%error, ?state, "the supervisor cannot be told");
    }
}

fn send(socket: &OsStr, text: &str) -> io::Result<()> {
    let address = match socket.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        _ => SocketAddr::from_pathname(socket)?,
    };
    let sender = UnixDatagram::unbound()?;
    // A supervisor that does not read must not hold the service.
    sender.set_write_timeout(Some(Duration::from_millis(200)))?;
    sender.send_to_addr(text.as_bytes(), &address).map(drop)
}

/// Returns how often [`State::Alive`] is due: half of what the supervisor waits, `None` when it does
/// not watch this process.
pub fn watchdog_interval() -> Option<Duration> {
    let variable = |name| std::env::var(name).ok();
    let own = variable("WATCHDOG_PID").is_none_or(|pid| pid == std::process::id().to_string());
    let micros: u64 = variable("WATCHDOG_USEC")?.parse().ok()?;
    (own && micros > 0).then(|| Duration::from_micros(micros / 2))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_kinds_of_socket_are_told() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notify");
        let name = format!("headwater-notify-{}", std::process::id());
        let abstract_name = SocketAddr::from_abstract_name(&name).unwrap();
        let cases = [
            (UnixDatagram::bind(&path).unwrap(), path.into_os_string()),
            (
                UnixDatagram::bind_addr(&abstract_name).unwrap(),
                format!("@{name}").into(),
            ),
        ];
        for (receiver, socket) in cases {
            send(&socket, State::Ready.as_str()).unwrap();
            let mut bytes = [0; 64];
            let length = receiver.recv(&mut bytes).unwrap();
            assert_eq!(&bytes[..length], b"READY=1");
        }
    }
}
