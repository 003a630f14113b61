//! Many sandboxes on the same files: each sees its own changes, and nobody changes the files.

use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};

use orchestra_runtime::image::ImageStore;
use orchestra_runtime::sandbox::{Sandboxes, WORKSPACE_UID};

use crate::host::{Host, images, limits, say, spec};

const DISK: u64 = 256 << 20;

/// A directory as a checkout leaves it.
fn lower(host: &Host, name: &str) -> PathBuf {
    let dir = host.dir.path().join("lowers").join(name);
    fs::create_dir_all(dir.join("src")).unwrap();
    fs::write(dir.join("README.md"), format!("{name}\n")).unwrap();
    fs::write(dir.join("src/lib.rs"), "fn main() {}\n").unwrap();
    for path in [&dir, &dir.join("src"), &dir.join("README.md"), &dir.join("src/lib.rs")] {
        chown(path, Some(WORKSPACE_UID), Some(WORKSPACE_UID)).unwrap();
    }
    dir
}

/// Every path below, with its kind, owner, mode, time and content.
fn contents(dir: &Path) -> Vec<(PathBuf, u32, u32, i64, Vec<u8>)> {
    let mut found = Vec::new();
    let mut pending = vec![dir.to_owned()];
    while let Some(path) = pending.pop() {
        let meta = fs::symlink_metadata(&path).unwrap();
        let content = if meta.is_file() { fs::read(&path).unwrap() } else { Vec::new() };
        if meta.is_dir() {
            pending.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        }
        found.push((path, meta.mode(), meta.uid(), meta.mtime_nsec(), content));
    }
    found.sort();
    found
}

const VANDAL: &str = "cd /workspace; rm -rf src; echo x >> README.md; chmod 600 README.md; mv README.md other; \
    mkdir -p src/deep; ln -s /etc/passwd link; ln other hard; echo y > hard; touch -d 2001-01-01 other; echo done";

#[tokio::test]
async fn two_sandboxes_share_files_and_neither_changes_them() {
    let host = Host::new();
    let lower = lower(&host, "one");
    let before = contents(&lower);
    let (first, second) = (host.id(), host.id());
    for id in [first, second] {
        host.sandboxes.create_volume(id, DISK).await.unwrap().lay("", &lower).await.unwrap();
    }
    let (one, two) = (host.start(first).await, host.start(second).await);
    assert_eq!(
        say(&one, "cat README.md; ls; stat -c %u:%g . src README.md").await,
        "one\nREADME.md\nsrc\n1000:1000\n1000:1000\n1000:1000\n"
    );
    assert_eq!(say(&one, VANDAL).await, "done\n");
    assert_eq!(say(&one, "ls; cat other; ls src").await, "hard\nlink\nother\nsrc\ny\ndeep\n");
    assert_eq!(say(&two, "cat README.md src/lib.rs").await, "one\nfn main() {}\n");
    assert_eq!(contents(&lower), before);

    // Both say that they need it and their image, also to a server that has just been started; the record goes with the sandbox.
    let image = ImageStore::new(images()).resolve("default").unwrap();
    let needed = HashSet::from([lower.clone(), image]);
    assert_eq!(host.restarted().lowers().await.unwrap(), needed);
    host.sandboxes.destroy(first).await.unwrap();
    assert_eq!(host.sandboxes.lowers().await.unwrap(), needed);
    host.sandboxes.destroy(second).await.unwrap();
    assert_eq!(host.sandboxes.lowers().await.unwrap(), HashSet::new());
    assert_eq!(contents(&lower), before);
}

#[tokio::test]
async fn a_sandbox_that_is_started_again_has_its_changes_over_the_same_files() {
    let host = Host::new();
    let lower = lower(&host, "one");
    let id = host.id();
    host.sandboxes.create_volume(id, DISK).await.unwrap().lay("", &lower).await.unwrap();
    let sandbox = host.start(id).await;
    say(&sandbox, "echo two >> README.md; mv src source; rm source/lib.rs; touch source/new").await;
    sandbox.kill().await.unwrap();
    crate::host::until("its helper is gone", || !host.dir_of(id).join("init.sock").exists()).await;

    let again = host.restarted().start(&spec(id, limits())).await.unwrap();
    assert_eq!(say(&again, "cat README.md; ls . source").await, "one\ntwo\n.:\nREADME.md\nsource\n\nsource:\nnew\n");
    // And one that only attaches sees what the other does.
    let attached = host.sandboxes.attach(id).await.unwrap().unwrap();
    say(&attached, "rm README.md").await;
    assert_eq!(say(&again, "ls").await, "source\n");
}

#[tokio::test]
async fn each_repository_of_a_task_has_a_folder() {
    let host = Host::new();
    let (api, web) = (lower(&host, "api"), lower(&host, "web"));
    let before = (contents(&api), contents(&web));
    let id = host.id();
    let volume = host.sandboxes.create_volume(id, DISK).await.unwrap();
    volume.lay("api", &api).await.unwrap();
    volume.lay("web", &web).await.unwrap();
    // The same folder again replaces what was said.
    volume.lay("web", &api).await.unwrap();
    volume.lay("web", &web).await.unwrap();
    let sandbox = host.start(id).await;
    assert_eq!(say(&sandbox, "ls; cat api/README.md web/README.md").await, "api\nweb\napi\nweb\n");
    say(&sandbox, "echo x > notes; echo x > api/x; rm -r web/src; rm -rf web; mv api elsewhere").await;
    // What is mounted keeps its name: no file of the host can come to lie somewhere else.
    assert_eq!(say(&sandbox, "ls; ls api web").await, "api\nnotes\nweb\napi:\nREADME.md\nsrc\nx\n\nweb:\n");
    assert_eq!((contents(&api), contents(&web)), before);
}

#[tokio::test]
async fn what_is_laid_under_a_work_tree_counts_against_nobodys_disk_but_changes_do() {
    let host = Host::new();
    let lower = lower(&host, "large");
    fs::write(lower.join("large"), vec![7; 100 << 20]).unwrap();
    chown(lower.join("large"), Some(WORKSPACE_UID), Some(WORKSPACE_UID)).unwrap();
    let id = host.id();
    let small = 64 << 20;
    host.sandboxes.create_volume(id, small).await.unwrap().lay("", &lower).await.unwrap();
    let sandbox = host.start_with(id, orchestra_runtime::sandbox::Limits { disk_bytes: small, ..limits() }).await;
    assert_eq!(say(&sandbox, "stat -c %s large; echo x > new && cat new").await, "104857600\nx\n");
    assert!(sandbox.usage().await.unwrap().disk_used_bytes < 16 << 20);
    let full = say(&sandbox, "echo x >> large").await;
    assert!(full.contains("No space left on device"), "{full}");
    assert_eq!(fs::metadata(lower.join("large")).unwrap().len(), 100 << 20);
}

#[tokio::test]
async fn only_plain_folders_and_real_directories_are_laid() {
    let host = Host::new();
    let lower = lower(&host, "one");
    let volume = host.sandboxes.create_volume(host.id(), DISK).await.unwrap();
    for name in ["..", ".", "a/b", "/etc", ".git", "a/", "a\nb", &"x".repeat(254)] {
        assert!(volume.lay(name, &lower).await.is_err(), "{name:?}");
    }
    assert!(volume.lay("x", Path::new("relative")).await.is_err());
    assert!(volume.lay("x", &lower.join("README.md")).await.is_err());
    assert!(volume.lay("x", &host.dir.path().join("missing")).await.is_err());
    assert_eq!(host.sandboxes.lowers().await.unwrap(), HashSet::new());
    volume.lay(".github", &lower).await.unwrap();
    assert!(volume.lay("", &lower).await.is_err(), "the work tree would cover the folder");
    assert_eq!(host.sandboxes.lowers().await.unwrap(), HashSet::from([lower]));
}

#[tokio::test]
async fn a_record_that_cannot_be_read_is_not_taken_for_none() {
    let host = Host::new();
    let lower = lower(&host, "one");
    let id = host.id();
    host.sandboxes.create_volume(id, DISK).await.unwrap().lay("", &lower).await.unwrap();
    fs::write(host.dir_of(id).join("layers.json"), "{").unwrap();
    assert!(host.sandboxes.lowers().await.is_err());
    assert!(host.sandboxes.start(&spec(id, limits())).await.is_err(), "it would show an empty work tree");
    fs::remove_file(host.dir_of(id).join("layers.json")).unwrap();
}

#[tokio::test]
async fn a_link_in_the_place_of_a_folder_leads_nowhere() {
    let host = Host::new();
    let lower = lower(&host, "one");
    let id = host.id();
    let volume = host.sandboxes.create_volume(id, DISK).await.unwrap();
    volume.lay("api", &lower).await.unwrap();
    let outside = host.dir.path().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::set_permissions(&outside, fs::Permissions::from_mode(0o777)).unwrap();
    fs::remove_dir(volume.workspace().join("api")).unwrap();
    symlink(&outside, volume.workspace().join("api")).unwrap();
    assert!(host.sandboxes.start(&spec(id, limits())).await.is_err());
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
}

#[tokio::test]
async fn a_layer_that_comes_after_the_sandbox_is_gone_leaves_nothing_in_its_way() {
    let host = Host::new();
    let lower = lower(&host, "one");
    let id = host.id();
    let volume = host.sandboxes.create_volume(id, DISK).await.unwrap();
    let at = volume.workspace().parent().unwrap().to_owned();
    host.sandboxes.destroy(id).await.unwrap();
    // All gone, or only unmounted so far.
    for half_removed in [false, true] {
        if half_removed {
            fs::create_dir_all(&at).unwrap();
        }
        volume.lay("", &lower).await.unwrap_err();
        volume.lay("api", &lower).await.unwrap_err();
        assert_eq!(at.exists(), half_removed);
        host.sandboxes.destroy(id).await.unwrap();
        assert!(!at.parent().unwrap().exists());
    }
}

#[tokio::test]
async fn a_record_that_cannot_be_read_is_named() {
    let host = Host::new();
    let id = host.id();
    let volume = host.sandboxes.create_volume(id, DISK).await.unwrap();
    fs::write(volume.workspace().ancestors().nth(2).unwrap().join("layers.json"), "{").unwrap();
    let error = host.sandboxes.lowers().await.unwrap_err();
    let source = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
    assert!(format!("{error} {source}").contains(&format!("sandbox {id}")), "{error:?}");
}
