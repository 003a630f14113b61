//! The actor of one open campaign: begins its tasks one after another, follows them, and takes down how they ended.
//!
//! It knows nothing that it has not folded from the log: its own stream, and those of the tasks that run. So it may
//! die at any moment, and whoever is made in its place does the same again, which changes nothing.

pub(crate) mod children;
pub mod service;
pub(crate) mod supervisor;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use actix::prelude::*;
use jiff::Timestamp;
use orchestra_events::campaign::event::OpenedPullRequest;
use orchestra_events::campaign::{Campaign, ChildOutcome, Command, Refusal, Step, child_id, decide, next_step};
use orchestra_events::ledger::Refusal as Refused;
use orchestra_events::{Actor as Who, CampaignId, StoreError};
use tokio::sync::watch;

use self::children::{Means, Room, Run, until, who};
use crate::journal::{self, Loaded};
use crate::ledger::LedgerError;

/// Commands that may wait for one campaign: those of its callers, and what its tasks have to say, of which at most
/// [`MAX_CONCURRENCY`](orchestra_events::campaign::event::MAX_CONCURRENCY) run at once.
pub const MAILBOX: usize = 128;
/// The wait before something is tried again that the store was in the way of.
const PAUSE: Duration = Duration::from_millis(250);
/// How often a campaign whose cap is set aside for calls under way looks whether they have left some of it.
const ROOM_PAUSE: Duration = Duration::from_secs(1);

/// Why a command to a campaign was not recorded.
pub type JournalError = journal::JournalError<Refusal>;

/// Why a campaign is paused whose cap leaves too little for another task.
pub(crate) const USED_UP: &str = "the campaign's budget is used up";

/// What a campaign's actor tells its supervisor when it goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Departure {
    /// Nothing to do here until somebody asks for something.
    Idle,
    /// It panicked, its stream does not read, or another writer has it.
    Died,
}

/// Where an actor reports its departure.
pub(crate) type Farewell = Box<dyn FnOnce(CampaignId, Departure) + Send>;

/// The actor of one campaign.
pub(crate) struct CampaignActor {
    id: CampaignId,
    means: Means,
    loaded: Option<Loaded<Campaign>>,
    /// The tasks that are followed: which run of each, and the pull requests it has opened.
    followed: BTreeMap<u32, Followed>,
    /// The next task is being begun.
    starting: bool,
    /// The server is about to end: begin nothing.
    draining: bool,
    timer: Option<SpawnHandle>,
    farewell: Option<Farewell>,
    departure: Departure,
}

struct Followed {
    run: u32,
    opened: Vec<OpenedPullRequest>,
    /// Its task exists, and this run of it goes on: only now can it be told to stop.
    begun: bool,
    told_to_stop: bool,
    /// Tells whoever tries to begin it that the campaign is cancelled.
    stop: watch::Sender<bool>,
}

/// Something asked of a campaign.
#[derive(Message)]
#[rtype(result = "Result<(), AskError>")]
pub(crate) struct Ask {
    /// What.
    pub command: Command,
    /// By whom.
    pub who: Who,
}

/// Why a wish was not recorded.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum AskError {
    /// No such campaign, or its state does not allow it.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// Too many commands wait for this campaign, or it is being taken up anew.
    #[error("too many commands wait for this campaign")]
    Busy,
}

/// Look at what is next.
#[derive(Message)]
#[rtype(result = "()")]
pub(crate) struct Proceed;

/// Begin nothing, and go.
#[derive(Message)]
#[rtype(result = "()")]
pub(crate) struct Drain;

/// Something that the campaign does by itself.
#[derive(Message)]
#[rtype(result = "()")]
struct Act(Command);

/// A task that is followed has opened a pull request.
#[derive(Message)]
#[rtype(result = "()")]
struct Opened(u32, OpenedPullRequest);

impl CampaignActor {
    /// An actor that loads its campaign when it starts.
    pub fn new(id: CampaignId, means: Means, farewell: Farewell) -> Self {
        Self {
            id,
            means,
            loaded: None,
            followed: BTreeMap::new(),
            starting: false,
            draining: false,
            timer: None,
            farewell: Some(farewell),
            departure: Departure::Died,
        }
    }

    fn depart(&mut self, ctx: &mut Context<Self>, departure: Departure) {
        self.departure = departure;
        ctx.stop();
    }

    fn proceed(&mut self, ctx: &mut Context<Self>) {
        if ctx.waiting() {
            // The state is about to move; whoever moves it looks again.
            return;
        }
        let Some(loaded) = &self.loaded else { return self.depart(ctx, Departure::Idle) };
        if let Some(timer) = self.timer.take() {
            ctx.cancel_future(timer);
        }
        if self.draining {
            return self.depart(ctx, Departure::Idle);
        }
        let campaign = Arc::clone(&loaded.state);
        for (index, run, after) in campaign.running() {
            if self.followed.get(&index).is_none_or(|followed| followed.run != run) {
                self.follow(Run { campaign: self.id, index, after }, run, ctx);
            }
        }
        if campaign.cancelled {
            self.cancel_all(ctx);
        }
        if self.starting {
            return;
        }
        let times = |followed: &Followed| followed.opened.iter().map(|opened| opened.opened_at).collect();
        let seen = self.followed.iter().map(|(index, followed)| (*index, times(followed))).collect();
        match next_step(&campaign, &seen, Timestamp::now()) {
            Step::Start(index) => self.start(index, ctx),
            Step::WaitUntil(time) => {
                self.timer = Some(ctx.run_later(until(time), |actor, ctx| actor.proceed(ctx)));
            }
            Step::Follow => {}
            Step::Rest => {
                if campaign.finished {
                    self.means.intake.vault.forget(self.id);
                }
                self.depart(ctx, Departure::Idle);
            }
        }
    }

    /// Begins the task for a repository: first its place in the campaign's stream, then the task.
    fn start(&mut self, index: u32, ctx: &mut Context<Self>) {
        let Some(loaded) = &self.loaded else { return };
        self.starting = true;
        let (id, means, campaign) = (self.id, self.means.clone(), Arc::clone(&loaded.state));
        let prepared = async move {
            let room = match means.open_account(id, &campaign).await {
                // One that is done again may have its work already, and need no model.
                Ok(()) if campaign.child(index).is_some_and(|child| child.run > 0) => Ok(Room::Free),
                Ok(()) => means.room(id, &campaign).await,
                Err(error) => Err(error),
            };
            match room {
                Ok(Room::Free) => {}
                Ok(Room::Reserved) => return Err(ROOM_PAUSE),
                // Each that began now would fail at its first call.
                Ok(Room::UsedUp) => return Ok(Command::Pause { reason: USED_UP.to_owned() }),
                Err(LedgerError::Refused(
                    refusal @ (Refused::TooManyCampaigns | Refused::NegativeCap | Refused::NoSuchCampaign(_)),
                )) => {
                    return Ok(Command::Pause { reason: refusal.to_string() });
                }
                Err(error) => {
                    tracing::warn!(campaign = %id, %error, "the campaign's account does not answer; trying again");
                    return Err(PAUSE);
                }
            }
            let task = child_id(id, index);
            means.head(task).await.map(|after| Command::StartChild { index, task, after }).map_err(|error| {
                tracing::warn!(campaign = %id, %task, %error, "a task cannot be looked at; trying again");
                PAUSE
            })
        };
        ctx.spawn(prepared.into_actor(self).map(|command, actor, ctx| {
            actor.starting = false;
            match command {
                Ok(command) => ctx.notify(Act(command)),
                Err(pause) => {
                    if let Some(earlier) = actor.timer.replace(ctx.run_later(pause, |actor, ctx| actor.proceed(ctx))) {
                        ctx.cancel_future(earlier);
                    }
                }
            }
        }));
    }

    /// Has a run go on, and takes down how it ends.
    fn follow(&mut self, run: Run, number: u32, ctx: &mut Context<Self>) {
        let Some(loaded) = &self.loaded else { return };
        let (index, campaign, means) = (run.index, Arc::clone(&loaded.state), self.means.clone());
        let (stop, stopped) = watch::channel(campaign.cancelled);
        let followed = Followed { run: number, opened: Vec::new(), begun: false, told_to_stop: false, stop };
        self.followed.insert(index, followed);
        let begun = async move { means.begin(run, &campaign, stopped).await };
        ctx.spawn(begun.into_actor(self).map(move |ended, actor, ctx| match ended {
            Some(outcome) => actor.ended(run, number, outcome, ctx),
            None => {
                if let Some(followed) = actor.followed.get_mut(&index).filter(|followed| followed.run == number) {
                    followed.begun = true;
                }
                actor.follow_begun(run, number, ctx);
                actor.proceed(ctx);
            }
        }));
    }

    fn follow_begun(&mut self, run: Run, number: u32, ctx: &mut Context<Self>) {
        let (index, means, address) = (run.index, self.means.clone(), ctx.address());
        let outcome = async move {
            let seen = |opened| {
                let address = address.clone();
                async move {
                    // The actor is gone: whoever comes after it reads the task's stream again.
                    let _ = address.send(Opened(index, opened)).await;
                }
            };
            means.follow(run, seen).await
        };
        ctx.spawn(outcome.into_actor(self).map(move |outcome, actor, ctx| actor.ended(run, number, outcome, ctx)));
    }

    fn ended(&mut self, run: Run, number: u32, outcome: ChildOutcome, ctx: &mut Context<Self>) {
        let followed = self.followed.get(&run.index).filter(|followed| followed.run == number);
        let pull_requests = followed.map(|followed| followed.opened.clone()).unwrap_or_default();
        let (index, task) = (run.index, run.task());
        ctx.notify(Act(Command::RecordChild { index, task, run: number, outcome, pull_requests }));
    }

    /// Asks every task that runs to stop, once.
    fn cancel_all(&mut self, ctx: &mut Context<Self>) {
        let Some(loaded) = &self.loaded else { return };
        let campaign = Arc::clone(&loaded.state);
        for followed in self.followed.values().filter(|followed| !followed.begun) {
            followed.stop.send_replace(true);
        }
        for (index, _, after) in campaign.running() {
            let Some(followed) =
                self.followed.get_mut(&index).filter(|followed| followed.begun && !followed.told_to_stop)
            else {
                continue;
            };
            followed.told_to_stop = true;
            let (means, team) = (self.means.clone(), campaign.spec.template.team.clone());
            let run = Run { campaign: self.id, index, after };
            ctx.spawn(async move { means.cancel(run, &team).await }.into_actor(self));
        }
    }

    /// Decides and appends while nothing else is handled. The decision is taken when the future is first polled: actix
    /// may handle two messages in the same turn, and then the second one's state is that after the first.
    fn record(command: Command, who: Who) -> ResponseActFuture<Self, Result<(), JournalError>> {
        Box::pin(fut::ready(()).then(move |(), actor: &mut Self, _| actor.decide_and_append(command, who)))
    }

    fn decide_and_append(&mut self, command: Command, who: Who) -> ResponseActFuture<Self, Result<(), JournalError>> {
        let decided = decide(self.loaded.as_ref().map(|loaded| &*loaded.state), command);
        let (events, revision) = match (decided, &self.loaded) {
            (Err(refusal), _) => return Box::pin(fut::ready(Err(JournalError::Refused(refusal)))),
            (Ok(events), Some(loaded)) if !events.is_empty() => (events, loaded.revision),
            (Ok(_), _) => return Box::pin(fut::ready(Ok(()))),
        };
        let (id, store) = (self.id, Arc::clone(&self.means.intake.store));
        let append = async move {
            let appended = journal::append(&*store, id, revision, &events, &who).await;
            (appended, events)
        };
        Box::pin(append.into_actor(self).map(|(appended, events), actor, ctx| match appended {
            Ok(appended) => {
                actor.loaded = actor.loaded.take().map(|loaded| loaded.after::<CampaignId>(&events, appended.revision));
                Ok(())
            }
            Err(error) => {
                if let JournalError::Store(StoreError::WrongExpectedRevision { .. }) = &error {
                    tracing::warn!(campaign = %actor.id, "another writer was at this campaign; it is read again");
                    actor.depart(ctx, Departure::Died);
                }
                Err(error)
            }
        }))
    }
}

impl Actor for CampaignActor {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.set_mailbox_capacity(MAILBOX);
        let (id, store) = (self.id, Arc::clone(&self.means.intake.store));
        let load = async move { journal::load(&*store, id).await };
        ctx.wait(load.into_actor(self).map(|loaded, actor, ctx| match loaded {
            Ok(loaded) => {
                actor.loaded = loaded;
                ctx.notify(Proceed);
            }
            Err(error) => {
                tracing::error!(campaign = %actor.id, %error, "the campaign's stream does not read");
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

impl Drop for CampaignActor {
    fn drop(&mut self) {
        // Only after a panic: `stopped` was not called.
        if let Some(farewell) = self.farewell.take() {
            farewell(self.id, Departure::Died);
        }
    }
}

impl Handler<Ask> for CampaignActor {
    type Result = AtomicResponse<Self, Result<(), AskError>>;

    fn handle(&mut self, Ask { command, who }: Ask, _ctx: &mut Self::Context) -> Self::Result {
        AtomicResponse::new(Box::pin(Self::record(command, who).map(|result, _, ctx| {
            ctx.notify(Proceed);
            result.map_err(AskError::from)
        })))
    }
}

impl Handler<Act> for CampaignActor {
    type Result = AtomicResponse<Self, ()>;

    fn handle(&mut self, Act(command): Act, _ctx: &mut Self::Context) -> Self::Result {
        let team = self.loaded.as_ref().map(|loaded| loaded.state.spec.template.team.clone()).unwrap_or_default();
        let recorded = Self::record(command.clone(), who(self.id, &team));
        AtomicResponse::new(Box::pin(recorded.map(move |result, actor, ctx| {
            if let (Command::RecordChild { index, run, .. }, true) = (&command, !is_trouble(&result))
                && actor.followed.get(index).is_some_and(|followed| followed.run == *run)
            {
                actor.followed.remove(index);
            }
            match result {
                // What was refused stands otherwise by now: what is next is asked anew.
                Ok(()) | Err(JournalError::Refused(_)) => ctx.notify(Proceed),
                Err(JournalError::Store(StoreError::WrongExpectedRevision { .. })) => {}
                Err(JournalError::Store(error @ (StoreError::Overloaded | StoreError::Failed(_)))) => {
                    tracing::warn!(campaign = %actor.id, %error, "the store did not take it; trying again");
                    ctx.run_later(PAUSE, |_, ctx| ctx.notify(Act(command)));
                }
                Err(error) => {
                    tracing::error!(campaign = %actor.id, %error, "what a campaign did cannot be recorded");
                    actor.depart(ctx, Departure::Died);
                }
            }
        })))
    }
}

/// Whether the store was in the way, and not the campaign's own rules.
fn is_trouble(result: &Result<(), JournalError>) -> bool {
    matches!(result, Err(JournalError::Store(_) | JournalError::Damaged(_)))
}

impl Handler<Opened> for CampaignActor {
    type Result = ();

    fn handle(&mut self, Opened(index, opened): Opened, ctx: &mut Self::Context) {
        if let Some(followed) = self.followed.get_mut(&index) {
            followed.opened.push(opened);
        }
        self.proceed(ctx);
    }
}

impl Handler<Proceed> for CampaignActor {
    type Result = ();

    fn handle(&mut self, _: Proceed, ctx: &mut Self::Context) {
        self.proceed(ctx);
    }
}

impl Handler<Drain> for CampaignActor {
    type Result = ();

    fn handle(&mut self, _: Drain, ctx: &mut Self::Context) {
        self.draining = true;
        self.proceed(ctx);
    }
}

impl From<Refusal> for AskError {
    fn from(refusal: Refusal) -> Self {
        Self::Journal(JournalError::Refused(refusal))
    }
}
