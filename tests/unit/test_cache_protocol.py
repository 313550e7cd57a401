"""The protocol's pure decisions, by law."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from shardkit.core import cacheproto as proto
from shardkit.core.cacheproto import Found, Marker

xids = st.integers(1, 60)
epochs = st.integers(1, 3)


@st.composite
def snapshots(draw):
    running = draw(st.frozensets(st.integers(10, 40)))
    xmin = min(running, default=draw(st.integers(10, 41)))
    xmax = max(draw(st.integers(10, 50)), xmin, *(x + 1 for x in running), 0)
    return proto.Snapshot(xmin, xmax, running)


def test_snapshot_is_read_as_postgresql_writes_it():
    assert proto.parse_snapshot("10:20:10,14") == proto.Snapshot(10, 20, frozenset({10, 14}))
    assert proto.parse_snapshot("10:10:") == proto.Snapshot(10, 10, frozenset())


@given(snapshots(), st.lists(xids, max_size=20), st.integers(0, 60))
def test_nothing_is_settled_while_a_marked_transaction_runs(snapshot, marked, barrier):
    text = b""
    for xid in marked:
        text = proto.with_xid(text, xid)
    if proto.settled(text, barrier, snapshot):
        assert snapshot.xmin >= barrier
        for xid in marked:
            assert xid < snapshot.xmax
            assert xid not in snapshot.running


@given(snapshots(), st.lists(xids, max_size=8))
def test_everything_finished_is_settled(snapshot, marked):
    done = [x for x in marked if x < snapshot.xmax and x not in snapshot.running]
    assert proto.settled(b",".join(b"%d" % x for x in done), snapshot.xmin, snapshot)


def test_on_a_standby_only_xmin_says_anything():
    primary = proto.Snapshot(10, 20, frozenset())
    assert proto.settled(b"15", 0, primary)
    assert not proto.settled(b"15", 0, primary._replace(standby=True))
    assert proto.settled(b"9", 0, primary._replace(standby=True))


@given(st.lists(st.tuples(xids, epochs), min_size=1, max_size=30))
def test_marker_keeps_every_transaction_of_its_epoch(writes):
    value = None
    for xid, epoch in writes:
        value = proto.mark(value, xid=xid, epoch=epoch)
    last = max(epoch for _, epoch in writes)
    marker = proto.parse_marker(value)
    assert marker.epoch == last
    ours = [x for x, e in writes if e == last]
    snapshot_before = proto.Snapshot(1, 100, frozenset())
    for xid in ours:
        assert not proto.settled(marker.xids, 0, snapshot_before._replace(running=frozenset({xid}), xmin=min(xid, 1)))
    assert marker.xids.count(b",") < proto.MAX_XIDS


@given(st.binary(max_size=20), st.integers(0, 9), epochs, xids)
def test_marker_is_read_as_it_was_written(token, deadline, epoch, xid):
    token = token.hex().encode()
    marker = Marker(token, deadline, epoch, b"%d" % xid)
    assert proto.parse_marker(proto.pack_marker(marker)) == marker


TERM = b"@of today"


def ask(value, **given):
    usual = {"barrier": b"B|1|5" + TERM, "token": b"t", "epoch": 1, "term": TERM, "now_ms": 100, "lease_ms": 10}
    return proto.lease(value, **(usual | given))


def test_lease_is_given_to_one():
    found, marker = ask(None)
    assert (found, marker) == (Found.LEASE, b"M|t|110|1|")
    assert ask(marker, token=b"u") == (Found.BUSY, None)
    assert ask(marker, token=b"u", now_ms=110) == (Found.LEASE, b"M|u|120|1|")
    assert ask(b"M||0|1|7,9") == (Found.LEASE, b"M|t|110|1|7,9")


def test_lease_is_lost_to_a_writer():
    _, marker = ask(None)
    assert proto.mark(marker, xid=7, epoch=1) == b"M||0|1|7"


def test_no_lease_without_a_barrier_of_this_epoch():
    assert ask(None, barrier=None) == (Found.NO_BARRIER, b"P|t")
    assert ask(None, barrier=b"B|1|5" + TERM, epoch=2) == (Found.NO_BARRIER, b"P|t")
    assert ask(None, barrier=b"P|x") == (Found.PENDING, None)


def test_old_map_is_told_of_the_newer_epoch():
    assert ask(None, barrier=b"B|2|5" + TERM) == (Found.NEWER, None)
    assert ask(b"M||0|2|7") == (Found.NEWER, None)


def test_transactions_of_an_earlier_epoch_are_over():
    assert ask(b"M||0|1|7", epoch=2, barrier=b"B|2|5" + TERM) == (Found.LEASE, b"M|t|110|2|")
    assert proto.mark(b"M||0|1|7", xid=3, epoch=2) == b"M||0|2|3"
    assert proto.mark(b"M|t|9|2|3", xid=7, epoch=1) == b"M||0|2|3"


def test_only_the_value_that_was_seen_is_replaced_as_outdated():
    assert ask(b"Vold" + TERM, outdated=b"Vold" + TERM)[0] is Found.LEASE
    assert ask(b"Vnew" + TERM, outdated=b"Vold" + TERM) == (Found.VALUE, None)


def test_value_and_barrier_of_another_term_are_none():
    assert ask(b"Vold@of then..")[0] is Found.LEASE
    assert ask(b"{foreign}")[0] is Found.LEASE
    assert ask(b"Vold" + TERM, barrier=b"B|1|5@of then..") == (Found.NO_BARRIER, b"P|t")
    assert proto.of_term(b"Vrow" + TERM, TERM) == b"Vrow"
    assert proto.of_term(b"Vrow" + TERM, b"@of then..") is None
    assert proto.of_term(None, TERM) is None
    stored = [b"Vrow" + TERM, None, b"M||0|1|7", b"Vrow@of then.."]
    assert proto.all_of_term(stored, TERM) == [proto.of_term(value, TERM) for value in stored] == [b"Vrow", None, None, None]


def test_unused_lease_leaves_what_was_marked():
    assert proto.give_back(b"M|t|110|1|7") == b"M||0|1|7"
    assert proto.give_back(b"M|t|110|1|") == b""


@given(st.lists(st.text(max_size=6), min_size=1, max_size=3), st.lists(st.text(max_size=6), min_size=1, max_size=3))
def test_different_keys_have_different_names(one, other):
    def name(parts):
        return ":".join(map(proto.name_part, parts))

    assert (name(one) == name(other)) == (one == other)


@given(st.binary(max_size=8), xids)
def test_marker_is_of_no_term(token, xid):
    term = proto.term({"run_id": "a" * 40, "master_replid": token.hex()})
    assert len(term) == proto.TERM_LENGTH
    assert proto.of_term(proto.mark(None, xid=xid, epoch=1), term) is None
    assert proto.parse_barrier(proto.pack_barrier(epoch=3, xid=xid, term=term)) == xid


def test_term_changes_with_every_start_and_every_promotion():
    first = {"run_id": "a" * 40, "master_replid": "1" * 40, "master_repl_offset": "7"}
    promoted_again = {**first, "master_replid": "2" * 40}
    restarted = {**first, "run_id": "b" * 40}
    assert proto.term({**first, "master_repl_offset": "8"}) == proto.term(first)
    assert len({proto.term(info) for info in (first, promoted_again, restarted)}) == 3
