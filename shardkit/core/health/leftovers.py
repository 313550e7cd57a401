"""Checks of what was begun and not ended: slots that hold WAL back, transactions in doubt, moves nobody works on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from shardkit.core.health.facts import Facts, Finding, MoveFacts, SlotFacts
from shardkit.core.moving import Step
from shardkit.core.names import relay_slot_name, relay_slot_prefix, stream_name

SETTLED_S: Final = 60.0  # what is prepared for longer than this has no coordinator
RETAINED_BYTES: Final = 1 << 30
UNFOLLOWED_BYTES: Final = 64 << 20  # a relay that is run now and then (--once) holds back less


def _streams(facts: Facts) -> set[str]:
    """Names of the publications, slots and subscriptions of moves that have not ended."""
    return {stream_name(facts.map.cluster_id, move.id, way) for move in facts.moves for way in ("out", "back")}


def _left_alone(facts: Facts) -> dict[str, MoveFacts]:
    """The moves by their streams of which nobody watches how much WAL they hold back: those that soak, or stopped."""
    busy = {shard for move in facts.moves if move.held for shard in (move.shard, move.into_shard)}
    return {
        stream_name(facts.map.cluster_id, move.id, way): move
        for move in facts.moves
        for way in ("out", "back")
        if move.shard not in busy and move.into_shard not in busy - {None}
    }


def _ours(facts: Facts, name: str) -> bool:
    return name.startswith(f"shardkit_{facts.map.cluster_id.hex[:8]}_")


def slots(facts: Facts) -> Iterator[Finding]:
    """No slot holds WAL back for nobody."""
    alive, relays, alone = _streams(facts), relay_slot_prefix(facts.map.cluster_id), _left_alone(facts)
    for name, found in facts.answered().items():
        for slot in found.slots:
            held = f"{slot.retained_bytes >> 20} MB of WAL"
            if slot.name.startswith(relays) and slot.status != "lost":
                yield from _relay_slot(facts, name, slot, held, relayed=bool(found.relays))
            elif _ours(facts, slot.name) and slot.name not in alive:
                yield Finding(
                    "slots",
                    name,
                    f"the slot {slot.name} belongs to a move that has ended, and holds back {held}",
                    f"SELECT pg_drop_replication_slot('{slot.name}')",
                )
            elif slot.status == "lost":
                yield Finding(
                    "slots",
                    name,
                    f"the slot {slot.name} has lost its WAL: who reads it cannot go on",
                    "abort that move, or drop it",
                )
            elif slot.name in alone and not slot.active and slot.retained_bytes > RETAINED_BYTES:
                move = alone[slot.name]
                yield Finding(
                    "slots",
                    name,
                    f"nobody reads the slot {slot.name} of move {move.id}, and it holds back {held}: the disk fills up",
                    f"`shardkit moves {'finish' if move.step is Step.SOAK else 'resume'} {move.id}`; the log of the server "
                    "that should read it says why it does not",
                    "risk",
                )
            elif not slot.active and slot.name not in alive and slot.retained_bytes > RETAINED_BYTES:
                yield Finding(
                    "slots",
                    name,
                    f"nobody reads the slot {slot.name}, and it holds back {held}: the disk fills up",
                    f"let its reader go on, or SELECT pg_drop_replication_slot('{slot.name}')",
                    "risk",
                )


def _relay_slot(facts: Facts, server: str, slot: SlotFacts, held: str, *, relayed: bool) -> Iterator[Finding]:
    """A slot of the cache's relay has one that reads it."""
    drop = f"SELECT pg_drop_replication_slot('{slot.name}')"
    if slot.name != relay_slot_name(facts.map.cluster_id, server) or not facts.map.shards_on(server):
        yield Finding(
            "slots",
            server,
            f"the slot {slot.name} was made by a cache relay that has nothing to follow by it any more, and holds back {held}",
            drop,
        )
    elif slot.retained_bytes > (RETAINED_BYTES if relayed else UNFOLLOWED_BYTES):
        why = "the cache relay is far behind with" if relayed else "no cache relay is connected to read"
        yield Finding(
            "slots",
            server,
            f"{why} the slot {slot.name}, and it holds back {held}",
            f"let `shardkit cache relay` go on; or end it for good: `shardkit cache relay --remove`, or here {drop}",
            "risk",
        )


def streams(facts: Facts) -> Iterator[Finding]:
    """No publication or subscription is left of a move that has ended."""
    alive = _streams(facts)
    for name, found in facts.answered().items():
        for kind, names in (("subscription", found.subscriptions), ("publication", found.publications)):
            for one in names:
                if _ours(facts, one) and one not in alive:
                    undo = (
                        f"ALTER SUBSCRIPTION {one} DISABLE; ALTER SUBSCRIPTION {one} SET (slot_name = NONE); "
                        if kind == "subscription"
                        else ""
                    )
                    yield Finding(
                        "streams",
                        name,
                        f"the {kind} {one} belongs to a move that has ended",
                        f"{undo}DROP {kind.upper()} {one}",
                    )


def prepared(facts: Facts) -> Iterator[Finding]:
    """No prepared transaction waits for a coordinator that is gone: its rows stay locked, and vacuum stands still."""
    for name, found in facts.answered().items():
        for part in found.prepared:
            if part.ours and (part.overdue or (part.outcome is not None and part.age_s > SETTLED_S)):
                decided = (
                    f"the record says {part.outcome}" if part.outcome else "nothing was decided, so it is to be rolled back"
                )
                yield Finding(
                    "prepared",
                    name,
                    f"a part of a transaction over several shards waits for {part.age_s:.0f} s; {decided}",
                    "`shardkit doctor --fix` ends it by the record",
                )
            elif not part.ours and part.age_s > SETTLED_S:
                yield Finding(
                    "prepared",
                    name,
                    f"a prepared transaction of somebody else ({part.gid[:40]}) waits for {part.age_s:.0f} s: no shard can be "
                    "moved from here meanwhile",
                    "COMMIT PREPARED or ROLLBACK PREPARED, as its coordinator would",
                    "risk",
                )


def outbox(facts: Facts) -> Iterator[Finding]:
    """Effects on other tenants are applied, and markers that Redis missed are brought to it."""
    kinds = {
        False: ("effects on other tenants", "a worker that runs kit.outbox.work; its log names effects that fail"),
        True: ("transactions whose markers Redis has not got: readers may see older rows", "`shardkit cache drain`"),
    }
    for name, found in facts.answered().items():
        for of_cache, (what, remedy) in kinds.items():
            late = [one for one in found.waiting if one.of_cache is of_cache and one.oldest_s > facts.limits.waiting_s]
            if late:
                rows, oldest_s = sum(one.rows for one in late), max(one.oldest_s for one in late)
                yield Finding(
                    "outbox",
                    name,
                    f"{rows} {what}; they wait in {len(late)} shards, the oldest for {oldest_s / 60:.0f} min",
                    remedy,
                    "risk",
                )


def moves(facts: Facts) -> Iterator[Finding]:
    """Every move that has not ended is worked on, or soaks on purpose."""
    for move in facts.moves:
        if move.held or (move.step is Step.SOAK and move.problem is None):
            continue
        if move.problem or move.idle_s > facts.limits.idle_move_s:
            why = (
                f": {move.problem.partition(chr(10))[0]}"
                if move.problem
                else f", nobody works on it for {move.idle_s / 60:.0f} min"
            )
            yield Finding(
                "moves",
                move.source,
                f"move {move.id} of shard {move.shard} to {move.target} stopped at {move.step.word}{why}",
                f"`shardkit moves resume {move.id}`"
                + (f" or `shardkit moves abort {move.id}`" if move.step < Step.FENCE else ""),
                "risk",
            )


def programs(facts: Facts) -> Iterator[Finding]:
    """Every running program has the newest map."""
    for program in facts.programs:
        if program.version < facts.map.version:
            yield Finding(
                "programs",
                program.name,
                f"the program at {program.address} has map version {program.version}, and {facts.map.version} is the newest: "
                "it meets fences, and does not see servers that were added",
                "look whether it hangs or cannot reach the catalog; a restart reads the map anew",
                "risk",
            )


def catalog(facts: Facts) -> Iterator[Finding]:
    """The catalog's tables are those of this release."""
    there, newest = facts.catalog_revision
    if there != newest:
        yield Finding(
            "catalog",
            "catalog",
            f"its tables are at revision {there or 'none'}, and this release has {newest}",
            "`shardkit doctor --fix` upgrades them; or use the release that the cluster was made with",
        )


def redis(facts: Facts) -> Iterator[Finding]:
    """Redis keeps what the cache's promise rests on."""
    for warning in facts.cache_warnings:
        what, _, remedy = warning.partition("; ")
        yield Finding("redis", "redis", what, remedy or "`shardkit cache stats` says more", "risk")
