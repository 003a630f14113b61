//! Commits on their way to pull requests, of one repository and of several.

use super::*;

impl Story {
    /// A task on three repositories whose agent has said its last word.
    fn of_three_repositories() -> Self {
        let mut story = Self { task: None, kinds: Vec::new() };
        story.when(Command::Create(Box::new(several(3)))).expect("created");
        story.when(Command::Claim { node: "n".into() }).expect("claimed");
        story.when(Command::Begin { now: now(), delivers: true }).expect("begun");
        for repo in 0..3 {
            assert_eq!(story.next(), Step::Clone(repo));
            let (base, commit) = ("main".into(), oid('a'));
            story.when(Command::RecordClone { repo, base, commit, sandbox: sandbox(), setup: false }).expect("cloned");
        }
        story.when(Command::RecordSandbox { sandbox: sandbox(), start_ms: 40, image_digest: None }).expect("started");
        story.when(reserve(1, 100)).expect("reserved");
        story.when(reply(1, vec![text("Done.")], StopReason::EndTurn)).expect("reply");
        story
    }

    fn stop_sandbox(&mut self) {
        let reason = SandboxEnd::Finished;
        self.when(Command::RecordSandboxStopped { sandbox: sandbox(), reason }).expect("stopped");
    }

    fn push(&mut self, repo: usize) {
        self.when(Command::RecordPush { repo, outcome: PushOutcome::Pushed }).expect("pushed");
    }
}

#[test]
fn several_repositories_are_pushed_before_the_first_pull_request_and_linked_after_the_last() {
    let mut story = Story::of_three_repositories();
    let said = format!("{:?}", story.task().current().expect("it works").conversation);
    assert!(said.contains("web1/ is local:acme/web1"), "the agent is told where they are: {said}");
    story.when(commit_in(0)).expect("committed");
    assert_eq!(story.when(Command::Steer { message: "More.".into() }), Err(Refusal::MovedOn));
    assert_eq!(story.next(), Step::Commit(1));
    story.when(Command::RecordUnchanged { repo: 1 }).expect("unchanged");
    story.when(commit_in(2)).expect("committed");
    story.stop_sandbox();
    for repo in [0, 2] {
        assert_eq!(story.next(), Step::Push(repo));
        story.push(repo);
    }
    for repo in [0, 2] {
        assert_eq!(story.next(), Step::OpenPullRequest(repo));
        story.when(opened(repo)).expect("opened");
    }
    for repo in [0, 2] {
        assert_eq!(story.next(), Step::LinkPullRequest(repo));
        story.when(Command::RecordLink { repo, notes: vec![("descriptions".into(), "no".into())] }).expect("linked");
    }
    for repo in [0, 2] {
        assert_eq!(story.next(), Step::Report(repo, None));
        story.when(Command::RecordReport { repo, notes: Vec::new() }).expect("reported");
    }
    assert_eq!(story.next(), Step::Finish(Ending::Succeeded));
    assert_eq!(story.kinds.iter().filter(|kind| **kind == "forge-noted").count(), 2);
}

#[test]
fn a_task_that_changes_nothing_at_all_does_not_succeed_in_silence() {
    let mut story = Story::of_three_repositories();
    story.when(Command::RecordUnchanged { repo: 0 }).expect("unchanged");
    story.when(Command::RecordUnchanged { repo: 1 }).expect("unchanged");
    assert_eq!(story.when(Command::RecordUnchanged { repo: 2 }), Err(Refusal::MovedOn));
    story.when(commit_in(2)).expect("unless the last one has something");
}

#[test]
fn commits_that_could_not_be_delivered_are_kept_for_a_retry_that_asks_no_model() {
    for still_there in [true, false] {
        let mut story = Story::of_three_repositories();
        (0..3).for_each(|repo| drop(story.when(commit_in(repo)).expect("committed")));
        story.stop_sandbox();
        (0..3).for_each(|repo| story.push(repo));
        story.when(opened(0)).expect("opened");
        let protected = failure(FailureCode::PullRequestFailed);
        story.when(Command::RecordFailure { failure: protected.clone(), then: Then::GiveUp }).expect("failed");
        assert_eq!(story.next(), Step::Report(0, Some(Ending::Failed(protected.clone()))));
        story.when(Command::RecordReport { repo: 0, notes: Vec::new() }).expect("reported");
        let (ending, refund) = (Ending::Failed(protected), NanoUsd::ZERO);
        story.when(Command::Finish { ending, refund }).expect("finished");
        story.when(Command::Retry).expect("retried");
        story.when(Command::Claim { node: "n".into() }).expect("claimed");
        story.when(Command::Begin { now: now(), delivers: still_there }).expect("begun");
        assert_eq!(story.next(), if still_there { Step::OpenPullRequest(1) } else { Step::Clone(0) });
        assert_eq!(is_committed(&story.task().current().expect("it works").repos), still_there);
    }
}

#[test]
fn what_is_committed_is_delivered_by_a_further_attempt_whatever_its_workspace() {
    let mut story = Story { task: None, kinds: Vec::new() };
    let retry = Some(Attempts { most: 2, workspace: Workspace::Fresh });
    story.when(Command::Create(Box::new(TaskSpec { retry, ..spec() }))).expect("created");
    story.when(Command::Claim { node: "n".into() }).expect("claimed");
    story.when(Command::Begin { now: now(), delivers: true }).expect("begun");
    let (base, commit) = ("main".into(), oid('a'));
    story.when(Command::RecordClone { repo: 0, base, commit, sandbox: sandbox(), setup: false }).expect("cloned");
    story.when(Command::RecordSandbox { sandbox: sandbox(), start_ms: 40, image_digest: None }).expect("started");
    story.when(reserve(1, 100)).expect("reserved");
    story.when(reply(1, vec![text("Done.")], StopReason::EndTurn)).expect("reply");
    story.when(commit_in(0)).expect("committed");
    story.stop_sandbox();
    story.push(0);
    let failed = failure(FailureCode::PullRequestFailed);
    story.when(Command::RecordFailure { failure: failed.clone(), then: Then::GiveUp }).expect("failed");
    assert_eq!(story.next(), Step::NextAttempt(failed, Workspace::Same));
    story.when(Command::NextAttempt { refund: NanoUsd::ZERO, until: now(), wait_ms: 0 }).expect("left");
    story.when(Command::Begin { now: now(), delivers: true }).expect("begun");
    assert_eq!(story.next(), Step::OpenPullRequest(0));
}

/// A token that died during the push of a task that is being cancelled: nobody is asked for another one.
#[test]
fn what_is_being_cancelled_waits_for_no_secret() {
    let mut story = Story::asked(1);
    story.when(reply(1, vec![text("Done.")], StopReason::EndTurn)).expect("reply");
    story.when(commit()).expect("commit");
    story.stop_sandbox();
    assert_eq!(story.next(), Step::Push(0));
    story.when(Command::Cancel { reason: None }).expect("cancel");
    let (missing, git_auth) = (vec![CredentialKind::Git], failure(FailureCode::GitAuth));
    let asked = Command::RequireCredentials { missing: missing.clone(), failure: None };
    assert_eq!(story.when(asked), Err(Refusal::MovedOn));
    story
        .when(Command::RecordFailure { failure: git_auth.clone(), then: Then::AskFor(missing.clone()) })
        .expect("failed");
    assert_eq!(story.next(), Step::Finish(Ending::Cancelled));
    // And a stream in which somebody was asked all the same still comes to its end.
    story.given(&[TaskEvent::CredentialsRequired { missing, failure: Some(git_auth) }]);
    assert_eq!(story.next(), Step::Finish(Ending::Cancelled));
    story.when(Command::Finish { ending: Ending::Cancelled, refund: NanoUsd::ZERO }).expect("cancelled");
}
