"""Who looks at replicas goes on looking, whatever connecting says."""

from __future__ import annotations

import threading
from uuid import UUID

from shardkit import Settings
from shardkit.core.shardmap import Server
from shardkit.db import replicas
from shardkit.db.lineage import Lineage
from shardkit.errors import SettingsError

REPLICA = "host=127.0.0.1 port=2 dbname=x"
SERVER = Server("pg1", "host=127.0.0.1 port=1 dbname=x", UUID(int=2), replicas=(REPLICA,))


def test_settings_that_do_not_fit_are_no_end_of_it(monkeypatch):
    asked, enough = [], threading.Event()

    def refuse(_server, _settings, *, replica, **_):
        asked.append(replica)
        if asked.count(None) > 1 and asked.count(REPLICA) > 1:
            enough.set()
        raise SettingsError("a pooler stands between")

    monkeypatch.setattr(replicas, "connect", refuse)
    settings = Settings(catalog_url="postgresql:///x", replica_check_s=0.01)
    watch = replicas.ReplicaWatch(settings, cluster_id=UUID(int=1), lineage=Lineage())
    try:
        assert watch.choose(SERVER, max_lag_s=1.0, written_s=None, after=None) is None
        assert enough.wait(60)
    finally:
        watch.close()
