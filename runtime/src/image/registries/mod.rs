//! Which hosts an image's own package managers fetch from: npm, pip (and uv), cargo and apt, each asked in its own files.
//!
//! No registry is known here by name. A default is read where the program itself has it: in npm's and pip's code, in cargo's
//! and uv's binary. Every file is a stranger's: it is opened beneath the image's root, read up to a bound, and gives host names
//! and nothing else. What only an index itself can say, namely which other host its files lie on, it is asked once.

mod ask;
mod config;
mod files;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::Path;
use std::sync::LazyLock;
use std::time::{Duration, SystemTime};

use regex::Regex;
use reqwest::Url;
use serde::{Deserialize, Serialize};

use super::ImageError;
use ask::Question;
use config::{Setting, settings};
use files::Files;

/// Most hosts of one image.
const MAX_HOSTS: usize = 64;
/// Longest name of a host, as DNS has it.
const MAX_HOST: usize = 253;
/// Raised when more, or other things, are read: what was kept is read anew then.
const READER: u32 = 1;
/// Where what was found is kept, beside the manifest.
const FILE: &str = "registries.json";
/// How long an answer without an index's word stands.
const ASK_AGAIN: Duration = Duration::from_secs(600);

#[derive(Serialize, Deserialize)]
struct Kept {
    reader: u32,
    hosts: BTreeSet<String>,
    /// Indexes that could not be asked.
    #[serde(default)]
    silent: BTreeSet<String>,
}

/// What was found for the image in this folder, if somebody has looked and there is nothing more to ask.
pub(super) fn kept(home: &Path) -> Option<BTreeSet<String>> {
    let path = home.join(FILE);
    let kept: Kept = serde_json::from_slice(&fs::read(&path).ok()?).ok()?;
    let age = || SystemTime::now().duration_since(fs::metadata(&path).ok()?.modified().ok()?).ok();
    let stands = kept.silent.is_empty() || age().is_some_and(|age| age < ASK_AGAIN);
    (kept.reader == READER && stands).then_some(kept.hosts)
}

/// Looks, and keeps what was found.
pub(super) fn read_and_keep(
    home: &Path,
    rootfs: &Path,
    env: &BTreeMap<String, String>,
) -> Result<BTreeSet<String>, ImageError> {
    let found = read(rootfs, env).map_err(ImageError::io("looking for registries in", rootfs))?;
    let mut hosts = found.hosts;
    let answers = ask::ask_all(found.questions);
    hosts.extend(answers.hosts);
    let hosts: BTreeSet<String> = hosts.into_iter().take(MAX_HOSTS).collect();
    let kept = Kept { reader: READER, hosts, silent: answers.silent };
    let (path, partial) = (home.join(FILE), home.join(format!(".{FILE}.{}", uuid::Uuid::now_v7())));
    let text = serde_json::to_vec_pretty(&kept).expect("it has string keys");
    // Not being able to keep it costs the next reader a moment.
    if let Err(error) = fs::write(&partial, text).and_then(|()| fs::rename(&partial, &path)) {
        tracing::debug!(path = %path.display(), %error, "an image's registries are not kept");
    }
    Ok(kept.hosts)
}

/// The host of an address, with its port unless that is the scheme's own.
fn host(address: &str) -> Option<String> {
    let address = address.trim();
    let address = address.strip_prefix("sparse+").or_else(|| address.strip_prefix("git+")).unwrap_or(address);
    let url = Url::parse(address.strip_prefix("registry+").unwrap_or(address)).ok()?;
    let name = url.host_str().filter(|_| matches!(url.scheme(), "http" | "https"))?;
    let name = name.trim_end_matches('.').to_ascii_lowercase();
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-');
    if name.is_empty() || name.len() > MAX_HOST || !name.bytes().all(plain) {
        return None;
    }
    Some(url.port().map_or(name.clone(), |port| format!("{name}:{port}")))
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Found {
    hosts: BTreeSet<String>,
    questions: Vec<Question>,
}

impl Found {
    fn add(&mut self, address: &str) -> bool {
        let host = host(address).filter(|host| self.hosts.len() < MAX_HOSTS || self.hosts.contains(host));
        host.map(|host| self.hosts.insert(host)).is_some()
    }

    /// An index of packages: its host, and whatever it says of others.
    fn index(&mut self, address: &str, question: fn(String) -> Question) {
        if self.add(address) {
            let question = question(address.trim().to_owned());
            if !self.questions.contains(&question) {
                self.questions.push(question);
            }
        }
    }
}

fn read(rootfs: &Path, env: &BTreeMap<String, String>) -> io::Result<Found> {
    let files = Files::open(rootfs)?;
    let mut found = Found::default();
    let env = Variables(env);
    npm(&files, env, &mut found);
    pip(&files, env, &mut found);
    uv(&files, env, &mut found);
    cargo(&files, env.0, &mut found);
    apt(&files, &mut found);
    Ok(found)
}

/// The variables of an image.
#[derive(Clone, Copy)]
struct Variables<'env>(&'env BTreeMap<String, String>);

impl<'env> Variables<'env> {
    /// A variable, in whatever case; empty when it is not set.
    fn get(self, name: &str) -> &'env str {
        let given = self.0.iter().find(|(given, _)| given.eq_ignore_ascii_case(name));
        given.map_or("", |(_, value)| value.trim())
    }
}

static NPM_DEFAULT: LazyLock<Regex> = LazyLock::new(|| {
    // `registry: 'https://…'` in the options' defaults; `'registry', { default: …` in the definitions.
    Regex::new(r#"(?:\bregistry:\s*|['"]registry['"],\s*\{\s*default:\s*)['"`](https?://[^'"`\s]+)"#)
        .expect("a constant")
});

/// The folders that npm may be installed in.
const NPM: &[&str] = &["usr/local/lib/node_modules/npm", "usr/lib/node_modules/npm", "usr/share/nodejs/npm"];
/// Where its code has its defaults, in its various ages.
const NPM_CODE: &[&str] = &[
    "node_modules/npm-registry-fetch/lib/default-opts.js",
    "node_modules/npm-registry-fetch/default-opts.js",
    "node_modules/npm-registry-fetch/config.js",
    "node_modules/@npmcli/config/lib/definitions/definitions.js",
    "lib/utils/config/definitions.js",
    "lib/config/defaults.js",
    "../npm-registry-fetch/lib/default-opts.js",
    "../npm-registry-fetch/lib/index.js",
];

fn npm(files: &Files, env: Variables<'_>, found: &mut Found) {
    let homes: Vec<String> = NPM
        .iter()
        .map(|&home| home.to_owned())
        .chain(["usr/local/nvm/versions/node", "root/.nvm/versions/node"].iter().flat_map(|versions| {
            files.list(versions).into_iter().map(move |version| format!("{versions}/{version}/lib/node_modules/npm"))
        }))
        .filter(|home| files.is_there(&format!("{home}/package.json")))
        .collect();
    let mut replaced = false;
    let mut of = |path: &str, counts: bool| {
        for Setting { key, value, .. } in settings(&files.text(path)) {
            if key == "registry" || key.ends_with(":registry") {
                found.index(&value, Question::Npm);
                replaced |= counts && key == "registry";
            }
        }
    };
    for home in &homes {
        of(&format!("{home}/npmrc"), true);
    }
    for global in ["usr/local/etc/npmrc", "etc/npmrc", "usr/etc/npmrc"] {
        of(global, true);
    }
    // The homes are not those of a sandbox, whose own is empty: what is named there may be wanted, and replaces nothing.
    for user in ["root/.npmrc", "home/agent/.npmrc"] {
        of(user, false);
    }
    let given = env.get("npm_config_registry");
    if !given.is_empty() {
        found.index(given, Question::Npm);
        replaced = true;
    }
    if replaced {
        return;
    }
    for home in homes {
        let code = NPM_CODE.iter().map(|code| files.text(&format!("{home}/{code}")));
        let default = code.into_iter().find_map(|code| Some(NPM_DEFAULT.captures(&code)?[1].to_owned()));
        if let Some(default) = default {
            found.index(&default, Question::Npm);
        }
    }
}

static PIP_DEFAULT: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(
        r#"(?m)^PyPI\s*=\s*PackageIndex\(\s*['"](https?://[^'"]+)['"](?:,\s*file_storage_domain=['"]([^'"]+)['"])?"#,
    )
    .expect("a constant")
});

/// The folders that Python packages may be installed in.
fn python_folders(files: &Files) -> Vec<String> {
    let mut folders = vec!["usr/lib/python3/dist-packages".to_owned()];
    for lib in ["usr/lib", "usr/local/lib", "opt/venv/lib", "venv/lib"] {
        for version in files.list(lib).into_iter().filter(|name| name.starts_with("python3.")) {
            folders.extend(["site-packages", "dist-packages"].map(|kind| format!("{lib}/{version}/{kind}")));
        }
    }
    folders
}

fn pip(files: &Files, env: Variables<'_>, found: &mut Found) {
    let mut code: Vec<String> = python_folders(files)
        .iter()
        .map(|folder| files.text(&format!("{folder}/pip/_internal/models/index.py")))
        .filter(|code| !code.is_empty())
        .collect();
    if code.is_empty() {
        // What a new virtual environment gets its pip out of.
        code.extend(files.in_wheel("usr/share/python-wheels", "pip-", "pip/_internal/models/index.py"));
    }
    if code.is_empty() {
        return;
    }
    let mut replaced = false;
    let mut of = |path: &str, counts: bool| {
        for Setting { key, value, .. } in settings(&files.text(path)) {
            let key = key.replace('_', "-");
            match key.as_str() {
                "index-url" | "extra-index-url" => {
                    value.split_whitespace().for_each(|address| found.index(address, Question::Pip));
                    replaced |= counts && key == "index-url";
                }
                "find-links" => value.split_whitespace().for_each(|address| {
                    found.add(address);
                }),
                _ => {}
            }
        }
    };
    for path in ["etc/pip.conf", "etc/xdg/pip/pip.conf", "usr/pip.conf", "usr/local/pip.conf", "opt/venv/pip.conf"] {
        of(path, true);
    }
    for path in ["root/.config/pip/pip.conf", "root/.pip/pip.conf", "home/agent/.config/pip/pip.conf"] {
        of(path, false);
    }
    for name in ["PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL"] {
        for address in env.get(name).split_whitespace() {
            found.index(address, Question::Pip);
            replaced |= name == "PIP_INDEX_URL";
        }
    }
    for default in code.iter().filter(|_| !replaced).filter_map(|code| PIP_DEFAULT.captures(code)) {
        found.index(&format!("{}/simple", default[1].trim_end_matches('/')), Question::Pip);
        if let Some(storage) = default.get(2) {
            found.add(&format!("https://{}", storage.as_str()));
        }
    }
}

static SIMPLE_INDEX: LazyLock<regex::bytes::Regex> =
    LazyLock::new(|| regex::bytes::Regex::new(r"https://((?:[a-z0-9-]+\.)+[a-z]{2,})/simple").expect("a constant"));

fn uv(files: &Files, env: Variables<'_>, found: &mut Found) {
    let programs = ["usr/local/bin/uv", "usr/bin/uv", "bin/uv", "uv", "root/.local/bin/uv", "root/.cargo/bin/uv"];
    let Some(program) = programs.iter().find(|path| files.is_there(path)) else { return };
    let mut replaced = false;
    for Setting { key, value, section } in settings(&files.text("etc/uv/uv.toml")) {
        if matches!(key.as_str(), "index-url" | "extra-index-url" | "default-index")
            || (key == "url" && section == "index")
        {
            value.split(|letter: char| letter.is_whitespace() || "[]\",".contains(letter)).for_each(|address| {
                found.index(address, Question::Pip);
            });
            replaced |= matches!(key.as_str(), "index-url" | "default-index");
        }
    }
    for name in ["UV_INDEX_URL", "UV_DEFAULT_INDEX", "UV_EXTRA_INDEX_URL", "UV_INDEX"] {
        for address in env.get(name).split_whitespace() {
            found.index(address.split_once('=').map_or(address, |(_, address)| address), Question::Pip);
            replaced |= matches!(name, "UV_INDEX_URL" | "UV_DEFAULT_INDEX");
        }
    }
    if !replaced && let Some(default) = files.most_frequent(program, &SIMPLE_INDEX) {
        found.index(&format!("https://{default}/simple"), Question::Pip);
    }
}

static SPARSE_INDEX: LazyLock<regex::bytes::Regex> =
    LazyLock::new(|| regex::bytes::Regex::new(r"sparse\+https://((?:[a-z0-9-]+\.)+[a-z]{2,})/").expect("a constant"));
/// What cargo read before there were sparse indexes.
static GIT_INDEX: LazyLock<regex::bytes::Regex> = LazyLock::new(|| {
    regex::bytes::Regex::new(r"https://((?:[a-z0-9-]+\.)+[a-z]{2,})/[a-z-]+/[a-z.]+-index").expect("a constant")
});

fn cargo(files: &Files, env: &BTreeMap<String, String>, found: &mut Found) {
    let inside = |name: &str, default: &str| env.get(name).map_or(default, String::as_str).trim_matches('/').to_owned();
    let (home, rustup) = (inside("CARGO_HOME", "usr/local/cargo"), inside("RUSTUP_HOME", "usr/local/rustup"));
    let mut programs = vec!["usr/bin/cargo".to_owned(), "usr/local/bin/cargo".to_owned(), format!("{home}/bin/cargo")];
    for rustup in [rustup.as_str(), "root/.rustup"] {
        let toolchains = format!("{rustup}/toolchains");
        programs.extend(files.list(&toolchains).iter().map(|name| format!("{toolchains}/{name}/bin/cargo")));
    }
    programs.retain(|path| files.is_there(path));
    if programs.is_empty() {
        return;
    }
    let mut replaced = false;
    for config in [format!("{home}/config.toml"), format!("{home}/config"), "root/.cargo/config.toml".to_owned()] {
        for Setting { section, key, value } in settings(&files.text(&config)) {
            match (section.split('.').next(), key.as_str()) {
                (Some("registries" | "registry"), "index") | (Some("source"), "registry") => {
                    found.index(&value, Question::Cargo);
                }
                (Some("source"), "replace-with") => replaced |= !config.starts_with("root/"),
                _ => {}
            }
        }
    }
    for (name, value) in env {
        if name.starts_with("CARGO_REGISTRIES_") && name.ends_with("_INDEX") {
            found.index(value, Question::Cargo);
        }
    }
    if replaced {
        return;
    }
    // The first of them may be the launcher, which knows of no index.
    let sparse = programs.iter().find_map(|program| files.most_frequent(program, &SPARSE_INDEX));
    match sparse {
        Some(index) => found.index(&format!("sparse+https://{index}/"), Question::Cargo),
        None => {
            let index = programs.iter().find_map(|program| files.most_frequent(program, &GIT_INDEX));
            if let Some(index) = index {
                found.add(&format!("https://{index}/"));
            }
        }
    }
}

fn apt(files: &Files, found: &mut Found) {
    let folder = "etc/apt/sources.list.d";
    let mut paths = vec!["etc/apt/sources.list".to_owned()];
    paths.extend(files.list(folder).iter().map(|name| format!("{folder}/{name}")));
    for path in paths {
        let text = files.text(&path);
        let addresses = if path.ends_with(".sources") {
            config::stanza_addresses(&text)
        } else if path.ends_with(".list") {
            config::line_addresses(&text)
        } else {
            continue;
        };
        for address in addresses {
            let address = address.strip_prefix("mirror+").unwrap_or(&address);
            match address.strip_prefix("file:") {
                Some(list) => {
                    let list = files.text(list.trim_start_matches('/'));
                    list.lines().filter_map(|line| line.split_whitespace().next()).for_each(|mirror| {
                        found.add(mirror);
                    });
                }
                None => {
                    found.add(address);
                }
            }
        }
    }
}
