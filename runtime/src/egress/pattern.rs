//! Lists of hosts, as operators and callers write them: `registry.example`, `*.example.com`, either with `:port`.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use super::authority::{Authority, read_host};
use super::reason::Reason;

/// The word that stands for the hosts which the image's own package managers are configured for.
pub const PACKAGE_REGISTRIES: &str = "package-registries";

/// Most entries of one list.
pub const MAX_ENTRIES: usize = 200;

/// The ports of a pattern that names none: those of https and http.
const DEFAULT_PORTS: [u16; 2] = [443, 80];

/// An entry of a list that does not do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{entry:?} is neither {PACKAGE_REGISTRIES:?} nor a host such as \"registry.example\", \"*.example.com\" or \"registry.example:8443\": {why}"
)]
pub struct PatternError {
    entry: String,
    why: &'static str,
}

/// Hosts that may be connected to.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Pattern {
    /// Every name below `host`, and not `host` itself.
    below: bool,
    host: String,
    port: Option<u16>,
}

/// An entry of a list.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Entry {
    /// What [`PACKAGE_REGISTRIES`] stands for.
    PackageRegistries,
    /// Hosts.
    Hosts(Pattern),
}

impl FromStr for Pattern {
    type Err = PatternError;

    fn from_str(text: &str) -> Result<Self, PatternError> {
        let wrong = |why| PatternError { entry: text.chars().filter(|c| !c.is_control()).take(300).collect(), why };
        let (below, rest) = match text.strip_prefix("*.") {
            Some(rest) => (true, rest),
            None => (false, text),
        };
        let explicit = rest.contains(':');
        let read = if explicit {
            Authority::read(rest.as_bytes(), None)
        } else {
            read_host(rest).map(|host| Authority { host, port: 0 })
        };
        let found = read.map_err(|reason| wrong(reason.told()))?;
        Ok(Self { below, host: found.host, port: explicit.then_some(found.port) })
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let star = if self.below { "*." } else { "" };
        match self.port {
            Some(port) => write!(f, "{star}{}:{port}", self.host),
            None => write!(f, "{star}{}", self.host),
        }
    }
}

impl FromStr for Entry {
    type Err = PatternError;

    fn from_str(text: &str) -> Result<Self, PatternError> {
        // In any capitals: as the name of a host, it would be written in small letters and read again as the word.
        match text.eq_ignore_ascii_case(PACKAGE_REGISTRIES) {
            true => Ok(Self::PackageRegistries),
            false => text.parse().map(Self::Hosts),
        }
    }
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PackageRegistries => f.write_str(PACKAGE_REGISTRIES),
            Self::Hosts(pattern) => pattern.fmt(f),
        }
    }
}

impl Pattern {
    fn has_host(&self, host: &str) -> bool {
        if self.below {
            host.strip_suffix(&*self.host).is_some_and(|rest| rest.len() > 1 && rest.ends_with('.'))
        } else {
            host == self.host
        }
    }

    fn has_port(&self, port: u16) -> bool {
        self.port.map_or(DEFAULT_PORTS.contains(&port), |own| own == port)
    }

    /// Whether everything that `other` allows is allowed by this one too.
    fn covers(&self, other: &Self) -> bool {
        let hosts = match other.below {
            true => self.below && (self.host == other.host || self.has_host(&other.host)),
            false => self.has_host(&other.host),
        };
        let ports = match other.port {
            Some(port) => self.has_port(port),
            None => self.port.is_none(),
        };
        hosts && ports
    }
}

/// Reads a list.
///
/// # Errors
/// At the first entry that is none, with its place; or when there are more than [`MAX_ENTRIES`].
pub fn read_list(texts: &[String]) -> Result<Vec<Entry>, (usize, PatternError)> {
    if let Some(entry) = texts.get(MAX_ENTRIES) {
        let entry = entry.chars().take(100).collect();
        return Err((MAX_ENTRIES, PatternError { entry, why: "a list has at most 200 entries" }));
    }
    texts.iter().enumerate().map(|(place, text)| text.parse().map_err(|error| (place, error))).collect()
}

/// The patterns of a list, with the image's registries where the word for them stands. A registry that does not read is
/// left out: it comes from files of the image.
pub fn expand(list: &[Entry], registries: &BTreeSet<String>) -> Vec<Pattern> {
    let mut patterns = BTreeSet::new();
    for entry in list {
        match entry {
            Entry::PackageRegistries => {
                // Wildcards are people's: a file of an image does not open a whole domain.
                patterns.extend(
                    registries.iter().filter_map(|host| host.parse().ok()).filter(|host: &Pattern| !host.below),
                );
            }
            Entry::Hosts(pattern) => {
                patterns.insert(pattern.clone());
            }
        }
    }
    patterns.into_iter().collect()
}

/// Whether an entry lies within a list: the word within the word, hosts within hosts or the image's registries.
pub fn is_within(entry: &Entry, ceiling: &[Entry], registries: &BTreeSet<String>) -> bool {
    match entry {
        Entry::PackageRegistries => ceiling.contains(&Entry::PackageRegistries),
        Entry::Hosts(pattern) => expand(ceiling, registries).iter().any(|upper| upper.covers(pattern)),
    }
}

/// Whether a list allows this host with this port.
///
/// # Errors
/// The reason why not.
pub fn allows(patterns: &[Pattern], target: &Authority) -> Result<(), Reason> {
    let mut of_host = patterns.iter().filter(|pattern| pattern.has_host(&target.host)).peekable();
    if of_host.peek().is_none() {
        return Err(Reason::NotAllowed);
    }
    if of_host.any(|pattern| pattern.has_port(target.port)) { Ok(()) } else { Err(Reason::PortNotAllowed) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(texts: &[&str]) -> Vec<Entry> {
        read_list(&texts.iter().map(|&text| text.to_owned()).collect::<Vec<_>>()).unwrap()
    }

    fn registries(texts: &[&str]) -> BTreeSet<String> {
        texts.iter().map(|&text| text.to_owned()).collect()
    }

    #[test]
    fn a_pattern_is_a_name_or_all_names_below_one() {
        for (pattern, target, verdict) in [
            ("a.example", "a.example:443", Ok(())),
            ("a.example", "a.example:80", Ok(())),
            ("a.example", "a.example:8080", Err(Reason::PortNotAllowed)),
            ("a.example:8080", "a.example:443", Err(Reason::PortNotAllowed)),
            ("a.example:8080", "a.example:8080", Ok(())),
            ("A.Example", "a.example:443", Ok(())),
            ("a.example", "b.a.example:443", Err(Reason::NotAllowed)),
            ("*.example", "example:443", Err(Reason::NotAllowed)),
            ("*.example", "a.b.example:443", Ok(())),
            ("*.a.example", "evil-a.example:443", Err(Reason::NotAllowed)),
            ("*.a.example", "a.example.evil:443", Err(Reason::NotAllowed)),
            ("a.example", "evil-a.example:443", Err(Reason::NotAllowed)),
        ] {
            let patterns = expand(&list(&[pattern]), &BTreeSet::new());
            let target = Authority::read(target.as_bytes(), None).unwrap();
            assert_eq!(allows(&patterns, &target), verdict, "{pattern} {target:?}");
        }
        for wrong in [
            "",
            "*",
            "*.",
            "*example",
            "a.*.example",
            "10.0.0.1",
            "[::1]",
            "localhost",
            "a.example:0",
            "http://a.example",
            "a.example/x",
        ] {
            assert!(wrong.parse::<Entry>().is_err(), "{wrong:?}");
        }
        let many: Vec<String> = (0..=MAX_ENTRIES).map(|number| format!("h{number}.example")).collect();
        assert_eq!(read_list(&many).unwrap_err().0, MAX_ENTRIES);
    }

    #[test]
    fn the_word_stands_for_the_images_registries_and_for_nothing_else() {
        let own = registries(&["packages.example", "crates.example:8443", "*.everything", "10.0.0.1"]);
        let patterns = expand(&list(&[PACKAGE_REGISTRIES, "a.example"]), &own);
        let texts: Vec<_> = patterns.iter().map(ToString::to_string).collect();
        assert_eq!(texts, ["a.example", "crates.example:8443", "packages.example"]);
        assert!(expand(&list(&[PACKAGE_REGISTRIES]), &BTreeSet::new()).is_empty());
        // In whatever capitals: a host of that name would be stored, and read again, as the word.
        assert_eq!(list(&["Package-Registries"]), [Entry::PackageRegistries]);
    }

    #[test]
    fn a_ceiling_covers_what_is_not_wider_than_it() {
        let own = registries(&["packages.example"]);
        for (ceiling, entry, within) in [
            (&["a.example"][..], "a.example", true),
            (&["a.example"], "a.example:443", true),
            (&["a.example"], "a.example:8443", false),
            (&["a.example:443"], "a.example", false),
            (&["a.example"], "*.a.example", false),
            (&["*.example"], "*.a.example", true),
            (&["*.a.example"], "*.example", false),
            (&["*.example"], "example", false),
            (&[PACKAGE_REGISTRIES], PACKAGE_REGISTRIES, true),
            (&[PACKAGE_REGISTRIES], "packages.example", true),
            (&[PACKAGE_REGISTRIES], "other.example", false),
            (&["packages.example"], PACKAGE_REGISTRIES, false),
            (&[], "a.example", false),
        ] {
            assert_eq!(is_within(&entry.parse().unwrap(), &list(ceiling), &own), within, "{ceiling:?} {entry}");
        }
    }
}
