"""What a profile's circuit is opened by, and when it is tried."""

import sqlalchemy as sa

from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    op.add_column("profile_states", sa.Column("circuit", sa.Text))
