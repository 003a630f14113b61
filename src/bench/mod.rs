//! What `orchestra bench` does: seeding and asking.

pub mod load;
pub mod seed;
