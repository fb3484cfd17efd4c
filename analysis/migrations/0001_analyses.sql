-- Ids and digests are raw bytes, times are Unix milliseconds. What is only ever read as a whole is JSON.

CREATE TABLE analysis (
    id               INTEGER PRIMARY KEY,
    data_id          BLOB    NOT NULL UNIQUE CHECK (length(data_id) = 16),
    -- 0 queued, 1 running, 2 done, 3 cancelled.
    state            INTEGER NOT NULL CHECK (state BETWEEN 0 AND 3),
    cancel_requested INTEGER NOT NULL DEFAULT 0 CHECK (cancel_requested IN (0, 1)),
    blob             TEXT    NOT NULL,
    md5              BLOB,
    sha1             BLOB,
    sha256           BLOB,
    sha512           BLOB,
    queued_ms        INTEGER NOT NULL,
    started_ms       INTEGER,
    finished_ms      INTEGER,
    sanitized_blob   TEXT,
    submission       TEXT    NOT NULL,
    result           TEXT,
    CHECK ((state >= 2) = (result IS NOT NULL))
) STRICT;

-- Few rows at any time, so that the sweep and the count never walk over what is finished.
CREATE INDEX analysis_unfinished ON analysis (queued_ms, id) WHERE state < 2;
CREATE INDEX analysis_blob ON analysis (blob);
-- Eight bytes of a digest tell files apart as well as all of it, in a fraction of the space; a look-up compares both:
-- WHERE substr(sha256, 1, 8) = substr($1, 1, 8) AND sha256 = $1.
CREATE INDEX analysis_md5 ON analysis (substr(md5, 1, 8)) WHERE md5 IS NOT NULL;
CREATE INDEX analysis_sha1 ON analysis (substr(sha1, 1, 8)) WHERE sha1 IS NOT NULL;
CREATE INDEX analysis_sha256 ON analysis (substr(sha256, 1, 8)) WHERE sha256 IS NOT NULL;
CREATE INDEX analysis_sha512 ON analysis (substr(sha512, 1, 8)) WHERE sha512 IS NOT NULL;

CREATE TABLE nested (
    id      INTEGER PRIMARY KEY,
    data_id BLOB    NOT NULL UNIQUE CHECK (length(data_id) = 16),
    root    BLOB    NOT NULL REFERENCES analysis (data_id),
    parent  BLOB    NOT NULL CHECK (length(parent) = 16),
    ordinal INTEGER NOT NULL CHECK (ordinal >= 0),
    path    TEXT    NOT NULL,
    blob    TEXT,
    md5     BLOB,
    sha1    BLOB,
    sha256  BLOB,
    sha512  BLOB,
    result  TEXT    NOT NULL,
    -- Also the order in which a container is paged.
    UNIQUE (parent, ordinal)
) STRICT;

CREATE INDEX nested_root ON nested (root);
CREATE INDEX nested_blob ON nested (blob) WHERE blob IS NOT NULL;
CREATE INDEX nested_md5 ON nested (substr(md5, 1, 8)) WHERE md5 IS NOT NULL;
CREATE INDEX nested_sha1 ON nested (substr(sha1, 1, 8)) WHERE sha1 IS NOT NULL;
CREATE INDEX nested_sha256 ON nested (substr(sha256, 1, 8)) WHERE sha256 IS NOT NULL;
CREATE INDEX nested_sha512 ON nested (substr(sha512, 1, 8)) WHERE sha512 IS NOT NULL;

CREATE TABLE task (
    id          INTEGER PRIMARY KEY,
    data_id     BLOB    NOT NULL UNIQUE CHECK (length(data_id) = 16),
    kind        TEXT    NOT NULL CHECK (kind = 'scan'),
    attempts    INTEGER NOT NULL,
    releases    INTEGER NOT NULL DEFAULT 0,
    enqueued_ms INTEGER NOT NULL,
    -- From when it may be leased: 0 when pushed, the end of the lease while leased, the end of the delay when given back.
    ready_ms    INTEGER NOT NULL DEFAULT 0,
    -- Both present while leased, and after the lease ended until somebody else takes the task.
    token       TEXT UNIQUE,
    worker      TEXT
) STRICT;

CREATE INDEX task_oldest ON task (enqueued_ms, id, ready_ms);

CREATE TABLE progress (
    data_id   BLOB    NOT NULL PRIMARY KEY CHECK (length(data_id) = 16),
    percent   INTEGER NOT NULL,
    last_file TEXT    NOT NULL
) STRICT, WITHOUT ROWID;
