//! The scheduler: which task gets one of this node's places next. Fair between teams, first come within one.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};

use actix::prelude::*;
use orchestra_events::TaskId;

use crate::supervisor::Start;

/// Messages that may wait for the scheduler.
pub const MAILBOX: usize = 4_096;

/// How much runs at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capacity {
    /// Places on this node.
    pub places: usize,
    /// Places that one team may hold.
    pub per_team: usize,
}

/// Who waits and who works: no actor in it, so that a test can ask it anything.
#[derive(Debug)]
pub struct Line {
    capacity: Capacity,
    waiting: BTreeMap<String, VecDeque<TaskId>>,
    queued: HashSet<TaskId>,
    working: HashMap<TaskId, String>,
    last_served: Option<String>,
}

impl Line {
    /// An empty line.
    pub fn new(capacity: Capacity) -> Self {
        Self { capacity, waiting: BTreeMap::new(), queued: HashSet::new(), working: HashMap::new(), last_served: None }
    }

    /// A task joins the end of its team's line, unless it waits or works already.
    pub fn join(&mut self, id: TaskId, team: &str) {
        if !self.working.contains_key(&id) && self.queued.insert(id) {
            self.waiting.entry(team.to_owned()).or_default().push_back(id);
        }
    }

    /// A task gives its place back.
    pub fn leave(&mut self, id: TaskId) {
        self.working.remove(&id);
    }

    /// How many wait, and how many work.
    pub fn lengths(&self) -> (usize, usize) {
        (self.queued.len(), self.working.len())
    }

    /// The next task to get a place: the teams take turns.
    pub fn serve_next(&mut self) -> Option<TaskId> {
        if self.working.len() >= self.capacity.places {
            return None;
        }
        let mut held: HashMap<&str, usize> = HashMap::new();
        for team in self.working.values() {
            *held.entry(team).or_default() += 1;
        }
        let has_room = |team: &&String| held.get(team.as_str()).is_none_or(|held| *held < self.capacity.per_team);
        let after = self.last_served.as_ref();
        let later = self.waiting.keys().filter(|team| after.is_some_and(|after| *team > after)).find(has_room);
        let team = later.or_else(|| self.waiting.keys().find(has_room))?.clone();
        let line = self.waiting.get_mut(&team)?;
        let id = line.pop_front()?;
        if line.is_empty() {
            self.waiting.remove(&team);
        }
        self.queued.remove(&id);
        self.working.insert(id, team.clone());
        self.last_served = Some(team);
        Some(id)
    }
}

/// Gives out this node's places.
pub struct Scheduler {
    line: Line,
    supervisor: Option<Recipient<Start>>,
}

impl Scheduler {
    /// A scheduler that starts nothing before it knows a supervisor.
    pub fn new(capacity: Capacity) -> Self {
        Self { line: Line::new(capacity), supervisor: None }
    }

    fn serve(&mut self, ctx: &mut Context<Self>) {
        let Some(supervisor) = self.supervisor.clone() else { return };
        while let Some(id) = self.line.serve_next() {
            let supervisor = supervisor.clone();
            ctx.spawn(supervisor.send(Start(id)).into_actor(self).map(move |sent, _, _| {
                if sent.is_err() {
                    // Only when the process ends: the supervisor lives as long as the scheduler.
                    tracing::debug!(task = %id, "a place was given to nobody");
                }
            }));
        }
        let (waiting, working) = self.line.lengths();
        metrics::gauge!("orchestra_tasks_waiting").set(waiting as f64);
        metrics::gauge!("orchestra_tasks_working").set(working as f64);
    }
}

/// Whom to tell that a task has a place.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Serve(pub Recipient<Start>);

/// A task wants a place.
#[derive(Message, Clone)]
#[rtype(result = "()")]
pub struct Enqueue {
    /// The task.
    pub id: TaskId,
    /// Its team.
    pub team: String,
}

/// A task gives its place back.
#[derive(Message, Clone)]
#[rtype(result = "()")]
pub struct Leave(pub TaskId);

/// How many wait, and how many work.
#[derive(Message)]
#[rtype(result = "(usize, usize)")]
pub struct Lengths;

impl Actor for Scheduler {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.set_mailbox_capacity(MAILBOX);
    }
}

impl Handler<Serve> for Scheduler {
    type Result = ();
    fn handle(&mut self, Serve(supervisor): Serve, ctx: &mut Self::Context) {
        self.supervisor = Some(supervisor);
        self.serve(ctx);
    }
}

impl Handler<Enqueue> for Scheduler {
    type Result = ();
    fn handle(&mut self, Enqueue { id, team }: Enqueue, ctx: &mut Self::Context) {
        self.line.join(id, &team);
        self.serve(ctx);
    }
}

impl Handler<Leave> for Scheduler {
    type Result = ();
    fn handle(&mut self, Leave(id): Leave, ctx: &mut Self::Context) {
        self.line.leave(id);
        self.serve(ctx);
    }
}

impl Handler<Lengths> for Scheduler {
    type Result = MessageResult<Lengths>;
    fn handle(&mut self, _: Lengths, _ctx: &mut Self::Context) -> Self::Result {
        MessageResult(self.line.lengths())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(number: u128) -> TaskId {
        TaskId::from_uuid(uuid::Uuid::from_u128(number))
    }

    #[test]
    fn teams_take_turns_and_within_one_it_is_first_come() {
        let mut line = Line::new(Capacity { places: 4, per_team: 3 });
        for number in 1..=4 {
            line.join(id(number), "a");
        }
        line.join(id(11), "b");
        line.join(id(1), "a");
        assert_eq!(line.lengths(), (5, 0));
        let served: Vec<_> = std::iter::from_fn(|| line.serve_next()).collect();
        assert_eq!(served, [id(1), id(11), id(2), id(3)]);
        line.leave(id(11));
        assert_eq!(line.serve_next(), None, "team a holds its three");
        line.leave(id(1));
        assert_eq!(line.serve_next(), Some(id(4)));
    }

    #[test]
    fn a_task_that_works_does_not_join_again() {
        let mut line = Line::new(Capacity { places: 2, per_team: 2 });
        line.join(id(1), "a");
        assert_eq!(line.serve_next(), Some(id(1)));
        line.join(id(1), "a");
        assert_eq!(line.serve_next(), None);
        line.leave(id(1));
        line.leave(id(1));
        assert_eq!(line.lengths(), (0, 0));
    }
}
