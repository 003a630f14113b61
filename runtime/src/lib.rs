//! The outside world behind small traits: sandboxes, models, git, credentials.

pub mod git;
