//! Placeholder while the measurements are written.
fn main() {}
