//! Who we are to the store: a file, or what the environment says.
//!
//! Not on an event's path: read when a program starts. Promise: no error shows what stands in the file.

use std::path::Path;

use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};

use super::config::S3Config;
use crate::catalog::{CatalogError, InvalidSetting};

/// What the environment may say, by the names that AWS gave them. Where the bucket is and how it is
/// asked is no part of it: all programs of an installation must agree on that.
const FROM_ENVIRONMENT: [&str; 13] = [
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_ROLE_ARN",
    "AWS_ROLE_SESSION_NAME",
    "AWS_ENDPOINT_URL_STS",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",
    "AWS_METADATA_ENDPOINT",
    // The later one wins.
    "AWS_DEFAULT_REGION",
    "AWS_REGION",
];

/// Gives the builder the credentials, and the region when the environment names one.
pub(super) fn add(
    builder: AmazonS3Builder,
    config: &S3Config,
    environment: impl Fn(&str) -> Option<String>,
) -> Result<AmazonS3Builder, CatalogError> {
    let has_file = config.credentials_file.is_some();
    let mut builder = builder;
    for name in FROM_ENVIRONMENT {
        let Some(value) = environment(name).filter(|value| !value.is_empty()) else {
            continue;
        };
        let key: AmazonS3ConfigKey = name.to_ascii_lowercase().parse().map_err(|_| {
            let message = format!("`{name}` is not understood: a defect, report it");
            setting(message)
        })?;
        let is_region = matches!(
            key,
            AmazonS3ConfigKey::Region | AmazonS3ConfigKey::DefaultRegion
        );
        if is_region {
            builder = builder.with_region(value);
        } else if !has_file {
            builder = builder.with_config(key, value);
        }
    }
    let Some(path) = &config.credentials_file else {
        return Ok(builder);
    };
    let text = std::fs::read_to_string(path).map_err(|source| CatalogError::Path {
        path: path.clone(),
        source,
    })?;
    let found = read(&text).ok_or_else(|| setting(form(path)))?;
    builder = builder
        .with_access_key_id(found.key_id)
        .with_secret_access_key(found.secret);
    Ok(match found.token {
        Some(token) => builder.with_token(token),
        None => builder,
    })
}

fn setting(message: String) -> InvalidSetting {
    InvalidSetting {
        key: "catalog.s3.credentials_file",
        message,
    }
}

fn form(path: &Path) -> String {
    format!(
        "`{}` holds no credentials: write the key id on its first line and the secret on its second, or a section `[default]` with aws_access_key_id and aws_secret_access_key",
        path.display()
    )
}

/// A key of the store. Without `Debug`, so that nobody prints it.
#[derive(PartialEq, Eq)]
struct Found {
    key_id: String,
    secret: String,
    token: Option<String>,
}

/// Reads a file of two or three lines, or one as AWS writes it.
fn read(text: &str) -> Option<Found> {
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    let lines: Vec<&str> = lines
        .into_iter()
        .filter(|line| !line.is_empty() && !line.starts_with(['#', ';']))
        .collect();
    if lines.first()?.starts_with('[') {
        return read_profile(&lines);
    }
    match lines[..] {
        [key_id, secret] => found(key_id, secret, None),
        [key_id, secret, token] => found(key_id, secret, Some(token)),
        _ => None,
    }
}

fn read_profile(lines: &[&str]) -> Option<Found> {
    let rest = lines
        .iter()
        .skip_while(|line| **line != "[default]")
        .skip(1);
    let own: Vec<(&str, &str)> = rest
        .take_while(|line| !line.starts_with('['))
        .filter_map(|line| line.split_once('='))
        .map(|(key, value)| (key.trim(), value.trim()))
        .collect();
    let value = |name| own.iter().find(|(key, _)| *key == name).map(|it| it.1);
    found(
        value("aws_access_key_id")?,
        value("aws_secret_access_key")?,
        value("aws_session_token"),
    )
}

fn found(key_id: &str, secret: &str, token: Option<&str>) -> Option<Found> {
    (!key_id.is_empty() && !secret.is_empty()).then(|| Found {
        key_id: key_id.to_owned(),
        secret: secret.to_owned(),
        token: token.map(str::to_owned),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns what the builder would use: key id, secret, token, region.
    fn used(file: Option<&str>, environment: &[(&str, &str)]) -> Result<[String; 4], String> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("credentials");
        if let Some(text) = file {
            std::fs::write(&path, text).unwrap();
        }
        let config = S3Config {
            credentials_file: file.map(|_| path),
            ..S3Config::default()
        };
        let value = |name: &str| {
            let found = environment.iter().find(|it| it.0 == name);
            found.map(|it| it.1.to_owned())
        };
        let builder = add(AmazonS3Builder::new(), &config, value);
        let builder = builder.map_err(|error| error.to_string())?;
        let value = |key| builder.get_config_value(&key).unwrap_or_default();
        Ok([
            value(AmazonS3ConfigKey::AccessKeyId),
            value(AmazonS3ConfigKey::SecretAccessKey),
            value(AmazonS3ConfigKey::Token),
            value(AmazonS3ConfigKey::Region),
        ])
    }

    #[test]
    fn credentials_come_from_a_file_of_lines_or_a_profile() {
        let cases = [
            ("AKIA\nsecret=+/\n", ["AKIA", "secret=+/", "", ""]),
            (
                "# ours\r\nAKIA\r\nsecret\r\n\r\ntoken\r\n",
                ["AKIA", "secret", "token", ""],
            ),
            (
                "[other]\naws_access_key_id=X\n[default]\naws_access_key_id = AKIA\naws_secret_access_key = s=\n[third]\naws_session_token=t\n",
                ["AKIA", "s=", "", ""],
            ),
        ];
        for (text, expected) in cases {
            assert_eq!(used(Some(text), &[]).unwrap(), expected);
        }
    }

    #[test]
    fn a_file_comes_before_the_environment() {
        let environment = [
            ("AWS_ACCESS_KEY_ID", "E"),
            ("AWS_SECRET_ACCESS_KEY", "S"),
            ("AWS_SESSION_TOKEN", "T"),
            ("AWS_DEFAULT_REGION", "eu-west-1"),
            ("AWS_REGION", "eu-central-1"),
            ("AWS_ENDPOINT_URL", "http://elsewhere"),
        ];
        let found = used(None, &environment).unwrap();
        assert_eq!(found, ["E", "S", "T", "eu-central-1"]);
        let found = used(Some("F\nG"), &environment).unwrap();
        assert_eq!(found, ["F", "G", "", "eu-central-1"]);
    }

    #[test]
    fn a_file_without_credentials_is_named_and_not_shown() {
        for text in [
            "",
            "hunter2",
            "hunter2\n\n",
            "hunter2\na\nb\nc",
            "[default]\naws_access_key_id = hunter2\n",
            "[other]\naws_access_key_id = a\naws_secret_access_key = hunter2\n",
            "[default]\naws_access_key_id =\naws_secret_access_key = hunter2\n",
        ] {
            let error = used(Some(text), &[]).unwrap_err();
            assert!(error.contains("catalog.s3.credentials_file"), "{error}");
            assert!(!error.contains("hunter2"), "{error}");
        }
    }
}
