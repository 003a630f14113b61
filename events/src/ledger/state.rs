//! What is known about a team's money, folded from its ledger, and small however long the ledger gets.

use std::collections::{BTreeMap, HashSet, VecDeque};

use jiff::Timestamp;
use jiff::civil::Date;
use jiff::tz::TimeZone;
use serde::{Deserialize, Serialize};

use super::event::{Amount, Budget, BudgetSet, CampaignOpened, Cap, LedgerEvent, Reserved, Settled, ThresholdReached};
use super::exhausted::{Amounts, Period};
use super::scope::{Holder, Scope, Tier};
use super::window::{Window, Windows, Zones};
use crate::id::{CallId, CampaignId, TaskId};
use crate::money::NanoUsd;

/// Ended calls that are remembered, so that an end said twice is one end. Older ones are in the stream.
pub const ENDED_KEPT: usize = 1_024;

/// A team's ledger.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct State {
    pub(super) budgets: BTreeMap<Scope, Budget>,
    pub(super) accounts: BTreeMap<Scope, Account>,
    pub(super) tasks: BTreeMap<TaskId, TaskAccount>,
    pub(super) campaigns: BTreeMap<CampaignId, CampaignAccount>,
    pub(super) open: BTreeMap<CallId, Reserved>,
    pub(super) ended: Ended,
    pub(super) closed: Option<Date>,
}

/// What a scope has spent, whether it has a budget or not: one that is set at noon counts the morning.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Account {
    pub days: Windows,
    pub months: Windows,
}

impl Account {
    pub fn windows(&self, period: Period) -> Option<&Windows> {
        match period {
            Period::Task | Period::Campaign => None,
            Period::Day => Some(&self.days),
            Period::Month => Some(&self.months),
        }
    }

    /// What stands in the window that a date belongs to.
    pub fn standing(&self, period: Period, date: Date) -> Window {
        let key = key(period, date);
        self.windows(period).and_then(|windows| windows.kept.get(&key)).copied().unwrap_or_default()
    }
}

/// The date by which the window that holds this one is known.
pub(super) fn key(period: Period, date: Date) -> Date {
    match period {
        Period::Task | Period::Day | Period::Campaign => date,
        Period::Month => date.first_of_month(),
    }
}

/// What a task has spent, for the caps per task of every scope and for its own.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct TaskAccount {
    pub spent: Amount,
    pub reserved: Amount,
    pub refunded: NanoUsd,
    /// Reservations of it.
    pub open: u32,
    /// The team's day on which it last reserved.
    pub day: Date,
    /// Announced parts of the caps, in percent of dollars and of tokens: its own, then each tier's.
    pub reached: [[u8; 2]; Tier::COUNT + 1],
}

/// What the tasks of a campaign have spent together, and its cap.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct CampaignAccount {
    pub cap: Cap,
    pub spent: Amount,
    pub reserved: Amount,
    /// Reservations of it.
    pub open: u32,
    /// The team's day on which it last reserved; before that, the day on which it was opened.
    pub day: Date,
    /// Announced parts of the cap, in percent of dollars and of tokens.
    pub reached: [u8; 2],
}

/// The calls that ended last, oldest first.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Ended {
    order: VecDeque<CallId>,
    known: HashSet<CallId>,
}

impl Ended {
    pub fn contains(&self, call: &CallId) -> bool {
        self.known.contains(call)
    }

    fn push(&mut self, call: CallId) {
        if self.known.insert(call) {
            self.order.push_back(call);
            if self.order.len() > ENDED_KEPT
                && let Some(oldest) = self.order.pop_front()
            {
                self.known.remove(&oldest);
            }
        }
    }
}

impl State {
    /// The caps that were set, by scope.
    pub fn budgets(&self) -> impl Iterator<Item = (&Scope, &Budget)> {
        self.budgets.iter()
    }

    /// The open reservation of a call, as it stands after trims.
    pub fn open_call(&self, call: CallId) -> Option<&Reserved> {
        self.open.get(&call)
    }

    /// Every open reservation.
    pub fn open_calls(&self) -> impl Iterator<Item = &Reserved> {
        self.open.values()
    }

    /// Whether this call is known to have ended. `false` also for one that ended long ago.
    pub fn has_ended(&self, call: CallId) -> bool {
        self.ended.contains(&call)
    }

    /// What a task has spent and reserved, while the ledger knows it.
    pub fn task(&self, task: TaskId) -> Option<(Amount, Amount)> {
        self.tasks.get(&task).map(|account| (account.spent, account.reserved))
    }

    /// What of a task's charges was reversed, while the ledger knows it.
    pub fn refunded(&self, task: TaskId) -> Option<NanoUsd> {
        self.tasks.get(&task).map(|account| account.refunded)
    }

    /// What a scope has spent and reserved in the day or month that a date belongs to.
    pub fn spent(&self, scope: &Scope, period: Period, date: Date) -> (Amount, Amount) {
        let window = self.accounts.get(scope).map(|account| account.standing(period, date)).unwrap_or_default();
        (window.spent, window.reserved)
    }

    /// Every window that is kept: whose, which, what was spent in it and what is reserved.
    pub fn windows(&self) -> impl Iterator<Item = (&Scope, Period, Date, Amount, Amount)> {
        self.accounts.iter().flat_map(|(scope, account)| {
            [Period::Day, Period::Month].into_iter().flat_map(move |period| {
                let kept = account.windows(period).into_iter().flat_map(|windows| &windows.kept);
                kept.map(move |(date, window)| (scope, period, *date, window.spent, window.reserved))
            })
        })
    }

    /// Every task whose account is kept: what it has spent and reserved.
    pub fn tasks(&self) -> impl Iterator<Item = (TaskId, Amount, Amount)> {
        self.tasks.iter().map(|(task, account)| (*task, account.spent, account.reserved))
    }

    /// A campaign's cap, what its tasks have spent together and what is reserved for them, while it has an account.
    pub fn campaign(&self, campaign: CampaignId) -> Option<(Cap, Amount, Amount)> {
        self.campaigns.get(&campaign).map(|account| (account.cap, account.spent, account.reserved))
    }

    /// Every campaign that has an account: its cap, what was spent and what is reserved.
    pub fn campaigns(&self) -> impl Iterator<Item = (CampaignId, Cap, Amount, Amount)> {
        self.campaigns.iter().map(|(id, account)| (*id, account.cap, account.spent, account.reserved))
    }

    /// The time zones that its budgets name.
    pub fn time_zones(&self) -> impl Iterator<Item = &str> {
        self.budgets.values().filter_map(|budget| budget.time_zone.as_deref())
    }

    /// The name of the zone whose midnight counts in a scope: its own, else its team's, else UTC.
    pub fn time_zone(&self, scope: &Scope) -> Option<&str> {
        let named = |scope: &Scope| self.budgets.get(scope)?.time_zone.as_deref();
        named(scope).or_else(|| named(&Scope::Team { team: scope.team().to_owned() }))
    }

    pub(super) fn zone(&self, scope: &Scope, zones: &Zones) -> TimeZone {
        zones.get(self.time_zone(scope))
    }

    /// The civil date that a call made now counts to in a scope. A clock that went back does not open what was
    /// forgotten.
    pub(super) fn date(&self, scope: &Scope, now: Timestamp, zones: &Zones) -> Date {
        let mut date = now.to_zoned(self.zone(scope, zones)).date();
        let account = self.accounts.get(scope);
        let after = |forgotten: Option<Date>, period| {
            let forgotten = forgotten?;
            super::window::following(period, forgotten)
        };
        if let Some(account) = account
            && account.days.is_forgotten(date)
        {
            date = after(account.days.forgotten, Period::Day).unwrap_or(date);
        }
        // What a scope is forgotten with lies in months that its team has forgotten too.
        let team = self.accounts.get(&Scope::Team { team: scope.team().to_owned() });
        for account in account.into_iter().chain(team) {
            if account.months.is_forgotten(date.first_of_month()) {
                date = after(account.months.forgotten, Period::Month).unwrap_or(date);
            }
        }
        date
    }

    fn reserve(&mut self, event: &Reserved) {
        if self.open.contains_key(&event.call) {
            return;
        }
        let amount = event.amount();
        for scope in event.path.scopes() {
            let day = event.day_of(scope.tier());
            let account = self.accounts.entry(scope).or_default();
            account.days.open(day).reserve(amount);
            account.months.open(day.first_of_month()).reserve(amount);
        }
        let fresh = TaskAccount { spent: event.opening, ..TaskAccount::default() };
        let account = self.tasks.entry(event.task).or_insert(fresh);
        account.reserved += amount;
        account.open += 1;
        let new_day = account.day != event.day;
        account.day = event.day;
        if let Some(account) = event.campaign.and_then(|id| self.campaigns.get_mut(&id)) {
            account.reserved += amount;
            account.open += 1;
            account.day = account.day.max(event.day);
        }
        self.open.insert(event.call, event.clone());
        if new_day {
            self.forget(&event.path.team);
        }
    }

    /// Lets go of tasks and scopes that have not been heard of in the days and months that the team keeps.
    fn forget(&mut self, team: &str) {
        let Some(account) = self.accounts.get(&Scope::Team { team: team.to_owned() }) else { return };
        let (days, months) = (account.days.forgotten, account.months.forgotten);
        if let Some(day) = days {
            self.tasks.retain(|_, task| task.open > 0 || task.day > day);
        }
        if let Some(month) = months {
            // One that is forgotten is not opened again: a call of it is refused.
            self.campaigns.retain(|_, campaign| campaign.open > 0 || campaign.day.first_of_month() > month);
            let budgets = &self.budgets;
            self.accounts.retain(|scope, account| {
                budgets.contains_key(scope)
                    || account.months.kept.iter().any(|(date, window)| *date > month || window.open > 0)
            });
        }
    }

    /// Changes every window that a reservation stands in.
    fn each_window(&mut self, reserved: &Reserved, mut change: impl FnMut(&mut Window)) {
        for scope in reserved.path.scopes() {
            let day = reserved.day_of(scope.tier());
            let Some(account) = self.accounts.get_mut(&scope) else { continue };
            for (windows, date) in [(&mut account.days, day), (&mut account.months, day.first_of_month())] {
                if let Some(window) = windows.kept.get_mut(&date) {
                    change(window);
                }
            }
        }
    }

    fn trim(&mut self, call: CallId, to: Amount) {
        let Some(reserved) = self.open.get_mut(&call) else { return };
        let before = reserved.amount();
        let after = before.min(to);
        (reserved.reserved_nano_usd, reserved.reserved_tokens) = (after.nano_usd, after.tokens);
        let (freed, reserved) = (before.saturating_sub(after), reserved.clone());
        self.each_window(&reserved, |window| window.reserved = window.reserved.saturating_sub(freed));
        if let Some(account) = self.tasks.get_mut(&reserved.task) {
            account.reserved = account.reserved.saturating_sub(freed);
        }
        if let Some(account) = reserved.campaign.and_then(|id| self.campaigns.get_mut(&id)) {
            account.reserved = account.reserved.saturating_sub(freed);
        }
    }

    /// Ends a reservation with what the call cost.
    fn end(&mut self, call: CallId, cost: Amount) -> bool {
        self.ended.push(call);
        let Some(reserved) = self.open.remove(&call) else { return false };
        let amount = reserved.amount();
        self.each_window(&reserved, |window| {
            window.free(amount);
            window.spent += cost;
        });
        if let Some(account) = self.tasks.get_mut(&reserved.task) {
            account.reserved = account.reserved.saturating_sub(amount);
            account.open = account.open.saturating_sub(1);
            account.spent += cost;
        }
        if let Some(account) = reserved.campaign.and_then(|id| self.campaigns.get_mut(&id)) {
            account.reserved = account.reserved.saturating_sub(amount);
            account.open = account.open.saturating_sub(1);
            account.spent += cost;
        }
        true
    }

    fn settle(&mut self, event: &Settled) {
        let cost = event.amount();
        if !self.end(event.call, cost)
            && let Some(account) = self.tasks.get_mut(&event.task)
        {
            // A charge without a reservation belongs to no day. The task has spent it all the same.
            account.spent += cost;
        }
    }

    fn set_budget(&mut self, event: &BudgetSet) {
        if event.budget.is_empty() {
            self.budgets.remove(&event.scope);
        } else {
            self.budgets.insert(event.scope.clone(), event.budget.clone());
        }
    }

    fn open_campaign(&mut self, event: &CampaignOpened) {
        let fresh = CampaignAccount { cap: event.cap, day: event.day, ..CampaignAccount::default() };
        self.campaigns.entry(event.campaign).or_insert(fresh);
    }

    fn announce(&mut self, event: &ThresholdReached) {
        let unit = unit(&event.amounts);
        let reached = match (&event.scope, event.period, event.task, event.window) {
            (Holder::Campaign(campaign), ..) => self.campaigns.get_mut(campaign).map(|account| &mut account.reached),
            (Holder::Task(task), _, _, _) => self.tasks.get_mut(task).map(|account| &mut account.reached[0]),
            (Holder::Scope(scope), Period::Task, Some(task), _) => {
                self.tasks.get_mut(&task).map(|account| &mut account.reached[1 + scope.tier() as usize])
            }
            (Holder::Scope(scope), Period::Day, _, Some(date)) => self
                .accounts
                .get_mut(scope)
                .and_then(|account| account.days.kept.get_mut(&date))
                .map(|window| &mut window.reached),
            (Holder::Scope(scope), Period::Month, _, Some(date)) => self
                .accounts
                .get_mut(scope)
                .and_then(|account| account.months.kept.get_mut(&date))
                .map(|window| &mut window.reached),
            (Holder::Scope(_), _, _, _) => None,
        };
        if let Some(reached) = reached {
            reached[unit] = reached[unit].max(event.percent);
        }
    }
}

/// The place of a unit in a pair: dollars first.
pub(super) const fn unit(amounts: &Amounts) -> usize {
    match amounts {
        Amounts::Dollars { .. } => 0,
        Amounts::Tokens { .. } => 1,
    }
}

/// The ledger after the event. Total: whatever happened is taken in.
#[must_use]
pub fn evolve(mut state: State, event: &LedgerEvent) -> State {
    match event {
        LedgerEvent::BudgetSet(event) => state.set_budget(event),
        LedgerEvent::CampaignOpened(event) => state.open_campaign(event),
        LedgerEvent::Reserved(event) => state.reserve(event),
        LedgerEvent::Trimmed(event) => {
            state.trim(event.call, Amount { nano_usd: event.reserved_nano_usd, tokens: event.reserved_tokens });
        }
        LedgerEvent::Settled(event) => state.settle(event),
        LedgerEvent::Released(event) => {
            state.end(event.call, Amount::ZERO);
        }
        LedgerEvent::Refunded(event) => {
            if let Some(account) = state.tasks.get_mut(&event.task) {
                account.refunded += event.nano_usd;
            }
        }
        LedgerEvent::ThresholdReached(event) => state.announce(event),
        // The checkpoint is the state, so that a fold which begins with it and one which comes to it agree.
        LedgerEvent::DayClosed(event) => {
            state = State::from(&event.checkpoint);
            state.closed = Some(event.day);
        }
    }
    state
}

/// A ledger as `day-closed` carries it. What is reserved is not written down: it is the sum of the open reservations.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Checkpoint {
    /// The caps that are set.
    pub budgets: Vec<BudgetSet>,
    /// What each scope has spent.
    pub scopes: Vec<ScopeSums>,
    /// Reservations without an end.
    pub open: Vec<Reserved>,
    /// What the tasks of late have spent.
    pub tasks: Vec<TaskSums>,
    /// The calls that ended last, oldest first.
    pub ended: Vec<CallId>,
    /// The campaigns that have an account.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub campaigns: Vec<CampaignSums>,
}

/// What a campaign may spend and has spent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CampaignSums {
    /// The campaign.
    pub campaign: CampaignId,
    /// Its cap.
    #[serde(default, skip_serializing_if = "Cap::is_empty")]
    pub cap: Cap,
    /// What was spent.
    pub spent: Amount,
    /// The team's day on which it last reserved.
    pub day: Date,
    /// The highest part of the cap that was announced, in percent: of dollars, of tokens.
    #[serde(default, skip_serializing_if = "is_unannounced")]
    pub reached: [u8; 2],
}

/// What a scope has spent, by windows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ScopeSums {
    /// The scope.
    pub scope: Scope,
    /// By day.
    pub days: Vec<WindowSums>,
    /// By month, under its first day.
    pub months: Vec<WindowSums>,
    /// The last day that is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub days_forgotten: Option<Date>,
    /// The last month that is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub months_forgotten: Option<Date>,
}

/// What was spent in a window.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct WindowSums {
    /// Its date.
    pub date: Date,
    /// What was spent.
    pub spent: Amount,
    /// The highest part of the cap that was announced, in percent: of dollars, of tokens.
    #[serde(default, skip_serializing_if = "is_unannounced")]
    pub reached: [u8; 2],
}

/// What a task has spent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TaskSums {
    /// The task.
    pub task: TaskId,
    /// What was spent.
    pub spent: Amount,
    /// What of it was reversed.
    #[serde(default, skip_serializing_if = "is_nothing")]
    pub refunded: NanoUsd,
    /// The team's day on which it last reserved.
    pub day: Date,
    /// The announced parts of its own cap, then of the caps per task of team, project, environment and task type.
    #[serde(default, skip_serializing_if = "are_unannounced")]
    pub reached: [[u8; 2]; Tier::COUNT + 1],
}

fn is_unannounced(reached: &[u8; 2]) -> bool {
    *reached == [0; 2]
}

fn are_unannounced(reached: &[[u8; 2]; Tier::COUNT + 1]) -> bool {
    reached.iter().all(is_unannounced)
}

fn is_nothing(amount: &NanoUsd) -> bool {
    *amount == NanoUsd::ZERO
}

impl Checkpoint {
    /// The ledger as it stands.
    pub fn of(state: &State) -> Self {
        let sums = |windows: &Windows| {
            let sum = |(date, window): (&Date, &Window)| WindowSums {
                date: *date,
                spent: window.spent,
                reached: window.reached,
            };
            windows.kept.iter().map(sum).collect()
        };
        Self {
            budgets: state
                .budgets
                .iter()
                .map(|(scope, budget)| BudgetSet { scope: scope.clone(), budget: budget.clone() })
                .collect(),
            scopes: state
                .accounts
                .iter()
                .map(|(scope, account)| ScopeSums {
                    scope: scope.clone(),
                    days: sums(&account.days),
                    months: sums(&account.months),
                    days_forgotten: account.days.forgotten,
                    months_forgotten: account.months.forgotten,
                })
                .collect(),
            open: state.open.values().cloned().collect(),
            tasks: state
                .tasks
                .iter()
                .map(|(task, account)| TaskSums {
                    task: *task,
                    spent: account.spent,
                    refunded: account.refunded,
                    day: account.day,
                    reached: account.reached,
                })
                .collect(),
            ended: state.ended.order.iter().copied().collect(),
            campaigns: state
                .campaigns
                .iter()
                .map(|(campaign, account)| CampaignSums {
                    campaign: *campaign,
                    cap: account.cap,
                    spent: account.spent,
                    day: account.day,
                    reached: account.reached,
                })
                .collect(),
        }
    }

    /// Leaves out the tasks without an open reservation: their own streams know what they have spent.
    #[must_use]
    pub fn without_idle_tasks(mut self) -> Self {
        let busy: HashSet<TaskId> = self.open.iter().map(|reserved| reserved.task).collect();
        self.tasks.retain(|sums| busy.contains(&sums.task));
        self
    }
}

impl From<&Checkpoint> for State {
    fn from(checkpoint: &Checkpoint) -> Self {
        let mut state = Self::default();
        for event in &checkpoint.budgets {
            state.set_budget(event);
        }
        for sums in &checkpoint.scopes {
            let windows = |kept: &[WindowSums], forgotten| Windows {
                kept: kept
                    .iter()
                    .map(|sums| (sums.date, Window { spent: sums.spent, reached: sums.reached, ..Window::default() }))
                    .collect(),
                forgotten,
            };
            let account = Account {
                days: windows(&sums.days, sums.days_forgotten),
                months: windows(&sums.months, sums.months_forgotten),
            };
            state.accounts.insert(sums.scope.clone(), account);
        }
        for sums in &checkpoint.tasks {
            let account = TaskAccount {
                spent: sums.spent,
                refunded: sums.refunded,
                day: sums.day,
                reached: sums.reached,
                ..TaskAccount::default()
            };
            state.tasks.insert(sums.task, account);
        }
        for sums in &checkpoint.campaigns {
            let account = CampaignAccount {
                cap: sums.cap,
                spent: sums.spent,
                day: sums.day,
                reached: sums.reached,
                ..CampaignAccount::default()
            };
            state.campaigns.insert(sums.campaign, account);
        }
        for reserved in &checkpoint.open {
            let amount = reserved.amount();
            state.each_window(reserved, |window| window.reserve(amount));
            let account = state.tasks.entry(reserved.task).or_default();
            account.reserved += amount;
            account.open += 1;
            if let Some(account) = reserved.campaign.and_then(|id| state.campaigns.get_mut(&id)) {
                account.reserved += amount;
                account.open += 1;
            }
            state.open.insert(reserved.call, reserved.clone());
        }
        for call in &checkpoint.ended {
            state.ended.push(*call);
        }
        state
    }
}
