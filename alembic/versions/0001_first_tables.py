"""The first tables: messages, their recipients, bodies and attempts."""

import sqlalchemy as sa

from alembic import op

revision = "0001"
down_revision = None


def _of_message() -> sa.Column:
    return sa.Column("message_id", sa.LargeBinary(16), sa.ForeignKey("messages.id", ondelete="CASCADE"), nullable=False)


def upgrade() -> None:
    op.create_table(
        "messages",
        sa.Column("id", sa.LargeBinary(16), primary_key=True),
        sa.Column("caller", sa.Text, nullable=False, server_default=""),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("profile", sa.Text, nullable=False),
        sa.Column("message_id", sa.Text, nullable=False),
        sa.Column("sender", sa.Text, nullable=False),
        sa.Column("subject", sa.Text, nullable=False),
        sa.Column("size", sa.BigInteger, nullable=False),
        sa.Column("smtputf8", sa.Boolean, nullable=False),
        sa.Column("sandbox", sa.Boolean, nullable=False),
        sa.Column("tags", sa.Text, nullable=False, server_default="[]"),
        sa.Column("metadata", sa.Text, nullable=False, server_default="{}"),
        sa.Column("warnings", sa.Text, nullable=False, server_default="[]"),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("expires_at", sa.BigInteger, nullable=False),
        sa.Column("due_at", sa.BigInteger),
        sa.Column("lease_token", sa.BigInteger),
        sa.Column("handover", sa.Boolean, nullable=False, server_default=sa.text("0")),
        sa.Column("error_code", sa.Text),
        sa.Column("failure", sa.Text),
    )
    op.create_index("messages_due", "messages", ["profile", "due_at"], sqlite_where=sa.text("due_at IS NOT NULL"))
    op.create_index("messages_leased", "messages", ["lease_token"], sqlite_where=sa.text("lease_token IS NOT NULL"))
    op.create_index("messages_doubt", "messages", ["state"], sqlite_where=sa.text("state = 'in_doubt'"))
    op.create_table(
        "recipients",
        _of_message(),
        sa.Column("position", sa.Integer, nullable=False),
        sa.Column("address", sa.Text, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("failure", sa.Text),
        sa.PrimaryKeyConstraint("message_id", "position"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "bodies",
        _of_message(),
        sa.Column("part", sa.Integer, nullable=False),
        sa.Column("bytes", sa.LargeBinary, nullable=False),
        sa.PrimaryKeyConstraint("message_id", "part"),
    )
    op.create_table(
        "attempts",
        _of_message(),
        sa.Column("number", sa.Integer, nullable=False),
        sa.Column("profile", sa.Text, nullable=False),
        sa.Column("started_at", sa.BigInteger, nullable=False),
        sa.Column("handover", sa.Boolean, nullable=False, server_default=sa.text("0")),
        sa.Column("error_code", sa.Text),
        sa.Column("reason", sa.Text),
        sa.Column("facts", sa.Text),
        sa.PrimaryKeyConstraint("message_id", "number"),
    )
