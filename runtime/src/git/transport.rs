//! One conversation with a forge: who may see the token, when to stop, and what libgit2's errors mean.

use std::cell::{Cell, RefCell};

use git2::{AutotagOption, ErrorClass, ErrorCode, FetchOptions, RemoteCallbacks, RemoteRedirect};
use orchestra_events::CommitId;
use reqwest::Url;
use secrecy::SecretString;

use super::error::{GitError, Operation};
use super::pool::Ticket;
use super::{Remote, RemoteKind, probe};
use crate::forge::GitCredential;
use crate::redact;

/// How much of the forge's side channel is kept: its sentences are a few lines, the rest is progress.
const MAX_SIDEBAND_BYTES: usize = 16 * 1024;
/// A ref that no forge has.
const NO_BRANCH: &str = "refs/orchestra/none:refs/orchestra/none";
/// How long a text from a forge may be in an error.
const MAX_FORGE_TEXT: usize = 600;

/// Makes texts of a forge or of libgit2 fit for an error.
pub(super) struct Redactor(redact::Redactor);

impl Redactor {
    pub(super) fn new(token: Option<&SecretString>) -> Self {
        Self(redact::Redactor::new(token))
    }

    /// The text as one printable line of bounded length, without the token.
    pub(super) fn line(&self, text: &str) -> String {
        let text = self.0.apply(text, "[redacted]");
        let mut line = String::new();
        for word in text.split(|c: char| c.is_control() || c.is_whitespace()).filter(|word| !word.is_empty()) {
            if line.len() + word.len() > MAX_FORGE_TEXT {
                line.push('…');
                break;
            }
            if !line.is_empty() {
                line.push(' ');
            }
            line.push_str(word);
        }
        line
    }
}

/// Scheme, host and port: the only place the token may go to.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Origin(String, String, Option<u16>);

impl Origin {
    fn of(url: &str) -> Option<Self> {
        let url = Url::parse(url).ok()?;
        Some(Self(url.scheme().to_owned(), url.host_str()?.to_owned(), url.port_or_known_default()))
    }
}

/// Checks a remote's address before anything is sent to it.
pub(super) fn check_remote(remote: &Remote) -> Result<(), GitError> {
    let refuse = |reason| Err(GitError::InvalidRemote { reason });
    match remote.kind {
        RemoteKind::Local => {
            if !std::path::Path::new(&remote.url).is_absolute() {
                return refuse("a local repository is named by its absolute path");
            }
        }
        RemoteKind::Http => {
            let Ok(url) = Url::parse(&remote.url) else { return refuse("it is not a URL") };
            if !matches!(url.scheme(), "https" | "http") {
                return refuse("only https and http are spoken");
            }
            if url.host_str().is_none_or(str::is_empty) {
                return refuse("it names no host");
            }
            if !url.username().is_empty() || url.password().is_some() {
                return refuse("it holds a user name or password; tokens are supplied apart");
            }
            if url.query().is_some() || url.fragment().is_some() {
                return refuse("it has a query or a fragment");
            }
        }
    }
    Ok(())
}

/// What the push's negotiation found on the forge.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Lease {
    AlreadyThere,
    Conflict(Option<CommitId>),
}

/// One connection's state: what was asked, what was said.
pub(super) struct Session<'a> {
    operation: Operation,
    remote: &'a Remote,
    token: Option<&'a SecretString>,
    ticket: &'a Ticket,
    max_bytes: u64,
    origin: Option<Origin>,
    redactor: Redactor,
    asked: Cell<u32>,
    foreign: Cell<bool>,
    /// The server has been asked whether it sends us on, and does not.
    settled: Cell<bool>,
    too_large: Cell<bool>,
    expired: Cell<bool>,
    sideband: RefCell<Vec<u8>>,
    /// What the forge answered for our one ref: `None` inside means accepted.
    pub(super) ref_status: RefCell<Option<Option<String>>>,
    pub(super) lease: RefCell<Option<Lease>>,
    /// Where the branch must be on the forge for a push to go on; `None`: nowhere.
    pub(super) expected: Cell<Option<git2::Oid>>,
}

impl<'a> Session<'a> {
    pub(super) fn new(
        operation: Operation,
        remote: &'a Remote,
        token: Option<&'a SecretString>,
        ticket: &'a Ticket,
        max_bytes: u64,
    ) -> Self {
        Self {
            operation,
            remote,
            token,
            ticket,
            max_bytes,
            origin: Origin::of(&remote.url),
            redactor: Redactor::new(token),
            asked: Cell::new(0),
            foreign: Cell::new(false),
            settled: Cell::new(false),
            too_large: Cell::new(false),
            expired: Cell::new(false),
            sideband: RefCell::new(Vec::new()),
            ref_status: RefCell::new(None),
            lease: RefCell::new(None),
            expected: Cell::new(None),
        }
    }

    fn go_on(&self) -> bool {
        let expired = self.ticket.expired();
        self.expired.set(self.expired.get() || expired);
        !expired
    }

    /// The callbacks of this conversation. They can be made more than once; the state is one.
    pub(super) fn callbacks<'s>(&'s self) -> RemoteCallbacks<'s> {
        let mut callbacks = RemoteCallbacks::new();
        callbacks.credentials(move |url, _, allowed| {
            let refuse = |why| Err(git2::Error::new(ErrorCode::Auth, ErrorClass::Callback, why));
            if !self.go_on() {
                return refuse("deadline passed");
            }
            if self.origin.is_none() || Origin::of(url) != self.origin {
                self.foreign.set(true);
                return refuse("another host asks for the token");
            }
            let asked = self.asked.get() + 1;
            self.asked.set(asked);
            match self.token {
                Some(token) if asked == 1 && allowed.is_user_pass_plaintext() => {
                    match self.remote.auth.credential(token) {
                        GitCredential::Basic { user, password } => git2::Cred::userpass_plaintext(user, password),
                        GitCredential::Bearer(_) => refuse("the token was refused"),
                    }
                }
                Some(_) => refuse("the token was refused"),
                None => refuse("no token"),
            }
        });
        callbacks.transfer_progress(move |progress| {
            if progress.received_bytes() as u64 > self.max_bytes {
                self.too_large.set(true);
                return false;
            }
            self.go_on()
        });
        callbacks.sideband_progress(move |bytes| {
            let mut kept = self.sideband.borrow_mut();
            let room = MAX_SIDEBAND_BYTES.saturating_sub(kept.len());
            kept.extend_from_slice(&bytes[..bytes.len().min(room)]);
            self.go_on()
        });
        callbacks.pack_progress(move |_, _, _| {
            self.go_on();
        });
        callbacks.push_transfer_progress(move |_, _, _| {
            self.go_on();
        });
        callbacks.push_update_reference(move |_, status| {
            *self.ref_status.borrow_mut() = Some(status.map(|text| self.redactor.line(text)));
            Ok(())
        });
        callbacks.push_negotiation(move |updates| {
            let stop = || Err(git2::Error::new(ErrorCode::User, ErrorClass::Callback, "lease"));
            if !self.go_on() {
                return stop();
            }
            for update in updates {
                if update.src() == update.dst() {
                    *self.lease.borrow_mut() = Some(Lease::AlreadyThere);
                    return stop();
                }
                let there = Some(update.src()).filter(|id| !id.is_zero());
                if there != self.expected.get() {
                    let found = there.and_then(|id| CommitId::try_from(id.to_string()).ok());
                    *self.lease.borrow_mut() = Some(Lease::Conflict(found));
                    return stop();
                }
            }
            Ok(())
        });
        callbacks
    }

    /// The header that shows the token to a server which wants it so, once it is certain that the server sends nobody on:
    /// libgit2 follows a redirect to another port of the same host even when told to follow none, and takes our headers
    /// along.
    pub(super) fn header(&self) -> Result<Option<String>, git2::Error> {
        let Some(token) = self.token else { return Ok(None) };
        let GitCredential::Bearer(bearer) = self.remote.auth.credential(token) else { return Ok(None) };
        let refuse = |class, why: &str| Err(git2::Error::new(ErrorCode::GenericError, class, why));
        // libgit2 would take what follows a line break for a header of its own.
        if self.remote.kind != RemoteKind::Http || self.origin.is_none() || bearer.contains(char::is_control) {
            return refuse(ErrorClass::Callback, "no token can be sent there");
        }
        if !self.settled.get() {
            match probe::sends_on(self.operation, self.remote, token) {
                Ok(false) => self.settled.set(true),
                Ok(true) => {
                    self.foreign.set(true);
                    return refuse(ErrorClass::Callback, "redirected");
                }
                Err(why) => {
                    return refuse(ErrorClass::Net, &format!("failed to connect: {}", self.redactor.line(&why)));
                }
            }
        }
        Ok(Some(format!("Authorization: Bearer {bearer}")))
    }

    /// Options of a fetch: no redirect is followed, no tag comes along.
    pub(super) fn fetch_options<'s>(&'s self) -> Result<FetchOptions<'s>, git2::Error> {
        let mut options = FetchOptions::new();
        options
            .remote_callbacks(self.callbacks())
            .follow_redirects(RemoteRedirect::None)
            .download_tags(AutotagOption::None)
            .update_fetchhead(false);
        if let Some(header) = self.header()? {
            options.custom_headers(&[&header]);
        }
        Ok(options)
    }

    /// Connects to the forge, after which `remote.list()` has its branches. libgit2 sends headers of ours only with a
    /// fetch, so this is the fetch of a branch that is not there: one exchange, and nothing is downloaded.
    pub(super) fn connect(&self, remote: &mut git2::Remote<'_>) -> Result<(), git2::Error> {
        remote.download(&[NO_BRANCH], Some(&mut self.fetch_options()?))
    }

    /// What the forge said on the side: its own sentences, without progress lines.
    pub(super) fn forge_text(&self) -> Option<String> {
        let kept = self.sideband.borrow();
        let text = String::from_utf8_lossy(&kept);
        let lines: Vec<&str> = text
            .split(['\n', '\r'])
            .map(|line| line.trim().trim_start_matches("remote:").trim())
            .filter(|line| !line.is_empty() && !is_progress(line))
            .collect();
        let line = self.redactor.line(&lines.join(" "));
        (!line.is_empty()).then_some(line)
    }

    /// Turns libgit2's error into one that names the cause.
    pub(super) fn classify(&self, error: &git2::Error) -> GitError {
        let operation = self.operation;
        let repo = self.remote.url.clone();
        let text = error.message();
        let detail = || self.redactor.line(text);
        if self.too_large.get() {
            return GitError::RepoTooLarge { repo, limit: self.max_bytes };
        }
        if self.expired.get() || self.ticket.expired() {
            return self.ticket.exceeded(operation);
        }
        // The third has "or authentication replays" behind it, which cannot be: a token is shown once.
        let turned_away = ["cannot redirect", "unexpected redirect", "too many redirects"];
        if self.foreign.get() || turned_away.iter().any(|words| text.contains(words)) {
            return GitError::Redirected { operation, repo, to: None };
        }
        if let Some(status) = text.rsplit_once("status code: ").and_then(|(_, code)| code.trim().parse::<u16>().ok()) {
            return match status {
                401 if self.token.is_none() => GitError::TokenMissing { repo },
                401 => GitError::TokenRejected { repo, forge: None },
                402 | 451 => GitError::RepoDisabled { repo, forge: None },
                403 => GitError::TokenLacksAccess { operation, repo, forge: None },
                404 | 410 => GitError::RepoNotFound { repo, forge: None },
                413 => GitError::PushTooLarge { repo },
                429 => GitError::RateLimited { operation, repo, retry_after: None },
                300..=399 => GitError::Redirected { operation, repo, to: None },
                _ => GitError::ForgeUnavailable { operation, repo, status, retry_after: None, forge: None },
            };
        }
        let auth = error.code() == ErrorCode::Auth || text.contains("authentication");
        match error.class() {
            _ if auth && self.token.is_none() => GitError::TokenMissing { repo },
            // The listing of refs was answered with this token, and the pack was not.
            _ if auth && text.contains("unexpected authentication") => GitError::TokenExpiredMidRun { operation, repo },
            _ if auth => GitError::TokenRejected { repo, forge: None },
            _ if text.contains("wrong version number") => GitError::NoTls { operation, repo, detail: detail() },
            // A handshake that broke off, which a network does too.
            ErrorClass::Ssl | ErrorClass::Os if text.contains("syscall failure") => {
                GitError::ConnectionLost { operation, repo, detail: detail() }
            }
            ErrorClass::Ssl => GitError::Untrusted { operation, repo, detail: detail() },
            _ if text.contains("invalid content-type") => GitError::NotGit { operation, repo },
            _ if error.code() == ErrorCode::Timeout || text.contains("timed out") => {
                GitError::ForgeSilent { operation, repo }
            }
            ErrorClass::Os | ErrorClass::Net
                if text.contains("failed to connect") || text.contains("failed to resolve") =>
            {
                GitError::Unreachable { operation, repo, detail: detail() }
            }
            ErrorClass::Net | ErrorClass::Http | ErrorClass::Zlib => {
                GitError::ConnectionLost { operation, repo, detail: detail() }
            }
            _ if text.contains("EOF") || text.contains("early") => {
                GitError::ConnectionLost { operation, repo, detail: detail() }
            }
            _ => GitError::Git { operation, detail: detail() },
        }
    }
}

fn is_progress(line: &str) -> bool {
    const PROGRESS: [&str; 8] = [
        "Resolving deltas",
        "Unpacking objects",
        "Receiving objects",
        "Checking connectivity",
        "Counting objects",
        "Compressing objects",
        "Total ",
        "Enumerating objects",
    ];
    PROGRESS.iter().any(|start| line.starts_with(start))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use orchestra_events::FailureCode as Code;

    use super::*;
    use crate::forge::ForgeKind;
    use crate::git::GitAuth;

    /// What libgit2 was seen to say, and what it means. Those that a test server can bring about are met in
    /// `runtime/tests/support/git_failures/rows.rs`, too.
    #[test]
    fn what_libgit2_says_has_its_meaning() {
        let remote = Remote {
            url: "https://forge.example/a/b.git".to_owned(),
            kind: RemoteKind::Http,
            auth: GitAuth::Forge(ForgeKind::Github),
        };
        let token = SecretString::from("ghp_canary");
        let ticket = Ticket::until(Duration::from_secs(60));
        let meaning = |class, code, text: &str| {
            let session = Session::new(Operation::Push, &remote, Some(&token), &ticket, 1 << 20);
            let error = session.classify(&git2::Error::new(code, class, text));
            assert!(!error.to_string().contains("canary"), "{error}");
            let failure = error.failure();
            (failure.code, failure.retryable)
        };
        let generic = ErrorCode::GenericError;
        for (class, code, text, expected) in [
            (
                ErrorClass::Net,
                ErrorCode::Timeout,
                "could not read from socket: timed out",
                (Code::NetworkDropped, true),
            ),
            (ErrorClass::Net, ErrorCode::Timeout, "could not connect: timed out", (Code::NetworkDropped, true)),
            (
                ErrorClass::Net,
                generic,
                "failed to resolve address for x: Name or service not known",
                (Code::NetworkDropped, true),
            ),
            (ErrorClass::Os, generic, "failed to connect to x: Connection refused", (Code::NetworkDropped, true)),
            (
                ErrorClass::Os,
                generic,
                "SSL error: syscall failure: Connection reset by peer",
                (Code::NetworkDropped, true),
            ),
            (
                ErrorClass::Http,
                generic,
                "http parser did not consume entire buffer: Invalid EOF state",
                (Code::NetworkDropped, true),
            ),
            (ErrorClass::Http, generic, "unexpected EOF", (Code::NetworkDropped, true)),
            (ErrorClass::Http, ErrorCode::Auth, "unexpected authentication failure", (Code::GitAuth, false)),
            (
                ErrorClass::Http,
                ErrorCode::Auth,
                "too many redirects or authentication replays",
                (Code::PushRejected, false),
            ),
            (ErrorClass::Http, generic, "unexpected http status code: 403", (Code::GitTokenScope, false)),
            (ErrorClass::Http, generic, "unexpected http status code: 404", (Code::RepoNotFound, false)),
            (ErrorClass::Http, generic, "unexpected http status code: 429", (Code::NetworkDropped, true)),
            (ErrorClass::Http, generic, "unexpected http status code: 503", (Code::NetworkDropped, true)),
            (ErrorClass::Http, generic, "unexpected http status code: 400", (Code::NetworkDropped, false)),
            (ErrorClass::Http, generic, "invalid content-type: 'text/html' ghp_canary", (Code::PushRejected, false)),
            (ErrorClass::Ssl, ErrorCode::Certificate, "the SSL certificate is invalid", (Code::PushRejected, false)),
            (
                ErrorClass::Ssl,
                ErrorCode::Certificate,
                "hostname does not match certificate",
                (Code::PushRejected, false),
            ),
            (
                ErrorClass::Ssl,
                generic,
                "SSL error: error:0A00010B:SSL routines::wrong version number",
                (Code::PushRejected, false),
            ),
            (ErrorClass::Net, generic, "cannot redirect from 'a' to 'b'", (Code::PushRejected, false)),
            (ErrorClass::Odb, generic, "something else about ghp_canary", (Code::Internal, true)),
        ] {
            assert_eq!(meaning(class, code, text), expected, "{text}");
        }
        let late = Ticket::until(Duration::ZERO);
        let session = Session::new(Operation::Push, &remote, None, &late, 1 << 20);
        let error = session.classify(&git2::Error::new(generic, ErrorClass::None, "no error"));
        assert!(matches!(error, GitError::DeadlineExceeded { .. }), "a callback that stopped leaves no error: {error}");
    }

    #[test]
    fn only_the_forges_own_origin_is_its_origin() {
        let own = Origin::of("https://forge.example/a");
        for same in ["https://forge.example:443/b", "https://FORGE.example/a"] {
            assert_eq!(Origin::of(same), own, "{same}");
        }
        for other in ["http://forge.example/a", "https://forge.example:8443/a", "https://forge.example.evil/a", "x"] {
            assert_ne!(Origin::of(other), own, "{other}");
        }
    }
}
