//! Asks the admin endpoint of the running agent.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::time::Duration;

use serde::de::DeserializeOwned;

use crate::config::Config;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// A slow disk may make the agent think for a while.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// No document is larger: some hundred bytes per generation and source.
const ANSWER_BYTES_MAX: u64 = 64 << 20;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum AskError {
    /// Nobody listens.
    #[error("no agent answers on {address} (admin.listen): {source}")]
    NotRunning {
        /// Address asked.
        address: SocketAddr,
        /// What the operating system said.
        #[source]
        source: io::Error,
    },
    /// Something listens that is no agent, or another version.
    #[error("what answers on {address} (admin.listen) is no agent of this version: {message}")]
    NoAgent {
        /// Address asked.
        address: SocketAddr,
        /// What is wrong.
        message: String,
    },
}

/// Returns the JSON document under `path`.
pub(super) fn ask<T: DeserializeOwned>(config: &Config, path: &str) -> Result<T, AskError> {
    let address = reachable(config.admin.listen);
    let (code, body) =
        get(address, path).map_err(|source| AskError::NotRunning { address, source })?;
    let failed = |message: String| AskError::NoAgent { address, message };
    if code != 200 {
        return Err(failed(format!("{path} gives status {code}")));
    }
    serde_json::from_slice(&body).map_err(|error| failed(error.to_string()))
}

/// Returns where a listener on every address of this host can be reached.
fn reachable(listen: SocketAddr) -> SocketAddr {
    let ip = match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    SocketAddr::new(ip, listen.port())
}

fn get(address: SocketAddr, path: &str) -> io::Result<(u16, Vec<u8>)> {
    let mut stream = TcpStream::connect_timeout(&address, CONNECT_TIMEOUT)?;
    stream.set_read_timeout(Some(ANSWER_TIMEOUT))?;
    stream.set_write_timeout(Some(CONNECT_TIMEOUT))?;
    let request = format!("GET {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes())?;
    let mut answer = Vec::new();
    stream.take(ANSWER_BYTES_MAX).read_to_end(&mut answer)?;
    let unfinished = || io::Error::from(io::ErrorKind::UnexpectedEof);
    let end = answer
        .windows(4)
        .position(|bytes| bytes == b"\r\n\r\n")
        .ok_or_else(unfinished)?;
    let head = String::from_utf8_lossy(&answer[..end]);
    let code = head.split(' ').nth(1).and_then(|code| code.parse().ok());
    Ok((code.ok_or_else(unfinished)?, answer[end + 4..].to_vec()))
}
