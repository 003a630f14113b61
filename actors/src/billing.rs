//! Plans and closings: what is asked of a team's bills, decided on a fold of its stream and appended.
//!
//! A month is closed in three steps, each in the log: `period-cut-off` ends what the bill takes in, at its own place in
//! the log; `invoice-ready` writes the lines down, as the read models have them up to that place; `period-closed` says
//! what they come to. Whoever dies in between is followed by somebody who goes on where the stream ends: behind the
//! cut-off the lines cannot change any more. The expected revision is the only lock: two who close the same month write
//! the same lines, and one of them is told to read again.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use jiff::civil::Date;
use jiff::tz::TimeZone;
use jiff::{Timestamp, ToSpan};
use orchestra_events::billing::event::SCHEMA;
use orchestra_events::billing::invoice::MOST_LINES;
use orchestra_events::billing::{
    Billing, BillingEvent, Closing, Command, Invoice, Month, PeriodClosed, Plan, Pushed, Refusal, decide, evolve,
};
use orchestra_events::envelope::StreamNameError;
use orchestra_events::projections::{ReadModelError, ReadModels};
use orchestra_events::store::fold_stream;
use orchestra_events::{
    Actor as Who, EventId, EventStore, Expected, NewEvent, Position, Revision, StoreError, StreamName,
};
use uuid::Uuid;

use crate::ledger::Clock;

/// How often a command is decided again because another writer was faster.
const TRIES: u32 = 8;
/// How long a closing waits for the read models to come to its cut-off. They are milliseconds behind, except after a
/// rebuild; who asks again goes on.
const READ_WAIT: Duration = Duration::from_secs(30);
/// Events with lines in one append: together they stay below what an append may weigh.
const EVENTS_PER_APPEND: usize = 15;
/// How often it is looked whether a month is due.
pub const LOOK_EVERY: Duration = Duration::from_secs(15 * 60);

/// Why nothing came of what was asked.
#[derive(Debug, Clone, thiserror::Error)]
pub enum BillingError {
    /// The bills do not allow it. Nothing was recorded.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The month has more lines than a bill may have.
    #[error("the month has more than {MOST_LINES} lines; bill fewer customers, projects and types of task apart")]
    TooManyLines,
    /// Others changed the bills again and again at the same moment.
    #[error("others are changing these bills at the same moment; try again")]
    Contended,
    /// The store did not take it.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The read models did not answer, or are behind. Asked again, it goes on.
    #[error(transparent)]
    Read(#[from] ReadModelError),
    /// The stream does not read.
    #[error("the bills do not read: {0}")]
    Damaged(String),
    /// Not the name of a team.
    #[error(transparent)]
    Team(#[from] StreamNameError),
}

/// What can be asked of bills.
#[async_trait]
pub trait BillingService: Send + Sync + 'static {
    /// Lets a plan go from its first day on. Answers the bills as they stand then.
    async fn set_plan(&self, team: &str, plan: Plan, who: Who) -> Result<Billing, BillingError>;
    /// Closes a month for good. Asked again, it answers what was closed.
    async fn close_period(&self, team: &str, period: Month, who: Who) -> Result<PeriodClosed, BillingError>;
    /// Notes to whom a bill was sent.
    async fn record_push(&self, team: &str, pushed: Pushed, who: Who) -> Result<(), BillingError>;
    /// The places in the log where a closed month's lines and its end stand: the first and the last of them.
    async fn written_at(&self, team: &str, period: Month) -> Result<Option<(Position, Position)>, BillingError>;
}

/// A team's bills, folded.
struct Loaded {
    billing: Billing,
    /// The revision of the last event; `None` before the first.
    revision: Option<Revision>,
    /// Where the last month was cut off.
    cut_off_at: Position,
}

/// The desk where bills are made.
pub struct BillingDesk {
    store: Arc<dyn EventStore>,
    read: Arc<ReadModels>,
    clock: Clock,
}

impl BillingDesk {
    /// A desk that goes by this computer's clock.
    pub fn new(store: Arc<dyn EventStore>, read: Arc<ReadModels>) -> Self {
        Self::with_clock(store, read, Arc::new(Timestamp::now))
    }

    /// One that goes by another clock.
    pub fn with_clock(store: Arc<dyn EventStore>, read: Arc<ReadModels>, clock: Clock) -> Self {
        Self { store, read, clock }
    }

    fn today(&self) -> Date {
        (self.clock)().to_zoned(TimeZone::UTC).date()
    }

    async fn load(&self, stream: &StreamName) -> Result<Loaded, BillingError> {
        let mut loaded = Loaded { billing: Billing::default(), revision: None, cut_off_at: Position::START };
        fold_stream(&*self.store, stream, Revision(0), |envelope| {
            loaded.revision = Some(envelope.revision);
            let event = BillingEvent::decode(&envelope).map_err(|error| BillingError::Damaged(error.to_string()))?;
            if let Some(event) = event {
                if matches!(event, BillingEvent::PeriodCutOff(_)) {
                    loaded.cut_off_at = envelope.position;
                }
                loaded.billing = evolve(std::mem::take(&mut loaded.billing), &event);
            }
            Ok::<_, BillingError>(())
        })
        .await?;
        Ok(loaded)
    }

    /// Appends what was decided, and takes it in.
    async fn append(
        &self,
        stream: &StreamName,
        mut loaded: Loaded,
        events: &[BillingEvent],
        who: &Who,
    ) -> Result<Loaded, BillingError> {
        let time = (self.clock)();
        for some in events.chunks(EVENTS_PER_APPEND) {
            let new = |event: &BillingEvent| {
                Ok(NewEvent {
                    id: EventId(Uuid::now_v7()),
                    kind: event.kind().into(),
                    schema: SCHEMA,
                    time,
                    actor: who.clone(),
                    correlation: Some(stream.clone()),
                    causation: None,
                    data: event.data().map_err(|error| BillingError::Damaged(error.to_string()))?,
                    private: None,
                })
            };
            let batch = some.iter().map(new).collect::<Result<Vec<_>, BillingError>>()?;
            let expected = loaded.revision.map_or(Expected::NoStream, Expected::Exactly);
            let appended = self.store.append(stream, expected, batch).await?;
            loaded.revision = Some(appended.revision);
            for event in some {
                if matches!(event, BillingEvent::PeriodCutOff(_)) {
                    loaded.cut_off_at = appended.position;
                }
                loaded.billing = evolve(loaded.billing, event);
            }
        }
        Ok(loaded)
    }

    /// Decides on the bills as they stand, and again when another writer was faster.
    async fn act(&self, team: &str, command: Command, who: &Who) -> Result<Loaded, BillingError> {
        let stream = StreamName::billing(team)?;
        for _ in 0..TRIES {
            let loaded = self.load(&stream).await?;
            let events = decide(&loaded.billing, command.clone())?;
            match self.append(&stream, loaded, &events, who).await {
                Err(BillingError::Store(StoreError::WrongExpectedRevision { .. })) => {}
                answer => return answer,
            }
        }
        Err(BillingError::Contended)
    }

    /// The bill of a month that is cut off, with everything in it.
    async fn final_invoice(&self, team: &str, period: Month, cut_off_at: Position) -> Result<Invoice, BillingError> {
        self.read.wait_for(cut_off_at, READ_WAIT).await?;
        self.read.invoice(team.to_owned(), period).await?.ok_or(BillingError::TooManyLines)
    }

    async fn cut_off(&self, team: &str, period: Month, who: &Who) -> Result<Loaded, BillingError> {
        // What was used before now is known when it is decided which month comes first.
        self.read.wait_for(self.store.head().await?, READ_WAIT).await?;
        let earliest = self.read.first_period(team.to_owned()).await?;
        let sums = self.read.billing_periods(team.to_owned()).await?;
        let lines = sums.iter().find(|sums| sums.period == period).map_or(0, |sums| sums.lines);
        // Asked before the cut-off: behind it there is no way back. Minima come on top, one a customer at most.
        if usize::try_from(lines).unwrap_or(usize::MAX) > MOST_LINES / 2 {
            return Err(BillingError::TooManyLines);
        }
        self.act(team, Command::CutOff { period, today: self.today(), earliest }, who).await
    }

    /// Closes every month that ended this many days ago, of every team. A team whose months do not close holds up no
    /// other one.
    async fn close_due(&self, after_days: u16) -> Result<(), BillingError> {
        for (team, first) in self.read.billed_teams().await? {
            if let Err(error) = self.close_due_of(&team, first, after_days).await {
                tracing::error!(%team, %error, "a month is due and was not closed; trying again in {LOOK_EVERY:?}");
                metrics::counter!("orchestra_billing_failures_total").increment(1);
            }
        }
        Ok(())
    }

    async fn close_due_of(&self, team: &str, first: Month, after_days: u16) -> Result<(), BillingError> {
        let stream = StreamName::billing(team)?;
        let who = Who { team: Some(team.to_owned()), ..Who::system("billing") };
        loop {
            let billing = self.load(&stream).await?.billing;
            let closing = billing.closing.map(|closing| closing.period);
            let due = closing.or_else(|| billing.cut_off.map(Month::next)).unwrap_or(first);
            let from = due.next().first_day().checked_add(i64::from(after_days).days());
            if from.is_err() || from.is_ok_and(|from| self.today() < from) || billing.closed.contains_key(&due) {
                return Ok(());
            }
            let closed = self.close_period(team, due, who.clone()).await?;
            tracing::info!(%team, period = %due, lines = closed.totals.lines, "a month is closed");
        }
    }

    /// Closes months in time, until `cancel` resolves. What fails is tried again at the next look.
    pub async fn close_in_time(self: Arc<Self>, after_days: u16, cancel: impl Future<Output = ()>) {
        let mut cancel = std::pin::pin!(cancel);
        loop {
            if let Err(error) = self.close_due(after_days).await {
                tracing::error!(%error, "which months are due is not known; looking again in {LOOK_EVERY:?}");
                metrics::counter!("orchestra_billing_failures_total").increment(1);
            }
            tokio::select! {
                () = tokio::time::sleep(LOOK_EVERY) => {}
                () = &mut cancel => return,
            }
        }
    }
}

#[async_trait]
impl BillingService for BillingDesk {
    async fn set_plan(&self, team: &str, plan: Plan, who: Who) -> Result<Billing, BillingError> {
        Ok(self.act(team, Command::SetPlan(plan), &who).await?.billing)
    }

    async fn close_period(&self, team: &str, period: Month, who: Who) -> Result<PeriodClosed, BillingError> {
        let mut loaded = self.load(&StreamName::billing(team)?).await?;
        if let Some(closed) = loaded.billing.closed.get(&period) {
            return Ok(closed.clone());
        }
        if !matches!(loaded.billing.closing, Some(Closing { period: at, .. }) if at == period) {
            loaded = self.cut_off(team, period, &who).await?;
        }
        let invoice = self.final_invoice(team, period, loaded.cut_off_at).await?;
        let digest = invoice.digest().map_err(|error| BillingError::Damaged(error.to_string()))?;
        let lines = invoice.numbered().collect();
        let through = self.act(team, Command::WriteLines { period, lines }, &who).await?.cut_off_at;
        let closed = PeriodClosed { period, through, totals: invoice.totals, digest, plans: invoice.plans };
        let loaded = self.act(team, Command::Close(Box::new(closed.clone())), &who).await?;
        // Somebody else may have been faster; what stands is the same, and is what stands.
        Ok(loaded.billing.closed.get(&period).cloned().unwrap_or(closed))
    }

    async fn record_push(&self, team: &str, pushed: Pushed, who: Who) -> Result<(), BillingError> {
        self.act(team, Command::RecordPush(pushed), &who).await.map(|_| ())
    }

    async fn written_at(&self, team: &str, period: Month) -> Result<Option<(Position, Position)>, BillingError> {
        let (mut first, mut last) = (None, None);
        fold_stream(&*self.store, &StreamName::billing(team)?, Revision(0), |envelope| {
            let event = BillingEvent::decode(&envelope).map_err(|error| BillingError::Damaged(error.to_string()))?;
            match event {
                Some(BillingEvent::InvoiceReady(ready)) if ready.period == period => {
                    first = first.or(Some(envelope.position));
                }
                Some(BillingEvent::PeriodClosed(closed)) if closed.period == period => {
                    first = first.or(Some(envelope.position));
                    last = Some(envelope.position);
                }
                Some(_) | None => {}
            }
            Ok::<_, BillingError>(())
        })
        .await?;
        Ok(first.zip(last))
    }
}

#[cfg(test)]
mod tests {
    use orchestra_events::TaskId;
    use orchestra_events::projections::project;
    use orchestra_events::store::memory::MemoryStore;
    use orchestra_events::task::{TaskEvent, TaskSpec};
    use serde_json::value::RawValue;

    use super::*;

    async fn append(store: &MemoryStore, stream: StreamName, kind: &str, data: Box<RawValue>) {
        let event = NewEvent {
            id: EventId(Uuid::now_v7()),
            kind: kind.into(),
            schema: SCHEMA,
            time: "2026-09-10T12:00:00Z".parse().unwrap(),
            actor: Who::system("test"),
            correlation: None,
            causation: None,
            data,
            private: None,
        };
        store.append(&stream, Expected::Any, vec![event]).await.unwrap();
    }

    async fn lives(store: &MemoryStore, team: &str) {
        let spec: TaskSpec = serde_json::from_value(serde_json::json!({
            "repo": "local:acme/api", "task": "Mend it", "model": "m", "harness": "builtin", "team": team, "budget": {},
            "branch": "b", "image": "default", "timeoutSeconds": 60, "callerBringsModelKey": false,
            "callerBringsGitToken": false,
        }))
        .unwrap();
        let created = TaskEvent::Created(Box::new(spec));
        let stream = StreamName::task(TaskId::from_uuid(Uuid::now_v7()));
        append(store, stream, created.kind(), created.data().unwrap()).await;
    }

    #[tokio::test]
    async fn a_team_whose_bills_do_not_read_holds_up_no_other_one() {
        let folder = tempfile::tempdir().unwrap();
        let store = Arc::new(MemoryStore::new());
        for team in ["a", "b", "c"] {
            lives(&store, team).await;
        }
        let odd = RawValue::from_string("{\"period\":7}".to_owned()).unwrap();
        append(&store, StreamName::billing("a").unwrap(), "period-cut-off", odd).await;
        let read = Arc::new(ReadModels::open(&folder.path().join("read.db")).unwrap());
        let projector = tokio::spawn(project(Arc::clone(&store) as _, Arc::clone(&read), std::future::pending()));
        read.wait_for(store.head().await.unwrap(), READ_WAIT).await.unwrap();
        let clock: Clock = Arc::new(|| "2026-10-20T12:00:00Z".parse().unwrap());
        let desk = BillingDesk::with_clock(Arc::clone(&store) as _, Arc::clone(&read), clock);
        desk.close_due(3).await.unwrap();
        let month: Month = "2026-09".parse().unwrap();
        for team in ["b", "c"] {
            let bills = desk.load(&StreamName::billing(team).unwrap()).await.unwrap().billing;
            assert!(bills.closed.contains_key(&month), "{team}: {bills:?}");
        }
        assert!(matches!(desk.load(&StreamName::billing("a").unwrap()).await, Err(BillingError::Damaged(_))));
        projector.abort();
    }
}
