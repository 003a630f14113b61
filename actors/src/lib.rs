//! One actor per open task, and those that supervise, schedule, project and clean up.
//!
//! [`orchestra::Orchestra`] starts them and implements [`service::TaskService`] for the outer rooms. A task's way:
//! `scheduler` gives it a place, `supervisor` makes its actor, `task` asks for the next step, `workshop` does it,
//! `journal` records what came of it.
//!
//! Architecture invariant: only this crate knows actix's actors, and nothing in it blocks a thread.

pub mod admission;
pub mod allowed;
pub mod billing;
pub mod calls;
pub mod campaign;
pub mod erasure;
pub mod images;
mod intake;
pub mod journal;
pub mod ledger;
pub mod mirror;
pub mod notary;
pub mod orchestra;
pub mod policy;
pub mod projector;
pub mod reaper;
pub mod recovery;
pub mod scheduler;
pub mod service;
pub mod speech;
pub mod supervisor;
pub mod task;
pub mod usage;
pub mod webhook;
pub mod workshop;

pub use billing::{BillingDesk, BillingError, BillingService};
pub use campaign::service::CampaignService;
pub use erasure::{ErasureMarks, Retention};
pub use ledger::{LedgerError, Ledgers, Settlement};
pub use notary::{AuditService, Notary, NotaryError};
pub use orchestra::{Defaults, Orchestra};
pub use scheduler::Capacity;
pub use service::{
    Attempt, BudgetService, Credentials, Delta, Erased, FieldError, Identity, IdentityError, IdentityProvider, NewRepo,
    NewTask, Submitted, TaskService,
};
pub use webhook::service::{MadeWebhook, NewWebhook, WebhookRules, WebhookService, Webhooks};
