//! What the helper sees of the host while it builds a container: almost nothing.
//!
//! In a mount namespace of its own, the helper makes a tiny root out of just the parts that the container is made of,
//! and moves into it. That way the state directory can stay closed to everyone (inside the user namespace even root may not
//! pass a directory that only the host's root may enter), no helper keeps another sandbox's disk mounted, the container's
//! list of mounts shows no path of the host, and all of it is gone when the helper is.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::pivot_root;

use super::cgroup;
use super::idmap::Owners;
use super::layers;
use super::layout::{HelperOrder, Layout};
use super::rootless;
use super::setups::{Mounted, SetupOrder};

/// The sandbox's directory, seen from the stage.
pub const SANDBOX: &str = "/sandbox";
/// The container's root file system, seen from the stage.
pub const ROOT: &str = "/root";
/// The work tree, seen from the stage.
pub const WORKSPACE: &str = "/workspace";
/// The user's own files, seen from the stage.
pub const HOME: &str = "/home";
/// The container's description, seen from the stage; it exists nowhere else.
pub const BUNDLE: &str = "/bundle";
/// What the container library keeps about the container, seen from the stage; it exists nowhere else. The library writes it
/// anew at every step, for which a disk can make it wait.
pub const CONTAINER: &str = "/container";
/// What the setup script has made, while the helper mounts things on top of it; empty afterwards.
const SETUP: &str = "/setup";
/// Where the disk and the shared files are with the sandbox's own ids as owners, seen from the stage.
const SHELF: &str = "/shelf";
/// The first process's program, seen from the stage.
pub const INIT: &str = "/init";

const NOTHING: Option<&str> = None;

fn bind(from: &Path, to: &Path, recursive: bool) -> io::Result<()> {
    let flags = if recursive { MsFlags::MS_BIND | MsFlags::MS_REC } else { MsFlags::MS_BIND };
    mount(Some(from), to, NOTHING, flags, NOTHING)
        .map_err(|error| io::Error::other(format!("binding {}: {error}", from.display())))
}

/// Shows the library only the control group trees that limit something. On version 1 it would otherwise join every tree there
/// is, one after the other, and joining is the slowest thing a start does: the kernel waits for all processors each time.
fn bind_cgroups(stage: &Path) -> io::Result<()> {
    const ALL: &str = "/sys/fs/cgroup";
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    let mut trees = cgroup::limiting_trees(&mounts);
    // Trees that version 2 was mounted over are in the list of mounts, and out of reach.
    if trees.is_empty() || cgroup::is_version_2() {
        return bind(Path::new(ALL), &stage.join("sys/fs/cgroup"), true);
    }
    trees.extend(cgroup::unified_tree(&mounts));
    for tree in trees {
        let to = stage.join(tree.strip_prefix("/").unwrap_or(&tree));
        fs::create_dir_all(&to)?;
        bind(&tree, &to, false)?;
    }
    Ok(())
}

/// Makes the stage and moves into it. What is mounted in the work tree of a sandbox that is started ahead spreads into the
/// container. For a program with one thread.
pub fn enter(layout: &Layout, order: &HelperOrder) -> io::Result<()> {
    unshare(CloneFlags::CLONE_NEWNS)?;
    mount(NOTHING, "/", NOTHING, MsFlags::MS_REC | MsFlags::MS_PRIVATE, NOTHING)?;
    let stage = layout.stage();
    mount(Some("stage"), &stage, Some("tmpfs"), MsFlags::MS_NOSUID | MsFlags::MS_NODEV, Some("mode=755,size=1m"))?;
    let at = |inside: &str| stage.join(inside.trim_start_matches('/'));
    for dir in ["/proc", "/dev", "/sys/fs/cgroup", SANDBOX, ROOT, WORKSPACE, HOME, BUNDLE, CONTAINER, SHELF] {
        fs::create_dir_all(at(dir))?;
    }
    File::create(at(INIT))?;
    for dir in ["/proc", "/dev"] {
        bind(Path::new(dir), &at(dir), true)?;
    }
    // Who has none sees an empty directory, which the container library takes for a host without.
    if !rootless::is_needed() || cgroup::is_version_2() {
        bind_cgroups(&stage)?;
    }
    // Not recursive: the disk that is mounted in the sandbox's directory stays outside.
    bind(layout.dir(), &at(SANDBOX), false)?;
    let mut owners = Owners::of(order.ids, at(SHELF))?;
    let volume = owners.show(&layout.volume())?;
    bind(&order.init, &at(INIT), false)?;
    let made = match &order.setup {
        Some(SetupOrder::Uses { image, mask }) => Some(Mounted::new(image, mask, &at(SETUP), &mut owners)?),
        Some(SetupOrder::Makes) | None => None,
    };
    let whole = order.layers.iter().any(|layer| layer.directory.is_empty());
    for (folder, to) in [("workspace", WORKSPACE), ("home", HOME)] {
        match &made {
            // Where the work tree is one repository, that has the setup under it.
            Some(made) if folder == "home" || !whole => {
                let (lower, work) = (made.folder(folder), volume.join("setup").join(folder));
                layers::mount_overlay(&[&lower], &volume.join(folder), &work, &at(to), ",redirect_dir=on")?;
            }
            Some(_) | None => bind(&volume.join(folder), &at(to), false)?,
        }
    }
    if order.ahead {
        mount(NOTHING, &at(WORKSPACE), NOTHING, MsFlags::MS_SHARED, NOTHING)?;
    }
    let setup = (order.setup.as_ref(), made.as_ref());
    layers::mount_all(&volume, &order.layers, &mut owners, &at(WORKSPACE), setup)?;
    let upper_of_setup = made.as_ref().map(|made| made.folder("upper"));
    let lowers: Vec<&Path> = upper_of_setup.iter().map(PathBuf::as_path).chain([order.lower.as_path()]).collect();
    layers::mount_overlay(&lowers, &volume.join("upper"), &volume.join("work"), &at(ROOT), "")?;
    if made.is_some() {
        // What is mounted on top of it keeps it.
        umount2(&at(SETUP), MntFlags::MNT_DETACH)?;
    }
    std::env::set_current_dir(&stage)?;
    // The documented way without a place for the old root: it ends up under the new one, and is let go.
    pivot_root(".", ".")?;
    umount2(".", MntFlags::MNT_DETACH)?;
    std::env::set_current_dir("/")
}
