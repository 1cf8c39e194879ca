//! What this server can do, as numbered facts (`CommandGetSqlInfo`).
//!
//! Place on the event's path: a driver reads it once when it connects. Promise: the 69 ids the JDBC
//! driver reads are there with the union branch it expects; an empty request is answered only with
//! ids the oldest supported driver knows, because an unknown id breaks it.

use std::collections::BTreeMap;

use arrow::array::RecordBatch;
use arrow_flight::error::FlightError;
use arrow_flight::sql::CommandGetSqlInfo;
use arrow_flight::sql::metadata::{SqlInfoData, SqlInfoDataBuilder};

/// Ids answered only when asked for by number: younger than the oldest driver, or not read by it.
const ON_REQUEST: [u32; 13] = [
    10, 11, 500, 501, 502, 503, 505, 506, 507, 568, 569, 570, 571,
];

const KEYWORDS: &[&str] = &[
    "ANTI",
    "DESCRIBE",
    "EXCLUDE",
    "EXPLAIN",
    "FILTER",
    "ILIKE",
    "LIMIT",
    "OFFSET",
    "QUALIFY",
    "RECURSIVE",
    "SEMI",
    "SHOW",
    "UNNEST",
];
const NUMERIC_FUNCTIONS: &[&str] = &[
    "ABS", "ACOS", "ASIN", "ATAN", "ATAN2", "CEIL", "COS", "COT", "DEGREES", "EXP", "FLOOR", "LN",
    "LOG", "LOG10", "LOG2", "PI", "POWER", "RADIANS", "RANDOM", "ROUND", "SIGNUM", "SIN", "SQRT",
    "TAN", "TRUNC",
];
const STRING_FUNCTIONS: &[&str] = &[
    "ASCII",
    "BIT_LENGTH",
    "BTRIM",
    "CHARACTER_LENGTH",
    "CHR",
    "CONCAT",
    "CONCAT_WS",
    "INITCAP",
    "LEFT",
    "LENGTH",
    "LOWER",
    "LPAD",
    "LTRIM",
    "OCTET_LENGTH",
    "REPEAT",
    "REPLACE",
    "REVERSE",
    "RIGHT",
    "RPAD",
    "RTRIM",
    "SPLIT_PART",
    "STARTS_WITH",
    "STRPOS",
    "SUBSTR",
    "TRANSLATE",
    "TRIM",
    "UPPER",
];
const SYSTEM_FUNCTIONS: &[&str] = &["COALESCE", "NULLIF", "NVL", "VERSION"];
const DATETIME_FUNCTIONS: &[&str] = &[
    "CURRENT_DATE",
    "CURRENT_TIME",
    "CURRENT_TIMESTAMP",
    "DATE_BIN",
    "DATE_PART",
    "DATE_TRUNC",
    "EXTRACT",
    "FROM_UNIXTIME",
    "MAKE_DATE",
    "NOW",
    "TO_DATE",
    "TO_TIMESTAMP",
];
/// Kinds a value can be converted between (numbers of `SqlSupportsConvert`): all of bigint, bit,
/// char, date, decimal, float, integer, numeric, real, smallint, timestamp, tinyint, varchar.
const CONVERTIBLE: [i32; 13] = [0, 2, 3, 4, 5, 6, 7, 12, 13, 14, 16, 17, 19];

/// The facts of this server.
pub(crate) struct SqlInfos {
    data: SqlInfoData,
    /// Ids an empty request is answered with.
    default_ids: Vec<u32>,
}

impl SqlInfos {
    /// Builds the facts. The numbers come from the limits.
    pub(crate) fn new(
        statement_bytes_max: usize,
        prepared_ttl_ms: u64,
    ) -> Result<Self, FlightError> {
        let mut facts = Facts::default();
        facts.server(prepared_ttl_ms);
        facts.syntax();
        facts.support();
        facts.limits(statement_bytes_max);
        let default_ids = facts
            .0
            .keys()
            .copied()
            .filter(|id| !ON_REQUEST.contains(id))
            .collect();
        let mut builder = SqlInfoDataBuilder::new();
        for (id, fact) in facts.0 {
            match fact {
                Fact::Text(value) => builder.append(id, value),
                Fact::Flag(value) => builder.append(id, value),
                Fact::Number(value) => builder.append(id, value),
                Fact::Bits(value) => builder.append(id, value),
                Fact::Texts(value) => builder.append(id, value),
                Fact::Map(value) => builder.append(id, value),
            }
        }
        Ok(Self {
            data: builder.build()?,
            default_ids,
        })
    }

    /// Answers one request; ids that do not exist are left out.
    pub(crate) fn answer(&self, request: CommandGetSqlInfo) -> Result<RecordBatch, FlightError> {
        let known = |id: &u32| self.default_ids.contains(id) || ON_REQUEST.contains(id);
        let mut ids: Vec<u32> = request.info;
        let is_empty = ids.is_empty();
        ids.retain(known);
        if is_empty {
            return self.data.record_batch(self.default_ids.iter().copied());
        }
        if ids.is_empty() {
            // Asked for unknown ids alone: no rows. An empty filter would mean "all".
            return self.data.record_batch([u32::MAX]);
        }
        self.data.record_batch(ids)
    }
}

/// A fact; its kind is the branch of the union it is sent in.
#[derive(Clone)]
enum Fact {
    Text(&'static str),
    Flag(bool),
    Number(i64),
    Bits(i32),
    Texts(&'static [&'static str]),
    Map(BTreeMap<i32, Vec<i32>>),
}

#[derive(Default)]
struct Facts(BTreeMap<u32, Fact>);

impl Facts {
    fn set(&mut self, ids: impl IntoIterator<Item = u32>, fact: Fact) {
        for id in ids {
            self.0.insert(id, fact.clone());
        }
    }

    fn server(&mut self, prepared_ttl_ms: u64) {
        self.set([0], Fact::Text("Headwater"));
        self.set([1], Fact::Text(env!("CARGO_PKG_VERSION")));
        self.set([2], Fact::Text("58.4.1"));
        self.set([3, 4, 9], Fact::Flag(true)); // read only, SQL, cancel
        self.set([5, 10, 11], Fact::Flag(false)); // Substrait, bulk ingestion, its transactions
        self.set([6, 7], Fact::Text("")); // Substrait versions
        self.set([8], Fact::Bits(0)); // no transactions
        self.set(
            [100],
            Fact::Bits(i32::try_from(prepared_ttl_ms).unwrap_or(i32::MAX)),
        );
        self.set([101], Fact::Bits(0));
    }

    fn syntax(&mut self) {
        self.set([500, 501, 502], Fact::Flag(false)); // DDL on catalogs, schemas, tables
        self.set([503], Fact::Number(3)); // plain identifiers are lower case
        self.set([504], Fact::Text("\""));
        self.set([505], Fact::Number(0));
        self.set([506], Fact::Flag(true));
        self.set([507], Fact::Number(0)); // nulls sort high
        self.set([508], Fact::Texts(KEYWORDS));
        self.set([509], Fact::Texts(NUMERIC_FUNCTIONS));
        self.set([510], Fact::Texts(STRING_FUNCTIONS));
        self.set([511], Fact::Texts(SYSTEM_FUNCTIONS));
        self.set([512], Fact::Texts(DATETIME_FUNCTIONS));
        self.set([513], Fact::Text("\\"));
        self.set([514, 530], Fact::Text("")); // extra name characters, procedure term
        self.set([529], Fact::Text("schema"));
        self.set([531], Fact::Text("catalog"));
        self.set([532], Fact::Flag(true));
    }

    fn support(&mut self) {
        // Aliases, null + null is null, correlation names, expressions and unrelated columns in
        // ORDER BY, LIKE with ESCAPE, NOT NULL columns, correlated subqueries.
        self.set([515, 516, 518, 520, 521, 523, 524, 539], Fact::Flag(true));
        self.set([519, 527, 536, 537, 556, 563, 565, 566], Fact::Flag(false));
        self.set(572..=576, Fact::Flag(false));
        let convert: BTreeMap<i32, Vec<i32>> = CONVERTIBLE
            .into_iter()
            .map(|from| (from, CONVERTIBLE.to_vec()))
            .collect();
        self.set([517], Fact::Map(convert));
        self.set([522, 540], Fact::Bits(0b11)); // GROUP BY, UNION and UNION ALL
        self.set([525], Fact::Bits(0b111)); // minimum, core and extended grammar
        self.set([526], Fact::Bits(0b1)); // ANSI 92 entry level
        self.set([528], Fact::Bits(0b110)); // limited and full outer joins
        self.set([533, 534, 535], Fact::Bits(0));
        self.set([538], Fact::Bits(0b111)); // subqueries in comparisons, EXISTS, IN
        self.set([564], Fact::Bits(0b1)); // isolation level none
        self.set([567], Fact::Bits(0b10)); // forward-only results
        self.set([568, 570, 571], Fact::Bits(0));
        self.set([569], Fact::Bits(0b10)); // forward-only results are read-only
    }

    fn limits(&mut self, statement_bytes_max: usize) {
        self.set(541..=555, Fact::Number(0));
        self.set(558..=561, Fact::Number(0));
        self.set(
            [557],
            Fact::Number(i64::try_from(statement_bytes_max).unwrap_or(i64::MAX)),
        );
        // The specification says int32, but the JDBC driver casts to Long and breaks on it.
        self.set([562], Fact::Number(0));
    }
}
