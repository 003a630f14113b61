//! The actor of one team's ledger: the only one on this node that decides about the team's money.
//!
//! **Group commit.** What is asked while an append is under way waits for it, and is then decided together, each
//! command on the state that those before it leave, and appended at once with the revision that the actor knows. Answers
//! go out when the store has the batch. If it does not take it, nothing of the batch counts: the fold is thrown away
//! and read again. After `WrongExpectedRevision` (another node was first) the same commands are decided once more.
//!
//! **Trims** are kept in memory and written only when a call would otherwise be refused or cut: nearly every call is
//! trimmed, and nearly none of them needs the event.
//!
//! **Waiting.** A call that would fit once others have ended is parked, and decided again, first come first, whenever
//! something was freed.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use actix::prelude::*;
use jiff::Timestamp;
use orchestra_events::ledger::{
    Amount, Command, LedgerEvent, Refusal, Reserve, Reserved, State, Zones, decide, evolve,
};
use orchestra_events::store::MAX_BATCH;
use orchestra_events::{Actor as Who, Appended, CallId, EventStore, Expected, StoreError, StreamName};
use tokio::sync::oneshot;

use super::stream::{self, Decided, Loaded};
use super::{LedgerError, Settings};

/// Messages that may wait for a ledger. They are taken out at once; this bounds only one turn's worth.
pub const MAILBOX: usize = 1_024;
/// Commands that may wait for an append. Twice the open calls that a team may have, so that an end is not refused.
pub const QUEUE: usize = 2 * RESERVE_QUEUE;
/// With so many waiting, no further reservation is taken.
pub const RESERVE_QUEUE: usize = 4_096;
/// Calls that may wait for room under a cap; more are refused.
pub const PARKED: usize = 1_024;
/// Most events that one command makes: a charge that reaches every part of every cap on the longest path, in both
/// units, makes 85.
const MOST_EVENTS: usize = 86;
/// How often a batch is decided again because another writer was first.
const MOST_CONFLICTS: u32 = 32;
/// An actor that was asked nothing for so long goes, and comes back by replay.
const IDLE: Duration = Duration::from_secs(15 * 60);
/// How often that is looked at.
const IDLE_LOOK: Duration = Duration::from_secs(60);

/// Where an answer goes.
pub(super) type Reply<T> = oneshot::Sender<Result<T, LedgerError>>;

/// The ledger at a moment.
pub(super) struct Standing<'a> {
    pub state: &'a State,
    pub zones: &'a Zones,
    pub now: Timestamp,
}

/// Something that looks and changes nothing.
pub(super) type Look = Box<dyn FnOnce(Result<Standing<'_>, LedgerError>) + Send>;

/// Something asked of a ledger.
pub(super) enum Wish {
    /// Set aside what a call can cost.
    Reserve { request: Arc<Reserve>, reply: Reply<Reserved> },
    /// Everything else that changes it.
    Act { command: Box<Command>, who: Who, reply: Reply<()> },
    /// Only look.
    Look(Look),
}

/// Asks a ledger. The answer comes through the wish.
#[derive(Message)]
#[rtype(result = "()")]
pub(super) struct Ask(pub Wish);

/// A wish that was decided, and its answer once the batch is in the store.
enum Answer {
    Reserve { request: Arc<Reserve>, reply: Reply<Reserved>, answer: Result<Box<Reserved>, Refusal> },
    Act { command: Box<Command>, who: Who, reply: Reply<()>, answer: Result<(), Refusal> },
}

/// A call that waits for room.
struct Parked {
    request: Arc<Reserve>,
    reply: Reply<Reserved>,
    until: Instant,
    refusal: Refusal,
}

/// The actor of one team's ledger.
pub(super) struct LedgerActor {
    team: String,
    stream: StreamName,
    store: Arc<dyn EventStore>,
    settings: Settings,
    /// The fold, ahead of the store by the batch that is on its way. `None` until it is loaded, and after an append
    /// that failed.
    loaded: Option<Loaded>,
    /// An append or a load is on its way; everything waits for it.
    busy: bool,
    queue: VecDeque<Wish>,
    parked: VecDeque<Parked>,
    /// To what calls can be trimmed when somebody needs the room.
    trims: HashMap<CallId, Amount>,
    /// Something was freed since the parked calls were last decided.
    freed: bool,
    /// Batches in a row that another writer was faster than.
    conflicts: u32,
    last_asked: Instant,
}

/// What a turn of decisions came to.
#[derive(Default)]
struct Batch {
    events: Vec<Decided>,
    answers: Vec<Answer>,
    looks: Vec<Look>,
}

impl Batch {
    /// Events that one more command cannot overfill.
    fn has_room(&self) -> bool {
        self.events.len() + MOST_EVENTS <= MAX_BATCH
    }
}

impl Loaded {
    /// Decides, and takes in what was decided. Answers how many events that were.
    fn decide(&mut self, command: Command, who: &Who, batch: &mut Batch) -> Result<usize, Refusal> {
        let events = decide(&self.state, command, &self.zones)?;
        let count = events.len();
        self.take_in(events, who, batch);
        Ok(count)
    }

    fn take_in(&mut self, events: Vec<LedgerEvent>, who: &Who, batch: &mut Batch) {
        for event in events {
            let task = event.task().or_else(|| Some(self.state.open_call(call_of(&event)?)?.task));
            self.state = evolve(std::mem::take(&mut self.state), &event);
            batch.events.push(Decided { event, who: who.clone(), task });
        }
    }
}

/// The call whose reservation an event changes.
fn call_of(event: &LedgerEvent) -> Option<CallId> {
    match event {
        LedgerEvent::Trimmed(event) => Some(event.call),
        LedgerEvent::Released(event) => Some(event.call),
        LedgerEvent::Settled(event) => Some(event.call),
        LedgerEvent::Reserved(event) => Some(event.call),
        LedgerEvent::BudgetSet(_)
        | LedgerEvent::CampaignOpened(_)
        | LedgerEvent::Refunded(_)
        | LedgerEvent::ThresholdReached(_)
        | LedgerEvent::DayClosed(_) => None,
    }
}

/// The call that a command ends, if it ends one.
fn ended_by(command: &Command) -> Option<CallId> {
    match command {
        Command::Settle(settle) => Some(settle.call),
        Command::Release(call) => Some(*call),
        Command::Reserve(..)
        | Command::Trim { .. }
        | Command::Refund { .. }
        | Command::SetBudget { .. }
        | Command::OpenCampaign { .. }
        | Command::CloseDay(_) => None,
    }
}

impl LedgerActor {
    pub fn new(team: String, stream: StreamName, store: Arc<dyn EventStore>, settings: Settings) -> Self {
        Self {
            team,
            stream,
            store,
            settings,
            loaded: None,
            busy: false,
            queue: VecDeque::new(),
            parked: VecDeque::new(),
            trims: HashMap::new(),
            freed: false,
            conflicts: 0,
            last_asked: Instant::now(),
        }
    }

    fn who(&self) -> Who {
        Who { team: Some(self.team.clone()), ..Who::system("ledger") }
    }

    /// Decides what waits, and appends it. Nothing happens while an append or a load is on its way: whoever ends it
    /// comes back here.
    fn proceed(&mut self, ctx: &mut Context<Self>) {
        while !self.busy && (!self.queue.is_empty() || (self.freed && !self.parked.is_empty())) {
            let Some(loaded) = self.loaded.take() else { return self.load(ctx) };
            let now = (self.settings.clock)();
            let (loaded, batch) = self.decide_batch(loaded, now, ctx);
            self.loaded = Some(loaded);
            if batch.events.is_empty() {
                self.answer(batch);
            } else {
                self.append(batch, now, ctx);
            }
        }
    }

    fn load(&mut self, ctx: &mut Context<Self>) {
        self.busy = true;
        let (store, stream) = (Arc::clone(&self.store), self.stream.clone());
        let load = async move { stream::load(&*store, &stream).await };
        ctx.spawn(load.into_actor(self).map(|loaded, actor, ctx| {
            actor.busy = false;
            match loaded {
                Ok(loaded) => {
                    // What another node has freed is known only now.
                    actor.freed = true;
                    actor.loaded = Some(loaded);
                    actor.proceed(ctx);
                }
                Err(error) => {
                    tracing::error!(team = %actor.team, %error, "the ledger could not be read");
                    actor.fail_everyone(&error);
                }
            }
        }));
    }

    fn decide_batch(&mut self, mut loaded: Loaded, now: Timestamp, ctx: &mut Context<Self>) -> (Loaded, Batch) {
        let mut batch = Batch::default();
        self.close_day(&mut loaded, now, &mut batch);
        while batch.has_room() {
            let Some(wish) = self.queue.pop_front() else { break };
            match wish {
                Wish::Look(look) => batch.looks.push(look),
                Wish::Act { command, who, reply } => {
                    let answer = self.act(&mut loaded, &command, &who, &mut batch);
                    batch.answers.push(Answer::Act { command, who, reply, answer });
                }
                Wish::Reserve { request, reply } => {
                    // Those that wait were here first.
                    self.decide_parked(&mut loaded, now, &mut batch);
                    self.decide_reserve(&mut loaded, now, Parked::new(request, reply, &self.settings), &mut batch, ctx);
                }
            }
        }
        self.decide_parked(&mut loaded, now, &mut batch);
        (loaded, batch)
    }

    /// With the first command of a new day, what is still needed of the days before is written down.
    fn close_day(&self, loaded: &mut Loaded, now: Timestamp, batch: &mut Batch) {
        let today = stream::day_of(now);
        let Some(day) = loaded.day.filter(|day| *day < today) else { return };
        // Closing is never refused; a day that is too large to be written down is not.
        if loaded.decide(Command::CloseDay(day), &self.who(), batch) == Ok(0) {
            tracing::warn!(team = %self.team, %day, "the ledger's day was not closed: too much is open");
        }
        loaded.day = Some(today);
    }

    fn act(&mut self, loaded: &mut Loaded, command: &Command, who: &Who, batch: &mut Batch) -> Result<(), Refusal> {
        match command {
            Command::Trim { call, to } if loaded.state.open_call(*call).is_some() => {
                let noted = self.trims.entry(*call).or_insert(*to);
                *noted = noted.min(*to);
                self.freed = true;
                return Ok(());
            }
            Command::SetBudget { budget, .. } => {
                if let Some(zone) = &budget.time_zone {
                    // One that is not known is refused by name.
                    let _ = stream::learn(&mut loaded.zones, zone);
                }
            }
            Command::Settle(settle) => {
                let reserved = loaded.state.open_call(settle.call).map(|open| open.amount().nano_usd);
                if let Some(reserved) = reserved.filter(|reserved| settle.cost > *reserved) {
                    // The bound is what the caps rest on: this is a fault in the price table or the bound, not in the task.
                    tracing::error!(call = %settle.call, cost = %settle.cost, %reserved, "a call cost more than its bound");
                    metrics::counter!("orchestra_bound_violations_total").increment(1);
                }
            }
            _ => {}
        }
        let who = Who { team: Some(self.team.clone()), ..who.clone() };
        let count = loaded.decide(command.clone(), &who, batch)?;
        self.freed |= count > 0;
        if let Some(call) = ended_by(command) {
            self.trims.remove(&call);
        }
        Ok(())
    }

    /// Decides the calls that wait again, if something was freed since.
    fn decide_parked(&mut self, loaded: &mut Loaded, now: Timestamp, batch: &mut Batch) {
        if !self.freed {
            return;
        }
        self.freed = false;
        for parked in std::mem::take(&mut self.parked) {
            if !batch.has_room() {
                // The rest in the next batch.
                self.freed = true;
                self.parked.push_back(parked);
            } else if let Some(parked) = self.try_reserve(loaded, now, parked, batch) {
                self.parked.push_back(parked);
            }
        }
    }

    /// Decides a new reservation, and parks it if it is worth waiting.
    fn decide_reserve(
        &mut self,
        loaded: &mut Loaded,
        now: Timestamp,
        new: Parked,
        batch: &mut Batch,
        ctx: &mut Context<Self>,
    ) {
        let Some(parked) = self.try_reserve(loaded, now, new, batch) else { return };
        if self.parked.len() >= PARKED {
            return parked.refuse(batch);
        }
        let wait = parked.until.saturating_duration_since(Instant::now());
        self.parked.push_back(parked);
        ctx.run_later(wait, |actor, _| actor.expire());
    }

    /// Decides a reservation. Gives it back if it does not fit now but may later.
    fn try_reserve(
        &mut self,
        loaded: &mut Loaded,
        now: Timestamp,
        mut asked: Parked,
        batch: &mut Batch,
    ) -> Option<Parked> {
        if asked.reply.is_closed() {
            return None;
        }
        let request = &asked.request;
        // Whoever asks again for an open call is told what stands, and may count on it.
        self.trims.remove(&request.call);
        let command = || Command::Reserve(Box::new(Reserve::clone(request)), now);
        let mut decided = decide(&loaded.state, command(), &loaded.zones);
        if !self.trims.is_empty() && is_tight(&decided, request) {
            // What is freed by writing the trims down may be what is lacking.
            self.write_trims(loaded, batch);
            decided = decide(&loaded.state, command(), &loaded.zones);
        }
        let answer = decided.map(|events| {
            loaded.take_in(events, &self.who(), batch);
            let open = loaded.state.open_call(request.call).cloned();
            open.expect("a reservation that was decided is open")
        });
        match answer {
            Err(refusal @ Refusal::Exhausted { waits_for: true, .. }) if Instant::now() < asked.until => {
                asked.refusal = refusal;
                Some(asked)
            }
            answer => {
                let Parked { request, reply, .. } = asked;
                batch.answers.push(Answer::Reserve { request, reply, answer: answer.map(Box::new) });
                None
            }
        }
    }

    /// Writes down as many trims as the batch has room for.
    fn write_trims(&mut self, loaded: &mut Loaded, batch: &mut Batch) {
        let room = MAX_BATCH.saturating_sub(batch.events.len() + MOST_EVENTS);
        let calls: Vec<_> = self.trims.keys().take(room).copied().collect();
        for call in calls {
            if let Some(to) = self.trims.remove(&call)
                && let Err(refusal) = loaded.decide(Command::Trim { call, to }, &self.who(), batch)
            {
                // Another node has ended it, long ago.
                tracing::debug!(%refusal, "a trim came to nothing");
            }
        }
        // Those for which there was no room may free something in the next batch.
        self.freed |= !self.trims.is_empty();
    }

    /// Refuses the calls that have waited long enough.
    fn expire(&mut self) {
        let now = Instant::now();
        for parked in std::mem::take(&mut self.parked) {
            if parked.until > now {
                self.parked.push_back(parked);
            } else {
                // Whoever has gone does not need the refusal.
                let _ = parked.reply.send(Err(parked.refusal.into()));
            }
        }
    }

    fn append(&mut self, batch: Batch, now: Timestamp, ctx: &mut Context<Self>) {
        self.busy = true;
        let revision = self.loaded.as_ref().and_then(|loaded| loaded.revision);
        let expected = revision.map_or(Expected::NoStream, Expected::Exactly);
        let (store, stream) = (Arc::clone(&self.store), self.stream.clone());
        metrics::counter!("orchestra_ledger_appends_total").increment(1);
        metrics::counter!("orchestra_ledger_events_total").increment(batch.events.len() as u64);
        let events = stream::new_events(&batch.events, now);
        let append = async move { Ok(store.append(&stream, expected, events?).await?) };
        ctx.spawn(append.into_actor(self).map(move |appended, actor, ctx| {
            actor.busy = false;
            actor.appended(batch, appended, now);
            actor.proceed(ctx);
        }));
    }

    fn appended(&mut self, batch: Batch, appended: Result<Appended, LedgerError>, now: Timestamp) {
        match appended {
            Ok(appended) => {
                self.conflicts = 0;
                if let Some(loaded) = &mut self.loaded {
                    loaded.revision = Some(appended.revision);
                    loaded.day = Some(stream::day_of(now));
                }
                self.answer(batch);
            }
            Err(LedgerError::Store(StoreError::WrongExpectedRevision { .. })) if self.conflicts < MOST_CONFLICTS => {
                tracing::debug!(team = %self.team, "another writer was first; deciding again");
                self.conflicts += 1;
                self.loaded = None;
                for look in batch.looks.into_iter().rev() {
                    self.queue.push_front(Wish::Look(look));
                }
                for answer in batch.answers.into_iter().rev() {
                    self.queue.push_front(answer.undecided());
                }
            }
            Err(error) => {
                tracing::error!(team = %self.team, %error, "the ledger's batch was not taken");
                self.conflicts = 0;
                self.loaded = None;
                for answer in batch.answers {
                    answer.undecided().fail(&error);
                }
                for look in batch.looks {
                    look(Err(error.clone()));
                }
            }
        }
    }

    /// The store has it: everyone may know.
    fn answer(&mut self, batch: Batch) {
        for answer in batch.answers {
            // Whoever has gone finds the answer in the log.
            match answer {
                Answer::Reserve { reply, answer, .. } => {
                    drop(reply.send(answer.map(|reserved| *reserved).map_err(Into::into)))
                }
                Answer::Act { reply, answer, .. } => drop(reply.send(answer.map_err(Into::into))),
            }
        }
        let now = (self.settings.clock)();
        for look in batch.looks {
            match &self.loaded {
                Some(loaded) => look(Ok(Standing { state: &loaded.state, zones: &loaded.zones, now })),
                None => look(Err(LedgerError::Interrupted)),
            }
        }
    }

    fn fail_everyone(&mut self, error: &LedgerError) {
        for wish in self.queue.drain(..) {
            wish.fail(error);
        }
        for parked in self.parked.drain(..) {
            let _ = parked.reply.send(Err(error.clone()));
        }
    }
}

/// Whether a reservation would be refused for a cap, or get less than it wants.
fn is_tight(decided: &Result<Vec<LedgerEvent>, Refusal>, request: &Reserve) -> bool {
    match decided {
        Ok(events) => events.iter().any(|event| match event {
            LedgerEvent::Reserved(reserved) => reserved.max_output_tokens < request.quote.wanted_output,
            _ => false,
        }),
        Err(refusal) => matches!(refusal, Refusal::Exhausted { .. }),
    }
}

impl Parked {
    fn new(request: Arc<Reserve>, reply: Reply<Reserved>, settings: &Settings) -> Self {
        let refusal = Refusal::NoSuchCall(request.call);
        Self { request, reply, until: Instant::now() + settings.reserve_wait, refusal }
    }

    fn refuse(self, batch: &mut Batch) {
        let Self { request, reply, refusal, .. } = self;
        batch.answers.push(Answer::Reserve { request, reply, answer: Err(refusal) });
    }
}

impl Answer {
    /// The wish, as if nothing had been decided.
    fn undecided(self) -> Wish {
        match self {
            Self::Reserve { request, reply, .. } => Wish::Reserve { request, reply },
            Self::Act { command, who, reply, .. } => Wish::Act { command, who, reply },
        }
    }
}

impl Wish {
    fn fail(self, error: &LedgerError) {
        match self {
            Self::Reserve { reply, .. } => drop(reply.send(Err(error.clone()))),
            Self::Act { reply, .. } => drop(reply.send(Err(error.clone()))),
            Self::Look(look) => look(Err(error.clone())),
        }
    }
}

impl Actor for LedgerActor {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.set_mailbox_capacity(MAILBOX);
        ctx.run_interval(IDLE_LOOK, |actor, ctx| {
            let nothing_waits = actor.queue.is_empty() && actor.parked.is_empty() && !actor.busy;
            if nothing_waits && actor.last_asked.elapsed() > IDLE {
                ctx.stop();
            }
        });
    }
}

impl Handler<Ask> for LedgerActor {
    type Result = ();

    fn handle(&mut self, Ask(wish): Ask, ctx: &mut Self::Context) {
        self.last_asked = Instant::now();
        let most = match wish {
            Wish::Reserve { .. } | Wish::Look(_) => RESERVE_QUEUE,
            Wish::Act { .. } => QUEUE,
        };
        if self.queue.len() >= most {
            return wish.fail(&LedgerError::Busy);
        }
        self.queue.push_back(wish);
        self.proceed(ctx);
    }
}
