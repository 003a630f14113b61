//! The REST interface as a caller meets it, over a store in memory and a task service that only decides and appends.

mod audit;
mod auth;
mod billing;
mod budgets;
mod campaigns;
mod conformance;
mod documents;
mod erasure;
mod fuzz;
mod harness;
mod keys;
mod matrix;
mod payload;
mod people;
mod repeats;
mod security;
mod streams;
mod tasks;
mod usage;
mod webhooks;
