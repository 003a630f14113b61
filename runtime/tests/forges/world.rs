//! One forge with one repository, three tokens and two people, and a client of it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use orchestra_events::repo::RepoRef;
use orchestra_runtime::forge::{
    Access, CommitStatus, Forge, ForgeConfig, ForgeError, ForgeKind, ForgeLimits, Forges, NewPullRequest, Note,
    StatusState,
};
use orchestra_test_forges::{Bare, FakeForge, Kind, Login, Pull};
use secrecy::{ExposeSecret, SecretString};

/// The repository of the tests.
pub const REPO: &str = "acme/api";
/// The branch with the work.
pub const HEAD: &str = "orchestra/bump-9f3c";
/// What ours carries.
pub const MARKER: &str = "<!-- orchestra:task=task_1 repo=1 -->";

/// Which of the tokens.
#[derive(Debug, Clone, Copy)]
pub enum Token {
    /// May do everything here.
    Writes,
    /// May read the repository.
    Reads,
    /// Does not see the repository.
    Blind,
    /// The forge does not know it.
    Dead,
}

/// One forge, and a client.
pub struct World {
    pub kind: ForgeKind,
    /// `None` where there is no REST interface.
    pub fake: Option<FakeForge>,
    pub repo: RepoRef,
    pub commit: String,
    pub forge: Arc<dyn Forge>,
    _dir: tempfile::TempDir,
    /// Every text that a client has given out.
    texts: Mutex<Vec<String>>,
}

/// Whose interface a stand-in speaks for that kind of forge.
pub fn spoken(kind: ForgeKind) -> Option<Kind> {
    match kind {
        ForgeKind::Github => Some(Kind::Github),
        ForgeKind::BitbucketCloud => Some(Kind::BitbucketCloud),
        ForgeKind::BitbucketDc => Some(Kind::BitbucketDc),
        ForgeKind::Gitlab => Some(Kind::Gitlab),
        ForgeKind::Plain | ForgeKind::Local => None,
    }
}

fn text(kind: ForgeKind, token: Token) -> String {
    let name = match token {
        Token::Writes => "canaryWrites4711",
        Token::Reads => "canaryReads4712",
        Token::Blind => "canaryBlind4713",
        Token::Dead => "canaryDead4714",
    };
    let prefix = match kind {
        ForgeKind::Github => "github_pat_",
        ForgeKind::BitbucketCloud => "ATCTT3x",
        ForgeKind::BitbucketDc => "BBDC-",
        ForgeKind::Gitlab => "glpat-",
        ForgeKind::Plain | ForgeKind::Local => "",
    };
    format!("{prefix}{name}")
}

/// Patience for tests: no machine is so busy that a loopback answer takes five seconds.
pub fn limits() -> ForgeLimits {
    ForgeLimits {
        connect_timeout: Duration::from_secs(5),
        request_timeout: Duration::from_secs(20),
        longest_wait: Duration::from_secs(4),
        creation_gap: Duration::ZERO,
        retry_pause: Duration::from_millis(10),
    }
}

/// A stand-in as every scenario finds it.
pub async fn stand_in(kind: ForgeKind, root: &std::path::Path) -> Option<FakeForge> {
    let fake = FakeForge::start(spoken(kind)?, root).await;
    fake.add_repo(REPO);
    for login in ["ann", "bob"] {
        fake.add_person(login);
    }
    for token in [Token::Writes, Token::Reads, Token::Blind] {
        let sees = matches!(token, Token::Blind).then(Vec::new);
        let may_write = !matches!(token, Token::Reads);
        fake.add_token(&text(kind, token), Login { user: "orchestra-bot".to_owned(), may_write, sees, scopes: None });
    }
    Some(fake)
}

/// A client of one forge.
pub fn client(kind: ForgeKind, api_url: Option<String>, limits: &ForgeLimits) -> Arc<dyn Forge> {
    let git_url = Some("http://127.0.0.1:9".to_owned());
    let config = ForgeConfig { kind, git_url, api_url, root: None };
    let forges = Forges::with_limits(BTreeMap::from([("here".to_owned(), config)]), "here", limits);
    let repo = forges.parse(REPO).expect("a repository");
    forges.forge(&repo).expect("a client")
}

impl World {
    pub async fn new(kind: ForgeKind) -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        let bare = Bare::make(dir.path(), REPO);
        let commit = bare.branch(HEAD);
        let fake = stand_in(kind, dir.path()).await;
        let forge = client(kind, fake.as_ref().map(FakeForge::api_url), &limits());
        let repo = RepoRef::new("here", REPO).expect("a repository");
        Self { kind, fake, repo, commit, forge, _dir: dir, texts: Mutex::default() }
    }

    pub fn root(&self) -> &std::path::Path {
        self._dir.path()
    }

    pub fn token(&self, token: Token) -> SecretString {
        text(self.kind, token).into()
    }

    pub fn access<'a>(&'a self, token: &'a SecretString) -> Access<'a> {
        Access { repo: &self.repo, token: Some(token) }
    }

    /// What every scenario opens, unless it says otherwise.
    pub fn new_pull_request(&self) -> NewPullRequest {
        NewPullRequest {
            head: HEAD.to_owned(),
            base: "main".to_owned(),
            title: "Bump the provider".to_owned(),
            body: format!("From 5.x to 6.x.\n\n{MARKER}"),
            marker: MARKER.to_owned(),
            draft: false,
            reviewers: Vec::new(),
            labels: Vec::new(),
        }
    }

    pub fn status(&self, state: StatusState) -> CommitStatus {
        CommitStatus {
            commit: self.commit.clone().try_into().expect("a commit"),
            state,
            context: "orchestra".to_owned(),
            description: "Editing src/main.tf".to_owned(),
            url: Some("https://orchestra.example/tasks/task_1".to_owned()),
        }
    }

    /// The stand-in; for scenarios that ended before where there is none.
    pub fn fake(&self) -> &FakeForge {
        self.fake.as_ref().expect("this kind of forge has an interface")
    }

    /// All pull requests of the repository.
    pub fn pulls(&self) -> Vec<Pull> {
        self.fake().with(|state| state.repos[REPO].pulls.clone())
    }

    /// Remembers what a client said, for the last look; and gives it back.
    pub fn said(&self, error: ForgeError) -> ForgeError {
        let failure = error.failure();
        assert!(!failure.hint.is_empty(), "{error:?}");
        let texts = [format!("{error:?}"), error.to_string(), format!("{failure:?}")];
        self.texts.lock().expect("unpoisoned").extend(texts);
        error
    }

    pub fn noted(&self, notes: &[Note]) {
        self.texts.lock().expect("unpoisoned").extend(notes.iter().map(|note| format!("{note:?}")));
    }

    /// Every text so far is fit to be shown, and the forge had nothing to say against any request.
    pub fn end(&self) {
        let texts = self.texts.lock().expect("unpoisoned");
        for token in [Token::Writes, Token::Reads, Token::Blind, Token::Dead] {
            let token = self.token(token);
            let core = &token.expose_secret()[token.expose_secret().len() - 8..];
            assert!(texts.iter().all(|text| !text.contains(core)), "{texts:#?}");
        }
        assert!(texts.iter().all(|text| text.len() < 4000 && !text.contains("<html")), "{texts:#?}");
        if let Some(fake) = &self.fake {
            assert_eq!(fake.violations(), Vec::<String>::new(), "{:#?}", fake.requests());
        }
    }
}
