//! The program as talkative as it can be: no secret is in what it says.

use std::path::Path;
use std::process::Command;

use crate::world::World;

/// Lists the quarantine of a world, and returns whether that worked and all that the program has said.
/// `catalog` follows the addresses in the section `[catalog]`.
pub(crate) fn said(world: &World, catalog: &str, environment: &[(&str, &str)]) -> (bool, String) {
    let files = world.files("collector");
    let path = |path: &Path| path.display().to_string();
    let text = format!(
        "[tls]\ncertificate = '{}'\nkey = '{}'\nca = '{}'\n[log]\nlevel = 'trace'\n\
         [catalog]\nuri = '{}'\nwarehouse = '{}'\n{catalog}\n",
        path(&files.certificate),
        path(&files.key),
        path(&files.ca),
        world.catalog.uri,
        world.catalog.warehouse
    );
    let config = world.path("collector.toml");
    std::fs::write(&config, text).unwrap();
    let mut program = Command::new(env!("CARGO_BIN_EXE_headwater-collector"));
    program.arg("--config").arg(config);
    for others in [
        "AWS_ACCESS_KEY_ID",
        "ICEBERG_REST_TOKEN",
        "PGPASSFILE",
        "PGPASSWORD",
    ] {
        program.env_remove(others);
    }
    let output = program
        .args(["quarantine", "list"])
        .envs(environment.iter().copied())
        .output()
        .unwrap();
    let text = [&output.stdout[..], &output.stderr[..]].concat();
    (output.status.success(), String::from_utf8(text).unwrap())
}

/// Asserts that the program gets in with the secret, and that its log of all levels does not hold it.
pub(crate) fn assert_keeps(
    secret: &str,
    world: &World,
    catalog: &str,
    environment: &[(&str, &str)],
) {
    let (worked, text) = said(world, catalog, environment);
    assert!(worked, "{text}");
    // sqlx says nothing below that.
    assert!(text.contains("DEBUG"), "the log tells all it can: {text}");
    assert!(!text.contains(secret), "{text}");
}

/// Asserts that the program is not let in with the secret, and says `reason` and not the secret.
pub(crate) fn assert_is_refused(secret: &str, world: &World, catalog: &str, reason: &str) {
    let (worked, text) = said(world, catalog, &[]);
    assert!(!worked, "{text}");
    assert!(text.contains(reason), "{text}");
    assert!(!text.contains(secret), "{text}");
}
