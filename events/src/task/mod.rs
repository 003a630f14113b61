//! The task aggregate.
