//! The actor of one task: asks for the next step, has the workshop do it, records what came of it, and begins anew.

use std::sync::Arc;
use std::time::Duration;

use actix::prelude::*;
use jiff::Timestamp;
use orchestra_events::task::command::Then;
use orchestra_events::task::state::Phase;
use orchestra_events::task::{Command, Step, Task, decide, next_step};
use orchestra_events::{Actor as Who, EventStore, Failure, FailureCode, StoreError, TaskId};
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use crate::journal::{self, JournalError, Loaded};
use crate::usage::Watch;
use crate::workshop::Workshop;

/// Commands that may wait for one task. More at once is a caller gone wild: it is told to come back.
pub const MAILBOX: usize = 32;

/// Outcomes in a row that the state refuses before the actor gives up: state and steps no longer fit together.
const MOST_REFUSED: u32 = 16;
/// How long an append that the store could not take is waited out before it is tried again.
const STORE_PAUSE: Duration = Duration::from_millis(250);

/// How often something that happens meanwhile is tried to be recorded: for half a minute.
const RECORD_TRIES: u32 = 120;

/// What a task's actor tells its supervisor when it goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Departure {
    /// Nothing to do here until somebody asks for something.
    Idle {
        /// The task has steps to do but no place to do them in: it wants to be scheduled.
        wants_place: bool,
    },
    /// Another writer has the task; it is theirs.
    Fenced,
    /// It panicked, or its stream does not read.
    Died,
}

/// Where an actor reports its departure.
pub type Farewell = Box<dyn FnOnce(TaskId, Departure) + Send>;

/// The actor of one task.
pub struct TaskActor {
    id: TaskId,
    store: Arc<dyn EventStore>,
    workshop: Arc<Workshop>,
    loaded: Option<Loaded<Task>>,
    /// Whether this task holds a place of this node's capacity.
    has_place: bool,
    /// The server is about to end: finish what is being done, begin nothing.
    draining: bool,
    /// Outcomes in a row that the state had no use for.
    refused: u32,
    running: Option<CancellationToken>,
    /// Writes down what the task's sandbox uses.
    watch: Option<Watch>,
    /// The step that is being done can be left in its middle and gone on with by the next process.
    can_be_left: bool,
    timer: Option<SpawnHandle>,
    farewell: Option<Farewell>,
    departure: Departure,
}

/// Something asked of a task by a caller.
#[derive(Message)]
#[rtype(result = "Result<(), AskError>")]
pub struct Ask {
    /// What.
    pub command: Command,
    /// By whom.
    pub who: Who,
}

/// Why a caller's wish was not recorded.
#[derive(Debug, Clone, thiserror::Error)]
pub enum AskError {
    /// No such task, or its state does not allow it.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// Too many commands wait for this task.
    #[error("too many commands wait for this task")]
    Busy,
}

/// A place is free for this task: work.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Work;

/// What a step came to.
#[derive(Message)]
#[rtype(result = "()")]
struct Outcome(Option<Command>);

/// Something that a step says before it has come to its end.
#[derive(Message)]
#[rtype(result = "Result<(), JournalError>")]
struct Meanwhile(Command);

/// Asks for the task as it stands.
#[derive(Message)]
#[rtype(result = "Option<Arc<Task>>")]
struct Look;

/// How a step that goes on for long records what happens meanwhile: the way to its task's actor.
#[derive(Clone)]
pub struct Recorder {
    meanwhile: Recipient<Meanwhile>,
    look: Recipient<Look>,
}

/// Why something was not recorded.
#[derive(Debug, Clone, thiserror::Error)]
pub enum NotRecorded {
    /// The task has no use for it, or the store does not take it.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The task's actor is gone: another one has the task, or nobody.
    #[error("the task's actor is gone")]
    Gone,
}

impl Recorder {
    /// Records it. Waits while the actor's mailbox is full, and while the store is overloaded or its disk says no: an
    /// append that was not taken is nobody's fault here, and what happened, happened.
    pub async fn record(&self, command: Command) -> Result<(), NotRecorded> {
        for _ in 1..RECORD_TRIES {
            match self.meanwhile.send(Meanwhile(command.clone())).await.map_err(|_| NotRecorded::Gone)? {
                Err(JournalError::Store(StoreError::Overloaded | StoreError::Failed(_))) => {
                    tokio::time::sleep(STORE_PAUSE).await;
                }
                recorded => return Ok(recorded?),
            }
        }
        Ok(self.meanwhile.send(Meanwhile(command)).await.map_err(|_| NotRecorded::Gone)??)
    }

    /// Whether the task's actor is there.
    pub fn is_connected(&self) -> bool {
        self.meanwhile.connected()
    }

    /// The task as it stands.
    pub async fn task(&self) -> Result<Arc<Task>, NotRecorded> {
        self.look.send(Look).await.ok().flatten().ok_or(NotRecorded::Gone)
    }
}

/// Finish what is being done, begin nothing, and go.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Drain;

/// Look at what is next.
#[derive(Message)]
#[rtype(result = "()")]
pub(crate) struct Proceed;

/// What a test or the admin page sees of a task's actor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Observed {
    /// Whether it holds a place.
    pub has_place: bool,
    /// Whether a step is being done.
    pub busy: bool,
}

/// Asks an actor what it is doing.
#[derive(Message)]
#[rtype(result = "Observed")]
pub struct Observe;

impl TaskActor {
    /// An actor that loads its task when it starts.
    pub fn new(id: TaskId, store: Arc<dyn EventStore>, workshop: Arc<Workshop>, farewell: Farewell) -> Self {
        Self {
            id,
            store,
            workshop,
            loaded: None,
            has_place: false,
            draining: false,
            refused: 0,
            running: None,
            watch: None,
            can_be_left: false,
            timer: None,
            farewell: Some(farewell),
            departure: Departure::Died,
        }
    }

    fn depart(&mut self, ctx: &mut Context<Self>, departure: Departure) {
        self.departure = departure;
        if let Some(running) = self.running.take() {
            running.cancel();
        }
        ctx.stop();
    }

    /// Watches the sandbox that runs, and no other.
    fn watch(&mut self, ctx: &mut Context<Self>) {
        let Some(loaded) = &self.loaded else { return };
        let sandbox = loaded.state.current().and_then(|attempt| attempt.sandbox);
        if sandbox == self.watch.as_ref().map(Watch::sandbox) {
            return;
        }
        let (limits, workshop) = (self.workshop.limits(&loaded.state), Arc::clone(&self.workshop));
        let recorder = || Recorder { meanwhile: ctx.address().recipient(), look: ctx.address().recipient() };
        self.watch = sandbox.map(|sandbox| Watch::begin(workshop, self.id, sandbox, limits, recorder()));
    }

    /// Starts the next step, unless one is being done.
    fn proceed(&mut self, ctx: &mut Context<Self>) {
        if ctx.waiting() {
            // The state is about to move; whoever moves it looks again.
            return;
        }
        let Some(loaded) = &self.loaded else { return self.depart(ctx, Departure::Idle { wants_place: false }) };
        if let Some(timer) = self.timer.take() {
            ctx.cancel_future(timer);
        }
        let task = &loaded.state;
        if let Some(running) = &self.running {
            if task.cancel_requested {
                running.cancel();
            }
            return;
        }
        if self.draining {
            return self.depart(ctx, Departure::Idle { wants_place: false });
        }
        let step = next_step(task, Timestamp::now());
        match step {
            Step::Rest | Step::WaitForCredentials => self.depart(ctx, Departure::Idle { wants_place: false }),
            // Cleaning up after a cancel needs no place; everything else does.
            _ if !self.has_place && !task.cancel_requested => self.depart(ctx, Departure::Idle { wants_place: true }),
            Step::WaitUntil(until) => {
                let wait = Duration::try_from(until.duration_since(Timestamp::now())).unwrap_or_default();
                self.timer = Some(ctx.run_later(wait, |actor, ctx| actor.proceed(ctx)));
            }
            step => self.start(step, ctx),
        }
    }

    fn start(&mut self, step: Step, ctx: &mut Context<Self>) {
        let Some(loaded) = &self.loaded else { return };
        let cancel = CancellationToken::new();
        self.running = Some(cancel.clone());
        self.can_be_left = matches!(step, Step::RunHarness | Step::SetUp(_));
        let (id, task, workshop) = (self.id, Arc::clone(&loaded.state), Arc::clone(&self.workshop));
        let span = tracing::info_span!("step", task = %id, step = step.name());
        // A task of its own, so that a panic in a step is an outcome and not the end of the actor.
        let recorder = Recorder { meanwhile: ctx.address().recipient(), look: ctx.address().recipient() };
        let work =
            actix_rt::spawn(async move { workshop.perform(id, &task, step, recorder, cancel).await }.instrument(span));
        let outcome = async move {
            work.await.unwrap_or_else(|error| {
                tracing::error!(task = %id, %error, "a step died");
                let failure = Failure::new(FailureCode::Internal, "A step of the task died on the server.");
                Some(Command::RecordFailure { failure, then: Then::GiveUp })
            })
        };
        ctx.spawn(outcome.into_actor(self).map(|command, actor, ctx| {
            actor.running = None;
            ctx.notify(Outcome(command));
        }));
    }

    /// Decides and appends while nothing else is handled; the state moves only when the store has it.
    ///
    /// The decision is taken when the future is first polled, not before: actix may handle a notified message in the
    /// same turn as one of the mailbox, and then two of these futures wait for one another with one state between them.
    fn record(command: Command, who: Who) -> ResponseActFuture<Self, Result<(), JournalError>> {
        Box::pin(fut::ready(()).then(move |(), actor: &mut Self, _| actor.decide_and_append(command, who)))
    }

    fn decide_and_append(&mut self, command: Command, who: Who) -> ResponseActFuture<Self, Result<(), JournalError>> {
        let decided = decide(self.loaded.as_ref().map(|loaded| &*loaded.state), command.clone());
        let (events, revision) = match (decided, &self.loaded) {
            (Err(refusal), _) => return Box::pin(fut::ready(Err(JournalError::Refused(refusal)))),
            (Ok(events), Some(loaded)) if !events.is_empty() => (events, loaded.revision),
            (Ok(_), _) => return Box::pin(fut::ready(Ok(()))),
        };
        let (id, store) = (self.id, Arc::clone(&self.store));
        let append = async move {
            let appended = journal::append(&*store, id, revision, &events, &who).await;
            (appended, events)
        };
        Box::pin(append.into_actor(self).map(move |(appended, events), actor, ctx| match appended {
            Ok(appended) => {
                actor.loaded = actor.loaded.take().map(|loaded| loaded.after::<TaskId>(&events, appended.revision));
                actor.watch(ctx);
                if let Some(task) = actor.loaded.as_ref().map(|loaded| Arc::clone(&loaded.state)) {
                    let (id, workshop) = (actor.id, Arc::clone(&actor.workshop));
                    if matches!(task.phase, Phase::Ended(_)) {
                        // Also where it ended without having begun.
                        workshop.vault.forget(id);
                    }
                    ctx.spawn(async move { workshop.recorded(id, &task, &command).await }.into_actor(actor));
                }
                Ok(())
            }
            Err(error) => {
                if let JournalError::Store(StoreError::WrongExpectedRevision { .. }) = &error {
                    tracing::warn!(task = %actor.id, "another writer has this task; leaving it to them");
                    actor.depart(ctx, Departure::Fenced);
                }
                Err(error)
            }
        }))
    }
}

impl Actor for TaskActor {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.set_mailbox_capacity(MAILBOX);
        let (id, store) = (self.id, Arc::clone(&self.store));
        let load = async move { journal::load(&*store, id).await };
        ctx.wait(load.into_actor(self).map(|loaded, actor, ctx| match loaded {
            Ok(loaded) => {
                actor.loaded = loaded;
                actor.watch(ctx);
            }
            Err(error) => {
                tracing::error!(task = %actor.id, %error, "the task's stream does not read");
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

impl Drop for TaskActor {
    fn drop(&mut self) {
        // Only after a panic: `stopped` was not called.
        if let Some(farewell) = self.farewell.take() {
            farewell(self.id, Departure::Died);
        }
    }
}

impl Handler<Ask> for TaskActor {
    type Result = AtomicResponse<Self, Result<(), AskError>>;

    fn handle(&mut self, ask: Ask, _ctx: &mut Self::Context) -> Self::Result {
        let recorded = Self::record(ask.command, ask.who);
        AtomicResponse::new(Box::pin(recorded.map(|result, _, ctx| {
            ctx.notify(Proceed);
            result.map_err(AskError::from)
        })))
    }
}

impl Handler<Meanwhile> for TaskActor {
    type Result = AtomicResponse<Self, Result<(), JournalError>>;

    fn handle(&mut self, Meanwhile(command): Meanwhile, _ctx: &mut Self::Context) -> Self::Result {
        AtomicResponse::new(Box::pin(Self::record(command, Who::system("task"))))
    }
}

impl Handler<Look> for TaskActor {
    type Result = MessageResult<Look>;

    fn handle(&mut self, _: Look, _ctx: &mut Self::Context) -> Self::Result {
        MessageResult(self.loaded.as_ref().map(|loaded| Arc::clone(&loaded.state)))
    }
}

impl Handler<Work> for TaskActor {
    type Result = ();

    fn handle(&mut self, _: Work, ctx: &mut Self::Context) {
        self.has_place = true;
        self.proceed(ctx);
    }
}

impl Handler<Drain> for TaskActor {
    type Result = ();

    fn handle(&mut self, _: Drain, ctx: &mut Self::Context) {
        self.draining = true;
        if self.can_be_left
            && let Some(running) = &self.running
        {
            running.cancel();
        }
        self.proceed(ctx);
    }
}

impl Handler<Proceed> for TaskActor {
    type Result = ();

    fn handle(&mut self, _: Proceed, ctx: &mut Self::Context) {
        self.proceed(ctx);
    }
}

impl Handler<Outcome> for TaskActor {
    type Result = AtomicResponse<Self, ()>;

    fn handle(&mut self, Outcome(command): Outcome, ctx: &mut Self::Context) -> Self::Result {
        let Some(command) = command else {
            self.proceed(ctx);
            return AtomicResponse::new(Box::pin(fut::ready(())));
        };
        if let Command::RequireCredentials { missing, failure: None } = &command
            && self.workshop.holds(self.id, missing)
        {
            // They came while their absence was on its way here, and nobody would send them twice.
            self.proceed(ctx);
            return AtomicResponse::new(Box::pin(fut::ready(())));
        }
        let recorded = Self::record(command.clone(), Who::system("task"));
        AtomicResponse::new(Box::pin(recorded.map(move |result, actor, ctx| match result {
            Ok(_) => {
                actor.refused = 0;
                actor.proceed(ctx);
            }
            // The state moved on while the step was done: what is next is decided anew.
            Err(JournalError::Refused(refusal)) if actor.refused < MOST_REFUSED => {
                tracing::debug!(task = %actor.id, %refusal, "a step's outcome came too late");
                actor.refused += 1;
                let Some(loaded) = &actor.loaded else { return actor.proceed(ctx) };
                let (task, workshop) = (Arc::clone(&loaded.state), Arc::clone(&actor.workshop));
                // Before what is next: money that was set aside for nothing may be needed for it.
                let discarded = async move { workshop.discarded(&task, &command).await };
                ctx.wait(discarded.into_actor(actor).map(|(), _, ctx| ctx.notify(Proceed)));
            }
            Err(JournalError::Store(StoreError::WrongExpectedRevision { .. })) => {}
            Err(JournalError::Store(error @ (StoreError::Overloaded | StoreError::Failed(_)))) => {
                tracing::warn!(task = %actor.id, %error, "the store did not take a step's outcome; trying again");
                ctx.run_later(STORE_PAUSE, |_, ctx| ctx.notify(Outcome(Some(command))));
            }
            Err(error) => {
                tracing::error!(task = %actor.id, %error, "a step's outcome cannot be recorded");
                actor.depart(ctx, Departure::Died);
            }
        })))
    }
}

impl Handler<Observe> for TaskActor {
    type Result = MessageResult<Observe>;

    fn handle(&mut self, _: Observe, _ctx: &mut Self::Context) -> Self::Result {
        MessageResult(Observed { has_place: self.has_place, busy: self.running.is_some() })
    }
}
