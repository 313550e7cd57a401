"""Checks of the servers themselves: would they keep what they acknowledge, and is there room for what programs ask of them?"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from shardkit.core.chunks import CHUNK
from shardkit.core.health.facts import Facts, Finding, ServerFacts
from shardkit.core.shardmap import ServerState

TABLE_BYTES: Final = 25_000
"""What a backend keeps of a table it has touched (measured), and of a prepared statement."""
PREPARED_BYTES: Final = 17_000


def servers(facts: Facts) -> Iterator[Finding]:
    """Every server answers, and is the one that the map means."""
    for name, found in facts.servers.items():
        if isinstance(found, str):
            down = facts.map.servers[name].state is ServerState.DOWN
            yield Finding(
                "servers", name, found, "start it, or correct its DSN (`shardkit status`)", "risk" if down else "problem"
            )


def settings(facts: Facts) -> Iterator[Finding]:
    """Settings without which moves or transactions over several shards do not work."""
    for name, found in facts.answered().items():
        level = found.settings["wal_level"]
        if level != "logical":
            yield Finding(
                "settings", name, f"wal_level is {level}: no shard can be moved", "wal_level = logical, and a restart"
            )
        if found.settings["max_prepared_transactions"] == "0":
            yield Finding(
                "settings",
                name,
                "max_prepared_transactions is 0: kit.transaction over several shards is refused",
                "max_prepared_transactions = 20 or more, and a restart",
                "risk",
            )
        if found.settings["server_encoding"] != "UTF8":
            yield Finding(
                "settings", name, "the encoding is not UTF8: PostgreSQL hashes tenants otherwise", "move its shards away"
            )


def durability(facts: Facts) -> Iterator[Finding]:
    """Settings that let a server forget what it has acknowledged."""
    for name, found in facts.answered().items():
        for setting, bad in (("fsync", {"off"}), ("full_page_writes", {"off"}), ("synchronous_commit", {"off", "local"})):
            value = found.settings[setting]
            if value in bad:
                yield Finding(
                    "durability", name, f"{setting} is {value}: a crash may lose acknowledged writes", f"{setting} = on", "risk"
                )
        for who in found.asynchronous_commit:
            yield Finding(
                "durability",
                name,
                f"synchronous_commit is weakened for {who}: a crash may lose its acknowledged writes",
                "ALTER ROLE or ALTER DATABASE … RESET synchronous_commit",
                "risk",
            )


def standby(facts: Facts) -> Iterator[Finding]:
    """A failover loses nothing, and gives no id twice."""
    for name, found in facts.answered().items():
        if not found.synchronous_standbys:
            has = f"{found.standbys} standbys, none of them synchronous" if found.standbys else "no standby"
            yield Finding(
                "standby",
                name,
                f"it has {has}: acknowledged writes are lost at a failover"
                + ("" if found.standbys else ", or with its disk")
                + ", and a fence that had not reached the standby is open again until a program notices",
                "a streaming standby and synchronous_standby_names, or accept it: --skip standby",
                "risk",
            )
        for replica in found.replicas:
            if replica.problem:
                yield Finding(
                    "standby", name, f"replica {replica.dsn}: {replica.problem}", "mend it, or take it out of the map"
                )
            elif not found.synchronous_standbys and _behind(found, replica.clock_s, replica.clock_error_s) > 0:
                yield Finding(
                    "standby",
                    name,
                    f"replica {replica.dsn} is asynchronous and its clock is "
                    f"{(found.clock_s - replica.clock_s) * 1000:.0f} ms behind: after a failover ids could be issued again",
                    "let NTP set its clock, or make it synchronous",
                    "risk",
                )


def _behind(found: ServerFacts, clock_s: float, error_s: float) -> float:
    """By how much another clock is surely behind the server's; below 0 where that is not sure."""
    return found.clock_s - clock_s - (found.clock_error_s + error_s) - 0.02


def clocks(facts: Facts) -> Iterator[Finding]:
    """Clocks agree: ids carry the time of the server that made them."""
    limit = facts.limits.clock_s
    for name, found in facts.answered().items():
        off = abs(found.clock_s) - found.clock_error_s
        if off > limit:
            way = "ahead of" if found.clock_s > 0 else "behind"
            yield Finding(
                "clocks",
                name,
                f"its clock is {abs(found.clock_s):.1f} s {way} this machine's: ids of different servers do not sort by time",
                "NTP on every machine",
                "risk",
            )


def locks(facts: Facts) -> Iterator[Finding]:
    """The lock table has room for a fan-out over every shard, and for dropping one."""
    for name, found in facts.answered().items():
        if not found.schemas:
            continue
        number = {key: int(found.settings[key]) for key in ("max_locks_per_transaction", "max_connections")}
        prepared = int(found.settings["max_prepared_transactions"])
        room = number["max_locks_per_transaction"] * (number["max_connections"] + prepared)
        widest = max(schema.widest for schema in found.schemas)
        chunk = min(CHUNK, len(found.schemas)) * widest * facts.limits.fan_out_connections
        needed = chunk + max(schema.relations for schema in found.schemas)
        if needed > room:
            yield Finding(
                "locks",
                name,
                f"max_locks_per_transaction = {number['max_locks_per_transaction']} gives room for {room} locks; one program's "
                f"fan-out and the drop of a shard need {needed}: they end in 'out of shared memory'",
                f"max_locks_per_transaction = {-(-2 * needed // (number['max_connections'] + prepared))}, and a restart",
                "risk",
            )


def memory(facts: Facts) -> Iterator[Finding]:
    """A connection does not grow too big by the schemas it touches."""
    limits = facts.limits
    for name, found in facts.answered().items():
        tables = sum(schema.tables for schema in found.schemas)
        size = tables * TABLE_BYTES + limits.prepared_max * PREPARED_BYTES
        if size > limits.backend_bytes:
            programs = max(1, len(facts.programs))
            yield Finding(
                "memory",
                name,
                f"a connection that has touched all {tables} tables of {len(found.schemas)} shards holds {size >> 20} MB, "
                f"and {programs} programs may have {programs * limits.connection_budget} of them",
                "a shorter connection_lifetime_s, a smaller prepared_max, or more servers; --backend-memory says what is fine",
                "risk",
            )


def connections(facts: Facts) -> Iterator[Finding]:
    """Every running program can have the connections of its budget."""
    budgets = [program.budget for program in facts.programs] or [facts.limits.connection_budget]
    if facts.limits.pooled:
        return  # the pooler's own limits count then
    for name, found in facts.answered().items():
        reserved = int(found.settings["superuser_reserved_connections"]) + int(found.settings["reserved_connections"])
        room = int(found.settings["max_connections"]) - reserved
        if sum(budgets) > room:
            yield Finding(
                "connections",
                name,
                f"{len(budgets)} programs may hold {sum(budgets)} connections, and it has room for {room}: the last ones are "
                "refused when all are busy",
                "a smaller connection_budget and pool_size, PgBouncer, or a larger max_connections",
                "risk",
            )


def pooler(facts: Facts) -> Iterator[Finding]:
    """What stands between programs and PostgreSQL is what the settings say."""
    pooled = {**{name: found.pooled for name, found in facts.answered().items()}, "catalog": facts.catalog_pooled}
    for name, found in pooled.items():
        if found and not facts.limits.pooled:
            yield Finding(
                "pooler",
                name,
                "something that pools connections stands before it and the setting pooler is 'none': prepared statements and "
                "settings of one program would reach another's; routed sessions refuse to use it",
                'pooler = "pgbouncer-transaction", or the address of PostgreSQL itself',
            )
