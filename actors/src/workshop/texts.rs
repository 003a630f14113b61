//! What a task's pull requests and commits are told about it.

use std::time::Duration;

use jiff::Timestamp;
use orchestra_events::TaskId;
use orchestra_events::blob::Content;
use orchestra_events::task::conversation::{Block, Turn};
use orchestra_events::task::state::Task;
use orchestra_runtime::texts::{Standing, TaskText};

/// The task as its texts speak of it, for its first repository. What depends on the repository or on what was committed
/// (its commits, its figures, the other pull requests) is the caller's to set.
pub(super) fn task_text(id: TaskId, task: &Task, standing: Standing) -> TaskText {
    let spec = &task.spec;
    let attempt = task.current();
    let wish = spec.pull_request.clone().unwrap_or_default();
    // The time is in the id: version 7 begins with its milliseconds. An id from an idempotency key tells none.
    let created = id.uuid().get_timestamp().map(|time| time.to_unix());
    let duration = created.map_or(Duration::ZERO, |(seconds, nanos)| {
        let now = Timestamp::now();
        let now = Duration::new(u64::try_from(now.as_second()).unwrap_or_default(), 0);
        now.saturating_sub(Duration::new(seconds, nanos))
    });
    TaskText {
        id,
        task: spec.task.clone(),
        model: spec.model.clone(),
        harness: spec.harness.as_str().to_owned(),
        team: spec.team.clone(),
        project: spec.project.clone(),
        task_type: spec.task_type.clone(),
        repo: spec.repo.to_string(),
        repo_index: 0,
        branch: spec.branch.clone(),
        base: attempt
            .and_then(|attempt| attempt.checkout.as_ref())
            .map(|checkout| checkout.base.clone())
            .or_else(|| spec.base.clone())
            .unwrap_or_default(),
        commits: Vec::new(),
        files: 0,
        insertions: 0,
        deletions: 0,
        cost: task.spent.cost,
        input_tokens: task.spent.usage.context(),
        output_tokens: task.spent.usage.output_tokens,
        duration,
        link: None,
        summary: attempt.and_then(|attempt| last_words(&attempt.conversation)),
        pull_requests: Vec::new(),
        attempt: task.attempt,
        requested_title: wish.title,
        requested_body: wish.body,
        standing,
    }
}

/// What the agent said last, where that is short enough to stand in the log itself.
fn last_words(conversation: &[Turn]) -> Option<String> {
    let blocks = conversation.iter().rev().find_map(|turn| match turn {
        Turn::Assistant(blocks) => Some(blocks),
        Turn::User(_) => None,
    })?;
    let words: Vec<&str> = blocks
        .iter()
        .filter_map(|block| match block {
            Block::Text { text: Content::Inline(text) } => Some(text.as_str()),
            Block::Text { text: Content::Blob(_) } | Block::Thinking { .. } | Block::ToolUse { .. } => None,
        })
        .collect();
    Some(words.join("\n\n")).filter(|words| !words.trim().is_empty())
}
