//! The smallest program that can be a sandbox's helper, for tests and benchmarks: what `orchestra sandbox-helper`
//! does, and nothing else.

use std::process::ExitCode;

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    if arguments.next().is_some_and(|first| first == orchestra_runtime::sandbox::HELPER_ARG) {
        return orchestra_runtime::sandbox::helper_main(arguments);
    }
    ExitCode::from(2)
}
