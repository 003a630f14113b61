//! What Orchestra promises to its users, one file a promise, over the real program: a server process, real sandboxes,
//! a real git server and a scripted model. Needs root and an image named `default`.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on says where")]

mod agents;
mod audit;
mod bad_input;
mod billing;
mod branches;
mod campaign;
mod cancel;
mod crash;
mod credentials;
mod egress;
mod erasure;
mod faults;
mod gateway;
mod harness;
mod harness_cli;
mod hostile_model;
mod idempotency;
mod isolation;
mod keys;
mod lifecycle;
mod operators;
mod people;
mod pull_requests;
mod reaper;
mod reconnect;
mod repos;
mod secrets;
mod setup;
mod templates;
mod webhooks;
