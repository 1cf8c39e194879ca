//! The actions: prepare and close statements, cancel results, set session options.
//!
//! Place on the event's path: beside the queries. Promise: exactly the actions that are listed work,
//! and all of them are listed. Flight SQL actions carry their message packed in `Any`, Flight actions
//! carry it bare.

use arrow_flight::sql::{
    ActionCancelQueryRequest, ActionCancelQueryResult, ActionClosePreparedStatementRequest,
    ActionCreatePreparedStatementRequest, ActionCreatePreparedStatementResult, Any, Command,
    ProstMessageExt,
};
use arrow_flight::{
    Action, ActionType, CancelFlightInfoRequest, CancelFlightInfoResult, FlightInfo,
};
use futures::StreamExt as _;
use futures::stream;
use prost::Message;
use tonic::Status;

use crate::auth::Caller;
use crate::error::StatementError;
use crate::metadata;
use crate::service::{Answers, FlightSql, one, refuse_transaction, schema_bytes};
use crate::session::{
    CloseSessionResult, CloseSessionStatus, GetSessionOptionsRequest, SetSessionOptionsRequest,
};
use crate::snapshot::CATALOG;

const ACTIONS: [(&str, &str); 7] = [
    ("CreatePreparedStatement", "Prepares a statement that reads"),
    ("ClosePreparedStatement", "Forgets a prepared statement"),
    ("CancelQuery", "Cancels a result (Flight SQL)"),
    ("CancelFlightInfo", "Cancels a result (Flight)"),
    (
        "SetSessionOptions",
        "Sets `catalog` or `schema` of the session",
    ),
    ("GetSessionOptions", "Returns the options of the session"),
    ("CloseSession", "Ends the session and its bearer token"),
];

type ActionAnswers = Answers<arrow_flight::Result>;

/// Returns the actions there are.
pub(crate) fn list() -> impl Iterator<Item = ActionType> {
    ACTIONS.into_iter().map(|(name, description)| ActionType {
        r#type: name.to_owned(),
        description: description.to_owned(),
    })
}

/// Runs one action.
pub(crate) async fn run(
    server: &FlightSql,
    caller: &Caller,
    action: Action,
) -> Result<ActionAnswers, Status> {
    match action.r#type.as_str() {
        "CreatePreparedStatement" => create_prepared(server, caller, unpack(&action)?).await,
        "ClosePreparedStatement" => {
            let request: ActionClosePreparedStatementRequest = unpack(&action)?;
            let handle = &request.prepared_statement_handle;
            server.queries.close_prepared(&caller.session, handle);
            Ok(stream::empty().boxed())
        }
        "CancelQuery" => cancel_query(server, caller, unpack(&action)?),
        "CancelFlightInfo" => {
            let request: CancelFlightInfoRequest = bare(&action)?;
            let status = cancel(server, caller, request.info)?;
            Ok(answer(&CancelFlightInfoResult { status }))
        }
        "SetSessionOptions" => set_options(server, caller, bare(&action)?).await,
        "GetSessionOptions" => {
            let _request: GetSessionOptionsRequest = bare(&action)?;
            Ok(answer(&caller.session.options()))
        }
        "CloseSession" => {
            server.auth.close(caller);
            let status = CloseSessionStatus::Closed as i32;
            Ok(answer(&CloseSessionResult { status }))
        }
        "BeginTransaction" | "EndTransaction" | "BeginSavepoint" | "EndSavepoint" => {
            Err(Status::unimplemented(
                "transactions are not supported: every query reads one \
                snapshot set by itself",
            ))
        }
        "CreatePreparedSubstraitPlan" => Err(Status::unimplemented(
            "Substrait plans are not supported; send SQL",
        )),
        _ => Err(Status::unimplemented(
            "there is no such action; ListActions names those there are",
        )),
    }
}

async fn create_prepared(
    server: &FlightSql,
    caller: &Caller,
    request: ActionCreatePreparedStatementRequest,
) -> Result<ActionAnswers, Status> {
    refuse_transaction(request.transaction_id.as_ref())?;
    let prepared = server
        .queries
        .prepare(&caller.session, request.query)
        .await?;
    let result = ActionCreatePreparedStatementResult {
        prepared_statement_handle: prepared.handle.into(),
        dataset_schema: schema_bytes(&prepared.schema)?,
        parameter_schema: schema_bytes(&prepared.parameters)?,
    };
    Ok(answer(&result.as_any()))
}

fn cancel_query(
    server: &FlightSql,
    caller: &Caller,
    request: ActionCancelQueryRequest,
) -> Result<ActionAnswers, Status> {
    let info = FlightInfo::decode(request.info)
        .map_err(|_| Status::invalid_argument("the FlightInfo cannot be read"))?;
    // Both enums give the same meaning to the same numbers.
    let result = cancel(server, caller, Some(info))?;
    Ok(answer(&ActionCancelQueryResult { result }.as_any()))
}

fn cancel(server: &FlightSql, caller: &Caller, info: Option<FlightInfo>) -> Result<i32, Status> {
    let unknown = || Status::invalid_argument("the FlightInfo holds no ticket of a statement");
    let ticket = info
        .and_then(|info| info.endpoint.into_iter().next())
        .and_then(|endpoint| endpoint.ticket)
        .ok_or_else(unknown)?;
    let any = Any::decode(ticket.ticket).map_err(|_| unknown())?;
    let Ok(Command::TicketStatementQuery(ticket)) = Command::try_from(any) else {
        return Err(unknown());
    };
    let status = server
        .queries
        .cancel(&caller.session, &ticket.statement_handle)?;
    Ok(status as i32)
}

async fn set_options(
    server: &FlightSql,
    caller: &Caller,
    request: SetSessionOptionsRequest,
) -> Result<ActionAnswers, Status> {
    let names = if request.session_options.contains_key("schema") {
        let snapshot = server.queries.snapshot(&caller.session.schema()).await?;
        let catalog = snapshot
            .context
            .catalog(CATALOG)
            .ok_or_else(|| StatementError::Catalog(format!("there is no catalog `{CATALOG}`")))?;
        metadata::schema_names(&*catalog)
    } else {
        Vec::new()
    };
    let result = caller
        .session
        .set(request, |schema| names.iter().any(|name| name == schema));
    Ok(answer(&result))
}

/// Reads a message packed in `Any`.
fn unpack<M: ProstMessageExt>(action: &Action) -> Result<M, Status> {
    let unreadable =
        || Status::invalid_argument(format!("the body of `{}` cannot be read", action.r#type));
    Any::decode(action.body.clone())
        .ok()
        .and_then(|any| any.unpack().ok().flatten())
        .ok_or_else(unreadable)
}

/// Reads a bare message.
fn bare<M: Message + Default>(action: &Action) -> Result<M, Status> {
    M::decode(action.body.clone()).map_err(|_| {
        Status::invalid_argument(format!("the body of `{}` cannot be read", action.r#type))
    })
}

fn answer(message: &impl Message) -> ActionAnswers {
    one(arrow_flight::Result {
        body: message.encode_to_vec().into(),
    })
}
