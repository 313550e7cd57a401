-- schema_reference --
-- Where reference tables live: application code reads them everywhere.
CREATE SCHEMA IF NOT EXISTS shardkit_reference;
GRANT USAGE ON SCHEMA shardkit_reference TO shardkit_app, shardkit_operator

-- read_only --
-- On a server rows come by replication alone.
REVOKE INSERT, UPDATE, DELETE, TRUNCATE ON ALL TABLES IN SCHEMA shardkit_reference FROM shardkit_app, shardkit_operator

-- has_publication --
-- Whether the one copy that is written to is published.
SELECT EXISTS (SELECT FROM pg_publication WHERE pubname = 'shardkit_reference')

-- publish --
-- Table by table: to publish the schema as a whole only a superuser may.
CREATE PUBLICATION shardkit_reference

-- tables --
-- All tables of the schema.
SELECT relname FROM pg_class WHERE relnamespace = to_regnamespace('shardkit_reference') AND relkind = 'r'

-- unpublished --
-- Tables of the schema that are not published yet.
SELECT c.relname FROM pg_class c WHERE c.relnamespace = to_regnamespace('shardkit_reference') AND c.relkind = 'r'
    AND NOT EXISTS (SELECT FROM pg_publication_tables p
                    WHERE (p.pubname, p.schemaname, p.tablename) = ('shardkit_reference', 'shardkit_reference', c.relname))

-- has_slot --
-- Whether a server's place in the stream is there.
SELECT EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = %(slot)s)

-- make_slot --
-- A server's place in the stream. Made apart from its subscription, which would wait for itself where both are in one PostgreSQL.
SELECT pg_create_logical_replication_slot(%(slot)s, 'pgoutput')

-- has_subscription --
-- Whether this server follows.
SELECT EXISTS (SELECT FROM pg_subscription WHERE subname = %(slot)s AND subdbid = (SELECT oid FROM pg_database
    WHERE datname = current_database()))

-- lagging --
-- Tables whose first copy is not over yet.
SELECT coalesce(array_agg(srrelid::regclass::text ORDER BY 1), '{}') FROM pg_subscription_rel JOIN pg_subscription ON oid = srsubid
WHERE subname = %(slot)s AND srsubstate <> 'r'

-- position --
-- Where the stream of the written copy is now.
SELECT pg_current_wal_lsn()::text

-- caught_up --
-- Whether a server has all that was written before a position.
SELECT coalesce(confirmed_flush_lsn >= %(position)s::pg_lsn, false) FROM pg_replication_slots WHERE slot_name = %(slot)s

-- end_sender --
-- End whoever reads a slot.
SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = %(slot)s AND active

-- drop_slot --
-- Away with a server's place in the stream.
SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = %(slot)s
