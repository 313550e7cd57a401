"""The declarative base of sharded models."""

from __future__ import annotations

from typing import Any, ClassVar

from sqlalchemy import MetaData
from sqlalchemy.orm import DeclarativeBase

from shardkit.orm.kinds import declare_kind


class ShardedBase(DeclarativeBase):
    """Base of the models every shard has. Any other declarative base works too; this one names constraints predictably,
    so that revisions can find them.
    """

    metadata: ClassVar[MetaData] = MetaData(
        naming_convention={
            "ix": "%(column_0_N_label)s_ix",
            "uq": "%(table_name)s_%(column_0_N_name)s_key",
            "ck": "%(table_name)s_%(constraint_name)s_check",
            "fk": "%(table_name)s_%(column_0_N_name)s_fkey",
            "pk": "%(table_name)s_pkey",
        }
    )

    def __init_subclass__(cls, **options: Any) -> None:
        declare_kind(cls)
        super().__init_subclass__(**options)
