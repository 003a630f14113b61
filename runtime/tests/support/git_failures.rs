//! Every way that a clone or a push was seen to fail, as one table: what is wrong, and what the task's owner reads then.
//!
//! Each row is arranged on a real `git http-backend`, mended again, and must leave both sides as they were: the same
//! commit is pushed afterwards. `remedy` stands in the hint and on the code's page in `docs/errors/`.

#[path = "git_failures/rows.rs"]
mod rows;

use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::process::{Child, Command, Stdio};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::*;
use orchestra_test_forges::{At, Fault};
use rows::{git_itself, networks, repositories, rules, tokens};

/// How long a row's operation may take: enough for a real one on a busy machine, and short where nothing ever comes.
const LIMIT: Duration = Duration::from_secs(20);
/// The same where the forge never answers.
const SHORT_LIMIT: Duration = Duration::from_millis(800);

/// Which operation meets it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Doing {
    Cloning,
    Pushing,
}

/// How it comes about.
#[derive(Debug, Clone)]
enum Wrong {
    /// The server does this.
    Fault(At, Fault),
    /// The server answers with this status, type, body and header.
    Answer(At, u16, &'static str, &'static str, Option<(&'static str, &'static str)>),
    /// A hook of the repository prints this and declines.
    Hook(&'static str),
    /// A hook does this.
    Script(&'static str),
    /// The repository is configured so.
    Config(&'static [(&'static str, &'static str)]),
    /// This token is shown.
    Token(Option<&'static str>),
    /// This address is asked.
    Url(&'static str),
    /// A server with a certificate that nobody vouches for is asked.
    SelfSigned,
    /// TLS is spoken to a server without.
    PlainServer,
    /// This is the branch.
    Branch(&'static str),
    /// The task starts from this branch.
    Base(&'static str),
    /// The branch exists already, beside ours, and may be moved forward only; we think we know where it is.
    Diverged,
    /// The tree has a mode that git's own checks refuse.
    BadTree,
}

struct Row {
    name: &'static str,
    doing: Doing,
    wrong: Wrong,
    code: FailureCode,
    retryable: bool,
    /// The seconds that the forge asks to wait.
    wait: Option<u64>,
    /// A part of the message.
    says: &'static str,
    /// A part of the hint, and of the code's page.
    remedy: &'static str,
}

fn row(
    name: &'static str,
    doing: Doing,
    wrong: Wrong,
    code: FailureCode,
    says: &'static str,
    remedy: &'static str,
) -> Row {
    Row { name, doing, wrong, code, retryable: false, wait: None, says, remedy }
}

impl Row {
    fn retryable(mut self) -> Self {
        self.retryable = true;
        self
    }

    fn waits(mut self, seconds: u64) -> Self {
        self.wait = Some(seconds);
        self
    }
}

/// A server that answers as web servers do when they do not understand a request, and where it listens.
async fn plain_server() -> std::net::SocketAddr {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a loopback port");
    let address = listener.local_addr().expect("bound");
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.expect("a connection");
        let mut hello = [0; 1024];
        let _ = stream.read(&mut hello).await;
        let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n").await;
        let _ = stream.shutdown().await;
    });
    address
}

/// A TLS server whose certificate was signed by nobody; `None` where this machine has no `openssl`.
struct Tls {
    server: Child,
    port: u16,
}

impl Tls {
    fn start(dir: &Path) -> Option<Self> {
        let made = Command::new("openssl")
            .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"])
            .args(["-days", "1", "-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"])
            .args(["-keyout", "key.pem", "-out", "cert.pem"])
            .current_dir(dir)
            .stderr(Stdio::null())
            .status()
            .ok()?;
        assert!(made.success(), "openssl makes a certificate");
        let mut server = Command::new("openssl")
            .args(["s_server", "-accept", "127.0.0.1:0", "-cert", "cert.pem", "-key", "key.pem", "-www"])
            .current_dir(dir)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .ok()?;
        let lines = BufReader::new(server.stdout.take().expect("piped")).lines();
        let port = lines
            .map_while(Result::ok)
            .find_map(|line| line.strip_prefix("ACCEPT ")?.rsplit_once(':')?.1.trim().parse().ok())
            .expect("openssl says where it listens");
        Some(Self { server, port })
    }
}

impl Drop for Tls {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

struct Table {
    world: World,
    commit: CommitId,
    bad: CommitId,
    tls: Option<Tls>,
    quick: Git,
}

impl Table {
    async fn new() -> Self {
        let world = World::with(GitConfig { clone_timeout: LIMIT, push_timeout: LIMIT, ..config() }).await;
        let (cloned, commit) = world.work(&world.remote(), EDIT).await;
        let trusted = world.path("trusted.git");
        // A mode with a zero before it: old git wrote such trees, and fsck refuses them.
        let blob = repo::git(&trusted, &["rev-parse", &format!("{}:README.md", cloned.commit)]);
        let mut raw = b"0100644 README.md\0".to_vec();
        raw.extend((0..20).map(|at| u8::from_str_radix(&blob[2 * at..2 * at + 2], 16).expect("hex")));
        let write = ["hash-object", "-w", "--literally", "-t", "tree", "--stdin"];
        let tree = String::from_utf8(repo::git_with(&trusted, &write, &raw)).expect("hex");
        let bad = repo::git(&trusted, &["commit-tree", tree.trim(), "-p", cloned.commit.as_str(), "-m", "bad"]);
        let tls = Tls::start(world.dir.path());
        let quick = Git::new(GitConfig { clone_timeout: SHORT_LIMIT, push_timeout: SHORT_LIMIT, ..config() });
        Self { bad: CommitId::try_from(bad).expect("hex"), commit, tls, quick, world }
    }

    fn refs(&self) -> String {
        repo::git(&self.world.origin(), &["for-each-ref"])
    }

    fn hook(&self, script: &str) {
        let hook = self.world.origin().join("hooks/pre-receive");
        std::fs::write(&hook, format!("#!/bin/sh\n{script}\n")).expect("writable");
        std::fs::set_permissions(&hook, PermissionsExt::from_mode(0o755)).expect("own file");
    }

    /// Makes it go wrong, tries, and mends it. `None`: it cannot be arranged on this machine.
    async fn meet(&self, row: &Row) -> Option<Result<(), GitError>> {
        let world = &self.world;
        let origin = world.origin();
        let mut remote = world.remote();
        let mut shown = token();
        let mut branch = "orchestra/x";
        let mut base = None;
        let mut commit = &self.commit;
        let mut expected = None;
        let mut git = &world.git;
        match &row.wrong {
            Wrong::Fault(at, fault) => {
                if matches!(fault, Fault::Hang | Fault::Drip(_)) {
                    git = &self.quick;
                }
                world.server.fault(Some((*at, fault.clone())));
            }
            Wrong::Answer(at, status, kind, body, header) => {
                let header = header.map(|(name, value)| (name, value.to_owned()));
                world.server.fault(Some((*at, Fault::Status(*status, kind, (*body).to_owned(), header))));
            }
            Wrong::Hook(text) => self.hook(&format!("cat >&2 <<'END'\n{text}\nEND\nexit 1")),
            Wrong::Script(script) => self.hook(script),
            Wrong::Config(settings) => {
                for (key, value) in *settings {
                    repo::git(&origin, &["config", key, value]);
                }
            }
            Wrong::Token(wrong) => shown = wrong.map(SecretString::from),
            Wrong::Url(url) if url.contains("://") => remote.url = (*url).to_owned(),
            Wrong::Url(name) => remote.url = world.server.url(name),
            Wrong::SelfSigned => remote.url = format!("https://127.0.0.1:{}/acme/api.git", self.tls.as_ref()?.port),
            Wrong::PlainServer => remote.url = format!("https://{}/acme/api.git", plain_server().await),
            Wrong::Branch(name) => branch = name,
            Wrong::Base(name) => base = Some(*name),
            Wrong::Diverged => {
                branch = "moved";
                let tree = repo::git(&origin, &["rev-parse", "main^{tree}"]);
                let apart = repo::git(&origin, &["commit-tree", &tree, "-m", "apart"]);
                repo::git(&origin, &["update-ref", "refs/heads/moved", &apart]);
                repo::git(&origin, &["config", "receive.denyNonFastForwards", "true"]);
                expected = Some(CommitId::try_from(apart).expect("hex"));
            }
            Wrong::BadTree => {
                commit = &self.bad;
                repo::git(&origin, &["config", "receive.fsckObjects", "true"]);
            }
        }
        let before = self.refs();
        let result = match row.doing {
            Doing::Cloning => git.clone(&world.path("again.git"), &remote, shown, base).await.map(drop),
            Doing::Pushing => {
                let trusted = world.path("trusted.git");
                git.push_over(&trusted, &remote, shown, branch, commit, expected.as_ref()).await.map(drop)
            }
        };
        world.server.fault(None);
        let _ = std::fs::remove_file(origin.join("hooks/pre-receive"));
        for key in ["receive.hideRefs", "receive.maxInputSize", "receive.fsckObjects", "receive.denyNonFastForwards"] {
            let _ = Command::new("git").args(["config", "--unset", key]).current_dir(&origin).status();
        }
        let ours = matches!(row.wrong, Wrong::Fault(At::Pack, Fault::LoseReply | Fault::Cut(_)));
        let raced = row.name == "a branch made meanwhile";
        if !(ours || raced) {
            assert_eq!(self.refs(), before, "{}: the forge's branches are as they were", row.name);
        }
        if raced {
            repo::git(&origin, &["update-ref", "-d", "refs/heads/orchestra/x"]);
        }
        Some(result)
    }

    /// What does not hold of this row.
    async fn faults_of(&self, row: &Row) -> Vec<String> {
        let started = std::time::Instant::now();
        let error = match self.meet(row).await {
            None => return Vec::new(),
            Some(Ok(())) => return vec!["it succeeded".to_owned()],
            Some(Err(error)) => error,
        };
        let failure = error.failure();
        let mut wrong = Vec::new();
        let mut expect = |holds: bool, what: String| {
            if !holds {
                wrong.push(what);
            }
        };
        code(&error);
        expect(failure.code == row.code, format!("code {} instead of {}", failure.code, row.code));
        expect(failure.retryable == row.retryable, format!("retryable is {}", failure.retryable));
        let wait = error.retry_after().map(|wait| wait.as_secs());
        expect(wait == row.wait, format!("asks to wait {wait:?} instead of {:?}", row.wait));
        expect(failure.message.contains(row.says), format!("{:?} is not said", row.says));
        expect(failure.hint.contains(row.remedy), format!("{:?} is not in the hint {:?}", row.remedy, failure.hint));
        let page = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../docs/errors/{}.md", row.code));
        let page = std::fs::read_to_string(page)
            .expect("every code has a page")
            .split_whitespace()
            .collect::<Vec<_>>()
            .join(" ");
        expect(page.contains(row.remedy), format!("{:?} is not on the code's page", row.remedy));
        for text in [&failure.message, &failure.hint] {
            expect(text.len() < 1500 && !text.chars().any(char::is_control), format!("not one bounded line: {text:?}"));
            let inner = ["backtrace", "panicked", ".rs:", "unwrap", "src/", "<html", "/tmp/"];
            expect(!inner.iter().any(|inner| text.contains(inner)), format!("shows its inside: {text:?}"));
        }
        expect(started.elapsed() < LIMIT + Duration::from_secs(15), format!("took {:?}", started.elapsed()));

        // The work is kept: what failed goes through when it is mended, and is there once.
        let trusted = self.world.path("trusted.git");
        match row.doing {
            Doing::Pushing => {
                let mended = self.world.push("orchestra/x", &self.commit).await;
                expect(mended.is_ok(), format!("does not go through afterwards: {mended:?}"));
                let there = repo::git(&self.world.origin(), &["rev-parse", "orchestra/x"]);
                expect(there == self.commit.as_str(), "another commit is on the forge".to_owned());
                repo::git(&self.world.origin(), &["update-ref", "-d", "refs/heads/orchestra/x"]);
                repo::git(&trusted, &["cat-file", "-e", self.commit.as_str()]);
            }
            Doing::Cloning => {
                expect(!self.world.path("again.git").exists(), "half a clone is left".to_owned());
                let again = self.world.path("mended.git");
                let mended = self.world.git.clone(&again, &self.world.remote(), token(), None).await;
                expect(mended.is_ok(), format!("does not go through afterwards: {mended:?}"));
                std::fs::remove_dir_all(again).expect("there");
            }
        }
        if !wrong.is_empty() {
            wrong.push(format!("it was: {failure}"));
        }
        wrong
    }

    async fn try_all(rows: Vec<Row>) {
        let table = Self::new().await;
        let mut lines = Vec::new();
        for row in &rows {
            let wrong = table.faults_of(row).await;
            if !wrong.is_empty() {
                lines.push(format!("{} ({:?}, {:?})\n    {}", row.name, row.doing, row.wrong, wrong.join("\n    ")));
            }
        }
        repo::git(&table.world.origin(), &["fsck", "--no-dangling"]);
        assert!(lines.is_empty(), "{} of {} rows fail:\n{}", lines.len(), rows.len(), lines.join("\n"));
    }
}

#[tokio::test]
async fn what_a_token_may_not_do_has_its_code_and_remedy() {
    Table::try_all(tokens()).await;
}

#[tokio::test]
async fn what_is_wrong_with_a_repository_has_its_code_and_remedy() {
    Table::try_all(repositories()).await;
}

#[tokio::test]
async fn what_breaks_on_the_way_has_its_code_and_remedy() {
    Table::try_all(networks()).await;
}

#[tokio::test]
async fn every_rule_of_a_forge_has_its_code_and_remedy() {
    Table::try_all(rules()).await;
}

#[tokio::test]
async fn what_git_itself_refuses_has_its_code_and_remedy() {
    Table::try_all(git_itself()).await;
}

/// The tokens that a vault has, one after the other.
fn vault(tokens: &[&str]) -> impl Fn() -> Option<SecretString> {
    let tokens: Vec<SecretString> = tokens.iter().copied().map(SecretString::from).collect();
    let asked = std::cell::Cell::new(0);
    move || {
        let token = tokens.get(asked.get()).or(tokens.last()).cloned();
        asked.set(asked.get() + 1);
        token
    }
}

#[tokio::test]
async fn a_token_that_is_replaced_in_the_middle_costs_nothing() {
    let world = World::new().await;
    let (_, commit) = world.work(&world.remote(), EDIT).await;
    let trusted = world.path("trusted.git");
    let next = "ghp_canary_next";
    world.server.accept(next);
    let remote = world.remote();
    for (n, at) in [At::All, At::Refs, At::Pack].into_iter().enumerate() {
        world.server.fault(Some((at, Fault::Revoke)));
        let again = world.path("rotated.git");
        let cloned =
            with_current_token(vault(&[TOKEN, next]), |token| world.git.clone(&again, &remote, token, None)).await;
        cloned.expect("with the second token");
        let branch = format!("orchestra/rotated-{n}");
        let push = |token| world.git.push(&trusted, &remote, token, &branch, &commit);
        let pushed = with_current_token(vault(&[TOKEN, next]), push).await.expect("with the second token");
        assert!(!pushed.already_there);
        // Nothing newer is there: the failure is the first one's, and says that a new token is wanted.
        let branch = format!("orchestra/stuck-{n}");
        let push = |token| world.git.push(&trusted, &remote, token, &branch, &commit);
        let error = with_current_token(vault(&[TOKEN]), push).await.expect_err("revoked");
        assert_eq!(code(&error), FailureCode::GitAuth, "{error:?}");
    }
}

#[tokio::test]
async fn options_are_sent_to_a_forge_that_takes_them_and_left_out_elsewhere() {
    let world = World::with(GitConfig { push_options: vec!["ci.skip".to_owned()], ..config() }).await;
    let (_, commit) = world.work(&world.remote(), EDIT).await;
    let seen = world.path("seen");
    let hook = world.origin().join("hooks/pre-receive");
    std::fs::write(
        &hook,
        format!("#!/bin/sh\necho \"$GIT_PUSH_OPTION_COUNT:$GIT_PUSH_OPTION_0\" >> {}\n", seen.display()),
    )
    .expect("writable");
    std::fs::set_permissions(&hook, PermissionsExt::from_mode(0o755)).expect("own file");
    assert!(!world.push("orchestra/without", &commit).await.expect("options are not offered"));
    repo::git(&world.origin(), &["config", "receive.advertisePushOptions", "true"]);
    assert!(!world.push("orchestra/with", &commit).await.expect("options are offered"));
    assert_eq!(std::fs::read_to_string(seen).expect("the hook ran twice"), "0:\n1:ci.skip\n");
}

#[tokio::test]
async fn a_branch_of_our_own_moves_under_a_lease() {
    let world = World::new().await;
    let (cloned, first) = world.work(&world.remote(), EDIT).await;
    let trusted = world.path("trusted.git");
    let tree = repo::git(&trusted, &["rev-parse", &format!("{first}^{{tree}}")]);
    let second = repo::git(&trusted, &["commit-tree", &tree, "-p", cloned.commit.as_str(), "-m", "second attempt"]);
    let second = CommitId::try_from(second).expect("hex");
    for remote in [world.remote(), world.local()] {
        let branch = if remote.kind == RemoteKind::Local { "orchestra/l" } else { "orchestra/h" };
        let push = |commit: CommitId, expected: Option<CommitId>| {
            let (git, trusted, remote) = (&world.git, &trusted, &remote);
            async move { git.push_over(trusted, remote, token(), branch, &commit, expected.as_ref()).await }
        };
        push(first.clone(), None).await.expect("a new branch");
        // From where it is not: somebody else has moved it.
        let error = push(second.clone(), Some(cloned.commit.clone())).await.expect_err("moved");
        assert_eq!(error, GitError::Conflict { branch: branch.to_owned(), found: Some(first.clone()) });
        assert!(!push(second.clone(), Some(first.clone())).await.expect("from where it is").already_there);
        assert!(push(second.clone(), Some(first.clone())).await.expect("again").already_there);
        assert_eq!(repo::git(&world.origin(), &["rev-parse", branch]), second.as_str());
        // One that has gone meanwhile is not made anew.
        repo::git(&world.origin(), &["update-ref", "-d", &format!("refs/heads/{branch}")]);
        let error = push(first.clone(), Some(second.clone())).await.expect_err("gone");
        assert_eq!(error, GitError::Conflict { branch: branch.to_owned(), found: None });
    }
}
