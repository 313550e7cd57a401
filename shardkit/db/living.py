"""Of several hosts, the one that takes writes for a server on the highest timeline.

libpq would stop at the first host that takes writes, and that can be an old primary: one that came back before anybody in this
process had seen the new one. So all are asked, at the same time, for every connection that is made.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final
from uuid import UUID

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from shardkit.core.shardmap import Server
from shardkit.db.lineage import Lineage
from shardkit.db.wire import RoutedConnection
from shardkit.errors import ServerDownError, WrongServerError
from shardkit.settings import Secret
from shardkit.sql import statements

HOST_CONNECT_S: Final = 2  # for each host, where there are several; libpq takes less for two
LOOK_AROUND: Final = statements("server")["look_around"]


def hosts_of(given: Mapping[str, Any]) -> list[str]:
    """The hosts that the parts of a connection string name."""
    return str(given.get("hostaddr") or given.get("host") or "").split(",")


def hosts_apart(info: str) -> list[Secret]:
    """A connection string for each host of *info*."""
    given = conninfo_to_dict(info)
    count = len(hosts_of(given))
    lists = {k: str(given[k]).split(",") for k in ("host", "hostaddr", "port") if given.get(k)}
    return [
        Secret(make_conninfo(info, **{k: values[n] if len(values) == count else values[0] for k, values in lists.items()}))
        for n in range(count)
    ]


def way_to(info: Secret, server: Server, *, cluster_id: UUID, lineage: Lineage) -> Secret:
    """The connection string of the living host of *info*. Raises ServerDownError, OldPrimaryError."""
    apart = hosts_apart(info)
    if len(apart) == 1:
        return info
    with ThreadPoolExecutor(len(apart)) as pool:
        answers = list(pool.map(lambda alone: _timeline_of(alone, server, cluster_id), apart))
    living = [(answer, alone) for answer, alone in zip(answers, apart, strict=True) if isinstance(answer, int)]
    if not living:
        said = "; ".join(str(answer).strip().partition("\n")[0] for answer in answers)
        raise ServerDownError(f"no host of server {server.name!r} takes writes ({said}); nothing was sent")
    timeline, way = max(living, key=lambda found: found[0])
    lineage.saw(server, timeline)
    return way


def check_living(server: Server, timeline: str | None, *, replica: bool, lineage: Lineage) -> None:
    """Whether this is the living primary of *server* (or a standby, for a *replica*); *timeline* is None for a standby."""
    if replica:
        if timeline is not None:
            raise WrongServerError(f"a replica of server {server.name!r} takes writes: it is none (any more), and was not used")
    elif timeline is None:
        raise ServerDownError(
            f"server {server.name!r} is a standby that was not promoted (yet): nothing was sent. Is its primary down?"
        )
    else:
        lineage.saw(server, int(timeline, 16))


def _timeline_of(info: Secret, server: Server, cluster_id: UUID) -> int | psycopg.Error:
    """On which timeline a host takes writes for *server*, or why it does not."""
    try:
        with RoutedConnection.connect(info, autocommit=True) as connection:
            connection.call_timeout_s = HOST_CONNECT_S
            row = connection.execute(LOOK_AROUND).fetchone()
    except psycopg.Error as exc:
        return exc
    if row is None or row[:2] != (cluster_id, server.server_id) or row[6] is None:
        return psycopg.OperationalError("a standby, or another database")
    return int(row[6], 16)
