//! What kind of token this is, told by its shape, and how that kind is shown to git and to the forge's REST interface.
//!
//! Forges give their tokens a prefix so that leaked ones can be found; it also tells which user name or header goes
//! with them, and on which page their permissions are edited. A token of unknown shape is shown the usual way.
//!
//! `user:token` in one text is a pair: Bitbucket's API tokens need the owner's e-mail address for REST, GitLab's deploy
//! tokens and plain git servers a user name.

use reqwest::header::{AUTHORIZATION, HeaderName, HeaderValue};
use secrecy::{ExposeSecret, SecretString};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::ForgeKind;

/// A kind of token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenKind {
    /// GitHub, personal, classic: `ghp_`.
    GithubClassic,
    /// GitHub, personal, fine-grained: `github_pat_`.
    GithubFineGrained,
    /// GitHub, of an app's installation: `ghs_`. Lives an hour.
    GithubInstallation,
    /// GitHub, given to an OAuth app (`gho_`) or to an app on behalf of a user (`ghu_`).
    GithubOauth,
    /// GitLab, personal, of a project or of a group: `glpat-`.
    GitlabAccess,
    /// GitLab, of an OAuth application: `gloas-`, or without a prefix.
    GitlabOauth,
    /// GitLab, for deploying: `gldt-`. Reads and writes git, and knows no REST.
    GitlabDeploy,
    /// GitLab, of a job: `glcbt-`.
    GitlabJob,
    /// Bitbucket Cloud, of a person: `ATATT`.
    BitbucketApi,
    /// Bitbucket Cloud, of a repository, project or workspace: `ATCTT`.
    BitbucketAccess,
    /// Bitbucket Data Center, an HTTP access token: `BBDC-`.
    BitbucketDataCenter,
    /// None of these.
    Unknown,
}

/// The shapes, first match wins.
const SHAPES: [(&str, TokenKind); 12] = [
    ("github_pat_", TokenKind::GithubFineGrained),
    ("ghp_", TokenKind::GithubClassic),
    ("ghs_", TokenKind::GithubInstallation),
    ("gho_", TokenKind::GithubOauth),
    ("ghu_", TokenKind::GithubOauth),
    ("glpat-", TokenKind::GitlabAccess),
    ("gloas-", TokenKind::GitlabOauth),
    ("gldt-", TokenKind::GitlabDeploy),
    ("glcbt-", TokenKind::GitlabJob),
    ("ATATT", TokenKind::BitbucketApi),
    ("ATCTT", TokenKind::BitbucketAccess),
    ("BBDC-", TokenKind::BitbucketDataCenter),
];

impl TokenKind {
    /// The kind of this token, or of the second half of a pair.
    pub fn of(token: &SecretString) -> Self {
        let (_, token) = split(token.expose_secret());
        SHAPES.iter().find(|(prefix, _)| token.starts_with(prefix)).map_or(Self::Unknown, |(_, kind)| *kind)
    }

    /// Where permissions of this kind of token are given, and the token made anew. `None`: nothing is known about it.
    pub const fn remedy(self) -> Option<&'static str> {
        match self {
            Self::GithubClassic => Some(
                "GitHub: Settings > Developer settings > Personal access tokens > Tokens (classic): tick `repo`, and `workflow` if the work touches .github/workflows.",
            ),
            Self::GithubFineGrained => Some(
                "GitHub: Settings > Developer settings > Fine-grained tokens: add the repository, and under Repository permissions set Contents, Pull requests and Commit statuses to read and write.",
            ),
            Self::GithubInstallation => Some(
                "GitHub: in the app's settings under Permissions & events set Contents, Pull requests and Commit statuses to read and write, let an owner accept the change, and make a new installation token (it lives one hour).",
            ),
            Self::GithubOauth => Some(
                "GitHub: authorize the app again with the scope `repo`, for the organisation that owns the repository.",
            ),
            Self::GitlabAccess => Some(
                "GitLab: Access tokens (of the user, project or group): make one with the scopes `api` and `write_repository` and at least the role Developer.",
            ),
            Self::GitlabOauth => {
                Some("GitLab: authorize the application again with the scopes `api` and `write_repository`.")
            }
            Self::GitlabDeploy => Some(
                "GitLab: a deploy token cannot open merge requests; use a project access token with the scope `api`.",
            ),
            Self::GitlabJob => {
                Some("GitLab: a job token cannot open merge requests; use a project access token with the scope `api`.")
            }
            Self::BitbucketApi => Some(
                "Bitbucket: Atlassian account > Security > API tokens: make one with scopes for Bitbucket (read and write repository and pull request), and supply it as `email:token`.",
            ),
            Self::BitbucketAccess => Some(
                "Bitbucket: Repository (or project, workspace) settings > Access tokens: make one with Repositories: write and Pull requests: write.",
            ),
            Self::BitbucketDataCenter => Some(
                "Bitbucket: Manage account (or repository settings) > HTTP access tokens: make one with Repository write.",
            ),
            Self::Unknown => None,
        }
    }
}

/// A pair's user name, and the token. Tokens themselves hold no colon on any forge.
fn split(text: &str) -> (Option<&str>, &str) {
    match text.trim().split_once(':') {
        Some((user, token)) if !user.is_empty() && !token.is_empty() => (Some(user), token),
        Some(_) | None => (None, text.trim()),
    }
}

/// How git shows the token.
#[derive(PartialEq, Eq)]
pub(crate) enum GitCredential<'t> {
    /// By user name and password, when the server asks.
    Basic { user: &'t str, password: &'t str },
    /// In a header of every request.
    Bearer(&'t str),
}

/// How git shows this token to this kind of forge. Sources: each forge's page on using its tokens with git.
pub(crate) fn git_credential(forge: ForgeKind, token: &SecretString) -> GitCredential<'_> {
    let (user, password) = split(token.expose_secret());
    let basic = |user| GitCredential::Basic { user, password };
    match forge {
        ForgeKind::Github => basic("x-access-token"),
        ForgeKind::BitbucketCloud => match (TokenKind::of(token), user) {
            (TokenKind::BitbucketApi, _) => basic("x-bitbucket-api-token-auth"),
            (_, Some(user)) => basic(user),
            (_, None) => basic("x-token-auth"),
        },
        ForgeKind::BitbucketDc => match user {
            Some(user) => basic(user),
            None => GitCredential::Bearer(password),
        },
        ForgeKind::Gitlab => match (TokenKind::of(token), user) {
            (_, Some(user)) => basic(user),
            (TokenKind::GitlabJob, None) => basic("gitlab-ci-token"),
            (_, None) => basic("oauth2"),
        },
        ForgeKind::Plain | ForgeKind::Local => basic(user.unwrap_or("git")),
    }
}

/// The header that shows this token to this kind of forge's REST interface. `None`: it has characters no header takes.
pub(super) fn rest_header(forge: ForgeKind, token: &SecretString) -> Option<(HeaderName, HeaderValue)> {
    let (user, secret) = split(token.expose_secret());
    let (name, text) = match (forge, TokenKind::of(token), user) {
        (ForgeKind::Gitlab, TokenKind::GitlabJob, _) => (HeaderName::from_static("job-token"), secret.to_owned()),
        (ForgeKind::BitbucketCloud | ForgeKind::BitbucketDc, _, Some(user)) => {
            (AUTHORIZATION, format!("Basic {}", STANDARD.encode(format!("{user}:{secret}"))))
        }
        (
            ForgeKind::Github
            | ForgeKind::BitbucketCloud
            | ForgeKind::BitbucketDc
            | ForgeKind::Gitlab
            | ForgeKind::Plain
            | ForgeKind::Local,
            _,
            _,
        ) => (AUTHORIZATION, format!("Bearer {secret}")),
    };
    let mut value = HeaderValue::from_str(&text).ok()?;
    value.set_sensitive(true);
    Some((name, value))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn basic(forge: ForgeKind, token: &str) -> Option<(String, String)> {
        match git_credential(forge, &SecretString::from(token)) {
            GitCredential::Basic { user, password } => Some((user.to_owned(), password.to_owned())),
            GitCredential::Bearer(_) => None,
        }
    }

    fn header(forge: ForgeKind, token: &str) -> Option<(String, String)> {
        let (name, value) = rest_header(forge, &SecretString::from(token))?;
        assert!(value.is_sensitive());
        Some((name.to_string(), value.to_str().ok()?.to_owned()))
    }

    #[test]
    fn the_shape_tells_the_kind() {
        for (token, kind) in [
            ("ghp_16C7e42F292c6912E7710c838347Ae178B4a", TokenKind::GithubClassic),
            ("github_pat_11AAAA_x", TokenKind::GithubFineGrained),
            ("ghs_x", TokenKind::GithubInstallation),
            ("gho_x", TokenKind::GithubOauth),
            ("ghu_x", TokenKind::GithubOauth),
            ("glpat-x", TokenKind::GitlabAccess),
            ("gldt-x", TokenKind::GitlabDeploy),
            ("glcbt-64_x", TokenKind::GitlabJob),
            ("ATATT3xFfGF0x", TokenKind::BitbucketApi),
            ("ann@example.com:ATATT3xFfGF0x", TokenKind::BitbucketApi),
            ("ATCTT3xFfGN0x", TokenKind::BitbucketAccess),
            ("BBDC-MDg4Mj", TokenKind::BitbucketDataCenter),
            ("0123456789abcdef", TokenKind::Unknown),
        ] {
            assert_eq!(TokenKind::of(&SecretString::from(token)), kind, "{token}");
            assert_eq!(kind.remedy().is_none(), kind == TokenKind::Unknown);
        }
    }

    #[test]
    fn git_is_shown_the_user_name_that_goes_with_the_kind() {
        let pair = |user: &str, password: &str| Some((user.to_owned(), password.to_owned()));
        assert_eq!(basic(ForgeKind::Github, "ghs_x"), pair("x-access-token", "ghs_x"));
        assert_eq!(basic(ForgeKind::BitbucketCloud, "ATCTTx"), pair("x-token-auth", "ATCTTx"));
        assert_eq!(basic(ForgeKind::BitbucketCloud, "a@b.c:ATATTx"), pair("x-bitbucket-api-token-auth", "ATATTx"));
        assert_eq!(basic(ForgeKind::BitbucketCloud, "ATATTx"), pair("x-bitbucket-api-token-auth", "ATATTx"));
        assert_eq!(basic(ForgeKind::BitbucketDc, "BBDC-x"), None);
        assert_eq!(basic(ForgeKind::BitbucketDc, "ann:BBDC-x"), pair("ann", "BBDC-x"));
        assert_eq!(basic(ForgeKind::Gitlab, "glpat-x"), pair("oauth2", "glpat-x"));
        assert_eq!(basic(ForgeKind::Gitlab, "glcbt-x"), pair("gitlab-ci-token", "glcbt-x"));
        assert_eq!(basic(ForgeKind::Gitlab, "gitlab+deploy-token-1:gldt-x"), pair("gitlab+deploy-token-1", "gldt-x"));
        assert_eq!(basic(ForgeKind::Plain, "secret"), pair("git", "secret"));
        assert_eq!(basic(ForgeKind::Plain, "ann:secret"), pair("ann", "secret"));
    }

    #[test]
    fn rest_is_shown_the_header_that_goes_with_the_kind() {
        let pair = |name: &str, value: &str| Some((name.to_owned(), value.to_owned()));
        assert_eq!(header(ForgeKind::Github, "ghp_x"), pair("authorization", "Bearer ghp_x"));
        assert_eq!(header(ForgeKind::BitbucketCloud, "ATCTTx"), pair("authorization", "Bearer ATCTTx"));
        assert_eq!(
            header(ForgeKind::BitbucketCloud, "a@b.c:ATATTx"),
            pair("authorization", &format!("Basic {}", STANDARD.encode("a@b.c:ATATTx")))
        );
        assert_eq!(header(ForgeKind::BitbucketDc, "BBDC-x"), pair("authorization", "Bearer BBDC-x"));
        assert_eq!(header(ForgeKind::Gitlab, "glpat-x"), pair("authorization", "Bearer glpat-x"));
        assert_eq!(header(ForgeKind::Gitlab, "glcbt-x"), pair("job-token", "glcbt-x"));
        assert_eq!(header(ForgeKind::Github, "ghp_x\ny"), None);
    }
}
