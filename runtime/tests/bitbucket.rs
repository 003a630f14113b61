//! What is peculiar to the two Bitbuckets, against stand-ins that hold each request against Atlassian's description.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use orchestra_events::CommitId;
use orchestra_events::repo::RepoRef;
use orchestra_runtime::forge::{
    Access, CommitStatus, Feature, Forge, ForgeConfig, ForgeError, ForgeKind, ForgeLimits, Forges, NewPullRequest,
    Note, StatusState,
};
use orchestra_test_forges::{ApiFault, Bare, Comment, FakeForge, Kind, Login, On, Pull};
use secrecy::SecretString;

const BOTH: [Kind; 2] = [Kind::BitbucketCloud, Kind::BitbucketDc];
const MARKER: &str = "<!-- orchestra:task_1 -->";
const HIDDEN: &str = "[//]: # (orchestra:task_1)";

struct World {
    _folder: tempfile::TempDir,
    fake: FakeForge,
    git: Bare,
    repo: RepoRef,
    forge: Arc<dyn Forge>,
    token: SecretString,
}

impl World {
    async fn new(kind: Kind) -> Self {
        Self::at(kind, "acme/api", "").await
    }

    /// `below`: what the configured address has behind the server's own.
    async fn at(kind: Kind, path: &str, below: &str) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let fake = FakeForge::start(kind, folder.path()).await;
        let git = fake.add_repo(path);
        git.branch("work");
        ["ann", "bob", "bot"].iter().for_each(|login| fake.add_person(login));
        let (kind, token) = match kind {
            Kind::BitbucketCloud => (ForgeKind::BitbucketCloud, "bot@example.com:ATATT3xSecret"),
            Kind::BitbucketDc => (ForgeKind::BitbucketDc, "BBDC-Secret"),
            Kind::Github | Kind::Gitlab => unreachable!("only Bitbucket is tested here"),
        };
        let config = ForgeConfig {
            kind,
            git_url: Some(fake.origin()),
            api_url: Some(format!("{}{below}", fake.api_url())),
            root: None,
        };
        let limits = ForgeLimits {
            request_timeout: Duration::from_secs(5),
            creation_gap: Duration::ZERO,
            retry_pause: Duration::from_millis(1),
            ..ForgeLimits::default()
        };
        let forges = Forges::with_limits(BTreeMap::from([("bb".to_owned(), config)]), "bb", &limits);
        let repo = forges.parse(path).expect("a reference");
        let forge = forges.forge(&repo).expect("a client");
        let world = Self { _folder: folder, fake, git, repo, forge, token: token.into() };
        world.allow(token, true);
        world
    }

    fn allow(&self, token: &str, may_write: bool) {
        self.fake.add_token(token, Login { user: "bot".to_owned(), may_write, sees: None, scopes: None });
    }

    /// From here on with a token that may only read.
    fn reading(mut self) -> Self {
        let token = match self.fake.kind() {
            Kind::BitbucketDc => "BBDC-Reader",
            Kind::BitbucketCloud | Kind::Github | Kind::Gitlab => "ATCTT3xReader",
        };
        self.allow(token, false);
        self.token = token.into();
        self
    }

    fn access(&self) -> Access<'_> {
        Access { repo: &self.repo, token: Some(&self.token) }
    }

    fn pulls(&self) -> Vec<Pull> {
        self.fake.with(|state| state.repos[self.repo.path()].pulls.clone())
    }

    fn change<T>(&self, change: impl FnOnce(&mut orchestra_test_forges::Repo) -> T) -> T {
        self.fake.with(|state| change(state.repos.get_mut(self.repo.path()).expect("the repository")))
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            assert_eq!(self.fake.violations(), Vec::<String>::new(), "{:?}", self.fake.kind());
        }
    }
}

fn wish(reviewers: &[&str]) -> NewPullRequest {
    NewPullRequest {
        head: "work".to_owned(),
        base: "main".to_owned(),
        title: "Bump the provider".to_owned(),
        body: format!("Why and how.\n\n{MARKER}"),
        marker: MARKER.to_owned(),
        draft: false,
        reviewers: reviewers.iter().map(|name| (*name).to_owned()).collect(),
        labels: Vec::new(),
    }
}

fn of(feature: Feature, notes: &[Note]) -> Vec<&str> {
    notes.iter().filter(|note| note.feature == feature).map(|note| note.detail.as_str()).collect()
}

#[tokio::test]
async fn marks_are_unseen_by_readers_and_found_again() {
    for kind in BOTH {
        let world = World::new(kind).await;
        let first = world.forge.open_pull_request(world.access(), &wish(&["ann"])).await.expect("opened");
        let number = first.pull_request.expect("one").number;
        let again = world.forge.open_pull_request(world.access(), &wish(&["ann"])).await.expect("found");
        assert_eq!(
            (first.existed, again.existed, again.pull_request.map(|one| one.number)),
            (false, true, Some(number))
        );
        let body = format!("Newer words.\n\n{MARKER}");
        assert_eq!(world.forge.describe_pull_request(world.access(), number, "A title", &body).await, Ok(None));
        for text in ["Costs a dollar.", "Costs two dollars."] {
            assert_eq!(world.forge.comment(world.access(), number, MARKER, text).await, Ok(None));
        }
        let pulls = world.pulls();
        let [pull] = pulls.as_slice() else { panic!("{kind:?}: {pulls:?}") };
        assert_eq!(
            (pull.title.as_str(), pull.reviewers.as_slice()),
            ("A title", ["ann".to_owned()].as_slice()),
            "{kind:?}"
        );
        assert!(pull.body.starts_with("Newer words.") && pull.body.contains(HIDDEN), "{}", pull.body);
        let [comment] = pull.comments.as_slice() else { panic!("{kind:?}: {:?}", pull.comments) };
        assert_eq!(comment.body, format!("Costs two dollars.\n\n{HIDDEN}"));
        assert!(!format!("{pull:?}").contains("<!--"));
    }
}

#[tokio::test]
async fn one_bad_reviewer_costs_only_that_one() {
    for kind in BOTH {
        let world = World::new(kind).await;
        // Nobody has the second name, and the third is the author.
        let opened = world.forge.open_pull_request(world.access(), &wish(&["@ann", "nobody", "bot", "bob"])).await;
        let notes = opened.expect("opened").notes;
        assert_eq!(world.pulls()[0].reviewers, ["ann", "bob"], "{kind:?}");
        let told = of(Feature::Reviewers, &notes);
        assert_eq!(told.len(), 2, "{told:?}");
        assert!(["nobody", "bot"].iter().all(|name| told.iter().any(|note| note.starts_with(name))), "{told:?}");
    }
}

#[tokio::test]
async fn a_reply_that_is_lost_leaves_one_pull_request_with_its_reviewers() {
    for kind in BOTH {
        let world = World::new(kind).await;
        world.fake.fault(On::Writing, ApiFault::LoseReply, 1);
        let opened = world.forge.open_pull_request(world.access(), &wish(&["bob"])).await.expect("found again");
        assert!(opened.existed && opened.pull_request.is_some());
        assert_eq!(world.pulls().len(), 1);
        assert_eq!(world.pulls()[0].reviewers, ["bob"], "{kind:?}");
        let number = world.pulls()[0].number;
        world.fake.fault(On::Writing, ApiFault::LoseReply, 1);
        assert_eq!(world.forge.comment(world.access(), number, MARKER, "Once.").await, Ok(None));
        assert_eq!(world.pulls()[0].comments.len(), 1);
    }
}

#[tokio::test]
async fn one_that_appears_meanwhile_is_found_when_bitbucket_refuses_a_second() {
    let world = World::new(Kind::BitbucketCloud).await;
    // Building the client takes longer than a request.
    world.forge.repository(world.access()).await.expect("read");
    world.fake.fault(On::Reading, ApiFault::Slow(Duration::from_millis(600)), 1);
    world.fake.fault(On::Writing, ApiFault::Status(400, "There is one already"), 1);
    let (new, body) = (wish(&[]), format!("From another server.\n\n{HIDDEN}"));
    let before = world.fake.requests().len();
    let open = world.forge.open_pull_request(world.access(), &new);
    // After the answer that there is none was made up, and before it is sent.
    let meanwhile = async {
        let asked = async {
            while world.fake.requests().len() == before {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), asked).await.expect("it is asked");
        let pull = Pull { head: "work".to_owned(), base: "main".to_owned(), body, ..Pull::default() };
        world.change(|repo| repo.add_pull(pull).number)
    };
    let (opened, number) = tokio::join!(open, meanwhile);
    let opened = opened.expect("found");
    assert_eq!((opened.existed, opened.pull_request.map(|one| one.number)), (true, Some(number)));
    assert!(world.fake.requests().iter().any(|request| request.starts_with("POST ")));
    // A refusal for another reason stays one.
    world.fake.fault(On::Writing, ApiFault::Status(400, "Bad branch"), 1);
    world.git.branch("other");
    let refused =
        world.forge.open_pull_request(world.access(), &NewPullRequest { head: "other".to_owned(), ..new }).await;
    assert!(
        matches!(&refused, Err(ForgeError::Refused { forge: Some(text), .. }) if text == "Bad branch"),
        "{refused:?}"
    );
}

#[tokio::test]
async fn a_comment_of_long_ago_is_found_among_hundreds() {
    for kind in BOTH {
        let world = World::new(kind).await;
        world.forge.open_pull_request(world.access(), &wish(&[])).await.expect("opened");
        world.forge.comment(world.access(), 1, MARKER, "First.").await.expect("said");
        world.change(|repo| {
            let talk = (1000..1250).map(|id| Comment { id, body: "Talk.".to_owned(), version: 0 });
            repo.pulls[0].comments.extend(talk);
        });
        world.forge.comment(world.access(), 1, MARKER, "Last.").await.expect("said anew");
        let comments = &world.pulls()[0].comments;
        assert_eq!((comments.len(), comments[0].body.starts_with("Last.")), (251, true), "{kind:?}");
    }
}

#[tokio::test]
async fn a_comment_that_quotes_ours_is_left_alone() {
    for kind in BOTH {
        let world = World::new(kind).await;
        world.forge.open_pull_request(world.access(), &wish(&[])).await.expect("opened");
        world.forge.comment(world.access(), 1, MARKER, "First.").await.expect("said");
        let quote = Comment { id: 1000, body: format!("> First.\n\n{HIDDEN}\n\nReally?"), version: 0 };
        world.change(|repo| repo.pulls[0].comments.push(quote.clone()));
        world.fake.fault(On::Operation("PUT", "/comments/"), ApiFault::Status(403, "Not yours"), 1);
        assert_eq!(world.forge.comment(world.access(), 1, MARKER, "Last.").await, Ok(None));
        let bodies: Vec<String> = world.pulls()[0].comments.iter().map(|one| one.body.clone()).collect();
        assert_eq!(bodies, [format!("Last.\n\n{HIDDEN}"), quote.body], "{kind:?}");
    }
}

#[tokio::test]
async fn texts_that_are_too_long_are_cut_and_keep_their_mark() {
    for kind in BOTH {
        let world = World::new(kind).await;
        let long = format!("{MARKER}\n\n{}", "Wörter. ".repeat(6_000));
        let new = NewPullRequest { title: "T".repeat(300), body: long.clone(), ..wish(&[]) };
        world.forge.open_pull_request(world.access(), &new).await.expect("opened");
        assert_eq!(world.forge.describe_pull_request(world.access(), 1, &new.title, &long).await, Ok(None));
        assert_eq!(world.forge.comment(world.access(), 1, MARKER, &long).await, Ok(None));
        let pull = &world.pulls()[0];
        assert_eq!((pull.title.chars().count(), pull.body.chars().count()), (255, 32_768), "{kind:?}");
        assert!(pull.body.contains(HIDDEN) && pull.comments[0].body.contains(HIDDEN), "{kind:?}");
    }
}

#[tokio::test]
async fn a_branch_with_quotes_in_its_name_is_no_query() {
    for kind in BOTH {
        let world = World::new(kind).await;
        let head = "x\"y";
        world.git.branch(head);
        let new = NewPullRequest { head: head.to_owned(), ..wish(&[]) };
        for existed in [false, true] {
            let opened = world.forge.open_pull_request(world.access(), &new).await.expect("opened");
            assert_eq!(opened.existed, existed, "{kind:?}");
        }
    }
}

#[tokio::test]
async fn what_a_repository_is_and_allows_is_known_before_it_is_pushed_to() {
    for kind in BOTH {
        let world = World::new(kind).await;
        world.change(|repo| repo.protected = vec!["main".to_owned(), "release/*".to_owned()]);
        let known = world.forge.repository(world.access()).await.expect("read");
        assert_eq!(
            (known.may_push, known.archived, known.default_branch.as_deref()),
            (Some(true), false, Some("main"))
        );
        let id =
            world.change(|repo| if kind == Kind::BitbucketCloud { repo.uuid.clone() } else { repo.id.to_string() });
        assert_eq!(known.id, Some(id));
        for (branch, protected) in [("main", true), ("release/1", true), ("orchestra/x", false)] {
            let rules = world.forge.branch_rules(world.access(), branch).await.expect("read");
            assert_eq!(rules.protected, Some(protected), "{kind:?} {branch}");
        }
        let reader = world.reading();
        assert_eq!(reader.forge.repository(reader.access()).await.expect("read").may_push, Some(false), "{kind:?}");
        // Rules are for administrators to read.
        assert_eq!(reader.forge.branch_rules(reader.access(), "main").await.expect("asked").protected, None);
        let refused = reader.forge.open_pull_request(reader.access(), &wish(&[])).await.expect_err("a reader");
        let expected = if kind == Kind::BitbucketCloud { "pullrequest:write" } else { "REPO_WRITE" };
        let ForgeError::TokenLacksPermission { permission, remedy, .. } = refused else { panic!("{refused:?}") };
        assert_eq!((permission.as_deref(), remedy.is_some()), (Some(expected), true));
    }
}

#[tokio::test]
async fn an_access_token_of_clouds_is_told_by_its_scopes() {
    let world = World::new(Kind::BitbucketCloud).await;
    world.allow("ATCTT3xWriter", true);
    let token = SecretString::from("ATCTT3xWriter");
    let known = world.forge.repository(Access { repo: &world.repo, token: Some(&token) }).await.expect("read");
    assert_eq!(known.may_push, Some(true));
    // It has no role, so nobody asks for one.
    assert!(world.fake.requests().iter().all(|request| !request.contains("role=")));
}

#[tokio::test]
async fn a_token_of_clouds_with_every_scope_may_be_of_somebody_without_a_role() {
    let world = World::new(Kind::BitbucketCloud).await;
    let (text, user) = ("guest@example.com:ATATT3xGuest", "guest".to_owned());
    world.fake.add_token(text, Login { user, may_write: true, sees: None, scopes: None });
    let token = SecretString::from(text);
    let access = Access { repo: &world.repo, token: Some(&token) };
    assert_eq!(world.forge.repository(access).await.expect("read").may_push, Some(false));
    let refused = world.forge.open_pull_request(access, &wish(&[])).await;
    assert!(matches!(refused, Err(ForgeError::TokenLacksPermission { forge: Some(_), .. })), "{refused:?}");
}

#[tokio::test]
async fn a_name_that_several_people_have_is_asked_nothing() {
    let world = World::new(Kind::BitbucketCloud).await;
    world.fake.add_person("ann");
    let uuid = world.fake.with(|state| state.person("bob").expect("bob").uuid.clone());
    let opened = world.forge.open_pull_request(world.access(), &wish(&["ann", &uuid])).await.expect("opened");
    assert_eq!(world.pulls()[0].reviewers, ["bob"]);
    let told = of(Feature::Reviewers, &opened.notes);
    assert!(matches!(told.as_slice(), [note] if note.contains("several people")), "{told:?}");
}

#[tokio::test]
async fn a_list_of_members_that_is_refused_costs_the_reviewers_and_nothing_else() {
    let world = World::new(Kind::BitbucketCloud).await;
    let members = On::Operation("GET", "/members");
    for (status, said) in [(401, "Token is invalid, expired, or not supported for this endpoint."), (500, "Oops")] {
        world.change(|repo| repo.pulls.clear());
        world.fake.mend();
        world.fake.fault(members, ApiFault::Status(status, said), u32::MAX);
        // When it is opened, and when it is found.
        for existed in [false, true] {
            let uuid = world.fake.with(|state| state.person("bob").expect("bob").uuid.clone());
            let opened = world.forge.open_pull_request(world.access(), &wish(&["ann", &uuid])).await.expect("opened");
            assert_eq!((opened.existed, opened.ours), (existed, true));
            let told = of(Feature::Reviewers, &opened.notes);
            assert!(matches!(told.as_slice(), [note] if note.starts_with("ann ") && note.contains("UUID")), "{told:?}");
            assert_eq!(world.pulls()[0].reviewers, ["bob"]);
        }
    }
}

#[tokio::test]
async fn what_a_data_centers_fork_offers_to_its_upstream_is_not_this_repositorys() {
    let world = World::new(Kind::BitbucketDc).await;
    world.change(|repo| {
        let (head, base, body) = ("work".to_owned(), "main".to_owned(), format!("Offered.\n\n{HIDDEN}"));
        repo.add_pull(Pull { head, base, body, upstream: Some("upstream/api".to_owned()), ..Pull::default() });
        // By another way of writing this repository's name, the second one is here.
        let (head, base, body) = ("work".to_owned(), "main".to_owned(), "Mine.".to_owned());
        repo.add_pull(Pull { head, base, body, upstream: Some("ACME/Api".to_owned()), ..Pull::default() });
    });
    let opened = world.forge.open_pull_request(world.access(), &wish(&[])).await.expect("found");
    assert_eq!((opened.ours, opened.pull_request.map(|one| one.number)), (false, Some(2)));
    world.change(|repo| repo.pulls.truncate(1));
    let opened = world.forge.open_pull_request(world.access(), &wish(&[])).await.expect("opened");
    assert_eq!((opened.existed, opened.pull_request.map(|one| one.number)), (false, Some(2)));
}

#[tokio::test]
async fn a_captcha_of_data_centers_is_no_dead_token() {
    let world = World::new(Kind::BitbucketDc).await;
    world.fake.fault(On::Any, ApiFault::Captcha, 1);
    let error = world.forge.repository(world.access()).await.expect_err("a captcha");
    assert!(matches!(error, ForgeError::CaptchaRequired { .. }), "{error:?}");
    assert!(error.failure().hint.contains("solve the captcha"), "{error:?}");
}

#[tokio::test]
async fn one_conflict_of_data_centers_has_many_meanings() {
    let world = World::new(Kind::BitbucketDc).await;
    let open = async |new: NewPullRequest| world.forge.open_pull_request(world.access(), &new).await;
    let same = open(NewPullRequest { head: "main".to_owned(), ..wish(&[]) }).await;
    assert!(
        matches!(&same, Err(ForgeError::Refused { forge: Some(text), .. }) if text.contains("different")),
        "{same:?}"
    );
    world
        .change(|repo| std::fs::copy(repo.git.path().join("refs/heads/main"), repo.git.path().join("refs/heads/idle")))
        .expect("a branch without a change");
    let nothing = open(NewPullRequest { head: "idle".to_owned(), ..wish(&[]) }).await;
    assert!(
        matches!(&nothing, Err(ForgeError::Refused { forge: Some(text), .. }) if text.contains("up-to-date")),
        "{nothing:?}"
    );
    let absent = open(NewPullRequest { base: "nowhere".to_owned(), ..wish(&[]) }).await;
    assert!(
        matches!(&absent, Err(ForgeError::NotFound { forge: Some(text), .. }) if text.contains("nowhere")),
        "{absent:?}"
    );
    world.change(|repo| repo.archived = true);
    assert!(matches!(open(wish(&[])).await, Err(ForgeError::Archived { .. })));
    assert!(world.forge.repository(world.access()).await.expect("read").archived);
}

#[tokio::test]
async fn changes_that_cross_are_made_one_after_the_other() {
    let world = World::new(Kind::BitbucketDc).await;
    world.forge.open_pull_request(world.access(), &wish(&["ann"])).await.expect("opened");
    let describe = |title| world.forge.describe_pull_request(world.access(), 1, title, "Words.");
    let (one, two, three) = tokio::join!(describe("one"), describe("two"), describe("three"));
    assert_eq!((one, two, three), (Ok(None), Ok(None), Ok(None)));
    let pull = &world.pulls()[0];
    assert_eq!((pull.version, pull.reviewers.as_slice()), (3, ["ann".to_owned()].as_slice()));
    let reads = world.fake.requests().iter().filter(|request| request.starts_with("GET ")).count();
    assert!(reads > 4, "none of them crossed another: {reads}");
}

#[tokio::test]
async fn a_forge_without_drafts_opens_it_and_says_so() {
    for kind in BOTH {
        let world = World::new(kind).await;
        world.change(|repo| repo.drafts = false);
        let new = NewPullRequest { draft: true, labels: vec!["bot".to_owned()], ..wish(&[]) };
        let opened = world.forge.open_pull_request(world.access(), &new).await.expect("opened");
        assert_eq!(of(Feature::Drafts, &opened.notes).len(), 1, "{kind:?}");
        assert!(matches!(of(Feature::Labels, &opened.notes).as_slice(), [note] if note.contains("bot")));
        assert!(!world.pulls()[0].draft);
    }
}

#[tokio::test]
async fn a_light_has_a_key_and_an_address_that_are_taken() {
    for kind in BOTH {
        let world = World::new(kind).await;
        let commit = world.git.head("work").expect("a commit");
        for state in [StatusState::Pending, StatusState::Success] {
            let status = CommitStatus {
                commit: CommitId::try_from(commit.clone()).expect("a commit"),
                state,
                context: format!("orchestra/{}", "long".repeat(20)),
                description: "Words ".repeat(100),
                url: None,
            };
            assert_eq!(world.forge.set_status(world.access(), &status).await, Ok(None), "{kind:?}");
        }
        let (now, before) = world.change(|repo| (repo.statuses.clone(), repo.status_changes.len()));
        let [light] = now.as_slice() else { panic!("{now:?}") };
        assert_eq!((light.state.as_str(), before), ("SUCCESSFUL", 2));
        assert!(light.url.as_ref().is_some_and(|url| url.starts_with("http") && url.contains(&commit)), "{light:?}");
    }
}

#[tokio::test]
async fn a_persons_own_repository_is_found_however_the_interface_is_named() {
    for below in ["", "/api/latest"] {
        let world = World::at(Kind::BitbucketDc, "~ann/notes", below).await;
        assert_eq!(world.forge.repository(world.access()).await.expect("read").may_push, Some(true), "{below}");
    }
}

#[tokio::test]
async fn what_takes_no_changes_says_so_and_what_is_hidden_is_not_found() {
    let cloud = World::new(Kind::BitbucketCloud).await;
    cloud.change(|repo| repo.archived = true);
    let refused = cloud.forge.open_pull_request(cloud.access(), &wish(&[])).await;
    assert!(matches!(refused, Err(ForgeError::Archived { .. })), "{refused:?}");
    for kind in BOTH {
        let world = World::new(kind).await;
        world.fake.with(|state| state.tokens.values_mut().for_each(|login| login.sees = Some(Vec::new())));
        let hidden = world.forge.repository(world.access()).await;
        assert!(matches!(hidden, Err(ForgeError::NotFound { forge: Some(_), .. })), "{kind:?}: {hidden:?}");
    }
}
