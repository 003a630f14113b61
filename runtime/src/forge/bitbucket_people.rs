//! Whom a name means on Bitbucket Cloud, where accounts have no user names any more.
//!
//! An account has a UUID, an Atlassian account id, a nickname and a full name; of these only the first two are its own.

use serde_json::Value;

/// Why a name is asked nothing that no member of the workspace has.
pub(super) const NOBODY: &str = "nobody in the workspace has this name";

/// A name, and the accounts that it may mean.
pub(super) struct Wanted {
    name: String,
    uuids: Vec<String>,
}

/// Somebody to be asked for a review.
pub(super) struct Reviewer {
    /// As the wish names them.
    pub(super) name: String,
    /// The account, in braces.
    pub(super) uuid: String,
}

impl Wanted {
    /// A name as somebody wrote it.
    pub(super) fn new(name: &str) -> Self {
        let name = name.trim().trim_start_matches('@').to_owned();
        let bare = name.trim_start_matches('{').trim_end_matches('}');
        let uuids = uuid::Uuid::try_parse(bare).map(|_| vec![format!("{{{bare}}}")]).unwrap_or_default();
        Self { name, uuids }
    }

    /// Whether this member of the workspace is meant.
    pub(super) fn meet(&mut self, member: &Value) {
        let text = |pointer: &str| member.pointer(pointer).and_then(Value::as_str);
        let Some(uuid) = text("/user/uuid") else { return };
        let same = |pointer: &str| text(pointer).is_some_and(|told| told.eq_ignore_ascii_case(&self.name));
        let met = ["/user/account_id", "/user/nickname", "/user/display_name"].into_iter().any(same);
        if met && !self.uuids.iter().any(|known| known == uuid) {
            self.uuids.push(uuid.to_owned());
        }
    }

    /// Whether there is nothing to look up.
    pub(super) fn known(&self) -> bool {
        !self.uuids.is_empty()
    }

    /// Who is meant, or why nobody is asked.
    pub(super) fn found(self) -> Result<Reviewer, (String, &'static str)> {
        let Self { name, mut uuids } = self;
        match (uuids.pop(), uuids.is_empty()) {
            (Some(uuid), true) => Ok(Reviewer { name, uuid }),
            (Some(_), false) => Err((name, "several people have this name; give the account's UUID")),
            (None, _) => Err((name, NOBODY)),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_name_is_a_uuid_or_is_looked_up() {
        let uuid = "504c3b62-8120-4f0c-a7bc-87800b9d6f70";
        assert_eq!(Wanted::new(uuid).uuids, [format!("{{{uuid}}}")]);
        assert_eq!(Wanted::new(&format!("{{{uuid}}}")).uuids, [format!("{{{uuid}}}")]);
        let member =
            json!({"user": {"uuid": "{u}", "nickname": "Ann", "account_id": "557058:1", "display_name": "Ann B"}});
        for name in ["ann", "@Ann", "557058:1", "Ann B"] {
            let mut wanted = Wanted::new(name);
            wanted.meet(&member);
            assert_eq!(wanted.uuids, ["{u}"], "{name}");
        }
        let mut other = Wanted::new("bob");
        other.meet(&member);
        assert!(!other.known() && other.found().is_err_and(|(name, why)| name == "bob" && why == NOBODY));
        let mut ann = Wanted::new("ann");
        ann.meet(&member);
        ann.meet(&json!({"user": {"uuid": "{v}", "nickname": "ann"}}));
        assert!(ann.found().is_err_and(|(_, why)| why.contains("several")));
    }
}
