"""Which key a caller sent with which message, so that the same request again is the same message."""

import sqlalchemy as sa

from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.create_table(
        "idempotency_keys",
        sa.Column("caller", sa.Text, nullable=False),
        sa.Column("key", sa.Text, nullable=False),
        sa.Column("fingerprint", sa.LargeBinary(32), nullable=False),
        sa.Column("message_id", sa.LargeBinary(16), sa.ForeignKey("messages.id", ondelete="CASCADE"), nullable=False),
        sa.Column("expires_at", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("caller", "key"),
        sqlite_with_rowid=False,
    )
    op.create_index("idempotency_keys_expiry", "idempotency_keys", ["expires_at"])
    op.create_index("idempotency_keys_message", "idempotency_keys", ["message_id"])
