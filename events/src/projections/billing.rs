//! Bills as they are read: months with their sums, and the lines of one.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use rusqlite::{Connection, OptionalExtension as _, Row, params_from_iter};
use serde::{Deserialize, Serialize};

use super::books::{self, QUANTITIES, named, parsed, quantities, read_place};
use super::{CursorError, ReadModelError};
use crate::billing::event::NumberedLine;
use crate::billing::invoice::{LinesDigest, MOST_LINES};
use crate::billing::{Billing, CustomerTotal, Invoice, Line, LineKind, Month, Quantities, Totals};
use crate::money::NanoUsd;

/// A month of a team, and what stands in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeriodSums {
    /// The month.
    pub period: Month,
    /// How many lines there are, minima left out.
    pub lines: u64,
    /// What was used, adjustments included.
    pub quantities: Quantities,
    /// What that comes to, minima left out.
    pub billable: NanoUsd,
}

pub(super) fn account(connection: &Connection, team: &str) -> Result<Billing, ReadModelError> {
    let found = books::account(connection, team)?;
    Ok(found.map_err(|odd| ReadModelError::Failed(odd.to_string()))?.unwrap_or_default())
}

pub(super) fn periods(connection: &Connection, team: &str) -> Result<Vec<PeriodSums>, ReadModelError> {
    let snapshot = connection.unchecked_transaction()?;
    let empty = |period| PeriodSums { period, lines: 0, quantities: Quantities::default(), billable: NanoUsd::ZERO };
    let closed = account(&snapshot, team)?.closed;
    let mut found: BTreeMap<Month, PeriodSums> = closed.into_keys().map(|period| (period, empty(period))).collect();
    let columns: Vec<_> = QUANTITIES.split(',').map(|column| format!("SUM({})", column.trim())).collect();
    let sql = format!(
        "SELECT period, COUNT(*), SUM(billable_nano_usd), {} FROM usage WHERE team = ?1 GROUP BY period",
        columns.join(", ")
    );
    let mut statement = snapshot.prepare_cached(&sql)?;
    let mut rows = statement.query([team])?;
    while let Some(row) = rows.next()? {
        let period = parsed(row, 0)?;
        let sums = PeriodSums {
            period,
            lines: row.get::<_, i64>(1)?.unsigned_abs(),
            quantities: quantities(row, 3)?,
            billable: NanoUsd::from_nanos(row.get(2)?),
        };
        found.insert(period, sums);
    }
    Ok(found.into_values().rev().collect())
}

pub(super) fn teams(connection: &Connection) -> Result<Vec<(String, Month)>, ReadModelError> {
    // From team to team by the key of the table: a look at each line would take as long as there are lines.
    let mut statement = connection.prepare_cached(
        "WITH RECURSIVE teams (team) AS (
             SELECT MIN(team) FROM usage
             UNION ALL SELECT (SELECT MIN(team) FROM usage WHERE usage.team > teams.team) FROM teams WHERE team IS NOT NULL
         )
         SELECT team, (SELECT MIN(period) FROM usage WHERE usage.team = teams.team) FROM teams WHERE team IS NOT NULL",
    )?;
    let rows = statement.query_map([], |row| Ok((row.get(0)?, parsed(row, 1)?)))?;
    Ok(rows.collect::<Result<_, rusqlite::Error>>()?)
}

pub(super) fn first_period(connection: &Connection, team: &str) -> Result<Option<Month>, ReadModelError> {
    let sql = "SELECT period FROM usage WHERE team = ?1 ORDER BY period LIMIT 1";
    Ok(connection.prepare_cached(sql)?.query_row([team], |row| parsed(row, 0)).optional()?)
}

pub(super) fn invoice(connection: &Connection, team: &str, period: Month) -> Result<Option<Invoice>, ReadModelError> {
    // Plans and lines of the same moment.
    let snapshot = connection.unchecked_transaction()?;
    let billing = account(&snapshot, team)?;
    let sql = format!(
        "SELECT period, day, customer, project, environment, task_type, model, {QUANTITIES}, billable_nano_usd
         FROM usage WHERE team = ?1 AND period = ?2
         ORDER BY day, customer, project, environment, task_type, model LIMIT ?3"
    );
    let mut statement = snapshot.prepare_cached(&sql)?;
    let most = i64::try_from(MOST_LINES + 1).unwrap_or(i64::MAX);
    let mut rows = statement.query((team, period.to_string(), most))?;
    let mut lines = Vec::new();
    while let Some(row) = rows.next()? {
        lines.push(line(row, period)?);
    }
    Ok((lines.len() <= MOST_LINES).then(|| Invoice::draw_up(&billing, team, period, lines)))
}

/// Reads a line whose place begins in the first column, and its numbers behind that.
fn line(row: &Row<'_>, period: Month) -> Result<Line, rusqlite::Error> {
    let own = |part: String| named(&part).map(str::to_owned);
    let place = read_place(row, String::new())?;
    let corrects = Some(Month::of(place.day)).filter(|month| *month != period);
    Ok(Line {
        kind: if corrects.is_some() { LineKind::Adjustment } else { LineKind::Usage },
        day: place.day,
        corrects,
        customer: own(place.customer),
        project: own(place.project),
        environment: own(place.environment),
        task_type: own(place.task_type),
        model: own(place.model),
        quantities: quantities(row, 7)?,
        billable_nano_usd: NanoUsd::from_nanos(row.get(19)?),
    })
}

/// A bill without its lines: what it comes to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bill {
    /// The team's plans, and how far its months are closed.
    pub billing: Billing,
    /// Lines that stand in the read models: all but minima.
    rows: u32,
    /// What was missing to minima, in the order of their numbers, which follow on those of the rows.
    minima: Vec<Line>,
    /// What it comes to for each customer, by name; first what was done for none.
    pub customers: Vec<CustomerTotal>,
    /// What it comes to.
    pub totals: Totals,
    /// The versions of the plan that its lines were priced with; 0 stands for none.
    pub plans: Vec<u32>,
}

/// The bill of a month in sums. Drawn up from one line for each day and customer, which all that it says but the number of
/// lines follows from as well as from the lines themselves.
pub(super) fn bill(connection: &Connection, team: &str, period: Month) -> Result<Option<Bill>, ReadModelError> {
    let snapshot = connection.unchecked_transaction()?;
    let billing = account(&snapshot, team)?;
    let columns: Vec<_> = QUANTITIES.split(',').map(|column| format!("SUM({})", column.trim())).collect();
    let sql = format!(
        "SELECT period, day, customer, '', '', '', '', {}, SUM(billable_nano_usd), COUNT(*)
         FROM usage WHERE team = ?1 AND period = ?2 GROUP BY day, customer ORDER BY day, customer",
        columns.join(", ")
    );
    let mut statement = snapshot.prepare_cached(&sql)?;
    let mut found = statement.query((team, period.to_string()))?;
    let (mut lines, mut rows, mut counts) = (Vec::new(), 0_u32, BTreeMap::<Option<String>, u32>::new());
    while let Some(row) = found.next()? {
        let line = line(row, period)?;
        let count = row.get::<_, u32>(20)?;
        rows = rows.saturating_add(count);
        *counts.entry(line.customer.clone()).or_default() += count;
        lines.push(line);
    }
    if usize::try_from(rows).unwrap_or(usize::MAX) > MOST_LINES {
        return Ok(None);
    }
    let Invoice { lines, mut customers, mut totals, plans, .. } = Invoice::draw_up(&billing, team, period, lines);
    let minima: Vec<_> = lines.into_iter().filter(|line| line.kind == LineKind::Minimum).collect();
    for of in &mut customers {
        let of_minima = minima.iter().filter(|line| line.customer == of.customer).count();
        let count = counts.get(&of.customer).copied().unwrap_or_default();
        of.totals.lines = count.saturating_add(u32::try_from(of_minima).unwrap_or(u32::MAX));
    }
    totals.lines = rows.saturating_add(u32::try_from(minima.len()).unwrap_or(u32::MAX));
    Ok(Some(Bill { billing, rows, minima, customers, totals, plans }))
}

/// The place where a page of a bill's lines ended: the next one starts behind it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LineCursor {
    /// The number of the last line.
    number: u32,
    /// Where it stands: day, customer, project, environment, kind of work, model. `None` for a minimum.
    place: Option<[String; 6]>,
    /// Minima up to here.
    minima: u32,
}

/// Longest cursor, in bytes: six names of the longest kind, twice over as they are written.
const MAX_CURSOR: usize = 8_192;

impl std::fmt::Display for LineCursor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let text = serde_json::to_vec(self).map_err(|_| std::fmt::Error)?;
        text.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl std::str::FromStr for LineCursor {
    type Err = CursorError;
    fn from_str(text: &str) -> Result<Self, CursorError> {
        if text.len() > MAX_CURSOR
            || !text.len().is_multiple_of(2)
            || !text.bytes().all(|byte| byte.is_ascii_hexdigit())
        {
            return Err(CursorError);
        }
        let byte = |pair: &[u8]| {
            let pair = std::str::from_utf8(pair).map_err(|_| CursorError)?;
            u8::from_str_radix(pair, 16).map_err(|_| CursorError)
        };
        let bytes = text.as_bytes().chunks(2).map(byte).collect::<Result<Vec<_>, _>>()?;
        serde_json::from_slice(&bytes).map_err(|_| CursorError)
    }
}

/// Some lines of a bill.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinePage {
    /// The lines, in the order of their numbers.
    pub lines: Vec<NumberedLine>,
    /// Where the next page starts; `None` when there is none.
    pub next: Option<LineCursor>,
}

/// Lines of one bill, all or one customer's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LineQuery {
    /// Whose bill.
    pub team: String,
    /// Of which month.
    pub period: Month,
    /// Only this customer's.
    pub customer: Option<String>,
    /// Behind this one.
    pub after: Option<LineCursor>,
}

/// Goes through the lines of a bill until it is told to stop: however many there are, one at a time is in memory.
fn visit(
    connection: &Connection,
    query: &LineQuery,
    bill: &Bill,
    mut look: impl FnMut(NumberedLine, LineCursor) -> Result<ControlFlow<()>, ReadModelError>,
) -> Result<(), ReadModelError> {
    let LineQuery { team, period, customer, after } = query;
    let mut number = after.as_ref().map_or(0, |after| after.number);
    let place = after.as_ref().map(|after| after.place.as_ref());
    if place != Some(None) {
        let mut values = vec![team.clone(), period.to_string()];
        let behind = place.flatten().map_or("", |place| {
            values.extend(place.iter().cloned());
            "AND (day, customer, project, environment, task_type, model) > (?3, ?4, ?5, ?6, ?7, ?8)"
        });
        let sql = format!(
            "SELECT period, day, customer, project, environment, task_type, model, {QUANTITIES}, billable_nano_usd
             FROM usage WHERE team = ?1 AND period = ?2 {behind}
             ORDER BY day, customer, project, environment, task_type, model"
        );
        let mut statement = connection.prepare_cached(&sql)?;
        let mut rows = statement.query(params_from_iter(values))?;
        while let Some(row) = rows.next()? {
            number = number.saturating_add(1);
            if let Some(customer) = customer
                && (customer.is_empty() || row.get_ref(2)?.as_str().map_err(rusqlite::Error::from)? != customer)
            {
                continue;
            }
            let text = |column| row.get::<_, String>(column);
            let place = [text(1)?, text(2)?, text(3)?, text(4)?, text(5)?, text(6)?];
            let cursor = LineCursor { number, place: Some(place), minima: 0 };
            if look(NumberedLine::new(team, *period, number, line(row, *period)?), cursor)?.is_break() {
                return Ok(());
            }
        }
        number = number.max(bill.rows);
    }
    let minima = after.as_ref().map_or(0, |after| after.minima);
    for (index, line) in (1..).zip(&bill.minima).filter(|(index, _)| *index > minima) {
        number = number.saturating_add(1);
        if customer.is_some() && line.customer != *customer {
            continue;
        }
        let cursor = LineCursor { number, place: None, minima: index };
        if look(NumberedLine::new(team, *period, number, line.clone()), cursor)?.is_break() {
            return Ok(());
        }
    }
    Ok(())
}

pub(super) fn lines(
    connection: &Connection,
    query: &LineQuery,
    bill: &Bill,
    limit: usize,
) -> Result<LinePage, ReadModelError> {
    let (mut page, mut last) = (LinePage { lines: Vec::new(), next: None }, None);
    visit(connection, query, bill, |line, cursor| {
        // One more than asked for tells whether there is another page.
        if page.lines.len() >= limit {
            page.next = last.take();
            return Ok(ControlFlow::Break(()));
        }
        page.lines.push(line);
        last = Some(cursor);
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(page)
}

/// The digest of all lines as they stand in the read models.
pub(super) fn digest(connection: &Connection, query: &LineQuery, bill: &Bill) -> Result<String, ReadModelError> {
    let mut digest = LinesDigest::default();
    visit(connection, query, bill, |line, _| {
        digest.add(&line).map_err(|error| ReadModelError::Failed(error.to_string()))?;
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(digest.finish())
}
