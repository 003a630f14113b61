//! What setup scripts have made, kept for later tasks: the disk of the sandbox that they ran in, as one file.
//!
//! ```text
//! {state}/setups/{key}/volume.ext4     that disk; never written to again
//! {state}/setups/{key}/setup.json      its size, and the names that git is to pass over; used last when it was touched last
//! {state}/setups/.mask/.git            hides what a setup did to `.git`
//! {state}/sandboxes/{id}/setup.json    whether this sandbox makes a setup, or lies on one, and on which
//! ```
//!
//! The host moves the file and mounts it, read-only; it walks nothing in it. A sandbox that uses a setup mounts it in its
//! helper's own namespace, under its own changes: a use costs a mount and no copy.
//!
//! Under a repository's folder the setup lies *below* the commit's files and not over them. What a script adds shows
//! through; what it changed in a file of the commit does not. With inputs that are narrower than the whole tree a setup is
//! used for later commits too, and its copies of their files would undo what those commits changed. For the same reason
//! nothing of its `.git` is kept.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Read};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use nix::sys::stat::{Mode, SFlag, mknod};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::idmap::Owners;
use super::layers::Layer;
use super::layout::{Layout, State, make_dir, write_settled};
use super::{WORKSPACE_GID, WORKSPACE_UID, layers, volume};

/// Beginnings of names of what is being made and of what is being removed.
const PARTIAL: &str = ".partial-";
const GONE: &str = ".gone-";
/// How long the kernel may take to let go of a disk whose sandbox is dead, before the setup is given up.
const RELEASE_PATIENCE: Duration = Duration::from_secs(10);
/// Most bytes of a repository's own list of names that git passes over. Ours, from the checkout, has a few hundred.
const MAX_EXCLUDE_BYTES: u64 = 64 * 1024;

/// The name of what a setup makes: the digest of everything that goes into it.
#[derive(Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SetupKey(String);

impl SetupKey {
    /// The key of a recipe, in bytes that are the same for the same recipe.
    pub fn of(recipe: &[u8]) -> Self {
        Self(Sha256::digest(recipe).iter().map(|byte| format!("{byte:02x}")).collect())
    }

    /// As much of it as people need to tell two apart.
    pub fn short(&self) -> &str {
        &self.0[..16]
    }
}

impl TryFrom<String> for SetupKey {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        // It becomes the name of a directory.
        let digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        if text.len() == 64 && text.bytes().all(digit) { Ok(Self(text)) } else { Err("a setup's key has 64 digits") }
    }
}

impl From<SetupKey> for String {
    fn from(key: SetupKey) -> Self {
        key.0
    }
}

impl fmt::Display for SetupKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for SetupKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SetupKey({})", self.short())
    }
}

/// Bounds of what is kept. A single setup is never larger than a sandbox's disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SetupLimits {
    /// Bytes of all of them on the disk.
    pub max_bytes: u64,
    /// What no task has used for so long goes.
    pub max_age: Duration,
}

impl Default for SetupLimits {
    fn default() -> Self {
        Self { max_bytes: 20 << 30, max_age: Duration::from_secs(7 * 24 * 60 * 60) }
    }
}

/// What is written down beside a disk.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Note {
    /// Bytes that the file takes.
    bytes: u64,
    /// For each folder of the work tree, the patterns of what the script has left there and git does not ignore.
    excluded: BTreeMap<String, Vec<String>>,
}

/// What a sandbox has to do with setups.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Part {
    /// Its disk is to become one.
    Makes,
    /// It lies on this one.
    Uses(SetupKey),
}

/// What the helper has to know of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SetupOrder {
    /// Changes have to be whole without what they were made of.
    Makes,
    /// Mount this.
    Uses {
        /// The disk as a file.
        image: PathBuf,
        /// What hides its `.git`.
        mask: PathBuf,
    },
}

/// The setups of one server.
#[derive(Debug)]
pub struct Setups {
    dir: PathBuf,
    sandboxes: PathBuf,
    /// Taken by whoever begins to use a setup, and by whoever looks for those that nobody uses.
    turn: Mutex<()>,
    /// What the last process of this server has left half-made or half-removed; taken once.
    leftovers: Mutex<Vec<PathBuf>>,
}

fn fresh_name(beginning: &str) -> String {
    format!("{beginning}{}", uuid::Uuid::now_v7().simple())
}

fn missing_is<T>(read: io::Result<T>, otherwise: T) -> io::Result<T> {
    match read {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(otherwise),
        read => read,
    }
}

fn record_of(sandbox: &Path) -> PathBuf {
    sandbox.join("setup.json")
}

fn part_of(sandbox: &Path) -> io::Result<Option<Part>> {
    let bytes = missing_is(fs::read(record_of(sandbox)).map(Some), None)?;
    Ok(bytes.map(|bytes| serde_json::from_slice(&bytes)).transpose()?)
}

impl Setups {
    /// Opens (and makes) their directory.
    pub fn open(state: &State) -> io::Result<Self> {
        let dir = state.setups();
        let mask = dir.join(".mask");
        make_dir(&mask)?;
        // What a mask hides is hidden by an overlay's own sign of a removed file: a device with the number 0.
        match mknod(&mask.join(".git"), SFlag::S_IFCHR, Mode::empty(), 0) {
            Ok(()) | Err(nix::errno::Errno::EEXIST) => {}
            Err(error) => return Err(error.into()),
        }
        let mut leftovers = Vec::new();
        for entry in fs::read_dir(&dir)? {
            let entry = entry?;
            let name = entry.file_name();
            if name.to_str().is_some_and(|name| name.starts_with(PARTIAL) || name.starts_with(GONE)) {
                leftovers.push(entry.path());
            }
        }
        Ok(Self { dir, sandboxes: state.sandboxes(), turn: Mutex::default(), leftovers: Mutex::new(leftovers) })
    }

    fn place(&self, key: &SetupKey) -> PathBuf {
        self.dir.join(&key.0)
    }

    fn note(&self, key: &SetupKey) -> io::Result<Option<Note>> {
        let place = self.place(key);
        let bytes = missing_is(fs::read(place.join("setup.json")).map(Some), None)?;
        let note = bytes.map(|bytes| serde_json::from_slice(&bytes)).transpose()?;
        Ok(note.filter(|_| place.join("volume.ext4").is_file()))
    }

    /// Notes that what this sandbox writes is to become a setup, and lays the same files under its work tree as under
    /// the other one's.
    pub fn begin(&self, layout: &Layout, like: &Layout) -> io::Result<()> {
        for Layer { directory, lower } in layers::read(like)? {
            layers::lay(layout, &directory, &lower)?;
        }
        write_settled(&record_of(layout.dir()), &serde_json::to_vec(&Part::Makes)?, 0o600)
    }

    /// Makes the disk of a sandbox, in which nothing runs any more, a setup. From then on the sandbox has no disk.
    pub fn keep(&self, layout: &Layout, key: &SetupKey, excluded: BTreeMap<String, Vec<String>>) -> io::Result<u64> {
        if part_of(layout.dir())? != Some(Part::Makes) {
            return Err(io::Error::other("it was not begun as a setup"));
        }
        let image = layout.volume_image();
        volume::release(&layout.volume(), &image, Instant::now() + RELEASE_PATIENCE)?;
        let partial = self.dir.join(fresh_name(PARTIAL));
        DirBuilder::new().mode(0o700).create(&partial)?;
        let kept = partial.join("volume.ext4");
        fs::rename(&image, &kept)?;
        let made = || {
            fs::set_permissions(&kept, Permissions::from_mode(0o400))?;
            let file = File::open(&kept)?;
            // What is there after a loss of power is there whole.
            file.sync_all()?;
            let bytes = file.metadata()?.blocks() * 512;
            write_settled(&partial.join("setup.json"), &serde_json::to_vec(&Note { bytes, excluded })?, 0o600)?;
            match fs::rename(&partial, self.place(key)) {
                // Somebody else has made the same meanwhile.
                Err(error) if self.note(key).is_ok_and(|note| note.is_some()) => {
                    tracing::debug!(%error, "a setup is there already");
                    fs::remove_dir_all(&partial)?;
                }
                Err(_) => {
                    // What has its name and is not whole is in nobody's way.
                    fs::rename(self.place(key), self.dir.join(fresh_name(GONE)))?;
                    fs::rename(&partial, self.place(key))?;
                }
                Ok(()) => {}
            }
            File::open(&self.dir)?.sync_all()?;
            Ok(bytes)
        };
        made().inspect_err(|_: &io::Error| {
            let _ = fs::remove_dir_all(&partial);
        })
    }

    /// Puts a setup under a sandbox that has not run yet; `false` when there is none of that name. From then on it
    /// stays for as long as the sandbox does.
    pub fn put_under(&self, layout: &Layout, key: &SetupKey) -> io::Result<bool> {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(note) = self.note(key)? else { return Ok(false) };
        let volume = layout.volume();
        if !volume::is_mount_point(&volume)? {
            return Err(io::Error::other("its disk is not mounted"));
        }
        for folder in ["home", "workspace"] {
            DirBuilder::new().recursive(true).mode(0o700).create(volume.join("setup").join(folder))?;
        }
        for layer in layers::read(layout)? {
            let patterns = note.excluded.get(&layer.directory).map(Vec::as_slice).unwrap_or_default();
            if !patterns.is_empty() {
                exclude(&layer, &volume, patterns)?;
            }
        }
        write_settled(&record_of(layout.dir()), &serde_json::to_vec(&Part::Uses(key.clone()))?, 0o600)?;
        // It only says what goes first when room is needed.
        let used = File::options().append(true).open(self.place(key).join("setup.json"));
        let _ = used.and_then(|file| file.set_modified(SystemTime::now()));
        Ok(true)
    }

    /// What the helper of this sandbox has to be told.
    pub fn order(&self, layout: &Layout) -> io::Result<Option<SetupOrder>> {
        Ok(match part_of(layout.dir())? {
            None => None,
            Some(Part::Makes) => Some(SetupOrder::Makes),
            Some(Part::Uses(key)) => {
                Some(SetupOrder::Uses { image: self.place(&key).join("volume.ext4"), mask: self.dir.join(".mask") })
            }
        })
    }

    /// Setups that sandboxes lie on. One record that cannot be read is an error: who asks is about to remove what is in none.
    fn in_use(&self) -> io::Result<HashSet<PathBuf>> {
        let mut used = HashSet::new();
        for entry in fs::read_dir(&self.sandboxes)? {
            if let Some(Part::Uses(key)) = part_of(&entry?.path())? {
                used.insert(self.place(&key));
            }
        }
        Ok(used)
    }

    /// Removes what the limits do not allow and what was left half-made, and nothing that a sandbox lies on. Answers how many
    /// went, and the bytes of those that stay.
    pub fn trim(&self, limits: &SetupLimits, now: SystemTime) -> io::Result<(usize, u64)> {
        let mut gone = std::mem::take(&mut *self.leftovers.lock().unwrap_or_else(PoisonError::into_inner));
        let stay = {
            let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
            let all = self.census()?;
            let victims = victims(&all, &self.in_use()?, limits, now);
            for place in &victims {
                // Whoever comes now finds nothing; the files can take their time.
                let to = self.dir.join(fresh_name(GONE));
                fs::rename(place, &to)?;
                gone.push(to);
            }
            all.iter().filter(|setup| !victims.contains(&setup.place)).map(|setup| setup.bytes).sum()
        };
        for path in &gone {
            // Two files of ours; nothing of a sandbox's is walked.
            missing_is(fs::remove_dir_all(path), ())?;
        }
        Ok((gone.len(), stay))
    }

    fn census(&self) -> io::Result<Vec<Kept>> {
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.dir)? {
            let entry = entry?;
            let Some(key) = entry.file_name().into_string().ok().and_then(|name| SetupKey::try_from(name).ok()) else {
                continue;
            };
            let place = entry.path();
            // One without a note is as old as can be.
            let (bytes, used) = match self.note(&key) {
                Ok(Some(note)) => (note.bytes, fs::metadata(place.join("setup.json"))?.modified()?),
                Ok(None) | Err(_) => (0, SystemTime::UNIX_EPOCH),
            };
            found.push(Kept { place, bytes, used });
        }
        Ok(found)
    }
}

/// A setup that is there.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Kept {
    place: PathBuf,
    bytes: u64,
    used: SystemTime,
}

/// What has to go. What is used counts and stays.
fn victims(all: &[Kept], used: &HashSet<PathBuf>, limits: &SetupLimits, now: SystemTime) -> Vec<PathBuf> {
    let mut oldest_first: Vec<&Kept> = all.iter().collect();
    oldest_first.sort_by(|a, b| a.used.cmp(&b.used).then_with(|| a.place.cmp(&b.place)));
    let mut total: u64 = all.iter().map(|setup| setup.bytes).sum();
    let mut victims = Vec::new();
    for setup in oldest_first.into_iter().filter(|setup| !used.contains(&setup.place)) {
        let too_old = now.duration_since(setup.used).is_ok_and(|age| age > limits.max_age);
        if too_old || total > limits.max_bytes {
            total = total.saturating_sub(setup.bytes);
            victims.push(setup.place.clone());
        }
    }
    victims
}

/// Tells the git of a work tree, in which nothing has run yet, to pass over what a setup has left in it.
fn exclude(layer: &Layer, volume: &Path, patterns: &[String]) -> io::Result<()> {
    let own = |path: &Path| chown(path, Some(WORKSPACE_UID), Some(WORKSPACE_GID));
    let mut folder = layer.changes(volume).join("upper");
    for name in [".git", "info"] {
        folder.push(name);
        match DirBuilder::new().mode(0o755).create(&folder) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => own(&folder)?,
        }
    }
    let mut text = String::new();
    if let Ok(file) = File::open(layer.lower.join(".git/info/exclude")) {
        file.take(MAX_EXCLUDE_BYTES).read_to_string(&mut text)?;
    }
    text.push_str("\n# Made by the setup script.\n");
    text.push_str(&patterns.join("\n"));
    text.push('\n');
    let path = folder.join("exclude");
    let flags = libc::O_NOFOLLOW;
    let mut file =
        OpenOptions::new().write(true).create(true).truncate(true).mode(0o644).custom_flags(flags).open(&path)?;
    io::Write::write_all(&mut file, text.as_bytes())?;
    own(&path)
}

/// A setup's disk, mounted for the helper alone.
pub struct Mounted {
    at: PathBuf,
    mask: PathBuf,
}

impl Mounted {
    /// Mounts it, read-only, where nobody but this process and what it mounts on top can see it, with the owners that the
    /// sandbox sees.
    pub fn new(image: &Path, mask: &Path, at: &Path, owners: &mut Owners) -> io::Result<Self> {
        let failed = |error| io::Error::other(format!("mounting what the setup script has made: {error}"));
        fs::create_dir_all(at)?;
        volume::mount_read_only(image, at).map_err(failed)?;
        Ok(Self { at: owners.show(at)?, mask: mask.to_owned() })
    }

    /// What it has of this top folder of a disk.
    pub fn folder(&self, name: &str) -> PathBuf {
        self.at.join(name)
    }

    /// What lies below the files of a layer, the next one first.
    pub fn below(&self, layer: &Layer) -> [PathBuf; 2] {
        [self.mask.clone(), layer.changes(&self.at).join("upper")]
    }
}

/// The names that a script has left in a work tree, as patterns for git that match them and nothing else. `names` is
/// the output of `git ls-files -z`: hostile. `None`: there are more than `most`.
pub fn patterns(names: &[u8], most: usize) -> Option<Vec<String>> {
    let mut seen: HashMap<String, ()> = HashMap::new();
    let mut patterns = Vec::new();
    for name in names.split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        let mut pattern = String::from("/");
        for c in String::from_utf8_lossy(name).chars() {
            match c {
                '*' | '?' | '[' | '\\' | ' ' | '#' | '!' => pattern.extend(['\\', c]),
                // No pattern can hold a line's end, nor bytes that are no text: any one character stands for it.
                c if c.is_control() || c == char::REPLACEMENT_CHARACTER => pattern.push('?'),
                c => pattern.push(c),
            }
        }
        if seen.insert(pattern.clone(), ()).is_none() {
            patterns.push(pattern);
        }
        if patterns.len() > most {
            return None;
        }
    }
    Some(patterns)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(place: &str, bytes: u64, age: u64) -> Kept {
        let used = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000 - age);
        Kept { place: place.into(), bytes, used }
    }

    fn gone(all: &[Kept], used: &[&str], max_bytes: u64) -> Vec<String> {
        let used = used.iter().map(PathBuf::from).collect();
        let limits = SetupLimits { max_bytes, max_age: Duration::from_secs(100) };
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
        victims(all, &used, &limits, now).iter().map(|path| path.display().to_string()).collect()
    }

    #[test]
    fn the_oldest_go_until_the_rest_fits_and_what_is_used_stays() {
        let all = [kept("a", 40, 5), kept("b", 40, 50), kept("c", 40, 20), kept("d", 1, 101)];
        assert_eq!(gone(&all, &[], 1_000), ["d"]);
        assert_eq!(gone(&all, &[], 80), ["d", "b"]);
        assert_eq!(gone(&all, &["d", "b"], 80), ["c", "a"]);
        assert_eq!(gone(&all, &["a", "b", "c", "d"], 0), [""; 0]);
    }

    #[test]
    fn a_key_is_the_digest_of_its_recipe_and_nothing_else_is_one() {
        let key = SetupKey::of(b"recipe");
        assert_eq!(SetupKey::try_from(key.to_string()), Ok(key.clone()));
        assert_ne!(SetupKey::of(b"recipe2"), key);
        for text in ["", "../../etc", &"A".repeat(64), &"a".repeat(63), &format!("{}/", "a".repeat(63))] {
            assert!(SetupKey::try_from(text.to_owned()).is_err(), "{text}");
        }
    }

    #[test]
    fn a_name_becomes_a_pattern_of_that_name_alone() {
        let names = b"a.txt\0dir/b\0#c\0*\0 d \0e\\f\0g\nh\0a.txt\0vendor/\0";
        let expected =
            ["/a.txt", "/dir/b", "/\\#c", "/\\*", "/\\ d\\ ", "/e\\\\f", "/g?h", "/vendor/"].map(str::to_owned);
        assert_eq!(patterns(names, 8).unwrap(), expected);
        assert_eq!(patterns(names, 7), None);
        assert_eq!(patterns(b"", 0), Some(Vec::new()));
    }
}
