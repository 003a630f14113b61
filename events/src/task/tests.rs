//! Given what happened, when a command comes, then this happens.

use jiff::Timestamp;
use proptest::prelude::*;
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

    fn in_sandbox() -> Self {
        let mut story = Self::working();
        story
            .when(Command::RecordClone {
                repo: 0,
                base: "main".into(),
                commit: oid('a'),
                sandbox: sandbox(),
                setup: false,
            })
            .expect("cloned");
        story.when(Command::RecordSandbox { sandbox: sandbox(), start_ms: 40, image_digest: None }).expect("started");
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

/// What may happen while a harness runs, one thing at a time.
fn run_harness(task: &Task, number: u128, luck: u8, price: i64, then: Then) -> Command {
    let run = &task.current().expect("it runs").harness;
    match (luck % 16, run.open.values().next()) {
        (0, _) => Command::RecordSandboxStopped { sandbox: sandbox(), reason: SandboxEnd::Lost },
        (1..=3, _) => Command::RecordHarnessOutput {
            run: run.run,
            offset: run.offset + 10,
            session: Some("s".into()),
            said: vec![HarnessWord::Message(Content::Inline("Hm.".into()))],
        },
        (4..=7, Some(open)) => {
            let stop = luck.is_multiple_of(2).then_some(StopReason::EndTurn);
            call_end(open.call, Some(charge(open.reserved.nanos().min(price))), stop)
        }
        (8..=9, Some(open)) => call_end(open.call, None, None),
        (10..=13, _) if task.dollars_left().is_some_and(|left| left >= NanoUsd::from_nanos(200)) => {
            let reserved = NanoUsd::from_nanos(200);
            let open = OpenCall { call: call(number), reserved, reserved_tokens: 5, max_output_tokens: 5 };
            Command::RecordCall { open, model: "m".into() }
        }
        (_, Some(open)) => call_end(open.call, None, Some(StopReason::ToolUse)),
        (_, None) => {
            let failed = verdict(task, Some(0)).err().map(|failure| (failure, then));
            Command::RecordHarnessEnd { run: run.run, exit_code: Some(0), duration_ms: 1, failed }
        }
    }
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
        story
            .when(Command::RecordClone {
                repo: 0,
                base: "main".into(),
                commit: oid('a'),
                sandbox: sandbox(),
                setup: false,
            })
            .expect("cloned");
        story.when(Command::RecordSandbox { sandbox: sandbox(), start_ms: 40, image_digest: None }).expect("started");
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

fn may_be_unchanged(task: &Task, repo: usize) -> bool {
    let repos = &task.current().expect("it works").repos;
    repos.iter().enumerate().any(|(other, work)| other != repo && (work.outcome.is_none() || work.commit().is_some()))
}

/// Does whatever the step asks for, with luck and prices drawn at random, until the task rests.
fn drive(harness: Harness, retry: Option<Attempts>, further: usize, luck: &[(u8, u16)]) -> Story {
    let mut story = Story { task: None, kinds: Vec::new() };
    story.when(Command::Create(Box::new(TaskSpec { harness, retry, ..several(1 + further) }))).expect("created");
    for (turn, (luck, price)) in luck.iter().cycle().take(10_000).enumerate() {
        let number = turn as u128;
        let failed = failure(FailureCode::NetworkDropped);
        let give_up = story.task().failures >= 4;
        let then = if give_up { Then::GiveUp } else { Then::Retry { until: now(), wait_ms: 1 } };
        let asking = matches!(story.next(), Step::AskModel(_) | Step::AbandonModel(_));
        // An attempt fails once: what follows is cleaning up, and whatever happens to that, the task's fate stands.
        let given_up = story.task().current().is_some_and(|attempt| attempt.failure.is_some());
        let command = match story.next() {
            Step::Rest => return story,
            Step::WaitForClaim => Command::Claim { node: "n".into() },
            // Now and then somebody has cleared the disk.
            Step::Begin => Command::Begin { now: now(), delivers: luck % 4 != 1 },
            Step::WaitForCredentials => {
                Command::SupplyCredentials { supplied: vec![CredentialKind::Model], now: now() }
            }
            _ if luck % 32 == 31 && !asking && !story.task().cancel_requested => Command::Cancel { reason: None },
            _ if luck % 32 == 15 && !asking && !given_up => Command::RecordFailure { failure: failed, then },
            Step::WaitUntil(until) => unreachable!("{until} is not over yet"),
            Step::ReserveModel => reserve(number, i64::from(*price % 300)),
            Step::Clone(repo) => {
                let setup = luck % 3 == 0;
                Command::RecordClone { repo, base: "main".into(), commit: oid('a'), sandbox: sandbox(), setup }
            }
            Step::SetUp(_) if luck % 8 == 3 => {
                Command::RecordSetupStart { key: format!("k{}", luck % 2), sandbox: sandbox() }
            }
            Step::SetUp(_) => set_up((luck % 4 == 1).then_some((failed, then))),
            Step::StartSandbox(_) => Command::RecordSandbox { sandbox: sandbox(), start_ms: 1, image_digest: None },
            Step::BeginHarness(_) => Command::BeginHarness,
            Step::RunHarness => {
                // Shifted as time goes by: luck that repeats itself would never let a run end.
                let luck = luck.wrapping_add((turn / 16) as u8);
                run_harness(story.task(), number, luck, i64::from(*price), then)
            }
            Step::AbandonModel(open) if harness != Harness::Builtin => call_end(open.call, Some(charge(7)), None),
            Step::AskModel(open) | Step::AbandonModel(open) if luck % 4 == 0 || story.task().cancel_requested => {
                Command::RecordModelFailure {
                    call: open.call,
                    charge: (luck % 8 == 0).then(|| charge(open.reserved.nanos().min(i64::from(*price)))),
                    failure: failed,
                    then,
                }
            }
            Step::AskModel(open) | Step::AbandonModel(open) => {
                let content = if luck % 2 == 0 { vec![tool("t"), tool("u")] } else { vec![text("Done.")] };
                let stop = if luck % 2 == 0 { StopReason::ToolUse } else { StopReason::EndTurn };
                let charge = charge(open.reserved.nanos().min(i64::from(*price)));
                Command::RecordReply { call: open.call, charge, content, stop_reason: stop }
            }
            Step::CallTool(tool) => Command::CallTool { tool_call: tool.id },
            Step::RunTool(_) if luck % 8 == 7 => {
                Command::RecordSandboxStopped { sandbox: sandbox(), reason: SandboxEnd::Lost }
            }
            Step::RunTool(tool) | Step::InterruptTool(tool) => tool_done(&tool.id),
            Step::Commit(repo) if luck % 4 == 2 && may_be_unchanged(story.task(), repo) => {
                Command::RecordUnchanged { repo }
            }
            Step::Commit(repo) => commit_in(repo),
            Step::StopSandbox(sandbox, reason) => Command::RecordSandboxStopped { sandbox, reason },
            Step::Push(repo) => Command::RecordPush { repo, outcome: PushOutcome::Pushed },
            Step::OpenPullRequest(repo) if luck % 4 == 1 => {
                let opened = PullRequestOutcome::Omitted { reason: "there are none".into() };
                Command::RecordPullRequest { repo, opened, notes: vec![("labels".into(), "none".into())] }
            }
            Step::OpenPullRequest(repo) => opened(repo),
            Step::LinkPullRequest(repo) => Command::RecordLink { repo, notes: Vec::new() },
            Step::Report(repo, _) => Command::RecordReport { repo, notes: Vec::new() },
            Step::NextAttempt(..) => Command::NextAttempt { refund: NanoUsd::ZERO, until: now(), wait_ms: 1 },
            Step::Finish(ending) => Command::Finish { ending, refund: NanoUsd::ZERO },
        };
        match story.when(command) {
            Ok(_) => {}
            Err(Refusal::OverBudget | Refusal::OutOfCalls) => {
                let failure = failure(FailureCode::BudgetExceeded);
                story.when(Command::RecordFailure { failure, then: Then::GiveUp }).expect("over budget ends it");
            }
            Err(refusal) => panic!("the step {:?} led to {refusal}", story.next()),
        }
        let (held, _) = story.task().reserved();
        assert!(story.task().spent.cost + held <= NanoUsd::from_nanos(1_000), "over the cap");
    }
    panic!("no end after {:?}", &story.kinds[story.kinds.len() - 12..]);
}

proptest! {
    #[test]
    fn whatever_the_luck_every_task_ends_within_its_budget(harness in any::<bool>(), retry in 0..3, further in 0..3usize, luck in proptest::collection::vec(any::<(u8, u16)>(), 1..60)) {
        let workspace = if retry == 1 { Workspace::Fresh } else { Workspace::Same };
        let retry = (retry > 0).then_some(Attempts { most: 3, workspace });
        let story = drive(if harness { Harness::Codex } else { Harness::Builtin }, retry, further, &luck);
        let ends = story.kinds.iter().filter(|kind| ["succeeded", "failed", "cancelled"].contains(kind)).count();
        prop_assert_eq!(ends, 1);
        prop_assert_eq!(story.task().reserved().0, NanoUsd::ZERO);
        prop_assert!(story.task().current().is_none());
    }
}

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

fn with_setup() -> Story {
    let mut story = Story::working();
    let clone =
        Command::RecordClone { repo: 0, base: "main".into(), commit: oid('a'), sandbox: sandbox(), setup: true };
    story.when(clone).expect("cloned");
    story
}

#[test]
fn a_setup_comes_between_the_clone_and_the_machine_and_is_begun_once() {
    let mut story = with_setup();
    assert_eq!(story.next(), Step::SetUp(sandbox()));
    let start = || Command::RecordSetupStart { key: "k1".into(), sandbox: sandbox() };
    let started = story.when(start()).expect("started");
    assert!(matches!(&started[..], [TaskEvent::SetupStarted { repos, .. }] if repos.len() == 1), "{started:?}");
    // The next process goes on with it, and says nothing twice.
    assert_eq!(story.when(start()), Ok(Vec::new()));
    assert_eq!(story.next(), Step::SetUp(sandbox()));
    story.when(set_up(None)).expect("set up");
    assert_eq!(story.next(), Step::StartSandbox(sandbox()));
    assert_eq!(story.when(set_up(None)), Err(Refusal::MovedOn));
    story.when(Command::RecordSandbox { sandbox: sandbox(), start_ms: 40, image_digest: None }).expect("started");
    // A sandbox that is lost is started over the same disk, which has its setup.
    story.when(Command::RecordSandboxStopped { sandbox: sandbox(), reason: SandboxEnd::Lost }).expect("lost");
    assert_eq!(story.next(), Step::StartSandbox(sandbox()));
}

#[test]
fn a_setup_that_fails_ends_the_task_and_one_that_may_pass_is_done_again_but_not_for_ever() {
    let mut story = with_setup();
    let failed = failure(FailureCode::SetupFailed);
    story.when(set_up(Some((failed.clone(), Then::GiveUp)))).expect("recorded");
    assert_eq!(story.kinds[story.kinds.len() - 2..], ["setup-finished", "step-failed"]);
    assert_eq!(story.next(), Step::Finish(Ending::Failed(failed.clone())));

    let mut story = with_setup();
    for failures in 1..=3 {
        story.when(Command::RecordSetupStart { key: "k1".into(), sandbox: sandbox() }).expect("started");
        let again = Then::Retry { until: now(), wait_ms: 1 };
        story.when(set_up(Some((failed.clone(), again)))).expect("recorded");
        assert_eq!((story.task().failures, story.next()), (failures, Step::SetUp(sandbox())));
    }
    story.when(Command::Cancel { reason: None }).expect("cancelled");
    assert_eq!(story.when(set_up(None)), Err(Refusal::MovedOn));
    assert_eq!(story.next(), Step::Finish(Ending::Cancelled));
}

#[test]
fn an_attempt_in_the_same_workspace_has_its_setup() {
    let mut story = Story { task: None, kinds: Vec::new() };
    let retry = Some(Attempts { most: 2, workspace: Workspace::Same });
    story.when(Command::Create(Box::new(TaskSpec { retry, ..spec() }))).expect("created");
    story.when(Command::Claim { node: "n".into() }).expect("claimed");
    story.when(Command::Begin { now: now(), delivers: false }).expect("begun");
    let clone =
        Command::RecordClone { repo: 0, base: "main".into(), commit: oid('a'), sandbox: sandbox(), setup: true };
    story.when(clone).expect("cloned");
    story.when(set_up(None)).expect("set up");
    let failed = failure(FailureCode::NetworkDropped);
    story.when(Command::RecordFailure { failure: failed, then: Then::GiveUp }).expect("failed");
    assert!(matches!(story.next(), Step::NextAttempt(_, Workspace::Same)));
    story.when(Command::NextAttempt { refund: NanoUsd::ZERO, until: now(), wait_ms: 1 }).expect("left");
    story.when(Command::Begin { now: now(), delivers: false }).expect("begun");
    assert_eq!(story.next(), Step::StartSandbox(sandbox()));
}

fn usage_of(sandbox: SandboxId) -> Command {
    let limits = SandboxLimits { cpus: 2.0, memory_bytes: 1, pids: 1, disk_bytes: 1 };
    Command::RecordSandboxUsage(Box::new(SandboxUsage {
        sandbox,
        cpu_ms: 1,
        cpus_used: None,
        memory_bytes: 1,
        memory_peak_bytes: 1,
        pids: 1,
        disk_bytes: 1,
        oom_kills: 0,
        egress: None,
        limits,
    }))
}

#[test]
fn samples_change_no_plan_and_come_to_an_end() {
    let mut story = Story::asked(1);
    let next = story.next();
    let other = SandboxId::from_uuid(Uuid::from_u128(77));
    assert_eq!(story.when(usage_of(other)), Err(Refusal::MovedOn), "of another sandbox");
    for _ in 0..MAX_SAMPLES + 5 {
        story.when(usage_of(sandbox())).expect("taken or passed over");
    }
    assert_eq!(story.kinds.iter().filter(|kind| **kind == "sandbox-usage").count(), MAX_SAMPLES as usize);
    assert_eq!(story.next(), next);
    let entry = Command::RecordOperatorEntry {
        sandbox: sandbox(),
        at: now(),
        operator: "ada".into(),
        how: OperatorEntry::Shell,
        program: "sh".into(),
    };
    story.when(entry).expect("whatever the plan is");
    assert_eq!(story.next(), next);
}

#[test]
fn the_last_sample_comes_with_the_end_of_the_sandbox() {
    let mut story = Story::asked(1);
    story.when(reply(1, vec![text("Done.")], StopReason::EndTurn)).expect("reply");
    story.when(commit()).expect("commit");
    let Command::RecordSandboxUsage(last) = usage_of(sandbox()) else { panic!("a sample") };
    let end = |last| Command::RecordSandboxEnd { sandbox: sandbox(), reason: SandboxEnd::Finished, last };
    story.when(end(Some(last.clone()))).expect("stopped");
    assert_eq!(story.kinds[story.kinds.len() - 2..], ["sandbox-usage", "sandbox-stopped"]);
    assert_eq!(story.when(end(Some(last))), Err(Refusal::MovedOn));
}
