//! What a network, a proxy and a door-keeper between us and a REST catalog can do. Requests are passed
//! on to the real server, one connection each; only commits (`POST …/tables/NAME`) meet faults.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

/// What happens to a commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// It is done, and the client gets this status instead of the answer.
    DoneBut(u16),
    /// It is not passed on, and the client gets this status.
    NotDone(u16),
    /// It is not passed on, and the client gets the table as it is, as if that were the answer.
    Untrue,
    /// It is passed on twice, as by a proxy that tries again; the client gets the second answer.
    Twice,
    /// It is done, and no answer comes.
    DoneInSilence,
    /// It is done, and the connection breaks.
    DoneAndCut,
    /// It is not passed on, and no answer comes.
    Lost,
    /// It is done when [`Relay::let_go`] says so, long after the client has given up.
    Late,
    /// It is done, and the connection breaks when [`Relay::let_go`] says so.
    Held,
}

/// Asks everybody for a token, which it gives for a credential.
#[derive(Debug, Clone)]
pub(crate) struct DoorKeeper {
    /// What a form must contain to get a token.
    pub(crate) credential: String,
    /// The token that is good.
    pub(crate) token: String,
    /// How often a token was given.
    pub(crate) given: usize,
}

/// A relay before a REST server.
pub(crate) struct Relay {
    address: SocketAddr,
    state: Arc<State>,
}

struct State {
    server: String,
    faults: Mutex<VecDeque<Fault>>,
    /// Commits that have met a fault and were as far with the server as it lets them.
    struck: Semaphore,
    released: Semaphore,
    is_silent: AtomicBool,
    /// Moves the head of a table before each question about one.
    is_restless: AtomicBool,
    door_keeper: Mutex<Option<DoorKeeper>>,
    /// First lines of all requests.
    asked: Mutex<Vec<String>>,
}

impl Relay {
    /// Stands before `server`, `HOST:PORT`.
    pub(crate) async fn before(server: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let state = Arc::new(State {
            server: server.to_owned(),
            faults: Mutex::default(),
            struck: Semaphore::new(0),
            released: Semaphore::new(0),
            is_silent: AtomicBool::new(false),
            is_restless: AtomicBool::new(false),
            door_keeper: Mutex::default(),
            asked: Mutex::default(),
        });
        let relay = Self {
            address: listener.local_addr().unwrap(),
            state: state.clone(),
        };
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(serve(client, state.clone()));
            }
        });
        relay
    }

    /// Stands before the server of a catalog's address, and returns the address through it as well.
    pub(crate) async fn through(uri: &str) -> (Self, String) {
        let place = uri.split("//").nth(1).unwrap();
        let server = place.split('/').next().unwrap();
        let relay = Self::before(server).await;
        let uri = uri.replace(server, &relay.address.to_string());
        (relay, uri)
    }

    /// Lets the next commits meet these faults, one each.
    pub(crate) fn strike(&self, faults: &[Fault]) {
        self.state.faults.lock().extend(faults);
    }

    /// Waits until a commit has met its fault.
    pub(crate) async fn struck(&self) {
        self.state.struck.acquire().await.unwrap().forget();
    }

    /// Asserts that all faults were met.
    pub(crate) fn assert_all_met(&self) {
        assert!(self.state.faults.lock().is_empty(), "a fault was not met");
    }

    /// Ends the wait of one late or held commit.
    pub(crate) fn let_go(&self) {
        self.state.released.add_permits(1);
    }

    pub(crate) fn set_silent(&self, is_silent: bool) {
        self.state.is_silent.store(is_silent, Ordering::SeqCst);
    }

    pub(crate) fn set_restless(&self) {
        self.state.is_restless.store(true, Ordering::SeqCst);
    }

    pub(crate) fn post(&self, door_keeper: DoorKeeper) {
        *self.state.door_keeper.lock() = Some(door_keeper);
    }

    pub(crate) fn door_keeper(&self) -> DoorKeeper {
        self.state.door_keeper.lock().clone().unwrap()
    }

    /// Returns the first lines of all requests so far.
    pub(crate) fn asked(&self) -> Vec<String> {
        self.state.asked.lock().clone()
    }
}

/// A request: its first line and headers, and its body.
#[derive(Clone)]
struct Request {
    head: String,
    body: Vec<u8>,
}

impl Request {
    async fn read(client: &mut TcpStream) -> Option<Self> {
        let mut bytes = Vec::new();
        let end = loop {
            if let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
                break end;
            }
            if client.read_buf(&mut bytes).await.ok()? == 0 {
                return None;
            }
        };
        let head = String::from_utf8(bytes[..end].to_vec()).unwrap();
        let mut body = bytes.split_off(end + 4);
        let length = header(&head, "content-length").map_or(0, |it| it.parse().unwrap());
        while body.len() < length {
            if client.read_buf(&mut body).await.ok()? == 0 {
                return None;
            }
        }
        Some(Self { head, body })
    }

    fn line(&self) -> &str {
        self.head.lines().next().unwrap()
    }

    fn names_a_table(&self) -> bool {
        self.line().contains("/tables/")
    }

    /// Returns the question for what this request would change.
    fn get_instead(&self) -> Self {
        let line = self.line().replacen("POST", "GET", 1);
        Self {
            head: format!("{line}\r\nhost: relay"),
            body: Vec::new(),
        }
    }

    /// Passes the request on and returns the whole answer.
    async fn pass_on(&self, server: &str) -> Option<Vec<u8>> {
        let mut server = TcpStream::connect(server).await.ok()?;
        let lines = self.head.lines();
        let lines = lines.filter(|line| !line.to_lowercase().starts_with("connection:"));
        // Pages are as small as they can be.
        let head: Vec<_> = lines
            .map(|line| line.replace("pageSize=1000", "pageSize=1"))
            .collect();
        let head = format!("{}\r\nconnection: close\r\n\r\n", head.join("\r\n"));
        server.write_all(head.as_bytes()).await.ok()?;
        server.write_all(&self.body).await.ok()?;
        let mut answer = Vec::new();
        server.read_to_end(&mut answer).await.ok()?;
        (!answer.is_empty()).then_some(answer)
    }
}

fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    let mut fields = head.lines().filter_map(|line| line.split_once(':'));
    let found = fields.find(|(key, _)| key.eq_ignore_ascii_case(name));
    found.map(|(_, value)| value.trim())
}

fn answer(status: u16, body: &str) -> Vec<u8> {
    let length = body.len();
    format!("HTTP/1.1 {status} Said\r\ncontent-type: application/json\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}").into_bytes()
}

fn error(status: u16, message: &str) -> Vec<u8> {
    let body =
        format!(r#"{{"error":{{"message":"{message}","type":"OfTheRelay","code":{status}}}}}"#);
    answer(status, &body)
}

/// Waits until the client goes away.
async fn silence(client: &mut TcpStream) {
    while client
        .read_buf(&mut Vec::new())
        .await
        .is_ok_and(|read| read > 0)
    {}
}

async fn serve(mut client: TcpStream, state: Arc<State>) {
    let Some(request) = Request::read(&mut client).await else {
        return;
    };
    state.asked.lock().push(request.line().to_owned());
    if state.is_silent.load(Ordering::SeqCst) {
        return silence(&mut client).await;
    }
    if let Some(said) = state.at_the_door(&request) {
        return drop(client.write_all(&said).await);
    }
    if state.is_restless.load(Ordering::SeqCst) && request.names_a_table() {
        state.move_the_head(&request).await;
    }
    let is_commit = request.line().starts_with("POST") && request.names_a_table();
    let fault = is_commit.then(|| state.faults.lock().pop_front()).flatten();
    let said = match fault {
        Some(fault) => state.meet(fault, &request, &mut client).await,
        None => request.pass_on(&state.server).await,
    };
    if let Some(said) = said {
        drop(client.write_all(&said).await);
    }
}

impl State {
    /// Does what the fault says and returns what the client gets; a broken connection otherwise.
    async fn meet(
        self: &Arc<Self>,
        fault: Fault,
        request: &Request,
        client: &mut TcpStream,
    ) -> Option<Vec<u8>> {
        let is_passed_on = !matches!(
            fault,
            Fault::NotDone(_) | Fault::Untrue | Fault::Lost | Fault::Late
        );
        if is_passed_on {
            let said = request.pass_on(&self.server).await;
            let said = String::from_utf8(said.unwrap()).unwrap();
            assert!(said.starts_with("HTTP/1.1 200"), "not done: {said}");
        }
        self.struck.add_permits(1);
        match fault {
            Fault::DoneBut(status) | Fault::NotDone(status) => Some(error(status, "a fault")),
            Fault::Twice => request.pass_on(&self.server).await,
            Fault::Untrue => request.get_instead().pass_on(&self.server).await,
            Fault::DoneAndCut => None,
            Fault::DoneInSilence | Fault::Lost => {
                silence(client).await;
                None
            }
            Fault::Held => {
                self.released.acquire().await.unwrap().forget();
                None
            }
            Fault::Late => {
                let (state, request) = (self.clone(), request.clone());
                tokio::spawn(async move {
                    state.released.acquire().await.unwrap().forget();
                    request.pass_on(&state.server).await;
                    state.struck.add_permits(1);
                });
                silence(client).await;
                None
            }
        }
    }

    /// Returns what the door-keeper says, if it does not let the request in.
    fn at_the_door(&self, request: &Request) -> Option<Vec<u8>> {
        let mut door_keeper = self.door_keeper.lock();
        let door_keeper = door_keeper.as_mut()?;
        if request.line().contains("/oauth/tokens") {
            let form = String::from_utf8_lossy(&request.body);
            if !form.contains(&door_keeper.credential) {
                return Some(error(401, &format!("unknown client: {form}")));
            }
            door_keeper.given += 1;
            let token = &door_keeper.token;
            let body =
                format!(r#"{{"access_token":"{token}","token_type":"bearer","expires_in":3600}}"#);
            return Some(answer(200, &body));
        }
        let sent = header(&request.head, "authorization").unwrap_or_default();
        let is_good = sent == format!("Bearer {}", door_keeper.token);
        (!is_good).then(|| error(401, &format!("no good: {sent}")))
    }

    /// Commits a property to the table that the request names.
    async fn move_the_head(&self, request: &Request) {
        let path = request.line().split(' ').nth(1).unwrap();
        let path = path.split('?').next().unwrap();
        let value: u64 = rand::random();
        let body = format!(
            r#"{{"requirements":[],"updates":[{{"action":"set-properties","updates":{{"restless":"{value}"}}}}]}}"#
        );
        let head = format!(
            "POST {path} HTTP/1.1\r\nhost: relay\r\ncontent-type: application/json\r\ncontent-length: {}",
            body.len()
        );
        let body = body.into_bytes();
        Request { head, body }.pass_on(&self.server).await;
    }
}
