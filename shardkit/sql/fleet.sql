-- take_lease --
-- Become the one runner of migrations; the lock goes with the session, so a killed runner leaves nothing behind. What the ledger
-- is told need not be on disk at once: the shards are the truth, and the next run corrects what a crash took from it.
SELECT pg_try_advisory_lock(%(lock_class)s, 0), set_config('synchronous_commit', 'off', false)

-- give_lease --
-- Give the lease back.
SELECT pg_advisory_unlock(%(lock_class)s, 0)

-- lease_holder --
-- Who holds the lease: the run that is still marked as running.
SELECT run, runner, target, begun_at FROM shardkit_catalog.fleet_runs WHERE state = 'running' ORDER BY run DESC LIMIT 1

-- begin_run --
-- A new run. Whoever holds the lease is the only runner: runs that still say "running" were killed.
WITH killed AS (
    UPDATE shardkit_catalog.fleet_runs SET state = 'killed', ended_at = now() WHERE state = 'running'
)
INSERT INTO shardkit_catalog.fleet_runs (direction, target, runner) VALUES (%(direction)s, %(target)s, %(runner)s) RETURNING run

-- end_run --
-- How a run ended.
UPDATE shardkit_catalog.fleet_runs
SET state = %(state)s, ended_at = now(), shards_done = %(done)s, shards_behind = %(behind)s WHERE run = %(run)s

-- last_runs --
-- The newest runs.
SELECT run, direction, target, runner, state, begun_at, ended_at, shards_done, shards_behind
FROM shardkit_catalog.fleet_runs ORDER BY run DESC LIMIT 10

-- ledger --
-- What became of each revision in each shard, where it is not done.
SELECT shard, revision, state, attempts, error, direction = 'up' FROM shardkit_catalog.fleet_ledger WHERE state <> 'done'

-- mark --
-- Write one state of a revision for many shards; one attempt more when they begin.
INSERT INTO shardkit_catalog.fleet_ledger AS ledger (shard, revision, direction, state, attempts, error, run)
SELECT shard, %(revision)s, %(direction)s, %(state)s, (%(state)s = 'running')::int, %(error)s, %(run)s
FROM unnest(%(shards)s::int[]) AS shard
ON CONFLICT (shard, revision) DO UPDATE SET direction = excluded.direction, state = excluded.state, run = excluded.run,
    attempts = CASE WHEN excluded.state = 'pending' THEN 0 ELSE ledger.attempts + excluded.attempts END,
    error = excluded.error, changed_at = now()

-- settle --
-- What was done by a runner that was killed before it could write it down.
UPDATE shardkit_catalog.fleet_ledger SET state = 'done', error = '', changed_at = now()
WHERE (shard, revision) IN (SELECT * FROM unnest(%(shards)s::int[], %(revisions)s::text[]))

-- hold_shards --
-- Hold shards against moves, in shared form; those that a move holds are not in the answer.
SELECT shard FROM unnest(%(shards)s::int[]) AS shard WHERE pg_try_advisory_lock_shared(%(lock_class)s, shard)

-- let_go --
-- Let the shards of a wave go.
SELECT pg_advisory_unlock_shared(%(lock_class)s, shard) FROM unnest(%(shards)s::int[]) AS shard

-- moving --
-- Shards with a move that is not over, also if nobody works on it now: its copies must stay alike.
SELECT DISTINCT ON (part) part, id, step FROM shardkit_catalog.moves, unnest(ARRAY[shard, into_shard]) AS part
WHERE NOT ended AND part = ANY(%(shards)s::int[]) ORDER BY part, id DESC
