//! The timeline: one row per event, as a sentence that somebody who never saw the code understands.

use jiff::Timestamp;
use orchestra_events::blob::Content;
use orchestra_events::task::TaskEvent;
use orchestra_events::task::conversation::{Block, StopReason};
use orchestra_events::task::egress::{EgressDecision, EgressVerdict};
use orchestra_events::task::event::{CredentialKind, ErasureReason, PushOutcome, SandboxEnd, ToolOutcome, Workspace};
use orchestra_events::task::resource::activity;
use orchestra_events::task::usage::OperatorEntry;
use orchestra_events::{Actor, ActorKind, Envelope, Failure, TaskId};
use serde::Serialize;
use serde_json::Value;

use super::format;
use super::prose::{self, Links};

/// Letters of an image's digest that are shown: its kind, and as many digits as other tools show.
const DIGEST_SHOWN: usize = 19;

/// Most of a text that a row shows, in bytes: a page of a thousand rows must stay a page.
pub const MAX_ROW_TEXT: usize = 16 * 1024;
/// Most of a tool's input that a row shows, in bytes.
pub const MAX_ROW_INPUT: usize = 4 * 1024;
/// Most hosts that a row names.
const MAX_ROW_HOSTS: usize = 8;

/// An event as the page shows it.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct TimelineRow {
    /// The revision; the row's id on the page is `e-REVISION`.
    pub revision: u64,
    /// The event's type.
    pub kind: String,
    /// How the row looks.
    pub tone: Tone,
    /// RFC 3339.
    pub time: String,
    /// `14:03:22`.
    pub clock: String,
    /// Who or what acts, in a word or two.
    pub label: String,
    /// What happened.
    pub sentence: String,
    /// Words of the model or of a person.
    pub prose: Vec<prose::Block>,
    /// What the model thought before it spoke.
    pub thinking: Option<Folded>,
    /// What a tool was given.
    pub input: Option<Folded>,
    /// What a tool answered.
    pub output: Option<Folded>,
    /// What went wrong.
    pub failure: Option<FailureBox>,
    /// Where to look further.
    pub link: Option<Link>,
}

/// The looks of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Tone {
    /// The machinery.
    Quiet,
    /// The model speaks.
    Model,
    /// A tool is used.
    Tool,
    /// A tool's answer, which belongs to the row above.
    Answer,
    /// A tool's answer that is bad news.
    AnswerBad,
    /// A person acts.
    Person,
    /// It went well.
    Good,
    /// It went wrong.
    Bad,
    /// It waits.
    Waiting,
}

/// Monospaced text that opens on demand.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Folded {
    /// What the closed text says.
    pub summary: String,
    /// The text.
    pub text: String,
    /// What is missing from it, in words.
    pub omitted: Option<String>,
    /// Where the whole of it is.
    pub whole: Option<String>,
    /// Whether it starts open.
    pub open: bool,
}

/// A failure, with what to do about it.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct FailureBox {
    /// The stable code.
    pub code: String,
    /// What happened.
    pub message: String,
    /// What to do.
    pub hint: String,
    /// The page about this code.
    pub href: String,
}

/// Connections to one host, in a sentence.
fn connections(decision: &EgressDecision) -> String {
    let EgressDecision { host, port, verdict, reason, count, bytes_in, bytes_out } = decision;
    let place = if host.is_empty() { "a host that it did not name".to_owned() } else { format!("{host}:{port}") };
    let moved = format!("{} in, {} out", format::bytes(*bytes_in), format::bytes(*bytes_out));
    let times = if *count > 1 { format!(" {} times", format::thousands(*count)) } else { String::new() };
    let because = reason.as_deref().map_or_else(String::new, |reason| format!(": {}", reason.replace('-', " ")));
    match verdict {
        EgressVerdict::Allowed if *count == 0 => format!("Done with {place} ({moved})."),
        EgressVerdict::Allowed if bytes_in + bytes_out == 0 => format!("Connected to {place}{times}."),
        EgressVerdict::Allowed => format!("Connected to {place}{times} ({moved})."),
        EgressVerdict::Refused => format!("Refused {place}{times}{because}."),
        EgressVerdict::Failed => format!("Could not reach {place}{times}{because}."),
    }
}

impl FailureBox {
    /// What a page says about a failure.
    pub fn new(failure: &Failure) -> Self {
        Self {
            code: failure.code.to_string(),
            message: failure.message.clone(),
            hint: failure.hint.clone(),
            href: format!("/docs/errors/{}", failure.code),
        }
    }
}

/// A link.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Link {
    /// Where it leads.
    pub href: String,
    /// What it says.
    pub text: String,
}

impl Link {
    /// A link to somewhere outside: only `https` and `http` are links, everything else stays away from the page.
    pub fn outside(href: &str, text: impl Into<String>) -> Option<Self> {
        let web = href.starts_with("https://") || href.starts_with("http://");
        web.then(|| Self { href: href.to_owned(), text: text.into() })
    }
}

/// Where the whole output of an event can be read.
pub fn output_path(task: TaskId, revision: u64) -> String {
    format!("/tasks/{task}/output/{revision}")
}

impl TimelineRow {
    /// Whether an event has a row of its own on a task's page: what is measured every few seconds has its meters there.
    pub fn shows(envelope: &Envelope) -> bool {
        &*envelope.kind != "sandbox-usage"
    }

    /// The row of an event. An event that does not read as one gets a row that says so.
    pub fn of(task: TaskId, envelope: &Envelope) -> Self {
        let mut row = Self::blank(envelope.revision.0, &envelope.kind, envelope.time);
        match TaskEvent::decode(envelope) {
            Ok(Some(event)) => row.fill(task, &event, &envelope.actor),
            Ok(None) => row.say(Tone::Quiet, "Event", format!("An event of the newer type “{}”.", envelope.kind)),
            Err(error) => row.say(Tone::Bad, "Event", format!("An event that cannot be read: {error}")),
        }
        row
    }

    fn blank(revision: u64, kind: &str, time: Timestamp) -> Self {
        Self {
            revision,
            kind: kind.to_owned(),
            tone: Tone::Quiet,
            time: format::iso(time),
            clock: format::clock(time),
            label: String::new(),
            sentence: String::new(),
            prose: Vec::new(),
            thinking: None,
            input: None,
            output: None,
            failure: None,
            link: None,
        }
    }

    fn say(&mut self, tone: Tone, label: &str, sentence: impl Into<String>) {
        self.tone = tone;
        self.label = label.to_owned();
        self.sentence = sentence.into();
    }

    fn fill(&mut self, task: TaskId, event: &TaskEvent, actor: &Actor) {
        match event {
            TaskEvent::Created(_) => self.say(Tone::Person, who(actor), "Asked for this task."),
            TaskEvent::Queued {} => self.say(Tone::Quiet, "Queue", "Waiting for a free sandbox."),
            TaskEvent::Claimed { node } => self.say(Tone::Quiet, "Queue", format!("Taken by {node}.")),
            TaskEvent::AttemptStarted { attempt, deadline, delivers } => {
                let until = format::moment(*deadline);
                let what = if *delivers { " to deliver what was committed before" } else { "" };
                self.say(Tone::Quiet, "Attempt", format!("Attempt {attempt} began{what}; it may run until {until}."));
            }
            TaskEvent::Cloned { repo, base, commit, .. } => {
                self.say(Tone::Quiet, "Git", format!("Checked out {repo} at {base} ({}).", short(commit.as_str())));
            }
            TaskEvent::SetupStarted { repos, .. } => {
                let repos: Vec<_> = repos.iter().map(ToString::to_string).collect();
                self.say(Tone::Quiet, "Setup", format!("Running the setup script of {}.", repos.join(" and ")));
            }
            TaskEvent::SetupFinished { cached, done, exit_code, duration_ms, output, omitted_bytes, .. } => {
                let took = format::milliseconds(*duration_ms);
                let (tone, sentence) = match (cached, done, exit_code) {
                    (true, _, _) => (Tone::Quiet, format!("What the setup script makes was there: {took}.")),
                    (false, true, _) => (Tone::Good, format!("The setup script was done after {took}.")),
                    (false, false, Some(code)) => {
                        (Tone::Bad, format!("The setup script failed with exit code {code} after {took}."))
                    }
                    (false, false, None) => (Tone::Bad, format!("The setup failed after {took}.")),
                };
                self.say(tone, "Setup", sentence);
                self.output = output.as_ref().and_then(|output| {
                    folded("Output", output, *omitted_bytes, output_path(task, self.revision), !done)
                });
            }
            TaskEvent::SandboxStarted { image, start_ms, image_digest, .. } => {
                let took = format::milliseconds(*start_ms);
                let shown = |digest: &String| format!(" ({})", digest.chars().take(DIGEST_SHOWN).collect::<String>());
                let which = image_digest.as_ref().map_or_else(String::new, shown);
                self.say(Tone::Quiet, "Sandbox", format!("Sandbox with image {image}{which} up in {took}."));
            }
            TaskEvent::SandboxUsage(usage) => {
                let memory = format::bytes(usage.memory_bytes);
                let (cpu, pids) =
                    (format::milliseconds(usage.cpu_ms), format::count(usage.pids, "process", "processes"));
                self.say(Tone::Quiet, "Sandbox", format!("Uses {memory} of memory, {cpu} of CPU time, {pids}."));
            }
            TaskEvent::OperatorEntered { operator, how, program, .. } => {
                let how = match how {
                    OperatorEntry::Exec => format!("ran {program} in the sandbox"),
                    OperatorEntry::Shell => "opened a shell in the sandbox".to_owned(),
                };
                self.say(Tone::Person, "Operator", format!("{operator} {how}."));
            }
            TaskEvent::SandboxStopped { reason, .. } => self.say(Tone::Quiet, "Sandbox", sandbox_end(*reason)),
            TaskEvent::ModelCalled { model, reserved_nano_usd, .. } => {
                let reserved = format::usd(*reserved_nano_usd);
                self.say(Tone::Quiet, "Model", format!("Asked {model}, setting aside {reserved}."));
            }
            TaskEvent::TokensCharged { usage, cost_nano_usd, confirmed, .. } => {
                let read = format::thousands(usage.context());
                let written = format::thousands(usage.output_tokens);
                let cost = format::usd(*cost_nano_usd);
                let lost =
                    if *confirmed { "" } else { " The provider’s count was lost: the reservation was charged." };
                self.say(Tone::Quiet, "Cost", format!("{cost} for {read} tokens read and {written} written.{lost}"));
            }
            TaskEvent::Message { call, content, stop_reason } => {
                self.message(task, content, stop_reason.unwrap_or(StopReason::EndTurn));
                // A harness prints what its model says and what it says itself alike.
                if call.is_none() {
                    "Agent".clone_into(&mut self.label);
                }
            }
            TaskEvent::ModelCallFailed { failure, .. } => {
                self.say(Tone::Bad, "Model", "The model did not answer.");
                self.failure = Some(FailureBox::new(failure));
            }
            TaskEvent::CallRetried { attempt, class, wait_ms, .. } => {
                let wait = format::milliseconds(*wait_ms);
                self.say(
                    Tone::Waiting,
                    "Retry",
                    format!("Model call {attempt} failed ({class}). Trying again in {wait}."),
                );
            }
            TaskEvent::HarnessStarted { run, resumes } => {
                let how = if resumes.is_some() { ", going on with its session" } else { "" };
                self.say(Tone::Quiet, "Agent", format!("Run {run} of the agent’s program began{how}."));
            }
            TaskEvent::HarnessRead { offset, .. } => {
                self.say(Tone::Quiet, "Agent", format!("Read {} of what it says.", format::bytes(*offset)));
            }
            TaskEvent::HarnessFinished { run, exit_code, duration_ms, done } => {
                let (tone, took) = (if *done { Tone::Good } else { Tone::Bad }, format::milliseconds(*duration_ms));
                let how = exit_code.map_or_else(|| "was ended".to_owned(), |code| format!("ended with code {code}"));
                self.say(tone, "Agent", format!("Run {run} of the agent’s program {how} after {took}."));
            }
            TaskEvent::AttemptFailed { failure, attempt, workspace, wait_ms, .. } => {
                let wait = format::milliseconds(*wait_ms);
                let whence = match workspace {
                    Workspace::Fresh => "from the repository",
                    Workspace::Same => "in the same workspace",
                };
                let sentence = format!("Attempt {attempt} failed. Another one begins {whence} in {wait}.");
                self.say(Tone::Waiting, "Attempt", sentence);
                self.failure = Some(FailureBox::new(failure));
            }
            TaskEvent::RefundGranted { nano_usd, reason } => {
                let amount = format::usd(*nano_usd);
                self.say(Tone::Good, "Cost", format!("{amount} are not billed: the attempt failed with {reason}."));
            }
            TaskEvent::ToolCalled { name, input, .. } => {
                self.say(Tone::Tool, name, capitalised(&activity(name, input)));
                self.input = tool_input(name, input);
            }
            TaskEvent::ToolFinished { outcome, output, duration_ms, omitted_bytes, .. } => {
                let tone = if *outcome == ToolOutcome::Ok { Tone::Answer } else { Tone::AnswerBad };
                self.say(tone, "", tool_outcome(*outcome, *duration_ms));
                let open = *outcome != ToolOutcome::Ok;
                self.output = folded("Output", output, *omitted_bytes, output_path(task, self.revision), open);
            }
            TaskEvent::Steered { message } => {
                self.say(Tone::Person, who(actor), "Said to the agent:");
                self.prose = prose::read(format::head_of(message, MAX_ROW_TEXT).0, Links::AsText);
            }
            TaskEvent::Committed { repo, commit, message, files, insertions, deletions, .. } => {
                let place = repo.as_ref().map(|repo| format!(" in {repo}")).unwrap_or_default();
                let (id, files) = (short(commit.as_str()), format::count(u64::from(*files), "file", "files"));
                let title = message.lines().next().unwrap_or_default();
                self.say(
                    Tone::Good,
                    "Git",
                    format!("Committed {id}{place}: {title} ({files}, +{insertions} −{deletions})"),
                );
            }
            TaskEvent::Unchanged { repo } => self.say(Tone::Quiet, "Git", format!("Nothing was changed in {repo}.")),
            TaskEvent::Pushed { repo, branch, commit, outcome } => {
                let id = short(commit.as_str());
                self.say(
                    Tone::Good,
                    "Git",
                    match outcome {
                        PushOutcome::Pushed => format!("Pushed {id} to {branch} of {repo}."),
                        PushOutcome::AlreadyThere => format!("{branch} of {repo} holds {id} already."),
                    },
                );
            }
            TaskEvent::PullRequestOpened { repo, url, number, existed, .. } => {
                let what = if *existed { "Found the open" } else { "Opened" };
                self.say(Tone::Good, "Forge", format!("{what} pull request {number} in {repo}."));
                self.link = Link::outside(url, format!("Pull request {number}"));
            }
            TaskEvent::PullRequestOmitted { repo, reason } => {
                self.say(Tone::Quiet, "Forge", format!("No pull request in {repo}: {reason}"));
            }
            TaskEvent::PullRequestLinked { repo } => {
                self.say(Tone::Quiet, "Forge", format!("Linked the pull request in {repo} to the others."));
            }
            TaskEvent::ForgeNoted { repo, feature, detail } => {
                self.say(Tone::Waiting, "Forge", format!("Without {feature} in {repo}: {detail}"));
            }
            TaskEvent::Reported { repo } => {
                self.say(Tone::Quiet, "Forge", format!("Told the forge of {repo} how it ended."));
            }
            TaskEvent::EgressDecided { decisions, omitted } => {
                let refused = decisions.iter().any(|decision| decision.verdict == EgressVerdict::Refused);
                let tone = if refused { Tone::Waiting } else { Tone::Quiet };
                let mut told: Vec<String> = decisions.iter().take(MAX_ROW_HOSTS).map(connections).collect();
                let more = decisions.iter().skip(MAX_ROW_HOSTS).map(|decision| decision.count);
                let more = more.sum::<u64>().saturating_add(omitted.map_or(0, |rest| rest.count));
                if more > 0 {
                    told.push(format!("{} more.", format::count(more, "connection", "connections")));
                }
                self.say(tone, "Network", told.join(" "));
            }
            TaskEvent::StepFailed { failure } => {
                self.say(Tone::Bad, "Failure", "A step failed.");
                self.failure = Some(FailureBox::new(failure));
            }
            TaskEvent::RetryScheduled { failures, wait_ms, .. } => {
                let wait = format::milliseconds(*wait_ms);
                let row = if *failures > 1 { format!(" It failed {failures} times in a row.") } else { String::new() };
                self.say(Tone::Waiting, "Retry", format!("Trying again in {wait}.{row}"));
            }
            TaskEvent::CredentialsRequired { missing, failure } => {
                self.say(Tone::Waiting, "Credentials", format!("Waiting for {}.", credentials(missing)));
                // The step that failed says it in full, one row further up.
                self.link = failure.as_ref().map(|failure| Link {
                    href: format!("/docs/errors/{}", failure.code),
                    text: failure.code.to_string(),
                });
            }
            TaskEvent::CredentialsSupplied { supplied, .. } => {
                self.say(Tone::Person, who(actor), format!("Supplied {}.", credentials(supplied)));
            }
            TaskEvent::CancelRequested { reason } => {
                let because = reason.as_ref().map_or_else(String::new, |reason| format!(" {reason}"));
                self.say(Tone::Person, who(actor), format!("Asked to stop.{because}"));
            }
            TaskEvent::Cancelled {} => self.say(Tone::Waiting, "Task", "Cancelled."),
            TaskEvent::Failed { failure, attempt } => {
                self.say(Tone::Bad, "Task", format!("Failed in attempt {attempt}."));
                self.failure = Some(FailureBox::new(failure));
            }
            TaskEvent::Succeeded {} => self.say(Tone::Good, "Task", "Done."),
            TaskEvent::ContentErased { reason: ErasureReason::Request, .. } => {
                self.say(Tone::Person, who(actor), "Erased what was said and written.");
            }
            TaskEvent::ContentErased { reason: ErasureReason::Retention, .. } => {
                self.say(Tone::Quiet, "Retention", "What was said and written was old enough to be erased.");
            }
        }
    }

    fn message(&mut self, task: TaskId, content: &[Block], stop: StopReason) {
        let mut tools = Vec::new();
        for block in content {
            match block {
                Block::Text { text: Content::Inline(text) } => {
                    let (shown, omitted) = format::head_of(text, MAX_ROW_TEXT);
                    self.prose.extend(prose::read(shown, Links::AsText));
                    if omitted > 0 {
                        self.link =
                            Some(Link { href: output_path(task, self.revision), text: "Read it all".to_owned() });
                    }
                }
                Block::Text { text: Content::Blob(blob) } => {
                    let text = format!("Read all {}", format::bytes(blob.bytes));
                    self.link = Some(Link { href: output_path(task, self.revision), text });
                }
                Block::Thinking { text, .. } => {
                    self.thinking = folded("Thinking", text, 0, output_path(task, self.revision), false);
                }
                Block::ToolUse { name, .. } => tools.push(name.as_str()),
            }
        }
        let sentence = match stop {
            StopReason::MaxTokens => "The reply reached its output limit.".to_owned(),
            StopReason::Refusal => "The model declined.".to_owned(),
            StopReason::ContextWindow => "The conversation no longer fits into the model’s context.".to_owned(),
            StopReason::EndTurn | StopReason::ToolUse | StopReason::Pause if !self.prose.is_empty() => String::new(),
            StopReason::EndTurn | StopReason::ToolUse | StopReason::Pause if tools.is_empty() => {
                "Said nothing.".to_owned()
            }
            StopReason::EndTurn | StopReason::ToolUse | StopReason::Pause => format!("Uses {}.", tools.join(", ")),
        };
        let quiet = self.prose.is_empty() && self.link.is_none();
        self.say(if quiet { Tone::Quiet } else { Tone::Model }, "Model", sentence);
    }
}

fn who(actor: &Actor) -> &str {
    match (actor.kind, &actor.team) {
        (ActorKind::System, _) => "Orchestra",
        (ActorKind::ApiKey | ActorKind::Person, Some(team)) => team,
        (ActorKind::ApiKey, None) => "API key",
        (ActorKind::Person, None) => "Operator",
    }
}

/// The first digits of a commit, as git shows them.
pub fn short(commit: &str) -> &str {
    commit.get(..7).unwrap_or(commit)
}

/// The same words, beginning as a sentence does.
pub fn capitalised(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map_or_else(String::new, |first| first.to_uppercase().chain(letters).collect())
}

fn credentials(kinds: &[CredentialKind]) -> String {
    let names: Vec<_> = kinds
        .iter()
        .map(|kind| match kind {
            CredentialKind::Model => "a model key",
            CredentialKind::Git => "a git token",
        })
        .collect();
    names.join(" and ")
}

fn sandbox_end(end: SandboxEnd) -> &'static str {
    match end {
        SandboxEnd::Finished => "Sandbox stopped: the work is done.",
        SandboxEnd::Failed => "Sandbox stopped after the failure.",
        SandboxEnd::Cancelled => "Sandbox stopped as asked.",
        SandboxEnd::Lost => "The sandbox was lost.",
    }
}

fn tool_outcome(outcome: ToolOutcome, duration_ms: Option<u64>) -> String {
    let took = |word: &str| duration_ms.map_or_else(String::new, |ms| format!(" {word} {}", format::milliseconds(ms)));
    match outcome {
        ToolOutcome::Ok => format!("Done{}.", took("in")),
        ToolOutcome::Error => format!("Failed{}.", took("after")),
        ToolOutcome::TimedOut => format!("Ran out of time{}.", took("after")),
        ToolOutcome::OutOfMemory => format!("Ran out of memory{}.", took("after")),
        ToolOutcome::Interrupted => "Interrupted: its sandbox was lost.".to_owned(),
    }
}

/// What a tool was given beyond what the sentence says already.
fn tool_input(tool: &str, input: &Value) -> Option<Folded> {
    let field = |name: &str| input.get(name).and_then(Value::as_str);
    let text = match tool {
        "bash" => field("command").filter(|command| command.lines().count() > 1 || command.len() > 120)?.to_owned(),
        "read" | "glob" if input.as_object().is_some_and(|fields| fields.len() == 1) => return None,
        "write" => field("content").map_or_else(|| pretty(input), str::to_owned),
        _ => pretty(input),
    };
    let (shown, omitted) = format::head_of(&text, MAX_ROW_INPUT);
    Some(Folded {
        summary: "Input".to_owned(),
        text: shown.to_owned(),
        omitted: (omitted > 0).then(|| format!("{} more", format::bytes(omitted as u64))),
        whole: None,
        open: false,
    })
}

fn pretty(input: &Value) -> String {
    serde_json::to_string_pretty(input).unwrap_or_else(|_| input.to_string())
}

fn folded(what: &str, content: &Content, unprinted: u64, whole: String, open: bool) -> Option<Folded> {
    match content {
        Content::Inline(text) => {
            if text.trim().is_empty() && unprinted == 0 {
                return None;
            }
            let (shown, cut) = format::head_of(text, MAX_ROW_TEXT);
            let lines = format::count(text.lines().count() as u64, "line", "lines");
            let omitted = match (cut, unprinted) {
                (0, 0) => None,
                (0, bytes) => Some(format!("{} were not kept", format::bytes(bytes))),
                (cut, _) => Some(format!("{} more", format::bytes(cut as u64 + unprinted))),
            };
            let whole = (cut > 0).then_some(whole);
            Some(Folded { summary: format!("{what}, {lines}"), text: shown.to_owned(), omitted, whole, open })
        }
        Content::Blob(blob) => Some(Folded {
            summary: format!("{what}, {}", format::bytes(blob.bytes)),
            text: String::new(),
            omitted: Some("Too long for this page".to_owned()),
            whole: Some(whole),
            open,
        }),
    }
}

impl TimelineRow {
    /// Rows of every kind of event.
    pub fn samples() -> Vec<Self> {
        let task = super::sample::id();
        super::sample::envelopes().iter().map(|envelope| Self::of(task, envelope)).collect()
    }
}
