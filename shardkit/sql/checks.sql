-- server --
-- What a server is like, as far as moves care.
SELECT current_setting('server_version_num')::int AS version,
       current_setting('wal_level') AS wal_level,
       pg_is_in_recovery() AS standby,
       current_setting('max_replication_slots')::int - (SELECT count(*) FROM pg_replication_slots) AS slots_free,
       current_setting('max_wal_senders')::int - (SELECT count(*) FROM pg_stat_replication) AS senders_free,
       current_setting('max_logical_replication_workers')::int - (SELECT count(*) FROM pg_stat_subscription WHERE pid IS NOT NULL) AS workers_free,
       (SELECT rolsuper FROM pg_roles WHERE rolname = current_user) AS superuser,
       (SELECT rolsuper OR rolreplication FROM pg_roles WHERE rolname = current_user) AS replication,
       CASE WHEN current_setting('server_version_num')::int >= 160000
            THEN pg_has_role(current_user, (SELECT oid FROM pg_roles WHERE rolname = 'pg_create_subscription'), 'USAGE') ELSE false END AS subscriber,
       has_database_privilege(current_database(), 'CREATE') AS creator,
       (SELECT pg_encoding_to_char(encoding) || ' ' || datcollate || ' ' || datctype || ' ' || datlocprovider::text FROM pg_database WHERE datname = current_database()) AS locale,
       (SELECT coalesce(datcollversion, '') FROM pg_database WHERE datname = current_database()) AS collation_version,
       (SELECT count(*) FROM pg_prepared_xacts) AS prepared,
       (SELECT coalesce(max(extract(epoch FROM now() - xact_start)), 0)::float FROM pg_stat_activity
        WHERE backend_xid IS NOT NULL AND pid <> pg_backend_pid()) AS oldest_write_s,
       (SELECT string_agg(evtname, ', ') FROM pg_event_trigger WHERE evtenabled <> 'D') AS event_triggers,
       (SELECT setting::bigint FROM pg_settings WHERE name = 'max_slot_wal_keep_size') AS wal_keep_mb,
       current_setting('synchronous_commit') AS synchronous_commit,
       pg_has_role(current_user, 'pg_read_all_stats', 'USAGE') AS stats,
       current_setting('session_replication_role') AS replication_role,
       (SELECT CASE WHEN pg_has_role(current_user, 'pg_read_all_settings', 'USAGE') THEN current_setting('data_directory') END) AS data_directory

-- triggers --
-- Triggers that would fire for copied rows too.
SELECT format('%%I on %%I', g.tgname, c.relname) FROM pg_trigger g JOIN pg_class c ON c.oid = g.tgrelid
JOIN pg_namespace n ON n.oid = c.relnamespace AND n.nspname = %(schema)s WHERE NOT g.tgisinternal AND g.tgenabled IN ('A', 'R')

-- bodies --
-- Functions whose text names the schema, which is about to get another name.
SELECT p.oid::regprocedure::text FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace AND n.nspname = %(schema)s
WHERE p.prosqlbody IS NULL AND p.prosrc ~ ('\m' || %(schema)s || '\M')

-- strangers --
-- What lies outside the schema and depends on its tables.
SELECT format('foreign key %%I of %%s', k.conname, k.conrelid::regclass) FROM pg_constraint k
JOIN pg_class c ON c.oid = k.confrelid JOIN pg_namespace n ON n.oid = c.relnamespace AND n.nspname = %(schema)s
JOIN pg_class o ON o.oid = k.conrelid WHERE k.contype = 'f' AND o.relnamespace <> c.relnamespace
UNION
SELECT format('view %%s', v.oid::regclass) FROM pg_depend d JOIN pg_rewrite r ON d.classid = 'pg_rewrite'::regclass AND d.objid = r.oid
JOIN pg_class v ON v.oid = r.ev_class JOIN pg_class c ON d.refclassid = 'pg_class'::regclass AND d.refobjid = c.oid
JOIN pg_namespace n ON n.oid = c.relnamespace AND n.nspname = %(schema)s WHERE v.relnamespace <> c.relnamespace

-- large_objects --
-- Columns that may name large objects, which no logical replication carries, where the database has any.
SELECT format('%%I.%%I', c.relname, a.attname) FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid AND c.relkind = 'r'
JOIN pg_namespace n ON n.oid = c.relnamespace AND n.nspname = %(schema)s
WHERE a.atttypid = 'oid'::regtype AND a.attnum > 0 AND EXISTS (SELECT FROM pg_largeobject_metadata)

-- partitioned --
-- Tables that are partitioned, are partitions, or inherit.
SELECT c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace AND n.nspname = %(schema)s
WHERE c.relkind IN ('r', 'p') AND (c.relkind = 'p' OR c.relispartition OR EXISTS (SELECT FROM pg_inherits i WHERE c.oid IN (i.inhrelid, i.inhparent)))
ORDER BY c.relname
