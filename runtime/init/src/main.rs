//! The first process inside a sandbox, and the file tools that run in it: one small static program.
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod capture;
mod job;
mod landlock;
mod lineage;
mod session;
mod supervisor;
mod terminal;
mod tool;

use std::process::ExitCode;

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    match arguments.next().as_deref() {
        Some("pid1") => {
            let processes = arguments.next().and_then(|count| count.parse().ok()).unwrap_or(64);
            match supervisor::run(processes) {
                Ok(never) => match never {},
                Err(error) => {
                    eprintln!("init: {error}");
                    ExitCode::FAILURE
                }
            }
        }
        Some("tool") => tool::main(arguments.next().as_deref()),
        _ => {
            eprintln!("usage: init tool read|write|edit|glob|grep, with the arguments as JSON on standard input");
            ExitCode::from(2)
        }
    }
}
