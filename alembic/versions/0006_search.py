"""Full text over subject, recipients and tags; messages get a number of their own, by which the index knows them.

The number is explicit, because VACUUM may renumber rowids that are not. The rows of the index are written later, by
`store.search`, so that an existing file's messages get in as new ones do.
"""

import sqlalchemy as sa

from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    op.create_table(
        "numbered_messages",
        sa.Column("seq", sa.Integer, primary_key=True),
        sa.Column("id", sa.LargeBinary(16), nullable=False, unique=True),
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
    columns = [column["name"] for column in sa.inspect(op.get_bind()).get_columns("messages")]
    names = ", ".join(columns)
    op.execute(f"INSERT INTO numbered_messages ({names}) SELECT {names} FROM messages ORDER BY id")  # noqa: S608
    op.drop_table("messages")
    op.rename_table("numbered_messages", "messages")
    op.create_index("messages_due", "messages", ["profile", "due_at"], sqlite_where=sa.text("due_at IS NOT NULL"))
    op.create_index("messages_leased", "messages", ["lease_token"], sqlite_where=sa.text("lease_token IS NOT NULL"))
    op.create_index("messages_doubt", "messages", ["state"], sqlite_where=sa.text("state = 'in_doubt'"))
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
    op.execute("CREATE VIRTUAL TABLE message_search USING fts5(subject, recipients, tags)")
