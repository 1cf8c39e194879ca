//! The systemd unit: what it starts is what the program takes, and what the program says is what it
//! waits for.

use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::Signal;
use tokio::process::Command;

use crate::harness::{PATIENCE, Site, nobody};
use crate::process::config;

fn deploy(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../deploy/systemd")
        .join(name)
}

/// Returns the values of a key of the unit.
fn values(unit: &str, key: &str) -> Vec<String> {
    let lines = unit.lines().filter_map(|line| line.split_once('='));
    lines
        .filter(|(name, _)| *name == key)
        .map(|(_, value)| value.to_owned())
        .collect()
}

#[tokio::test]
async fn the_unit_starts_what_the_program_takes() {
    let unit = std::fs::read_to_string(deploy("headwater-agent.service")).unwrap();
    let [start] = values(&unit, "ExecStart").try_into().unwrap();
    let mut words = start.split(' ');
    assert_eq!(words.next(), Some("/usr/bin/headwater-agent"));
    let arguments: Vec<String> = words
        .map(|word| match word {
            "/etc/headwater/agent.toml" => deploy("agent.toml").display().to_string(),
            other => {
                assert!(!other.starts_with('/'), "an unknown path: {other}");
                other.to_owned()
            }
        })
        .collect();
    let checked = Command::new(env!("CARGO_BIN_EXE_headwater-agent"))
        .args(&arguments)
        .arg("--check-config")
        .output()
        .await
        .unwrap();
    assert!(checked.status.success(), "{checked:?}");
    assert_eq!(values(&unit, "ExecReload"), ["/bin/kill -HUP $MAINPID"]);
    assert_eq!(values(&unit, "Type"), ["notify"]);

    let deployed: headwater_agent::Config =
        headwater_service::config::load_with(Some(&deploy("agent.toml")), std::iter::empty())
            .unwrap();
    let state = values(&unit, "StateDirectory").concat();
    let directory = deployed.buffer.directory.display().to_string();
    let below = directory.strip_prefix("/var/lib/").unwrap();
    assert!(
        state.split(' ').any(|name| name == below),
        "{state} {directory}"
    );
    let runtime = values(&unit, "RuntimeDirectory").concat();
    assert_eq!(
        deployed.http.socket.parent(),
        Some(Path::new("/run").join(runtime).as_path())
    );
    for file in [
        &deployed.tls.certificate,
        &deployed.tls.key,
        &deployed.tls.ca,
    ] {
        assert!(file.starts_with("/etc/headwater"), "{}", file.display());
    }
    // A stop takes up to 5 s; the supervisor must not kill earlier.
    let [stop] = values(&unit, "TimeoutStopSec").try_into().unwrap();
    assert!(stop.trim_end_matches('s').parse::<u64>().unwrap() > 5);
}

#[tokio::test]
async fn systemd_takes_the_unit_and_finds_it_closed() {
    let site = Site::new();
    let unit = std::fs::read_to_string(deploy("headwater-agent.service")).unwrap();
    // systemd checks that the program exists.
    let unit = unit.replace(
        "/usr/bin/headwater-agent",
        env!("CARGO_BIN_EXE_headwater-agent"),
    );
    let path = site.path("headwater-agent.service");
    std::fs::write(&path, unit).unwrap();
    let analyze = async |arguments: &[&str]| {
        let mut command = Command::new("systemd-analyze");
        let output = command.args(arguments).arg(&path).output().await;
        output.expect("systemd-analyze is installed (Debian package systemd)")
    };
    let verified = analyze(&["verify", "--man=no"]).await;
    assert!(verified.status.success(), "{verified:?}");
    assert!(verified.stderr.is_empty(), "{verified:?}");
    // Exposure from 0 (closed) to 10, times ten; 1.2 when this was written.
    let secured = analyze(&["security", "--offline=true", "--no-pager", "--threshold=15"]).await;
    assert!(secured.status.success(), "{secured:?}");
}

#[tokio::test]
async fn the_supervisor_hears_ready_alive_reloading_and_stopping() {
    let site = Site::new();
    let socket = site.path("notify");
    let receiver = UnixDatagram::bind(&socket).unwrap();
    receiver.set_read_timeout(Some(PATIENCE)).unwrap();
    std::fs::write(site.path("agent.toml"), config(&site, nobody())).unwrap();
    let mut child = Command::new(env!("CARGO_BIN_EXE_headwater-agent"))
        .arg("--config")
        .arg(site.path("agent.toml"))
        .env("NOTIFY_SOCKET", &socket)
        .env(
            "WATCHDOG_USEC",
            Duration::from_millis(100).as_micros().to_string(),
        )
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let hear = |expected: &str| {
        let mut bytes = [0; 64];
        loop {
            let length = receiver.recv(&mut bytes).expect(expected);
            match std::str::from_utf8(&bytes[..length]).unwrap() {
                told if told == expected => break,
                "WATCHDOG=1" => {}
                other => panic!("{other} instead of {expected}"),
            }
        }
    };
    let id = i32::try_from(child.id().unwrap()).unwrap();
    let id = rustix::process::Pid::from_raw(id).unwrap();
    hear("READY=1");
    hear("WATCHDOG=1");
    hear("WATCHDOG=1");
    rustix::process::kill_process(id, Signal::HUP).unwrap();
    hear("RELOADING=1");
    hear("READY=1");
    rustix::process::kill_process(id, Signal::TERM).unwrap();
    hear("STOPPING=1");
    assert_eq!(child.wait().await.unwrap().code(), Some(0));
}
