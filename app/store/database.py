"""The tables, the one file, and the lock that keeps it ours.

SQLite in WAL mode with synchronous=FULL: one sync of the log a commit, and what was committed survives a power
cut (with NORMAL it would not). One connection writes, readers are `query_only`, and an flock on `<file>.lock`
keeps every other process out, because SQLite 3.7.0 to 3.51.2 can damage a WAL file that two connections write
(sqlite.org/wal.html#walresetbug). Nothing else of ours ever opens the database file itself: closing it would
free SQLite's own locks (POSIX advisory locks).

Over 400 lines, because a third of them are the tables.

Instants are integers, milliseconds since 1970 UTC; ids are 16 bytes (UUIDv7, so they sort by time); lists and
failures are JSON text. alembic/ is the only way the schema changes; `SCHEMA` is the step that this code serves.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, suppress
from functools import partial
from pathlib import Path

from sqlalchemy import (
    DDL,
    BigInteger,
    Boolean,
    Column,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    PrimaryKeyConstraint,
    Table,
    Text,
    column,
    table,
    text,
)
from sqlalchemy.dialects import sqlite
from sqlalchemy.schema import CreateIndex, CreateTable, DDLElement

from app.mail.errors import ConfigError
from app.store.faults import passes, refusal, shared

SCHEMA = "0007"  # the newest step in alembic/versions; a test keeps it so
PART_BYTES = 256 * 1024  # size of one row of content
COUNT_PERIOD = 10 * 60 * 1000  # milliseconds of one row of failure_counts
COUNTS_KEPT = 24 * 3600 * 1000  # milliseconds that failures are counted for
BUSY_SECONDS = 5.0  # how long a write waits for a stray reader's lock
CHECKED_BYTES = 256 << 20  # up to which a file is looked through at start: a fifth of a second from memory
_TEXT = partial(str, encoding="utf-8", errors="replace")  # one damaged text must not fail the rows beside it

metadata = MetaData()

messages = Table(
    "messages",
    metadata,
    Column("seq", Integer, primary_key=True),  # in the order of commits; message_search knows a message by it
    Column("id", LargeBinary(16), nullable=False, unique=True),
    Column("caller", Text, nullable=False, server_default=""),
    Column("state", Text, nullable=False),
    Column("profile", Text, nullable=False),
    Column("message_id", Text, nullable=False),
    Column("sender", Text, nullable=False),
    Column("subject", Text, nullable=False),
    Column("size", BigInteger, nullable=False),
    Column("smtputf8", Boolean, nullable=False),
    Column("sandbox", Boolean, nullable=False),
    Column("tags", Text, nullable=False, server_default="[]"),
    Column("metadata", Text, nullable=False, server_default="{}"),
    Column("warnings", Text, nullable=False, server_default="[]"),
    Column("attempts", Integer, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("expires_at", BigInteger, nullable=False),
    # NULL = nothing more happens by itself; while leased, the end of the lease
    Column("due_at", BigInteger),
    Column("lease_token", BigInteger),
    Column("handover", Boolean, nullable=False, server_default=text("0")),
    Column("error_code", Text),
    Column("failure", Text),
    Index("messages_due", "profile", "due_at", sqlite_where=text("due_at IS NOT NULL")),
    Index("messages_leased", "lease_token", sqlite_where=text("lease_token IS NOT NULL")),
    Index("messages_doubt", "state", sqlite_where=text("state = 'in_doubt'")),
    # For looking up. A message that is simply sent never enters the two that follow its state.
    Index("messages_of_profile", "profile", "id"),
    Index("messages_of_sender", "sender", "id"),
    Index("messages_by_state", "state", "id", sqlite_where=text("state NOT IN ('queued', 'sending', 'sent')")),
    Index("messages_by_error", "error_code", "id", sqlite_where=text("error_code IS NOT NULL")),
)

# Virtual, so it is no Table; its rowid is messages.seq. Words are found whatever their case and accents.
message_search = table("message_search", column("rowid"), column("subject"), column("recipients"), column("tags"))
_SEARCH = DDL("CREATE VIRTUAL TABLE message_search USING fts5(subject, recipients, tags)")  # type: ignore[no-untyped-call]

recipients = Table(
    "recipients",
    metadata,
    Column("message_id", LargeBinary(16), ForeignKey("messages.id", ondelete="CASCADE"), nullable=False),
    Column("position", Integer, nullable=False),
    Column("address", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("failure", Text),
    PrimaryKeyConstraint("message_id", "position"),
    Index("recipients_by_address", "address", "message_id"),
    sqlite_with_rowid=False,
)

tags = Table(
    "tags",
    metadata,
    Column("tag", Text, nullable=False),
    Column("message_id", LargeBinary(16), ForeignKey("messages.id", ondelete="CASCADE"), nullable=False),
    PrimaryKeyConstraint("tag", "message_id"),
    Index("tags_of_message", "message_id"),  # for the cascade
    sqlite_with_rowid=False,
)

bodies = Table(
    "bodies",
    metadata,
    Column("message_id", LargeBinary(16), ForeignKey("messages.id", ondelete="CASCADE"), nullable=False),
    Column("part", Integer, nullable=False),
    Column("bytes", LargeBinary, nullable=False),
    PrimaryKeyConstraint("message_id", "part"),
)

attempts = Table(
    "attempts",
    metadata,
    Column("message_id", LargeBinary(16), ForeignKey("messages.id", ondelete="CASCADE"), nullable=False),
    Column("number", Integer, nullable=False),
    Column("profile", Text, nullable=False),
    Column("started_at", BigInteger, nullable=False),
    Column("handover", Boolean, nullable=False, server_default=text("0")),
    Column("error_code", Text),
    Column("reason", Text),
    Column("facts", Text),  # JSON of everything else; NULL while the attempt runs
    PrimaryKeyConstraint("message_id", "number"),
    Index("attempts_by_error", "error_code", "message_id", "number", sqlite_where=text("error_code IS NOT NULL")),
)

failure_counts = Table(
    "failure_counts",
    metadata,
    Column("period", BigInteger, nullable=False),  # its beginning
    Column("reason", Text, nullable=False),
    Column("count", BigInteger, nullable=False),
    PrimaryKeyConstraint("period", "reason"),
    sqlite_with_rowid=False,
)

idempotency_keys = Table(
    "idempotency_keys",
    metadata,
    Column("caller", Text, nullable=False),
    Column("key", Text, nullable=False),
    Column("fingerprint", LargeBinary(32), nullable=False),
    Column("message_id", LargeBinary(16), ForeignKey("messages.id", ondelete="CASCADE"), nullable=False),
    Column("expires_at", BigInteger, nullable=False),
    PrimaryKeyConstraint("caller", "key"),
    Index("idempotency_keys_expiry", "expires_at"),
    Index("idempotency_keys_message", "message_id"),  # for the cascade
    sqlite_with_rowid=False,
)

profile_states = Table(
    "profile_states",
    metadata,
    Column("profile", Text, nullable=False),
    Column("paused_at", BigInteger),  # NULL = it is not paused
    Column("circuit", Text),  # JSON; NULL = it is closed
    PrimaryKeyConstraint("profile"),
    sqlite_with_rowid=False,
)


class Lock:
    """The one opener of a database file: an flock on `<file>.lock`, freed by the kernel when the process ends."""

    def __init__(self, database: Path) -> None:
        """Take the lock.

        Raises:
            ConfigError: another process has it, the file has other names, or the folder cannot be written.
            StoreNotOpened: the folder cannot be written now.
        """
        self._database, self._path = database, database.with_name(database.name + ".lock")
        try:
            _make_folder(database.parent)
            self._fd = self._open()
        except BlockingIOError as error:
            raise ConfigError(self._in_use()) from error
        except OSError as error:
            if passes(error, self._path):
                raise refusal(f"{self._path} cannot be written", error, self._path) from error
            raise ConfigError(f"{self._path} cannot be written: {error.strerror}; name a folder that can") from error
        if why := shared(database):
            self.release()
            raise ConfigError(why)

    def keep(self) -> str:
        """Take the lock again where its file was removed; return what is wrong where another process came first."""
        try:
            if os.path.samestat(os.fstat(self._fd), self._path.stat()):
                return ""
        except OSError:
            pass
        try:
            fd = self._open()
        except BlockingIOError:
            return self._in_use() + f": its lock file {self._path} was removed"
        except OSError:
            return ""  # there is no such folder any more; whoever looks at the database tells
        self.release()
        self._fd = fd
        return ""

    def _open(self) -> int:
        fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(fd)
            raise
        return fd

    def _in_use(self) -> str:
        return f"{self._database} is in use by another Mailchute process; stop that one first"

    def release(self) -> None:
        """Let go; idempotent."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _make_folder(folder: Path) -> None:
    """Make a folder, and those above it, that outlive a power cut; SQLite syncs what is in it, not where it is."""
    if folder.is_dir():
        return
    _make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    with suppress(OSError):  # where a folder cannot be synced, SQLite does without too
        above = os.open(folder.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(above)
        finally:
            os.close(above)


def connect(database: Path, *, read_only: bool, mode: str = "rw") -> sqlite3.Connection:
    """Open a file with our pragmas; `mode="rwc"` makes it, where it is not there.

    One thread uses the connection; another may close it afterwards.

    Raises:
        sqlite3.Error: the file is gone, cannot be opened, or is not a database.
    """
    connection = sqlite3.connect(
        f"{database.absolute().as_uri()}?mode={mode}",  # no new file in the place of one that was removed
        uri=True,
        timeout=BUSY_SECONDS,
        isolation_level=None,
        cached_statements=256,
        check_same_thread=False,
    )
    connection.text_factory = _TEXT
    try:
        connection.execute(f"PRAGMA busy_timeout = {int(BUSY_SECONDS * 1000)}")
        connection.execute("PRAGMA foreign_keys = ON")
        if read_only:
            connection.execute("PRAGMA query_only = ON")
            connection.execute("PRAGMA wal_autocheckpoint = 0")
        else:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute("PRAGMA secure_delete = ON")  # what is forgotten is zeroes; Debian's default anyway
    except BaseException:
        connection.close()
        raise
    return connection


def schema_of(database: Path) -> str | None:
    """Which alembic step a file is at; None = it is new. The lock must be held.

    Raises:
        ConfigError: it is not a database, or cannot be read.
        StoreNotOpened: it cannot be read now.
    """
    if not database.exists():
        return None
    try:
        with closing(_look_into(database)) as connection:
            names = {name for (name,) in connection.execute("SELECT name FROM sqlite_master")}
            if names and "alembic_version" not in names:
                raise ConfigError(f"{database} is another program's database; it was not touched")
            row = connection.execute("SELECT version_num FROM alembic_version").fetchone()
    except sqlite3.OperationalError as error:
        if "no such table" in str(error):
            return None
        raise refusal(f"{database} cannot be opened", error, database) from error
    except sqlite3.DatabaseError as error:
        raise ConfigError(
            f"{database} is not a SQLite database, or is damaged ({error}); it was not touched"
        ) from error
    return str(row[0]) if row else None


def _look_into(database: Path) -> sqlite3.Connection:
    """Open a file to read it, and leave it as it is, with the log that a killed process left beside it.

    The last connection that closes brings the log into the file, even one that only reads. One that cannot write does
    not, but leaves an empty log where there was none.
    """
    log = database.with_name(database.name + "-wal")
    if not log.exists() or log.stat().st_size == 0:
        return connect(database, read_only=True)
    return sqlite3.connect(f"{database.absolute().as_uri()}?mode=ro", uri=True, timeout=BUSY_SECONDS)


def migrate(database: Path) -> None:
    """Bring a file to `SCHEMA`; does nothing where it is there. The lock must be held.

    Raises:
        ConfigError: a newer version of Mailchute wrote it, it is no database, is damaged, or cannot be written; it was
            not touched.
        StoreNotOpened: it cannot be opened or written now.
    """
    current = schema_of(database)
    if current is not None:
        _refuse_damaged(database)
        if not os.access(database, os.W_OK):
            raise ConfigError(
                f"{database} cannot be written: it, or the disk it is on, is read-only; it was not touched"
            )
    if current == SCHEMA:
        return
    try:
        if current is None:
            create(database)
        else:
            upgrade(database, current)
    except (OSError, sqlite3.Error) as error:
        raise refusal(f"{database} cannot be brought to schema {SCHEMA}", error, database) from error


def _refuse_damaged(database: Path) -> None:
    """Look through a file that is not too large for that. Table by table: the virtual one may be made anew."""
    if database.stat().st_size > CHECKED_BYTES:
        return
    try:
        with closing(_look_into(database)) as connection:
            there = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            for name in metadata.tables:
                if name in there:
                    for (found,) in connection.execute(f"PRAGMA quick_check({name})"):
                        if found != "ok":
                            raise sqlite3.DatabaseError(found.rpartition("\n")[2])
    except sqlite3.OperationalError as error:
        raise refusal(f"{database} cannot be read", error, database) from error
    except sqlite3.DatabaseError as error:
        raise ConfigError(
            f"{database} is damaged ({error}); it was not touched. Put a copy of it in its place, or what "
            "`sqlite3 FILE .recover` saves of it"
        ) from error


def create(database: Path) -> None:
    """Make a new file at `SCHEMA`, in one transaction: what all steps come to, without alembic (a test compares them).

    Raises:
        OSError, sqlite3.Error: it cannot be written.
    """
    # Mail is nobody else's business; SQLite gives its log the mode of the file.
    os.close(os.open(database, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    connection = connect(database, read_only=False)
    try:
        connection.execute("BEGIN IMMEDIATE")
        for element in _elements():
            connection.execute(str(element.compile(dialect=sqlite.dialect())))
        connection.execute(
            "CREATE TABLE alembic_version "
            "(version_num VARCHAR(32) NOT NULL, CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num))"
        )
        connection.execute("INSERT INTO alembic_version (version_num) VALUES (?)", (SCHEMA,))
        connection.execute("COMMIT")
    finally:
        connection.close()


def _elements() -> Iterator[DDLElement]:
    for each in metadata.sorted_tables:
        yield CreateTable(each)
        yield from map(CreateIndex, sorted(each.indexes, key=lambda index: str(index.name)))
    yield _SEARCH


def upgrade(database: Path, current: str | None, *, to: str = "head") -> None:
    """Take the steps from `current` on, None = the first, in one transaction.

    Raises:
        ConfigError: a newer version of Mailchute wrote it.
        OSError, sqlite3.Error: it cannot be written, or a step failed; it was not touched.
    """
    # Imported here: alembic and the ORM parts it pulls in cost 0.2 s and 12 MB, for a file that needs it once.
    from alembic.config import Config
    from alembic.script import ScriptDirectory
    from sqlalchemy import create_engine
    from sqlalchemy.exc import DBAPIError
    from sqlalchemy.pool import StaticPool

    from alembic import command

    config = Config()
    config.set_main_option("script_location", str(migrations_folder()).replace("%", "%%"))
    if current is not None and current not in {
        s.revision for s in ScriptDirectory.from_config(config).walk_revisions()
    }:
        raise ConfigError(
            f"{database} was written by a newer version of Mailchute (schema {current}, this one serves {SCHEMA}); "
            "it was not touched"
        )
    connection = connect(database, read_only=False, mode="rwc")
    try:
        # A step may make a table anew, and what refers to it must not go with the old one.
        connection.execute("PRAGMA foreign_keys = OFF")
        engine = create_engine("sqlite://", creator=lambda: connection, poolclass=StaticPool)
        with engine.begin() as begun:
            begun.exec_driver_sql("BEGIN IMMEDIATE")
            config.attributes["connection"] = begun
            command.upgrade(config, to)
            if broken := begun.exec_driver_sql("PRAGMA foreign_key_check").fetchall():
                raise sqlite3.IntegrityError(f"rows refer to what is not there: {broken[:3]}")
            begun.exec_driver_sql("COMMIT")
    except DBAPIError as error:
        raise sqlite3.OperationalError(str(error.orig or error)) from error
    finally:
        connection.close()


def migrations_folder() -> Path:
    """Where the alembic steps are: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).parent.parent
    inside = package / "alembic"
    return inside if inside.is_dir() else package.parent / "alembic"
