//! Images that come as files.

use std::fs;
use std::path::Path;

use serde_json::json;
use tar::EntryType;

use super::registry::{Image, Layer, describe, digest, gzip};
use super::{leftovers, read, store};

fn two(text: &str) -> Image {
    Image::of(vec![Layer::new().file("below", "below").file("file", "old"), Layer::new().file("file", text)])
}

/// An OCI layout of these images, each under its tag.
fn layout(at: &Path, images: &[(&str, &Image)]) {
    let blobs = at.join("blobs/sha256");
    fs::create_dir_all(&blobs).unwrap();
    let mut manifests = Vec::new();
    for (tag, image) in images {
        for bytes in image.blobs.iter().chain([&image.manifest]) {
            fs::write(blobs.join(&digest(bytes)[7..]), bytes).unwrap();
        }
        let mut entry = describe(super::registry::MANIFEST, &image.manifest);
        entry["annotations"] = json!({ "org.opencontainers.image.ref.name": tag });
        manifests.push(entry);
    }
    fs::write(at.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
    fs::write(at.join("index.json"), json!({ "schemaVersion": 2, "manifests": manifests }).to_string()).unwrap();
}

fn archive(folder: &Path, to: &Path) {
    let mut builder = tar::Builder::new(fs::File::create(to).unwrap());
    builder.append_dir_all(".", folder).unwrap();
    builder.finish().unwrap();
}

#[tokio::test]
async fn a_layout_is_loaded_from_a_folder_and_from_an_archive() {
    let (dir, store) = store();
    let (folder, file) = (dir.path().join("layout"), dir.path().join("layout.tar"));
    let (one, other) = (two("one"), two("other"));
    layout(&folder, &[("one", &one), ("repository/name:two", &other)]);
    archive(&folder, &file);
    for path in [&folder, &file] {
        let error = store.load(path, None, "base", &|_| ()).await.unwrap_err().to_string();
        assert!(error.contains("one, repository/name:two") && error.contains("--tag"), "{error}");
        let image = store.load(path, Some("two"), "base", &|_| ()).await.unwrap();
        assert_eq!(
            (read(image.rootfs.join("file")), read(image.rootfs.join("below"))),
            ("other".into(), "below".into())
        );
        assert_eq!(image.manifest.digest, Some(other.digest()));
    }
    let image = store.load(&file, Some("one"), "one", &|_| ()).await.unwrap();
    assert_eq!(read(image.rootfs.join("file")), "one");
    assert_eq!(leftovers(&store), [""; 0]);
}

#[tokio::test]
async fn what_docker_save_writes_is_loaded() {
    let (dir, store) = store();
    let (folder, file) = (dir.path().join("saved"), dir.path().join("saved.tar.gz"));
    let (below, above) = (Layer::new().file("below", "below").tar(), Layer::new().file("file", "above").tar());
    let image = Image::packed(vec![(below.clone(), gzip(&below)), (above.clone(), gzip(&above))], &["LANG=C"]);
    fs::create_dir_all(folder.join("a")).unwrap();
    fs::create_dir_all(folder.join("b")).unwrap();
    fs::write(folder.join("a/layer.tar"), &below).unwrap();
    fs::write(folder.join("b/real.tar"), &above).unwrap();
    std::os::unix::fs::symlink("../b/real.tar", folder.join("b/layer.tar")).unwrap();
    fs::write(folder.join("config.json"), &image.config).unwrap();
    let saved = json!([{ "Config": "config.json", "RepoTags": ["x:1"], "Layers": ["a/layer.tar", "b/layer.tar"] }]);
    fs::write(folder.join("manifest.json"), saved.to_string()).unwrap();
    let tar = dir.path().join("saved.tar");
    let mut builder = tar::Builder::new(fs::File::create(&tar).unwrap());
    builder.follow_symlinks(false);
    builder.append_dir_all(".", &folder).unwrap();
    builder.finish().unwrap();
    fs::write(&file, gzip(&fs::read(&tar).unwrap())).unwrap();
    let loaded = store.load(&file, None, "base", &|_| ()).await.unwrap();
    assert_eq!(read(loaded.rootfs.join("below")) + &read(loaded.rootfs.join("file")), "belowabove");
    assert_eq!(loaded.manifest.env["LANG"], "C");
    assert_eq!(store.load(&folder, Some("x:1"), "again", &|_| ()).await.unwrap().rootfs, loaded.rootfs);
    assert!(store.load(&folder, Some("x:2"), "again", &|_| ()).await.is_err());
    fs::write(folder.join("a/layer.tar"), &above).unwrap();
    fs::write(folder.join("config.json"), String::from_utf8(image.config).unwrap().replace("amd64", "amd65")).unwrap();
    fs::remove_dir_all(store.dir().join(".store/layers")).unwrap();
    let error = store.load(&folder, None, "evil", &|_| ()).await.unwrap_err().to_string();
    assert!(error.contains("is not what the image says"), "{error}");
    assert_eq!(leftovers(&store), [""; 0]);
}

#[tokio::test]
async fn an_archive_that_is_damaged_or_means_harm_is_refused() {
    let (dir, store) = store();
    fs::write(dir.path().join("secret"), "secret").unwrap();
    let image = two("x");
    let fresh = |name: &str| {
        let folder = dir.path().join(name);
        layout(&folder, &[("x", &image)]);
        folder
    };
    let tampered = fresh("tampered");
    fs::write(tampered.join("blobs/sha256").join(&image.layers[1][7..]), gzip(b"x")).unwrap();
    let linked = fresh("linked");
    let blob = linked.join("blobs/sha256").join(&image.layers[1][7..]);
    fs::remove_file(&blob).unwrap();
    std::os::unix::fs::symlink(dir.path().join("secret"), &blob).unwrap();
    let pipe = fresh("pipe");
    fs::remove_file(pipe.join("index.json")).unwrap();
    nix::unistd::mkfifo(&pipe.join("index.json"), nix::sys::stat::Mode::from_bits_truncate(0o600)).unwrap();
    let empty = dir.path().join("empty");
    fs::create_dir(&empty).unwrap();
    let escaping = dir.path().join("escaping.tar");
    let tar = Layer::new().file("../../secret", "evil").put(EntryType::Symlink, "index.json", "/etc/passwd").tar();
    fs::write(&escaping, tar).unwrap();
    let linking = dir.path().join("linking.tar");
    fs::write(&linking, Layer::new().put(EntryType::Symlink, "index.json", "/etc/passwd").tar()).unwrap();
    for path in [&tampered, &linked, &pipe, &empty, &escaping, &linking, &dir.path().join("none")] {
        let error = store.load(path, None, "evil", &|_| ()).await.unwrap_err().to_string();
        assert!(!error.contains("root:"), "{error}");
    }
    assert_eq!(read(dir.path().join("secret")), "secret");
    assert!(store.names().is_empty());
    assert_eq!(leftovers(&store), [""; 0]);
}
