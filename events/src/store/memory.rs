//! The store for tests.
