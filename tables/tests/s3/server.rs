//! A real S3 service for tests: `s3s-fs` on a loopback port, which checks signatures, and in front of it
//! whoever breaks what a test wants broken.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use headwater_tables::{CatalogConfig, S3Config};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use parking_lot::Mutex;
use s3s::auth::SimpleAuth;
use s3s::service::{S3Service, S3ServiceBuilder};
use tempfile::TempDir;
use tokio::net::TcpSocket;
use tokio::task::{JoinHandle, JoinSet};

pub(crate) const BUCKET: &str = "lake";
pub(crate) const KEY_ID: &str = "AKIAHEADWATERTESTS";
pub(crate) const SECRET: &str = "correct/horse+battery=staple";

/// What happens to a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    /// It is done and answered.
    Served,
    /// It is answered with this status and not done.
    Refused(u16),
    /// The connection ends before it is done.
    Cut,
    /// It is done, and the connection ends before the answer.
    AnswerLost,
    /// Nothing ever happens.
    Silence,
}

/// A request, as the breaker sees it.
#[derive(Debug, Clone)]
pub(crate) struct Asked {
    pub(crate) method: String,
    /// The bucket and the key.
    pub(crate) path: String,
    /// What follows the `?`.
    pub(crate) query: String,
}

impl Asked {
    /// Whether a whole file is put.
    pub(crate) fn is_put(&self) -> bool {
        self.method == "PUT" && self.query.is_empty()
    }
}

type Breaker = Arc<dyn Fn(&Asked) -> Fate + Send + Sync>;

/// A running service. It ends when it is dropped.
pub(crate) struct S3 {
    directory: TempDir,
    address: SocketAddr,
    /// Keeps the port while the service is away.
    _port: TcpSocket,
    handler: Arc<Handler>,
    serving: Option<JoinHandle<Infallible>>,
}

struct Handler {
    s3: S3Service,
    breaker: Mutex<Breaker>,
    asked: Mutex<Vec<(Asked, Fate)>>,
}

impl S3 {
    /// Starts a service with one empty bucket.
    pub(crate) fn start() -> Self {
        Self::start_with(|_| ())
    }

    /// Starts a service whose directory of buckets was filled before.
    pub(crate) fn start_with(fill: impl FnOnce(&std::path::Path)) -> Self {
        let directory = TempDir::new().unwrap();
        std::fs::create_dir(directory.path().join(BUCKET)).unwrap();
        fill(directory.path());
        let files = s3s_fs::FileSystem::new(directory.path()).unwrap();
        let mut builder = S3ServiceBuilder::new(files);
        builder.set_auth(SimpleAuth::from_single(KEY_ID, SECRET));
        let port = bound("127.0.0.1:0".parse().unwrap());
        let mut service = Self {
            directory,
            address: port.local_addr().unwrap(),
            _port: port,
            handler: Arc::new(Handler {
                s3: builder.build(),
                breaker: Mutex::new(Arc::new(|_| Fate::Served)),
                asked: Mutex::default(),
            }),
            serving: None,
        };
        service.come_back();
        service
    }

    /// Decides from now on what happens to each request.
    pub(crate) fn breaks(&self, breaker: impl Fn(&Asked) -> Fate + Send + Sync + 'static) {
        *self.handler.breaker.lock() = Arc::new(breaker);
    }

    /// Serves every request from now on.
    pub(crate) fn is_well(&self) {
        self.breaks(|_| Fate::Served);
    }

    /// Returns how many requests had this fate.
    pub(crate) fn count(&self, counts: impl Fn(&Asked, Fate) -> bool) -> usize {
        let asked = self.handler.asked.lock();
        asked.iter().filter(|it| counts(&it.0, it.1)).count()
    }

    /// Ends the service and all its connections; new ones are refused.
    pub(crate) async fn go_away(&mut self) {
        if let Some(serving) = self.serving.take() {
            serving.abort();
            serving.await.unwrap_err();
        }
    }

    /// Serves again, on the same port.
    pub(crate) fn come_back(&mut self) {
        let listener = bound(self.address).listen(64).unwrap();
        let handler = self.handler.clone();
        self.serving = Some(tokio::spawn(async move {
            // Aborted together with this task.
            let mut connections = JoinSet::new();
            loop {
                while connections.try_join_next().is_some() {}
                let (stream, _) = listener.accept().await.unwrap();
                stream.set_nodelay(true).unwrap();
                connections.spawn(serve(stream, handler.clone()));
            }
        }));
    }

    /// Returns the catalog with its tables in the bucket.
    pub(crate) fn warehouse(&self, catalog: CatalogConfig) -> CatalogConfig {
        let file = self.directory.path().join("credentials");
        std::fs::write(&file, format!("{KEY_ID}\n{SECRET}\n")).unwrap();
        CatalogConfig {
            warehouse: format!("s3://{BUCKET}/some/where"),
            s3: S3Config {
                endpoint: Some(self.endpoint()),
                credentials_file: Some(file),
                ..S3Config::default()
            },
            ..catalog
        }
    }

    pub(crate) fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Returns the directory that holds the bucket's files.
    pub(crate) fn bucket(&self) -> PathBuf {
        self.directory.path().join(BUCKET)
    }

    /// Returns the keys of all files of the bucket, in order.
    pub(crate) fn keys(&self) -> Vec<String> {
        let mut keys = Vec::new();
        let mut left = vec![self.bucket()];
        while let Some(directory) = left.pop() {
            for entry in std::fs::read_dir(directory).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    left.push(path);
                } else {
                    let key = path.strip_prefix(self.bucket()).unwrap();
                    keys.push(key.display().to_string());
                }
            }
        }
        keys.sort();
        keys
    }
}

impl Drop for S3 {
    fn drop(&mut self) {
        if let Some(serving) = &self.serving {
            serving.abort();
        }
    }
}

/// Takes a port that others of this process may take as well.
fn bound(address: SocketAddr) -> TcpSocket {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_reuseaddr(true).unwrap();
    socket.set_reuseport(true).unwrap();
    socket.bind(address).unwrap();
    socket
}

async fn serve(stream: tokio::net::TcpStream, handler: Arc<Handler>) {
    let service = service_fn(move |request| {
        let handler = handler.clone();
        async move { handler.handle(request).await }
    });
    let server = auto::Builder::new(TokioExecutor::new());
    let connection = server.serve_connection(TokioIo::new(stream), service);
    // It ends with an error where a test cuts it.
    connection.await.ok();
}

impl Handler {
    async fn handle(
        &self,
        request: hyper::Request<hyper::body::Incoming>,
    ) -> io::Result<hyper::Response<s3s::Body>> {
        let asked = Asked {
            method: request.method().to_string(),
            path: request.uri().path().to_owned(),
            query: request.uri().query().unwrap_or_default().to_owned(),
        };
        let breaker = self.breaker.lock().clone();
        let fate = breaker(&asked);
        self.asked.lock().push((asked, fate));
        let cut = || io::Error::other("cut");
        match fate {
            Fate::Cut => return Err(cut()),
            Fate::Silence => return futures::future::pending().await,
            Fate::Refused(status) => {
                let body = "<Error><Code>SlowDown</Code><Message>Not now</Message></Error>";
                let answer = hyper::Response::builder().status(status);
                return Ok(answer.body(body.to_owned().into()).unwrap());
            }
            Fate::Served | Fate::AnswerLost => {}
        }
        let done = hyper::service::Service::call(&self.s3, request).await;
        let answer = done.map_err(|error| io::Error::other(format!("{error:?}")))?;
        if fate == Fate::AnswerLost {
            Err(cut())
        } else {
            Ok(answer)
        }
    }
}
