//! Work trees and packs made to hurt whoever reads them: nothing runs on the host, nothing hangs, nothing grows past its
//! bound, and what is refused says why.

use std::process::Command;
use std::time::Instant;

use super::hostile::Scene;
use super::repo::{Entry, raw_pack};
use super::*;
use orchestra_runtime::git::{ImportLimits, PackFault};

/// How long any of this may take on a busy machine. Without the bounds most of it would take for ever.
const DEADLINE: Duration = Duration::from_secs(90);

/// What a trap writes to when the host runs it: it must never be there.
fn marker(world: &World) -> PathBuf {
    world.path("executed")
}

/// A world whose workspace the agent's line has been at.
async fn trapped(line: &str) -> (World, CommitId) {
    // In memory, where there is some: a disk takes minutes to forget a hundred thousand files.
    let world = World::within(config(), repo::folder_in_memory()).await;
    let base = world.clone().await.commit;
    let workspace = world.path("workspace");
    world.git.checkout(&world.path("trusted.git"), &base, &workspace, repo::agent()).await.expect("a checkout");
    // The trap can be sprung by the agent itself; the host's would be seen.
    let executed = marker(&world);
    std::fs::write(world.path("trap"), format!("#!/bin/sh\nid -u >> {}\ncat\n", executed.display())).expect("writable");
    std::fs::set_permissions(world.path("trap"), std::os::unix::fs::PermissionsExt::from_mode(0o755))
        .expect("own file");
    let trap = world.path("trap");
    repo::as_agent(&workspace, &format!("TRAP={}; {line}", trap.display()));
    let _ = std::fs::remove_file(executed);
    (world, base)
}

#[tokio::test]
async fn whatever_an_agent_makes_of_its_git_and_tree_the_host_runs_nothing_and_waits_for_nothing() {
    for (what, line, files) in [
        (
            "insteadOf",
            "git config url.http://127.0.0.1:9/.insteadOf https://; git config url.ext::$TRAP.pushInsteadOf http; echo a > a",
            Some(1),
        ),
        (
            "hooks",
            "mkdir -p .git/hooks; for h in pre-commit post-commit post-index-change reference-transaction pre-push post-checkout; do cp $TRAP .git/hooks/$h; done; git config core.hooksPath .git/hooks; echo a > a",
            Some(1),
        ),
        (
            "filters",
            "git config filter.x.clean $TRAP; git config filter.x.smudge $TRAP; git config filter.x.process $TRAP; git config filter.x.required true; echo '* filter=x diff=x' >> .gitattributes; git config diff.x.textconv $TRAP; git config diff.x.command $TRAP; echo a > a",
            Some(2),
        ),
        (
            "fsmonitor",
            "git config core.fsmonitor $TRAP; git config core.pager $TRAP; git config core.editor $TRAP; git config core.sshCommand $TRAP; git config credential.helper $TRAP; git config gpg.program $TRAP; git config commit.gpgsign true; echo a > a",
            Some(1),
        ),
        (
            "alternates",
            "mkdir -p .git/objects/info; echo /nowhere/objects > .git/objects/info/alternates; echo ../../../../trusted.git/objects >> .git/objects/info/alternates; echo a > a",
            Some(1),
        ),
        (
            "pipes",
            "mkdir -p d .git/info; mkfifo .gitignore2 d/.gitignore d/.gitattributes d/p; rm .gitignore .gitattributes; mkfifo .gitignore .gitattributes; rm -f .git/info/exclude; mkfifo .git/info/exclude .git/info/attributes; echo a > a",
            Some(4),
        ),
        (".git elsewhere", "mv .git ../workspace/.elsewhere; ln -s .elsewhere .git; echo a > a", None),
        (".git of somebody else", "rm -rf .git; ln -s ../trusted.git .git; echo a > a", None),
        ("a .git file", "mv .git .elsewhere; echo 'gitdir: .elsewhere' > .git; echo a > a", None),
        (
            "replaced objects",
            "git config user.name x; git config user.email x; git commit -q --allow-empty -m x; git replace HEAD^ HEAD; git reset -q --hard; echo a > a",
            Some(1),
        ),
        (
            "grafts",
            "mkdir -p .git/info; git rev-parse HEAD > .git/info/grafts; git rev-parse HEAD > .git/shallow; echo a > a",
            Some(1),
        ),
        (
            "an include",
            "echo \"[include] path = $TRAP\" >> .git/config; echo '[core] bare = true' >> .git/config; echo a > a",
            Some(1),
        ),
        ("odd names", "echo a > $'a\\xff'; echo a > $'\\xc3\\xa9'; ln -s $'\\xff\\xfe' l2", Some(3)),
        (
            "a sparse index",
            "git config index.sparse true; git config core.untrackedCache true; git update-index --assume-unchanged README.md; echo more >> README.md",
            Some(1),
        ),
    ] {
        let started = Instant::now();
        let (world, base) = trapped(line).await;
        let (pack, err) = repo::in_sandbox(&world.path("workspace"), &export_script(&base, History::Keep));
        std::fs::remove_file(marker(&world)).ok();
        let trusted = world.path("trusted.git");
        let result = world.git.import(&trusted, &base, &pack[..], &rules()).await;
        match (files, result) {
            (Some(files), Ok(Some(imported))) => {
                assert_eq!(imported.files_changed, files, "{what}: {err}");
                let tip = world.commit(&trusted, &base, &imported).await;
                world.git.diff(&trusted, &base, &tip, 1 << 20).await.expect("a diff");
                world.push("orchestra/x", &tip).await.expect("a push");
                repo::git(&world.origin(), &["fsck", "--strict"]);
            }
            // Whatever comes out of these is let in or refused, by its name.
            (None, Ok(_) | Err(GitError::ExportFailed { .. } | GitError::PackRejected { .. })) => {}
            (_, other) => panic!("{what}: {other:?}: {err}"),
        }
        assert!(!marker(&world).exists(), "{what}: the host ran it");
        assert!(!trusted.join("quarantine").exists(), "{what}");
        assert!(started.elapsed() < DEADLINE, "{what}: {:?}", started.elapsed());
    }
}

#[tokio::test]
async fn deep_paths_and_many_files_have_their_bounds() {
    let small = ImportLimits { file_bytes: 1 << 20, ..ImportLimits::default() };
    for (what, line, expected) in [
        ("a hundred levels", "p=.; for i in $(seq 99); do p=$p/d; done; mkdir -p $p; echo a > $p/a", None),
        ("more levels", "p=.; for i in $(seq 120); do p=$p/d; done; mkdir -p $p; echo a > $p/a", Some(PackFault::Path)),
        ("a sparse file", "truncate -s 64M hole", Some(PackFault::FileTooLarge)),
        ("a hundred thousand files", "mkdir m; cd m; seq 100000 | split -l 1 -a 5", None),
    ] {
        let started = Instant::now();
        let (world, base) = trapped(line).await;
        let (pack, err) = repo::in_sandbox(&world.path("workspace"), &export_script(&base, History::Keep));
        let packed = started.elapsed();
        let rules = ImportRules { limits: small.clone(), ..rules() };
        let result = world.git.import(&world.path("trusted.git"), &base, &pack[..], &rules).await;
        match (expected, result) {
            (None, Ok(Some(_))) => {}
            (Some(expected), Err(GitError::PackRejected { fault, .. })) => assert_eq!(fault, expected, "{what}"),
            (_, other) => panic!("{what}: {other:?}: {err}"),
        }
        assert!(started.elapsed() < DEADLINE, "{what}: {packed:?} to pack, {:?} in all", started.elapsed());
    }
}

/// The child's limits, and a file in which it leaves its peak.
fn measured(world: &World, limits: ImportLimits) -> (Git, ImportRules, PathBuf) {
    let program = world.path("measured");
    let _ = std::fs::remove_file(&program);
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_import-child"), &program).expect("writable");
    let git = Git::new(GitConfig::new(&program));
    (git, ImportRules { limits, ..rules() }, program.with_extension("peak"))
}

/// An object's header, and a delta against the one before, at `distance` bytes (gitformat-pack(5)).
fn varint(kind: u8, mut size: u64) -> Vec<u8> {
    let mut out = vec![(kind << 4) | (size & 15) as u8];
    size >>= 4;
    while size > 0 {
        *out.last_mut().expect("one") |= 0x80;
        out.push((size & 0x7f) as u8);
        size >>= 7;
    }
    out
}

fn delta_size(mut size: u64) -> Vec<u8> {
    let mut out = Vec::new();
    while size > 0x7f {
        out.push((size & 0x7f) as u8 | 0x80);
        size >>= 7;
    }
    out.push(size as u8);
    out
}

fn offset(mut distance: u64) -> Vec<u8> {
    let mut out = vec![(distance & 0x7f) as u8];
    while distance > 0x7f {
        distance = (distance >> 7) - 1;
        out.insert(0, (distance & 0x7f) as u8 | 0x80);
    }
    out
}

/// A blob, and deltas of deltas of it: each copies the one before `times` over.
fn delta_chain(first: &[u8], links: usize, times: usize) -> Vec<u8> {
    let mut objects = vec![[varint(3, first.len() as u64), repo::deflated(first)].concat()];
    let mut size = first.len() as u64;
    for _ in 0..links {
        let distance = objects.last().expect("one").len() as u64;
        let mut delta = [delta_size(size), delta_size(size * times as u64 + 1)].concat();
        for _ in 0..times {
            // Copies of at most 0xffffff bytes.
            let mut done = 0;
            while done < size {
                let part = (size - done).min(0xff_ffff);
                delta.push(0xff);
                delta.extend_from_slice(&(done as u32).to_le_bytes());
                delta.extend_from_slice(&(part as u32).to_le_bytes()[..3]);
                done += part;
            }
        }
        // One that only copied would be the same object again.
        delta.extend([1, b'+']);
        size = size * times as u64 + 1;
        objects.push([varint(6, delta.len() as u64), offset(distance), repo::deflated(&delta)].concat());
    }
    raw_pack(&objects)
}

fn announced(tip: &str, pack: &[u8]) -> Vec<u8> {
    [format!("tip {tip}\n").as_bytes(), pack].concat()
}

#[tokio::test]
async fn packs_made_by_hand_end_in_an_answer_and_within_the_memory_they_are_given() {
    let memory = 256 << 20;
    let limits = ImportLimits { memory_bytes: memory, cpu_seconds: 5, ..ImportLimits::default() };
    let scene = Scene::new(limits.clone()).await;
    let (git, rules, peak) = measured(&scene.world, limits);
    let forge = &scene.forge;
    let nowhere = "0123456789".repeat(4);
    let whole = |kind: u8, content: &[u8]| [varint(kind, content.len() as u64), repo::deflated(content)].concat();
    let tree = forge.tree(&[Entry("100644", b"a", forge.blob(b"x\n"))]);
    let commit =
        format!("tree {tree}\nparent {}\nauthor a <a@a> 0 +0000\ncommitter a <a@a> 0 +0000\n\nx\n", scene.base);
    let tip = forge.object("commit", commit.as_bytes());
    let raw_tree = repo::git_with(&forge.path(), &["cat-file", "tree", &tree], b"");
    let honest = [whole(1, commit.as_bytes()), whole(2, &raw_tree), whole(3, b"x\n")];
    let long_message = format!("{}{}", commit, "y".repeat(10 << 20));
    let long_tip = forge.object("commit", long_message.as_bytes());
    let doubled = [honest.as_slice(), &honest].concat();
    let mut wide = Vec::new();
    for n in 0..200_000 {
        wide.extend_from_slice(format!("100644 {n:06}\0").as_bytes());
        wide.extend_from_slice(&[7; 20]);
    }
    for (what, pack) in [
        ("zeros", announced(&nowhere, &raw_pack(&[[varint(3, 2 << 30), repo::deflated_zeros(2 << 30)].concat()]))),
        ("a delta that doubles and doubles", announced(&nowhere, &delta_chain(&vec![b'x'; 1 << 20], 12, 2))),
        ("deltas of deltas", announced(&nowhere, &delta_chain(b"0123456789abcdef", 3_000, 1))),
        ("objects twice", announced(&tip, &raw_pack(&doubled))),
        ("an object less", announced(&tip, &raw_pack(&honest[..2]))),
        (
            "a message of 10 MB",
            announced(&long_tip, &raw_pack(&[whole(1, long_message.as_bytes()), honest[1].clone(), honest[2].clone()])),
        ),
        ("a tree of nothing", announced(&nowhere, &raw_pack(&[whole(2, &wide)]))),
        (
            "a header that lies",
            announced(&nowhere, &raw_pack(&[[varint(3, u64::MAX >> 8), repo::deflated(b"x")].concat()])),
        ),
        (
            "a delta without a base",
            announced(&nowhere, &raw_pack(&[[varint(7, 4), vec![9; 20], repo::deflated(b"\x01\x01\x01x")].concat()])),
        ),
        (
            "a delta before the pack",
            announced(&nowhere, &raw_pack(&[[varint(6, 4), offset(5000), repo::deflated(b"\x01\x01\x01x")].concat()])),
        ),
        ("an object of no kind", announced(&nowhere, &raw_pack(&[whole(5, b"x")]))),
        (
            "an object of no kind among honest ones",
            announced(&tip, &raw_pack(&[honest.as_slice(), &[whole(5, b"x")]].concat())),
        ),
        (
            "a lie among honest objects",
            announced(
                &tip,
                &raw_pack(&[honest.as_slice(), &[[varint(3, 1 << 40), repo::deflated(b"x")].concat()]].concat()),
            ),
        ),
        ("no objects", announced(&nowhere, &raw_pack(&[]))),
    ] {
        let started = Instant::now();
        let _ = std::fs::remove_file(&peak);
        let result = git.import(&scene.world.path("trusted.git"), &scene.base, &pack[..], &rules).await;
        let kib: u64 = std::fs::read_to_string(&peak).expect("the child was measured").trim().parse().expect("KiB");
        println!("{what}: {result:?}, peak {} MiB, {:?}", kib >> 10, started.elapsed());
        match result {
            Err(GitError::PackRejected { .. }) => {}
            // Sent twice is sent.
            Ok(Some(_)) if what == "objects twice" => {}
            other => panic!("{what}: {other:?}"),
        }
        assert!(kib << 10 <= memory, "{what}: {kib} KiB");
        assert!(started.elapsed() < DEADLINE, "{what}: {:?}", started.elapsed());
        assert!(!scene.world.path("trusted.git/quarantine").exists(), "{what}");
    }
    let imported = scene.import(&announced(&tip, &raw_pack(&honest))).await;
    assert!(imported.expect("an honest pack").is_some());
}

#[tokio::test]
async fn a_hundred_thousand_commits_are_counted_and_refused() {
    let scene = Scene::new(ImportLimits::default()).await;
    let base = &scene.base;
    let mut stream = String::new();
    for n in 0..100_000 {
        let from = if n == 0 { format!("from {base}\n") } else { String::new() };
        stream.push_str(&format!(
            "commit refs/heads/long\ncommitter a <a@a> {n} +0000\ndata 1\nx\n{from}M 644 inline a\ndata 1\n{}\n",
            n % 2
        ));
    }
    repo::git_with(&scene.forge.path(), &["fast-import", "--quiet"], stream.as_bytes());
    let started = Instant::now();
    let pack = scene.forge.export(&repo::git(&scene.forge.path(), &["rev-parse", "long"]));
    let (fault, detail) = scene.refusal("many commits", &pack).await;
    assert_eq!(fault, PackFault::Ancestry);
    assert!(detail.contains("1000 commits"), "{detail}");
    assert!(started.elapsed() < DEADLINE, "{:?}", started.elapsed());
    // As many as may be are let in.
    let thousand = repo::git(&scene.forge.path(), &["rev-parse", "long~99000"]);
    let imported = scene.import(&scene.forge.export(&thousand)).await.expect("a thousand").expect("a change");
    let made = scene.world.git.commit(&scene.world.path("trusted.git"), base, &imported, &policy(History::Keep)).await;
    assert_eq!(made.expect("commits").len(), 1_000);
}

#[tokio::test]
async fn an_endless_stream_grows_nothing_on_the_host() {
    let limits = ImportLimits { pack_bytes: 64 << 20, ..ImportLimits::default() };
    let scene = Scene::new(limits).await;
    // A pack that announces one large object of data that does not compress, and never ends.
    let mut start = format!("tip {}\n", "0123456789".repeat(4)).into_bytes();
    start.extend(b"PACK\0\0\0\x02\0\0\0\x01");
    start.extend(varint(3, 1 << 40));
    start.extend([0x78, 0x01]);
    let stored = [&[0_u8, 0xff, 0xff, 0, 0][..], &[b'z'; 0xffff]].concat();
    let stored = std::sync::Arc::new(stored);
    let endless =
        futures_util::stream::iter(std::iter::once(start).chain(std::iter::repeat_with(move || stored.to_vec())));
    let endless = futures_util::StreamExt::map(endless, Ok::<_, std::io::Error>);
    let reader =
        tokio_util::io::StreamReader::new(futures_util::StreamExt::map(endless, |part| part.map(bytes::Bytes::from)));
    let started = Instant::now();
    let result = scene.world.git.import(&scene.world.path("trusted.git"), &scene.base, reader, &scene.rules).await;
    assert!(matches!(result, Err(GitError::PackRejected { .. })), "{result:?}");
    assert!(started.elapsed() < DEADLINE, "{:?}", started.elapsed());
}

/// `/proc/PID` of the child that imports into this folder.
fn child_of(folder: &Path) -> Option<PathBuf> {
    let wanted = folder.to_string_lossy().into_owned();
    let processes = std::fs::read_dir("/proc").expect("procfs").flatten().map(|entry| entry.path());
    processes.into_iter().find(|process| {
        let line = std::fs::read(process.join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line);
        line.contains("__import-pack") && line.contains(&wanted)
    })
}

#[tokio::test]
async fn the_child_has_nothing_that_it_does_not_need() {
    let scene = Scene::new(ImportLimits { memory_bytes: 300 << 20, ..ImportLimits::default() }).await;
    let trusted = scene.world.path("trusted.git");
    let (mut sandbox, host) = tokio::io::duplex(1024);
    let header = format!("tip {}\nPACK", "0123456789".repeat(4));
    tokio::io::AsyncWriteExt::write_all(&mut sandbox, header.as_bytes()).await.expect("room");
    let look = async {
        let asleep = |process: &PathBuf| {
            std::fs::read_to_string(process.join("status")).is_ok_and(|text| text.contains("NoNewPrivs:\t1"))
        };
        let process = loop {
            if let Some(process) = child_of(&trusted).filter(asleep) {
                // Confined as soon as the quarantine has its first file: the indexer's.
                let quarantine = std::fs::read_link(process.join("cwd")).expect("its folder");
                if std::fs::read_dir(quarantine.join("pack")).is_ok_and(|mut files| files.next().is_some()) {
                    break process;
                }
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        };
        let status = std::fs::read_to_string(process.join("status")).expect("status");
        for none in ["CapEff:", "CapPrm:", "CapBnd:", "CapInh:"] {
            let line = status.lines().find(|line| line.starts_with(none)).expect("a line");
            assert!(line.ends_with("0000000000000000") || !nix::unistd::getuid().is_root(), "{line}");
        }
        let limits = std::fs::read_to_string(process.join("limits")).expect("limits");
        let limit = |name: &str| limits.lines().find(|line| line.starts_with(name)).expect("a line").to_owned();
        assert!(limit("Max address space").contains(&(300_u64 << 20).to_string()), "{limits}");
        assert!(limit("Max cpu time").contains("120") && limit("Max processes").contains(" 0 "), "{limits}");
        assert_eq!(std::fs::read(process.join("environ")).expect("own child"), b"");
        if nix::unistd::getuid().is_root() {
            let net = |process: &Path| std::fs::read_link(process.join("ns/net")).expect("a namespace");
            assert_ne!(net(&process), net(Path::new("/proc/self")));
        }
        for file in std::fs::read_dir(process.join("fd")).expect("descriptors").flatten() {
            let target = std::fs::read_link(file.path()).unwrap_or_default();
            let number: u32 = file.file_name().to_string_lossy().parse().expect("a number");
            assert!(number < 3 || target.starts_with(&trusted), "{number} is {}", target.display());
        }
        drop(sandbox);
    };
    let import = scene.world.git.import(&trusted, &scene.base, host, &scene.rules);
    let (result, ()) = tokio::time::timeout(DEADLINE, async { tokio::join!(import, look) }).await.expect("in time");
    assert!(matches!(result, Err(GitError::PackRejected { fault: PackFault::Malformed, .. })), "{result:?}");
}

#[tokio::test]
async fn the_child_reads_no_file_beside_the_repository() {
    // Landlock, where the kernel has it.
    // SAFETY: with this flag and no attributes the call only tells the version.
    if unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, std::ptr::null::<u8>(), 0_usize, 1_u64) } < 1 {
        println!("this kernel has no Landlock");
        return;
    }
    let scene = Scene::new(ImportLimits::default()).await;
    let forge = &scene.forge;
    let pack = forge.export_tree(&[Entry("100644", b"a", forge.blob(b"x\n"))]);
    // The base's objects are moved out of the repository, with links in their place: as if the child were made to follow
    // one to somebody else's.
    let (folder, outside) = (scene.world.path("trusted.git/objects/pack"), scene.world.path("outside"));
    std::fs::create_dir(&outside).expect("writable");
    for file in std::fs::read_dir(&folder).expect("packs").flatten() {
        let target = outside.join(file.file_name());
        std::fs::rename(file.path(), &target).expect("writable");
        std::os::unix::fs::symlink(&target, file.path()).expect("writable");
    }
    assert!(scene.import(&pack).await.is_err(), "it followed a link out of the repository");
    // An alternate that the host itself wrote is a part of the repository.
    let alternates = scene.world.path("trusted.git/objects/info");
    std::fs::create_dir_all(&alternates).expect("writable");
    for file in std::fs::read_dir(&folder).expect("packs").flatten() {
        std::fs::remove_file(file.path()).expect("writable");
    }
    std::fs::create_dir_all(outside.join("pack")).expect("writable");
    Command::new("bash").args(["-ec", "mv *.* pack/"]).current_dir(&outside).status().expect("bash");
    std::fs::write(alternates.join("alternates"), format!("{}\n", outside.display())).expect("writable");
    let imported = scene.import(&pack).await;
    assert!(imported.as_ref().is_ok_and(Option::is_some), "{imported:?}");
}
