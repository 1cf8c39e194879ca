//! The Flight service: every RPC, authenticated, dispatched by its command.
//!
//! Place on the event's path: where a client's call arrives. Promise: every RPC authenticates first;
//! what writes is refused on every path; unknown commands, actions and handles are an error status,
//! never a panic. The service is written on `FlightService` itself, because the ready-made Flight SQL
//! layer answers GetSchema, PollFlightInfo, sessions and CancelFlightInfo with "unimplemented".

use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::{Schema, SchemaRef};
use arrow_flight::decode::FlightRecordBatchStream;
use arrow_flight::encode::FlightDataEncoderBuilder;
use arrow_flight::error::FlightError;
use arrow_flight::flight_service_server::FlightService;
use arrow_flight::sql::{
    Any, Command, CommandPreparedStatementQuery, DoPutPreparedStatementResult,
    ProstMessageExt as _, TicketStatementQuery,
};
use arrow_flight::{
    Action, ActionType, Criteria, Empty, FlightData, FlightDescriptor, FlightEndpoint, FlightInfo,
    HandshakeRequest, HandshakeResponse, IpcMessage, PollInfo, PutResult, SchemaAsIpc,
    SchemaResult, Ticket,
};
use bytes::Bytes;
use futures::stream::{self, BoxStream};
use futures::{Stream, StreamExt as _, TryStreamExt as _};
use prost::Message as _;
use tonic::{Code, Request, Response, Status, Streaming};

use crate::auth::{Authenticator, Caller};
use crate::config::LimitsConfig;
use crate::error::StatementError;
use crate::metadata::Metadata;
use crate::queries::{Queries, Ticketed};
use crate::{action, deadline, metrics, result};

/// A stream of answers.
pub(crate) type Answers<T> = BoxStream<'static, Result<T, Status>>;

/// The Flight SQL server's RPCs.
#[derive(Clone)]
pub(crate) struct FlightSql {
    pub(crate) auth: Arc<Authenticator>,
    pub(crate) queries: Arc<Queries>,
    pub(crate) metadata: Arc<Metadata>,
    pub(crate) limits: LimitsConfig,
}

impl FlightSql {
    async fn flight_info(
        &self,
        caller: &Caller,
        descriptor: FlightDescriptor,
    ) -> Result<FlightInfo, Status> {
        let command = command(&descriptor.cmd)?;
        if let Some(schema) = self.metadata.schema(&command) {
            // The ticket of a metadata command is the command itself.
            let ticket = descriptor.cmd.clone();
            return flight_info(&schema, descriptor, ticket, Bytes::new());
        }
        let planned = match command {
            Command::CommandStatementQuery(query) => {
                refuse_transaction(query.transaction_id.as_ref())?;
                self.queries.execute(&caller.session, &query.query).await?
            }
            Command::CommandPreparedStatementQuery(query) => {
                let handle = &query.prepared_statement_handle;
                self.queries
                    .execute_prepared(&caller.session, handle)
                    .await?
            }
            other => return Err(refuse(&other)),
        };
        let Ticketed {
            handle,
            schema,
            snapshots,
        } = planned;
        let ticket = TicketStatementQuery {
            statement_handle: handle.into(),
        };
        let ticket = ticket.as_any().encode_to_vec().into();
        flight_info(&schema, descriptor, ticket, snapshots.into())
    }

    async fn schema(
        &self,
        caller: &Caller,
        descriptor: &FlightDescriptor,
    ) -> Result<SchemaRef, Status> {
        let command = command(&descriptor.cmd)?;
        if let Some(schema) = self.metadata.schema(&command) {
            return Ok(schema);
        }
        match command {
            Command::CommandStatementQuery(query) => {
                self.queries.schema(&caller.session, &query.query).await
            }
            Command::CommandPreparedStatementQuery(query) => self
                .queries
                .prepared_schema(&caller.session, &query.prepared_statement_handle),
            other => Err(refuse(&other)),
        }
    }

    async fn fetch(
        &self,
        caller: &Caller,
        request: Request<Ticket>,
    ) -> Result<Answers<FlightData>, Status> {
        let timeout = deadline::of(request.metadata());
        let command = command(&request.into_inner().ticket)?;
        let handle = match command {
            Command::TicketStatementQuery(ticket) => ticket.statement_handle,
            // Some clients fetch a prepared statement by its command.
            Command::CommandPreparedStatementQuery(query) => {
                let handle = &query.prepared_statement_handle;
                let planned = self
                    .queries
                    .execute_prepared(&caller.session, handle)
                    .await?;
                planned.handle.into()
            }
            other => return self.fetch_metadata(caller, other).await,
        };
        let (schema, batches) = self
            .queries
            .fetch(&caller.session, &handle, timeout)
            .await?;
        Ok(encode(schema, batches))
    }

    async fn fetch_metadata(
        &self,
        caller: &Caller,
        command: Command,
    ) -> Result<Answers<FlightData>, Status> {
        let Some(schema) = self.metadata.schema(&command) else {
            return Err(refuse(&command));
        };
        let snapshot = if Metadata::needs_tables(&command) {
            Some(self.queries.snapshot(&caller.session.schema()).await?)
        } else {
            None
        };
        let can_split = matches!(command, Command::CommandGetTables(_));
        let batch = self
            .metadata
            .batch(command, snapshot.as_ref(), caller.session.timestamps)
            .await?;
        let batches = if can_split {
            result::split(batch)
        } else {
            vec![batch]
        };
        Ok(encode(schema, stream::iter(batches.into_iter().map(Ok))))
    }

    async fn put(
        &self,
        caller: &Caller,
        mut data: Streaming<FlightData>,
    ) -> Result<Answers<PutResult>, Status> {
        let first = data
            .message()
            .await?
            .ok_or_else(|| Status::invalid_argument("the stream is empty"))?;
        let descriptor = first
            .flight_descriptor
            .as_ref()
            .ok_or_else(|| Status::invalid_argument("the first message has no descriptor"))?;
        let command = command(&descriptor.cmd)?;
        let Command::CommandPreparedStatementQuery(CommandPreparedStatementQuery {
            prepared_statement_handle,
        }) = command
        else {
            return Err(refuse(&command));
        };
        let rows = self.read_rows(first, data).await?;
        self.queries
            .bind(&caller.session, &prepared_statement_handle, rows)?;
        let answer = DoPutPreparedStatementResult {
            // JDBC uses this handle as it comes, so it must always be there.
            prepared_statement_handle: Some(prepared_statement_handle),
        };
        let answer = PutResult {
            app_metadata: answer.encode_to_vec().into(),
        };
        Ok(one(answer))
    }

    /// Reads bound parameters, within their bounds.
    async fn read_rows(
        &self,
        first: FlightData,
        rest: Streaming<FlightData>,
    ) -> Result<Vec<RecordBatch>, Status> {
        let data = stream::iter([Ok(first)])
            .chain(rest)
            .map_err(|status| FlightError::Tonic(Box::new(status)));
        let mut batches = FlightRecordBatchStream::new_from_flight_data(data);
        let mut rows: Vec<RecordBatch> = Vec::new();
        let (mut count, mut bytes) = (0, 0);
        while let Some(batch) = batches.try_next().await.map_err(unreadable)? {
            count += batch.num_rows();
            bytes += batch.get_array_memory_size();
            if count > self.limits.parameter_rows_max {
                return Err(Status::invalid_argument(format!(
                    "more than `limits.parameter_rows_max` = {} rows are bound",
                    self.limits.parameter_rows_max
                )));
            }
            if bytes > self.limits.message_bytes_max {
                return Err(Status::invalid_argument(format!(
                    "more than `limits.message_bytes_max` = {} bytes are bound",
                    self.limits.message_bytes_max
                )));
            }
            rows.push(batch);
        }
        Ok(rows)
    }

    async fn greet(&self, request: Request<Streaming<HandshakeRequest>>) -> Result<Caller, Status> {
        if request.metadata().contains_key("authorization") {
            return self.auth.authenticate(request.metadata());
        }
        let metadata = request.metadata().clone();
        let payload = match request.into_inner().message().await? {
            Some(request) => request.payload,
            None => Bytes::new(),
        };
        self.auth.authenticate_payload(&payload, &metadata)
    }
}

fn unreadable(error: FlightError) -> Status {
    match error {
        FlightError::Tonic(status) => *status,
        other => Status::invalid_argument(format!("the parameters cannot be read: {other}")),
    }
}

/// Reads a packed command.
fn command(bytes: &[u8]) -> Result<Command, Status> {
    let any = Any::decode(bytes)
        .map_err(|_| Status::invalid_argument("the command or ticket is not a Flight SQL one"))?;
    Command::try_from(any)
        .map_err(|error| Status::invalid_argument(format!("the command cannot be read: {error}")))
}

/// Refuses what writes as such, and the rest as unknown.
fn refuse(command: &Command) -> Status {
    match command {
        Command::CommandStatementUpdate(_)
        | Command::CommandPreparedStatementUpdate(_)
        | Command::CommandStatementIngest(_) => StatementError::read_only("an update").into(),
        Command::CommandStatementSubstraitPlan(_) => {
            Status::unimplemented("Substrait plans are not supported; send SQL")
        }
        other => Status::unimplemented(format!(
            "command `{}` is not supported",
            other.type_url().replace('\n', " ")
        )),
    }
}

pub(crate) fn refuse_transaction(transaction: Option<&Bytes>) -> Result<(), Status> {
    match transaction {
        Some(id) if !id.is_empty() => Err(Status::unimplemented(
            "transactions are not supported; send none",
        )),
        _ => Ok(()),
    }
}

fn flight_info(
    schema: &Schema,
    descriptor: FlightDescriptor,
    ticket: Bytes,
    app_metadata: Bytes,
) -> Result<FlightInfo, Status> {
    // No location means "fetch it here, on this connection". One endpoint even for an empty
    // result: some drivers fail on none.
    let endpoint = FlightEndpoint::new().with_ticket(Ticket { ticket });
    Ok(FlightInfo::new()
        .try_with_schema(schema)
        .map_err(|error| Status::internal(format!("the schema cannot be encoded: {error}")))?
        .with_descriptor(descriptor)
        .with_endpoint(endpoint)
        .with_app_metadata(app_metadata)
        .with_ordered(true))
}

/// Encodes a schema as one IPC message.
pub(crate) fn schema_bytes(schema: &Schema) -> Result<Bytes, Status> {
    let options = arrow::ipc::writer::IpcWriteOptions::default();
    let IpcMessage(bytes) = SchemaAsIpc::new(schema, &options)
        .try_into()
        .map_err(|error| Status::internal(format!("the schema cannot be encoded: {error}")))?;
    Ok(bytes)
}

/// Encodes batches, uncompressed because the JDBC driver cannot decompress. They are split already.
fn encode(
    schema: SchemaRef,
    batches: impl Stream<Item = Result<RecordBatch, Status>> + Send + 'static,
) -> Answers<FlightData> {
    FlightDataEncoderBuilder::new()
        .with_schema(schema)
        .with_max_flight_data_size(usize::MAX)
        .build(batches.map_err(|status| FlightError::Tonic(Box::new(status))))
        .map_err(Status::from)
        .boxed()
}

/// A stream of one answer.
pub(crate) fn one<T: Send + 'static>(answer: T) -> Answers<T> {
    stream::iter([Ok(answer)]).boxed()
}

/// Counts the answer of an RPC.
fn counted<T>(rpc: &'static str, answer: Result<T, Status>) -> Result<T, Status> {
    let code = answer.as_ref().err().map_or(Code::Ok, Status::code);
    ::metrics::counter!(metrics::RPCS, "rpc" => rpc, "code" => format!("{code:?}")).increment(1);
    answer
}

#[tonic::async_trait]
impl FlightService for FlightSql {
    type HandshakeStream = Answers<HandshakeResponse>;
    type ListFlightsStream = Answers<FlightInfo>;
    type DoGetStream = Answers<FlightData>;
    type DoPutStream = Answers<PutResult>;
    type DoExchangeStream = Answers<FlightData>;
    type DoActionStream = Answers<arrow_flight::Result>;
    type ListActionsStream = Answers<ActionType>;

    async fn handshake(
        &self,
        request: Request<Streaming<HandshakeRequest>>,
    ) -> Result<Response<Self::HandshakeStream>, Status> {
        let caller = counted("Handshake", self.greet(request).await)?;
        let answer = HandshakeResponse {
            protocol_version: 0,
            payload: Bytes::copy_from_slice(caller.token().as_bytes()),
        };
        Ok(caller.answer_handshake(one(answer)))
    }

    async fn list_flights(
        &self,
        request: Request<Criteria>,
    ) -> Result<Response<Self::ListFlightsStream>, Status> {
        let caller = counted("ListFlights", self.auth.authenticate(request.metadata()))?;
        Ok(caller.answer(stream::empty().boxed()))
    }

    async fn get_flight_info(
        &self,
        request: Request<FlightDescriptor>,
    ) -> Result<Response<FlightInfo>, Status> {
        let caller = counted("GetFlightInfo", self.auth.authenticate(request.metadata()))?;
        let answer = self.flight_info(&caller, request.into_inner()).await;
        Ok(caller.answer(counted("GetFlightInfo", answer)?))
    }

    async fn poll_flight_info(
        &self,
        request: Request<FlightDescriptor>,
    ) -> Result<Response<PollInfo>, Status> {
        let caller = counted("PollFlightInfo", self.auth.authenticate(request.metadata()))?;
        let answer = self.flight_info(&caller, request.into_inner()).await;
        // Planning is all there is to wait for: the first answer is the last.
        let info = counted("PollFlightInfo", answer)?;
        Ok(caller.answer(PollInfo {
            info: Some(info),
            flight_descriptor: None,
            progress: Some(1.0),
            expiration_time: None,
        }))
    }

    async fn get_schema(
        &self,
        request: Request<FlightDescriptor>,
    ) -> Result<Response<SchemaResult>, Status> {
        let caller = counted("GetSchema", self.auth.authenticate(request.metadata()))?;
        let answer = self.schema(&caller, request.get_ref()).await;
        let schema = counted("GetSchema", answer)?;
        Ok(caller.answer(SchemaResult {
            schema: schema_bytes(&schema)?,
        }))
    }

    async fn do_get(
        &self,
        request: Request<Ticket>,
    ) -> Result<Response<Self::DoGetStream>, Status> {
        let caller = counted("DoGet", self.auth.authenticate(request.metadata()))?;
        let answer = self.fetch(&caller, request).await;
        Ok(caller.answer(counted("DoGet", answer)?))
    }

    async fn do_put(
        &self,
        request: Request<Streaming<FlightData>>,
    ) -> Result<Response<Self::DoPutStream>, Status> {
        let caller = counted("DoPut", self.auth.authenticate(request.metadata()))?;
        let answer = self.put(&caller, request.into_inner()).await;
        Ok(caller.answer(counted("DoPut", answer)?))
    }

    async fn do_exchange(
        &self,
        request: Request<Streaming<FlightData>>,
    ) -> Result<Response<Self::DoExchangeStream>, Status> {
        counted("DoExchange", self.auth.authenticate(request.metadata()))?;
        counted(
            "DoExchange",
            Err(Status::unimplemented("DoExchange is not supported")),
        )
    }

    async fn do_action(
        &self,
        request: Request<Action>,
    ) -> Result<Response<Self::DoActionStream>, Status> {
        let caller = counted("DoAction", self.auth.authenticate(request.metadata()))?;
        let answer = action::run(self, &caller, request.into_inner()).await;
        Ok(caller.answer(counted("DoAction", answer)?))
    }

    async fn list_actions(
        &self,
        request: Request<Empty>,
    ) -> Result<Response<Self::ListActionsStream>, Status> {
        let caller = counted("ListActions", self.auth.authenticate(request.metadata()))?;
        Ok(caller.answer(stream::iter(action::list().map(Ok)).boxed()))
    }
}
