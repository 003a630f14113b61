//! Every way that git work can fail, each with a code, a sentence and a remedy for the person who asked for it.

use std::fmt;
use std::time::Duration;

use orchestra_events::{CommitId, Failure, FailureCode};

use super::refusal::PushFault;

/// Which step failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// Fetching the base branch.
    Clone,
    /// Writing the work tree.
    Checkout,
    /// Taking the agent's work out of the sandbox.
    Import,
    /// Making the commit.
    Commit,
    /// Computing the diff.
    Diff,
    /// Sending the branch to the forge.
    Push,
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Clone => "clone",
            Self::Checkout => "checkout",
            Self::Import => "import of the agent's work",
            Self::Commit => "commit",
            Self::Diff => "diff",
            Self::Push => "push",
        })
    }
}

/// Why a pack from a sandbox was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PackFault {
    /// Not a pack, truncated, bit-flipped, or with objects missing.
    Malformed,
    /// More bytes or objects than the limits allow.
    TooLarge,
    /// The indexing process died or was killed at its memory, time or file limit.
    LimitReached,
    /// A commit that does not descend from the base, or too many of them.
    Ancestry,
    /// A path that a git client could mistake for its own files, or that leaves the tree.
    Path,
    /// A file mode that git does not define.
    Mode,
    /// A symbolic link that points out of the tree.
    Symlink,
    /// A nested repository (submodule) added or moved.
    Gitlink,
    /// One file is larger than the limit.
    FileTooLarge,
    /// A new name that the operator does not want.
    Name,
    /// Two names in one directory that are one where case or Unicode's normal form does not count.
    CaseTwins,
    /// A file that agents may not touch was added, changed, moved or removed.
    Protected,
    /// A file that belongs to Git LFS came with its content.
    LfsContent,
    /// A Git LFS pointer to an object that the forge does not have.
    LfsObject,
    /// A token or a key.
    Secret,
}

/// Why the sandbox could not hand its work over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExportFault {
    /// The commit the task started from is gone from the sandbox's `.git`.
    HistoryGone,
    /// A file could not be read or added.
    Unreadable,
    /// No room is left for the commit's objects.
    DiskFull,
    /// The script ended without an answer.
    NoAnswer,
}

fn said(forge: &Option<String>) -> String {
    forge.as_ref().map(|text| format!(" It says: {text}")).unwrap_or_default()
}

fn asks(retry_after: Option<Duration>) -> String {
    retry_after.map(|after| format!(" It asks to wait {} s.", after.as_secs())).unwrap_or_default()
}

/// What went wrong. No variant holds a secret: texts from forges and libgit2 are redacted before they come here.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the fields are what the sentences name")]
pub enum GitError {
    /// The URL cannot be used.
    #[error("The repository's address cannot be used: {reason}.")]
    InvalidRemote { reason: &'static str },
    /// The branch name is not one that git and forges accept.
    #[error("{name:?} cannot be a branch name: {reason}.")]
    InvalidBranch { name: String, reason: &'static str },
    /// The forge asks for a token and there is none.
    #[error("{repo} cannot be reached without a git token.")]
    TokenMissing { repo: String },
    /// The forge does not accept the token.
    #[error("The forge refused the git token for {repo}: it is expired, revoked or mistyped.{}", said(forge))]
    TokenRejected { repo: String, forge: Option<String> },
    /// The forge answered one request with the token and refused the next.
    #[error(
        "The git token for {repo} was refused in the middle of the {operation}: it has expired or was revoked just now."
    )]
    TokenExpiredMidRun { operation: Operation, repo: String },
    /// Too many refused attempts: the forge wants a person to sign in.
    #[error("The forge wants a person to solve a captcha before it takes this account's tokens for {repo}.")]
    CaptchaRequired { repo: String },
    /// The organisation lets requests in from listed addresses alone.
    #[error("The organisation that owns {repo} does not take requests from this server's address.{}", said(forge))]
    AddressNotAllowed { repo: String, forge: Option<String> },
    /// The token is valid and may not do this.
    #[error("The git token is not allowed to {} {repo}.{}", if *operation == Operation::Push { "write to" } else { "read" }, said(forge))]
    TokenLacksAccess { operation: Operation, repo: String, forge: Option<String> },
    /// The token lacks one named permission.
    #[error("The git token lacks the permission `{permission}` for {repo}.{}", said(forge))]
    TokenLacksPermission { repo: String, permission: String, forge: Option<String> },
    /// The organisation wants single sign-on for this token.
    #[error("The organisation that owns {repo} requires single sign-on for this git token.{}", said(forge))]
    SsoRequired { repo: String, forge: Option<String> },
    /// The repository is read-only for everybody.
    #[error("{repo} is archived and read-only.{}", said(forge))]
    RepoArchived { repo: String, forge: Option<String> },
    /// The forge itself has closed the repository: unpaid, disabled, taken down.
    #[error("The forge has closed {repo}.{}", said(forge))]
    RepoDisabled { repo: String, forge: Option<String> },
    /// There is no such repository, or it is hidden from the token.
    #[error("{repo} does not exist, or the git token may not see it.{}", said(forge))]
    RepoNotFound { repo: String, forge: Option<String> },
    /// The repository has no commit.
    #[error("{repo} is empty: it has no branch to start from.")]
    EmptyRepository { repo: String },
    /// The base branch does not exist.
    #[error("{repo} has no branch {base:?}.")]
    BaseNotFound { repo: String, base: String },
    /// The forge limits how often it is called.
    #[error("The forge limits requests; the {operation} of {repo} was refused.{}", asks(*retry_after))]
    RateLimited { operation: Operation, repo: String, retry_after: Option<Duration> },
    /// The forge answers with a server error.
    #[error("The forge answered the {operation} of {repo} with HTTP status {status}.{}{}", said(forge), asks(*retry_after))]
    ForgeUnavailable {
        operation: Operation,
        repo: String,
        status: u16,
        retry_after: Option<Duration>,
        forge: Option<String>,
    },
    /// What stands before the forge takes no request of that size.
    #[error("The forge of {repo}, or a proxy before it, does not take a push of this size.")]
    PushTooLarge { repo: String },
    /// What answers is not a git server.
    #[error("What answers at {repo} is not a git server: a log-in page or a wrong address.")]
    NotGit { operation: Operation, repo: String },
    /// No connection.
    #[error("The forge of {repo} cannot be reached: {detail}.")]
    Unreachable { operation: Operation, repo: String, detail: String },
    /// The certificate is not trusted.
    #[error("The certificate of the forge of {repo} is not trusted: {detail}.")]
    Untrusted { operation: Operation, repo: String, detail: String },
    /// What answers at an https address does not speak TLS.
    #[error("The forge of {repo} does not speak TLS there: {detail}.")]
    NoTls { operation: Operation, repo: String, detail: String },
    /// The forge points elsewhere.
    #[error(
        "The forge redirects {repo} to another address{}; it was not followed, so that the token stays where it belongs.",
        to.as_ref().map(|to| format!(" ({to})")).unwrap_or_default()
    )]
    Redirected { operation: Operation, repo: String, to: Option<String> },
    /// The connection broke in the middle.
    #[error("The connection broke during the {operation} of {repo}: {detail}.")]
    ConnectionLost { operation: Operation, repo: String, detail: String },
    /// Nothing came for the length of the socket timeout.
    #[error("The forge stopped answering during the {operation} of {repo}.")]
    ForgeSilent { operation: Operation, repo: String },
    /// The whole operation took too long.
    #[error("The {operation} did not end within {} s.", limit.as_secs_f32())]
    DeadlineExceeded { operation: Operation, limit: Duration },
    /// The repository is larger than the limit.
    #[error("{repo} sends more than the limit of {limit} bytes.")]
    RepoTooLarge { repo: String, limit: u64 },
    /// The commit's files are more, larger or deeper than a work tree may be.
    #[error("The {operation} was not begun: the commit has more than the limit of {limit} {what}.")]
    TreeTooLarge { operation: Operation, what: &'static str, limit: u64 },
    /// A branch protection refused the push.
    #[error("The forge protects the branch {branch:?}.{}", said(forge))]
    BranchProtected { branch: String, forge: Option<String> },
    /// A rule set of the forge refused the push.
    #[error("A rule of the forge forbids this push to {branch:?}.{}", said(forge))]
    BranchRule { branch: String, forge: Option<String> },
    /// Another branch's name stands in the way (`a` and `a/b` cannot both exist).
    #[error("The branch {branch:?} cannot be created: another branch's name is a part of it.{}", said(forge))]
    BranchNameTaken { branch: String, forge: Option<String> },
    /// The forge took the objects and refused the branch.
    #[error("The forge refused the push to {branch:?}.{}", said(forge))]
    Rejected { branch: String, fault: PushFault, forge: Option<String> },
    /// The branch exists and is not at our commit.
    #[error("The branch {branch:?} exists already at another commit{}.", found.as_ref().map(|id| format!(" ({id})")).unwrap_or_default())]
    Conflict { branch: String, found: Option<CommitId> },
    /// The tree is the base's.
    #[error("The work tree is the same as the base: there is nothing to push.")]
    NothingToPush,
    /// The sandbox did not hand its work over.
    #[error("The agent's work could not be read out of the sandbox: {}.", match fault {
        ExportFault::HistoryGone => "the agent removed the repository's history (.git)",
        ExportFault::Unreadable => "a file of the work tree cannot be added to a commit",
        ExportFault::DiskFull => "its disk is full, with no room left for a commit",
        ExportFault::NoAnswer => "the export ended without an answer",
    })]
    ExportFailed { fault: ExportFault },
    /// The sandbox handed over something that is not let in.
    #[error("The agent's work was refused: {detail}.")]
    PackRejected { fault: PackFault, detail: String },
    /// The host's disk.
    #[error("The {operation} failed on the server's disk: {detail}.")]
    Io { operation: Operation, detail: String },
    /// Anything else libgit2 says.
    #[error("The {operation} failed: {detail}.")]
    Git { operation: Operation, detail: String },
}

impl GitError {
    /// An error of the host's file system; the path is the server's business and stays out of the text.
    pub(super) fn io(operation: Operation, what: &str, error: &std::io::Error) -> Self {
        Self::Io { operation, detail: format!("{what}: {}", error.kind()) }
    }

    /// How long the forge asks to be left alone.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::RateLimited { retry_after, .. } | Self::ForgeUnavailable { retry_after, .. } => *retry_after,
            _ => None,
        }
    }

    /// Whether another token could make the difference.
    pub fn concerns_token(&self) -> bool {
        matches!(
            self,
            Self::TokenMissing { .. }
                | Self::TokenRejected { .. }
                | Self::TokenExpiredMidRun { .. }
                | Self::TokenLacksAccess { .. }
                | Self::TokenLacksPermission { .. }
                | Self::SsoRequired { .. }
                | Self::CaptchaRequired { .. }
                | Self::RepoNotFound { .. }
        )
    }

    /// The failure that the task's owner reads.
    pub fn failure(&self) -> Failure {
        use FailureCode as Code;
        let network = |operation: &Operation| match operation {
            Operation::Clone => Code::CloneFailed,
            _ => Code::NetworkDropped,
        };
        // The address is wrong, and stays so.
        let address = |operation: &Operation| match operation {
            Operation::Push => Code::PushRejected,
            _ => Code::CloneFailed,
        };
        let (code, hint, retryable) = match self {
            Self::InvalidRemote { .. } => {
                (Code::CloneFailed, "Give the repository as owner/name or as an https URL without a user name.", false)
            }
            Self::InvalidBranch { .. } => (Code::BranchPolicy, "Choose another branch name.", false),
            Self::TokenMissing { .. } => {
                (Code::GitAuth, "Supply a git token with PUT /v1/tasks/{id}/credentials; the work is kept.", false)
            }
            Self::TokenRejected { .. } | Self::TokenExpiredMidRun { .. } => {
                (Code::GitAuth, "Supply a new git token with PUT /v1/tasks/{id}/credentials; the work is kept.", false)
            }
            Self::CaptchaRequired { .. } => (
                Code::GitAuth,
                "Sign in to the forge in a browser as the token's owner and solve the captcha; then supply the token with PUT /v1/tasks/{id}/credentials.",
                false,
            ),
            Self::TokenLacksAccess { operation: Operation::Push, .. } => (
                Code::GitTokenScope,
                "Give the token write access: `contents: write` for a fine-grained GitHub token, `repo` for a classic one, `repository:write` on Bitbucket, `write_repository` on GitLab. Then supply it with PUT /v1/tasks/{id}/credentials; the work is kept.",
                false,
            ),
            Self::TokenLacksAccess { .. } => (
                Code::GitTokenScope,
                "Give the token read access to the repository: `contents: read` for a fine-grained GitHub token, `repo` for a classic one, `repository` on Bitbucket, `read_repository` on GitLab. Then supply it with PUT /v1/tasks/{id}/credentials.",
                false,
            ),
            Self::TokenLacksPermission { .. } => (
                Code::GitTokenScope,
                "Add the named permission where the token was made (GitHub: Settings → Developer settings → Personal access tokens), or supply another token with PUT /v1/tasks/{id}/credentials; the work is kept.",
                false,
            ),
            Self::SsoRequired { .. } => (
                Code::GitTokenScope,
                "Authorize the token for the organisation's single sign-on (GitHub: Settings → Developer settings → Personal access tokens → Configure SSO); the work is kept.",
                false,
            ),
            Self::AddressNotAllowed { .. } => (
                Code::GitTokenScope,
                "Add this server's address to the organisation's IP allow list (GitHub: Settings → Authentication security; Bitbucket: Access controls), then supply the token again with PUT /v1/tasks/{id}/credentials; the work is kept.",
                false,
            ),
            Self::RepoArchived { .. } => {
                (Code::PushRejected, "Unarchive the repository in the forge's settings, then retry.", false)
            }
            Self::RepoDisabled { .. } => (
                Code::RepoNotFound,
                "Open the repository in a browser: the forge says there why it is closed and who can open it again.",
                false,
            ),
            Self::RepoNotFound { .. } => (
                Code::RepoNotFound,
                "Check the spelling; if it is private, check that the token lists this repository among those it may read.",
                false,
            ),
            Self::EmptyRepository { .. } => {
                (Code::CloneFailed, "Push a first commit to the repository, then retry.", false)
            }
            Self::BaseNotFound { .. } => (
                Code::BranchPolicy,
                "Choose a base branch that exists, or leave `base` out for the default branch.",
                false,
            ),
            Self::RateLimited { operation, .. } => {
                (network(operation), "Wait for the forge's limit to pass; the step is tried again.", true)
            }
            // Other answers than a server's own troubles come again.
            Self::ForgeUnavailable { operation, status, .. } => (
                network(operation),
                "Check the forge's status page, and `git_url` of the forge in the configuration.",
                *status >= 500 || matches!(status, 408 | 425),
            ),
            Self::PushTooLarge { .. } => (Code::PushRejected, PushFault::PushTooLarge.hint(), false),
            Self::NotGit { operation, .. } => {
                (address(operation), "Check `git_url` of the forge in the configuration.", false)
            }
            Self::Unreachable { operation, .. } => {
                (network(operation), "Check the forge's host name and the server's network.", true)
            }
            Self::Untrusted { operation, .. } => (
                address(operation),
                "Install the forge's certificate authority on the server (its system store, or SSL_CERT_FILE), or correct `git_url`.",
                false,
            ),
            Self::NoTls { operation, .. } => {
                (address(operation), "Check scheme and port in `git_url` of the forge in the configuration.", false)
            }
            Self::Redirected { operation, .. } => (
                address(operation),
                "Use the repository's present address; it was renamed, moved, or the forge's URL is wrong.",
                false,
            ),
            Self::ConnectionLost { operation, .. } | Self::ForgeSilent { operation, .. } => {
                (network(operation), "Retry; check the network between this server and the forge.", true)
            }
            Self::DeadlineExceeded { operation: operation @ (Operation::Clone | Operation::Push), .. } => {
                (network(operation), "Retry; if the repository is large, set `git.depth` to 1.", true)
            }
            Self::DeadlineExceeded { .. } => {
                (Code::Internal, "Retry; if it comes again, the server's disk is too slow or too busy.", true)
            }
            Self::RepoTooLarge { .. } => (
                Code::CloneFailed,
                "Set `git.depth` in the configuration to 1, so that less of the history is fetched.",
                false,
            ),
            Self::TreeTooLarge { .. } => (
                Code::CloneFailed,
                "Choose another `base`: the files of this one are too many to be written out.",
                false,
            ),
            Self::BranchProtected { .. } => (
                Code::BranchProtected,
                "Choose another `branch`, or let the token bypass the rule in the forge's branch settings (GitHub: Settings → Branches or Rules; Bitbucket: Branch restrictions; GitLab: Protected branches).",
                false,
            ),
            Self::BranchRule { .. } => (
                Code::BranchPolicy,
                "The forge's sentence names the rule; choose a `branch` that it allows, or change it in the forge's settings (GitHub: Settings → Rules; Bitbucket: Branch restrictions; GitLab: Push rules).",
                false,
            ),
            Self::BranchNameTaken { .. } => {
                (Code::BranchPolicy, "Choose another branch name, or delete the branch in the way.", false)
            }
            Self::Rejected { fault, .. } => (Code::PushRejected, fault.hint(), fault.passes()),
            Self::Conflict { .. } => (
                Code::PushConflict,
                "Retry the task, choose another branch name, or delete the branch on the forge.",
                false,
            ),
            Self::NothingToPush => (Code::NothingToPush, Code::NothingToPush.hint(), false),
            Self::ExportFailed { fault: ExportFault::HistoryGone } => {
                (Code::PushRejected, "Retry the task and ask the agent to leave .git alone.", false)
            }
            Self::ExportFailed { fault: ExportFault::DiskFull } => {
                (Code::SandboxDiskFull, Code::SandboxDiskFull.hint(), false)
            }
            Self::ExportFailed { .. } => {
                (Code::PushRejected, "Retry the task; its events show what the export said.", true)
            }
            Self::PackRejected { fault, .. } => (Code::PushRejected, pack_hint(*fault), false),
            Self::Io { .. } => (Code::Internal, "Check the server's disk: space, permissions, `data_dir`.", true),
            Self::Git { .. } => (Code::Internal, Code::Internal.hint(), true),
        };
        Failure::new(code, self.to_string()).with_hint(hint).with_retryable(retryable)
    }
}

fn pack_hint(fault: PackFault) -> &'static str {
    match fault {
        PackFault::Malformed => "Retry the task; the sandbox sent a damaged pack.",
        PackFault::TooLarge | PackFault::LimitReached => {
            "Ask for a smaller change, or ignore generated files; the limits are `commits.max_file`, `commits.max_change` and `commits.import_memory` in the configuration."
        }
        PackFault::Ancestry => {
            "Ask the agent to commit on top of where it started, without merging other branches, or set `commits.history` to \"squash\"."
        }
        PackFault::Path => "Ask the agent to rename the path; git clients could mistake it for their own files.",
        PackFault::Mode => "Ask the agent for ordinary files, executable files or links.",
        PackFault::Symlink => "Ask the agent for links that stay inside the repository, without an absolute path.",
        PackFault::Gitlink => "Ask the agent not to add or move a nested repository or submodule.",
        PackFault::FileTooLarge => {
            "Ask the agent to leave the large file out, or to ignore it; the limit is `commits.max_file` in the configuration."
        }
        PackFault::Name => {
            "Ask the agent to rename the file, or change `commits.names_not_utf8` or `commits.names_not_on_windows` in the configuration."
        }
        PackFault::CaseTwins => {
            "Ask the agent to give the two files different names, or set `commits.case_twins` in the configuration."
        }
        PackFault::Protected => {
            "Ask the agent to leave the file alone and make that change yourself, or take it out of `commits.protected_files` in the configuration."
        }
        PackFault::LfsContent => {
            "Ask the agent not to change files that `.gitattributes` gives to Git LFS; commit them from a clone with git-lfs."
        }
        PackFault::LfsObject => {
            "Ask the agent to leave Git LFS pointers as they are: their objects cannot be uploaded from a sandbox."
        }
        PackFault::Secret => {
            "Ask the agent to take the secret out of every commit and revoke it if it was real; a made-up one can be allowed by its path in `commits.secrets_allowed_in`."
        }
    }
}
