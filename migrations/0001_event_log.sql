-- The event log: every event once, in the order in which it happened.

-- A stream gets its row together with its first event. A name never changes.
CREATE TABLE streams (
    id   INTEGER PRIMARY KEY,
    name TEXT    NOT NULL UNIQUE
) STRICT;

-- The log itself. Rows are only ever added, at the end, and positions have no gaps.
CREATE TABLE events (
    position  INTEGER PRIMARY KEY,
    stream_id INTEGER NOT NULL,
    revision  INTEGER NOT NULL,
    type      TEXT    NOT NULL,
    -- Id, schema, time, actor, correlation and causation, packed as events/src/store/packing.rs says.
    meta      BLOB    NOT NULL,
    -- The stream's link and the log's link, 32 bytes each, as events/src/store/chain.rs says.
    links     BLOB    NOT NULL,
    -- JSON, byte for byte as it was appended.
    data      TEXT    NOT NULL
) STRICT;

-- Where each stream's events are. Written in bulk, some thousand events late: with one leaf per stream in every
-- commit the index would cost more than the events. What it does not hold yet is in memory, found again on opening
-- by reading the events above the mark.
CREATE TABLE stream_index (
    stream_id INTEGER NOT NULL,
    revision  INTEGER NOT NULL,
    position  INTEGER NOT NULL,
    PRIMARY KEY (stream_id, revision)
) STRICT, WITHOUT ROWID;

-- Up to which position the index is complete.
CREATE TABLE stream_index_mark (
    one      INTEGER PRIMARY KEY CHECK (one = 1),
    position INTEGER NOT NULL
) STRICT;

INSERT INTO stream_index_mark (one, position) VALUES (1, 0);
