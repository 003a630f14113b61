-- What was used becomes the lines of bills: by the day that the ledger recorded, on the bill of the month in which it
-- came, with the price by the team's plan beside the provider's. Folded anew from the log.
DROP TABLE usage;

CREATE TABLE usage (
    team                 TEXT    NOT NULL,
    period               TEXT    NOT NULL, -- YYYY-MM: the bill it stands on. Not its day's month: an adjustment
    day                  TEXT    NOT NULL, -- YYYY-MM-DD: the team's for money and tokens, that of UTC for the rest
    customer             TEXT    NOT NULL, -- an absent part is the empty text
    project              TEXT    NOT NULL,
    environment          TEXT    NOT NULL,
    task_type            TEXT    NOT NULL,
    model                TEXT    NOT NULL,
    tasks                INTEGER NOT NULL, -- tasks created
    input_tokens         INTEGER NOT NULL,
    output_tokens        INTEGER NOT NULL,
    cache_read_tokens    INTEGER NOT NULL,
    cache_write_tokens   INTEGER NOT NULL,
    cost_nano_usd        INTEGER NOT NULL,
    refunded_nano_usd    INTEGER NOT NULL,
    refunded_input       INTEGER NOT NULL, -- tokens of the charges that were reversed
    refunded_output      INTEGER NOT NULL,
    refunded_cache_read  INTEGER NOT NULL,
    refunded_cache_write INTEGER NOT NULL,
    sandbox_ms           INTEGER NOT NULL,
    billable_nano_usd    INTEGER NOT NULL, -- by the plan that goes for the day
    PRIMARY KEY (team, period, day, customer, project, environment, task_type, model)
) STRICT, WITHOUT ROWID;

CREATE INDEX usage_by_day ON usage (day, team);

-- The same, summed up by day and two or three of the parts that it is grouped by: a report of those reads some thousand
-- rows of these in place of all lines.
CREATE TABLE usage_sums (
    parts              TEXT    NOT NULL, -- the columns that `a`, `b` and `c` are of, with commas between them
    day                TEXT    NOT NULL,
    a                  TEXT    NOT NULL,
    b                  TEXT    NOT NULL,
    c                  TEXT    NOT NULL, -- empty where the parts are two
    tasks              INTEGER NOT NULL,
    input_tokens       INTEGER NOT NULL,
    output_tokens      INTEGER NOT NULL,
    cache_read_tokens  INTEGER NOT NULL,
    cache_write_tokens INTEGER NOT NULL,
    cost_nano_usd      INTEGER NOT NULL,
    refunded_nano_usd  INTEGER NOT NULL,
    sandbox_ms         INTEGER NOT NULL,
    billable_nano_usd  INTEGER NOT NULL,
    PRIMARY KEY (parts, day, a, b, c)
) STRICT, WITHOUT ROWID;

-- Model calls that money is set aside for: which day their end will count to.
CREATE TABLE usage_calls (
    call        BLOB NOT NULL PRIMARY KEY, -- the UUID's 16 bytes
    day         TEXT NOT NULL,
    project     TEXT NOT NULL,
    environment TEXT NOT NULL,
    task_type   TEXT NOT NULL,
    model       TEXT NOT NULL
) STRICT, WITHOUT ROWID;

-- Sandboxes that run.
CREATE TABLE usage_sandboxes (
    task       BLOB    NOT NULL,
    sandbox    BLOB    NOT NULL,
    started_at INTEGER NOT NULL, -- microseconds since 1970
    PRIMARY KEY (task, sandbox)
) STRICT, WITHOUT ROWID;

-- Each team's plans and closed months, folded from its stream.
CREATE TABLE billing (
    team     TEXT NOT NULL PRIMARY KEY,
    document TEXT NOT NULL
) STRICT, WITHOUT ROWID;

-- The tasks as well: a charge finds its customer among them, so they must not be ahead of it. Campaigns stay.
DELETE FROM tasks;
UPDATE checkpoints SET position = 0, skipped = 0 WHERE projection IN ('tasks', 'usage');
