//! The outside world behind small traits: sandboxes, images, models, git, credentials.

pub mod image;
pub mod sandbox;
