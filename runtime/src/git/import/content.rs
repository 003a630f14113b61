//! What new files may hold: no secrets, and for Git LFS no content but pointers to what the forge has.

use std::cell::OnceCell;
use std::collections::{HashMap, HashSet};
use std::rc::Rc;

use git2::{ObjectType, Oid, Repository, Tree};
use globset::GlobSet;

use super::super::error::PackFault;
use super::lfs::{self, Attributes};
use super::rules::{ImportRules, InvalidGlob, globs};
use super::secrets::Scanner;
use super::walk::Stop;

/// A path in an error is cut here, in characters.
const MAX_SHOWN_PATH: usize = 200;
/// Files of the base that are remembered, 20 bytes each: more than the largest public repositories have.
const MAX_BASE_FILES: usize = 2_000_000;
/// Directories' attributes that are kept parsed at once.
const MAX_PARSED_ATTRIBUTES: usize = 64;

/// A new file.
pub(super) struct Place<'a> {
    pub path: &'a [u8],
    pub id: Oid,
    pub size: usize,
    /// What stood at its path in the parents and in the base.
    pub earlier: &'a [Oid],
}

/// The `.gitattributes` of one directory on the way to a file.
struct Level {
    new: Option<Rc<Attributes>>,
    base: Option<Rc<Attributes>>,
}

pub(super) struct Content<'a> {
    repo: &'a Repository,
    base: Tree<'a>,
    rules: &'a ImportRules,
    allowed: GlobSet,
    scanner: Scanner,
    /// Files that were searched without a finding, and need not be again.
    searched: HashSet<Oid>,
    levels: Vec<Level>,
    parsed: HashMap<Oid, Rc<Attributes>>,
    base_files: OnceCell<HashSet<Oid>>,
}

impl<'a> Content<'a> {
    pub(super) fn new(repo: &'a Repository, base: &Tree<'a>, rules: &'a ImportRules) -> Result<Self, InvalidGlob> {
        Ok(Self {
            repo,
            base: base.clone(),
            rules,
            allowed: globs(&rules.secrets.allow_paths)?,
            scanner: Scanner::new(),
            searched: HashSet::new(),
            levels: Vec::new(),
            parsed: HashMap::new(),
            base_files: OnceCell::new(),
        })
    }

    /// A path for an error: cut, quoted, and left out if its name is a secret itself.
    pub(super) fn shown(&self, path: &[u8]) -> String {
        if self.scanner.find(path, 0).is_some() {
            return "a path that looks like a secret itself".to_owned();
        }
        let text: String = String::from_utf8_lossy(path).chars().take(MAX_SHOWN_PATH).collect();
        format!("{text:?}")
    }

    /// Into a directory.
    pub(super) fn enter(&mut self, new: &Tree<'_>, base: Option<&Tree<'_>>) {
        let level = match self.rules.lfs {
            true => Level { new: self.attributes(new), base: base.and_then(|base| self.attributes(base)) },
            false => Level { new: None, base: None },
        };
        self.levels.push(level);
    }

    /// Out of it.
    pub(super) fn leave(&mut self) {
        self.levels.pop();
    }

    fn attributes(&mut self, tree: &Tree<'_>) -> Option<Rc<Attributes>> {
        let entry = tree.get_name_bytes(b".gitattributes")?;
        if entry.filemode_raw() & 0o170_000 != 0o100_000 {
            return None;
        }
        if let Some(parsed) = self.parsed.get(&entry.id()) {
            return Some(Rc::clone(parsed));
        }
        let odb = self.repo.odb().ok()?;
        let size = odb.read_header(entry.id()).ok()?.0;
        // Git ignores one that is too large as well, at a hundred times this.
        if size > lfs::MAX_ATTRIBUTES_BYTES {
            return None;
        }
        let parsed = Rc::new(Attributes::parse(odb.read(entry.id()).ok()?.data()));
        if self.parsed.len() == MAX_PARSED_ATTRIBUTES {
            self.parsed.clear();
        }
        self.parsed.insert(entry.id(), Rc::clone(&parsed));
        Some(parsed)
    }

    /// Whether the attributes of the base, or the new ones, give this file to LFS. The nearest directory that says
    /// something counts.
    fn is_lfs(&self, path: &[u8]) -> bool {
        let mut starts: Vec<usize> = vec![0];
        starts.extend(path.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(at, _)| at + 1));
        let says = |of: fn(&Level) -> &Option<Rc<Attributes>>| {
            let nearest = self.levels.iter().zip(&starts).rev();
            nearest.filter_map(|(level, start)| of(level).as_ref()?.lfs(&path[*start..])).next() == Some(true)
        };
        says(|level| &level.base) || says(|level| &level.new)
    }

    /// Whether the base has this content anywhere: moving a file adds nothing to what is public.
    fn in_base(&self, id: Oid) -> bool {
        let files = self.base_files.get_or_init(|| {
            let mut files = HashSet::new();
            let mut pending = vec![self.base.clone()];
            while let Some(tree) = pending.pop() {
                for entry in &tree {
                    if entry.kind() == Some(ObjectType::Tree) {
                        pending.extend(self.repo.find_tree(entry.id()).ok());
                    } else if files.len() < MAX_BASE_FILES {
                        files.insert(entry.id());
                    }
                }
            }
            files
        });
        files.contains(&id)
    }

    /// Looks at a file whose size and kind are known to be allowed.
    pub(super) fn file(&mut self, place: &Place<'_>) -> Result<(), Stop> {
        if self.rules.lfs {
            self.lfs(place)?;
        }
        use std::os::unix::ffi::OsStrExt;
        let allowed = self.allowed.is_match(std::ffi::OsStr::from_bytes(place.path));
        if !self.rules.secrets.search || allowed || place.size == 0 || self.searched.contains(&place.id) {
            return Ok(());
        }
        self.search(place)?;
        self.searched.insert(place.id);
        Ok(())
    }

    fn lfs(&self, place: &Place<'_>) -> Result<(), Stop> {
        let small = place.size < lfs::MAX_POINTER_BYTES;
        let pointer = small && lfs::is_pointer(self.repo.find_blob(place.id)?.content());
        let fault = match (pointer, self.is_lfs(place.path)) {
            (true, _) => {
                (PackFault::LfsObject, "a Git LFS pointer was added or changed, and its object is in the sandbox")
            }
            // An empty file is its own pointer.
            (false, true) if place.size > 0 => {
                (PackFault::LfsContent, "a file that belongs to Git LFS was committed with its content")
            }
            (false, _) => return Ok(()),
        };
        if self.in_base(place.id) {
            return Ok(());
        }
        Err(Stop::Rejected(fault.0, format!("{}: {}", fault.1, self.shown(place.path))))
    }

    fn search(&self, place: &Place<'_>) -> Result<(), Stop> {
        let blob = self.repo.find_blob(place.id)?;
        let content = self.searched_part(blob.content());
        let Some(mut finding) = self.scanner.find(content, 0) else { return Ok(()) };
        if self.in_base(place.id) {
            return Ok(());
        }
        // What the file held before is not added by this change.
        let earlier: Vec<_> = place.earlier.iter().filter_map(|id| self.repo.find_blob(*id).ok()).collect();
        let known: HashSet<_> =
            earlier.iter().flat_map(|blob| self.scanner.tokens(self.searched_part(blob.content()))).collect();
        loop {
            if !known.contains(&content[finding.at.clone()]) {
                let line = content[..finding.at.start].iter().filter(|byte| **byte == b'\n').count() + 1;
                let detail = format!("{} line {line} holds a secret ({})", self.shown(place.path), finding.kind);
                return Err(Stop::Rejected(PackFault::Secret, detail));
            }
            match self.scanner.find(content, finding.at.end) {
                Some(next) => finding = next,
                None => return Ok(()),
            }
        }
    }

    fn searched_part<'b>(&self, content: &'b [u8]) -> &'b [u8] {
        let limit = usize::try_from(self.rules.secrets.file_bytes).unwrap_or(usize::MAX);
        &content[..content.len().min(limit)]
    }

    /// Looks at a name that was not there before.
    pub(super) fn name(&self, name: &[u8]) -> Result<(), Stop> {
        match self.scanner.find(name, 0) {
            Some(finding) if self.rules.secrets.search => {
                Err(Stop::Rejected(PackFault::Secret, format!("a file's name is a secret ({})", finding.kind)))
            }
            _ => Ok(()),
        }
    }

    /// Looks at a commit's message, as it would be published.
    pub(super) fn message(&self, message: &str) -> Result<(), Stop> {
        match self.scanner.find(message.as_bytes(), 0) {
            Some(finding) if self.rules.secrets.search => {
                Err(Stop::Rejected(PackFault::Secret, format!("a commit's message holds a secret ({})", finding.kind)))
            }
            _ => Ok(()),
        }
    }
}
