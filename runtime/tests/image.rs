//! Images come whole or not at all, from Debian or from a registry, and no archive writes outside of its image.
#![allow(clippy::unwrap_used)]

use std::collections::HashMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::thread;

use flate2::Compression;
use flate2::write::GzEncoder;
use orchestra_runtime::image::{BuildOptions, ImageStore, Progress};
use sha2::{Digest, Sha256};
use tar::{EntryType, Header};

fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect::<String>())
}

/// A layer: entries of kind, path, link target or content.
struct Layer(tar::Builder<Vec<u8>>);

impl Layer {
    fn new() -> Self {
        Self(tar::Builder::new(Vec::new()))
    }

    fn put(mut self, kind: EntryType, path: &str, text: &str) -> Self {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(if kind == EntryType::Directory { 0o755 } else { 0o4755 });
        // Written directly: the builder refuses the very names that are to be tried.
        header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
        if matches!(kind, EntryType::Symlink | EntryType::Link) {
            header.as_old_mut().linkname[..text.len()].copy_from_slice(text.as_bytes());
        }
        let content = if kind == EntryType::Regular { text.as_bytes() } else { b"" };
        header.set_size(content.len() as u64);
        header.set_cksum();
        self.0.append(&header, content).unwrap();
        self
    }

    fn file(self, path: &str, text: &str) -> Self {
        self.put(EntryType::Regular, path, text)
    }

    fn gzip(self) -> Vec<u8> {
        let mut packed = GzEncoder::new(Vec::new(), Compression::fast());
        packed.write_all(&self.0.into_inner().unwrap()).unwrap();
        packed.finish().unwrap()
    }

    fn zstd(self) -> Vec<u8> {
        zstd::encode_all(&self.0.into_inner().unwrap()[..], 1).unwrap()
    }
}

/// A registry on the loopback device with one image; gives the image's reference.
fn registry(layers: Vec<Vec<u8>>, tamper: bool) -> String {
    let config = b"{}".to_vec();
    let describe = |kind: &str, bytes: &[u8]| serde_json::json!({ "mediaType": kind, "digest": digest(bytes), "size": bytes.len() });
    let manifest = serde_json::json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": describe("application/vnd.oci.image.config.v1+json", &config),
        "layers": layers.iter().map(|bytes| describe("application/vnd.oci.image.layer.v1.tar+gzip", bytes)).collect::<Vec<_>>(),
    });
    let manifest = serde_json::to_vec(&manifest).unwrap();
    let mut blobs = HashMap::from([(digest(&config), config)]);
    for layer in layers {
        let name = digest(&layer);
        blobs.insert(name, if tamper { b"something else".to_vec() } else { layer });
    }
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let mut reader = BufReader::new(stream.try_clone().unwrap());
            let mut request = String::new();
            reader.read_line(&mut request).unwrap();
            let mut line = String::new();
            while reader.read_line(&mut line).unwrap() > 2 {
                line.clear();
            }
            let path = request.split(' ').nth(1).unwrap_or("").to_owned();
            let (status, kind, body) = match path.rsplit('/').next().unwrap() {
                _ if path == "/v2/" => ("200 OK", "application/json", b"{}".to_vec()),
                "latest" => ("200 OK", "application/vnd.oci.image.manifest.v1+json", manifest.clone()),
                name => match blobs.get(name) {
                    Some(blob) => ("200 OK", "application/octet-stream", blob.clone()),
                    None => ("404 Not Found", "application/json", b"{}".to_vec()),
                },
            };
            let head = format!(
                "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
                body.len()
            );
            let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&body));
        }
    });
    format!("127.0.0.1:{}/tools/base:latest", address.port())
}

fn read(path: PathBuf) -> String {
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

#[tokio::test]
async fn layers_are_put_over_each_other_and_what_they_remove_is_gone() {
    let dir = tempfile::tempdir().unwrap();
    let store = ImageStore::new(dir.path().into());
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
        .gzip();
    let above = Layer::new()
        .file("etc/replaced", "new")
        .file("etc/.wh.removed", "")
        .file("etc/.wh.removed-dir", "")
        .file("opaque/above", "y")
        .file("opaque/.wh..wh..opq", "")
        .file("lib/through-link", "z")
        .zstd();
    let reference = registry(vec![below, above], false);
    let seen = Mutex::new(Vec::<Progress>::new());
    let image = store.pull(&reference, "base", &|step| seen.lock().unwrap().push(step)).await.unwrap();
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
    assert_eq!(store.pull(&reference, "other", &|_| ()).await.unwrap().rootfs, image.rootfs);
    assert!(store.resolve("nothing").is_err() && store.resolve("../base").is_err());
}

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
        let dir = tempfile::tempdir().unwrap();
        let store = ImageStore::new(dir.path().into());
        // Twice the same layer, so that what the first one planted is there for the second one.
        let layer = layer.gzip();
        let _ = store.pull(&registry(vec![layer.clone(), layer], false), "evil", &|_| ()).await;
        let left: Vec<_> = fs::read_dir(outside.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left, ["precious"], "{name}");
        assert_eq!(read(outside.path().join("precious")), "precious", "{name}");
    }
}

#[tokio::test]
async fn a_layer_that_is_not_what_was_announced_is_refused_and_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let store = ImageStore::new(dir.path().into());
    let reference = registry(vec![Layer::new().file("a", "a").gzip()], true);
    let error = store.pull(&reference, "base", &|_| ()).await.unwrap_err();
    assert!(error.to_string().contains(&reference), "{error}");
    assert!(store.list().unwrap().is_empty());
    assert_eq!(fs::read_dir(dir.path().join(".store")).unwrap().count(), 0);
    let missing = store.pull(&reference.replace("latest", "none"), "base", &|_| ()).await.unwrap_err();
    assert!(missing.to_string().contains("cannot be pulled"), "{missing}");
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
