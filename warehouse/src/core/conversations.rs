//! `core.conversations`: the latest state of each conversation.
//!
//! Only the conversations that new events touch are computed again, and only the days on which they
//! begin are written, in one commit.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::record_batch::RecordBatch;
use headwater_tables::query::IcebergProvider;
use headwater_tables::schema::CORE_EVENTS;
use headwater_tables::{Change, Operation, Partition, TableName, TableSpec, write};

use super::events::TakenIn;
use super::{RAW_SNAPSHOT, covered, date_list, days, nullable, register_conversation_parts};
use crate::models::CORE_CONVERSATIONS;
use crate::night::NightError;
use crate::progress::Progress;
use crate::publish::Publisher;
use crate::session::Session;

/// After a night that ended between the two commits, `core.conversations` covers another snapshot
/// than `core.events` and is computed whole.
pub(super) async fn rebuild_if_behind(
    publisher: &mut Publisher<'_>,
    progress: &dyn Progress,
) -> Result<(), NightError> {
    let name = conversations_name()?;
    let events = covered(&publisher.tables()[&CORE_EVENTS]);
    let conversations = publisher.tables().get(&name).map(covered);
    if conversations == Some(events) {
        return Ok(());
    }
    let nothing = TakenIn {
        before: None,
        touched: Vec::new(),
    };
    publish(publisher, nothing, progress).await
}

/// Computes the touched conversations again; all of them when the table does not cover `before`.
pub(super) async fn publish(
    publisher: &mut Publisher<'_>,
    TakenIn { before, touched }: TakenIn,
    progress: &dyn Progress,
) -> Result<(), NightError> {
    let name = conversations_name()?;
    progress.started("core.conversations", None);
    let session = publisher.session()?;
    register_conversation_parts(&session).await?;
    let known = publisher.tables().get(&name).map(covered);
    let all = "SELECT DISTINCT company_id, conversation_id FROM core.events WHERE conversation_id IS NOT NULL";
    let touched = match known {
        Some(known) if known.is_some() && known == before => touched,
        _ => session.rows(all).await.map_err(NightError::query(&name))?,
    };
    let keys = Arc::new(Schema::new(vec![
        Field::new("company_id", DataType::Utf8, true),
        Field::new("conversation_id", DataType::Utf8, true),
    ]));
    let touched = vec![crate::rows::conform(&keys, &touched)?];
    let count = touched[0].num_rows();
    session
        .register_rows("touched_conversations", keys, touched)
        .map_err(NightError::query(&name))?;
    let (schema, rows) = session
        .rows_with_schema(CORE_CONVERSATIONS)
        .await
        .map_err(NightError::query(&name))?;
    let spec = TableSpec::from_arrow(
        name.clone(),
        &nullable(&schema),
        Partition::Day("started_at".to_owned()),
    )?
    .sorted_by(&["company_id", "started_at", "conversation_id"]);
    publisher.ensure(&spec).await?;
    let schema = Arc::new(nullable(&schema));
    let rows = vec![crate::rows::conform(&schema, &rows)?];
    merge_conversations(publisher, &name, &session, (schema, rows)).await?;
    progress.finished(
        "core.conversations",
        &format!("{count} conversations computed"),
    );
    Ok(())
}

/// Replaces the days on which the computed conversations begin, or began before.
async fn merge_conversations(
    publisher: &mut Publisher<'_>,
    name: &TableName,
    session: &Session,
    (schema, rows): (SchemaRef, Vec<RecordBatch>),
) -> Result<(), NightError> {
    let table = publisher.tables()[name].clone();
    let failed = NightError::query(name);
    let provider = IcebergProvider::new(table.clone()).map_err(|error| failed(error.into()))?;
    let register = || -> datafusion::common::Result<()> {
        session.register("core", "conversations", Arc::new(provider))?;
        session.register_rows("new_conversations", schema, rows)
    };
    register().map_err(NightError::query(name))?;
    let days = days(session, CONVERSATION_DAYS, name).await?;
    let raw_snapshot = covered(&publisher.tables()[&CORE_EVENTS]);
    let properties: BTreeMap<String, String> = raw_snapshot
        .map(|id| (RAW_SNAPSHOT.to_owned(), id.to_string()))
        .into_iter()
        .collect();
    if days.is_empty() {
        if raw_snapshot.is_none() {
            return Ok(());
        }
        let change = Change {
            operation: Operation::Append,
            properties,
            ..Change::default()
        };
        return publisher.commit(name, &table, change).await;
    }
    let columns: Vec<String> =
        crate::rows::names(&write::arrow_schema(&table).map_err(NightError::write(name))?);
    let sql = format!(
        "SELECT {0} FROM new_conversations UNION ALL \
         SELECT {0} FROM core.conversations AS v LEFT ANTI JOIN touched_conversations AS t \
             ON t.company_id = v.company_id AND t.conversation_id = v.conversation_id \
         WHERE CAST(started_at AS DATE) IN ({1}) ORDER BY company_id, started_at, conversation_id",
        columns.join(", "),
        date_list(&days)
    );
    let stream = session
        .stream(&sql)
        .await
        .map_err(NightError::query(name))?;
    let files = publisher.write_stream(name, stream).await?;
    publisher.replace_days(name, &days, files, properties).await
}

fn conversations_name() -> Result<TableName, NightError> {
    Ok(TableName::new("core", "conversations")?)
}

const CONVERSATION_DAYS: &str = "
    SELECT CAST(started_at AS DATE) FROM new_conversations
    UNION
    SELECT CAST(v.started_at AS DATE) FROM core.conversations AS v
    LEFT SEMI JOIN touched_conversations AS t
      ON t.company_id = v.company_id AND t.conversation_id = v.conversation_id";
