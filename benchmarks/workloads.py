"""Two loads for any number of shards: a photo service whose tenants follow Zipf's law, and pgbench's bank beside it.

The data are the same whatever the number of shards, row by row, so that only the number of shards differs.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from itertools import accumulate
from typing import Any, Final

import psycopg
from psycopg import sql
from sqlalchemy import MetaData, select, text, update
from sqlalchemy.orm import Mapped, mapped_column

from shardkit import ShardedBase, ShardKey, ShardKit, TenantScoped

TENANTS: Final = 4096


class PhotoBase(ShardedBase):
    __abstract__ = True
    metadata = MetaData()


class Photo(TenantScoped, PhotoBase):
    __tablename__ = "photos"
    id: Mapped[int] = mapped_column(ShardKey, primary_key=True)
    title: Mapped[str]
    likes: Mapped[int]
    place: Mapped[str | None]


class BankBase(ShardedBase):
    __abstract__ = True
    metadata = MetaData()


class Branch(TenantScoped, BankBase):
    __tablename__ = "branches"
    id: Mapped[int] = mapped_column(ShardKey, primary_key=True)
    balance: Mapped[int]


class Teller(TenantScoped, BankBase):
    __tablename__ = "tellers"
    id: Mapped[int] = mapped_column(ShardKey, primary_key=True)
    balance: Mapped[int]


class Account(TenantScoped, BankBase):
    __tablename__ = "accounts"
    id: Mapped[int] = mapped_column(ShardKey, primary_key=True)
    balance: Mapped[int]


class History(TenantScoped, BankBase):
    __tablename__ = "history"
    id: Mapped[int] = mapped_column(ShardKey, primary_key=True)
    account_id: Mapped[int]
    teller_id: Mapped[int]
    delta: Mapped[int]


def _within(schema: str, statement: sql.SQL) -> sql.Composed:
    return statement.format(schema=sql.Identifier(schema))


class Load(ABC):
    """Rows of each tenant, and what a client does with them, one operation after the other."""

    metadata: MetaData
    fill: tuple[sql.SQL, ...]

    @abstractmethod
    def weights(self) -> list[float]:
        """How often each tenant, by number, is asked for."""

    @abstractmethod
    def client(self, kit: ShardKit, seed: int) -> Iterator[Callable[[], None]]:
        """Operations, for ever; the same *seed* gives the same ones."""

    def furnish(self, kit: ShardKit, urls: dict[str, str]) -> None:
        """Write every tenant's rows into its shard."""
        tenants: dict[int, list[int]] = {}
        for number in range(TENANTS):
            tenants.setdefault(kit.map.shard_of(name(number)), []).append(number)
        for server, url in urls.items():
            with psycopg.connect(url) as connection:
                for shard in kit.map.shards_on(server):
                    for statement in self.fill if shard in tenants else ():
                        connection.execute(_within(kit.map.route(shard).schema, statement), [tenants[shard]])
                connection.commit()
                connection.autocommit = True
                connection.execute("ANALYZE")
                connection.execute("CHECKPOINT")

    def draws(self, seed: int) -> Iterator[tuple[random.Random, int]]:
        draw, numbers, sums = random.Random(seed), range(TENANTS), list(accumulate(self.weights()))
        while True:
            yield from ((draw, number) for number in draw.choices(numbers, cum_weights=sums, k=256))


class Photos(Load):
    """Of 100 operations 55 get a photo, 30 list a user's newest, 10 like one and 5 upload one."""

    PHOTOS: Final = 10  # of each tenant
    metadata = PhotoBase.metadata
    fill = (
        sql.SQL(
            "INSERT INTO {schema}.photos (id, tenant_id, title, likes) SELECT number * 16 + n, 'user-' || number, "
            "'photo ' || n, n FROM unnest(%s::bigint[]) number, generate_series(0, 9) n"
        ),
    )

    def weights(self) -> list[float]:
        """Zipf's law with exponent 1: of 4,096 tenants the first has 11 % of the operations, the last 0.003 %."""
        return [1 / (number + 1) for number in range(TENANTS)]

    def client(self, kit: ShardKit, seed: int) -> Iterator[Callable[[], None]]:
        newest = select(Photo).order_by(Photo.id.desc()).limit(20)

        def get(tenant: str, key: int) -> None:
            with kit.read(tenant) as session:
                assert session.get(Photo, key) is not None

        def listed(tenant: str, _: int) -> None:
            with kit.read(tenant) as session:
                assert session.scalars(newest).all()

        def like(tenant: str, key: int) -> None:
            with kit.begin(tenant) as session:
                done: Any = session.execute(update(Photo).where(Photo.id == key).values(likes=Photo.likes + 1))
                assert done.rowcount == 1

        def upload(tenant: str, _: int) -> None:
            with kit.begin(tenant) as session:
                session.add(Photo(title="new", likes=0))

        kinds = [get] * 55 + [listed] * 30 + [like] * 10 + [upload] * 5
        for draw, number in self.draws(seed):
            kind, tenant, key = draw.choice(kinds), name(number), number * 16 + draw.randrange(self.PHOTOS)
            yield lambda kind=kind, tenant=tenant, key=key: kind(tenant, key)  # type: ignore[misc]  # bound at once


class Bank(Load):
    """pgbench's transaction, of TPC-B's kind: three updates, a select and an insert; a tenant is a branch."""

    ACCOUNTS: Final = 16
    TELLERS: Final = 4
    metadata = BankBase.metadata
    fill = (
        sql.SQL(
            "INSERT INTO {schema}.branches (id, tenant_id, balance) SELECT number, 'user-' || number, 0 "
            "FROM unnest(%s::bigint[]) number"
        ),
        sql.SQL(
            "INSERT INTO {schema}.tellers (id, tenant_id, balance) SELECT number * 4 + n, 'user-' || number, 0 "
            "FROM unnest(%s::bigint[]) number, generate_series(0, 3) n"
        ),
        sql.SQL(
            "INSERT INTO {schema}.accounts (id, tenant_id, balance) SELECT number * 16 + n, 'user-' || number, 0 "
            "FROM unnest(%s::bigint[]) number, generate_series(0, 15) n"
        ),
    )
    STATEMENTS: Final = (
        text("UPDATE accounts SET balance = balance + :delta WHERE id = :account"),
        text("SELECT balance FROM accounts WHERE id = :account"),
        text("UPDATE tellers SET balance = balance + :delta WHERE id = :teller"),
        text("UPDATE branches SET balance = balance + :delta WHERE id = :branch"),
    )

    def weights(self) -> list[float]:
        """As pgbench: every branch alike."""
        return [1.0] * TENANTS

    def client(self, kit: ShardKit, seed: int) -> Iterator[Callable[[], None]]:
        def transfer(number: int, account: int, teller: int, delta: int) -> None:
            with kit.begin(name(number)) as session:
                values = {"account": account, "teller": teller, "branch": number, "delta": delta}
                for statement in self.STATEMENTS:
                    session.execute(statement, values)
                session.add(History(account_id=account, teller_id=teller, delta=delta))

        for draw, number in self.draws(seed):
            account, teller = number * 16 + draw.randrange(self.ACCOUNTS), number * 4 + draw.randrange(self.TELLERS)
            delta = draw.randrange(-5000, 5001)
            yield lambda n=number, a=account, t=teller, d=delta: transfer(n, a, t, d)  # type: ignore[misc]  # bound at once


LOADS: Final[dict[str, Load]] = {"photos": Photos(), "bank": Bank()}


def name(number: int) -> str:
    """The key of tenant *number*."""
    return f"user-{number}"
