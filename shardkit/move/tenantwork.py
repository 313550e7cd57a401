"""What the effects of carrying one tenant work with: a move's two ends, which may be one server, and the tenant's share."""

from __future__ import annotations

import time
from typing import Any, Final

from psycopg import sql

from shardkit.core.carving import Going
from shardkit.core.hashing import TenantKey, tenant_from_text
from shardkit.core.moving import Busy
from shardkit.core.names import (
    CURTAIN_PREFIX,
    ID_ORIGIN_SEQUENCE,
    ID_SEQUENCE,
    MARKS_TABLE,
    SERVER_SCHEMA,
    curtain_name,
    schema_name,
)
from shardkit.errors import MoveError, MoveInterruptedError, NotEqualError
from shardkit.move.ends import SQL, End
from shardkit.move.share import Share, share_of, survey, tables_of_share
from shardkit.move.stream import ChangeStream
from shardkit.move.structure import Part, Table, differences, renamed, structure_of
from shardkit.move.work import Work

PATIENCE_S: Final = 30.0


class TenantWork(Work):
    """``schema`` is the shard that the tenant leaves, ``into`` the one it goes to; ``returning``: it goes back to the old one,
    where its rows of then still are.
    """

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        move = self.journal.move
        assert move.tenant is not None
        assert move.into_shard is not None
        self.shard, self.into_shard = move.shard, move.into_shard
        if move.source == move.target:
            end = self.target
            self.target = End(end.name, end.url, self.settings, session=end.session)
        self.tenant: TenantKey = tenant_from_text(move.tenant, self.map.tenant_type)
        self.returning = move.of_move is not None
        epoch = int(move.options["into_epoch"])
        self.into, self.next_into = schema_name(self.into_shard, epoch), schema_name(self.into_shard, epoch + 1)
        self.curtain = curtain_name(move.id)
        self.changes: ChangeStream | None = None
        self._share: Share | None = None

    def close(self) -> None:
        """End all sessions."""
        super().close()
        self.target.close()

    def watch_wal(self) -> None:
        """Raise WalLimitError where the slot of the session that follows the changes, if there is one, holds back too much."""
        row = self.source.on().execute(SQL["slot"], {"name": self.following(self.out)}).fetchone()
        self.within_wal_limit(0 if row is None else row[1] or 0)

    @property
    def share(self) -> Share:
        """What goes along, as the source is now. On the way back tables that were copied wholly stay as they are."""
        if self._share is None:
            carving = survey(self.source, self.schema, whole=self.journal.move.options.get("whole", ()))
            if self.returning:
                its = {name: part for name, part in carving.parts.items() if part.going is Going.ITS_ROWS}
                carving = carving._replace(parts=its)
            self._share = share_of(self.source, self.schema, self.tenant, carving)
        return self._share

    def tables(self) -> list[Table]:
        """The tables that go along."""
        return tables_of_share(self.source, self.schema, self.share)

    def structure(self) -> list[Part]:
        """What the source's schema is made of, in the target's names, without what is each shard's own: how it makes ids."""
        found = renamed(structure_of(self.source.on(), self.schema), self.schema, self.into)
        return [part for part in self._in_words_of_target(found, self.into) if not self._own(part)]

    def structure_there(self) -> list[Part]:
        """The same of the target."""
        return [part for part in structure_of(self.target.on(), self.into) if not self._own(part)]

    def _own(self, part: Part) -> bool:
        made = {f"{self.into}.{name}" for name in ("next_id()", ID_SEQUENCE, ID_ORIGIN_SEQUENCE)}
        return (part.kind in ("function", "sequence") and part.name in made) or (
            part.kind == "policy" and part.name.startswith(CURTAIN_PREFIX)
        )

    def same_structure(self) -> None:
        """Raise NotEqualError unless both sides are made alike."""
        if found := differences(self.structure(), self.structure_there()):
            raise NotEqualError(
                "the structure of the shard changed while its tenant was carried out: nothing was switched over. Abort, and "
                "begin again:\n  - " + "\n  - ".join(found) + "\n"
            )

    def stays_empty(self, *, on: str = "main") -> None:
        """Raise MoveError if a table whose rows nobody can tell the owner of has rows by now."""
        asked = self.share.any_row(self.schema)
        found = [] if asked is None else [name for (name,) in self.source.on(on).execute(asked)]
        if found:
            raise MoveError(
                f"table {found[0]} has no tenant_id and has got rows meanwhile, of which nobody can tell whose they are: "
                "nothing was switched over. Abort; add the column, or begin again with --whole"
            )

    def publication(self, end: End, name: str) -> None:
        """Make the publication *name* of the tenant's share on *end*, unless it is there."""
        self.journal.register(end.name, "publication", name)
        if end.one("publication_exists", name=name):
            return
        schema = self.schema if end is self.source else self.into
        tables = [self.share.published(schema, table) for table in tables_of_share(end, schema, self.share)]
        marks = sql.SQL("{} WHERE (lane = {})").format(sql.Identifier(SERVER_SCHEMA, MARKS_TABLE), sql.Literal(name))
        command = sql.SQL("CREATE PUBLICATION {} FOR TABLE {}")
        end.on().execute(command.format(sql.Identifier(name), sql.SQL(", ").join([*tables, marks])))

    def mark_and_wait(self) -> float:
        """Milliseconds until everything that is committed on the source has been heard of."""
        assert self.changes is not None
        began = time.monotonic()
        n = self.source.one("write_mark", lane=self.out)
        try:
            self.changes.wait_for_mark(n, deadline=began + PATIENCE_S)
        except Busy:
            raise MoveInterruptedError(
                f"server {self.source.name!r} sends no changes for {PATIENCE_S:g} s; the source goes on serving, resume"
            ) from None
        return (time.monotonic() - began) * 1000
