-- has_cluster --
-- Whether the catalog's tables exist.
SELECT to_regclass('shardkit_catalog.cluster') IS NOT NULL

-- cluster --
-- The one row that says what this cluster is, and the version of its map.
SELECT cluster_id, shard_count, tenant_type, hash_version, map_version, ready FROM shardkit_catalog.cluster

-- news --
-- The same, and what changed after a map version, in one snapshot and one round trip.
SELECT cluster_id, shard_count, tenant_type, hash_version, map_version, ready,
       (SELECT json_agg(json_build_array(name, dsn, server_id, weight, state, replicas, timeline) ORDER BY name)
        FROM shardkit_catalog.servers WHERE map_version <> %(version)s),
       (SELECT json_agg(json_build_array(shard, server, epoch, parent)) FROM shardkit_catalog.placements WHERE changed_in > %(version)s),
       (SELECT json_agg(json_build_array(tenant, shard)) FROM shardkit_catalog.pins WHERE changed_in > %(version)s)
FROM shardkit_catalog.cluster

-- map_version --
-- The version of the map, to see whether there is a newer one.
SELECT map_version FROM shardkit_catalog.cluster

-- servers --
-- All servers; they are few.
SELECT name, dsn, server_id, weight, state, replicas, timeline FROM shardkit_catalog.servers ORDER BY name

-- placements_since --
-- Placements changed after a map version.
SELECT shard, server, epoch, parent FROM shardkit_catalog.placements WHERE changed_in > %(version)s

-- pins_since --
-- Pins changed after a map version; a removed one has no shard.
SELECT tenant, shard FROM shardkit_catalog.pins WHERE changed_in > %(version)s

-- create_cluster --
-- Begin a cluster; the primary key lets only one row in.
INSERT INTO shardkit_catalog.cluster (cluster_id, shard_count, tenant_type, hash_version, map_version)
VALUES (%(cluster_id)s, %(shard_count)s, %(tenant_type)s, %(hash_version)s, 1)

-- make_ready --
-- The last step of an init: from now on programs may use the cluster.
UPDATE shardkit_catalog.cluster SET ready = true

-- lock_version --
-- Compare and set: raise the map's version if it is still the one the change was planned on.
UPDATE shardkit_catalog.cluster SET map_version = map_version + 1
WHERE map_version = %(expected)s RETURNING map_version

-- raise_version --
-- Raise the map's version whatever it is, for changes that do not depend on the rest of the map.
UPDATE shardkit_catalog.cluster SET map_version = map_version + 1 RETURNING map_version

-- put_server --
-- Add a server.
INSERT INTO shardkit_catalog.servers (name, dsn, server_id, weight, state, replicas, changed_in)
VALUES (%(name)s, %(dsn)s, %(server_id)s, %(weight)s, %(state)s, %(replicas)s, %(version)s)

-- change_server --
-- Change what is given of a server.
UPDATE shardkit_catalog.servers SET dsn = coalesce(%(dsn)s, dsn), weight = coalesce(%(weight)s, weight),
    state = coalesce(%(state)s, state), changed_in = %(version)s WHERE name = %(name)s

-- set_replicas --
-- Change where a server's replicas are.
UPDATE shardkit_catalog.servers SET replicas = %(replicas)s, changed_in = %(version)s WHERE name = %(name)s

-- raise_timeline --
-- Remember that a server was promoted; never back.
UPDATE shardkit_catalog.servers SET timeline = %(timeline)s, changed_in = %(version)s
WHERE name = %(name)s AND timeline < %(timeline)s

-- remove_server --
-- Remove a server; the foreign key refuses it while a shard is placed there.
DELETE FROM shardkit_catalog.servers WHERE name = %(name)s

-- put_placement --
-- Place a new shard.
INSERT INTO shardkit_catalog.placements (shard, server, epoch, parent, changed_in)
VALUES (%(shard)s, %(server)s, %(epoch)s, %(parent)s, %(version)s)

-- flip_placement --
-- Compare and set: send a shard to a server at its next epoch, if it is still at the expected one.
UPDATE shardkit_catalog.placements SET server = %(server)s, epoch = %(epoch)s, changed_in = %(version)s
WHERE shard = %(shard)s AND epoch = %(expected_epoch)s

-- put_pin --
-- Send one tenant to a named shard, against its hash; without a shard the pin is taken away.
INSERT INTO shardkit_catalog.pins (tenant, shard, changed_in) VALUES (%(tenant)s, %(shard)s, %(version)s)
ON CONFLICT (tenant) DO UPDATE SET shard = excluded.shard, changed_in = excluded.changed_in

-- notify --
-- Tell every running program that there is a newer map.
SELECT pg_notify('shardkit_map', %(version)s::text)
