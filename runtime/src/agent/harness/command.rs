//! A command of the caller's own: told in its environment and on its standard input what to do, and with which model.

use super::reader::{Entry, Found};
use super::{HOME, PLACEHOLDER_KEY, PrepareError, Prepared, Run, set};

/// The longest prompt that is also put into the environment: the kernel takes 128 KiB for one variable with its name.
const MAX_VARIABLE_BYTES: usize = 120 * 1024;
/// Where the prompt lies as a file.
const TASK_FILE: &str = "/home/agent/.orchestra/task";

pub(super) fn prepare(run: &Run<'_>) -> Result<Prepared, PrepareError> {
    if run.command.first().is_none_or(String::is_empty) {
        return Err(PrepareError::NoCommand);
    }
    let v1 = format!("{}/v1", run.gateway);
    let mut env = set([
        ("HOME", HOME),
        ("ORCHESTRA_TASK_FILE", TASK_FILE),
        ("ORCHESTRA_MODEL", &run.model.model_id),
        ("ORCHESTRA_SESSION", run.resume.unwrap_or_default()),
        ("ANTHROPIC_BASE_URL", run.gateway),
        ("ANTHROPIC_API_KEY", PLACEHOLDER_KEY),
        ("OPENAI_BASE_URL", &v1),
        ("OPENAI_API_BASE", &v1),
        ("OPENAI_API_KEY", PLACEHOLDER_KEY),
    ]);
    // What does not fit into a variable is in the file and on the standard input like all others.
    if run.prompt.len() <= MAX_VARIABLE_BYTES && !run.prompt.contains('\0') {
        env.push(("ORCHESTRA_TASK".into(), run.prompt.to_owned()));
    }
    Ok(Prepared {
        files: vec![(TASK_FILE.into(), run.prompt.into())],
        argv: run.command.to_vec(),
        env,
        stdin: run.prompt.into(),
    })
}

/// Reads a line: an [`Entry`] in JSON, or words.
pub(super) fn read(line: &[u8], found: &mut Found) {
    let entry = serde_json::from_slice::<Entry>(line);
    match entry {
        Ok(Entry::Session(session)) => found.session(&session.into()),
        Ok(Entry::Message(said)) => found.message(said),
        Ok(Entry::ToolCalled { id, name, input }) => found.called(&id, &name, input),
        Ok(Entry::ToolFinished { id, ok, output }) => found.finished(&id, ok, output),
        Ok(Entry::Error(said)) => found.error(said),
        Err(_) => found.message(String::from_utf8_lossy(line).into_owned()),
    }
}
