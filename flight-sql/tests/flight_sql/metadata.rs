//! What database tools list, exactly as drivers read it.

use std::collections::BTreeMap;

use arrow::array::{Array as _, RecordBatch, StringArray, UInt32Array, UnionArray};
use arrow::datatypes::{DataType, Schema, TimeUnit};
use arrow_flight::sql::{
    CommandGetCrossReference, CommandGetDbSchemas, CommandGetExportedKeys, CommandGetImportedKeys,
    CommandGetPrimaryKeys, CommandGetSqlInfo, CommandGetTables, CommandGetXdbcTypeInfo,
    ProstMessageExt as _,
};
use arrow_flight::{Action, FlightDescriptor, FlightInfo, IpcMessage};
use headwater_flight_sql::session::{
    GetSessionOptionsResult, OptionValue, SessionOptionValue, SetErrorValue,
    SetSessionOptionsRequest, SetSessionOptionsResult,
};
use prost::Message as _;

use crate::harness::{Client, Server, column, fetch, query, with_token};

/// Ids the JDBC driver reads, by the branch of the union it expects.
const BRANCHES: [(i8, &[std::ops::RangeInclusive<u32>]); 6] = [
    (0, &[0..=1, 504..=504, 513..=514, 529..=531]),
    (
        1,
        &[
            3..=3,
            515..=516,
            518..=521,
            523..=524,
            527..=527,
            532..=532,
            536..=537,
            539..=539,
            556..=556,
            563..=563,
            565..=566,
            572..=576,
        ],
    ),
    (2, &[541..=555, 557..=562]),
    (
        3,
        &[
            522..=522,
            525..=526,
            528..=528,
            533..=535,
            538..=538,
            540..=540,
            564..=564,
            567..=567,
        ],
    ),
    (4, &[508..=512]),
    (5, &[517..=517]),
];

fn strings(batch: &RecordBatch, column: &str) -> Vec<String> {
    let column = batch.column_by_name(column).unwrap();
    let column = column.as_any().downcast_ref::<StringArray>().unwrap();
    column
        .iter()
        .map(|value| value.unwrap_or("NULL").to_owned())
        .collect()
}

async fn one_batch(client: &mut Client, info: FlightInfo) -> RecordBatch {
    let schema = info.clone().try_decode_schema().unwrap();
    let batches = fetch(client, info).await.unwrap();
    assert!(batches.iter().all(|batch| *batch.schema() == schema));
    arrow::compute::concat_batches(&std::sync::Arc::new(schema), &batches).unwrap()
}

async fn tables(client: &mut Client, schema: Option<&str>, table: Option<&str>) -> Vec<String> {
    let request = CommandGetTables {
        catalog: None,
        db_schema_filter_pattern: schema.map(str::to_owned),
        table_name_filter_pattern: table.map(str::to_owned),
        table_types: vec!["TABLE".to_owned(), "VIEW".to_owned()],
        include_schema: false,
    };
    let info = client.get_tables(request).await.unwrap();
    let batch = one_batch(client, info).await;
    let (schemas, tables) = (
        strings(&batch, "db_schema_name"),
        strings(&batch, "table_name"),
    );
    schemas
        .into_iter()
        .zip(tables)
        .map(|(schema, table)| format!("{schema}.{table}"))
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn catalogs_schemas_and_tables_are_listed_by_pattern() {
    let server = Server::start().await;
    let mut client = server.client().await;
    let info = client.get_catalogs().await.unwrap();
    assert_eq!(
        strings(&one_batch(&mut client, info).await, "catalog_name"),
        ["headwater"]
    );

    let request = CommandGetDbSchemas {
        catalog: Some("headwater".to_owned()),
        db_schema_filter_pattern: None,
    };
    let info = client.get_db_schemas(request).await.unwrap();
    let schemas = strings(&one_batch(&mut client, info).await, "db_schema_name");
    for schema in ["core", "ops", "public", "raw", "reports", "system"] {
        assert!(schemas.contains(&schema.to_owned()), "{schemas:?}");
    }

    assert_eq!(
        tables(&mut client, Some("core"), None).await,
        ["core.counter", "core.zoo"]
    );
    assert_eq!(
        tables(&mut client, Some("cor_"), Some("z%")).await,
        ["core.zoo"]
    );
    assert_eq!(
        tables(&mut client, Some("public"), None).await,
        ["public.events"]
    );
    assert_eq!(
        tables(&mut client, None, Some("company\\_day")).await,
        ["reports.company_day"]
    );
    assert!(tables(&mut client, Some("cor\\_"), None).await.is_empty());
    assert!(tables(&mut client, None, Some("")).await.is_empty());
    let all = tables(&mut client, None, None).await;
    assert!(all.iter().all(|name| !name.contains('$')), "{all:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn filters_for_another_catalog_or_type_find_nothing() {
    let server = Server::start().await;
    let mut client = server.client().await;
    for (catalog, types) in [(Some("other"), vec![]), (None, vec!["SYNONYM"])] {
        let request = CommandGetTables {
            catalog: catalog.map(str::to_owned),
            table_types: types.into_iter().map(str::to_owned).collect(),
            ..CommandGetTables::default()
        };
        let info = client.get_tables(request).await.unwrap();
        assert_eq!(one_batch(&mut client, info).await.num_rows(), 0);
    }
    let info = client.get_table_types().await.unwrap();
    assert_eq!(
        strings(&one_batch(&mut client, info).await, "table_type"),
        ["TABLE", "VIEW"]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn table_schema_carries_names_types_and_precision() {
    let server = Server::start().await;
    let mut client = server.client().await;
    let request = CommandGetTables {
        db_schema_filter_pattern: Some("core".to_owned()),
        table_name_filter_pattern: Some("zoo".to_owned()),
        include_schema: true,
        ..CommandGetTables::default()
    };
    let info = client.get_tables(request).await.unwrap();
    let batch = one_batch(&mut client, info).await;
    let bytes = batch.column_by_name("table_schema").unwrap();
    let bytes = bytes
        .as_any()
        .downcast_ref::<arrow::array::BinaryArray>()
        .unwrap()
        .value(0);
    let schema = Schema::try_from(IpcMessage(bytes.to_vec().into())).unwrap();
    let described: BTreeMap<&str, (&str, Option<&str>)> = schema
        .fields()
        .iter()
        .map(|field| {
            let value = |key: &str| {
                field
                    .metadata()
                    .get(&format!("ARROW:FLIGHT:SQL:{key}"))
                    .map(String::as_str)
            };
            assert_eq!(value("TABLE_NAME"), Some("zoo"));
            (
                field.name().as_str(),
                (value("TYPE_NAME").unwrap(), value("PRECISION")),
            )
        })
        .collect();
    assert_eq!(described["id"], ("BIGINT", Some("19")));
    assert_eq!(described["amount"], ("DECIMAL", Some("18")));
    assert_eq!(described["at"], ("TIMESTAMP WITH TIME ZONE", None));
    assert_eq!(described["tags"], ("ARRAY", None));
    assert!(!schema.field_with_name("id").unwrap().is_nullable());
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_are_declared_and_foreign_keys_are_none() {
    let server = Server::start().await;
    let mut client = server.client().await;
    let request = CommandGetPrimaryKeys {
        catalog: None,
        db_schema: Some("reports".to_owned()),
        table: "company_day".to_owned(),
    };
    let info = client.get_primary_keys(request).await.unwrap();
    let batch = one_batch(&mut client, info).await;
    assert_eq!(
        strings(&batch, "column_name"),
        ["company_id", "report_date"]
    );
    let infos = [
        client
            .get_imported_keys(CommandGetImportedKeys::default())
            .await
            .unwrap(),
        client
            .get_exported_keys(CommandGetExportedKeys::default())
            .await
            .unwrap(),
        client
            .get_cross_reference(CommandGetCrossReference::default())
            .await
            .unwrap(),
    ];
    for info in infos {
        let batch = one_batch(&mut client, info).await;
        assert_eq!((batch.num_rows(), batch.num_columns()), (0, 13));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn type_names_of_columns_are_listed_types() {
    let server = Server::start().await;
    let mut client = server.client().await;
    let info = client
        .get_xdbc_type_info(CommandGetXdbcTypeInfo::default())
        .await
        .unwrap();
    let names = strings(&one_batch(&mut client, info).await, "type_name");
    for name in [
        "BIGINT",
        "DECIMAL",
        "TIMESTAMP WITH TIME ZONE",
        "VARCHAR",
        "DATE",
        "BOOLEAN",
    ] {
        assert!(names.contains(&name.to_owned()), "{names:?}");
    }
    let one = CommandGetXdbcTypeInfo {
        data_type: Some(12),
    };
    let info = client.get_xdbc_type_info(one).await.unwrap();
    assert_eq!(
        strings(&one_batch(&mut client, info).await, "type_name"),
        ["VARCHAR"]
    );
}

async fn sql_info(server: &Server, client: &mut Client, ids: Vec<u32>) -> BTreeMap<u32, i8> {
    let command = CommandGetSqlInfo { info: ids };
    let descriptor = FlightDescriptor::new_cmd(command.as_any().encode_to_vec());
    let request = with_token(client, descriptor);
    let info = server
        .raw()
        .await
        .get_flight_info(request)
        .await
        .unwrap()
        .into_inner();
    let batch = one_batch(client, info).await;
    let names = batch
        .column(0)
        .as_any()
        .downcast_ref::<UInt32Array>()
        .unwrap();
    let values = batch
        .column(1)
        .as_any()
        .downcast_ref::<UnionArray>()
        .unwrap();
    (0..names.len())
        .map(|row| (names.value(row), values.type_id(row)))
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn sql_info_has_the_69_facts_of_jdbc_in_their_branches() {
    let server = Server::start().await;
    let mut client = server.client().await;
    let all = sql_info(&server, &mut client, vec![]).await;
    let mut expected = BTreeMap::new();
    for (branch, ranges) in BRANCHES {
        for id in ranges.iter().cloned().flatten() {
            expected.insert(id, branch);
        }
    }
    assert_eq!(expected.len(), 69);
    for (id, branch) in &expected {
        assert_eq!(all.get(id), Some(branch), "id {id}");
    }
    // An id the driver does not know breaks it.
    let others: Vec<u32> = all
        .keys()
        .copied()
        .filter(|id| !expected.contains_key(id))
        .collect();
    assert_eq!(others, [2, 4, 5, 6, 7, 8, 9, 100, 101]);
}

#[tokio::test(flavor = "multi_thread")]
async fn sql_info_answers_exactly_the_ids_asked_for() {
    let server = Server::start().await;
    let mut client = server.client().await;
    let some = sql_info(&server, &mut client, vec![8, 10, 503, 0]).await;
    assert_eq!(some, BTreeMap::from([(0, 0), (8, 3), (10, 1), (503, 2)]));
    assert!(
        sql_info(&server, &mut client, vec![9999, 70000])
            .await
            .is_empty()
    );
}

async fn action(server: &Server, client: &Client, name: &str, body: Vec<u8>) -> bytes::Bytes {
    let request = with_token(client, Action::new(name, body));
    let mut answer = server
        .raw()
        .await
        .do_action(request)
        .await
        .unwrap()
        .into_inner();
    answer.message().await.unwrap().unwrap().body
}

#[tokio::test(flavor = "multi_thread")]
async fn session_options_decide_what_a_bare_name_means() {
    let server = Server::start().await;
    let mut client = server.client().await;
    assert!(query(&mut client, "SELECT * FROM zoo").await.is_err());
    let text = |text: &str| SessionOptionValue {
        option_value: Some(OptionValue::StringValue(text.to_owned())),
    };
    let request = SetSessionOptionsRequest {
        session_options: [
            ("catalog".to_owned(), text("headwater")),
            ("schema".to_owned(), text("core")),
            ("colour".to_owned(), text("red")),
        ]
        .into(),
    };
    let body = action(
        &server,
        &client,
        "SetSessionOptions",
        request.encode_to_vec(),
    )
    .await;
    let refused = SetSessionOptionsResult::decode(body).unwrap().errors;
    assert_eq!(refused.len(), 1);
    assert_eq!(refused["colour"].value(), SetErrorValue::InvalidName);
    assert_eq!(
        column(&mut client, "SELECT id FROM zoo ORDER BY id").await,
        ["1", "2", "3"]
    );
    let body = action(&server, &client, "GetSessionOptions", vec![]).await;
    let options = GetSessionOptionsResult::decode(body)
        .unwrap()
        .session_options;
    assert_eq!(options["schema"], text("core"));
    // Another session of the same user is not touched.
    let mut other = server.client().await;
    assert!(query(&mut other, "SELECT * FROM zoo").await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn old_jdbc_drivers_get_timestamps_without_a_zone_everywhere() {
    let server = Server::start().await;
    let mut client = server.client_named("grpc-java-netty/1.71.0").await;
    let plain = DataType::Timestamp(TimeUnit::Microsecond, None);
    let prepared = client
        .prepare("SELECT at FROM core.zoo".to_owned(), None)
        .await
        .unwrap();
    let declared = prepared.dataset_schema().unwrap();
    assert_eq!(*declared.field(0).data_type(), plain);
    let batches = query(&mut client, "SELECT at FROM core.zoo ORDER BY at")
        .await
        .unwrap();
    assert_eq!(*batches[0].schema().field(0).data_type(), plain);
    let first = column(&mut client, "SELECT at FROM core.zoo ORDER BY at LIMIT 1").await;
    assert_eq!(first, ["1970-01-01T00:00:00"]);
}
