//! The supervisor of the task actors: makes one from its stream when somebody needs it, and makes it again when it
//! dies.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use actix::prelude::*;
use orchestra_events::task::command::{Command, Then};
use orchestra_events::{Actor as Who, EventStore, Failure, FailureCode, TaskId};

use crate::scheduler::{Enqueue, Leave, Scheduler};
use crate::task::{Ask, AskError, Departure, Drain, Proceed, TaskActor, Work};
use crate::workshop::Workshop;

/// Messages that may wait for the supervisor: every caller's command and every departure passes here.
pub const MAILBOX: usize = 4_096;
/// How often a task's actor may die in a row before the task is failed.
pub const MOST_DEATHS: u32 = 3;
/// The wait before a dead actor is made again; doubled with each death.
const FIRST_REVIVAL: Duration = Duration::from_millis(200);
/// How often an actor that left just before the message came is made again for it.
const ASK_TRIES: u32 = 3;

/// Owns the factory of task actors.
pub struct TaskSupervisor {
    store: Arc<dyn EventStore>,
    workshop: Arc<Workshop>,
    scheduler: Addr<Scheduler>,
    arbiters: Vec<ArbiterHandle>,
    next_arbiter: usize,
    live: HashMap<TaskId, Live>,
    deaths: HashMap<TaskId, u32>,
    draining: bool,
}

struct Live {
    address: Addr<TaskActor>,
    has_place: bool,
    /// Tells this actor's farewell from that of one that had the task before.
    number: u64,
}

/// Passes a caller's wish to a task's actor.
#[derive(Message)]
#[rtype(result = "Result<(), AskError>")]
pub struct Tell {
    /// The task.
    pub id: TaskId,
    /// What is asked of it.
    pub command: Command,
    /// By whom.
    pub who: Who,
}

/// The scheduler has a place for this task.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Start(pub TaskId);

#[derive(Message)]
#[rtype(result = "()")]
struct Left {
    id: TaskId,
    number: u64,
    departure: Departure,
}

/// How many actors are alive and how many of them hold a place.
#[derive(Message)]
#[rtype(result = "(usize, usize)")]
pub struct Count;

impl TaskSupervisor {
    /// A supervisor whose actors run on these arbiters, away from the web workers.
    pub fn new(
        store: Arc<dyn EventStore>,
        workshop: Arc<Workshop>,
        scheduler: Addr<Scheduler>,
        arbiters: Vec<ArbiterHandle>,
    ) -> Self {
        let (live, deaths) = (HashMap::new(), HashMap::new());
        Self { store, workshop, scheduler, arbiters, next_arbiter: 0, live, deaths, draining: false }
    }

    /// The task's actor, made from its stream if there is none.
    fn actor(&mut self, id: TaskId, ctx: &mut Context<Self>) -> Addr<TaskActor> {
        if let Some(live) = self.live.get(&id)
            && live.address.connected()
        {
            return live.address.clone();
        }
        // One that has left and whose farewell is still on its way: from here on nobody listens to it, so its place is given
        // back now. Otherwise the scheduler would take the task for one that works, and never give it a place again.
        if self.live.remove(&id).is_some_and(|gone| gone.has_place) {
            self.tell_scheduler(Leave(id), ctx);
        }
        self.next_arbiter += 1;
        let number = self.next_arbiter as u64;
        let arbiter = &self.arbiters[self.next_arbiter % self.arbiters.len()];
        let supervisor = ctx.address();
        let farewell = Box::new(move |id, departure| {
            // The mailbox is bounded; a farewell that finds it full is repeated by whoever asks for the task next.
            if let Err(error) = supervisor.try_send(Left { id, number, departure }) {
                tracing::error!(task = %id, %error, "an actor's farewell was lost");
            }
        });
        let (store, workshop) = (Arc::clone(&self.store), Arc::clone(&self.workshop));
        let address = TaskActor::start_in_arbiter(arbiter, move |_| TaskActor::new(id, store, workshop, farewell));
        self.live.insert(id, Live { address: address.clone(), has_place: false, number });
        metrics::gauge!("orchestra_task_actors").set(self.live.len() as f64);
        address
    }

    fn give_place(&mut self, id: TaskId, ctx: &mut Context<Self>) {
        if self.draining {
            return;
        }
        let address = self.actor(id, ctx);
        if let Some(live) = self.live.get_mut(&id) {
            live.has_place = true;
        }
        if address.try_send(Work).is_err() {
            // It is leaving; its farewell gives the place back.
            tracing::debug!(task = %id, "a place came while the actor was leaving");
            ctx.run_later(FIRST_REVIVAL, move |supervisor, ctx| supervisor.give_place(id, ctx));
        }
    }

    fn tell_scheduler<M>(&self, message: M, ctx: &mut Context<Self>)
    where
        M: Message<Result = ()> + Clone + Send + Unpin + 'static,
        Scheduler: Handler<M>,
    {
        let scheduler = self.scheduler.clone();
        // `send` waits for room in the scheduler's mailbox; nothing is dropped.
        ctx.spawn(scheduler.send(message).into_actor(self).map(|sent, _, _| {
            if sent.is_err() {
                // Only when the process ends: the scheduler lives as long as the supervisor.
                tracing::debug!("the scheduler is gone");
            }
        }));
    }

    /// An actor died: make it again, or fail its task for good.
    fn died(&mut self, id: TaskId, has_place: bool, ctx: &mut Context<Self>) {
        let deaths = self.deaths.entry(id).or_default();
        *deaths += 1;
        let count = *deaths;
        metrics::counter!("orchestra_task_actor_deaths_total").increment(1);
        if count > MOST_DEATHS {
            tracing::error!(task = %id, "the task's actor died {count} times; its task is failed");
            self.deaths.remove(&id);
            if has_place {
                // The failed task is queued once more, to be cleaned up after.
                self.tell_scheduler(Leave(id), ctx);
            }
            let failure = Failure::new(FailureCode::Internal, format!("The task's actor died {count} times."));
            let command = Command::RecordFailure { failure, then: Then::GiveUp };
            let address = self.actor(id, ctx);
            let ask = Ask { command, who: Who::system("supervisor") };
            ctx.spawn(async move { drop(address.send(ask).await) }.into_actor(self));
            return;
        }
        let wait = FIRST_REVIVAL.saturating_mul(1 << count.min(8));
        tracing::warn!(task = %id, "the task's actor died ({count} of {MOST_DEATHS}); again in {wait:?}");
        ctx.run_later(wait, move |supervisor, ctx| {
            if has_place {
                supervisor.give_place(id, ctx);
            } else if supervisor.actor(id, ctx).try_send(Proceed).is_err() {
                tracing::debug!(task = %id, "the task is looked at when it is next asked for");
            }
        });
    }
}

impl Actor for TaskSupervisor {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.set_mailbox_capacity(MAILBOX);
    }
}

impl Handler<Tell> for TaskSupervisor {
    type Result = ResponseFuture<Result<(), AskError>>;

    fn handle(&mut self, Tell { id, command, who }: Tell, ctx: &mut Self::Context) -> Self::Result {
        let first = self.actor(id, ctx);
        let supervisor = ctx.address();
        Box::pin(async move {
            let mut address = first;
            for _ in 0..ASK_TRIES {
                match address.send(Ask { command: command.clone(), who: who.clone() }).await {
                    Ok(answer) => return answer,
                    Err(MailboxError::Timeout) => return Err(AskError::Busy),
                    // It left just before the message came.
                    Err(MailboxError::Closed) => match supervisor.send(Fetch(id)).await {
                        Ok(fetched) => address = fetched,
                        Err(_) => return Err(AskError::Busy),
                    },
                }
            }
            Err(AskError::Busy)
        })
    }
}

#[derive(Message)]
#[rtype(result = "Addr<TaskActor>")]
struct Fetch(TaskId);

impl Handler<Fetch> for TaskSupervisor {
    type Result = MessageResult<Fetch>;

    fn handle(&mut self, Fetch(id): Fetch, ctx: &mut Self::Context) -> Self::Result {
        MessageResult(self.actor(id, ctx))
    }
}

impl Handler<Start> for TaskSupervisor {
    type Result = ();

    fn handle(&mut self, Start(id): Start, ctx: &mut Self::Context) {
        self.give_place(id, ctx);
    }
}

impl Handler<Left> for TaskSupervisor {
    type Result = ();

    fn handle(&mut self, Left { id, number, departure }: Left, ctx: &mut Self::Context) {
        let current = self.live.get(&id).is_some_and(|live| live.number == number);
        if !current {
            return;
        }
        let had_place = self.live.remove(&id).is_some_and(|live| live.has_place);
        metrics::gauge!("orchestra_task_actors").set(self.live.len() as f64);
        match departure {
            Departure::Died => self.died(id, had_place, ctx),
            Departure::Idle { .. } | Departure::Fenced => {
                self.deaths.remove(&id);
                if had_place {
                    self.tell_scheduler(Leave(id), ctx);
                }
                if departure == (Departure::Idle { wants_place: true }) {
                    let (store, scheduler) = (Arc::clone(&self.store), self.scheduler.clone());
                    let enqueue = async move {
                        match crate::journal::load(&*store, id).await {
                            Ok(Some(loaded)) => {
                                let team = loaded.state.spec.team.clone();
                                if scheduler.send(Enqueue { id, team }).await.is_err() {
                                    tracing::debug!(task = %id, "the scheduler is gone");
                                }
                            }
                            Ok(None) => {}
                            Err(error) => tracing::error!(task = %id, %error, "the task cannot be queued again"),
                        }
                    };
                    ctx.spawn(enqueue.into_actor(self));
                }
            }
        }
    }
}

impl Handler<Drain> for TaskSupervisor {
    type Result = ();

    fn handle(&mut self, _: Drain, ctx: &mut Self::Context) {
        self.draining = true;
        for live in self.live.values() {
            ctx.spawn(live.address.send(Drain).into_actor(self).map(|_, _, _| ()));
        }
    }
}

impl Handler<Count> for TaskSupervisor {
    type Result = MessageResult<Count>;

    fn handle(&mut self, _: Count, _ctx: &mut Self::Context) -> Self::Result {
        MessageResult((self.live.len(), self.live.values().filter(|live| live.has_place).count()))
    }
}
