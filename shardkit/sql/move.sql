-- furniture --
-- What moves need on a server: where marks are written, and what refuses writes to a copy.
CREATE TABLE IF NOT EXISTS shardkit.move_marks (lane text, n bigint, PRIMARY KEY (lane, n));
CREATE OR REPLACE FUNCTION shardkit.refuse_writes() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION '%.% is the copy of a shard that is moving: it takes no writes', TG_TABLE_SCHEMA, TG_TABLE_NAME USING ERRCODE = '25006';
END $$

-- write_mark --
-- A mark behind everything that is committed here.
INSERT INTO shardkit.move_marks (lane, n)
SELECT %(lane)s, coalesce(max(n), 0) + 1 FROM shardkit.move_marks WHERE lane = %(lane)s RETURNING n

-- last_mark --
-- The newest mark of a lane.
SELECT max(n) FROM shardkit.move_marks WHERE lane = %(lane)s

-- drop_marks --
-- Marks of a lane that is over.
DELETE FROM shardkit.move_marks WHERE lane = %(lane)s

-- expel --
-- End the sessions of a move in this database (the other end may be on the same server), and wait until they are gone.
SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity
WHERE application_name = %(session)s AND datname = current_database() AND pid <> pg_backend_pid()

-- file --
-- How many blocks a table has, and which file it is in.
SELECT (pg_relation_size(t) + current_setting('block_size')::int - 1) / current_setting('block_size')::int, pg_relation_filenode(t)::bigint
FROM CAST(%(table)s AS regclass) AS t

-- schema_exists --
-- Whether there is such a schema.
SELECT to_regnamespace(%(schema)s) IS NOT NULL

-- publication_exists --
-- Whether there is such a publication in this database.
SELECT EXISTS (SELECT FROM pg_publication WHERE pubname = %(name)s)

-- subscription_exists --
-- Whether there is such a subscription in this database.
SELECT EXISTS (SELECT FROM pg_subscription s JOIN pg_database d ON d.oid = s.subdbid AND d.datname = current_database() WHERE subname = %(name)s)

-- slot --
-- A slot: whose it is, and how much WAL it holds back.
SELECT active_pid, pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn)::bigint, wal_status FROM pg_replication_slots WHERE slot_name = %(name)s

-- number_now --
-- A transaction number higher than all that were given before.
SELECT pg_current_xact_id()::text

-- all_ended --
-- Whether every transaction up to a number has ended, for whoever looks from now on.
SELECT pg_snapshot_xmin(pg_current_snapshot()) > %(number)s::text::xid8

-- create_slot --
-- A slot from here on.
SELECT pg_create_logical_replication_slot(%(name)s, 'pgoutput')

-- drop_slot --
-- Drop a slot if it is there.
SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = %(name)s

-- advance_slot --
-- Skip what a slot has held back so far, if it is there (a rollback needs none).
SELECT pg_replication_slot_advance(slot_name, pg_current_wal_flush_lsn()) FROM pg_replication_slots WHERE slot_name = %(name)s

-- end_session --
-- End one session, and wait for it.
SELECT pg_terminate_backend(%(pid)s, 10000)

-- subscription_lag --
-- How far a subscription's worker is, and the errors it has met.
SELECT s.pid, s.latest_end_lsn::text, t.apply_error_count FROM pg_stat_subscription s
LEFT JOIN pg_stat_subscription_stats t USING (subid) WHERE s.subname = %(name)s AND s.relid IS NULL

-- sequences --
-- Sequences of a schema with the value to go on from, a margin past the one given last, and whether they count upwards.
SELECT c.relname, CASE
    WHEN c.relname = %(origin)s THEN coalesce(pg_sequence_last_value(c.oid), s.seqmin)
    WHEN s.seqincrement > 0 THEN least(s.seqmax::numeric, coalesce(pg_sequence_last_value(c.oid), s.seqstart)::numeric
         + s.seqincrement::numeric * CASE WHEN c.relname = %(ids)s THEN %(id_margin)s ELSE %(margin)s END)::bigint
    ELSE greatest(s.seqmin::numeric, coalesce(pg_sequence_last_value(c.oid), s.seqstart)::numeric + s.seqincrement::numeric * %(margin)s)::bigint END,
    s.seqincrement > 0
FROM pg_sequence s JOIN pg_class c ON c.oid = s.seqrelid JOIN pg_namespace n ON n.oid = c.relnamespace AND n.nspname = %(schema)s

-- blockers --
-- Transactions that hold a lock the fence has to wait for, and for how long they have been open.
SELECT a.pid, (extract(epoch FROM clock_timestamp() - a.xact_start) * 1000)::float, a.state, coalesce(a.usename, ''), coalesce(a.application_name, '')
FROM pg_locks l JOIN pg_stat_activity a USING (pid)
WHERE l.locktype = 'relation' AND l.granted AND l.relation = ANY (%(tables)s::oid[]) AND l.mode <> 'AccessShareLock'
  AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
  AND l.pid <> pg_backend_pid() AND a.backend_type = 'client backend' AND a.xact_start IS NOT NULL
GROUP BY 1, 2, 3, 4, 5 ORDER BY 2 DESC

-- pulse --
-- How long a server's log is, and how many sessions of others are at work there.
SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), '0/0')::bigint, (
    SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND backend_type = 'client backend'
    AND pid <> pg_backend_pid() AND application_name <> %(session)s)

-- standbys --
-- What the physical standbys of a server have replayed; logical streams are not standbys, nor is a session that only could stream
-- (such as the one that holds the copy's snapshot: it never replays anything).
SELECT coalesce(nullif(r.application_name, ''), 'pid ' || r.pid), pg_wal_lsn_diff(coalesce(r.replay_lsn, r.sent_lsn, '0/0'), '0/0')::bigint
FROM pg_stat_replication r WHERE r.state NOT IN ('backup', 'startup')
AND NOT EXISTS (SELECT FROM pg_replication_slots s WHERE s.active_pid = r.pid AND s.slot_type = 'logical')
