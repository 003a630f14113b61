//! What was used and what it cost, as JSON or CSV.

use std::str::FromStr;

use actix_web::http::header;
use actix_web::{HttpRequest, HttpResponse, web};
use jiff::Timestamp;
use jiff::civil::Date;
use jiff::tz::TimeZone;
use orchestra_events::projections::usage::MAX_GROUPS;
use orchestra_events::projections::{Dimension, UsageGroup, UsageQuery};
use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};

use super::csv::field;
use super::query::Parameters;
use super::resource::Usd;
use crate::App;
use crate::auth::Caller;
use crate::auth::caller::Bound;
use crate::problem::{Field, Problem};

struct Line<'a>(&'a UsageGroup);

impl Serialize for Line<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let group = self.0;
        let mut map = serializer.serialize_map(None)?;
        for (dimension, value) in &group.key {
            map.serialize_entry(dimension.as_str(), value)?;
        }
        map.serialize_entry("tasks", &group.tasks)?;
        map.serialize_entry("inputTokens", &group.input_tokens)?;
        map.serialize_entry("outputTokens", &group.output_tokens)?;
        map.serialize_entry("cacheReadTokens", &group.cache_read_tokens)?;
        map.serialize_entry("cacheWriteTokens", &group.cache_write_tokens)?;
        map.serialize_entry("costUsd", &Usd(group.cost))?;
        map.serialize_entry("billableUsd", &Usd(group.billable))?;
        map.serialize_entry("refundedUsd", &Usd(group.refunded))?;
        map.serialize_entry("sandboxMs", &group.sandbox_ms)?;
        map.end()
    }
}

#[derive(Serialize)]
struct Report<'a> {
    groups: Vec<Line<'a>>,
    total: Line<'a>,
}

fn csv(group_by: &[Dimension], groups: &[UsageGroup]) -> String {
    let counts = [
        "tasks",
        "inputTokens",
        "outputTokens",
        "cacheReadTokens",
        "cacheWriteTokens",
        "costUsd",
        "billableUsd",
        "refundedUsd",
        "sandboxMs",
    ];
    let head: Vec<_> = group_by.iter().map(|by| by.as_str()).chain(counts).collect();
    let mut text = head.join(",") + "\r\n";
    for group in groups {
        let mut cells: Vec<_> =
            group.key.iter().map(|(_, value)| field(value.as_deref().unwrap_or_default())).collect();
        let counts =
            [group.tasks, group.input_tokens, group.output_tokens, group.cache_read_tokens, group.cache_write_tokens];
        cells.extend(counts.map(|count| count.to_string()));
        cells.extend([group.cost, group.billable, group.refunded].map(|amount| amount.to_string()));
        cells.push(group.sandbox_ms.to_string());
        text += &cells.join(",");
        text += "\r\n";
    }
    text
}

/// A day, or a time whose day (UTC) is meant.
struct Day(Date);

impl FromStr for Day {
    type Err = jiff::Error;
    fn from_str(text: &str) -> Result<Self, jiff::Error> {
        match text.parse::<Timestamp>() {
            Ok(time) => Ok(Self(time.to_zoned(TimeZone::UTC).date())),
            Err(_) => text.parse().map(Self),
        }
    }
}

/// Tokens and dollars.
///
/// Dollars and tokens count to the civil day that the ledger set them aside on, in the time zone of the team's budget
/// (UTC unless it says otherwise), and so add up to what the ledger says of that day; tasks and the time of sandboxes
/// count to the day in UTC on which they were created and stopped. `from` and `to` are both inclusive. `billableUsd`
/// is by the team's plan, refunds taken off: it may be negative where a refund is for a charge of another group.
#[utoipa::path(get, path = "/v1/usage", tag = "usage", operation_id = "getUsage",
    params(("groupBy" = Option<String>, Query, description = "team, project, environment, taskType, model, customer, day, month; separated by commas"),
        ("from" = Option<String>, Query, format = "date"), ("to" = Option<String>, Query, format = "date"),
        ("team" = Option<String>, Query), ("customer" = Option<String>, Query),
        ("format" = Option<String>, Query, description = "`csv`; the same as `Accept: text/csv`")),
    responses((status = 200, description = "The report", content((super::openapi::Usage = "application/json"), (String = "text/csv")))))]
pub async fn report(app: web::Data<App>, caller: Caller, request: HttpRequest) -> Result<HttpResponse, Problem> {
    let mut query = Parameters::of(&request)?;
    let mut group_by: Vec<Dimension> = Vec::new();
    for name in query.text("groupBy").unwrap_or_default().split(',').map(str::trim).filter(|name| !name.is_empty()) {
        match name.parse() {
            Ok(dimension) if group_by.contains(&dimension) => query.fault("groupBy", "names a dimension twice"),
            Ok(dimension) => group_by.push(dimension),
            Err(error) => query.fault("groupBy", format!("{error}")),
        }
    }
    let from = query.parsed::<Day>("from", "a day such as 2026-11-22").map(|day| day.0);
    let to = query.parsed::<Day>("to", "a day such as 2026-11-22").map(|day| day.0);
    let team = query.text("team");
    let customer = query.text("customer");
    let format = query.text("format");
    if !matches!(format.as_deref(), None | Some("csv" | "json")) {
        query.fault("format", "expected json or csv");
    }
    query.finish()?;
    // A line knows neither the repositories nor the tasks whose calls it sums up.
    caller.require_unbound("Usage", &[Bound::Repo, Bound::Model])?;
    let accepts_csv = request.headers().get(header::ACCEPT).and_then(|value| value.to_str().ok());
    let as_csv = match format.as_deref() {
        Some(format) => format == "csv",
        None => accepts_csv.is_some_and(|accept| accept.contains("text/csv")),
    };
    app.caught_up().await?;
    let report = match caller.narrow(team) {
        Some(team) => {
            app.read
                .usage(UsageQuery {
                    group_by: group_by.clone(),
                    from,
                    to,
                    team,
                    customer,
                    bounds: (*caller.bounds).clone(),
                })
                .await?
        }
        // Another team's usage does not exist for this caller.
        None => orchestra_events::projections::UsageReport::default(),
    };
    if report.too_many {
        let detail = format!("the report has more than {MAX_GROUPS} lines; group by less, or narrow from and to");
        return Err(Problem::invalid_query(vec![Field { pointer: "?groupBy".to_owned(), detail }]));
    }
    if as_csv {
        return Ok(HttpResponse::Ok().content_type("text/csv; charset=utf-8").body(csv(&group_by, &report.groups)));
    }
    let groups = report.groups.iter().map(Line).collect();
    Ok(HttpResponse::Ok().json(Report { groups, total: Line(&report.total) }))
}
