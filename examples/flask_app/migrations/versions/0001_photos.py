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


def upgrade() -> None:
    op.create_table(
        "attempts",
        sa.Column("id", shardkit.ShardKey(), server_default=sa.text("next_id()"), autoincrement=False, nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column(
            "tenant_id", sa.Text(), server_default=sa.text("nullif(current_setting('shardkit.tenant'), '')"), nullable=False
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("attempts_pkey")),
        sa.UniqueConstraint("tenant_id", "id", name="attempts_tenant_key"),
    )
    op.create_index("attempts_by_time", "attempts", ["tenant_id", "at"], unique=False)
    op.create_table(
        "feed",
        sa.Column(
            "tenant_id", sa.Text(), server_default=sa.text("nullif(current_setting('shardkit.tenant'), '')"), nullable=False
        ),
        sa.Column("photo_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("owner", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("tenant_id", "photo_id", name=op.f("feed_pkey")),
    )
    op.create_table(
        "followers",
        sa.Column(
            "tenant_id", sa.Text(), server_default=sa.text("nullif(current_setting('shardkit.tenant'), '')"), nullable=False
        ),
        sa.Column("who", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("tenant_id", "who", name=op.f("followers_pkey")),
    )
    op.create_table(
        "follows",
        sa.Column(
            "tenant_id", sa.Text(), server_default=sa.text("nullif(current_setting('shardkit.tenant'), '')"), nullable=False
        ),
        sa.Column("whom", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("famous", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.PrimaryKeyConstraint("tenant_id", "whom", name=op.f("follows_pkey")),
    )
    op.create_index("follows_of_the_famous", "follows", ["tenant_id", "famous"], unique=False)
    op.create_table(
        "likes",
        sa.Column(
            "tenant_id", sa.Text(), server_default=sa.text("nullif(current_setting('shardkit.tenant'), '')"), nullable=False
        ),
        sa.Column("photo_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.PrimaryKeyConstraint("tenant_id", "photo_id", name=op.f("likes_pkey")),
    )
    op.create_table(
        "photos",
        sa.Column("id", shardkit.ShardKey(), server_default=sa.text("next_id()"), autoincrement=False, nullable=False),
        sa.Column("author", sa.String(), nullable=False),
        sa.Column("caption", sa.String(), nullable=False),
        sa.Column("width", sa.Integer(), nullable=False),
        sa.Column("height", sa.Integer(), nullable=False),
        sa.Column("likes", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("comments", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("taken_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("nonce", sa.String(), nullable=False),
        sa.Column(
            "tenant_id", sa.Text(), server_default=sa.text("nullif(current_setting('shardkit.tenant'), '')"), nullable=False
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("photos_pkey")),
        sa.UniqueConstraint("tenant_id", "id", name="photos_tenant_key"),
        sa.UniqueConstraint("tenant_id", "nonce", name=op.f("photos_nonce_key")),
    )
    op.create_table(
        "users",
        sa.Column("id", shardkit.ShardKey(), server_default=sa.text("next_id()"), autoincrement=False, nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("full_name", sa.String(), nullable=False),
        sa.Column("bio", sa.String(), server_default=sa.text("''"), nullable=False),
        sa.Column("password_hash", sa.String(), nullable=False),
        sa.Column("photos", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("followers", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("following", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("famous", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("joined_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column(
            "tenant_id", sa.Text(), server_default=sa.text("nullif(current_setting('shardkit.tenant'), '')"), nullable=False
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("users_pkey")),
        sa.UniqueConstraint("tenant_id", "id", name="users_tenant_key"),
        sa.UniqueConstraint("tenant_id", "name", name=op.f("users_name_key")),
    )
    op.create_table(
        "comments",
        sa.Column("id", shardkit.ShardKey(), server_default=sa.text("next_id()"), autoincrement=False, nullable=False),
        sa.Column("photo_id", sa.BigInteger(), nullable=False),
        sa.Column("by", sa.String(), nullable=False),
        sa.Column("author", sa.String(), nullable=False),
        sa.Column("text", sa.String(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("nonce", sa.String(), nullable=False),
        sa.Column(
            "tenant_id", sa.Text(), server_default=sa.text("nullif(current_setting('shardkit.tenant'), '')"), nullable=False
        ),
        sa.ForeignKeyConstraint(["photo_id"], ["photos.id"], name=op.f("comments_photo_id_fkey"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=op.f("comments_pkey")),
        sa.UniqueConstraint("tenant_id", "id", name="comments_tenant_key"),
        sa.UniqueConstraint("tenant_id", "nonce", name=op.f("comments_nonce_key")),
    )
    op.create_index("comments_of_photo", "comments", ["tenant_id", "photo_id"], unique=False)
    op.create_table(
        "liked_by",
        sa.Column(
            "tenant_id", sa.Text(), server_default=sa.text("nullif(current_setting('shardkit.tenant'), '')"), nullable=False
        ),
        sa.Column("photo_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("who", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(["photo_id"], ["photos.id"], name=op.f("liked_by_photo_id_fkey"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("tenant_id", "photo_id", "who", name=op.f("liked_by_pkey")),
    )
    protect(op, "attempts")
    protect(op, "feed")
    protect(op, "followers")
    protect(op, "follows")
    protect(op, "likes")
    protect(op, "photos")
    protect(op, "users")
    protect(op, "comments")
    protect(op, "liked_by")


def downgrade() -> None:
    op.drop_table("liked_by")
    op.drop_index("comments_of_photo", table_name="comments")
    op.drop_table("comments")
    op.drop_table("users")
    op.drop_table("photos")
    op.drop_table("likes")
    op.drop_index("follows_of_the_famous", table_name="follows")
    op.drop_table("follows")
    op.drop_table("followers")
    op.drop_table("feed")
    op.drop_index("attempts_by_time", table_name="attempts")
    op.drop_table("attempts")
