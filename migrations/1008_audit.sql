-- The audit: one row per task, per act and per refused act. What a task has cost stands in its own row and is not
-- copied; what is here is who did it, from where, to what, and what became of it.
CREATE TABLE audit (
    id         BLOB    NOT NULL PRIMARY KEY, -- 16 bytes: the task's UUID, or the event's
    at         INTEGER NOT NULL,             -- microseconds since 1970
    category   TEXT    NOT NULL,             -- task, act, refusal
    kind       TEXT    NOT NULL,             -- task, or what was done
    team       TEXT,                         -- whose; absent: the operators'
    project    TEXT,
    actor_kind TEXT    NOT NULL,
    actor      TEXT    NOT NULL,
    own        INTEGER NOT NULL,             -- 1: the actor is one of the team's, who may see where it came from
    name       TEXT,
    address    TEXT,
    user_agent TEXT,
    repos      TEXT,                         -- JSON: forge:owner/name of each
    model      TEXT,
    outcome    TEXT    NOT NULL,
    task       BLOB,                         -- the task that it concerns
    about      TEXT,
    count      INTEGER NOT NULL,             -- acts that it stands for
    stream     TEXT    NOT NULL,
    position   INTEGER NOT NULL              -- of the event
) STRICT, WITHOUT ROWID;

-- Pages are newest first; each filter has an index that is already in that order.
CREATE INDEX audit_by_time         ON audit (at, id);
CREATE INDEX audit_by_team         ON audit (team, at, id);
CREATE INDEX audit_by_team_project ON audit (team, project, at, id) WHERE project IS NOT NULL;
CREATE INDEX audit_by_team_kind    ON audit (team, kind, at, id);
CREATE INDEX audit_by_team_outcome ON audit (team, outcome, at, id);
CREATE INDEX audit_by_team_model   ON audit (team, model, at, id) WHERE model IS NOT NULL;
CREATE INDEX audit_by_kind         ON audit (kind, at, id);
CREATE INDEX audit_by_category     ON audit (category, at, id);
CREATE INDEX audit_by_project      ON audit (project, at, id) WHERE project IS NOT NULL;
CREATE INDEX audit_by_outcome      ON audit (outcome, at, id);
CREATE INDEX audit_by_model        ON audit (model, at, id) WHERE model IS NOT NULL;
CREATE INDEX audit_by_actor        ON audit (actor, at, id);
CREATE INDEX audit_by_task         ON audit (task, at, id) WHERE task IS NOT NULL;

-- The repositories of each row, in the same order.
CREATE TABLE audit_repos (
    repo_path TEXT    NOT NULL, -- owner/name
    at        INTEGER NOT NULL,
    id        BLOB    NOT NULL,
    repo      TEXT    NOT NULL, -- forge:owner/name
    PRIMARY KEY (repo_path, at, id, repo)
) STRICT, WITHOUT ROWID;

-- Whose keys and people are whose, as far as the log has said.
CREATE TABLE audit_actors (
    actor TEXT NOT NULL,
    team  TEXT NOT NULL,
    PRIMARY KEY (actor, team)
) STRICT, WITHOUT ROWID;

-- A task's row is written from the task as it stood then, so that all are folded anew together.
DELETE FROM usage;
DELETE FROM tasks;
DELETE FROM campaigns;
UPDATE checkpoints SET position = 0, skipped = 0;
INSERT INTO checkpoints (projection, position) VALUES ('audit', 0);
