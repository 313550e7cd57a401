-- structure --
-- Everything in a schema as DDL, one object a row: (phase, kind, name, ddl). Phase 1 is made before the rows are copied, phase 2
-- after. Run with an empty search_path, so that every name comes out qualified. Two schemas of one name on two servers are
-- alike exactly when this gives the same rows.
WITH ns AS (SELECT oid, nspname, nspowner, nspacl FROM pg_namespace WHERE nspname = %(schema)s),
rel AS (
    SELECT c.*, format('%%I.%%I', ns.nspname, c.relname) AS full_name,
           CASE c.relkind WHEN 'r' THEN 'TABLE' WHEN 'v' THEN 'VIEW' WHEN 'm' THEN 'MATERIALIZED VIEW' WHEN 'S' THEN 'SEQUENCE'
                          WHEN 'i' THEN 'INDEX' WHEN 'c' THEN 'TYPE' END AS word,
           coalesce(' WITH (' || nullif(array_to_string(c.reloptions || ARRAY(SELECT 'toast.' || unnest(o.reloptions)), ', '), '') || ')',
                    '') AS with_options
    FROM pg_class c JOIN ns ON c.relnamespace = ns.oid LEFT JOIN pg_class o ON o.oid = c.reltoastrelid WHERE c.relkind IN ('r', 'v', 'm', 'S', 'i', 'c')
),
seq AS (
    SELECT s.seqrelid, format(' AS %%s', format_type(s.seqtypid, NULL)) AS as_type,
           format('INCREMENT BY %%s MINVALUE %%s MAXVALUE %%s START WITH %%s CACHE %%s%%s', s.seqincrement, s.seqmin, s.seqmax,
                  s.seqstart, s.seqcache, CASE WHEN s.seqcycle THEN ' CYCLE' ELSE ' NO CYCLE' END) AS options,
           d.deptype, d.refobjid AS owner_table, d.refobjsubid AS owner_column
    FROM pg_sequence s LEFT JOIN pg_depend d ON d.classid = 'pg_class'::regclass AND d.objid = s.seqrelid AND d.objsubid = 0
         AND d.refclassid = 'pg_class'::regclass AND d.deptype IN ('a', 'i')
),
col AS (
    SELECT a.attrelid, a.attnum, a.attname, concat(
        format('%%I %%s', a.attname, format_type(a.atttypid, a.atttypmod)),
        CASE WHEN a.attcollation <> t.typcollation AND a.attcollation <> 0
             THEN (SELECT format(' COLLATE %%I.%%I', n.nspname, o.collname) FROM pg_collation o JOIN pg_namespace n ON n.oid = o.collnamespace
                   WHERE o.oid = a.attcollation) END,
        CASE WHEN a.attcompression = 'p' THEN ' COMPRESSION pglz' WHEN a.attcompression = 'l' THEN ' COMPRESSION lz4' END,
        CASE a.attgenerated WHEN 's' THEN format(' GENERATED ALWAYS AS (%%s) STORED', pg_get_expr(e.adbin, e.adrelid))
                            WHEN 'v' THEN format(' GENERATED ALWAYS AS (%%s) VIRTUAL', pg_get_expr(e.adbin, e.adrelid))
                            ELSE ' DEFAULT ' || pg_get_expr(e.adbin, e.adrelid) END,
        CASE a.attidentity WHEN '' THEN NULL ELSE (
            SELECT format(' GENERATED %%s AS IDENTITY (SEQUENCE NAME %%s %%s)',
                          CASE a.attidentity WHEN 'a' THEN 'ALWAYS' ELSE 'BY DEFAULT' END, r.full_name, q.options)
            FROM seq q JOIN rel r ON r.oid = q.seqrelid
            WHERE q.deptype = 'i' AND q.owner_table = a.attrelid AND q.owner_column = a.attnum) END,
        CASE WHEN a.attnotnull AND nn.convalidated IS NOT FALSE THEN coalesce(' CONSTRAINT ' || quote_ident(nn.conname), '') || ' NOT NULL' END) AS definition
    FROM pg_attribute a JOIN rel ON rel.oid = a.attrelid JOIN pg_type t ON t.oid = a.atttypid
    LEFT JOIN pg_attrdef e ON e.adrelid = a.attrelid AND e.adnum = a.attnum
    LEFT JOIN pg_constraint nn ON nn.conrelid = a.attrelid AND nn.contype = 'n' AND nn.conkey = ARRAY[a.attnum]
    WHERE a.attnum > 0 AND NOT a.attisdropped
),
acl AS (
    SELECT o.word, o.full_name, o.owner, x.grantee, x.privilege_type, x.is_grantable, o.part
    FROM (
        SELECT 'SCHEMA' AS word, quote_ident(nspname) AS full_name, nspowner AS owner, coalesce(nspacl, acldefault('n', nspowner)) AS acl, '' AS part FROM ns
        UNION ALL SELECT CASE relkind WHEN 'S' THEN 'SEQUENCE' ELSE 'TABLE' END, full_name, relowner,
               coalesce(relacl, acldefault(CASE relkind WHEN 'S' THEN 's'::"char" ELSE 'r'::"char" END, relowner)), ''
               FROM rel WHERE relkind IN ('r', 'v', 'm', 'S')
        UNION ALL SELECT 'TABLE', full_name, relowner, a.attacl, format(' (%%I)', a.attname)
               FROM rel JOIN pg_attribute a ON a.attrelid = rel.oid AND a.attacl IS NOT NULL AND NOT a.attisdropped WHERE relkind IN ('r', 'v', 'm')
        UNION ALL SELECT CASE p.prokind WHEN 'p' THEN 'PROCEDURE' ELSE 'FUNCTION' END, p.oid::regprocedure::text, p.proowner,
               coalesce(p.proacl, acldefault('f', p.proowner)), '' FROM pg_proc p JOIN ns ON p.pronamespace = ns.oid
        UNION ALL SELECT 'TYPE', t.oid::regtype::text, t.typowner, t.typacl, '' FROM pg_type t JOIN ns ON t.typnamespace = ns.oid
               WHERE t.typtype IN ('e', 'd', 'c') AND t.typacl IS NOT NULL
    ) o LEFT JOIN LATERAL aclexplode(o.acl) x ON x.grantee <> o.owner
),
owners AS (
    SELECT 'SCHEMA' AS word, quote_ident(nspname) AS full_name, nspowner AS owner FROM ns
    UNION ALL SELECT word, full_name, relowner FROM rel WHERE relkind IN ('r', 'v', 'm', 'S')
           AND NOT EXISTS (SELECT FROM seq WHERE seq.seqrelid = rel.oid AND seq.deptype IS NOT NULL)
    UNION ALL SELECT CASE p.prokind WHEN 'p' THEN 'PROCEDURE' ELSE 'FUNCTION' END, p.oid::regprocedure::text, p.proowner
           FROM pg_proc p JOIN ns ON p.pronamespace = ns.oid
    UNION ALL SELECT 'TYPE', t.oid::regtype::text, t.typowner FROM pg_type t JOIN ns ON t.typnamespace = ns.oid
           WHERE t.typtype IN ('e', 'd') OR (t.typtype = 'c' AND EXISTS (SELECT FROM rel WHERE rel.oid = t.typrelid AND rel.relkind = 'c'))
),
remarks AS (
    SELECT d.classoid, d.objoid, d.objsubid, d.description FROM pg_description d
),
result (phase, rank, kind, name, ddl) AS (
    SELECT 1, 10, 'type', t.oid::regtype::text, CASE t.typtype
        WHEN 'e' THEN format('CREATE TYPE %%s AS ENUM (%%s)', t.oid::regtype,
                             (SELECT string_agg(quote_literal(enumlabel), ', ' ORDER BY enumsortorder) FROM pg_enum WHERE enumtypid = t.oid))
        WHEN 'c' THEN format('CREATE TYPE %%s AS (%%s)', t.oid::regtype,
                             (SELECT string_agg(definition, ', ' ORDER BY attnum) FROM col WHERE attrelid = t.typrelid))
        WHEN 'd' THEN concat(format('CREATE DOMAIN %%s AS %%s', t.oid::regtype, format_type(t.typbasetype, t.typtypmod)),
                             (SELECT format(' COLLATE %%I.%%I', n.nspname, o.collname) FROM pg_collation o
                              JOIN pg_namespace n ON n.oid = o.collnamespace JOIN pg_type b ON b.oid = t.typbasetype
                              WHERE o.oid = t.typcollation AND t.typcollation <> b.typcollation),
                             ' DEFAULT ' || coalesce(pg_get_expr(t.typdefaultbin, 0), t.typdefault),  -- the text has the names of then
                             CASE WHEN t.typnotnull THEN ' NOT NULL' END,
                             (SELECT string_agg(format(' CONSTRAINT %%I %%s', conname, pg_get_constraintdef(oid)), '' ORDER BY conname)
                              FROM pg_constraint WHERE contypid = t.oid AND contype = 'c' AND convalidated)) END
    FROM pg_type t JOIN ns ON t.typnamespace = ns.oid
    WHERE t.typtype IN ('e', 'd') OR (t.typtype = 'c' AND EXISTS (SELECT FROM rel WHERE rel.oid = t.typrelid AND rel.relkind = 'c'))
    UNION ALL
    SELECT 1, 20, 'sequence', full_name, concat('CREATE SEQUENCE ', full_name, seq.as_type, ' ', seq.options)
    FROM rel JOIN seq ON seq.seqrelid = rel.oid AND seq.deptype IS DISTINCT FROM 'i'
    UNION ALL
    SELECT 1, 30, 'function', p.oid::regprocedure::text, pg_get_functiondef(p.oid)
    FROM pg_proc p JOIN ns ON p.pronamespace = ns.oid WHERE p.prokind IN ('f', 'p')
    UNION ALL
    SELECT 1, 40, 'table', full_name, concat('CREATE TABLE ', full_name, ' (',
        (SELECT string_agg(definition, ', ' ORDER BY attnum) FROM col WHERE attrelid = rel.oid), ')', with_options)
    FROM rel WHERE relkind = 'r'
    UNION ALL
    SELECT 1, 45, 'column', format('%%s.%%I', full_name, a.attname), concat(
        CASE WHEN a.attstorage <> t.typstorage THEN format('ALTER TABLE %%s ALTER COLUMN %%I SET STORAGE %%s;', full_name, a.attname,
             CASE a.attstorage WHEN 'p' THEN 'PLAIN' WHEN 'e' THEN 'EXTERNAL' WHEN 'x' THEN 'EXTENDED' ELSE 'MAIN' END) END,
        CASE WHEN coalesce(a.attstattarget, -1) >= 0 THEN format('ALTER TABLE %%s ALTER COLUMN %%I SET STATISTICS %%s;', full_name, a.attname, a.attstattarget) END,
        CASE WHEN a.options <> '' THEN format('ALTER TABLE %%s ALTER COLUMN %%I SET (%%s);', full_name, a.attname, a.options) END)
    FROM rel JOIN (
        SELECT *, (SELECT coalesce(string_agg(o, ', ' ORDER BY o), '') FROM unnest(attoptions) o WHERE o LIKE 'n\_distinct%%') AS options
        FROM pg_attribute  -- some builds note things of their own among the options, which are no part of the structure
    ) a ON a.attrelid = rel.oid AND a.attnum > 0 AND NOT a.attisdropped JOIN pg_type t ON t.oid = a.atttypid
    WHERE relkind = 'r' AND (a.attstorage <> t.typstorage OR coalesce(a.attstattarget, -1) >= 0 OR a.options <> '')
    UNION ALL
    SELECT 1, 50, 'owned sequence', q.full_name, format('ALTER SEQUENCE %%s OWNED BY %%s.%%I', q.full_name, t.full_name, a.attname)
    FROM rel q JOIN seq ON seq.seqrelid = q.oid AND seq.deptype = 'a' JOIN rel t ON t.oid = seq.owner_table
    JOIN pg_attribute a ON a.attrelid = t.oid AND a.attnum = seq.owner_column
    UNION ALL
    SELECT 2, 5, 'constraint', format('%%I on %%s', k.conname, t.oid::regtype),
           format('ALTER DOMAIN %%s ADD CONSTRAINT %%I %%s', t.oid::regtype, k.conname, pg_get_constraintdef(k.oid))
    FROM pg_constraint k JOIN pg_type t ON t.oid = k.contypid JOIN ns ON t.typnamespace = ns.oid
    WHERE k.contype = 'c' AND NOT k.convalidated
    UNION ALL
    SELECT 2, 10, 'constraint', format('%%s on %%s', quote_ident(k.conname), rel.full_name), concat(
           format('ALTER TABLE %%s ADD CONSTRAINT %%I %%s', rel.full_name, k.conname, pg_get_constraintdef(k.oid)),
           '; ALTER INDEX ' || i.full_name || ' SET (' || array_to_string(i.reloptions, ', ') || ')')
    FROM pg_constraint k JOIN rel ON rel.oid = k.conrelid LEFT JOIN rel i ON i.oid = k.conindid AND i.reloptions IS NOT NULL
    WHERE k.contype IN ('p', 'u', 'x')
    UNION ALL
    SELECT 2, 20, 'index', i.indexrelid::regclass::text, pg_get_indexdef(i.indexrelid)
    FROM pg_index i JOIN rel ON rel.oid = i.indrelid AND rel.relkind = 'r'
    WHERE NOT EXISTS (SELECT FROM pg_constraint k WHERE k.conindid = i.indexrelid AND k.contype IN ('p', 'u', 'x'))
    UNION ALL
    SELECT 2, 30, 'constraint', format('%%s on %%s', quote_ident(k.conname), rel.full_name),
           format('ALTER TABLE %%s ADD CONSTRAINT %%I %%s', rel.full_name, k.conname, pg_get_constraintdef(k.oid))
    FROM pg_constraint k JOIN rel ON rel.oid = k.conrelid WHERE k.contype = 'c' OR (k.contype = 'n' AND NOT k.convalidated)
    UNION ALL
    SELECT 2, 40, 'constraint', format('%%s on %%s', quote_ident(k.conname), rel.full_name),
           format('ALTER TABLE %%s ADD CONSTRAINT %%I %%s', rel.full_name, k.conname, pg_get_constraintdef(k.oid))
    FROM pg_constraint k JOIN rel ON rel.oid = k.conrelid WHERE k.contype = 'f'
    UNION ALL
    SELECT 2, 50, 'replica identity', full_name, format('ALTER TABLE %%s REPLICA IDENTITY %%s', full_name,
           CASE relreplident WHEN 'f' THEN 'FULL' WHEN 'n' THEN 'NOTHING' ELSE 'USING INDEX ' || (
                SELECT quote_ident(c.relname) FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
                WHERE i.indrelid = rel.oid AND i.indisreplident) END)
    FROM rel WHERE relkind = 'r' AND relreplident <> 'd'
    UNION ALL
    SELECT 2, 55, 'clustered', t.full_name, format('ALTER TABLE %%s CLUSTER ON %%I', t.full_name, i.relname)
    FROM pg_index x JOIN rel t ON t.oid = x.indrelid AND t.relkind = 'r' JOIN rel i ON i.oid = x.indexrelid WHERE x.indisclustered
    UNION ALL
    SELECT 2, 60, 'view', full_name, format('CREATE %%s %%s (%%s)%%s AS %%s', word, full_name,
           (SELECT string_agg(quote_ident(attname), ', ' ORDER BY attnum) FROM col WHERE attrelid = rel.oid), with_options,
           rtrim(pg_get_viewdef(rel.oid), ';') || CASE WHEN relispopulated THEN '' ELSE ' WITH NO DATA' END)
    FROM rel WHERE relkind IN ('v', 'm')
    UNION ALL
    SELECT 2, 62, 'view column', format('%%s.%%I', full_name, a.attname),
           format('ALTER VIEW %%s ALTER COLUMN %%I SET DEFAULT %%s', full_name, a.attname, pg_get_expr(e.adbin, e.adrelid))
    FROM rel JOIN pg_attrdef e ON e.adrelid = rel.oid JOIN pg_attribute a ON a.attrelid = rel.oid AND a.attnum = e.adnum
    WHERE relkind = 'v'
    UNION ALL
    SELECT 2, 65, 'index', i.indexrelid::regclass::text, pg_get_indexdef(i.indexrelid)
    FROM pg_index i JOIN rel ON rel.oid = i.indrelid AND rel.relkind = 'm'
    UNION ALL
    SELECT 2, 68, 'index column', format('%%s.%%s', full_name, a.attnum),
           format('ALTER INDEX %%s ALTER COLUMN %%s SET STATISTICS %%s', full_name, a.attnum, a.attstattarget)
    FROM rel JOIN pg_attribute a ON a.attrelid = rel.oid WHERE relkind = 'i' AND coalesce(a.attstattarget, -1) >= 0
    UNION ALL
    SELECT 2, 70, 'rule', format('%%I on %%s', r.rulename, rel.full_name), concat(pg_get_ruledef(r.oid), CASE r.ev_enabled
           WHEN 'D' THEN format(' ALTER TABLE %%s DISABLE RULE %%I', rel.full_name, r.rulename)
           WHEN 'R' THEN format(' ALTER TABLE %%s ENABLE REPLICA RULE %%I', rel.full_name, r.rulename)
           WHEN 'A' THEN format(' ALTER TABLE %%s ENABLE ALWAYS RULE %%I', rel.full_name, r.rulename) END)
    FROM pg_rewrite r JOIN rel ON rel.oid = r.ev_class WHERE r.rulename <> '_RETURN'
    UNION ALL
    SELECT 2, 75, 'statistics', format('%%I.%%I', ns.nspname, s.stxname), concat(pg_get_statisticsobjdef(s.oid),
           CASE WHEN coalesce(s.stxstattarget, -1) >= 0
                THEN format('; ALTER STATISTICS %%I.%%I SET STATISTICS %%s', ns.nspname, s.stxname, s.stxstattarget) END)
    FROM pg_statistic_ext s JOIN ns ON s.stxnamespace = ns.oid
    UNION ALL
    SELECT 2, 80, 'trigger', format('%%I on %%s', g.tgname, rel.full_name), concat(pg_get_triggerdef(g.oid), CASE g.tgenabled
           WHEN 'D' THEN format('; ALTER TABLE %%s DISABLE TRIGGER %%I', rel.full_name, g.tgname) END)
    FROM pg_trigger g JOIN rel ON rel.oid = g.tgrelid WHERE NOT g.tgisinternal AND g.tgname <> %(guard)s
    UNION ALL
    SELECT 2, 85, 'row security', full_name, concat(
           CASE WHEN relrowsecurity THEN format('ALTER TABLE %%s ENABLE ROW LEVEL SECURITY;', full_name) END,
           CASE WHEN relforcerowsecurity THEN format('ALTER TABLE %%s FORCE ROW LEVEL SECURITY;', full_name) END)
    FROM rel WHERE relkind = 'r' AND (relrowsecurity OR relforcerowsecurity)
    UNION ALL
    SELECT 2, 86, 'policy', format('%%I on %%s', p.polname, rel.full_name), concat(
           format('CREATE POLICY %%I ON %%s AS %%s FOR %%s TO %%s', p.polname, rel.full_name,
                  CASE WHEN p.polpermissive THEN 'PERMISSIVE' ELSE 'RESTRICTIVE' END,
                  CASE p.polcmd WHEN 'r' THEN 'SELECT' WHEN 'a' THEN 'INSERT' WHEN 'w' THEN 'UPDATE' WHEN 'd' THEN 'DELETE' ELSE 'ALL' END,
                  (SELECT string_agg(CASE r WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(r)) END, ', ' ORDER BY 1)
                   FROM unnest(p.polroles) r)),
           ' USING (' || pg_get_expr(p.polqual, p.polrelid) || ')', ' WITH CHECK (' || pg_get_expr(p.polwithcheck, p.polrelid) || ')')
    FROM pg_policy p JOIN rel ON rel.oid = p.polrelid
    UNION ALL
    SELECT 2, 88, 'owner', word || ' ' || full_name, format('ALTER %%s %%s OWNER TO %%I', word, full_name, pg_get_userbyid(owner))
    FROM owners WHERE pg_get_userbyid(owner) <> current_user
    UNION ALL
    SELECT 2, 90, 'grants', format('%%s %%s%%s', word, full_name, part), concat(
           CASE part WHEN '' THEN format('REVOKE ALL ON %%s %%s FROM PUBLIC, shardkit_app, shardkit_operator;', word, full_name) END,
           string_agg(format('GRANT %%s%%s ON %%s %%s TO %%s%%s;', privilege_type, part, word, full_name,
                             CASE grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(grantee)) END,
                             CASE WHEN is_grantable THEN ' WITH GRANT OPTION' ELSE '' END), ''
                      ORDER BY pg_get_userbyid(grantee), privilege_type) FILTER (WHERE grantee IS NOT NULL))
    FROM acl GROUP BY word, full_name, part
    UNION ALL
    SELECT 2, 95, 'comment', o.what, format('COMMENT ON %%s IS %%L', o.what, d.description)
    FROM (
        SELECT 'pg_namespace'::regclass AS class, oid, 0 AS part, format('SCHEMA %%I', nspname) AS what FROM ns
        UNION ALL SELECT 'pg_class'::regclass, oid, 0, format('%%s %%s', word, full_name) FROM rel
        UNION ALL SELECT 'pg_class'::regclass, attrelid, attnum, format('COLUMN %%s.%%I', attrelid::regclass, attname) FROM col
        UNION ALL SELECT 'pg_proc'::regclass, p.oid, 0, format('%%s %%s', CASE p.prokind WHEN 'p' THEN 'PROCEDURE' ELSE 'FUNCTION' END, p.oid::regprocedure)
               FROM pg_proc p JOIN ns ON p.pronamespace = ns.oid
        UNION ALL SELECT 'pg_type'::regclass, t.oid, 0, format('TYPE %%s', t.oid::regtype) FROM pg_type t JOIN ns ON t.typnamespace = ns.oid
        UNION ALL SELECT 'pg_constraint'::regclass, k.oid, 0, format('CONSTRAINT %%I ON %%s', k.conname, rel.full_name)
               FROM pg_constraint k JOIN rel ON rel.oid = k.conrelid
        UNION ALL SELECT 'pg_constraint'::regclass, k.oid, 0, format('CONSTRAINT %%I ON DOMAIN %%s', k.conname, t.oid::regtype)
               FROM pg_constraint k JOIN pg_type t ON t.oid = k.contypid JOIN ns ON t.typnamespace = ns.oid
        UNION ALL SELECT 'pg_rewrite'::regclass, r.oid, 0, format('RULE %%I ON %%s', r.rulename, rel.full_name)
               FROM pg_rewrite r JOIN rel ON rel.oid = r.ev_class WHERE r.rulename <> '_RETURN'
        UNION ALL SELECT 'pg_trigger'::regclass, g.oid, 0, format('TRIGGER %%I ON %%s', g.tgname, rel.full_name)
               FROM pg_trigger g JOIN rel ON rel.oid = g.tgrelid
        UNION ALL SELECT 'pg_policy'::regclass, p.oid, 0, format('POLICY %%I ON %%s', p.polname, rel.full_name)
               FROM pg_policy p JOIN rel ON rel.oid = p.polrelid
        UNION ALL SELECT 'pg_statistic_ext'::regclass, s.oid, 0, format('STATISTICS %%I.%%I', ns.nspname, s.stxname)
               FROM pg_statistic_ext s JOIN ns ON s.stxnamespace = ns.oid
    ) o JOIN remarks d ON d.classoid = o.class AND d.objoid = o.oid AND d.objsubid = o.part
)
SELECT phase, kind, name, ddl FROM result ORDER BY phase, rank, name COLLATE "C"

-- unknown_objects --
-- Kinds of objects in a schema that a move cannot carry.
SELECT DISTINCT pg_describe_object(d.classid, d.objid, 0) FROM pg_depend d
JOIN pg_namespace n ON d.refclassid = 'pg_namespace'::regclass AND d.refobjid = n.oid AND n.nspname = %(schema)s
LEFT JOIN pg_class c ON d.classid = 'pg_class'::regclass AND c.oid = d.objid
LEFT JOIN pg_type t ON d.classid = 'pg_type'::regclass AND t.oid = d.objid
LEFT JOIN pg_proc p ON d.classid = 'pg_proc'::regclass AND p.oid = d.objid
WHERE d.classid NOT IN ('pg_class'::regclass, 'pg_type'::regclass, 'pg_proc'::regclass, 'pg_statistic_ext'::regclass,
                        'pg_publication_namespace'::regclass)
   OR c.relkind = 'f'
   OR p.prokind IN ('a', 'w') OR t.typtype IN ('r', 'm', 'b') AND t.typelem = 0
UNION
SELECT pg_describe_object(d.classid, d.objid, 0) FROM pg_depend d
LEFT JOIN pg_type t ON d.refclassid = 'pg_type'::regclass AND t.oid = d.refobjid
LEFT JOIN pg_proc p ON d.refclassid = 'pg_proc'::regclass AND p.oid = d.refobjid
WHERE d.classid IN ('pg_cast'::regclass, 'pg_event_trigger'::regclass, 'pg_transform'::regclass)
  AND coalesce(t.typnamespace, p.pronamespace) = to_regnamespace(%(schema)s)

-- tables --
-- Tables of a schema: name, columns to copy, all columns, key columns with their types, bytes, estimated rows.
SELECT c.relname,
       ARRAY(SELECT a.attname::text FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
             AND a.attgenerated = '' ORDER BY a.attnum),
       ARRAY(SELECT a.attname::text FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum),
       ARRAY(SELECT a.attname::text FROM unnest(i.indkey::int2[]) WITH ORDINALITY k (n, pos) JOIN pg_attribute a
             ON a.attrelid = c.oid AND a.attnum = k.n WHERE k.pos <= i.indnkeyatts ORDER BY k.pos),
       ARRAY(SELECT format_type(a.atttypid, a.atttypmod) FROM unnest(i.indkey::int2[]) WITH ORDINALITY k (n, pos) JOIN pg_attribute a
             ON a.attrelid = c.oid AND a.attnum = k.n WHERE k.pos <= i.indnkeyatts ORDER BY k.pos),
       pg_table_size(c.oid), greatest(c.reltuples, 0)::bigint, c.relreplident::text, c.relpersistence::text, c.oid::bigint
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace AND n.nspname = %(schema)s
LEFT JOIN pg_index i ON i.indrelid = c.oid AND i.indisvalid AND (CASE WHEN c.relreplident = 'i' THEN i.indisreplident ELSE i.indisprimary END)
WHERE c.relkind = 'r' ORDER BY c.relname

-- stamp --
-- Changes when anybody changes what a schema holds; and who is making something in it right now. Every step goes by an index:
-- it is asked while writers are held off, on servers with thousands of shards.
SELECT md5(string_agg(x, ',' ORDER BY x)), (
    SELECT count(*) FROM pg_locks l WHERE l.locktype = 'object' AND l.classid = 'pg_namespace'::regclass
        AND l.objid = to_regnamespace(%(schema)s) AND l.pid <> pg_backend_pid()
        AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database()))
FROM (
    SELECT concat_ws('.', d.classid, d.objid, c.xmin, t.xmin, p.xmin, s.xmin, e.oid, e.xmin, k.oid, k.xmin) AS x FROM pg_depend d
    LEFT JOIN pg_class c ON d.classid = 'pg_class'::regclass AND c.oid = d.objid
    LEFT JOIN pg_type t ON d.classid = 'pg_type'::regclass AND t.oid = d.objid
    LEFT JOIN pg_proc p ON d.classid = 'pg_proc'::regclass AND p.oid = d.objid
    LEFT JOIN pg_statistic_ext s ON d.classid = 'pg_statistic_ext'::regclass AND s.oid = d.objid
    LEFT JOIN pg_enum e ON e.enumtypid = t.oid
    LEFT JOIN pg_constraint k ON k.contypid = t.oid
    WHERE d.refclassid = 'pg_namespace'::regclass AND d.refobjid = to_regnamespace(%(schema)s)
    UNION ALL SELECT a.attrelid || '.' || a.attnum || '.' || a.xmin FROM pg_attribute a WHERE a.attrelid = ANY (%(tables)s::oid[]) AND a.attnum > 0
    UNION ALL SELECT k.oid || '.' || k.xmin FROM pg_constraint k WHERE k.conrelid = ANY (%(tables)s::oid[])
    UNION ALL SELECT d.oid || '.' || d.xmin FROM pg_attrdef d WHERE d.adrelid = ANY (%(tables)s::oid[])
    UNION ALL SELECT g.oid || '.' || g.xmin FROM pg_trigger g WHERE g.tgrelid = ANY (%(tables)s::oid[])
    UNION ALL SELECT p.oid || '.' || p.xmin FROM pg_policy p WHERE p.polrelid = ANY (%(tables)s::oid[])
    UNION ALL SELECT r.oid || '.' || r.xmin FROM pg_rewrite r WHERE r.ev_class = ANY (%(tables)s::oid[])
    UNION ALL SELECT concat_ws('.', i.indexrelid, i.xmin, c.xmin) FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
              WHERE i.indrelid = ANY (%(tables)s::oid[])
) changed
