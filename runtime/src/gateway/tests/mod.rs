//! The gateway over real sockets: a scripted provider on one side, a client on the other, and a ledger that counts along.

mod bad_input;
mod breaker;
mod callers;
mod dialects;
mod house;
mod ledger;
mod matrix;
mod metering;
mod pass_through;
mod replies;
mod reserving;
mod script;
