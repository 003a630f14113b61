//! What a person may do in a team: three roles, each with the scopes that a key would need for the same.

use serde::{Deserialize, Serialize};

use crate::key::Scope;

/// A person's part in a team.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Reads everything of the team.
    Viewer,
    /// Works with tasks and campaigns besides.
    Operator,
    /// Has the team's keys, budgets and webhooks in hand besides, and may erase.
    Admin,
}

/// What a viewer may do.
const READS: &[Scope] = &[
    Scope::TasksRead,
    Scope::CampaignsRead,
    Scope::BudgetsRead,
    Scope::UsageRead,
    Scope::AuditRead,
    Scope::KeysRead,
    Scope::BillingRead,
    Scope::WebhooksRead,
    Scope::ExportsRead,
];
/// What an operator may do besides.
const WORKS: &[Scope] = &[Scope::TasksCreate, Scope::TasksCancel, Scope::CampaignsCreate, Scope::CampaignsCancel];
/// What an admin may do besides. Plans and prices are not among it: a team does not set what it is billed.
const GOVERNS: &[Scope] =
    &[Scope::BudgetsWrite, Scope::KeysWrite, Scope::ContentErase, Scope::WebhooksWrite, Scope::ExportsWrite];

impl Role {
    /// Every role, from the least to the most.
    pub const ALL: [Self; 3] = [Self::Viewer, Self::Operator, Self::Admin];

    /// The stable name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Viewer => "viewer",
            Self::Operator => "operator",
            Self::Admin => "admin",
        }
    }

    /// What it allows within a team.
    pub fn scopes(self) -> Vec<Scope> {
        match self {
            Self::Viewer => READS.to_vec(),
            Self::Operator => [READS, WORKS].concat(),
            Self::Admin => [READS, WORKS, GOVERNS].concat(),
        }
    }
}

impl std::fmt::Display for Role {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A role in a team.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Membership {
    /// The team; none for the operators of the whole server, whatever the role says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub team: Option<String>,
    /// The role.
    pub role: Role,
}

impl Membership {
    /// What it allows.
    pub fn scopes(&self) -> Vec<Scope> {
        match self.team {
            Some(_) => self.role.scopes(),
            None => vec![Scope::Admin],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_role_has_what_the_one_below_has_and_none_has_the_server() {
        for (lower, higher) in [(Role::Viewer, Role::Operator), (Role::Operator, Role::Admin)] {
            let (lower, higher) = (lower.scopes(), higher.scopes());
            assert!(lower.iter().all(|scope| higher.contains(scope)) && lower.len() < higher.len());
        }
        // Every scope that exists is decided upon: a new one fails here until somebody has.
        let beyond: Vec<_> = Scope::ALL.iter().filter(|scope| !Role::Admin.scopes().contains(scope)).collect();
        assert_eq!(beyond, [&Scope::BillingWrite, &Scope::Admin]);
        let reads = Role::Viewer.scopes();
        assert!(reads.iter().all(|scope| scope.as_str().ends_with(":read")), "{reads:?}");
    }

    #[test]
    fn only_who_belongs_to_no_single_team_has_them_all() {
        let server = Membership { team: None, role: Role::Admin };
        assert_eq!(server.scopes(), [Scope::Admin]);
        let team = Membership { team: Some("platform".to_owned()), role: Role::Admin };
        assert!(!team.scopes().contains(&Scope::Admin));
    }
}
