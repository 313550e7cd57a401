-- decide --
-- Write the decision of a transaction, unless there is one already.
INSERT INTO shardkit_catalog.decisions (txn, outcome, servers) VALUES (%(txn)s, %(outcome)s, %(servers)s)
ON CONFLICT (txn) DO NOTHING

-- outcome --
-- The decision that holds.
SELECT outcome FROM shardkit_catalog.decisions WHERE txn = %(txn)s

-- finish --
-- The second phase is done on all servers.
UPDATE shardkit_catalog.decisions SET finished_at = now() WHERE txn = %(txn)s AND finished_at IS NULL

-- unfinished --
-- Decisions whose second phase may not be done everywhere.
SELECT txn, servers FROM shardkit_catalog.decisions WHERE finished_at IS NULL

-- purge --
-- Forget what has been finished for a day.
DELETE FROM shardkit_catalog.decisions WHERE finished_at < now() - interval '1 day'

-- moment --
-- A moment in the catalog, and how many commits were being carried out then.
SELECT pg_current_snapshot()::text,
       (SELECT count(*) FROM shardkit_catalog.decisions WHERE finished_at IS NULL AND outcome = 'commit')

-- decided_since --
-- Whether a commit was decided since a moment.
SELECT EXISTS (SELECT FROM shardkit_catalog.decisions
               WHERE outcome = 'commit' AND NOT pg_visible_in_snapshot(decided_xid, %(moment)s::text::pg_snapshot))

-- prepared --
-- Prepared transactions of ours in this database: whether their time is over, and how many locks each holds.
SELECT p.gid, extract(epoch FROM clock_timestamp() - p.prepared)::float8,
       clock_timestamp() > p.prepared + make_interval(secs => split_part(p.gid, ':', 5)::int),
       (SELECT count(*) FROM pg_locks l WHERE l.pid IS NULL AND l.virtualtransaction = (
           SELECT own.virtualtransaction FROM pg_locks own
           WHERE own.pid IS NULL AND own.locktype = 'transactionid' AND own.transactionid = p.transaction LIMIT 1))
FROM pg_prepared_xacts p WHERE p.database = current_database() AND p.gid LIKE %(like)s

-- most_prepared --
-- How many prepared transactions this server allows.
SELECT current_setting('max_prepared_transactions')::int
