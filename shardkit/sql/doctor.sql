-- settings --
-- Settings the doctor judges, by name; one that this release does not have is 0.
SELECT name, coalesce(current_setting(name, true), '0') FROM unnest(ARRAY[
    'wal_level', 'fsync', 'full_page_writes', 'synchronous_commit', 'max_connections', 'superuser_reserved_connections',
    'reserved_connections', 'max_locks_per_transaction', 'max_prepared_transactions', 'server_encoding']) AS name

-- standbys --
-- Streaming standbys, and how many of them a commit waits for.
SELECT count(*), count(*) FILTER (WHERE r.sync_state IN ('sync', 'quorum')) FROM pg_stat_replication r
WHERE NOT EXISTS (SELECT FROM pg_replication_slots s WHERE s.active_pid = r.pid AND s.slot_type = 'logical')

-- asynchronous --
-- Roles and databases that weaken synchronous_commit for themselves.
SELECT concat_ws(' in ', 'role ' || r.rolname, 'database ' || d.datname)
FROM pg_db_role_setting s LEFT JOIN pg_roles r ON r.oid = s.setrole LEFT JOIN pg_database d ON d.oid = s.setdatabase
WHERE (s.setdatabase = 0 OR d.datname = current_database())
  AND EXISTS (SELECT FROM unnest(s.setconfig) c WHERE c IN ('synchronous_commit=off', 'synchronous_commit=local'))

-- clock --
-- Its time, in seconds.
SELECT extract(epoch FROM clock_timestamp())::float8

-- roles --
-- Our roles: what they may and must not, and how many tables of shards they own.
SELECT r.rolname, array_remove(ARRAY[
        CASE WHEN r.rolsuper THEN 'is a superuser' END,
        CASE WHEN r.rolbypassrls THEN 'bypasses row-level security' END,
        CASE WHEN r.rolcreaterole THEN 'may make roles' END,
        CASE WHEN r.rolcreatedb THEN 'may make databases' END,
        CASE WHEN r.rolcanlogin THEN 'may log in' END,
        (SELECT 'is a member of ' || string_agg(m.roleid::regrole::text, ', ') FROM pg_auth_members m WHERE m.member = r.oid)],
        NULL),
    (SELECT count(*) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
     WHERE c.relowner = r.oid AND c.relkind IN ('r', 'p', 'v', 'm') AND n.nspname ~ '^s[0-9]{4,5}_e[0-9]+$')
FROM pg_roles r WHERE r.rolname IN ('shardkit_app', 'shardkit_operator')

-- tables --
-- Tenants' tables where something is amiss, asked as the application role: whether its rows are filtered, by what.
-- pg_get_expr waits for whoever locks the table, so those are left out.
WITH locked AS MATERIALIZED (SELECT relation FROM pg_locks WHERE mode = 'AccessExclusiveLock' AND granted
    AND database = (SELECT oid FROM pg_database WHERE datname = current_database()))
SELECT * FROM (
    SELECT n.nspname, c.relname, row_security_active(c.oid),
        EXISTS (SELECT FROM pg_policy p, LATERAL pg_get_expr(p.polqual, p.polrelid) AS uses,
                    LATERAL pg_get_expr(p.polwithcheck, p.polrelid) AS checks
                WHERE p.polrelid = c.oid AND p.polname = 'shardkit_tenant' AND p.polpermissive AND p.polcmd = '*'
                  AND p.polroles = ARRAY['shardkit_app'::regrole::oid] AND uses = checks AND uses IN (
                    '(tenant_id = current_setting(''shardkit.tenant''::text))',
                    '((tenant_id)::text = current_setting(''shardkit.tenant''::text))',
                    format('(tenant_id = (current_setting(''shardkit.tenant''::text))::%%s)', a.atttypid::regtype))) AS ours,
        ARRAY(SELECT p.polname::text FROM pg_policy p WHERE p.polrelid = c.oid AND p.polpermissive
              AND p.polname <> 'shardkit_tenant' AND EXISTS (SELECT FROM unnest(p.polroles) AS who
                  WHERE CASE who WHEN 0 THEN true ELSE pg_has_role('shardkit_app', who, 'USAGE') END)) AS others
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace AND n.nspname ~ '^s[0-9]{4,5}_e[0-9]+$'
    JOIN pg_attribute a ON a.attrelid = c.oid AND a.attname = 'tenant_id' AND NOT a.attisdropped
    WHERE c.relkind IN ('r', 'p') AND NOT c.relispartition AND c.oid NOT IN (SELECT relation FROM locked WHERE relation IS NOT NULL)
) AS tables WHERE NOT row_security_active OR NOT ours OR others <> '{}' ORDER BY 1, 2

-- views --
-- Views of tenants' tables that show them with their owner's rights to the application role.
SELECT DISTINCT n.nspname, v.relname FROM pg_class v JOIN pg_namespace n ON n.oid = v.relnamespace
JOIN pg_rewrite r ON r.ev_class = v.oid
JOIN pg_depend d ON d.classid = 'pg_rewrite'::regclass AND d.objid = r.oid AND d.refclassid = 'pg_class'::regclass
JOIN pg_class t ON t.oid = d.refobjid AND t.relrowsecurity
WHERE n.nspname ~ '^s[0-9]{4,5}_e[0-9]+$' AND v.relkind IN ('v', 'm')
  AND has_table_privilege('shardkit_app', v.oid, 'SELECT') AND NOT EXISTS (
    SELECT FROM unnest(v.reloptions) AS given WHERE given IN ('security_invoker=true', 'security_invoker=on', 'security_invoker=1'))

-- schemas --
-- Schemas that look like shards: tables, how many refuse writes, what of ours is missing, relations, and a table's most.
SELECT n.nspname,
    count(c.oid) FILTER (WHERE c.relkind = 'r'),
    count(c.oid) FILTER (WHERE c.relkind = 'r' AND EXISTS (
        SELECT FROM pg_trigger g WHERE g.tgrelid = c.oid AND g.tgname = %(guard)s AND g.tgenabled IN ('O', 'A'))),
    ARRAY(SELECT name FROM unnest(%(furniture)s::text[]) AS name
          WHERE NOT EXISTS (SELECT FROM pg_class o WHERE o.relnamespace = n.oid AND o.relname = name))
    || CASE WHEN to_regprocedure(quote_ident(n.nspname) || '.next_id()') IS NULL THEN ARRAY['next_id()'] ELSE '{}' END,
    count(c.oid), coalesce(1 + max((SELECT count(*) FROM pg_index i WHERE i.indrelid = c.oid)), 0)
FROM pg_namespace n LEFT JOIN pg_class c ON c.relnamespace = n.oid AND c.relkind IN ('r', 'i', 'S', 't')
WHERE n.nspname ~ '^s[0-9]{4,5}_e[0-9]+$' GROUP BY n.oid, n.nspname ORDER BY 1

-- functions --
-- Functions of ours that are not there.
SELECT name FROM unnest(ARRAY['next_id', 'protect', 'replica_position', 'wait_replayed']) AS name
WHERE NOT EXISTS (SELECT FROM pg_proc WHERE pronamespace = to_regnamespace('shardkit') AND proname = name)

-- slots --
-- Slots of this database, and how much WAL each holds back.
SELECT slot_name, active, coalesce(wal_status, ''), coalesce(pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn), 0)::bigint
FROM pg_replication_slots WHERE NOT temporary AND (database = current_database() OR database IS NULL)

-- relays --
-- Sessions by which a relay of the cache follows this database.
SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name = %(session)s

-- subscriptions --
-- Subscriptions of this database.
SELECT subname FROM pg_subscription WHERE subdbid = (SELECT oid FROM pg_database WHERE datname = current_database())

-- publications --
-- Publications of this database.
SELECT pubname FROM pg_publication

-- prepared --
-- Prepared transactions of this database, and their age in seconds.
SELECT gid, extract(epoch FROM clock_timestamp() - prepared)::float8 FROM pg_prepared_xacts WHERE database = current_database()

-- homes --
-- Tables of a shard whose rows belong to tenants, with the rows the planner thinks they have.
SELECT c.relname, greatest(c.reltuples, 0)::bigint FROM pg_class c
JOIN pg_attribute a ON a.attrelid = c.oid AND a.attname = 'tenant_id' AND NOT a.attisdropped
WHERE c.relnamespace = to_regnamespace(%(schema)s) AND c.relkind IN ('r', 'p') AND NOT c.relispartition ORDER BY 1

-- programs --
-- Sessions of running programs at the catalog, which wear their map's version as a name.
SELECT application_name, coalesce(client_addr::text, 'local socket') || ':' || coalesce(client_port, 0) FROM pg_stat_activity
WHERE datname = current_database() AND application_name LIKE %(like)s AND pid <> pg_backend_pid()

-- moves --
-- Moves that have not ended: whether somebody holds one now, and for how long nothing was written of it.
SELECT m.id, m.shard, m.source, m.target, m.step, m.problem, m.tenant, m.into_shard,
    EXISTS (SELECT FROM pg_locks l WHERE l.locktype = 'advisory' AND l.classid = 1936420214 AND l.objid = m.id::oid
            AND l.objsubid = 2 AND l.granted
            AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())),
    extract(epoch FROM now() - m.updated_at)::float8
FROM shardkit_catalog.moves m WHERE NOT m.ended ORDER BY m.id

-- revision --
-- The revision of the catalog's tables.
SELECT version_num FROM shardkit_catalog.alembic_version
