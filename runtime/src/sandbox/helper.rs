//! The one process that runs libcontainer: one per sandbox, single-threaded, and independent of the server. It is forked from
//! the zygote, or, where there is none, the program started again.
//!
//! It builds and starts the container, says so on standard output, and from then on needs nobody: it waits for the
//! sandbox's end, enforces its time limit, writes down how it ended and clears the container away.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use libcontainer::container::Container;
use libcontainer::container::builder::ContainerBuilder;
use libcontainer::oci_spec::runtime::Spec;
use libcontainer::syscall::syscall::SyscallType;
use libcontainer::workload::default::DefaultExecutor;
use libcontainer::workload::{Executor, ExecutorError, ExecutorSetEnvsError, ExecutorValidationError};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigHandler, Signal, kill, signal};
use nix::sys::stat::{Mode, umask};
use nix::sys::wait::waitpid;
use nix::unistd::{Pid, setgroups, setsid};

use super::cgroup::Hierarchy;
use super::handover::Counter;
use super::layout::{Cause, Ending, HelperOrder, HelperReport, Layout, whole_file_lock, write_whole};
use super::seccomp::Filter;
use super::{network, stage};

/// The first argument of a program that is to be a sandbox's helper; the sandbox's directory follows.
pub const HELPER_ARG: &str = "sandbox-helper";

/// The descriptor that the sandbox's first process takes its listener from: the first that the library preserves.
const HANDED_OVER: i32 = 3;
/// Where the helper keeps its lock, out of the way of what is handed over.
const LOCK_FD: i32 = 20;

/// Runs the helper. Call it before any thread is started, with what follows [`HELPER_ARG`].
pub fn helper_main(mut arguments: impl Iterator<Item = OsString>) -> ExitCode {
    let Some(dir) = arguments.next().map(PathBuf::from) else { return ExitCode::from(2) };
    match stand_alone() {
        Ok(()) if serve(&dir) => ExitCode::SUCCESS,
        Ok(()) => ExitCode::FAILURE,
        Err(error) => {
            report(&HelperReport::Failed(error.to_string()));
            ExitCode::FAILURE
        }
    }
}

/// Starts the sandbox in this directory and stays with it to its end. Whether all went well; what did not, was reported.
pub fn serve(dir: &Path) -> bool {
    run(dir).inspect_err(|error| report(&HelperReport::Failed(error.to_string()))).is_ok()
}

/// Cuts every tie to the process that started this one, or that it was forked from.
pub fn stand_alone() -> io::Result<()> {
    // SAFETY: nothing of this young process owns a descriptor above standard error.
    unsafe { libc::close_range(3, u32::MAX, 0) };
    for number in [Signal::SIGPIPE, Signal::SIGHUP, Signal::SIGINT, Signal::SIGTERM] {
        // SAFETY: ignoring a signal installs no code.
        unsafe { signal(number, SigHandler::SigIgn) }?;
    }
    // Fails only for a group leader, which is in a session of its own already.
    let _ = setsid();
    if nix::unistd::geteuid().is_root() {
        setgroups(&[])?;
    }
    umask(Mode::from_bits_truncate(0o022));
    std::env::set_current_dir("/")
}

/// One line to the server, if it still listens.
fn report(report: &HelperReport) {
    let mut line = serde_json::to_vec(report).unwrap_or_default();
    line.push(b'\n');
    let _ = io::stdout().write_all(&line).and_then(|()| io::stdout().flush());
}

/// Holds the sandbox for as long as this process lives; the kernel tells anyone who asks which process that is.
fn lock(layout: &Layout) -> io::Result<OwnedFd> {
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(layout.lock())?;
    // SAFETY: a plain duplication of an open descriptor to a number that nothing else here uses.
    let fd = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_DUPFD_CLOEXEC, LOCK_FD) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: just made, owned by nobody else.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    // Before the lock is taken: closing any descriptor of a file drops the process's locks on it.
    drop(file);
    let wanted = whole_file_lock();
    // SAFETY: the struct is valid for the call to read.
    if unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETLK, &raw const wanted) } < 0 {
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, "another helper has this sandbox"));
    }
    Ok(fd)
}

/// Binds the control socket and puts it where the sandbox's first process expects it.
fn hand_over_socket(layout: &Layout) -> io::Result<OwnedFd> {
    // A relative name: the path of a socket may be at most 107 bytes long, a directory's is not so limited.
    std::env::set_current_dir(layout.dir())?;
    let _ = fs::remove_file("init.sock");
    let listener = UnixListener::bind("init.sock")?;
    std::env::set_current_dir("/")?;
    if listener.as_raw_fd() == HANDED_OVER {
        // It has to survive the start of the first process's program.
        fcntl(&listener, FcntlArg::F_SETFD(FdFlag::empty()))?;
        return Ok(listener.into());
    }
    // A duplicate survives. SAFETY: the number is free, because everything above standard error was closed and the lock
    // is elsewhere.
    if unsafe { libc::dup2(listener.as_raw_fd(), HANDED_OVER) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: just made, owned by nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(HANDED_OVER) })
}

/// An error with all its causes on one line; the library's own text often says only that something failed.
fn whole_story(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        cause = error.source();
    }
    text
}

fn run(dir: &Path) -> io::Result<()> {
    let cgroups = Hierarchy::for_user(dir.parent().unwrap_or(dir))?;
    let layout = Layout::at(dir.to_owned(), String::new());
    let _lock = lock(&layout)?;
    // Read after the lock is held: who removes a sandbox takes the order away first, so a late helper finds nothing.
    let order: HelperOrder = serde_json::from_slice(&fs::read(layout.order())?)?;
    let layout = Layout::at(dir.to_owned(), order.cgroup.clone());
    let deadline = Instant::now().checked_add(order.timeout);
    let listener = hand_over_socket(&layout)?;
    let counter = order.ahead.then(|| Counter::open(&layout)).transpose()?;
    let filter = Filter::read(&order.filter)?;
    stage::enter(&layout, &order)?;
    fs::write(Path::new(stage::BUNDLE).join("config.json"), serde_json::to_vec(&order.description)?)?;
    let layout = Layout::at(stage::SANDBOX.into(), order.cgroup.clone());
    drop(order);
    let started = create_and_start(&layout, &cgroups, filter);
    // The sandbox has its own copy; with this one open, a dead sandbox would seem to accept connections.
    drop(listener);
    match started {
        Ok((container, pid)) => {
            report(&HelperReport::Ready(pid.as_raw()));
            let_go_of_stdout();
            // SAFETY: gives memory that nothing uses back to the kernel, which it may refuse.
            unsafe { libc::malloc_trim(0) };
            let timed_out = wait_for_end(pid, deadline, counter, &layout)?;
            write_ending(&layout, &cgroups, timed_out)?;
            clear_away(&layout, &cgroups, Some(container))
        }
        Err(error) => {
            bury_children();
            let cleared = clear_away(&layout, &cgroups, None);
            Err(cleared.err().map_or(error, |left| io::Error::other(format!("left behind: {left}"))))
        }
    }
}

/// Starts the first process's program like the library does, but behind our own system call filter.
#[derive(Clone)]
struct Filtered(Filter);

impl Executor for Filtered {
    fn exec(&self, spec: &Spec) -> Result<(), ExecutorError> {
        DefaultExecutor {}.exec(spec)
    }

    fn validate(&self, spec: &Spec) -> Result<(), ExecutorValidationError> {
        DefaultExecutor {}.validate(spec)
    }

    /// The last step in the process before the library reports the container as made, long after new privileges were given
    /// up. An error here ends the process, so nothing ever runs without the filter.
    fn setup_envs(&self, variables: HashMap<String, String>) -> Result<(), ExecutorSetEnvsError> {
        DefaultExecutor {}.setup_envs(variables)?;
        let refused =
            |error| ExecutorSetEnvsError::Other(format!("the kernel refuses the system call filter: {error}"));
        self.0.install().map_err(refused)
    }
}

fn create_and_start(layout: &Layout, cgroups: &Hierarchy, filter: Filter) -> io::Result<(Container, Pid)> {
    let failed = |error: libcontainer::error::LibcontainerError| io::Error::other(whole_story(&error));
    let null = || File::options().read(true).write(true).open("/dev/null").map(OwnedFd::from);
    let mut container = ContainerBuilder::new(layout.cgroup().to_owned(), SyscallType::default())
        .with_root_path(stage::CONTAINER)
        .map_err(failed)?
        .with_preserved_fds(1)
        .with_executor(Filtered(filter))
        .with_stdin(null()?)
        .with_stdout(null()?)
        .with_stderr(null()?)
        .validate_id()
        .map_err(failed)?
        .as_init(stage::BUNDLE)
        .with_systemd(false)
        .with_detach(true)
        .build()
        .map_err(failed)?;
    let pid = container.pid().ok_or_else(|| io::Error::other("the container has no process"))?;
    let pid = Pid::from_raw(pid.as_raw());
    cgroups.join_for_killing(layout.cgroup(), pid);
    let started = write_whole(&layout.first_process(), pid.to_string().as_bytes(), 0o600)
        .and_then(|()| network::raise_loopback_of(pid.as_raw()))
        .and_then(|()| container.start().map_err(failed));
    if let Err(error) = started {
        let _ = kill(pid, Signal::SIGKILL);
        let _ = waitpid(pid, None);
        let _ = container.delete(true);
        return Err(error);
    }
    Ok((container, pid))
}

/// Closes the pipe to the server without giving its number away.
fn let_go_of_stdout() {
    if let Ok(null) = OpenOptions::new().write(true).open("/dev/null") {
        // SAFETY: both numbers are open descriptors of this process.
        unsafe { libc::dup2(null.as_raw_fd(), 1) };
    }
}

/// Waits until the sandbox's first process is gone, and with it all others; true when its time ran out. If there is a
/// counter, the sandbox is handed over there once, and its time begins then.
fn wait_for_end(
    pid: Pid,
    mut deadline: Option<Instant>,
    mut counter: Option<Counter>,
    layout: &Layout,
) -> io::Result<bool> {
    // SAFETY: plain system call; the process is our child and not yet waited for, so the id is its own.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid.as_raw(), 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: just made, owned by nobody else.
    let pidfd = unsafe { OwnedFd::from_raw_fd(fd as i32) };
    let mut timed_out = false;
    loop {
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        if left == Some(Duration::ZERO) && !timed_out {
            timed_out = true;
            let _ = kill(pid, Signal::SIGKILL);
        }
        let timeout = match left {
            Some(left) if !timed_out => PollTimeout::try_from(left.as_millis() + 1).unwrap_or(PollTimeout::MAX),
            _ => PollTimeout::NONE,
        };
        let mut fds = vec![PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
        fds.extend(counter.as_ref().map(|counter| PollFd::new(counter.as_fd(), PollFlags::POLLIN)));
        match poll(&mut fds, timeout) {
            Ok(0) | Err(nix::errno::Errno::EINTR) => continue,
            Ok(_) => {}
            Err(error) => return Err(error.into()),
        }
        if fds[0].any() == Some(true) {
            break;
        }
        // What cannot be handed over stays nobody's: whoever tried removes it.
        if let Some(Ok(Some(timeout))) = counter.as_ref().map(|counter| counter.serve(layout)) {
            deadline = Instant::now().checked_add(timeout);
            counter = None;
        }
    }
    let _ = waitpid(pid, None);
    Ok(timed_out)
}

/// Collects and kills what a failed build may have left as our children.
fn bury_children() {
    let children = fs::read_to_string("/proc/thread-self/children").unwrap_or_default();
    for pid in children.split_whitespace().filter_map(|pid| pid.parse().ok()).map(Pid::from_raw) {
        let _ = kill(pid, Signal::SIGKILL);
        let _ = waitpid(pid, None);
    }
}

fn write_ending(layout: &Layout, cgroups: &Hierarchy, timed_out: bool) -> io::Result<()> {
    let oom_kills = cgroups.oom_kills(layout.cgroup());
    let told = layout.oom_told().0;
    let cause = match () {
        () if timed_out => Cause::TimedOut,
        () if oom_kills > told => Cause::OutOfMemory,
        () => Cause::Stopped,
    };
    let ending = serde_json::to_vec(&Ending { cause, oom_kills })?;
    write_whole(&layout.ending(), &ending, 0o600)
}

fn clear_away(layout: &Layout, cgroups: &Hierarchy, container: Option<Container>) -> io::Result<()> {
    if let Some(mut container) = container {
        container.delete(true).map_err(|error| io::Error::other(whole_story(&error)))?;
    }
    cgroups.kill(layout.cgroup())?;
    cgroups.remove(layout.cgroup())?;
    match fs::remove_file(layout.socket()) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
