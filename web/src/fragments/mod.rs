//! The pieces of a page that also travel alone in the live streams: a timeline row, a task row, a budget bar.
//!
//! Each is a minijinja template behind one typed function, used by the page and by the stream alike, so that what is
//! pushed is what a reload would show. Operators may replace a template by a file of the same name in a folder of their
//! own; one that fails is logged and the embedded one is used instead, so that no typo can take the dashboard down.

pub mod rows;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::sync::Mutex;

use minijinja::value::{Serde, Value};
use minijinja::{Environment, UndefinedBehavior};
use serde::Serialize;

pub use rows::{BudgetBar, TaskRow};

use crate::pages::html::Html;
use crate::pages::timeline::TimelineRow;

/// The steps a template may take. The largest embedded row takes a few thousand; a loop without an end takes them all.
pub const FUEL: u64 = 200_000;
/// Largest override file, in bytes.
pub const MAX_TEMPLATE_BYTES: u64 = 256 * 1024;

/// A fragment that operators may replace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fragment {
    /// A row of the timeline.
    TimelineRow,
    /// A row of the task list.
    TaskRow,
    /// The bar of cost against budget.
    BudgetBar,
}

impl Fragment {
    /// Every fragment.
    pub const ALL: [Self; 3] = [Self::TimelineRow, Self::TaskRow, Self::BudgetBar];

    /// The file's name, in the binary and in the operator's folder.
    pub const fn file(self) -> &'static str {
        match self {
            Self::TimelineRow => "timeline_row.html",
            Self::TaskRow => "task_row.html",
            Self::BudgetBar => "budget_bar.html",
        }
    }

    const fn embedded(self) -> &'static str {
        match self {
            Self::TimelineRow => include_str!("../../templates/fragments/timeline_row.html"),
            Self::TaskRow => include_str!("../../templates/fragments/task_row.html"),
            Self::BudgetBar => include_str!("../../templates/fragments/budget_bar.html"),
        }
    }
}

/// Why an operator's template is not used.
#[derive(Debug, thiserror::Error)]
pub enum FragmentError {
    /// The file cannot be read, or is too large.
    #[error("{path}: {reason}")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// It does not parse, names something unknown, or does not come to an end.
    #[error("{0}")]
    Template(String),
}

/// The fragments, embedded and overridden.
pub struct Fragments {
    embedded: Environment<'static>,
    overrides: Option<Environment<'static>>,
    /// The last complaint about each override: a broken one is used on every row, and is to be logged once.
    complained: Mutex<[Option<String>; Fragment::ALL.len()]>,
}

impl std::fmt::Debug for Fragments {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Fragments").field("overridden", &self.overrides.is_some()).finish_non_exhaustive()
    }
}

fn environment() -> Environment<'static> {
    let mut environment = Environment::new();
    environment.set_undefined_behavior(UndefinedBehavior::Strict);
    environment.set_fuel(Some(FUEL));
    environment
}

impl Default for Fragments {
    fn default() -> Self {
        Self::embedded()
    }
}

impl Fragments {
    /// The embedded fragments alone.
    pub fn embedded() -> Self {
        let mut embedded = environment();
        for fragment in Fragment::ALL {
            embedded
                .add_template(fragment.file(), fragment.embedded())
                .expect("the embedded fragments are tested to parse");
        }
        Self { embedded, overrides: None, complained: Mutex::default() }
    }

    /// The fragments with those of `folder` in place of the embedded ones. What is wrong with the folder is logged
    /// and left out; [`check`](Self::check) tells it in full.
    pub fn with_overrides(folder: &Path) -> Self {
        let mut fragments = Self::embedded();
        let mut overrides = environment();
        for fragment in Fragment::ALL {
            let read = read_override(folder, fragment).and_then(|source| match source {
                Some(source) => overrides
                    .add_template_owned(fragment.file(), source)
                    .map_err(|error| FragmentError::Template(format!("{error:#}"))),
                None => Ok(()),
            });
            if let Err(error) = read {
                tracing::error!(template = fragment.file(), %error, "operator template ignored; the embedded one is used");
            }
        }
        fragments.overrides = Some(overrides);
        fragments
    }

    /// What is wrong with the templates of a folder, found by rendering each with its sample.
    pub fn check(folder: &Path) -> Vec<(Fragment, FragmentError)> {
        let mut wrong = Vec::new();
        for fragment in Fragment::ALL {
            let mut overrides = environment();
            let outcome = read_override(folder, fragment).and_then(|source| {
                let Some(source) = source else { return Ok(()) };
                let explain = |error: minijinja::Error| FragmentError::Template(format!("{error:#}"));
                overrides.add_template_owned(fragment.file(), source).map_err(explain)?;
                match fragment {
                    Fragment::TimelineRow => {
                        TimelineRow::samples().iter().try_for_each(|row| try_render(&overrides, fragment, row))
                    }
                    Fragment::TaskRow => {
                        TaskRow::samples().iter().try_for_each(|row| try_render(&overrides, fragment, row))
                    }
                    Fragment::BudgetBar => {
                        BudgetBar::samples().iter().try_for_each(|bar| try_render(&overrides, fragment, bar))
                    }
                }
                .map_err(explain)
            });
            if let Err(error) = outcome {
                wrong.push((fragment, error));
            }
        }
        wrong
    }

    /// A row of the timeline.
    pub fn timeline_row(&self, row: &TimelineRow) -> Html {
        self.render(Fragment::TimelineRow, row)
    }

    /// A row of the task list.
    pub fn task_row(&self, row: &TaskRow) -> Html {
        self.render(Fragment::TaskRow, row)
    }

    /// The bar of cost against budget.
    pub fn budget_bar(&self, bar: &BudgetBar) -> Html {
        self.render(Fragment::BudgetBar, bar)
    }

    fn render(&self, fragment: Fragment, context: &impl Serialize) -> Html {
        if let Some(template) = self.overrides.as_ref().and_then(|folder| folder.get_template(fragment.file()).ok()) {
            match template.render(Value::from(Serde(context))) {
                Ok(html) => return Html::from_template(html),
                Err(error) => self.complain(fragment, format!("{error:#}")),
            }
        }
        let rendered = self
            .embedded
            .get_template(fragment.file())
            .and_then(|template| template.render(Value::from(Serde(context))));
        Html::from_template(rendered.unwrap_or_else(|error| {
            tracing::error!(template = fragment.file(), %error, "an embedded fragment failed; report this");
            String::new()
        }))
    }

    fn complain(&self, fragment: Fragment, error: String) {
        let mut complained = self.complained.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let last = &mut complained[fragment as usize];
        if last.as_ref() != Some(&error) {
            tracing::error!(template = fragment.file(), error, "operator template failed; the embedded one is used");
            *last = Some(error);
        }
    }
}

fn try_render(
    environment: &Environment<'static>,
    fragment: Fragment,
    context: &impl Serialize,
) -> Result<(), minijinja::Error> {
    environment.get_template(fragment.file())?.render(Value::from(Serde(context))).map(|_| ())
}

fn read_override(folder: &Path, fragment: Fragment) -> Result<Option<String>, FragmentError> {
    let path = folder.join(fragment.file());
    let unreadable = |reason: String| FragmentError::Unreadable { path: path.clone(), reason };
    match std::fs::metadata(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(unreadable(error.to_string())),
        Ok(file) if file.len() > MAX_TEMPLATE_BYTES => {
            return Err(unreadable(format!("larger than {MAX_TEMPLATE_BYTES} bytes")));
        }
        Ok(_) => {}
    }
    std::fs::read_to_string(&path).map(Some).map_err(|error| unreadable(error.to_string()))
}
