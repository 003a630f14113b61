//! The documents that an image consists of beside its layers, as the OCI image specification and the older Docker one have
//! them: an index over platforms, a manifest, a configuration.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::Deserialize;
use sha2::{Digest as _, Sha256};

use super::error::PullFault;
use super::layer::hexadecimal;

/// Largest document; the specification asks registries for 4 MiB.
pub const MAX_DOCUMENT: u64 = 4 << 20;
/// Most layers: twice of what the engines make.
const MAX_LAYERS: usize = 256;
/// Most entries of an index that are looked at.
const MAX_PLATFORMS: usize = 1_000;
/// Variables of an image that are taken, and the bytes of all together.
const MAX_VARIABLES: usize = 200;
const MAX_VARIABLE_BYTES: usize = 32 << 10;
/// What a sandbox says itself, whatever its image says.
const OURS: &[&str] =
    &["HOME", "USER", "LOGNAME", "SHELL", "TMPDIR", "TERM", "GIT_TERMINAL_PROMPT", "NPM_CONFIG_PREFIX"];

/// A SHA-256 digest, in hexadecimal.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest(String);

impl Digest {
    /// Of these bytes.
    pub fn of(bytes: &[u8]) -> Self {
        Self(hexadecimal(Sha256::new_with_prefix(bytes)))
    }

    /// Its 64 digits.
    pub fn hex(&self) -> &String {
        &self.0
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", self.0)
    }
}

impl FromStr for Digest {
    type Err = PullFault;

    fn from_str(text: &str) -> Result<Self, PullFault> {
        let hex = text.strip_prefix("sha256:").filter(|hex| hex.len() == 64);
        let hex = hex.filter(|hex| hex.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')));
        let shown: String = text.chars().filter(|letter| !letter.is_control()).take(100).collect();
        hex.map(|hex| Self(hex.to_owned()))
            .ok_or_else(|| PullFault::Invalid(format!("{shown:?} is not a SHA-256 digest")))
    }
}

/// Names a blob or a document.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    digest: String,
    #[serde(default)]
    size: i64,
    #[serde(default)]
    media_type: String,
    platform: Option<Platform>,
    #[serde(default)]
    pub annotations: BTreeMap<String, String>,
}

impl Descriptor {
    /// Of what is named only by its digest.
    pub fn digest(&self) -> Result<Digest, PullFault> {
        self.digest.parse()
    }

    /// Its size in bytes.
    pub fn size(&self) -> Result<u64, PullFault> {
        u64::try_from(self.size).map_err(|_| PullFault::Invalid("the size of a blob is negative".into()))
    }
}

#[derive(Debug, Clone, Deserialize)]
struct Platform {
    #[serde(default)]
    os: String,
    #[serde(default)]
    architecture: String,
    variant: Option<String>,
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = format!("{}/{}", self.os, self.architecture);
        f.write_str(&shown.chars().filter(|letter| !letter.is_control()).take(40).collect::<String>())
    }
}

/// A manifest, or an index over some.
#[derive(Debug)]
pub enum Document {
    /// One image.
    Image(Manifest),
    /// Several, by platform or by name.
    Index(Vec<Descriptor>),
}

/// One image for one platform.
#[derive(Debug)]
pub struct Manifest {
    /// Its configuration.
    pub config: Descriptor,
    /// From the lowest up.
    pub layers: Vec<Descriptor>,
}

fn invalid(what: &str) -> impl Fn(serde_json::Error) -> PullFault {
    let what = what.to_owned();
    move |error| PullFault::Invalid(format!("{what} does not read: {error}"))
}

impl Document {
    /// Reads one.
    pub fn read(bytes: &[u8]) -> Result<Self, PullFault> {
        #[derive(Deserialize)]
        struct Any {
            config: Option<Descriptor>,
            layers: Option<Vec<Descriptor>>,
            manifests: Option<Vec<Descriptor>>,
        }
        match serde_json::from_slice(bytes).map_err(invalid("its manifest"))? {
            Any { manifests: Some(manifests), .. } => Ok(Self::Index(manifests)),
            Any { config: Some(config), layers: Some(layers), .. } => Ok(Self::Image(Manifest { config, layers })),
            Any { .. } => Err(PullFault::Invalid("its manifest is of a kind that is not known".into())),
        }
    }
}

/// The architecture of this machine, in the words of the specification (which are Go's).
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// The entry of an index for this kind of machine.
pub fn for_this_machine(entries: &[Descriptor]) -> Result<&Descriptor, PullFault> {
    let entries = &entries[..entries.len().min(MAX_PLATFORMS)];
    let fits = |entry: &&Descriptor| {
        entry
            .platform
            .as_ref()
            .is_some_and(|platform| platform.os == "linux" && platform.architecture == architecture())
    };
    // One that asks for no special processor goes first.
    let plain = |entry: &&Descriptor| entry.platform.as_ref().is_some_and(|platform| platform.variant.is_none());
    let found = entries.iter().filter(fits).find(plain).or_else(|| entries.iter().find(fits));
    let alone = || match entries {
        [only] if only.platform.is_none() => Some(only),
        _ => None,
    };
    found.or_else(alone).ok_or_else(|| {
        let mut there: Vec<String> =
            entries.iter().filter_map(|entry| Some(entry.platform.as_ref()?.to_string())).collect();
        there.retain(|platform| platform != "unknown/unknown");
        there.dedup();
        there.truncate(20);
        PullFault::NoPlatform { wanted: format!("linux/{}", architecture()), there }
    })
}

/// What an image says about itself.
#[derive(Debug)]
pub struct Config {
    /// The digests of its layers, unpacked, from the lowest up.
    pub diff_ids: Vec<Digest>,
    /// The variables of its programs.
    pub env: Vec<(String, String)>,
}

impl Config {
    /// Reads one, for an image with so many layers.
    pub fn read(bytes: &[u8], layers: usize) -> Result<Self, PullFault> {
        #[derive(Deserialize)]
        struct Whole {
            rootfs: Option<RootFs>,
            config: Option<Inner>,
        }
        #[derive(Deserialize)]
        struct RootFs {
            #[serde(default)]
            diff_ids: Vec<String>,
        }
        #[derive(Deserialize)]
        struct Inner {
            #[serde(rename = "Env")]
            env: Option<Vec<String>>,
        }
        let whole: Whole = serde_json::from_slice(bytes).map_err(invalid("its configuration"))?;
        let diff_ids = whole.rootfs.map(|rootfs| rootfs.diff_ids).unwrap_or_default();
        if diff_ids.len() != layers {
            let detail = format!("its configuration speaks of {} layers, its manifest of {layers}", diff_ids.len());
            return Err(PullFault::Invalid(detail));
        }
        if layers == 0 || layers > MAX_LAYERS {
            return Err(PullFault::Invalid(format!("it has {layers} layers; 1 to {MAX_LAYERS} are taken")));
        }
        let env = whole.config.and_then(|config| config.env).unwrap_or_default();
        let diff_ids = diff_ids.iter().map(|digest| digest.parse()).collect::<Result<_, _>>()?;
        Ok(Self { diff_ids, env: variables(&env) })
    }
}

fn variables(env: &[String]) -> Vec<(String, String)> {
    let name_fits = |name: &str| {
        name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
            && name.bytes().next().is_some_and(|first| !first.is_ascii_digit())
            // The way out is the server's to say, and so is what loads into every program.
            && !name.to_ascii_lowercase().ends_with("_proxy")
            && !name.starts_with("LD_")
            && !OURS.contains(&name)
    };
    let mut left = MAX_VARIABLE_BYTES;
    let pairs = env.iter().filter_map(|pair| pair.split_once('='));
    let fitting = pairs.filter(|(name, value)| name_fits(name) && !value.contains('\0'));
    let mut taken: Vec<(String, String)> = Vec::new();
    for (name, value) in fitting.take(MAX_VARIABLES) {
        let Some(after) = left.checked_sub(name.len() + value.len()) else { break };
        left = after;
        taken.push((name.to_owned(), value.to_owned()));
    }
    taken
}

/// Whether a layer is a file system, as far as its media type says.
pub fn is_file_system(layer: &Descriptor) -> bool {
    layer.media_type.is_empty() || layer.media_type.contains("tar")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn index(entries: &str) -> Vec<Descriptor> {
        match Document::read(format!("{{\"manifests\":[{entries}]}}").as_bytes()).expect("an index") {
            Document::Index(entries) => entries,
            Document::Image(_) => panic!("an index"),
        }
    }

    #[test]
    fn this_machines_platform_is_chosen_and_what_there_is_else_is_named() {
        let entry = |digit: char, os: &str, architecture: &str, variant: &str| {
            let digest = digit.to_string().repeat(64);
            format!(
                "{{\"digest\":\"sha256:{digest}\",\"size\":1,\"platform\":{{\"os\":\"{os}\",\"architecture\":\"{architecture}\"{variant}}}}}"
            )
        };
        let here = architecture();
        let all = [
            entry('1', "windows", here, ""),
            entry('2', "linux", "s390x", ""),
            entry('3', "linux", here, ",\"variant\":\"v3\""),
            entry('4', "linux", here, ""),
            entry('5', "unknown", "unknown", ""),
        ];
        let chosen =
            |entries: &[String]| for_this_machine(&index(&entries.join(","))).map(|entry| entry.digest.clone());
        assert!(chosen(&all).expect("there").ends_with('4'));
        assert!(chosen(&all[..3]).expect("there").ends_with('3'));
        let refused = chosen(&[all[0].clone(), all[1].clone(), all[4].clone()]).expect_err("none").to_string();
        assert!(refused.contains("linux/s390x") && !refused.contains("unknown"), "{refused}");
    }

    #[test]
    fn variables_of_an_image_do_not_override_what_a_sandbox_says() {
        let env = [
            "PATH=/opt/bin:/bin",
            "HOME=/root",
            "https_proxy=http://x",
            "LD_PRELOAD=/x",
            "1A=b",
            "A-B=c",
            "EMPTY=",
            "no",
        ];
        let taken = variables(&env.map(str::to_owned));
        let expected = [("PATH", "/opt/bin:/bin"), ("EMPTY", "")];
        assert_eq!(taken, expected.map(|(name, value)| (name.to_owned(), value.to_owned())));
        let many: Vec<String> = (0..1_000).map(|number| format!("V{number}=x")).collect();
        assert_eq!(variables(&many).len(), MAX_VARIABLES);
        assert!(variables(&[format!("BIG={}", "x".repeat(MAX_VARIABLE_BYTES))]).is_empty());
    }

    #[test]
    fn what_is_no_digest_is_refused() {
        let whole = format!("sha256:{}", "0".repeat(64));
        assert!(whole.parse::<Digest>().is_ok());
        for text in ["", "sha256:", "sha512:00", &whole.to_uppercase(), &whole.replace('0', "/"), &format!("{whole}0")]
        {
            assert!(text.parse::<Digest>().is_err(), "{text}");
        }
    }
}
