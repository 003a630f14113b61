//! What a registry can answer, and what becomes of a pull that ends in the middle.

use std::collections::BTreeSet;
use std::fs;
use std::sync::Mutex;
use std::time::Duration;

use orchestra_runtime::image::{Credentials, ImageError, Progress, PullFault};
use serde_json::json;

use super::registry::{INDEX, Image, Layer, Registry, describe, digest};
use super::{leftovers, pull, read, store};

fn fault(error: ImageError) -> PullFault {
    match error {
        ImageError::Pull { fault, .. } => fault,
        other => panic!("{other}"),
    }
}

fn one(text: &str) -> Image {
    Image::of(vec![Layer::new().file("file", text)])
}

#[tokio::test]
async fn every_no_of_a_registry_is_told_for_what_it_is() {
    let (_dir, store) = store();
    let registry = Registry::start();
    let reference = registry.publish("here", &one("x"));
    assert_eq!(fault(pull(&store, &registry.reference("none"), "base").await.unwrap_err()), PullFault::NotFound);
    for (refusal, expected) in [
        ("401 Unauthorized", PullFault::Unauthorized),
        ("403 Forbidden", PullFault::Unauthorized),
        (
            "429 Too Many Requests\r\nRetry-After: 17",
            PullFault::RateLimited { retry_after: Some(Duration::from_secs(17)) },
        ),
        ("429 Too Many Requests", PullFault::RateLimited { retry_after: None }),
    ] {
        registry.refuse("/here", refusal);
        let error = pull(&store, &reference, "base").await.unwrap_err();
        assert_eq!(error.is_passing(), matches!(expected, PullFault::RateLimited { .. }), "{error}");
        assert_eq!(fault(error), expected);
    }
    registry.refuse("/here", "503 Service Unavailable");
    let before = registry.asked("/here");
    let error = pull(&store, &reference, "base").await.unwrap_err();
    assert!(error.is_passing() && matches!(fault(error), PullFault::Unreachable(_)));
    assert_eq!(registry.asked("/here") - before, 3, "it is asked three times");
    for bad in ["", "UPPER/case:x", "host/name@sha256:short", "host/name@md5:00", "a b"] {
        let error = pull(&store, bad, "base").await.unwrap_err();
        assert!(matches!(error, ImageError::Pull { .. }), "{bad}: {error}");
    }
    assert!(store.names().is_empty());
}

#[tokio::test]
async fn a_digest_in_a_reference_is_checked() {
    let (_dir, store) = store();
    let registry = Registry::start();
    let image = one("pinned");
    registry.publish("latest", &image);
    let pinned = |digest: &str| format!("{}/tools/base@{digest}", registry.host);
    let pulled = pull(&store, &pinned(&image.digest()), "base").await.unwrap();
    assert_eq!(read(pulled.rootfs.join("file")), "pinned");
    assert_eq!(pulled.manifest.digest, Some(image.digest()));
    // A registry that answers with another image.
    let claimed = digest(b"something else");
    registry.document(&claimed, super::registry::MANIFEST, &one("other").manifest);
    let error = fault(pull(&store, &pinned(&claimed), "base").await.unwrap_err());
    assert!(matches!(&error, PullFault::Digest { expected, .. } if *expected == claimed), "{error}");
}

#[tokio::test]
async fn of_several_platforms_this_machines_is_taken() {
    let (_dir, store) = store();
    let registry = Registry::start();
    let (ours, theirs) = (one("ours"), one("theirs"));
    registry.publish("ours", &ours);
    registry.publish("theirs", &theirs);
    let entry = |image: &Image, os: &str, architecture: &str| {
        let mut entry = describe(super::registry::MANIFEST, &image.manifest);
        entry["platform"] = json!({ "os": os, "architecture": architecture });
        entry
    };
    let here = if cfg!(target_arch = "x86_64") { "amd64" } else { "arm64" };
    let index = json!({ "schemaVersion": 2, "mediaType": INDEX,
                        "manifests": [entry(&theirs, "linux", "s390x"), entry(&ours, "linux", here)] });
    let index = serde_json::to_vec(&index).unwrap();
    let pulled = pull(&store, &registry.document("both", INDEX, &index), "base").await.unwrap();
    assert_eq!(read(pulled.rootfs.join("file")), "ours");
    // The tag is recorded with what it stood for, the image with what it is.
    assert!(pulled.manifest.source.ends_with(&digest(&index)));
    assert_eq!(pulled.manifest.digest, Some(ours.digest()));

    let index =
        json!({ "schemaVersion": 2, "manifests": [entry(&theirs, "linux", "s390x"), entry(&theirs, "windows", here)] });
    let reference = registry.document("foreign", INDEX, &serde_json::to_vec(&index).unwrap());
    let error = fault(pull(&store, &reference, "base").await.unwrap_err());
    let expected = vec!["linux/s390x".to_owned(), format!("windows/{here}")];
    assert!(matches!(&error, PullFault::NoPlatform { there, .. } if *there == expected), "{error}");
    // An index that leads back to itself, as far as a digest can.
    let mut inner = serde_json::to_vec(&json!({ "manifests": [entry(&ours, "linux", here)] })).unwrap();
    for _ in 0..4 {
        registry.document("nested", INDEX, &inner);
        let mut entry = describe(INDEX, &inner);
        entry["platform"] = json!({ "os": "linux", "architecture": here });
        inner = serde_json::to_vec(&json!({ "manifests": [entry] })).unwrap();
    }
    let error = fault(pull(&store, &registry.document("deep", INDEX, &inner), "base").await.unwrap_err());
    assert!(error.to_string().contains("deep"), "{error}");
}

#[tokio::test]
async fn a_login_opens_what_is_closed_and_is_kept_nowhere() {
    let (dir, store) = store();
    let registry = Registry::start();
    registry.wants("hunter2-secret");
    let reference = registry.publish("closed", &one("x"));
    assert_eq!(fault(pull(&store, &reference, "base").await.unwrap_err()), PullFault::Unauthorized);
    let login = |password: &str| Credentials::Login { username: "me".into(), password: password.to_owned().into() };
    let refused = store.pull(&reference, "base", &login("wrong"), &|_| ()).await.unwrap_err();
    assert_eq!(fault(refused), PullFault::Unauthorized);
    let config = dir.path().join("config.json");
    let auth = json!({ "auths": { registry.host.clone(): { "username": "me", "password": "hunter2-secret" } } });
    fs::write(&config, auth.to_string()).unwrap();
    let credentials = Credentials::DockerConfig(config.clone());
    assert!(!format!("{credentials:?} {:?}", login("hunter2-secret")).contains("hunter2"));
    store.pull(&reference, "base", &credentials, &|_| ()).await.unwrap();
    fs::remove_file(config).unwrap();
    store.pull(&reference, "again", &login("hunter2-secret"), &|_| ()).await.unwrap();
    let found = std::process::Command::new("grep").args(["-r", "-l", "hunter2"]).arg(dir.path()).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&found.stdout), "");
}

#[tokio::test]
async fn a_pull_that_broke_goes_on_with_the_layers_that_are_missing() {
    let (_dir, store) = store();
    let registry = Registry::start();
    let image =
        Image::of(vec![Layer::new().file("one", "1"), Layer::new().file("two", "2"), Layer::new().file("three", "3")]);
    let reference = registry.publish("latest", &image);
    registry.breaks(&image.layers[2], true);
    let error = pull(&store, &reference, "base").await.unwrap_err();
    assert!(error.is_passing(), "{error}");
    assert!(store.names().is_empty());
    assert_eq!(leftovers(&store), [""; 0]);
    registry.breaks(&image.layers[2], false);
    let seen = Mutex::new(BTreeSet::new());
    let progress = |step: Progress| seen.lock().unwrap().extend(step.part.map(|part| part.name));
    let pulled = store.pull(&reference, "base", &Credentials::Anonymous, &progress).await.unwrap();
    assert_eq!(read(pulled.rootfs.join("one")) + &read(pulled.rootfs.join("three")), "13");
    assert_eq!((registry.asked(&image.layers[0]), registry.asked(&image.layers[1])), (1, 1));
    assert_eq!(registry.asked(&image.layers[2]), 4, "three times while it broke, once after");
    assert_eq!(seen.into_inner().unwrap().len(), 1, "progress is told of the layer that was missing");
    // Another image with the same layers fetches none of them.
    let more =
        Image::of(vec![Layer::new().file("one", "1"), Layer::new().file("two", "2"), Layer::new().file("new", "4")]);
    pull(&store, &registry.publish("more", &more), "more").await.unwrap();
    assert_eq!(registry.asked(&image.layers[0]), 1);
}

/// As a process that was killed leaves it: what it had begun is removed, what it had finished is used.
#[tokio::test]
async fn a_pull_that_was_killed_leaves_its_whole_layers_and_nothing_else() {
    let (_dir, store) = store();
    let registry = Registry::start();
    let image = Image::of(vec![Layer::new().file("one", "1"), Layer::new().file("two", "2")]);
    let reference = registry.publish("latest", &image);
    registry.hold(true);
    let pulling = {
        let (store, reference) = (store.clone(), reference.clone());
        tokio::spawn(async move { pull(&store, &reference, "base").await })
    };
    let waiting = registry.clone();
    tokio::task::spawn_blocking(move || waiting.wait_for_waiting(1)).await.unwrap();
    pulling.abort();
    assert!(pulling.await.unwrap_err().is_cancelled());
    registry.hold(false);
    assert_eq!(leftovers(&store), [""; 0]);
    for name in [".partial-x", ".fetch-x"] {
        fs::create_dir_all(store.dir().join(".store").join(name).join("in")).unwrap();
    }
    // As after a power cut: the layer is from an earlier boot, and nobody knows whether it reached the disk.
    pull(&store, &reference, "base").await.unwrap();
    let layers = store.dir().join(".store/layers");
    let manifest = store.find("base").unwrap().manifest;
    let lost = layers.join(&manifest.layers[0]);
    fs::remove_file(lost.join("settled")).unwrap();
    fs::write(lost.join("boot"), "an earlier one").unwrap();
    let more = Image::of(vec![Layer::new().file("one", "1"), Layer::new().file("three", "3")]);
    let before = registry.asked(&image.layers[0]);
    pull(&store, &registry.publish("more", &more), "more").await.unwrap();
    assert_eq!(registry.asked(&image.layers[0]) - before, 1, "it is fetched again");
}

#[tokio::test]
async fn the_same_image_is_pulled_once_by_all_who_want_it() {
    let (_dir, store) = store();
    let registry = Registry::start();
    let image = one("x");
    let reference = registry.publish("latest", &image);
    registry.hold(true);
    let pulls: Vec<_> = (0..8)
        .map(|number| {
            // Each with a store of its own, as processes have.
            let (store, reference) = (orchestra_runtime::image::ImageStore::new(store.dir().into()), reference.clone());
            tokio::spawn(async move { pull(&store, &reference, &format!("name-{number}")).await })
        })
        .collect();
    let waiting = registry.clone();
    tokio::task::spawn_blocking(move || waiting.wait_for_waiting(1)).await.unwrap();
    registry.hold(false);
    for pull in pulls {
        pull.await.unwrap().unwrap();
    }
    assert_eq!(registry.asked(&image.layers[0]), 1);
    assert_eq!(store.names().len(), 8);
}

#[tokio::test]
async fn what_is_no_file_system_is_refused() {
    let (_dir, store) = store();
    let registry = Registry::start();
    let chart = json!({ "schemaVersion": 2, "config": describe("application/vnd.x.config", b"{}"), "layers": [describe("text/x", b"x")] });
    registry.publish("x", &Image::claiming(&[], vec![b"x".to_vec(), b"{}".to_vec()], &[]));
    let reference = registry.document("chart", "application/json", &serde_json::to_vec(&chart).unwrap());
    registry.tamper(&digest(b"{}"), b"{}");
    let error = pull(&store, &reference, "base").await.unwrap_err().to_string();
    assert!(error.contains("speaks of 0 layers"), "{error}");
    for document in ["", "{}", "[]", "{\"manifests\":3}", "{\"manifests\":[]}"] {
        let reference = registry.document("odd", "application/json", document.as_bytes());
        let error = pull(&store, &reference, "base").await.unwrap_err();
        assert!(matches!(fault(error), PullFault::Invalid(_) | PullFault::NoPlatform { .. }), "{document}");
    }
    let large = vec![b' '; 5 << 20];
    let error = pull(&store, &registry.document("large", "application/json", &large), "base").await.unwrap_err();
    assert!(error.to_string().contains("larger than"), "{error}");
}
