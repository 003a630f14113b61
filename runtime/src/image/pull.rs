//! Pulls an image from any registry that speaks the OCI distribution protocol.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufReader, Read, Write};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use flate2::read::MultiGzDecoder;
use futures_util::StreamExt;
use oci_client::client::{ClientConfig, ClientProtocol};
use oci_client::manifest::OciDescriptor;
use oci_client::secrets::RegistryAuth;
use oci_client::{Client, Reference};
use sha2::{Digest, Sha256};

use super::build::About;
use super::unpack::{Allowance, Root};
use super::{Image, ImageError, ImageStore, Progress, check_name};

/// Largest compressed layer.
const MAX_LAYER: u64 = 10 << 30;
/// Most layers; overlay file systems themselves stop at about this.
const MAX_LAYERS: usize = 128;
/// Longest silence of a registry.
const READ_TIMEOUT: Duration = Duration::from_secs(60);

/// Whether this registry is on the loopback device of this host, the only place where plain HTTP is trusted.
fn is_loopback(registry: &str) -> bool {
    let host = match registry.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => host,
        _ => registry,
    };
    let host = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

fn client(registry: &str) -> Client {
    let protocol = if is_loopback(registry) {
        ClientProtocol::HttpsExcept(vec![registry.to_owned()])
    } else {
        ClientProtocol::Https
    };
    Client::new(ClientConfig {
        protocol,
        read_timeout: Some(READ_TIMEOUT),
        connect_timeout: Some(READ_TIMEOUT),
        user_agent: concat!("orchestra/", env!("CARGO_PKG_VERSION")),
        ..ClientConfig::default()
    })
}

/// Fetches a layer into a file and checks that it is the one that was named.
async fn fetch(
    client: &Client,
    reference: &Reference,
    layer: &OciDescriptor,
    to: &Path,
    got: &(dyn Fn(u64) + Send + Sync),
) -> Result<(), String> {
    let mut stream = client.pull_blob_stream(reference, layer).await.map_err(|error| error.to_string())?.stream;
    let mut file = File::create(to).map_err(|error| error.to_string())?;
    let mut digest = Sha256::new();
    let mut size: u64 = 0;
    while let Some(chunk) = stream.next().await {
        let chunk = chunk.map_err(|error| error.to_string())?;
        size += chunk.len() as u64;
        if size > MAX_LAYER {
            return Err("a layer is larger than a layer may be".into());
        }
        digest.update(&chunk);
        // A local file: the write is a copy into memory that the kernel writes out later.
        file.write_all(&chunk).map_err(|error| error.to_string())?;
        got(chunk.len() as u64);
    }
    let found: String = digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    if layer.digest == format!("sha256:{found}") {
        Ok(())
    } else {
        Err(format!("a layer is not what it was announced as: {} was expected, sha256:{found} came", layer.digest))
    }
}

/// A layer's archive, whatever it is packed with; told by its first bytes, because media types vary.
fn unpacked(path: &Path) -> io::Result<Box<dyn Read>> {
    let mut file = File::open(path)?;
    let mut magic = [0; 4];
    let count = file.read(&mut magic)?;
    let file = BufReader::new(File::open(path)?);
    Ok(match &magic[..count] {
        [0x1f, 0x8b, ..] => Box::new(MultiGzDecoder::new(file)),
        [0x28, 0xb5, 0x2f, 0xfd] => Box::new(zstd::stream::read::Decoder::with_buffer(file)?),
        _ => Box::new(file),
    })
}

fn unpack(layers: &[PathBuf], rootfs: &Path, done: &dyn Fn(usize)) -> io::Result<()> {
    fs::create_dir(rootfs)?;
    let root = Root::open(rootfs)?;
    let mut allowance = Allowance::default();
    for (index, layer) in layers.iter().enumerate() {
        root.apply_whiteouts(unpacked(layer)?)?;
        root.apply_layer(unpacked(layer)?, &mut allowance)?;
        done(index + 1);
    }
    Ok(())
}

impl ImageStore {
    /// Pulls an image (`registry/name:tag`, `registry/name@sha256:…`) and gives it a name here. An image that is there
    /// already, by its digest, is not fetched again.
    ///
    /// # Errors
    /// When the registry refuses, or what it sends is not what it announced; nothing half-pulled gets a name.
    pub async fn pull(
        &self,
        reference: &str,
        name: &str,
        progress: &(dyn Fn(Progress) + Send + Sync),
    ) -> Result<Image, ImageError> {
        check_name(name)?;
        let failed = |detail: String| ImageError::Pull { reference: reference.to_owned(), detail };
        let parsed: Reference = reference.parse().map_err(|error| failed(format!("{error}")))?;
        let say = |phase: &'static str, fraction: f64, detail: String| progress(Progress { phase, fraction, detail });
        say("asking the registry", 0.0, parsed.resolve_registry().to_owned());
        let client = client(parsed.resolve_registry());
        let asked = client.pull_image_manifest(&parsed, &RegistryAuth::Anonymous).await;
        let (manifest, digest) = asked.map_err(|error| failed(error.to_string()))?;
        let inputs = digest.trim_start_matches("sha256:").to_owned();
        if inputs.len() != 64 || !inputs.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(failed(format!("{digest} is not a SHA-256 digest")));
        }
        if let Some(stored) = self.known(&inputs) {
            self.link(name, &stored)?;
            say("done", 1.0, "already here".into());
            return self.read(name);
        }
        if manifest.layers.len() > MAX_LAYERS {
            return Err(failed(format!("it has {} layers; at most {MAX_LAYERS} are taken", manifest.layers.len())));
        }
        let folder = self.store().join(format!(".layers-{}", uuid::Uuid::now_v7()));
        fs::create_dir_all(&folder).map_err(ImageError::io("making", &folder))?;
        let total: u64 = manifest.layers.iter().map(|layer| u64::try_from(layer.size).unwrap_or(0)).sum();
        let fetched = async {
            let so_far = std::sync::atomic::AtomicU64::new(0);
            let got = |count: u64| {
                let sum = so_far.fetch_add(count, std::sync::atomic::Ordering::Relaxed) + count;
                let fraction = sum as f64 / total.max(1) as f64;
                say("fetching layers", 0.02 + 0.67 * fraction.min(1.0), format!("{sum} of {total} bytes"));
            };
            let mut files = Vec::new();
            for (index, layer) in manifest.layers.iter().enumerate() {
                let file = folder.join(index.to_string());
                fetch(&client, &parsed, layer, &file, &got).await.map_err(failed)?;
                files.push(file);
            }
            Ok(files)
        };
        let stored = match fetched.await {
            Ok(files) => {
                let source = format!("{}/{}@{digest}", parsed.resolve_registry(), parsed.repository());
                let store = self.clone();
                let reference = reference.to_owned();
                say("unpacking", 0.7, format!("{} layers", files.len()));
                let work = move || {
                    store.store_new(About { source, inputs, agents: BTreeMap::new() }, |_, rootfs| {
                        unpack(&files, rootfs, &|_| {})
                            .map_err(|error| ImageError::Pull { reference, detail: error.to_string() })
                    })
                };
                let worked = tokio::task::spawn_blocking(work).await;
                worked.unwrap_or_else(|error| Err(failed(error.to_string())))
            }
            Err(error) => Err(error),
        };
        let _ = fs::remove_dir_all(&folder);
        self.link(name, &stored?)?;
        say("done", 1.0, String::new());
        self.read(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_http_is_for_the_loopback_only() {
        for here in ["localhost", "localhost:5000", "127.0.0.1:5000", "127.3.2.1", "[::1]:5000"] {
            assert!(is_loopback(here), "{here}");
        }
        for there in ["registry.example", "localhost.example:5000", "10.0.0.1:5000", "0.0.0.0:5000", "[::2]:1"] {
            assert!(!is_loopback(there), "{there}");
        }
    }
}
