//! What the disk has not taken yet when the machine loses power is not taken for whole afterwards.
//!
//! Waiting for the disk would make every first task wait for hundreds of megabytes. So what was made is used at once, with a
//! mark beside it that says in which run of the machine, and the mark goes when the disk has everything. A mark of another run
//! means that the power went first: files can be empty or cut then, whatever their names say.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use super::lower::note_of;
use super::{CacheDir, GONE, census, fresh_name, remove_tree};

/// Which run of the machine this is.
const BOOT: &str = "/proc/sys/kernel/random/boot_id";

fn mark_of(path: &Path) -> PathBuf {
    path.with_extension("unsettled")
}

fn boot() -> io::Result<String> {
    fs::read_to_string(BOOT)
}

/// To be called before `path` gets its name.
pub(super) fn mark(path: &Path) -> io::Result<()> {
    fs::write(mark_of(path), boot()?)
}

/// Waits until the disk has what is at these paths, and takes the marks away.
pub(super) fn settle(paths: &[PathBuf]) -> io::Result<()> {
    let marked: Vec<&PathBuf> = paths.iter().filter(|path| mark_of(path).is_file()).collect();
    let Some(first) = marked.first() else { return Ok(()) };
    // One file system has all of them; what is made after this call has a mark of its own.
    let folder = File::open(first.parent().unwrap_or(first))?;
    // SAFETY: the descriptor is open for the whole call.
    if unsafe { libc::syncfs(folder.as_raw_fd()) } < 0 {
        return Err(io::Error::last_os_error());
    }
    marked.into_iter().try_for_each(|path| remove_tree(&mark_of(path)))
}

/// Forgets what an earlier run of the machine may not have brought to the disk. To be called before anything is used.
pub(super) fn forget_unsettled(cache: &CacheDir) -> io::Result<()> {
    let boot = boot()?;
    for mirror in census::mirrors(cache)? {
        for folder in ["lines", "lowers"] {
            for (mark, name) in census::entries(&mirror.join(folder))? {
                if !name.ends_with(".unsettled") || fs::read_to_string(&mark).is_ok_and(|marked| marked == boot) {
                    continue;
                }
                let path = if folder == "lines" { mark.with_extension("git") } else { mark.with_extension("") };
                // Without its note it is not whole any more; its files go with the next sweep, if no sandbox has them.
                remove_tree(&note_of(&path))?;
                if folder == "lines" && path.is_dir() {
                    fs::rename(&path, path.with_file_name(fresh_name(GONE)))?;
                }
                remove_tree(&mark)?;
            }
        }
    }
    Ok(())
}
