//! Forges for tests: a real git server behind HTTP, and stand-ins of each forge's REST interface over the same
//! repositories.

mod git_server;

pub use git_server::{At, Fault, GitServer};
