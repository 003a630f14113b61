//! The importing child on its own, for tests that have no server binary. Under a name that begins with `measured` it
//! starts another one, and writes that one's peak memory into a file beside it.

use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Command, ExitCode};

use orchestra_runtime::git;

fn main() -> ExitCode {
    let name = std::env::args_os().next().unwrap_or_default();
    if Path::new(&name).file_name().is_some_and(|file| file.to_string_lossy().starts_with("measured")) {
        return measured(Path::new(&name));
    }
    if std::env::args().nth(1).as_deref() == Some(git::IMPORT_ARG) {
        return git::import_main(std::env::args_os().skip(2));
    }
    ExitCode::FAILURE
}

/// Appends a line with the peak in KiB, and ends as the child ended.
fn measured(name: &Path) -> ExitCode {
    let mut child = Command::new("/proc/self/exe");
    let status = child.arg0("import-child").args(std::env::args_os().skip(1)).status().expect("it starts");
    let mut used = std::mem::MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: the kernel fills the structure; all zeros is a valid value of it.
    let peak = unsafe {
        libc::getrusage(libc::RUSAGE_CHILDREN, used.as_mut_ptr());
        used.assume_init().ru_maxrss
    };
    std::fs::write(name.with_extension("peak"), format!("{peak}\n")).expect("writable");
    if let Some(signal) = status.signal() {
        // SAFETY: a process may end itself.
        unsafe { libc::raise(signal) };
    }
    status.code().and_then(|code| u8::try_from(code).ok()).map_or(ExitCode::FAILURE, ExitCode::from)
}
