//! A ledger's stream, read and written: fold from the last day's close, find how a call ended, append what was decided.

use jiff::Timestamp;
use jiff::civil::Date;
use jiff::tz::TimeZone;
use orchestra_events::ledger::event::SCHEMA;
use orchestra_events::ledger::{LedgerEvent, State, Zones, evolve};
use orchestra_events::store::{MAX_PAGE, fold_stream};
use orchestra_events::{
    Actor as Who, CallId, Direction, Envelope, EventId, EventStore, NanoUsd, NewEvent, Revision, StreamName, TaskId,
};
use uuid::Uuid;

use super::{LedgerError, Settlement};

/// Most events of a ledger that are looked at, newest first, for the end of a call that it no longer remembers.
pub const SEARCHED: usize = 20_000;

/// A ledger, folded.
pub(super) struct Loaded {
    pub state: State,
    /// The zones its budgets name.
    pub zones: Zones,
    /// The revision of the last event folded in; `None` before the first.
    pub revision: Option<Revision>,
    /// The day of that event, in UTC.
    pub day: Option<Date>,
}

/// Reads back to the last day's close and folds from there.
pub(super) async fn load(store: &dyn EventStore, stream: &StreamName) -> Result<Loaded, LedgerError> {
    let start = last_close(store, stream).await?.unwrap_or(Revision(0));
    let mut loaded = Loaded { state: State::default(), zones: Zones::utc(), revision: None, day: None };
    fold_stream(store, stream, start, |envelope| {
        if let Some(event) = decode(&envelope)? {
            loaded.state = evolve(std::mem::take(&mut loaded.state), &event);
        }
        loaded.revision = Some(envelope.revision);
        loaded.day = Some(day_of(envelope.time));
        Ok::<_, LedgerError>(())
    })
    .await?;
    for name in loaded.state.time_zones() {
        if let Err(error) = learn(&mut loaded.zones, name) {
            tracing::warn!(%stream, %error, "a budget's time zone is not known on this machine; UTC goes for it");
        }
    }
    Ok(loaded)
}

/// The civil day of a moment in UTC.
pub(super) fn day_of(time: Timestamp) -> Date {
    time.to_zoned(TimeZone::UTC).date()
}

/// Makes a zone known, if the system or the table in this program has it.
pub(super) fn learn(zones: &mut Zones, name: &str) -> Result<(), jiff::Error> {
    if !zones.knows(name) {
        zones.insert(name, TimeZone::get(name)?);
    }
    Ok(())
}

fn decode(envelope: &Envelope) -> Result<Option<LedgerEvent>, LedgerError> {
    LedgerEvent::decode(envelope).map_err(|error| LedgerError::Damaged(format!("{}: {error}", envelope.revision.0)))
}

/// Where the last `day-closed` stands. Pages are let go as they are read: a ledger without one may be long.
async fn last_close(store: &dyn EventStore, stream: &StreamName) -> Result<Option<Revision>, LedgerError> {
    let mut from = None;
    loop {
        let page = store.read_stream(stream, from, Direction::Backwards, MAX_PAGE).await?;
        let Some(oldest) = page.last().map(|event| event.revision) else { return Ok(None) };
        if let Some(closed) = page.iter().find(|event| &*event.kind == "day-closed") {
            return Ok(Some(closed.revision));
        }
        match oldest.0.checked_sub(1) {
            Some(next) => from = Some(Revision(next)),
            None => return Ok(None),
        }
    }
}

/// How a call ended, if its end is among the last [`SEARCHED`] events.
pub(super) async fn find_end(
    store: &dyn EventStore,
    stream: &StreamName,
    call: CallId,
) -> Result<Option<Settlement>, LedgerError> {
    let (mut from, mut seen, name) = (None, 0, call.to_string());
    while seen < SEARCHED {
        let page = store.read_stream(stream, from, Direction::Backwards, MAX_PAGE).await?;
        let Some(oldest) = page.last().map(|event| event.revision) else { break };
        for envelope in &page {
            // Most events are of other calls, and a search for the id is cheaper than reading each.
            if !envelope.data.get().contains(&name) {
                continue;
            }
            match decode(envelope)? {
                Some(LedgerEvent::Settled(settled)) if settled.call == call => {
                    return Ok(Some(Settlement::Settled(settled)));
                }
                Some(LedgerEvent::Released(released)) if released.call == call => {
                    return Ok(Some(Settlement::Released));
                }
                // Nothing before its reservation is about it.
                Some(LedgerEvent::Reserved(reserved)) if reserved.call == call => return Ok(None),
                _ => {}
            }
        }
        seen += page.len();
        match oldest.0.checked_sub(1) {
            Some(next) => from = Some(Revision(next)),
            None => break,
        }
    }
    Ok(None)
}

/// What of a task's charges was reversed, by the last [`SEARCHED`] events.
pub(super) async fn refunded(
    store: &dyn EventStore,
    stream: &StreamName,
    task: TaskId,
) -> Result<NanoUsd, LedgerError> {
    let (mut from, mut seen, mut sum) = (None, 0, NanoUsd::ZERO);
    while seen < SEARCHED {
        let page = store.read_stream(stream, from, Direction::Backwards, MAX_PAGE).await?;
        let Some(oldest) = page.last().map(|event| event.revision) else { break };
        for envelope in page.iter().filter(|envelope| &*envelope.kind == "refunded") {
            if let Some(LedgerEvent::Refunded(refunded)) = decode(envelope)?
                && refunded.task == task
            {
                sum += refunded.nano_usd;
            }
        }
        seen += page.len();
        match oldest.0.checked_sub(1) {
            Some(next) => from = Some(Revision(next)),
            None => break,
        }
    }
    Ok(sum)
}

/// Every team that has a ledger.
pub(super) async fn teams(store: &dyn EventStore) -> Result<Vec<String>, LedgerError> {
    let (mut teams, mut after) = (Vec::new(), None);
    loop {
        let page = store.streams("ledger", after.as_ref(), MAX_PAGE).await?;
        teams.extend(page.iter().filter_map(StreamName::ledger_team).map(str::to_owned));
        match page.into_iter().last() {
            Some(last) => after = Some(last),
            None => return Ok(teams),
        }
    }
}

/// An event that was decided, and what its envelope needs besides.
pub(super) struct Decided {
    pub event: LedgerEvent,
    pub who: Who,
    pub task: Option<TaskId>,
}

/// Envelopes for events that happen now.
pub(super) fn new_events(events: &[Decided], time: Timestamp) -> Result<Vec<NewEvent>, LedgerError> {
    let envelope = |decided: &Decided| {
        Ok(NewEvent {
            id: EventId(Uuid::now_v7()),
            kind: decided.event.kind().into(),
            schema: SCHEMA,
            time,
            actor: decided.who.clone(),
            correlation: decided.task.map(StreamName::task),
            causation: None,
            data: decided.event.data().map_err(|error| LedgerError::Damaged(error.to_string()))?,
            private: None,
        })
    };
    events.iter().map(envelope).collect()
}
