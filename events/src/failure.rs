//! Typed failures: the stable codes a user meets, each with what to do next.

use serde::{Deserialize, Serialize};

use crate::ledger::Exhausted;

/// Why a task, or one step of it, failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Failure {
    /// The stable name of the failure.
    pub code: FailureCode,
    /// What happened, and to which of the user's things. Never holds a secret.
    pub message: String,
    /// What to do next.
    pub hint: String,
    /// Whether doing the same again may succeed.
    pub retryable: bool,
    /// The cap that was met, where it is a budget that refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub budget: Option<Box<Exhausted>>,
}

impl From<Exhausted> for Failure {
    fn from(exhausted: Exhausted) -> Self {
        let mut failure =
            Self::new(FailureCode::BudgetExceeded, format!("The next model call does not fit: {exhausted}."));
        failure.budget = Some(Box::new(exhausted));
        failure
    }
}

impl Failure {
    /// A failure with its code's own hint and verdict on retrying.
    pub fn new(code: FailureCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), hint: code.hint().to_owned(), retryable: code.retryable(), budget: None }
    }

    /// What stays of it when words are forgotten: its sentences may quote anything.
    #[must_use]
    pub fn without_words(self) -> Self {
        Self { message: crate::ERASED.to_owned(), hint: self.code.hint().to_owned(), ..self }
    }

    /// The same failure with a more exact remedy.
    #[must_use]
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = hint.into();
        self
    }

    /// The same failure with a more exact verdict on retrying.
    #[must_use]
    pub fn with_retryable(mut self, retryable: bool) -> Self {
        self.retryable = retryable;
        self
    }
}

macro_rules! failure_codes {
    ($($(#[$doc:meta])* $name:ident = $text:literal, $retryable:literal, $hint:literal;)*) => {
        /// The stable codes. Each has a page in `docs/errors/`.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
        pub enum FailureCode {
            $($(#[$doc])* #[serde(rename = $text)] $name,)*
        }

        impl FailureCode {
            /// Every code there is.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// The kebab-case name.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }

            /// Whether the same step may succeed if it is done again.
            pub const fn retryable(self) -> bool {
                match self { $(Self::$name => $retryable,)* }
            }

            /// What a user can do about it.
            pub const fn hint(self) -> &'static str {
                match self { $(Self::$name => $hint,)* }
            }
        }
    };
}

failure_codes! {
    /// The next model call would not fit into what is left.
    BudgetExceeded = "budget-exceeded", false, "Raise the budget and retry the task, or split the task.";
    /// The provider answers 429.
    ModelRateLimited = "model-rate-limited", true, "Wait, or use a key with a higher rate limit.";
    /// The provider answers 529 or 503.
    ModelOverloaded = "model-overloaded", true, "The provider is overloaded; retry later or choose another model.";
    /// The provider cannot be reached, or answers 5xx.
    ModelUnavailable = "model-unavailable", true, "Check the provider's status page and the base URL of the model.";
    /// No first byte, or no next one, within the limit.
    ModelTimeout = "model-timeout", true, "Retry; if it persists, choose a faster model or a smaller prompt.";
    /// The reply ended before it was whole.
    ModelTruncated = "model-truncated", true, "Retry; if the reply hit its output limit, ask for less at once.";
    /// The provider refuses the key, or the request as such.
    ModelAuth = "model-auth", false, "Supply a valid model key with PUT /v1/tasks/{id}/credentials, then retry.";
    /// A connection broke.
    NetworkDropped = "network-dropped", true, "Retry; check the network between this server and the remote end.";
    /// The container did not start.
    SandboxStartFailed = "sandbox-start-failed", true, "Run `orchestra doctor` on the server; it names what is missing.";
    /// The kernel killed the agent for memory.
    SandboxOutOfMemory = "sandbox-out-of-memory", false, "Raise sandbox.memory, or ask for a smaller step.";
    /// The work tree's disk is full.
    SandboxDiskFull = "sandbox-disk-full", false, "Raise sandbox.disk, or clean up within the task.";
    /// The task's wall-clock limit passed.
    SandboxTimeout = "sandbox-timeout", false, "Raise timeoutSeconds, or split the task.";
    /// The repository could not be fetched.
    CloneFailed = "clone-failed", true, "Check that the forge is reachable from the server.";
    /// The forge knows no such repository, or hides it from this token.
    RepoNotFound = "repo-not-found", false, "Check the name, and that the git token may read this repository.";
    /// The forge refused the token.
    GitAuth = "git-auth", false, "Supply a valid git token with PUT /v1/tasks/{id}/credentials.";
    /// The token is valid but may not do this.
    GitTokenScope = "git-token-scope", false, "Give the token write access to the repository's contents.";
    /// The branch is protected.
    BranchProtected = "branch-protected", false, "Choose another branch name, or let the token bypass the rule.";
    /// A branch rule of Orchestra or of the forge forbids this.
    BranchPolicy = "branch-policy", false, "Choose a base and a branch that the policy allows.";
    /// The forge refused the pushed commit.
    PushRejected = "push-rejected", false, "Read the forge's sentence; it names the rule that refused the push.";
    /// Somebody else moved the branch.
    PushConflict = "push-conflict", false, "Retry the task: it starts from the branch as it is now.";
    /// The agent changed nothing.
    NothingToPush = "nothing-to-push", false, "Say more exactly what should change, then retry.";
    /// The branch is pushed, the pull request is not open.
    PullRequestFailed = "pull-request-failed", true, "The branch is pushed; open the pull request by hand or retry.";
    /// Somebody cancelled it.
    Cancelled = "cancelled", false, "Retry the task to start again.";
    /// The agent's program did not run, or ended without having done its work.
    HarnessFailed = "harness-failed", false, "Check that the task's image has the harness (orchestra image build --with), then read the task's last messages.";
    /// A repository's setup script did not succeed.
    SetupFailed = "setup-failed", false, "Read the end of the script's output, mend .orchestra/setup.sh on the base branch, then retry the task.";
    /// Our fault.
    Internal = "internal", true, "Retry; if it happens again, report it with the task's id.";
}

impl std::fmt::Display for FailureCode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {} {}", self.code, self.message, self.hint)
    }
}
