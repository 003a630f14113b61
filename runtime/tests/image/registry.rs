//! A registry on the loopback device, and images to put into it.

use std::collections::{BTreeSet, HashMap};
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;

use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tar::{EntryType, Header};

pub fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect::<String>())
}

/// A layer: entries of kind, path, link target or content.
pub struct Layer(tar::Builder<Vec<u8>>);

impl Layer {
    pub fn new() -> Self {
        Self(tar::Builder::new(Vec::new()))
    }

    pub fn put(mut self, kind: EntryType, path: &str, text: &str) -> Self {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(if kind == EntryType::Directory { 0o755 } else { 0o4755 });
        header.set_mtime(1_000_000_000);
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

    pub fn file(self, path: &str, text: &str) -> Self {
        self.put(EntryType::Regular, path, text)
    }

    /// An entry as a program would never write it: any header, any bytes after it.
    pub fn raw(mut self, mut header: Header, content: &[u8]) -> Self {
        header.set_cksum();
        let out = self.0.get_mut();
        out.extend_from_slice(header.as_bytes());
        out.extend_from_slice(content);
        out.resize(out.len().next_multiple_of(512), 0);
        self
    }

    pub fn tar(self) -> Vec<u8> {
        self.0.into_inner().unwrap()
    }
}

pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut packed = GzEncoder::new(Vec::new(), Compression::fast());
    packed.write_all(bytes).unwrap();
    packed.finish().unwrap()
}

/// An image: its documents and blobs, by digest.
#[derive(Clone)]
pub struct Image {
    pub manifest: Vec<u8>,
    pub blobs: Vec<Vec<u8>>,
    pub layers: Vec<String>,
    pub config: Vec<u8>,
}

pub const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub const INDEX: &str = "application/vnd.oci.image.index.v1+json";

pub fn describe(kind: &str, bytes: &[u8]) -> Value {
    json!({ "mediaType": kind, "digest": digest(bytes), "size": bytes.len() })
}

impl Image {
    /// Of these layers, packed as given, with what each is unpacked.
    pub fn packed(layers: Vec<(Vec<u8>, Vec<u8>)>, env: &[&str]) -> Self {
        let diff_ids: Vec<String> = layers.iter().map(|(tar, _)| digest(tar)).collect();
        Self::claiming(&diff_ids, layers.into_iter().map(|(_, packed)| packed).collect(), env)
    }

    pub fn of(layers: Vec<Layer>) -> Self {
        let packed = layers.into_iter().map(Layer::tar).map(|tar| (tar.clone(), gzip(&tar))).collect();
        Self::packed(packed, &[])
    }

    /// Whatever the layers really are.
    pub fn claiming(diff_ids: &[String], blobs: Vec<Vec<u8>>, env: &[&str]) -> Self {
        let config = json!({ "architecture": "amd64", "os": "linux", "config": { "Env": env },
                             "rootfs": { "type": "layers", "diff_ids": diff_ids } });
        let config = serde_json::to_vec(&config).unwrap();
        let kind = "application/vnd.oci.image.layer.v1.tar+gzip";
        let manifest = json!({
            "schemaVersion": 2, "mediaType": MANIFEST,
            "config": describe("application/vnd.oci.image.config.v1+json", &config),
            "layers": blobs.iter().map(|bytes| describe(kind, bytes)).collect::<Vec<_>>(),
        });
        let layers = blobs.iter().map(|bytes| digest(bytes)).collect();
        let mut blobs = blobs;
        blobs.push(config.clone());
        Self { manifest: serde_json::to_vec(&manifest).unwrap(), blobs, layers, config }
    }

    pub fn digest(&self) -> String {
        digest(&self.manifest)
    }
}

#[derive(Default)]
struct State {
    documents: HashMap<String, (&'static str, Vec<u8>)>,
    blobs: HashMap<String, Vec<u8>>,
    /// What it refuses, with what: by the end of the path.
    refused: HashMap<String, String>,
    /// Blobs that break off in their middle.
    broken: BTreeSet<String>,
    /// A password that is asked for.
    password: Option<String>,
    asked: Vec<String>,
    held: bool,
    waiting: usize,
}

/// A registry on the loopback device.
#[derive(Clone)]
pub struct Registry {
    state: Arc<(Mutex<State>, Condvar)>,
    pub host: String,
}

impl Registry {
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let host = format!("127.0.0.1:{}", listener.local_addr().unwrap().port());
        let registry = Self { state: Arc::default(), host };
        let serving = registry.clone();
        thread::spawn(move || {
            for stream in listener.incoming() {
                let serving = serving.clone();
                thread::spawn(move || serving.answer(stream.unwrap()));
            }
        });
        registry
    }

    fn state<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        change(&mut self.state.0.lock().unwrap())
    }

    /// Publishes an image under a tag; gives its reference.
    pub fn publish(&self, tag: &str, image: &Image) -> String {
        self.state(|state| {
            state.blobs.extend(image.blobs.iter().map(|bytes| (digest(bytes), bytes.clone())));
        });
        self.document(tag, MANIFEST, &image.manifest)
    }

    pub fn document(&self, tag: &str, kind: &'static str, bytes: &[u8]) -> String {
        self.state(|state| {
            state.documents.insert(tag.to_owned(), (kind, bytes.to_vec()));
            state.documents.insert(digest(bytes), (kind, bytes.to_vec()));
        });
        self.reference(tag)
    }

    pub fn reference(&self, tag: &str) -> String {
        format!("{}/tools/base:{tag}", self.host)
    }

    /// Answers what ends so with a status line and headers.
    pub fn refuse(&self, end: &str, with: &str) {
        self.state(|state| state.refused.insert(end.to_owned(), with.to_owned()));
    }

    pub fn tamper(&self, blob: &str, content: &[u8]) {
        self.state(|state| state.blobs.insert(blob.to_owned(), content.to_vec()));
    }

    /// Breaks off in the middle of this blob, or does so no more.
    pub fn breaks(&self, blob: &str, does: bool) {
        self.state(|state| if does { state.broken.insert(blob.to_owned()) } else { state.broken.remove(blob) });
    }

    pub fn wants(&self, password: &str) {
        self.state(|state| state.password = Some(password.to_owned()));
    }

    /// Keeps whoever asks for a blob waiting until it is let go.
    pub fn hold(&self, held: bool) {
        self.state(|state| state.held = held);
        self.state.1.notify_all();
    }

    /// Waits until so many wait for a blob.
    pub fn wait_for_waiting(&self, count: usize) {
        let (state, changed) = &*self.state;
        let patience = std::time::Duration::from_secs(30);
        let waited =
            changed.wait_timeout_while(state.lock().unwrap(), patience, |state| state.waiting < count).unwrap();
        assert!(!waited.1.timed_out(), "nobody asked for a blob");
    }

    /// How often something that ends so was asked for.
    pub fn asked(&self, end: &str) -> usize {
        self.state(|state| state.asked.iter().filter(|path| path.ends_with(end)).count())
    }

    fn answer(&self, mut stream: TcpStream) {
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        let mut request = String::new();
        let mut line = String::new();
        let (mut authorization, mut first) = (String::new(), true);
        while reader.read_line(&mut line).unwrap_or(0) > 2 {
            if first {
                request.clone_from(&line);
            }
            first = false;
            if line.to_ascii_lowercase().starts_with("authorization:") {
                authorization = line.trim().to_owned();
            }
            line.clear();
        }
        let path = request.split(' ').nth(1).unwrap_or("").to_owned();
        let name = path.rsplit('/').next().unwrap_or_default().to_owned();
        let is_blob = path.contains("/blobs/");
        self.state(|state| state.asked.push(path.clone()));
        if is_blob {
            let (state, changed) = &*self.state;
            let mut state = state.lock().unwrap();
            state.waiting += 1;
            changed.notify_all();
            while state.held {
                state = changed.wait(state).unwrap();
            }
            state.waiting -= 1;
        }
        let (head, body, cut) = self.state(|state| {
            if let Some((_, refusal)) = state.refused.iter().find(|(end, _)| path.ends_with(*end)) {
                return (refusal.clone(), b"{}".to_vec(), false);
            }
            if let Some(password) = &state.password {
                let host = &self.host;
                let token = path.starts_with("/token?");
                let expected = format!("Basic {}", base64_of(&format!("me:{password}")));
                if token && authorization.ends_with(&expected) {
                    return ("200 OK".to_owned(), br#"{"token":"opens-it"}"#.to_vec(), false);
                }
                if token || !authorization.ends_with("Bearer opens-it") {
                    let realm = format!("WWW-Authenticate: Bearer realm=\"http://{host}/token\",service=\"test\"");
                    return (format!("401 Unauthorized\r\n{realm}"), b"{}".to_vec(), false);
                }
            }
            if path == "/v2/" {
                return ("200 OK".to_owned(), b"{}".to_vec(), false);
            }
            let found = if is_blob {
                state.blobs.get(&name).map(|blob| ("application/octet-stream", blob.clone()))
            } else {
                state.documents.get(&name).cloned()
            };
            match found {
                Some((kind, body)) => (format!("200 OK\r\nContent-Type: {kind}"), body, state.broken.contains(&name)),
                None => ("404 Not Found".to_owned(), b"{}".to_vec(), false),
            }
        });
        let head = format!("HTTP/1.1 {head}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
        let sent = if cut { &body[..body.len() / 2] } else { &body[..] };
        let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(sent));
    }
}

fn base64_of(text: &str) -> String {
    use base64::Engine;
    base64::engine::general_purpose::STANDARD.encode(text)
}
