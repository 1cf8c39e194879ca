//! The SQL types of this server (`CommandGetXdbcTypeInfo`) and their names in column metadata.
//!
//! Place on the event's path: read by BI tools before they load a table. Promise: the name a column
//! shows is one of the names listed here.

use arrow::datatypes::DataType;
use arrow_flight::error::FlightError;
use arrow_flight::sql::metadata::{XdbcTypeInfo, XdbcTypeInfoData, XdbcTypeInfoDataBuilder};
use arrow_flight::sql::{Nullable, Searchable, XdbcDataType, XdbcDatetimeSubcode};

/// Returns the SQL name of a type, as `DESCRIBE` would and `CAST` accepts it.
pub(crate) fn name(data_type: &DataType) -> &'static str {
    match data_type {
        DataType::Boolean => "BOOLEAN",
        DataType::Int8 | DataType::UInt8 => "TINYINT",
        DataType::Int16 | DataType::UInt16 => "SMALLINT",
        DataType::Int32 | DataType::UInt32 => "INTEGER",
        DataType::Int64 | DataType::UInt64 => "BIGINT",
        DataType::Float32 => "REAL",
        DataType::Float64 => "DOUBLE",
        DataType::Decimal128(..) | DataType::Decimal256(..) => "DECIMAL",
        DataType::Date32 => "DATE",
        DataType::Time32(_) | DataType::Time64(_) => "TIME",
        DataType::Timestamp(_, None) => "TIMESTAMP",
        DataType::Timestamp(_, Some(_)) => "TIMESTAMP WITH TIME ZONE",
        DataType::Utf8 => "VARCHAR",
        DataType::Binary | DataType::FixedSizeBinary(_) => "VARBINARY",
        DataType::List(_) | DataType::FixedSizeList(..) => "ARRAY",
        DataType::Struct(_) => "STRUCT",
        DataType::Map(..) => "MAP",
        DataType::Interval(_) | DataType::Duration(_) => "INTERVAL",
        _ => "OTHER",
    }
}

/// Returns (precision, scale) where the type has them.
pub(crate) fn precision(data_type: &DataType) -> Option<(u32, i32)> {
    match data_type {
        DataType::Boolean => Some((1, 0)),
        DataType::Int8 | DataType::UInt8 => Some((3, 0)),
        DataType::Int16 | DataType::UInt16 => Some((5, 0)),
        DataType::Int32 | DataType::UInt32 => Some((10, 0)),
        DataType::Int64 | DataType::UInt64 => Some((19, 0)),
        DataType::Float32 => Some((24, 0)),
        DataType::Float64 => Some((53, 0)),
        DataType::Decimal128(precision, scale) | DataType::Decimal256(precision, scale) => {
            Some((u32::from(*precision), i32::from(*scale)))
        }
        _ => None,
    }
}

/// Name, kind, size, quote around literals, radix of its size, time subcode.
type Row = (
    &'static str,
    XdbcDataType,
    Option<i32>,
    Option<&'static str>,
    Option<i32>,
    Option<XdbcDatetimeSubcode>,
);

const ROWS: [Row; 14] = [
    ("BOOLEAN", XdbcDataType::XdbcBit, Some(1), None, None, None),
    (
        "TINYINT",
        XdbcDataType::XdbcTinyint,
        Some(3),
        None,
        Some(10),
        None,
    ),
    (
        "SMALLINT",
        XdbcDataType::XdbcSmallint,
        Some(5),
        None,
        Some(10),
        None,
    ),
    (
        "INTEGER",
        XdbcDataType::XdbcInteger,
        Some(10),
        None,
        Some(10),
        None,
    ),
    (
        "BIGINT",
        XdbcDataType::XdbcBigint,
        Some(19),
        None,
        Some(10),
        None,
    ),
    (
        "REAL",
        XdbcDataType::XdbcReal,
        Some(24),
        None,
        Some(2),
        None,
    ),
    (
        "DOUBLE",
        XdbcDataType::XdbcDouble,
        Some(53),
        None,
        Some(2),
        None,
    ),
    (
        "DECIMAL",
        XdbcDataType::XdbcDecimal,
        Some(38),
        None,
        Some(10),
        None,
    ),
    (
        "DATE",
        XdbcDataType::XdbcDate,
        Some(10),
        Some("'"),
        None,
        None,
    ),
    (
        "TIME",
        XdbcDataType::XdbcTime,
        Some(15),
        Some("'"),
        None,
        Some(XdbcDatetimeSubcode::XdbcSubcodeTime),
    ),
    (
        "TIMESTAMP",
        XdbcDataType::XdbcTimestamp,
        Some(26),
        Some("'"),
        None,
        Some(XdbcDatetimeSubcode::XdbcSubcodeTimestamp),
    ),
    (
        "TIMESTAMP WITH TIME ZONE",
        XdbcDataType::XdbcTimestamp,
        Some(32),
        Some("'"),
        None,
        Some(XdbcDatetimeSubcode::XdbcSubcodeTimestampWithTimezone),
    ),
    (
        "VARCHAR",
        XdbcDataType::XdbcVarchar,
        Some(65536),
        Some("'"),
        None,
        None,
    ),
    (
        "VARBINARY",
        XdbcDataType::XdbcVarbinary,
        Some(65536),
        Some("'"),
        None,
        None,
    ),
];

/// Returns the table of types.
pub(crate) fn table() -> Result<XdbcTypeInfoData, FlightError> {
    let mut builder = XdbcTypeInfoDataBuilder::new();
    for (name, kind, size, quote, radix, subcode) in ROWS {
        let is_number = radix.is_some();
        builder.append(XdbcTypeInfo {
            type_name: name.to_owned(),
            data_type: kind,
            column_size: size,
            literal_prefix: quote.map(str::to_owned),
            literal_suffix: quote.map(str::to_owned),
            create_params: (name == "DECIMAL")
                .then(|| vec!["precision".to_owned(), "scale".to_owned()]),
            nullable: Nullable::NullabilityNullable,
            case_sensitive: name == "VARCHAR",
            searchable: if name == "VARCHAR" {
                Searchable::Full
            } else {
                Searchable::Basic
            },
            unsigned_attribute: is_number.then_some(false),
            fixed_prec_scale: false,
            auto_increment: is_number.then_some(false),
            local_type_name: Some(name.to_owned()),
            minimum_scale: (name == "DECIMAL").then_some(0),
            maximum_scale: (name == "DECIMAL").then_some(38),
            sql_data_type: if subcode.is_some() || name == "DATE" {
                XdbcDataType::XdbcDatetime
            } else {
                kind
            },
            datetime_subcode: subcode,
            num_prec_radix: radix,
            interval_precision: None,
        });
    }
    builder.build()
}
