//! A Debian root file system, made by mmdebstrap from the host's own package sources.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::ImageError;

/// Lines of mmdebstrap's talk that are quoted when it fails.
const LAST_WORDS: usize = 15;
/// Longest line of its talk that is looked at.
const MAX_LINE: usize = 4_096;
/// What is left out of every package: nothing that a build reads.
const LEFT_OUT: &[&str] = &["/usr/share/doc/*", "/usr/share/man/*", "/usr/share/info/*", "/usr/share/locale/*"];
/// What an image is built of when the host is no Debian: the stable release that mmdebstrap's own keys know.
const DEFAULT_SUITE: &str = "bookworm";

/// Where packages come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sources {
    /// The release.
    pub suite: String,
    /// The host's entries about Debian itself, in the newer format.
    stanzas: String,
    /// The same in the one-line format.
    lines: String,
}

/// Whether an entry is about Debian's own archive: one of its suites, not a third party's that merely uses the name.
fn is_debians(suites: &str, components: &str, suite: &str) -> bool {
    let known = |name: &str| {
        let rest = name.trim_end_matches('/').strip_prefix(suite);
        matches!(rest, Some("" | "-updates" | "-security" | "/updates"))
    };
    !suites.trim().is_empty()
        && suites.split_whitespace().all(known)
        && components.split_whitespace().any(|component| component == "main")
}

fn field<'text>(stanza: &'text str, name: &str) -> &'text str {
    let line = stanza.lines().find_map(|line| line.split_once(':').filter(|(key, _)| key.eq_ignore_ascii_case(name)));
    line.map_or("", |(_, value)| value.trim())
}

fn from_stanzas(text: &str, suite: &str) -> String {
    let wanted = text.split("\n\n").filter(|stanza| {
        field(stanza, "types").split_whitespace().any(|kind| kind == "deb")
            && !field(stanza, "enabled").eq_ignore_ascii_case("no")
            && is_debians(field(stanza, "suites"), field(stanza, "components"), suite)
    });
    wanted.map(|stanza| format!("{}\n\n", stanza.trim())).collect()
}

fn from_lines(text: &str, suite: &str) -> String {
    let wanted = text.lines().filter(|line| {
        let Some(rest) = line.trim().strip_prefix("deb ") else { return false };
        let rest = rest.trim_start();
        let rest = if rest.starts_with('[') { rest.split_once(']').map_or("", |(_, rest)| rest) } else { rest };
        let mut words = rest.split_whitespace().skip(1);
        let named = words.next().unwrap_or("");
        is_debians(named, &words.collect::<Vec<_>>().join(" "), suite)
    });
    wanted.map(|line| format!("{}\n", line.trim())).collect()
}

impl Sources {
    /// The host's own, as far as they are Debian's; mmdebstrap's default otherwise.
    pub fn of_host() -> Self {
        let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
        let value = |name: &str| release.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
        let suite = match (value("ID"), value("VERSION_CODENAME")) {
            (Some("debian"), Some(suite)) => suite.trim_matches('"').to_owned(),
            _ => return Self { suite: DEFAULT_SUITE.into(), stanzas: String::new(), lines: String::new() },
        };
        let folder = fs::read_dir("/etc/apt/sources.list.d").into_iter().flatten().flatten();
        let mut files: Vec<PathBuf> = folder.map(|entry| entry.path()).collect();
        files.push("/etc/apt/sources.list".into());
        files.sort();
        let (mut stanzas, mut lines) = (String::new(), String::new());
        for file in files {
            let text = fs::read_to_string(&file).unwrap_or_default();
            match file.extension().and_then(|extension| extension.to_str()) {
                Some("sources") => stanzas.push_str(&from_stanzas(&text, &suite)),
                Some("list") => lines.push_str(&from_lines(&text, &suite)),
                _ => {}
            }
        }
        Self { suite, stanzas, lines }
    }

    /// Everything of them that decides what an image holds.
    pub fn fingerprint(&self) -> String {
        format!("{}\n{}\n{}", self.suite, self.stanzas, self.lines)
    }

    fn write(&self, folder: &Path) -> Result<Vec<PathBuf>, ImageError> {
        let mut files = Vec::new();
        for (name, text) in [("debian.sources", &self.stanzas), ("debian.list", &self.lines)] {
            if !text.is_empty() {
                let file = folder.join(name);
                fs::write(&file, text).map_err(ImageError::io("writing", &file))?;
                files.push(file);
            }
        }
        Ok(files)
    }
}

/// How far mmdebstrap is, read off what it says.
#[derive(Default)]
struct Talk {
    /// Packages of the current batch, and how many of them are fetched and set up.
    batch: f64,
    fetched: f64,
    set_up: f64,
    /// 0 before the first batch, 1 in it (the essential packages), 2 in the second (all others).
    stage: u8,
}

impl Talk {
    /// Takes a line; the fraction of the whole that is done by now.
    fn hear(&mut self, line: &str) -> f64 {
        if let Some(count) = line.split(" newly installed").next().filter(|_| line.contains(" newly installed")) {
            let count = count.rsplit(' ').next().and_then(|word| word.parse().ok()).unwrap_or(0.0f64);
            *self = Self { batch: count, stage: (self.stage + 1).min(2), ..Self::default() };
        } else if line.starts_with("Get:") {
            self.fetched += 1.0;
        } else if line.starts_with("Setting up ") {
            self.set_up += 1.0;
        }
        let part = |done: f64| if self.batch > 0.0 { (done / self.batch).min(1.0) } else { 0.0 };
        let batch = 0.3 * part(self.fetched) + 0.7 * part(self.set_up);
        match self.stage {
            0 => 0.02,
            1 => 0.05 + 0.45 * batch,
            _ => 0.5 + 0.5 * batch,
        }
    }
}

/// Makes the root file system in `rootfs`, which must not exist yet; `heard` gets the fraction done and the last line.
pub fn bootstrap(
    sources: &Sources,
    packages: &[String],
    work: &Path,
    rootfs: &Path,
    heard: &dyn Fn(f64, &str),
) -> Result<(), ImageError> {
    let failed = |detail: String| ImageError::Program { program: "mmdebstrap", detail };
    let files = sources.write(work)?;
    let mut command = Command::new("mmdebstrap");
    command.args(["--variant=minbase", "--format=directory", "--verbose"]);
    command.arg(format!("--include={}", packages.join(",")));
    command.arg("--aptopt=Acquire::Languages \"none\"");
    command.args(LEFT_OUT.iter().map(|path| format!("--dpkgopt=path-exclude={path}")));
    command.arg(&sources.suite).arg(rootfs).args(files);
    command.env("LC_ALL", "C.UTF-8").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command
        .spawn()
        .map_err(|error| failed(format!("it cannot be run ({error}); install the package mmdebstrap")))?;
    let mut last: Vec<String> = Vec::new();
    let mut talk = Talk::default();
    if let Some(stderr) = child.stderr.take() {
        for line in BufReader::new(stderr).split(b'\n').map_while(Result::ok) {
            let line = String::from_utf8_lossy(&line[..line.len().min(MAX_LINE)]).trim().to_owned();
            heard(talk.hear(&line), &line);
            last.push(line);
            if last.len() > LAST_WORDS {
                last.remove(0);
            }
        }
    }
    let status = child.wait().map_err(|error| failed(error.to_string()))?;
    if status.success() { Ok(()) } else { Err(failed(format!("{status}: {}", last.join("\n")))) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_debians_own_entries_are_taken() {
        let text = "Types: deb\nURIs: http://x/debian\nSuites: bookworm bookworm-updates\nComponents: main\n\n\
                    Types: deb\nURIs: https://other\nSuites: nodistro\nComponents: main\n\n\
                    Types: deb\nURIs: https://disabled\nSuites: bookworm\nComponents: main\nEnabled: no\n";
        let taken = from_stanzas(text, "bookworm");
        assert!(
            taken.contains("http://x/debian") && !taken.contains("other") && !taken.contains("disabled"),
            "{taken}"
        );
        let text = "deb http://x/debian bookworm main\n# deb http://y bookworm main\ndeb-src http://x bookworm main\n\
                    deb [signed-by=/k] http://z bookworm-security main contrib\ndeb https://w cloud-sdk-bookworm main\n";
        let taken = from_lines(text, "bookworm");
        assert_eq!(taken.lines().count(), 2, "{taken}");
        assert!(taken.contains("http://x/debian") && taken.contains("http://z"), "{taken}");
    }

    #[test]
    fn progress_only_grows() {
        let mut lines = vec!["I: running apt-get update...".to_owned()];
        for batch in [3, 5] {
            lines.push(format!("0 upgraded, {batch} newly installed, 0 to remove and 0 not upgraded."));
            lines.extend((0..batch).map(|n| format!("Get:{n} http://x")));
            lines.extend((0..batch).map(|n| format!("Setting up p{n} (1) ...")));
        }
        let mut talk = Talk::default();
        let seen: Vec<f64> = lines.iter().map(|line| talk.hear(line)).collect();
        assert!(seen.is_sorted(), "{seen:?}");
        assert!((seen.last().copied().unwrap_or(0.0) - 1.0).abs() < 1e-9, "{seen:?}");
    }
}
