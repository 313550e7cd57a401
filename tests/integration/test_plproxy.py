"""PL/Proxy, the rival of the benchmark `routing`: it really answers, from both databases."""

from __future__ import annotations

from pathlib import Path

import psycopg
import pytest

from benchmarks.plproxy import NoPlproxyError, directory, proxied

ROWS = [(f"tenant-{number}", number * 10) for number in range(40)]


def test_it_is_said_when_there_is_none(tmp_path: Path) -> None:
    with pytest.raises(NoPlproxyError, match="not installed"):
        directory(tmp_path)


def test_rows_are_spread_and_found(shardkit_databases) -> None:
    try:
        directory()
    except NoPlproxyError as exc:
        pytest.skip(str(exc))
    urls = shardkit_databases(2).servers
    with proxied(urls, ROWS) as get:
        for tenant, key in ROWS:
            assert get(tenant, key)[0::4] == (key, tenant)
        assert get("tenant-1", 20) is None, "another tenant's row"
        counts = []
        for url in urls.values():
            with psycopg.connect(url) as connection:
                counts += connection.execute("SELECT count(*) FROM public.photos").fetchone()
    assert sum(counts) == len(ROWS)
    assert min(counts) > 0
