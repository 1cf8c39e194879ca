//! Schema evolution: new columns are nullable, old rows stay readable.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, Int64Array, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Field, Schema};
use headwater_tables::{Catalog, Change, Partition, TableSpec, write};

use crate::lake::{DAY, Lake, TODAY, batch, column, files, ids, name, schema, spec};

fn spec_with(changes: impl FnOnce(&mut Vec<Field>)) -> TableSpec {
    let mut fields: Vec<Field> = schema()
        .fields()
        .iter()
        .map(|field| field.as_ref().clone())
        .collect();
    changes(&mut fields);
    let partition = Partition::Day("at".to_owned());
    TableSpec::from_arrow(name(), &Schema::new(fields), partition).unwrap()
}

#[tokio::test]
async fn a_new_nullable_column_is_added_and_old_rows_have_null_in_it() {
    let lake = Lake::new().await;
    let table = lake.append(&lake.table().await, &[(1, TODAY)]).await;
    let tags = DataType::new_list(DataType::Utf8, true);
    let wider = spec_with(|fields| {
        fields.insert(0, Field::new("tags", tags, true));
        fields.push(Field::new("plan", DataType::Utf8, true));
    });
    let evolved = lake.catalog.ensure(&wider).await.unwrap();
    assert_eq!(
        lake.catalog
            .ensure(&wider)
            .await
            .unwrap()
            .metadata_location(),
        evolved.metadata_location()
    );

    let old = batch(&[(2, TODAY)]);
    let mut fields: Vec<_> = old.schema().fields().iter().cloned().collect();
    let mut columns = old.columns().to_vec();
    fields.push(Arc::new(Field::new("plan", DataType::Utf8, true)));
    columns.push(Arc::new(StringArray::from(vec!["pro"])) as ArrayRef);
    let new = RecordBatch::try_new(Arc::new(Schema::new(fields)), columns).unwrap();
    let add = write::write_batches(&evolved, vec![new]).await.unwrap();
    let head = lake
        .catalog
        .commit(&evolved, Change::append(add))
        .await
        .unwrap();
    assert_eq!(ids(&head).await, [1, 2]);
    let plans = column(&head, "plan").await;
    let nulls: usize = plans.iter().map(|plans| plans.null_count()).sum();
    assert_eq!(nulls, 1);

    // A writer of the old version goes on: what it does not know stays null.
    let unchanged = lake.catalog.ensure(&spec()).await.unwrap();
    assert_eq!(unchanged.metadata_location(), head.metadata_location());
    assert!(
        table
            .metadata()
            .current_schema()
            .field_by_name("plan")
            .is_none()
    );
}

#[tokio::test]
async fn columns_widen_and_relax_and_old_files_stay_readable() {
    let lake = Lake::new().await;
    let narrow = spec_with(|fields| fields.push(Field::new("n", DataType::Int32, false)));
    let table = lake.catalog.ensure(&narrow).await.unwrap();
    let with_n = |id: i64, n: i64| {
        let rows = batch(&[(id, TODAY)]);
        let mut fields: Vec<_> = rows.schema().fields().iter().cloned().collect();
        fields.push(Arc::new(Field::new("n", DataType::Int64, true)));
        let mut columns = rows.columns().to_vec();
        columns.push(Arc::new(Int64Array::from(vec![n])) as ArrayRef);
        vec![RecordBatch::try_new(Arc::new(Schema::new(fields)), columns).unwrap()]
    };
    let too_large = i64::from(i32::MAX) + 1;
    write::write_batches(&table, with_n(1, too_large))
        .await
        .unwrap_err();
    let add = write::write_batches(&table, with_n(1, 5)).await.unwrap();
    lake.catalog
        .commit(&table, Change::append(add))
        .await
        .unwrap();

    let wide = spec_with(|fields| fields.push(Field::new("n", DataType::Int64, true)));
    let table = lake.catalog.ensure(&wide).await.unwrap();
    let add = write::write_batches(&table, with_n(2, too_large))
        .await
        .unwrap();
    let head = lake
        .catalog
        .commit(&table, Change::append(add))
        .await
        .unwrap();
    let mut read: Vec<i64> = Vec::new();
    for column in column(&head, "n").await {
        let column = column.as_any().downcast_ref::<Int64Array>().unwrap();
        read.extend(column.values().iter());
    }
    read.sort_unstable();
    assert_eq!(read, [5, too_large]);
    let field = head.metadata().current_schema().field_by_name("n").unwrap();
    assert!(!field.required);
}

#[tokio::test]
async fn what_old_rows_cannot_satisfy_is_refused() {
    let lake = Lake::new().await;
    let table = lake.table().await;
    let cases = [
        (
            "`plan` is required",
            spec_with(|fields| {
                fields.push(Field::new("plan", DataType::Utf8, false));
            }),
        ),
        (
            "column `note` is `string`",
            spec_with(|fields| {
                fields[2] = Field::new("note", DataType::Boolean, true);
            }),
        ),
        (
            "column `note` is `string` and `list<struct<path: string>>` is wanted",
            spec_with(|fields| {
                let path = Field::new("path", DataType::Utf8, false);
                let item = DataType::Struct(vec![path].into());
                fields[2] = Field::new("note", DataType::new_list(item, true), true);
            }),
        ),
        (
            "required column `id`",
            spec_with(|fields| {
                fields.remove(0);
            }),
        ),
        (
            "partitioned differently",
            TableSpec::from_arrow(name(), &schema(), Partition::None).unwrap(),
        ),
    ];
    for (reason, spec) in cases {
        let error = lake.catalog.ensure(&spec).await.unwrap_err();
        assert!(error.to_string().contains(reason), "{error}");
    }
    assert_eq!(
        lake.head().await.metadata_location(),
        table.metadata_location()
    );
}

#[tokio::test]
async fn a_table_that_a_clock_ahead_has_stamped_still_evolves() {
    let lake = Lake::new().await;
    let base = lake.table().await;
    let clock = Arc::new(|| TODAY + 36_500 * DAY);
    let ahead = Catalog::open_with_clock(&lake.config, clock).await.unwrap();
    let change = Change::append(files(&base, &[(1, TODAY)]).await);
    let stamped = ahead.commit(&base, change).await.unwrap();

    let wider = spec_with(|fields| fields.push(Field::new("plan", DataType::Utf8, true)));
    let evolved = lake.catalog.ensure(&wider).await.unwrap();
    let read = lake.another_process().await.load(&name()).await.unwrap();
    assert_eq!(read.metadata_location(), evolved.metadata_location());
    let current = read.metadata().current_schema();
    assert!(current.field_by_name("plan").is_some());
    assert_eq!(ids(&read).await, [1]);
    assert_eq!(
        read.metadata().last_updated_ms(),
        stamped.metadata().last_updated_ms()
    );
}
