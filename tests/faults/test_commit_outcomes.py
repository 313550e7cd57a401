"""A COMMIT has three outcomes, and an error says which (law 5). The answer, or the request, is cut off on its way."""

from __future__ import annotations

import asyncio

import pytest
from fleet import Order
from sqlalchemy import select

from shardkit import AsyncShardKit
from shardkit.errors import CommitUnknownError, Outcome

CUTS = ["cut before commit", "cut after commit"]


def count(behind, kit, note):
    tenant = behind.tenant_on("pg1")
    return behind.fleet.count(kit, tenant, f"note = '{note}'")


def warm(kit, tenant):
    """Two connections whose COMMIT is prepared, so that the word is only sent when it is meant."""
    for _ in range(2):
        with kit.session(tenant) as one, kit.session(tenant) as two:
            for session in (one, two):
                session.scalars(select(Order)).all()


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("count_of_rows", [1, 2], ids=["lone insert", "two rows"])
def test_begin_says_unknown_when_the_answer_is_lost(kit, behind, cut, count_of_rows):
    tenant, note = behind.tenant_on("pg1"), f"begin {cut} {count_of_rows}"
    warm(kit, tenant)
    with pytest.raises(CommitUnknownError) as caught, kit.begin(tenant) as s:
        s.add_all([Order(note=note if n == 0 else f"{note} {n}") for n in range(count_of_rows)])
        behind.proxies["pg1"].mode = cut
    assert caught.value.outcome is Outcome.UNKNOWN
    assert behind.proxies["pg1"].cuts == 1
    assert count(behind, kit, note) == (cut == "cut after commit")


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("count_of_rows", [1, 2], ids=["lone insert", "two rows"])
def test_run_finds_out_and_ends_with_exactly_one(kit, behind, cut, count_of_rows):
    tenant, note = behind.tenant_on("pg1"), f"run {cut} {count_of_rows}"
    warm(kit, tenant)
    runs = []

    def work(s):
        s.add_all([Order(note=note if n == 0 else f"{note} {n}") for n in range(count_of_rows)])
        if not runs:
            behind.proxies["pg1"].mode = cut
        runs.append(cut)
        return len(runs)

    assert kit.run(tenant, work) == (1 if cut == "cut after commit" else 2)
    assert count(behind, kit, note) == 1


@pytest.mark.parametrize("cut", CUTS)
def test_async_run_finds_out_too(behind, cut):
    note = f"async {cut}"

    async def main():
        async with AsyncShardKit(settings=behind.settings(pool_size=1)) as kit:
            tenant = behind.tenant_on("pg1")
            for _ in range(2):
                async with kit.session(tenant) as s:
                    await s.scalars(select(Order))
            runs = []

            async def work(s):
                s.add_all([Order(note=note), Order(note=f"{note} 2")])
                await s.flush()
                if not runs:
                    behind.proxies["pg1"].mode = cut
                runs.append(cut)

            await kit.run(tenant, work)
            assert len(runs) == (1 if cut == "cut after commit" else 2)
            assert count(behind, kit, note) == 1

    asyncio.run(main())


def test_a_hundred_cut_commits_and_no_wrong_word(kit, behind):
    """Each *unknown* may be either; what is reported done is there, and what is reported not done is not."""
    tenant = behind.tenant_on("pg1")
    told = {}
    for number in range(100):
        note = f"honest {number}"
        warm(kit, tenant)
        try:
            with kit.begin(tenant) as s:
                s.add(Order(note=note))
                if number % 2:
                    s.flush()
                behind.proxies["pg1"].mode = (*CUTS, "pass")[number % 3]
            told[note] = Outcome.DONE
        except CommitUnknownError:
            told[note] = Outcome.UNKNOWN
    behind.proxies["pg1"].mode = "pass"
    with kit.read(tenant) as s:
        there = set(s.scalars(select(Order.note).where(Order.note.startswith("honest"))))
    assert {note for note, outcome in told.items() if outcome is Outcome.DONE} <= there
    assert sum(outcome is Outcome.UNKNOWN for outcome in told.values()) >= 60
