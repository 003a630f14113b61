//! What the cache holds, and what of it has to go.

use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::super::error::{GitError, Operation};
use super::lower::{Note, note_of};
use super::{CacheDir, GONE, Mirror, PARTIAL, fresh_name, remove_tree};

/// Bounds of the cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CacheLimits {
    /// Bytes of everything together. Files that several directories have links to count in each, so this is never passed
    /// on the disk, except by what running tasks use.
    pub max_bytes: u64,
    /// What nobody has used for so long goes.
    pub max_age: Duration,
    /// Commits of one repository whose files are kept, beside those that running tasks use.
    pub max_lowers_per_mirror: usize,
}

impl Default for CacheLimits {
    fn default() -> Self {
        Self { max_bytes: 20 << 30, max_age: Duration::from_secs(7 * 24 * 60 * 60), max_lowers_per_mirror: 8 }
    }
}

/// Which part of a mirror.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Part {
    /// A base branch's objects.
    Line,
    /// A commit's files.
    Lower,
}

/// A part of the cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cached {
    /// The mirror's directory.
    pub mirror: PathBuf,
    /// What it is.
    pub part: Part,
    /// Where it is.
    pub path: PathBuf,
    /// How large it is.
    pub bytes: u64,
    /// When it was used last.
    pub used: SystemTime,
}

/// What is in a folder, which is nothing where there is none. Names of ours only: they are all text.
pub(super) fn entries(folder: &Path) -> io::Result<Vec<(PathBuf, String)>> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry?;
        found.extend(entry.file_name().into_string().ok().map(|name| (entry.path(), name)));
    }
    Ok(found)
}

fn is_leftover(name: &str) -> bool {
    // A line under construction has its own name between the dot and the word.
    name.starts_with(GONE) || name.starts_with(PARTIAL) || (name.starts_with('.') && name.contains(PARTIAL))
}

/// Directories of mirrors.
pub(super) fn mirrors(cache: &CacheDir) -> io::Result<impl Iterator<Item = PathBuf>> {
    let found = entries(&cache.root)?;
    let is_mirror = |path: &Path, name: &str| !name.starts_with('.') && path.join("mirror.json").is_file();
    Ok(found.into_iter().filter(move |(path, name)| is_mirror(path, name)).map(|(path, _)| path))
}

/// Everything that can be seen: one mirror that cannot be read does not keep the others from being trimmed.
pub(super) fn census(cache: &CacheDir) -> Result<Vec<Cached>, GitError> {
    let disk = |error: io::Error| GitError::io(Operation::Checkout, "counting the cache", &error);
    let mut found = Vec::new();
    for mirror in mirrors(cache).map_err(disk)? {
        match parts(&mirror) {
            Ok(parts) => found.extend(parts),
            Err(error) => tracing::warn!(mirror = %mirror.display(), %error, "a mirror cannot be counted; it stays"),
        }
    }
    Ok(found)
}

fn parts(mirror: &Path) -> io::Result<Vec<Cached>> {
    let mut found = Vec::new();
    for path in lowers(mirror)? {
        let (bytes, used) = size_and_use(&path);
        found.push(Cached { mirror: mirror.to_owned(), part: Part::Lower, path, bytes, used });
    }
    for (path, name) in entries(&mirror.join("lines"))? {
        if is_leftover(&name) || !name.ends_with(".git") {
            continue;
        }
        let packs = entries(&path.join("objects/pack"))?;
        let bytes = packs.iter().filter_map(|(path, _)| fs::symlink_metadata(path).ok()).map(|meta| meta.len()).sum();
        let used = last_use(Part::Line, &path);
        found.push(Cached { mirror: mirror.to_owned(), part: Part::Line, path, bytes, used });
    }
    Ok(found)
}

fn lowers(mirror: &Path) -> io::Result<impl Iterator<Item = PathBuf>> {
    let found = entries(&mirror.join("lowers"))?;
    Ok(found.into_iter().filter(|(path, name)| !name.starts_with('.') && path.is_dir()).map(|(path, _)| path))
}

/// One without a note is half-removed, or from a process that was killed: it is as old as can be.
fn size_and_use(lower: &Path) -> (u64, SystemTime) {
    let note = fs::read(note_of(lower)).ok().and_then(|bytes| serde_json::from_slice::<Note>(&bytes).ok());
    note.map_or((0, SystemTime::UNIX_EPOCH), |note| (note.bytes, last_use(Part::Lower, lower)))
}

fn last_use(part: Part, path: &Path) -> SystemTime {
    let touched = match part {
        Part::Line => path.join("HEAD"),
        Part::Lower => note_of(path),
    };
    fs::metadata(touched).and_then(|meta| meta.modified()).unwrap_or(SystemTime::UNIX_EPOCH)
}

/// The lower of this mirror that was used last.
pub(super) fn latest_lower(mirror: &Mirror) -> Option<PathBuf> {
    // Without one, every file is written anew.
    let whole = lowers(mirror.dir()).ok()?.filter(|path| note_of(path).is_file());
    whole.map(|path| (last_use(Part::Lower, &path), path)).max().map(|(_, path)| path)
}

/// What a killed process has left, as far as it can be seen.
pub(super) fn leftovers(cache: &CacheDir) -> Vec<PathBuf> {
    let entries = |folder: &Path| entries(folder).unwrap_or_default();
    let mut found: Vec<PathBuf> = Vec::new();
    let mut folders = vec![cache.root.clone()];
    for (mirror, _) in entries(&cache.root) {
        folders.extend([mirror.join("lines"), mirror.join("lowers")]);
    }
    for folder in folders {
        let inside = entries(&folder);
        found.extend(inside.iter().filter(|(_, name)| is_leftover(name)).map(|(path, _)| path.clone()));
        let orphans = inside.iter().filter(|(path, _)| folder.ends_with("lowers") && is_orphan(path));
        found.extend(orphans.map(|(path, _)| path.clone()));
    }
    found
}

/// A note whose files are gone.
fn is_orphan(path: &Path) -> bool {
    path.extension().is_some_and(|kind| kind == "json" || kind == "unsettled") && !path.with_extension("").is_dir()
}

/// Removes what was left over when somebody looked, if it still is. A note is written before its files have their name, so one
/// without files may be of files that are just coming: it is removed only while nothing is made in its mirror.
pub(super) fn clear(path: &Path) -> bool {
    if path.file_name().is_some_and(|name| name.to_str().is_some_and(is_leftover)) {
        return remove_tree(path).is_ok();
    }
    let Some(mirror) = path.ancestors().nth(2) else { return false };
    let turn =
        File::create(mirror.join("lock")).and_then(|lock| lock.try_lock().map_err(io::Error::from).map(|()| lock));
    turn.is_ok() && is_orphan(path) && fs::remove_file(path).is_ok()
}

/// What has to go, and in which order, so that the cache keeps its limits. What is pinned counts and stays.
pub fn victims(cached: &[Cached], pinned: &HashSet<PathBuf>, limits: &CacheLimits, now: SystemTime) -> Vec<Cached> {
    let mut oldest_first: Vec<&Cached> = cached.iter().collect();
    oldest_first.sort_by(|a, b| a.used.cmp(&b.used).then_with(|| a.path.cmp(&b.path)));
    let mut lowers: HashMap<&Path, usize> = HashMap::new();
    for part in cached.iter().filter(|part| part.part == Part::Lower && !pinned.contains(&part.path)) {
        *lowers.entry(&part.mirror).or_default() += 1;
    }
    let mut total: u64 = cached.iter().map(|part| part.bytes).sum();
    let mut victims = Vec::new();
    for part in oldest_first {
        if pinned.contains(&part.path) {
            continue;
        }
        let of_mirror = lowers.entry(&part.mirror).or_default();
        let too_old = now.duration_since(part.used).is_ok_and(|age| age > limits.max_age);
        let too_many = part.part == Part::Lower && *of_mirror > limits.max_lowers_per_mirror;
        if too_old || too_many || total > limits.max_bytes {
            total = total.saturating_sub(part.bytes);
            if part.part == Part::Lower {
                *of_mirror -= 1;
            }
            victims.push(part.clone());
        }
    }
    victims
}

/// Takes the name away, then the files, and the mirror's directory with its last part. `false`: it was used meanwhile, and
/// stays.
pub(super) fn evict(part: &Cached) -> Result<bool, GitError> {
    let disk = |error: io::Error| GitError::io(Operation::Checkout, "removing from the cache", &error);
    if last_use(part.part, &part.path) > part.used {
        return Ok(false);
    }
    let gone = part.path.with_file_name(fresh_name(GONE));
    match fs::rename(&part.path, &gone) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        moved => moved.map_err(disk)?,
    }
    if part.part == Part::Lower {
        remove_tree(&note_of(&part.path)).map_err(disk)?;
    }
    remove_tree(&part.path.with_extension("unsettled")).map_err(disk)?;
    remove_tree(&gone).map_err(disk)?;
    if let Err(error) = remove_if_empty(&part.mirror) {
        tracing::warn!(mirror = %part.mirror.display(), %error, "a mirror's own directory stays");
    }
    Ok(true)
}

/// The folders go one by one, and only without anything in them: what cannot be read is not taken for empty.
fn remove_if_empty(mirror: &Path) -> io::Result<()> {
    for folder in ["lowers", "lines"] {
        match fs::remove_dir(mirror.join(folder)) {
            Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => return Ok(()),
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    remove_tree(mirror)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Duration = Duration::from_secs(1_000_000);

    fn part(mirror: &str, part: Part, name: &str, bytes: u64, age: u64) -> Cached {
        let mirror = PathBuf::from(mirror);
        let used = SystemTime::UNIX_EPOCH + NOW - Duration::from_secs(age);
        Cached { path: mirror.join(name), mirror, part, bytes, used }
    }

    fn gone(cached: &[Cached], pinned: &[&str], limits: CacheLimits) -> Vec<String> {
        let pinned = pinned.iter().map(PathBuf::from).collect();
        victims(cached, &pinned, &limits, SystemTime::UNIX_EPOCH + NOW)
            .into_iter()
            .map(|part| part.path.to_string_lossy().into_owned())
            .collect()
    }

    const WIDE: CacheLimits =
        CacheLimits { max_bytes: 1_000, max_age: Duration::from_secs(1_000), max_lowers_per_mirror: 10 };

    #[test]
    fn what_was_used_longest_ago_goes_first_until_the_rest_fits() {
        let cached = [
            part("a", Part::Lower, "1", 400, 5),
            part("a", Part::Lower, "2", 400, 50),
            part("b", Part::Lower, "3", 400, 20),
            part("b", Part::Line, "4", 100, 90),
        ];
        assert_eq!(gone(&cached, &[], WIDE), ["b/4", "a/2"]);
        // What runs keeps its place, and another one makes room for it.
        assert_eq!(gone(&cached, &["b/4", "a/2"], WIDE), ["b/3"]);
        assert_eq!(gone(&cached, &["b/4", "a/2", "b/3", "a/1"], WIDE), [""; 0]);
    }

    #[test]
    fn age_and_number_are_bounds_of_their_own() {
        let cached = [
            part("a", Part::Lower, "1", 1, 5),
            part("a", Part::Lower, "2", 1, 50),
            part("a", Part::Lower, "3", 1, 20),
            part("b", Part::Lower, "4", 1, 999),
            part("b", Part::Line, "5", 1, 1_001),
        ];
        assert_eq!(gone(&cached, &[], WIDE), ["b/5"]);
        let one = CacheLimits { max_lowers_per_mirror: 1, ..WIDE };
        assert_eq!(gone(&cached, &["b/5"], one), ["a/2", "a/3"]);
        // Those in use have places of their own.
        assert_eq!(gone(&cached, &["b/5", "a/2", "a/3"], one), [""; 0]);
    }
}
