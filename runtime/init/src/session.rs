//! Starts a command in a session of its own, and kills every process of that session.

use std::fs::File;
use std::io::{self, PipeReader};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, setsid};
use orchestra_init::{Exec, Mode};

/// Passes over the process table when a session is killed; a fork between two passes is caught by the next one.
const KILL_PASSES: usize = 8;

/// A started command's process id and the host ends of its pipes.
pub struct Started {
    /// Leader of its own session and process group.
    pub pid: i32,
    /// Merged outputs, or standard output alone.
    pub output: OwnedFd,
    /// Standard error of a piped command.
    pub errors: Option<OwnedFd>,
    /// Standard input, if there is any to give.
    pub input: Option<OwnedFd>,
}

fn nonblocking(fd: &impl AsFd) -> io::Result<()> {
    fcntl(fd, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    Ok(())
}

fn reader(pipe: PipeReader) -> io::Result<OwnedFd> {
    nonblocking(&pipe)?;
    Ok(pipe.into())
}

/// Starts the command with at most `processes` processes of this user in the sandbox, fewer than the control group
/// allows, so that init itself can always start one more. Open files and cores are limited for init and inherited.
///
/// # Errors
/// When the program cannot be started; the text is what a shell would say.
pub fn start(exec: &Exec, has_input: bool, processes: u64) -> io::Result<Started> {
    let (program, arguments) =
        exec.argv.split_first().ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "no program given"))?;
    let (output, stdout) = io::pipe()?;
    let mut command = Command::new(program);
    command.args(arguments).envs(exec.env.iter().map(|(name, value)| (name, value))).current_dir(&exec.cwd);
    let errors = match exec.mode {
        Mode::Captured => {
            command.stderr(stdout.try_clone()?);
            None
        }
        Mode::Piped => {
            let (errors, stderr) = io::pipe()?;
            command.stderr(stderr);
            Some(errors)
        }
    };
    command.stdout(stdout);
    let input = if has_input {
        let (stdin, input) = io::pipe()?;
        nonblocking(&input)?;
        command.stdin(stdin);
        Some(input.into())
    } else {
        command.stdin(Stdio::null());
        None
    };
    // SAFETY: between fork and exec only system calls are made; nothing allocates or takes a lock.
    unsafe {
        command.pre_exec(move || {
            setsid()?;
            setrlimit(Resource::RLIMIT_NPROC, processes, processes)?;
            Ok(())
        });
    }
    let child = command.spawn()?;
    Ok(Started { pid: child.id() as i32, output: reader(output)?, errors: errors.map(reader).transpose()?, input })
}

/// The session of a process, out of `/proc/<pid>/stat`: the fourth field after the name, which may itself hold
/// spaces and brackets.
fn session_of(stat: &str) -> Option<i32> {
    stat.rsplit_once(") ")?.1.split(' ').nth(3)?.parse().ok()
}

/// Kills every process of a session. Processes that made a session of their own are beyond it, and end with the
/// sandbox.
pub fn kill_all(session: i32) {
    let _ = kill(Pid::from_raw(-session), Signal::SIGKILL);
    for _ in 0..KILL_PASSES {
        let Ok(entries) = std::fs::read_dir("/proc") else { return };
        let mut found = false;
        for entry in entries.flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
            let Ok(stat) = File::open(entry.path().join("stat")).and_then(io::read_to_string) else { continue };
            let dead = stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with(['Z', 'X']));
            if !dead && session_of(&stat) == Some(session) {
                found = true;
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
        }
        if !found {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_session_is_read_past_any_name() {
        assert_eq!(session_of("12 (a) R) S 1 12 77 0 -1"), Some(77));
        assert_eq!(session_of("nonsense"), None);
    }
}
