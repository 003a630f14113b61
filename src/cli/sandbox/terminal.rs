//! The operator's own terminal while it belongs to a shell in a sandbox: raw, and put back whatever happens.

use std::io::{self, IsTerminal};

use orchestra_runtime::sandbox::Window;

/// A shell without a terminal of ours around it gets this size.
const DEFAULT: Window = Window { rows: 24, columns: 80 };

/// How large this terminal is.
pub fn window() -> Window {
    // SAFETY: an all-zero struct is valid, and outlives the call that fills it.
    let mut size: libc::winsize = unsafe { std::mem::zeroed() };
    // SAFETY: as above; standard output may be no terminal, and then the call fails.
    let asked = unsafe { libc::ioctl(1, libc::TIOCGWINSZ, &raw mut size) };
    if asked < 0 || size.ws_row == 0 || size.ws_col == 0 {
        return DEFAULT;
    }
    Window { rows: size.ws_row, columns: size.ws_col }
}

/// Standard input as single keys. Dropped, it is what it was before.
pub struct Raw {
    before: libc::termios,
}

impl Raw {
    /// Makes the terminal raw; `None` when standard input is none.
    pub fn enter() -> io::Result<Option<Self>> {
        if !io::stdin().is_terminal() {
            return Ok(None);
        }
        // SAFETY: an all-zero struct is valid, and outlives the call that fills it.
        let mut before: libc::termios = unsafe { std::mem::zeroed() };
        // SAFETY: as above.
        if unsafe { libc::tcgetattr(0, &raw mut before) } < 0 {
            return Err(io::Error::last_os_error());
        }
        let mut raw = before;
        // SAFETY: both calls only read or write the struct.
        unsafe { libc::cfmakeraw(&raw mut raw) };
        // SAFETY: as above.
        if unsafe { libc::tcsetattr(0, libc::TCSANOW, &raw const raw) } < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Some(Self { before }))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // SAFETY: the call only reads the struct. That the terminal is gone is no reason to do anything.
        unsafe { libc::tcsetattr(0, libc::TCSANOW, &raw const self.before) };
    }
}
