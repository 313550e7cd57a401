-- has_moves --
-- Whether the catalog is new enough to have a journal of moves.
SELECT to_regclass('shardkit_catalog.moves') IS NOT NULL

-- create_move --
-- Begin a move; the unique indexes let one move a shard in.
INSERT INTO shardkit_catalog.moves (shard, source, target, epoch, of_move, tenant, into_shard, step, options)
VALUES (%(shard)s, %(source)s, %(target)s, %(epoch)s, %(of_move)s, %(tenant)s, %(into_shard)s, 'planned', %(options)s)
RETURNING id

-- moves --
-- Moves with what is known of them, the newest first.
SELECT id, shard, source, target, epoch, of_move, tenant, into_shard, step, lease, options, facts, problem, holder,
       created_at, updated_at
FROM shardkit_catalog.moves WHERE (%(id)s::bigint IS NULL OR id = %(id)s) AND (%(all)s OR NOT ended) ORDER BY id DESC

-- steps --
-- The journal of one move.
SELECT step, lease, at FROM shardkit_catalog.move_steps WHERE move_id = %(id)s ORDER BY n

-- hold --
-- Be the one session that works on a move, until this connection ends.
SELECT pg_try_advisory_lock(1936420214, %(id)s::integer)

-- let_go --
-- Give up what this session holds, at once; its end would do so a moment after the connection's.
SELECT pg_advisory_unlock_all()

-- holder --
-- The session that works on a move.
SELECT a.pid, a.client_addr::text, a.backend_start FROM pg_locks l JOIN pg_stat_activity a USING (pid)
WHERE l.locktype = 'advisory' AND l.classid = 1936420214 AND l.objid = %(id)s::oid AND l.objsubid = 2 AND l.granted
  AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())

-- end_holder --
-- End the session that works on a move, and wait for it.
SELECT pg_terminate_backend(%(pid)s, 5000)

-- take_lease --
-- The next lease of a move.
UPDATE shardkit_catalog.moves SET lease = lease + 1, holder = %(holder)s, updated_at = now()
WHERE id = %(id)s RETURNING lease

-- enter --
-- A step begins; only for the holder of the last lease.
WITH entered AS (
    UPDATE shardkit_catalog.moves SET step = %(step)s, ended = %(ended)s, problem = NULL, updated_at = now()
    WHERE id = %(id)s AND lease = %(lease)s RETURNING id, lease
)
INSERT INTO shardkit_catalog.move_steps (move_id, step, lease) SELECT id, %(step)s, lease FROM entered

-- end_original --
-- A move that was rolled back has ended with its rollback.
UPDATE shardkit_catalog.moves SET step = 'finished', ended = true, updated_at = now()
WHERE id = (SELECT of_move FROM shardkit_catalog.moves WHERE id = %(id)s)

-- note --
-- What is known of a move: figures, and the last problem.
UPDATE shardkit_catalog.moves SET facts = facts || %(facts)s, problem = %(problem)s, updated_at = now()
WHERE id = %(id)s AND lease = %(lease)s

-- register --
-- Remember an object that is about to be made.
INSERT INTO shardkit_catalog.move_objects (move_id, server, kind, name)
SELECT id, %(server)s, %(kind)s, %(name)s FROM shardkit_catalog.moves WHERE id = %(id)s AND lease = %(lease)s
ON CONFLICT DO NOTHING

-- objects --
-- What a move (and, where it is a rollback, the move it rolls back) has made and not dropped yet.
SELECT o.move_id, o.server, o.kind, o.name FROM shardkit_catalog.move_objects o
WHERE o.move_id = %(id)s
   OR (%(inherited)s AND o.move_id = (SELECT of_move FROM shardkit_catalog.moves WHERE id = %(id)s))
ORDER BY array_position(ARRAY['subscription', 'slot', 'publication', 'schema', 'rows', 'curtain', 'marks'], o.kind), o.name

-- gone --
-- An object was dropped.
DELETE FROM shardkit_catalog.move_objects
WHERE move_id = %(move_id)s AND server = %(server)s AND kind = %(kind)s AND name = %(name)s

-- busy_shards --
-- Shards that a move has in its hands now: no migration, no second move.
SELECT DISTINCT part FROM shardkit_catalog.moves, unnest(ARRAY[shard, into_shard]) AS part WHERE NOT ended AND part IS NOT NULL

-- entangled --
-- Whether another move has one of the shards of this one in its hands.
SELECT EXISTS (
    SELECT FROM shardkit_catalog.moves o JOIN shardkit_catalog.moves m ON m.id = %(id)s AND o.id <> m.id AND o.id IS DISTINCT FROM m.of_move
    WHERE NOT o.ended AND (o.shard IN (m.shard, m.into_shard) OR o.into_shard IN (m.shard, m.into_shard)))

-- carries_tenants --
-- Whether the catalog is new enough to have tenants carried out of shards.
SELECT to_regclass('shardkit_catalog.loads') IS NOT NULL

-- free_shard --
-- The number of the next shard of a tenant's own: past those of the hash, and of all there are or are being made.
SELECT greatest(c.shard_count, (SELECT max(shard) + 1 FROM shardkit_catalog.placements),
                (SELECT max(into_shard) + 1 FROM shardkit_catalog.moves WHERE NOT ended))
FROM shardkit_catalog.cluster c

-- flip_tenant --
-- The flip of one tenant, in one statement: the epoch of the shard it leaves, by compare-and-set, the shard it goes to, its
-- pin, by compare-and-set, the journal's step, what is left to be removed, and the news of it.
WITH ours AS (
    SELECT m.id, m.lease, m.shard, m.source, m.target, m.epoch, m.tenant, m.into_shard
    FROM shardkit_catalog.moves m JOIN shardkit_catalog.placements p USING (shard)
    WHERE m.id = %(id)s AND m.lease = %(lease)s AND p.server = m.source AND p.epoch = m.epoch
      AND (SELECT t.shard FROM shardkit_catalog.pins t WHERE t.tenant = m.tenant) IS NOT DISTINCT FROM %(pin)s::integer
    FOR NO KEY UPDATE OF m, p
), version AS (
    UPDATE shardkit_catalog.cluster SET map_version = map_version + 1 WHERE EXISTS (SELECT FROM ours) RETURNING map_version
), raised AS (
    UPDATE shardkit_catalog.placements p SET epoch = ours.epoch + 1, changed_in = version.map_version
    FROM ours, version WHERE p.shard = ours.shard
), placed AS (
    INSERT INTO shardkit_catalog.placements (shard, server, epoch, parent, changed_in)
    SELECT ours.into_shard, ours.target, %(into_epoch)s + 1, ours.shard, version.map_version FROM ours, version
    ON CONFLICT (shard) DO UPDATE SET epoch = excluded.epoch, changed_in = excluded.changed_in
), pinned AS (
    INSERT INTO shardkit_catalog.pins (tenant, shard, changed_in)
    SELECT ours.tenant, %(pin_to)s::integer, version.map_version FROM ours, version
    ON CONFLICT (tenant) DO UPDATE SET shard = excluded.shard, changed_in = excluded.changed_in
), entered AS (
    UPDATE shardkit_catalog.moves SET step = %(step)s, updated_at = now() WHERE id IN (SELECT id FROM ours)
), noted AS (
    INSERT INTO shardkit_catalog.move_steps (move_id, step, lease) SELECT id, %(step)s, lease FROM ours
), remaining AS (
    INSERT INTO shardkit_catalog.move_objects (move_id, server, kind, name) SELECT id, source, 'rows', %(rows)s FROM ours
)
SELECT pg_notify('shardkit_map', map_version::text) FROM version

-- placement --
-- Where a shard is.
SELECT server, epoch FROM shardkit_catalog.placements WHERE shard = %(shard)s

-- flip --
-- The flip, in one statement: the map's version, the placement by compare-and-set, the journal's step, and the news of it.
WITH ours AS (
    SELECT m.id, m.lease FROM shardkit_catalog.moves m JOIN shardkit_catalog.placements p USING (shard)
    WHERE m.id = %(id)s AND m.lease = %(lease)s AND p.server = m.source AND p.epoch = m.epoch
    FOR NO KEY UPDATE  -- a pin to the shard, which holds the map's version already, looks the shard up by its key meanwhile
), version AS (
    UPDATE shardkit_catalog.cluster SET map_version = map_version + 1 WHERE EXISTS (SELECT FROM ours) RETURNING map_version
), placed AS (
    UPDATE shardkit_catalog.placements p SET server = m.target, epoch = m.epoch + 1, changed_in = version.map_version
    FROM shardkit_catalog.moves m, version WHERE m.id = %(id)s AND p.shard = m.shard
), entered AS (
    UPDATE shardkit_catalog.moves SET step = %(step)s, updated_at = now() WHERE id IN (SELECT id FROM ours)
), noted AS (
    INSERT INTO shardkit_catalog.move_steps (move_id, step, lease) SELECT id, %(step)s, lease FROM ours
)
SELECT pg_notify('shardkit_map', map_version::text) FROM version

-- hold_shard --
-- Keep migrations away from a shard, until this connection ends; false while one is under way.
SELECT pg_try_advisory_lock(%(lock_class)s, %(shard)s)
