"""Indexes for looking messages and attempts up by what people remember of them, and tags as rows."""

import sqlalchemy as sa

from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.create_index("messages_of_profile", "messages", ["profile", "id"])
    op.create_index("messages_of_sender", "messages", ["sender", "id"])
    op.create_index(
        "messages_by_state",
        "messages",
        ["state", "id"],
        sqlite_where=sa.text("state NOT IN ('queued', 'sending', 'sent')"),
    )
    op.create_index(
        "messages_by_error", "messages", ["error_code", "id"], sqlite_where=sa.text("error_code IS NOT NULL")
    )
    op.create_index("recipients_by_address", "recipients", ["address", "message_id"])
    op.create_index(
        "attempts_by_error",
        "attempts",
        ["error_code", "message_id", "number"],
        sqlite_where=sa.text("error_code IS NOT NULL"),
    )
    op.create_table(
        "tags",
        sa.Column("tag", sa.Text, nullable=False),
        sa.Column("message_id", sa.LargeBinary(16), sa.ForeignKey("messages.id", ondelete="CASCADE"), nullable=False),
        sa.PrimaryKeyConstraint("tag", "message_id"),
        sqlite_with_rowid=False,
    )
    op.create_index("tags_of_message", "tags", ["message_id"])
    op.execute(
        "INSERT OR IGNORE INTO tags (tag, message_id) "
        "SELECT each.value, messages.id FROM messages, json_each(messages.tags) AS each WHERE messages.tags <> '[]'"
    )
