//! After a crash, before anything goes on: reservations that no task will end by itself.
//!
//! A call stands in two streams, and a crash can leave it in one of them. Where the task's stream knows it as open,
//! the task ends it when it goes on. What is left is ended here: as the task's stream says, where it says how the call
//! ended; for nothing, where it cannot have been sent; at its bound, where it may have been.

use std::sync::Arc;
use std::time::Duration;

use orchestra_events::ledger::Reserved;
use orchestra_events::store::read_whole_stream;
use orchestra_events::task::command::Charge;
use orchestra_events::task::conversation::Usage;
use orchestra_events::task::event::{Harness, TaskEvent};
use orchestra_events::task::state::Task;
use orchestra_events::{Actor, CallId, EventStore, Failure, FailureCode, StreamName, TaskId};

use crate::journal::{self, Loaded};
use crate::ledger::Ledgers;
use crate::workshop::money::book;

/// How often a call is tried to be ended.
const TRIES: u32 = 5;
/// The wait between two tries.
const PAUSE: Duration = Duration::from_millis(100);

/// How the task's stream says that a call ended.
enum Told {
    /// It cost this.
    Charged(Charge),
    /// It cost nothing.
    Free,
    /// It says nothing.
    Nothing,
}

/// Ends every reservation that would otherwise stand for good. Answers how many there were.
pub async fn settle_orphans(store: &Arc<dyn EventStore>, ledgers: &Ledgers) -> Result<usize, String> {
    let mut ended = 0;
    for team in ledgers.teams().await.map_err(|error| error.to_string())? {
        for open in ledgers.open_calls(&team).await.map_err(|error| error.to_string())? {
            let mut settled = settle(store, ledgers, &team, &open).await;
            for _ in 1..TRIES {
                if settled.is_ok() {
                    break;
                }
                // A caller may speak to the task in the same moment.
                tokio::time::sleep(PAUSE).await;
                settled = settle(store, ledgers, &team, &open).await;
            }
            ended += usize::from(settled?);
        }
    }
    Ok(ended)
}

async fn settle(store: &Arc<dyn EventStore>, ledgers: &Ledgers, team: &str, open: &Reserved) -> Result<bool, String> {
    let text = |error: &dyn std::fmt::Display| error.to_string();
    let loaded = journal::load(&**store, open.task).await.map_err(|error| text(&error))?;
    let Some(Loaded { state: task, revision }) = loaded else {
        ledgers.release(team, open.call).await.map_err(|error| text(&error))?;
        return Ok(true);
    };
    if is_open(&task, open.call) {
        return Ok(false);
    }
    match told(&**store, open.task, open.call).await? {
        Told::Charged(charge) => {
            book(ledgers, team, open.call, &charge).await.map_err(|error| text(&error))?;
        }
        Told::Free => ledgers.release(team, open.call).await.map_err(|error| text(&error))?,
        // The built-in agent sends nothing before its stream has the call.
        Told::Nothing if task.spec.harness == Harness::Builtin => {
            ledgers.release(team, open.call).await.map_err(|error| text(&error))?;
        }
        Told::Nothing => {
            let charge = Charge {
                usage: Usage { input_tokens: open.reserved_tokens, ..Usage::default() },
                cost: open.reserved_nano_usd,
                confirmed: false,
                price: "reservation".to_owned(),
            };
            let message = "The server was restarted while the model answered.";
            let events = [
                TaskEvent::ModelCalled {
                    call: open.call,
                    model: open.model.clone(),
                    reserved_nano_usd: open.reserved_nano_usd,
                    reserved_tokens: open.reserved_tokens,
                    max_output_tokens: open.max_output_tokens,
                },
                TaskEvent::TokensCharged {
                    call: open.call,
                    model: open.model.clone(),
                    usage: charge.usage,
                    cost_nano_usd: charge.cost,
                    confirmed: charge.confirmed,
                    price: charge.price.clone(),
                    stop_reason: None,
                },
                TaskEvent::ModelCallFailed {
                    call: open.call,
                    failure: Failure::new(FailureCode::NetworkDropped, message),
                },
            ];
            // The task's stream first: a crash between the two is found by the next look, which books what stands here.
            journal::append(&**store, open.task, revision, &events, &Actor::system("recovery"))
                .await
                .map_err(|error| text(&error))?;
            book(ledgers, team, open.call, &charge).await.map_err(|error| text(&error))?;
        }
    }
    Ok(true)
}

fn is_open(task: &Task, call: CallId) -> bool {
    task.current().is_some_and(|attempt| attempt.open_calls().any(|open| open.call == call))
}

async fn told(store: &dyn EventStore, task: TaskId, wanted: CallId) -> Result<Told, String> {
    let mut told = Told::Nothing;
    let events = read_whole_stream(store, &StreamName::task(task)).await.map_err(|error| error.to_string())?;
    for envelope in events {
        match TaskEvent::decode(&envelope) {
            Ok(Some(TaskEvent::TokensCharged { call, usage, cost_nano_usd, confirmed, price, .. }))
                if call == wanted =>
            {
                return Ok(Told::Charged(Charge { usage, cost: cost_nano_usd, confirmed, price }));
            }
            Ok(Some(TaskEvent::ModelCallFailed { call, .. })) if call == wanted => told = Told::Free,
            _ => {}
        }
    }
    Ok(told)
}
