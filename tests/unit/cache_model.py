"""All interleavings of a few writers, readers, flushes and a move, over the protocol's own functions; for one key.

A version is the set of writers whose COMMIT it has seen. The law: a read returns at least what was committed when the read
began. Writers share no row lock, so what holds here holds for list keys too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from shardkit.core import cacheproto as proto
from shardkit.core.cacheproto import Found


class Rules:
    """The protocol as it is; a planted bug is a subclass."""

    mark_before_commit = True
    mark_after_commit = False
    select_before_lease = False
    lease = staticmethod(proto.lease)
    mark = staticmethod(proto.mark)
    settled = staticmethod(proto.settled)

    @staticmethod
    def swap(value, old, new):
        return (new or None) if value == old else value

    swap_barrier = swap

    @staticmethod
    def barrier_xid(server):
        """A transaction of its own, which ends at once."""
        return server.next, server._replace(next=server.next + 1, xmax=server.next + 1)


class Server(NamedTuple):
    next: int = 10
    running: tuple[int, ...] = ()
    xmax: int = 10
    """Latest finished transaction + 1, as PostgreSQL has it."""

    def begin(self):
        return self.next, self._replace(next=self.next + 1, running=(*self.running, self.next))

    def end(self, xid):
        return self._replace(running=tuple(x for x in self.running if x != xid), xmax=max(self.xmax, xid + 1))

    def snapshot(self):
        running = [x for x in self.running if x < self.xmax]
        return proto.Snapshot(min(self.running, default=self.next) if running else self.xmax, self.xmax, frozenset(running))


class Writer(NamedTuple):
    step: int = 0
    epoch: int = 0
    xid: int = 0


class Reader(NamedTuple):
    step: str = "start"
    reads: int = 0
    tries: int = 0
    owed: frozenset[int] = frozenset()
    epoch: int = 0
    marker: bytes = b""
    barrier: int = 0
    seen: frozenset[int] = frozenset()
    snapshot: proto.Snapshot | None = None


class State(NamedTuple):
    value: bytes | None
    barrier: bytes | None
    servers: tuple[Server, ...]
    committed: frozenset[int]
    writers: tuple[Writer, ...]
    readers: tuple[Reader, ...]
    flushes: int
    epoch: int
    moves: int
    evictions: int


@dataclass(frozen=True)
class Plan:
    writers: int = 1
    readers: int = 1
    reads: int = 1
    flushes: int = 0
    moves: int = 0
    evictions: int = 0
    """Of values; markers outlive their transactions, or the barrier is made anew before they expire."""
    second: int = 3
    """First transaction of the server that the shard moves to."""


class ViolationError(Exception):
    """A read returned less than it had to."""


def pack(version):
    return b"V" + ",".join(map(str, sorted(version))).encode()


def unpack(value):
    return frozenset(int(x) for x in value[1:].split(b",") if x)


def explore(plan: Plan, rules=Rules) -> int:
    """Number of states; ViolationError if one of them breaks the law."""
    first = State(
        None,
        None,
        (Server(), Server(next=plan.second, xmax=plan.second)),
        frozenset(),
        (Writer(),) * plan.writers,
        (Reader(),) * plan.readers,
        plan.flushes,
        1,
        plan.moves,
        plan.evictions,
    )
    seen, ahead = {first}, [first]
    while ahead:
        for state in steps(ahead.pop(), plan, rules):
            if state not in seen:
                seen.add(state)
                ahead.append(state)
    return len(seen)


def steps(s: State, plan: Plan, rules):
    if s.flushes and (s.value or s.barrier):
        yield s._replace(value=None, barrier=None, flushes=s.flushes - 1)
    if s.evictions and s.value and s.value[:1] == b"V":
        yield s._replace(value=None, evictions=s.evictions - 1)
    if s.moves and not any(w.step in (1, 2) for w in s.writers):  # the fence waits for open transactions
        yield s._replace(epoch=s.epoch + 1, moves=s.moves - 1)
    for i, writer in enumerate(s.writers):
        for changed, w in write(s, i, writer, rules):
            yield changed._replace(writers=(*s.writers[:i], w, *s.writers[i + 1 :]))
    for i, reader in enumerate(s.readers):
        for changed, r in read(s, i, reader, plan, rules):
            yield changed._replace(readers=(*s.readers[:i], r, *s.readers[i + 1 :]))


def on(s: State, epoch: int, server: Server) -> State:
    return s._replace(servers=(*s.servers[: epoch - 1], server, *s.servers[epoch:]))


def write(s: State, i: int, w: Writer, rules):
    if w.step == 0:
        if i and s.writers[i - 1].step == 0:
            return  # writers are alike: they begin in turn
        xid, server = s.servers[s.epoch - 1].begin()
        yield on(s, s.epoch, server), Writer(1, s.epoch, xid)
    elif w.step in (1, 2):
        over = on(s, w.epoch, s.servers[w.epoch - 1].end(w.xid))
        if w.step == 2:
            yield over, w._replace(step=9)  # dies, or rolls back
        if w.step == 1 and rules.mark_before_commit:
            yield s._replace(value=rules.mark(s.value, xid=w.xid, epoch=w.epoch)), w._replace(step=2)
        else:
            yield over._replace(committed=s.committed | {i}), w._replace(step=3 if rules.mark_after_commit else 9)
    elif w.step == 3:
        yield s._replace(value=rules.mark(s.value, xid=w.xid, epoch=w.epoch)), w._replace(step=9)


def read(s: State, i: int, r: Reader, plan: Plan, rules):
    def done(result, state=s):
        if not r.owed <= result:
            raise ViolationError(f"returned {set(result)}, owed {set(r.owed)}: {s}")
        return state, Reader(reads=r.reads + 1)

    if r.step == "start":  # with its GET in the same instant, when most is owed
        if r.reads == plan.reads or (i and s.readers[i - 1] == Reader()):
            return  # readers are alike too
        r = r._replace(owed=s.committed)
        if s.value is not None and s.value[:1] == b"V":
            yield done(unpack(s.value))
        else:
            for known in {1, s.epoch}:  # the reader's map may be old
                yield s, r._replace(step="select" if rules.select_before_lease else "lease", epoch=known)
    elif r.step == "lease":
        token = b"%d.%d.%d" % (i, r.reads, r.tries)
        for now in (0, 10**6):  # a lease may run out at any time
            found, left = rules.lease(s.value, barrier=s.barrier, token=token, epoch=r.epoch, now_ms=now, lease_ms=10 - now)
            if found is Found.VALUE:
                yield done(unpack(s.value))
            elif found is Found.NO_BARRIER and r.tries < 2:
                yield s._replace(barrier=left), r._replace(step="barrier", marker=left, tries=r.tries + 1)
            elif found is Found.LEASE:
                after = r._replace(step="select", marker=left, barrier=proto.parse_barrier(s.barrier))
                yield s._replace(value=left), after._replace(step="swap") if rules.select_before_lease else after
            else:
                yield done(s.committed)  # from PostgreSQL, where the fence sends an old map onward
    elif r.step == "barrier":
        xid, server = rules.barrier_xid(s.servers[r.epoch - 1])
        yield on(s, r.epoch, server), r._replace(step="set", barrier=xid)
    elif r.step == "set":
        new = rules.swap_barrier(s.barrier, r.marker, proto.pack_barrier(epoch=r.epoch, xid=r.barrier))
        yield s._replace(barrier=new), r._replace(step="lease", barrier=0, marker=b"")
    elif r.step == "select":
        if r.epoch < s.epoch:  # fenced: led on, and the lease was for another server
            yield done(s.committed)
        else:
            snapshot = s.servers[r.epoch - 1].snapshot()
            step = "lease" if rules.select_before_lease else "swap"
            yield s, r._replace(step=step, seen=s.committed, snapshot=snapshot)
    elif r.step == "swap":
        xids = proto.parse_marker(r.marker).xids
        filled = rules.settled(xids, r.barrier, r.snapshot)
        new = pack(r.seen) if filled else proto.give_back(r.marker)
        yield done(r.seen, s._replace(value=rules.swap(s.value, r.marker, new)))
