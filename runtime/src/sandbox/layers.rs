//! Files that many sandboxes share: directories of the host that lie, read-only, under folders of the work tree.
//!
//! The record of them is in the sandbox's own directory, beside its disk and not on it: nothing that the sandbox writes can
//! name a directory of the host. What the sandbox changes goes to its disk, where its size limit holds.

use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, fchown};
use std::path::{Component, Path, PathBuf};

use nix::mount::{MsFlags, mount};
use serde::{Deserialize, Serialize};

use super::idmap::Owners;
use super::layout::{HelperOrder, Layout, State, write_settled};
use super::rootless;
use super::setups::{Mounted, SetupOrder};

/// Most folders of one work tree that have a directory laid under them: a task has one for each of its repositories.
pub const MAX_LAYERS: usize = 64;
/// Longest name of a file, as the kernel has it.
const MAX_NAME: usize = 255;

/// One directory under one folder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layer {
    /// The folder of the work tree; empty is the work tree itself.
    pub directory: String,
    /// What lies under it.
    pub lower: PathBuf,
}

impl Layer {
    /// Where on the disk, outside of everything the sandbox sees, its changes are.
    pub fn changes(&self, volume: &Path) -> PathBuf {
        let name = if self.directory.is_empty() { "workspace".to_owned() } else { format!("in-{}", self.directory) };
        volume.join("layers").join(name)
    }
}

/// What lies under a sandbox's work tree.
pub fn read(layout: &Layout) -> io::Result<Vec<Layer>> {
    match fs::read(layout.layers()) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        read => Ok(serde_json::from_slice(&read?)?),
    }
}

/// Every directory that lies under the work tree of any sandbox on this host. One record that cannot be read is an error:
/// who asks is about to remove what is in none.
pub fn lowers(state: &State) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(state.sandboxes())? {
        let name = entry?.file_name();
        let Some(id) = name.to_str().and_then(|name| name.parse().ok()) else { continue };
        let layers = read(&state.layout(id)).map_err(|error| {
            io::Error::new(error.kind(), format!("the record of what lies under sandbox {id}'s work tree: {error}"))
        })?;
        found.extend(layers.into_iter().map(|layer| layer.lower));
    }
    Ok(found)
}

/// The root file system of every sandbox's image, as far as its order says. A helper holds its image too; this is for one that
/// was killed while its sandbox lives on.
pub fn images(state: &State) -> Vec<PathBuf> {
    let entries = fs::read_dir(state.sandboxes()).into_iter().flatten().flatten();
    let ids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let orders = ids.filter_map(|id| fs::read(state.layout(id).order()).ok());
    orders.filter_map(|order| Some(serde_json::from_slice::<HelperOrder>(&order).ok()?.lower)).collect()
}

fn refused(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, what.to_owned())
}

/// Whether this can be the name of a folder that has a layer.
pub fn check_name(directory: &str) -> io::Result<()> {
    // One name: a folder further down could be moved away with what is mounted in it.
    let mut parts = Path::new(directory).components();
    let plain =
        matches!((parts.next(), parts.next()), (Some(Component::Normal(name)), None) if name == OsStr::new(directory));
    let odd = directory == ".git" || directory.contains(char::is_control) || directory.len() > MAX_NAME - "in-".len();
    if directory.is_empty() || (plain && !odd) { Ok(()) } else { Err(refused("the folder needs one plain name")) }
}

/// Records a layer, and makes the folders that it needs, on the sandbox's disk or not at all: a folder beside it, where the
/// disk was mounted until a moment ago, would be taken for something of the sandbox's and stop its removal for ever.
pub fn lay(layout: &Layout, directory: &str, lower: &Path) -> io::Result<()> {
    check_name(directory)?;
    if !lower.is_absolute() || !lower.is_dir() {
        return Err(refused("there is no such directory to lay under it"));
    }
    let layer = Layer { directory: directory.to_owned(), lower: lower.to_owned() };
    let mut layers = read(layout)?;
    layers.retain(|other| other.directory != layer.directory);
    if layers.iter().any(|other| other.directory.is_empty()) || (directory.is_empty() && !layers.is_empty()) {
        return Err(refused("the work tree itself has a layer, which would cover the others"));
    }
    if layers.len() >= MAX_LAYERS {
        return Err(refused("there are too many layers"));
    }
    let disk = open(&layout.volume())?;
    if !rootless::is_needed() && disk.metadata()?.dev() == fs::symlink_metadata(layout.dir())?.dev() {
        return Err(refused("its disk is not mounted"));
    }
    // By descriptor: what is unmounted from here on takes these folders along.
    let volume = PathBuf::from(by_descriptor(&disk));
    let changes = layer.changes(&volume);
    DirBuilder::new().recursive(true).mode(0o700).create(&changes)?;
    make_folder(&changes.join("upper"), true)?;
    make_folder(&changes.join("work"), false)?;
    if !directory.is_empty() {
        make_folder(&volume.join("workspace").join(directory), true)?;
    }
    layers.push(layer);
    write_settled(&layout.layers(), &serde_json::to_vec(&layers)?, 0o600)
}

fn make_folder(path: &Path, for_agent: bool) -> io::Result<()> {
    match DirBuilder::new().mode(if for_agent { 0o755 } else { 0o700 }).create(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    // A sandbox that has had this disk may have put a link there, to give away what it names.
    let folder = open(path).map_err(|error| match error.raw_os_error() {
        Some(libc::ELOOP | libc::ENOTDIR) => refused("what is at its place on the disk is not a folder"),
        _ => error,
    })?;
    let owner = rootless::workspace_owner();
    if for_agent { fchown(&folder, Some(owner.0), Some(owner.1)) } else { Ok(()) }
}

/// Opens a directory, whatever its name, and follows no link there.
pub fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).custom_flags(libc::O_DIRECTORY | libc::O_NOFOLLOW).open(path)
}

/// A path to what is open.
pub fn by_descriptor(file: &File) -> String {
    format!("/proc/self/fd/{}", file.as_raw_fd())
}

/// Mounts an overlay, the first of `lowers` on top of the others. Descriptors instead of paths: no character of a path can be taken for a separator, and no link that
/// a sandbox has put there is followed.
pub fn mount_overlay(lowers: &[&Path], upper: &Path, work: &Path, at: &Path, options: &str) -> io::Result<()> {
    let failed = |error| io::Error::other(format!("mounting the overlay: {error}"));
    let lowers: Vec<File> = lowers.iter().map(|lower| open(lower)).collect::<io::Result<_>>()?;
    let (upper, work) = (open(upper)?, open(work)?);
    let at = open(at)?;
    let options = format!(
        "lowerdir={},upperdir={},workdir={}{options}",
        lowers.iter().map(by_descriptor).collect::<Vec<_>>().join(":"),
        by_descriptor(&upper),
        by_descriptor(&work)
    );
    let options = options + if rootless::is_needed() { ",userxattr" } else { "" };
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOATIME;
    mount(Some("overlay"), by_descriptor(&at).as_str(), Some("overlay"), flags, Some(&*options)).map_err(failed)
}

/// Mounts what lies under the work tree, which is at `workspace` already. `volume` is the disk as the sandbox sees its owners.
pub fn mount_all(
    volume: &Path,
    layers: &[Layer],
    owners: &mut Owners,
    workspace: &Path,
    (setup, made): (Option<&SetupOrder>, Option<&Mounted>),
) -> io::Result<()> {
    // What becomes a setup will lie under other commits: a folder of this one's that is moved is copied, as between disks.
    let options = match setup {
        Some(SetupOrder::Makes) => ",redirect_dir=nofollow,metacopy=off",
        // Such attributes are root's; elsewhere a rename is a copy.
        Some(SetupOrder::Uses { .. }) | None if rootless::is_needed() => "",
        // A folder of the lower directory can be renamed: the kernel notes in an attribute, which no sandbox can write,
        // where its content is.
        Some(SetupOrder::Uses { .. }) | None => ",redirect_dir=on",
    };
    for layer in layers {
        check_name(&layer.directory)?;
        let at = if layer.directory.is_empty() { workspace.to_owned() } else { workspace.join(&layer.directory) };
        let changes = layer.changes(volume);
        let (lower, below) = (owners.show(&layer.lower)?, made.map(|made| made.below(layer)));
        let lowers: Vec<&Path> = std::iter::once(&lower).chain(below.iter().flatten()).map(AsRef::as_ref).collect();
        mount_overlay(&lowers, &changes.join("upper"), &changes.join("work"), &at, options)
            .map_err(|error| io::Error::other(format!("laying files under the work tree: {error}")))?;
    }
    Ok(())
}
