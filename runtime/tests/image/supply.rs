//! Images for tasks: by name, by configuration, by reference.

use std::collections::{BTreeMap, HashSet};
use std::fs::{self, File};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use orchestra_runtime::image::{Credentials, ImageError, ImageStore, Keep, Named, Supply};

use super::registry::{Image, Layer, Registry};
use super::{pull, read, store};

const KEEP: Keep = Keep { max_age: Duration::from_secs(3_600), max_bytes: 1 << 30 };

fn supply(store: &ImageStore, named: &[(&str, &str)], keep: Keep) -> Supply {
    let named = named.iter().map(|(name, reference)| {
        ((*name).to_owned(), Named { reference: (*reference).to_owned(), credentials: Credentials::Anonymous })
    });
    Supply::new(store.clone(), named.collect(), Credentials::Anonymous, keep)
}

fn one(text: &str) -> Image {
    Image::of(vec![Layer::new().file("file", text)])
}

#[tokio::test]
async fn a_reference_is_pulled_once_for_all_tasks_and_asked_for_again_when_it_is_old() {
    let (_dir, store) = store();
    let registry = Registry::start();
    let image = one("first");
    let reference = registry.publish("latest", &image);
    let supply = Arc::new(supply(&store, &[], KEEP));
    let wanted: Vec<_> = (0..16)
        .map(|_| {
            let (supply, reference) = (Arc::clone(&supply), reference.clone());
            tokio::spawn(async move { supply.provide(&reference).await })
        })
        .collect();
    for lease in wanted {
        let lease = lease.await.unwrap().unwrap();
        assert_eq!(lease.image.manifest.identity(), image.digest());
    }
    assert_eq!((registry.asked("/manifests/latest"), registry.asked(&image.layers[0])), (1, 1));
    assert!(store.names().is_empty(), "it has no name of its own");
    assert_eq!(read(store.resolve(&reference).unwrap().join("file")), "first");
    // The tag moves on; nobody asks until what is known is old.
    registry.publish("latest", &one("second"));
    assert_eq!(read(supply.provide(&reference).await.unwrap().image.rootfs.join("file")), "first");
    let record = fs::read_dir(store.dir().join(".store/refs")).unwrap().next().unwrap().unwrap().path();
    let text = fs::read_to_string(&record).unwrap();
    let age = |text: &str| {
        let mut known: serde_json::Value = serde_json::from_str(text).unwrap();
        known["asked"] = "2020-01-01T00:00:00Z".into();
        fs::write(&record, known.to_string()).unwrap();
    };
    age(&text);
    assert_eq!(read(supply.provide(&reference).await.unwrap().image.rootfs.join("file")), "second");
    // A registry that is away does not stop a task; one that has the image no more does.
    age(&fs::read_to_string(&record).unwrap());
    registry.refuse("/manifests/latest", "503 Service Unavailable");
    assert_eq!(read(supply.provide(&reference).await.unwrap().image.rootfs.join("file")), "second");
    registry.refuse("/manifests/latest", "404 Not Found");
    assert!(matches!(supply.provide(&reference).await, Err(ImageError::Pull { .. })));
}

#[tokio::test]
async fn a_configured_name_is_pulled_when_it_is_first_wanted_and_when_it_is_configured_anew() {
    let (_dir, store) = store();
    let registry = Registry::start();
    let (one, two) = (registry.publish("one", &one("one")), registry.publish("two", &one("two")));
    let first = supply(&store, &[("tools", &one)], KEEP);
    assert_eq!(first.names().await, ["tools"]);
    assert!(matches!(first.provide("other").await, Err(ImageError::Missing { .. })));
    assert_eq!(read(first.provide("tools").await.unwrap().image.rootfs.join("file")), "one");
    assert_eq!(registry.asked("/manifests/one"), 1);
    first.provide("tools").await.unwrap();
    assert_eq!(registry.asked("/manifests/one"), 1, "it is here");
    first.pull_all().await;
    assert_eq!(registry.asked("/manifests/one"), 2, "a start asks what the tag stands for");
    let second = supply(&store, &[("tools", &two), ("broken", &registry.reference("none"))], KEEP);
    second.pull_all().await;
    assert_eq!(read(second.provide("tools").await.unwrap().image.rootfs.join("file")), "two");
    assert!(matches!(second.provide("broken").await, Err(ImageError::Pull { .. })));
}

#[tokio::test]
async fn of_what_tasks_have_named_the_latest_are_kept_within_bounds() {
    let (_dir, store) = store();
    let registry = Registry::start();
    let references: Vec<String> =
        (0..3).map(|number| registry.publish(&format!("v{number}"), &one(&"x".repeat(1_000 + number)))).collect();
    let filling = supply(&store, &[], KEEP);
    for reference in &references {
        filling.provide(reference).await.unwrap();
    }
    pull(&store, &references[0], "named").await.unwrap();
    assert_eq!(filling.collect(HashSet::new()).await.unwrap().count(), 0);
    let bytes = store.find(&references[2]).unwrap().manifest.bytes;
    for entry in fs::read_dir(store.dir().join(".store/refs")).unwrap() {
        let path = entry.unwrap().path();
        let number = references
            .iter()
            .position(|reference| fs::read_to_string(&path).unwrap().contains(reference.as_str()))
            .unwrap();
        let used = SystemTime::now() - Duration::from_secs(600 - 100 * number as u64);
        File::options().append(true).open(path).unwrap().set_modified(used).unwrap();
    }
    // Room for one beside the named one, which counts for nothing.
    let small = supply(&store, &[], Keep { max_bytes: bytes + 10, ..KEEP });
    let lease = store.lease(&references[1]).unwrap();
    assert_eq!(small.collect(HashSet::new()).await.unwrap().images.len(), 0, "the middle one is held");
    drop(lease);
    assert_eq!(small.collect(HashSet::new()).await.unwrap().images.len(), 1);
    assert!(store.resolve(&references[0]).is_ok() && store.resolve(&references[2]).is_ok());
    assert!(matches!(store.resolve(&references[1]), Err(ImageError::Missing { .. })));
    let young = supply(&store, &[], Keep { max_age: Duration::from_secs(1), ..KEEP });
    assert_eq!(young.collect(HashSet::new()).await.unwrap().images.len(), 1);
    assert!(store.resolve("named").is_ok());
    let again: BTreeMap<_, _> = BTreeMap::from([(1, young.provide(&references[1]).await.unwrap().image.rootfs)]);
    assert_eq!(read(again[&1].join("file")).len(), 1_001, "what is gone is pulled again");
}
