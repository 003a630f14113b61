//! The ledgers: one actor per team, made when somebody asks for its money.
//!
//! [`Ledgers`] is what everybody else holds. It knows no actix in its interface, makes an actor when one is needed or
//! has died, and asks again where asking twice is harmless. The actor decides on a fold of the team's stream and
//! answers only what the store has taken: see [`actor`].

mod actor;
mod stream;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use actix::prelude::*;
use jiff::Timestamp;
use jiff::tz::TimeZone;
use orchestra_events::envelope::StreamNameError;
use orchestra_events::ledger::{
    Amount, Budget, Cap, Command, Fitted, Path, Quote, Refusal, Reserve, Reserved, Scope, Settle, Settled, View, fits,
    view,
};
use orchestra_events::task::conversation::Usage;
use orchestra_events::{
    Actor as Who, CallId, CampaignId, EventStore, Failure, FailureCode, NanoUsd, StoreError, StreamName, TaskId,
};
use tokio::sync::oneshot;

use self::actor::{Ask, LedgerActor, Reply, Standing, Wish};

pub use self::actor::{MAILBOX, PARKED, QUEUE, RESERVE_QUEUE};
pub use self::stream::SEARCHED;

/// How long a call that does not fit waits for one that is under way to need less than was set aside for it.
pub const RESERVE_WAIT: Duration = Duration::from_secs(15);
/// How often something is asked again of an actor that died, or of a store that was overloaded.
const TRIES: u32 = 5;
/// The wait before that; doubled each time.
const PAUSE: Duration = Duration::from_millis(20);

/// Tells the time.
pub type Clock = Arc<dyn Fn() -> Timestamp + Send + Sync>;

/// What a test sets otherwise.
#[derive(Clone)]
pub struct Settings {
    /// How long a call that does not fit waits for room.
    pub reserve_wait: Duration,
    /// What time it is.
    pub clock: Clock,
}

impl Default for Settings {
    fn default() -> Self {
        Self { reserve_wait: RESERVE_WAIT, clock: Arc::new(Timestamp::now) }
    }
}

/// Why a ledger did not do what it was asked.
#[derive(Debug, Clone, thiserror::Error)]
pub enum LedgerError {
    /// Its state does not allow it. Nothing was recorded.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The store did not take it. Nothing counts.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The stream does not read.
    #[error("the ledger does not read: {0}")]
    Damaged(String),
    /// Not the name of a team.
    #[error(transparent)]
    Team(#[from] StreamNameError),
    /// More is asked of this ledger than the disk keeps up with.
    #[error("too much is asked of this ledger at once; try again")]
    Busy,
    /// The ledger's actor died while it was asked. Whether it was recorded shows when it is asked again.
    #[error("the ledger was interrupted; ask again")]
    Interrupted,
}

impl From<LedgerError> for Failure {
    fn from(error: LedgerError) -> Self {
        match error {
            LedgerError::Refused(Refusal::Exhausted { exhausted, .. }) => (*exhausted).into(),
            LedgerError::Refused(refusal @ Refusal::NoSuchCampaign(_)) => {
                Self::new(FailureCode::BudgetExceeded, format!("The next model call has no budget: {refusal}."))
                    .with_hint("Start a new campaign for the repositories that are left.")
            }
            other => Self::new(FailureCode::Internal, format!("The ledger did not take the model call: {other}.")),
        }
    }
}

/// How a call ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Settlement {
    /// It was paid for.
    Settled(Box<Settled>),
    /// It cost nothing.
    Released,
}

/// Everybody's way to the ledgers. Cheap to clone.
#[derive(Clone)]
pub struct Ledgers {
    house: Arc<House>,
}

struct House {
    store: Arc<dyn EventStore>,
    settings: Settings,
    arbiter: Arbiter,
    actors: Mutex<HashMap<String, Addr<LedgerActor>>>,
}

impl Drop for House {
    fn drop(&mut self) {
        self.arbiter.stop();
    }
}

impl Ledgers {
    /// The ledgers in this store, on a thread of their own. Must be called within an actix system.
    pub fn start(store: Arc<dyn EventStore>) -> Self {
        Self::start_with(store, Settings::default())
    }

    /// The same with other settings.
    pub fn start_with(store: Arc<dyn EventStore>, settings: Settings) -> Self {
        let (arbiter, actors) = (Arbiter::new(), Mutex::default());
        Self { house: Arc::new(House { store, settings, arbiter, actors }) }
    }

    /// Sets aside the most that a call can cost, in every scope on its path at once; durable when it returns. The
    /// output limit may be lower than the quote wanted. Asked again for an open call, it answers what stands.
    ///
    /// A call that would fit once others have ended waits for them, for [`RESERVE_WAIT`] at most. Who stops waiting
    /// must release the call: it may have been reserved just then.
    pub async fn reserve(&self, request: Reserve) -> Result<Reserved, LedgerError> {
        let team = request.path.team.clone();
        let request = Arc::new(request);
        self.ask(&team, |reply| Wish::Reserve { request: Arc::clone(&request), reply }).await
    }

    /// Lowers what is set aside for a call. The ledger remembers, and writes it down when somebody needs the room.
    pub async fn trim(&self, team: &str, call: CallId, to: Amount) -> Result<(), LedgerError> {
        self.act(team, Command::Trim { call, to }, Who::system("ledger")).await
    }

    /// Pays for a call. Harmless for one that has ended.
    pub async fn settle(&self, team: &str, settle: Settle) -> Result<(), LedgerError> {
        let call = settle.call;
        let settled = self.act(team, Command::Settle(Box::new(settle)), Who::system("ledger")).await;
        self.unless_it_has_ended(team, call, settled).await
    }

    /// Gives back what was set aside for a call that cost nothing. Harmless for one that has ended.
    pub async fn release(&self, team: &str, call: CallId) -> Result<(), LedgerError> {
        let released = self.act(team, Command::Release(call), Who::system("ledger")).await;
        self.unless_it_has_ended(team, call, released).await
    }

    /// Reverses a task's charge, from so much of it to so much in all, and says for which tokens; no cap gets it back.
    pub async fn refund(
        &self,
        team: &str,
        task: TaskId,
        from: NanoUsd,
        to: NanoUsd,
        usage: Usage,
        reason: FailureCode,
    ) -> Result<(), LedgerError> {
        let (now, whose) = ((self.house.settings.clock)(), team.to_owned());
        let refund = Command::Refund { task, from, to, usage, reason, team: whose, now };
        self.act(team, refund, Who::system("ledger")).await
    }

    /// What of a task's charges was reversed. For one that the ledger has let go of, looks at the last [`SEARCHED`]
    /// events: a server that was down for days takes up what the last one has left.
    pub async fn refunded(&self, team: &str, task: TaskId) -> Result<NanoUsd, LedgerError> {
        match self.look(team, move |at| at.state.refunded(task)).await? {
            Some(refunded) => Ok(refunded),
            None => stream::refunded(&*self.house.store, &StreamName::ledger(team)?, task).await,
        }
    }

    /// Gives a scope caps in place of those it has; an empty budget takes them away.
    pub async fn set_budget(&self, scope: Scope, budget: Budget, who: Who) -> Result<(), LedgerError> {
        let team = scope.team().to_owned();
        self.act(&team, Command::SetBudget { scope, budget }, who).await
    }

    /// Gives a campaign an account with this cap, which all its tasks share. Harmless for one that has an account; only
    /// for one of which no task has begun.
    pub async fn open_campaign(&self, team: &str, campaign: CampaignId, cap: Cap) -> Result<(), LedgerError> {
        let day = (self.house.settings.clock)().to_zoned(TimeZone::UTC).date();
        self.act(team, Command::OpenCampaign { campaign, cap, day }, Who::system("campaign")).await
    }

    /// A campaign's cap, what its tasks have spent together and what is set aside for them, while it has an account.
    pub async fn campaign(
        &self,
        team: &str,
        campaign: CampaignId,
    ) -> Result<Option<(Cap, Amount, Amount)>, LedgerError> {
        self.look(team, move |at| at.state.campaign(campaign)).await
    }

    /// A scope's caps and where they stand.
    pub async fn budget(&self, scope: Scope) -> Result<View, LedgerError> {
        let team = scope.team().to_owned();
        self.look(&team, move |at| view(at.state, &scope, at.now, at.zones)).await
    }

    /// Every scope of a team that has a budget.
    pub async fn budgets(&self, team: &str) -> Result<Vec<View>, LedgerError> {
        let all =
            |at: &Standing<'_>| at.state.budgets().map(|(scope, _)| view(at.state, scope, at.now, at.zones)).collect();
        self.look(team, all).await
    }

    /// Whether the first call of a new task would fit now. Reserves nothing.
    pub async fn check(&self, path: Path, own: Cap, quote: Quote) -> Result<Fitted, LedgerError> {
        let team = path.team.clone();
        let fitted = self.look(&team, move |at| fits(at.state, &path, own, &quote, at.now, at.zones)).await?;
        Ok(fitted?)
    }

    /// Every call of a team that is reserved and has not ended. At the start of a server these are the calls that
    /// were under way when the last one died, and those of other nodes.
    pub async fn open_calls(&self, team: &str) -> Result<Vec<Reserved>, LedgerError> {
        self.look(team, |at| at.state.open_calls().cloned().collect()).await
    }

    /// The open reservation of a call.
    pub async fn open_call(&self, team: &str, call: CallId) -> Result<Option<Reserved>, LedgerError> {
        self.look(team, move |at| at.state.open_call(call).cloned()).await
    }

    /// How a call ended, if it has; looks at the last [`SEARCHED`] events. For a task that died after the ledger had its
    /// charge and before its own stream had.
    pub async fn settlement_of(&self, team: &str, call: CallId) -> Result<Option<Settlement>, LedgerError> {
        stream::find_end(&*self.house.store, &StreamName::ledger(team)?, call).await
    }

    /// The teams that have a ledger, in the order of their names.
    pub async fn teams(&self) -> Result<Vec<String>, LedgerError> {
        stream::teams(&*self.house.store).await
    }

    async fn act(&self, team: &str, command: Command, who: Who) -> Result<(), LedgerError> {
        let command = Box::new(command);
        self.ask(team, |reply| Wish::Act { command: command.clone(), who: who.clone(), reply }).await
    }

    async fn look<T: Send + 'static>(
        &self,
        team: &str,
        look: impl FnOnce(&Standing<'_>) -> T + Clone + Send + 'static,
    ) -> Result<T, LedgerError> {
        self.ask(team, |reply: Reply<T>| {
            let look = look.clone();
            Wish::Look(Box::new(move |standing| {
                // Whoever does not wait any more does not want to know.
                let _ = reply.send(standing.map(|standing| look(&standing)));
            }))
        })
        .await
    }

    /// The ledger remembers the ends of late; the stream has them all.
    async fn unless_it_has_ended(
        &self,
        team: &str,
        call: CallId,
        answer: Result<(), LedgerError>,
    ) -> Result<(), LedgerError> {
        match answer {
            Err(LedgerError::Refused(Refusal::NoSuchCall(_))) => match self.settlement_of(team, call).await? {
                Some(_) => Ok(()),
                None => answer,
            },
            _ => answer,
        }
    }

    /// Asks until there is an answer: an actor that dies is made again, an overloaded store is given time.
    async fn ask<T>(&self, team: &str, wish: impl Fn(Reply<T>) -> Wish) -> Result<T, LedgerError> {
        let mut pause = PAUSE;
        for _ in 1..TRIES {
            match self.ask_once(team, &wish).await {
                Err(LedgerError::Interrupted | LedgerError::Store(StoreError::Overloaded)) => {}
                answer => return answer,
            }
            tokio::time::sleep(pause).await;
            pause *= 2;
        }
        self.ask_once(team, &wish).await
    }

    async fn ask_once<T>(&self, team: &str, wish: impl FnOnce(Reply<T>) -> Wish) -> Result<T, LedgerError> {
        let address = self.address(team)?;
        let (reply, answer) = oneshot::channel();
        match address.send(Ask(wish(reply))).await {
            Ok(()) => answer.await.unwrap_or(Err(LedgerError::Interrupted)),
            Err(MailboxError::Closed | MailboxError::Timeout) => Err(LedgerError::Interrupted),
        }
    }

    /// The team's actor, made if there is none.
    fn address(&self, team: &str) -> Result<Addr<LedgerActor>, LedgerError> {
        let mut actors = self.house.actors.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(address) = actors.get(team)
            && address.connected()
        {
            return Ok(address.clone());
        }
        let stream = StreamName::ledger(team)?;
        let (store, settings, name) = (Arc::clone(&self.house.store), self.house.settings.clone(), team.to_owned());
        let actor = move |_: &mut Context<LedgerActor>| LedgerActor::new(name, stream, store, settings);
        let address = LedgerActor::start_in_arbiter(&self.house.arbiter.handle(), actor);
        // Those that left in peace are forgotten here, so that the map is as large as there are busy teams.
        actors.retain(|_, address| address.connected());
        actors.insert(team.to_owned(), address.clone());
        metrics::gauge!("orchestra_ledger_actors").set(actors.len() as f64);
        Ok(address)
    }
}
