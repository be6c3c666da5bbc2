-- What devices tell of times without a link: their own words, bounded in number for each.

CREATE TABLE outages (
    device TEXT NOT NULL,
    id INTEGER NOT NULL,
    started_at INTEGER NOT NULL,
    ended_at INTEGER NOT NULL,
    attempts INTEGER NOT NULL,
    starts INTEGER NOT NULL,
    causes TEXT NOT NULL,
    received_at INTEGER NOT NULL,
    PRIMARY KEY (device, id)
) STRICT;

CREATE INDEX outages_by_time ON outages (ended_at);
