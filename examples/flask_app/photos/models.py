"""What a shard holds. The tenant is a person's account: everything that is theirs is in one shard.

Who likes, follows or is shown something is another tenant, so these facts are kept twice, once on each side: my ``Like`` and
the photo's ``LikedBy``, my ``Follow`` and their ``Follower``. My side is written at once; the other follows by the outbox.
"""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import BigInteger, DateTime, ForeignKey, Index, func, text
from sqlalchemy.orm import Mapped, mapped_column

from shardkit import GlobalUnique, ShardedBase, ShardKey, TenantScoped
from shardkit.orm.cached import Cached, ListKey

FEED_KEPT = 60


class Base(ShardedBase):
    __abstract__ = True


class User(TenantScoped, Base):
    """One person; the only row of this table with that tenant."""

    __tablename__ = "users"
    id: Mapped[int] = mapped_column(ShardKey, primary_key=True)
    name: Mapped[str] = mapped_column(GlobalUnique(), unique=True)
    full_name: Mapped[str]
    bio: Mapped[str] = mapped_column(server_default=text("''"))
    password_hash: Mapped[str] = mapped_column(deferred=True)  # so it never gets into the cache
    photos: Mapped[int] = mapped_column(server_default=text("0"))
    followers: Mapped[int] = mapped_column(server_default=text("0"))
    following: Mapped[int] = mapped_column(server_default=text("0"))
    famous: Mapped[bool] = mapped_column(server_default=text("false"))
    joined_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.now())
    __cached__ = Cached(unique=["name"])


class Photo(TenantScoped, Base):
    __tablename__ = "photos"
    id: Mapped[int] = mapped_column(ShardKey, primary_key=True)
    author: Mapped[str]
    caption: Mapped[str]
    width: Mapped[int]
    height: Mapped[int]
    likes: Mapped[int] = mapped_column(server_default=text("0"))
    comments: Mapped[int] = mapped_column(server_default=text("0"))
    taken_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.now())
    nonce: Mapped[str] = mapped_column(unique=True)  # of the form: sent twice, it is one photo
    __cached__ = Cached(lists=[ListKey("author", limit=FEED_KEPT)])


class Comment(TenantScoped, Base):
    """Kept with the photo, so its tenant is the photo's owner."""

    __tablename__ = "comments"
    id: Mapped[int] = mapped_column(ShardKey, primary_key=True)
    photo_id: Mapped[int] = mapped_column(BigInteger, ForeignKey("photos.id", ondelete="CASCADE"))
    by: Mapped[str]
    author: Mapped[str]
    text: Mapped[str]
    at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.now())
    nonce: Mapped[str] = mapped_column(unique=True)
    __table_args__ = (Index("comments_of_photo", "photo_id"),)
    __cached__ = Cached(lists=[ListKey("photo_id", limit=50)])


class Like(TenantScoped, Base):
    """I like that photo."""

    __tablename__ = "likes"
    tenant_id: Mapped[str] = mapped_column(primary_key=True)
    photo_id: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    __cached__ = Cached()


class LikedBy(TenantScoped, Base):
    """My photo is liked by somebody; ``Photo.likes`` counts these."""

    __tablename__ = "liked_by"
    tenant_id: Mapped[str] = mapped_column(primary_key=True)
    photo_id: Mapped[int] = mapped_column(
        BigInteger, ForeignKey("photos.id", ondelete="CASCADE"), primary_key=True, autoincrement=False
    )
    who: Mapped[str] = mapped_column(primary_key=True)


class Follow(TenantScoped, Base):
    """I follow somebody. The photos of the famous are looked for when I read, those of others were written into my feed."""

    __tablename__ = "follows"
    tenant_id: Mapped[str] = mapped_column(primary_key=True)
    whom: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str]
    famous: Mapped[bool] = mapped_column(server_default=text("false"))
    __table_args__ = (Index("follows_of_the_famous", "famous"),)
    __cached__ = Cached(lists=[ListKey("famous", limit=1000)])


class Follower(TenantScoped, Base):
    """Somebody follows me; ``User.followers`` counts these."""

    __tablename__ = "followers"
    tenant_id: Mapped[str] = mapped_column(primary_key=True)
    who: Mapped[str] = mapped_column(primary_key=True)


class FeedEntry(TenantScoped, Base):
    """A photo in my feed: its id says in which shard it is, ``owner`` whose it is."""

    __tablename__ = "feed"
    tenant_id: Mapped[str] = mapped_column(primary_key=True)
    photo_id: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    owner: Mapped[str]
    __cached__ = Cached(lists=[ListKey("tenant_id", limit=FEED_KEPT, newest="photo_id")])


class Attempt(TenantScoped, Base):
    """Somebody tried to log in. Its tenant is what is counted: a name, an address, both."""

    __tablename__ = "attempts"
    id: Mapped[int] = mapped_column(ShardKey, primary_key=True)
    at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.now())
    __table_args__ = (Index("attempts_by_time", "at"),)
