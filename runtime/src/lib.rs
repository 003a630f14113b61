//! The outside world behind small traits.

pub mod agent;
pub mod model;
pub mod vault;
