"""What a deed means for others: handlers of the outbox, each run in a transaction of the one it is about, exactly once."""

from __future__ import annotations

from collections.abc import Callable

from sqlalchemy import select
from sqlalchemy.dialects.postgresql import insert

from photos.models import FeedEntry, Follow, Follower, LikedBy, Photo, User
from shardkit import ShardKit

CHUNK = 200
"""Followers that one effect reaches; it passes the rest on to a next one, so that no transaction grows with fame."""
WELCOME = 12
"""Photos that a new follower is shown at once."""


def handlers(kit: ShardKit, *, famous_from: int) -> dict[str, Callable]:
    """By kind. From *famous_from* followers on somebody's photos are no longer written into feeds, but looked for."""

    def liked(session, effect) -> None:
        photo = session.get(Photo, effect.payload["photo"])
        if photo is None:  # it was taken down
            return
        session.add(LikedBy(photo_id=photo.id, who=effect.from_tenant))
        photo.likes = Photo.likes + 1

    def unliked(session, effect) -> None:
        photo = session.get(Photo, effect.payload["photo"])
        row = session.get(LikedBy, (effect.to_tenant, effect.payload["photo"], effect.from_tenant))
        if photo is None or row is None:
            return
        session.delete(row)
        photo.likes = Photo.likes - 1

    def followed(session, effect) -> None:
        me = session.scalars(select(User).with_for_update()).one()
        session.add(Follower(who=effect.from_tenant))
        me.followers += 1
        if me.famous:
            kit.outbox.send(session, to=effect.from_tenant, kind="famous")
            return
        if me.followers >= famous_from:
            me.famous = True
            kit.outbox.send(session, to=effect.to_tenant, kind="became famous", payload={})
        newest = session.scalars(select(Photo.id).order_by(Photo.id.desc()).limit(WELCOME)).all()
        kit.outbox.send(session, to=effect.from_tenant, kind="show", payload={"photos": newest})

    def unfollowed(session, effect) -> None:
        me = session.scalars(select(User).with_for_update()).one()
        row = session.get(Follower, (effect.to_tenant, effect.from_tenant))
        if row is not None:
            session.delete(row)
            me.followers -= 1

    def posted(session, effect) -> None:
        if not session.scalar(select(User.famous)):
            to_followers(session, effect, "show", {"photos": [effect.payload["photo"]]})

    def became_famous(session, effect) -> None:
        to_followers(session, effect, "famous", None)

    def to_followers(session, effect, kind: str, payload) -> None:
        after = effect.payload.get("after", "")
        chunk = session.scalars(select(Follower.who).where(Follower.who > after).order_by(Follower.who).limit(CHUNK)).all()
        for who in chunk:
            kit.outbox.send(session, to=who, kind=kind, payload=payload)
        if len(chunk) == CHUNK:
            more = {**effect.payload, "after": chunk[-1]}
            kit.outbox.send(session, to=effect.to_tenant, kind=effect.kind, payload=more)

    def show(session, effect) -> None:
        if session.get(Follow, (effect.to_tenant, effect.from_tenant)) is None:  # not any more
            return
        rows = [{"tenant_id": effect.to_tenant, "photo_id": p, "owner": effect.from_tenant} for p in effect.payload["photos"]]
        if rows:
            session.execute(insert(FeedEntry).on_conflict_do_nothing(), rows)

    def famous(session, effect) -> None:
        found = session.get(Follow, (effect.to_tenant, effect.from_tenant))
        if found is not None:
            found.famous = True

    return {
        "liked": liked,
        "unliked": unliked,
        "followed": followed,
        "unfollowed": unfollowed,
        "posted": posted,
        "became famous": became_famous,
        "show": show,
        "famous": famous,
    }
