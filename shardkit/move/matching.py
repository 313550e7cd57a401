"""Makes one tenant's rows equal on both sides: compares by content, as a move does, and copies again what is unequal.

What changed is only ever named by the stream, never applied from it: a row is copied as it is *now*, so it does not matter how
often, in which order, or by a process that was killed in between. Under the fence nothing changes any more, and then equal is
equal.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import psycopg
from psycopg import sql

from shardkit.move.copy import pipe
from shardkit.move.ends import End
from shardkit.move.pgoutput import Key
from shardkit.move.share import Share
from shardkit.move.structure import Table, reworded
from shardkit.move.verify import KEYS_AT_ONCE, Verifier, key_type


@dataclass(slots=True)
class Matcher(Verifier):
    """Compares ``share`` in ``schema`` on the source with ``into`` on the target, and mends the target."""

    share: Share = field(kw_only=True)
    into: str = field(kw_only=True)
    mended: int = 0

    def nobody_else(self) -> None:
        """Who else writes to the copy is not refused here but overruled: what was written is compared too, and mended."""

    def finally_equal(self, *, deadline: float) -> None:
        """As for a move; and nobody has emptied a table of the target."""
        self._emptied |= self.watch.take_emptied()
        Verifier.finally_equal(self, deadline=deadline)

    def _take(self) -> None:
        Verifier._take(self)
        for name, keys in self.watch.take_changed().items():
            self.pending.setdefault(name, {}).update(keys)
        self._emptied |= self.watch.take_emptied()

    def _rows(self, end: End, table: Table) -> sql.Composable:
        return self.share.rows(self._schema_on(end), table)

    def _schema_on(self, end: End) -> str:
        return self.schema if end is self.source else self.into

    def _on(self, end: End, table: Table) -> Table:
        types = (reworded(kind, self.schema, self._schema_on(end)) for kind in table.key_types)
        return replace(table, key_types=tuple(types))

    def _pieces(self, blocks: int) -> Iterator[sql.Composable]:
        """The share at once: its rows are found by an index, and may be few among those of others."""
        del blocks
        yield sql.SQL("true")

    def _compare(self, *, deadline: float | None = None) -> None:
        Verifier._compare(self, deadline=deadline)
        if self.pending and self._mend():
            Verifier._compare(self, deadline=deadline)

    def _mend(self) -> bool:
        """Copy again what is unequal, all of it in one transaction, so that rows can exchange unique values; False: in vain."""
        reader, writer = self.source.on("mend"), self.target.on("mend")
        try:
            with writer.transaction():
                writer.execute("SET LOCAL session_replication_role = replica; SET LOCAL synchronous_commit = on")
                for table, keys in list(self._unequal_keys()):
                    writer.execute(self._away(table, keys))
                for table, keys in list(self._unequal_keys()):
                    columns = sql.SQL(", ").join(map(sql.Identifier, table.columns))
                    out = sql.SQL("COPY (SELECT {} FROM {} t WHERE {}) TO STDOUT (FORMAT binary)").format(
                        sql.SQL(", ").join(sql.Identifier("t", column) for column in table.columns),
                        self._rows(self.source, table),
                        _among(table, keys),
                    )
                    into = sql.SQL("COPY {} ({}) FROM STDIN (FORMAT binary)").format(table.within(self.into), columns)
                    pipe(reader, out, writer, into, lambda _more: None)
                    self.mended += len(keys)
        except psycopg.errors.IntegrityError:
            return False  # a row still has a value that another one is to get: that one's change is yet to come
        return True

    def _unequal_keys(self) -> Iterator[tuple[Table, list[Key]]]:
        for table in self.tables:
            keys = list(self.pending.get(table.name, ()))
            for start in range(0, len(keys), KEYS_AT_ONCE):
                yield table, keys[start : start + KEYS_AT_ONCE]

    def _away(self, table: Table, keys: list[Key]) -> sql.Composed:
        return sql.SQL("DELETE FROM ONLY {} t WHERE {} AND {}").format(
            table.within(self.into), _among(self._on(self.target, table), keys), self.share.its(table)
        )


def _among(table: Table, keys: list[Key]) -> sql.Composed:
    """Whether a row ``t`` has one of *keys*; literals, because COPY takes no parameters."""
    arrays = [
        sql.SQL("CAST({} AS {})").format(sql.Literal([key[n] for key in keys]), key_type(f"{kind}[]"))
        for n, kind in enumerate(table.key_types)
    ]
    return sql.SQL("({}) IN (SELECT * FROM unnest({}))").format(
        sql.SQL(", ").join(sql.Identifier("t", column) for column in table.key), sql.SQL(", ").join(arrays)
    )
