//! The actor of one webhook: reads the log after where it stands, tries to deliver, and writes down what came of it.
//!
//! It knows nothing that it has not folded from its own stream. What was tried and is not written down yet when it dies
//! is tried again, under the same id: receivers may get a message twice, and never none.

pub(crate) mod attempt;
pub(crate) mod feed;
pub mod service;
pub(crate) mod supervisor;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use actix::prelude::*;
use jiff::Timestamp;
use orchestra_events::webhook::command::GONE;
use orchestra_events::webhook::event::MAX_RECORDED;
use orchestra_events::webhook::state::Status;
use orchestra_events::webhook::{Attempt, Command, DisabledWhy, Refusal, Webhook, decide};
use orchestra_events::{Actor as Who, Position, StoreError, StreamName, WebhookId};

use self::attempt::{Means, Try};
use self::feed::{Found, READ_AHEAD};
use crate::journal::{self, Loaded};

/// Commands that may wait for one webhook: those of people who work on it.
pub const MAILBOX: usize = 32;
/// Messages under way to one receiver.
pub const CONCURRENCY: usize = 8;
/// Of those, events that are sent again by hand, so that what happens now does not wait for them.
const REPLAY_CONCURRENCY: usize = 4;
/// What was tried is written down after this, or when there is a whole event of it.
const RECORD_EVERY: Duration = Duration::from_secs(1);
/// Attempts that are not written down yet; with more, the store does not keep up and nothing new is begun.
const MAX_UNRECORDED: usize = 1_000;
/// Events that are being retried; with more, nothing new is begun until some of them have come to an end.
const MAX_PENDING: usize = 10_000;
/// A webhook that wants little of the log writes down now and then how far it has looked, so that the next process need
/// not look at all of it again.
const CHECKPOINT: u64 = 10_000;
/// The wait before something is tried again that the store was in the way of.
const PAUSE: Duration = Duration::from_millis(500);
/// The longest wait of a timer: clocks are set.
const LONGEST_TIMER: Duration = Duration::from_secs(60 * 60);

/// Why a command to a webhook was not recorded.
pub type JournalError = journal::JournalError<Refusal>;

/// What a webhook's actor tells its supervisor when it goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Departure {
    /// The webhook is gone, or the server ends.
    Done,
    /// It panicked, its stream does not read, or another writer has it.
    Died,
}

/// Where an actor reports its departure.
pub(crate) type Farewell = Box<dyn FnOnce(WebhookId, Departure) + Send>;

/// A part of the log on its way to the receiver.
#[derive(Debug, Default)]
struct Line {
    /// What is wanted and was not tried yet.
    queue: VecDeque<Found>,
    /// Up to where the log was looked at.
    looked: Position,
    /// First attempts that are under way.
    in_flight: BTreeMap<Position, StreamName>,
    /// The next page is being read.
    feeding: bool,
}

impl Line {
    fn after(looked: Position) -> Self {
        Self { looked, ..Self::default() }
    }

    /// Everything wanted up to here was tried.
    fn through(&self) -> Position {
        let first = self.queue.front().map(|found| found.position);
        let first = first.into_iter().chain(self.in_flight.keys().next().copied()).min();
        first.map_or(self.looked, |first| Position(first.0.saturating_sub(1)))
    }

    /// The first whose stream is not under way.
    fn take(&mut self) -> Option<Found> {
        let busy = |found: &Found| self.in_flight.values().any(|stream| *stream == found.stream);
        // Whoever comes first of its stream also comes before the others of it.
        let index = self.queue.iter().position(|found| !busy(found))?;
        let found = self.queue.remove(index)?;
        self.in_flight.insert(found.position, found.stream.clone());
        Some(found)
    }

    fn is_hungry(&self) -> bool {
        !self.feeding && self.queue.len() < READ_AHEAD
    }
}

/// A replay that is under way.
#[derive(Debug)]
struct Replaying {
    line: Line,
    /// Its last position.
    to: Position,
    /// Which it is of all the webhook's replays.
    number: u64,
}

/// Which part of the log an attempt belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Origin {
    Live,
    Replay,
    Pending,
}

/// The actor of one webhook.
pub(crate) struct WebhookActor {
    id: WebhookId,
    means: Means,
    /// As recorded.
    loaded: Option<Loaded<Webhook>>,
    /// The same with what was tried since.
    standing: Option<Webhook>,
    unrecorded: Vec<Attempt>,
    live: Line,
    /// What is sent again.
    replay: Option<Replaying>,
    retrying: BTreeSet<Position>,
    pinging: bool,
    /// Pages that were asked for before this number grew are of another webhook, as it were.
    generation: u64,
    recording: bool,
    timer: Option<SpawnHandle>,
    draining: bool,
    farewell: Option<Farewell>,
    departure: Departure,
}

/// Something asked of a webhook; the answer is how it stands then.
#[derive(Message)]
#[rtype(result = "Result<Arc<Webhook>, AskError>")]
pub(crate) struct Ask {
    /// What.
    pub command: Command,
    /// By whom.
    pub who: Who,
}

/// Send a test.
#[derive(Message)]
#[rtype(result = "Result<Attempt, AskError>")]
pub(crate) struct Ping;

/// Finish what is under way and begin nothing.
#[derive(Message, Clone, Copy)]
#[rtype(result = "()")]
pub(crate) struct Drain;

#[derive(Message)]
#[rtype(result = "()")]
struct Proceed;

#[derive(Message)]
#[rtype(result = "()")]
struct Record;

/// Why something asked was not done.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum AskError {
    /// It was not recorded.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// It is being done already, or the server is about to end.
    #[error("the webhook is busy; try again")]
    Busy,
}

fn who(team: Option<&str>) -> Who {
    Who { team: team.map(str::to_owned), ..Who::system("webhooks") }
}

impl WebhookActor {
    pub fn new(id: WebhookId, means: Means, farewell: Farewell) -> Self {
        Self {
            id,
            means,
            loaded: None,
            standing: None,
            unrecorded: Vec::new(),
            live: Line::default(),
            replay: None,
            retrying: BTreeSet::new(),
            pinging: false,
            generation: 0,
            recording: false,
            timer: None,
            draining: false,
            farewell: Some(farewell),
            departure: Departure::Died,
        }
    }

    fn depart(&mut self, ctx: &mut Context<Self>, departure: Departure) {
        self.departure = departure;
        ctx.stop();
    }

    fn under_way(&self) -> usize {
        let replayed = self.replay.as_ref().map_or(0, |replay| replay.line.in_flight.len());
        self.live.in_flight.len() + replayed + self.retrying.len()
    }

    /// Takes over what is recorded, and begins to read the log anew where the webhook is for something else now.
    fn stands(&mut self, loaded: Loaded<Webhook>) {
        let before = self.loaded.as_ref().map(|loaded| loaded.state.spec.clone());
        let mut standing = (*loaded.state).clone();
        self.unrecorded.iter().for_each(|attempt| standing.attempted(attempt));
        if before.as_ref() != Some(&standing.spec) {
            self.generation += 1;
            self.live.queue.clear();
            self.live.feeding = false;
            // What is under way comes again and is passed over; what was looked at may be wanted now.
            self.live.looked = standing.through;
            self.replay = None;
        }
        match standing.replays.front() {
            None => self.replay = None,
            Some(replay) if self.replay.as_ref().is_none_or(|now| now.number != standing.replayed) => {
                let (line, number) = (Line::after(replay.through), standing.replayed);
                self.replay = Some(Replaying { line, to: replay.to, number });
            }
            Some(_) => {}
        }
        self.loaded = Some(loaded);
        self.standing = Some(standing);
    }

    /// Does what can be done now, and sets the timer for the rest.
    fn proceed(&mut self, ctx: &mut Context<Self>) {
        if let Some(timer) = self.timer.take() {
            ctx.cancel_future(timer);
        }
        let Some(standing) = &self.standing else { return self.depart(ctx, Departure::Done) };
        if standing.status == Status::Removed || self.draining {
            if self.under_way() == 0 && !self.pinging && self.unrecorded.is_empty() {
                self.depart(ctx, Departure::Done);
            }
            return;
        }
        if standing.status != Status::Enabled || self.unrecorded.len() >= MAX_UNRECORDED {
            return;
        }
        let now = Timestamp::now();
        let wake = match standing.pause_until.filter(|until| *until > now) {
            Some(until) => Some(until),
            None => self.send_what_is_due(now, ctx),
        };
        self.feed(ctx);
        if let Some(wake) = wake {
            let wait = Duration::try_from(wake.duration_since(now)).unwrap_or_default();
            self.timer = Some(ctx.run_later(wait.min(LONGEST_TIMER), |actor, ctx| actor.proceed(ctx)));
        }
    }

    /// Begins attempts, as many as there is room for; answers when the next one is due that is not yet.
    fn send_what_is_due(&mut self, now: Timestamp, ctx: &mut Context<Self>) -> Option<Timestamp> {
        let standing = self.standing.as_ref()?;
        let (struggling, most) = (standing.is_struggling(), if standing.is_struggling() { 1 } else { CONCURRENCY });
        let mut room = most.saturating_sub(self.under_way());
        let due: Vec<Position> = standing
            .pending
            .iter()
            .filter(|(position, pending)| pending.next <= now && !self.retrying.contains(*position))
            .map(|(position, _)| *position)
            .take(room)
            .collect();
        for position in due {
            self.begin(Origin::Pending, position, now, ctx);
            room -= 1;
        }
        let standing = self.standing.as_ref()?;
        let waits = standing.pending.len();
        if waits < MAX_PENDING && (!struggling || waits == 0) {
            while room > 0 {
                let Some(found) = self.next_found() else { break };
                self.begin(found.0, found.1.position, now, ctx);
                room -= 1;
            }
        }
        let standing = self.standing.as_ref()?;
        let later = standing.pending.iter().filter(|(position, _)| !self.retrying.contains(*position));
        later.map(|(_, pending)| pending.next).filter(|next| *next > now).min()
    }

    fn next_found(&mut self) -> Option<(Origin, Found)> {
        let replayed = self.replay.as_ref().map_or(0, |replay| replay.line.in_flight.len());
        let room_for_replay = replayed < REPLAY_CONCURRENCY;
        let live_first = self.live.in_flight.len() < CONCURRENCY - REPLAY_CONCURRENCY || !room_for_replay;
        let live = |actor: &mut Self| actor.live.take().map(|found| (Origin::Live, found));
        let replay = |actor: &mut Self| {
            let replay = actor.replay.as_mut().filter(|_| room_for_replay)?;
            replay.line.take().map(|found| (Origin::Replay, found))
        };
        if live_first { live(self).or_else(|| replay(self)) } else { replay(self).or_else(|| live(self)) }
    }

    fn begin(&mut self, origin: Origin, position: Position, now: Timestamp, ctx: &mut Context<Self>) {
        let Some(standing) = &self.standing else { return };
        let mut tried = Try::new(self.id, standing, now);
        if let Some(pending) = standing.pending.get(&position) {
            (tried.number, tried.first_at) = (pending.attempts + 1, Some(pending.first_at));
        }
        if origin == Origin::Pending {
            self.retrying.insert(position);
        }
        let means = self.means.clone();
        // A task of its own: what panics in it is one attempt, which is made again.
        let attempt = actix_rt::spawn(async move { means.attempt(tried, position).await });
        ctx.spawn(
            attempt.into_actor(self).map(move |attempt, actor, ctx| actor.tried(origin, position, attempt.ok(), ctx)),
        );
    }

    /// Takes in what became of an attempt.
    fn tried(&mut self, origin: Origin, position: Position, attempt: Option<Attempt>, ctx: &mut Context<Self>) {
        let line = match origin {
            Origin::Live => Some(&mut self.live),
            Origin::Replay => self.replay.as_mut().map(|replay| &mut replay.line),
            Origin::Pending => {
                self.retrying.remove(&position);
                None
            }
        };
        let stream = line.and_then(|line| line.in_flight.remove(&position));
        let Some(attempt) = attempt else {
            tracing::error!(webhook = %self.id, position = position.0, "an attempt panicked; it is made again");
            // What is pending is due again by itself.
            let line = match origin {
                Origin::Live => Some(&mut self.live),
                Origin::Replay => self.replay.as_mut().map(|replay| &mut replay.line),
                Origin::Pending => None,
            };
            if let (Some(line), Some(stream)) = (line, stream) {
                line.queue.push_front(Found { position, stream });
            }
            ctx.run_later(PAUSE, |actor, ctx| actor.proceed(ctx));
            return;
        };
        self.keep(attempt, ctx);
        self.proceed(ctx);
    }

    fn keep(&mut self, attempt: Attempt, ctx: &mut Context<Self>) {
        let gone = attempt.outcome.status() == Some(GONE);
        if let Some(standing) = &mut self.standing {
            standing.attempted(&attempt);
            if gone && standing.status == Status::Enabled {
                // What is decided when it is recorded holds from now on.
                standing.status = Status::Disabled(DisabledWhy::Gone);
            }
        }
        self.unrecorded.push(attempt);
        if self.unrecorded.len() >= MAX_RECORDED || gone {
            ctx.notify(Record);
        } else if !self.recording {
            self.recording = true;
            let wait = if self.draining { Duration::ZERO } else { RECORD_EVERY };
            ctx.run_later(wait, |_, ctx| ctx.notify(Record));
        }
    }

    /// Has further pages read where there is room for what they hold.
    fn feed(&mut self, ctx: &mut Context<Self>) {
        let Some(standing) = &self.standing else { return };
        let (spec, own, generation) = (standing.spec.clone(), StreamName::webhook(self.id), self.generation);
        if self.live.is_hungry() {
            self.live.feeding = true;
            let (means, spec, own, after) = (self.means.clone(), spec.clone(), own.clone(), self.live.looked);
            let next = async move { feed::next_page(&*means.store, &means.owners, &own, &spec, after).await };
            ctx.spawn(next.into_actor(self).map(move |page, actor, ctx| {
                if generation == actor.generation {
                    actor.live.feeding = false;
                    actor.fed(page, ctx);
                }
            }));
        }
        let Some(Replaying { line, to, number }) = &mut self.replay else { return };
        if line.is_hungry() && line.looked < *to {
            line.feeding = true;
            let (means, after, number) = (self.means.clone(), line.looked, *number);
            let next = async move { feed::page(&*means.store, &means.owners, &own, &spec, after).await };
            ctx.spawn(next.into_actor(self).map(move |page, actor, ctx| {
                let same = actor.replay.as_ref().is_some_and(|replay| replay.number == number);
                if generation == actor.generation && same {
                    actor.fed_replay(page, ctx);
                }
            }));
        }
    }

    fn fed(&mut self, page: Result<(Vec<Found>, Position), StoreError>, ctx: &mut Context<Self>) {
        match page {
            Ok((found, through)) => {
                let Some(standing) = &self.standing else { return };
                let new = |found: &Found| {
                    !standing.has_settled(found.position) && !self.live.in_flight.contains_key(&found.position)
                };
                let new: Vec<_> = found.into_iter().filter(new).collect();
                self.live.queue.extend(new);
                self.live.looked = through;
                self.proceed(ctx);
                self.checkpoint(CHECKPOINT, ctx);
            }
            Err(error) => self.again_later(&error, ctx),
        }
    }

    fn fed_replay(&mut self, page: Result<(Vec<Found>, Position), StoreError>, ctx: &mut Context<Self>) {
        let Some(Replaying { line, to, .. }) = &mut self.replay else { return };
        line.feeding = false;
        match page {
            Ok((found, through)) => {
                let to = *to;
                // There may be no such positions yet: then the end of the log is the end.
                line.looked = if through <= line.looked { to } else { through.min(to) };
                line.queue.extend(found.into_iter().filter(|found| found.position <= to));
                let over = line.through() >= to;
                self.proceed(ctx);
                if over {
                    ctx.notify(Record);
                }
            }
            Err(error) => self.again_later(&error, ctx),
        }
    }

    fn again_later(&mut self, error: &StoreError, ctx: &mut Context<Self>) {
        if *error == StoreError::Closed {
            return self.depart(ctx, Departure::Done);
        }
        tracing::warn!(webhook = %self.id, %error, "the log does not read; trying again");
        ctx.run_later(PAUSE, |actor, ctx| actor.proceed(ctx));
    }

    /// Writes down how far the log was looked at, where that is far enough.
    fn checkpoint(&mut self, far: u64, ctx: &mut Context<Self>) {
        let recorded = self.loaded.as_ref().map_or(Position::START, |loaded| loaded.state.through);
        if self.live.through().0 >= recorded.0.saturating_add(far) {
            ctx.notify(Record);
        }
    }

    /// How far the log has been gone through with these attempts still unrecorded.
    fn reached(line: &Line, left: &[Attempt], recorded: Position) -> Position {
        let above = left.iter().filter_map(|attempt| attempt.position).filter(|position| *position > recorded).min();
        above.map_or(line.through(), |first| line.through().min(Position(first.0 - 1)))
    }

    /// Decides and appends while nothing else is handled.
    fn decide_and_append(
        &mut self,
        command: Command,
        who: Who,
    ) -> ResponseActFuture<Self, Result<Arc<Webhook>, JournalError>> {
        let Some(loaded) = self.loaded.clone() else {
            return Box::pin(fut::ready(Err(JournalError::Refused(Refusal::NoSuchWebhook))));
        };
        let events = match decide(Some(&loaded.state), command) {
            Err(refusal) => return Box::pin(fut::ready(Err(JournalError::Refused(refusal)))),
            Ok(events) if events.is_empty() => return Box::pin(fut::ready(Ok(loaded.state))),
            Ok(events) => events,
        };
        let (id, store) = (self.id, Arc::clone(&self.means.store));
        let append = async move {
            let appended = journal::append(&*store, id, loaded.revision, &events, &who).await;
            appended.map(|appended| loaded.after::<WebhookId>(&events, appended.revision))
        };
        Box::pin(append.into_actor(self).map(|appended, actor, ctx| match appended {
            Ok(loaded) => {
                let state = Arc::clone(&loaded.state);
                actor.stands(loaded);
                Ok(state)
            }
            Err(error) => {
                if let JournalError::Store(StoreError::WrongExpectedRevision { .. }) = &error {
                    tracing::warn!(webhook = %actor.id, "another writer was at this webhook; it is read again");
                    actor.depart(ctx, Departure::Died);
                }
                Err(error)
            }
        }))
    }

    /// Writes down what was tried.
    fn record(&mut self) -> ResponseActFuture<Self, ()> {
        self.recording = false;
        let Some(recorded) = self.loaded.as_ref().map(|loaded| Arc::clone(&loaded.state)) else {
            return Box::pin(fut::ready(()));
        };
        let count = self.unrecorded.len().min(MAX_RECORDED);
        let (now, left) = self.unrecorded.split_at(count);
        let through = Self::reached(&self.live, left, recorded.through).max(recorded.through);
        let replayed_through = self.replay.as_ref().zip(recorded.replays.front());
        let replayed_through =
            replayed_through.map(|(replay, recorded)| Self::reached(&replay.line, left, recorded.through));
        let replay_moved = match (&recorded.replays.front(), replayed_through) {
            (Some(replay), Some(reached)) => reached > replay.through,
            (_, _) => false,
        };
        if now.is_empty() && through == recorded.through && !replay_moved {
            return Box::pin(fut::ready(()));
        }
        let (attempts, kept, patience) = (now.to_vec(), now.to_vec(), self.means.patience);
        let command = Command::Record { attempts, through, replayed_through, patience };
        let team = recorded.spec.team.clone();
        self.unrecorded.drain(..count);
        let appended = self.decide_and_append(command, who(team.as_deref()));
        Box::pin(appended.map(move |appended, actor, ctx| match appended {
            Ok(_) => {
                if !actor.unrecorded.is_empty() && !actor.recording {
                    ctx.notify(Record);
                }
                actor.proceed(ctx);
            }
            Err(JournalError::Store(error @ (StoreError::Overloaded | StoreError::Failed(_)))) => {
                tracing::warn!(webhook = %actor.id, %error, "the store did not take it; trying again");
                actor.unrecorded.splice(..0, kept);
                actor.recording = true;
                ctx.run_later(PAUSE, |_, ctx| ctx.notify(Record));
            }
            // It was removed meanwhile, or is read again: what was tried is not worth more than that.
            Err(JournalError::Refused(_) | JournalError::Store(StoreError::WrongExpectedRevision { .. })) => {
                actor.proceed(ctx);
            }
            Err(error) => {
                tracing::error!(webhook = %actor.id, %error, "what a webhook did cannot be recorded");
                actor.depart(ctx, Departure::Died);
            }
        }))
    }
}

impl Actor for WebhookActor {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.set_mailbox_capacity(MAILBOX);
        let (id, store) = (self.id, Arc::clone(&self.means.store));
        let load = async move { journal::load(&*store, id).await };
        ctx.wait(load.into_actor(self).map(|loaded, actor, ctx| match loaded {
            Ok(loaded) => {
                if let Some(loaded) = loaded {
                    actor.stands(loaded);
                }
                ctx.notify(Proceed);
            }
            Err(error) => {
                tracing::error!(webhook = %actor.id, %error, "the webhook's stream does not read");
                actor.depart(ctx, Departure::Died);
            }
        }));
    }

    fn stopped(&mut self, _ctx: &mut Self::Context) {
        if let Some(farewell) = self.farewell.take() {
            farewell(self.id, self.departure);
        }
    }
}

impl Drop for WebhookActor {
    fn drop(&mut self) {
        // Only after a panic: `stopped` was not called.
        if let Some(farewell) = self.farewell.take() {
            farewell(self.id, Departure::Died);
        }
    }
}

impl Handler<Ask> for WebhookActor {
    type Result = AtomicResponse<Self, Result<Arc<Webhook>, AskError>>;

    fn handle(&mut self, Ask { command, who }: Ask, _ctx: &mut Self::Context) -> Self::Result {
        // Decided when the future is first polled: of two messages handled in the same turn, the second one's state is that
        // after the first.
        let asked = fut::ready(()).then(move |(), actor: &mut Self, _| actor.decide_and_append(command, who));
        AtomicResponse::new(Box::pin(asked.map(|result, _, ctx: &mut Context<Self>| {
            ctx.notify(Proceed);
            result.map_err(AskError::from)
        })))
    }
}

impl Handler<Record> for WebhookActor {
    type Result = AtomicResponse<Self, ()>;

    fn handle(&mut self, _: Record, _ctx: &mut Self::Context) -> Self::Result {
        AtomicResponse::new(Box::pin(fut::ready(()).then(|(), actor: &mut Self, _| actor.record())))
    }
}

impl Handler<Ping> for WebhookActor {
    type Result = ResponseActFuture<Self, Result<Attempt, AskError>>;

    fn handle(&mut self, _: Ping, _ctx: &mut Self::Context) -> Self::Result {
        let refused = |error| Box::pin(fut::ready(Err(error)));
        let Some(standing) = self.standing.as_ref().filter(|standing| standing.status != Status::Removed) else {
            return refused(JournalError::Refused(Refusal::NoSuchWebhook).into());
        };
        if self.pinging || self.draining {
            return refused(AskError::Busy);
        }
        self.pinging = true;
        let (means, tried) = (self.means.clone(), Try::new(self.id, standing, Timestamp::now()));
        let attempt = actix_rt::spawn(async move { means.ping(tried).await });
        Box::pin(attempt.into_actor(self).map(|attempt, actor, ctx| {
            actor.pinging = false;
            let attempt = attempt.map_err(|_| AskError::Busy)?;
            actor.keep(attempt.clone(), ctx);
            ctx.notify(Record);
            Ok(attempt)
        }))
    }
}

impl Handler<Proceed> for WebhookActor {
    type Result = ();

    fn handle(&mut self, _: Proceed, ctx: &mut Self::Context) {
        self.proceed(ctx);
    }
}

impl Handler<Drain> for WebhookActor {
    type Result = ();

    fn handle(&mut self, _: Drain, ctx: &mut Self::Context) {
        self.draining = true;
        ctx.notify(Record);
        ctx.notify(Proceed);
    }
}
