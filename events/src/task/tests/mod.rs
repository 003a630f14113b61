//! Given what happened, when a command comes, then this happens.

mod delivery;
mod luck;
mod sandbox;

use jiff::Timestamp;
use serde_json::json;
use uuid::Uuid;

use super::command::{Charge, Command, PullRequestOutcome, Refusal, Then, decide};
use super::conversation::{Block, StopReason, Turn, Usage};
use super::delivery::is_committed;
use super::event::{
    Attempts, Budget, CredentialKind, FurtherRepo, Harness, PushOutcome, SandboxEnd, TaskEvent, TaskSpec, ToolOutcome,
    Workspace,
};
use super::harness::{HarnessWord, verdict};
use super::state::{Ending, OpenCall, Task, evolve};
use super::step::{Step, next_step};
use super::usage::{MAX_SAMPLES, OperatorEntry, SandboxLimits, SandboxUsage};
use crate::blob::{BlobRef, Content};
use crate::failure::{Failure, FailureCode};
use crate::id::{CallId, CommitId, SandboxId};
use crate::money::NanoUsd;
use crate::repo::RepoRef;

fn now() -> Timestamp {
    Timestamp::from_second(1_780_000_000).expect("a time")
}

fn oid(digit: char) -> CommitId {
    CommitId::try_from(digit.to_string().repeat(40)).expect("an oid")
}

fn call(number: u128) -> CallId {
    CallId::from_uuid(Uuid::from_u128(number))
}

fn sandbox() -> SandboxId {
    SandboxId::from_uuid(Uuid::from_u128(9))
}

fn spec() -> TaskSpec {
    TaskSpec {
        repo: RepoRef::new("local", "acme/api").expect("a repo"),
        task: "Fix the typo".into(),
        model: "claude-sonnet-4-6".into(),
        harness: Harness::Builtin,
        command: Vec::new(),
        retry: None,
        team: "platform".into(),
        project: None,
        environment: None,
        task_type: None,
        customer: None,
        budget: Budget { max_nano_usd: Some(NanoUsd::from_nanos(1_000)), max_tokens: None },
        base: None,
        branch: "orchestra/fix-1".into(),
        further: Vec::new(),
        pull_request: None,
        campaign: None,
        image: "default".into(),
        egress: Vec::new(),
        timeout_seconds: 60,
        metadata: serde_json::Map::new(),
        request_hash: None,
        caller_brings_model_key: false,
        caller_brings_git_token: false,
    }
}

/// A task on several repositories.
fn several(repos: usize) -> TaskSpec {
    let further = (1..repos).map(|number| FurtherRepo {
        repo: RepoRef::new("local", &format!("acme/web{number}")).expect("a repo"),
        base: None,
        branch: "orchestra/fix-1".into(),
    });
    TaskSpec { further: further.collect(), ..spec() }
}

/// A setup that was done, or was not for this reason.
fn set_up(failed: Option<(Failure, Then)>) -> Command {
    Command::RecordSetup {
        key: "k1".into(),
        cached: false,
        exit_code: Some(i32::from(failed.is_some())),
        duration_ms: 9,
        output: None,
        omitted_bytes: 0,
        failed,
    }
}

/// A task's stream in the making: `given(...)` folds, `when(...)` decides and folds what was decided.
struct Story {
    task: Option<Task>,
    kinds: Vec<&'static str>,
}

impl Story {
    fn new() -> Self {
        let mut story = Self { task: None, kinds: Vec::new() };
        story.when(Command::Create(Box::new(spec()))).expect("created");
        story
    }

    fn working() -> Self {
        let mut story = Self::new();
        story.when(Command::Claim { node: "n".into() }).expect("claimed");
        story.when(Command::Begin { now: now(), delivers: true }).expect("begun");
        story
    }

    /// The repository is cloned, without a setup script, and the machine is up.
    fn gets_its_sandbox(&mut self) {
        let clone =
            Command::RecordClone { repo: 0, base: "main".into(), commit: oid('a'), sandbox: sandbox(), setup: false };
        self.when(clone).expect("cloned");
        self.when(Command::RecordSandbox { sandbox: sandbox(), start_ms: 40, image_digest: None }).expect("started");
    }

    fn in_sandbox() -> Self {
        let mut story = Self::working();
        story.gets_its_sandbox();
        story
    }

    fn asked(number: u128) -> Self {
        let mut story = Self::in_sandbox();
        story.when(reserve(number, 100)).expect("reserved");
        story
    }

    fn when(&mut self, command: Command) -> Result<Vec<TaskEvent>, Refusal> {
        let events = decide(self.task.as_ref(), command)?;
        self.given(&events);
        Ok(events)
    }

    fn given(&mut self, events: &[TaskEvent]) {
        for event in events {
            self.kinds.push(event.kind());
            self.task = evolve(self.task.take(), event);
        }
    }

    fn task(&self) -> &Task {
        self.task.as_ref().expect("created")
    }

    fn next(&self) -> Step {
        next_step(self.task(), now())
    }
}

fn reserve(number: u128, nanos: i64) -> Command {
    Command::ReserveModel {
        heard: 0,
        call: call(number),
        reserved: NanoUsd::from_nanos(nanos),
        reserved_tokens: 50,
        max_output_tokens: 10,
    }
}

fn charge(nanos: i64) -> Charge {
    Charge {
        usage: Usage { input_tokens: 5, output_tokens: 2, ..Usage::default() },
        cost: NanoUsd::from_nanos(nanos),
        confirmed: true,
        price: "t/r".into(),
    }
}

fn text(words: &str) -> Block {
    Block::Text { text: Content::Inline(words.into()) }
}

fn tool(id: &str) -> Block {
    Block::ToolUse { id: id.into(), name: "bash".into(), input: json!({"command": "true"}), malformed: None }
}

fn reply(number: u128, content: Vec<Block>, stop_reason: StopReason) -> Command {
    Command::RecordReply { call: call(number), charge: charge(40), content, stop_reason }
}

fn tool_done(id: &str) -> Command {
    Command::RecordTool {
        tool_call: id.into(),
        outcome: ToolOutcome::Ok,
        output: Content::Inline("ok".into()),
        duration_ms: 1,
        omitted_bytes: 0,
    }
}

fn commit() -> Command {
    commit_in(0)
}

fn commit_in(repo: usize) -> Command {
    Command::RecordCommit {
        repo,
        commits: vec![(oid('c'), "Fix".into())],
        tree: oid('d'),
        message: "Fix".into(),
        stat: (1, 1, 0),
        diff: BlobRef { sha256: "0".repeat(64), bytes: 3 },
    }
}

fn opened(repo: usize) -> Command {
    let opened =
        PullRequestOutcome::Open { url: "https://forge.example/1".into(), number: 1, existed: false, foreign: false };
    Command::RecordPullRequest { repo, opened, notes: Vec::new() }
}

fn failure(code: FailureCode) -> Failure {
    Failure::new(code, "It broke.")
}

#[test]
fn from_a_sentence_to_a_pushed_branch() {
    let mut story = Story::asked(1);
    story.when(reply(1, vec![text("I look."), tool("t1")], StopReason::ToolUse)).expect("reply");
    story.when(Command::CallTool { tool_call: "t1".into() }).expect("call");
    story.when(tool_done("t1")).expect("tool");
    story.when(reserve(2, 100)).expect("reserve");
    story.when(reply(2, vec![text("Done.")], StopReason::EndTurn)).expect("reply");
    story.when(commit()).expect("commit");
    story
        .when(Command::RecordSandboxStopped { sandbox: sandbox(), reason: SandboxEnd::Finished })
        .expect("sandbox stopped");
    story.when(Command::RecordPush { repo: 0, outcome: PushOutcome::Pushed }).expect("push");
    story.when(opened(0)).expect("opened");
    story.when(Command::RecordReport { repo: 0, notes: Vec::new() }).expect("reported");
    story.when(Command::Finish { ending: Ending::Succeeded, refund: NanoUsd::ZERO }).expect("finish");
    assert_eq!(story.next(), Step::Rest);
    assert_eq!(
        story.kinds.join(" "),
        "created queued claimed attempt-started cloned sandbox-started model-called tokens-charged message \
         tool-called tool-finished model-called tokens-charged message committed sandbox-stopped pushed \
         pull-request-opened reported succeeded"
    );
    assert_eq!(story.task().spent.cost, NanoUsd::from_nanos(80));
}

#[test]
fn the_conversation_alternates_and_begins_with_the_task() {
    let mut story = Story::asked(1);
    story.when(reply(1, vec![tool("t1"), tool("t2")], StopReason::ToolUse)).expect("reply");
    for id in ["t1", "t2"] {
        story.when(Command::CallTool { tool_call: id.into() }).expect("call");
        story.when(Command::Steer { message: format!("during {id}") }).expect("steer");
        story.when(tool_done(id)).expect("tool");
    }
    let conversation = &story.task().current().expect("working").conversation;
    assert_eq!(conversation.len(), 3);
    assert!(matches!(&conversation[0], Turn::User(parts) if parts.len() == 1));
    assert!(matches!(&conversation[1], Turn::Assistant(blocks) if blocks.len() == 2));
    // Both answers first, then what the user said meanwhile.
    assert!(matches!(&conversation[2], Turn::User(parts) if parts.len() == 4), "{conversation:?}");
}

#[test]
fn a_reservation_above_what_is_left_is_refused() {
    let mut story = Story::in_sandbox();
    assert_eq!(story.when(reserve(1, 1_001)), Err(Refusal::OverBudget));
    story.when(reserve(1, 1_000)).expect("exactly the cap");
    assert_eq!(story.task().dollars_left(), Some(NanoUsd::ZERO));
}

#[test]
fn a_reply_settles_its_reservation_once() {
    let mut story = Story::asked(1);
    story.when(reply(1, vec![text("Done.")], StopReason::EndTurn)).expect("reply");
    assert_eq!(story.task().reserved().0, NanoUsd::ZERO);
    assert_eq!(story.when(reply(1, vec![text("Done.")], StopReason::EndTurn)), Err(Refusal::MovedOn));
    assert_eq!(story.task().spent.cost, NanoUsd::from_nanos(40));
}

#[test]
fn a_failed_call_is_tried_again_later_and_then_given_up() {
    let mut story = Story::asked(1);
    let overloaded = failure(FailureCode::ModelOverloaded);
    let then = Then::Retry { until: now(), wait_ms: 500 };
    story
        .when(Command::RecordModelFailure { call: call(1), charge: None, failure: overloaded.clone(), then })
        .expect("failed");
    assert_eq!(next_step(story.task(), Timestamp::MIN), Step::WaitUntil(now()));
    assert_eq!(story.next(), Step::ReserveModel);
    assert_eq!(story.task().failures, 1);
    story.given(&[TaskEvent::ModelCalled {
        call: call(2),
        model: "m".into(),
        reserved_nano_usd: NanoUsd::from_nanos(1),
        reserved_tokens: 1,
        max_output_tokens: 1,
    }]);
    story
        .when(Command::RecordModelFailure {
            call: call(2),
            charge: None,
            failure: overloaded.clone(),
            then: Then::GiveUp,
        })
        .expect("failed");
    assert_eq!(story.task().failures, 2);
    assert_eq!(story.next(), Step::StopSandbox(sandbox(), SandboxEnd::Failed));
    story.given(&[TaskEvent::SandboxStopped { sandbox: sandbox(), reason: SandboxEnd::Failed }]);
    assert_eq!(story.next(), Step::Finish(Ending::Failed(overloaded)));
}

#[test]
fn a_tool_whose_sandbox_is_lost_is_not_run_twice() {
    let mut story = Story::asked(1);
    story.when(reply(1, vec![tool("t1")], StopReason::ToolUse)).expect("reply");
    story.when(Command::CallTool { tool_call: "t1".into() }).expect("call");
    assert!(matches!(story.next(), Step::RunTool(_)));
    story.when(Command::RecordSandboxStopped { sandbox: sandbox(), reason: SandboxEnd::Lost }).expect("lost");
    assert!(matches!(story.next(), Step::StartSandbox(_)));
    story.when(Command::RecordSandbox { sandbox: sandbox(), start_ms: 1, image_digest: None }).expect("again");
    assert!(matches!(story.next(), Step::InterruptTool(_)));
}

#[test]
fn waiting_for_credentials_keeps_the_work() {
    let mut story = Story::asked(1);
    let refused = failure(FailureCode::ModelAuth);
    let then = Then::AskFor(vec![CredentialKind::Model]);
    story.when(Command::RecordModelFailure { call: call(1), charge: None, failure: refused, then }).expect("asked for");
    assert_eq!(story.next(), Step::WaitForCredentials);
    let later = now().checked_add(jiff::SignedDuration::from_hours(5)).expect("a time");
    story.when(Command::SupplyCredentials { supplied: vec![CredentialKind::Model], now: later }).expect("supplied");
    assert_eq!(story.next(), Step::ReserveModel);
    let deadline = story.task().current().expect("working").deadline;
    assert!(deadline > later, "the wait does not count against the attempt");
}

#[test]
fn cancelling_settles_and_stops_whatever_is_held() {
    let mut story = Story::new();
    story.when(Command::Cancel { reason: None }).expect("cancel");
    assert_eq!(story.next(), Step::Rest);

    let mut story = Story::asked(1);
    story.when(Command::Cancel { reason: None }).expect("cancel");
    assert_eq!(story.when(Command::Cancel { reason: None }), Ok(Vec::new()));
    assert!(matches!(story.next(), Step::AbandonModel(_)));
    let given_up = failure(FailureCode::Cancelled);
    story
        .when(Command::RecordModelFailure {
            call: call(1),
            charge: Some(charge(7)),
            failure: given_up,
            then: Then::GiveUp,
        })
        .expect("settled");
    assert_eq!(story.next(), Step::StopSandbox(sandbox(), SandboxEnd::Cancelled));
    story.when(Command::RecordSandboxStopped { sandbox: sandbox(), reason: SandboxEnd::Cancelled }).expect("stopped");
    story.when(Command::Finish { ending: Ending::Cancelled, refund: NanoUsd::ZERO }).expect("finish");
    assert_eq!(story.kinds.last(), Some(&"cancelled"));
    assert_eq!(story.when(Command::Cancel { reason: None }), Err(Refusal::Ended("been cancelled")));
}

#[test]
fn cancelling_while_it_waits_for_credentials_cleans_up_without_them() {
    let mut story = Story::asked(1);
    story.when(Command::RequireCredentials { missing: vec![CredentialKind::Model], failure: None }).expect("required");
    story.when(Command::Cancel { reason: None }).expect("cancel");
    assert!(matches!(story.next(), Step::AbandonModel(_)));
}

#[test]
fn a_push_that_a_cancel_could_not_stop_is_on_record() {
    let mut story = Story::asked(1);
    story.when(reply(1, vec![text("Done.")], StopReason::EndTurn)).expect("reply");
    story.when(commit()).expect("commit");
    let push = Command::RecordPush { repo: 0, outcome: PushOutcome::Pushed };
    assert_eq!(story.when(push.clone()), Err(Refusal::MovedOn));
    story.when(Command::RecordSandboxStopped { sandbox: sandbox(), reason: SandboxEnd::Finished }).expect("stopped");
    story.when(Command::Cancel { reason: None }).expect("cancel");
    story.when(push.clone()).expect("the branch has moved all the same");
    assert_eq!(story.when(push), Err(Refusal::MovedOn));
    story.when(Command::Finish { ending: Ending::Cancelled, refund: NanoUsd::ZERO }).expect("finish");
    assert_eq!(story.kinds[story.kinds.len() - 3..], ["cancel-requested", "pushed", "cancelled"]);
}

#[test]
fn a_message_after_the_last_word_reopens_the_conversation() {
    let mut story = Story::asked(1);
    story.when(reply(1, vec![text("Done.")], StopReason::EndTurn)).expect("reply");
    assert!(matches!(story.next(), Step::Commit(_)));
    story.when(Command::Steer { message: "And the docs.".into() }).expect("steer");
    assert_eq!(story.next(), Step::ReserveModel);
    assert_eq!(story.when(commit()), Err(Refusal::MovedOn));
}

#[test]
fn a_cut_reply_is_continued_and_a_refusal_ends_the_attempt() {
    let mut story = Story::asked(1);
    story.when(reply(1, vec![text("I was say")], StopReason::MaxTokens)).expect("reply");
    assert_eq!(story.next(), Step::ReserveModel);
    let mut story = Story::asked(1);
    story.when(reply(1, vec![text("No.")], StopReason::Refusal)).expect("reply");
    assert!(matches!(story.next(), Step::StopSandbox(_, SandboxEnd::Failed)));
}

#[test]
fn a_retry_begins_a_new_attempt_with_what_is_left_of_the_budget() {
    let mut story = Story::asked(1);
    story.when(reply(1, vec![text("No.")], StopReason::Refusal)).expect("reply");
    assert_eq!(story.when(Command::Retry), Err(Refusal::StillOpen));
    story.when(Command::RecordSandboxStopped { sandbox: sandbox(), reason: SandboxEnd::Failed }).expect("stopped");
    let Step::Finish(ending) = story.next() else { panic!("{:?}", story.next()) };
    story.when(Command::Finish { ending, refund: NanoUsd::ZERO }).expect("failed");
    story.when(Command::Retry).expect("retry");
    story.when(Command::Claim { node: "n".into() }).expect("claim");
    story.when(Command::Begin { now: now(), delivers: true }).expect("begin");
    assert_eq!(story.task().attempt, 2);
    assert_eq!(story.next(), Step::Clone(0));
    assert_eq!(story.task().dollars_left(), Some(NanoUsd::from_nanos(960)));
}

#[test]
fn nothing_but_create_comes_first() {
    assert_eq!(decide(None, Command::Retry), Err(Refusal::NoSuchTask));
    let mut story = Story::new();
    assert_eq!(story.when(Command::Create(Box::new(spec()))), Err(Refusal::Exists));
}

fn call_end(call: CallId, charge: Option<Charge>, stop_reason: Option<StopReason>) -> Command {
    let failure = stop_reason.is_none().then(|| failure(FailureCode::NetworkDropped));
    Command::RecordCallEnd { call, model: "m".into(), charge, stop_reason, failure }
}

#[test]
fn words_that_come_after_the_quote_are_not_part_of_the_call() {
    let mut story = Story::in_sandbox();
    story.when(Command::Steer { message: "And mind the tests.".into() }).expect("steered");
    // What was set aside was counted without them.
    assert_eq!(story.when(reserve(1, 100)), Err(Refusal::MovedOn));
    let counted = match reserve(1, 100) {
        Command::ReserveModel { call, reserved, reserved_tokens, max_output_tokens, .. } => {
            Command::ReserveModel { call, heard: 1, reserved, reserved_tokens, max_output_tokens }
        }
        other => other,
    };
    story.when(counted).expect("reserved");
}

#[test]
fn a_harness_that_is_done_is_paid_for_before_it_is_committed_and_hears_what_comes_late() {
    let mut story = Story { task: None, kinds: Vec::new() };
    story.when(Command::Create(Box::new(TaskSpec { harness: Harness::Codex, ..spec() }))).expect("created");
    story.when(Command::Claim { node: "n".into() }).expect("claimed");
    story.when(Command::Begin { now: now(), delivers: true }).expect("begun");
    story
        .when(Command::RecordClone { repo: 0, base: "main".into(), commit: oid('a'), sandbox: sandbox(), setup: false })
        .expect("cloned");
    story.when(Command::RecordSandbox { sandbox: sandbox(), start_ms: 40, image_digest: None }).expect("started");
    story.when(Command::BeginHarness).expect("begun");
    let reserved = NanoUsd::from_nanos(100);
    let open = OpenCall { call: call(1), reserved, reserved_tokens: 5, max_output_tokens: 5 };
    story.when(Command::RecordCall { open: open.clone(), model: "m".into() }).expect("asked");
    let end = Command::RecordHarnessEnd { run: 1, exit_code: Some(0), duration_ms: 1, failed: None };
    story.when(end).expect("ended");
    assert_eq!(story.next(), Step::AbandonModel(open));
    let failure = Some(failure(FailureCode::Cancelled));
    let charge = Some(charge(100));
    let ended = Command::RecordCallEnd { call: call(1), model: "m".into(), charge, stop_reason: None, failure };
    story.when(ended).expect("paid for");
    assert!(matches!(story.next(), Step::Commit(_)), "one that was broken off is no failure of the agent's");
    story.when(Command::Steer { message: "And the readme.".into() }).expect("steered");
    assert!(matches!(story.next(), Step::BeginHarness(_)));
    story.when(Command::BeginHarness).expect("begun again");
    let prompt = &story.task().current().expect("it runs").harness.prompt;
    assert!(prompt.contains("And the readme."), "{prompt}");
}

#[test]
fn another_attempt_begins_anew_or_where_the_last_one_stopped() {
    for workspace in Workspace::ALL {
        let mut story = Story { task: None, kinds: Vec::new() };
        let retry = Some(Attempts { most: 2, workspace });
        story.when(Command::Create(Box::new(TaskSpec { retry, ..spec() }))).expect("created");
        story.when(Command::Claim { node: "n".into() }).expect("claimed");
        for attempt in 1..=2 {
            story.when(Command::Begin { now: now(), delivers: true }).expect("begun");
            if attempt == 1 || workspace == Workspace::Fresh {
                story
                    .when(Command::RecordClone {
                        repo: 0,
                        base: "main".into(),
                        commit: oid('a'),
                        sandbox: sandbox(),
                        setup: false,
                    })
                    .expect("cloned");
                story
                    .when(Command::RecordSandbox { sandbox: sandbox(), start_ms: 40, image_digest: None })
                    .expect("started");
            }
            // With the same workspace, nothing is cloned and nothing is started.
            assert_eq!(story.next(), Step::ReserveModel, "{workspace:?}");
            story.when(reserve(attempt, 100)).expect("reserved");
            let said = format!("{:?}", story.task().current().expect("it works").conversation);
            assert_eq!(said.contains("earlier attempt"), attempt == 2 && workspace == Workspace::Same, "{said}");
            let overloaded = failure(FailureCode::ModelOverloaded);
            let (failure, then) = (overloaded.clone(), Then::GiveUp);
            let failed = Command::RecordModelFailure { call: call(attempt), charge: None, failure, then };
            story.when(failed).expect("failed");
            if attempt == 2 || workspace == Workspace::Fresh {
                let reason = SandboxEnd::Failed;
                story.when(Command::RecordSandboxStopped { sandbox: sandbox(), reason }).expect("stopped");
            }
            if attempt == 1 {
                assert_eq!(story.next(), Step::NextAttempt(overloaded, workspace));
                let later = now().checked_add(jiff::SignedDuration::from_secs(30)).expect("in time");
                let refund = NanoUsd::ZERO;
                story.when(Command::NextAttempt { refund, until: later, wait_ms: 30_000 }).expect("left");
                assert_eq!(story.next(), Step::WaitUntil(later));
                assert_eq!(next_step(story.task(), later), Step::Begin);
            } else {
                assert_eq!(story.next(), Step::Finish(Ending::Failed(overloaded)), "two were asked for");
            }
        }
    }
}

#[test]
fn what_another_attempt_would_not_mend_is_the_end() {
    for (code, again) in [(FailureCode::ModelOverloaded, true), (FailureCode::BudgetExceeded, false)] {
        let mut story = Story { task: None, kinds: Vec::new() };
        let retry = Some(Attempts { most: 2, workspace: Workspace::Same });
        story.when(Command::Create(Box::new(TaskSpec { retry, ..spec() }))).expect("created");
        story.when(Command::Claim { node: "n".into() }).expect("claimed");
        story.when(Command::Begin { now: now(), delivers: true }).expect("begun");
        story.gets_its_sandbox();
        story.when(Command::RecordFailure { failure: failure(code), then: Then::GiveUp }).expect("failed");
        assert_eq!(matches!(story.next(), Step::NextAttempt(..)), again, "{code}");
        if again {
            let (refund, until) = (NanoUsd::ZERO, now());
            story.when(Command::NextAttempt { refund, until, wait_ms: 0 }).expect("left");
            // A cancel before it begins has a sandbox to stop.
            story.when(Command::Cancel { reason: None }).expect("cancelled");
            assert_eq!(story.next(), Step::StopSandbox(sandbox(), SandboxEnd::Cancelled));
        }
    }
}
