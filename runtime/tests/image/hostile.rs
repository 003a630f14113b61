//! Archives that mean harm: nothing is written outside of an image, and none of them fills a disk, a table or the memory.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use orchestra_runtime::image::{ImageError, PullFault};
use tar::{EntryType, Header};

use super::registry::{Image, Layer, Registry, gzip};
use super::{leftovers, pull, read, store};

#[tokio::test]
async fn no_archive_reaches_outside() {
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("precious"), "precious").unwrap();
    let path = outside.path().display().to_string();
    let deep = format!("../../../../../../../../../../..{path}/new");
    let attacks: Vec<(&str, Layer)> = vec![
        ("dots", Layer::new().file(&deep, "evil")),
        ("absolute", Layer::new().file(&format!("{path}/new"), "evil")),
        ("link", Layer::new().put(EntryType::Symlink, "door", &path).file("door/new", "evil")),
        (
            "dotted link",
            Layer::new()
                .put(EntryType::Symlink, "door", &format!("../../../../../../../../..{path}"))
                .file("door/new", "evil"),
        ),
        ("file link", Layer::new().put(EntryType::Symlink, "f", &format!("{path}/precious")).file("f", "evil")),
        ("hard link", Layer::new().put(EntryType::Link, "f", &format!("{path}/precious")).file("f", "evil")),
        ("whiteout", Layer::new().put(EntryType::Symlink, "door", &path).file("door/.wh.precious", "")),
        ("opaque", Layer::new().put(EntryType::Symlink, "door", &path).file("door/.wh..wh..opq", "")),
        ("dot whiteout", Layer::new().file("etc/.wh...", "")),
        ("furniture", Layer::new().put(EntryType::Symlink, "workspace", &path).put(EntryType::Symlink, "etc", &path)),
    ];
    for (name, layer) in attacks {
        let (_dir, store) = store();
        // Twice the same layer, so that what the first one planted is there for the second one.
        let (tar, registry) = (layer.tar(), Registry::start());
        let image = Image::packed(vec![(tar.clone(), gzip(&tar)); 2], &[]);
        let _ = pull(&store, &registry.publish("latest", &image), "evil").await;
        let left: Vec<_> = fs::read_dir(outside.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left, ["precious"], "{name}");
        assert_eq!(read(outside.path().join("precious")), "precious", "{name}");
    }
}

/// Pulls an image of this one layer.
async fn pull_layer(
    layer: Layer,
) -> (Result<orchestra_runtime::image::Image, ImageError>, Vec<String>, tempfile::TempDir) {
    let (dir, store) = store();
    let pulled = pull(&store, &Registry::start().publish("latest", &Image::of(vec![layer])), "evil").await;
    let left = leftovers(&store);
    (pulled, left, dir)
}

fn header(kind: EntryType, size: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_path("bomb").unwrap();
    header.set_mode(0o644);
    header.set_size(size);
    header
}

#[tokio::test]
async fn bombs_end_at_a_bound_and_leave_nothing() {
    let long = |kind: EntryType| {
        let content = vec![b'x'; 2 << 20];
        Layer::new().raw(header(kind, content.len() as u64), &content).file("after", "")
    };
    let deep = "d/".repeat(200);
    let mut name = Header::new_gnu();
    name.set_entry_type(EntryType::GNULongName);
    let path = format!("{deep}file\0");
    name.set_size(path.len() as u64);
    let wide = format!("{}\0", "n".repeat(300));
    let mut wide_name = Header::new_gnu();
    wide_name.set_entry_type(EntryType::GNULongName);
    wide_name.set_size(wide.len() as u64);
    let mut sparse = header(EntryType::GNUSparse, 0);
    sparse.as_gnu_mut().unwrap().realsize.copy_from_slice(b"77777777777\0");
    for (what, layer) in [
        ("a name of two megabytes", long(EntryType::GNULongName)),
        ("a link of two megabytes", long(EntryType::GNULongLink)),
        ("attributes of two megabytes", long(EntryType::XHeader)),
        ("a path of 200 folders", Layer::new().raw(name, path.as_bytes()).file("short", "")),
        ("a name of 300 letters", Layer::new().raw(wide_name, wide.as_bytes()).file("short", "")),
        ("more bytes than an image may have", Layer::new().raw(header(EntryType::Regular, 21 << 30), b"")),
        ("a hole of eight gigabytes", Layer::new().raw(sparse, b"")),
        ("a size beyond all sizes", Layer::new().raw(header(EntryType::Regular, u64::MAX), b"")),
        ("half an archive", Layer::new().raw(header(EntryType::Regular, 4_096), b"short")),
        ("no archive", Layer::new().raw(Header::new_old(), b"")),
    ] {
        let (pulled, left, dir) = pull_layer(layer).await;
        let hole = what.starts_with("a hole");
        assert!(hole || what == "no archive" || pulled.is_err(), "{what}");
        assert_eq!(left, [""; 0], "{what}");
        let used: u64 = walk(dir.path()).iter().map(|meta| meta.blocks() * 512).sum();
        assert!(used < 4 << 20, "{what}: {used} bytes on disk");
    }
}

fn walk(dir: &std::path::Path) -> Vec<fs::Metadata> {
    let mut all = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        let meta = entry.metadata().unwrap();
        if meta.is_dir() {
            all.extend(walk(&entry.path()));
        }
        all.push(meta);
    }
    all
}

#[tokio::test]
async fn compressed_nothing_after_an_archives_end_is_not_read_for_ever() {
    let mut tar = Layer::new().file("a", "a").tar();
    tar.resize(tar.len() + (64 << 20), 0);
    let (_dir, store) = store();
    let image = Image::packed(vec![(tar.clone(), gzip(&tar))], &[]);
    let error = pull(&store, &Registry::start().publish("latest", &image), "evil").await.unwrap_err();
    assert!(error.to_string().contains("after its end"), "{error}");
}

#[tokio::test]
async fn setuid_owners_attributes_and_devices_do_not_come_along() {
    let mut attributes = Header::new_ustar();
    attributes.set_entry_type(EntryType::XHeader);
    let record = "57 SCHILY.xattr.security.capability=\x01\0\0\x02\0\x04\0\0\0\0\0\0\0\0\n";
    attributes.set_size(record.len() as u64);
    let mut owned = Header::new_gnu();
    owned.set_path("bin/owned").unwrap();
    owned.set_mode(0o6777);
    owned.set_uid(1234);
    owned.set_gid(1234);
    owned.set_size(1);
    let layer = Layer::new()
        .raw(attributes, record.as_bytes())
        .raw(owned, b"x")
        .put(EntryType::Fifo, "bin/pipe", "")
        .put(EntryType::Block, "bin/disk", "");
    let (pulled, _, _dir) = pull_layer(layer).await;
    let rootfs = pulled.unwrap().rootfs;
    let meta = fs::metadata(rootfs.join("bin/owned")).unwrap();
    assert_eq!(meta.permissions().mode() & 0o7777, 0o777);
    assert_eq!((meta.uid(), meta.gid()), (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw()));
    let path = std::ffi::CString::new(rootfs.join("bin/owned").to_str().unwrap()).unwrap();
    // SAFETY: both strings end with a zero, and nothing is written.
    let size = unsafe { libc::lgetxattr(path.as_ptr(), c"security.capability".as_ptr(), std::ptr::null_mut(), 0) };
    assert!(size < 0, "a capability came along");
    let names: Vec<_> = fs::read_dir(rootfs.join("bin")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["owned"]);
}

#[tokio::test]
async fn an_entry_that_comes_twice_is_what_it_was_last() {
    let layer = Layer::new()
        .file("a/file", "first")
        .file("a/file", "second")
        .file("b", "a file")
        .put(EntryType::Directory, "b/", "")
        .file("b/in", "a folder now")
        .put(EntryType::Directory, "c/", "")
        .file("c/in", "x")
        .put(EntryType::Symlink, "c", "a");
    let (pulled, _, _dir) = pull_layer(layer).await;
    let rootfs = pulled.unwrap().rootfs;
    assert_eq!(read(rootfs.join("a/file")), "second");
    assert_eq!(read(rootfs.join("b/in")), "a folder now");
    assert_eq!(read(rootfs.join("c/file")), "second");
    assert!(!rootfs.join("c/in").exists());
}

#[tokio::test]
async fn two_images_with_a_layer_in_common_cannot_change_each_other() {
    let (_dir, store) = store();
    let registry = Registry::start();
    let shared = || Layer::new().file("shared", "shared").file("other", "other");
    let above = || Layer::new().file("shared", "mine").put(EntryType::Link, "alias", "other").file("other", "mine");
    let plain = pull(&store, &registry.publish("plain", &Image::of(vec![shared()])), "plain").await.unwrap();
    let more = pull(&store, &registry.publish("more", &Image::of(vec![shared(), above()])), "more").await.unwrap();
    assert_eq!(
        (read(plain.rootfs.join("shared")), read(plain.rootfs.join("other"))),
        ("shared".into(), "other".into())
    );
    assert_eq!((read(more.rootfs.join("shared")), read(more.rootfs.join("other"))), ("mine".into(), "mine".into()));
    assert_eq!(read(more.rootfs.join("alias")), "other");
    // One file, not a copy.
    let inode = |path: std::path::PathBuf| fs::metadata(path).unwrap().ino();
    assert_eq!(inode(plain.rootfs.join("other")), inode(more.rootfs.join("alias")));
}

#[tokio::test]
async fn a_layer_is_checked_packed_and_unpacked() {
    let (_dir, store) = store();
    let registry = Registry::start();
    let honest = Layer::new().file("a", "a").tar();
    let image = Image::packed(vec![(honest.clone(), gzip(&honest))], &[]);
    let reference = registry.publish("packed", &image);
    registry.tamper(&image.layers[0], &gzip(&Layer::new().file("a", "b").tar()));
    let error = pull(&store, &reference, "base").await.unwrap_err();
    assert!(
        matches!(&error, ImageError::Pull { fault: PullFault::Digest { .. } | PullFault::Invalid(_), .. }),
        "{error}"
    );
    assert!(error.to_string().contains(&reference), "{error}");

    // The registry serves what its manifest says, but the image says something else of it.
    let other = gzip(&Layer::new().file("a", "c").tar());
    let image = Image::claiming(&[super::registry::digest(&honest)], vec![other], &[]);
    let error = pull(&store, &registry.publish("unpacked", &image), "base").await.unwrap_err();
    assert!(error.to_string().contains("is not what the image says"), "{error}");
    assert!(store.list().unwrap().is_empty());
    assert_eq!(leftovers(&store), [""; 0]);
    assert!(store.names().is_empty());
}
