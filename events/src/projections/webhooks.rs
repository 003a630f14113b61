//! The list of webhooks, each one's detail, and what became of the newest of its messages.

use std::fmt::Write as _;
use std::str::FromStr;

use jiff::Timestamp;
use rusqlite::types::Value;
use rusqlite::{Connection, OptionalExtension as _, Row, Transaction, params_from_iter};
use serde::{Deserialize, Serialize};

use super::tasks::{Cursor, MAX_PAGE};
use super::{Folded, Odd, ReadModelError};
use crate::envelope::{Envelope, Position};
use crate::id::WebhookId;
use crate::webhook::event::MAX_RECORDED;
use crate::webhook::{Attempt, DisabledWhy, Fault, MessageId, Outcome, WebhookEvent, WebhookSpec};

/// Messages of one webhook that are shown. The log keeps them all.
pub const MAX_DELIVERIES: i64 = 10_000;
/// What stands for the operators where a team would: no team can be called so.
const OPERATORS: &str = "*";
/// Places that the attempts of one event can have: more than [`MAX_RECORDED`].
const PLACES: i64 = 128;
const _: () = assert!(MAX_RECORDED < PLACES as usize, "two attempts would have one place");

/// A webhook as its owner sees it. Its secret is nowhere.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct WebhookRow {
    /// Its id.
    pub id: WebhookId,
    /// What it is for.
    pub spec: WebhookSpec,
    /// When it was made.
    pub created_at: Timestamp,
    /// Why nothing is sent; absent where something is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disabled: Option<DisabledWhy>,
    /// The number of its secret.
    pub secret: u32,
    /// Until when messages are signed with the one before, too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous_until: Option<Timestamp>,
    /// What it wants of the log up to here was delivered, was given up or is being retried.
    pub through: Position,
    /// When something was last taken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delivered_at: Option<Timestamp>,
    /// Since when nothing was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failing_since: Option<Timestamp>,
    /// Messages that were taken.
    pub delivered: u64,
    /// Messages that were given up.
    pub given_up: u64,
}

/// What became of one message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DeliveryRow {
    /// Its id.
    pub message: MessageId,
    /// The event's place in the log; absent for a test.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub position: Option<Position>,
    /// The `type` that it was sent with.
    #[serde(rename = "type")]
    pub kind: String,
    /// Attempts so far, those of replays among them.
    pub attempts: u32,
    /// When the first one was.
    pub first_at: Timestamp,
    /// When the last one was.
    pub last_at: Timestamp,
    /// How long its answer took, in milliseconds.
    pub ms: u32,
    /// What became of it.
    pub outcome: DeliveryOutcome,
    /// What the receiver answered, if it did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    /// What went wrong, if it did not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fault: Option<Fault>,
    /// When it is tried again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_at: Option<Timestamp>,
}

/// How a message stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DeliveryOutcome {
    /// It was taken.
    Delivered,
    /// It is tried again.
    Retrying,
    /// It is not.
    GivenUp,
    /// It is not either: when its turn came, the webhook was for something else.
    Skipped,
}

impl DeliveryOutcome {
    /// Every one.
    pub const ALL: [Self; 4] = [Self::Delivered, Self::Retrying, Self::GivenUp, Self::Skipped];

    /// The stable name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Delivered => "delivered",
            Self::Retrying => "retrying",
            Self::GivenUp => "given-up",
            Self::Skipped => "skipped",
        }
    }
}

impl FromStr for DeliveryOutcome {
    type Err = ();
    fn from_str(text: &str) -> Result<Self, ()> {
        Self::ALL.into_iter().find(|outcome| outcome.as_str() == text).ok_or(())
    }
}

/// Webhooks, newest first.
#[derive(Debug, Clone, PartialEq)]
pub struct WebhookPage {
    /// The webhooks.
    pub webhooks: Vec<WebhookRow>,
    /// Where the next page starts; `None` when there is none.
    pub next: Option<Cursor>,
}

/// Messages, those that were first tried last first.
#[derive(Debug, Clone, PartialEq)]
pub struct DeliveryPage {
    /// The messages.
    pub deliveries: Vec<DeliveryRow>,
    /// Where the next page starts; `None` when there is none.
    pub next: Option<u64>,
}

fn decode<T: serde::de::DeserializeOwned>(row: &Row<'_>, column: usize) -> Result<T, ReadModelError> {
    let text = row.get_ref(column)?.as_str().map_err(rusqlite::Error::from)?;
    serde_json::from_str(text).map_err(|error| ReadModelError::Failed(format!("a webhook row does not read: {error}")))
}

pub(super) fn find(connection: &Connection, id: WebhookId) -> Result<Option<WebhookRow>, ReadModelError> {
    let mut statement = connection.prepare_cached("SELECT document FROM webhooks WHERE id = ?1")?;
    let mut rows = statement.query([id.uuid().as_bytes()])?;
    rows.next()?.map(|row| decode(row, 0)).transpose()
}

/// `team`: `Some(None)` those of the operators, `None` all.
pub(super) fn page(
    connection: &Connection,
    team: Option<Option<String>>,
    after: Option<Cursor>,
    limit: usize,
    wanted: impl Fn(&WebhookRow) -> bool,
) -> Result<WebhookPage, ReadModelError> {
    let limit = limit.clamp(1, MAX_PAGE);
    let mut sql = "SELECT document FROM webhooks WHERE 1 = 1".to_owned();
    let mut values: Vec<Value> = Vec::new();
    if let Some(team) = team {
        values.push(Value::Text(team.unwrap_or_else(|| OPERATORS.to_owned())));
        sql.push_str(" AND team = ?1");
    }
    if let Some(cursor) = after {
        values.extend(cursor.values());
        // Writing to a String does not fail.
        let _ = write!(sql, " AND (created_at, id) < (?{}, ?{})", values.len() - 1, values.len());
    }
    sql.push_str(" ORDER BY created_at DESC, id DESC");
    let mut statement = connection.prepare_cached(&sql)?;
    let mut rows = statement.query(params_from_iter(values))?;
    let mut webhooks: Vec<WebhookRow> = Vec::new();
    // One more than asked for tells whether there is another page. There are few: a team may have no more than a thousand.
    while webhooks.len() <= limit
        && let Some(row) = rows.next()?
    {
        let row = decode(row, 0)?;
        if wanted(&row) {
            webhooks.push(row);
        }
    }
    let more = webhooks.len() > limit;
    webhooks.truncate(limit);
    let next = webhooks.last().filter(|_| more);
    let next = next.map(|last| Cursor::new(last.created_at.as_microsecond(), last.id.uuid()));
    Ok(WebhookPage { webhooks, next })
}

pub(super) fn deliveries(
    connection: &Connection,
    webhook: WebhookId,
    outcome: Option<DeliveryOutcome>,
    after: Option<u64>,
    limit: usize,
) -> Result<DeliveryPage, ReadModelError> {
    let limit = limit.clamp(1, MAX_PAGE);
    let mut sql = "SELECT document, place FROM deliveries WHERE webhook = ?1 AND place < ?2".to_owned();
    let before = after.and_then(|after| i64::try_from(after).ok()).unwrap_or(i64::MAX);
    let mut values = vec![Value::Blob(webhook.uuid().as_bytes().to_vec()), Value::Integer(before)];
    if let Some(outcome) = outcome {
        values.push(Value::Text(outcome.as_str().to_owned()));
        sql.push_str(" AND outcome = ?3");
    }
    let _ = write!(sql, " ORDER BY place DESC LIMIT {}", limit + 1);
    let mut statement = connection.prepare_cached(&sql)?;
    let mut rows = statement.query(params_from_iter(values))?;
    let (mut deliveries, mut places) = (Vec::new(), Vec::new());
    while let Some(row) = rows.next()? {
        deliveries.push(decode(row, 0)?);
        places.push(row.get::<_, i64>(1)?.unsigned_abs());
    }
    let more = deliveries.len() > limit;
    deliveries.truncate(limit);
    let next = places.get(limit - 1).copied().filter(|_| more);
    Ok(DeliveryPage { deliveries, next })
}

/// The one message of this id.
pub(super) fn delivery(
    connection: &Connection,
    webhook: WebhookId,
    message: MessageId,
) -> Result<Option<DeliveryRow>, ReadModelError> {
    let mut statement =
        connection.prepare_cached("SELECT document FROM deliveries WHERE webhook = ?1 AND message = ?2")?;
    let mut rows = statement.query((webhook.uuid().as_bytes(), message.as_bytes()))?;
    rows.next()?.map(|row| decode(row, 0)).transpose()
}

/// Folds an event of a webhook's stream.
pub(super) fn apply(transaction: &Transaction<'_>, envelope: &Envelope, event: &WebhookEvent) -> Folded {
    let Some(id) = envelope.stream.webhook_id() else { return Ok(Ok(())) };
    if let WebhookEvent::WebhookRemoved {} = event {
        for table in ["DELETE FROM webhooks WHERE id = ?1", "DELETE FROM deliveries WHERE webhook = ?1"] {
            transaction.prepare_cached(table)?.execute([id.uuid().as_bytes()])?;
        }
        return Ok(Ok(()));
    }
    let standing: Option<String> = transaction
        .prepare_cached("SELECT document FROM webhooks WHERE id = ?1")?
        .query_row([id.uuid().as_bytes()], |row| row.get(0))
        .optional()?;
    let standing: Option<WebhookRow> = match standing.as_deref().map(serde_json::from_str).transpose() {
        Ok(standing) => standing,
        Err(error) => return Ok(Err(Odd::Document(error))),
    };
    let Some(row) = fold(standing, id, envelope, event) else { return Ok(Err(Odd::NoTask)) };
    if let WebhookEvent::DeliveriesRecorded { attempts, .. } = event {
        for (index, attempt) in (0..PLACES).zip(attempts) {
            if let Err(odd) = keep(transaction, id, envelope.position, index, attempt)? {
                return Ok(Err(odd));
            }
        }
        if !attempts.is_empty() {
            transaction
                .prepare_cached(
                    "DELETE FROM deliveries WHERE webhook = ?1 AND place <= COALESCE((SELECT place FROM deliveries
                     WHERE webhook = ?1 ORDER BY place DESC LIMIT 1 OFFSET ?2), -1)",
                )?
                .execute((id.uuid().as_bytes(), MAX_DELIVERIES))?;
        }
    }
    let document = match serde_json::to_string(&row) {
        Ok(document) => document,
        Err(error) => return Ok(Err(Odd::Document(error))),
    };
    transaction
        .prepare_cached(
            "INSERT INTO webhooks (id, created_at, team, document) VALUES (?1, ?2, ?3, ?4)
             ON CONFLICT (id) DO UPDATE SET document = excluded.document",
        )?
        .execute((
            id.uuid().as_bytes(),
            row.created_at.as_microsecond(),
            row.spec.team.as_deref().unwrap_or(OPERATORS),
            document,
        ))?;
    Ok(Ok(()))
}

fn fold(standing: Option<WebhookRow>, id: WebhookId, envelope: &Envelope, event: &WebhookEvent) -> Option<WebhookRow> {
    let Some(mut row) = standing else {
        let WebhookEvent::WebhookCreated { spec, after, .. } = event else { return None };
        return Some(WebhookRow {
            id,
            spec: spec.clone(),
            created_at: envelope.time,
            disabled: None,
            secret: 1,
            previous_until: None,
            through: *after,
            delivered_at: None,
            failing_since: None,
            delivered: 0,
            given_up: 0,
        });
    };
    match event {
        WebhookEvent::WebhookCreated { .. }
        | WebhookEvent::WebhookRemoved {}
        | WebhookEvent::ReplayRequested { .. } => {}
        WebhookEvent::WebhookChanged(spec) => row.spec = spec.clone(),
        WebhookEvent::WebhookSecretRotated { version, previous_until } => {
            (row.secret, row.previous_until) = (*version, Some(*previous_until));
        }
        WebhookEvent::WebhookDisabled { why } => row.disabled = Some(*why),
        WebhookEvent::WebhookEnabled { .. } => (row.disabled, row.failing_since) = (None, None),
        WebhookEvent::DeliveriesRecorded { attempts, through, .. } => {
            row.through = row.through.max(*through);
            for attempt in attempts {
                match attempt.outcome {
                    Outcome::Delivered { .. } => {
                        (row.delivered_at, row.failing_since) = (Some(attempt.at), None);
                        row.delivered += 1;
                    }
                    Outcome::Retrying { .. } => drop(row.failing_since.get_or_insert(attempt.at)),
                    Outcome::GivenUp { .. } => {
                        if attempt.position.is_some() {
                            row.failing_since.get_or_insert(attempt.at);
                            row.given_up += 1;
                        }
                    }
                    Outcome::Skipped => {}
                }
            }
        }
    }
    Some(row)
}

fn keep(
    transaction: &Transaction<'_>,
    webhook: WebhookId,
    recorded_at: Position,
    index: i64,
    attempt: &Attempt,
) -> Folded {
    let known: Option<(i64, String)> = transaction
        .prepare_cached("SELECT place, document FROM deliveries WHERE webhook = ?1 AND message = ?2")?
        .query_row((webhook.uuid().as_bytes(), attempt.message.as_bytes()), |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()?;
    let (place, before) = match known {
        None => (i64::try_from(recorded_at.0).unwrap_or(i64::MAX / PLACES).saturating_mul(PLACES) + index, None),
        Some((place, document)) => match serde_json::from_str::<DeliveryRow>(&document) {
            Ok(before) => (place, Some(before)),
            Err(error) => return Ok(Err(Odd::Document(error))),
        },
    };
    let (outcome, next_at) = match attempt.outcome {
        Outcome::Delivered { .. } => (DeliveryOutcome::Delivered, None),
        Outcome::Retrying { next, .. } => (DeliveryOutcome::Retrying, Some(next)),
        Outcome::GivenUp { .. } => (DeliveryOutcome::GivenUp, None),
        Outcome::Skipped => (DeliveryOutcome::Skipped, None),
    };
    let row = DeliveryRow {
        message: attempt.message,
        position: attempt.position,
        kind: attempt.kind.clone(),
        // What is skipped is no attempt.
        attempts: (before.as_ref().map_or(0, |before| before.attempts))
            .saturating_add(u32::from(attempt.outcome != Outcome::Skipped)),
        first_at: before.map_or(attempt.at, |before| before.first_at),
        last_at: attempt.at,
        ms: attempt.ms,
        outcome,
        status: attempt.outcome.status(),
        fault: attempt.outcome.fault(),
        next_at,
    };
    let document = match serde_json::to_string(&row) {
        Ok(document) => document,
        Err(error) => return Ok(Err(Odd::Document(error))),
    };
    transaction
        .prepare_cached(
            "INSERT INTO deliveries (webhook, place, message, outcome, document) VALUES (?1, ?2, ?3, ?4, ?5)
             ON CONFLICT (webhook, place) DO UPDATE SET outcome = excluded.outcome, document = excluded.document",
        )?
        .execute((webhook.uuid().as_bytes(), place, attempt.message.as_bytes(), outcome.as_str(), document))?;
    Ok(Ok(()))
}

#[cfg(test)]
mod tests;
