//! Starts a command in a session of its own, on pipes or on a terminal.

use std::io::{self, PipeReader};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::resource::{Resource, setrlimit};
use nix::unistd::setsid;
use orchestra_init::{Exec, Mode};

use crate::lineage::{self, Claim, MARK};
use crate::terminal;

/// What this process keeps of a started command.
pub struct Started {
    /// Leader of its own session and process group, and what else it may call its own.
    pub claim: Claim,
    /// Merged outputs, or standard output alone, or a terminal's screen.
    pub output: OwnedFd,
    /// Standard error of a piped or streamed command.
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
/// `mark` is the command's number.
///
/// # Errors
/// When the program cannot be started; the text is what a shell would say.
pub fn start(exec: &Exec, has_input: bool, mark: u64, processes: u64) -> io::Result<Started> {
    let (program, arguments) =
        exec.argv.split_first().ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "no program given"))?;
    let mut command = Command::new(program);
    command.args(arguments).envs(exec.env.iter().map(|(name, value)| (name, value))).current_dir(&exec.cwd);
    command.env(MARK, mark.to_string());
    let on_terminal = matches!(exec.mode, Mode::Terminal(_));
    // SAFETY: between fork and exec only system calls are made; nothing allocates or takes a lock.
    unsafe {
        command.pre_exec(move || {
            setsid()?;
            if on_terminal {
                terminal::take()?;
            }
            setrlimit(Resource::RLIMIT_NPROC, processes, processes)?;
            Ok(())
        });
    }
    let (output, errors, input) = match exec.mode {
        Mode::Terminal(window) => {
            let (keyboard, screen) = terminal::open(window)?;
            command.stdin(screen.try_clone()?).stdout(screen.try_clone()?).stderr(screen);
            (keyboard.try_clone()?, None, Some(keyboard))
        }
        mode @ (Mode::Captured | Mode::Piped | Mode::Streamed) => {
            let (output, stdout) = io::pipe()?;
            let errors = if mode == Mode::Captured {
                command.stderr(stdout.try_clone()?);
                None
            } else {
                let (errors, stderr) = io::pipe()?;
                command.stderr(stderr);
                Some(reader(errors)?)
            };
            command.stdout(stdout);
            let input = if has_input || mode.takes_input() {
                let (stdin, input) = io::pipe()?;
                nonblocking(&input)?;
                command.stdin(stdin);
                Some(input.into())
            } else {
                command.stdin(Stdio::null());
                None
            };
            (reader(output)?, errors, input)
        }
    };
    // Our copies of the command's ends go with the builder.
    let pid = command.spawn()?.id() as i32;
    let claim = Claim { session: pid, mark, since: lineage::since(pid) };
    Ok(Started { claim, output, errors, input })
}
