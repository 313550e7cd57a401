"""What ``--autogenerate`` must know about our models: how an id's type is written, and that a scoped table is protected."""

from __future__ import annotations

from typing import Any, Final, Literal

from alembic.autogenerate import renderers
from alembic.operations import MigrateOperation, Operations
from alembic.operations.ops import CreateTableOp, UpgradeOps
from sqlalchemy import text
from sqlalchemy.dialects import postgresql

from shardkit.core.names import OWN_PREFIX
from shardkit.orm.keys import ShardKey
from shardkit.orm.kinds import kind_of

_QUOTE = postgresql.dialect().identifier_preparer.quote  # type: ignore[no-untyped-call]  # SQLAlchemy's


def protect(op: Any, table: str) -> None:
    """In a revision: put *table*, whose rows belong to tenants, under row-level security (see TenantScoped)."""
    op.execute(text("SELECT shardkit.protect(:protected)").bindparams(protected=_QUOTE(table)))


class ProtectOp(MigrateOperation):
    """``protect(op, "orders")`` in a revision."""

    def __init__(self, table: str) -> None:
        self.table = table

    def reverse(self) -> MigrateOperation:
        """Dropping the table drops its policies; so there is nothing to take back, which is said by the same call."""
        return self

    def to_diff_tuple(self) -> tuple[Any, ...]:
        """As Alembic prints differences."""
        return ("protect", self.table)


@renderers.dispatch_for(ProtectOp)
def _render_protect(autogen_context: Any, operation: ProtectOp) -> str:
    autogen_context.imports.add("from shardkit.schema import protect")
    return f"protect(op, {operation.table!r})"


@Operations.implementation_for(ProtectOp)
def _run_protect(operations: Operations, operation: ProtectOp) -> None:
    protect(operations, operation.table)


def _render_item(kind: str, item: Any, autogen_context: Any) -> str | Literal[False]:
    if kind == "type" and isinstance(item, ShardKey):
        autogen_context.imports.add("import shardkit")
        return "shardkit.ShardKey()"
    return False


def _include_object(item: Any, name: str | None, kind: str, _reflected: bool, _compare_to: Any) -> bool:  # noqa: FBT001  Alembic's
    if kind != "table":
        return True
    return not (name or "").startswith(OWN_PREFIX) and kind_of(item) == "sharded"


def _protect_new_tables(context: Any, _revision: Any, directives: list[Any]) -> None:
    metadata = context.opts.get("target_metadata")
    if metadata is None or not directives:
        return
    for upgrade in directives[0].upgrade_ops_list:
        assert isinstance(upgrade, UpgradeOps)
        new = [op for op in upgrade.ops if isinstance(op, CreateTableOp)]
        for op in new:  # what we noted at the models' tables (Cached, ...) is not for a revision
            op.info = {key: value for key, value in op.info.items() if not str(key).startswith(OWN_PREFIX)}
        scoped = [op.table_name for op in new if metadata.tables[op.table_name].info.get("shardkit_scoped")]
        upgrade.ops.extend(ProtectOp(name) for name in scoped)


HOOKS: Final[dict[str, Any]] = {
    "render_item": _render_item,
    "include_object": _include_object,
    "process_revision_directives": _protect_new_tables,
}
