//! Puts command line agents into an image: their programs only, out of the packages of the npm registry.
//!
//! Each vendor publishes the program for one platform as a package of its own, which the package that people install then
//! depends on. Only that one is fetched, so neither a second build of the same program nor an installation script comes with
//! it. Nothing of them is part of Orchestra: the operator installs them, under the vendors' terms.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use orchestra_events::task::event::Harness;

use super::unpack::Root;
use super::{ImageError, npm};

/// Where agents are in an image, each in a folder of its own.
const FOLDER: &str = "opt/agents";
/// Where their programs are found.
const PATH: &str = "usr/local/bin";
/// What loads programs that are linked to glibc.
const GLIBC: &str = "lib64/ld-linux-x86-64.so.2";
/// The longest version.
const MAX_VERSION: usize = 40;

/// An agent that can be put into an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Agent {
    harness: Harness,
    /// The version that is installed when none is named: the one that the adapters were tried with.
    version: &'static str,
    /// The package of its program for this kind of machine.
    package: &'static str,
    /// What follows the version in that package's own.
    suffix: &'static str,
    /// Whether there is a second package, for processors without AVX2.
    has_baseline: bool,
    /// The folder of its package that is taken.
    folder: &'static str,
    /// What is not taken of it.
    left_out: &'static [&'static str],
    /// Its program, in that folder.
    program: &'static str,
    /// What its program is called.
    name: &'static str,
    /// Whether its program is linked to glibc; it is a static one else.
    needs_glibc: bool,
}

const AGENTS: [Agent; 3] = [
    Agent {
        harness: Harness::Codex,
        version: "0.169.0",
        package: "@openai/codex",
        suffix: "-linux-x64",
        has_baseline: false,
        folder: "package/vendor/x86_64-unknown-linux-musl",
        // Speech, and a sandbox of its own that cannot be set up within ours.
        left_out: &["codex-resources"],
        program: "bin/codex",
        name: "codex",
        needs_glibc: false,
    },
    Agent {
        harness: Harness::Opencode,
        version: "1.18.33",
        package: "opencode-linux-x64",
        suffix: "",
        has_baseline: true,
        folder: "package/bin",
        left_out: &[],
        program: "opencode",
        name: "opencode",
        needs_glibc: true,
    },
    Agent {
        harness: Harness::ClaudeCode,
        version: "2.1.330",
        package: "@anthropic-ai/claude-code-linux-x64",
        suffix: "",
        has_baseline: false,
        folder: "package",
        left_out: &["package.json", "README.md"],
        program: "claude",
        name: "claude",
        needs_glibc: true,
    },
];

/// A command line agent in one version, as in `codex` or `codex@0.169.0`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AgentVersion {
    agent: &'static Agent,
    version: String,
}

impl AgentVersion {
    /// Which harness runs it.
    pub fn harness(&self) -> Harness {
        self.agent.harness
    }

    /// Its version.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// The package of its program for this machine.
    fn package(&self) -> String {
        let Agent { package, suffix, has_baseline, .. } = self.agent;
        let baseline = if *has_baseline && !has_avx2() { "-baseline" } else { "" };
        format!("{package}{baseline}@{}{suffix}", self.version)
    }

    /// Everything that decides what it puts into an image.
    pub(super) fn fingerprint(&self) -> String {
        self.package()
    }

    /// Fetches it and puts it into a root file system. `said` hears what is being done.
    pub(super) fn install(&self, rootfs: &Path, work: &Path, said: &dyn Fn(f64, &str)) -> Result<(), ImageError> {
        let agent = self.agent;
        let root = Root::open(rootfs).map_err(ImageError::io("opening", rootfs))?;
        let refused = |detail: String| ImageError::Agent { agent: self.to_string(), detail };
        if agent.needs_glibc && !root.has_file(Path::new(GLIBC)) {
            return Err(refused(format!(
                "its program needs glibc (/{GLIBC}), which the image has not; use a Debian image"
            )));
        }
        said(0.0, &format!("fetching {self}"));
        let archive = npm::fetch(&self.package(), work)?;
        said(0.5, &format!("unpacking {self}"));
        let home = Path::new(FOLDER).join(agent.harness.as_str());
        npm::unpack(&archive, rootfs, |path| {
            let rest = path.strip_prefix(agent.folder).ok()?;
            let left_out = agent.left_out.iter().any(|folder| rest.starts_with(folder));
            (!left_out && !rest.as_os_str().is_empty()).then(|| home.join(rest))
        })?;
        // The archive is as large as the program: room for the next.
        let _ = std::fs::remove_file(&archive);
        let program = home.join(agent.program);
        if !root.has_file(&program) {
            return Err(refused(format!("its package has no {}/{}; try another version", agent.folder, agent.program)));
        }
        let link = Path::new(PATH).join(agent.name);
        let target: PathBuf = PATH.split('/').map(|_| "..").chain([program.to_str().unwrap_or_default()]).collect();
        root.symlink(&link, &target).map_err(ImageError::io("linking in", rootfs))
    }
}

fn has_avx2() -> bool {
    #[cfg(target_arch = "x86_64")]
    return std::arch::is_x86_feature_detected!("avx2");
    #[cfg(not(target_arch = "x86_64"))]
    false
}

impl fmt::Display for AgentVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.agent.harness.as_str(), self.version)
    }
}

impl FromStr for AgentVersion {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, version) = text.split_once('@').map_or((text, None), |(name, version)| (name, Some(version)));
        let agent = AGENTS.iter().find(|agent| agent.harness.as_str() == name).ok_or_else(|| {
            let known: Vec<&str> = AGENTS.iter().map(|agent| agent.harness.as_str()).collect();
            format!("no agent is called {name:?}; there are {}", known.join(", "))
        })?;
        let version = version.unwrap_or(agent.version);
        // Whole versions only: a tag or a range would make two images of the same inputs different.
        let whole = version.len() <= MAX_VERSION
            && version.split('.').count() == 3
            && version.starts_with(|first: char| first.is_ascii_digit())
            && version.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-'));
        if !whole {
            return Err(format!("{version:?} is not a whole version such as {}", agent.version));
        }
        Ok(Self { agent, version: version.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_agent_is_named_with_or_without_its_version() {
        let agent: AgentVersion = "codex".parse().unwrap();
        assert_eq!((agent.harness(), agent.package().as_str()), (Harness::Codex, "@openai/codex@0.169.0-linux-x64"));
        let agent: AgentVersion = "claude-code@3.0.1".parse().unwrap();
        assert_eq!(agent.package(), "@anthropic-ai/claude-code-linux-x64@3.0.1");
        assert_eq!(agent.to_string(), "claude-code@3.0.1");
        let agent: AgentVersion = "opencode@2.0.0-beta1".parse().unwrap();
        assert!(agent.package().starts_with("opencode-linux-x64") && agent.package().ends_with("@2.0.0-beta1"));
    }

    #[test]
    fn what_is_no_agent_or_no_whole_version_is_refused() {
        for text in ["", "aider", "builtin", "command", "Codex", "codex ", "--registry"] {
            let refused = text.parse::<AgentVersion>().unwrap_err();
            assert!(refused.contains("codex, opencode, claude-code"), "{refused}");
        }
        for version in ["", "latest", "^1.2.3", "1.2", "1.2.3 --registry=x", "1.2.3\n", "../x.y.z", &"1.2.3".repeat(20)]
        {
            let refused = format!("codex@{version}").parse::<AgentVersion>().unwrap_err();
            assert!(refused.contains("whole version"), "{refused}");
        }
    }
}
