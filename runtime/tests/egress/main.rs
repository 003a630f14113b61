//! The way out of a sandbox: what must not get out, what must, and that both are written down.
#![allow(clippy::print_stdout, clippy::unwrap_used)]

mod attempts;
mod bounds;
mod clients;
mod hello;
#[path = "../sandbox/host.rs"]
#[allow(dead_code, reason = "written for other tests too")]
mod host;
mod passing;
mod stage;
