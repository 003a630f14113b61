//! `commits`: how the agents' work becomes commits, and what it is held against before it leaves the server.

use anyhow::{Context, bail};
use orchestra_actors::workshop::CommitRules;
use orchestra_runtime::git::{History, ImportLimits, ImportRules, NameRules, PROTECTED_FILES, SecretRules, Signature};
use serde::{Deserialize, Serialize};

use super::parse_bytes;

/// The smallest address space that the importing process does anything in.
const MIN_IMPORT_MEMORY: u64 = 256 << 20;

/// `commits`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CommitsSection {
    /// `keep` the agent's commits, each made anew by the server, or `squash` them to one.
    pub history: History,
    /// Who commits are by, as `Name <address>`.
    pub author: String,
    /// Who made them: some forges take only commits of whoever pushes.
    pub committer: String,
    /// Who else is named in them.
    pub co_authors: Vec<String>,
    /// Files that agents may not touch, as patterns over whole paths.
    pub protected_files: Vec<String>,
    /// Whether a new name may be other than UTF-8.
    pub names_not_utf8: bool,
    /// Whether a new name may be one that Windows cannot store.
    pub names_not_on_windows: bool,
    /// Whether a new name may differ from another of its folder in its case alone.
    pub case_twins: bool,
    /// Whether files that `.gitattributes` gives to Git LFS must stay pointers that the forge knows.
    pub lfs: bool,
    /// Whether new content is searched for secrets.
    pub search_secrets: bool,
    /// Files that are not searched.
    pub secrets_allowed_in: Vec<String>,
    /// Largest new or changed file.
    pub max_file: String,
    /// All new and changed files together.
    pub max_change: String,
    /// Memory of the process that reads the agent's work.
    pub import_memory: String,
}

impl Default for CommitsSection {
    fn default() -> Self {
        let who = "Orchestra <orchestra@localhost>".to_owned();
        Self {
            history: History::Keep,
            author: who.clone(),
            committer: who,
            co_authors: Vec::new(),
            protected_files: PROTECTED_FILES.map(str::to_owned).to_vec(),
            names_not_utf8: true,
            names_not_on_windows: true,
            case_twins: false,
            lfs: true,
            search_secrets: true,
            secrets_allowed_in: Vec::new(),
            max_file: "95MiB".to_owned(),
            max_change: "1GiB".to_owned(),
            import_memory: "1GiB".to_owned(),
        }
    }
}

/// Reads `Name <address>`.
fn person(text: &str) -> anyhow::Result<Signature> {
    let (name, rest) = text.split_once('<').unwrap_or((text, ""));
    let (name, email) = (name.trim(), rest.strip_suffix('>').unwrap_or_default().trim());
    if name.is_empty() || email.is_empty() || text.chars().any(char::is_control) || email.contains(['<', '>', ' ']) {
        bail!("{text:?} is nobody; write `Name <address>`");
    }
    Ok(Signature { name: name.to_owned(), email: email.to_owned() })
}

impl CommitsSection {
    /// The rules that this section stands for.
    pub fn rules(&self) -> anyhow::Result<CommitRules> {
        let bytes = |key: &str, text: &str| parse_bytes(text).with_context(|| format!("in commits.{key}"));
        let who = |key: &str, text: &str| person(text).with_context(|| format!("in commits.{key}"));
        let limits = ImportLimits {
            file_bytes: bytes("max_file", &self.max_file)?,
            total_bytes: bytes("max_change", &self.max_change)?,
            memory_bytes: bytes("import_memory", &self.import_memory)?,
            ..ImportLimits::default()
        };
        if limits.memory_bytes < MIN_IMPORT_MEMORY {
            bail!("commits.import_memory is at least 256MiB");
        }
        let secrets = SecretRules {
            search: self.search_secrets,
            allow_paths: self.secrets_allowed_in.clone(),
            ..SecretRules::default()
        };
        let (history, protected) = (self.history, self.protected_files.clone());
        let names = NameRules {
            non_utf8: self.names_not_utf8,
            not_on_windows: self.names_not_on_windows,
            case_twins: self.case_twins,
        };
        let import = ImportRules { limits, history, protected, names, lfs: self.lfs, secrets };
        import.check().context("in commits.protected_files or commits.secrets_allowed_in")?;
        Ok(CommitRules {
            import,
            author: who("author", &self.author)?,
            committer: who("committer", &self.committer)?,
            co_authors: self.co_authors.iter().map(|text| who("co_authors", text)).collect::<anyhow::Result<_>>()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn people_have_a_name_and_an_address() {
        let ada = person("Ada Lovelace <ada@example.com>").expect("a person");
        assert_eq!((&*ada.name, &*ada.email), ("Ada Lovelace", "ada@example.com"));
        for wrong in ["", "Ada", "<ada@example.com>", "Ada <>", "Ada <a b>", "Ada <a>\n<b>", "Ada <a> b"] {
            assert!(person(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn what_cannot_be_meant_is_refused_with_its_key() {
        CommitsSection::default().rules().expect("the defaults do");
        let wrong = |change: fn(&mut CommitsSection)| {
            let mut section = CommitsSection::default();
            change(&mut section);
            format!("{:#}", section.rules().expect_err("refused"))
        };
        assert!(wrong(|section| section.author = "me".to_owned()).contains("commits.author"));
        assert!(wrong(|section| section.max_file = "lots".to_owned()).contains("commits.max_file"));
        assert!(wrong(|section| section.import_memory = "1MiB".to_owned()).contains("256MiB"));
        assert!(wrong(|section| section.protected_files = vec!["a[".to_owned()]).contains("protected_files"));
    }
}
