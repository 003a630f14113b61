//! What is asked for happens, once, and what a forge does not have is a note.

use std::time::{Duration, Instant};

use orchestra_runtime::forge::{CommitStatus, Feature, ForgeKind, ForgeLimits, NewPullRequest, StatusState};
use orchestra_test_forges::{ApiFault, Comment, On, Pull};

use crate::world::{HEAD, MARKER, REPO, Token, World, client, limits};

pub async fn the_repository_is_known_by_what_stays(world: &World) {
    let token = world.token(Token::Writes);
    let known = world.forge.repository(world.access(&token)).await.expect("an answer");
    if world.fake.is_none() {
        assert_eq!((known.id, known.may_push, known.archived), (None, None, false));
        return;
    }
    assert!(known.id.as_ref().is_some_and(|id| !id.is_empty()), "{known:?}");
    assert_eq!(known.default_branch.as_deref(), Some("main"));
    assert_eq!((known.archived, known.may_push), (false, Some(true)), "{known:?}");
    let reads = world.token(Token::Reads);
    let seen = world.forge.repository(world.access(&reads)).await.expect("an answer");
    assert_eq!(seen.id, known.id);
    assert_ne!(seen.may_push, Some(true), "{seen:?}");
}

pub async fn a_pull_request_is_opened(world: &World) {
    let token = world.token(Token::Writes);
    let opened = world.forge.open_pull_request(world.access(&token), &world.new_pull_request()).await.expect("opened");
    if world.fake.is_none() {
        assert_eq!(opened.pull_request, None);
        assert_eq!(opened.notes.iter().map(|note| note.feature).collect::<Vec<_>>(), [Feature::PullRequests]);
        return;
    }
    assert!(!opened.existed && opened.ours && opened.notes.is_empty(), "{opened:?}");
    let pulls = world.pulls();
    let [pull] = pulls.as_slice() else { panic!("{pulls:?}") };
    let told = opened.pull_request.expect("a pull request");
    assert_eq!(told.number, pull.number);
    assert!(told.url.starts_with("http") && told.url.contains(&pull.number.to_string()), "{told:?}");
    assert_eq!((pull.head.as_str(), pull.base.as_str(), pull.draft), (HEAD, "main", false));
    assert_eq!(pull.title, "Bump the provider");
    assert!(pull.body.contains("From 5.x to 6.x."), "{}", pull.body);
}

pub async fn a_repeat_opens_no_second_one(world: &World) {
    let (token, new) = (world.token(Token::Writes), world.new_pull_request());
    let first = world.forge.open_pull_request(world.access(&token), &new).await.expect("opened");
    let second = world.forge.open_pull_request(world.access(&token), &new).await.expect("found");
    assert_eq!(first.pull_request, second.pull_request);
    if world.fake.is_none() {
        return;
    }
    assert!(!first.existed && second.existed && first.ours && second.ours, "{second:?}");
    assert_eq!(world.pulls().len(), 1);
    // One that somebody has merged is no longer open: the next is a new one.
    world.fake().with(|state| state.repos.get_mut(REPO).expect("it is there").pulls[0].open = false);
    let third = world.forge.open_pull_request(world.access(&token), &new).await.expect("opened");
    assert!(!third.existed && third.pull_request != first.pull_request, "{third:?}");
    assert_eq!(world.pulls().len(), 2);
}

pub async fn a_lost_reply_leaves_one_pull_request(world: &World) {
    let (token, new) = (world.token(Token::Writes), world.new_pull_request());
    if world.fake.is_none() {
        let opened = world.forge.open_pull_request(world.access(&token), &new).await.expect("a note");
        assert_eq!(opened.pull_request, None);
        return;
    }
    for fault in [ApiFault::LoseReply, ApiFault::Cut] {
        world.fake().with(|state| state.repos.get_mut(REPO).expect("it is there").pulls.clear());
        world.fake().fault(On::Writing, fault.clone(), 1);
        let opened = world.forge.open_pull_request(world.access(&token), &new).await.expect("found");
        assert!(opened.existed && opened.ours, "{fault:?}: {opened:?}");
        assert_eq!(world.pulls().len(), 1, "{fault:?}");
        assert_eq!(opened.pull_request.map(|pull| pull.number), Some(world.pulls()[0].number));
    }
}

pub async fn a_draft_is_a_draft_where_there_are_any(world: &World) {
    let token = world.token(Token::Writes);
    let new = NewPullRequest { draft: true, ..world.new_pull_request() };
    let opened = world.forge.open_pull_request(world.access(&token), &new).await.expect("opened");
    if world.fake.is_none() {
        return;
    }
    assert!(opened.notes.is_empty(), "{opened:?}");
    assert!(world.pulls()[0].draft);
    assert_eq!(world.pulls()[0].title, new.title);
    // GitHub's private repositories without a plan, and old servers of Bitbucket, know no drafts.
    if matches!(world.kind, ForgeKind::Github | ForgeKind::BitbucketDc) {
        world.fake().with(|state| {
            let repo = state.repos.get_mut(REPO).expect("it is there");
            repo.pulls.clear();
            repo.drafts = false;
        });
        let opened = world.forge.open_pull_request(world.access(&token), &new).await.expect("opened");
        world.noted(&opened.notes);
        assert_eq!(opened.notes.iter().map(|note| note.feature).collect::<Vec<_>>(), [Feature::Drafts]);
        assert!(!world.pulls()[0].draft);
    }
}

pub async fn reviewers_are_asked_and_the_unknown_left_out(world: &World) {
    let token = world.token(Token::Writes);
    let reviewers = ["ann", "nobody-here", "bob", "ann"].map(str::to_owned).to_vec();
    let new = NewPullRequest { reviewers, ..world.new_pull_request() };
    let opened = world.forge.open_pull_request(world.access(&token), &new).await.expect("opened");
    world.noted(&opened.notes);
    if world.fake.is_none() {
        return;
    }
    let mut asked = world.pulls()[0].reviewers.clone();
    asked.sort();
    assert_eq!(asked, ["ann", "bob"]);
    let notes: Vec<_> = opened.notes.iter().filter(|note| note.feature == Feature::Reviewers).collect();
    assert_eq!(notes.len(), 1, "{opened:?}");
    assert!(notes[0].detail.contains("nobody-here"), "{notes:?}");
    assert_eq!(world.pulls().len(), 1);
}

pub async fn labels_are_given_or_noted(world: &World) {
    let token = world.token(Token::Writes);
    let labels = vec!["dependencies".to_owned(), "terraform".to_owned()];
    let new = NewPullRequest { labels: labels.clone(), ..world.new_pull_request() };
    let opened = world.forge.open_pull_request(world.access(&token), &new).await.expect("opened");
    world.noted(&opened.notes);
    let noted: Vec<_> = opened.notes.iter().map(|note| note.feature).collect();
    match world.kind {
        ForgeKind::Github | ForgeKind::Gitlab => {
            assert_eq!(world.pulls()[0].labels, labels);
            assert!(noted.is_empty(), "{opened:?}");
        }
        ForgeKind::BitbucketCloud | ForgeKind::BitbucketDc => assert_eq!(noted, [Feature::Labels]),
        ForgeKind::Plain | ForgeKind::Local => assert_eq!(noted, [Feature::PullRequests]),
    }
}

pub async fn the_light_goes_from_pending_to_success(world: &World) {
    let token = world.token(Token::Writes);
    let set =
        async |state| world.forge.set_status(world.access(&token), &world.status(state)).await.expect("an answer");
    if world.fake.is_none() {
        assert_eq!(set(StatusState::Pending).await.map(|note| note.feature), Some(Feature::CommitStatus));
        return;
    }
    for state in [StatusState::Pending, StatusState::Pending, StatusState::Success] {
        assert_eq!(set(state).await, None, "{state:?}");
    }
    let lights = world.fake().with(|state| state.repos[REPO].statuses.clone());
    let [light] = lights.as_slice() else { panic!("{lights:?}") };
    assert_eq!((light.commit.as_str(), light.context.as_str()), (world.commit.as_str(), "orchestra"));
    assert_eq!(light.description, "Editing src/main.tf");
    let expected = match world.kind {
        ForgeKind::Github | ForgeKind::Gitlab => "success",
        ForgeKind::BitbucketCloud | ForgeKind::BitbucketDc => "SUCCESSFUL",
        ForgeKind::Plain | ForgeKind::Local => unreachable!("they have no interface"),
    };
    assert_eq!(light.state, expected);
    // A description longer than any forge takes is cut, not refused.
    let long = CommitStatus {
        description: "ä".repeat(300),
        context: "orchestra/a-context-that-is-longer-than-forty-characters".to_owned(),
        ..world.status(StatusState::Failure)
    };
    assert_eq!(world.forge.set_status(world.access(&token), &long).await, Ok(None));
}

pub async fn a_comment_is_said_once_and_then_changed(world: &World) {
    let token = world.token(Token::Writes);
    let say = async |number, text: &str| {
        let text = format!("{text}\n\n{MARKER}");
        world.forge.comment(world.access(&token), number, MARKER, &text).await.expect("an answer")
    };
    if world.fake.is_none() {
        assert_eq!(say(1, "It cost $0.12.").await.map(|note| note.feature), Some(Feature::Comments));
        return;
    }
    let opened = world.forge.open_pull_request(world.access(&token), &world.new_pull_request()).await.expect("opened");
    let number = opened.pull_request.expect("a pull request").number;
    // The reply to the first one is lost: it is said all the same, and not twice.
    world.fake().fault(On::Writing, ApiFault::LoseReply, 1);
    assert_eq!(say(number, "It cost $0.12.").await, None);
    assert_eq!(say(number, "It cost $0.34.").await, None);
    let pulls = world.pulls();
    let [comment] = pulls[0].comments.as_slice() else { panic!("{:?}", pulls[0].comments) };
    assert!(comment.body.contains("$0.34") && !comment.body.contains("$0.12"), "{comment:?}");
}

pub async fn a_pull_request_is_described_anew(world: &World) {
    let token = world.token(Token::Writes);
    let describe = async |number| {
        let body = format!("See also acme/web#7.\n\n{MARKER}");
        world.forge.describe_pull_request(world.access(&token), number, "Bump both", &body).await.expect("an answer")
    };
    if world.fake.is_none() {
        assert_eq!(describe(1).await.map(|note| note.feature), Some(Feature::Descriptions));
        return;
    }
    let new = NewPullRequest { draft: true, reviewers: vec!["ann".to_owned()], ..world.new_pull_request() };
    let opened = world.forge.open_pull_request(world.access(&token), &new).await.expect("opened");
    let number = opened.pull_request.expect("a pull request").number;
    for _ in 0..2 {
        assert_eq!(describe(number).await, None);
    }
    let pull = &world.pulls()[0];
    assert_eq!(pull.title, "Bump both");
    assert!(pull.body.contains("acme/web#7"), "{}", pull.body);
    // The rest stays as it was.
    assert!(pull.draft && pull.reviewers == ["ann"] && pull.base == "main", "{pull:?}");
    // And it is still found as ours.
    assert!(world.forge.open_pull_request(world.access(&token), &new).await.expect("found").existed);
}

pub async fn a_protected_branch_is_known(world: &World) {
    let token = world.token(Token::Writes);
    let rules = async |branch: &str| world.forge.branch_rules(world.access(&token), branch).await.expect("an answer");
    if world.fake.is_none() {
        assert_eq!(rules("main").await.protected, None);
        return;
    }
    world.fake().with(|state| {
        state.repos.get_mut(REPO).expect("it is there").protected = vec!["main".to_owned(), "release/*".to_owned()];
    });
    assert_eq!(rules("main").await.protected, Some(true));
    // Not there yet, and already forbidden.
    assert_eq!(rules("release/2.0").await.protected, Some(true));
    assert_eq!(rules("orchestra/new-1").await.protected, Some(false));
    assert_eq!(rules(HEAD).await.protected, Some(false));
}

pub async fn somebody_elses_pull_request_is_left_as_it_is(world: &World) {
    if world.fake.is_none() {
        return;
    }
    world.fake().with(|state| {
        let (head, base) = (HEAD.to_owned(), "main".to_owned());
        let pull = Pull { head, base, title: "Mine".to_owned(), body: "By hand.".to_owned(), ..Pull::default() };
        state.repos.get_mut(REPO).expect("it is there").add_pull(pull);
    });
    let token = world.token(Token::Writes);
    let (labels, reviewers) = (vec!["dependencies".to_owned()], vec!["ann".to_owned()]);
    let new = NewPullRequest { labels, reviewers, ..world.new_pull_request() };
    let opened = world.forge.open_pull_request(world.access(&token), &new).await.expect("found");
    assert!(opened.existed && !opened.ours, "{opened:?}");
    let pulls = world.pulls();
    let [pull] = pulls.as_slice() else { panic!("{pulls:?}") };
    assert_eq!((pull.title.as_str(), pull.body.as_str()), ("Mine", "By hand."));
    assert!(pull.labels.is_empty() && pull.reviewers.is_empty(), "{pull:?}");
}

pub async fn our_comment_is_found_behind_many_others(world: &World) {
    if world.fake.is_none() {
        return;
    }
    let token = world.token(Token::Writes);
    let opened = world.forge.open_pull_request(world.access(&token), &world.new_pull_request()).await.expect("opened");
    let number = opened.pull_request.expect("a pull request").number;
    let chatter = |from: u64| {
        world.fake().with(|state| {
            let comment = |id| Comment { id: 70_000 + id, body: format!("I think {id}."), version: 0 };
            let repo = state.repos.get_mut(REPO).expect("it is there");
            repo.pulls[0].comments.extend((from..from + 120).map(comment));
        });
    };
    chatter(0);
    for text in ["It cost $0.12.", "It cost $0.34."] {
        let text = format!("{text}\n\n{MARKER}");
        assert_eq!(world.forge.comment(world.access(&token), number, MARKER, &text).await, Ok(None));
        chatter(1000);
    }
    let ours: Vec<_> = world.pulls()[0].comments.iter().filter(|one| one.body.contains("It cost")).cloned().collect();
    assert_eq!(ours.len(), 1, "{ours:?}");
    assert!(ours[0].body.contains("$0.34"), "{ours:?}");
}

pub async fn a_comment_that_quotes_ours_is_left_alone(world: &World) {
    if world.fake.is_none() {
        return;
    }
    let token = world.token(Token::Writes);
    let opened = world.forge.open_pull_request(world.access(&token), &world.new_pull_request()).await.expect("opened");
    let number = opened.pull_request.expect("a pull request").number;
    // With the marker as this forge has it, from the pull request's text.
    let quote = format!("Really?\n\n{}", world.pulls()[0].body);
    world.fake().with(|state| {
        let comments = &mut state.repos.get_mut(REPO).expect("it is there").pulls[0].comments;
        comments.push(Comment { id: 70_000, body: quote.clone(), version: 0 });
    });
    let changing = match world.kind {
        ForgeKind::Github => On::Operation("PATCH", "/comments/"),
        ForgeKind::Gitlab => On::Operation("PUT", "/notes/"),
        ForgeKind::BitbucketCloud | ForgeKind::BitbucketDc => On::Operation("PUT", "/comments/"),
        ForgeKind::Plain | ForgeKind::Local => unreachable!("they have no interface"),
    };
    // The Bitbuckets tell the newest first, so that there ours is changed before the quotation is met.
    let quote_first = matches!(world.kind, ForgeKind::Github | ForgeKind::Gitlab);
    for (status, text, in_vain) in [(403, "It cost $0.12.", true), (404, "It cost $0.34.", quote_first)] {
        world.fake().fault(changing, ApiFault::Status(status, "Not yours"), u32::from(in_vain));
        let text = format!("{text}\n\n{MARKER}");
        assert_eq!(world.forge.comment(world.access(&token), number, MARKER, &text).await, Ok(None));
    }
    let bodies: Vec<String> = world.pulls()[0].comments.iter().map(|one| one.body.clone()).collect();
    let [theirs, ours] = bodies.as_slice() else { panic!("{bodies:?}") };
    assert!(*theirs == quote && ours.contains("$0.34"), "{bodies:?}");
}

pub async fn a_branch_that_shows_up_late_is_waited_for(world: &World) {
    if world.fake.is_none() {
        return;
    }
    // Longer than a branch takes to be made.
    let limits = ForgeLimits { retry_pause: Duration::from_millis(150), ..limits() };
    let forge = client(world.kind, Some(world.fake().api_url()), &limits);
    let token = world.token(Token::Writes);
    let new = NewPullRequest { head: "orchestra/late-9f3c".to_owned(), ..world.new_pull_request() };
    let tries = || world.fake().requests().iter().filter(|line| line.starts_with("POST")).count();
    let pushed = async {
        let first = async {
            while tries() == 0 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), first).await.expect("it is tried");
        orchestra_test_forges::Bare::at(world.root(), REPO).branch(&new.head);
    };
    let (opened, ()) = tokio::join!(forge.open_pull_request(world.access(&token), &new), pushed);
    let opened = opened.expect("opened when the branch is there");
    assert!(!opened.existed && opened.ours, "{opened:?}");
    assert!((2..=3).contains(&tries()), "{}", tries());
    // One that does not show up is given up.
    let before = tries();
    let new = NewPullRequest { head: "not-there".to_owned(), ..new };
    world.said(world.forge.open_pull_request(world.access(&token), &new).await.expect_err("no such branch"));
    assert_eq!(tries() - before, 3);
}

pub async fn ours_is_given_the_words_of_the_newest_attempt(world: &World) {
    if world.fake.is_none() {
        return;
    }
    let token = world.token(Token::Writes);
    let open = async |title: &str| {
        let body = format!("{title}: why.\n\n{MARKER}");
        let (title, reviewers) = (title.to_owned(), vec!["ann".to_owned()]);
        let new = NewPullRequest { title, body, reviewers, draft: true, ..world.new_pull_request() };
        world.forge.open_pull_request(world.access(&token), &new).await.expect("opened")
    };
    open("First").await;
    let second = open("Second").await;
    assert!(second.existed && second.ours && second.notes.is_empty(), "{second:?}");
    let pull = &world.pulls()[0];
    assert!(pull.title == "Second" && pull.body.starts_with("Second: why."), "{pull:?}");
    assert!(pull.draft && pull.reviewers == ["ann"], "the rest stays: {pull:?}");
    // It is there, whatever becomes of its words.
    let changing = match world.kind {
        ForgeKind::Github => On::Operation("PATCH", "/pulls/"),
        ForgeKind::Gitlab => On::Operation("PUT", "/merge_requests/"),
        ForgeKind::BitbucketCloud => On::Operation("PUT", "/pullrequests/"),
        ForgeKind::BitbucketDc => On::Operation("PUT", "/pull-requests/"),
        ForgeKind::Plain | ForgeKind::Local => unreachable!("they have no interface"),
    };
    for status in [403, 500] {
        world.fake().fault(changing, ApiFault::Status(status, "Not now"), 1);
        let third = open("Third").await;
        world.noted(&third.notes);
        assert!(third.existed && third.pull_request.is_some(), "{third:?}");
        assert_eq!(third.notes.iter().map(|note| note.feature).collect::<Vec<_>>(), [Feature::Descriptions]);
    }
    assert_eq!(world.pulls()[0].title, "Second");
}

pub async fn two_at_once_open_one(world: &World) {
    if world.fake.is_none() {
        return;
    }
    let (token, new) = (world.token(Token::Writes), world.new_pull_request());
    // Both have looked before either has opened it.
    world.fake().fault(On::Reading, ApiFault::Slow(Duration::from_millis(300)), 2);
    let open = || world.forge.open_pull_request(world.access(&token), &new);
    let (one, two) = tokio::join!(open(), open());
    let (one, two) = (one.expect("opened"), two.expect("found"));
    assert_eq!(one.pull_request, two.pull_request);
    // Bitbucket Cloud answers the second creation like the first.
    assert!(one.existed != two.existed || world.kind == ForgeKind::BitbucketCloud, "{one:?} {two:?}");
    assert_eq!(world.pulls().len(), 1);
}

pub async fn many_at_once_are_created_one_after_the_other(world: &World) {
    const GAP: Duration = Duration::from_millis(150);
    if world.fake.is_none() {
        return;
    }
    let limits = ForgeLimits { creation_gap: GAP, ..limits() };
    let forge = client(world.kind, Some(world.fake().api_url()), &limits);
    let bare = orchestra_test_forges::Bare::at(world.root(), REPO);
    let token = world.token(Token::Writes);
    let wishes: Vec<NewPullRequest> = (0..6)
        .map(|number| NewPullRequest { head: format!("orchestra/many-{number}"), ..world.new_pull_request() })
        .collect();
    for new in &wishes {
        bare.branch(&new.head);
    }
    let start = Instant::now();
    let opened =
        futures_util::future::join_all(wishes.iter().map(|new| forge.open_pull_request(world.access(&token), new)));
    let opened = opened.await;
    assert!(opened.iter().all(|opened| opened.as_ref().is_ok_and(|opened| !opened.existed)), "{opened:?}");
    assert_eq!(world.pulls().len(), 6);
    assert!(start.elapsed() >= GAP * 5, "{:?}", start.elapsed());
}
