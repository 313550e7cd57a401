"""A key that is unique over all shards has one owner, whoever claims it at once and whoever dies while doing so."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from sqlalchemy import insert, select, text, update
from sqlalchemy.orm import Mapped, mapped_column

from shardkit import AsyncShardKit, GlobalUnique, Settings, ShardedBase, ShardKey, ShardKit, TenantScoped
from shardkit.errors import KeyTakenError, SessionError, SettingsError
from shardkit.local.databases import fresh_databases
from shardkit.orm import unique
from shardkit.schema.blueprint import from_metadata
from shardkit.schema.bootstrap import initialize

HERE = Path(__file__).parent


class Sharded(ShardedBase):
    __abstract__ = True
    metadata = type(ShardedBase.metadata)()


class User(TenantScoped, Sharded):
    __tablename__ = "users"
    id: Mapped[int] = mapped_column(ShardKey, primary_key=True)
    email: Mapped[str | None] = mapped_column(GlobalUnique())
    name: Mapped[str | None]


@pytest.fixture(scope="module")
def place(local_cluster):
    with fresh_databases(local_cluster.servers, 2) as databases:
        settings = Settings(catalog_url=databases.catalog_url)
        initialize(settings, servers=databases.servers, shard_count=8, blueprint=from_metadata(User.metadata))
        yield settings


@pytest.fixture
def kit(place):
    with ShardKit(settings=place) as kit:
        yield kit


def join(kit, tenant, email):
    with kit.begin(tenant) as s:
        s.add(User(email=email))


def owners(kit, email):
    return list(kit.fan_out(select(User.tenant_id).where(User.email == email)))


def test_a_second_row_with_the_key_is_refused_in_any_shard(kit):
    join(kit, "ann", "a@example.org")
    for tenant in ("ann", "bob"):
        with pytest.raises(KeyTakenError):
            join(kit, tenant, "a@example.org")
    assert len(owners(kit, "a@example.org")) == 1
    assert kit.locate_by(User.email, "a@example.org") == kit.locate("ann")
    assert kit.locate_by(User.email, "nobody@example.org") is None
    with pytest.raises(SettingsError):
        kit.locate_by(User.name, "x")


def test_a_flush_that_was_refused_can_be_mended_and_tried_again(kit):
    join(kit, "ann", "taken@example.org")
    with kit.begin("bob") as s:
        s.add_all([User(email="free@example.org"), other := User(email="taken@example.org")])
        with pytest.raises(KeyTakenError):
            s.flush()
        other.email = "spare@example.org"
        s.flush()
        s.add(User(email="free@example.org"))
        with pytest.raises(KeyTakenError):
            s.flush()
        s.expunge(next(iter(s.new)))
    assert len(owners(kit, "free@example.org")) == len(owners(kit, "spare@example.org")) == 1
    assert kit.locate_by(User.email, "free@example.org") == kit.locate("bob")


def test_nulls_are_not_compared_and_a_change_frees_the_old_key(kit):
    for tenant in ("ann", "bob"):
        join(kit, tenant, None)
    join(kit, "cid", "old@example.org")
    with kit.begin("cid") as s:
        s.scalars(select(User).where(User.email == "old@example.org")).one().email = "new@example.org"
    join(kit, "dan", "old@example.org")
    with pytest.raises(KeyTakenError):
        join(kit, "dan", "new@example.org")
    with kit.begin("dan") as s:
        s.delete(s.scalars(select(User).where(User.email == "old@example.org")).one())
    join(kit, "eve", "old@example.org")
    assert [row[0] for row in owners(kit, "old@example.org")] == ["eve"]


def test_a_rolled_back_row_leaves_the_key_free(kit):
    with pytest.raises(ZeroDivisionError), kit.begin("ann") as s:
        s.add(User(email="undone@example.org"))
        s.flush()
        raise ZeroDivisionError
    join(kit, "bob", "undone@example.org")


def test_of_many_claims_at_once_exactly_one_wins(place):
    won, start = [], threading.Barrier(8)

    def claim(number):
        with ShardKit(settings=place) as kit:
            start.wait(120)
            for turn in range(5):
                try:
                    join(kit, f"tenant-{number}", f"wanted-{turn}@example.org")
                except KeyTakenError:
                    continue
                won.append(turn)

    threads = [threading.Thread(target=claim, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(won) == [0, 1, 2, 3, 4]
    with ShardKit(settings=place) as kit:
        assert all(len(owners(kit, f"wanted-{turn}@example.org")) == 1 for turn in range(5))


KILLED = """
import os, signal, sys
from test_global_unique import User, ShardKit, unique
def die(*_): os.kill(os.getpid(), signal.SIGKILL)
reserve = unique.Registry.reserve
def reserve_and_die(*given): reserve(*given); die()
if sys.argv[2] == "before the row": unique.Registry.reserve = reserve_and_die
else: unique.Registry.confirm = die
with ShardKit(sys.argv[1], connect_timeout_s=60) as kit, kit.begin("victim") as s: s.add(User(email=sys.argv[3]))
"""


@pytest.mark.parametrize("moment", ["before the row", "after the row"])
def test_a_claimant_killed_in_between_heals(place, kit, moment, monkeypatch):
    email = f"{moment.replace(' ', '-')}@example.org"
    path = os.pathsep.join([str(HERE), str(HERE.parents[1])])
    died = subprocess.run(
        [sys.executable, "-c", KILLED, place.catalog_url, moment, email],
        env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert died.returncode == -signal.SIGKILL, died.stderr
    written = moment == "after the row"
    assert len(owners(kit, email)) == written
    assert kit.locate_by(User.email, email) == (kit.locate("victim") if written else None)
    if not written:  # a lookup does not wait, so it left the reservation: a claim finds out once it is old
        monkeypatch.setattr(unique, "PATIENCE_S", 3600.0)
        with pytest.raises(KeyTakenError):
            join(kit, "heir", email)
        monkeypatch.setattr(unique, "PATIENCE_S", 0.0)
        join(kit, "heir", email)
    else:
        monkeypatch.setattr(unique, "PATIENCE_S", 0.0)
        with pytest.raises(KeyTakenError):
            join(kit, "heir", email)
    assert len(owners(kit, email)) == 1


def test_a_claimant_that_was_given_up_cannot_write_its_row(kit, monkeypatch):
    """It reserved, was slow, and another one looked into it before its row was there."""
    monkeypatch.setattr(unique, "PATIENCE_S", 0.0)
    original = unique.Registry.reserve

    def reserve(self, key, tenant, column):
        original(self, key, tenant, column)
        if tenant == "slow":
            with ShardKit(settings=kit.settings) as other:
                join(other, "quick", key.key)

    monkeypatch.setattr(unique.Registry, "reserve", reserve)
    with pytest.raises(KeyTakenError, match="took too long"):
        join(kit, "slow", "race@example.org")
    assert [row[0] for row in owners(kit, "race@example.org")] == ["quick"]
    assert kit.locate_by(User.email, "race@example.org") == kit.locate("quick")


def test_tenants_cannot_read_the_registry(kit):
    for table in ("shardkit_keys", "shardkit_claims"):
        with kit.session("ann") as s, pytest.raises(Exception, match="permission denied"):
            s.execute(text("SELECT * FROM shardkit_keys" if table == "shardkit_keys" else "SELECT * FROM shardkit_claims"))


def test_asyncio_claims_too(place):
    async def main():
        async with AsyncShardKit(settings=place) as kit:
            async with kit.begin("ann") as s:
                s.add(User(email="async@example.org"))
            with pytest.raises(KeyTakenError):
                async with kit.begin("bob") as s:
                    s.add(User(email="async@example.org"))
            assert await kit.locate_by(User.email, "async@example.org") == kit.locate("ann")

    asyncio.run(main())


BULK = {
    "core insert": lambda s: s.execute(insert(User.__table__), [{"id": 1, "tenant_id": "bulk", "email": "bulk@example.org"}]),
    "orm insert": lambda s: s.execute(insert(User), [{"email": "bulk@example.org"}]),
    "insert values": lambda s: s.execute(insert(User).values(email="bulk@example.org")),
    "several values": lambda s: s.execute(insert(User).values([{"email": "bulk@example.org"}])),
    "by position": lambda s: s.execute(insert(User.__table__).values((1, "bulk@example.org", "x", "bulk"))),
    "from select": lambda s: s.execute(insert(User).from_select(["email"], select(User.name))),
    "update": lambda s: s.execute(update(User).values(email="bulk@example.org")),
    "update ordered": lambda s: s.execute(update(User).ordered_values((User.email, "bulk@example.org"))),
    "update by key": lambda s: s.execute(update(User), [{"id": 1, "email": "bulk@example.org"}]),
    "bulk_save_objects": lambda s: s.bulk_save_objects([User(email="bulk@example.org")]),
    "bulk_insert_mappings": lambda s: s.bulk_insert_mappings(User, [{"email": "bulk@example.org"}]),
    "bulk_update_mappings": lambda s: s.bulk_update_mappings(User, [{"id": 1, "email": "bulk@example.org"}]),
}


@pytest.mark.parametrize("way", BULK)
def test_a_bulk_statement_past_the_registry_is_refused(kit, way):
    with kit.session("bulk") as s, pytest.raises(SessionError, match="nothing was written"):
        BULK[way](s)
    assert owners(kit, "bulk@example.org") == []


def test_a_bulk_statement_that_sets_no_key_is_not(kit):
    with kit.begin("bulk") as s:
        s.execute(insert(User), [{"id": s.scalar(text("SELECT next_id()")), "name": "no key"}])
        s.execute(update(User).where(User.name == "no key").values(name="named"))
    assert len(kit.fan_out(select(User.id).where(User.name == "named"))) == 1
