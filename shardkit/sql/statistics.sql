-- sizes --
-- What the planner knows of the size of a schema's tables and their indexes.
SELECT c.relname, c.relpages, c.reltuples, c.relallvisible, c.relallfrozen FROM pg_class c
WHERE c.relnamespace = %(schema)s::text::regnamespace AND c.relkind IN ('r', 'i') AND c.reltuples >= 0

-- columns --
-- What the planner knows of the columns of a schema's tables, and of the expressions of their indexes.
SELECT tablename, attname, null_frac, avg_width, n_distinct, most_common_vals::text, most_common_freqs, histogram_bounds::text, correlation,
    most_common_elems::text, most_common_elem_freqs, elem_count_histogram, range_length_histogram::text, range_empty_frac, range_bounds_histogram::text
FROM pg_stats WHERE schemaname = %(schema)s::text AND NOT inherited

-- set_size --
-- Let the planner know it of a table or an index.
SELECT pg_restore_relation_stats('version', %s::int, 'schemaname', %s::text, 'relname', %s::text, 'relpages', %s::int, 'reltuples', %s::real,
    'relallvisible', %s::int, 'relallfrozen', %s::int)

-- set_column --
-- Let the planner know it of a column.
SELECT pg_restore_attribute_stats('version', %s::int, 'schemaname', %s::text, 'relname', %s::text, 'attname', %s::text, 'inherited', false,
    'null_frac', %s::real, 'avg_width', %s::int, 'n_distinct', %s::real, 'most_common_vals', %s::text, 'most_common_freqs', %s::real[],
    'histogram_bounds', %s::text, 'correlation', %s::real, 'most_common_elems', %s::text, 'most_common_elem_freqs', %s::real[],
    'elem_count_histogram', %s::real[], 'range_length_histogram', %s::text, 'range_empty_frac', %s::real, 'range_bounds_histogram', %s::text)

-- unknown --
-- Tables of a schema that have rows, and of which the planner knows too little.
SELECT c.relname FROM pg_class c WHERE c.relnamespace = %(schema)s::text::regnamespace AND c.relkind = 'r' AND pg_relation_size(c.oid) > 0 AND (
    NOT EXISTS (SELECT FROM pg_stats s WHERE s.schemaname = %(schema)s::text AND s.tablename = c.relname)
    OR EXISTS (SELECT FROM pg_statistic_ext e JOIN pg_namespace n ON n.oid = e.stxnamespace WHERE e.stxrelid = c.oid AND NOT EXISTS (
        SELECT FROM pg_stats_ext k WHERE k.statistics_schemaname = n.nspname AND k.statistics_name = e.stxname)))
