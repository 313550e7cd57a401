"""People, photos, and what they have to do with one another."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

import shardkit
from shardkit.schema import protect

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

TABLES = ("attempts", "feed", "followers", "follows", "likes", "photos", "users", "comments", "liked_by")


def own_id() -> sa.Column:
    """The key of a row, with time and shard in it."""
    return sa.Column("id", shardkit.ShardKey(), server_default=sa.text("next_id()"), autoincrement=False, nullable=False)


def owned() -> sa.Column:
    """Whose row it is: the current tenant's."""
    mine = sa.text("nullif(current_setting('shardkit.tenant'), '')")
    return sa.Column("tenant_id", sa.Text(), server_default=mine, nullable=False)


def when(name: str) -> sa.Column:
    """When the row was written."""
    return sa.Column(name, sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False)


def count(name: str) -> sa.Column:
    """How many there are, from 0 on."""
    return sa.Column(name, sa.Integer(), server_default=sa.text("0"), nullable=False)


def upgrade() -> None:
    op.create_table(
        "attempts",
        own_id(),
        when("at"),
        owned(),
        sa.PrimaryKeyConstraint("id", name=op.f("attempts_pkey")),
        sa.UniqueConstraint("tenant_id", "id", name="attempts_tenant_key"),
    )
    op.create_index("attempts_by_time", "attempts", ["tenant_id", "at"], unique=False)
    op.create_table(
        "feed",
        owned(),
        sa.Column("photo_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("owner", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("tenant_id", "photo_id", name=op.f("feed_pkey")),
    )
    op.create_table(
        "followers",
        owned(),
        sa.Column("who", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("tenant_id", "who", name=op.f("followers_pkey")),
    )
    op.create_table(
        "follows",
        owned(),
        sa.Column("whom", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("famous", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.PrimaryKeyConstraint("tenant_id", "whom", name=op.f("follows_pkey")),
    )
    op.create_index("follows_of_the_famous", "follows", ["tenant_id", "famous"], unique=False)
    op.create_table(
        "likes",
        owned(),
        sa.Column("photo_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.PrimaryKeyConstraint("tenant_id", "photo_id", name=op.f("likes_pkey")),
    )
    op.create_table(
        "photos",
        own_id(),
        sa.Column("author", sa.String(), nullable=False),
        sa.Column("caption", sa.String(), nullable=False),
        sa.Column("width", sa.Integer(), nullable=False),
        sa.Column("height", sa.Integer(), nullable=False),
        count("likes"),
        count("comments"),
        when("taken_at"),
        sa.Column("nonce", sa.String(), nullable=False),
        owned(),
        sa.PrimaryKeyConstraint("id", name=op.f("photos_pkey")),
        sa.UniqueConstraint("tenant_id", "id", name="photos_tenant_key"),
        sa.UniqueConstraint("tenant_id", "nonce", name=op.f("photos_nonce_key")),
    )
    op.create_table(
        "users",
        own_id(),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("full_name", sa.String(), nullable=False),
        sa.Column("bio", sa.String(), server_default=sa.text("''"), nullable=False),
        sa.Column("password_hash", sa.String(), nullable=False),
        count("photos"),
        count("followers"),
        count("following"),
        sa.Column("famous", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        when("joined_at"),
        owned(),
        sa.PrimaryKeyConstraint("id", name=op.f("users_pkey")),
        sa.UniqueConstraint("tenant_id", "id", name="users_tenant_key"),
        sa.UniqueConstraint("tenant_id", "name", name=op.f("users_name_key")),
    )
    op.create_table(
        "comments",
        own_id(),
        sa.Column("photo_id", sa.BigInteger(), nullable=False),
        sa.Column("by", sa.String(), nullable=False),
        sa.Column("author", sa.String(), nullable=False),
        sa.Column("text", sa.String(), nullable=False),
        when("at"),
        sa.Column("nonce", sa.String(), nullable=False),
        owned(),
        sa.ForeignKeyConstraint(["photo_id"], ["photos.id"], name=op.f("comments_photo_id_fkey"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=op.f("comments_pkey")),
        sa.UniqueConstraint("tenant_id", "id", name="comments_tenant_key"),
        sa.UniqueConstraint("tenant_id", "nonce", name=op.f("comments_nonce_key")),
    )
    op.create_index("comments_of_photo", "comments", ["tenant_id", "photo_id"], unique=False)
    op.create_table(
        "liked_by",
        owned(),
        sa.Column("photo_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("who", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(["photo_id"], ["photos.id"], name=op.f("liked_by_photo_id_fkey"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("tenant_id", "photo_id", "who", name=op.f("liked_by_pkey")),
    )
    for table in TABLES:
        protect(op, table)


def downgrade() -> None:
    for table in reversed(TABLES):
        op.drop_table(table)
