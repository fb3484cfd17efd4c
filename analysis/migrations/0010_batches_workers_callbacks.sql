-- Whose an analysis is, so that look-ups need not read what was submitted.
ALTER TABLE analysis ADD COLUMN user_id TEXT NOT NULL DEFAULT '';
UPDATE analysis SET user_id = coalesce(json_extract(submission, '$.principal.user_id'), '');

-- The batch that an analysis belongs to, its place there from 0 without gaps, its result, and the results that its rule lets
-- pass (JSON). Whatever folds into a batch's result is in the index alone.
ALTER TABLE analysis ADD COLUMN batch_id BLOB;
ALTER TABLE analysis ADD COLUMN batch_ordinal INTEGER;
ALTER TABLE analysis ADD COLUMN overall INTEGER;
ALTER TABLE analysis ADD COLUMN allowed_codes TEXT;
CREATE INDEX analysis_batch ON analysis (batch_id, batch_ordinal, state, overall, allowed_codes, started_ms, finished_ms)
    WHERE batch_id IS NOT NULL;

CREATE TABLE batch (
    id         INTEGER PRIMARY KEY,
    batch_id   BLOB    NOT NULL UNIQUE CHECK (length(batch_id) = 16),
    created_ms INTEGER NOT NULL,
    -- Absent while files are taken.
    closed_ms  INTEGER,
    cancelled  INTEGER NOT NULL DEFAULT 0 CHECK (cancelled IN (0, 1)),
    creation   TEXT    NOT NULL
) STRICT;
CREATE INDEX batch_created ON batch (created_ms);

-- From when a finished analysis is to be told to the URL that its submission names; absent once it was told or given up.
ALTER TABLE analysis ADD COLUMN callback_ms INTEGER;
ALTER TABLE analysis ADD COLUMN callback_attempts INTEGER NOT NULL DEFAULT 0;
CREATE INDEX analysis_callback ON analysis (callback_ms) WHERE callback_ms IS NOT NULL AND state >= 2;

-- Removal takes several steps; what is marked is unknown to every reader from the first one on.
ALTER TABLE analysis ADD COLUMN expired INTEGER NOT NULL DEFAULT 0;
CREATE INDEX analysis_expired ON analysis (id) WHERE expired = 1;
CREATE INDEX analysis_finished ON analysis (finished_ms) WHERE finished_ms IS NOT NULL AND expired = 0;

-- The last report of each scan worker (JSON).
CREATE TABLE worker (
    name        TEXT    NOT NULL PRIMARY KEY,
    reported_ms INTEGER NOT NULL,
    report      TEXT    NOT NULL
) STRICT, WITHOUT ROWID;
