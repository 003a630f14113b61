//! Bytes from one socket to another: copied while there are few, moved by the kernel once there are many.
//!
//! Nothing is held back and nothing piles up: what was read is written before more is read, so whoever reads slowly is
//! sent slowly.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use tokio::io::Interest;
use tokio::net::TcpStream;

use super::reason::Reason;
use super::traffic::{Account, Direction};

/// What is copied at once. Most connections never need more.
const CHUNK: usize = 16 * 1024;

/// A transfer of so many bytes is worth a pipe.
const WORTH_A_PIPE: u64 = 128 * 1024;

/// What a pipe holds, where the host's limit (`/proc/sys/fs/pipe-max-size`) allows it: the default of that limit.
const PIPE_BYTES: usize = 1024 * 1024;

/// How a transfer ended before its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Broken {
    /// One of the two sides is gone.
    Socket,
    /// For a reason of ours.
    Cut(Reason),
}

impl From<io::Error> for Broken {
    fn from(_: io::Error) -> Self {
        Self::Socket
    }
}

/// A way through the kernel: pages of one socket's queue go to the other's without a copy.
struct Pipe {
    reader: OwnedFd,
    writer: OwnedFd,
    capacity: u64,
}

impl Pipe {
    fn open() -> io::Result<Self> {
        use nix::fcntl::{FcntlArg, OFlag, fcntl};
        let (reader, writer) = nix::unistd::pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?;
        // Where it may not grow it is slower, not wrong.
        let _ = fcntl(&writer, FcntlArg::F_SETPIPE_SZ(PIPE_BYTES as i32));
        let capacity = fcntl(&writer, FcntlArg::F_GETPIPE_SZ)?;
        Ok(Self { reader, writer, capacity: u64::try_from(capacity).unwrap_or(CHUNK as u64) })
    }
}

fn splice(from: &impl AsRawFd, to: &impl AsRawFd, most: u64) -> io::Result<u64> {
    let most = usize::try_from(most).unwrap_or(usize::MAX);
    let flags = libc::SPLICE_F_MOVE | libc::SPLICE_F_NONBLOCK;
    // SAFETY: both descriptors are open for the length of the call, and without offsets no memory of ours is touched.
    let moved = unsafe {
        libc::splice(from.as_raw_fd(), std::ptr::null_mut(), to.as_raw_fd(), std::ptr::null_mut(), most, flags)
    };
    u64::try_from(moved).map_err(|_| io::Error::last_os_error())
}

/// Writes all of it.
pub(super) async fn write_all(to: &TcpStream, mut bytes: &[u8], account: &Account) -> Result<(), Broken> {
    while !bytes.is_empty() {
        to.writable().await?;
        match to.try_write(bytes) {
            Ok(0) => return Err(Broken::Socket),
            Ok(count) => {
                account.touch();
                bytes = &bytes[count..];
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => return Err(Broken::Socket),
        }
    }
    Ok(())
}

/// Writes bytes that were not read here, and counts them.
pub(super) async fn send(to: &TcpStream, bytes: &[u8], account: &Account, direction: Direction) -> Result<(), Broken> {
    let taken = account.take(direction, bytes.len() as u64);
    if taken < bytes.len() as u64 {
        account.settle(direction, taken, 0);
        return Err(Broken::Cut(Reason::ByteLimit));
    }
    account.settle(direction, taken, taken);
    write_all(to, bytes, account).await
}

/// Tells the reader that there is no more.
pub(super) fn finish(to: &TcpStream) {
    // Whoever is gone needs not be told.
    let _ = nix::sys::socket::shutdown(to.as_raw_fd(), nix::sys::socket::Shutdown::Write);
}

/// Moves bytes until `from` ends, or until there were `most`. How many.
///
/// # Errors
/// When a side is gone, or the limit of bytes is reached and there are more.
pub(super) async fn carry(
    from: &TcpStream,
    to: &TcpStream,
    account: &Account,
    direction: Direction,
    most: Option<u64>,
) -> Result<u64, Broken> {
    let mut carried = 0;
    let mut buffer = vec![0; CHUNK];
    let mut pipe = None;
    let mut may_splice = true;
    loop {
        let left = most.map_or(u64::MAX, |most| most - carried);
        if left == 0 {
            return Ok(carried);
        }
        if may_splice && pipe.is_none() && carried >= WORTH_A_PIPE {
            buffer = Vec::new();
            pipe = Pipe::open().ok();
            may_splice = pipe.is_some();
        }
        if pipe.is_none() && buffer.is_empty() {
            buffer = vec![0; CHUNK];
        }
        from.readable().await?;
        let room = pipe.as_ref().map_or(CHUNK as u64, |pipe: &Pipe| pipe.capacity);
        let taken = account.take(direction, room.min(left));
        if taken == 0 {
            // The end is no excess.
            return match from.peek(&mut [0]).await? {
                0 => Ok(carried),
                _ => Err(Broken::Cut(Reason::ByteLimit)),
            };
        }
        let read = match &pipe {
            Some(pipe) => from.try_io(Interest::READABLE, || splice(from, &pipe.writer, taken)),
            None => {
                let room = usize::try_from(taken).unwrap_or(CHUNK).min(CHUNK);
                from.try_read(&mut buffer[..room]).map(|count| count as u64)
            }
        };
        account.settle(direction, taken, *read.as_ref().unwrap_or(&0));
        match read {
            Ok(0) => return Ok(carried),
            Ok(count) => {
                match &pipe {
                    Some(pipe) => drain(pipe, to, count, account).await?,
                    None => write_all(to, &buffer[..usize::try_from(count).unwrap_or(0)], account).await?,
                }
                carried += count;
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            // A socket or a kernel that does not do this: nothing was moved, and copying goes on where this stopped.
            Err(error) if pipe.is_some() && error.raw_os_error() == Some(libc::EINVAL) => {
                (pipe, may_splice) = (None, false);
            }
            Err(_) => return Err(Broken::Socket),
        }
    }
}

async fn drain(pipe: &Pipe, to: &TcpStream, mut left: u64, account: &Account) -> Result<(), Broken> {
    while left > 0 {
        to.writable().await?;
        match to.try_io(Interest::WRITABLE, || splice(&pipe.reader, to, left)) {
            Ok(0) => return Err(Broken::Socket),
            Ok(count) => {
                account.touch();
                left -= count;
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => return Err(Broken::Socket),
        }
    }
    Ok(())
}

/// Both directions at once, until both have ended.
///
/// # Errors
/// The first thing that went wrong; the other direction ends with it.
pub(super) async fn tunnel(inside: &TcpStream, outside: &TcpStream, account: &Account) -> Result<(), Broken> {
    let sent = async {
        carry(inside, outside, account, Direction::Sent, None).await?;
        finish(outside);
        Ok::<_, Broken>(())
    };
    let received = async {
        carry(outside, inside, account, Direction::Received, None).await?;
        finish(inside);
        Ok(())
    };
    tokio::try_join!(sent, received).map(drop)
}
