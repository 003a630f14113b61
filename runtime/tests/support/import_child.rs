//! The importing child on its own, for tests that have no server binary.

use std::process::ExitCode;

use orchestra_runtime::git;

fn main() -> ExitCode {
    if std::env::args().nth(1).as_deref() == Some(git::IMPORT_ARG) {
        return git::import_main(std::env::args_os().skip(2));
    }
    ExitCode::FAILURE
}
