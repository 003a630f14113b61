//! Orchestra: background coding agents for teams.

#[allow(dead_code)]
mod scripted_model;

fn main() {}
