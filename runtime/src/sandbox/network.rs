//! The sandbox's network is one loopback device, and the host can listen on it.

use std::fs::File;
use std::io;
use std::net::{Ipv4Addr, TcpListener};
use std::os::fd::AsRawFd;

use super::rootless;
use nix::sched::{CloneFlags, setns};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

fn namespace(pid: i32) -> io::Result<File> {
    File::open(format!("/proc/{pid}/ns/net"))
}

/// Raises the loopback device of the network namespace that the calling thread is in.
fn raise_loopback() -> io::Result<()> {
    let socket = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    // SAFETY: an all-zero request is valid; name and flags are filled in below.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    request.ifr_name[0] = b'l' as libc::c_char;
    request.ifr_name[1] = b'o' as libc::c_char;
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    // SAFETY: the request outlives the call, which reads only the name and the flags.
    if unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Raises the loopback device of a process's network namespace, and comes back. For a program with one thread.
pub fn raise_loopback_of(pid: i32) -> io::Result<()> {
    raise_loopback_in(&namespace(pid)?)
}

/// The same in a namespace that is open.
pub fn raise_loopback_in(namespace: &File) -> io::Result<()> {
    let home = File::open("/proc/self/ns/net")?;
    setns(namespace, CloneFlags::CLONE_NEWNET)?;
    let raised = raise_loopback();
    setns(home, CloneFlags::CLONE_NEWNET)?;
    raised
}

/// Binds a listener on `127.0.0.1:port` of a process's network namespace. The listener belongs to that namespace for good,
/// wherever it is accepted on, and keeps the namespace alive: drop it when the sandbox ends.
///
/// # Errors
/// When the process is gone, or the port is taken in there.
pub fn listen_inside(pid: i32, port: u16) -> io::Result<TcpListener> {
    if rootless::is_needed() {
        return rootless::listen_inside(pid, port);
    }
    let namespace = namespace(pid)?;
    // A thread that dies after it: a namespace is a property of a thread, and none of ours should keep this one.
    let thread = std::thread::Builder::new().name("listen-inside".into()).spawn(move || {
        setns(namespace, CloneFlags::CLONE_NEWNET)?;
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port))?;
        listener.set_nonblocking(true)?;
        Ok(listener)
    })?;
    thread.join().unwrap_or_else(|_| Err(io::Error::other("the thread that binds the listener panicked")))
}
