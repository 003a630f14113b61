//! The texts that people meet on a forge: a pull request's title and body, a commit's message, a comment, a status line.
//!
//! Each is a minijinja template behind one function. An operator replaces one by a file of the same name in the folder
//! `texts` of `templates_dir`; [`Texts::open`] tries every template with every sample, so that a typo is met at the start
//! of the server and not at the end of a task. What a template sees is cleaned before ([`words`]); what it must not be
//! able to leave out or forge, the marker and the trailers, is supplied by code.

mod context;
#[cfg(test)]
mod tests;
mod words;

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use minijinja::value::{Serde, Value};
use minijinja::{AutoEscape, Environment, ErrorKind, UndefinedBehavior};
use orchestra_events::TaskId;

pub use context::{LinkedPullRequest, Standing, TaskText};
use words::{Place, break_marker, cut_bytes, cut_chars, one_line};

/// The steps a template may take. The largest built-in one takes a few thousand; a loop without an end takes them all.
pub const FUEL: u64 = 100_000;
/// Largest template, in bytes.
pub const MAX_TEMPLATE_BYTES: u64 = 64 * 1024;
/// What a template may write, in bytes, before what is too long is cut: a bound for memory.
const MAX_OUTPUT_BYTES: usize = 256 * 1024;
/// The longest title, in characters. GitHub takes 256, Bitbucket and GitLab 255.
pub const MAX_TITLE_CHARS: usize = 200;
/// The longest first line of a commit message, in characters: what git's own tools show of it.
pub const MAX_SUBJECT_CHARS: usize = 72;
/// The longest text of a pull request or comment, in bytes. GitHub takes 65,536 characters.
pub const MAX_BODY_BYTES: usize = 60_000;
/// The longest commit message, in bytes: beyond this nobody reads it, and hooks that do grow slow.
pub const MAX_MESSAGE_BYTES: usize = 16 * 1024;
/// The longest status line, in characters: GitHub takes 140.
pub const MAX_STATUS_CHARS: usize = 140;
/// Said where a text was too long.
const CUT: &str = "\n\n… (cut)";

/// A text that operators may replace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Text {
    /// A pull request's title.
    Title,
    /// Its body.
    Body,
    /// A commit's message.
    CommitMessage,
    /// What is said below the pull request when the task has ended.
    Comment,
    /// The line beside the light at the commit.
    Status,
}

impl Text {
    /// Every text.
    pub const ALL: [Self; 5] = [Self::Title, Self::Body, Self::CommitMessage, Self::Comment, Self::Status];

    /// The file's name, in the binary and in the operator's folder.
    pub const fn file(self) -> &'static str {
        match self {
            Self::Title => "pull_request_title.txt",
            Self::Body => "pull_request_body.md",
            Self::CommitMessage => "commit_message.txt",
            Self::Comment => "comment.md",
            Self::Status => "status.txt",
        }
    }

    const fn embedded(self) -> &'static str {
        match self {
            Self::Title => include_str!("../../templates/pull_request_title.txt"),
            Self::Body => include_str!("../../templates/pull_request_body.md"),
            Self::CommitMessage => include_str!("../../templates/commit_message.txt"),
            Self::Comment => include_str!("../../templates/comment.md"),
            Self::Status => include_str!("../../templates/status.txt"),
        }
    }

    const fn place(self) -> Place {
        match self {
            Self::Body | Self::Comment => Place::Markdown,
            Self::Title | Self::CommitMessage | Self::Status => Place::Plain,
        }
    }
}

/// Why an operator's templates are not used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TextError {
    /// The folder or a file in it cannot be read, or is too large.
    #[error("{path}: {reason}")]
    Unreadable {
        /// The folder or file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// A file whose name is none of ours: most likely a misspelt one, which would have no effect.
    #[error("{path}: no text has that name; known are {}", Text::ALL.map(Text::file).join(", "))]
    UnknownName {
        /// The file.
        path: PathBuf,
    },
    /// It does not parse.
    #[error("{path}:{line}: {reason}")]
    Syntax {
        /// The file.
        path: PathBuf,
        /// The line, counted from 1; 0 when it is not known.
        line: usize,
        /// What is wrong there.
        reason: String,
    },
    /// It parses and fails when it is tried: it names something unknown, does not end, or writes too much.
    #[error("{path}:{line}: {reason} (with the sample {sample:?})")]
    Render {
        /// The file.
        path: PathBuf,
        /// The line, counted from 1; 0 when it is not known.
        line: usize,
        /// What is wrong there.
        reason: String,
        /// The sample that it fails with.
        sample: &'static str,
    },
    /// It says nothing for a sample, where a forge or git wants words.
    #[error("{path}: says nothing (with the sample {sample:?})")]
    Empty {
        /// The file.
        path: PathBuf,
        /// The sample.
        sample: &'static str,
    },
}

/// What tells a pull request of ours from anybody else's: the task, and which of its repositories, counted from 0.
/// [`Texts::body`] and [`Texts::comment`] end with it; readers do not see it.
pub fn marker(task: TaskId, repo_index: usize) -> String {
    format!("<!-- {}{task} repo={repo_index} -->", words::MARKER_WORD)
}

/// The lines at the end of a commit's message that lead back to the task, as names and values.
pub fn trailers(task: &TaskText) -> Vec<(String, String)> {
    let value = |text: &str| words::clean_line(text, Place::Plain, 200);
    vec![("Orchestra-Task".to_owned(), task.id.to_string()), ("Orchestra-Model".to_owned(), value(&task.model))]
}

/// The texts, built in and replaced.
pub struct Texts {
    embedded: Environment<'static>,
    overrides: Environment<'static>,
    folder: Option<PathBuf>,
}

impl std::fmt::Debug for Texts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Texts").field("folder", &self.folder).finish_non_exhaustive()
    }
}

impl Default for Texts {
    /// The built-in texts.
    fn default() -> Self {
        let mut embedded = environment();
        for text in Text::ALL {
            embedded.add_template(text.file(), text.embedded()).expect("the built-in texts are tested to parse");
        }
        Self { embedded, overrides: environment(), folder: None }
    }
}

impl Texts {
    /// The texts, with those of `folder` in place of the built-in ones. A folder that is not there replaces none. Every
    /// template is tried with every sample; the first that fails is the error.
    pub fn open(folder: Option<&Path>) -> Result<Self, TextError> {
        let texts = Self::read(folder)?;
        match texts.check().into_iter().find_map(|tried| tried.outcome.err()) {
            Some(error) => Err(error),
            None => Ok(texts),
        }
    }

    /// The same, not tried yet: for [`check`](Self::check), which tells of every fault.
    pub fn read(folder: Option<&Path>) -> Result<Self, TextError> {
        let mut texts = Self::default();
        let Some(folder) = folder.filter(|folder| folder.exists()) else { return Ok(texts) };
        let unreadable = |path: &Path, reason: String| TextError::Unreadable { path: path.to_owned(), reason };
        let entries = std::fs::read_dir(folder).map_err(|error| unreadable(folder, error.to_string()))?;
        for entry in entries {
            let entry = entry.map_err(|error| unreadable(folder, error.to_string()))?;
            let (path, name) = (entry.path(), entry.file_name());
            let name = name.to_string_lossy();
            // What editors leave behind is not meant as a template.
            if name.starts_with('.') || name.ends_with('~') {
                continue;
            }
            let Some(text) = Text::ALL.into_iter().find(|text| text.file() == name) else {
                return Err(TextError::UnknownName { path });
            };
            let size = std::fs::metadata(&path).map_err(|error| unreadable(&path, error.to_string()))?.len();
            if size > MAX_TEMPLATE_BYTES {
                return Err(unreadable(&path, format!("larger than {MAX_TEMPLATE_BYTES} bytes")));
            }
            let source = std::fs::read_to_string(&path).map_err(|error| unreadable(&path, error.to_string()))?;
            texts.overrides.add_template_owned(text.file(), source).map_err(|error| TextError::Syntax {
                path,
                line: error.line().unwrap_or(0),
                reason: explain(&error),
            })?;
        }
        texts.folder = Some(folder.to_owned());
        Ok(texts)
    }

    /// Every template with every sample: what comes of it, or what is wrong.
    pub fn check(&self) -> Vec<Tried> {
        let samples = TaskText::samples();
        let mut tried = Vec::with_capacity(Text::ALL.len() * samples.len());
        for text in Text::ALL {
            for (sample, task) in &samples {
                tried.push(Tried { text, sample, outcome: self.try_one(text, sample, task) });
            }
        }
        tried
    }

    fn try_one(&self, text: Text, sample: &'static str, task: &TaskText) -> Result<String, TextError> {
        let overridden = self.overrides.get_template(text.file()).is_ok();
        let path = match &self.folder {
            Some(folder) if overridden => folder.join(text.file()),
            _ => PathBuf::from(text.file()),
        };
        let environment = if overridden { &self.overrides } else { &self.embedded };
        let rendered = render(environment, text, task).map_err(|error| TextError::Render {
            path: path.clone(),
            line: error.line().unwrap_or(0),
            reason: explain(&error),
            sample,
        })?;
        if rendered.trim().is_empty() {
            return Err(TextError::Empty { path, sample });
        }
        Ok(finish(text, task, &rendered))
    }

    /// The pull request's title: one line of at most [`MAX_TITLE_CHARS`].
    pub fn title(&self, task: &TaskText) -> String {
        self.text(Text::Title, task)
    }

    /// The pull request's body: Markdown of at most [`MAX_BODY_BYTES`] that ends with the [`marker`].
    pub fn body(&self, task: &TaskText) -> String {
        self.text(Text::Body, task)
    }

    /// The commit's message, without the [`trailers`]: a first line of at most [`MAX_SUBJECT_CHARS`], an empty line and
    /// the rest.
    pub fn commit_message(&self, task: &TaskText) -> String {
        self.text(Text::CommitMessage, task)
    }

    /// What is said below the pull request: Markdown of at most [`MAX_BODY_BYTES`] that ends with the [`marker`].
    pub fn comment(&self, task: &TaskText) -> String {
        self.text(Text::Comment, task)
    }

    /// The line beside the light at the commit, of at most [`MAX_STATUS_CHARS`].
    pub fn status(&self, task: &TaskText) -> String {
        self.text(Text::Status, task)
    }

    /// A template that was tried at the start and fails all the same is not to cost a task its pull request: the built-in
    /// one steps in.
    fn text(&self, text: Text, task: &TaskText) -> String {
        if self.overrides.get_template(text.file()).is_ok() {
            match render(&self.overrides, text, task) {
                Ok(rendered) => return finish(text, task, &rendered),
                Err(error) => {
                    tracing::error!(
                        template = text.file(),
                        error = explain(&error),
                        "operator text failed; the built-in one is used"
                    );
                }
            }
        }
        let rendered = render(&self.embedded, text, task).unwrap_or_else(|error| {
            tracing::error!(template = text.file(), error = explain(&error), "a built-in text failed; report this");
            String::new()
        });
        finish(text, task, &rendered)
    }
}

/// One template tried with one sample.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tried {
    /// Which text.
    pub text: Text,
    /// Which sample.
    pub sample: &'static str,
    /// What would be sent, or what is wrong.
    pub outcome: Result<String, TextError>,
}

fn environment() -> Environment<'static> {
    let mut environment = Environment::new();
    environment.set_undefined_behavior(UndefinedBehavior::Strict);
    environment.set_fuel(Some(FUEL));
    // None of these is HTML by itself; what could act as such in Markdown is taken out of the values.
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    environment.add_filter("first_line", |text: String| {
        one_line(text.lines().find(|line| !line.trim().is_empty()).unwrap_or(""))
    });
    environment.add_filter("cut", |text: String, most: usize| cut_chars(&text, most));
    environment.add_filter("quote", |text: String| {
        text.lines().map(|line| format!("> {line}").trim_end().to_owned()).collect::<Vec<_>>().join("\n")
    });
    environment
}

fn explain(error: &minijinja::Error) -> String {
    match error.kind() {
        ErrorKind::OutOfFuel => format!("it does not end within {FUEL} steps"),
        ErrorKind::WriteFailure => format!("it writes more than {MAX_OUTPUT_BYTES} bytes"),
        kind => error.detail().map_or_else(|| kind.to_string(), |detail| format!("{kind}: {detail}")),
    }
}

/// Writes up to a bound, and fails there.
struct Bounded(Vec<u8>);

impl Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.0.len() + bytes.len() > MAX_OUTPUT_BYTES {
            return Err(io::Error::other("too long"));
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn render(environment: &Environment<'static>, text: Text, task: &TaskText) -> Result<String, minijinja::Error> {
    let mut out = Bounded(Vec::new());
    let view = task.view(text.place());
    environment.get_template(text.file())?.render_captured_to(Value::from(Serde(view)), &mut out)?;
    Ok(String::from_utf8_lossy(&out.0).into_owned())
}

/// Brings what a template wrote into the shape that git and every forge take.
fn finish(text: Text, task: &TaskText, rendered: &str) -> String {
    let rendered = break_marker(rendered);
    let otherwise = |text: String| if text.is_empty() { format!("Orchestra task {}", task.id) } else { text };
    match text {
        Text::Title => cut_chars(&otherwise(one_line(&rendered)), MAX_TITLE_CHARS),
        Text::Status => cut_chars(&otherwise(one_line(&rendered)), MAX_STATUS_CHARS),
        Text::CommitMessage => {
            let rendered = rendered.trim();
            let (subject, rest) = rendered.split_once('\n').unwrap_or((rendered, ""));
            let subject = cut_chars(&otherwise(one_line(subject)), MAX_SUBJECT_CHARS);
            let rest = collapse(rest);
            if rest.is_empty() {
                return subject;
            }
            let room = MAX_MESSAGE_BYTES - subject.len() - 2;
            format!("{subject}\n\n{}", shorten(&rest, room))
        }
        Text::Body | Text::Comment => {
            let marker = marker(task.id, task.repo_index);
            let room = MAX_BODY_BYTES - marker.len() - 2;
            format!("{}\n\n{marker}", shorten(&otherwise(collapse(&rendered)), room))
        }
    }
}

fn shorten(text: &str, most: usize) -> String {
    if text.len() <= most {
        return text.to_owned();
    }
    format!("{}{CUT}", cut_bytes(text, most - CUT.len()).trim_end())
}

/// No white space at the ends, and no more than one empty line in a row: templates leave many behind.
fn collapse(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut empty = 0;
    for line in text.trim().lines() {
        // Two spaces at the end of a line break it in Markdown; more say nothing.
        if line.trim().is_empty() {
            empty += 1;
            continue;
        }
        if !out.is_empty() {
            out.push_str(if empty > 0 { "\n\n" } else { "\n" });
        }
        empty = 0;
        out.push_str(line);
    }
    out
}
