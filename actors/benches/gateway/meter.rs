//! Two meters: one that only counts, and one that asks a team's ledger.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use orchestra_actors::{LedgerError, Ledgers};
use orchestra_events::ledger::{Amount, Budget, Cap, Path, Refusal, Remaining, Reserve, Settle};
use orchestra_events::{Actor, CallId, EventStore, Failure, NanoUsd, TaskId};
use orchestra_runtime::meter::{Ask, Meter, MeterError, Reservation, Retried, Settlement};
use uuid::Uuid;

const TEAM: &str = "platform";

/// So much may be spent: checked at every call, reached by none.
const CAP: Cap = Cap { max_nano_usd: Some(NanoUsd::from_nanos(i64::MAX / 4)), max_tokens: Some(u64::MAX / 2) };

/// Sums in memory.
#[derive(Default)]
pub struct Sums(Mutex<Counted>);

#[derive(Default)]
struct Counted {
    open: HashMap<CallId, Reservation>,
    spent: NanoUsd,
}

fn fits(ask: &Ask, spent: NanoUsd) -> Result<Reservation, MeterError> {
    let left = CAP.max_nano_usd.map(|cap| cap.saturating_sub(spent));
    let fitted = ask.quote.fit(Remaining { nano_usd: left, tokens: CAP.max_tokens }).ok_or(MeterError::Over)?;
    Ok(Reservation {
        call: ask.call,
        max_output_tokens: fitted.max_output_tokens,
        nano_usd: fitted.nano_usd,
        tokens: fitted.tokens,
    })
}

#[async_trait]
impl Meter for Sums {
    async fn reserve(&self, ask: Ask) -> Result<Reservation, MeterError> {
        let mut counted = self.0.lock().unwrap();
        let reservation = fits(&ask, counted.spent)?;
        counted.open.insert(ask.call, reservation);
        Ok(reservation)
    }

    fn trim(&self, call: CallId, nano_usd: NanoUsd, tokens: u64) {
        if let Some(open) = self.0.lock().unwrap().open.get_mut(&call) {
            open.nano_usd = open.nano_usd.saturating_sub(nano_usd);
            open.tokens = open.tokens.saturating_sub(tokens);
        }
    }

    async fn settle(&self, call: CallId, settlement: Settlement) -> Result<(), MeterError> {
        let mut counted = self.0.lock().unwrap();
        if counted.open.remove(&call).is_some() {
            counted.spent += settlement.cost;
        }
        Ok(())
    }

    async fn release(&self, call: CallId, _: Option<Failure>) -> Result<(), MeterError> {
        self.0.lock().unwrap().open.remove(&call);
        Ok(())
    }

    async fn retried(&self, _: CallId, _: Retried) {}
}

/// One task's way to its team's ledger.
pub struct OfLedger {
    ledgers: Ledgers,
    task: TaskId,
    /// What is set aside for its open calls, as far as trimmed.
    open: Mutex<HashMap<CallId, Amount>>,
}

impl OfLedger {
    /// A new task's.
    pub fn new(ledgers: Ledgers) -> Self {
        Self { ledgers, task: TaskId::from_uuid(Uuid::now_v7()), open: Mutex::default() }
    }
}

/// Ledgers in this store, with caps on the team and the project, each per task, day and month.
pub async fn ledgers(store: Arc<dyn EventStore>) -> Ledgers {
    let ledgers = Ledgers::start(store);
    let budget = Budget { per_task: CAP, per_day: CAP, per_month: CAP, time_zone: Some("Europe/Zurich".to_owned()) };
    for scope in ["team:platform", "project:platform/infrastructure"] {
        ledgers.set_budget(scope.parse().unwrap(), budget.clone(), Actor::system("bench")).await.unwrap();
    }
    ledgers
}

fn refused(error: LedgerError) -> MeterError {
    match error {
        LedgerError::Refused(Refusal::Exhausted { .. }) => MeterError::Refused(Box::new(error.into())),
        other => MeterError::Unavailable(other.to_string()),
    }
}

#[async_trait]
impl Meter for OfLedger {
    async fn reserve(&self, ask: Ask) -> Result<Reservation, MeterError> {
        let request = Reserve {
            call: ask.call,
            task: self.task,
            path: Path { project: Some("infrastructure".to_owned()), ..Path::team(TEAM) },
            own: CAP,
            opening: Amount::ZERO,
            campaign: None,
            model: ask.model,
            price: ask.price,
            quote: ask.quote,
        };
        let reserved = self.ledgers.reserve(request).await.map_err(refused)?;
        let amount = Amount { nano_usd: reserved.reserved_nano_usd, tokens: reserved.reserved_tokens };
        self.open.lock().unwrap().insert(ask.call, amount);
        Ok(Reservation {
            call: ask.call,
            max_output_tokens: reserved.max_output_tokens,
            nano_usd: amount.nano_usd,
            tokens: amount.tokens,
        })
    }

    fn trim(&self, call: CallId, nano_usd: NanoUsd, tokens: u64) {
        let mut open = self.open.lock().unwrap();
        let Some(amount) = open.get_mut(&call) else { return };
        *amount = amount.saturating_sub(Amount { nano_usd, tokens });
        let (ledgers, to) = (self.ledgers.clone(), *amount);
        // A hint: whether it arrives, nobody waits for.
        tokio::spawn(async move { drop(ledgers.trim(TEAM, call, to).await) });
    }

    async fn settle(&self, call: CallId, settlement: Settlement) -> Result<(), MeterError> {
        self.open.lock().unwrap().remove(&call);
        let Settlement { usage, cost, confirmed, price, .. } = settlement;
        let settle = Settle { call, usage, cost, confirmed, price };
        self.ledgers.settle(TEAM, settle).await.map_err(|error| MeterError::Unavailable(error.to_string()))
    }

    async fn release(&self, call: CallId, _: Option<Failure>) -> Result<(), MeterError> {
        self.open.lock().unwrap().remove(&call);
        self.ledgers.release(TEAM, call).await.map_err(|error| MeterError::Unavailable(error.to_string()))
    }

    async fn retried(&self, _: CallId, _: Retried) {}
}
