//! How many tasks a caller and a team may have open at once: counted here, before a task is let in.
//!
//! The count is a fold of the log, kept up to date by following it: `created` and `queued` open a task, its end closes
//! it. Who submits takes a place first, under one lock, and gives it back if the task does not come to be; so however
//! many submit at the same moment, no more get in than there are places. What ends is counted down once it is read from
//! the log, so for a moment there may be fewer places than there could be, and never more.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use orchestra_events::store::Filter;
use orchestra_events::subscription::Subscription;
use orchestra_events::task::TaskEvent;
use orchestra_events::{
    Actor as Who, ActorKind, CampaignId, Direction, Envelope, EventStore, Position, Revision, StoreError, StreamName,
    TaskId,
};
use tokio::sync::watch;

use crate::reaper::Open;
use crate::service::ServiceError;

/// Seconds after which a caller who had no place may try again. When a task ends nobody knows.
pub const RETRY_AFTER_SECONDS: u32 = 10;
/// The pause before the log is read again after it failed.
const PAUSE: Duration = Duration::from_secs(1);
/// The events that open and close a task.
const KINDS: [&str; 5] = ["created", "queued", "succeeded", "failed", "cancelled"];

/// How many tasks may be open at once. Asked at every submission, because keys and configurations change.
pub trait TaskLimits: Send + Sync + 'static {
    /// Of this caller, by the id that their events carry. `None`: no limit.
    fn of_caller(&self, id: &str) -> Option<u32>;
    /// Of this team.
    fn of_team(&self, team: &str) -> Option<u32>;
}

/// Whose place a task takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Owner {
    /// The team.
    pub team: Arc<str>,
    /// Who asked for it; none where nobody is limited by it.
    pub caller: Option<Arc<str>>,
}

impl Owner {
    /// Of a task of this team that this actor asked for.
    pub fn of(team: &str, who: &Who) -> Self {
        let limited = matches!(who.kind, ActorKind::ApiKey | ActorKind::Person);
        Self { team: team.into(), caller: limited.then(|| who.id.as_str().into()) }
    }

    /// Of a task of this team that stands in the read models as asked for by this key, person or campaign.
    pub async fn again(store: &dyn EventStore, team: &str, asked: Option<&str>) -> Result<Self, StoreError> {
        let caller = match asked.map(|id| (id, id.parse::<CampaignId>())) {
            Some((_, Ok(campaign))) => creator(store, campaign).await?.and_then(|who| Self::of(team, &who).caller),
            Some((id, Err(_))) => Some(id.into()),
            None => None,
        };
        Ok(Self { team: team.into(), caller })
    }
}

#[derive(Default)]
struct Counts {
    open: HashMap<TaskId, Owner>,
    teams: HashMap<Arc<str>, u32>,
    callers: HashMap<Arc<str>, u32>,
    /// Tasks that go on although their end was not read from the log yet, and how many such ends there are.
    ends_to_come: HashMap<TaskId, u32>,
    /// What was open when the process started is counted.
    loaded: bool,
}

impl Counts {
    fn insert(&mut self, id: TaskId, owner: Owner) {
        if self.open.contains_key(&id) {
            return;
        }
        *self.teams.entry(Arc::clone(&owner.team)).or_default() += 1;
        if let Some(caller) = &owner.caller {
            *self.callers.entry(Arc::clone(caller)).or_default() += 1;
        }
        self.open.insert(id, owner);
    }

    /// A task has ended, or did not go on after all: it has no place any more, unless it went on meanwhile.
    fn ended(&mut self, id: TaskId) {
        match self.ends_to_come.get_mut(&id) {
            Some(1) => drop(self.ends_to_come.remove(&id)),
            Some(ends) => *ends -= 1,
            None => self.remove(id),
        }
    }

    fn remove(&mut self, id: TaskId) {
        let Some(owner) = self.open.remove(&id) else { return };
        less(&mut self.teams, &owner.team);
        if let Some(caller) = &owner.caller {
            less(&mut self.callers, caller);
        }
    }
}

fn less(counts: &mut HashMap<Arc<str>, u32>, name: &Arc<str>) {
    if let Some(count) = counts.get_mut(name) {
        *count -= 1;
        if *count == 0 {
            counts.remove(name);
        }
    }
}

/// Who has how many tasks open.
pub(crate) struct Admission {
    limits: OnceLock<Arc<dyn TaskLimits>>,
    counts: Mutex<Counts>,
}

/// A place that was taken. Given back when dropped, unless it is kept.
pub(crate) struct Place {
    admission: Arc<Admission>,
    id: Option<TaskId>,
}

impl Place {
    /// The task has come to be: its end gives the place back.
    pub fn keep(mut self) {
        self.id = None;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(id) = self.id {
            self.admission.change(|counts| counts.ended(id));
        }
    }
}

impl Admission {
    /// Nobody has any yet, and nobody is limited.
    pub fn new() -> Arc<Self> {
        Arc::new(Self { limits: OnceLock::new(), counts: Mutex::default() })
    }

    /// Has these limits hold. Once. Submissions that are limited are put off until [`load`](Self::load).
    pub fn limit(&self, limits: Arc<dyn TaskLimits>) {
        if self.limits.set(limits).is_err() {
            tracing::warn!("the limits of open tasks are set already");
        }
    }

    fn change<T>(&self, change: impl FnOnce(&mut Counts) -> T) -> T {
        change(&mut self.counts.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Takes a place for a task. One that has a place already takes none.
    ///
    /// # Errors
    /// `TooManyTasks` when there is none, `Busy` until it is known how many were open at the start.
    pub fn take(self: &Arc<Self>, id: TaskId, owner: Owner) -> Result<Place, ServiceError> {
        self.enter(id, owner, false)
    }

    /// Takes a place for a task that is over and is to go on. Where its end was not read from the log yet it has its place
    /// still, and keeps it when that end is read.
    ///
    /// # Errors
    /// As of [`take`](Self::take).
    pub fn take_again(self: &Arc<Self>, id: TaskId, owner: Owner) -> Result<Place, ServiceError> {
        self.enter(id, owner, true)
    }

    fn enter(self: &Arc<Self>, id: TaskId, owner: Owner, again: bool) -> Result<Place, ServiceError> {
        // Asked before the lock: they look into configurations and keys of their own.
        let limits = self.limits.get();
        let of_team = limits.and_then(|limits| limits.of_team(&owner.team));
        let of_caller = limits.zip(owner.caller.as_ref()).and_then(|(limits, caller)| limits.of_caller(caller));
        self.change(|counts| {
            if counts.open.contains_key(&id) {
                if again {
                    *counts.ends_to_come.entry(id).or_default() += 1;
                }
                return Ok(Place { admission: Arc::clone(self), id: again.then_some(id) });
            }
            if !counts.loaded && (of_team.is_some() || of_caller.is_some()) {
                return Err(ServiceError::Busy);
            }
            let open = |counts: &HashMap<Arc<str>, u32>, name: &Arc<str>| counts.get(name).copied().unwrap_or(0);
            let team = of_team.filter(|most| open(&counts.teams, &owner.team) >= *most);
            let caller = owner.caller.as_ref();
            let caller = of_caller.filter(|most| caller.is_some_and(|caller| open(&counts.callers, caller) >= *most));
            if let Some(most) = caller {
                return Err(ServiceError::TooManyTasks { of_team: false, most });
            }
            if let Some(most) = team {
                return Err(ServiceError::TooManyTasks { of_team: true, most });
            }
            counts.insert(id, owner);
            Ok(Place { admission: Arc::clone(self), id: Some(id) })
        })
    }

    /// Counts what was open at a place in the log.
    pub async fn load(&self, store: &dyn EventStore, open: &[Open]) -> Result<(), StoreError> {
        let mut owners = Vec::with_capacity(open.len());
        for task in open {
            owners.push((task.id, Owner::again(store, &task.team, task.created_by.as_deref()).await?));
        }
        self.change(|counts| {
            for (id, owner) in owners {
                counts.insert(id, owner);
            }
            counts.loaded = true;
        });
        Ok(())
    }

    /// Follows the log from a place on, until the other end of `stop` is gone.
    pub async fn follow(self: Arc<Self>, store: Arc<dyn EventStore>, from: Position, mut stop: watch::Receiver<()>) {
        let mut at = from;
        loop {
            let filter = Filter { category: Some("task".to_owned()), ..Filter::types(KINDS) };
            let mut subscription = Subscription::all(Arc::clone(&store), at, filter);
            let error = loop {
                let next = tokio::select! {
                    next = subscription.next() => next,
                    _ = stop.changed() => return,
                };
                let seen = match next {
                    Ok(envelope) => self.see(&*store, &envelope).await.map(|()| envelope.position),
                    Err(error) => Err(error),
                };
                match seen {
                    Ok(position) => at = position,
                    Err(error) => break error,
                }
            };
            tracing::error!("the log could not be followed to count open tasks: {error}; trying again in {PAUSE:?}");
            tokio::select! {
                () = tokio::time::sleep(PAUSE) => {}
                _ = stop.changed() => return,
            }
        }
    }

    async fn see(&self, store: &dyn EventStore, envelope: &Envelope) -> Result<(), StoreError> {
        let Some(id) = envelope.stream.task_id() else { return Ok(()) };
        if !matches!(&*envelope.kind, "created" | "queued") {
            self.change(|counts| counts.ended(id));
            return Ok(());
        }
        if self.change(|counts| counts.open.contains_key(&id)) {
            return Ok(());
        }
        // Let in by another node, or open again: its first event says whose it is.
        let first = store.read_stream(&envelope.stream, Some(Revision(0)), Direction::Forwards, 1).await?;
        if let Some(owner) = match first.first() {
            Some(created) => owner_of(store, created).await?,
            None => None,
        } {
            self.change(|counts| counts.insert(id, owner));
        }
        Ok(())
    }
}

/// Who asked for a campaign.
pub(crate) async fn creator(store: &dyn EventStore, campaign: CampaignId) -> Result<Option<Who>, StoreError> {
    let stream = StreamName::campaign(campaign);
    let first = store.read_stream(&stream, Some(Revision(0)), Direction::Forwards, 1).await?;
    Ok(first.into_iter().next().map(|created| created.actor))
}

/// Whose place a task takes, by its first event: that of who asked for it, or for its campaign.
async fn owner_of(store: &dyn EventStore, created: &Envelope) -> Result<Option<Owner>, StoreError> {
    let Ok(Some(TaskEvent::Created(spec))) = TaskEvent::decode(created) else { return Ok(None) };
    let asked = match spec.campaign {
        Some(campaign) => creator(store, campaign).await?,
        None => None,
    };
    Ok(Some(Owner::of(&spec.team, asked.as_ref().unwrap_or(&created.actor))))
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    struct Fixed(Option<u32>, Option<u32>);

    impl TaskLimits for Fixed {
        fn of_caller(&self, _: &str) -> Option<u32> {
            self.0
        }

        fn of_team(&self, _: &str) -> Option<u32> {
            self.1
        }
    }

    fn task(number: u128) -> TaskId {
        TaskId::from_uuid(Uuid::from_u128(number))
    }

    fn owner(team: &str, key: &str) -> Owner {
        Owner { team: team.into(), caller: Some(key.into()) }
    }

    fn loaded(of_caller: Option<u32>, of_team: Option<u32>) -> Arc<Admission> {
        let admission = Admission::new();
        admission.limit(Arc::new(Fixed(of_caller, of_team)));
        admission.change(|counts| counts.loaded = true);
        admission
    }

    #[test]
    fn exactly_as_many_get_in_as_there_are_places_however_many_try_at_once() {
        for _ in 0..20 {
            let admission = loaded(Some(5), None);
            let barrier = std::sync::Barrier::new(64);
            let taken: Vec<_> = std::thread::scope(|scope| {
                let tries: Vec<_> = (0..64)
                    .map(|number| {
                        let (admission, barrier) = (&admission, &barrier);
                        scope.spawn(move || {
                            barrier.wait();
                            admission.take(task(number), owner("platform", "key_1"))
                        })
                    })
                    .collect();
                tries.into_iter().map(|taken| taken.join().expect("no panic")).collect()
            });
            let (in_, out): (Vec<_>, Vec<_>) = taken.into_iter().partition(Result::is_ok);
            assert_eq!((in_.len(), out.len()), (5, 59));
            for refused in out {
                assert!(matches!(refused, Err(ServiceError::TooManyTasks { of_team: false, most: 5 })));
            }
        }
    }

    #[test]
    fn a_place_comes_back_when_the_task_did_not_come_to_be_or_has_ended() {
        let admission = loaded(None, Some(1));
        let place = admission.take(task(1), owner("platform", "key_1")).expect("the first");
        assert!(admission.take(task(2), owner("platform", "key_2")).is_err(), "the team's only one");
        assert!(admission.take(task(3), owner("mobile", "key_1")).is_ok(), "another team has its own");
        drop(place);
        admission.take(task(2), owner("platform", "key_2")).expect("it came back").keep();
        let again = admission.take(task(2), owner("platform", "key_2")).expect("a repeat has its place");
        drop(again);
        assert!(admission.take(task(4), owner("platform", "key_1")).is_err(), "and does not give it back");
        admission.change(|counts| counts.remove(task(2)));
        assert!(admission.take(task(4), owner("platform", "key_1")).is_ok());
        assert!(
            admission.change(|counts| counts.callers.is_empty() && counts.teams.is_empty()),
            "nothing is left behind"
        );
    }

    #[test]
    fn a_task_that_goes_on_before_its_end_is_read_keeps_its_place() {
        let admission = loaded(Some(1), None);
        let own = || owner("platform", "key_1");
        let full = |admission: &Arc<Admission>| admission.take(task(9), own()).is_err();
        admission.take(task(1), own()).expect("the first").keep();
        // It fails, and goes on: only then its end is read.
        admission.take_again(task(1), own()).expect("its own place").keep();
        admission.change(|counts| counts.ended(task(1)));
        assert!(full(&admission), "it is open");
        // One retry that was refused, before and after the end is read.
        drop(admission.take_again(task(1), own()).expect("its own place"));
        assert!(full(&admission));
        let late = admission.take_again(task(1), own()).expect("its own place");
        admission.change(|counts| counts.ended(task(1)));
        assert!(full(&admission), "as long as it may go on");
        drop(late);
        assert!(!full(&admission), "it does not, and its end was read");
        // Two at once, of which one goes on.
        admission.take(task(1), own()).expect("free").keep();
        let two = [0, 1].map(|_| admission.take_again(task(1), own()).expect("its own place"));
        admission.change(|counts| counts.ended(task(1)));
        let [goes_on, refused] = two;
        goes_on.keep();
        drop(refused);
        assert!(full(&admission));
        admission.change(|counts| counts.ended(task(1)));
        assert!(!full(&admission));
        assert!(admission.change(|counts| counts.ends_to_come.is_empty() && counts.open.is_empty()));
    }

    #[test]
    fn before_it_is_known_what_is_open_nobody_is_let_in_under_a_limit() {
        let admission = Admission::new();
        admission.limit(Arc::new(Fixed(Some(5), None)));
        assert!(matches!(admission.take(task(1), owner("platform", "key_1")), Err(ServiceError::Busy)));
        let free = Admission::new();
        assert!(free.take(task(1), owner("platform", "key_1")).is_ok());
    }
}
