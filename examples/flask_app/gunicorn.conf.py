"""Threads for waiting, workers for computing; the application is loaded once, and shardkit minds the fork."""

from __future__ import annotations

import os

worker_class = "gthread"
workers = int(os.environ.get("WEB_CONCURRENCY", "2"))
threads = 8
worker_connections = 4000  # most wait for their person's next click; at Gunicorn's 1,000 the next person is not let in
keepalive = 75  # longer than clients keep a connection: a form is never sent on one that is just being closed
preload_app = True
max_requests = 20_000  # a worker is replaced now and then
max_requests_jitter = 2_000
accesslog = None
control_socket_disable = True
