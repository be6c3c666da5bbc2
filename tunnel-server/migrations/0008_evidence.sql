-- SHA-256 of a tunnel's signed grant; none for tunnels of before.
ALTER TABLE tunnels ADD COLUMN grant_hash BLOB;

-- Sessions are looked up by themselves.
CREATE INDEX audit_sessions ON audit (seq) WHERE kind IN ('session.ended', 'session.refused');

-- What stands in place of the records that were dropped for their age: the last of them, and the signed statement.
CREATE TABLE audit_dropped (
    only INTEGER PRIMARY KEY CHECK (only = 1),
    last_seq INTEGER NOT NULL,
    statement BLOB NOT NULL
) STRICT;

DROP TRIGGER audit_is_not_deleted;
CREATE TRIGGER audit_is_not_deleted BEFORE DELETE ON audit
WHEN OLD.seq > coalesce((SELECT last_seq FROM audit_dropped), 0)
BEGIN SELECT RAISE(ABORT, 'audit records are not deleted'); END;
