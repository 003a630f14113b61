//! Whether a ledger kept its promises, worked out from its events alone.
//!
//! This shares nothing with [`decide`](super::decide) and [`evolve`](super::evolve) but the events: it keeps every
//! window for good, adds in 128 bits, and knows no headroom. `orchestra audit verify` runs it over real ledgers, the
//! property test over random ones.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use jiff::civil::Date;

use super::event::{Amount, Budget, CampaignOpened, Cap, LedgerEvent, Reserved, Settled, ThresholdReached, Trimmed};
use super::exhausted::{Amounts, Period};
use super::scope::{Holder, Scope};
use super::state::State;
use crate::id::{CallId, CampaignId, TaskId};

/// A promise that was broken, and by which event.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("event {event} of the ledger: {fault}")]
pub struct Violation {
    /// The event's place among those that were checked, from 0.
    pub event: u64,
    /// What is wrong.
    pub fault: Fault,
}

/// What can be wrong with a ledger.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// More was spent and reserved than a cap allowed when the last reservation under it was made.
    #[error("{what}: {used} {unit} are spent or reserved under a cap of {cap}")]
    Overshoot {
        /// Which sum.
        what: String,
        /// Nano-dollars or tokens.
        unit: &'static str,
        /// Spent and reserved.
        used: i128,
        /// What was allowed.
        cap: i128,
    },
    /// A call was reserved a second time.
    #[error("{0} is reserved twice")]
    ReservedTwice(CallId),
    /// A call without an open reservation was trimmed, settled or released.
    #[error("{0} has no open reservation")]
    NotOpen(CallId),
    /// A trim that raises.
    #[error("{0} is trimmed to more than it had")]
    Raised(CallId),
    /// A charge on another task than the one that reserved.
    #[error("{0} is settled for another task than it was reserved for")]
    OtherTask(CallId),
    /// A call of a campaign that has no account.
    #[error("{0} is reserved for {1}, which has no account")]
    NoSuchCampaign(CallId, CampaignId),
    /// A campaign that has spent was given another account: it could spend its cap twice.
    #[error("{0} is opened twice")]
    OpenedTwice(CampaignId),
    /// A negative amount.
    #[error("{0} has a negative amount")]
    Negative(CallId),
    /// More was refunded than spent.
    #[error("more is refunded to {0} than it spent")]
    RefundTooLarge(TaskId),
    /// An announcement that was made before, or is not true.
    #[error("the threshold {0} is announced twice or not reached")]
    Threshold(String),
    /// A fold of the ledger says something else.
    #[error("{what}: the fold says {folded}, the events say {counted}")]
    Disagreement {
        /// Which sum.
        what: String,
        /// What the fold says.
        folded: String,
        /// What the events say.
        counted: String,
    },
}

/// A ledger in sums.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Totals {
    /// Events that were checked.
    pub events: u64,
    /// Calls that were settled with what the provider counted.
    pub confirmed: u64,
    /// Calls that were settled at their bound.
    pub unconfirmed: u64,
    /// Calls that cost nothing.
    pub released: u64,
    /// Calls that cost more than was set aside: the bound or the price table was wrong.
    pub overruns: u64,
    /// Reservations without an end.
    pub open: BTreeSet<CallId>,
    /// What was settled, all in all.
    pub settled: Amount,
    /// What was settled and refunded, by task.
    pub tasks: BTreeMap<TaskId, TaskTotal>,
}

/// What a ledger says about one task.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TaskTotal {
    /// Settled.
    pub settled: Amount,
    /// Reversed.
    pub refunded: crate::money::NanoUsd,
}

/// Dollars and tokens, wide enough never to overflow.
type Wide = [i128; 2];

const UNITS: [&str; 2] = ["nano-dollars", "tokens"];

fn wide(amount: Amount) -> Wide {
    [amount.nano_usd.nanos().into(), amount.tokens.into()]
}

fn add(to: &mut Wide, amount: Wide) {
    for (to, amount) in to.iter_mut().zip(amount) {
        *to += amount;
    }
}

fn subtract(from: &mut Wide, amount: Wide) {
    add(from, amount.map(|amount| -amount));
}

/// What a sum is over.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Over {
    Task(TaskId),
    Campaign(CampaignId),
    Window(Scope, Period, Date),
}

impl std::fmt::Display for Over {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Task(task) => write!(f, "{task}"),
            Self::Campaign(campaign) => write!(f, "{campaign}"),
            Self::Window(scope, period, date) => write!(f, "{scope} in the {} of {date}", period.as_str()),
        }
    }
}

#[derive(Debug, Default)]
struct Sum {
    spent: Wide,
    held: Wide,
    /// The tightest cap in force when the last reservation was made.
    allowed: [Option<i128>; 2],
    /// By how much calls have cost more than was set aside for them since.
    overrun: Wide,
    /// What was announced: whose cap, unit, percent.
    announced: BTreeSet<(Option<Scope>, usize, u8)>,
}

/// Checks a ledger event by event.
#[derive(Debug, Default)]
pub struct Audit {
    caps: HashMap<Scope, Budget>,
    campaigns: HashMap<CampaignId, Cap>,
    open: HashMap<CallId, Reserved>,
    ended: BTreeSet<CallId>,
    sums: HashMap<Over, Sum>,
    totals: Totals,
}

/// Checks a whole ledger.
pub fn check<'a>(events: impl IntoIterator<Item = &'a LedgerEvent>) -> Result<Totals, Violation> {
    let mut audit = Audit::new();
    for event in events {
        audit.take(event)?;
    }
    audit.finish()
}

impl Audit {
    /// An audit of a ledger that is read from its first event.
    pub fn new() -> Self {
        Self::default()
    }

    /// Checks the next event.
    pub fn take(&mut self, event: &LedgerEvent) -> Result<(), Violation> {
        let number = self.totals.events;
        self.totals.events += 1;
        self.check(event).map_err(|fault| Violation { event: number, fault })
    }

    /// Checks that tasks and team add up to the same, and says what that is.
    pub fn finish(self) -> Result<Totals, Violation> {
        let event = self.totals.events;
        self.add_up().map_err(|fault| Violation { event, fault })?;
        let mut totals = self.totals;
        totals.open = self.open.into_keys().collect();
        Ok(totals)
    }

    fn check(&mut self, event: &LedgerEvent) -> Result<(), Fault> {
        match event {
            LedgerEvent::BudgetSet(event) => {
                self.caps.insert(event.scope.clone(), event.budget.clone());
                Ok(())
            }
            LedgerEvent::CampaignOpened(CampaignOpened { campaign, cap, .. }) => {
                self.campaigns.insert(*campaign, *cap);
                let spends = self.sums.contains_key(&Over::Campaign(*campaign));
                if spends { Err(Fault::OpenedTwice(*campaign)) } else { Ok(()) }
            }
            LedgerEvent::Reserved(event) => self.reserved(event),
            LedgerEvent::Trimmed(event) => self.trimmed(event),
            LedgerEvent::Settled(event) => self.settled(event),
            LedgerEvent::Released(event) => {
                self.totals.released += 1;
                self.ended(event.call, [0, 0]).map(drop)
            }
            LedgerEvent::Refunded(event) => {
                let total = self.totals.tasks.entry(event.task).or_default();
                total.refunded += event.nano_usd;
                let spent = self.sums.get(&Over::Task(event.task)).map(|sum| sum.spent[0]);
                match spent {
                    Some(spent) if i128::from(total.refunded.nanos()) > spent => Err(Fault::RefundTooLarge(event.task)),
                    _ => Ok(()),
                }
            }
            LedgerEvent::ThresholdReached(event) => self.announced(event),
            LedgerEvent::DayClosed(event) => self.agrees_with(&State::from(&event.checkpoint)),
        }
    }

    /// The sums a reservation stands in, each with the caps on it.
    fn sums_of(&self, event: &Reserved) -> Vec<(Over, Vec<Cap>)> {
        let mut per_task = vec![event.own];
        let mut sums = Vec::new();
        for scope in event.path.scopes() {
            let caps = self.caps.get(&scope).cloned().unwrap_or_default();
            let day = event.day_of(scope.tier());
            per_task.push(caps.per_task);
            sums.push((Over::Window(scope.clone(), Period::Day, day), vec![caps.per_day]));
            sums.push((Over::Window(scope, Period::Month, day.first_of_month()), vec![caps.per_month]));
        }
        sums.push((Over::Task(event.task), per_task));
        if let Some(campaign) = event.campaign {
            let cap = self.campaigns.get(&campaign).copied().unwrap_or_default();
            sums.push((Over::Campaign(campaign), vec![cap]));
        }
        sums
    }

    fn reserved(&mut self, event: &Reserved) -> Result<(), Fault> {
        if self.open.contains_key(&event.call) || self.ended.contains(&event.call) {
            return Err(Fault::ReservedTwice(event.call));
        }
        if let Some(campaign) = event.campaign.filter(|campaign| !self.campaigns.contains_key(campaign)) {
            return Err(Fault::NoSuchCampaign(event.call, campaign));
        }
        let held = wide(event.amount());
        if held[0] < 0 {
            return Err(Fault::Negative(event.call));
        }
        if !event.opening.is_zero() {
            let sum = self.sums.entry(Over::Task(event.task)).or_default();
            let opening = wide(event.opening);
            // The task may have spent before there was a ledger; never less than the ledger has seen of it.
            sum.spent = [sum.spent[0].max(opening[0]), sum.spent[1].max(opening[1])];
            sum.announced.clear();
        }
        for (over, caps) in self.sums_of(event) {
            let sum = self.sums.entry(over.clone()).or_default();
            add(&mut sum.held, held);
            sum.overrun = [0, 0];
            sum.allowed = [
                caps.iter().filter_map(|cap| cap.max_nano_usd).min().map(|cap| cap.nanos().into()),
                caps.iter().filter_map(|cap| cap.max_tokens).min().map(Into::into),
            ];
            sum.holds(&over)?;
        }
        self.open.insert(event.call, event.clone());
        Ok(())
    }

    fn trimmed(&mut self, event: &Trimmed) -> Result<(), Fault> {
        let Some(mut reserved) = self.open.remove(&event.call) else { return Err(Fault::NotOpen(event.call)) };
        let before = wide(reserved.amount());
        (reserved.reserved_nano_usd, reserved.reserved_tokens) = (event.reserved_nano_usd, event.reserved_tokens);
        let after = wide(reserved.amount());
        if after[0] > before[0] || after[1] > before[1] {
            return Err(Fault::Raised(event.call));
        }
        if after[0] < 0 {
            return Err(Fault::Negative(event.call));
        }
        for (over, _) in self.sums_of(&reserved) {
            let sum = self.sums.entry(over.clone()).or_default();
            subtract(&mut sum.held, before);
            add(&mut sum.held, after);
            sum.holds(&over)?;
        }
        self.open.insert(event.call, reserved);
        Ok(())
    }

    fn settled(&mut self, event: &Settled) -> Result<(), Fault> {
        let cost = wide(event.amount());
        if cost[0] < 0 {
            return Err(Fault::Negative(event.call));
        }
        let reserved = self.ended(event.call, cost)?;
        if reserved.task != event.task {
            return Err(Fault::OtherTask(event.call));
        }
        if event.confirmed {
            self.totals.confirmed += 1;
        } else {
            self.totals.unconfirmed += 1;
        }
        let held = wide(reserved.amount());
        if cost[0] > held[0] || cost[1] > held[1] {
            self.totals.overruns += 1;
        }
        self.totals.settled += event.amount();
        self.totals.tasks.entry(event.task).or_default().settled += event.amount();
        Ok(())
    }

    fn ended(&mut self, call: CallId, cost: Wide) -> Result<Reserved, Fault> {
        let Some(reserved) = self.open.remove(&call) else { return Err(Fault::NotOpen(call)) };
        self.ended.insert(call);
        let held = wide(reserved.amount());
        for (over, _) in self.sums_of(&reserved) {
            let sum = self.sums.entry(over.clone()).or_default();
            subtract(&mut sum.held, held);
            add(&mut sum.spent, cost);
            add(&mut sum.overrun, [(cost[0] - held[0]).max(0), (cost[1] - held[1]).max(0)]);
            sum.holds(&over)?;
        }
        Ok(reserved)
    }

    fn announced(&mut self, event: &ThresholdReached) -> Result<(), Fault> {
        let (over, scope) = match (&event.scope, event.task, event.window) {
            (Holder::Task(task), _, _) => (Over::Task(*task), None),
            (Holder::Campaign(campaign), _, _) => (Over::Campaign(*campaign), None),
            (Holder::Scope(scope), Some(task), _) => (Over::Task(task), Some(scope.clone())),
            (Holder::Scope(scope), None, date) => {
                (Over::Window(scope.clone(), event.period, date.unwrap_or_default()), None)
            }
        };
        let what = format!("{}% of {} in {over}", event.percent, event.scope);
        let (unit, cap) = match event.amounts {
            Amounts::Dollars { cap_nano_usd, .. } => (0, i128::from(cap_nano_usd.nanos())),
            Amounts::Tokens { cap_tokens, .. } => (1, i128::from(cap_tokens)),
        };
        match self.sums.get_mut(&over) {
            Some(sum) if sum.spent[unit] * 100 >= cap * i128::from(event.percent) => {
                let new = sum.announced.insert((scope, unit, event.percent));
                if new { Ok(()) } else { Err(Fault::Threshold(what)) }
            }
            _ => Err(Fault::Threshold(what)),
        }
    }

    /// Holds a fold of the same events against the sums.
    pub fn agrees_with(&self, state: &State) -> Result<(), Fault> {
        for (scope, period, date, spent, reserved) in state.windows() {
            self.compare(&Over::Window(scope.clone(), period, date), spent, reserved)?;
        }
        for (task, spent, reserved) in state.tasks() {
            self.compare(&Over::Task(task), spent, reserved)?;
        }
        for (campaign, cap, spent, reserved) in state.campaigns() {
            self.compare(&Over::Campaign(campaign), spent, reserved)?;
            if self.campaigns.get(&campaign) != Some(&cap) {
                let counted = format!("{:?}", self.campaigns.get(&campaign));
                return Err(Fault::Disagreement {
                    what: format!("cap of {campaign}"),
                    folded: format!("{cap:?}"),
                    counted,
                });
            }
        }
        let disagreement =
            |what: String, folded: String, counted: String| Fault::Disagreement { what, folded, counted };
        if state.open_calls().count() != self.open.len() {
            let (folded, counted) = (state.open_calls().count(), self.open.len());
            return Err(disagreement("open calls".to_owned(), folded.to_string(), counted.to_string()));
        }
        for folded in state.open_calls() {
            let counted = self.open.get(&folded.call);
            if counted != Some(folded) {
                return Err(disagreement(folded.call.to_string(), format!("{folded:?}"), format!("{counted:?}")));
            }
        }
        let set = self.caps.iter().filter(|(_, budget)| !budget.is_empty());
        let folded: BTreeMap<_, _> = state.budgets().collect();
        let counted: BTreeMap<_, _> = set.collect();
        if folded != counted {
            return Err(disagreement("budgets".to_owned(), format!("{folded:?}"), format!("{counted:?}")));
        }
        Ok(())
    }

    fn compare(&self, over: &Over, spent: Amount, reserved: Amount) -> Result<(), Fault> {
        let folded = (wide(spent), wide(reserved));
        let counted = self.sums.get(over).map_or(([0, 0], [0, 0]), |sum| (sum.spent, sum.held));
        if folded == counted {
            return Ok(());
        }
        let (folded, counted) = (format!("{folded:?}"), format!("{counted:?}"));
        Err(Fault::Disagreement { what: over.to_string(), folded, counted })
    }

    /// What the tasks were charged is what the team's days add up to, and its months.
    fn add_up(&self) -> Result<(), Fault> {
        let mut tasks = [0, 0];
        for total in self.totals.tasks.values() {
            add(&mut tasks, wide(total.settled));
        }
        for period in [Period::Day, Period::Month] {
            let mut team = [0, 0];
            for (over, sum) in &self.sums {
                if let Over::Window(Scope::Team { .. }, of, _) = over
                    && *of == period
                {
                    add(&mut team, sum.spent);
                }
            }
            if team != tasks {
                let what = format!("all {}s of the team", period.as_str());
                let (folded, counted) = (format!("{team:?}"), format!("{tasks:?} by its tasks"));
                return Err(Fault::Disagreement { what, folded, counted });
            }
        }
        Ok(())
    }
}

impl Sum {
    fn holds(&self, over: &Over) -> Result<(), Fault> {
        for (unit, name) in UNITS.into_iter().enumerate() {
            let used = self.spent[unit] + self.held[unit];
            if let Some(cap) = self.allowed[unit]
                && used > cap + self.overrun[unit]
            {
                return Err(Fault::Overshoot { what: over.to_string(), unit: name, used, cap });
            }
        }
        Ok(())
    }
}
