//! Which of the host's user ids a sandbox runs as: a range of its own, so that who gets out of one meets nobody he knows.
//!
//! A range is claimed by a symbolic link in a directory of the whole host, `/run/orchestra/ids`. Its name is the range, it
//! leads to the sandbox's directory, and making it is one step that only one of two can do. So a claim outlives every
//! process, names its owner, and two servers on a host never give the same range to two sandboxes. Whoever removes the
//! sandbox removes the claim, last of all.
//!
//! What is on disk knows nothing of this: files belong to the ids from [`ON_DISK`] on, whichever range the sandbox has, and
//! [`super::idmap`] translates. Where the kernel cannot do that, every sandbox has the ids of its files.

use std::collections::{HashMap, HashSet};
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use nix::fcntl::{Flock, FlockArg};
use orchestra_events::SandboxId;
use serde::{Deserialize, Serialize};

use super::SandboxError;
use super::cgroup::Hierarchy;
use super::idmap;
use super::layers::Layer;
use super::layout::{Layout, State};

/// What user 0 of a sandbox is called on its disk, and under its work tree.
pub const ON_DISK: u32 = 100_000;
/// How many users a sandbox has.
pub const RANGE: u32 = 65_536;
/// The highest id that no tool takes for a negative number.
const HIGHEST: u32 = i32::MAX as u32;
/// File systems that are remembered as able or unable to be translated: a host has a few.
const MAX_FILE_SYSTEMS: usize = 256;

/// The host's user ids that sandboxes may have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostIds {
    first: u32,
    ranges: u32,
    claims: PathBuf,
}

impl Default for HostIds {
    fn default() -> Self {
        Self { first: Self::FIRST, ranges: Self::RANGES, claims: PathBuf::from("/run/orchestra/ids") }
    }
}

impl HostIds {
    /// The first id when nobody says another one: above what systemd gives to containers and users (up to 1,879,048,191), below
    /// its foreign ids (from 2,147,352,576), by its table of ids, <https://systemd.io/UIDS-GIDS>.
    pub const FIRST: u32 = 0x7000_0000;
    /// Ranges when nobody says another number: more than a host has room for sandboxes.
    pub const RANGES: u32 = 1024;

    /// `ranges` ranges of 65,536 ids from `first` on. All servers of a host name their ranges by the same grid, so `first` is
    /// on it.
    ///
    /// # Errors
    /// When `first` is no multiple of 65,536, a range would hold ids of files or of ordinary users, or there is none.
    pub fn new(first: u32, ranges: u32) -> Result<Self, String> {
        let end = u64::from(first) + u64::from(ranges) * u64::from(RANGE);
        if !first.is_multiple_of(RANGE) {
            return Err(format!("{first} is no multiple of {RANGE}"));
        }
        // What is on disk is shown unchanged where it is no sandbox's, so no range may touch it.
        if first < (ON_DISK + RANGE).next_multiple_of(RANGE) {
            return Err(format!(
                "{first} is too low: ids below {} are taken",
                (ON_DISK + RANGE).next_multiple_of(RANGE)
            ));
        }
        if ranges == 0 {
            return Err("no sandbox can start without a range".to_owned());
        }
        if end > u64::from(HIGHEST) + 1 {
            return Err(format!("{ranges} ranges from {first} on end above {HIGHEST}"));
        }
        Ok(Self { first, ranges, ..Self::default() })
    }

    /// The same, claimed in another directory than that of the whole host: only for who has the host to himself.
    #[must_use]
    pub fn claimed_in(self, claims: PathBuf) -> Self {
        Self { claims, ..self }
    }

    fn range(&self, number: u32) -> IdRange {
        IdRange { first: self.first + number % self.ranges * RANGE }
    }
}

/// The ids of one sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdRange {
    /// The host's id for user 0 of the sandbox.
    pub first: u32,
}

impl IdRange {
    /// What every sandbox has where files cannot be translated: the ids on disk.
    pub const SHARED: Self = Self { first: ON_DISK };

    /// The name of its claim: its place in the grid of all ranges that a host can have.
    fn claim(self) -> String {
        (self.first / RANGE).to_string()
    }
}

/// Why a sandbox did not get a range.
#[derive(Debug, thiserror::Error)]
pub enum ClaimError {
    /// Every range has an owner who lives.
    #[error(
        "all {0} ranges of host user ids are in use; end sandboxes, or raise sandbox.host_ids.ranges in the server's configuration"
    )]
    Exhausted(u32),
    /// The directory of claims does not do what it is asked.
    #[error(transparent)]
    Host(#[from] io::Error),
}

impl ClaimError {
    /// What it means for a sandbox that was to start.
    pub fn of(self, id: SandboxId) -> SandboxError {
        match self {
            Self::Exhausted(_) => SandboxError::StartFailed { id, detail: self.to_string() },
            Self::Host(error) => SandboxError::host(format!("claiming host user ids for sandbox {id}"))(error),
        }
    }
}

/// Gives ranges to sandboxes and takes them back.
#[derive(Debug)]
pub struct Ranges {
    ids: HostIds,
    /// Why there are none on this host, if so.
    without: Option<String>,
    /// File systems by their device, and whether files on them can be translated.
    able: Mutex<HashMap<u64, bool>>,
}

impl Ranges {
    /// Looks whether sandboxes with their disks in this state directory can have ranges of their own, and makes the directory
    /// of claims.
    pub fn open(ids: HostIds, state: &State) -> Self {
        let made = DirBuilder::new().recursive(true).mode(0o700).create(&ids.claims);
        let made = made.map_err(|error| format!("{} cannot be made: {error}", ids.claims.display()));
        let without = made.and_then(|()| idmap::probe(&state.sandboxes()).map_err(|error| error.to_string())).err();
        if let Some(why) = &without {
            tracing::warn!(%why, "all sandboxes share one range of host user ids");
        }
        Self { ids, without, able: Mutex::default() }
    }

    /// The claims that there are, for who only looks.
    pub fn known(ids: HostIds) -> Self {
        Self { ids, without: None, able: Mutex::default() }
    }

    /// A range that this sandbox alone has until [`Ranges::release`], the one that it has already, or the shared one where
    /// its files cannot be translated. Its directory must be there.
    pub fn claim(&self, layout: &Layout, layers: &[Layer], cgroups: &Hierarchy) -> Result<IdRange, ClaimError> {
        if self.without.is_some() || !layers.iter().all(|layer| self.is_able(&layer.lower)) {
            return Ok(IdRange::SHARED);
        }
        let mut taken = HashSet::new();
        for (range, owner) in self.claims()? {
            if owner == layout.dir() {
                return Ok(range);
            }
            taken.insert(range.first);
        }
        // Each begins to look at a place of its own, so that a range rests before it is used again.
        let mut hasher = DefaultHasher::new();
        layout.dir().hash(&mut hasher);
        let start = (hasher.finish() % u64::from(self.ids.ranges)) as u32;
        for swept in [false, true] {
            for number in 0..self.ids.ranges {
                let range = self.ids.range(start + number);
                if taken.contains(&range.first) {
                    continue;
                }
                match symlink(layout.dir(), self.ids.claims.join(range.claim())) {
                    Ok(()) => return Ok(range),
                    // Somebody else was faster.
                    Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                    Err(error) => return Err(error.into()),
                }
            }
            if !swept {
                taken = self.sweep(cgroups)?;
            }
        }
        Err(ClaimError::Exhausted(self.ids.ranges))
    }

    /// The range that a sandbox with these layers, which has claimed before, would be given again; nothing when it would be
    /// given one that it does not have.
    pub fn held(&self, layout: &Layout, layers: &[Layer]) -> io::Result<Option<IdRange>> {
        if self.without.is_some() || !layers.iter().all(|layer| self.is_able(&layer.lower)) {
            return Ok(Some(IdRange::SHARED));
        }
        Ok(self.claims()?.into_iter().find(|(_, owner)| owner == layout.dir()).map(|(range, _)| range))
    }

    /// Makes what one sandbox has another's, in one step each.
    pub fn pass_on(&self, from: &Layout, to: &Layout) -> io::Result<()> {
        let _turn = self.turn()?;
        for (range, _) in self.claims()?.into_iter().filter(|(_, owner)| owner == from.dir()) {
            let partial = self.ids.claims.join(format!("{}.partial", range.claim()));
            let _ = fs::remove_file(&partial);
            symlink(to.dir(), &partial)?;
            fs::rename(&partial, self.ids.claims.join(range.claim()))?;
        }
        Ok(())
    }

    /// Gives back whatever this sandbox has. Only when nothing of it runs any more.
    pub fn release(&self, layout: &Layout) -> io::Result<()> {
        let claims = self.claims()?;
        let mut ours = claims.into_iter().filter(|(_, owner)| owner == layout.dir()).peekable();
        if ours.peek().is_none() {
            return Ok(());
        }
        let _turn = self.turn()?;
        for (range, owner) in ours {
            self.remove(range, &owner)?;
        }
        Ok(())
    }

    /// The sandboxes of one server that have a claim.
    pub fn owners(&self, state: &State) -> io::Result<Vec<SandboxId>> {
        let sandboxes = state.sandboxes();
        let names = self.claims()?.into_iter().filter_map(|(_, owner)| {
            owner.strip_prefix(&sandboxes).ok().and_then(Path::to_str).and_then(|name| name.parse().ok())
        });
        Ok(names.collect())
    }

    /// Every claim on this host, also of ranges that another server was told of. None where there is no directory.
    fn claims(&self) -> io::Result<Vec<(IdRange, PathBuf)>> {
        let entries = match fs::read_dir(&self.ids.claims) {
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                return Ok(Vec::new());
            }
            entries => entries?,
        };
        let mut found = Vec::new();
        for entry in entries {
            let entry = entry?;
            let number = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok());
            let Some(first) = number.and_then(|number| number.checked_mul(RANGE)) else { continue };
            match fs::read_link(entry.path()) {
                Ok(owner) => found.push((IdRange { first }, owner)),
                // Given back in between, or not a claim.
                Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::InvalidInput) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(found)
    }

    /// Frees what belongs to nobody any more: its sandbox has neither a directory nor a control group. Returns what is
    /// still taken.
    fn sweep(&self, cgroups: &Hierarchy) -> io::Result<HashSet<u32>> {
        let _turn = self.turn()?;
        let mut taken = HashSet::new();
        for (range, owner) in self.claims()? {
            let lives = fs::symlink_metadata(&owner).is_ok()
                || Layout::by_directory(&owner).is_none_or(|layout| !cgroups.names(layout.cgroup()).is_empty());
            if lives {
                taken.insert(range.first);
            } else {
                self.remove(range, &owner)?;
            }
        }
        Ok(taken)
    }

    /// Removes a claim if it is still that owner's. Only in turn: between the look and the removal it could become another's.
    fn remove(&self, range: IdRange, owner: &Path) -> io::Result<()> {
        let path = self.ids.claims.join(range.claim());
        match fs::read_link(&path) {
            Ok(now) if now == owner => fs::remove_file(&path),
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// One at a time takes claims away, of all servers on this host.
    fn turn(&self) -> io::Result<Flock<File>> {
        let path = self.ids.claims.join("lock");
        let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path)?;
        Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, error)| error.into())
    }

    /// Whether what lies on the file system of this directory can be shown with other ids.
    fn is_able(&self, directory: &Path) -> bool {
        let Ok(device) = fs::metadata(directory).map(|meta| meta.dev()) else { return false };
        let mut able = self.able.lock().unwrap_or_else(PoisonError::into_inner);
        if able.len() >= MAX_FILE_SYSTEMS {
            able.clear();
        }
        *able.entry(device).or_insert_with(|| idmap::probe(directory).is_ok())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_on_the_grid_and_away_from_what_is_on_disk() {
        assert_eq!(HostIds::new(HostIds::default().first, 1024), Ok(HostIds::default()));
        for (first, ranges, said) in [
            (0x7000_0001, 1, "no multiple"),
            (0, 1, "too low"),
            (131_072, 1, "too low"),
            (0x7000_0000, 0, "without a range"),
            (0x7000_0000, 4097, "end above"),
            (0x7FFF_0000, u32::MAX, "end above"),
        ] {
            let error = HostIds::new(first, ranges).unwrap_err();
            assert!(error.contains(said), "{first} {ranges}: {error}");
        }
        assert!(HostIds::new(196_608, 1).is_ok());
        assert!(HostIds::new(0x7000_0000, 4096).is_ok());
    }

    fn world(ranges: u32) -> (tempfile::TempDir, State, Ranges, Hierarchy) {
        let dir = tempfile::tempdir().unwrap();
        let state = State::open(&dir.path().join("state")).unwrap();
        let claims = dir.path().join("claims");
        fs::create_dir(&claims).unwrap();
        let ids = HostIds::new(0x7000_0000, ranges).unwrap().claimed_in(claims);
        (dir, state, Ranges { ids, without: None, able: Mutex::default() }, Hierarchy::V1(Vec::new()))
    }

    fn sandbox(state: &State, number: u128) -> Layout {
        let layout = state.layout(SandboxId::from_uuid(uuid::Uuid::from_u128(number)));
        super::super::layout::make_dir(layout.dir()).unwrap();
        layout
    }

    #[test]
    fn every_sandbox_has_one_range_until_it_gives_it_back() {
        let (_dir, state, ranges, cgroups) = world(3);
        let all: Vec<_> = (0..4).map(|number| sandbox(&state, number)).collect();
        let claim = |layout: &Layout| ranges.claim(layout, &[], &cgroups);
        let had: HashSet<u32> = all[..3].iter().map(|layout| claim(layout).unwrap().first).collect();
        assert_eq!(had, HashSet::from([0x7000_0000, 0x7001_0000, 0x7002_0000]));
        let again = claim(&all[1]).unwrap();
        assert_eq!(claim(&all[1]).unwrap(), again, "who asks again has it already");
        let error = claim(&all[3]).unwrap_err().to_string();
        assert!(error.contains("all 3 ranges") && error.contains("sandbox.host_ids.ranges"), "{error}");
        ranges.release(&all[1]).unwrap();
        ranges.release(&all[1]).unwrap();
        assert_eq!(claim(&all[3]).unwrap(), again);
        let owners: HashSet<_> = ranges.owners(&state).unwrap().into_iter().collect();
        assert_eq!(owners.len(), 3);
        assert!(!owners.contains(&SandboxId::from_uuid(uuid::Uuid::from_u128(1))));
    }

    #[test]
    fn what_nobody_owns_any_more_is_given_again_only_when_it_is_needed() {
        let (dir, state, ranges, cgroups) = world(2);
        let (one, two) = (sandbox(&state, 1), sandbox(&state, 2));
        let (first, second) = (ranges.claim(&one, &[], &cgroups).unwrap(), ranges.claim(&two, &[], &cgroups).unwrap());
        // A server whose state was thrown away without a word, one sandbox of which still runs.
        fs::remove_dir(one.dir()).unwrap();
        fs::remove_dir(two.dir()).unwrap();
        let tree = dir.path().join("tree");
        fs::create_dir_all(tree.join(two.cgroup())).unwrap();
        let running = Hierarchy::V1(vec![tree]);
        let three = sandbox(&state, 3);
        assert_eq!(ranges.claim(&three, &[], &running).unwrap(), first);
        assert_ne!(first, second);
        assert!(matches!(ranges.claim(&sandbox(&state, 4), &[], &running), Err(ClaimError::Exhausted(2))));
    }

    #[test]
    fn many_at_once_get_different_ranges() {
        let (_dir, state, ranges, cgroups) = world(64);
        let layouts: Vec<_> = (0..64).map(|number| sandbox(&state, number)).collect();
        let got: HashSet<u32> = std::thread::scope(|scope| {
            let threads: Vec<_> = layouts
                .chunks(8)
                .map(|mine| {
                    let (ranges, cgroups) = (&ranges, &cgroups);
                    scope.spawn(move || {
                        mine.iter().map(|layout| ranges.claim(layout, &[], cgroups).unwrap().first).collect::<Vec<_>>()
                    })
                })
                .collect();
            threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
        });
        assert_eq!(got.len(), 64);
    }

    #[test]
    fn a_claim_is_taken_away_from_its_owner_only() {
        let (_dir, state, ranges, cgroups) = world(1);
        let (one, two) = (sandbox(&state, 1), sandbox(&state, 2));
        let range = ranges.claim(&one, &[], &cgroups).unwrap();
        ranges.remove(range, two.dir()).unwrap();
        ranges.release(&two).unwrap();
        assert!(matches!(ranges.claim(&two, &[], &cgroups), Err(ClaimError::Exhausted(1))));
    }
}
