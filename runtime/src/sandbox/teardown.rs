//! Finds whatever a sandbox has left on this host, by name, and removes it, whoever crashed in between.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use orchestra_events::SandboxId;

use super::cgroup::Hierarchy;
use super::ids::Ranges;
use super::layout::{Layout, State};
use super::{SandboxError, leftovers, volume};

/// How long a helper may take to clear its container away before it is killed and its work is done here.
const HELPER_PATIENCE: Duration = Duration::from_secs(10);

/// Every sandbox that has a directory, a control group, a mount, a loop device or a range of ids.
pub fn list(state: &State, cgroups: &Hierarchy, ranges: &Ranges) -> Result<Vec<SandboxId>, SandboxError> {
    let sandboxes = state.sandboxes();
    let looking = || SandboxError::host(format!("looking for sandboxes in {}", sandboxes.display()));
    let (mut found, mut renamed) = (BTreeSet::new(), BTreeSet::new());
    for entry in fs::read_dir(&sandboxes).map_err(looking())? {
        let name = entry.map_err(looking())?.file_name();
        let Some(id) = name.to_str().and_then(|name| name.parse::<SandboxId>().ok()) else { continue };
        renamed.extend(Layout::first_name(&sandboxes.join(&name)).filter(|first| *first != id));
        found.insert(id);
    }
    let prefix = state.cgroup_prefix();
    let groups = cgroups.names(&prefix);
    let named = groups.iter().filter_map(|name| name.strip_prefix(&prefix)?.parse::<SandboxId>().ok());
    found.extend(named);
    let mounts = fs::read_to_string("/proc/self/mountinfo").map_err(looking())?;
    found.extend(mounts_below(&mounts, &sandboxes));
    found.extend(leftovers::loop_devices(&sandboxes).into_iter().map(|(id, _)| id));
    found.extend(ranges.owners(state).map_err(looking())?);
    // The groups of a sandbox that was started ahead bear the name that it had then.
    found.retain(|name| !renamed.contains(name));
    Ok(found.into_iter().collect())
}

/// The sandboxes that have mounts below this directory.
fn mounts_below(mountinfo: &str, sandboxes: &Path) -> Vec<SandboxId> {
    let ids = mountinfo.lines().filter_map(|line| {
        let at = PathBuf::from(unescape(line.split(' ').nth(4)?));
        at.strip_prefix(sandboxes).ok()?.components().next()?.as_os_str().to_str()?.parse().ok()
    });
    ids.collect()
}

/// The kernel writes blanks and backslashes of a path as three octal digits.
fn unescape(path: &str) -> String {
    [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")]
        .iter()
        .fold(path.to_owned(), |path, (escape, plain)| path.replace(escape, plain))
}

/// Ends a sandbox's run: kills everything, waits for its helper, removes its groups. Its disk stays.
pub fn end_run(layout: &Layout, cgroups: &Hierarchy) -> io::Result<()> {
    // First, so that a helper that only now comes up finds nothing to do.
    remove_file(&layout.order())?;
    let start = Instant::now();
    loop {
        cgroups.kill(layout.cgroup())?;
        let Some(helper) = layout.helper_pid() else { break };
        if start.elapsed() > HELPER_PATIENCE * 2 {
            return Err(io::Error::other(format!("its helper, process {helper}, does not die")));
        }
        if start.elapsed() > HELPER_PATIENCE {
            let _ = kill(Pid::from_raw(helper), Signal::SIGKILL);
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    cgroups.kill(layout.cgroup())?;
    cgroups.remove(layout.cgroup())?;
    let counter = layout.dir().join(Layout::HANDOVER);
    for path in [layout.ending(), layout.oom_seen(), layout.socket(), layout.first_process(), layout.ahead(), counter] {
        remove_file(&path)?;
    }
    Ok(())
}

fn remove_file(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn remove_mount_point(path: &Path) -> io::Result<()> {
    volume::unmount(path)?;
    match fs::remove_dir(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Removes everything of a sandbox from this host.
pub fn destroy(state: &State, cgroups: &Hierarchy, ranges: &Ranges, id: SandboxId) -> Result<(), SandboxError> {
    let layout = state.layout(id);
    let removed = end_run(&layout, cgroups).and_then(|()| {
        // An unmounted mount point is an empty directory, or this fails: nothing that the sandbox wrote is walked.
        remove_mount_point(&layout.stage())?;
        remove_mount_point(&layout.volume())?;
        leftovers::detach(&state.sandboxes(), id)?;
        match fs::remove_dir_all(layout.dir()) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        // Last: its ids are nobody else's before everything that runs with them is gone.
        ranges.release(&layout)
    });
    removed.map_err(|error| SandboxError::NotRemoved { id, detail: error.to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_name_their_sandbox() {
        let id = SandboxId::from_uuid(uuid::Uuid::from_u128(5));
        let text = format!(
            "30 20 0:26 / /a\\040b/sandboxes/{id}/volume rw - ext4 /dev/loop0 rw\n31 20 0:26 / /a rw - ext4 x rw\n"
        );
        assert_eq!(mounts_below(&text, Path::new("/a b/sandboxes")), [id]);
        assert!(mounts_below(&text, Path::new("/other")).is_empty());
    }
}
