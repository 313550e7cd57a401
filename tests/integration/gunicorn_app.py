"""An application that used everything before Gunicorn forked its workers: ``gunicorn --preload gunicorn_app:app``."""

from __future__ import annotations

import os

from cachelab import Photo
from flask import Flask
from sqlalchemy import func, select

from shardkit.contrib.flask import ShardKit, from_path

app = Flask(__name__)
shards = ShardKit(app, tenant=from_path("tenant"))
with app.app_context():
    kit = shards.kit
with kit.begin("of the master") as session:
    session.add(Photo(user_id=1, slug="before", title="of the master"))
assert kit.cache.get_row(Photo, "before", by="slug", tenant="of the master").title == "of the master"
assert kit.fan_out_scalar(select(func.count()).select_from(Photo)) >= 1


@app.get("/<tenant>/<slug>")
def show(tenant, slug):
    cached = kit.cache.get_row(Photo, slug, by="slug", tenant=tenant)
    stored = shards.read.scalar(select(Photo.title).where(Photo.slug == slug))
    return {"pid": os.getpid(), "cached": cached and cached.title, "stored": stored}


@app.post("/<tenant>/<slug>")
def add(tenant, slug):
    shards.session.add(Photo(user_id=1, slug=slug, title=f"{tenant} {slug}"))
    shards.session.commit()
    return {"pid": os.getpid()}


@app.get("/count")
@shards.no_tenant
def count():
    return {"pid": os.getpid(), "count": kit.fan_out_scalar(select(func.count()).select_from(Photo))}
