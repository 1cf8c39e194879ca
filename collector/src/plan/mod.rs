//! The tracking plan: which events there are, who causes them and what their properties look like.
//!
//! Place on the path: staging judges each valid event by the plan in force and writes down by which
//! version. Promises: a plan is taken up whole or not at all; a judgement depends on the event and
//! the plan alone, so that staging a batch again under the same plan gives the same rows. What holds
//! when it is another plan by then is the matter of `commit/fence.rs`.

mod builtin;
pub mod file;
mod format;
pub mod live;
pub mod schema;

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::{Arc, LazyLock};

use headwater_protocol::json::{Object, Value};
use headwater_protocol::{Event, EventType};
use headwater_tables::promoted::{self, ColumnType, PROMOTED_MAX, Promoted, Scalar};
use headwater_tables::{Catalog, CatalogError};
use sha2::{Digest, Sha256};

use crate::staging::actor::Causer;
use file::{COMMON_FILE, CommonFile, EventFile, Text};
pub use file::{Mode, PlanError};
use schema::{Found, Look, Schema, VIOLATIONS_MAX, Violation};

/// Raised when the code judges an event differently under the same files, so that collectors of both
/// versions never decide the same event differently unnoticed.
const JUDGEMENT_VERSION: u8 = 5;

/// Version of events that no plan speaks of.
pub const UNPLANNED: i32 = 0;

/// An event of the plan.
#[derive(Debug)]
pub struct Planned {
    /// Canonical name.
    pub name: String,
    /// Version of its schema, at least 1.
    pub version: i32,
    /// Who can cause it.
    pub causer: Causer,
    mode: Mode,
    schema: Schema,
}

/// A whole plan, compiled.
#[derive(Debug)]
pub struct Plan {
    /// Events by their normalised name.
    events: HashMap<String, Planned>,
    unplanned_events: Mode,
    /// In order of their names.
    promoted: Vec<Promoted>,
    fingerprint: String,
}

/// What the plan says about one event.
#[derive(Debug)]
pub struct Judgement<'a> {
    /// The event of the plan, whatever its type.
    pub planned: Option<&'a Planned>,
    /// Version of the schema that it was judged by, [`UNPLANNED`] for none.
    pub version: i32,
    /// What is wrong with it.
    pub violations: Vec<Violation>,
    /// Whether it has properties that its schema does not know.
    pub has_unplanned_properties: bool,
    /// Properties that must not be stored.
    pub omitted: Vec<String>,
    /// Why it must not be stored.
    pub quarantine: Option<Blocked>,
}

impl Judgement<'_> {
    /// Returns the event as it is stored: without what the plan omits. A copy only where there is some.
    pub fn stored<'e, 'b>(&self, event: &'e Event<'b>) -> Cow<'e, Event<'b>> {
        if self.omitted.is_empty() {
            return Cow::Borrowed(event);
        }
        let mut stored = event.clone();
        for property in &self.omitted {
            stored.forget(property);
        }
        Cow::Owned(stored)
    }
}

/// Why the plan keeps an event from being stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Blocked {
    /// Its properties break its schema, whose mode is `quarantine`.
    SchemaViolation,
    /// No file has its name, and such events are quarantined.
    UnplannedEvent,
}

impl Plan {
    /// Returns the plan that is compiled in: the taxonomy of `deploy/plan/`.
    pub fn builtin() -> Arc<Self> {
        static BUILTIN: LazyLock<Arc<Plan>> = LazyLock::new(|| {
            let plan = Plan::of_texts(builtin::FILES);
            Arc::new(plan.expect("a test compiles the plan that is compiled in"))
        });
        Arc::clone(&BUILTIN)
    }

    /// Reads the plan of a directory; without one, returns the plan that is compiled in.
    ///
    /// # Errors
    /// [`PlanError`] names the file, the place in it and what to change.
    pub fn load(directory: Option<&Path>) -> Result<Arc<Self>, PlanError> {
        match directory {
            Some(directory) => Self::compile(&file::read(directory)?).map(Arc::new),
            None => Ok(Self::builtin()),
        }
    }

    /// Returns the plan of files with these names and texts.
    ///
    /// # Errors
    /// As [`Plan::load`].
    pub fn of_texts(files: &[(&str, &str)]) -> Result<Self, PlanError> {
        let owned = |(name, text): &(&str, &str)| ((*name).to_owned(), (*text).to_owned());
        Self::compile(&files.iter().map(owned).collect::<Vec<_>>())
    }

    fn compile(files: &[Text]) -> Result<Self, PlanError> {
        let mut digest = Sha256::new_with_prefix([JUDGEMENT_VERSION]);
        let mut common = CommonFile::default();
        let mut unplanned_events = Mode::Allow;
        if let Some((name, text)) = files.iter().find(|(name, _)| name == COMMON_FILE) {
            let (parsed, value) = file::parse::<CommonFile>(name, text)?;
            unplanned_events = parsed.unplanned_events;
            if unplanned_events == Mode::Omit {
                let reason = "must be `allow`, `note` or `quarantine`: where no schema speaks, no property is at fault";
                return Err(PlanError::file(name, "$.unplanned_events", reason));
            }
            common = parsed;
            update(&mut digest, value);
        }
        let mut events = HashMap::new();
        let mut digests = BTreeMap::new();
        let mut promoted = BTreeMap::new();
        promote(COMMON_FILE, &common.promote, &mut promoted)?;
        for (name, text) in files.iter().filter(|(name, _)| name != COMMON_FILE) {
            let (parsed, value) = file::parse::<EventFile>(name, text)?;
            let key = key(&parsed.event);
            promote(name, &parsed.promote, &mut promoted)?;
            let planned = Planned::compile(name, parsed, &common)?;
            if events.insert(key.clone(), planned).is_some() {
                let reason = "another file has an event of this name";
                return Err(PlanError::file(name, "$.event", reason));
            }
            digests.insert(key, value);
        }
        digests
            .into_values()
            .for_each(|value| update(&mut digest, value));
        let digest = digest.finalize();
        let fingerprint = digest[..8].iter().map(|byte| format!("{byte:02x}"));
        Ok(Self {
            events,
            unplanned_events,
            promoted: promoted
                .into_iter()
                .map(|(name, column_type)| Promoted { name, column_type })
                .collect(),
            fingerprint: fingerprint.collect(),
        })
    }

    /// Names this plan: plans with the same fingerprint judge every event alike.
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// Returns the properties that have a column of their own.
    pub fn promoted(&self) -> &[Promoted] {
        &self.promoted
    }

    /// Adds the columns of this plan to `raw.events`; makes the table when it is missing. Rows that this
    /// plan has judged can be written afterwards.
    ///
    /// # Errors
    /// [`PlanError::Columns`], for one when a column is there with another type.
    pub async fn ensure_columns(&self, catalog: &Catalog) -> Result<(), PlanError> {
        let failed = |error| PlanError::Columns(Box::new(error));
        let spec = promoted::raw_events_with(&self.promoted).map_err(CatalogError::from);
        catalog
            .ensure(&spec.map_err(failed)?)
            .await
            .map_err(failed)?;
        Ok(())
    }

    /// Returns how many events the plan has.
    pub fn events(&self) -> usize {
        self.events.len()
    }

    /// Returns the planned event of this name, however it is written.
    pub fn lookup(&self, name: &str) -> Option<&Planned> {
        self.events.get(&key(name))
    }

    /// Judges a valid event.
    pub fn judge(&self, event: &Event<'_>) -> Judgement<'_> {
        let planned = event.name.as_deref().and_then(|name| self.lookup(name));
        let mut judgement = Judgement {
            planned,
            version: UNPLANNED,
            violations: Vec::new(),
            has_unplanned_properties: false,
            omitted: Vec::new(),
            quarantine: None,
        };
        if event.event_type != EventType::Track {
            return judgement;
        }
        let Some(planned) = planned else {
            return match self.unplanned_events {
                Mode::Allow => judgement,
                mode => {
                    judgement.violations.push(unplanned());
                    judgement.quarantine =
                        (mode == Mode::Quarantine).then_some(Blocked::UnplannedEvent);
                    judgement
                }
            };
        };
        judgement.version = planned.version;
        if planned.mode == Mode::Allow {
            return judgement;
        }
        let found = planned.check(event);
        judgement.violations = found.violations;
        judgement.has_unplanned_properties = found.has_unplanned;
        judgement.omitted = found.at_fault;
        let is_blocked = planned.mode == Mode::Quarantine && !judgement.violations.is_empty();
        judgement.quarantine = is_blocked.then_some(Blocked::SchemaViolation);
        // A column that stays empty is noted, and is no reason to keep an event or a property out.
        self.note_promoted(event, &mut judgement);
        judgement
    }

    fn note_promoted(&self, event: &Event<'_>, judgement: &mut Judgement<'_>) {
        for Promoted { name, column_type } in &self.promoted {
            let value = event.properties.get(name);
            let Some(value) = value.filter(|value| !column_type.holds(scalar(value))) else {
                continue;
            };
            let path = format!("$.properties.{name}");
            let noted = &mut judgement.violations;
            let is_noted = noted.iter().any(|violation| violation.path == path);
            let is_omitted = judgement.omitted.contains(name);
            if !is_noted && !is_omitted && noted.len() < VIOLATIONS_MAX {
                noted.push(Violation {
                    path,
                    keyword: "promote",
                    expected: column_type.as_str().to_owned(),
                    actual_type: schema::type_name(value),
                });
            }
        }
    }
}

/// Adds the columns that a file promotes.
fn promote(
    file: &str,
    wanted: &BTreeMap<String, ColumnType>,
    promoted: &mut BTreeMap<String, ColumnType>,
) -> Result<(), PlanError> {
    for (name, column_type) in wanted {
        let wrong = |reason| PlanError::file(file, &format!("$.promote.{name}"), reason);
        promoted::check_name(name).map_err(wrong)?;
        let before = promoted.insert(name.clone(), *column_type);
        if before.is_some_and(|before| before != *column_type) {
            return Err(wrong("another file promotes it as another type".to_owned()));
        }
        if promoted.len() > PROMOTED_MAX {
            return Err(wrong(format!(
                "a plan promotes at most {PROMOTED_MAX} properties"
            )));
        }
    }
    Ok(())
}

/// The violation of an event that no file names.
fn unplanned() -> Violation {
    Violation {
        path: "$.event".to_owned(),
        keyword: "unplanned",
        expected: "a name of the tracking plan".to_owned(),
        actual_type: "string",
    }
}

impl Planned {
    fn compile(file: &str, parsed: EventFile, common: &CommonFile) -> Result<Self, PlanError> {
        let wrong = |path: &str, reason: &str| Err(PlanError::file(file, path, reason));
        if !parsed.event.chars().any(char::is_alphanumeric) || parsed.event.len() > 128 {
            return wrong("$.event", "must be a name of at most 128 bytes");
        }
        if parsed.version < 1 {
            return wrong(
                "$.version",
                "must be at least 1; 0 means that there is no plan",
            );
        }
        let schema_error = |file: &str| {
            let file = file.to_owned();
            move |error| PlanError::File { file, error }
        };
        let mut schema = match &parsed.schema {
            serde_json::Value::Null => Schema::default(),
            value => Schema::compile_top(value, "$.schema").map_err(schema_error(file))?,
        };
        let common = schema.add_common(&common.common);
        common.map_err(schema_error(COMMON_FILE))?;
        Ok(Self {
            name: parsed.event,
            version: parsed.version,
            causer: Causer::of(&parsed.actors),
            mode: parsed.mode,
            schema,
        })
    }

    fn check(&self, event: &Event<'_>) -> Found {
        let look = match self.mode {
            Mode::Omit => Look::AtAll,
            Mode::Allow | Mode::Note | Mode::Quarantine => Look::UntilFull,
        };
        self.schema.check(&event.properties, "$.properties", look)
    }
}

/// Adds a file to a fingerprint; how it is laid out does not count, nor does what explains it.
fn update(digest: &mut Sha256, mut file: Object<'_>) {
    file.remove("description");
    if let Some(schema) = file.remove("schema") {
        file.insert("schema", schema::unexplained(&schema));
    }
    if let Some(schemas) = file.remove("common") {
        file.insert("common", schema::each_unexplained(&schemas));
    }
    digest.update(file.to_canonical());
    digest.update([0]);
}

/// Returns a value as a promoted column sees it.
pub(crate) fn scalar<'a>(value: &'a Value<'_>) -> Scalar<'a> {
    match value {
        Value::Null => Scalar::Null,
        Value::Bool(value) => Scalar::Boolean(*value),
        Value::Number(number) => Scalar::Number(number),
        Value::Text(text) => Scalar::Text(text),
        Value::Array(_) | Value::Object(_) => Scalar::Other,
    }
}

/// Lower case, everything that is no letter or digit as one `_`.
fn key(name: &str) -> String {
    let mut out = String::with_capacity(name.len());
    for c in name.trim().chars() {
        if c.is_ascii_alphanumeric() {
            // What nearly all names are made of.
            out.push(c.to_ascii_lowercase());
            continue;
        }
        if c.is_alphanumeric() {
            out.extend(c.to_lowercase());
        } else if !out.ends_with('_') {
            out.push('_');
        }
    }
    out
}

#[cfg(test)]
mod tests;
