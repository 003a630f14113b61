//! The books: every charge, refund, task and minute of the log on the line of the bill that it belongs to.
//!
//! Money and tokens are the ledger's: what it settles counts to the civil day that it reserved for, what it refunds to
//! the day that it refunded on. A task's own stream says how many tasks there were and how long their sandboxes ran. So
//! the sums here are the ledger's sums, whatever a crash has kept out of a task's stream.
//!
//! A batch's lines are read once and written once, and priced when they are written.

use std::collections::{HashMap, HashSet};

use jiff::Timestamp;
use jiff::civil::Date;
use jiff::tz::TimeZone;
use rusqlite::types::Type;
use rusqlite::{OptionalExtension as _, Row, Transaction, params};

use super::sums::Sums;
use super::tasks::OpenTasks;
use super::usage::{MAX_NANO_USD_PER_CALL, MAX_TOKENS_PER_CALL};
use super::{Folded, Odd, ReadModelError};
use crate::billing::{self, Billing, BillingEvent, Month, Quantities, Tokens};
use crate::envelope::Envelope;
use crate::id::{CallId, SandboxId, TaskId};
use crate::ledger::LedgerEvent;
use crate::ledger::event::{Refunded, Reserved, Settled};
use crate::money::NanoUsd;
use crate::task::TaskEvent;
use crate::task::event::{MAX_TIMEOUT, TaskSpec};

/// The longest time that one sandbox is billed for: no task may run longer, so a longer one is a clock that was wrong.
pub const LONGEST_SANDBOX_MS: u64 = MAX_TIMEOUT.as_secs() * 1_000;

/// Which line. An absent part is the empty text.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Place {
    pub team: String,
    pub period: Month,
    pub day: Date,
    pub customer: String,
    pub project: String,
    pub environment: String,
    pub task_type: String,
    pub model: String,
}

/// A model call that money is set aside for.
#[derive(Debug, Clone)]
struct OpenCall {
    day: Date,
    project: String,
    environment: String,
    task_type: String,
    model: String,
}

impl From<&Reserved> for OpenCall {
    fn from(reserved: &Reserved) -> Self {
        Self {
            day: reserved.day,
            project: text(reserved.path.project.as_ref()),
            environment: text(reserved.path.environment.as_ref()),
            task_type: text(reserved.path.task_type.as_ref()),
            model: reserved.model.clone(),
        }
    }
}

fn text(part: Option<&String>) -> String {
    part.cloned().unwrap_or_default()
}

/// The part, unless it is the empty text.
pub(super) fn named(part: &str) -> Option<&str> {
    Some(part).filter(|part| !part.is_empty())
}

pub(super) fn day_of(time: Timestamp) -> Date {
    time.to_zoned(TimeZone::UTC).date()
}

/// A day or a month as it stands in a column.
pub(super) fn parsed<T: std::str::FromStr>(row: &Row<'_>, column: usize) -> Result<T, rusqlite::Error>
where
    T::Err: std::error::Error + Send + Sync + 'static,
{
    let text = row.get_ref(column)?.as_str()?;
    text.parse().map_err(|error| rusqlite::Error::FromSqlConversionFailure(column, Type::Text, Box::new(error)))
}

fn count(tokens: u64) -> i64 {
    i64::try_from(tokens).unwrap_or(i64::MAX)
}

/// The columns of a line's numbers, in the order in which [`quantities`] reads them.
pub(super) const QUANTITIES: &str = "tasks, input_tokens, output_tokens, cache_read_tokens, cache_write_tokens,
    cost_nano_usd, refunded_nano_usd, refunded_input, refunded_output, refunded_cache_read, refunded_cache_write,
    sandbox_ms";

/// Reads the numbers of a line that begin at a column.
pub(super) fn quantities(row: &Row<'_>, first: usize) -> Result<Quantities, rusqlite::Error> {
    let number = |at: usize| row.get::<_, i64>(first + at);
    let whole = |at: usize| Ok::<_, rusqlite::Error>(number(at)?.unsigned_abs());
    Ok(Quantities {
        tasks: whole(0)?,
        tokens: Tokens { input: whole(1)?, output: whole(2)?, cache_read: whole(3)?, cache_write: whole(4)? },
        cost_nano_usd: NanoUsd::from_nanos(number(5)?),
        refunded_nano_usd: NanoUsd::from_nanos(number(6)?),
        refunded_tokens: Tokens { input: whole(7)?, output: whole(8)?, cache_read: whole(9)?, cache_write: whole(10)? },
        sandbox_ms: whole(11)?,
    })
}

/// A team's bills as far as they are folded.
pub(super) fn account(
    connection: &rusqlite::Connection,
    team: &str,
) -> Result<Result<Option<Billing>, Odd>, rusqlite::Error> {
    let mut statement = connection.prepare_cached("SELECT document FROM billing WHERE team = ?1")?;
    let document: Option<String> = statement.query_row([team], |row| row.get(0)).optional()?;
    Ok(document.as_deref().map(serde_json::from_str).transpose().map_err(Odd::Document))
}

/// A line that a batch changes.
struct Line {
    /// What stands there, and its price.
    before: (Quantities, NanoUsd),
    /// What is to stand there.
    now: Quantities,
}

/// What a batch changes.
#[derive(Default)]
pub(super) struct Books {
    lines: HashMap<Place, Line>,
    calls: HashMap<CallId, Option<OpenCall>>,
    sandboxes: HashMap<(TaskId, SandboxId), Option<i64>>,
    teams: HashMap<String, Billing>,
    changed_teams: HashSet<String>,
}

impl Books {
    /// Takes in an event of a task.
    pub fn task(
        &mut self,
        transaction: &Transaction<'_>,
        open: &mut OpenTasks,
        envelope: &Envelope,
        event: &TaskEvent,
    ) -> Folded {
        let Some(id) = envelope.stream.task_id() else { return Ok(Ok(())) };
        match event {
            TaskEvent::Created(spec) => {
                self.of_task(transaction, spec, envelope.time, Quantities { tasks: 1, ..Quantities::default() })
            }
            TaskEvent::SandboxStarted { sandbox, .. } => {
                // A start that is said twice is one start, and the first one counts.
                if self.started(transaction, id, *sandbox)?.is_none() {
                    self.sandboxes.insert((id, *sandbox), Some(envelope.time.as_microsecond()));
                }
                Ok(Ok(()))
            }
            TaskEvent::SandboxStopped { sandbox, .. } => {
                let Some(started) = self.started(transaction, id, *sandbox)? else { return Ok(Ok(())) };
                self.sandboxes.insert((id, *sandbox), None);
                let ran = (envelope.time.as_microsecond() - started) / 1_000;
                let sandbox_ms = u64::try_from(ran).unwrap_or_default().min(LONGEST_SANDBOX_MS);
                let task = match open.get(transaction, id)? {
                    Ok(Some(task)) => task,
                    Ok(None) => return Ok(Err(Odd::NoTask)),
                    Err(odd) => return Ok(Err(odd)),
                };
                let ran = Quantities { sandbox_ms, ..Quantities::default() };
                self.of_task(transaction, &task.spec, envelope.time, ran)
            }
            // What was charged and refunded is the ledger's to say.
            _ => Ok(Ok(())),
        }
    }

    /// Takes in an event of a team's ledger.
    pub fn ledger(
        &mut self,
        transaction: &Transaction<'_>,
        open: &mut OpenTasks,
        envelope: &Envelope,
        team: &str,
        event: &LedgerEvent,
    ) -> Folded {
        match event {
            LedgerEvent::Reserved(reserved) => {
                self.calls.insert(reserved.call, Some(reserved.as_ref().into()));
                Ok(Ok(()))
            }
            LedgerEvent::Released(released) => {
                self.calls.insert(released.call, None);
                Ok(Ok(()))
            }
            LedgerEvent::Settled(settled) => self.settled(transaction, open, envelope, team, settled),
            LedgerEvent::Refunded(refunded) => self.refunded(transaction, open, envelope, team, *refunded),
            LedgerEvent::BudgetSet(_)
            | LedgerEvent::CampaignOpened(_)
            | LedgerEvent::Trimmed(_)
            | LedgerEvent::ThresholdReached(_)
            | LedgerEvent::DayClosed(_) => Ok(Ok(())),
        }
    }

    /// Takes in an event of a team's bills.
    pub fn billing(&mut self, transaction: &Transaction<'_>, team: &str, event: &BillingEvent) -> Folded {
        if let Err(odd) = self.know(transaction, team)? {
            return Ok(Err(odd));
        }
        let billing = self.teams.remove(team).unwrap_or_default();
        self.teams.insert(team.to_owned(), billing::evolve(billing, event));
        self.changed_teams.insert(team.to_owned());
        match event {
            BillingEvent::PlanSet(set) => self.price_anew(transaction, team, set.plan.effective_from),
            BillingEvent::PeriodCutOff(_)
            | BillingEvent::InvoiceReady(_)
            | BillingEvent::PeriodClosed(_)
            | BillingEvent::InvoicePushed(_) => Ok(Ok(())),
        }
    }

    fn settled(
        &mut self,
        transaction: &Transaction<'_>,
        open: &mut OpenTasks,
        envelope: &Envelope,
        team: &str,
        settled: &Settled,
    ) -> Folded {
        let most = MAX_NANO_USD_PER_CALL.unsigned_abs();
        if settled.usage.total() > MAX_TOKENS_PER_CALL || settled.cost_nano_usd.nanos().unsigned_abs() > most {
            return Ok(Err(Odd::Implausible));
        }
        let call = self.call(transaction, settled.call)?;
        self.calls.insert(settled.call, None);
        let task = match open.get(transaction, settled.task)? {
            Ok(task) => task.map(|task| &*task),
            Err(odd) => return Ok(Err(odd)),
        };
        // A charge without a reservation belongs to no day of the ledger; it counts on the day it was written down.
        let call = call.unwrap_or_else(|| OpenCall {
            day: day_of(envelope.time),
            project: text(task.and_then(|task| task.spec.project.as_ref())),
            environment: text(task.and_then(|task| task.spec.environment.as_ref())),
            task_type: text(task.and_then(|task| task.spec.task_type.as_ref())),
            model: text(task.map(|task| &task.spec.model)),
        });
        let customer = text(task.and_then(|task| task.spec.customer.as_ref()));
        let OpenCall { day, project, environment, task_type, model } = call;
        let (tokens, cost_nano_usd) = (settled.usage.into(), settled.cost_nano_usd);
        let place =
            |period| Place { team: team.to_owned(), period, day, customer, project, environment, task_type, model };
        self.book(transaction, team, day, place, Quantities { tokens, cost_nano_usd, ..Quantities::default() })
    }

    /// Booked under the task's own model, whichever of its calls it pays back.
    fn refunded(
        &mut self,
        transaction: &Transaction<'_>,
        open: &mut OpenTasks,
        envelope: &Envelope,
        team: &str,
        refunded: Refunded,
    ) -> Folded {
        let task = match open.get(transaction, refunded.task)? {
            Ok(task) => task.map(|task| &*task),
            Err(odd) => return Ok(Err(odd)),
        };
        let spec = task.map(|task| &task.spec);
        let day = refunded.day.unwrap_or_else(|| day_of(envelope.time));
        let place = |period| Place {
            team: team.to_owned(),
            period,
            day,
            customer: text(spec.and_then(|spec| spec.customer.as_ref())),
            project: text(spec.and_then(|spec| spec.project.as_ref())),
            environment: text(spec.and_then(|spec| spec.environment.as_ref())),
            task_type: text(spec.and_then(|spec| spec.task_type.as_ref())),
            model: text(spec.map(|spec| &spec.model)),
        };
        let quantities = Quantities {
            refunded_nano_usd: refunded.nano_usd,
            refunded_tokens: refunded.usage.into(),
            ..Quantities::default()
        };
        self.book(transaction, team, day, place, quantities)
    }

    /// Books what a task's own stream says.
    fn of_task(
        &mut self,
        transaction: &Transaction<'_>,
        spec: &TaskSpec,
        time: Timestamp,
        quantities: Quantities,
    ) -> Folded {
        let day = day_of(time);
        let place = |period| Place {
            team: spec.team.clone(),
            period,
            day,
            customer: text(spec.customer.as_ref()),
            project: text(spec.project.as_ref()),
            environment: text(spec.environment.as_ref()),
            task_type: text(spec.task_type.as_ref()),
            model: spec.model.clone(),
        };
        self.book(transaction, &spec.team, day, place, quantities)
    }

    fn book(
        &mut self,
        transaction: &Transaction<'_>,
        team: &str,
        day: Date,
        place: impl FnOnce(Month) -> Place,
        quantities: Quantities,
    ) -> Folded {
        if let Err(odd) = self.know(transaction, team)? {
            return Ok(Err(odd));
        }
        let period = self.teams.get(team).map_or_else(|| Month::of(day), |billing| billing.period_of(day));
        let place = place(period);
        if let Some(line) = self.lines.get_mut(&place) {
            line.now += quantities;
            return Ok(Ok(()));
        }
        let before = find_line(transaction, &place)?.unwrap_or_default();
        let mut now = before.0;
        now += quantities;
        self.lines.insert(place, Line { before, now });
        Ok(Ok(()))
    }

    /// Reads a team's bills, unless they are known.
    fn know(&mut self, transaction: &Transaction<'_>, team: &str) -> Folded {
        if !self.teams.contains_key(team) {
            match account(transaction, team)? {
                Ok(found) => self.teams.insert(team.to_owned(), found.unwrap_or_default()),
                Err(odd) => return Ok(Err(odd)),
            };
        }
        Ok(Ok(()))
    }

    fn call(&self, transaction: &Transaction<'_>, id: CallId) -> Result<Option<OpenCall>, rusqlite::Error> {
        if let Some(known) = self.calls.get(&id) {
            return Ok(known.clone());
        }
        let mut statement = transaction
            .prepare_cached("SELECT day, project, environment, task_type, model FROM usage_calls WHERE call = ?1")?;
        statement
            .query_row([id.uuid().as_bytes()], |row| {
                Ok(OpenCall {
                    day: parsed(row, 0)?,
                    project: row.get(1)?,
                    environment: row.get(2)?,
                    task_type: row.get(3)?,
                    model: row.get(4)?,
                })
            })
            .optional()
    }

    fn started(
        &self,
        transaction: &Transaction<'_>,
        task: TaskId,
        sandbox: SandboxId,
    ) -> Result<Option<i64>, rusqlite::Error> {
        if let Some(known) = self.sandboxes.get(&(task, sandbox)) {
            return Ok(*known);
        }
        let mut statement =
            transaction.prepare_cached("SELECT started_at FROM usage_sandboxes WHERE task = ?1 AND sandbox = ?2")?;
        statement.query_row((task.uuid().as_bytes(), sandbox.uuid().as_bytes()), |row| row.get(0)).optional()
    }

    /// Takes up every line that a new plan prices: those of its days, on bills that are still open.
    fn price_anew(&mut self, transaction: &Transaction<'_>, team: &str, from: Date) -> Folded {
        let open = self.teams.get(team).and_then(|billing| billing.cut_off).map(|last| last.to_string());
        let sql = format!(
            "SELECT period, day, customer, project, environment, task_type, model, {QUANTITIES}, billable_nano_usd
             FROM usage WHERE team = ?1 AND day >= ?2 AND period > ?3"
        );
        let mut statement = transaction.prepare_cached(&sql)?;
        let mut rows = statement.query((team, from.to_string(), open.unwrap_or_default()))?;
        while let Some(row) = rows.next()? {
            let place = read_place(row, team.to_owned())?;
            let before = priced(row, 7)?;
            // What the batch has changed already is more than what stands there.
            self.lines.entry(place).or_insert(Line { before, now: before.0 });
        }
        Ok(Ok(()))
    }

    pub fn save(self, transaction: &Transaction<'_>) -> Result<(), ReadModelError> {
        let nobody = Billing::default();
        let mut statement = transaction.prepare_cached(
            "INSERT OR REPLACE INTO usage VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16,
                                                  ?17, ?18, ?19, ?20, ?21)",
        )?;
        let mut sums = Sums::default();
        for (place, Line { before, now: line }) in &self.lines {
            let billing = self.teams.get(&place.team).unwrap_or(&nobody);
            let billable = billing.price(place.day, named(&place.customer), named(&place.project), line);
            statement.execute(params![
                place.team,
                place.period.to_string(),
                place.day.to_string(),
                place.customer,
                place.project,
                place.environment,
                place.task_type,
                place.model,
                count(line.tasks),
                count(line.tokens.input),
                count(line.tokens.output),
                count(line.tokens.cache_read),
                count(line.tokens.cache_write),
                line.cost_nano_usd.nanos(),
                line.refunded_nano_usd.nanos(),
                count(line.refunded_tokens.input),
                count(line.refunded_tokens.output),
                count(line.refunded_tokens.cache_read),
                count(line.refunded_tokens.cache_write),
                count(line.sandbox_ms),
                billable.nanos(),
            ])?;
            sums.add(place, (before.0, before.1), (*line, billable));
        }
        sums.save(transaction)?;
        self.save_calls(transaction)?;
        let mut keep = transaction.prepare_cached("INSERT OR REPLACE INTO usage_sandboxes VALUES (?1, ?2, ?3)")?;
        let mut forget = transaction.prepare_cached("DELETE FROM usage_sandboxes WHERE task = ?1 AND sandbox = ?2")?;
        for ((task, sandbox), started) in &self.sandboxes {
            let (task, sandbox) = (task.uuid(), sandbox.uuid());
            match started {
                Some(started) => keep.execute((task.as_bytes(), sandbox.as_bytes(), started))?,
                None => forget.execute((task.as_bytes(), sandbox.as_bytes()))?,
            };
        }
        let mut statement = transaction.prepare_cached("INSERT OR REPLACE INTO billing VALUES (?1, ?2)")?;
        for team in &self.changed_teams {
            let Some(billing) = self.teams.get(team) else { continue };
            let document = serde_json::to_string(billing).map_err(|error| ReadModelError::Failed(error.to_string()))?;
            statement.execute((team, document))?;
        }
        Ok(())
    }

    fn save_calls(&self, transaction: &Transaction<'_>) -> Result<(), ReadModelError> {
        let mut keep =
            transaction.prepare_cached("INSERT OR REPLACE INTO usage_calls VALUES (?1, ?2, ?3, ?4, ?5, ?6)")?;
        let mut forget = transaction.prepare_cached("DELETE FROM usage_calls WHERE call = ?1")?;
        for (id, call) in &self.calls {
            match call {
                Some(call) => keep.execute((
                    id.uuid().as_bytes(),
                    call.day.to_string(),
                    &call.project,
                    &call.environment,
                    &call.task_type,
                    &call.model,
                ))?,
                None => forget.execute([id.uuid().as_bytes()])?,
            };
        }
        Ok(())
    }
}

/// Reads the numbers of a line that begin at a column, and the price after them.
fn priced(row: &Row<'_>, first: usize) -> Result<(Quantities, NanoUsd), rusqlite::Error> {
    Ok((quantities(row, first)?, NanoUsd::from_nanos(row.get(first + 12)?)))
}

/// Reads period, day, customer, project, environment, kind of work and model from the first columns of a row.
pub(super) fn read_place(row: &Row<'_>, team: String) -> Result<Place, rusqlite::Error> {
    Ok(Place {
        team,
        period: parsed(row, 0)?,
        day: parsed(row, 1)?,
        customer: row.get(2)?,
        project: row.get(3)?,
        environment: row.get(4)?,
        task_type: row.get(5)?,
        model: row.get(6)?,
    })
}

fn find_line(transaction: &Transaction<'_>, place: &Place) -> Result<Option<(Quantities, NanoUsd)>, rusqlite::Error> {
    let sql = format!(
        "SELECT {QUANTITIES}, billable_nano_usd FROM usage WHERE team = ?1 AND period = ?2 AND day = ?3 AND customer = ?4 AND project = ?5
             AND environment = ?6 AND task_type = ?7 AND model = ?8"
    );
    let mut statement = transaction.prepare_cached(&sql)?;
    let place = params![
        place.team,
        place.period.to_string(),
        place.day.to_string(),
        place.customer,
        place.project,
        place.environment,
        place.task_type,
        place.model,
    ];
    statement.query_row(place, |row| priced(row, 0)).optional()
}
