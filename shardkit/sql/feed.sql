-- now --
-- How far the log is, and a transaction id of 64 bits: messages carry only the lower half of theirs.
SELECT pg_current_wal_flush_lsn()::text, pg_snapshot_xmax(pg_current_snapshot())::text::bigint

-- unpublished --
-- Tables of live shards that the publication does not have, and how much of an old row is in the stream.
SELECT n.nspname, c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = ANY(%(schemas)s) AND c.relname = ANY(%(tables)s) AND c.relkind = 'r' AND NOT EXISTS (
    SELECT FROM pg_publication_rel r JOIN pg_publication p ON p.oid = r.prpubid WHERE p.pubname = %(name)s AND r.prrelid = c.oid
) ORDER BY 1, 2

-- half_told --
-- Tables of live shards whose old rows are not in the stream as a whole.
SELECT DISTINCT c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = ANY(%(schemas)s) AND c.relname = ANY(%(tables)s) AND c.relkind = 'r' AND c.relreplident <> 'f' ORDER BY 1

-- publication --
-- Whether it is there.
SELECT EXISTS (SELECT FROM pg_publication WHERE pubname = %(name)s)

-- slot --
-- Whether it is there, and what it holds back in bytes.
SELECT coalesce(pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn), 0)::bigint FROM pg_replication_slots WHERE slot_name = %(name)s

-- make_slot --
-- From here on; it waits for the transactions that are open.
SELECT pg_create_logical_replication_slot(%(name)s, 'pgoutput')

-- drop_slots --
-- Those of a cluster's relays, in this database.
SELECT slot_name, pg_drop_replication_slot(slot_name)::text FROM pg_replication_slots
WHERE starts_with(slot_name, %(prefix)s) AND database = current_database()

-- peek --
-- What is committed and not yet passed, up to the end of the transaction in which the limit is reached.
SELECT lsn::text, data FROM pg_logical_slot_peek_binary_changes(
    %(name)s, NULL, %(limit)s, 'proto_version', '1', 'publication_names', %(publication)s
)

-- pass --
-- It will not be shown again.
SELECT pg_replication_slot_advance(%(name)s, %(lsn)s::pg_lsn)
