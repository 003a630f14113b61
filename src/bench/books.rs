//! What seeded tasks have cost, in the ledgers of their teams: usage is read from those.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures_util::StreamExt as _;
use futures_util::stream;
use jiff::Timestamp;
use jiff::civil::Date;
use jiff::tz::TimeZone;
use orchestra_events::ledger::event::SCHEMA;
use orchestra_events::ledger::{
    Amount, Cap, Command, LedgerEvent, Path, Reserved, Settled, State, Zones, decide, evolve,
};
use orchestra_events::store::Expected;
use orchestra_events::task::conversation::Usage;
use orchestra_events::{Actor, CallId, EventId, EventStore, NanoUsd, NewEvent, StreamName, TaskId};

/// Ledgers written at the same time.
const IN_FLIGHT: usize = 64;
/// Events of a ledger in one append: as many as go into one comfortably, a checkpoint among them.
const BATCH: usize = 500;

/// One settled call.
pub struct Charge {
    /// The task that made it.
    pub task: TaskId,
    /// The call.
    pub call: CallId,
    /// Where the task stands.
    pub path: Path,
    /// The model.
    pub model: String,
    /// When.
    pub time: Timestamp,
    /// The tokens.
    pub usage: Usage,
    /// What they cost.
    pub cost: NanoUsd,
    /// The ids of its two events and of one more.
    pub ids: [EventId; 3],
}

impl Charge {
    fn day(&self) -> Date {
        self.time.to_zoned(TimeZone::UTC).date()
    }

    fn reserved(&self) -> LedgerEvent {
        LedgerEvent::Reserved(Box::new(Reserved {
            call: self.call,
            task: self.task,
            path: self.path.clone(),
            day: self.day(),
            days: BTreeMap::new(),
            reserved_nano_usd: self.cost,
            reserved_tokens: self.usage.total(),
            max_output_tokens: self.usage.output_tokens,
            model: self.model.clone(),
            price: "bench".to_owned(),
            own: Cap::default(),
            opening: Amount::ZERO,
            campaign: None,
        }))
    }

    fn settled(&self) -> LedgerEvent {
        LedgerEvent::Settled(Box::new(Settled {
            call: self.call,
            task: self.task,
            usage: self.usage,
            cost_nano_usd: self.cost,
            confirmed: true,
            price: "bench".to_owned(),
        }))
    }

    fn stamped(&self, event: &LedgerEvent, id: EventId) -> anyhow::Result<NewEvent> {
        Ok(NewEvent {
            id,
            kind: event.kind().into(),
            schema: SCHEMA,
            time: self.time,
            actor: Actor { team: Some(self.path.team.clone()), ..Actor::system("ledger") },
            correlation: Some(StreamName::task(self.task)),
            causation: None,
            data: event.data()?,
            private: None,
        })
    }
}

/// A team's ledger, in the order of its days. The last day but one is closed, so that a server folds no more than the last.
async fn write(store: &dyn EventStore, team: &str, charges: Vec<Charge>) -> anyhow::Result<usize> {
    let stream = StreamName::ledger(team)?;
    let last = charges.last().map(Charge::day);
    let (mut state, mut day, mut batch, mut count) = (State::default(), None::<Date>, Vec::new(), 0);
    for charge in &charges {
        let mut events = Vec::new();
        if let Some(before) = day.filter(|before| Some(*before) != last && Some(charge.day()) == last) {
            let closed = decide(&state, Command::CloseDay(before), &Zones::utc())?;
            events.extend(closed.into_iter().map(|event| (event, charge.ids[0])));
        }
        events.extend([(charge.reserved(), charge.ids[1]), (charge.settled(), charge.ids[2])]);
        for (event, id) in events {
            batch.push(charge.stamped(&event, id)?);
            state = evolve(state, &event);
        }
        day = Some(charge.day());
        if batch.len() >= BATCH {
            count += batch.len();
            store.append(&stream, Expected::Any, std::mem::take(&mut batch)).await?;
        }
    }
    if !batch.is_empty() {
        count += batch.len();
        store.append(&stream, Expected::Any, batch).await?;
    }
    Ok(count)
}

/// Writes every team's ledger; how many events that were.
pub async fn write_all(store: &Arc<dyn EventStore>, charges: BTreeMap<String, Vec<Charge>>) -> anyhow::Result<usize> {
    let mut ledgers = stream::iter(charges)
        .map(|(team, mut charges)| async move {
            charges.sort_by_key(|charge| charge.time);
            write(&**store, &team, charges).await
        })
        .buffer_unordered(IN_FLIGHT);
    let mut count = 0;
    while let Some(written) = ledgers.next().await {
        count += written?;
    }
    Ok(count)
}
