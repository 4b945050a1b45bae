"""How often each reason came, in periods of ten minutes: `GET /errors` counts nothing while somebody waits."""

import sqlalchemy as sa

from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.create_table(
        "failure_counts",
        sa.Column("period", sa.BigInteger, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("count", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("period", "reason"),
        sqlite_with_rowid=False,
    )
