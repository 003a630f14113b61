//! The meter of one task: what the gateway asks, the ledger answers, and the task's stream takes down.
//!
//! The ledger comes first. A call may be sent once its reservation is durable there; the task's `model-called` follows
//! while the provider is being asked, and is waited for before the call's end is booked, so that the task's stream
//! never ends a call that it has not begun.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use orchestra_events::ledger::Amount;
use orchestra_events::task::command::{Charge, Command};
use orchestra_events::task::state::{OpenCall, Task};
use orchestra_events::task::step::{MAX_CALLS, out_of_calls};
use orchestra_events::{CallId, Failure, NanoUsd, TaskId};
use orchestra_runtime::meter::{Ask, Meter, MeterError, Reservation, Retried, Settlement};
use orchestra_runtime::model::ResolvedModel;
use tokio::sync::watch;

use super::money::{book, reserve_request, to_meter_error};
use crate::ledger::Ledgers;
use crate::task::Recorder;

/// Time between two looks at whether calls are open.
const QUIET_LOOK: Duration = Duration::from_millis(50);

/// The meter of one run of one task.
pub struct TaskMeter {
    id: TaskId,
    task: Arc<Task>,
    /// The task's model as the gateway names it, and as the task does.
    model: String,
    ledgers: Ledgers,
    recorder: Recorder,
    calls: AtomicU32,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    open: HashMap<CallId, Open>,
    /// What this run's calls have cost: the task as the run began does not know of it.
    settled: Amount,
    refusal: Option<Failure>,
}

struct Open {
    model: String,
    /// What was set aside for it at first.
    reserved: Amount,
    /// Whether its beginning is in the task's stream, once that is known.
    begun: watch::Receiver<Option<bool>>,
}

impl TaskMeter {
    /// A meter for the attempt that the task is in.
    pub fn new(id: TaskId, task: &Arc<Task>, model: &ResolvedModel, ledgers: Ledgers, recorder: Recorder) -> Self {
        Self {
            id,
            task: Arc::clone(task),
            model: format!("{}/{}", model.provider, model.model_id),
            ledgers,
            recorder,
            calls: AtomicU32::new(task.current().map_or(0, |attempt| attempt.calls)),
            state: Mutex::default(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing under this lock can panic half-way through a change.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The refusal that no call has come after: what the run died of, if it did.
    pub fn refusal(&self) -> Option<Failure> {
        self.state().refusal.clone()
    }

    /// Waits until no call is open, or for so long.
    pub async fn quiet(&self, patience: Duration) {
        let until = tokio::time::Instant::now() + patience;
        while !self.state().open.is_empty() && tokio::time::Instant::now() < until {
            tokio::time::sleep(QUIET_LOOK).await;
        }
    }

    fn refuse(&self, failure: Failure) -> MeterError {
        self.state().refusal = Some(failure.clone());
        MeterError::Refused(Box::new(failure))
    }

    /// The name of the model as usage reports group it: as the task names it, where it is the task's own.
    fn reported_model(&self, asked: &str) -> String {
        if asked == self.model { self.task.spec.model.clone() } else { asked.to_owned() }
    }

    /// Waits until the call's beginning is in the task's stream: nothing ends there before it has begun. The call's
    /// model; `None` for one whose end is recorded.
    async fn begun(&self, call: CallId) -> Result<Option<String>, MeterError> {
        let beginning = self.state().open.get(&call).map(|open| (open.model.clone(), open.begun.clone()));
        let Some((model, mut begun)) = beginning else { return Ok(None) };
        match begun.wait_for(Option::is_some).await.ok().and_then(|begun| *begun) {
            Some(true) => Ok(Some(model)),
            // The reservation stays: whoever takes the task up next finds it, and books it in both places.
            Some(false) | None => Err(MeterError::Over),
        }
    }

    /// Writes the call's end into the task's stream.
    async fn ended(&self, call: CallId, command: Command) -> Result<(), MeterError> {
        self.recorder.record(command).await.map_err(|error| {
            tracing::warn!(task = %self.id, %call, %error, "a call's end is in the ledger and not yet in its task's stream");
            MeterError::Over
        })?;
        self.state().open.remove(&call);
        Ok(())
    }
}

#[async_trait]
impl Meter for TaskMeter {
    async fn reserve(&self, ask: Ask) -> Result<Reservation, MeterError> {
        if self.calls.fetch_add(1, Ordering::Relaxed) >= MAX_CALLS {
            return Err(self.refuse(out_of_calls()));
        }
        let model = self.reported_model(&ask.model);
        let mut request = reserve_request(self.id, &self.task, ask.call, &model, &ask.price, ask.quote);
        request.opening += self.state().settled;
        let reserved = match self.ledgers.reserve(request).await.map_err(to_meter_error) {
            Ok(reserved) => reserved,
            Err(MeterError::Refused(failure)) => return Err(self.refuse(*failure)),
            Err(error) => {
                // It may have been reserved all the same.
                let _ = self.ledgers.release(&self.task.spec.team, ask.call).await;
                return Err(error);
            }
        };
        let open = OpenCall {
            call: ask.call,
            reserved: reserved.reserved_nano_usd,
            reserved_tokens: reserved.reserved_tokens,
            max_output_tokens: reserved.max_output_tokens,
        };
        let (id, recorder, named) = (self.id, self.recorder.clone(), model.clone());
        let (tell, begun) = watch::channel(None);
        tokio::spawn(async move {
            let recorded = recorder.record(Command::RecordCall { open, model: named }).await;
            if let Err(error) = &recorded {
                tracing::warn!(task = %id, %error, "a call that is under way is not in its task's stream");
            }
            tell.send_replace(Some(recorded.is_ok()));
        });
        let mut state = self.state();
        // A call of another model, on the side, does not make good that the task's own was refused.
        if ask.model == self.model {
            state.refusal = None;
        }
        let amount = Amount { nano_usd: reserved.reserved_nano_usd, tokens: reserved.reserved_tokens };
        state.open.insert(ask.call, Open { model, reserved: amount, begun });
        Ok(Reservation {
            call: ask.call,
            max_output_tokens: reserved.max_output_tokens,
            nano_usd: reserved.reserved_nano_usd,
            tokens: reserved.reserved_tokens,
        })
    }

    fn trim(&self, call: CallId, nano_usd: NanoUsd, tokens: u64) {
        let given_back = Amount { nano_usd, tokens };
        let Some(reserved) = self.state().open.get(&call).map(|open| open.reserved) else { return };
        let to = reserved.saturating_sub(given_back);
        let (ledgers, team) = (self.ledgers.clone(), self.task.spec.team.clone());
        // A hint: nobody waits for it, and nothing hangs on it.
        tokio::spawn(async move {
            if let Err(error) = ledgers.trim(&team, call, to).await {
                tracing::debug!(%call, %error, "a reservation stays as large as it is");
            }
        });
    }

    async fn settle(&self, call: CallId, settlement: Settlement) -> Result<(), MeterError> {
        let charge = Charge {
            usage: settlement.usage,
            cost: settlement.cost,
            confirmed: settlement.confirmed,
            price: settlement.price.clone(),
        };
        let Some(model) = self.begun(call).await? else { return Ok(()) };
        book(&self.ledgers, &self.task.spec.team, call, &charge).await.map_err(to_meter_error)?;
        let cost = Amount { nano_usd: charge.cost, tokens: charge.usage.total() };
        let (stop_reason, failure) = (settlement.stop_reason, settlement.failure);
        self.ended(call, Command::RecordCallEnd { call, model, charge: Some(charge), stop_reason, failure }).await?;
        // Here, where it comes once however often the gateway asks.
        self.state().settled += cost;
        Ok(())
    }

    async fn release(&self, call: CallId, failure: Option<Failure>) -> Result<(), MeterError> {
        let Some(model) = self.begun(call).await? else { return Ok(()) };
        self.ledgers.release(&self.task.spec.team, call).await.map_err(to_meter_error)?;
        self.ended(call, Command::RecordCallEnd { call, model, charge: None, stop_reason: None, failure }).await
    }

    async fn retried(&self, call: CallId, retried: Retried) {
        let wait_ms = u64::try_from(retried.wait.as_millis()).unwrap_or(u64::MAX);
        let class = retried.class.as_str().to_owned();
        let command = Command::RecordRetry { call, attempt: retried.attempt, class, wait_ms };
        if let Err(error) = self.recorder.record(command).await {
            tracing::debug!(task = %self.id, %call, %error, "a retry is not recorded");
        }
    }
}
