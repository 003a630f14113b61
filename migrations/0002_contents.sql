-- Words that may be forgotten: the private part of an event's data, beside the event.

-- SHA-256 of salt and private part, as events/src/store/chain.rs says; NULL where an event has no private part.
ALTER TABLE events ADD COLUMN seal BLOB;

-- A row for each event with a seal. Erasing empties the row and leaves it: a row that is deleted lets SQLite move its
-- neighbours between pages, and what it leaves behind when it moves a row is not overwritten.
CREATE TABLE contents (
    position INTEGER PRIMARY KEY,
    -- 32 bytes; NULL once erased.
    salt     BLOB,
    -- JSON, byte for byte as it was appended; NULL once erased.
    content  TEXT,
    CHECK ((salt IS NULL) = (content IS NULL))
) STRICT;
