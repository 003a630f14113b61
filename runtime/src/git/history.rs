//! Tells libgit2 where a shortened history ends, so that it walks one without asking for what is not there.
//!
//! git notes the last commits of a shallow clone in the file `shallow`. libgit2 honours it when it looks a commit up, but
//! not when it walks (`git_commit_list_parse` in its commit_list.c, 1.9.7): a push or a fetch from such a repository ends at
//! the first missing parent. Where there is a commit-graph file, though, the walk reads parents from it first. So the last
//! commits are written into one, with no parents. The format is gitformat-commit-graph(5), version 1.

use std::fs;
use std::io;

use git2::{Oid, Repository};

/// More ends than any shortened history has: each is a commit at its lower edge. Beyond, the rest is simply not told.
const MAX_ENDS: usize = 100_000;
/// The header and a table of four rows.
const HEAD_BYTES: u64 = 8 + 4 * 12;
/// What stands in the place of a parent that does not exist.
const NO_PARENT: u32 = 0x7000_0000;
/// Seconds fit into so many bits; the generation number above them stays 0, "not computed".
const TIME_BITS: u32 = 34;

/// Writes the ends of `repo`'s history where its walks look for them. The repository has to be opened anew to see it.
pub(super) fn mark_ends(repo: &Repository) -> io::Result<()> {
    let graph = repo.path().join("objects/info/commit-graph");
    let ends = ends(repo)?;
    if ends.is_empty() {
        return match fs::remove_file(graph) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        };
    }
    // It is for libgit2 alone. git would take an end that is none after a deepening fetch at its word.
    repo.config().and_then(|mut config| config.set_bool("core.commitGraph", false)).map_err(io::Error::other)?;
    fs::create_dir_all(repo.path().join("objects/info"))?;
    // Never in place: another thread may have the old file mapped.
    let partial = graph.with_extension(uuid::Uuid::now_v7().simple().to_string());
    fs::write(&partial, commit_graph(&ends))?;
    fs::rename(partial, graph)
}

/// A last commit: its id, its tree's, and its time in seconds.
type End = (Oid, Oid, u64);

fn ends(repo: &Repository) -> io::Result<Vec<End>> {
    let text = match fs::read_to_string(repo.path().join("shallow")) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        text => text?,
    };
    let ids = text.lines().take(MAX_ENDS).filter_map(|line| Oid::from_str(line.trim()).ok());
    let commits = ids.filter_map(|id| repo.find_commit(id).ok());
    let mut ends: Vec<End> = commits
        .map(|commit| (commit.id(), commit.tree_id(), u64::try_from(commit.time().seconds()).unwrap_or(0)))
        .collect();
    ends.sort_by_key(|end| end.0);
    ends.dedup_by_key(|end| end.0);
    Ok(ends)
}

fn commit_graph(ends: &[End]) -> Vec<u8> {
    let count = ends.len() as u64;
    let mut file = b"CGPH\x01\x01\x03\x00".to_vec();
    let fanout = HEAD_BYTES;
    let lookup = fanout + 256 * 4;
    let commits = lookup + count * 20;
    let trailer = commits + count * 36;
    for (chunk, at) in [(b"OIDF", fanout), (b"OIDL", lookup), (b"CDAT", commits), (&[0; 4], trailer)] {
        file.extend_from_slice(chunk);
        file.extend_from_slice(&at.to_be_bytes());
    }
    for first in 0..=u8::MAX {
        let up_to = ends.partition_point(|(id, ..)| id.as_bytes()[0] <= first);
        file.extend_from_slice(&u32::try_from(up_to).unwrap_or(u32::MAX).to_be_bytes());
    }
    for (id, ..) in ends {
        file.extend_from_slice(id.as_bytes());
    }
    for (_, tree, seconds) in ends {
        file.extend_from_slice(tree.as_bytes());
        file.extend_from_slice(&NO_PARENT.to_be_bytes());
        file.extend_from_slice(&NO_PARENT.to_be_bytes());
        file.extend_from_slice(&(seconds & ((1 << TIME_BITS) - 1)).to_be_bytes());
    }
    // The checksum, which libgit2 does not compare.
    file.extend_from_slice(&[0; 20]);
    file
}
