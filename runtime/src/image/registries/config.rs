//! Reads what package managers are configured with: `key = value` in three dialects, and apt's two kinds of lists.

/// A setting.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting {
    /// The section it stands in, without brackets; empty where there are none.
    pub section: String,
    /// Its name.
    pub key: String,
    /// Its value, without quotes; lines that go on are joined by blanks.
    pub value: String,
}

/// Most settings of one file.
const MAX_SETTINGS: usize = 1_000;

fn bare(text: &str) -> &str {
    let text = text.trim();
    let quoted = |quote: char| text.strip_prefix(quote).and_then(|text| text.split(quote).next());
    quoted('"').or_else(|| quoted('\'')).unwrap_or(text)
}

/// The settings of an `npmrc`, a `pip.conf`, or the plain ones of a TOML file.
pub fn settings(text: &str) -> Vec<Setting> {
    let mut section = String::new();
    let mut settings: Vec<Setting> = Vec::new();
    for line in text.lines() {
        let trimmed = line.trim();
        if trimmed.is_empty() || trimmed.starts_with(['#', ';']) {
            continue;
        }
        if trimmed.starts_with('[') && !trimmed.contains('=') && !line.starts_with([' ', '\t']) {
            section = trimmed.trim_matches(['[', ']']).to_owned();
            continue;
        }
        // What an indented line says of pip may belong to the line before; elsewhere, indentation means nothing.
        let goes_on = line.starts_with([' ', '\t']) && trimmed.split('=').next().is_none_or(|key| key.contains("://"));
        match (settings.last_mut(), trimmed.split_once('=')) {
            (Some(last), _) if goes_on => {
                last.value.push(' ');
                last.value.push_str(bare(trimmed));
            }
            (_, Some((key, value))) => {
                let value = value.split(" #").next().unwrap_or(value);
                let (key, value) = (bare(key).to_ascii_lowercase(), bare(value).to_owned());
                settings.push(Setting { section: section.clone(), key, value });
            }
            (_, None) => {}
        }
        if settings.len() >= MAX_SETTINGS {
            break;
        }
    }
    settings
}

/// The addresses of apt's one-line format.
pub fn line_addresses(text: &str) -> Vec<String> {
    let address = |line: &str| {
        let rest = line.trim().strip_prefix("deb")?;
        let rest = rest.strip_prefix("-src").unwrap_or(rest).strip_prefix([' ', '\t'])?.trim_start();
        let rest = if rest.starts_with('[') { rest.split_once(']')?.1 } else { rest };
        rest.split_whitespace().next().map(str::to_owned)
    };
    text.lines().filter_map(address).take(MAX_SETTINGS).collect()
}

/// The addresses of apt's newer format: stanzas of fields.
pub fn stanza_addresses(text: &str) -> Vec<String> {
    let mut addresses = Vec::new();
    let (mut enabled, mut in_addresses, mut of_stanza) = (true, false, Vec::new());
    for line in text.lines().chain([""]) {
        if line.starts_with('#') {
            continue;
        }
        if line.trim().is_empty() {
            if enabled {
                addresses.append(&mut of_stanza);
            }
            (enabled, in_addresses) = (true, false);
            of_stanza.clear();
            continue;
        }
        let words = if line.starts_with([' ', '\t']) {
            if in_addresses { line } else { continue }
        } else {
            let Some((field, value)) = line.split_once(':') else { continue };
            in_addresses = field.trim().eq_ignore_ascii_case("uris");
            if field.trim().eq_ignore_ascii_case("enabled") {
                enabled = !matches!(
                    value.trim().to_ascii_lowercase().as_str(),
                    "no" | "false" | "off" | "0" | "without" | "disable"
                );
            }
            if in_addresses { value } else { continue }
        };
        of_stanza.extend(words.split_whitespace().take(MAX_SETTINGS).map(str::to_owned));
    }
    addresses.truncate(MAX_SETTINGS);
    addresses
}
