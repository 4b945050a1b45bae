"""What an operator has said about a profile: for now, that it is paused."""

import sqlalchemy as sa

from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    op.create_table(
        "profile_states",
        sa.Column("profile", sa.Text, nullable=False),
        sa.Column("paused_at", sa.BigInteger),
        sa.PrimaryKeyConstraint("profile"),
        sqlite_with_rowid=False,
    )
