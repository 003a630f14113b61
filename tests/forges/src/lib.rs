//! Forges for tests: a real git server behind HTTP, and stand-ins of each forge's REST interface over the same
//! repositories. Each request to a stand-in is held against the forge's published OpenAPI description (`specs/`).
//! Beside them, [`identity`] is a provider that people sign in with.

mod bare;
mod bitbucket_cloud;
mod bitbucket_dc;
mod fake;
mod git_server;
mod github;
mod gitlab;
pub mod identity;
mod spec;
mod state;
mod wire;

pub use bare::Bare;
pub use fake::{ApiFault, FakeForge, Kind, On};
pub use git_server::{At, Fault, GitServer};
pub use state::{Comment, Login, Person, Pull, Repo, State, Status};
