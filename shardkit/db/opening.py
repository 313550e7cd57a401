"""What goes before the first statement of a unit of work, and the names under which it is kept prepared."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Final

import psycopg
from psycopg import sql

from shardkit.core.names import APP_ROLE

if TYPE_CHECKING:
    from shardkit.db.wire import Routed

BEGIN: Final = b"BEGIN"
_COMMIT: Final = b"COMMIT"
READ_ONLY: Final = b"BEGIN READ ONLY"
_COMMIT_NAME: Final = b"_shardkit_commit"
_XID: Final = b"SELECT pg_current_xact_id_if_assigned()"
_XID_NAME: Final = b"_shardkit_xid"
OPENING_PREPARES: Final = 4
_BEGIN_NAME: Final = b"_shardkit_begin"
_SETTINGS_NAME: Final = b"_shardkit_open"
_SETTINGS: Final = (
    b"SELECT set_config('search_path', $1, true), set_config('shardkit.tenant', $2, true), set_config('role', $3, true)"
)
_TEXT_OID: Final = 25
_REPLAYED_NAME: Final = b"_shardkit_replayed"
_REPLAYED: Final = (
    b"SELECT current_setting('transaction_isolation') = 'read committed' AND "
    b"CASE WHEN pg_last_wal_replay_lsn() >= $1 THEN true ELSE shardkit.wait_replayed($1, $2) END"
)
_REPLAYED_TYPES: Final = [3220, 23]  # pg_lsn, integer


@dataclass(frozen=True, slots=True)
class Opening:
    """The settings of a unit of work: where unqualified names are looked up, who reads, and as which role."""

    schema: bytes
    tenant: bytes = b""
    role: bytes = APP_ROLE.encode()  # set every time: behind a pooler, or after a stray SET ROLE, it may be another one

    asks: ClassVar[bool] = False
    """Whether the last answer says if the statement's own may be believed."""

    def send(self, connection: Routed) -> int:
        """Queue BEGIN and the settings in the pipeline of *connection*; the number of results they will give."""
        wire, count = connection.pgconn, 1
        prepared = connection.prepare_threshold is not None
        if not connection.every:  # BEGIN goes first: behind anything else it could not choose the isolation level
            if connection.opening_prepared and connection.begin == BEGIN:
                wire.send_query_prepared(_BEGIN_NAME, None)
            else:
                wire.send_query_params(connection.begin, None)
            count += 1
        if prepared and not connection.opening_prepared:
            wire.send_prepare(_BEGIN_NAME, BEGIN)
            wire.send_prepare(_COMMIT_NAME, _COMMIT)
            wire.send_prepare(_XID_NAME, _XID)
            wire.send_prepare(_SETTINGS_NAME, _SETTINGS, param_types=[_TEXT_OID] * 3)
            count += OPENING_PREPARES
        if prepared:
            wire.send_query_prepared(_SETTINGS_NAME, [self.schema, self.tenant, self.role])
        else:
            wire.send_query_params(_SETTINGS, [self.schema, self.tenant, self.role], param_types=[_TEXT_OID] * 3)
        return count

    def command(self) -> bytes:
        """The settings as SQL, for a first statement that they cannot travel with."""
        values = [sql.Literal(value.decode()) for value in (self.schema, self.tenant, self.role)]
        settings = (
            "SELECT set_config('search_path', {}, true), set_config('shardkit.tenant', {}, true), set_config('role', {}, true)"
        )
        return sql.SQL(settings).format(*values).as_bytes(None)


def ask_xid(connection: Routed, *, commits: bool) -> None:
    """Queue the question for the transaction's id (NULL while it has written nothing); whether COMMIT follows it."""
    wire = connection.pgconn
    if connection.opening_prepared:
        wire.send_query_prepared(_XID_NAME, None)
    else:
        wire.send_query_params(_XID, None)
    if commits:
        wire.send_flush_request()  # its answer must not wait for COMMIT's


def send_commit(connection: Routed) -> None:
    """Queue COMMIT."""
    if connection.opening_prepared:
        connection.pgconn.send_query_prepared(_COMMIT_NAME, None)
    else:
        connection.pgconn.send_query_params(_COMMIT, None)


class ReplicaBehindError(psycopg.OperationalError):
    """The replica has not replayed what this read has to see; its answer was thrown away."""


@dataclass(frozen=True, slots=True)
class ReplicaOpening(Opening):
    """The settings of a read on a replica, which says in the same flight whether it has replayed ``wanted`` (an LSN)."""

    wanted: bytes = b""
    wait_ms: bytes = b"0"
    asks: ClassVar[bool] = True

    def send(self, connection: Routed) -> int:
        """The settings, and then the question: what comes after it takes a newer snapshot (at READ COMMITTED)."""
        wire, prepared = connection.pgconn, connection.prepare_threshold is not None
        count = Opening.send(self, connection) + 1
        if prepared and not connection.opening_prepared:
            wire.send_prepare(_REPLAYED_NAME, _REPLAYED, param_types=_REPLAYED_TYPES)
            count += 1
        values = [self.wanted, self.wait_ms]
        if prepared:
            wire.send_query_prepared(_REPLAYED_NAME, values)
        else:
            wire.send_query_params(_REPLAYED, values, param_types=_REPLAYED_TYPES)
        return count

    def command(self) -> bytes:
        """A replica is only read by statements that carry the question."""
        raise ReplicaBehindError("this cannot be done on a replica")
