"""The steps of alembic/ on a SQLite file: they end where the code's tables are, and spare what is not ours."""

import os
import shutil
import signal
import sqlite3
import stat
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from alembic.config import Config
from alembic.script import ScriptDirectory

from app.mail.errors import ConfigError
from app.store import database
from app.store.database import SCHEMA, Lock, create, migrate, migrations_folder, schema_of, upgrade
from tests.support.service import MAILCHUTE
from tests.support.tracing import TRACED, cannot_trace

INSERT = (
    "INSERT INTO messages (id, state, profile, message_id, sender, subject, size, smtputf8, sandbox, attempts,"
    " created_at, expires_at) VALUES (x'00', 'sent', 'one', '<1@x>', 'a@x', 'kept', 1, 0, 0, 1, 1, 2)"
)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "mailchute.db"


def steps() -> ScriptDirectory:
    config = Config()
    config.set_main_option("script_location", str(migrations_folder()))
    return ScriptDirectory.from_config(config)


def execute(file: Path, *statements: str) -> None:
    with closing(sqlite3.connect(file, isolation_level=None)) as connection:
        for statement in statements:
            connection.execute(statement)


def ask(file: Path, sql: str) -> list[Any]:
    with closing(sqlite3.connect(file)) as connection:
        return connection.execute(sql).fetchall()


def folded(sql: str) -> str:
    return " ".join(sql.replace('"', "").split()).lower()


def shape(file: Path) -> dict[str, dict[str, Any]]:
    """Describe every table as SQLite knows it, alembic's own left out."""
    tables: dict[str, dict[str, Any]] = {}
    for name, sql in ask(
        file, "SELECT name, sql FROM sqlite_master WHERE type = 'table' AND name != 'alembic_version'"
    ):
        indexes = ask(file, f"PRAGMA index_list('{name}')")
        tables[name] = {
            "columns": [  # name: type, whether NOT NULL, default, place in the primary key
                column[1:] for column in ask(file, f"PRAGMA table_info('{name}')")
            ],
            "without rowid": folded(sql).endswith("without rowid"),
            "foreign keys": sorted(key[2:] for key in ask(file, f"PRAGMA foreign_key_list('{name}')")),
            "indexes": {
                index: {
                    "unique": unique,
                    "origin": origin,
                    "columns": ask(file, f"PRAGMA index_xinfo('{index}')"),
                    "where": folded(
                        "".join(f"{sql}" for (sql,) in ask(file, f"SELECT sql FROM sqlite_master WHERE name='{index}'"))
                    ).partition(" where ")[2],
                    "partial": partial,
                }
                for _, index, unique, origin, partial in indexes
            },
        }
    return tables


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


class TestShape:
    @pytest.fixture
    def fresh(self, tmp_path: Path) -> Path:
        """Make a file straight from the code's tables, without a step."""
        path = tmp_path / "fresh.db"
        create(path)
        return path

    def test_the_steps_end_where_the_codes_tables_are(self, file: Path, fresh: Path) -> None:
        upgrade(file, None)
        assert shape(file) == shape(fresh)
        assert schema_of(file) == schema_of(fresh) == SCHEMA

    def test_the_comparison_sees_a_difference_of_every_kind(self, file: Path, fresh: Path) -> None:
        migrate(file)
        for change in (
            "ALTER TABLE messages ADD COLUMN more TEXT",
            "ALTER TABLE attempts DROP COLUMN reason",
            "DROP INDEX messages_doubt",
            "CREATE INDEX further ON attempts (profile)",
            "CREATE TABLE further (x)",
        ):
            changed = file.with_name("changed.db")
            shutil.copy(file, changed)
            execute(changed, change)
            assert shape(changed) != shape(fresh), change
        shutil.copy(file, changed)
        execute(
            changed,
            "DROP INDEX messages_due",
            "CREATE INDEX messages_due ON messages (profile, due_at) WHERE due_at > 0",
        )
        assert shape(changed) != shape(fresh), "another WHERE"

    def test_the_partial_indexes_are_partial(self, file: Path) -> None:
        migrate(file)
        indexes = shape(file)["messages"]["indexes"]
        assert {name: index["where"] for name, index in indexes.items() if index["partial"]} == {
            "messages_due": "due_at is not null",
            "messages_leased": "lease_token is not null",
            "messages_doubt": "state = 'in_doubt'",
            "messages_by_state": "state not in ('queued', 'sending', 'sent')",
            "messages_by_error": "error_code is not null",
        }

    def test_the_schema_served_is_the_newest_step(self) -> None:
        assert steps().get_heads() == [SCHEMA]

    def test_the_steps_make_one_line(self) -> None:
        revisions = [step.revision for step in steps().walk_revisions()]
        assert revisions == [f"{n:04}" for n in range(len(revisions), 0, -1)]


class TestMigrate:
    def test_a_new_file_comes_to_the_schema_served(self, file: Path) -> None:
        assert schema_of(file) is None
        assert not file.exists(), "asking makes no file"
        migrate(file)
        assert schema_of(file) == SCHEMA
        assert ask(file, "PRAGMA integrity_check") == [("ok",)]
        assert ask(file, "PRAGMA journal_mode") == [("wal",)]

    def test_migrating_twice_is_migrating_once(self, file: Path) -> None:
        migrate(file)
        execute(file, INSERT)
        before = contents(file.parent)
        migrate(file)
        assert contents(file.parent) == before

    def test_an_empty_file_that_a_crash_left_is_taken(self, file: Path) -> None:
        file.touch()
        migrate(file)
        assert schema_of(file) == SCHEMA

    def test_nothing_is_left_open(self, file: Path) -> None:
        migrate(file)
        assert [path.name for path in file.parent.iterdir()] == ["mailchute.db"], (
            "the log went with its last connection"
        )

    @pytest.fixture
    def later_step(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
        """Give what adds a further step to a copy of the steps."""

        def add(upgrade: str) -> None:
            folder = tmp_path / "steps"
            shutil.copytree(migrations_folder(), folder)
            (folder / "versions" / "9000_later.py").write_text(
                f"from alembic import op\nrevision = '9000'\ndown_revision = '{SCHEMA}'\ndef upgrade():\n    {upgrade}\n"
            )
            monkeypatch.setattr(database, "migrations_folder", lambda: folder)
            monkeypatch.setattr(database, "SCHEMA", "9000")

        return add

    def test_an_older_file_is_brought_up_and_keeps_its_mail(
        self, file: Path, later_step: Callable[[str], None]
    ) -> None:
        migrate(file)
        execute(file, INSERT)
        later_step("op.execute('ALTER TABLE messages ADD COLUMN more TEXT')")
        migrate(file)
        assert ask(file, "SELECT version_num FROM alembic_version") == [("9000",)]
        assert ask(file, "SELECT subject, more FROM messages") == [("kept", None)]

    def test_messages_that_get_a_number_keep_all_that_is_theirs(self, file: Path) -> None:
        upgrade(file, None, to="0005")
        execute(
            file,
            INSERT,
            INSERT.replace("x'00'", "x'02'").replace("kept", "last"),
            INSERT.replace("x'00'", "x'01'").replace("kept", "next"),
            "INSERT INTO recipients (message_id, position, address, state) VALUES (x'00', 0, 'ann@x', 'sent')",
            "INSERT INTO bodies (message_id, part, bytes) VALUES (x'00', 0, 'whole')",
            "INSERT INTO attempts (message_id, number, profile, started_at) VALUES (x'00', 1, 'one', 1)",
            "INSERT INTO tags (tag, message_id) VALUES ('vip', x'00')",
        )
        migrate(file)
        assert ask(file, "SELECT seq, subject FROM messages ORDER BY seq") == [(1, "kept"), (2, "next"), (3, "last")]
        for name in ("recipients", "bodies", "attempts", "tags"):
            assert ask(file, f"SELECT hex(message_id) FROM {name}") == [("00",)], name
        assert ask(file, "PRAGMA foreign_key_check") == []
        execute(file, "PRAGMA foreign_keys = ON", "DELETE FROM messages WHERE id = x'00'")
        assert ask(file, "SELECT count(*) FROM recipients") == [(0,)], "they refer to the table as it is now"

    def test_a_step_that_leaves_orphans_is_refused(self, file: Path, later_step: Callable[[str], None]) -> None:
        migrate(file)
        execute(file, INSERT, "INSERT INTO tags (tag, message_id) VALUES ('vip', x'00')")
        later_step("op.execute('DELETE FROM messages')")
        with pytest.raises(ConfigError, match="rows refer to what is not there"):
            migrate(file)
        assert ask(file, "SELECT count(*) FROM messages") == [(1,)]

    def test_a_step_that_fails_leaves_the_file_as_it_was(self, file: Path, later_step: Callable[[str], None]) -> None:
        migrate(file)
        execute(file, INSERT)
        before = file.read_bytes()
        later_step("op.execute('DROP TABLE attempts'); op.execute('ALTER TABLE none_such ADD COLUMN more TEXT')")
        with pytest.raises(Exception, match="no such table: none_such"):
            migrate(file)
        assert file.read_bytes() == before
        assert schema_of(file) == SCHEMA


class TestUntouched:
    def test_a_file_of_a_newer_version_is_refused_untouched(self, file: Path) -> None:
        migrate(file)
        execute(file, "UPDATE alembic_version SET version_num = '9999'")
        before = contents(file.parent)
        with pytest.raises(ConfigError, match=r"newer version of Mailchute \(schema 9999.*not touched"):
            migrate(file)
        assert contents(file.parent) == before

    @pytest.mark.parametrize(
        "content",
        [
            b"just a text\n",
            b"a long text, some pages of it\n" * 1000,
            b"\0" * 4096,
            b"SQLite format 3\0" + b"\xff" * 4080,
        ],
        ids=["short text", "long text", "zeros", "a damaged header"],
    )
    def test_what_is_not_a_database_is_refused_untouched(self, file: Path, content: bytes) -> None:
        file.write_bytes(content)
        with pytest.raises(ConfigError, match=r"not a SQLite database.*not touched"):
            migrate(file)
        assert contents(file.parent) == {file.name: content}

    def test_a_damaged_database_is_refused_untouched(self, file: Path) -> None:
        migrate(file)
        page = 4096
        content = file.read_bytes()
        damaged = content[:100] + b"\xff" * (page - 100) + content[page:]  # the schema's own page
        file.write_bytes(damaged)
        with pytest.raises(ConfigError, match=r"damaged.*not touched"):
            migrate(file)
        assert contents(file.parent) == {file.name: damaged}

    def test_a_page_amid_the_file_that_is_damaged_is_found_and_the_file_untouched(self, file: Path) -> None:
        migrate(file)
        execute(file, *(INSERT.replace("x'00'", f"x'{n:02x}'") for n in range(200)))
        (at,) = ask(file, "SELECT rootpage FROM sqlite_master WHERE name = 'messages_of_sender'")[0]
        content = bytearray(file.read_bytes())
        content[(at - 1) * 4096 : (at - 1) * 4096 + 200] = b"\xff" * 200
        file.write_bytes(content)
        assert schema_of(file) == SCHEMA, "which a look at the schema alone does not see"
        with pytest.raises(ConfigError, match=r"damaged.*not touched"):
            migrate(file)
        assert contents(file.parent) == {file.name: bytes(content)}

    def test_a_file_too_large_to_be_looked_through_is_not(self, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        migrate(file)
        (at,) = ask(file, "SELECT rootpage FROM sqlite_master WHERE name = 'messages_of_sender'")[0]
        content = bytearray(file.read_bytes())
        content[(at - 1) * 4096 : at * 4096] = b"\xff" * 4096
        file.write_bytes(content)
        monkeypatch.setattr(database, "CHECKED_BYTES", file.stat().st_size - 1)
        migrate(file)

    def test_a_truncated_file_is_refused_untouched(self, file: Path) -> None:
        migrate(file)
        cut = file.read_bytes()[: 3 * 4096]
        file.write_bytes(cut)
        with pytest.raises(ConfigError, match=r"damaged.*not touched"):
            migrate(file)
        assert contents(file.parent) == {file.name: cut}

    @pytest.mark.parametrize("why", ["newer", "foreign"])
    def test_the_log_that_a_killed_process_left_is_not_touched_either(self, file: Path, why: str) -> None:
        if why == "newer":
            migrate(file)
        else:
            execute(file, "PRAGMA journal_mode = WAL", "CREATE TABLE customers (name TEXT)")
        left = file.parent / "left"
        left.mkdir()
        with closing(sqlite3.connect(file, isolation_level=None)) as killed:
            killed.execute(
                "UPDATE alembic_version SET version_num = '9999'"
                if why == "newer"
                else "INSERT INTO customers VALUES ('A')"
            )
            for name in (file.name, f"{file.name}-wal"):
                shutil.copy(file.with_name(name), left)
        before = contents(left)
        assert before[f"{file.name}-wal"]
        with pytest.raises(ConfigError, match="not touched"):
            migrate(left / file.name)
        assert {name: contents(left)[name] for name in before} == before

    def test_the_database_of_another_program_is_refused_untouched(self, file: Path) -> None:
        execute(file, "CREATE TABLE customers (name TEXT)", "INSERT INTO customers VALUES ('Ann')")
        before = contents(file.parent)
        with pytest.raises(ConfigError, match="not touched"):
            migrate(file)
        assert contents(file.parent) == before

    def test_the_database_of_another_program_that_uses_alembic_is_refused_untouched(self, file: Path) -> None:
        execute(
            file,
            "CREATE TABLE customers (name TEXT)",
            "CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL)",
            "INSERT INTO alembic_version VALUES ('4a5b6c7d8e9f')",
        )
        before = contents(file.parent)
        with pytest.raises(ConfigError, match="not touched"):
            migrate(file)
        assert contents(file.parent) == before

    @pytest.mark.parametrize("lock", ["IMMEDIATE", "EXCLUSIVE"])
    def test_a_file_that_somebody_else_writes_is_refused_in_plain_words(
        self, file: Path, lock: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(database, "BUSY_SECONDS", 0.02)
        with closing(sqlite3.connect(file, isolation_level=None)) as other:
            other.execute(f"BEGIN {lock}")
            with pytest.raises(ConfigError, match="locked"):
                migrate(file)


class TestLog:
    """What a power cut leaves of the log: the end of it may be missing, and what was committed before is there."""

    def left(self, file: Path, folder: Path) -> Path:
        """Give a copy of a file and its log, which holds two messages, as a killed process leaves them."""
        migrate(file)
        folder.mkdir()
        with closing(database.connect(file, read_only=False)) as killed:
            killed.execute(INSERT)
            killed.execute(INSERT.replace("x'00'", "x'01'").replace("kept", "last"))
            for name in (file.name, f"{file.name}-wal"):
                shutil.copy(file.with_name(name), folder)
        return folder / file.name

    @pytest.mark.parametrize(
        ("cut", "there"),
        [(0, ["kept", "last"]), (1, ["kept"]), (4096, ["kept"]), (1 << 30, [])],
        ids=["whole", "a byte short", "a page short", "gone"],
    )
    def test_what_is_whole_in_it_is_there(self, file: Path, cut: int, there: list[str]) -> None:
        copy = self.left(file, file.parent / "left")
        log = copy.with_name(f"{copy.name}-wal")
        os.truncate(log, max(0, log.stat().st_size - cut))
        migrate(copy)
        assert [subject for (subject,) in ask(copy, "SELECT subject FROM messages ORDER BY id")] == there

    def test_a_damaged_end_is_no_end(self, file: Path) -> None:
        copy = self.left(file, file.parent / "left")
        log = copy.with_name(f"{copy.name}-wal")
        content = bytearray(log.read_bytes())
        content[-100] ^= 0xFF
        log.write_bytes(content)
        migrate(copy)
        assert ask(copy, "SELECT subject FROM messages") == [("kept",)]


class TestPrivacy:
    @pytest.fixture(autouse=True)
    def careless(self) -> Iterator[None]:
        """Let new files be open to all, as a careless umask would."""
        kept = os.umask(0)
        yield
        os.umask(kept)

    def test_a_new_file_is_its_owners_alone(self, file: Path) -> None:
        migrate(file)
        assert stat.S_IMODE(file.stat().st_mode) == 0o600

    def test_the_log_beside_it_is_too(self, file: Path) -> None:
        migrate(file)
        with closing(database.connect(file, read_only=False)) as connection:
            connection.execute(INSERT)
            modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in file.parent.iterdir()}
        assert modes == {"mailchute.db": 0o600, "mailchute.db-wal": 0o600, "mailchute.db-shm": 0o600}

    def test_the_lock_is_too(self, file: Path) -> None:
        lock = Lock(file)
        assert stat.S_IMODE(file.with_name("mailchute.db.lock").stat().st_mode) == 0o600
        lock.release()


class TestLock:
    def test_a_second_opener_is_refused_until_the_first_lets_go(self, file: Path) -> None:
        first = Lock(file)
        with pytest.raises(ConfigError, match="in use by another Mailchute process"):
            Lock(file)
        first.release()
        first.release()
        Lock(file).release()

    def test_the_folder_is_made(self, tmp_path: Path) -> None:
        Lock(tmp_path / "var" / "lib" / "mailchute.db").release()
        assert (tmp_path / "var" / "lib").is_dir()

    def test_a_folder_that_cannot_be_is_named(self, file: Path) -> None:
        file.write_text("in the way")
        with pytest.raises(ConfigError, match="cannot be written"):
            Lock(file / "mailchute.db")


class TestKilled:
    """`mailchute migrate` ended amid a step, by whatever, at any of its writes."""

    @pytest.fixture(autouse=True)
    def tracing(self) -> None:
        if reason := cannot_trace("-e", "inject=fsync:signal=SIGKILL:when=9"):
            pytest.skip(reason)

    @pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=lambda number: number.name)
    @pytest.mark.parametrize("calls", [("pwrite64", 1), ("pwrite64", 40), ("fdatasync", 1), ("fdatasync", 2)], ids=str)
    def test_the_file_is_at_one_schema_or_the_other_and_the_next_run_ends_it(
        self, file: Path, calls: tuple[str, int], number: signal.Signals
    ) -> None:
        upgrade(file, None, to="0005")
        execute(file, INSERT, "INSERT INTO tags (tag, message_id) VALUES ('vip', x'00')")
        name, when = calls
        inject = f"inject={name}:signal={number.name}:when={when}"
        folder = ("-P", str(file), "-P", f"{file}-wal")
        command = [*TRACED, "-o", "/dev/null", *folder, "-e", f"trace={name}", "-e", inject, MAILCHUTE, "migrate"]
        environ = {"PATH": os.environ["PATH"], "MAILCHUTE_DATABASE_URL": str(file)}
        done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False, cwd=file.parent)
        assert done.returncode == -number, done.stderr
        assert schema_of(file) in ("0005", SCHEMA)
        migrate(file)
        assert schema_of(file) == SCHEMA
        assert ask(file, "SELECT subject, tag FROM messages JOIN tags ON tags.message_id = messages.id") == [
            ("kept", "vip")
        ]
        assert ask(file, "PRAGMA integrity_check") == [("ok",)]
