//! What the cache holds, and what of it has to go.

use std::collections::{HashMap, HashSet};
use std::fs;
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

pub(super) fn entries(folder: &Path) -> Vec<(PathBuf, String)> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    entries.flatten().filter_map(|entry| Some((entry.path(), entry.file_name().into_string().ok()?))).collect()
}

fn is_leftover(name: &str) -> bool {
    // A line under construction has its own name between the dot and the word.
    name.starts_with(GONE) || name.starts_with(PARTIAL) || (name.starts_with('.') && name.contains(PARTIAL))
}

/// Directories of mirrors.
pub(super) fn mirrors(cache: &CacheDir) -> impl Iterator<Item = PathBuf> {
    entries(&cache.root)
        .into_iter()
        .filter(|(path, name)| !name.starts_with('.') && path.join("mirror.json").is_file())
        .map(|(path, _)| path)
}

pub(super) fn census(cache: &CacheDir) -> Vec<Cached> {
    let mut found = Vec::new();
    for mirror in mirrors(cache) {
        for path in lowers(&mirror) {
            let (bytes, used) = size_and_use(&path);
            found.push(Cached { mirror: mirror.clone(), part: Part::Lower, path, bytes, used });
        }
        for (path, name) in entries(&mirror.join("lines")) {
            if is_leftover(&name) || !name.ends_with(".git") {
                continue;
            }
            let bytes = entries(&path.join("objects/pack"))
                .iter()
                .filter_map(|(path, _)| fs::symlink_metadata(path).ok())
                .map(|meta| meta.len())
                .sum();
            let used = last_use(Part::Line, &path);
            found.push(Cached { mirror: mirror.clone(), part: Part::Line, path, bytes, used });
        }
    }
    found
}

fn lowers(mirror: &Path) -> impl Iterator<Item = PathBuf> {
    entries(&mirror.join("lowers"))
        .into_iter()
        .filter(|(path, name)| !name.starts_with('.') && path.is_dir())
        .map(|(path, _)| path)
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
    let whole = lowers(mirror.dir()).filter(|path| note_of(path).is_file());
    whole.map(|path| (last_use(Part::Lower, &path), path)).max().map(|(_, path)| path)
}

/// What a killed process has left.
pub(super) fn leftovers(cache: &CacheDir) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = Vec::new();
    let mut folders = vec![cache.root.clone()];
    for (mirror, _) in entries(&cache.root) {
        folders.extend([mirror.join("lines"), mirror.join("lowers")]);
    }
    for folder in folders {
        let inside = entries(&folder);
        found.extend(inside.iter().filter(|(_, name)| is_leftover(name)).map(|(path, _)| path.clone()));
        // A note whose files are gone.
        let orphans = inside.iter().filter(|(path, name)| {
            let of = name.ends_with(".json") || name.ends_with(".unsettled");
            folder.ends_with("lowers") && of && !path.with_extension("").is_dir()
        });
        found.extend(orphans.map(|(path, _)| path.clone()));
    }
    found
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
    let disk = |error: std::io::Error| GitError::io(Operation::Checkout, "removing from the cache", &error);
    if last_use(part.part, &part.path) > part.used {
        return Ok(false);
    }
    let gone = part.path.with_file_name(fresh_name(GONE));
    match fs::rename(&part.path, &gone) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        moved => moved.map_err(disk)?,
    }
    if part.part == Part::Lower {
        remove_tree(&note_of(&part.path)).map_err(disk)?;
    }
    remove_tree(&part.path.with_extension("unsettled")).map_err(disk)?;
    remove_tree(&gone).map_err(disk)?;
    let empty = ["lines", "lowers"].iter().all(|folder| entries(&part.mirror.join(folder)).is_empty());
    if empty {
        remove_tree(&part.mirror).map_err(disk)?;
    }
    Ok(true)
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
