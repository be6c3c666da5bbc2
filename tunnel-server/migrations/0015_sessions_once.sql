-- A device tells of a session until it hears that the record is on the disk, so it may tell of one twice. Each has a number in
-- its tunnel, and one record; devices of before give none.
CREATE UNIQUE INDEX audit_sessions_once ON audit (json_extract(body, '$.tunnel'), json_extract(body, '$.number'))
WHERE kind IN ('session.ended', 'session.refused') AND json_extract(body, '$.number') IS NOT NULL;
