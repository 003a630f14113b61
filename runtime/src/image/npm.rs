//! Takes files out of packages of the npm registry, with the host's own client: its configuration says which registry, and
//! it checks what it fetched.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use flate2::read::GzDecoder;

use super::{ImageError, unpack};

/// Lines of npm's talk that are quoted when it fails: the first say what it was.
const FIRST_WORDS: usize = 4;

fn failed(detail: String) -> ImageError {
    ImageError::Program { program: "npm", detail }
}

/// Whether the host has a client.
pub fn is_there() -> bool {
    let asked = Command::new("npm").arg("--version").stdin(Stdio::null()).output();
    asked.is_ok_and(|output| output.status.success())
}

/// What this kind of processor is called there.
pub fn cpu() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "x64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// Runs the client to its end.
pub fn run(command: &mut Command, doing: &str) -> Result<Output, ImageError> {
    let output =
        command.output().map_err(|error| failed(format!("it cannot be run ({error}); install npm, then try again")))?;
    if output.status.success() {
        return Ok(output);
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let said = said
        .lines()
        .map(|line| line.trim_start_matches("npm error").trim())
        .filter(|line| !line.is_empty() && !line.contains("log of this run"));
    Err(failed(format!("{doing}: {}", said.take(FIRST_WORDS).collect::<Vec<_>>().join("; "))))
}

/// Fetches a package as an archive. None of its programs is run.
pub fn fetch(package: &str, work: &Path) -> Result<PathBuf, ImageError> {
    let mut command = Command::new("npm");
    // One more try after a network fault: the default has the caller wait for minutes when there is no network.
    command.args(["pack", package, "--loglevel=error", "--no-progress", "--fetch-retries=1", "--ignore-scripts"]);
    command.arg("--pack-destination").arg(work).current_dir(work).stdin(Stdio::null());
    let output = run(&mut command, &format!("fetching {package}"))?;
    let said = String::from_utf8_lossy(&output.stdout);
    let name = said.lines().map(str::trim).rfind(|line| line.ends_with(".tgz"));
    let name = name.ok_or_else(|| failed(format!("fetching {package}: it named no file")))?;
    let path = work.join(Path::new(name).file_name().unwrap_or_default());
    if path.is_file() { Ok(path) } else { Err(failed(format!("fetching {package}: there is no {}", path.display()))) }
}

/// Puts the files of an archive into a root file system, each where `place` says, if it says so.
pub fn unpack(archive: &Path, rootfs: &Path, place: impl Fn(&Path) -> Option<PathBuf>) -> Result<(), ImageError> {
    let reading = || ImageError::io("reading", archive);
    let root = unpack::Root::open(rootfs).map_err(ImageError::io("opening", rootfs))?;
    let mut tar = tar::Archive::new(GzDecoder::new(File::open(archive).map_err(reading())?));
    for entry in tar.entries().map_err(reading())? {
        let mut entry = entry.map_err(reading())?;
        let path = entry.path().map_err(reading())?.into_owned();
        let Some(at) = place(&path).filter(|_| entry.header().entry_type().is_file()) else { continue };
        let mode = if entry.header().mode().unwrap_or(0) & 0o100 != 0 { 0o755 } else { 0o644 };
        root.write_file(&at, mode, &mut entry as &mut dyn Read).map_err(reading())?;
    }
    Ok(())
}
