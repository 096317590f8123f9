"""The schema, as numbered steps that each run once; `PRAGMA user_version` counts them.

Rowid tables throughout: rows above about 1 KB cost three times the space in a WITHOUT ROWID table
(measured), because each then spills into an overflow page of its own.
"""

from __future__ import annotations

import sqlite3

from appliance.errors import StoreError

MIGRATIONS: tuple[str, ...] = (
    """
    CREATE TABLE event (
        seq INTEGER PRIMARY KEY,
        stream TEXT NOT NULL,
        turn TEXT,
        kind TEXT NOT NULL,
        version INTEGER NOT NULL,
        at_ms INTEGER NOT NULL,
        body TEXT NOT NULL,
        hash BLOB NOT NULL
    );
    CREATE INDEX event_by_stream ON event (stream, seq);
    CREATE INDEX event_by_turn ON event (turn, seq) WHERE turn IS NOT NULL;
    CREATE TABLE head (
        id INTEGER PRIMARY KEY CHECK (id = 1),
        seq INTEGER NOT NULL,
        hash BLOB NOT NULL
    );
    INSERT INTO head VALUES (1, 0, zeroblob(32));

    CREATE TABLE session (
        session_id TEXT PRIMARY KEY,
        agent TEXT NOT NULL,
        owner_uid INTEGER NOT NULL,
        title TEXT NOT NULL,
        created_ms INTEGER NOT NULL,
        updated_ms INTEGER NOT NULL,
        status TEXT NOT NULL
    );
    CREATE INDEX session_by_owner ON session (owner_uid, session_id);

    CREATE TABLE turn (
        turn_id TEXT PRIMARY KEY,
        session_id TEXT NOT NULL,
        agent TEXT NOT NULL,
        status TEXT NOT NULL,
        owner_uid INTEGER NOT NULL,
        idempotency_key TEXT,
        created_ms INTEGER NOT NULL,
        updated_ms INTEGER NOT NULL,
        parent_turn TEXT
    );
    CREATE INDEX turn_by_session ON turn (session_id, turn_id);
    CREATE INDEX turn_by_status ON turn (status, turn_id);
    CREATE UNIQUE INDEX turn_by_key ON turn (owner_uid, idempotency_key)
        WHERE idempotency_key IS NOT NULL;

    CREATE TABLE approval (
        approval_id TEXT PRIMARY KEY,
        turn TEXT NOT NULL,
        session TEXT NOT NULL,
        agent TEXT NOT NULL,
        call_id TEXT NOT NULL,
        tool TEXT NOT NULL,
        summary TEXT NOT NULL,
        reason TEXT NOT NULL,
        call_hash TEXT NOT NULL,
        status TEXT NOT NULL,
        created_ms INTEGER NOT NULL,
        expires_ms INTEGER,
        decided_by INTEGER
    );
    CREATE INDEX approval_by_status ON approval (status, approval_id);
    """,
    """
    CREATE TABLE spend (
        seq INTEGER PRIMARY KEY,
        id TEXT NOT NULL UNIQUE,
        reservation_id TEXT NOT NULL,
        kind TEXT NOT NULL CHECK (kind IN ('reserve', 'settle', 'release')),
        currency TEXT NOT NULL,
        amount INTEGER NOT NULL CHECK (amount >= 0),
        agent TEXT NOT NULL,
        session TEXT NOT NULL,
        turn TEXT NOT NULL,
        workflow TEXT NOT NULL,
        day TEXT NOT NULL,
        month TEXT NOT NULL,
        at_ms INTEGER NOT NULL
    );
    CREATE UNIQUE INDEX spend_opened ON spend (reservation_id, currency) WHERE kind = 'reserve';
    CREATE UNIQUE INDEX spend_closed ON spend (reservation_id, currency) WHERE kind <> 'reserve';
    CREATE TABLE spend_total (
        currency TEXT NOT NULL,
        scope TEXT NOT NULL,
        name TEXT NOT NULL,
        period TEXT NOT NULL,
        reserved INTEGER NOT NULL,
        settled INTEGER NOT NULL,
        PRIMARY KEY (currency, scope, name, period)
    );
    CREATE TABLE reservation (
        reservation_id TEXT NOT NULL,
        currency TEXT NOT NULL,
        spend_id TEXT NOT NULL,
        PRIMARY KEY (reservation_id, currency)
    );

    CREATE TABLE outcome (
        outcome_id TEXT PRIMARY KEY,
        turn TEXT NOT NULL,
        agent TEXT NOT NULL,
        kind TEXT NOT NULL,
        at_ms INTEGER NOT NULL,
        body TEXT NOT NULL
    );
    CREATE INDEX outcome_by_turn ON outcome (turn);
    CREATE TABLE parameters (
        name TEXT NOT NULL,
        version INTEGER NOT NULL,
        at_ms INTEGER NOT NULL,
        payload BLOB NOT NULL,
        PRIMARY KEY (name, version)
    );
    CREATE TABLE standing_grant (
        grant_id TEXT PRIMARY KEY,
        agent TEXT NOT NULL,
        tool TEXT NOT NULL,
        pattern TEXT NOT NULL,
        granted_by INTEGER NOT NULL,
        created_ms INTEGER NOT NULL,
        revoked_ms INTEGER
    );
    """,
)


def migrate(connection: sqlite3.Connection) -> None:
    """Bring the schema to this release's, each step in one transaction.

    Raises `StoreError` for a file that a newer release wrote.
    """
    (done,) = connection.execute("PRAGMA user_version").fetchone()
    if done > len(MIGRATIONS):
        raise StoreError(
            f"the state folder was written by a newer release (schema {done})",
            hint="run that release, or restore a backup made before the upgrade",
        )
    for number, script in enumerate(MIGRATIONS[done:], start=done + 1):
        connection.executescript(f"BEGIN;{script};PRAGMA user_version={number};COMMIT;")
