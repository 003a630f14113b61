//! Orchestra: runs background coding agents for teams.

mod bench;
mod cli;
mod client;
mod config;
mod demo;
#[cfg(test)]
mod documents;
mod scripted_model;
mod wiring;

use std::process::ExitCode;

use orchestra_runtime::git::{IMPORT_ARG, import_main};
use orchestra_runtime::sandbox::{HELPER_ARG, ZYGOTE_ARG, helper_main, zygote_main};

fn main() -> ExitCode {
    // The children of ours run before anything else: they must have one thread and no configuration.
    let mut arguments = std::env::args_os().skip(1);
    match arguments.next() {
        Some(first) if first == HELPER_ARG => helper_main(arguments),
        Some(first) if first == ZYGOTE_ARG => zygote_main(),
        Some(first) if first == IMPORT_ARG => import_main(arguments),
        _ => cli::main(),
    }
}
