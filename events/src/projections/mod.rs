//! Read models folded from the log: task and campaign lists and details, usage, and the audit. Thrown away and folded again at will.
//!
//! Each projection's checkpoint is written in the transaction that writes its rows, so that every event counts once,
//! whatever is delivered twice and wherever the process dies. An event that does not fold is skipped, counted and
//! logged: one odd event must not stop what everybody looks at.

pub mod audit;
pub mod billing;
mod books;
mod bounds;
pub mod campaigns;
mod database;
mod forgetting;
mod sums;
pub mod tasks;
pub mod usage;
pub mod webhooks;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rusqlite::{Connection, Transaction};
use tokio::sync::watch;

use crate::billing::{Billing, BillingEvent, Invoice, Month};
use crate::campaign::CampaignEvent;
use crate::envelope::{Envelope, Position};
use crate::id::{CampaignId, TaskId, WebhookId};
use crate::ledger::LedgerEvent;
use crate::store::{EventStore, StoreError};
use crate::task::{TaskEvent, TaskResource};
use crate::webhook::{MessageId, WebhookEvent};

pub use audit::{AuditFilter, AuditPage, AuditRow};
pub use billing::{Bill, LineCursor, LinePage, LineQuery, PeriodSums};
pub use campaigns::{CampaignFilter, CampaignPage, CampaignRow};
pub use database::{READ_QUEUE_WAIT, READERS};
pub use forgetting::{Ended, EndedAt};
pub use tasks::{Cursor, CursorError, TaskFilter, TaskPage};
pub use usage::{Dimension, UsageGroup, UsageQuery, UsageReport};
pub use webhooks::{DeliveryOutcome, DeliveryPage, DeliveryRow, WebhookPage, WebhookRow};

use database::Database;

/// Events folded in one transaction.
pub const BATCH: usize = 500;
/// The longest pause between two tries when the store or the file fails.
pub const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// Why a read model did not answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReadModelError {
    /// Every reading connection was in use for too long.
    #[error("the read models are busy; try again")]
    Busy,
    /// The projector has not come that far within the time given.
    #[error("the read models are at position {} and have not reached {} yet", at.0, wanted.0)]
    Lagging {
        /// Where they are.
        at: Position,
        /// Where they should be.
        wanted: Position,
    },
    /// The file or the database said no.
    #[error("the read models failed: {0}")]
    Failed(String),
    /// The log could not be read.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<rusqlite::Error> for ReadModelError {
    fn from(error: rusqlite::Error) -> Self {
        Self::Failed(error.to_string())
    }
}

/// An event that does not fold into a projection.
#[derive(Debug, thiserror::Error)]
enum Odd {
    #[error(transparent)]
    Undecodable(#[from] crate::json::DecodeError),
    #[error("its stream has no first event")]
    NoTask,
    #[error("it charges more than a model call can cost")]
    Implausible,
    #[error("the stored document does not read: {0}")]
    Document(#[from] serde_json::Error),
}

/// What one event did to one projection: fine, or odd, or the database failed (which fails the batch).
type Folded = Result<Result<(), Odd>, rusqlite::Error>;

/// The projections, in the order in which an event passes through them.
const PROJECTIONS: [&str; 5] = ["tasks", "usage", "campaigns", "webhooks", "audit"];

/// The place of usage among them: it is folded from ledgers and bills too.
const USAGE: usize = 1;
/// The place of the campaigns among them: theirs are events that are not a task's.
const CAMPAIGNS: usize = 2;
/// That of the webhooks.
const WEBHOOKS: usize = 3;
/// That of the audit, which reads everybody's.
const AUDIT: usize = 4;

/// The read models of one node.
pub struct ReadModels {
    database: Database,
    position: watch::Sender<Position>,
    skipped: AtomicU64,
    /// Held while a batch is folded or everything is thrown away, so that the two never mix.
    folding: tokio::sync::Mutex<()>,
}

#[derive(Clone, Copy)]
struct Checkpoints([Position; PROJECTIONS.len()]);

impl Checkpoints {
    fn lowest(self) -> Position {
        self.0.into_iter().min().unwrap_or_default()
    }
}

fn checkpoints(connection: &Connection) -> Result<(Checkpoints, u64), rusqlite::Error> {
    let mut found = Checkpoints([Position::START; PROJECTIONS.len()]);
    let mut skipped = 0;
    let mut statement = connection.prepare_cached("SELECT position, skipped FROM checkpoints WHERE projection = ?1")?;
    for (place, name) in found.0.iter_mut().zip(PROJECTIONS) {
        let (position, odd) = statement.query_row([name], |row| Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?)))?;
        *place = Position(position.unsigned_abs());
        skipped += odd.unsigned_abs();
    }
    Ok((found, skipped))
}

impl ReadModels {
    /// Opens the file, or makes it.
    pub fn open(path: &Path) -> Result<Self, ReadModelError> {
        let database = Database::open(path)?;
        let (found, skipped) = database.read_now(|connection| Ok(checkpoints(connection)?))?;
        Ok(Self {
            database,
            position: watch::Sender::new(found.lowest()),
            skipped: AtomicU64::new(skipped),
            folding: tokio::sync::Mutex::new(()),
        })
    }

    /// Everything up to here is folded in.
    pub fn checkpoint(&self) -> Position {
        *self.position.borrow()
    }

    /// Rings whenever the checkpoint has moved.
    pub fn bell(&self) -> watch::Receiver<Position> {
        self.position.subscribe()
    }

    /// How many events did not fold, since the last rebuild.
    pub fn skipped(&self) -> u64 {
        self.skipped.load(Ordering::Relaxed)
    }

    /// Folds events in, in one transaction. What is at or before the checkpoint is passed over. Batches must follow
    /// one another without leaving events out.
    pub async fn apply(&self, batch: Vec<Envelope>) -> Result<Position, ReadModelError> {
        let _folding = self.folding.lock().await;
        self.fold(batch).await
    }

    async fn fold(&self, batch: Vec<Envelope>) -> Result<Position, ReadModelError> {
        let (reached, odd) = self
            .database
            .write(move |connection| {
                let transaction = connection.transaction()?;
                let done = fold_batch(&transaction, &batch)?;
                transaction.commit()?;
                Ok(done)
            })
            .await?;
        self.skipped.fetch_add(odd, Ordering::Relaxed);
        self.position.send_replace(reached);
        Ok(reached)
    }

    /// Waits until everything up to `wanted` is folded in, so that who has written can read it.
    pub async fn wait_for(&self, wanted: Position, limit: Duration) -> Result<(), ReadModelError> {
        let mut bell = self.position.subscribe();
        match tokio::time::timeout(limit, bell.wait_for(|at| *at >= wanted)).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) | Err(_) => Err(ReadModelError::Lagging { at: self.checkpoint(), wanted }),
        }
    }

    /// Throws everything away and folds the log again, up to where it ended when this began.
    pub async fn rebuild(&self, store: &dyn EventStore) -> Result<Position, ReadModelError> {
        let _folding = self.folding.lock().await;
        self.database
            .write(|connection| {
                let transaction = connection.transaction()?;
                transaction.execute_batch(
                    "DELETE FROM tasks; DELETE FROM usage; DELETE FROM usage_sums; DELETE FROM usage_calls;
                     DELETE FROM usage_sandboxes; DELETE FROM billing; DELETE FROM campaigns; DELETE FROM webhooks; DELETE FROM deliveries;
                     DELETE FROM audit; DELETE FROM audit_repos; DELETE FROM audit_actors;
                     UPDATE checkpoints SET position = 0, skipped = 0;",
                )?;
                Ok(transaction.commit()?)
            })
            .await?;
        self.skipped.store(0, Ordering::Relaxed);
        self.position.send_replace(Position::START);
        let head = store.head().await?;
        let mut at = Position::START;
        while at < head {
            let batch = store.read_all(at, BATCH).await?;
            if batch.is_empty() {
                break;
            }
            at = self.fold(batch).await?;
        }
        Ok(at)
    }

    /// One task.
    pub async fn task(&self, id: TaskId) -> Result<Option<TaskResource>, ReadModelError> {
        self.database.read(move |connection| tasks::find(connection, id)).await
    }

    /// Tasks, newest first. `after` is the cursor that the page before ended with; `limit` is held to
    /// [`tasks::MAX_PAGE`].
    pub async fn tasks(
        &self,
        filter: TaskFilter,
        after: Option<Cursor>,
        limit: usize,
    ) -> Result<TaskPage, ReadModelError> {
        self.database.read(move |connection| tasks::page(connection, &filter, after, limit)).await
    }

    /// One campaign.
    pub async fn campaign(&self, id: CampaignId) -> Result<Option<CampaignRow>, ReadModelError> {
        self.database.read(move |connection| campaigns::find(connection, id)).await
    }

    /// Every campaign of which a task runs or waits.
    pub async fn open_campaigns(&self) -> Result<Vec<CampaignId>, ReadModelError> {
        self.database.read(campaigns::open).await
    }

    /// The tasks of a campaign that were begun, in the order in which they first were.
    pub async fn children(&self, id: CampaignId) -> Result<Vec<TaskResource>, ReadModelError> {
        self.database.read(move |connection| campaigns::children(connection, id)).await
    }

    /// Campaigns, newest first; pages as those of [`tasks`](Self::tasks).
    pub async fn campaigns(
        &self,
        filter: CampaignFilter,
        after: Option<Cursor>,
        limit: usize,
    ) -> Result<CampaignPage, ReadModelError> {
        self.database.read(move |connection| campaigns::page(connection, &filter, after, limit)).await
    }

    /// The audit, newest first. `limit` is held to [`audit::MAX_PAGE`].
    pub async fn audit(
        &self,
        filter: AuditFilter,
        after: Option<Cursor>,
        limit: usize,
    ) -> Result<AuditPage, ReadModelError> {
        self.database.read(move |connection| audit::page(connection, &filter, after, limit)).await
    }

    /// Whether this actor is a key or a person of the team's own, as of [`AuditRow::own`].
    pub async fn is_of_team(&self, actor: String, team: String) -> Result<bool, ReadModelError> {
        self.database.read(move |connection| Ok(audit::is_of(connection, &actor, &team)?)).await
    }

    /// A team's plans, and how far its months are closed.
    pub async fn billing(&self, team: String) -> Result<Billing, ReadModelError> {
        self.database.read(move |connection| billing::account(connection, &team)).await
    }

    /// The months that anything of a team stands in, or is closed in, newest first.
    pub async fn billing_periods(&self, team: String) -> Result<Vec<PeriodSums>, ReadModelError> {
        self.database.read(move |connection| billing::periods(connection, &team)).await
    }

    /// The teams that have used anything, each with the first month that they have.
    pub async fn billed_teams(&self) -> Result<Vec<(String, Month)>, ReadModelError> {
        self.database.read(billing::teams).await
    }

    /// The first month that anything of a team stands in.
    pub async fn first_period(&self, team: String) -> Result<Option<Month>, ReadModelError> {
        self.database.read(move |connection| billing::first_period(connection, &team)).await
    }

    /// The bill of a month: as it stands, while that is open. `None`: it has more than
    /// [`MOST_LINES`](crate::billing::invoice::MOST_LINES) lines.
    pub async fn invoice(&self, team: String, period: Month) -> Result<Option<Invoice>, ReadModelError> {
        self.database.read(move |connection| billing::invoice(connection, &team, period)).await
    }

    /// The bill of a month in sums. `None` as with [`invoice`](Self::invoice).
    pub async fn bill(&self, team: String, period: Month) -> Result<Option<Bill>, ReadModelError> {
        self.database.read(move |connection| billing::bill(connection, &team, period)).await
    }

    /// A page of a bill's lines.
    pub async fn bill_lines(
        &self,
        bill: Arc<Bill>,
        query: LineQuery,
        limit: usize,
    ) -> Result<LinePage, ReadModelError> {
        self.database.read(move |connection| billing::lines(connection, &query, &bill, limit)).await
    }

    /// The [`LinesDigest`](crate::billing::invoice::LinesDigest) of a bill's lines as they stand here. As many lines are
    /// read as it has.
    pub async fn bill_digest(&self, bill: Arc<Bill>, team: String, period: Month) -> Result<String, ReadModelError> {
        let query = LineQuery { team, period, customer: None, after: None };
        self.database.read(move |connection| billing::digest(connection, &query, &bill)).await
    }

    /// Tasks that have ended so long ago and still have their words, the oldest first, after this one.
    pub async fn ended_tasks(
        &self,
        rule: Ended,
        after: Option<EndedAt>,
        limit: usize,
    ) -> Result<Vec<EndedAt>, ReadModelError> {
        self.database.read(move |connection| forgetting::ended(connection, "tasks", &rule, after, limit)).await
    }

    /// The same of campaigns.
    pub async fn ended_campaigns(
        &self,
        rule: Ended,
        after: Option<EndedAt>,
        limit: usize,
    ) -> Result<Vec<EndedAt>, ReadModelError> {
        self.database.read(move |connection| forgetting::ended(connection, "campaigns", &rule, after, limit)).await
    }

    /// The size of the file, in bytes.
    pub async fn bytes(&self) -> Result<u64, ReadModelError> {
        self.database.read(forgetting::bytes).await
    }

    /// Writes the file anew, so that nothing of what was forgotten is in it. Nothing is folded meanwhile.
    pub async fn tidy(&self) -> Result<(), ReadModelError> {
        let _folding = self.folding.lock().await;
        self.database.write(|connection| forgetting::tidy(connection)).await
    }

    /// One webhook.
    pub async fn webhook(&self, id: WebhookId) -> Result<Option<WebhookRow>, ReadModelError> {
        self.database.read(move |connection| webhooks::find(connection, id)).await
    }

    /// Webhooks, newest first: of one team (`Some(None)`: of the operators), or all; pages as those of
    /// [`tasks`](Self::tasks).
    pub async fn webhooks(
        &self,
        team: Option<Option<String>>,
        after: Option<Cursor>,
        limit: usize,
        wanted: impl Fn(&WebhookRow) -> bool + Send + 'static,
    ) -> Result<WebhookPage, ReadModelError> {
        self.database.read(move |connection| webhooks::page(connection, team, after, limit, wanted)).await
    }

    /// What became of a webhook's messages, those that were first tried last first. `after` is where the page before
    /// ended.
    pub async fn deliveries(
        &self,
        webhook: WebhookId,
        outcome: Option<DeliveryOutcome>,
        after: Option<u64>,
        limit: usize,
    ) -> Result<DeliveryPage, ReadModelError> {
        self.database.read(move |connection| webhooks::deliveries(connection, webhook, outcome, after, limit)).await
    }

    /// What became of one message; `None` when it is not among the newest.
    pub async fn delivery(&self, webhook: WebhookId, id: MessageId) -> Result<Option<DeliveryRow>, ReadModelError> {
        self.database.read(move |connection| webhooks::delivery(connection, webhook, id)).await
    }

    /// What was used.
    pub async fn usage(&self, query: UsageQuery) -> Result<UsageReport, ReadModelError> {
        self.database.read(move |connection| usage::report(connection, &query)).await
    }
}

fn fold_batch(transaction: &Transaction<'_>, batch: &[Envelope]) -> Result<(Position, u64), ReadModelError> {
    let (mut at, _) = checkpoints(transaction)?;
    let mut skipped = [0_u64; PROJECTIONS.len()];
    let mut open = tasks::OpenTasks::default();
    let mut open_campaigns = campaigns::OpenCampaigns::default();
    let mut books = books::Books::default();
    for envelope in batch {
        let decoded = match envelope.stream.task_id() {
            Some(_) => TaskEvent::decode(envelope).map_err(Arc::new),
            None => Ok(None),
        };
        for (index, name) in PROJECTIONS.into_iter().enumerate() {
            if envelope.position <= at.0[index] {
                continue;
            }
            at.0[index] = envelope.position;
            if index == CAMPAIGNS {
                if let Err(odd) = fold_campaign(transaction, &mut open_campaigns, envelope)? {
                    skip(name, envelope, &odd, &mut skipped[index]);
                }
                continue;
            }
            if index == WEBHOOKS {
                if let Err(odd) = fold_webhook(transaction, envelope)? {
                    skip(name, envelope, &odd, &mut skipped[index]);
                }
                continue;
            }
            if index == AUDIT {
                // An event of a task that does not read is an act all the same, if somebody did it.
                let event = decoded.as_ref().ok().and_then(Option::as_ref);
                if let Err(odd) = audit::apply(transaction, &mut open, envelope, event)? {
                    skip(name, envelope, &odd, &mut skipped[index]);
                }
                continue;
            }
            let folded = match &decoded {
                Ok(Some(event)) if index == 0 => open.apply(transaction, envelope, event)?,
                Ok(Some(event)) => books.task(transaction, &mut open, envelope, event)?,
                Ok(None) if index == USAGE => fold_money(transaction, &mut books, &mut open, envelope)?,
                Ok(None) => Ok(()),
                Err(error) => {
                    skip(name, envelope, error, &mut skipped[index]);
                    continue;
                }
            };
            if let Err(odd) = folded {
                skip(name, envelope, &odd, &mut skipped[index]);
            }
        }
    }
    audit::save(transaction, &open)?;
    open.save(transaction)?;
    books.save(transaction)?;
    open_campaigns.save(transaction)?;
    let mut statement = transaction.prepare_cached(
        "UPDATE checkpoints SET position = ?2, skipped = skipped + ?3 WHERE projection = ?1 AND position <= ?2",
    )?;
    for ((name, position), skipped) in PROJECTIONS.into_iter().zip(at.0).zip(skipped) {
        let position = i64::try_from(position.0).map_err(|error| ReadModelError::Failed(error.to_string()))?;
        statement.execute((name, position, i64::try_from(skipped).unwrap_or(i64::MAX)))?;
    }
    Ok((at.lowest(), skipped.iter().sum()))
}

/// Ledgers and bills: the books are made of them, and of a task's stream only what they do not say.
fn fold_money(
    transaction: &Transaction<'_>,
    books: &mut books::Books,
    open: &mut tasks::OpenTasks,
    envelope: &Envelope,
) -> Folded {
    if let Some(team) = envelope.stream.ledger_team() {
        return match LedgerEvent::decode(envelope) {
            Ok(Some(event)) => books.ledger(transaction, open, envelope, team, &event),
            Ok(None) => Ok(Ok(())),
            Err(error) => Ok(Err(error.into())),
        };
    }
    if let Some(team) = envelope.stream.billing_team() {
        return match BillingEvent::decode(envelope) {
            Ok(Some(event)) => books.billing(transaction, team, &event),
            Ok(None) => Ok(Ok(())),
            Err(error) => Ok(Err(error.into())),
        };
    }
    Ok(Ok(()))
}

fn fold_campaign(transaction: &Transaction<'_>, open: &mut campaigns::OpenCampaigns, envelope: &Envelope) -> Folded {
    if envelope.stream.campaign_id().is_none() {
        return Ok(Ok(()));
    }
    match CampaignEvent::decode(envelope) {
        Ok(Some(event)) => open.apply(transaction, envelope, &event),
        Ok(None) => Ok(Ok(())),
        Err(error) => Ok(Err(error.into())),
    }
}

fn fold_webhook(transaction: &Transaction<'_>, envelope: &Envelope) -> Folded {
    if envelope.stream.webhook_id().is_none() {
        return Ok(Ok(()));
    }
    match WebhookEvent::decode(envelope) {
        Ok(Some(event)) => webhooks::apply(transaction, envelope, &event),
        Ok(None) => Ok(Ok(())),
        Err(error) => Ok(Err(error.into())),
    }
}

fn skip(projection: &str, envelope: &Envelope, why: &dyn std::fmt::Display, counter: &mut u64) {
    *counter += 1;
    tracing::error!(
        projection,
        stream = %envelope.stream,
        revision = envelope.revision.0,
        position = envelope.position.0,
        kind = %envelope.kind,
        "an event does not fold and was skipped: {why}"
    );
}

/// Keeps the read models up to date until `cancel` resolves. What fails is tried again, for ever, with a growing
/// pause.
pub async fn project(store: Arc<dyn EventStore>, read: Arc<ReadModels>, cancel: impl Future<Output = ()>) {
    let mut cancel = std::pin::pin!(cancel);
    let mut bell = store.bell();
    let mut pause = Duration::from_millis(50);
    loop {
        // The bell is marked heard before the log is read: what is appended in between rings again.
        bell.borrow_and_update();
        let batch = async {
            let batch = store.read_all(read.checkpoint(), BATCH).await?;
            let more = !batch.is_empty();
            if more {
                read.apply(batch).await?;
            }
            Ok::<_, ReadModelError>(more)
        };
        let outcome = tokio::select! {
            outcome = batch => outcome,
            () = &mut cancel => return,
        };
        match outcome {
            Ok(true) => pause = Duration::from_millis(50),
            Ok(false) => tokio::select! {
                rung = bell.changed() => if rung.is_err() { return },
                () = &mut cancel => return,
            },
            Err(error) => {
                tracing::error!("the read models do not keep up: {error}; trying again in {pause:?}");
                tokio::select! {
                    () = tokio::time::sleep(pause) => {}
                    () = &mut cancel => return,
                }
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
        }
    }
}

#[cfg(test)]
mod tests;
