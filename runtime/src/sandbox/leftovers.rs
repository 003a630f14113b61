//! What a crash may leave that is neither a process, a group, a mount nor a directory: loop devices, and half-written files.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use orchestra_events::SandboxId;

/// Lets go of a loop device's file (linux/loop.h); one that is still mounted somewhere does so when it no longer is.
const LOOP_CLR_FD: libc::c_ulong = 0x4C01;
/// A file that has been half written for so long is nobody's any more: writing one takes less than a second.
const HALF_WRITTEN: Duration = Duration::from_secs(60);
/// The folders below a state directory whose files many sandboxes share.
const SHARED: [&str; 3] = ["init", "filter", "volumes"];

/// The loop devices whose file is, or was, below this directory of sandboxes.
pub fn loop_devices(sandboxes: &Path) -> Vec<(SandboxId, PathBuf)> {
    let Ok(devices) = fs::read_dir("/sys/block") else { return Vec::new() };
    let found = devices.flatten().filter_map(|device| {
        let backing = fs::read_to_string(device.path().join("loop/backing_file")).ok()?;
        let lets_go = fs::read_to_string(device.path().join("loop/autoclear")).is_ok_and(|text| text.trim() == "1");
        Some((sandbox_of(backing.trim_end(), lets_go, sandboxes)?, Path::new("/dev").join(device.file_name())))
    });
    found.collect()
}

/// Whose disk is shown by a device with this file. One whose file is removed, and which lets go by itself, is as good as gone:
/// it waits for its last user, such as a start that just now has a copy of all mounts.
fn sandbox_of(backing: &str, lets_go: bool, sandboxes: &Path) -> Option<SandboxId> {
    let file = Path::new(backing).strip_prefix(sandboxes).ok();
    let file = file.filter(|_| !(lets_go && backing.ends_with(" (deleted)")))?;
    file.components().next()?.as_os_str().to_str()?.parse().ok()
}

/// Detaches a sandbox's loop devices, of which there are none when its disk was unmounted as it should be.
pub fn detach(sandboxes: &Path, id: SandboxId) -> io::Result<()> {
    for (_, device) in loop_devices(sandboxes).into_iter().filter(|(owner, _)| *owner == id) {
        let device = match OpenOptions::new().read(true).open(&device) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            device => device?,
        };
        // SAFETY: the descriptor is a loop device's and the call takes no argument.
        if unsafe { libc::ioctl(device.as_raw_fd(), LOOP_CLR_FD as _, 0) } < 0 {
            let error = io::Error::last_os_error();
            // It let go by itself meanwhile.
            if error.raw_os_error() != Some(libc::ENXIO) {
                return Err(error);
            }
        }
    }
    Ok(())
}

/// Removes the half-written files of servers that died.
pub fn sweep(state_dir: &Path) {
    let files = SHARED.iter().filter_map(|folder| fs::read_dir(state_dir.join(folder)).ok()).flatten().flatten();
    for file in files.filter(|file| file.path().extension().is_some_and(|extension| extension == "partial")) {
        let age = file.metadata().and_then(|file| file.modified()).map(|at| at.elapsed().unwrap_or_default());
        if age.is_ok_and(|age| age >= HALF_WRITTEN) {
            // Whatever keeps it there keeps it for the next start.
            let _ = fs::remove_file(file.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::time::SystemTime;

    use super::*;

    #[test]
    fn a_device_names_its_sandbox_unless_it_is_about_to_go() {
        let id = SandboxId::from_uuid(uuid::Uuid::from_u128(5));
        let sandboxes = Path::new("/data/sandboxes");
        let disk = format!("/data/sandboxes/{id}/volume.ext4");
        for lets_go in [false, true] {
            assert_eq!(sandbox_of(&disk, lets_go, sandboxes), Some(id));
            assert_eq!(sandbox_of("/data/sandboxes/other/volume.ext4", lets_go, sandboxes), None);
            assert_eq!(sandbox_of("/elsewhere/volume.ext4", lets_go, sandboxes), None);
        }
        let removed = format!("{disk} (deleted)");
        assert_eq!(sandbox_of(&removed, false, sandboxes), Some(id));
        assert_eq!(sandbox_of(&removed, true, sandboxes), None);
    }

    #[test]
    fn only_what_was_left_half_written_goes() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("volumes");
        fs::create_dir(&folder).unwrap();
        let long_ago = SystemTime::now() - 2 * HALF_WRITTEN;
        for (name, old) in [("1.ext4", true), ("1.x.partial", true), ("2.x.partial", false)] {
            let file = File::create(folder.join(name)).unwrap();
            if old {
                file.set_modified(long_ago).unwrap();
            }
        }
        sweep(dir.path());
        let mut left: Vec<_> = fs::read_dir(&folder).unwrap().map(|file| file.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, ["1.ext4", "2.x.partial"]);
    }
}
