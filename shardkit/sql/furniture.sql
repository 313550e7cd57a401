-- shardkit_keys --
-- This shard's part of the registry of keys that are unique over all shards; it names other tenants, so only operators read it.
CREATE TABLE {schema}.shardkit_keys (
    kind text NOT NULL,
    key text NOT NULL,
    tenant text NOT NULL,
    token uuid NOT NULL,
    confirmed boolean NOT NULL DEFAULT false,
    reserved_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (kind, key)
);
REVOKE ALL ON {schema}.shardkit_keys FROM {app};
GRANT SELECT, INSERT, UPDATE, DELETE ON {schema}.shardkit_keys TO {operator}

-- shardkit_claims --
-- Stands in the shard of a row that has such a key, written in the row's own transaction: who finds a claim there, or puts a void
-- one in its place, knows whether that transaction was committed, or can never be.
CREATE TABLE {schema}.shardkit_claims (token uuid PRIMARY KEY, void boolean NOT NULL DEFAULT false);
REVOKE ALL ON {schema}.shardkit_claims FROM {app};
GRANT INSERT ON {schema}.shardkit_claims TO {app};
GRANT SELECT, INSERT, UPDATE, DELETE ON {schema}.shardkit_claims TO {operator}

-- shardkit_outbox --
-- Effects on other tenants until they are applied.
CREATE TABLE {schema}.shardkit_outbox (
    id bigint PRIMARY KEY DEFAULT {schema}.next_id(),
    from_tenant text NOT NULL DEFAULT current_setting('shardkit.tenant'),
    to_tenant text NOT NULL,
    kind text NOT NULL,
    payload jsonb NOT NULL,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
ALTER TABLE {schema}.shardkit_outbox ENABLE ROW LEVEL SECURITY;
CREATE POLICY shardkit_tenant ON {schema}.shardkit_outbox TO {app}
    USING (from_tenant = current_setting('shardkit.tenant')) WITH CHECK (from_tenant = current_setting('shardkit.tenant'));
CREATE POLICY shardkit_operator ON {schema}.shardkit_outbox TO {operator} USING (true) WITH CHECK (true)

-- shardkit_inbox --
-- How far effects of other tenants were applied here.
CREATE TABLE {schema}.shardkit_inbox (
    from_shard integer NOT NULL,
    from_tenant text NOT NULL,
    to_tenant text NOT NULL,
    last bigint NOT NULL,
    PRIMARY KEY (from_shard, from_tenant, to_tenant)
);
ALTER TABLE {schema}.shardkit_inbox ENABLE ROW LEVEL SECURITY;
CREATE POLICY shardkit_tenant ON {schema}.shardkit_inbox TO {app}
    USING (to_tenant = current_setting('shardkit.tenant')) WITH CHECK (to_tenant = current_setting('shardkit.tenant'));
CREATE POLICY shardkit_operator ON {schema}.shardkit_inbox TO {operator} USING (true) WITH CHECK (true)

-- shardkit_cache_outbox --
-- Names of cached rows that a writer could not mark in Redis, committed with what it changed; they name tenants, so only
-- operators read them.
CREATE TABLE {schema}.shardkit_cache_outbox (
    id bigint PRIMARY KEY DEFAULT {schema}.next_id(),
    xid bigint NOT NULL,
    names text[] NOT NULL,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
REVOKE ALL ON {schema}.shardkit_cache_outbox FROM {app};
GRANT INSERT ON {schema}.shardkit_cache_outbox TO {app};
GRANT SELECT, INSERT, UPDATE, DELETE ON {schema}.shardkit_cache_outbox TO {operator}
