-- Verdicts of earlier scans. Rows come in the order of time; only the index on keys is touched all over.
CREATE TABLE verdict (
    id        INTEGER PRIMARY KEY,
    key       BLOB    NOT NULL UNIQUE CHECK (length(key) = 32),
    -- The hour in which it was last of use: the oldest go first, and being of use seldom costs a write.
    used_hour INTEGER NOT NULL,
    kept      TEXT    NOT NULL
) STRICT;

CREATE INDEX verdict_used ON verdict (used_hour, id);

-- Present if the analysis' members are those of another one: of an analysis or of a nested file that has records of its
-- own. `members_root` is that one's analysis, `members_path` its place therein.
ALTER TABLE analysis ADD COLUMN members_of BLOB CHECK (length(members_of) = 16);
ALTER TABLE analysis ADD COLUMN members_root BLOB CHECK (length(members_root) = 16);
ALTER TABLE analysis ADD COLUMN members_path TEXT;
CREATE INDEX analysis_members ON analysis (members_root) WHERE members_root IS NOT NULL;

-- What a running analysis is about to find out, and until when others wait for that.
ALTER TABLE analysis ADD COLUMN claim_key BLOB CHECK (length(claim_key) = 32);
ALTER TABLE analysis ADD COLUMN claim_until_ms INTEGER;
CREATE INDEX analysis_claim ON analysis (claim_key) WHERE claim_key IS NOT NULL AND state = 1;

-- Keys that all processes of the station share and nobody else has.
CREATE TABLE secret (
    name  TEXT NOT NULL PRIMARY KEY,
    value BLOB NOT NULL
) STRICT, WITHOUT ROWID;
