//! Images come whole or not at all, from Debian or from a registry, and no archive writes outside of its image.
#![allow(clippy::unwrap_used)]

mod collect;
mod hostile;
mod layouts;
mod pulls;
mod registry;
mod sandboxes;
mod supply;

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, SystemTime};

use orchestra_runtime::image::{BuildOptions, Credentials, ImageStore, Progress};
use tar::EntryType;

use registry::{Image, Layer, Registry, gzip};

/// A store in a folder of its own.
fn store() -> (tempfile::TempDir, ImageStore) {
    let dir = tempfile::tempdir().unwrap();
    let store = ImageStore::new(dir.path().join("images"));
    (dir, store)
}

/// Pulls without a login, and looks at nothing on the way.
async fn pull(
    store: &ImageStore,
    reference: &str,
    name: &str,
) -> Result<orchestra_runtime::image::Image, orchestra_runtime::image::ImageError> {
    store.pull(reference, name, &Credentials::Anonymous, &|_| ()).await
}

/// What is left in the store beside images and layers.
fn leftovers(store: &ImageStore) -> Vec<String> {
    let entries = fs::read_dir(store.dir().join(".store")).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.starts_with('.')).collect()
}

fn read(path: PathBuf) -> String {
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

#[tokio::test]
async fn layers_are_put_over_each_other_and_what_they_remove_is_gone() {
    let (_dir, store) = store();
    let below = Layer::new()
        .put(EntryType::Directory, "usr/lib/", "")
        .put(EntryType::Symlink, "lib", "usr/lib")
        .file("etc/kept", "kept")
        .file("etc/replaced", "old")
        .file("etc/removed", "x")
        .file("etc/removed-dir/deep/file", "x")
        .file("opaque/below", "x")
        .file("usr/bin/tool", "tool")
        .put(EntryType::Link, "usr/bin/alias", "usr/bin/tool")
        .put(EntryType::Char, "dev/evil", "")
        .tar();
    let above = Layer::new()
        .file("etc/replaced", "new")
        .file("etc/.wh.removed", "")
        .file("etc/.wh.removed-dir", "")
        .file("opaque/above", "y")
        .file("opaque/.wh..wh..opq", "")
        .file("lib/through-link", "z")
        .tar();
    let packed = vec![(below.clone(), gzip(&below)), (above.clone(), zstd::encode_all(&above[..], 1).unwrap())];
    let image = Image::packed(packed, &["PATH=/opt/tool/bin:/usr/bin", "HOME=/root"]);
    let registry = Registry::start();
    let reference = registry.publish("latest", &image);
    let pinned = image.digest();
    let seen = Mutex::new(Vec::<Progress>::new());
    let image =
        store.pull(&reference, "base", &Credentials::Anonymous, &|step| seen.lock().unwrap().push(step)).await.unwrap();
    let at = |path: &str| image.rootfs.join(path);
    assert_eq!((read(at("etc/kept")), read(at("etc/replaced"))), ("kept".into(), "new".into()));
    assert_eq!((read(at("usr/lib/through-link")), read(at("usr/bin/alias"))), ("z".into(), "tool".into()));
    assert_eq!(read(at("opaque/above")), "y");
    for gone in ["etc/removed", "etc/removed-dir", "opaque/below", "dev/evil", "etc/.wh.removed"] {
        assert!(fs::symlink_metadata(at(gone)).is_err(), "{gone}");
    }
    assert_eq!(fs::metadata(at("usr/bin/tool")).unwrap().permissions().mode() & 0o7777, 0o755, "no setuid");
    assert!(at("workspace").is_dir() && at("orch/init").is_file() && read(at("etc/passwd")).contains("agent:x:1000"));
    let seen = seen.into_inner().unwrap();
    assert!(seen.is_sorted_by(|a, b| a.fraction <= b.fraction) && seen.last().unwrap().fraction == 1.0, "{seen:?}");
    assert_eq!(store.list().unwrap(), std::slice::from_ref(&image));
    // By its digest it is known, under any name.
    assert_eq!(pull(&store, &reference, "other").await.unwrap().rootfs, image.rootfs);
    let manifest = &image.manifest;
    assert_eq!((manifest.digest.as_deref(), manifest.reference.as_deref()), (Some(&*pinned), Some(&*reference)));
    assert!(manifest.source.ends_with(&format!("/tools/base@{pinned}")), "{}", manifest.source);
    assert_eq!(manifest.env.iter().collect::<Vec<_>>(), [(&"PATH".to_owned(), &"/opt/tool/bin:/usr/bin".to_owned())]);
    let modified = fs::metadata(at("usr/bin/tool")).unwrap().modified().unwrap();
    assert_eq!(modified, SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000));
    assert_eq!(leftovers(&store), [""; 0]);
    assert!(store.resolve("nothing").is_err() && store.resolve("../base").is_err());
}

#[test]
fn a_damaged_image_is_not_handed_out() {
    let dir = tempfile::tempdir().unwrap();
    let store = ImageStore::new(dir.path().into());
    assert!(store.list().unwrap().is_empty());
    fs::create_dir_all(dir.path().join(".store/x")).unwrap();
    symlink(Path::new(".store/x"), dir.path().join("broken")).unwrap();
    assert!(store.resolve("broken").unwrap_err().to_string().contains("damaged"));
    assert!(store.resolve("none").unwrap_err().to_string().contains("no image named none"));
}

/// Needs mmdebstrap and Debian's packages. Builds into the shared directory, where other tests look for `default`.
#[test]
#[ignore = "takes minutes and needs package mirrors"]
fn the_default_image_builds_and_the_second_time_is_instant() {
    let dir = std::env::var_os("ORCHESTRA_IMAGES").map(PathBuf::from);
    let dir = dir.unwrap_or_else(|| Path::new(&std::env::var_os("HOME").unwrap()).join(".cache/orchestra/images"));
    let store = ImageStore::new(dir);
    let options = BuildOptions { name: "default".into(), ..BuildOptions::default() };
    let seen = Mutex::new(Vec::<Progress>::new());
    let image = store.build(&options, &|step| seen.lock().unwrap().push(step)).unwrap();
    let seen = seen.into_inner().unwrap();
    assert!(seen.is_sorted_by(|a, b| a.fraction <= b.fraction) && seen.last().unwrap().fraction == 1.0);
    for tool in ["usr/bin/git", "usr/bin/jq", "usr/bin/rg", "usr/bin/python3", "etc/ssl/certs/ca-certificates.crt"] {
        assert!(image.rootfs.join(tool).exists(), "{tool}");
    }
    assert!(["usr/local/bin/node", "usr/bin/node"].iter().any(|node| image.rootfs.join(node).exists()));
    let start = std::time::Instant::now();
    assert_eq!(store.build(&options, &|_| ()).unwrap(), image);
    assert!(start.elapsed().as_secs() < 5);
}
