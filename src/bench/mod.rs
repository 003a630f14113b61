//! What `orchestra bench` does: seeding and asking.

mod books;
pub mod load;
pub mod seed;
