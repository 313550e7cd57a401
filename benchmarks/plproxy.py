"""PL/Proxy as a user would run it: a proxy database before one plain database on each server; queries are functions."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import psycopg
from psycopg import conninfo, sql

from shardkit import run_local

BINARIES: Final = Path("/usr/lib/postgresql")
"""Where Debian keeps each major version, which is where its package of PL/Proxy puts its library."""
TABLE: Final = """
CREATE TABLE public.photos
  (id bigint PRIMARY KEY, title text NOT NULL, likes integer NOT NULL, place text, tenant_id text NOT NULL);
CREATE UNIQUE INDEX ON public.photos (tenant_id, id);
CREATE FUNCTION public.get_photo(tenant text, photo bigint) RETURNS SETOF public.photos LANGUAGE sql STABLE AS
  $$ SELECT * FROM public.photos WHERE id = photo AND tenant_id = tenant $$;
"""
PROXY: Final = """
CREATE FUNCTION public.get_photo(tenant text, photo bigint)
RETURNS TABLE (id bigint, title text, likes integer, place text, tenant_id text) LANGUAGE plproxy AS
  $$ CLUSTER 'photos'; RUN ON hashtext(tenant); $$;
"""
Get = Callable[[str, int], Any]


class NoPlproxyError(RuntimeError):
    """There is none here; the message says what was looked for."""


def directory(binaries: Path = BINARIES) -> Path:
    """Programs of the newest PostgreSQL that has PL/Proxy. Raises NoPlproxyError."""
    for found in sorted(binaries.glob("*/lib/plproxy.so"), reverse=True):
        if (programs := found.parents[1] / "bin").is_dir():
            return programs
    raise NoPlproxyError("not installed (Debian's package postgresql-15-plproxy)")


@contextmanager
def proxied(urls: Mapping[str, str], rows: Sequence[tuple[str, int]]) -> Iterator[Get]:
    """Reads of one of *rows* (tenant, id) through PL/Proxy, which spreads them over the empty databases *urls*.

    Their number must be a power of two. The proxy is a server of its own; calls are prepared, in autocommit.
    """
    programs = directory()
    before = os.environ.get("SHARDKIT_PG_BIN")
    os.environ["SHARDKIT_PG_BIN"] = str(programs)
    try:
        cluster = run_local(servers=1, redis=False, trust=True)
    finally:
        os.environ.pop("SHARDKIT_PG_BIN")
        if before is not None:
            os.environ["SHARDKIT_PG_BIN"] = before
    with cluster, psycopg.connect(cluster.servers[0].url, autocommit=True) as proxy:
        proxy.execute("CREATE EXTENSION plproxy")
        options = sql.SQL(", ").join(
            sql.SQL("{} {}").format(sql.Identifier(f"p{number}"), sql.Literal(_partition(url)))
            for number, url in enumerate(urls.values())
        )
        proxy.execute(sql.SQL("CREATE SERVER photos FOREIGN DATA WRAPPER plproxy OPTIONS ({})").format(options))
        user = conninfo.conninfo_to_dict(next(iter(urls.values())))["user"]
        proxy.execute(sql.SQL("CREATE USER MAPPING FOR CURRENT_USER SERVER photos OPTIONS (user {})").format(sql.Literal(user)))
        proxy.execute(PROXY)
        _fill(proxy, urls, rows)
        proxy.prepare_threshold = 1

        def get(tenant: str, key: int) -> Any:
            return proxy.execute("SELECT * FROM public.get_photo(%s, %s)", (tenant, key)).fetchone()

        yield get


def _partition(url: str) -> str:
    parts = conninfo.conninfo_to_dict(url)
    return conninfo.make_conninfo(host=parts["host"], port=parts["port"], dbname=parts["dbname"])


def _fill(proxy: psycopg.Connection[Any], urls: Mapping[str, str], rows: Sequence[tuple[str, int]]) -> None:
    """Each row where PL/Proxy looks for it."""
    names = [name for name, _ in rows]
    found = proxy.execute("SELECT hashtext(name) & %s FROM unnest(%s::text[]) name", (len(urls) - 1, names))
    homes = [home for (home,) in found]
    for number, url in enumerate(urls.values()):
        with psycopg.connect(url, autocommit=True) as partition:
            partition.execute(TABLE)
            mine = [row for row, home in zip(rows, homes, strict=True) if home == number]
            with partition.cursor() as cursor:
                cursor.executemany("INSERT INTO public.photos (tenant_id, id, title, likes) VALUES (%s, %s, 'photo', 0)", mine)
            partition.execute("VACUUM ANALYZE public.photos")
