//! The process that sandboxes' helpers are forked from, so that no start has to load a big program again.
//!
//! The server starts its own program once more, as a process with one thread, an empty environment and no supplementary
//! groups, which waits for orders on a socket. For each it forks a child that becomes the sandbox's helper, in a session of
//! its own and with nothing of the zygote's but its memory, which both share until one of them writes. A helper needs neither
//! the zygote nor the server. When the server ends, so does the zygote; when the zygote ends, the next start brings up
//! another, and where none can be brought up, each helper is the program started again.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::{Mutex, PoisonError};

use nix::errno::Errno;
use nix::sys::prctl;
use nix::sys::signal::{SigHandler, Signal, signal};
use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, UnixAddr, recvmsg, sendmsg,
    setsockopt, socketpair, sockopt::SendTimeout,
};
use nix::sys::time::TimeVal;
use nix::unistd::{ForkResult, fork};

use super::helper::{self, HELPER_ARG};

/// The first argument of a program that is to be the zygote.
pub const ZYGOTE_ARG: &str = "sandbox-zygote";

/// Longest path of a sandbox's directory: the longest that the kernel takes.
const MAX_ORDER: usize = 4096;
/// Room in the zygote's command line for that of its children, which say whose helper they are.
const TITLE_ROOM: usize = MAX_ORDER + 64;
/// How long an order may wait for room on the socket: a zygote that is stopped is replaced.
const ORDER_PATIENCE_SECONDS: i64 = 2;
/// Orders that are tried with a fresh zygote each before the program is started directly.
const ATTEMPTS: usize = 2;

/// The server's end.
#[derive(Debug)]
pub struct Zygote {
    program: PathBuf,
    /// The one that runs, once there is one.
    running: Mutex<Option<Running>>,
}

#[derive(Debug)]
struct Running {
    process: Child,
    socket: OwnedFd,
}

impl Drop for Running {
    fn drop(&mut self) {
        // Nothing is lost with it: what it has forked is on its own.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Running {
    fn start(program: &Path) -> io::Result<Self> {
        let (ours, its) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)
            .map_err(io::Error::from)?;
        let process = Command::new(program)
            .arg(ZYGOTE_ARG)
            .arg(" ".repeat(TITLE_ROOM))
            .env_clear()
            .current_dir("/")
            .stdin(its)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()?;
        setsockopt(&ours, SendTimeout, &TimeVal::new(ORDER_PATIENCE_SECONDS, 0)).map_err(io::Error::from)?;
        Ok(Self { process, socket: ours })
    }

    fn order(&self, dir: &Path, output: &impl AsFd, log: &File) -> nix::Result<()> {
        let dir = dir.as_os_str().as_bytes();
        if dir.len() > MAX_ORDER {
            return Err(Errno::ENAMETOOLONG);
        }
        let fds = [output.as_fd().as_raw_fd(), log.as_raw_fd()];
        // A zygote that has not kept up with as many orders as the socket holds is waited for a while: it only forks.
        let flags = MsgFlags::MSG_NOSIGNAL;
        let rights = [ControlMessage::ScmRights(&fds)];
        sendmsg::<UnixAddr>(self.socket.as_raw_fd(), &[IoSlice::new(dir)], &rights, flags, None).map(drop)
    }
}

impl Zygote {
    /// Forks from this program, which is started when the first order is given.
    pub fn new(program: PathBuf) -> Self {
        Self { program, running: Mutex::default() }
    }

    /// Has a helper forked for the sandbox in this directory, which reports on `output` and whose errors go to `log`.
    ///
    /// # Errors
    /// When there is no zygote and none can be started.
    pub fn order(&self, dir: &Path, output: &impl AsFd, log: &File) -> io::Result<()> {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        let mut last = None;
        for _ in 0..ATTEMPTS {
            let zygote = match running.take() {
                Some(zygote) => zygote,
                None => Running::start(&self.program)?,
            };
            match zygote.order(dir, output, log) {
                Ok(()) => {
                    *running = Some(zygote);
                    return Ok(());
                }
                Err(Errno::ENAMETOOLONG) => {
                    *running = Some(zygote);
                    return Err(Errno::ENAMETOOLONG.into());
                }
                Err(error) => last = Some(error),
            }
        }
        Err(last.map_or_else(|| io::ErrorKind::NotFound.into(), io::Error::from))
    }

    /// Brings it up before it is needed. Nothing depends on that but the time of the first start.
    pub fn wake(&self) {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        if running.is_none() {
            *running = Running::start(&self.program).inspect_err(|error| tracing::debug!(%error, "no zygote")).ok();
        }
    }
}

/// Runs the zygote on the socket that is its standard input. Call it before any thread is started.
pub fn zygote_main() -> ExitCode {
    match serve() {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

fn serve() -> io::Result<()> {
    helper::stand_alone()?;
    // Nobody waits for the children of this process: the kernel buries them.
    // SAFETY: ignoring a signal installs no code.
    unsafe { signal(Signal::SIGCHLD, SigHandler::SigIgn) }?;
    let title = Title::of_this_process();
    // SAFETY: standard input is open, and only this owns it.
    let socket = unsafe { OwnedFd::from_raw_fd(0) };
    while let Some((dir, fds)) = receive(&socket)? {
        // SAFETY: this process has one thread, so the child may do whatever a process may.
        match unsafe { fork() } {
            Ok(ForkResult::Parent { .. }) => {}
            Ok(ForkResult::Child) => {
                // Its number is given a new meaning.
                let _socket = ManuallyDrop::new(socket);
                let done = become_helper(fds, title.as_ref(), &dir).map(|()| helper::serve(Path::new(&dir)));
                std::process::exit(i32::from(!done.unwrap_or(false)));
            }
            // Whoever gave the order sees the end of the output that nobody holds any more.
            Err(_) => {}
        }
    }
    // The program ends without the destructor of a descriptor that the library believes to be its own.
    let _ = ManuallyDrop::new(socket);
    Ok(())
}

/// The next order, or nothing when nobody can give one any more.
fn receive(socket: &OwnedFd) -> io::Result<Option<(OsString, [OwnedFd; 2])>> {
    loop {
        let mut dir = vec![0; MAX_ORDER];
        let mut space = nix::cmsg_space!([i32; 2]);
        let (count, mut fds) = {
            let mut parts = [IoSliceMut::new(&mut dir)];
            let flags = MsgFlags::MSG_CMSG_CLOEXEC;
            let message = match recvmsg::<UnixAddr>(socket.as_raw_fd(), &mut parts, Some(&mut space), flags) {
                Err(Errno::EINTR) => continue,
                message => message?,
            };
            let mut fds = Vec::new();
            for control in message.cmsgs()? {
                if let ControlMessageOwned::ScmRights(numbers) = control {
                    // SAFETY: the kernel has just made these, and nobody else knows them.
                    fds.extend(numbers.into_iter().map(|number| unsafe { OwnedFd::from_raw_fd(number) }));
                }
            }
            (message.bytes, fds)
        };
        if count == 0 {
            return Ok(None);
        }
        dir.truncate(count);
        if let (Some(log), Some(output), None) = (fds.pop(), fds.pop(), fds.pop()) {
            return Ok(Some((OsString::from_vec(dir), [output, log])));
        }
    }
}

/// Takes everything of the zygote's from its child, and gives it what a program that was just started would have.
fn become_helper(fds: [OwnedFd; 2], title: Option<&Title>, dir: &OsStr) -> io::Result<()> {
    let [output, log] = fds;
    let null = File::options().read(true).open("/dev/null")?;
    for (from, to) in [(null.as_raw_fd(), 0), (output.as_raw_fd(), 1), (log.as_raw_fd(), 2)] {
        // SAFETY: the source is open; the targets belong to nobody in this process.
        if unsafe { libc::dup2(from, to) } < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    drop((null, output, log));
    // SAFETY: the default disposition installs no code. The helper waits for its children.
    unsafe { signal(Signal::SIGCHLD, SigHandler::SigDfl) }?;
    let _ = prctl::set_name(c"sandbox-helper");
    if let Some(title) = title {
        title.write(dir);
    }
    helper::stand_alone()
}

/// Where the kernel reads the command line of this process from when somebody looks at it.
struct Title {
    start: *mut u8,
    room: usize,
}

impl Title {
    /// Fields 48 and 49 of `/proc/self/stat` (proc(5)): the bounds of the arguments in memory.
    fn of_this_process() -> Option<Self> {
        let stat = fs::read_to_string("/proc/self/stat").ok()?;
        let mut fields = stat.rsplit_once(") ")?.1.split(' ').skip(45);
        let start: usize = fields.next()?.parse().ok()?;
        let end: usize = fields.next()?.parse().ok()?;
        // The last byte stays zero.
        let room = end.checked_sub(start)?.checked_sub(1)?;
        (start > 0 && room >= TITLE_ROOM).then_some(Self { start: start as *mut u8, room })
    }

    /// Writes a helper's command line over the zygote's: whoever looks at the process list sees whose helper it is.
    fn write(&self, dir: &OsStr) {
        let mut text = Vec::with_capacity(self.room);
        for part in [OsStr::new("sandbox-helper").as_bytes(), b"\0", HELPER_ARG.as_bytes(), b"\0", dir.as_bytes()] {
            text.extend_from_slice(part);
        }
        text.resize(self.room, 0);
        // SAFETY: the kernel has put the arguments there, on the stack of the only thread; `room` ends before their end, and
        // nothing in this process reads them after its start.
        unsafe { std::ptr::copy_nonoverlapping(text.as_ptr(), self.start, self.room) };
    }
}
