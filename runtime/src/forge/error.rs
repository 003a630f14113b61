//! Every way that a forge's REST interface can say no, each with a code, a sentence and a remedy.

use std::time::Duration;

use orchestra_events::{Failure, FailureCode};
use secrecy::SecretString;

use super::token::TokenKind;

fn said(forge: &Option<String>) -> String {
    forge.as_ref().map(|text| format!(" It says: {text}")).unwrap_or_default()
}

/// What went wrong. No variant holds a secret: texts from forges are redacted before they come here.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the fields are what the sentences name")]
pub enum ForgeError {
    /// There is no token, and the forge asks for one.
    #[error("{repo} cannot be reached without a git token.")]
    TokenMissing { repo: String },
    /// The forge does not accept the token.
    #[error("The forge refused the git token for {repo}: it is expired, revoked or mistyped.{}", said(forge))]
    TokenRejected { repo: String, forge: Option<String>, remedy: Option<&'static str> },
    /// The token is valid and may not do this.
    #[error("The git token may not {doing} on {repo}{}.{}", permission.as_ref().map(|name| format!(": it lacks `{name}`")).unwrap_or_default(), said(forge))]
    TokenLacksPermission {
        repo: String,
        doing: &'static str,
        permission: Option<String>,
        forge: Option<String>,
        remedy: Option<&'static str>,
    },
    /// The organisation wants single sign-on for this token.
    #[error("The organisation that owns {repo} requires single sign-on for this git token.{}", said(forge))]
    SsoRequired { repo: String, forge: Option<String> },
    /// The organisation lets requests in from listed addresses alone.
    #[error("The organisation that owns {repo} does not take requests from this server's address.{}", said(forge))]
    AddressNotAllowed { repo: String, forge: Option<String> },
    /// Too many refused attempts: the forge wants a person to sign in.
    #[error("The forge wants a person to solve a captcha before it takes this account's tokens for {repo}.")]
    CaptchaRequired { repo: String },
    /// There is no such repository, or it is hidden from the token.
    #[error("{repo} does not exist, or the git token may not see it.{}", said(forge))]
    NotFound { repo: String, forge: Option<String> },
    /// The repository takes no changes.
    #[error("{repo} is archived and read-only.{}", said(forge))]
    Archived { repo: String, forge: Option<String> },
    /// The forge limits how often it is called.
    #[error("The forge limits requests and refused one for {repo}.{}", retry_after.map(|after| format!(" It asks to wait {} s.", after.as_secs())).unwrap_or_default())]
    RateLimited { repo: String, retry_after: Option<Duration> },
    /// The forge does not take what it was sent.
    #[error("The forge refused to {doing} on {repo}.{}", said(forge))]
    Refused { repo: String, doing: &'static str, forge: Option<String> },
    /// The forge answers with a server error.
    #[error("The forge answered with HTTP status {status} when asked to {doing} on {repo}.")]
    Unavailable { repo: String, doing: &'static str, status: u16 },
    /// No connection, or none that can be trusted.
    #[error("The forge's interface for {repo} cannot be reached: {detail}.")]
    Unreachable { repo: String, detail: String },
    /// The connection broke, or nothing came in time.
    #[error("The connection to the forge broke when it was asked to {doing} on {repo}: {detail}.")]
    ConnectionLost { repo: String, doing: &'static str, detail: String },
    /// What answers is not the forge's interface.
    #[error("What answers for {repo} is not the interface of a forge of this kind: {detail}.")]
    NotAForge { repo: String, detail: String },
}

impl ForgeError {
    /// A repository that this token may see and not push to.
    pub fn may_not_push(repo: String, token: &SecretString) -> Self {
        let permission = Some("write access to the repository's contents".to_owned());
        let remedy = TokenKind::of(token).remedy();
        Self::TokenLacksPermission { repo, doing: "push", permission, forge: None, remedy }
    }

    /// How long the forge asks to wait.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::RateLimited { retry_after, .. } => *retry_after,
            Self::TokenMissing { .. }
            | Self::TokenRejected { .. }
            | Self::TokenLacksPermission { .. }
            | Self::SsoRequired { .. }
            | Self::AddressNotAllowed { .. }
            | Self::CaptchaRequired { .. }
            | Self::NotFound { .. }
            | Self::Archived { .. }
            | Self::Refused { .. }
            | Self::Unavailable { .. }
            | Self::Unreachable { .. }
            | Self::ConnectionLost { .. }
            | Self::NotAForge { .. } => None,
        }
    }

    /// Where tokens of the kind that was used are made and given permissions, when the kind is known.
    pub fn remedy(&self) -> Option<&'static str> {
        match self {
            Self::TokenRejected { remedy, .. } | Self::TokenLacksPermission { remedy, .. } => *remedy,
            Self::TokenMissing { .. }
            | Self::SsoRequired { .. }
            | Self::AddressNotAllowed { .. }
            | Self::CaptchaRequired { .. }
            | Self::NotFound { .. }
            | Self::Archived { .. }
            | Self::RateLimited { .. }
            | Self::Refused { .. }
            | Self::Unavailable { .. }
            | Self::Unreachable { .. }
            | Self::ConnectionLost { .. }
            | Self::NotAForge { .. } => None,
        }
    }

    /// The failure that the task's owner reads, when a pull request does not come of it.
    pub fn failure(&self) -> Failure {
        use FailureCode as Code;
        let (code, hint, retryable) = match self {
            Self::TokenMissing { .. } => {
                (Code::GitAuth, "Supply a git token with PUT /v1/tasks/{id}/credentials; the work is kept.", false)
            }
            Self::TokenRejected { .. } => {
                (Code::GitAuth, "Supply a new git token with PUT /v1/tasks/{id}/credentials; the work is kept.", false)
            }
            Self::TokenLacksPermission { .. } => (
                Code::GitTokenScope,
                "Give the token the named permission, then supply it with PUT /v1/tasks/{id}/credentials; the work is kept.",
                false,
            ),
            Self::SsoRequired { .. } => (
                Code::GitTokenScope,
                "Authorize the token for the organisation's single sign-on in the forge's token settings, then supply it with PUT /v1/tasks/{id}/credentials.",
                false,
            ),
            Self::AddressNotAllowed { .. } => (
                Code::GitTokenScope,
                "Add this server's address to the organisation's IP allow list (GitHub: Settings → Authentication security; Bitbucket: Access controls), then supply the token again with PUT /v1/tasks/{id}/credentials; the work is kept.",
                false,
            ),
            Self::CaptchaRequired { .. } => (
                Code::GitAuth,
                "Sign in to the forge in a browser as the token's owner and solve the captcha; then supply the token with PUT /v1/tasks/{id}/credentials.",
                false,
            ),
            Self::NotFound { .. } => (
                Code::RepoNotFound,
                "Check the spelling; if it is private, check that the token lists this repository among those it may read.",
                false,
            ),
            Self::Archived { .. } => (Code::PullRequestFailed, "Unarchive the repository, then retry.", false),
            Self::RateLimited { .. } => {
                (Code::PullRequestFailed, "Wait for the forge's limit to pass; the step is tried again.", true)
            }
            Self::Refused { .. } => (
                Code::PullRequestFailed,
                "Read the forge's sentence; the branch is pushed, and a pull request can be opened by hand.",
                false,
            ),
            Self::Unavailable { .. } => {
                (Code::PullRequestFailed, "Check the forge's status page; the step is tried again.", true)
            }
            Self::Unreachable { .. } => {
                (Code::PullRequestFailed, "Check `api_url` of the forge and the server's network.", true)
            }
            Self::ConnectionLost { .. } => {
                (Code::PullRequestFailed, "Check the network between this server and the forge.", true)
            }
            Self::NotAForge { .. } => {
                (Code::PullRequestFailed, "Check `kind` and `api_url` of the forge in the configuration.", false)
            }
        };
        let hint = match self.remedy() {
            Some(remedy) => format!("{hint} {remedy}"),
            None => hint.to_owned(),
        };
        Failure::new(code, self.to_string()).with_hint(hint).with_retryable(retryable)
    }
}
