//! What can be asked of a ledger, and what it answers.

use std::collections::BTreeMap;

use jiff::Timestamp;
use jiff::civil::Date;

use super::event::{
    Amount, Budget, BudgetSet, CampaignOpened, Cap, DayClosed, LedgerEvent, Refunded, Released, Reserved, Settled,
    ThresholdReached, Trimmed,
};
use super::exhausted::{Amounts, Exhausted, Period};
use super::quote::{Fitted, Quote, Remaining};
use super::scope::{Holder, Path, Scope};
use super::state::{CampaignAccount, Checkpoint, State, key};
use super::window::{Zones, resets_at};
use crate::failure::FailureCode;
use crate::id::{CallId, CampaignId, TaskId};
use crate::money::NanoUsd;
use crate::store::MAX_EVENT_BYTES;
use crate::task::conversation::Usage;

/// Most calls of one team that may be open at once.
pub const MOST_OPEN: usize = 2_048;
/// Most scopes of one team that may have a budget.
pub const MOST_BUDGETS: usize = 1_024;
/// Most campaigns of one team that have an account: one is kept for as long as the campaign spends, and for two months
/// after.
pub const MOST_CAMPAIGNS: usize = 2_048;
/// The dearest call there is: a million dollars. With [`MOST_OPEN`] of them a sum is far from its end.
pub const DEAREST_CALL: NanoUsd = NanoUsd::from_nanos(1_000_000 * 1_000_000_000);
/// The longest call there is, in tokens.
pub const LONGEST_CALL: u64 = 1_000_000_000_000;
/// Longest name of a model or of a price, in bytes: the model's comes from inside a sandbox.
pub const LONGEST_NAME: usize = 512;
/// The parts of a cap that are announced, in percent.
pub const THRESHOLDS: [u8; 3] = [50, 80, 100];

/// A call that wants its cost set aside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reserve {
    /// The call.
    pub call: CallId,
    /// The task that makes it.
    pub task: TaskId,
    /// Where the task stands.
    pub path: Path,
    /// The task's own cap.
    pub own: Cap,
    /// What the task has spent according to its own stream. Goes for a task that the ledger does not know (any more).
    pub opening: Amount,
    /// The campaign that the task is a part of.
    pub campaign: Option<CampaignId>,
    /// The model.
    pub model: String,
    /// Which row of which price table the quote was computed with.
    pub price: String,
    /// What the call can cost.
    pub quote: Quote,
}

/// A call whose outcome is known, or known to be lost.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settle {
    /// The call.
    pub call: CallId,
    /// What the provider counted. Where the count was lost, the bound: every token of it counts against the caps.
    pub usage: Usage,
    /// What that costs.
    pub cost: NanoUsd,
    /// False when the outcome was lost and the bound is charged.
    pub confirmed: bool,
    /// Which row of which price table was applied.
    pub price: String,
}

/// Something asked of a ledger.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Set aside what a call can cost, at this moment. Asked again for an open call: it stands as it is.
    Reserve(Box<Reserve>, Timestamp),
    /// Lower what is set aside. Never raises it.
    Trim {
        /// The call.
        call: CallId,
        /// The most it can still cost.
        to: Amount,
    },
    /// Pay for a call.
    Settle(Box<Settle>),
    /// A call cost nothing.
    Release(CallId),
    /// Reverse a task's charge, until so much of it is reversed in all. No cap gets it back. Asked again, it does nothing.
    Refund {
        /// The task.
        task: TaskId,
        /// What of it was reversed before, according to the task's own stream.
        from: NanoUsd,
        /// What of it is reversed afterwards.
        to: NanoUsd,
        /// The tokens of the charges between the two.
        usage: Usage,
        /// Which failure it is a refund for.
        reason: FailureCode,
        /// Whose ledger this is: its midnight decides on which day the refund counts.
        team: String,
        /// Now.
        now: Timestamp,
    },
    /// Give a scope caps, or take them away with an empty budget.
    SetBudget {
        /// The scope.
        scope: Scope,
        /// Its caps.
        budget: Budget,
    },
    /// Give a campaign an account with this cap, on this day (UTC). Asked again, it does nothing. Only for a campaign of
    /// which no task has begun: one that has spent would begin anew.
    OpenCampaign {
        /// The campaign.
        campaign: CampaignId,
        /// What all its tasks together may cost.
        cap: Cap,
        /// Today.
        day: Date,
    },
    /// Write down what is still needed of everything up to this day.
    CloseDay(Date),
}

/// Why a command does nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The call does not fit under a cap.
    #[error("{exhausted}")]
    Exhausted {
        /// Which cap.
        exhausted: Box<Exhausted>,
        /// Whether it would fit if the calls that are under way turned out to cost nothing.
        waits_for: bool,
    },
    /// No reservation of this call is known.
    #[error("there is no reservation for {0}")]
    NoSuchCall(CallId),
    /// The call was paid for, or given up: its id cannot be used again.
    #[error("{0} has ended")]
    CallEnded(CallId),
    /// Too many calls of the team are under way.
    #[error("{MOST_OPEN} calls of this team are under way")]
    TooManyOpen,
    /// Nothing bounds what the call could cost.
    #[error("a call that could cost ${nano_usd} or {tokens} tokens is no call")]
    TooDear {
        /// The most it could cost.
        nano_usd: NanoUsd,
        /// The most tokens it could use.
        tokens: u64,
    },
    /// The name of the model or of its price is no name.
    #[error("the name of a model or of a price is at most {LONGEST_NAME} bytes long")]
    NameTooLong,
    /// More would be reversed than was spent.
    #[error("only ${left} of what {task} has spent can still be refunded")]
    RefundTooLarge {
        /// The task.
        task: TaskId,
        /// What can still be reversed.
        left: NanoUsd,
    },
    /// Too many budgets.
    #[error("{MOST_BUDGETS} scopes of this team have a budget already")]
    TooManyBudgets,
    /// The campaign has no account (any more).
    #[error("{0} has no account here: none was opened, or nothing was heard of it for two months")]
    NoSuchCampaign(CampaignId),
    /// Too many campaigns.
    #[error("{MOST_CAMPAIGNS} campaigns of this team have an account already")]
    TooManyCampaigns,
    /// The budget names a zone that is not known.
    #[error("{0:?} is not a time zone: expected a name such as Europe/Zurich")]
    UnknownTimeZone(String),
    /// The budget has a negative cap.
    #[error("a cap is not negative")]
    NegativeCap,
}

/// Whose cap a limit is.
#[derive(Clone, Copy)]
enum Whose<'a> {
    Scope(&'a Scope),
    Task,
    Campaign(CampaignId),
}

/// One cap on a call's path and where it stands.
struct Limit<'a> {
    whose: Whose<'a>,
    period: Period,
    date: Date,
    cap: Cap,
    spent: Amount,
    reserved: Amount,
}

impl Limit<'_> {
    /// What is left. With `released`: once the calls that are under way have cost nothing.
    fn remaining(&self, released: bool) -> Remaining {
        let used = if released { self.spent } else { self.spent + self.reserved };
        Remaining {
            nano_usd: self.cap.max_nano_usd.map(|cap| cap.saturating_sub(used.nano_usd)),
            tokens: self.cap.max_tokens.map(|cap| cap.saturating_sub(used.tokens)),
        }
    }

    /// The unit in which the call does not fit.
    fn amounts(&self, quote: &Quote, released: bool) -> Option<Amounts> {
        let Remaining { nano_usd, tokens } = self.remaining(released);
        let lacks = |remaining| quote.fit(remaining).is_none();
        match (self.cap.max_nano_usd, self.cap.max_tokens) {
            (Some(cap), _) if lacks(Remaining { nano_usd, tokens: None }) => {
                Some(dollars(self.spent, self.reserved, cap))
            }
            (_, Some(cap)) if lacks(Remaining { nano_usd: None, tokens }) => {
                Some(token_amounts(self.spent, self.reserved, cap))
            }
            _ => None,
        }
    }
}

const fn dollars(spent: Amount, reserved: Amount, cap: NanoUsd) -> Amounts {
    Amounts::Dollars { spent_nano_usd: spent.nano_usd, reserved_nano_usd: reserved.nano_usd, cap_nano_usd: cap }
}

const fn token_amounts(spent: Amount, reserved: Amount, cap: u64) -> Amounts {
    Amounts::Tokens { spent_tokens: spent.tokens, reserved_tokens: reserved.tokens, cap_tokens: cap }
}

/// Every cap that a call of this task has to fit under.
fn limits<'a>(
    state: &State,
    scopes: &'a [(Scope, Date)],
    task: (Amount, Amount),
    own: Cap,
    campaign: Option<(CampaignId, &CampaignAccount)>,
) -> Vec<Limit<'a>> {
    let (spent, reserved) = task;
    let mut limits = Vec::new();
    if !own.is_empty() {
        let (whose, period) = (Whose::Task, Period::Task);
        limits.push(Limit { whose, period, date: Date::ZERO, cap: own, spent, reserved });
    }
    if let Some((id, account)) = campaign.filter(|(_, account)| !account.cap.is_empty()) {
        let CampaignAccount { cap, spent, reserved, .. } = *account;
        let (whose, period) = (Whose::Campaign(id), Period::Campaign);
        limits.push(Limit { whose, period, date: Date::ZERO, cap, spent, reserved });
    }
    for (scope, date) in scopes {
        let Some(budget) = state.budgets.get(scope) else { continue };
        for period in [Period::Task, Period::Day, Period::Month] {
            let cap = budget.cap(period);
            if cap.is_empty() {
                continue;
            }
            let (spent, reserved) = match period {
                Period::Task => task,
                Period::Day | Period::Month | Period::Campaign => state.spent(scope, period, *date),
            };
            limits.push(Limit { whose: Whose::Scope(scope), period, date: *date, cap, spent, reserved });
        }
    }
    limits
}

/// The path's scopes, each with the date that a call made now counts to.
fn dated(state: &State, path: &Path, now: Timestamp, zones: &Zones) -> Vec<(Scope, Date)> {
    path.scopes()
        .map(|scope| {
            let date = state.date(&scope, now, zones);
            (scope, date)
        })
        .collect()
}

/// Lowers the quote's output until it fits under every limit, or says which one it met.
fn fit(
    state: &State,
    limits: &[Limit<'_>],
    quote: &Quote,
    task: Option<TaskId>,
    zones: &Zones,
) -> Result<Fitted, Refusal> {
    let all = |released| limits.iter().fold(Remaining::default(), |least, limit| least.min(limit.remaining(released)));
    if let Some(fitted) = quote.fit(all(false)) {
        if fitted.nano_usd > DEAREST_CALL || fitted.tokens > LONGEST_CALL {
            return Err(Refusal::TooDear { nano_usd: fitted.nano_usd, tokens: fitted.tokens });
        }
        return Ok(fitted);
    }
    let waits_for = quote.fit(all(true)).is_some();
    // A cap that no waiting makes room under is named before one that only looks full.
    let met = |released| limits.iter().find_map(|limit| Some((limit, limit.amounts(quote, released)?)));
    let Some((limit, amounts)) = met(true).or_else(|| met(false)) else {
        // No limit is in the way: the quote asks for nothing.
        return Err(Refusal::TooDear { nano_usd: quote.cost(0), tokens: quote.tokens(0) });
    };
    let scope = match (limit.whose, task) {
        (Whose::Scope(scope), _) => scope.to_string(),
        (Whose::Campaign(campaign), _) => Holder::Campaign(campaign).to_string(),
        (Whose::Task, Some(task)) => Holder::Task(task).to_string(),
        (Whose::Task, None) => "task".to_owned(),
    };
    let resets_at = match limit.whose {
        Whose::Scope(scope) => resets_at(limit.period, limit.date, &state.zone(scope, zones)),
        Whose::Task | Whose::Campaign(_) => None,
    };
    let exhausted = Exhausted { scope, period: limit.period, amounts, resets_at };
    Err(Refusal::Exhausted { exhausted: Box::new(exhausted), waits_for })
}

/// Whether the first call of a new task would fit now.
pub fn fits(
    state: &State,
    path: &Path,
    own: Cap,
    quote: &Quote,
    now: Timestamp,
    zones: &Zones,
) -> Result<Fitted, Refusal> {
    let scopes = dated(state, path, now, zones);
    fit(state, &limits(state, &scopes, (Amount::ZERO, Amount::ZERO), own, None), quote, None, zones)
}

/// What the command makes happen, or why it does nothing. `zones` must hold those that the budgets name.
pub fn decide(state: &State, command: Command, zones: &Zones) -> Result<Vec<LedgerEvent>, Refusal> {
    match command {
        Command::Reserve(request, now) => reserve(state, *request, now, zones),
        Command::Trim { call, to } => {
            let Some(open) = state.open.get(&call) else { return ended(state, call) };
            let after = open.amount().min(Amount { nano_usd: to.nano_usd.max(NanoUsd::ZERO), ..to });
            if after == open.amount() {
                return Ok(Vec::new());
            }
            let (reserved_nano_usd, reserved_tokens) = (after.nano_usd, after.tokens);
            Ok(vec![LedgerEvent::Trimmed(Trimmed { call, reserved_nano_usd, reserved_tokens })])
        }
        Command::Settle(settle) => match state.open.get(&settle.call) {
            Some(open) => Ok(paid(state, open, *settle)),
            None => ended(state, settle.call),
        },
        Command::Release(call) => match state.open.get(&call) {
            Some(_) => Ok(vec![LedgerEvent::Released(Released { call })]),
            None => ended(state, call),
        },
        Command::Refund { task, from, to, usage, reason, team, now } => {
            let account = state.tasks.get(&task);
            let refunded = account.map_or(from, |account| account.refunded.max(from));
            let nano_usd = to.saturating_sub(refunded);
            if let Some(account) = account {
                let left = account.spent.nano_usd.saturating_sub(refunded);
                if nano_usd > left {
                    return Err(Refusal::RefundTooLarge { task, left });
                }
            }
            let day = Some(state.date(&Scope::Team { team }, now, zones));
            let refund = LedgerEvent::Refunded(Refunded { task, nano_usd, reason, day, usage });
            Ok(if nano_usd > NanoUsd::ZERO { vec![refund] } else { Vec::new() })
        }
        Command::OpenCampaign { campaign, cap, day } => open_campaign(state, campaign, cap, day),
        Command::SetBudget { scope, budget } => set_budget(state, scope, budget, zones),
        Command::CloseDay(day) => Ok(close_day(state, day)),
    }
}

/// An end said twice is one end.
fn ended(state: &State, call: CallId) -> Result<Vec<LedgerEvent>, Refusal> {
    if state.ended.contains(&call) { Ok(Vec::new()) } else { Err(Refusal::NoSuchCall(call)) }
}

fn reserve(state: &State, request: Reserve, now: Timestamp, zones: &Zones) -> Result<Vec<LedgerEvent>, Refusal> {
    if state.open.contains_key(&request.call) {
        return Ok(Vec::new());
    }
    if state.ended.contains(&request.call) {
        return Err(Refusal::CallEnded(request.call));
    }
    if state.open.len() >= MOST_OPEN {
        return Err(Refusal::TooManyOpen);
    }
    if request.model.len() > LONGEST_NAME || request.price.len() > LONGEST_NAME {
        return Err(Refusal::NameTooLong);
    }
    let campaign = match request.campaign {
        Some(id) => Some((id, state.campaigns.get(&id).ok_or(Refusal::NoSuchCampaign(id))?)),
        None => None,
    };
    let known = state.task(request.task);
    let opening = Amount { nano_usd: request.opening.nano_usd.max(NanoUsd::ZERO), ..request.opening };
    let scopes = dated(state, &request.path, now, zones);
    let limits = limits(state, &scopes, known.unwrap_or((opening, Amount::ZERO)), request.own, campaign);
    let fitted = fit(state, &limits, &request.quote, Some(request.task), zones)?;
    let day = scopes.first().map_or(Date::ZERO, |(_, date)| *date);
    let days: BTreeMap<_, _> =
        scopes.iter().filter(|(_, date)| *date != day).map(|(scope, date)| (scope.tier(), *date)).collect();
    Ok(vec![LedgerEvent::Reserved(Box::new(Reserved {
        call: request.call,
        task: request.task,
        path: request.path,
        day,
        days,
        reserved_nano_usd: fitted.nano_usd,
        reserved_tokens: fitted.tokens,
        max_output_tokens: fitted.max_output_tokens,
        model: request.model,
        price: request.price,
        own: request.own,
        opening: if known.is_some() { Amount::ZERO } else { opening },
        campaign: request.campaign,
    }))])
}

/// The charge, and the parts of caps that it reaches.
fn paid(state: &State, open: &Reserved, settle: Settle) -> Vec<LedgerEvent> {
    let Settle { call, usage, cost, confirmed, price } = settle;
    let settled = Settled { call, task: open.task, usage, cost_nano_usd: cost.max(NanoUsd::ZERO), confirmed, price };
    let (amount, held) = (settled.amount(), open.amount());
    let mut events = vec![LedgerEvent::Settled(Box::new(settled))];
    let mut look = |scope: Holder, period, date: Option<Date>, cap: Cap, spent: Amount, reserved: Amount, reached| {
        let (spent, reserved) = (spent + amount, reserved.saturating_sub(held));
        let task = (period == Period::Task).then_some(open.task);
        for (percent, amounts) in crossed(cap, spent, reserved, reached) {
            let event = ThresholdReached { scope: scope.clone(), period, window: date, task, percent, amounts };
            events.push(LedgerEvent::ThresholdReached(Box::new(event)));
        }
    };
    let task = state.tasks.get(&open.task).copied().unwrap_or_default();
    if !open.own.is_empty() {
        look(Holder::Task(open.task), Period::Task, None, open.own, task.spent, task.reserved, task.reached[0]);
    }
    if let Some((id, account)) = open.campaign.and_then(|id| Some((id, state.campaigns.get(&id)?))) {
        let CampaignAccount { cap, spent, reserved, reached, .. } = *account;
        look(Holder::Campaign(id), Period::Campaign, None, cap, spent, reserved, reached);
    }
    for scope in open.path.scopes() {
        let Some(budget) = state.budgets.get(&scope) else { continue };
        let tier = scope.tier();
        let holder = Holder::Scope(scope.clone());
        look(
            holder.clone(),
            Period::Task,
            None,
            budget.per_task,
            task.spent,
            task.reserved,
            task.reached[1 + tier as usize],
        );
        for period in [Period::Day, Period::Month] {
            let date = key(period, open.day_of(tier));
            let window = state.accounts.get(&scope).map(|account| account.standing(period, date)).unwrap_or_default();
            let cap = budget.cap(period);
            look(holder.clone(), period, Some(date), cap, window.spent, window.reserved, window.reached);
        }
    }
    events
}

/// The parts of a cap that are reached and were not announced.
fn crossed(cap: Cap, spent: Amount, reserved: Amount, reached: [u8; 2]) -> Vec<(u8, Amounts)> {
    let mut crossed = Vec::new();
    let is_reached = |spent: u128, cap: u128, percent: u8| cap > 0 && spent * 100 >= cap * u128::from(percent);
    let positive = |amount: NanoUsd| u128::try_from(amount.nanos()).unwrap_or_default();
    for percent in THRESHOLDS {
        if let Some(cap) = cap.max_nano_usd
            && percent > reached[0]
            && is_reached(positive(spent.nano_usd), positive(cap), percent)
        {
            crossed.push((percent, dollars(spent, reserved, cap)));
        }
        if let Some(cap) = cap.max_tokens
            && percent > reached[1]
            && is_reached(spent.tokens.into(), cap.into(), percent)
        {
            crossed.push((percent, token_amounts(spent, reserved, cap)));
        }
    }
    crossed
}

fn open_campaign(state: &State, campaign: CampaignId, cap: Cap, day: Date) -> Result<Vec<LedgerEvent>, Refusal> {
    if cap.max_nano_usd.is_some_and(|cap| cap < NanoUsd::ZERO) {
        return Err(Refusal::NegativeCap);
    }
    if state.campaigns.contains_key(&campaign) {
        return Ok(Vec::new());
    }
    if state.campaigns.len() >= MOST_CAMPAIGNS {
        return Err(Refusal::TooManyCampaigns);
    }
    Ok(vec![LedgerEvent::CampaignOpened(CampaignOpened { campaign, cap, day })])
}

fn set_budget(state: &State, scope: Scope, budget: Budget, zones: &Zones) -> Result<Vec<LedgerEvent>, Refusal> {
    let caps = [budget.per_task, budget.per_day, budget.per_month];
    if caps.iter().any(|cap| cap.max_nano_usd.is_some_and(|cap| cap < NanoUsd::ZERO)) {
        return Err(Refusal::NegativeCap);
    }
    if let Some(zone) = budget.time_zone.as_ref().filter(|zone| !zones.knows(zone)) {
        return Err(Refusal::UnknownTimeZone(zone.clone()));
    }
    let standing = state.budgets.get(&scope);
    if standing.is_none() && !budget.is_empty() && state.budgets.len() >= MOST_BUDGETS {
        return Err(Refusal::TooManyBudgets);
    }
    // What is so already need not be said.
    if standing.cloned().unwrap_or_default() == budget {
        return Ok(Vec::new());
    }
    Ok(vec![LedgerEvent::BudgetSet(Box::new(BudgetSet { scope, budget }))])
}

/// Nothing when the day is closed already, or when what is needed is larger than an event may be: the next fold then
/// begins further back.
fn close_day(state: &State, day: Date) -> Vec<LedgerEvent> {
    if state.closed.is_some_and(|closed| closed >= day) {
        return Vec::new();
    }
    let fitting = |checkpoint: Checkpoint| {
        let event = LedgerEvent::DayClosed(Box::new(DayClosed { day, checkpoint }));
        event.data().ok().filter(|data| data.get().len() <= MAX_EVENT_BYTES).map(|_| event)
    };
    let whole = Checkpoint::of(state);
    fitting(whole.clone()).or_else(|| fitting(whole.without_idle_tasks())).into_iter().collect()
}
