//! The catalog behind an Iceberg REST server: the server writes the metadata of a commit, from the
//! updates that we send.
//!
//! Place on the event's path: what [`heads`](super::heads) is for SQL. Promise: what the server
//! answers to a commit is a hint, which is checked by reading (EO-2); all heads together are those of
//! one moment (Q-1), although the server is asked for one table at a time.
//!
//! ```text
//! swap.rs ── updates, requirements ──▶ POST …/tables/T ──▶ server checks, writes metadata, moves head
//!         ◀── where is the head? ───── GET  …/tables/T
//! ```
//!
//! The metadata of a head is read from its file, as with every other catalog, once per head: the
//! answer to `GET` is asked for without snapshots (`snapshots=refs`) and only its location counts.

mod auth;
mod client;
mod commit;
mod error;
mod http;
mod outcome;
mod settings;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use client::{Client, Question};
pub use error::RestError;
use futures::{StreamExt, TryStreamExt};
use http::Answer;
use iceberg::spec::TableMetadata;
use iceberg::{TableRequirement, TableUpdate};
use serde::Deserialize;
use serde_json::json;
pub use settings::RestConfig;
use tracing::warn;
use url::Url;

use super::config::CatalogConfig;
use super::error::CatalogError;
use crate::name::TableName;

const NAMESPACES: &str = "namespaces";
/// Names asked for at once.
const PAGE_SIZE: &str = "1000";

/// The heads of all tables of a REST catalog.
pub(crate) struct RestHeads {
    client: Client,
    timeout: Duration,
}

/// A table as the server tells it.
#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct Loaded {
    metadata_location: String,
    metadata: TableMetadata,
}

/// What the server said to a commit.
pub(super) enum Reply {
    /// It is done, and this is the table now.
    Done(Box<Loaded>),
    /// The table is not as it was required to be.
    Refused(CatalogError),
    /// Anything else, or nothing.
    Doubtful(CatalogError),
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Located {
    metadata_location: Option<String>,
}

#[derive(Deserialize)]
struct NamespacesPage {
    namespaces: Vec<Vec<String>>,
    #[serde(rename = "next-page-token")]
    next: Option<String>,
}

#[derive(Deserialize)]
struct TablesPage {
    identifiers: Vec<Identifier>,
    #[serde(rename = "next-page-token")]
    next: Option<String>,
}

#[derive(Deserialize)]
struct Identifier {
    name: String,
}

/// Connects to the server at `base`.
pub(crate) async fn open(config: &CatalogConfig, base: Url) -> Result<RestHeads, CatalogError> {
    let place = base.to_string();
    let client = Client::open(config, base)
        .await
        .map_err(|error| match error {
            error @ (CatalogError::Setting(_) | CatalogError::Path { .. }) => error,
            error => CatalogError::RestUnreachable {
                place,
                source: Box::new(error),
            },
        })?;
    Ok(RestHeads {
        client,
        timeout: config.timeout(),
    })
}

impl RestHeads {
    /// Returns every table and its metadata location, in the order of the names, as of one moment.
    ///
    /// There is no such question, so everything is asked for until two reads in a row agree. A
    /// location is a head once; a head that both reads found was the head all the time between the
    /// two, and so all of them were heads when the first read ended and the second began.
    pub(super) async fn all(&self) -> Result<Vec<(TableName, String)>, CatalogError> {
        let started = Instant::now();
        let mut reads = 1;
        let mut before = self.read_all().await?;
        while started.elapsed() < self.timeout {
            let now = self.read_all().await?;
            reads += 1;
            if now == before {
                return Ok(now.into_iter().collect());
            }
            before = now;
        }
        Err(rest("list the tables", RestError::Unsettled { reads }))
    }

    /// Reads the heads one after the other: they may be of different moments.
    async fn read_all(&self) -> Result<BTreeMap<TableName, String>, CatalogError> {
        let heads = futures::stream::iter(self.names().await?)
            .map(|name| async move {
                let head = self.get(&name).await?;
                Ok::<_, CatalogError>(head.map(|head| (name, head)))
            })
            .buffer_unordered(self.client.max());
        let heads: Vec<_> = heads.try_collect().await?;
        Ok(heads.into_iter().flatten().collect())
    }

    async fn names(&self) -> Result<Vec<TableName>, CatalogError> {
        let mut names = Vec::new();
        for namespace in self.namespaces().await? {
            let tables = self.tables(&namespace).await?;
            for table in tables {
                match TableName::new(&namespace, &table) {
                    Ok(name) => names.push(name),
                    Err(_) => warn!(
                        namespace,
                        name = table,
                        "table of another program is left out"
                    ),
                }
            }
        }
        Ok(names)
    }

    async fn namespaces(&self) -> Result<Vec<String>, CatalogError> {
        let mut found = Vec::new();
        let mut token = String::new();
        loop {
            let question = Question {
                query: &[("pageToken", &token), ("pageSize", PAGE_SIZE)],
                ..Question::get("list the namespaces", &[NAMESPACES])
            };
            let page: NamespacesPage = self.client.asked(&question).await?;
            // Ours have one part.
            let single = page.namespaces.into_iter().filter(|parts| parts.len() == 1);
            found.extend(single.flatten());
            match page.next {
                Some(next) if !next.is_empty() => token = next,
                _ => return Ok(found),
            }
        }
    }

    async fn tables(&self, namespace: &str) -> Result<Vec<String>, CatalogError> {
        let mut found = Vec::new();
        let mut token = String::new();
        let path = [NAMESPACES, namespace, "tables"];
        loop {
            let question = Question {
                query: &[("pageToken", &token), ("pageSize", PAGE_SIZE)],
                ..Question::get("list the tables", &path)
            };
            let page: TablesPage = self.client.asked(&question).await?;
            found.extend(page.identifiers.into_iter().map(|table| table.name));
            match page.next {
                Some(next) if !next.is_empty() => token = next,
                _ => return Ok(found),
            }
        }
    }

    /// Returns the metadata location of a table.
    pub(super) async fn get(&self, name: &TableName) -> Result<Option<String>, CatalogError> {
        const ACTION: &str = "find a table";
        let path = path_of(name);
        let question = Question {
            query: &[("snapshots", "refs")],
            ..Question::get(ACTION, &path)
        };
        let answer = self.client.ask(&question).await?;
        // Any web server answers 404; a table is missing when the catalog says so.
        if answer.status == 404 && RestError::is_of_catalog(&answer.body) {
            return Ok(None);
        }
        let located: Located = self.read(ACTION, &answer).await?;
        let location = located.metadata_location;
        location
            .map(Some)
            .ok_or_else(|| rest(ACTION, RestError::NoLocation))
    }

    /// Adds a table. Returns whether its head is `location` now, as read back.
    pub(super) async fn insert(
        &self,
        name: &TableName,
        location: &str,
    ) -> Result<bool, CatalogError> {
        let added = self.register(name, location).await;
        match self.get(name).await? {
            Some(head) => Ok(head == location),
            None => Err(added
                .err()
                .unwrap_or_else(|| rest("add a table", RestError::Untrue))),
        }
    }

    async fn register(&self, name: &TableName, location: &str) -> Result<(), CatalogError> {
        const ACTION: &str = "add a table";
        let body = json!({"namespace": [name.namespace()], "properties": {}});
        let question = Question::post("add a namespace", &[NAMESPACES], bytes(&body));
        let answer = self.client.ask(&question).await?;
        if !answer.is_success() && answer.status != 409 {
            let refused = self.client.refused(&answer).await;
            return Err(rest(question.action, refused));
        }
        let body = json!({"name": name.name(), "metadata-location": location});
        let path = [NAMESPACES, name.namespace(), "register"];
        let question = Question::post(ACTION, &path, bytes(&body));
        let answer = self.client.ask(&question).await?;
        match answer.status {
            status if answer.is_success() || status == 409 => Ok(()),
            // The namespace is there, so it is the way that is not.
            status @ (404 | 405 | 501) => Err(rest(ACTION, RestError::NoRegister { status })),
            _ => Err(rest(ACTION, self.client.refused(&answer).await)),
        }
    }

    /// Asks for a commit: `updates`, if all of `requirements` hold. Sent once.
    pub(super) async fn commit(
        &self,
        name: &TableName,
        requirements: &[TableRequirement],
        updates: &[TableUpdate],
        commit_id: &str,
    ) -> Reply {
        const ACTION: &str = "commit";
        let body = json!({
            "identifier": {"namespace": [name.namespace()], "name": name.name()},
            "requirements": requirements,
            "updates": updates,
        });
        let path = path_of(name);
        let question = Question {
            idempotency_key: Some(commit_id),
            ..Question::post(ACTION, &path, bytes(&body))
        };
        let answer = match self.client.ask(&question).await {
            Ok(answer) => answer,
            Err(error) => return Reply::Doubtful(error),
        };
        match self.read(ACTION, &answer).await {
            Ok(loaded) => Reply::Done(Box::new(loaded)),
            Err(error) if answer.status == 409 => Reply::Refused(error),
            Err(error) => Reply::Doubtful(error),
        }
    }

    async fn read<T: serde::de::DeserializeOwned>(
        &self,
        action: &'static str,
        answer: &Answer,
    ) -> Result<T, CatalogError> {
        if !answer.is_success() {
            return Err(rest(action, self.client.refused(answer).await));
        }
        answer.json().map_err(|error| rest(action, error))
    }
}

fn path_of(name: &TableName) -> [&str; 4] {
    [NAMESPACES, name.namespace(), "tables", name.name()]
}

fn bytes(body: &serde_json::Value) -> Vec<u8> {
    body.to_string().into_bytes()
}

fn rest(action: &'static str, source: RestError) -> CatalogError {
    CatalogError::Rest { action, source }
}
