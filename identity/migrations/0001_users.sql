CREATE TABLE user (
    -- Random, so that the users of a database made anew never see what others of the same number submitted.
    id   TEXT NOT NULL PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    role TEXT NOT NULL CHECK (role IN ('administrator', 'submitter'))
) STRICT, WITHOUT ROWID;

CREATE TABLE api_key (
    -- The key's hash; the key itself is nowhere.
    hash    BLOB NOT NULL PRIMARY KEY CHECK (length(hash) = 32),
    user_id TEXT NOT NULL REFERENCES user (id)
) STRICT, WITHOUT ROWID;
