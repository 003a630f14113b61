//! How a sandbox that was started ahead becomes a task's: the server tells its helper what lies under the work tree and how
//! long it may live, and the helper mounts the one and minds the other.
//!
//! The server makes the mounts, which hang nowhere yet, and passes their descriptors: the helper sees nothing of the host that
//! it could make them of. It hangs them into its own work tree, from where they spread into the container. Until that is done
//! there is a file in the sandbox's directory; who finds it there knows that the sandbox is nobody's yet, whoever crashed.

use std::ffi::{CStr, CString};
use std::fs::{self, File};
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::mpsc;
use std::time::Duration;

use nix::cmsg_space;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::socket::{
    AddressFamily, Backlog, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, UnixAddr, accept4, bind,
    connect, listen, recvmsg, send, sendmsg, setsockopt, socket, sockopt,
};
use nix::sys::time::TimeVal;
use serde::{Deserialize, Serialize};

use super::idmap::Owners;
use super::layers::{self, MAX_LAYERS};
use super::layout::{HelperOrder, Layout};
use super::stage;

/// How long one side waits for the other: both only make a few system calls.
const PATIENCE_SECONDS: i64 = 10;
const PATIENCE: Duration = Duration::from_secs(PATIENCE_SECONDS as u64);
/// Longest message: the folders of the most layers there can be.
const MAX_MESSAGE: usize = 64 * 1024;
/// What the helper answers when all is done.
const DONE: &[u8] = b"done";

/// What the server tells the helper.
#[derive(Debug, Serialize, Deserialize)]
struct Order {
    /// How long everything may live from now on.
    timeout: Duration,
    /// The folders of the work tree under which the mounts that come along belong, in their order.
    folders: Vec<String>,
}

/// What is noted of a sandbox that was started ahead.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ahead {
    /// The size of its disk.
    pub disk_bytes: u64,
}

/// What is noted of this sandbox, if it was started ahead and is nobody's yet.
pub fn ahead(layout: &Layout) -> Option<Ahead> {
    serde_json::from_slice(&fs::read(layout.ahead()).ok()?).ok()
}

fn seqpacket() -> io::Result<OwnedFd> {
    let fd = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None)?;
    patient(&fd)?;
    Ok(fd)
}

fn patient(fd: &OwnedFd) -> io::Result<()> {
    let patience = TimeVal::new(PATIENCE_SECONDS, 0);
    setsockopt(fd, sockopt::ReceiveTimeout, &patience)?;
    setsockopt(fd, sockopt::SendTimeout, &patience)?;
    Ok(())
}

/// A path that is short enough for a socket, whatever the directory's is.
fn address(dir: &File) -> nix::Result<UnixAddr> {
    UnixAddr::new(format!("/proc/self/fd/{}/{}", dir.as_raw_fd(), Layout::HANDOVER).as_str())
}

/// Hands the sandbox over that was started by this order: its layers and its time are what it gets now.
///
/// # Errors
/// When the helper is gone, does not answer, or cannot hang the mounts in: the sandbox is of no use then.
pub fn hand_over(layout: &Layout, started: &HelperOrder) -> io::Result<()> {
    let mounts = open_overlays(layout, started)?;
    let folders = started.layers.iter().map(|layer| layer.directory.clone()).collect();
    let order = Order { timeout: started.timeout, folders };
    let order = serde_json::to_vec(&order)?;
    if order.len() > MAX_MESSAGE {
        return Err(io::Error::other("the names of the folders are too long together"));
    }
    let socket = seqpacket()?;
    let dir = File::open(layout.dir())?;
    connect(socket.as_raw_fd(), &address(&dir)?)?;
    let numbers: Vec<i32> = mounts.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&numbers)];
    let rights = if numbers.is_empty() { &[][..] } else { &rights[..] };
    sendmsg::<UnixAddr>(socket.as_raw_fd(), &[IoSlice::new(&order)], rights, MsgFlags::MSG_NOSIGNAL, None)?;
    let mut answer = vec![0; MAX_MESSAGE];
    let mut parts = [IoSliceMut::new(&mut answer)];
    let count = recvmsg::<UnixAddr>(socket.as_raw_fd(), &mut parts, None, MsgFlags::empty())?.bytes;
    match &answer[..count] {
        DONE => Ok(()),
        [] => Err(io::Error::other("its helper is gone")),
        refused => Err(io::Error::other(String::from_utf8_lossy(refused).into_owned())),
    }
}

fn checked(result: libc::c_long) -> io::Result<libc::c_long> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn configure(context: &OwnedFd, command: u32, key: Option<&CStr>, value: Option<&CStr>) -> io::Result<()> {
    let pointer = |text: Option<&CStr>| text.map_or(std::ptr::null(), CStr::as_ptr);
    // SAFETY: the context is open and both strings outlive the call.
    let done =
        unsafe { libc::syscall(libc::SYS_fsconfig, context.as_raw_fd(), command, pointer(key), pointer(value), 0) };
    checked(done).map(drop)
}

/// The overlay of each layer, mounted nowhere, with the owners that the sandbox sees.
fn open_overlays(layout: &Layout, order: &HelperOrder) -> io::Result<Vec<OwnedFd>> {
    if order.layers.is_empty() {
        return Ok(Vec::new());
    }
    let (layout, ids, layers) = (layout.clone(), order.ids, order.layers.clone());
    let (send, opened) = mpsc::sync_channel(1);
    // A thread that dies after it, in a mount namespace of its own: what has other owners must be mounted somewhere while an
    // overlay is made of it. Nobody waits for the end of that namespace.
    std::thread::Builder::new().name("open-overlays".into()).spawn(move || {
        let open = || {
            unshare(CloneFlags::CLONE_NEWNS)?;
            let nothing = None::<&str>;
            mount(nothing, "/", nothing, MsFlags::MS_REC | MsFlags::MS_PRIVATE, nothing)?;
            let shelf = layout.stage();
            mount(Some("shelf"), &shelf, Some("tmpfs"), MsFlags::MS_NOSUID | MsFlags::MS_NODEV, Some("size=1m"))?;
            let mut owners = Owners::of(ids, shelf)?;
            let volume = owners.show(&layout.volume())?;
            let overlays = layers.iter().map(|layer| {
                let changes = layer.changes(&volume);
                open_overlay(&owners.show(&layer.lower)?, &changes.join("upper"), &changes.join("work"))
            });
            overlays.collect()
        };
        let _ = send.send(open());
    })?;
    opened.recv_timeout(PATIENCE).map_err(io::Error::other)?
}

/// An overlay that is mounted nowhere.
fn open_overlay(lower: &Path, upper: &Path, work: &Path) -> io::Result<OwnedFd> {
    const SET_STRING: u32 = 1;
    const CREATE: u32 = 6;
    const CLOEXEC: u32 = 1;
    const ATTRIBUTES: u32 = (libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV | libc::MOUNT_ATTR_NOATIME) as u32;
    // SAFETY: the name is a constant; the descriptor is checked and owned by nobody else.
    let context = unsafe {
        let fd = checked(libc::syscall(libc::SYS_fsopen, c"overlay".as_ptr(), CLOEXEC))?;
        OwnedFd::from_raw_fd(fd as i32)
    };
    for (key, directory) in [(c"lowerdir", lower), (c"upperdir", upper), (c"workdir", work)] {
        // By descriptor, as the helper does it: no link is followed, no character is a separator.
        let directory = layers::open(directory)?;
        let path = CString::new(layers::by_descriptor(&directory))?;
        configure(&context, SET_STRING, Some(key), Some(&path))?;
    }
    configure(&context, SET_STRING, Some(c"redirect_dir"), Some(c"on"))?;
    configure(&context, CREATE, None, None)?;
    // SAFETY: the context is open; the descriptor is checked and owned by nobody else.
    unsafe {
        let fd = checked(libc::syscall(libc::SYS_fsmount, context.as_raw_fd(), CLOEXEC, ATTRIBUTES))?;
        Ok(OwnedFd::from_raw_fd(fd as i32))
    }
}

/// The helper's end: where it is told whose the sandbox is.
pub struct Counter {
    socket: OwnedFd,
}

impl Counter {
    /// Opens it in the sandbox's directory.
    pub fn open(layout: &Layout) -> io::Result<Self> {
        let socket = seqpacket()?;
        let dir = File::open(layout.dir())?;
        let _ = fs::remove_file(layout.dir().join(Layout::HANDOVER));
        bind(socket.as_raw_fd(), &address(&dir)?)?;
        listen(&socket, Backlog::new(4).map_err(io::Error::from)?)?;
        Ok(Self { socket })
    }

    /// Takes one order. Answers how long the sandbox may live from now on; nothing when whoever came said nothing of use.
    pub fn serve(&self, layout: &Layout) -> io::Result<Option<Duration>> {
        // SAFETY: just made, owned by nobody else.
        let peer = unsafe { OwnedFd::from_raw_fd(accept4(self.socket.as_raw_fd(), SockFlag::SOCK_CLOEXEC)?) };
        patient(&peer)?;
        let taken = receive(&peer).and_then(|(order, mounts)| {
            hang_in(&order.folders, &mounts)?;
            Ok(order.timeout)
        });
        match taken {
            Ok(timeout) => {
                // From here on it is somebody's, even if the answer does not arrive.
                fs::remove_file(layout.ahead())?;
                let _ = fs::remove_file(layout.dir().join(Layout::HANDOVER));
                let _ = send(peer.as_raw_fd(), DONE, MsgFlags::MSG_NOSIGNAL);
                Ok(Some(timeout))
            }
            Err(error) => {
                let _ = send(peer.as_raw_fd(), error.to_string().as_bytes(), MsgFlags::MSG_NOSIGNAL);
                Ok(None)
            }
        }
    }
}

impl AsFd for Counter {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn receive(peer: &OwnedFd) -> io::Result<(Order, Vec<OwnedFd>)> {
    let mut bytes = vec![0; MAX_MESSAGE];
    let mut space = cmsg_space!([i32; MAX_LAYERS]);
    let mut parts = [IoSliceMut::new(&mut bytes)];
    let message = recvmsg::<UnixAddr>(peer.as_raw_fd(), &mut parts, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC)?;
    let mut mounts = Vec::new();
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(numbers) = control {
            // SAFETY: the kernel has just made these, and nobody else knows them.
            mounts.extend(numbers.into_iter().map(|number| unsafe { OwnedFd::from_raw_fd(number) }));
        }
    }
    let count = message.bytes;
    let order: Order = serde_json::from_slice(&bytes[..count])?;
    if order.folders.len() == mounts.len() {
        Ok((order, mounts))
    } else {
        Err(io::Error::other("not every folder has its mount"))
    }
}

/// Hangs the mounts into the work tree, from where they spread into the container.
fn hang_in(folders: &[String], mounts: &[OwnedFd]) -> io::Result<()> {
    const FROM_EMPTY_PATH: u32 = 0x4;
    const TO_EMPTY_PATH: u32 = 0x40;
    for (folder, mount) in folders.iter().zip(mounts) {
        layers::check_name(folder)?;
        let workspace = Path::new(stage::WORKSPACE);
        let at = if folder.is_empty() { workspace.to_owned() } else { workspace.join(folder) };
        // No link is followed: nobody but the host has written there yet, but nothing hangs on that.
        let at = layers::open(&at)?;
        let empty = c"";
        // SAFETY: both descriptors are open and the strings are constants.
        let done = unsafe {
            libc::syscall(
                libc::SYS_move_mount,
                mount.as_raw_fd(),
                empty.as_ptr(),
                at.as_raw_fd(),
                empty.as_ptr(),
                FROM_EMPTY_PATH | TO_EMPTY_PATH,
            )
        };
        checked(done).map_err(|error| {
            let folder = Path::new(folder).as_os_str().as_bytes().escape_ascii();
            io::Error::new(error.kind(), format!("hanging files into the folder \"{folder}\": {error}"))
        })?;
    }
    Ok(())
}
