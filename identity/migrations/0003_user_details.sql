-- What programs that administer users over REST know of them besides what logins need. The number is theirs; it is never
-- given twice, so that a late removal hits nobody else.
CREATE TABLE user_detail (
    number       INTEGER PRIMARY KEY AUTOINCREMENT,
    user_id      TEXT NOT NULL UNIQUE REFERENCES user (id) ON DELETE CASCADE,
    display_name TEXT NOT NULL DEFAULT '',
    email        TEXT NOT NULL DEFAULT '',
    description  TEXT NOT NULL DEFAULT ''
) STRICT;

INSERT INTO user_detail (user_id) SELECT id FROM user ORDER BY created_ms, name;

-- Every user has one, whoever makes it.
CREATE TRIGGER user_detail_of AFTER INSERT ON user BEGIN
    INSERT INTO user_detail (user_id) VALUES (new.id);
END;
