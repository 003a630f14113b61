//! The REST interface, one file per resource.

pub mod endpoints;
pub mod health;

pub use endpoints::configure;
