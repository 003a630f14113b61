//! Repositories, patterns of them, hosts and branches, as callers write them. An input is lines; each is read as everything.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::OnceLock;

use orchestra_events::key::bounds::{MAX_PATTERN, Pattern};
use orchestra_events::repo::{MAX_REPO_REF, RepoRef};
use orchestra_events::webhook::Pattern as EventPattern;
use orchestra_runtime::egress::Entry;
use orchestra_runtime::forge::{ForgeConfig, ForgeKind, Forges};
use orchestra_runtime::git::{MAX_BRANCH_BYTES, check_branch_name};
use orchestra_web::api::rules;
use tempfile::TempDir;

/// Lines of an input that are looked at, so that their pairs stay few.
const MAX_LINES: usize = 6;
/// The longest texts that the slow reading of a pattern is asked about, in bytes.
const MAX_SLOW: usize = 64;

/// Reads each line as a repository, a pattern, a host and a branch.
pub fn repo_refs(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    let lines: Vec<_> = text.split('\n').take(MAX_LINES).collect();
    for line in &lines {
        repo(line);
        branch(line);
        hosts(line);
        if let Ok(pattern) = line.parse::<EventPattern>() {
            assert_eq!(pattern.to_string().parse(), Ok(pattern));
        }
    }
    let patterns: Vec<Pattern> = lines.iter().filter_map(|line| line.parse().ok()).collect();
    for pattern in &patterns {
        assert!(pattern.as_str().len() <= MAX_PATTERN && pattern.as_str().bytes().all(|byte| byte.is_ascii_graphic()));
        assert_eq!(pattern.to_string().parse().as_ref(), Ok(pattern));
        assert!(pattern.covers(pattern));
        for name in &lines {
            if name.len() <= MAX_SLOW && pattern.as_str().len() <= MAX_SLOW {
                assert_eq!(
                    pattern.matches(name),
                    fits(pattern.as_str().as_bytes(), name.as_bytes()),
                    "{pattern} {name}"
                );
            }
            for wide in patterns.iter().filter(|wide| wide.covers(pattern)) {
                // In a name there is no star: a pattern that is taken for one may be matched by less.
                assert!(name.contains('*') || !pattern.matches(name) || wide.matches(name), "{wide} {pattern} {name}");
            }
        }
    }
}

/// The definition of a match, without any thought of speed.
fn fits(pattern: &[u8], name: &[u8]) -> bool {
    let mut reached = vec![false; name.len() + 1];
    reached[0] = true;
    for letter in pattern {
        let mut next = vec![false; name.len() + 1];
        for end in 0..=name.len() {
            next[end] = match letter {
                b'*' => reached[..=end].contains(&true),
                letter => end > 0 && reached[end - 1] && name[end - 1] == *letter,
            };
        }
        reached = next;
    }
    reached[name.len()]
}

/// Forges of each shape that a name is put into, and the folder of the local one.
struct World {
    forges: Forges,
    root: PathBuf,
    _folder: TempDir,
}

/// The address of the forge that is reached over HTTP.
const BASE: &str = "https://git.example/scm";

fn world() -> &'static World {
    static WORLD: OnceLock<World> = OnceLock::new();
    WORLD.get_or_init(|| {
        let folder = tempfile::tempdir().expect("a folder");
        let root = folder.path().join("root");
        for inside in ["root/a/b.git", "root/demo.git", "outside.git"] {
            std::fs::create_dir_all(folder.path().join(inside)).expect("a folder");
        }
        std::os::unix::fs::symlink(folder.path().join("outside.git"), root.join("way-out.git")).expect("a link");
        let root = root.canonicalize().expect("it was made");
        let plain =
            ForgeConfig { kind: ForgeKind::Plain, git_url: Some(format!("{BASE}/")), api_url: None, root: None };
        let local = ForgeConfig { kind: ForgeKind::Local, git_url: None, api_url: None, root: Some(root.clone()) };
        let forges = BTreeMap::from([("plain".to_owned(), plain), ("local".to_owned(), local)]);
        World { forges: Forges::new(forges, "plain"), root, _folder: folder }
    })
}

fn check_repo(repo: &RepoRef) {
    let text = repo.to_string();
    assert!(text.len() <= MAX_REPO_REF, "{text}");
    assert!(text.bytes().all(|byte| byte.is_ascii_graphic() && !b"\\?#@%*".contains(&byte)), "{text:?}");
    assert!(repo.path().split('/').all(|part| !matches!(part, "" | "." | "..") && !part.starts_with('-')), "{text:?}");
    // Bounds, ledgers and caches know a repository by its text: what is read back must be the same one.
    assert_eq!(RepoRef::parse(&text, "other").as_ref(), Ok(repo));
    let stored = serde_json::to_string(repo).expect("a text");
    assert_eq!(serde_json::from_str::<RepoRef>(&stored).ok().as_ref(), Some(repo), "{stored}");
}

fn repo(text: &str) {
    let World { forges, root, .. } = world();
    let read = RepoRef::parse(text, "plain");
    if let Ok(repo) = &read {
        check_repo(repo);
        assert!(text.contains("://") || text.len() > MAX_REPO_REF || rules::repo(text).is_ok(), "{text:?}");
    }
    let Ok(repo) = forges.parse(text) else { return };
    check_repo(&repo);
    let Ok(remote) = forges.remote(&repo) else { return };
    if repo.forge() == "local" {
        assert!(PathBuf::from(&remote.url).starts_with(root), "{text:?} leads to {}", remote.url);
    } else {
        let path = remote.url.strip_prefix(BASE).and_then(|rest| rest.strip_prefix('/'));
        assert_eq!(path, Some(format!("{}.git", repo.path()).as_str()), "{text:?}");
    }
}

fn hosts(text: &str) {
    let Ok(entry) = text.parse::<Entry>() else { return };
    let written = entry.to_string();
    assert!(written.bytes().all(|byte| byte.is_ascii_graphic()) && written.len() <= text.len(), "{text:?}");
    assert_eq!(written.parse().as_ref(), Ok(&entry), "{text:?}");
}

fn branch(text: &str) {
    let by_runtime = check_branch_name(text).is_ok();
    if by_runtime || rules::branch(text).is_ok() {
        assert!(git2::Reference::is_valid_name(&format!("refs/heads/{text}")), "{text:?}");
        assert!(!text.starts_with('-') && !text.chars().any(char::is_control), "{text:?}");
    }
    if by_runtime {
        assert!(text.len() <= MAX_BRANCH_BYTES && rules::branch(text).is_ok(), "{text:?}");
    }
}
