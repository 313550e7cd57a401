"""The feed: what was written into it when it was posted, and the photos of the famous, looked for when it is read.

A photo of somebody with a hundred followers is a hundred small writes, and each of the hundred reads its feed from one shard.
A photo of somebody with a million would be a million writes, most of them into feeds nobody opens: it is found on reading.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import select

from photos.models import FEED_KEPT, FeedEntry, Follow, Like, Photo
from shardkit import ShardKit

PAGE = 12
ONE_BY_ONE = 8
"""Famous people that are asked through the cache, one by one; for more, one fan-out asks all of them at once."""
EXPLORE_S = 5.0
SHOWN = (
    Photo.id,
    Photo.tenant_id,
    Photo.author,
    Photo.caption,
    Photo.width,
    Photo.height,
    Photo.likes,
    Photo.comments,
    Photo.taken_at,
)


@dataclass(frozen=True, slots=True)
class Item:
    """A photo as somebody sees it."""

    photo: Any
    liked: bool

    @property
    def id(self) -> int:
        """Of the photo."""
        return self.photo.id


def feed(kit: ShardKit, me: str, *, before: int | None = None) -> list[Item]:
    """The newest photos of those I follow, and mine, older than *before*."""
    found = {entry.photo_id: entry.owner for entry in _written(kit, me, before)}
    famous = kit.cache.list(Follow, True, by="famous", tenant=me)  # noqa: FBT003  # a key
    found |= dict(_of_famous(kit, famous, before))
    rows = (kit.cache.get_row(Photo, photo_id, tenant=found[photo_id]) for photo_id in sorted(found, reverse=True))
    there = (row for row in rows if row is not None)  # some were taken down
    return with_likes(kit, me, list(itertools.islice(there, PAGE)))


def _written(kit: ShardKit, me: str, before: int | None) -> list[FeedEntry]:
    kept = [e for e in kit.cache.list(FeedEntry, me, by="tenant_id", tenant=me) if before is None or e.photo_id < before]
    if before is None or len(kept) > PAGE:
        return kept
    with kit.read(me) as session:  # further back than the cache goes
        older = select(FeedEntry).where(FeedEntry.photo_id < before).order_by(FeedEntry.photo_id.desc()).limit(FEED_KEPT)
        return list(session.scalars(older))


def _of_famous(kit: ShardKit, follows: Sequence[Follow], before: int | None) -> list[tuple[int, str]]:
    if before is None and len(follows) <= ONE_BY_ONE:
        lists = (kit.cache.list(Photo, follow.name, by="author", tenant=follow.whom) for follow in follows)
        return [(photo.id, photo.tenant_id) for photos in lists for photo in photos]
    if not follows:
        return []
    people = [follow.whom for follow in follows]
    older = select(Photo.id, Photo.tenant_id).order_by(Photo.id.desc()).limit(2 * PAGE)
    if before is not None:
        older = older.where(Photo.id < before)
    return [(row.id, row.tenant_id) for row in kit.fan_out(older, tenants=people)]


def with_likes(kit: ShardKit, me: str | None, photos: list[Any]) -> list[Item]:
    """*photos*, with whether I like them: my likes are all in my shard, so that is one question."""
    mine = kit.cache.get_rows(Like, [(me, photo.id) for photo in photos], tenant=me) if me and photos else {}
    return [Item(photo, (me, photo.id) in mine) for photo in photos]


class Explore:
    """The newest photos of everybody: one fan-out over all shards, kept for a few seconds in the process."""

    def __init__(self) -> None:
        self._kept: tuple[float, list[Any]] = (0.0, [])

    def photos(self, kit: ShardKit, *, before: int | None = None, count: int = 24) -> list[Any]:
        """The newest *count* photos, older than *before*."""
        at, kept = self._kept
        if before is None and time.monotonic() - at < EXPLORE_S and kept:
            return kept
        newest = select(*SHOWN).order_by(Photo.id.desc()).limit(count)
        if before is not None:
            newest = newest.where(Photo.id < before)
        found = list(kit.fan_out(newest))
        if before is None:
            self._kept = time.monotonic(), found
        return found
