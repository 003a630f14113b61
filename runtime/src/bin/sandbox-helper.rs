//! The smallest program that can be a sandbox's helper, for tests and benchmarks: what `orchestra sandbox-helper`
//! does, and nothing else.

use std::process::ExitCode;

use orchestra_runtime::sandbox::{HELPER_ARG, ZYGOTE_ARG, helper_main, zygote_main};

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    match arguments.next() {
        Some(first) if first == HELPER_ARG => helper_main(arguments),
        Some(first) if first == ZYGOTE_ARG => zygote_main(),
        _ => ExitCode::from(2),
    }
}
