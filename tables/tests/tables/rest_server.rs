//! Apache Iceberg's own REST catalog, as a process of the test that uses it.
//!
//! One process has as many catalogs as are asked for, so one is enough for the tests of a binary;
//! those that kill it start their own. It ends with the test, however that ends.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{OnceLock, mpsc};
use std::time::Duration;

use tempfile::TempDir;

/// A Java program on a machine with a lot to do.
const STARTS_WITHIN: Duration = Duration::from_secs(120);

/// A server, stopped like a crash when it is dropped.
pub(crate) struct RestServer {
    directory: PathBuf,
    port: u16,
    process: Option<Child>,
    _temporary: Option<TempDir>,
}

impl RestServer {
    pub(crate) fn start() -> Self {
        let temporary = TempDir::new().unwrap();
        let mut server = Self {
            directory: temporary.path().to_owned(),
            port: 0,
            process: None,
            _temporary: Some(temporary),
        };
        server.start_again();
        server
    }

    /// Starts it where it was, on the port that it had.
    pub(crate) fn start_again(&mut self) {
        assert!(self.process.is_none(), "it runs");
        let classpath = std::env::var("HEADWATER_TEST_ICEBERG_REST").expect(
            "set HEADWATER_TEST_ICEBERG_REST to the classpath of Iceberg's REST fixture; `cargo xtask test` fetches it",
        );
        let source =
            Path::new(env!("CARGO_MANIFEST_DIR")).join("../xtask/e2e/java/RestCatalogs.java");
        let mut process = Command::new("java")
            .args(["-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"])
            .arg("-Dorg.slf4j.simpleLogger.defaultLogLevel=off")
            .args(["-cp", &classpath])
            .arg(source)
            .arg(&self.directory)
            .arg(self.port.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("java runs; `cargo xtask test` installs it");
        let output = process.stdout.take().unwrap();
        self.port = port_said(output);
        self.process = Some(process);
    }

    /// Returns when it has gone.
    pub(crate) fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill().unwrap();
            process.wait().unwrap();
        }
    }

    pub(crate) fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Returns the address of the catalog `name`, which is made when it is first asked for.
    pub(crate) fn catalog(&self, name: &str) -> String {
        format!("rest+http://{}/{name}", self.address())
    }
}

impl Drop for RestServer {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Returns the port that the server says once it listens.
fn port_said(output: ChildStdout) -> u16 {
    let (say, said) = mpsc::channel();
    std::thread::spawn(move || {
        let mut line = String::new();
        let read = BufReader::new(output).read_line(&mut line);
        // Nobody listens any more when it came too late.
        say.send(read.map(|_| line)).ok();
    });
    let line = said.recv_timeout(STARTS_WITHIN);
    let line = line.expect("the server starts within its bound").unwrap();
    line.trim().parse().expect("the server says its port")
}

/// Returns the address of a new catalog of the server that the tests of this binary share.
pub(crate) fn new_catalog() -> String {
    static SHARED: OnceLock<RestServer> = OnceLock::new();
    static CATALOGS: AtomicUsize = AtomicUsize::new(0);
    let name = format!("catalog_{}", CATALOGS.fetch_add(1, Ordering::Relaxed));
    SHARED.get_or_init(RestServer::start).catalog(&name)
}
