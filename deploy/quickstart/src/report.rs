//! The first report as a table: the last day of each of the busiest companies.

use chrono::NaiveDate;

use crate::query::{Query, QueryFailed};

/// Rows shown.
const ROWS: usize = 15;

const HEADINGS: [&str; 9] = [
    "company",
    "plan",
    "seats",
    "conversations",
    "closings",
    "first reply",
    "CSAT",
    "AI resolved",
    "MRR",
];

/// Returns the report of `day` as aligned text.
///
/// # Errors
/// [`QueryFailed`] when the report cannot be read.
pub async fn company_day(query: &Query, day: NaiveDate) -> Result<String, QueryFailed> {
    let rows = query
        .text(&format!(
            "SELECT coalesce(c.name, r.company_id), p.name, r.seats, r.new_conversations,
                    r.closed_conversations, r.median_first_response_s, r.csat_pct,
                    r.ai_resolution_pct, r.mrr_minor, r.mrr_currency
             FROM reports.company_day AS r
             LEFT JOIN ops.companies AS c ON c.company_id = r.company_id
             LEFT JOIN ops.plans AS p ON p.plan_id = r.plan_id
             WHERE r.report_date = DATE '{day}'
             ORDER BY r.new_conversations DESC, r.company_id LIMIT {ROWS}"
        ))
        .await?;
    let lines: Vec<Vec<String>> = rows.iter().map(|row| line(row)).collect();
    Ok(align(&lines))
}

fn line(row: &[Option<String>]) -> Vec<String> {
    let text = |index: usize| row[index].clone().unwrap_or_else(none);
    let percent = |index: usize| row[index].as_ref().map_or_else(none, |v| percent(v));
    vec![
        text(0),
        text(1),
        text(2),
        text(3),
        text(4),
        row[5].as_ref().map_or_else(none, |v| minutes(v)),
        percent(6),
        percent(7),
        match (&row[8], &row[9]) {
            (Some(minor), Some(currency)) => money(minor, currency),
            _ => none(),
        },
    ]
}

/// A value that is missing, such as the share of an AI agent that a company does not have.
fn none() -> String {
    "–".to_owned()
}

fn percent(value: &str) -> String {
    value
        .parse::<f64>()
        .map_or_else(|_| value.to_owned(), |value| format!("{value:.0} %"))
}

fn minutes(seconds: &str) -> String {
    seconds.parse::<f64>().map_or_else(
        |_| seconds.to_owned(),
        |seconds| format!("{:.0} min", seconds / 60.0),
    )
}

/// Returns minor units as money; the yen has none.
fn money(minor: &str, currency: &str) -> String {
    let Ok(minor) = minor.parse::<i64>() else {
        return format!("{minor} {currency}");
    };
    let major = if currency == "JPY" {
        minor
    } else {
        minor / 100
    };
    let sign = match currency {
        "USD" => "$",
        "EUR" => "€",
        "GBP" => "£",
        "JPY" => "¥",
        "AUD" => "A$",
        _ => return format!("{} {currency}", grouped(major)),
    };
    format!("{sign}{}", grouped(major))
}

fn grouped(number: i64) -> String {
    crate::progress::count(number.unsigned_abs())
}

/// Aligns the first two columns to the left and the numbers to the right.
fn align(lines: &[Vec<String>]) -> String {
    let width = |column: usize| {
        lines
            .iter()
            .map(|line| line[column].chars().count())
            .chain([HEADINGS[column].chars().count()])
            .max()
            .unwrap_or(0)
    };
    let widths: Vec<usize> = (0..HEADINGS.len()).map(width).collect();
    let row = |cells: &mut dyn Iterator<Item = &str>| {
        let cells = cells.enumerate().map(|(column, cell)| {
            let width = widths[column];
            if column < 2 {
                format!("{cell:<width$}")
            } else {
                format!("{cell:>width$}")
            }
        });
        format!("  {}\n", cells.collect::<Vec<_>>().join("  "))
    };
    let mut out = row(&mut HEADINGS.iter().copied());
    let rule: Vec<String> = widths.iter().map(|width| "─".repeat(*width)).collect();
    out.push_str(&row(&mut rule.iter().map(String::as_str)));
    for line in lines {
        out.push_str(&row(&mut line.iter().map(String::as_str)));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn money_is_written_in_its_currency() {
        assert_eq!(money("1250000", "USD"), "$12,500");
        assert_eq!(money("128000", "JPY"), "¥128,000");
        assert_eq!(money("9900", "NOK"), "99 NOK");
    }
}
