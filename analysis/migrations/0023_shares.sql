-- Containers that several workers take apart together. A share lives as long as the scan that opened it.
CREATE TABLE share (
    id          INTEGER PRIMARY KEY,
    root        BLOB    NOT NULL UNIQUE CHECK (length(root) = 16),
    -- The part of the worker that has the analysis' task.
    lead        TEXT    NOT NULL,
    build       TEXT    NOT NULL,
    -- When the rule's time for the whole analysis is over; absent if it has none.
    deadline_ms INTEGER
) STRICT;

CREATE TABLE share_part (
    token    TEXT    NOT NULL PRIMARY KEY,
    share    INTEGER NOT NULL REFERENCES share (id) ON DELETE CASCADE,
    worker   TEXT    NOT NULL,
    -- The end of its lease.
    until_ms INTEGER NOT NULL,
    -- Its members were taken from it: its lease had ended.
    taken    INTEGER NOT NULL DEFAULT 0 CHECK (taken IN (0, 1)),
    -- What was found in its members (JSON), once all of them are recorded.
    result   TEXT
) STRICT, WITHOUT ROWID;
CREATE INDEX share_part_share ON share_part (share);

-- Which members each part has, by ordinal. Together they have no gaps and never overlap.
CREATE TABLE share_range (
    share INTEGER NOT NULL REFERENCES share (id) ON DELETE CASCADE,
    first INTEGER NOT NULL CHECK (first >= 0),
    count INTEGER NOT NULL CHECK (count > 0),
    part  TEXT    NOT NULL,
    PRIMARY KEY (share, first)
) STRICT, WITHOUT ROWID;
