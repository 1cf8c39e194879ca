//! The reasons of the quarantine in SQL, as the docs say them.

use std::sync::Arc;

use arrow::array::{ArrayRef, ListArray, RecordBatch, StringArray, StructArray};
use arrow::buffer::OffsetBuffer;
use arrow::datatypes::DataType;
use headwater_tables::query::{SessionOptions, session};
use headwater_tables::schema::raw_quarantine;
use iceberg::spec::Schema;

use crate::lake::{Lake, arrow_schema};
use crate::plans::answer;

const QUARANTINE: &str = "raw.quarantine";

/// Returns the table with the columns that the query reads, of the types that they have.
async fn quarantine() -> Lake {
    let lake = Lake::new().await;
    let fields = raw_quarantine();
    let fields = fields.schema.as_struct().fields().iter();
    let read = fields.filter(|field| ["failure_type", "errors"].contains(&field.name.as_str()));
    let schema = Schema::builder().with_fields(read.cloned()).build();
    lake.create(QUARANTINE, schema.unwrap(), None).await;
    lake
}

#[tokio::test]
async fn errors_are_counted_by_path_and_keyword() {
    let lake = quarantine().await;
    let schema = arrow_schema(&lake.load(QUARANTINE).await);
    let DataType::List(item) = schema.field(1).data_type().clone() else {
        panic!("{schema:?}");
    };
    let DataType::Struct(parts) = item.data_type().clone() else {
        panic!("{item:?}");
    };
    let texts = |texts: [Option<&str>; 4]| Arc::new(StringArray::from(texts.to_vec())) as ArrayRef;
    let errors = StructArray::new(
        parts,
        vec![
            texts(["$.a", "$.b", "$.a", "$.event"].map(Some)),
            texts(["type", "required", "type", "required"].map(Some)),
            texts(["m", "m", "m", "is missing"].map(Some)),
            texts([Some("string"), Some("a value"), Some("string"), None]),
            texts([Some("array"), Some("missing"), Some("array"), None]),
        ],
        None,
    );
    // Two errors in the first row, one in each of the others.
    let offsets = OffsetBuffer::from_lengths([2, 1, 1]);
    let errors = ListArray::new(item, offsets, Arc::new(errors), None);
    let failures = StringArray::from(vec!["schema_violation"; 3]);
    let columns: Vec<ArrayRef> = vec![Arc::new(failures), Arc::new(errors)];
    let rows = RecordBatch::try_new(schema, columns).unwrap();
    lake.append(QUARANTINE, rows).await;
    let context = session(&lake.pins(&[QUARANTINE]).await, &SessionOptions::default()).unwrap();

    let docs = include_str!("../../../docs/collector.md");
    let (_, sql) = docs
        .split_once("```sql\nSELECT failure_type, error")
        .unwrap();
    let (sql, _) = sql.split_once("```").unwrap();
    let counted = answer(&context, &format!("SELECT failure_type, error{sql}")).await;
    let counted: Vec<String> = counted
        .lines()
        .filter(|line| line.contains("schema_violation"))
        .map(|line| line.split_whitespace().collect())
        .collect();
    assert_eq!(
        counted,
        [
            "|schema_violation|$.a|type|2|",
            "|schema_violation|$.b|required|1|",
            "|schema_violation|$.event|required|1|",
        ]
    );
    let whole = answer(&context, "SELECT errors FROM raw.quarantine").await;
    assert!(
        whole.contains("expected: string, actual_type: array"),
        "{whole}"
    );
}
