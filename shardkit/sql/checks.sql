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
-- Functions whose text or settings name the schema, which is about to get another name.
SELECT p.oid::regprocedure::text FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace AND n.nspname = %(schema)s
WHERE concat(CASE WHEN p.prosqlbody IS NULL THEN p.prosrc END, ' ', p.proconfig) ~ ('\m' || %(schema)s || '\M')

-- strangers --
-- What lies outside the schema and depends on what is in it: it would stay behind, and go with the old place in the end.
SELECT format('foreign key %%I of %%s', k.conname, k.conrelid::regclass) FROM pg_constraint k
JOIN pg_class c ON c.oid = k.confrelid JOIN pg_namespace n ON n.oid = c.relnamespace AND n.nspname = %(schema)s
JOIN pg_class o ON o.oid = k.conrelid WHERE k.contype = 'f' AND o.relnamespace <> c.relnamespace
UNION
SELECT format('view %%s', v.oid::regclass) FROM pg_depend d JOIN pg_rewrite r ON d.classid = 'pg_rewrite'::regclass AND d.objid = r.oid
JOIN pg_class v ON v.oid = r.ev_class JOIN pg_class c ON d.refclassid = 'pg_class'::regclass AND d.refobjid = c.oid
JOIN pg_namespace n ON n.oid = c.relnamespace AND n.nspname = %(schema)s WHERE v.relnamespace <> c.relnamespace
UNION
SELECT pg_describe_object(d.classid, d.objid, d.objsubid) FROM (
    SELECT 'pg_class'::regclass AS class, oid FROM pg_class WHERE relnamespace = to_regnamespace(%(schema)s)
    UNION ALL SELECT 'pg_type'::regclass, oid FROM pg_type WHERE typnamespace = to_regnamespace(%(schema)s)
    UNION ALL SELECT 'pg_proc'::regclass, oid FROM pg_proc WHERE pronamespace = to_regnamespace(%(schema)s)
) own JOIN pg_depend d ON d.refclassid = own.class AND d.refobjid = own.oid AND d.deptype <> 'i'
LEFT JOIN pg_attrdef e ON d.classid = 'pg_attrdef'::regclass AND e.oid = d.objid
LEFT JOIN pg_trigger g ON d.classid = 'pg_trigger'::regclass AND g.oid = d.objid
LEFT JOIN pg_policy p ON d.classid = 'pg_policy'::regclass AND p.oid = d.objid
LEFT JOIN pg_class c ON c.oid = coalesce(e.adrelid, g.tgrelid, p.polrelid, CASE d.classid WHEN 'pg_class'::regclass THEN d.objid END)
LEFT JOIN pg_proc f ON d.classid = 'pg_proc'::regclass AND f.oid = d.objid
WHERE coalesce(c.relnamespace, f.pronamespace) <> to_regnamespace(%(schema)s)
  AND c.relpersistence IS DISTINCT FROM 't'  -- its session will be gone by then

-- half_made --
-- Unique indexes that were not finished: made for good they fail where rows are not unique, once all of them are copied.
SELECT i.indexrelid::regclass::text FROM pg_index i JOIN pg_class c ON c.oid = i.indrelid AND c.relkind = 'r'
JOIN pg_namespace n ON n.oid = c.relnamespace AND n.nspname = %(schema)s WHERE i.indisunique AND NOT i.indisvalid

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
