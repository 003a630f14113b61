//! Tasks and events for template tests: every status, and words that would hurt if they were not escaped.

use jiff::Timestamp;
use orchestra_events::blob::{BlobRef, Content};
use orchestra_events::campaign::{
    CampaignRepo, CampaignResource, CampaignSpec, CampaignStatus, Limits, Progress, child_id,
};
use orchestra_events::projections::CampaignRow;
use orchestra_events::repo::RepoRef;
use orchestra_events::task::conversation::{Block, StopReason, Usage};
use orchestra_events::task::egress::{EgressDecision, EgressRest, EgressVerdict};
use orchestra_events::task::event::{
    Budget, CredentialKind, ErasureReason, Harness, PushOutcome, SandboxEnd, TaskEvent, TaskSpec, ToolOutcome,
    Workspace,
};
use orchestra_events::task::resource::PullRequest;
use orchestra_events::task::usage::{OperatorEntry, SandboxLimits, SandboxUsage, Traffic};
use orchestra_events::task::{TaskResource, TaskStatus};
use orchestra_events::{
    Actor, CallId, CampaignId, CommitId, Envelope, EventId, Failure, FailureCode, NanoUsd, Position, Revision,
    SandboxId, StreamName, TaskId,
};
use serde_json::json;
use uuid::Uuid;

/// Words that no page may pass on as markup.
pub const HOSTILE: &str = "<script>alert('x')</script><img src=x onerror=alert(1)>\"'&";

/// The id of the sample task.
pub fn id() -> TaskId {
    TaskId::from_uuid(Uuid::from_u128(0x0198_0000_0000_7000_8000_0000_0000_002a))
}

fn commit() -> CommitId {
    CommitId::try_from("9f3c2d1e".repeat(5)).expect("forty hexadecimal digits")
}

fn time() -> Timestamp {
    Timestamp::from_second(1_795_341_600).expect("a time within range")
}

/// What was asked for.
pub fn spec() -> TaskSpec {
    TaskSpec {
        repo: RepoRef::new("github", "acme/api").expect("a plain name"),
        task: format!("Bump the provider {HOSTILE}\nand update breaking calls"),
        model: HOSTILE.to_owned(),
        harness: Harness::Builtin,
        command: Vec::new(),
        retry: None,
        team: HOSTILE.to_owned(),
        project: Some("infra".to_owned()),
        environment: None,
        task_type: Some("dependency-upgrade".to_owned()),
        customer: Some(HOSTILE.to_owned()),
        budget: Budget { max_nano_usd: Some(NanoUsd::from_nanos(2_000_000_000)), max_tokens: Some(500_000) },
        base: Some(HOSTILE.to_owned()),
        branch: format!("orchestra/{HOSTILE}"),
        further: Vec::new(),
        pull_request: None,
        campaign: None,
        image: "default".to_owned(),
        egress: vec!["package-registries".to_owned()],
        timeout_seconds: 1_800,
        metadata: serde_json::Map::new(),
        request_hash: None,
        caller_brings_model_key: true,
        caller_brings_git_token: true,
    }
}

/// What a sandbox uses that has little left.
fn sandbox_usage() -> SandboxUsage {
    SandboxUsage {
        sandbox: SandboxId::from_uuid(Uuid::from_u128(2)),
        cpu_ms: 81_400,
        cpus_used: Some(1.62),
        memory_bytes: 1_990_000_000,
        memory_peak_bytes: 2_147_483_648,
        pids: 23,
        disk_bytes: 900_000_000,
        oom_kills: 1,
        egress: Some(Traffic { sent_bytes: 12_000, received_bytes: 48_000_000 }),
        limits: SandboxLimits { cpus: 2.0, memory_bytes: 2_147_483_648, pids: 512, disk_bytes: 10_737_418_240 },
    }
}

/// A task of every status.
pub fn tasks() -> Vec<TaskResource> {
    let failure = Failure::new(FailureCode::GitAuth, HOSTILE).with_hint(HOSTILE);
    TaskStatus::ALL
        .into_iter()
        .map(|status| TaskResource {
            id: id(),
            status,
            reason: HOSTILE.to_owned(),
            spec: spec(),
            usage: Usage { input_tokens: 12_000, output_tokens: 900, cache_read_tokens: 40_000, ..Usage::default() },
            cost: NanoUsd::from_nanos(421_700_000),
            refunded: NanoUsd::ZERO,
            open_calls: (!status.is_final())
                .then(|| (CallId::from_uuid(Uuid::from_u128(1)), NanoUsd::from_nanos(50_000_000)))
                .into_iter()
                .collect(),
            base: Some(HOSTILE.to_owned()),
            base_commit: Some(commit()),
            commits: vec![commit()],
            stat: Some((2, 12, 4)),
            diffs: Vec::new(),
            pull_requests: vec![
                PullRequest { repo: "github:acme/api".to_owned(), url: "https://example.com/7".to_owned(), number: 7 },
                PullRequest { repo: HOSTILE.to_owned(), url: "javascript:alert(1)".to_owned(), number: 8 },
            ],
            sandbox: None,
            sandbox_usage: Some(sandbox_usage()),
            attempt: 2,
            failure: (status != TaskStatus::Succeeded).then(|| (failure.clone(), 2)),
            created_by: None,
            created_at: time(),
            started_at: (status != TaskStatus::Queued).then(time),
            finished_at: status.is_final().then(time),
            erased_at: (status == TaskStatus::Cancelled).then(time),
            revision: Revision(9),
            position: Position(100),
        })
        .collect()
}

/// Campaigns of every status, with a repository more than they have tasks.
pub fn campaigns() -> Vec<CampaignRow> {
    let repo = |name: &str| CampaignRepo {
        repo: RepoRef::new("github", name).expect("a plain name"),
        base: None,
        branch: HOSTILE.to_owned(),
    };
    CampaignStatus::ALL
        .into_iter()
        .map(|status| CampaignRow {
            campaign: CampaignResource {
                id: CampaignId::from_uuid(id().uuid()),
                status,
                reason: HOSTILE.to_owned(),
                progress: Progress { waiting: 1, running: 2, succeeded: 3, failed: 1, cancelled: 0 },
                again: Vec::new(),
                created_at: time(),
                finished_at: (status == CampaignStatus::Finished).then(time),
                erased_at: (status == CampaignStatus::Cancelled).then(time),
                revision: Revision(9),
                position: Position(100),
            },
            spec: CampaignSpec {
                name: HOSTILE.to_owned(),
                template: spec(),
                repos: TaskStatus::ALL.map(|_| repo("acme/api")).into_iter().chain([repo("acme/web")]).collect(),
                budget: Budget { max_nano_usd: Some(NanoUsd::from_nanos(20_000_000_000)), max_tokens: None },
                limits: Limits { concurrency: 4, pull_requests_per_hour: None, stop_after_failures: Some(3) },
                request_hash: None,
            },
            cost: NanoUsd::from_nanos(4_217_000_000),
            refunded: NanoUsd::ZERO,
        })
        .collect()
}

/// The tasks of a sample campaign: one of every status.
pub fn children(row: &CampaignRow) -> Vec<TaskResource> {
    let child = |(index, task)| TaskResource { id: child_id(row.campaign.id, index), ..task };
    (0..).zip(tasks()).map(child).collect()
}

/// One event of every kind.
pub fn events() -> Vec<TaskEvent> {
    let call = CallId::from_uuid(Uuid::from_u128(1));
    let sandbox = SandboxId::from_uuid(Uuid::from_u128(2));
    let words = || HOSTILE.to_owned();
    let inline = |text: &str| Content::Inline(text.to_owned());
    let blob = BlobRef { sha256: "0".repeat(64), bytes: 90_000 };
    let failure = Failure::new(FailureCode::ModelOverloaded, HOSTILE).with_hint(HOSTILE);
    let repo = spec().repo;
    vec![
        TaskEvent::Created(Box::new(spec())),
        TaskEvent::Queued {},
        TaskEvent::Claimed { node: words() },
        TaskEvent::AttemptStarted { attempt: 1, deadline: time(), delivers: true },
        TaskEvent::Cloned { repo: repo.clone(), base: words(), commit: commit(), sandbox, setup: true },
        TaskEvent::SetupStarted { repos: vec![repo.clone()], key: words(), sandbox },
        TaskEvent::SetupFinished {
            key: words(),
            cached: true,
            done: true,
            exit_code: None,
            duration_ms: 4,
            output: None,
            omitted_bytes: 0,
        },
        TaskEvent::SetupFinished {
            key: words(),
            cached: false,
            done: false,
            exit_code: Some(1),
            duration_ms: 81_000,
            output: Some(inline(HOSTILE)),
            omitted_bytes: 90_000,
        },
        TaskEvent::SandboxStarted { sandbox, image: words(), start_ms: 84, image_digest: Some(words()) },
        TaskEvent::ModelCalled {
            call,
            model: words(),
            reserved_nano_usd: NanoUsd::from_nanos(50_000_000),
            reserved_tokens: 9_000,
            max_output_tokens: 4_096,
        },
        TaskEvent::TokensCharged {
            call,
            model: words(),
            usage: Usage { input_tokens: 5_000, output_tokens: 300, ..Usage::default() },
            cost_nano_usd: NanoUsd::from_nanos(19_500_000),
            confirmed: false,
            price: "sample".to_owned(),
            stop_reason: None,
        },
        TaskEvent::Message {
            call: Some(call),
            content: vec![
                Block::Thinking { text: inline(HOSTILE), signature: None },
                Block::Text {
                    text: inline(&format!("# {HOSTILE}\n\nSee `{HOSTILE}`.\n\n- {HOSTILE}\n\n```\n{HOSTILE}\n```")),
                },
                Block::ToolUse { id: "t1".to_owned(), name: words(), input: json!({}), malformed: None },
            ],
            stop_reason: Some(StopReason::ToolUse),
        },
        TaskEvent::Message {
            call: Some(call),
            content: vec![Block::Text { text: Content::Blob(blob.clone()) }],
            stop_reason: Some(StopReason::MaxTokens),
        },
        TaskEvent::ModelCallFailed { call, failure: failure.clone() },
        TaskEvent::CallRetried { call, attempt: 1, class: words(), wait_ms: 700 },
        TaskEvent::HarnessStarted { run: 2, resumes: Some(words()) },
        TaskEvent::HarnessRead { run: 2, offset: 4_096, session: Some(words()) },
        TaskEvent::HarnessFinished { run: 2, exit_code: Some(1), duration_ms: 81_000, done: false },
        TaskEvent::AttemptFailed {
            failure: failure.clone(),
            attempt: 1,
            workspace: Workspace::Same,
            until: time(),
            wait_ms: 30_000,
        },
        TaskEvent::RefundGranted { nano_usd: NanoUsd::from_nanos(19_500_000), reason: FailureCode::ModelOverloaded },
        TaskEvent::ToolCalled {
            tool_call: words(),
            name: "bash".to_owned(),
            input: json!({"command": format!("ls\n{HOSTILE}")}),
        },
        TaskEvent::ToolFinished {
            tool_call: words(),
            outcome: ToolOutcome::Error,
            output: inline(HOSTILE),
            duration_ms: Some(1_250),
            omitted_bytes: 12,
        },
        TaskEvent::ToolFinished {
            tool_call: words(),
            outcome: ToolOutcome::Ok,
            output: Content::Blob(blob.clone()),
            duration_ms: None,
            omitted_bytes: 0,
        },
        TaskEvent::Steered { message: words() },
        TaskEvent::Committed {
            repo: Some(repo.clone()),
            commit: commit(),
            commits: vec![commit(), commit()],
            tree: commit(),
            message: words(),
            subjects: vec![words()],
            files: 1,
            insertions: 3,
            deletions: 1,
            diff: blob,
        },
        TaskEvent::Pushed { repo: repo.clone(), branch: words(), commit: commit(), outcome: PushOutcome::Pushed },
        TaskEvent::Unchanged { repo: repo.clone() },
        TaskEvent::PullRequestOpened {
            repo: repo.clone(),
            url: "javascript:alert(1)".to_owned(),
            number: 7,
            existed: true,
            foreign: true,
        },
        TaskEvent::PullRequestOmitted { repo: repo.clone(), reason: words() },
        TaskEvent::PullRequestLinked { repo: repo.clone() },
        TaskEvent::ForgeNoted { repo: repo.clone(), feature: words(), detail: words() },
        TaskEvent::Reported { repo },
        TaskEvent::SandboxUsage(Box::new(sandbox_usage())),
        TaskEvent::OperatorEntered {
            sandbox,
            at: time(),
            operator: words(),
            how: OperatorEntry::Exec,
            program: words(),
        },
        TaskEvent::OperatorEntered {
            sandbox,
            at: time(),
            operator: words(),
            how: OperatorEntry::Shell,
            program: words(),
        },
        TaskEvent::SandboxStopped { sandbox, reason: SandboxEnd::Lost },
        TaskEvent::EgressDecided {
            decisions: vec![EgressDecision {
                host: words(),
                port: 443,
                verdict: EgressVerdict::Refused,
                reason: Some(words()),
                count: 3,
                bytes_in: 0,
                bytes_out: 12,
            }],
            omitted: Some(EgressRest { count: 4, bytes_in: 1, bytes_out: 2 }),
        },
        TaskEvent::StepFailed { failure: failure.clone() },
        TaskEvent::RetryScheduled { until: time(), failures: 2, wait_ms: 4_000 },
        TaskEvent::CredentialsRequired { missing: vec![CredentialKind::Git], failure: Some(failure.clone()) },
        TaskEvent::CredentialsSupplied { supplied: vec![CredentialKind::Git, CredentialKind::Model], deadline: None },
        TaskEvent::CancelRequested { reason: Some(words()) },
        TaskEvent::Cancelled {},
        TaskEvent::Failed { failure, attempt: 2 },
        TaskEvent::Succeeded {},
        TaskEvent::ContentErased { reason: ErasureReason::Request, events: 40 },
    ]
}

/// The same as a stream holds them, and one of a type that this version does not know.
pub fn envelopes() -> Vec<Envelope> {
    let envelope = |(revision, (kind, data)): (u64, (String, Box<serde_json::value::RawValue>))| Envelope {
        id: EventId(Uuid::from_u128(u128::from(revision))),
        kind: kind.into(),
        schema: 1,
        stream: StreamName::task(id()),
        revision: Revision(revision),
        position: Position(revision + 1),
        time: time(),
        actor: Actor::system("sample"),
        correlation: None,
        causation: None,
        data: data.into(),
        erased: false,
    };
    let raw = |text: &str| serde_json::value::RawValue::from_string(text.to_owned()).expect("JSON");
    let known = events().into_iter().map(|event| (event.kind().to_owned(), event.data().expect("events are JSON")));
    let odd = [("from-the-future".to_owned(), raw("{}")), ("committed".to_owned(), raw("{}"))];
    (0..).zip(known.chain(odd)).map(envelope).collect()
}

/// A diff.
pub const DIFF: &str = "diff --git a/main.tf b/main.tf\n--- a/main.tf\n+++ b/main.tf\n@@ -1,2 +1,2 @@\n context <script>\n-old <script>\n+new <script>\n";
