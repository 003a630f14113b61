//! Bills as they are read: months with their sums, and the lines of one.

use std::collections::BTreeMap;

use rusqlite::{Connection, OptionalExtension as _};

use super::ReadModelError;
use super::books::{self, QUANTITIES, named, parsed, quantities, read_place};
use crate::billing::invoice::MOST_LINES;
use crate::billing::{Billing, Invoice, Line, LineKind, Month, Quantities};
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
    let mut statement = connection.prepare_cached("SELECT team, MIN(period) FROM usage GROUP BY team")?;
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
    let own = |part: String| named(&part).map(str::to_owned);
    while let Some(row) = rows.next()? {
        let place = read_place(row, String::new())?;
        let corrects = Some(Month::of(place.day)).filter(|month| *month != period);
        lines.push(Line {
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
        });
    }
    Ok((lines.len() <= MOST_LINES).then(|| Invoice::draw_up(&billing, team, period, lines)))
}
