//! A sandbox holds its image, whoever has started it and whatever becomes of its helper. Needs root.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use orchestra_events::SandboxId;
use orchestra_runtime::image::{ImageStore, Keep};
use orchestra_runtime::sandbox::{Containers, Limits, SandboxConfig, SandboxSpec, Sandboxes};

use super::registry::{Image, Layer, Registry};
use super::{pull, store};

const NOTHING: Keep = Keep { max_age: Duration::ZERO, max_bytes: 0 };

fn open(state: &Path, store: &ImageStore) -> Containers {
    let helper = PathBuf::from(env!("CARGO_BIN_EXE_orchestra-sandbox-helper"));
    Containers::new(SandboxConfig { state_dir: state.to_owned(), images: store.dir().into(), helper }).unwrap()
}

/// An image without a single program: a sandbox's first process is its own.
fn one(text: &str) -> Image {
    Image::of(vec![Layer::new().file("shared", "shared"), Layer::new().file("file", text)])
}

fn spec(id: SandboxId, image: &str) -> SandboxSpec {
    let limits =
        Limits { memory_bytes: 64 << 20, disk_bytes: 64 << 20, pids: 64, cpus: 1.0, timeout: Duration::from_secs(120) };
    SandboxSpec { id, image: image.into(), limits, env: Vec::new(), hostname: "sandbox".into() }
}

/// A file as the sandbox sees it.
fn seen(state: &Path, id: SandboxId, path: &str) -> Option<String> {
    let pid = fs::read_to_string(state.join("sandboxes").join(id.to_string()).join("pid")).ok()?;
    fs::read_to_string(format!("/proc/{}/root/{path}", pid.trim())).ok()
}

fn helper_of(id: SandboxId) -> i32 {
    let mut processes = fs::read_dir("/proc").unwrap().flatten();
    let found = processes.find_map(|entry| {
        let command = fs::read_to_string(entry.path().join("cmdline")).ok()?;
        let is_helper = command.contains("sandbox-helper") && command.contains(&id.to_string());
        is_helper.then(|| entry.file_name().to_str()?.parse().ok()).flatten()
    });
    found.expect("a helper")
}

#[tokio::test]
async fn what_a_sandbox_stands_on_stays_until_it_is_gone() {
    let (dir, store) = store();
    let state = dir.path().join("state");
    let registry = Registry::start();
    let old = pull(&store, &registry.publish("latest", &one("old")), "base").await.unwrap();
    let id = SandboxId::from_uuid(uuid::Uuid::now_v7());
    let server = open(&state, &store);
    server.start(&spec(id, "base")).await.unwrap();
    assert_eq!(seen(&state, id, "file").as_deref(), Some("old"));
    pull(&store, &registry.publish("latest", &one("new")), "base").await.unwrap();
    assert_eq!(store.holders()[&old.rootfs], 1);

    // Another server, which knows nothing of this one's sandboxes, and the same after a restart.
    let stranger = ImageStore::new(store.dir().into());
    assert_eq!(stranger.collect(&NOTHING, &HashSet::new()).unwrap().count(), 0);
    drop(server);
    let server = open(&state, &store);
    assert!(server.attach(id).await.unwrap().is_some());
    assert_eq!(stranger.collect(&NOTHING, &server.lowers().await.unwrap()).unwrap().count(), 0);
    assert_eq!(seen(&state, id, "shared").as_deref(), Some("shared"));

    // Without its helper nothing holds the image any more; what the server has written down still speaks for it.
    let helper = nix::unistd::Pid::from_raw(helper_of(id));
    nix::sys::signal::kill(helper, nix::sys::signal::Signal::SIGKILL).unwrap();
    let released = async {
        while store.holders()[&old.rootfs] > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), released).await.expect("the helper lets go of its image");
    assert!(server.lowers().await.unwrap().contains(&old.rootfs));
    assert_eq!(store.collect(&NOTHING, &server.lowers().await.unwrap()).unwrap().count(), 0);
    assert!(old.rootfs.join("file").exists());

    server.destroy(id).await.unwrap();
    assert!(server.lowers().await.unwrap().is_empty());
    assert_eq!(store.collect(&NOTHING, &server.lowers().await.unwrap()).unwrap().images.len(), 1);
    assert!(!old.rootfs.exists());
    let id = SandboxId::from_uuid(uuid::Uuid::now_v7());
    server.start(&spec(id, "base")).await.unwrap();
    assert_eq!(seen(&state, id, "file").as_deref(), Some("new"));
    server.destroy(id).await.unwrap();
    assert_eq!(store.holders().values().sum::<usize>(), 0);
}

#[tokio::test]
async fn starts_and_collections_at_once_leave_every_sandbox_with_its_files() {
    let (dir, store) = store();
    let state = dir.path().join("state");
    let registry = Registry::start();
    let references = [registry.publish("a", &one("a")), registry.publish("b", &one("b"))];
    pull(&store, &references[0], "base").await.unwrap();
    let server = open(&state, &store);
    let stop = dir.path().join("stop");
    let collecting = {
        let (store, stop) = (store.clone(), stop.clone());
        tokio::task::spawn_blocking(move || {
            let mut removed = 0;
            while !stop.exists() {
                removed += store.collect(&NOTHING, &HashSet::new()).map_or(0, |collected| collected.images.len());
            }
            removed
        })
    };
    for round in 0..8 {
        let id = SandboxId::from_uuid(uuid::Uuid::now_v7());
        let spec = spec(id, "base");
        // The name moves on while the sandbox starts.
        let (started, pulled) = tokio::join!(server.start(&spec), pull(&store, &references[(round + 1) % 2], "base"));
        started.unwrap_or_else(|error| panic!("{error}"));
        pulled.unwrap();
        assert!(seen(&state, id, "file").is_some() && seen(&state, id, "shared").is_some(), "round {round}");
        server.destroy(id).await.unwrap();
    }
    fs::write(&stop, "").unwrap();
    assert!(collecting.await.unwrap() > 0, "nothing was removed meanwhile");
}
