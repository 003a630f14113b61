//! The importing child: no token, no network, no environment, and a kernel that kills it at its limits.

use std::ffi::OsString;
use std::io::{Read, Write};
use std::path::Path;
use std::process::ExitCode;

use git2::{Indexer, ObjectType, Odb, Oid, Repository};
use orchestra_events::CommitId;

use super::super::error::PackFault;
use super::confine::confine;
use super::walk::{GITLINK, Stop, walk};
use super::{CHUNK_BYTES, Order, Report};

/// libgit2 maps packs in windows of this size, and no more of them than the second number in all, so that a large
/// trusted repository does not use up the child's address space.
const WINDOW_BYTES: usize = 16 * 1024 * 1024;
const MAPPED_BYTES: usize = 128 * 1024 * 1024;
/// Objects that libgit2 keeps in memory.
const CACHE_BYTES: isize = 32 * 1024 * 1024;

/// The whole life of the importing child: `args` are what follows [`super::IMPORT_ARG`]. Call it first in `main`,
/// before a runtime, a logger or the configuration.
pub fn import_main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let order = args.into_iter().next().and_then(|arg| serde_json::from_str::<Order>(&arg.to_string_lossy()).ok());
    let report = match order {
        Some(order) => match prepare(&order) {
            Ok(()) => check(&order, &mut std::io::stdin().lock()),
            Err(detail) => Report::Failed { detail },
        },
        None => Report::Failed { detail: "the importing process was started without its order".to_owned() },
    };
    let written = serde_json::to_vec(&report).is_ok_and(|text| std::io::stdout().write_all(&text).is_ok());
    if written { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn prepare(order: &Order) -> Result<(), String> {
    confine(order)?;
    super::super::init_process();
    // SAFETY: this process has one thread and has not used libgit2 yet; the setters only store numbers.
    let set = unsafe {
        git2::opts::set_mwindow_size(WINDOW_BYTES)
            .and_then(|()| git2::opts::set_mwindow_mapped_limit(MAPPED_BYTES))
            .and_then(|()| git2::opts::set_cache_max_size(CACHE_BYTES))
    };
    set.map_err(|error| error.message().to_owned())
}

fn oid(id: &CommitId) -> Result<Oid, Stop> {
    Oid::from_str(id.as_str())
        .map_err(|_| Stop::Rejected(PackFault::Malformed, "the repository's object format is not known".to_owned()))
}

fn open(objects: &[&Path]) -> Result<Odb<'static>, Stop> {
    let odb = Odb::new()?;
    for path in objects {
        odb.add_disk_alternate(&path.to_string_lossy())?;
    }
    Ok(odb)
}

/// What comes of an order and of the pack that is read for it.
pub(super) fn check(order: &Order, pack: &mut impl Read) -> Report {
    import(order, pack).unwrap_or_else(|stop| match stop {
        Stop::Rejected(fault, detail) => Report::Rejected { fault, detail },
        Stop::Failed(error) => Report::Failed { detail: error.message().to_owned() },
    })
}

fn import(order: &Order, pack: &mut impl Read) -> Result<Report, Stop> {
    let (base, tip) = (oid(&order.base)?, oid(&order.tip)?);
    let objects = order.repo.join("objects");
    let trusted = open(&[&objects])?;
    let pack = index(order, &trusted, pack)?;
    let all = open(&[&objects, &order.quarantine])?;
    let repo = Repository::from_odb(open(&[&objects, &order.quarantine])?)?;
    check_objects(order, &repo, &all)?;
    let walked = walk(&repo, &all, base, tip, &order.rules)?;
    if walked.unchanged {
        return Ok(Report::Unchanged);
    }
    let tree = super::super::commit_id(walked.tree);
    Ok(Report::Accepted { tree, files_changed: walked.files_changed, pack })
}

/// Looks at the kind, the size and the references of every object that came, also of those that no commit refers to:
/// libgit2's indexer lets an object through whose kind does not exist.
fn check_objects(order: &Order, repo: &Repository, all: &Odb<'_>) -> Result<(), Stop> {
    let odd = || Stop::Rejected(PackFault::Malformed, "its pack holds an object that is none".to_owned());
    let quarantine = open(&[&order.quarantine])?;
    let mut ids = Vec::new();
    quarantine.foreach(|id| {
        ids.push(*id);
        true
    })?;
    for id in ids {
        // git2 panics at a kind that it does not know; nothing of the child is used after that but this answer.
        let header = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| quarantine.read_header(id)));
        let (size, kind) = header.map_err(|_| odd())?.map_err(|_| odd())?;
        let known = matches!(kind, ObjectType::Commit | ObjectType::Tree | ObjectType::Blob | ObjectType::Tag);
        if !known || size as u64 > order.rules.limits.total_bytes.max(order.rules.limits.file_bytes) {
            return Err(odd());
        }
        check_references(repo, all, id, kind)?;
    }
    Ok(())
}

/// Looks for everything that an object refers to, also of those that no commit refers to. Not left to libgit2's indexer:
/// it looks for the commits of submodules too, which are in other repositories.
fn check_references(repo: &Repository, all: &Odb<'_>, id: Oid, kind: ObjectType) -> Result<(), Stop> {
    let damaged = || Stop::Rejected(PackFault::Malformed, "its pack holds a damaged object".to_owned());
    let there = |id| match all.exists(id) {
        true => Ok(()),
        false => Err(Stop::Rejected(PackFault::Malformed, "an object is missing from its pack".to_owned())),
    };
    match kind {
        ObjectType::Tree => {
            let tree = repo.find_tree(id).map_err(|_| damaged())?;
            tree.iter().filter(|entry| entry.filemode_raw() != GITLINK).try_for_each(|entry| there(entry.id()))
        }
        ObjectType::Commit => {
            let commit = repo.find_commit(id).map_err(|_| damaged())?;
            there(commit.tree_id())?;
            commit.parent_ids().try_for_each(there)
        }
        ObjectType::Tag => there(repo.find_tag(id).map_err(|_| damaged())?.target_id()),
        ObjectType::Blob | ObjectType::Any => Ok(()),
    }
}

/// Reads the pack into the quarantine. Every object's hash is computed.
fn index(order: &Order, trusted: &Odb<'_>, pack: &mut impl Read) -> Result<String, Stop> {
    let too_many = std::cell::Cell::new(false);
    let malformed = |detail: &str| {
        if too_many.get() {
            Stop::Rejected(
                PackFault::TooLarge,
                format!("the pack holds more than {} objects", order.rules.limits.objects),
            )
        } else {
            let detail: String = detail.chars().filter(|c| !c.is_control()).take(200).collect();
            Stop::Rejected(PackFault::Malformed, format!("its pack is damaged: {detail}"))
        }
    };
    let mut indexer = Indexer::new(Some(trusted), &order.quarantine.join("pack"), 0o444, false)?;
    indexer.progress(|progress| {
        let within = progress.total_objects() as u64 <= order.rules.limits.objects;
        too_many.set(!within);
        within
    });
    let mut chunk = vec![0; CHUNK_BYTES];
    let mut total = 0;
    loop {
        let read = pack.read(&mut chunk).map_err(|error| malformed(&error.to_string()))?;
        if read == 0 {
            break;
        }
        total += read as u64;
        if total > order.rules.limits.pack_bytes {
            return Err(Stop::Rejected(
                PackFault::TooLarge,
                format!("the pack is larger than {} bytes", order.rules.limits.pack_bytes),
            ));
        }
        indexer.write_all(&chunk[..read]).map_err(|error| malformed(&error.to_string()))?;
    }
    indexer.commit().map_err(|error| malformed(error.message()))
}
