//! What the steps and the meter ask of the ledger: set aside, book, give back, refund.
//!
//! The ledger goes first and its word counts: the task's stream records what the ledger has booked. A crash between
//! the two leaves a call that the task still thinks open; whoever takes the task up asks the ledger about it.

use std::time::Duration;

use orchestra_events::ledger::{Amount, Cap, Path, Quote, Refusal, Reserve, Settle, Settled};
use orchestra_events::task::command::{Charge, Command};
use orchestra_events::task::event::Harness;
use orchestra_events::task::state::{Ending, OpenCall, Task};
use orchestra_events::{CallId, Failure, FailureCode, NanoUsd, TaskId};
use orchestra_runtime::meter::MeterError;
use orchestra_runtime::model::ResolvedModel;
use sha2::{Digest, Sha256};

use super::{Failed, Workshop, agent};
use crate::ledger::{LedgerError, Ledgers, Settlement};

/// How often the ledger is asked to book a call's end before the task goes on without its answer: then the call stays
/// open there until the next start, at the most that it can cost.
const BOOK_TRIES: u32 = 40;
/// The wait between two of these.
const BOOK_PAUSE: Duration = Duration::from_millis(250);
/// How many ids of a call are tried: one that was given up before it was recorded is not used again.
const CALL_IDS: u32 = 16;

/// What the ledger is asked for a call of this task.
pub fn reserve_request(id: TaskId, task: &Task, call: CallId, model: &str, price: &str, quote: Quote) -> Reserve {
    let tokens = task.spent.usage.total().saturating_add(task.spent.unconfirmed_tokens);
    Reserve {
        call,
        task: id,
        path: Path::from(&*task.spec),
        own: task.spec.budget.into(),
        opening: Amount { nano_usd: task.spent.cost, tokens },
        campaign: task.spec.campaign,
        model: model.to_owned(),
        price: price.to_owned(),
        quote,
    }
}

/// The ledger's no, in the meter's words.
pub fn to_meter_error(error: LedgerError) -> MeterError {
    match error {
        LedgerError::Refused(Refusal::Exhausted { .. }) => MeterError::Refused(Box::new(error.into())),
        error => MeterError::Unavailable(error.to_string()),
    }
}

/// Books what a call has cost.
pub async fn book(ledgers: &Ledgers, team: &str, call: CallId, charge: &Charge) -> Result<(), LedgerError> {
    let Charge { usage, cost, confirmed, price } = charge.clone();
    ledgers.settle(team, Settle { call, usage, cost, confirmed, price }).await
}

/// What the ledger has booked for a call, if it has ended there. For whoever takes up what a crash has left: it reads
/// the stream.
pub async fn booked(ledgers: &Ledgers, team: &str, call: CallId) -> Option<Option<Charge>> {
    match ledgers.settlement_of(team, call).await.ok()?? {
        Settlement::Settled(settled) => {
            let Settled { usage, cost_nano_usd: cost, confirmed, price, .. } = *settled;
            Some(Some(Charge { usage, cost, confirmed, price }))
        }
        Settlement::Released => Some(None),
    }
}

/// The id of the next call of an attempt. Derived, so that whoever repeats the step after a crash finds the
/// reservation that the first try made.
fn call_id(id: TaskId, task: &Task, number: u32) -> CallId {
    let calls = task.current().map_or(0, |attempt| attempt.calls);
    let mut hash = Sha256::new();
    hash.update(id.uuid().as_bytes());
    for part in [task.attempt, calls, number] {
        hash.update(part.to_be_bytes());
    }
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&hash.finalize()[..16]);
    CallId::from_uuid(uuid::Builder::from_bytes(bytes).with_version(uuid::Version::Custom).into_uuid())
}

impl Workshop {
    /// Sets the money for the built-in agent's next call aside.
    pub(super) async fn set_aside(
        &self,
        id: TaskId,
        task: &Task,
        model: &ResolvedModel,
        quote: Quote,
        heard: usize,
    ) -> Result<Command, Failed> {
        for number in 0..CALL_IDS {
            let call = call_id(id, task, number);
            let request = reserve_request(id, task, call, &task.spec.model, model.price.id(), quote);
            match self.ledgers.reserve(request).await {
                Ok(reserved) => {
                    return Ok(Command::ReserveModel {
                        call,
                        heard,
                        reserved: reserved.reserved_nano_usd,
                        reserved_tokens: reserved.reserved_tokens,
                        max_output_tokens: reserved.max_output_tokens,
                    });
                }
                Err(LedgerError::Refused(Refusal::CallEnded(_))) => {}
                Err(error) => return Err(Failed::new(error.into())),
            }
        }
        Err(Failed::new(Failure::new(FailureCode::Internal, "No id is left for the next model call.")))
    }

    /// Ends a call in the ledger, and answers the charge that the task's stream records.
    pub(super) async fn end_call(&self, task: &Task, open: &OpenCall, charge: Option<Charge>) -> Option<Charge> {
        for _ in 0..BOOK_TRIES {
            let ended = match &charge {
                Some(charge) => book(&self.ledgers, &task.spec.team, open.call, charge).await,
                None => self.ledgers.release(&task.spec.team, open.call).await,
            };
            match ended {
                // The second: a call from before there was a ledger.
                Ok(()) | Err(LedgerError::Refused(Refusal::NoSuchCall(_))) => return charge,
                Err(error) => {
                    tracing::warn!(call = %open.call, %error, "the ledger does not book a call's end; trying again");
                    tokio::time::sleep(BOOK_PAUSE).await;
                }
            }
        }
        tracing::error!(call = %open.call, "a call's end is not in the ledger; it is booked at the next start");
        charge
    }

    /// Ends a call whose answer was lost: as the ledger has it, if it has ended there; else, if it may have been sent, at
    /// all that is still set aside for it.
    pub(super) async fn end_lost_call(&self, task: &Task, open: &OpenCall, sent: bool) -> Option<Charge> {
        let team = &task.spec.team;
        if let Some(booked) = booked(&self.ledgers, team, open.call).await {
            return booked;
        }
        // What was given back while the reply came may be somebody else's by now: the ledger's amount is the bound.
        let mut bound = agent::bound_charge(open);
        if let Ok(Some(reserved)) = self.ledgers.open_call(team, open.call).await {
            bound.cost = reserved.reserved_nano_usd;
            bound.usage.input_tokens = reserved.reserved_tokens;
        }
        let charge = self.end_call(task, open, sent.then_some(bound)).await;
        // Somebody may have ended it between the two looks; the ledger's word counts.
        booked(&self.ledgers, team, open.call).await.unwrap_or(charge)
    }

    /// Gives back what a step set aside that the task had no use for any more.
    pub async fn discarded(&self, task: &Task, command: &Command) {
        if let Command::ReserveModel { call, .. } = command {
            let open = task.current().is_some_and(|attempt| attempt.open_calls().any(|open| open.call == *call));
            if !open && let Err(error) = self.ledgers.release(&task.spec.team, *call).await {
                tracing::warn!(%call, %error, "a reservation that nobody uses stands until the next start");
            }
        }
    }

    /// Of what an attempt cost that ended so, what is not billed. It is in the ledger when this returns.
    pub(super) async fn refund(&self, id: TaskId, task: &Task, ending: &Ending) -> NanoUsd {
        // The ledger may have refunded more than the task's stream knows of: somebody died before that was written down.
        let known = match (ending, self.ledgers.refunded(&task.spec.team, id).await) {
            (Ending::Succeeded, _) => return NanoUsd::ZERO,
            (Ending::Failed(_) | Ending::Cancelled, Ok(refunded)) => refunded.max(task.refunded),
            (Ending::Failed(_) | Ending::Cancelled, Err(error)) => {
                tracing::error!(task = %id, %error, "what of a task is refunded is not known");
                return NanoUsd::ZERO;
            }
        };
        let (cost, usage) = task.current().map_or_else(Default::default, |attempt| (attempt.cost, attempt.usage));
        let to = task.refunded + cost;
        let left = known.saturating_sub(task.refunded);
        match ending {
            Ending::Failed(failure) if to > known && self.policy.refunds(failure.code) => {
                match self.ledgers.refund(&task.spec.team, id, known, to, usage, failure.code).await {
                    Ok(()) => cost,
                    Err(error) => {
                        tracing::error!(task = %id, %error, "an attempt is not refunded");
                        left
                    }
                }
            }
            Ending::Failed(_) | Ending::Cancelled | Ending::Succeeded => left,
        }
    }

    /// Whether the first call of such a task would fit under the caps of its scopes, before anything is done for it.
    pub async fn affordable(
        &self,
        path: Path,
        model: &ResolvedModel,
        harness: Harness,
        text: &str,
    ) -> Result<(), LedgerError> {
        let quote = opening_quote(model, harness, text);
        // The task's own cap is its own affair: it ends the task, and not the submission.
        self.ledgers.check(path, Cap::default(), quote).await.map(|_| ())
    }
}

/// The most that the first call of such a task can cost.
pub(crate) fn opening_quote(model: &ResolvedModel, harness: Harness, text: &str) -> Quote {
    match harness {
        Harness::Builtin => agent::first_quote(model, text),
        // What a program asks is not known before it asks.
        Harness::ClaudeCode | Harness::Codex | Harness::Opencode | Harness::Command => agent::least_quote(model, text),
    }
}
