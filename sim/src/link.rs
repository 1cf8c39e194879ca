//! The network between agents and collectors, at the level of messages: each is encoded, lost, doubled
//! or delayed, and decoded at the other end. Delays differ, so messages overtake each other.
//!
//! QUIC would hide most of this and does so in the integration tests; what an application must stand
//! is what can be seen when connections break and answers stay out.

use std::future::Future;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use futures::FutureExt;
use futures::future::BoxFuture;
use headwater_agent::buffer::Buffer;
use headwater_agent::config::CollectorConfig;
use headwater_agent::shipper::channel::{Awaited, Channel, Network};
use headwater_agent::shipper::{Credentials, SessionError};
use headwater_collector::intake::{BodyCut, Intake, Source};
use headwater_protocol::{AgentId, BatchHeader, BatchReply, Hello, HelloReply, Welcome, frame};
use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use crate::collector::Life;
use crate::host::Point;
use crate::world::World;

static CHANNELS: AtomicUsize = AtomicUsize::new(0);

/// The network as one agent sees it.
#[derive(Debug)]
pub(crate) struct Links {
    pub(crate) world: Arc<World>,
    pub(crate) agent: AgentId,
    pub(crate) buffer: Buffer,
}

fn broken() -> SessionError {
    SessionError::Stream("the connection broke".to_owned())
}

impl Network for Links {
    fn connect<'a>(
        &'a self,
        _: &'a CollectorConfig,
        _: &'a Credentials,
        collector: &'a str,
    ) -> BoxFuture<'a, Result<Arc<dyn Channel>, SessionError>> {
        async move {
            let world = &self.world;
            world.way().await;
            if world.knobs.strikes(&world.dice, world.knobs.lost) {
                world.trace.count("link: no connection");
                std::future::pending::<()>().await;
            }
            let Some(life) = world.life(collector) else {
                return Err(broken());
            };
            let closed = CancellationToken::new();
            life.host.connected(closed.clone());
            world.connected(closed.clone());
            let channel = Line {
                id: CHANNELS.fetch_add(1, Ordering::Relaxed),
                world: world.clone(),
                agent: self.agent.clone(),
                buffer: self.buffer.clone(),
                collector: collector.to_owned(),
                life,
                closed,
                intake: Arc::default(),
                sent: AtomicU64::new(0),
                arrived: Arc::default(),
            };
            Ok(Arc::new(channel) as Arc<dyn Channel>)
        }
        .boxed()
    }
}

/// One connection.
struct Line {
    id: usize,
    world: Arc<World>,
    agent: AgentId,
    buffer: Buffer,
    /// Its address.
    collector: String,
    life: Arc<Life>,
    closed: CancellationToken,
    intake: Arc<Mutex<Option<Arc<Intake>>>>,
    /// Batches that were sent.
    sent: AtomicU64,
    /// The highest number of those that have arrived.
    arrived: Arc<AtomicU64>,
}

impl std::fmt::Debug for Line {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Line")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

impl Line {
    /// Waits for `outcome`, or for the end of the connection.
    async fn unless_closed<T>(
        &self,
        outcome: impl Future<Output = Option<T>>,
    ) -> Result<T, SessionError> {
        tokio::select! {
            biased;
            () = self.closed.cancelled() => Err(broken()),
            outcome = outcome => outcome.ok_or_else(broken),
        }
    }

    /// Counts what the agent is told of numbers in use.
    fn note_used(&self, welcome: &Welcome) {
        let Some(used) = welcome.used_through else {
            return;
        };
        self.world
            .trace
            .count("agent: welcomed with numbers in use");
        let head = self.buffer.head();
        let known = head.stretch.sequence(head.sent.max(head.acked));
        if used > known && welcome.committed_through <= known {
            self.world
                .trace
                .count("agent: numbers in use by a former life alone");
        }
    }

    /// Lets the collector hear of a new session of the agent; the one before it is closed.
    fn register(&self) {
        let mut sessions = self.life.sessions.lock();
        let old = sessions.insert(self.agent.clone(), self.closed.clone());
        if let Some(old) = old
            && !old.is_cancelled()
        {
            self.world.trace.count("session: replaced by a new one");
            old.cancel();
        }
    }
}

/// What the collector does with a Hello.
async fn serve_hello(
    world: &Arc<World>,
    life: Arc<Life>,
    agent: AgentId,
    bytes: Vec<u8>,
    welcomed: Arc<Mutex<Option<Arc<Intake>>>>,
) -> HelloReply {
    let hello: Hello = frame::decode(&bytes[4..]).expect("an agent speaks the protocol");
    match life.engine.welcome(&agent, &hello).await {
        Ok((intake, welcome)) => {
            // The agent trims by it, as by an ack.
            let through = welcome.committed_through;
            world.truth.acked(world, &agent, hello.epoch, through);
            *welcomed.lock() = Some(Arc::new(intake));
            HelloReply::Welcome(welcome)
        }
        Err(reason) => HelloReply::Refused { reason },
    }
}

impl Channel for Line {
    fn id(&self) -> usize {
        self.id
    }

    fn remote_address(&self) -> SocketAddr {
        SocketAddr::from((Ipv4Addr::LOCALHOST, 7080))
    }

    fn greet<'a>(&'a self, hello: &'a Hello) -> BoxFuture<'a, Result<HelloReply, SessionError>> {
        async move {
            let bytes = frame::encode(hello);
            let (answer, answered) = oneshot::channel();
            let (world, life, agent) = (self.world.clone(), self.life.clone(), self.agent.clone());
            let intake = self.intake.clone();
            self.life.host.spawn(async move {
                world.way().await;
                let reply = serve_hello(&world, life.clone(), agent, bytes, intake).await;
                life.host.pass(Point::Other).await;
                let bytes = frame::encode(&reply);
                tokio::spawn(async move {
                    world.way().await;
                    drop(answer.send(bytes));
                });
            });
            let bytes = self.unless_closed(answered.map(Result::ok)).await?;
            let reply = frame::decode(&bytes[4..]).expect("a collector speaks the protocol");
            if let HelloReply::Welcome(welcome) = &reply {
                self.register();
                self.life.host.met(&self.agent);
                self.world.trace.count("session: welcomed");
                if self.world.welcomed(&self.agent, &self.collector) {
                    self.world.trace.count("agent: moved");
                }
                self.note_used(welcome);
                self.world.trace.line(format_args!(
                    "{} is welcomed by {}: epoch {} is committed through {}",
                    self.agent, self.life.host.name, hello.epoch, welcome.committed_through
                ));
            }
            Ok(reply)
        }
        .boxed()
    }

    fn send(
        &self,
        header: BatchHeader,
        body: Vec<u8>,
    ) -> BoxFuture<'_, Result<Box<dyn Awaited>, SessionError>> {
        async move {
            let world = &self.world;
            let Some(intake) = self.intake.lock().clone() else {
                return Err(SessionError::Protocol("a batch before Welcome"));
            };
            if self.closed.is_cancelled() {
                return Err(broken());
            }
            let (answer, answered) = oneshot::channel();
            let batch = Batch {
                agent: self.agent.clone(),
                header: frame::encode(&header),
                body,
                intake,
                answer: Arc::new(Mutex::new(Some(answer))),
                closed: self.closed.clone(),
            };
            world.trace.count("batch: sent");
            let copies = if world.knobs.strikes(&world.dice, world.knobs.lost) {
                world.trace.count("link: a batch is lost");
                0
            } else if world.knobs.strikes(&world.dice, world.knobs.doubled) {
                world.trace.count("link: a batch is doubled");
                2
            } else {
                1
            };
            let number = self.sent.fetch_add(1, Ordering::Relaxed);
            for _ in 0..copies {
                let (world, life, batch) = (world.clone(), self.life.clone(), batch.clone());
                let arrived = self.arrived.clone();
                self.life.host.spawn(async move {
                    world.way().await;
                    if arrived.fetch_max(number, Ordering::Relaxed) > number {
                        world.trace.count("link: a batch overtakes another");
                    }
                    batch.serve(&world, &life).await;
                });
            }
            Ok(Box::new(Answer {
                answered,
                _unanswered: batch,
                closed: self.closed.clone(),
            }) as Box<dyn Awaited>)
        }
        .boxed()
    }

    fn is_closed(&self) -> bool {
        self.closed.is_cancelled()
    }

    fn closed(&self) -> BoxFuture<'_, SessionError> {
        async {
            self.closed.cancelled().await;
            broken()
        }
        .boxed()
    }

    fn grants(&self) -> u64 {
        0
    }

    fn close(&self) {
        self.closed.cancel();
    }

    fn left(&self) -> BoxFuture<'static, ()> {
        futures::future::ready(()).boxed()
    }
}

/// A batch on its way.
#[derive(Clone)]
struct Batch {
    agent: AgentId,
    header: Vec<u8>,
    body: Vec<u8>,
    intake: Arc<Intake>,
    answer: Arc<Mutex<Option<oneshot::Sender<Vec<u8>>>>>,
    closed: CancellationToken,
}

impl Batch {
    /// What the collector does with it.
    async fn serve(self, world: &Arc<World>, life: &Arc<Life>) {
        let host = &life.host;
        host.pass(Point::Other).await;
        let mut message = Message {
            header: &self.header,
            body: Some(self.body),
        };
        let reply = tokio::select! {
            biased;
            reply = self.intake.reply(&mut message) => reply,
            () = self.closed.cancelled() => return,
        };
        let point = match &reply {
            BatchReply::Ack { .. } => Point::BeforeAck,
            BatchReply::Retry { .. } | BatchReply::Refused { .. } => Point::Other,
        };
        host.pass(point).await;
        let header: BatchHeader = frame::decode(&self.header[4..]).expect("decoded before");
        match &reply {
            BatchReply::Ack {
                committed_through, ..
            } => {
                world.trace.count("answer: ack");
                let through = *committed_through;
                world.truth.acked(world, &self.agent, header.epoch, through);
            }
            BatchReply::Retry { .. } => world.trace.count("answer: retry"),
            BatchReply::Refused { .. } => world.trace.count("answer: refused"),
        }
        world.trace.line(format_args!(
            "{} answers {} epoch {} from {} with {reply:?}",
            host.name, self.agent, header.epoch, header.first_sequence
        ));
        if world.knobs.strikes(&world.dice, world.knobs.lost) {
            world.trace.count("link: an answer is lost");
            return;
        }
        let bytes = frame::encode(&reply);
        let (world, answer) = (world.clone(), self.answer);
        tokio::spawn(async move {
            world.way().await;
            if let Some(answer) = answer.lock().take() {
                drop(answer.send(bytes));
            }
        });
    }
}

struct Message<'a> {
    header: &'a [u8],
    body: Option<Vec<u8>>,
}

impl Source for Message<'_> {
    async fn header(&mut self) -> Result<BatchHeader, String> {
        frame::decode(&self.header[4..]).map_err(|error| error.to_string())
    }

    async fn body(&mut self, bytes_max: usize) -> Result<Vec<u8>, BodyCut> {
        let body = self.body.take().ok_or(BodyCut::Lost)?;
        if body.len() > bytes_max {
            return Err(BodyCut::TooLong);
        }
        Ok(body)
    }
}

struct Answer {
    answered: oneshot::Receiver<Vec<u8>>,
    /// A batch that was lost is not answered, which is no broken connection.
    _unanswered: Batch,
    closed: CancellationToken,
}

impl Awaited for Answer {
    fn reply(&mut self) -> BoxFuture<'_, Result<BatchReply, SessionError>> {
        async {
            tokio::select! {
                biased;
                bytes = &mut self.answered => {
                    let bytes = bytes.map_err(|_| broken())?;
                    frame::decode(&bytes[4..])
                        .map_err(|_| SessionError::Protocol("a message cannot be decoded"))
                }
                () = self.closed.cancelled() => Err(broken()),
            }
        }
        .boxed()
    }
}
