//! Data files: complete, typed as the table, with bounds that cover their rows.

use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, Int32Array, Int64Array, LargeStringArray, ListArray, ListBuilder, RecordBatch,
    StringArray, StringBuilder, StructArray, TimestampMillisecondArray, UInt64Array,
};
use arrow::buffer::OffsetBuffer;
use arrow::datatypes::{DataType, Field, Schema, TimeUnit};
use headwater_tables::{Change, Partition, TableSpec, schema, write};
use iceberg::spec::{Datum, PrimitiveLiteral};

use crate::lake::{DAY, Lake, TODAY, batch, ids, rows};

#[tokio::test]
async fn columns_are_matched_by_name_and_cast_to_the_table() {
    let lake = Lake::new().await;
    let table = lake.table().await;
    // Another order, other widths, another unit, and no `note`.
    let at = DataType::Timestamp(TimeUnit::Millisecond, Some("+02:00".into()));
    let schema = Schema::new(vec![
        Field::new("at", at, true),
        Field::new("id", DataType::Int32, true),
    ]);
    let times = TimestampMillisecondArray::from(vec![TODAY / 1000]).with_timezone("+02:00");
    let columns: Vec<ArrayRef> = vec![Arc::new(times), Arc::new(Int32Array::from(vec![7]))];
    let batch = RecordBatch::try_new(Arc::new(schema), columns).unwrap();
    let add = write::write_batches(&table, vec![batch]).await.unwrap();
    let head = lake
        .catalog
        .commit(&table, Change::append(add))
        .await
        .unwrap();
    assert_eq!(ids(&head).await, [7]);
    let read = rows(&head).await;
    assert_eq!(read[0].column_by_name("note").unwrap().null_count(), 1);
}

#[tokio::test]
async fn rows_that_do_not_fit_are_errors_that_name_the_column() {
    let lake = Lake::new().await;
    let table = lake.table().await;
    let good = batch(&[(1, TODAY)]);
    let with = |name: &str, column: ArrayRef| {
        let mut fields: Vec<_> = good.schema().fields().iter().cloned().collect();
        let mut columns = good.columns().to_vec();
        let field = Arc::new(Field::new(name, column.data_type().clone(), true));
        match fields.iter().position(|field| field.name() == name) {
            Some(position) => {
                fields[position] = field;
                columns[position] = column;
            }
            None => {
                fields.push(field);
                columns.push(column);
            }
        }
        RecordBatch::try_new(Arc::new(Schema::new(fields)), columns).unwrap()
    };
    let cases = [
        (
            "`surprise`",
            with("surprise", Arc::new(Int64Array::from(vec![1]))),
        ),
        (
            "`id`",
            with("id", Arc::new(UInt64Array::from(vec![u64::MAX]))),
        ),
        ("id", with("id", Arc::new(Int64Array::from(vec![None])))),
        ("at", good.project(&[0, 2]).unwrap()),
    ];
    for (column, batch) in cases {
        let error = write::write_batches(&table, vec![batch]).await.unwrap_err();
        assert!(error.to_string().contains(column), "{error}");
    }
    assert!(
        write::write_batches(&table, Vec::new())
            .await
            .unwrap()
            .is_empty()
    );
}

#[tokio::test]
async fn bounds_cover_every_row_of_a_file_with_many_row_groups() {
    let lake = Lake::new().await;
    let name = "raw.wide".parse().unwrap();
    let arrow = Schema::new(vec![Field::new("text", DataType::Utf8, true)]);
    let spec = TableSpec::from_arrow(name, &arrow, Partition::None).unwrap();
    let table = lake.catalog.ensure(&spec).await.unwrap();
    // The first row group has the extremes, too long for a bound; the second has short values.
    let long = |first: &str| format!("{first}{}", "ä".repeat(40));
    let extremes = ["a", "z"].map(long);
    let first = (0..128 * 1024).map(|row| Some(extremes[row % 2].as_str()));
    let second = (0..10).map(|row| (row > 0).then_some("m"));
    let text: StringArray = first.chain(second).collect();
    let batch = RecordBatch::try_new(Arc::new(arrow), vec![Arc::new(text)]).unwrap();
    let files = write::write_batches(&table, vec![batch]).await.unwrap();
    let [file] = files.as_slice() else {
        panic!("one file");
    };
    assert_eq!(file.split_offsets().unwrap().len(), 2);
    let string = |datum: &Datum| match datum.literal() {
        PrimitiveLiteral::String(text) => text.clone(),
        other => panic!("{other:?}"),
    };
    let lower = string(&file.lower_bounds()[&1]);
    let upper = string(&file.upper_bounds()[&1]);
    assert!(lower.as_str() <= extremes[0].as_str(), "{lower}");
    assert!(upper.as_str() >= extremes[1].as_str(), "{upper}");
    assert!(lower.len() <= 16 && upper.len() <= 16, "{lower} {upper}");
    assert_eq!(file.null_value_counts()[&1], 1);
    assert_eq!(file.value_counts()[&1], 128 * 1024 + 10);
}

#[tokio::test]
async fn rows_keep_their_order_within_a_partition() {
    let lake = Lake::new().await;
    let table = lake.table().await;
    let input = [
        (5, TODAY),
        (1, TODAY - DAY),
        (4, TODAY),
        (9, TODAY - DAY),
        (2, TODAY),
    ];
    let add = write::write_batches(&table, vec![batch(&input), batch(&[(3, TODAY)])])
        .await
        .unwrap();
    assert_eq!(add.len(), 2, "one file per day");
    let head = lake
        .catalog
        .commit(&table, Change::append(add))
        .await
        .unwrap();
    let mut orders: Vec<Vec<i64>> = Vec::new();
    for batch in rows(&head).await {
        let column = batch.column_by_name("id").unwrap();
        let column = column.as_any().downcast_ref::<Int64Array>().unwrap();
        orders.push(column.values().to_vec());
    }
    orders.sort();
    assert_eq!(orders, [vec![1, 9], vec![5, 4, 2, 3]]);
}

#[tokio::test]
async fn a_full_file_ends_and_the_next_begins() {
    let lake = Lake::new().await;
    let spec = crate::lake::spec().with_property("write.target-file-size-bytes", "20000");
    let table = lake.catalog.ensure(&spec).await.unwrap();
    let many: Vec<_> = (0..100_000)
        .map(|id| (id * 7919 % 100_003, TODAY))
        .collect();
    let add = write::write_batches(&table, vec![batch(&many)])
        .await
        .unwrap();
    assert!(add.len() > 2, "{} files", add.len());
    let records: u64 = add
        .iter()
        .map(headwater_tables::DataFile::record_count)
        .sum();
    assert_eq!(records, 100_000);
}

#[tokio::test]
async fn raw_tables_take_rows_of_every_type() {
    let lake = Lake::new().await;
    for spec in [schema::raw_events(), schema::raw_quarantine()] {
        let table = lake.catalog.ensure(&spec).await.unwrap();
        let arrow = write::arrow_schema(&table).unwrap();
        let columns = arrow.fields().iter().map(|field| sample(field)).collect();
        let batch = RecordBatch::try_new(arrow.clone(), columns).unwrap();
        let add = write::write_batches(&table, vec![batch.clone()])
            .await
            .unwrap();
        let bounded = add[0].lower_bounds().len();
        let head = lake
            .catalog
            .commit(&table, Change::append(add))
            .await
            .unwrap();
        let read = rows(&head).await;
        assert_eq!(read[0].num_rows(), 2);
        assert_eq!(read[0].num_columns(), arrow.fields().len());
        for (field, column) in arrow.fields().iter().zip(read[0].columns()) {
            let written = batch.column_by_name(field.name()).unwrap();
            assert_eq!(column.as_ref(), written.as_ref(), "{}", field.name());
        }
        let id = |name: &str| table.metadata().current_schema().field_id_by_name(name);
        let free = [
            "properties",
            "context",
            "traits",
            "payload",
            "flags",
            "property_violations",
            "errors",
        ];
        let unbounded = free.iter().filter(|name| id(name).is_some()).count();
        assert_eq!(bounded + unbounded, arrow.fields().len());
    }
}

/// Returns a column of two values of the field's type.
fn sample(field: &Field) -> ArrayRef {
    match field.data_type() {
        DataType::List(item) => match item.data_type() {
            DataType::Struct(fields) => {
                let columns = fields.iter().map(|field| sample(field)).collect();
                let structs = StructArray::new(fields.clone(), columns, None);
                // Both in the first row, none in the second.
                let offsets = OffsetBuffer::from_lengths([2, 0]);
                let list = ListArray::new(item.clone(), offsets, Arc::new(structs), None);
                Arc::new(list)
            }
            _ => {
                let mut list = ListBuilder::new(StringBuilder::new()).with_field(item.clone());
                list.append_value([Some("late"), Some("bot")]);
                list.append_value(Vec::<Option<&str>>::new());
                let list: ListArray = list.finish();
                Arc::new(list)
            }
        },
        DataType::FixedSizeBinary(16) => {
            let values = [[7u8; 16], [9u8; 16]];
            Arc::new(arrow::array::FixedSizeBinaryArray::try_from_iter(values.iter()).unwrap())
        }
        DataType::LargeBinary => Arc::new(arrow::array::LargeBinaryArray::from(vec![
            &b"\xff\x00"[..],
            &b"{}"[..],
        ])),
        DataType::Timestamp(..) => {
            let times = Int64Array::from(vec![TODAY, TODAY + 1]);
            arrow::compute::cast(&times, field.data_type()).unwrap()
        }
        DataType::Utf8 => Arc::new(StringArray::from(vec!["a", "b"])),
        other => {
            let numbers = LargeStringArray::from(vec!["1", "0"]);
            arrow::compute::cast(&numbers, other).unwrap()
        }
    }
}
