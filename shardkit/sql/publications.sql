-- tables --
-- What a publication of tables publishes.
SELECT n.nspname, c.relname, c.oid::bigint FROM pg_publication p JOIN pg_publication_rel r ON r.prpubid = p.oid
JOIN pg_class c ON c.oid = r.prrelid JOIN pg_namespace n ON n.oid = c.relnamespace WHERE p.pubname = %(name)s

-- writers --
-- Transactions that hold the lock of a writer on one of the tables, and the time.
SELECT array_agg(DISTINCT l.virtualtransaction), clock_timestamp() FROM pg_locks l
WHERE l.mode = 'RowExclusiveLock' AND l.relation = ANY (%(tables)s::oid[])
  AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())

-- still_at_it --
-- Whether one of them is in the statement it was in then. Of sessions that we may not look into, whether it is open.
SELECT EXISTS (
    SELECT FROM pg_locks l JOIN pg_stat_activity a USING (pid) WHERE l.virtualtransaction = ANY (%(writers)s)
      AND (a.state IS NULL OR (a.state = 'active' AND a.query_start < %(then)s)))
