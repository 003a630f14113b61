//! The layers of the configuration: defaults, file, environment and command line, merged, checked and remembered by source.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, bail};
use toml::{Table, Value};

use super::{Config, KEYS};

/// What starts every variable of ours.
const PREFIX: &str = "ORCHESTRA_";

/// The configuration, and where each of its values is from.
pub struct Loaded {
    /// The effective values.
    pub config: Config,
    /// The source of each leaf, by its path.
    pub sources: BTreeMap<String, String>,
}

/// Where to look for the file when the command line does not say.
const DEFAULT_FILE: &str = "/etc/orchestra/orchestra.toml";

/// Loads the layers. `overrides` are paths and values of the command line.
pub fn load(
    file: Option<&Path>,
    environment: impl Iterator<Item = (String, String)>,
    overrides: Vec<(&str, String)>,
) -> anyhow::Result<Loaded> {
    let mut sources = BTreeMap::new();
    let mut table = Table::try_from(Config::default()).context("the defaults do not serialise")?;
    note(&table, "", "default", &mut sources);
    let file = match file {
        Some(file) => Some(file),
        None => Some(Path::new(DEFAULT_FILE)).filter(|file| file.exists()),
    };
    if let Some(file) = file {
        let text = std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
        let layer: Table = text.parse().with_context(|| format!("{} is not TOML", file.display()))?;
        check(&layer, "").with_context(|| format!("in {}", file.display()))?;
        note(&layer, "", &file.display().to_string(), &mut sources);
        merge(&mut table, layer);
    }
    let mut variables: Vec<_> = environment.filter(|(name, _)| name.starts_with(PREFIX)).collect();
    variables.sort();
    for (name, text) in variables {
        let path = name[PREFIX.len()..].to_ascii_lowercase().replace("__", ".");
        // Those that are no configuration: the client's server address and key, and the tests' image folder.
        if matches!(&*path, "url" | "key" | "images" | "failpoint" | "registry_password") {
            continue;
        }
        known(&path).with_context(|| format!("in the environment variable {name}"))?;
        set(&mut table, &path, &text).with_context(|| format!("in the environment variable {name}"))?;
        sources.insert(path, name);
    }
    for (path, text) in overrides {
        set(&mut table, path, &text)?;
        sources.insert(path.to_owned(), "command line".to_owned());
    }
    let config: Config = Value::Table(table).try_into().map_err(|error: toml::de::Error| {
        // Whole, it names the key; a value of the wrong kind is found nowhere else.
        let lines: Vec<_> = error.to_string().lines().map(str::to_owned).collect();
        anyhow::anyhow!("the configuration does not read: {}", lines.join(" "))
    })?;
    let config = config.anchored()?;
    config.check()?;
    Ok(Loaded { config, sources })
}

fn matches_pattern(pattern: &str, path: &str) -> bool {
    let (mut pattern, mut path) = (pattern.split('.'), path.split('.'));
    loop {
        match (pattern.next(), path.next()) {
            (None, None) => return true,
            (Some("*"), Some(name)) if !name.is_empty() => {}
            (Some(expected), Some(given)) if expected == given => {}
            _ => return false,
        }
    }
}

/// Refuses a path that names no key, with the nearest that does.
fn known(path: &str) -> anyhow::Result<()> {
    if KEYS.iter().any(|pattern| matches_pattern(pattern, path)) {
        return Ok(());
    }
    // Put the given name where the pattern has a star, so that only the misspelt part differs.
    let candidates = KEYS.iter().map(|pattern| {
        let given: Vec<_> = path.split('.').collect();
        let parts: Vec<_> = pattern
            .split('.')
            .enumerate()
            .map(|(place, part)| if part == "*" { given.get(place).copied().unwrap_or("NAME") } else { part })
            .collect();
        parts.join(".")
    });
    match candidates.max_by(|a, b| strsim::jaro_winkler(a, path).total_cmp(&strsim::jaro_winkler(b, path))) {
        Some(nearest) => bail!("unknown key {path:?}; the nearest known key is {nearest:?}"),
        None => bail!("unknown key {path:?}"),
    }
}

fn join(prefix: &str, key: &str) -> String {
    if prefix.is_empty() { key.to_owned() } else { format!("{prefix}.{key}") }
}

pub(super) fn check(table: &Table, prefix: &str) -> anyhow::Result<()> {
    for (key, value) in table {
        let path = join(prefix, key);
        let inner = KEYS.iter().any(|pattern| {
            let depth = path.split('.').count();
            let head: Vec<_> = pattern.split('.').take(depth).collect();
            pattern.split('.').count() > depth && matches_pattern(&head.join("."), &path)
        });
        match value {
            Value::Table(table) if inner => check(table, &path)?,
            _ => known(&path)?,
        }
    }
    Ok(())
}

fn note(table: &Table, prefix: &str, source: &str, sources: &mut BTreeMap<String, String>) {
    for (key, value) in table {
        let path = join(prefix, key);
        match value {
            Value::Table(table) => note(table, &path, source, sources),
            _ => {
                sources.insert(path, source.to_owned());
            }
        }
    }
}

fn merge(into: &mut Table, layer: Table) {
    for (key, value) in layer {
        match (into.get_mut(&key), value) {
            (Some(Value::Table(known)), Value::Table(layer)) => merge(known, layer),
            (_, value) => {
                into.insert(key, value);
            }
        }
    }
}

/// Sets a leaf from text, read as what the key holds: lists are separated by commas.
fn set(table: &mut Table, path: &str, text: &str) -> anyhow::Result<()> {
    let (parents, leaf) = path.rsplit_once('.').map_or((None, path), |(parents, leaf)| (Some(parents), leaf));
    let mut table = table;
    for parent in parents.into_iter().flat_map(|parents| parents.split('.')) {
        let entry = table.entry(parent).or_insert_with(|| Value::Table(Table::new()));
        table = entry.as_table_mut().with_context(|| format!("{parent:?} is not a section"))?;
    }
    let value = match leaf {
        "pids" | "warm_pool" | "places" | "per_team" | "depth" | "lowers" | "first" | "ranges" | "max_connections"
        | "most_failures" | "attempts" | "retries_per_task" | "max" | "web_search" | "web_fetch" => {
            Value::Integer(text.parse().with_context(|| format!("{path} is a whole number, not {text:?}"))?)
        }
        "cpus" => Value::Float(text.parse().with_context(|| format!("{path} is a number, not {text:?}"))?),
        "key_required"
        | "refund_failed"
        | "search_secrets"
        | "allow_default"
        | "names_not_utf8"
        | "names_not_on_windows"
        | "case_twins"
        | "lfs" => Value::Boolean(text.parse().with_context(|| format!("{path} is true or false, not {text:?}"))?),
        "allow" | "permit" | "networks" | "models" | "images" | "co_authors" | "protected_files"
        | "secrets_allowed_in" | "bases" | "names" | "push_options" | "scopes" => Value::Array(
            text.split(',')
                .map(str::trim)
                .filter(|host| !host.is_empty())
                .map(|host| Value::String(host.into()))
                .collect(),
        ),
        "prices" | "map" => format!("{leaf} = {text}")
            .parse::<Table>()
            .ok()
            .and_then(|mut table| table.remove(leaf))
            .with_context(|| format!("{path} is a TOML array of tables"))?,
        _ => Value::String(text.to_owned()),
    };
    table.insert(leaf.to_owned(), value);
    Ok(())
}

impl Loaded {
    /// Every effective value with its source. No value is a secret: keys are named by their variable.
    pub fn print(&self) -> anyhow::Result<String> {
        let table = Table::try_from(&self.config).context("the configuration does not serialise")?;
        let mut lines = Vec::new();
        print_table(&table, "", &self.sources, &mut lines);
        Ok(lines.join("\n"))
    }
}

fn print_table(table: &Table, prefix: &str, sources: &BTreeMap<String, String>, lines: &mut Vec<String>) {
    for (key, value) in table {
        let path = join(prefix, key);
        match value {
            Value::Table(table) => print_table(table, &path, sources, lines),
            value => {
                let source = sources.get(&path).map_or("default", String::as_str);
                lines.push(format!("{path} = {}  # {source}", redacted(&path, value)));
            }
        }
    }
}

/// User names and passwords do not belong into URLs; who put them there does not get them printed.
fn redacted(path: &str, value: &Value) -> String {
    match value.as_str() {
        Some(url) if path.ends_with("_url") && url.contains('@') => "\"(redacted)\"".to_owned(),
        _ => value.to_string(),
    }
}
