"""Runs the steps on the connection that app.store.database.migrate() hands over."""

from alembic import context
from app.store.database import metadata

connection = context.config.attributes.get("connection")
if connection is not None:
    context.configure(connection=connection, target_metadata=metadata, transactional_ddl=False)
    context.run_migrations()
