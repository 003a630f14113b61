-- The read models: folded from the log, thrown away and folded again at will.

-- How far each projection has come. Written in the transaction that writes its rows.
CREATE TABLE checkpoints (
    projection TEXT    NOT NULL PRIMARY KEY,
    position   INTEGER NOT NULL,
    skipped    INTEGER NOT NULL DEFAULT 0
) STRICT, WITHOUT ROWID;

INSERT INTO checkpoints (projection, position) VALUES ('tasks', 0), ('usage', 0);

-- One row per task: what lists filter and sort by, and the whole resource as JSON.
CREATE TABLE tasks (
    id         BLOB    NOT NULL PRIMARY KEY, -- the UUID's 16 bytes
    created_at INTEGER NOT NULL,             -- microseconds since 1970
    team       TEXT    NOT NULL,
    project    TEXT,
    status     TEXT    NOT NULL,
    repo       TEXT    NOT NULL,             -- forge:owner/name
    repo_path  TEXT    NOT NULL,             -- owner/name
    model      TEXT    NOT NULL,
    customer   TEXT,
    campaign   TEXT,
    document   TEXT    NOT NULL
) STRICT, WITHOUT ROWID;

-- Lists are newest first; each filter that narrows well has an index that is already in that order.
CREATE INDEX tasks_by_creation ON tasks (created_at, id);
CREATE INDEX tasks_by_team     ON tasks (team, created_at, id);
CREATE INDEX tasks_by_project  ON tasks (team, project, created_at, id);
CREATE INDEX tasks_by_status   ON tasks (status, created_at, id);
CREATE INDEX tasks_by_repo     ON tasks (repo_path, created_at, id);
CREATE INDEX tasks_by_model    ON tasks (model, created_at, id);
CREATE INDEX tasks_by_customer ON tasks (customer, created_at, id) WHERE customer IS NOT NULL;
CREATE INDEX tasks_by_campaign ON tasks (campaign, created_at, id) WHERE campaign IS NOT NULL;

-- What was used, per day (UTC) and everything a bill may be split by. An absent part is the empty text.
CREATE TABLE usage (
    day                TEXT    NOT NULL, -- YYYY-MM-DD
    team               TEXT    NOT NULL,
    project            TEXT    NOT NULL,
    environment        TEXT    NOT NULL,
    task_type          TEXT    NOT NULL,
    model              TEXT    NOT NULL,
    customer           TEXT    NOT NULL,
    tasks              INTEGER NOT NULL, -- tasks created on that day
    input_tokens       INTEGER NOT NULL,
    output_tokens      INTEGER NOT NULL,
    cache_read_tokens  INTEGER NOT NULL,
    cache_write_tokens INTEGER NOT NULL,
    cost_nano_usd      INTEGER NOT NULL,
    PRIMARY KEY (day, team, project, environment, task_type, model, customer)
) STRICT, WITHOUT ROWID;
