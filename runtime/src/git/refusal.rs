//! Which rule of a forge refused a push, read from the sentences that it sends along.
//!
//! Git's protocol has one short reason for each ref, which is the same (`pre-receive hook declined`) for most rules; the
//! rule is in the side channel, in words. The words below are those that GitHub, Bitbucket Cloud, Bitbucket Data Center,
//! GitLab and git itself send; a sentence that none of them knows is quoted as it is.

use super::error::{GitError, Operation};

/// Why a forge took the objects and refused the branch, where the remedy is in the commits or at the forge.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PushFault {
    /// One file is larger than the forge takes (GitHub's GH001).
    FileTooLarge,
    /// The whole push is larger than the forge takes.
    PushTooLarge,
    /// A commit shows an e-mail address that its owner keeps private (GH007).
    PrivateEmail,
    /// The forge found a secret in the commits (push protection).
    SecretFound,
    /// A file is a pointer to a large object that the forge does not have (GH008).
    LfsObjectsMissing,
    /// The repository or its owner has no room left.
    QuotaExceeded,
    /// The forge takes no pushes for now.
    ReadOnly,
    /// The commits' author or committer is not the owner of the token.
    CommitterPolicy,
    /// A rule about the commits: their messages, signatures or shape.
    CommitRule,
    /// The forge's own checks of the objects failed.
    UnsafeTree,
    /// Another program is moving the branch.
    BranchLocked,
    /// A hook of the forge's operator, in its own words.
    Hook,
}

impl PushFault {
    /// What is done about it.
    pub(super) const fn hint(self) -> &'static str {
        match self {
            Self::FileTooLarge => {
                "Ask the agent to leave the large file out, or to ignore it; or keep it in Git LFS and commit it by hand."
            }
            Self::PushTooLarge => {
                "Ask for a smaller change, or raise the forge's limit for one push (`client_max_body_size` of its proxy, `receive.maxInputSize`)."
            }
            Self::PrivateEmail => {
                "Set an author address that may be public (GitHub: the one ending in users.noreply.github.com), or allow it under Settings → Emails → Block command line pushes that expose my email."
            }
            Self::SecretFound => {
                "Ask the agent to take the secret out of the change and revoke it; if it is none, allow it at the link in the forge's sentence, then retry."
            }
            Self::LfsObjectsMissing => {
                "Ask the agent to leave files under Git LFS alone: their content is not in the commit and cannot be pushed with it."
            }
            Self::QuotaExceeded => {
                "Free space in the repository or raise its quota in the forge's settings (Usage quotas, Storage), then retry; the work is kept."
            }
            Self::ReadOnly => "Wait until the forge takes pushes again; the step is tried again.",
            Self::CommitterPolicy => {
                "Set author and committer to the owner of the token, or switch the forge's rule off (Bitbucket: Hooks → Verify Committer; GitLab: Push rules)."
            }
            Self::CommitRule => {
                "The forge's sentence names the rule about commits; satisfy it with the commit template or the signature settings, or except this token from the rule."
            }
            Self::UnsafeTree => {
                "The forge's check of the objects failed; ask the agent to rename the path or to commit anew, without rewriting trees by hand."
            }
            Self::BranchLocked => {
                "Wait until no other program moves the branch; the step is tried again. A lock that stays was left by a program that died: remove the file that the forge names."
            }
            Self::Hook => "Read the forge's sentence; it names the rule that refused the push.",
        }
    }

    /// Whether the same push may succeed later.
    pub(super) const fn passes(self) -> bool {
        match self {
            Self::ReadOnly | Self::BranchLocked => true,
            Self::FileTooLarge
            | Self::PushTooLarge
            | Self::PrivateEmail
            | Self::SecretFound
            | Self::LfsObjectsMissing
            | Self::QuotaExceeded
            | Self::CommitterPolicy
            | Self::CommitRule
            | Self::UnsafeTree
            | Self::Hook => false,
        }
    }
}

/// The sentences of each fault, in lower case. The first fault that has one is meant, so the exact ones come first: a text
/// about secrets names rule sets too.
const SENTENCES: [(PushFault, &[&str]); 10] = [
    (
        PushFault::LfsObjectsMissing,
        &["gh008", "lfs objects are missing", "unknown git lfs object", "lfs object(s) missing"],
    ),
    (
        PushFault::SecretFound,
        &[
            "gh009",
            "push protection",
            "push cannot contain secrets",
            "secrets detected",
            "secrets were found",
            "secret scanning",
        ],
    ),
    (
        PushFault::FileTooLarge,
        &[
            "gh001",
            "large files detected",
            "exceeds github's file size limit",
            "blobs which exceed",
            "is larger than the allowed size",
            "exceeds the maximum file size",
            "file size limit",
        ],
    ),
    (
        PushFault::PushTooLarge,
        &["pack exceeds maximum allowed size", "exceeds the maximum push size", "push is too large"],
    ),
    (
        PushFault::QuotaExceeded,
        &[
            "exceeded the allocated storage",
            "exceed the allowed storage",
            "exceeded its size limit",
            "over its data quota",
            "over its storage quota",
            "repository size exceeds",
            "repository size limit",
            "over the size limit",
            "disk quota exceeded",
            "no space left on device",
        ],
    ),
    (PushFault::PrivateEmail, &["gh007", "publish a private email"]),
    (
        PushFault::CommitterPolicy,
        &[
            "only push your own commits",
            "you cannot push commits for",
            "you can only push commits if",
            "committer's email",
            "author's email",
            "is not a member of team",
        ],
    ),
    (
        PushFault::CommitRule,
        &[
            "must have verified signatures",
            "must be signed",
            "commit message does not follow",
            "commit messages must",
            "commit message must",
            "issue keys",
            "issue key in",
            "cannot contain merge commits",
            "linear history",
        ],
    ),
    (
        PushFault::ReadOnly,
        &[
            "read-only gitlab instance",
            "temporarily read-only",
            "temporarily unavailable",
            "maintenance mode",
            "in maintenance",
            "due to maintenance",
            "being backed up",
            "internal server error",
        ],
    ),
    (
        PushFault::UnsafeTree,
        &[
            "fsck error",
            "error in object",
            "fsck failed",
            "object corrupt or missing",
            "bad tree object",
            "contains '.git'",
        ],
    ),
];

/// Which rule refused the branch. `status` is git's own short reason, `forge` the sentences beside it.
pub(super) fn refusal(branch: String, repo: &str, status: &str, forge: Option<String>) -> GitError {
    let all = format!("{status} {}", forge.as_deref().unwrap_or_default()).to_lowercase();
    let has = |needles: &[&str]| needles.iter().any(|needle| all.contains(needle));
    let repo = || repo.to_owned();
    let forge = Some(match forge {
        Some(text) => format!("{text} ({status})"),
        None => status.to_owned(),
    });
    // First the token's permissions: these texts name files, which can be called anything.
    if all.contains("workflow") && all.contains("refusing to allow") && has(&["scope", "permission"]) {
        let permission = if all.contains("`workflows`") { "workflows" } else { "workflow" };
        return GitError::TokenLacksPermission { repo: repo(), permission: permission.to_owned(), forge };
    }
    if let Some((fault, _)) = SENTENCES.iter().find(|(_, sentences)| has(sentences)) {
        return GitError::Rejected { branch, fault: *fault, forge };
    }
    if all.contains("archived") && all.contains("read-only") {
        return GitError::RepoArchived { repo: repo(), forge };
    }
    if has(&["not allowed to push code to this project", "write permission required", "you are not permitted to push"])
    {
        return GitError::TokenLacksAccess { operation: Operation::Push, repo: repo(), forge };
    }
    if all.contains("cannot lock ref") && all.contains("file exists") {
        return GitError::Rejected { branch, fault: PushFault::BranchLocked, forge };
    }
    if has(&["cannot lock ref", "directory file conflict"]) && has(&["exists; cannot create", "conflict"]) {
        return GitError::BranchNameTaken { branch, forge };
    }
    if has(&["gh013", "repository rule violation", "ruleset"]) {
        return GitError::BranchRule { branch, forge };
    }
    if has(&["gh006", "gh003", "protected branch", "branch is protected", "can only be modified through pull requests"])
    {
        return GitError::BranchProtected { branch, forge };
    }
    if has(&[
        "permission denied to create branch",
        "permission denied to update branch",
        "branch permission",
        "branch restriction",
        "branch name does not follow",
        "does not follow the pattern",
        "hidden ref",
    ]) {
        return GitError::BranchRule { branch, forge };
    }
    if has(&["non-fast-forward", "fetch first", "stale info", "reference already exists", "incorrect old value"]) {
        return GitError::Conflict { branch, found: None };
    }
    if status.starts_with("failed to update ref") {
        return GitError::BranchNameTaken { branch, forge };
    }
    // Nothing but the unpacker's own word: the objects did not pass.
    let fault = if status.starts_with("unpacker error")
        || status.starts_with("unpack-objects")
        || all.contains("index-pack abnormal exit")
    {
        PushFault::UnsafeTree
    } else {
        PushFault::Hook
    };
    GitError::Rejected { branch, fault, forge }
}

#[cfg(test)]
mod tests {
    use orchestra_events::FailureCode as Code;

    use super::*;

    const DECLINED: &str = "pre-receive hook declined";

    /// Git's short reason, the forge's sentences, and the code and (where it is one) fault that come of them.
    const SEEN: &[(&str, &str, Code, Option<PushFault>)] = &[
        (
            "protected branch hook declined",
            "error: GH006: Protected branch update failed for refs/heads/x.",
            Code::BranchProtected,
            None,
        ),
        (
            DECLINED,
            "error: GH006: Protected branch update failed for refs/heads/x. error: Changes must be made through a pull request.",
            Code::BranchProtected,
            None,
        ),
        (
            "push declined due to repository rule violations",
            "error: GH013: Repository rule violations found for refs/heads/x. - Cannot create ref due to creations being restricted.",
            Code::BranchPolicy,
            None,
        ),
        (
            "push declined due to repository rule violations",
            "error: GH013: Repository rule violations found for refs/heads/x. - GITHUB PUSH PROTECTION - Push cannot contain secrets —— GitHub Personal Access Token ——",
            Code::PushRejected,
            Some(PushFault::SecretFound),
        ),
        (
            "push declined due to repository rule violations",
            "error: GH013: Repository rule violations found for refs/heads/x. - Commits must have verified signatures.",
            Code::PushRejected,
            Some(PushFault::CommitRule),
        ),
        (
            DECLINED,
            "error: GH001: Large files detected. You may want to try Git Large File Storage. error: File a.bin is 123.00 MB; this exceeds GitHub's file size limit of 100.00 MB",
            Code::PushRejected,
            Some(PushFault::FileTooLarge),
        ),
        (
            DECLINED,
            "error: GH007: Your push would publish a private email address.",
            Code::PushRejected,
            Some(PushFault::PrivateEmail),
        ),
        (
            DECLINED,
            "error: GH008: Your push referenced at least 1 unknown Git LFS object: 5ea1",
            Code::PushRejected,
            Some(PushFault::LfsObjectsMissing),
        ),
        (
            "refusing to allow a Personal Access Token to create or update workflow `.github/workflows/a.yml` without `workflow` scope",
            "",
            Code::GitTokenScope,
            None,
        ),
        (
            "refusing to allow a GitHub App to create or update workflow `.github/workflows/a.yml` without `workflows` permission",
            "",
            Code::GitTokenScope,
            None,
        ),
        (
            DECLINED,
            "GitLab: You are not allowed to push code to protected branches on this project.",
            Code::BranchProtected,
            None,
        ),
        (DECLINED, "GitLab: You are not allowed to push code to this project.", Code::GitTokenScope, None),
        (
            DECLINED,
            "GitLab: LFS objects are missing. Ensure LFS is properly set up or try a manual \"git lfs push --all\".",
            Code::PushRejected,
            Some(PushFault::LfsObjectsMissing),
        ),
        (
            DECLINED,
            "GitLab: You are attempting to check in one or more blobs which exceed the 10MiB limit",
            Code::PushRejected,
            Some(PushFault::FileTooLarge),
        ),
        (
            DECLINED,
            "GitLab: You cannot push commits for 'a@b.example'. You can only push commits if the committer email is one of your own verified emails.",
            Code::PushRejected,
            Some(PushFault::CommitterPolicy),
        ),
        (
            DECLINED,
            "GitLab: Commit message does not follow the pattern 'ABC-\\d+'",
            Code::PushRejected,
            Some(PushFault::CommitRule),
        ),
        (DECLINED, "GitLab: Branch name does not follow the pattern '^feature/'", Code::BranchPolicy, None),
        (
            DECLINED,
            "GitLab: Your push to this repository cannot be completed because this repository has exceeded the allocated storage for your project.",
            Code::PushRejected,
            Some(PushFault::QuotaExceeded),
        ),
        (
            DECLINED,
            "GitLab: You can't push code to a read-only GitLab instance.",
            Code::PushRejected,
            Some(PushFault::ReadOnly),
        ),
        (
            DECLINED,
            "GitLab: PUSH BLOCKED: Secrets detected in code changes",
            Code::PushRejected,
            Some(PushFault::SecretFound),
        ),
        (DECLINED, "Permission denied to create branch x", Code::BranchPolicy, None),
        (
            DECLINED,
            "Branch refs/heads/x can only be modified through pull requests. Check your branch permissions configuration with the project administrator.",
            Code::BranchProtected,
            None,
        ),
        (
            DECLINED,
            "You can only push your own commits in this repository. Commit 4c3 was committed by Orchestra",
            Code::PushRejected,
            Some(PushFault::CommitterPolicy),
        ),
        (DECLINED, "Repository acme/api is archived and is read-only.", Code::PushRejected, None),
        (
            DECLINED,
            "The repository is in maintenance mode; try again later",
            Code::PushRejected,
            Some(PushFault::ReadOnly),
        ),
        (
            "failed to update ref",
            "error: cannot lock ref 'refs/heads/a/b': 'refs/heads/a' exists; cannot create 'refs/heads/a/b'",
            Code::BranchPolicy,
            None,
        ),
        (
            "failed to update ref",
            "error: cannot lock ref 'refs/heads/a': Unable to create '/srv/a.git/refs/heads/a.lock': File exists. Another git process seems to be running in this repository.",
            Code::PushRejected,
            Some(PushFault::BranchLocked),
        ),
        ("non-fast-forward", "", Code::PushConflict, None),
        ("deny updating a hidden ref", "", Code::BranchPolicy, None),
        ("unpacker error", "fatal: fsck error in packed object", Code::PushRejected, Some(PushFault::UnsafeTree)),
        (
            "unpacker error",
            "fatal: pack exceeds maximum allowed size (1.00 MiB)",
            Code::PushRejected,
            Some(PushFault::PushTooLarge),
        ),
        ("unpacker error", "error: No space left on device", Code::PushRejected, Some(PushFault::QuotaExceeded)),
        (
            DECLINED,
            "Commits on this branch are reviewed by the plumbing team first.",
            Code::PushRejected,
            Some(PushFault::Hook),
        ),
    ];

    #[test]
    fn each_forges_sentence_has_its_code() {
        for (status, text, code, fault) in SEEN {
            let said = Some((*text).to_owned()).filter(|text| !text.is_empty());
            let error = refusal("x".to_owned(), "https://forge.example/a/b.git", status, said);
            let failure = error.failure();
            assert_eq!(failure.code, *code, "{status} {text}: {error}");
            let found = match &error {
                GitError::Rejected { fault, .. } => Some(*fault),
                _ => None,
            };
            assert_eq!(found, *fault, "{text}");
            assert_eq!(
                failure.retryable,
                matches!(fault, Some(PushFault::ReadOnly | PushFault::BranchLocked)),
                "{text}"
            );
            // The forge's own sentence is passed on, except for a conflict, which has a better one.
            assert!(error.to_string().contains(text) || *code == Code::PushConflict, "{error}");
        }
    }
}
