-- Tables that others refer to are made anew and renamed: SQLite changes no constraint in place, and what refers to a table
-- follows its new name.

-- The operator's roles. The built-in ones are in the program.
CREATE TABLE role (
    name   TEXT NOT NULL PRIMARY KEY,
    -- Names of rights with commas.
    rights TEXT NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE user_next (
    -- Random, so that the users of a database made anew never see what others of the same number submitted.
    id              TEXT NOT NULL PRIMARY KEY,
    name            TEXT NOT NULL UNIQUE,
    role            TEXT NOT NULL,
    -- 0: before this was noted.
    created_ms      INTEGER NOT NULL,
    -- Argon2id in PHC's text form. NULL: no password, so nobody logs in by this name.
    password        TEXT,
    -- No login succeeds before.
    locked_until_ms INTEGER NOT NULL DEFAULT 0
) STRICT, WITHOUT ROWID;

CREATE TABLE api_key_next (
    -- The key's hash; the key itself is nowhere.
    hash       BLOB NOT NULL PRIMARY KEY CHECK (length(hash) = 32),
    user_id    TEXT NOT NULL REFERENCES user_next (id) ON DELETE CASCADE,
    -- sha256: of the key as text in lower case. blake3: an older build's; becomes sha256 when the key is next used.
    digest     TEXT NOT NULL CHECK (digest IN ('sha256', 'blake3')),
    -- By which people tell keys apart: how the key begins.
    prefix     TEXT NOT NULL,
    created_ms INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

INSERT INTO user_next (id, name, role, created_ms) SELECT id, name, role, 0 FROM user;
INSERT INTO api_key_next (hash, user_id, digest, prefix, created_ms)
    SELECT hash, user_id, 'blake3', 'old-' || lower(hex(substr(hash, 1, 4))), 0 FROM api_key;
DROP TABLE api_key;
DROP TABLE user;
ALTER TABLE user_next RENAME TO user;
ALTER TABLE api_key_next RENAME TO api_key;
CREATE INDEX api_key_of_user ON api_key (user_id);

-- Users that a start of the gateway made. One that was removed since is not made again.
CREATE TABLE first_user (
    name TEXT NOT NULL PRIMARY KEY
) STRICT, WITHOUT ROWID;
INSERT INTO first_user (name) SELECT name FROM user;

CREATE TABLE session (
    -- SHA-256 of the session's id as text in lower case.
    hash       BLOB NOT NULL PRIMARY KEY CHECK (length(hash) = 32),
    user_id    TEXT NOT NULL REFERENCES user (id) ON DELETE CASCADE,
    created_ms INTEGER NOT NULL,
    -- Of its last request, a little late.
    used_ms    INTEGER NOT NULL,
    -- Where the login came from; NULL: unknown.
    address    TEXT
) STRICT, WITHOUT ROWID;
CREATE INDEX session_of_user ON session (user_id, created_ms);

-- Wrong passwords of late, a row each.
CREATE TABLE login_failure (
    user_id TEXT NOT NULL REFERENCES user (id) ON DELETE CASCADE,
    at_ms   INTEGER NOT NULL
) STRICT;
CREATE INDEX login_failure_of_user ON login_failure (user_id, at_ms);

-- The passwords that a user had last, the present one included, as far as the policy wants them kept.
CREATE TABLE password_history (
    id       INTEGER PRIMARY KEY AUTOINCREMENT,
    user_id  TEXT NOT NULL REFERENCES user (id) ON DELETE CASCADE,
    password TEXT NOT NULL
) STRICT;
CREATE INDEX password_history_of_user ON password_history (user_id, id);

CREATE TABLE audit (
    id      INTEGER PRIMARY KEY AUTOINCREMENT,
    at_ms   INTEGER NOT NULL,
    -- change: of users, keys, roles. access: logins and the like. Each kind is bounded by itself, so that a flood of failed
    -- logins pushes no change out.
    kind    TEXT NOT NULL CHECK (kind IN ('change', 'access')),
    -- Who did it, to whom. Names as of then: the user may be gone.
    actor   TEXT NOT NULL,
    action  TEXT NOT NULL,
    object  TEXT NOT NULL,
    address TEXT,
    detail  TEXT NOT NULL
) STRICT;
CREATE INDEX audit_of_kind ON audit (kind, id);
