-- role_app --
-- Application code runs as this role: rows of one tenant at a time, no DDL.
CREATE ROLE shardkit_app NOLOGIN NOSUPERUSER NOBYPASSRLS NOCREATEDB NOCREATEROLE

-- role_operator --
-- Operator access and moves: rows of every tenant of a shard, no DDL; taken with SET LOCAL ROLE, never inherited.
CREATE ROLE shardkit_operator NOLOGIN NOSUPERUSER NOBYPASSRLS NOCREATEDB NOCREATEROLE

-- missing_roles --
-- Which of our roles this PostgreSQL does not have yet.
SELECT name FROM unnest(ARRAY['shardkit_app', 'shardkit_operator']) AS name
WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = name)

-- roles_to_take --
-- Which of our roles this login cannot take on yet.
SELECT rolname FROM pg_roles WHERE rolname IN ('shardkit_app', 'shardkit_operator') AND NOT pg_has_role(
    current_user, oid, CASE WHEN current_setting('server_version_num')::int >= 160000 THEN 'SET' ELSE 'MEMBER' END)

-- base --
-- Schema of ours on a server: its identity, and the right to look at it.
CREATE SCHEMA IF NOT EXISTS shardkit;
CREATE TABLE IF NOT EXISTS shardkit.identity (
    singleton boolean PRIMARY KEY DEFAULT true CHECK (singleton),
    cluster_id uuid NOT NULL,
    server_id uuid NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now()
);
REVOKE CREATE ON SCHEMA public FROM PUBLIC;
GRANT USAGE ON SCHEMA shardkit TO shardkit_app, shardkit_operator;
GRANT SELECT ON shardkit.identity TO shardkit_app, shardkit_operator;
ALTER DEFAULT PRIVILEGES GRANT SELECT, INSERT, UPDATE, DELETE ON TABLES TO shardkit_app, shardkit_operator;
ALTER DEFAULT PRIVILEGES GRANT USAGE, SELECT, UPDATE ON SEQUENCES TO shardkit_app, shardkit_operator;

-- protect --
-- Row-level security of a tenant-scoped table: the app role sees its tenant's rows only, an operator all of them.
CREATE OR REPLACE FUNCTION shardkit.protect(scoped regclass) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    kind regtype := (SELECT atttypid FROM pg_attribute WHERE attrelid = scoped AND attname = 'tenant_id' AND NOT attisdropped);
    owner_rule text;
BEGIN
    IF kind IS NULL THEN
        RAISE EXCEPTION 'table % has no column tenant_id: it cannot be protected', scoped;
    END IF;
    owner_rule := format('tenant_id = current_setting(''shardkit.tenant'')%s',
                         CASE WHEN kind IN ('text'::regtype, 'varchar'::regtype) THEN '' ELSE '::' || kind END);
    EXECUTE format('ALTER TABLE %s ENABLE ROW LEVEL SECURITY', scoped);
    EXECUTE format('DROP POLICY IF EXISTS shardkit_tenant ON %s', scoped);
    EXECUTE format('CREATE POLICY shardkit_tenant ON %s TO shardkit_app USING (%s) WITH CHECK (%s)', scoped, owner_rule, owner_rule);
    EXECUTE format('DROP POLICY IF EXISTS shardkit_operator ON %s', scoped);
    EXECUTE format('CREATE POLICY shardkit_operator ON %s TO shardkit_operator USING (true) WITH CHECK (true)', scoped);
END $$

-- replicas --
-- What reading from replicas needs. Made on the primary; replicas have it because they have everything.
--
-- The timeline of a standby is known to its receiver only, whose details are shown to pg_read_all_stats alone: so the function
-- has its owner's rights. No row: it receives nothing now, and nobody can say what it is a copy of.
CREATE OR REPLACE FUNCTION shardkit.replica_position() RETURNS TABLE (timeline integer, lsn pg_lsn)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog AS $$
    SELECT received_tli, pg_last_wal_replay_lsn() FROM pg_stat_get_wal_receiver()
    WHERE pg_is_in_recovery() AND status = 'streaming' AND received_tli IS NOT NULL
$$;
-- Waits, bounded, until *wanted* is replayed here. Its snapshot could hold the replay up if this took long: it does not.
CREATE OR REPLACE FUNCTION shardkit.wait_replayed(wanted pg_lsn, wait_ms integer) RETURNS boolean
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog AS $$
DECLARE
    give_up timestamptz := clock_timestamp() + least(wait_ms, 10000) * interval '1 ms';
BEGIN
    LOOP
        IF pg_last_wal_replay_lsn() >= wanted THEN
            RETURN true;
        END IF;
        IF clock_timestamp() >= give_up OR NOT pg_is_in_recovery() THEN
            RETURN false;
        END IF;
        PERFORM pg_sleep(0.002);
    END LOOP;
END $$

-- read_identity --
-- Which cluster and server this database says it is; no row where it says nothing.
SELECT cluster_id, server_id FROM shardkit.identity

-- look_around --
-- Asked by every new connection: whose database this is, who answers, what the login may do, the timeline, and the life.
SELECT cluster_id, server_id, pg_backend_pid(), current_user::text,
       (SELECT rolsuper OR rolbypassrls FROM pg_roles WHERE rolname = session_user),
       pg_has_role(session_user, 'shardkit_app', 'MEMBER'),
       -- not from pg_control_checkpoint(): it still names the old timeline on a server that was just promoted
       CASE WHEN NOT pg_is_in_recovery() THEN left(pg_walfile_name(pg_current_wal_insert_lsn()), 8) END,
       -- statistics outlive a shutdown and begin anew after a crash, also where the postmaster itself lived on
       (SELECT extract(epoch FROM stats_reset)::text FROM pg_stat_wal)
FROM shardkit.identity

-- standing --
-- The timeline and the life of a primary, as look_around gives them.
SELECT left(pg_walfile_name(pg_current_wal_insert_lsn()), 8), (SELECT extract(epoch FROM stats_reset)::text FROM pg_stat_wal)

-- became --
-- What became of a transaction.
SELECT pg_xact_status(%(xid)s::text::xid8)

-- has_identity --
-- Whether the identity table is there at all.
SELECT to_regclass('shardkit.identity') IS NOT NULL

-- write_identity --
-- Make this database a server of a cluster; only once.
INSERT INTO shardkit.identity (cluster_id, server_id) VALUES (%(cluster_id)s, %(server_id)s)

-- forget_identity --
-- Undo write_identity, for a server that leaves the cluster or an init that failed.
DELETE FROM shardkit.identity WHERE cluster_id = %(cluster_id)s

-- shard_schemas --
-- Schemas on this server that look like shards, with the size of their relations by the planner's own counts.
SELECT n.nspname, coalesce(sum(c.relpages) FILTER (WHERE c.relkind IN ('r', 'i', 't', 'm')), 0)::bigint * 8192
FROM pg_namespace n LEFT JOIN pg_class c ON c.relnamespace = n.oid
WHERE n.nspname ~ '^s[0-9]{4,5}_e[0-9]+$' GROUP BY 1 ORDER BY 1

-- place --
-- What a database is and may, for a look before anything is changed: which running database it is, its release and
-- encoding, whether we may make schemas in it, and whether our roles are there or can be made.
SELECT pg_postmaster_start_time()::text || ' ' || d.oid, current_setting('server_version_num')::int / 10000,
    current_setting('server_encoding'), has_database_privilege(current_database(), 'CREATE'),
    r.rolsuper OR r.rolcreaterole
        OR (SELECT count(*) = 2 FROM pg_roles WHERE rolname IN ('shardkit_app', 'shardkit_operator')),
    pg_is_in_recovery(),
    -- whether those that are there can be taken on, or granted to oneself: since 16 CREATEROLE alone is not enough for that
    NOT EXISTS (SELECT FROM pg_roles o WHERE o.rolname IN ('shardkit_app', 'shardkit_operator')
        AND NOT pg_has_role(r.oid, o.oid, 'MEMBER WITH ADMIN OPTION')
        AND CASE WHEN current_setting('server_version_num')::int >= 160000 THEN NOT pg_has_role(r.oid, o.oid, 'SET')
                 ELSE NOT (r.rolcreaterole OR pg_has_role(r.oid, o.oid, 'MEMBER')) END)
FROM pg_database d, pg_roles r WHERE d.datname = current_database() AND r.rolname = current_user

-- size --
-- Bytes of the whole database, and the server's release.
SELECT pg_database_size(current_database()), current_setting('server_version')

-- scoped_tables --
-- Tables of a schema whose rows belong to tenants.
SELECT c.relname FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid
WHERE c.relnamespace = to_regnamespace(%(schema)s) AND c.relkind IN ('r', 'p') AND NOT c.relispartition
    AND a.attname = 'tenant_id' AND NOT a.attisdropped
ORDER BY 1
