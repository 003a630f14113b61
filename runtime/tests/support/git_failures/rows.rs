//! The table itself, a line a row.

use super::Doing::{Cloning, Pushing};
use super::*;

use FailureCode::{
    BranchPolicy, BranchProtected, CloneFailed, GitAuth, GitTokenScope, NetworkDropped, PushConflict, PushRejected,
    RepoNotFound,
};

const GITHUB_PERMISSION: &str = "X-Accepted-GitHub-Permissions";
const PLAIN: &str = "text/plain; charset=UTF-8";
const JSON: &str = "application/json";
const HTML: &str = "text/html; charset=utf-8";
const NEW_TOKEN: &str = "PUT /v1/tasks/{id}/credentials";

fn said(status: u16, kind: &'static str, body: &'static str) -> Wrong {
    Wrong::Answer(At::Refs, status, kind, body, None)
}

fn with(status: u16, body: &'static str, name: &'static str, value: &'static str) -> Wrong {
    Wrong::Answer(At::Refs, status, PLAIN, body, Some((name, value)))
}

/// The token and what it may do.
#[rustfmt::skip]
pub(super) fn tokens() -> Vec<Row> {
    let archived = "This repository was archived so it is read-only.";
    vec![
        row("wrong token, push", Pushing, Wrong::Token(Some("ghp_canary_wrong")), GitAuth, "Bad credentials", NEW_TOKEN),
        row("wrong token, clone", Cloning, Wrong::Token(Some("ghp_canary_wrong")), GitAuth, "expired, revoked or mistyped", NEW_TOKEN),
        row("no token, push", Pushing, Wrong::Token(None), GitAuth, "without a git token", NEW_TOKEN),
        row("no token, clone", Cloning, Wrong::Token(None), GitAuth, "without a git token", NEW_TOKEN),
        row("token dies between refs and pack, push", Pushing, Wrong::Fault(At::Pack, Fault::Revoke), GitAuth, "in the middle of the push", NEW_TOKEN),
        row("token dies between refs and pack, clone", Cloning, Wrong::Fault(At::Pack, Fault::Revoke), GitAuth, "in the middle of the clone", NEW_TOKEN),
        row("GitLab: password without second factor", Pushing, said(401, PLAIN, "HTTP Basic: Access denied. If a password was provided for Git authentication, the password was incorrect or you're required to use a token instead of a password."), GitAuth, "use a token instead of a password", NEW_TOKEN),
        row("Data Center: captcha", Pushing, with(403, "", "X-Authentication-Denied-Reason", "CAPTCHA_CHALLENGE; login-url=https://forge.example/login"), GitAuth, "captcha", "solve the captcha"),
        row("GitHub: read-only token", Pushing, said(403, PLAIN, "Permission to acme/api.git denied to octocat."), GitTokenScope, "denied to octocat", "`contents: write`"),
        row("GitHub: fine-grained token without contents", Pushing, with(403, "Write access to repository not granted.", GITHUB_PERMISSION, "contents=write"), GitTokenScope, "`contents=write`", "Settings → Developer settings → Personal access tokens"),
        row("GitHub: classic token without repo", Pushing, with(403, "Must have push access.", "X-OAuth-Scopes", "read:org\r\nX-Accepted-OAuth-Scopes: repo, public_repo"), GitTokenScope, "`repo or public_repo`", "Personal access tokens"),
        row("GitHub: token may not read", Cloning, said(403, PLAIN, "Resource not accessible by personal access token"), GitTokenScope, "not accessible", "`contents: read`"),
        row("GitHub: single sign-on, header", Pushing, with(403, "Forbidden", "X-GitHub-SSO", "required; url=https://github.com/orgs/acme/sso?authorization_request=A"), GitTokenScope, "single sign-on", "Configure SSO"),
        row("GitHub: single sign-on, words", Pushing, said(403, PLAIN, "The `acme' organization has enabled or enforced SAML SSO. To access this repository, you must re-authorize the token."), GitTokenScope, "SAML SSO", "Configure SSO"),
        row("GitHub: allow list of addresses", Pushing, said(403, PLAIN, "Although you appear to have the correct authorization credentials, the `acme` organization has an IP allow list enabled, and your IP address is not permitted to access this resource."), GitTokenScope, "this server's address", "IP allow list"),
        row("Bitbucket: missing scope", Pushing, said(403, JSON, r#"{"type":"error","error":{"message":"Your credentials lack one or more required privilege scopes.","detail":{"required":["repository:write"],"granted":["repository"]}}}"#), GitTokenScope, "lack one or more required privilege scopes", "`repository:write`"),
        row("GitLab: no push for this role", Pushing, Wrong::Hook("GitLab: You are not allowed to push code to this project."), GitTokenScope, "not allowed to push code", "`write_repository`"),
        row("GitHub: workflow file without scope", Pushing, Wrong::Hook("refusing to allow a Personal Access Token to create or update workflow `.github/workflows/a.yml` without `workflow` scope"), GitTokenScope, "the permission `workflow`", "Personal access tokens"),
        row("archived", Pushing, said(403, PLAIN, archived), PushRejected, "archived", "Unarchive the repository"),
    ]
}

/// The repository.
#[rustfmt::skip]
pub(super) fn repositories() -> Vec<Row> {
    vec![
        row("GitHub: no such repository", Cloning, said(404, PLAIN, "Repository not found."), RepoNotFound, "does not exist, or the git token may not see it", "the token lists this repository"),
        row("GitHub: no such repository, push", Pushing, said(404, PLAIN, "Repository not found."), RepoNotFound, "Repository not found.", "the token lists this repository"),
        row("GitLab: no such project", Pushing, said(404, PLAIN, "The project you were looking for could not be found or you don't have permission to view it."), RepoNotFound, "could not be found", "the token lists this repository"),
        row("really no such repository", Cloning, Wrong::Url("acme/none"), RepoNotFound, "acme/none", "Check the spelling"),
        row("taken down", Cloning, said(451, PLAIN, "Repository unavailable due to DMCA takedown."), RepoNotFound, "DMCA", "Open the repository in a browser"),
        row("not paid for", Pushing, said(402, PLAIN, "Your account is past due."), RepoNotFound, "past due", "Open the repository in a browser"),
        row("no such base", Cloning, Wrong::Base("nope"), BranchPolicy, "no branch \"nope\"", "leave `base` out"),
    ]
}

/// The network, and what stands in it.
#[rustfmt::skip]
pub(super) fn networks() -> Vec<Row> {
    vec![
        row("moved round in a circle", Pushing, with(301, "", "Location", "/acme/renamed.git/info/refs?service=git-receive-pack"), PushRejected, "/acme/renamed.git)", "present address"),
        row("429, push", Pushing, with(429, "slow down", "Retry-After", "17"), NetworkDropped, "asks to wait 17 s", "Wait for the forge's limit").retryable().waits(17),
        row("429, clone", Cloning, with(429, "slow down", "Retry-After", "9"), CloneFailed, "limits requests", "Wait for the forge's limit").retryable().waits(9),
        row("GitHub: secondary limit", Pushing, with(403, "You have exceeded a secondary rate limit.", "Retry-After", "60"), NetworkDropped, "limits requests", "Wait for the forge's limit").retryable().waits(60),
        row("500", Cloning, said(500, HTML, "<html>oops</html>"), CloneFailed, "HTTP status 500", "status page")
            .retryable(),
        row("502", Pushing, said(502, HTML, "<html>bad gateway</html>"), NetworkDropped, "HTTP status 502", "status page")
            .retryable(),
        row("503 with a time", Pushing, with(503, "Bitbucket is down for maintenance.", "Retry-After", "120"), NetworkDropped, "down for maintenance", "status page").retryable().waits(120),
        row("418", Pushing, said(418, PLAIN, "no"), NetworkDropped, "HTTP status 418", "`git_url`"),
        row("proxy takes no large body", Pushing, Wrong::Answer(At::Pack, 413, HTML, "<html>413</html>", None), PushRejected, "of this size", "`client_max_body_size`"),
        row("log-in page", Cloning, said(200, HTML, "<html>Sign in</html>"), CloneFailed, "a log-in page", "`git_url`"),
        row("log-in page, push", Pushing, said(200, HTML, "<html>Sign in</html>"), PushRejected, "a log-in page", "`git_url`"),
        row("redirect elsewhere", Cloning, Wrong::Fault(At::Refs, Fault::Redirect("http://localhost:9".to_owned())), CloneFailed, "(http://localhost:9/acme/api.git)", "present address"),
        row("redirect elsewhere, pack", Pushing, Wrong::Fault(At::Pack, Fault::Redirect("http://localhost:9".to_owned())), PushRejected, "was not followed", "present address"),
        row("cut in the refs", Cloning, Wrong::Fault(At::Refs, Fault::Cut(40)), CloneFailed, "broke during the clone", "network between this server and the forge").retryable(),
        row("cut in the pack", Cloning, Wrong::Fault(At::Pack, Fault::Cut(90)), CloneFailed, "during the clone", "network between this server and the forge").retryable(),
        row("cut in the answer to a push", Pushing, Wrong::Fault(At::Pack, Fault::Cut(3)), NetworkDropped, "during the push", "network between this server and the forge").retryable(),
        row("reset at the refs", Pushing, Wrong::Fault(At::Refs, Fault::Reset), NetworkDropped, "during the push", "network between this server and the forge").retryable(),
        row("reset at the pack", Pushing, Wrong::Fault(At::Pack, Fault::Reset), NetworkDropped, "during the push", "network between this server and the forge").retryable(),
        row("answer lost after the push was taken", Pushing, Wrong::Fault(At::Pack, Fault::LoseReply), NetworkDropped, "during the push", "network between this server and the forge").retryable(),
        row("silence", Pushing, Wrong::Fault(At::Refs, Fault::Hang), NetworkDropped, "did not end within", "`git.depth`").retryable(),
        row("silence in the pack", Cloning, Wrong::Fault(At::Pack, Fault::Hang), CloneFailed, "did not end within", "`git.depth`").retryable(),
        row("one byte at a time", Cloning, Wrong::Fault(At::Refs, Fault::Drip(Duration::from_millis(50))), CloneFailed, "did not end within", "`git.depth`").retryable(),
        row("nobody listens", Pushing, Wrong::Url("http://127.0.0.1:9/a/b.git"), NetworkDropped, "cannot be reached", "the forge's host name").retryable(),
        row("no such host", Cloning, Wrong::Url("http://forge.invalid/a/b.git"), CloneFailed, "cannot be reached", "the forge's host name").retryable(),
        row("certificate of nobody", Pushing, Wrong::SelfSigned, PushRejected, "is not trusted", "certificate authority"),
        row("no TLS there", Cloning, Wrong::PlainServer, CloneFailed, "does not speak TLS", "`git_url`"),
        row("user name in the address", Pushing, Wrong::Url("http://user:ghp_canary@127.0.0.1/a/b.git"), CloneFailed, "tokens are supplied apart", "without a user name"),
    ]
}

/// The rules of the forge.
#[rustfmt::skip]
pub(super) fn rules() -> Vec<Row> {
    vec![
        row("GH001", Pushing, Wrong::Hook("error: GH001: Large files detected. You may want to try Git Large File Storage.\nerror: File a.bin is 123.00 MB; this exceeds GitHub's file size limit of 100.00 MB"), PushRejected, "GH001", "leave the large file out"),
        row("GH006", Pushing, Wrong::Hook("error: GH006: Protected branch update failed for refs/heads/x.\nerror: Changes must be made through a pull request."), BranchProtected, "GH006", "branch settings"),
        row("GH007", Pushing, Wrong::Hook("error: GH007: Your push would publish a private email address.\nYou can make your email public or disable this protection by visiting:\nhttp://github.com/settings/emails"), PushRejected, "GH007", "users.noreply.github.com"),
        row("GH008", Pushing, Wrong::Hook("error: GH008: Your push referenced at least 1 unknown Git LFS object:\n    5ea1"), PushRejected, "GH008", "Git LFS"),
        row("GH013, a rule", Pushing, Wrong::Hook("error: GH013: Repository rule violations found for refs/heads/x.\n- Cannot create ref due to creations being restricted."), BranchPolicy, "creations being restricted", "Settings → Rules"),
        row("GH013, a secret", Pushing, Wrong::Hook("error: GH013: Repository rule violations found for refs/heads/x.\n- GITHUB PUSH PROTECTION\n  - Push cannot contain secrets\n  (?) To push, remove secret from commit(s) or follow this URL to allow the secret."), PushRejected, "PUSH PROTECTION", "take the secret out"),
        row("GH013, signatures", Pushing, Wrong::Hook("error: GH013: Repository rule violations found for refs/heads/x.\n- Commits must have verified signatures."), PushRejected, "verified signatures", "signature settings"),
        row("GitLab: protected", Pushing, Wrong::Hook("GitLab: You are not allowed to push code to protected branches on this project."), BranchProtected, "protected branches", "branch settings"),
        row("GitLab: large file", Pushing, Wrong::Hook("GitLab: You are attempting to check in one or more blobs which exceed the 10MiB limit"), PushRejected, "10MiB", "leave the large file out"),
        row("GitLab: LFS", Pushing, Wrong::Hook("GitLab: LFS objects are missing. Ensure LFS is properly set up or try a manual \"git lfs push --all\"."), PushRejected, "LFS objects are missing", "Git LFS"),
        row("GitLab: branch name", Pushing, Wrong::Hook("GitLab: Branch name does not follow the pattern '^feature/'"), BranchPolicy, "'^feature/'", "choose a `branch` that it allows"),
        row("GitLab: committer", Pushing, Wrong::Hook("GitLab: You cannot push commits for 'o@example.com'. You can only push commits if the committer email is one of your own verified emails."), PushRejected, "verified emails", "the owner of the token"),
        row("GitLab: message", Pushing, Wrong::Hook("GitLab: Commit message does not follow the pattern 'ABC-1'"), PushRejected, "ABC-1", "commit template"),
        row("GitLab: quota", Pushing, Wrong::Hook("GitLab: Your push to this repository cannot be completed because this repository has exceeded the allocated storage for your project."), PushRejected, "allocated storage", "raise its quota"),
        row("GitLab: read-only", Pushing, Wrong::Hook("GitLab: You can't push code to a read-only GitLab instance."), PushRejected, "read-only", "until the forge takes pushes again").retryable(),
        row("Bitbucket: branch restriction", Pushing, Wrong::Hook("Permission denied to create branch x"), BranchPolicy, "Permission denied to create branch x", "Branch restrictions"),
        row("Data Center: pull requests only", Pushing, Wrong::Hook("Branch refs/heads/x can only be modified through pull requests.\nCheck your branch permissions configuration with the project administrator."), BranchProtected, "through pull requests", "branch settings"),
        row("Data Center: own commits only", Pushing, Wrong::Hook("You can only push your own commits in this repository\nCommit 4c3f was committed by Orchestra <o@example.com>"), PushRejected, "your own commits", "Verify Committer"),
        row("a rule of the operator's own", Pushing, Wrong::Hook("Commits need the plumbing team's word."), PushRejected, "the plumbing team's word", "Read the forge's sentence"),
        row("a hook that says nothing", Pushing, Wrong::Script("exit 1"), PushRejected, "pre-receive hook declined", "Read the forge's sentence"),
    ]
}

/// What git itself refuses.
#[rustfmt::skip]
pub(super) fn git_itself() -> Vec<Row> {
    vec![
        row("somebody's branch", Pushing, Wrong::Branch("other"), PushConflict, "exists already at another commit", "choose another branch name"),
        row("a branch in the way", Pushing, Wrong::Branch("other/x"), BranchPolicy, "another branch's name is a part of it", "delete the branch in the way"),
        row("no branch name", Pushing, Wrong::Branch("a b"), BranchPolicy, "cannot be a branch name", "Choose another branch name"),
        row("a branch made meanwhile", Pushing, Wrong::Script("unset GIT_QUARANTINE_PATH\ngit update-ref refs/heads/orchestra/x refs/heads/other"), PushConflict, "exists already at another commit", "choose another branch name"),
        row("a branch moved back", Pushing, Wrong::Diverged, PushConflict, "exists already at another commit", "choose another branch name"),
        row("a hidden branch", Pushing, Wrong::Config(&[("receive.hideRefs", "refs/heads/orchestra")]), BranchPolicy, "hidden ref", "choose a `branch` that it allows"),
        row("a push over the limit", Pushing, Wrong::Config(&[("receive.maxInputSize", "100")]), PushRejected, "maximum allowed size", "`receive.maxInputSize`"),
        row("a tree that fsck refuses", Pushing, Wrong::BadTree, PushRejected, "unpack", "check of the objects failed"),
    ]
}
