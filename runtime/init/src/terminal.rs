//! A terminal that is opened inside the sandbox: the pair of ends, its size, and making it a command's own.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

use orchestra_init::Window;

/// The sandbox's own multiplexer of terminals; the host's are on another file system.
const MULTIPLEXER: &str = "/dev/pts/ptmx";
/// What ends the input of a program that reads lines from a terminal.
pub const END_OF_INPUT: u8 = 4;

fn checked(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Opens a terminal. What is written to the first end is typed, what is read from it is on the screen; the second end
/// is the command's.
///
/// # Errors
/// When there is no `/dev/pts`, or no terminal is left.
pub fn open(window: Window) -> io::Result<(OwnedFd, OwnedFd)> {
    let keyboard: OwnedFd = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NOCTTY | libc::O_CLOEXEC | libc::O_NONBLOCK)
        .open(MULTIPLEXER)
        .map(File::into)?;
    resize(&keyboard, window)?;
    let unlocked: libc::c_int = 0;
    // SAFETY: the descriptor is a terminal's, and the pointed-to integer outlives the call.
    checked(unsafe { libc::ioctl(keyboard.as_raw_fd(), libc::TIOCSPTLCK, &raw const unlocked) })?;
    // By the open end and not by a path, which a command could have put something else at.
    // SAFETY: the call takes flags by value and gives a new descriptor.
    let screen = checked(unsafe {
        libc::ioctl(keyboard.as_raw_fd(), libc::TIOCGPTPEER, libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC)
    })?;
    // SAFETY: just made, owned by nobody else.
    Ok((keyboard, unsafe { OwnedFd::from_raw_fd(screen) }))
}

/// Tells a terminal how large it is; what runs in its foreground is sent SIGWINCH by the kernel.
///
/// # Errors
/// When the terminal is gone.
pub fn resize(keyboard: &impl AsFd, window: Window) -> io::Result<()> {
    let size = libc::winsize { ws_row: window.rows, ws_col: window.columns, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: the struct outlives the call, which reads it.
    checked(unsafe { libc::ioctl(keyboard.as_fd().as_raw_fd(), libc::TIOCSWINSZ, &raw const size) }).map(drop)
}

/// Makes the terminal on standard input the calling process's own; it must lead its session. Between fork and exec.
///
/// # Errors
/// When it is somebody else's already.
pub fn take() -> io::Result<()> {
    // SAFETY: a plain system call without pointers; it neither allocates nor takes a lock.
    checked(unsafe { libc::ioctl(0, libc::TIOCSCTTY, 0) }).map(drop)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::*;

    fn size(end: &OwnedFd) -> (u16, u16) {
        // SAFETY: an all-zero struct is valid, and outlives the call that fills it.
        let mut size: libc::winsize = unsafe { std::mem::zeroed() };
        // SAFETY: as above.
        assert_eq!(unsafe { libc::ioctl(end.as_raw_fd(), libc::TIOCGWINSZ, &raw mut size) }, 0);
        (size.ws_row, size.ws_col)
    }

    #[test]
    fn what_is_typed_arrives_and_both_ends_agree_on_the_size() {
        let (keyboard, screen) = open(Window { rows: 30, columns: 100 }).unwrap();
        assert_eq!(size(&screen), (30, 100));
        resize(&keyboard, Window { rows: 5, columns: 7 }).unwrap();
        assert_eq!(size(&screen), (5, 7));
        let (mut keyboard, mut screen) = (File::from(keyboard), File::from(screen));
        keyboard.write_all(b"typed\n").unwrap();
        let mut line = [0; 16];
        let count = screen.read(&mut line).unwrap();
        assert_eq!(&line[..count], b"typed\n");
        // The terminal itself echoes, and makes a new line of a line feed.
        let mut echo = [0; 16];
        let count = keyboard.read(&mut echo).unwrap();
        assert_eq!(&echo[..count], b"typed\r\n");
    }
}
