-- put --
-- A writer's names.
INSERT INTO shardkit_cache_outbox (xid, names) VALUES (%s, %s)

-- take --
-- What is committed, taken away; the markers are placed before this commits.
DELETE FROM shardkit_cache_outbox WHERE id IN (SELECT id FROM shardkit_cache_outbox ORDER BY id LIMIT 1000 FOR UPDATE SKIP LOCKED)
RETURNING names

-- is_over --
-- Whether a writer's transaction has ended: until then its outbox row is not seen.
SELECT CAST(:xid AS text)::bigint < pg_snapshot_xmin(pg_current_snapshot())::text::bigint

-- depth --
-- Rows that wait.
SELECT count(*) FROM shardkit_cache_outbox
