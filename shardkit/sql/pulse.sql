-- server --
-- What a server says of itself, quickly.
SELECT current_setting('server_version'), pg_database_size(current_database()),
       (SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'), current_setting('max_connections')::int,
       (SELECT count(*) FROM pg_prepared_xacts WHERE database = current_database()),
       (SELECT coalesce(max(pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn)), 0)::bigint FROM pg_replication_slots)

-- standbys --
-- Streaming standbys: how far each has replayed.
SELECT r.application_name, coalesce(r.state, ''), coalesce(r.sync_state, ''),
       coalesce(pg_wal_lsn_diff(pg_current_wal_lsn(), r.replay_lsn), 0)::bigint, extract(epoch FROM r.replay_lag)::float8
FROM pg_stat_replication r
WHERE NOT EXISTS (SELECT FROM pg_replication_slots s WHERE s.active_pid = r.pid AND s.slot_type = 'logical')
  AND r.state <> 'startup' AND r.application_name !~ '^shardkit (move|apply)'

-- shards --
-- Bytes of each shard, and what was read and written there; sizes by the planner's counts where *exact* is false.
SELECT n.nspname,
    coalesce(sum(CASE WHEN %(exact)s THEN pg_relation_size(c.oid) ELSE c.relpages::bigint * 8192 END), 0)::bigint,
    coalesce(sum(s.seq_scan + coalesce(s.idx_scan, 0)), 0)::bigint,
    coalesce(sum(s.n_tup_ins + s.n_tup_upd + s.n_tup_del), 0)::bigint
FROM pg_namespace n LEFT JOIN pg_class c ON c.relnamespace = n.oid AND c.relkind IN ('r', 'i', 't', 'm')
LEFT JOIN pg_stat_all_tables s ON s.relid = c.oid AND c.relkind = 'r'
WHERE n.nspname = ANY (%(schemas)s) GROUP BY 1

-- moves --
-- Moves that have not ended, and those that did a little while ago, the newest first.
SELECT m.id, m.shard, m.source, m.target, m.step, m.ended, m.problem, m.tenant IS NOT NULL, m.facts,
    EXISTS (SELECT FROM pg_locks l WHERE l.locktype = 'advisory' AND l.classid = 1936420214 AND l.objid = m.id::oid
            AND l.objsubid = 2 AND l.granted
            AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())),
    extract(epoch FROM now() - m.updated_at)::float8, extract(epoch FROM now() - m.created_at)::float8
FROM shardkit_catalog.moves m WHERE NOT m.ended OR m.updated_at > now() - interval '5 minutes' ORDER BY m.ended, m.id DESC LIMIT 50

-- migration --
-- The newest run of migrations.
SELECT run, target, state, shards_done, (SELECT count(DISTINCT shard) FROM shardkit_catalog.fleet_ledger WHERE state <> 'done')
FROM shardkit_catalog.fleet_runs ORDER BY run DESC LIMIT 1
