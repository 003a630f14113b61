//! People whom an identity provider vouches for: how a browser is bound to its sign-in, and what groups mean here.
//!
//! Nothing about a sign-in that is under way is kept here: `state`, `nonce` and PKCE's verifier are all made of one secret
//! in a cookie of the browser that began it. Who has no such cookie cannot finish a sign-in, and nobody can fill a table.

use std::sync::Arc;
use std::time::Duration;

use orchestra_actors::{Attempt, Identity, IdentityError, IdentityProvider};
use orchestra_events::session::{Holder, Membership, Role, Session};
use secrecy::{ExposeSecret as _, SecretString};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use super::keys::random_hex;

/// The cookie of a sign-in that is under way, encrypted and not.
pub const COOKIE: (&str, &str) = ("__Host-orchestra_sign_in", "orchestra_sign_in");
/// How long a person may take at the provider.
pub const LIFETIME: Duration = Duration::from_secs(10 * 60);
/// The path that the provider sends the browser back to.
pub const RETURN_PATH: &str = "/sign-in/oidc/return";
/// Longest path to go on to that is remembered, in bytes.
const MAX_NEXT: usize = 1_000;

/// What being in a group means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupRule {
    /// The group's name at the provider.
    pub group: String,
    /// What its members are here.
    pub membership: Membership,
}

/// The identity provider, as the dashboard uses it.
#[derive(Clone)]
pub struct People {
    provider: Arc<dyn IdentityProvider>,
    label: String,
    rules: Arc<[GroupRule]>,
    redirect_uri: String,
}

/// What binds a sign-in to a browser: the secret in its cookie, and where the person wanted to go.
pub struct Bond {
    secret: SecretString,
    next: String,
    state: String,
    nonce: String,
    verifier: String,
}

impl People {
    /// With this provider, whose button reads so; groups mean what the rules say. `public_url` is where browsers are sent
    /// back to.
    pub fn new(provider: Arc<dyn IdentityProvider>, label: String, rules: Vec<GroupRule>, public_url: &str) -> Self {
        let redirect_uri = format!("{}{RETURN_PATH}", public_url.trim_end_matches('/'));
        Self { provider, label, rules: rules.into(), redirect_uri }
    }

    /// What the button says.
    pub fn label(&self) -> &str {
        &self.label
    }

    /// Where the browser is sent.
    pub async fn begin(&self, bond: &Bond) -> Result<String, IdentityError> {
        self.provider.authorization_url(&self.attempt(bond)).await
    }

    /// Who came back.
    pub async fn finish(&self, bond: &Bond, code: &str, issuer: Option<&str>) -> Result<Identity, IdentityError> {
        self.provider.redeem(code, issuer, &self.attempt(bond)).await
    }

    fn attempt<'a>(&'a self, bond: &'a Bond) -> Attempt<'a> {
        Attempt { state: &bond.state, nonce: &bond.nonce, verifier: &bond.verifier, redirect_uri: &self.redirect_uri }
    }

    /// Whether somebody would be let in today with what this session gives them: its provider is asked still, and each of
    /// its memberships is one that a group has. Which groups they are in now, only the provider knows.
    pub fn still_give(&self, session: &Session) -> bool {
        let Holder::Person { issuer, .. } = &session.grant.holder else { return true };
        let given = |membership: &Membership| self.rules.iter().any(|rule| rule.membership == *membership);
        issuer == self.provider.issuer() && session.grant.memberships.iter().all(given)
    }

    /// What somebody in these groups is here: in each team the most that any of them gives, in the order of the rules.
    pub fn memberships(&self, groups: &[String]) -> Vec<Membership> {
        let mut found: Vec<Membership> = Vec::new();
        for rule in self.rules.iter().filter(|rule| groups.contains(&rule.group)) {
            match found.iter_mut().find(|membership| membership.team == rule.membership.team) {
                Some(membership) => membership.role = membership.role.max(rule.membership.role),
                None => found.push(rule.membership.clone()),
            }
        }
        found
    }
}

fn derived(purpose: &str, secret: &str) -> String {
    let digest = Sha256::new().chain_update(purpose).chain_update(b"\n").chain_update(secret).finalize();
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

impl Bond {
    /// A new one. `None`: the system has no randomness.
    pub fn new(next: &str) -> Option<Self> {
        Some(Self::of(random_hex()?, if next.len() <= MAX_NEXT { next } else { "/" }))
    }

    fn of(secret: String, next: &str) -> Self {
        Self {
            state: derived("orchestra sign-in state", &secret),
            nonce: derived("orchestra sign-in nonce", &secret),
            verifier: derived("orchestra sign-in verifier", &secret),
            secret: secret.into(),
            next: next.to_owned(),
        }
    }

    /// The cookie's value.
    pub fn cookie(&self) -> String {
        let next: String = self.next.bytes().map(|byte| format!("{byte:02x}")).collect();
        format!("{}.{next}", self.secret.expose_secret())
    }

    /// Reads a cookie back.
    pub fn read(cookie: &str) -> Option<Self> {
        let (secret, next) = cookie.split_once('.')?;
        let hexadecimal = |text: &str| text.bytes().all(|byte| byte.is_ascii_hexdigit());
        if secret.len() != 64
            || !hexadecimal(secret)
            || next.len() > 2 * MAX_NEXT
            || next.len() % 2 != 0
            || !hexadecimal(next)
        {
            return None;
        }
        let bytes = (0..next.len()).step_by(2).map(|at| u8::from_str_radix(&next[at..at + 2], 16).ok());
        let next = String::from_utf8(bytes.collect::<Option<Vec<_>>>()?).ok()?;
        Some(Self::of(secret.to_owned(), &next))
    }

    /// Whether an answer belongs to this browser's sign-in.
    pub fn owns(&self, state: &str) -> bool {
        self.state.as_bytes().ct_eq(state.as_bytes()).into()
    }

    /// Where the person wanted to go.
    pub fn next(&self) -> &str {
        &self.next
    }
}

/// A rule of the configuration: `team = "*"` is the whole server, which only its admins are let into.
pub fn rule(group: &str, team: &str, role: Role) -> Result<GroupRule, &'static str> {
    if group.is_empty() {
        return Err("a rule names a group");
    }
    let team = match team {
        "*" if role == Role::Admin => None,
        "*" => return Err("team = \"*\" is the whole server, and goes with role = \"admin\" alone"),
        team => Some(team.to_owned()),
    };
    Ok(GroupRule { group: group.to_owned(), membership: Membership { team, role } })
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Nobody;

    #[async_trait::async_trait]
    impl IdentityProvider for Nobody {
        fn issuer(&self) -> &str {
            "https://login.example.com"
        }
        async fn authorization_url(&self, _: &Attempt<'_>) -> Result<String, IdentityError> {
            Err(IdentityError::Busy)
        }
        async fn redeem(&self, _: &str, _: Option<&str>, _: &Attempt<'_>) -> Result<Identity, IdentityError> {
            Err(IdentityError::Busy)
        }
    }

    #[test]
    fn groups_become_the_most_that_they_give_in_each_team() {
        let rules = [
            ("readers", "platform", Role::Viewer),
            ("infra", "platform", Role::Operator),
            ("apps", "mobile", Role::Viewer),
            ("root", "*", Role::Admin),
        ];
        let rules = rules.map(|(group, team, role)| rule(group, team, role).expect("a rule")).into();
        let people = People::new(Arc::new(Nobody), "Example".to_owned(), rules, "https://a.example/");
        assert_eq!(people.redirect_uri, "https://a.example/sign-in/oidc/return");
        let of = |groups: &[&str]| people.memberships(&groups.iter().map(|g| (*g).to_owned()).collect::<Vec<_>>());
        let team = |name: &str, role| Membership { team: Some(name.to_owned()), role };
        assert_eq!(of(&["readers"]), [team("platform", Role::Viewer)]);
        assert_eq!(of(&["infra", "apps", "readers"]), [team("platform", Role::Operator), team("mobile", Role::Viewer)]);
        assert_eq!(of(&["root"]), [Membership { team: None, role: Role::Admin }]);
        assert!(of(&["Infra", "infra ", "*", "platform"]).is_empty() && of(&[]).is_empty());
        assert!(rule("root", "*", Role::Viewer).is_err() && rule("", "a", Role::Viewer).is_err());
    }

    #[test]
    fn an_answer_belongs_to_the_browser_that_asked() {
        let (one, other) = (Bond::new("/tasks?a=b").expect("randomness"), Bond::new("/").expect("randomness"));
        let again = Bond::read(&one.cookie()).expect("its own cookie");
        assert!(again.owns(&one.state) && !other.owns(&one.state) && !one.owns(""));
        assert_eq!((again.next(), &again.nonce, &again.verifier), ("/tasks?a=b", &one.nonce, &one.verifier));
        // Three values that say nothing about each other, nor about the secret that they are made of.
        let values = [&one.state, &one.nonce, &one.verifier];
        assert!(values.iter().all(|value| value.len() == 64 && !one.cookie().contains(value.as_str())));
        assert_eq!(Bond::new(&format!("/{}", "a".repeat(MAX_NEXT))).expect("randomness").next(), "/");
        for wrong in
            ["", ".", "00.2f", &format!("{}.2", "0".repeat(64)), &format!("{}.zz", "0".repeat(64)), &"0".repeat(64)]
        {
            assert!(Bond::read(wrong).is_none(), "{wrong}");
        }
    }
}
