//! What a setup has made lies under many sandboxes: each sees it below its own changes, nobody changes it, and it stays for
//! as long as one of them is there.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use orchestra_events::SandboxId;
use orchestra_runtime::sandbox::{Sandbox, Sandboxes, SetupKey, SetupLimits, WORKSPACE_UID};
use sha2::{Digest, Sha256};

use crate::host::{Host, limits, say, spec, until};

const DISK: u64 = 256 << 20;
const NONE: SetupLimits = SetupLimits { max_bytes: 0, max_age: Duration::from_secs(1_000) };

/// A directory as a checkout leaves it: files of a commit, and a `.git`.
fn lower(host: &Host, name: &str) -> PathBuf {
    let dir = host.dir.path().join("lowers").join(name);
    for (path, text) in [
        ("README.md", name),
        ("src/lib.rs", "fn main() {}\n"),
        ("src/deep/mod.rs", "mod\n"),
        (".git/HEAD", "ref: refs/heads/work\n"),
        (".git/info/exclude", "# ours\n"),
    ] {
        fs::create_dir_all(dir.join(path).parent().unwrap()).unwrap();
        fs::write(dir.join(path), text).unwrap();
    }
    for path in ["", "README.md", "src", "src/lib.rs", "src/deep", "src/deep/mod.rs", ".git", ".git/HEAD", ".git/info"]
    {
        chown(dir.join(path), Some(WORKSPACE_UID), Some(WORKSPACE_UID)).unwrap();
    }
    dir
}

/// A sandbox's disk over these files.
async fn task(host: &Host, lower: &Path) -> SandboxId {
    let id = host.id();
    host.sandboxes.create_volume(id, DISK).await.unwrap().lay("", lower).await.unwrap();
    id
}

/// Runs the script as a setup over the files of `like`, and keeps what it makes.
async fn make(host: &Host, like: SandboxId, key: &SetupKey, script: &str, excluded: &[&str]) {
    let id = host.id();
    host.sandboxes.create_setup(id, like, DISK).await.unwrap();
    let sandbox = host.start(id).await;
    say(&sandbox, script).await;
    let excluded = excluded.iter().map(|&pattern| pattern.to_owned()).collect();
    host.sandboxes.keep_setup(id, key, BTreeMap::from([(String::new(), excluded)])).await.unwrap();
    assert!(!host.dir_of(id).exists());
}

fn image(host: &Host, key: &SetupKey) -> PathBuf {
    host.dir.path().join("setups").join(key.to_string()).join("volume.ext4")
}

fn digest(path: &Path) -> Vec<u8> {
    Sha256::digest(fs::read(path).unwrap()).to_vec()
}

async fn over(host: &Host, lower: &Path, key: &SetupKey) -> (SandboxId, Arc<dyn Sandbox>) {
    let id = task(host, lower).await;
    assert!(host.sandboxes.use_setup(id, key).await.unwrap());
    (id, host.start(id).await)
}

const MAKE: &str = "mkdir -p deps/a src/gen ~/.cache; echo a > deps/a/file; chmod 700 deps/a; ln -s a deps/link; \
    echo gen > src/gen/x; echo warm > ~/.cache/x; mkdir /var/tmp/made; \
    echo changed >> README.md; rm src/lib.rs; rm -rf src/deep; mkdir src/deep; echo other > src/deep/other; mv src/gen src/moved; \
    echo broken > .git/HEAD; touch .git/index.lock; echo '*' > .git/info/exclude; (while :; do date >> late; done) & sleep 0.1";

#[tokio::test]
async fn it_adds_and_takes_nothing_away() {
    let host = Host::new();
    let lower = lower(&host, "one");
    let key = SetupKey::of(b"one");
    let first = task(&host, &lower).await;
    assert!(!host.sandboxes.use_setup(first, &key).await.unwrap(), "there is none yet");
    make(&host, first, &key, MAKE, &["/late", "/deps/"]).await;
    assert_eq!(fs::metadata(image(&host, &key)).unwrap().permissions().mode() & 0o777, 0o400);
    let before = digest(&image(&host, &key));

    assert!(host.sandboxes.use_setup(first, &key).await.unwrap());
    let one = host.start(first).await;
    let (second, two) = over(&host, &lower, &key).await;
    for sandbox in [&one, &two] {
        assert_eq!(
            say(
                sandbox,
                "cat deps/link/file src/moved/x ~/.cache/x README.md; ls -d /var/tmp/made; stat -c %a:%u deps/a"
            )
            .await,
            "a\ngen\nwarm\none/var/tmp/made\n700:1000\n"
        );
        // What it removed or replaced is the commit's still.
        assert_eq!(
            say(sandbox, "ls src src/deep; cat src/lib.rs").await.replace('\n', " "),
            "src: deep lib.rs moved  src/deep: mod.rs other fn main() {} "
        );
        assert_eq!(
            say(sandbox, "cat .git/HEAD; ls .git; cat .git/info/exclude").await,
            "ref: refs/heads/work\nHEAD\ninfo\n# ours\n\n# Made by the setup script.\n/late\n/deps/\n"
        );
        assert_eq!(say(sandbox, "grep -h . /proc/[0-9]*/comm | grep -c date").await, "0\n");
    }
    // Each changes it for itself alone, folders that are made of both included; one can be moved as one.
    let moved = say(&two, "python3 -c 'import os; os.rename(\"/home/agent/.cache\", \"/home/agent/c\"); os.rename(\"/home/agent/c\", \"/home/agent/.cache\")' && echo moved").await;
    assert_eq!(moved, "moved\n");
    say(&one, "rm -rf deps/a; mv src source; echo mine > source/moved/x; echo x >> ~/.cache/x; rm -r /var/tmp/made")
        .await;
    assert_eq!(
        say(&one, "ls deps source source/deep; cat source/moved/x ~/.cache/x; ls /var/tmp").await.replace('\n', " "),
        "deps: link  source: deep lib.rs moved  source/deep: mod.rs other mine warm x "
    );
    assert_eq!(say(&two, "cat deps/a/file src/moved/x ~/.cache/x; ls /var/tmp").await, "a\ngen\nwarm\nmade\n");
    // A sandbox that died is started over the same.
    two.kill().await.unwrap();
    until("its helper is gone", || !host.dir_of(second).join("init.sock").exists()).await;
    let two = host.restarted().start(&spec(second, limits())).await.unwrap();
    assert_eq!(say(&two, "cat deps/a/file; echo more > deps/a/more; ls deps/a").await, "a\nfile\nmore\n");
    assert_eq!(digest(&image(&host, &key)), before, "nobody writes to it");
}

#[tokio::test]
async fn it_stays_for_as_long_as_somebody_lies_on_it() {
    let host = Host::new();
    let lower = lower(&host, "one");
    let (key, other) = (SetupKey::of(b"one"), SetupKey::of(b"two"));
    let first = task(&host, &lower).await;
    for key in [&key, &other] {
        make(&host, first, key, "echo dep > dep", &[]).await;
    }
    // With one that is recorded, and has not been started.
    assert!(host.sandboxes.use_setup(first, &key).await.unwrap());
    assert_eq!(host.sandboxes.trim_setups(NONE).await.unwrap(), 1);
    assert!(image(&host, &key).exists() && !image(&host, &other).exists());
    // A record that cannot be read could name any.
    let torn = host.id();
    host.sandboxes.create_volume(torn, DISK).await.unwrap();
    fs::write(host.dir_of(torn).join("setup.json"), "{").unwrap();
    let sandbox = host.start(first).await;
    host.sandboxes.destroy(first).await.unwrap();
    assert!(host.sandboxes.trim_setups(NONE).await.is_err());
    assert!(image(&host, &key).exists());
    assert!(host.sandboxes.start(&spec(torn, limits())).await.is_err(), "it would lack what it was made with");
    host.sandboxes.destroy(torn).await.unwrap();
    drop(sandbox);
    assert_eq!(host.restarted().trim_setups(NONE).await.unwrap(), 1);
    assert!(!image(&host, &key).exists());
    let late = task(&host, &lower).await;
    assert!(!host.sandboxes.use_setup(late, &key).await.unwrap());
    // Age is a bound of its own.
    make(&host, late, &key, "true", &[]).await;
    let wide = SetupLimits { max_bytes: 1 << 40, max_age: Duration::from_secs(1_000) };
    assert_eq!(host.sandboxes.trim_setups(wide).await.unwrap(), 0);
    assert_eq!(host.sandboxes.trim_setups(SetupLimits { max_age: Duration::ZERO, ..wide }).await.unwrap(), 1);
}

#[tokio::test]
async fn no_agents_disk_becomes_one_and_the_first_of_two_stays() {
    let host = Host::new();
    let lower = lower(&host, "one");
    let key = SetupKey::of(b"one");
    let id = task(&host, &lower).await;
    let sandbox = host.start(id).await;
    say(&sandbox, "echo poison > dep").await;
    let refused = host.sandboxes.keep_setup(id, &key, BTreeMap::new()).await.unwrap_err();
    let source = std::error::Error::source(&refused).map(ToString::to_string).unwrap_or_default();
    assert!(source.contains("not begun as a setup"), "{refused}: {source}");
    let clean = task(&host, &lower).await;
    assert!(!host.sandboxes.use_setup(clean, &key).await.unwrap());
    // One that lies on a setup is no maker either.
    make(&host, clean, &key, "echo first > dep", &[]).await;
    assert!(host.sandboxes.use_setup(clean, &key).await.unwrap());
    assert!(host.sandboxes.keep_setup(clean, &SetupKey::of(b"two"), BTreeMap::new()).await.is_err());
    // Who is first with a key has it.
    make(&host, id, &key, "echo second > dep", &[]).await;
    let (_, sandbox) = over(&host, &lower, &key).await;
    assert_eq!(say(&sandbox, "cat dep").await, "first\n");
}

#[tokio::test]
async fn one_that_is_not_whole_is_not_used_and_gives_way() {
    let host = Host::new();
    let lower = lower(&host, "one");
    let key = SetupKey::of(b"one");
    let first = task(&host, &lower).await;
    let place = image(&host, &key).parent().unwrap().to_owned();
    fs::create_dir_all(&place).unwrap();
    fs::write(place.join("volume.ext4"), "half").unwrap();
    assert!(!host.sandboxes.use_setup(first, &key).await.unwrap());
    make(&host, first, &key, "echo whole > dep", &[]).await;
    let (_, sandbox) = over(&host, &lower, &key).await;
    assert_eq!(say(&sandbox, "cat dep").await, "whole\n");
}

#[tokio::test]
async fn a_use_costs_a_mount() {
    let host = Host::new();
    let lower = lower(&host, "one");
    let key = SetupKey::of(b"one");
    let first = task(&host, &lower).await;
    make(
        &host,
        first,
        &key,
        "mkdir deps; for i in $(seq 2000); do echo $i > deps/$i; done; dd if=/dev/zero of=big bs=1M count=64",
        &["/deps/", "/big"],
    )
    .await;
    let mut times = Vec::new();
    for with in [false, true, false, true, false, true] {
        let id = task(&host, &lower).await;
        let begun = std::time::Instant::now();
        if with {
            assert!(host.sandboxes.use_setup(id, &key).await.unwrap());
        }
        let put = begun.elapsed();
        let sandbox = host.start(id).await;
        let started = begun.elapsed();
        assert_eq!(say(&sandbox, "ls deps 2>/dev/null | wc -l").await, if with { "2000\n" } else { "0\n" });
        times.push((with, put, started));
        // Its own disk has no copy.
        assert!(sandbox.usage().await.unwrap().disk_used_bytes < 8 << 20);
        host.sandboxes.destroy(id).await.unwrap();
    }
    println!("with a setup, put under, started: {times:?}");
    let most = |with: bool| times.iter().filter(|time| time.0 == with).map(|time| time.1).max().unwrap();
    assert!(most(true) < Duration::from_secs(1), "{times:?}");
}
