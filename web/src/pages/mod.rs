//! The dashboard: server-rendered pages that work without JavaScript for reading, and stay current with it.
//!
//! One file per page; each template has a context of its own with samples, and one test renders every template with
//! every sample. Text of users, models and sandboxes reaches a page through auto-escaping templates alone.

pub mod actions;
pub mod assets;
pub mod audit;
pub mod budgets;
pub mod campaigns;
pub mod diff;
pub mod docs;
pub mod error;
pub mod format;
pub mod html;
pub mod keys;
pub mod live;
pub mod machine;
pub mod panels;
pub mod people;
pub mod prose;
pub mod routes;
pub mod sample;
pub mod shell;
pub mod sign_in;
pub mod task;
pub mod tasks;
pub mod timeline;
pub mod usage;
pub mod webhooks;

use std::sync::Arc;

use orchestra_events::blob::BlobStore;

pub use error::{PageError, nothing_here};

use crate::auth::Tickets;
use crate::fragments::Fragments;

/// What only the dashboard needs.
#[derive(Default)]
pub struct Dashboard {
    /// The links that sign in once.
    pub tickets: Tickets,
    /// The replaceable pieces of its pages.
    pub fragments: Fragments,
    /// Where outputs are that are too large for their events.
    pub blobs: Option<Arc<dyn BlobStore>>,
}
