-- furniture --
-- Which curtains of a server are drawn. A curtain is a restrictive policy on each table that holds rows of a tenant which lives in
-- another shard: it hides them from application and operator, and takes no new ones, from the commit in which it is drawn.
CREATE TABLE IF NOT EXISTS shardkit.curtains (name text PRIMARY KEY);
CREATE OR REPLACE FUNCTION shardkit.is_drawn(curtain text) RETURNS boolean
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog AS $$
    SELECT EXISTS (SELECT FROM shardkit.curtains WHERE name = curtain)
$$

-- lift --
-- Show the rows again.
DELETE FROM shardkit.curtains WHERE name = %(name)s

-- has_curtains --
-- Whether this server ever had one.
SELECT to_regclass('shardkit.curtains') IS NOT NULL

-- drawn --
-- Whether the rows are hidden.
SELECT shardkit.is_drawn(%(name)s)

-- hung --
-- Tables that have the curtain: schema and table.
SELECT n.nspname, c.relname FROM pg_policy p JOIN pg_class c ON c.oid = p.polrelid JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE p.polname = %(name)s ORDER BY 1, 2

-- holders --
-- Who has locked tables of a name in shards: the oldest three.
SELECT DISTINCT a.pid, coalesce(a.usename, ''), coalesce(a.application_name, '') FROM pg_locks l JOIN pg_stat_activity a USING (pid)
JOIN pg_class c ON c.oid = l.relation AND c.relname = %(table)s JOIN pg_namespace n ON n.oid = c.relnamespace AND n.nspname ~ '^s[0-9]{4,5}_e'
WHERE l.granted AND l.pid <> pg_backend_pid() AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database()) LIMIT 3

-- contents --
-- Tables of a schema: whether they have a tenant's column, and row-level security.
SELECT c.relname, EXISTS (SELECT FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attname = 'tenant_id' AND NOT a.attisdropped),
       c.relrowsecurity
FROM pg_class c WHERE c.relnamespace = to_regnamespace(%(schema)s) AND c.relkind = 'r' ORDER BY 1

-- tenant_columns --
-- Tables of a schema whose replica identity lets a publication filter by that column.
SELECT c.relname FROM pg_class c WHERE c.relnamespace = to_regnamespace(%(schema)s) AND c.relkind = 'r' AND c.relreplident = 'f'

-- may_replicate --
-- Whether this login may write without triggers and foreign keys, as a subscription does.
SELECT (SELECT rolsuper FROM pg_roles WHERE rolname = current_user)
    OR CASE WHEN current_setting('server_version_num')::int >= 150000
            THEN has_parameter_privilege('session_replication_role', 'SET') ELSE false END

-- materialized_views --
-- Materialized views of a schema.
SELECT c.relname FROM pg_class c WHERE c.relnamespace = to_regnamespace(%(schema)s) AND c.relkind = 'm' ORDER BY 1

-- sequences_behind --
-- Sequences of a schema, with what was given last.
SELECT c.relname, pg_sequence_last_value(c.oid), s.seqincrement FROM pg_sequence s JOIN pg_class c ON c.oid = s.seqrelid
WHERE c.relnamespace = to_regnamespace(%(schema)s) ORDER BY 1
