-- put --
-- What one program did since it last said so, one row.
INSERT INTO shardkit_catalog.loads (program, window_s, shards, units, tenants, tenant_shards, tenant_units, tenant_errors)
VALUES (%(program)s, %(window_s)s, %(shards)s, %(units)s, %(tenants)s, %(tenant_shards)s, %(tenant_units)s, %(tenant_errors)s)

-- forget --
-- What is too old to say anything of now.
DELETE FROM shardkit_catalog.loads WHERE at < now() - make_interval(secs => %(older_s)s)

-- has_loads --
-- Whether the catalog is new enough to keep loads.
SELECT to_regclass('shardkit_catalog.loads') IS NOT NULL

-- shards --
-- Units of work by shard, of all programs, lately.
SELECT l.shard, sum(l.unit)::bigint FROM shardkit_catalog.loads, unnest(shards, units) AS l (shard, unit)
WHERE at > now() - make_interval(secs => %(since_s)s) GROUP BY 1

-- tenants --
-- Units of work by tenant, of all programs, lately: the most active first, with what the number may be too high by.
SELECT l.tenant, (array_agg(l.shard ORDER BY at DESC))[1], sum(l.unit)::bigint, sum(l.error)::bigint
FROM shardkit_catalog.loads, unnest(tenants, tenant_shards, tenant_units, tenant_errors) AS l (tenant, shard, unit, error)
WHERE at > now() - make_interval(secs => %(since_s)s) GROUP BY 1 ORDER BY 3 DESC, 1 LIMIT %(most)s

-- has_latencies --
-- Whether the catalog is new enough to keep latencies.
SELECT to_regclass('shardkit_catalog.latencies') IS NOT NULL

-- put_latencies --
-- How often each shard took how long in one program since it last said so, one row.
INSERT INTO shardkit_catalog.latencies (program, shards, buckets, times)
VALUES (%(program)s, %(shards)s, %(buckets)s, %(times)s)

-- forget_latencies --
-- What is too old to say anything of now.
DELETE FROM shardkit_catalog.latencies WHERE at < now() - make_interval(secs => %(older_s)s)

-- latencies --
-- How often each shard took how long, in all programs together, lately.
SELECT l.shard, l.bucket, sum(l.times)::bigint FROM shardkit_catalog.latencies, unnest(shards, buckets, times) AS l (shard, bucket, times)
WHERE at > now() - make_interval(secs => %(since_s)s) GROUP BY 1, 2
