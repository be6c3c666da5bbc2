-- How far each target of notifications has got in the audit chain.
CREATE TABLE notified (
    target TEXT PRIMARY KEY,
    seq INTEGER NOT NULL
) STRICT;

-- Notifications that were given up: what is sent once more when somebody asks for that.
CREATE TABLE dead_letters (
    target TEXT NOT NULL,
    seq INTEGER NOT NULL,
    record TEXT NOT NULL,
    tries INTEGER NOT NULL,
    error TEXT NOT NULL,
    given_up_at INTEGER NOT NULL,
    PRIMARY KEY (target, seq)
) STRICT;
