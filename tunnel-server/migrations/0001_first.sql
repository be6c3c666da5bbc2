-- Times are seconds since 1970 unless the name says otherwise. Ids, keys and hashes are raw bytes. Lists are JSON.

CREATE TABLE fleet (
    only INTEGER PRIMARY KEY CHECK (only = 1),
    trust_domain TEXT NOT NULL
) STRICT;

-- Each record holds the hash of the one before. Nothing is ever changed or deleted here.
CREATE TABLE audit (
    seq INTEGER PRIMARY KEY,
    time_millis INTEGER NOT NULL,
    kind TEXT NOT NULL,
    body TEXT NOT NULL,
    prev BLOB NOT NULL,
    hash BLOB NOT NULL
) STRICT;

CREATE TRIGGER audit_is_not_changed BEFORE UPDATE ON audit
BEGIN SELECT RAISE(ABORT, 'audit records are not changed'); END;

CREATE TRIGGER audit_is_not_deleted BEFORE DELETE ON audit
BEGIN SELECT RAISE(ABORT, 'audit records are not deleted'); END;

CREATE TABLE policies (
    revision INTEGER PRIMARY KEY,
    text TEXT NOT NULL,
    made_by TEXT NOT NULL,
    made_at INTEGER NOT NULL
) STRICT;

CREATE TABLE enrol_codes (
    secret_hash BLOB PRIMARY KEY,
    kind TEXT NOT NULL,
    ids TEXT NOT NULL,
    group_name TEXT,
    uses_left INTEGER NOT NULL CHECK (uses_left >= 0),
    expires_at INTEGER NOT NULL,
    replaces INTEGER NOT NULL
) STRICT;

CREATE TABLE certificates (
    serial BLOB PRIMARY KEY,
    identity TEXT NOT NULL,
    key_hash BLOB NOT NULL,
    -- The code that it was issued for; none for a renewal.
    code BLOB,
    chain_pem TEXT NOT NULL,
    issued_at INTEGER NOT NULL,
    not_after INTEGER NOT NULL
) STRICT;

CREATE INDEX certificates_by_key ON certificates (key_hash);
CREATE INDEX certificates_by_identity ON certificates (identity);

CREATE TABLE devices (
    id TEXT PRIMARY KEY,
    key_hash BLOB NOT NULL,
    enrolled_at INTEGER NOT NULL,
    cert_expires_at INTEGER NOT NULL,
    last_seen INTEGER,
    version TEXT,
    platform TEXT,
    services TEXT NOT NULL DEFAULT '[]',
    ssh_host_keys TEXT NOT NULL DEFAULT '[]',
    access INTEGER NOT NULL DEFAULT 0
) STRICT;

CREATE TABLE operators (
    name TEXT PRIMARY KEY,
    key_hash BLOB NOT NULL,
    enrolled_at INTEGER NOT NULL,
    cert_expires_at INTEGER NOT NULL
) STRICT;

CREATE TABLE memberships (
    kind TEXT NOT NULL,
    name TEXT NOT NULL,
    group_name TEXT NOT NULL,
    PRIMARY KEY (kind, name, group_name)
) STRICT, WITHOUT ROWID;

CREATE TABLE revoked_identities (
    identity TEXT PRIMARY KEY,
    revoked_at INTEGER NOT NULL
) STRICT;

CREATE TABLE revoked_keys (
    key_hash BLOB PRIMARY KEY,
    revoked_at INTEGER NOT NULL
) STRICT;

CREATE TABLE tunnels (
    id BLOB PRIMARY KEY,
    circuit BLOB NOT NULL UNIQUE,
    operator TEXT NOT NULL,
    holder_key BLOB NOT NULL,
    device TEXT NOT NULL,
    device_key BLOB NOT NULL,
    services TEXT NOT NULL,
    reason TEXT,
    source TEXT NOT NULL,
    policy_revision INTEGER NOT NULL,
    policies TEXT NOT NULL,
    state TEXT NOT NULL,
    opened_at INTEGER NOT NULL,
    expires_at INTEGER NOT NULL,
    ended_at INTEGER,
    end_code TEXT,
    ended_by TEXT,
    traffic TEXT
) STRICT;

CREATE INDEX tunnels_by_time ON tunnels (opened_at);
CREATE INDEX tunnels_alive ON tunnels (opened_at) WHERE state <> 'ended';

CREATE TABLE redeemed (
    token BLOB PRIMARY KEY,
    tunnel BLOB NOT NULL,
    role INTEGER NOT NULL,
    redeemed_at INTEGER NOT NULL
) STRICT;
