//! Whether the money adds up: each ledger by its own audit, and every call of a ledger against its task's stream.
//!
//! The ledger is written first and the task after it, so that at any moment a few calls stand in one of the two alone.
//! That is as it should be for as long as the task goes on; when it is over, both say the same, to the nano-dollar.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::read::{Entry, Fact};
use crate::envelope::StreamName;
use crate::id::{CallId, TaskId};
use crate::ledger::LedgerEvent;
use crate::ledger::audit::{Audit, Violation};
use crate::ledger::event::Amount;
use crate::money::NanoUsd;

/// The first thing that does not add up.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("at position {position}: {fault}")]
pub struct Mismatch {
    /// The event that shows it.
    pub position: u64,
    /// What does not add up.
    pub fault: Fault,
}

/// What can be wrong with the books.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// A ledger broke a promise.
    #[error("{ledger}: {violation}")]
    Ledger {
        /// Which.
        ledger: StreamName,
        /// How.
        violation: Box<Violation>,
    },
    /// An event about money does not read.
    #[error("an event of {0} does not read")]
    Unreadable(StreamName),
    /// Ledger and task name another amount for the same call.
    #[error("{task}: {call} was charged {charged} to the task, and the ledger settled {settled}")]
    Differs {
        /// The task.
        task: TaskId,
        /// The call.
        call: CallId,
        /// What the task says.
        charged: Sum,
        /// What the ledger says.
        settled: Sum,
    },
    /// A task was charged a second time for a call.
    #[error("{task}: {call} was charged twice")]
    ChargedTwice {
        /// The task.
        task: TaskId,
        /// The call.
        call: CallId,
    },
    /// A task was charged for a call that no ledger has.
    #[error("{task}: {call} was charged {charged}, and no ledger settled it")]
    NotSettled {
        /// The task.
        task: TaskId,
        /// The call.
        call: CallId,
        /// What the task says.
        charged: Sum,
    },
    /// A ledger settled a call of a task that is over and was never charged.
    #[error("{task}: {call} was settled at {settled} in the ledger, and the task, which is over, was not charged")]
    NotCharged {
        /// The task.
        task: TaskId,
        /// The call.
        call: CallId,
        /// What the ledger says.
        settled: Sum,
    },
    /// Ledger and task name another refund.
    #[error("{task}: ${granted} were given back by the task, and ${refunded} by the ledger")]
    Refunds {
        /// The task.
        task: TaskId,
        /// What the task says.
        granted: NanoUsd,
        /// What the ledger says.
        refunded: NanoUsd,
    },
}

/// An amount as it is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sum(pub Amount);

impl std::fmt::Display for Sum {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "${} and {} tokens", self.0.nano_usd, self.0.tokens)
    }
}

/// The books of a whole log.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Balance {
    /// Ledgers that were audited.
    pub ledgers: u64,
    /// Tasks that were charged.
    pub tasks: u64,
    /// Calls that stand in ledger and task alike.
    pub calls: u64,
    /// Of these and others, those whose count was lost and that were charged at their bound.
    pub unconfirmed: u64,
    /// Calls that stand in one of the two, of tasks that go on, and open reservations.
    pub under_way: u64,
    /// What the ledgers settled.
    pub settled: Amount,
    /// What of it was given back.
    pub refunded: NanoUsd,
}

#[derive(Debug, Clone, Copy)]
struct Told {
    task: TaskId,
    amount: Amount,
    position: u64,
}

#[derive(Debug, Default, Clone, Copy)]
struct Refunds {
    ledger: NanoUsd,
    task: NanoUsd,
    position: u64,
}

/// Checks a log event by event.
#[derive(Default)]
pub struct Books {
    ledgers: BTreeMap<StreamName, (Audit, u64)>,
    settled: HashMap<CallId, Told>,
    charged: HashMap<CallId, Told>,
    matched: HashSet<CallId>,
    refunds: BTreeMap<TaskId, Refunds>,
    tasks: HashSet<TaskId>,
    over: HashSet<TaskId>,
}

impl Books {
    /// Takes the next event.
    pub fn take(&mut self, entry: &Entry) -> Result<(), Mismatch> {
        let position = entry.position;
        self.check(entry).map_err(|fault| Mismatch { position, fault })
    }

    fn check(&mut self, entry: &Entry) -> Result<(), Fault> {
        let position = entry.position;
        match &entry.fact {
            Fact::None | Fact::Erased | Fact::Checkpoint(_) => Ok(()),
            Fact::Odd => Err(Fault::Unreadable(entry.stream.clone())),
            Fact::Ledger(event) => {
                let (audit, last) = self.ledgers.entry(entry.stream.clone()).or_default();
                *last = position;
                audit.take(event).map_err(|violation| Fault::Ledger {
                    ledger: entry.stream.clone(),
                    violation: Box::new(violation),
                })?;
                match &**event {
                    LedgerEvent::Settled(event) => {
                        self.settle(event.call, Told { task: event.task, amount: event.amount(), position })
                    }
                    LedgerEvent::Refunded(event) => {
                        let refunds = self.refunds.entry(event.task).or_default();
                        refunds.ledger += event.nano_usd;
                        refunds.position = position;
                        Ok(())
                    }
                    LedgerEvent::BudgetSet(_)
                    | LedgerEvent::CampaignOpened(_)
                    | LedgerEvent::Reserved(_)
                    | LedgerEvent::Trimmed(_)
                    | LedgerEvent::Released(_)
                    | LedgerEvent::ThresholdReached(_)
                    | LedgerEvent::DayClosed(_) => Ok(()),
                }
            }
            Fact::Charged { call, amount } => {
                let Some(task) = entry.stream.task_id() else { return Ok(()) };
                self.tasks.insert(task);
                self.charge(*call, Told { task, amount: *amount, position })
            }
            Fact::Refunded(amount) => {
                let Some(task) = entry.stream.task_id() else { return Ok(()) };
                let refunds = self.refunds.entry(task).or_default();
                refunds.task += *amount;
                refunds.position = position;
                Ok(())
            }
            Fact::Over(over) => {
                let Some(task) = entry.stream.task_id() else { return Ok(()) };
                if *over {
                    self.over.insert(task);
                } else {
                    self.over.remove(&task);
                }
                Ok(())
            }
        }
    }

    /// That no call is settled twice is the ledger's own audit's to see.
    fn settle(&mut self, call: CallId, settled: Told) -> Result<(), Fault> {
        match self.charged.remove(&call) {
            Some(charged) => self.compare(call, charged, settled),
            None => {
                self.settled.insert(call, settled);
                Ok(())
            }
        }
    }

    fn charge(&mut self, call: CallId, charged: Told) -> Result<(), Fault> {
        match self.settled.remove(&call) {
            Some(settled) => self.compare(call, charged, settled),
            None if self.matched.contains(&call) || self.charged.insert(call, charged).is_some() => {
                Err(Fault::ChargedTwice { task: charged.task, call })
            }
            None => Ok(()),
        }
    }

    fn compare(&mut self, call: CallId, charged: Told, settled: Told) -> Result<(), Fault> {
        self.matched.insert(call);
        if charged.amount == settled.amount && charged.task == settled.task {
            return Ok(());
        }
        let (task, charged, settled) = (charged.task, Sum(charged.amount), Sum(settled.amount));
        Err(Fault::Differs { task, call, charged, settled })
    }

    /// Checks what must hold at the end, and says what it all adds up to.
    pub fn finish(self) -> Result<Balance, Mismatch> {
        let mut balance =
            Balance { tasks: self.tasks.len() as u64, calls: self.matched.len() as u64, ..Balance::default() };
        let mut open = HashSet::new();
        for (ledger, (audit, position)) in self.ledgers {
            let totals = audit.finish().map_err(|violation| Mismatch {
                position,
                fault: Fault::Ledger { ledger, violation: Box::new(violation) },
            })?;
            balance.ledgers += 1;
            balance.unconfirmed += totals.unconfirmed;
            balance.settled += totals.settled;
            open.extend(totals.open);
        }
        let mut faults = BTreeMap::new();
        for (call, Told { task, amount, position }) in self.charged {
            if !open.contains(&call) {
                faults.insert(position, Fault::NotSettled { task, call, charged: Sum(amount) });
            }
        }
        balance.under_way = open.len() as u64;
        for (call, Told { task, amount, position }) in self.settled {
            if self.over.contains(&task) {
                faults.insert(position, Fault::NotCharged { task, call, settled: Sum(amount) });
            } else {
                balance.under_way += 1;
            }
        }
        for (task, refunds) in self.refunds {
            balance.refunded += refunds.ledger;
            if refunds.ledger == refunds.task {
                continue;
            }
            if self.over.contains(&task) || refunds.task > refunds.ledger {
                let (granted, refunded) = (refunds.task, refunds.ledger);
                faults.insert(refunds.position, Fault::Refunds { task, granted, refunded });
            } else {
                balance.under_way += 1;
            }
        }
        match faults.pop_first() {
            Some((position, fault)) => Err(Mismatch { position, fault }),
            None => Ok(balance),
        }
    }
}
