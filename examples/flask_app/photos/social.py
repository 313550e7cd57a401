"""What people do. Each deed is one transaction in one shard; what it means for others travels by the outbox.

So a deed cannot be half done, a repeated one (a double click, a resent form) does nothing, and each effect on another person
is applied once, wherever their shard is and whether or not it is being moved.
"""

from __future__ import annotations

from pathlib import Path
from typing import IO

from sqlalchemy import delete, func, select, update
from sqlalchemy.exc import IntegrityError
from werkzeug.exceptions import NotFound

from photos import media
from photos.accounts import RefusedError
from photos.images import prepare
from photos.models import Comment, FeedEntry, Follow, Like, Photo, User
from shardkit import ShardKit

CAPTION_MOST, COMMENT_MOST = 500, 500


def owner_of(kit: ShardKit, photo_id: int) -> str:
    """Whose photo it is: the id says in which shard to ask. Raises NotFound, IdError, UnknownShardError."""
    with kit.session_for_id(photo_id, operator=True) as session:  # it is somebody else's, as a rule
        owner = session.scalar(select(Photo.tenant_id).where(Photo.id == photo_id))
    if owner is None:
        raise NotFound
    return str(owner)


def person(kit: ShardKit, name: str):
    """The account called *name*, as a row of the cache. Raises NotFound."""
    route = kit.locate_by(User.name, name.lower()[:64]) if name.isprintable() else None
    user = kit.cache.get_row(User, name.lower(), by="name", tenant=route.tenant) if route is not None else None
    if user is None:
        raise NotFound
    return user


def upload(kit: ShardKit, me, *, file: IO[bytes], caption: str, nonce: str, directory: Path) -> int:
    """Publish a photo; gives its id. Raises RefusedError, BadImageError."""
    caption = caption.strip()
    if len(caption) > CAPTION_MOST:
        raise RefusedError(f"A caption has at most {CAPTION_MOST} characters.")
    prepared = prepare(file)
    written: list[int] = []

    def work(session) -> int:
        photo = Photo(author=me.name, caption=caption, width=prepared.width, height=prepared.height, nonce=nonce)
        session.add(photo)
        session.flush()
        written.append(photo.id)
        media.store(directory, photo.id, prepared.files)  # before COMMIT: nobody sees a photo without its files
        session.add(FeedEntry(photo_id=photo.id, owner=me.tenant_id))
        session.execute(update(User).where(User.name == me.name).values(photos=User.photos + 1))
        kit.outbox.send(session, to=me.tenant_id, kind="posted", payload={"photo": photo.id})
        return photo.id

    done = None
    try:
        done = kit.run(me.tenant_id, work)
    except IntegrityError:  # the same form again: its photo is there
        with kit.session(me.tenant_id) as session:
            done = session.scalar(select(Photo.id).where(Photo.nonce == nonce))
        if done is None:
            raise
    finally:
        for photo_id in written:
            if photo_id != done:
                media.remove(directory, photo_id)
    return done


def take_down(kit: ShardKit, me, photo_id: int, *, directory: Path) -> None:
    """Delete a photo of my own. Raises NotFound for any other, whether there is one or not; IdError, UnknownShardError."""
    kit.locate_id(photo_id)

    def work(session) -> None:
        photo = session.get(Photo, photo_id)  # a session of mine: another's photo is not in it
        if photo is None:
            raise NotFound
        session.delete(photo)
        session.execute(delete(FeedEntry).where(FeedEntry.photo_id == photo_id))
        session.execute(update(User).where(User.name == me.name).values(photos=User.photos - 1))

    kit.run(me.tenant_id, work)
    media.remove(directory, photo_id)


def like(kit: ShardKit, me, photo_id: int, owner: str) -> bool:
    """Like a photo; False where I do already."""

    def work(session) -> bool:
        if session.get(Like, (me.tenant_id, photo_id)) is not None:
            return False
        session.add(Like(photo_id=photo_id))
        session.flush()
        kit.outbox.send(session, to=owner, kind="liked", payload={"photo": photo_id})
        return True

    return _once(kit, me, work)


def unlike(kit: ShardKit, me, photo_id: int, owner: str) -> bool:
    """Take a like back; False where there is none."""

    def work(session) -> bool:
        found = session.get(Like, (me.tenant_id, photo_id), with_for_update=True)
        if found is None:
            return False
        session.delete(found)
        kit.outbox.send(session, to=owner, kind="unliked", payload={"photo": photo_id})
        return True

    return kit.run(me.tenant_id, work)


def follow(kit: ShardKit, me, them) -> bool:
    """Follow somebody; False where I do already. Raises RefusedError."""
    if them.tenant_id == me.tenant_id:
        raise RefusedError("That is you.")

    def work(session) -> bool:
        if session.get(Follow, (me.tenant_id, them.tenant_id)) is not None:
            return False
        session.add(Follow(whom=them.tenant_id, name=them.name, famous=them.famous))
        session.flush()
        session.execute(update(User).where(User.name == me.name).values(following=User.following + 1))
        kit.outbox.send(session, to=them.tenant_id, kind="followed")
        return True

    return _once(kit, me, work)


def unfollow(kit: ShardKit, me, them) -> bool:
    """Follow somebody no more; their photos leave my feed."""

    def work(session) -> bool:
        found = session.get(Follow, (me.tenant_id, them.tenant_id), with_for_update=True)
        if found is None:
            return False
        session.delete(found)
        for entry in session.scalars(select(FeedEntry).where(FeedEntry.owner == them.tenant_id)):
            session.delete(entry)
        session.execute(update(User).where(User.name == me.name).values(following=User.following - 1))
        kit.outbox.send(session, to=them.tenant_id, kind="unfollowed")
        return True

    return kit.run(me.tenant_id, work)


def comment(kit: ShardKit, me, photo_id: int, owner: str, *, text: str, nonce: str) -> None:
    """Say something about a photo. Raises RefusedError, NotFound. Sent twice, it is said once."""
    text = text.strip()
    if not 1 <= len(text) <= COMMENT_MOST:
        raise RefusedError(f"A comment has 1 to {COMMENT_MOST} characters.")

    def work(session) -> None:
        if session.scalar(select(func.count()).select_from(Comment).where(Comment.nonce == nonce)):
            return
        if session.get(Photo, photo_id) is None:
            raise NotFound
        session.add(Comment(photo_id=photo_id, by=me.tenant_id, author=me.name, text=text, nonce=nonce))
        session.flush()
        session.execute(update(Photo).where(Photo.id == photo_id).values(comments=Photo.comments + 1))

    try:
        kit.run(owner, work)
    except IntegrityError as exc:  # the same form, at the same time
        if "nonce" not in str(exc.orig):
            raise NotFound from exc


def _once(kit: ShardKit, me, work) -> bool:
    """Run *work* for me; two at the same time are one."""
    try:
        return bool(kit.run(me.tenant_id, work))
    except IntegrityError:
        return False
