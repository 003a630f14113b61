//! Puts tools of the npm registry into an image, with what they depend on.
//!
//! The host's client installs them into a folder of its own, without running anything of theirs; from there they are copied
//! into the image, through which no link can lead outside.

use std::fmt;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::str::FromStr;

use super::unpack::Root;
use super::{ImageError, npm};

/// Longest name of a package, as the registry has it.
const MAX_NAME: usize = 214;
/// Longest version.
const MAX_VERSION: usize = 64;
/// Deepest folder of an installation.
const MAX_DEPTH: usize = 64;
/// Where packages are in an image.
const PREFIX: &str = "usr/local";

/// A package in one version, as in `typescript@5.9.2`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct NpmPackage {
    name: String,
    version: String,
}

impl fmt::Display for NpmPackage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.name, self.version)
    }
}

impl FromStr for NpmPackage {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let shape = "a package in a whole version, such as typescript@5.9.2 or @scope/name@1.0.0";
        let (name, version) = text.rsplit_once('@').ok_or_else(|| format!("{text:?} is not {shape}"))?;
        let plain = |part: &str| {
            part.starts_with(|first: char| first.is_ascii_lowercase() || first.is_ascii_digit())
                && part.bytes().all(|byte| {
                    byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'.' | b'-' | b'_')
                })
        };
        let named = match name.strip_prefix('@').map(|scoped| scoped.split_once('/')) {
            Some(Some((scope, name))) => plain(scope) && plain(name),
            Some(None) => false,
            None => plain(name),
        };
        // Whole versions only: a tag or a range would make two images of the same inputs different.
        let whole = version.len() <= MAX_VERSION
            && version.split(['-', '+']).next().is_some_and(|core| {
                core.split('.').count() == 3 && core.split('.').all(|part| part.parse::<u64>().is_ok())
            })
            && version.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'+'));
        if !named || name.len() > MAX_NAME || !whole {
            return Err(format!("{text:?} is not {shape}"));
        }
        Ok(Self { name: name.to_owned(), version: version.to_owned() })
    }
}

/// Installs packages into a root file system.
pub fn install(packages: &[NpmPackage], rootfs: &Path, work: &Path) -> Result<(), ImageError> {
    let prefix = work.join("npm-prefix");
    fs::create_dir(&prefix).map_err(ImageError::io("making", &prefix))?;
    let mut command = Command::new("npm");
    command.args([
        "install",
        "--global",
        "--ignore-scripts",
        "--no-audit",
        "--no-fund",
        "--no-progress",
        "--loglevel=error",
    ]);
    command.args(["--fetch-retries=1", "--os=linux", "--libc=glibc"]);
    command.arg(format!("--cpu={}", npm::cpu())).arg("--prefix").arg(&prefix);
    command.args(packages.iter().map(NpmPackage::to_string));
    npm::run(command.current_dir(work).stdin(Stdio::null()), "installing packages")?;
    let root = Root::open(rootfs).map_err(ImageError::io("opening", rootfs))?;
    for folder in ["lib/node_modules", "bin"] {
        let from = prefix.join(folder);
        if from.is_dir() {
            copy(&from, &root, &Path::new(PREFIX).join(folder), 0).map_err(ImageError::io("copying", &from))?;
        }
    }
    let _ = fs::remove_dir_all(&prefix);
    Ok(())
}

/// Copies a folder of the host's into an image. No link of it is followed.
fn copy(from: &Path, root: &Root, to: &Path, depth: usize) -> io::Result<()> {
    if depth > MAX_DEPTH {
        return Err(io::Error::other("its folders are too deep"));
    }
    root.directory(to, 0o755)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let (path, to) = (entry.path(), to.join(entry.file_name()));
        let kind = entry.file_type()?;
        if kind.is_dir() {
            copy(&path, root, &to, depth + 1)?;
        } else if kind.is_symlink() {
            let target: PathBuf = fs::read_link(&path)?;
            root.symlink(&to, &target)?;
        } else if kind.is_file() {
            let mut file = File::open(&path)?;
            let mode = if file.metadata()?.permissions().mode() & 0o100 != 0 { 0o755 } else { 0o644 };
            root.write_file(&to, mode, &mut file)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_package_is_named_with_its_whole_version() {
        for good in ["typescript@5.9.2", "@scope/name@1.0.0", "a.b_c-d@1.2.3-beta.1+5"] {
            assert_eq!(good.parse::<NpmPackage>().map(|package| package.to_string()), Ok(good.to_owned()));
        }
        for bad in [
            "",
            "typescript",
            "typescript@latest",
            "typescript@^5.0.0",
            "typescript@5",
            "@scope@1.0.0",
            "@scope/@1.0.0",
            "--registry=x@1.0.0",
            "../x@1.0.0",
            "a b@1.0.0",
            "file:x@1.0.0",
            "x@1.0.0 --registry=y",
            "X@1.0.0",
            "x@1.2.x",
        ] {
            assert!(bad.parse::<NpmPackage>().is_err(), "{bad}");
        }
    }
}
