//! The API key aggregate: issued once, shown once, kept as a hash, renewed by rotation, revoked for good.

pub mod bounds;
pub mod event;
pub mod resource;
pub mod state;

pub use bounds::{Bounds, Breach, Pattern};
pub use event::{KeyEvent, KeyGrant, KeyLimits, Scope};
pub use resource::KeyResource;
pub use state::{Command, Key, LastUse, Previous, Refusal, decide, evolve};
