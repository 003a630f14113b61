//! What nobody needs goes; what something stands on, or somebody names, stays.

use std::collections::HashSet;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use orchestra_runtime::image::{Collected, ImageError, ImageStore, Keep};

use super::registry::{Image, Layer, Registry};
use super::{leftovers, pull, store};

const NOTHING: Keep = Keep { max_age: Duration::ZERO, max_bytes: 0 };

fn collect(store: &ImageStore) -> Collected {
    store.collect(&NOTHING, &HashSet::new()).unwrap()
}

fn one(text: &str) -> Image {
    Image::of(vec![Layer::new().file("shared", "shared"), Layer::new().file("file", text)])
}

fn layers(store: &ImageStore) -> usize {
    fs::read_dir(store.dir().join(".store/layers")).unwrap().count()
}

#[tokio::test]
async fn an_old_version_goes_when_nothing_stands_on_it_any_more() {
    let (_dir, store) = store();
    let registry = Registry::start();
    let old = pull(&store, &registry.publish("latest", &one("old")), "base").await.unwrap();
    let lease = store.lease("base").unwrap();
    let new = pull(&store, &registry.publish("latest", &one("new")), "base").await.unwrap();
    assert_ne!(old.rootfs, new.rootfs);
    assert_eq!(store.holders()[&old.rootfs], 1);
    // Somebody else's store over the same folder, as another server has it.
    let other = ImageStore::new(store.dir().into());
    assert_eq!(collect(&other).count(), 0);
    assert!(old.rootfs.join("file").exists());
    drop(lease);
    assert_eq!(
        other.collect(&NOTHING, &HashSet::from([old.rootfs.clone()])).unwrap().count(),
        0,
        "it is known to be in use"
    );
    let collected = collect(&other);
    assert_eq!((collected.images.len(), collected.layers), (1, 1), "{collected:?}");
    assert!(!old.rootfs.exists() && new.rootfs.join("file").exists() && new.rootfs.join("shared").exists());
    assert_eq!((store.list().unwrap().len(), layers(&store)), (1, 2));
    store.remove("base").unwrap();
    assert!(matches!(store.remove("base"), Err(ImageError::Missing { .. })));
    assert!(matches!(store.remove("../base"), Err(ImageError::Name(_))));
    assert_eq!(collect(&store).images.len(), 1);
    assert_eq!((store.names().len(), layers(&store)), (0, 0));
}

#[tokio::test]
async fn nothing_is_removed_while_an_image_is_being_made() {
    let (_dir, store) = store();
    let registry = Registry::start();
    let reference = registry.publish("latest", &one("x"));
    registry.hold(true);
    let pulling = {
        let (store, reference) = (store.clone(), reference.clone());
        tokio::spawn(async move { pull(&store, &reference, "base").await })
    };
    let waiting = registry.clone();
    tokio::task::spawn_blocking(move || waiting.wait_for_waiting(1)).await.unwrap();
    assert!(matches!(store.collect(&NOTHING, &HashSet::new()), Err(ImageError::Busy(_))));
    registry.hold(false);
    pulling.await.unwrap().unwrap();
    assert_eq!(collect(&store).count(), 0);
}

#[tokio::test]
async fn what_a_dead_process_left_half_done_goes() {
    let (_dir, store) = store();
    pull(&store, &Registry::start().publish("latest", &one("x")), "base").await.unwrap();
    for name in [".partial-1", ".fetch-2", ".load-3", ".gone-4", "layers/.partial-5"] {
        fs::create_dir_all(store.dir().join(".store").join(name).join("in")).unwrap();
    }
    assert_eq!(collect(&store).count(), 0, "none of it counts");
    assert_eq!((leftovers(&store).len(), layers(&store)), (0, 2));
    // Somebody's own folder is nobody else's to remove.
    fs::create_dir(store.dir().join(".store/mine")).unwrap();
    collect(&store);
    assert!(store.dir().join(".store/mine").is_dir());
}

#[tokio::test]
async fn starts_and_collections_at_once_never_pull_a_file_system_from_under_anybody() {
    let (_dir, store) = store();
    let registry = Registry::start();
    let references: Vec<String> =
        (0..4).map(|number| registry.publish(&format!("v{number}"), &one(&number.to_string()))).collect();
    let collecting = {
        let store = store.clone();
        tokio::task::spawn_blocking(move || {
            let mut removed = 0;
            while !store.dir().join("stop").exists() {
                if let Ok(collected) = store.collect(&NOTHING, &HashSet::new()) {
                    removed += collected.images.len();
                }
            }
            removed
        })
    };
    let mut held = 0;
    for round in 0..20 {
        pull(&store, &references[round % 4], "base").await.unwrap();
        let lease = store.lease("base").unwrap();
        let file: PathBuf = lease.image.rootfs.join("file");
        pull(&store, &references[(round + 1) % 4], "base").await.unwrap();
        tokio::task::yield_now().await;
        assert!(file.exists(), "round {round}");
        held += 1;
    }
    fs::write(store.dir().join("stop"), "").unwrap();
    let removed = collecting.await.unwrap();
    assert!(held == 20 && removed > 0, "{removed} were removed meanwhile");
}
