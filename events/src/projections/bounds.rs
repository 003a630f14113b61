//! Bounds of a key as a part of a query: what lies outside is not read, not counted and in no cursor.
//!
//! Names are compared by SQLite, patterns by the same code that judges a submission ([`Pattern::matches`]), as a function
//! of the reading connections: the two cannot differ, and no pattern takes longer than its length times the text's.

use std::fmt::Write as _;

use rusqlite::Connection;
use rusqlite::functions::{Context, FunctionFlags};
use rusqlite::types::{Value, ValueRef};

use crate::key::Bounds;
use crate::key::bounds::Pattern;

/// The expressions of a table that bounds are held against.
pub(super) struct Columns {
    /// The project's.
    pub project: &'static str,
    /// The environment's.
    pub environment: &'static str,
    /// The task type's.
    pub task_type: &'static str,
    /// The model's.
    pub model: &'static str,
    /// The repositories', where the table knows them: each a text, or a JSON list of texts, or NULL.
    pub repos: &'static [&'static str],
}

fn matches_all(context: &Context<'_>) -> rusqlite::Result<bool> {
    let odd = |error: serde_json::Error| rusqlite::Error::UserFunctionError(error.into());
    let patterns = context.get_or_create_aux(0, |value| -> Result<Vec<Pattern>, rusqlite::Error> {
        serde_json::from_str(value.as_str()?).map_err(odd)
    })?;
    let fits = |text: &str| patterns.iter().any(|pattern| pattern.matches(text));
    match context.get_raw(1) {
        ValueRef::Null => Ok(true),
        value => match value.as_str()? {
            list if list.starts_with('[') => {
                let texts: Vec<String> = serde_json::from_str(list).map_err(odd)?;
                Ok(texts.iter().all(|text| fits(text)))
            }
            text => Ok(fits(text)),
        },
    }
}

/// Teaches a connection `matches_all(patterns, text)`: whether the text, or each of a JSON list of texts, is of one of the
/// patterns, which are a JSON list. NULL is nothing, all of which fits.
pub(super) fn teach(connection: &Connection) -> rusqlite::Result<()> {
    let flags = FunctionFlags::SQLITE_UTF8 | FunctionFlags::SQLITE_DETERMINISTIC;
    connection.create_scalar_function("matches_all", 2, flags, matches_all)
}

/// Adds what keeps a query within bounds.
pub(super) fn narrow(sql: &mut String, values: &mut Vec<Value>, bounds: &Bounds, columns: &Columns) {
    let names = [
        (columns.project, &bounds.projects),
        (columns.environment, &bounds.environments),
        (columns.task_type, &bounds.task_types),
    ];
    for (column, allowed) in names {
        if allowed.is_empty() {
            continue;
        }
        let places = allowed.iter().map(|name| {
            values.push(Value::Text(name.clone()));
            format!("?{}", values.len())
        });
        let places = places.collect::<Vec<_>>().join(", ");
        // Writing to a String does not fail.
        let _ = write!(sql, " AND {column} IN ({places})");
    }
    let mut pattern = |column: &str, allowed: &[Pattern]| {
        if !allowed.is_empty() {
            let texts: Vec<_> = allowed.iter().map(Pattern::as_str).collect();
            values.push(Value::Text(serde_json::Value::from(texts).to_string()));
            let _ = write!(sql, " AND matches_all(?{}, {column})", values.len());
        }
    };
    pattern(columns.model, &bounds.models);
    for column in columns.repos {
        pattern(column, &bounds.repos);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::repo::RepoRef;
    use crate::task::event::{FurtherRepo, TaskEvent, TaskSpec};

    const COLUMNS: Columns = Columns {
        project: "project",
        environment: "environment",
        task_type: "task_type",
        model: "model",
        repos: &["repo", "further"],
    };

    fn name() -> impl Strategy<Value = Option<String>> {
        proptest::option::of(prop::sample::select(vec!["a".to_owned(), "b".to_owned(), "A".to_owned()]))
    }

    fn names() -> impl Strategy<Value = Vec<String>> {
        prop::collection::vec(prop::sample::select(vec!["a".to_owned(), "b".to_owned(), "c'\"%_".to_owned()]), 0..3)
    }

    fn repos() -> impl Strategy<Value = Vec<RepoRef>> {
        let texts = vec!["github:acme/api", "github:acme/API", "gitlab:acme/web", "github:other/a_b-c"];
        let repo = prop::sample::select(texts).prop_map(|text| RepoRef::parse(text, "github").expect("a repository"));
        prop::collection::vec(repo, 1..4)
    }

    fn patterns() -> impl Strategy<Value = Vec<Pattern>> {
        let texts = vec![
            "*",
            "github:*",
            "*:acme/api",
            "github:acme/*",
            "github:a?me/*",
            "github:[a]cme/*",
            "m*",
            "m-1",
            "*%*",
        ];
        let pattern = prop::sample::select(texts).prop_map(|text| text.parse().expect("a pattern"));
        prop::collection::vec(pattern, 0..3)
    }

    fn in_sql(spec: &TaskSpec, bounds: &Bounds) -> bool {
        let connection = Connection::open_in_memory().expect("a database");
        teach(&connection).expect("a function");
        connection
            .execute_batch(
                "CREATE TABLE t (project TEXT, environment TEXT, task_type TEXT, model TEXT, repo TEXT, further TEXT)",
            )
            .expect("a table");
        let further: Vec<_> = spec.further.iter().map(|further| further.repo.to_string()).collect();
        let further = (!further.is_empty()).then(|| serde_json::Value::from(further).to_string());
        let row = (&spec.project, &spec.environment, &spec.task_type, &spec.model, spec.repo.to_string(), further);
        connection.execute("INSERT INTO t VALUES (?1, ?2, ?3, ?4, ?5, ?6)", row).expect("a row");
        let (mut sql, mut values) = ("SELECT COUNT(*) FROM t WHERE 1 = 1".to_owned(), Vec::new());
        narrow(&mut sql, &mut values, bounds, &COLUMNS);
        connection.query_row(&sql, rusqlite::params_from_iter(values), |row| row.get::<_, i64>(0)).expect("a count")
            == 1
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(512))]

        /// What a list shows is what may be read: SQL and the bounds themselves never differ.
        #[test]
        fn a_list_is_as_narrow_as_a_look(
            project in name(), environment in name(), task_type in name(), repos in repos(),
            projects in names(), environments in names(), task_types in names(), allowed in patterns(), models in patterns(),
        ) {
            let TaskEvent::Created(spec) = crate::projections::tests::created() else { unreachable!("it creates") };
            let mut repos = repos.into_iter();
            let spec = TaskSpec {
                project, environment, task_type,
                model: "m-1".to_owned(),
                repo: repos.next().expect("at least one"),
                further: repos.map(|repo| FurtherRepo { repo, base: None, branch: "b".to_owned() }).collect(),
                ..*spec
            };
            let bounds = Bounds { projects, environments, task_types, repos: allowed, models, networks: Vec::new() };
            prop_assert_eq!(in_sql(&spec, &bounds), bounds.admits(&spec).is_ok(), "{:?} {:?}", spec, bounds);
        }
    }
}
