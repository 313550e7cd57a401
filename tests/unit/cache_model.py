"""All interleavings of a few writers, readers, flushes, promotions and a move, over the protocol's own functions; for one key.

A version is the set of writers whose COMMIT it has seen. The law: a read returns at least what was committed when the read
began. Writers share no row lock, so what holds here holds for list keys too.

Of two Redis processes one is the master. The other has what was there at some earlier time, and a promotion makes it the
master (the old one was dead before, all connections are new) and a copy of it of the other. A master may change its
replication id without that; then each connection learns of it sooner or later, so that a step may be taken in either term.
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
    fill_in_latest_term = barrier_in_latest_term = False

    @staticmethod
    def term(promotions, renamings):
        return b"@%04d%04d" % (promotions, renamings)

    @staticmethod
    def place(_promotions, _renamings):
        """Under which name, of several, a connection of that term looks."""
        return 0

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
    term: bytes = b""
    place: int = 0
    marker: bytes = b""
    barrier: int = 0
    seen: frozenset[int] = frozenset()
    snapshot: proto.Snapshot | None = None


class Stored(NamedTuple):
    value: bytes | None = None
    barrier: bytes | None = None


class State(NamedTuple):
    master: tuple[Stored, ...]
    replica: tuple[Stored, ...]
    servers: tuple[Server, ...]
    committed: frozenset[int]
    writers: tuple[Writer, ...]
    readers: tuple[Reader, ...]
    flushes: int
    epoch: int
    moves: int
    evictions: int
    promotions: int = 0
    renamings: int = 0
    """Since the last promotion."""


@dataclass(frozen=True)
class Plan:
    writers: int = 1
    readers: int = 1
    reads: int = 1
    flushes: int = 0
    moves: int = 0
    evictions: int = 0
    """Of values; markers outlive their transactions, or the barrier is made anew before they expire."""
    promotions: int = 0
    renamings: int = 0
    second: int = 3
    """First transaction of the server that the shard moves to."""


class ViolationError(Exception):
    """A read returned less than it had to."""


def pack(version, term):
    return b"V" + ",".join(map(str, sorted(version))).encode() + term


def unpack(value):
    return frozenset(int(x) for x in value[1 : -proto.TERM_LENGTH].split(b",") if x)


def put(s: State, place: int, **changed) -> State:
    stored = s.master[place]._replace(**changed)
    return s._replace(master=(*s.master[:place], stored, *s.master[place + 1 :]))


def beliefs(s: State, rules):
    """The terms, and the places by them, that connections may act in."""
    return [(rules.term(s.promotions, n), rules.place(s.promotions, n)) for n in range(s.renamings + 1)]


def explore(plan: Plan, rules=Rules) -> int:
    """Number of states; ViolationError if one of them breaks the law."""
    places = 1 + max(rules.place(p, r) for p in range(plan.promotions + 1) for r in range(plan.renamings + 1))
    first = State(
        (Stored(),) * places,
        (Stored(),) * places,
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
    nothing = (Stored(),) * len(s.master)
    if s.flushes and s.master != nothing:
        yield s._replace(master=nothing, flushes=s.flushes - 1)
    if s.evictions and s.master[0].value and s.master[0].value[:1] == b"V":
        yield put(s, 0, value=None)._replace(evictions=s.evictions - 1)
    if s.promotions < plan.promotions:
        if s.replica != s.master:
            yield s._replace(replica=s.master)
        yield s._replace(master=s.replica, promotions=s.promotions + 1, renamings=0)
    if s.renamings < plan.renamings:
        yield s._replace(renamings=s.renamings + 1)
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
            yield from ((marked, w._replace(step=2)) for marked in marks(s, w, rules))
        else:
            yield over._replace(committed=s.committed | {i}), w._replace(step=3 if rules.mark_after_commit else 9)
    elif w.step == 3:
        yield from ((marked, w._replace(step=9)) for marked in marks(s, w, rules))


def marks(s: State, w: Writer, rules):
    for place in {place for _, place in beliefs(s, rules)}:
        yield put(s, place, value=rules.mark(s.master[place].value, xid=w.xid, epoch=w.epoch))


def read(s: State, i: int, r: Reader, plan: Plan, rules):
    def done(result, state=s):
        if not r.owed <= result:
            raise ViolationError(f"returned {set(result)}, owed {set(r.owed)}: {s}")
        return state, Reader(reads=r.reads + 1)

    if r.step == "start":  # with its GET in the same instant, when most is owed
        if r.reads == plan.reads or (i and s.readers[i - 1] == Reader()):
            return  # readers are alike too
        r = r._replace(owed=s.committed)
        for term, place in beliefs(s, rules):
            value = s.master[place].value
            if value is not None and value[:1] == b"V" and value.endswith(term):
                yield done(unpack(value))
            else:
                for known in {1, s.epoch}:  # the reader's map may be old
                    yield s, r._replace(step="select" if rules.select_before_lease else "lease", epoch=known)
    elif r.step == "lease":
        token = b"%d.%d.%d" % (i, r.reads, r.tries)
        for term, place in beliefs(s, rules):
            value, barrier = s.master[place]
            for now in (0, 10**6):  # a lease may run out at any time
                found, left = rules.lease(
                    value, barrier=barrier, token=token, epoch=r.epoch, term=term, now_ms=now, lease_ms=10 - now
                )
                after = r._replace(term=term, place=place, marker=left, tries=r.tries + 1)
                if found is Found.VALUE:
                    yield done(unpack(value))
                elif found is Found.NO_BARRIER and r.tries < 2:
                    yield put(s, place, barrier=left), after._replace(step="barrier")
                elif found is Found.LEASE:
                    step = "swap" if rules.select_before_lease else "select"
                    yield put(s, place, value=left), after._replace(step=step, barrier=proto.parse_barrier(barrier))
                else:
                    yield done(s.committed)  # from PostgreSQL, where the fence sends an old map onward
    elif r.step == "barrier":
        xid, server = rules.barrier_xid(s.servers[r.epoch - 1])
        yield on(s, r.epoch, server), r._replace(step="set", barrier=xid)
    elif r.step == "set":
        term = beliefs(s, rules)[-1][0] if rules.barrier_in_latest_term else r.term
        new = proto.pack_barrier(epoch=r.epoch, xid=r.barrier, term=term)
        new = rules.swap_barrier(s.master[r.place].barrier, r.marker, new)
        yield put(s, r.place, barrier=new), r._replace(step="lease", barrier=0, marker=b"", term=b"", place=0)
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
        term = beliefs(s, rules)[-1][0] if rules.fill_in_latest_term else r.term
        new = pack(r.seen, term) if filled else proto.give_back(r.marker)
        yield done(r.seen, put(s, r.place, value=rules.swap(s.master[r.place].value, r.marker, new)))
