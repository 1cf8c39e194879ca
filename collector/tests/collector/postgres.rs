//! PostgreSQL as catalog, on real servers: the one of `HEADWATER_TEST_POSTGRES`, where each test has a
//! schema of its own, and servers of the same programs that a test may kill.

use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::os::unix::fs::{MetadataExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use sqlx::postgres::PgConnectOptions;
use sqlx::{ConnectOptions, Connection, PgConnection};
use tempfile::TempDir;
use tokio::task::block_in_place;

use crate::secrets;
use crate::world::{World, acked};

const PASSWORD: &str = "correct horse";
/// Starts a server, says so, and stops it at once as soon as nobody holds its input any more, as a
/// crash would: nothing is finished, nothing is cleaned up. Arguments: programs, directory, options.
const GUARD: &str = r#"
trap "" INT TERM
"$1/pg_ctl" -D "$2/data" -l "$2/server.log" -o "$3" -w -s start || exit 1
echo ready
read -r _
"$1/pg_ctl" -D "$2/data" -m immediate -w -s stop
"#;

fn server() -> String {
    std::env::var("HEADWATER_TEST_POSTGRES").expect(
        "set HEADWATER_TEST_POSTGRES to the postgres:// address of a server this test may create schemas in; `cargo xtask test` starts one",
    )
}

async fn connect(uri: &str) -> PgConnection {
    PgConnection::connect(uri).await.unwrap()
}

async fn run(connection: &mut PgConnection, sql: &str) {
    sqlx::raw_sql(sql).execute(connection).await.unwrap();
}

/// Makes a schema and returns an address whose sessions work in it.
pub(crate) async fn schema() -> String {
    let name = format!("catalog_{:032x}", rand::random::<u128>());
    let server = server();
    run(
        &mut connect(&server).await,
        &format!("CREATE SCHEMA {name}"),
    )
    .await;
    let separator = if server.contains('?') { '&' } else { '?' };
    format!("{server}{separator}options[search_path]={name}")
}

/// Asks until the answer is at least `least`.
async fn until(connection: &mut PgConnection, sql: &str, least: i64) {
    loop {
        let found: i64 = sqlx::query_scalar(sql)
            .fetch_one(&mut *connection)
            .await
            .unwrap();
        if found >= least {
            return;
        }
        tokio::task::yield_now().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_a_failed_commit_left_out_is_acked_only_after_it_is_in() {
    let world = World::on_postgres().await;
    let collector = world.collector().await;
    let agent = world.agent("agent-1", &collector).await;
    assert_eq!(acked(agent.send(1..=10).await), 10);
    // The UPDATE succeeds and the COMMIT fails. A sequence counts what is rolled back, too.
    let mut database = connect(&world.catalog.uri).await;
    let sabotage = "
        CREATE SEQUENCE attempts;
        CREATE FUNCTION sabotage() RETURNS trigger LANGUAGE plpgsql AS $$
            BEGIN PERFORM nextval('attempts'); RAISE EXCEPTION 'sabotage'; END $$;
        CREATE CONSTRAINT TRIGGER sabotage AFTER UPDATE ON iceberg_tables
            DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION sabotage();";
    run(&mut database, sabotage).await;
    let send = tokio::spawn(async move { (agent.send(11..=20).await, agent) });
    until(&mut database, "SELECT last_value FROM attempts", 3).await;
    assert!(!send.is_finished(), "nothing is committed (EO-2)");
    assert_eq!(world.watermark("agent-1", crate::EPOCH).await, 10);
    run(&mut database, "DROP TRIGGER sabotage ON iceberg_tables").await;
    let (reply, _agent) = send.await.unwrap();
    assert_eq!(acked(reply), 20);
    world.assert_events("agent-1", 1..=20).await;
    collector.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_server_killed_before_its_commit_is_flushed_loses_nothing() {
    // COMMIT waits for a lock that the test holds.
    let stall = "
        CREATE FUNCTION hold() RETURNS trigger LANGUAGE plpgsql AS $$
            BEGIN PERFORM pg_advisory_xact_lock(7); RETURN NULL; END $$;
        CREATE CONSTRAINT TRIGGER hold AFTER UPDATE ON iceberg_tables
            DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION hold();
        SELECT pg_advisory_lock(7);";
    killed_while_it_commits(stall, "advisory", false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_server_killed_after_its_commit_is_flushed_doubles_nothing() {
    // COMMIT is flushed and then waits for a standby that does not exist.
    let stall = "
        ALTER ROLE headwater SET synchronous_commit = 'on';
        SELECT pg_terminate_backend(pid) FROM pg_stat_activity
        WHERE usename = 'headwater' AND pid <> pg_backend_pid();";
    killed_while_it_commits(stall, "SyncRep", true).await;
}

/// Kills the server when a commit waits as `stall` makes it wait.
async fn killed_while_it_commits(stall: &str, wait_event: &str, is_flushed: bool) {
    let mut server = Server::new().await;
    server.start("-c synchronous_standby_names=nobody");
    let mut admin = server.connect().await;
    // Nobody waits for the standby, until told to.
    let local =
        "SET synchronous_commit = local; ALTER ROLE headwater SET synchronous_commit = local";
    run(&mut admin, local).await;
    let mut world = World::new();
    world.catalog.uri = server.uri();
    world.catalog.password_file = Some(server.password_file());
    let collector = world.collector().await;
    let agent = world.agent("agent-1", &collector).await;
    assert_eq!(acked(agent.send(1..=10).await), 10);
    let head = server.head().await;

    run(&mut admin, stall).await;
    let send = tokio::spawn(async move { (agent.send(11..=20).await, agent) });
    let waiting =
        format!("SELECT count(*) FROM pg_stat_activity WHERE wait_event = '{wait_event}'");
    until(&mut admin, &waiting, 1).await;
    server.kill();
    assert!(!send.is_finished(), "nobody knows yet (EO-5)");

    // What the crash left, on a port that the collector does not know.
    let port = std::mem::replace(&mut server.port, free_port());
    server.start("");
    assert_eq!(server.head().await != head, is_flushed);
    server.kill();
    server.port = port;
    server.start("");
    let (reply, agent) = send.await.unwrap();
    assert_eq!(acked(reply), 20);
    assert_eq!(acked(agent.send(11..=25).await), 25);
    world.assert_events("agent-1", 1..=25).await;
    collector.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_password_is_in_no_log_of_any_level() {
    let mut server = Server::new().await;
    server.start("");
    let mut world = World::new();
    world.catalog.uri = server.uri();
    world.catalog.password_file = Some(server.password_file());
    world.collector().await.stop().await;
    let in_file = |path: PathBuf| format!("password_file = '{}'", path.display());
    let with_file = in_file(server.password_file());
    let environment = [("PGPASSWORD", PASSWORD)];
    for (catalog, environment) in [(with_file.as_str(), &[][..]), ("", &environment[..])] {
        secrets::assert_keeps(PASSWORD, &world, catalog, environment);
    }
    let wrong = world.path("wrong-password");
    std::fs::write(&wrong, format!("{PASSWORD}s")).unwrap();
    let reason = "password authentication failed";
    secrets::assert_is_refused(PASSWORD, &world, &in_file(wrong), reason);
    let written_down = format!("password = '{PASSWORD}'");
    secrets::assert_is_refused(PASSWORD, &world, &written_down, "unknown field `password`");
}

/// A server that a test may kill. It asks for a password.
struct Server {
    programs: PathBuf,
    directory: TempDir,
    /// User and group that it runs as: PostgreSQL refuses to be root.
    owner: (u32, u32),
    port: u16,
    guard: Option<Child>,
}

impl Server {
    /// Makes a database cluster with the programs and the user of the tests' server.
    async fn new() -> Self {
        let mut known = connect(&server()).await;
        let sql = "SELECT setting FROM pg_config WHERE name = 'BINDIR'";
        let programs: String = sqlx::query_scalar(sql).fetch_one(&mut known).await.unwrap();
        let data: String = sqlx::query_scalar("SHOW data_directory")
            .fetch_one(&mut known)
            .await
            .unwrap();
        let data = std::fs::metadata(data).unwrap();
        let server = Self {
            programs: programs.into(),
            directory: TempDir::new().unwrap(),
            owner: (data.uid(), data.gid()),
            port: free_port(),
            guard: None,
        };
        std::fs::write(server.password_file(), format!("{PASSWORD}\n")).unwrap();
        let (user, group) = server.owner;
        for path in [server.directory.path(), &server.password_file()] {
            chown(path, Some(user), Some(group)).unwrap();
        }
        let made = server
            .command(&server.programs.join("initdb"))
            .args(["--username=headwater", "--auth=scram-sha-256", "--no-sync"])
            .args(["--encoding=UTF8", "--locale=C"])
            .arg(format!("--pwfile={}", server.password_file().display()))
            .arg("-D")
            .arg(server.directory.path().join("data"))
            .output();
        let made = block_in_place(|| made.unwrap());
        assert!(
            made.status.success(),
            "{}",
            String::from_utf8_lossy(&made.stderr)
        );
        server
    }

    fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        command
            .current_dir(self.directory.path())
            .uid(self.owner.0)
            .gid(self.owner.1)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        command
    }

    fn start(&mut self, options: &str) {
        let directory = self.directory.path();
        let options = format!(
            "-p {} -k {} -c listen_addresses=127.0.0.1 -c fsync=off {options}",
            self.port,
            directory.display()
        );
        let mut command = self.command(Path::new("sh"));
        command
            .args(["-c", GUARD, "guard"])
            .args([&self.programs, directory])
            .arg(options);
        let mut guard = command.spawn().unwrap();
        let mut output = BufReader::new(guard.stdout.take().unwrap());
        let mut line = String::new();
        block_in_place(|| output.read_line(&mut line)).unwrap();
        self.guard = Some(guard);
        let log = std::fs::read_to_string(self.directory.path().join("server.log"));
        assert_eq!(line, "ready\n", "{log:?}");
    }

    /// Returns when the last of its processes has gone.
    fn kill(&mut self) {
        if let Some(mut guard) = self.guard.take() {
            drop(guard.stdin.take());
            let ended = block_in_place(|| guard.wait()).unwrap();
            assert!(ended.success());
        }
    }

    fn uri(&self) -> String {
        format!("postgresql://headwater@127.0.0.1:{}/postgres", self.port)
    }

    fn password_file(&self) -> PathBuf {
        self.directory.path().join("password")
    }

    async fn connect(&self) -> PgConnection {
        let options: PgConnectOptions = self.uri().parse().unwrap();
        options.password(PASSWORD).connect().await.unwrap()
    }

    async fn head(&self) -> String {
        let sql = "SELECT metadata_location FROM iceberg_tables WHERE table_name = 'events'";
        let mut connection = self.connect().await;
        sqlx::query_scalar(sql)
            .fetch_one(&mut connection)
            .await
            .unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}
