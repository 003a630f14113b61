-- Tasks by everything that a key can be bound to, and by who asked for them. The table is made anew with the document
-- last, and with row numbers: a page of a table without them keeps a thousand bytes of a row at most and puts the rest of
-- every document on pages of its own. Folded anew from the log.
DROP TABLE tasks;

CREATE TABLE tasks (
    id                BLOB    NOT NULL PRIMARY KEY, -- the UUID's 16 bytes
    created_at        INTEGER NOT NULL,             -- microseconds since 1970
    team              TEXT    NOT NULL,
    project           TEXT,
    environment       TEXT,
    task_type         TEXT,
    status            TEXT    NOT NULL,
    repo              TEXT    NOT NULL,             -- forge:owner/name
    repo_path         TEXT    NOT NULL,             -- owner/name
    further           TEXT,                         -- the other repositories as a JSON list; NULL where there is one
    model             TEXT    NOT NULL,
    customer          TEXT,
    campaign          TEXT,
    cost_nano_usd     INTEGER NOT NULL,
    refunded_nano_usd INTEGER NOT NULL,
    created_by        TEXT,                         -- key_…, the id of a person, or campaign_…
    finished_at       INTEGER,                      -- microseconds since 1970; NULL while it goes on
    erased            INTEGER NOT NULL,             -- whether its words are
    document          TEXT    NOT NULL
) STRICT;

-- Lists are newest first. Each filter has an index that is already in that order, for one team and for all of them, so
-- that a page costs the same at any depth.
CREATE INDEX tasks_by_creation      ON tasks (created_at, id);
CREATE INDEX tasks_by_project       ON tasks (project, created_at, id) WHERE project IS NOT NULL;
CREATE INDEX tasks_by_status        ON tasks (status, created_at, id);
CREATE INDEX tasks_by_repo          ON tasks (repo_path, created_at, id);
CREATE INDEX tasks_by_model         ON tasks (model, created_at, id);
CREATE INDEX tasks_by_customer      ON tasks (customer, created_at, id) WHERE customer IS NOT NULL;
CREATE INDEX tasks_by_campaign      ON tasks (campaign, created_at, id) WHERE campaign IS NOT NULL;
CREATE INDEX tasks_by_team          ON tasks (team, created_at, id);
CREATE INDEX tasks_of_team_project  ON tasks (team, project, created_at, id);
CREATE INDEX tasks_of_team_status   ON tasks (team, status, created_at, id);
CREATE INDEX tasks_of_team_model    ON tasks (team, model, created_at, id);
CREATE INDEX tasks_of_team_customer ON tasks (team, customer, created_at, id) WHERE customer IS NOT NULL;
CREATE INDEX tasks_campaign_costs   ON tasks (campaign, cost_nano_usd, refunded_nano_usd) WHERE campaign IS NOT NULL;
CREATE INDEX tasks_by_creator       ON tasks (created_by, created_at, id) WHERE created_by IS NOT NULL;

-- They all begin again together: usage finds its task among the tasks.
DELETE FROM usage;
DELETE FROM campaigns;
UPDATE checkpoints SET position = 0, skipped = 0;
