"""What a tree's ``env.py`` calls: offline it renders SQL, online it runs on one shard; from Alembic's own command line too.

``alembic -x shard=17 upgrade head`` (or ``-x schema=s0017_e1``) works on one shard; the cluster is found as everywhere, by
``SHARDKIT_CONFIG`` or ``SHARDKIT_*``. For all shards there is ``shardkit migrate``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from alembic import context

from shardkit.core.names import APP_ROLE, OPERATOR_ROLE, VERSION_TABLE, parse_schema
from shardkit.errors import MigrationError
from shardkit.schema.autogenerate import HOOKS
from shardkit.schema.one import shard_engine
from shardkit.settings import Settings


def run_env(target_metadata: Any = None, *, catalog: bool = False, **options: Any) -> None:
    """Run the migrations Alembic was asked for. *target_metadata* is compared with a shard by ``--autogenerate``.

    *options* go to ``context.configure``. *catalog* is for the catalog's own tree.
    """
    given = context.config.attributes
    target_metadata = given.get("target_metadata", target_metadata)
    options = {**HOOKS, **({} if catalog else {"on_version_apply": _keep_version_from_programs}), **options}
    if context.is_offline_mode():
        context.configure(
            dialect_name="postgresql",
            dialect_opts={"paramstyle": "named"},  # others double every % sign
            literal_binds=True,
            output_buffer=given.get("output"),
            target_metadata=target_metadata,
            **options,
        )
        with context.begin_transaction():
            context.run_migrations()
        return
    with _connection(given, catalog=catalog) as (connection, schema):
        context.configure(
            connection=connection,
            target_metadata=target_metadata,
            version_table_schema=schema,
            transaction_per_migration=given.get("connection") is None,
            **options,
        )
        with context.begin_transaction():
            context.run_migrations()


def _keep_version_from_programs(*, ctx: Any, **_told: Any) -> None:
    """Alembic makes the version table as any other, and our roles may write to every new table of a shard."""
    ctx.impl.execute(f"REVOKE ALL ON {VERSION_TABLE} FROM {APP_ROLE}, {OPERATOR_ROLE}")


@contextmanager
def _connection(given: dict[str, Any], *, catalog: bool) -> Iterator[tuple[Any, str | None]]:
    """The connection to run on, and the schema of the version table where ``search_path`` does not find it."""
    if "connection" in given:
        yield given["connection"], given.get("schema")
        return
    settings = Settings.from_env()
    if catalog:
        raise MigrationError("the catalog's tree is run by `shardkit init` and `shardkit migrate upgrade`; nothing was done")
    said = context.get_x_argument(as_dictionary=True)
    with shard_engine(settings, _shard(said)) as engine, engine.connect() as connection:
        yield connection, None


def _shard(said: dict[str, Any]) -> int:
    if "shard" in said and str(said["shard"]).isdigit():
        return int(said["shard"])
    named = parse_schema(str(said.get("schema", "")))
    if named is None:
        raise MigrationError(
            "which shard? Say alembic -x shard=17 ..., or -x schema=s0017_e1; for all: shardkit migrate. Nothing was done"
        )
    return named.shard
