"""Many workers empty the outboxes at once: every effect arrives once, and those of a pair in the order they were sent."""

from __future__ import annotations

import threading
import time

from fleet import Order
from sqlalchemy import select

from shardkit import ShardKit

SENT, PAIRS, WORKERS = 12, 4, 3


def write(session, effect):
    session.add(Order(note=f"{effect.from_tenant} {effect.payload}", amount=effect.payload))


def over(kit):
    give_up = time.monotonic() + 200
    return lambda: time.monotonic() > give_up or not kit.outbox.lag().waiting


def test_workers_at_once_apply_each_effect_once_and_in_order(fleet, kit, tenant):
    pairs = [(f"{tenant} {n}", f"{tenant} {n} receiver") for n in range(PAIRS)]
    for number in range(SENT):
        for sender, receiver in pairs:
            with kit.begin(sender) as session:
                kit.outbox.send(session, to=receiver, kind="note", payload=number)
    together, errors = threading.Barrier(WORKERS), []

    def work():
        try:
            with ShardKit(settings=fleet.settings()) as mine:
                together.wait(120)
                mine.outbox.work({"note": write}, until=over(mine), every_s=0.01)
        except Exception as exc:
            errors.append(exc)

    workers = [threading.Thread(target=work) for _ in range(WORKERS)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert errors == []
    for sender, receiver in pairs:
        with kit.session(receiver) as session:
            assert session.execute(select(Order.note, Order.amount).order_by(Order.id)).all() == [
                (f"{sender} {number}", number) for number in range(SENT)
            ]
