-- Times are Unix seconds, digests are the 32 bytes of a SHA-256.

-- +goose Up

-- Secrets that people hand out. The secret itself is nowhere, only its hash.
CREATE TABLE tokens (
    id         INTEGER PRIMARY KEY AUTOINCREMENT,
    kind       TEXT    NOT NULL CHECK (kind IN ('auth', 'publisher')),
    hash       BLOB    NOT NULL UNIQUE CHECK (length(hash) = 32),
    tier       TEXT    NOT NULL,
    note       TEXT    NOT NULL,
    created_at INTEGER NOT NULL,
    expires_at INTEGER, -- NULL: never
    revoked_at INTEGER  -- NULL: in force
) STRICT;

CREATE TABLE machines (
    id             TEXT    PRIMARY KEY,
    token_hash     BLOB    NOT NULL UNIQUE CHECK (length(token_hash) = 32),
    auth_token_id  INTEGER NOT NULL REFERENCES tokens (id),
    hostname       TEXT    NOT NULL,
    agent_version  TEXT    NOT NULL,
    arch           TEXT    NOT NULL,
    release        TEXT    NOT NULL,
    build_id       TEXT    NOT NULL,
    kernel_version TEXT    NOT NULL,
    distribution   TEXT    NOT NULL,
    boot_id        TEXT    NOT NULL,
    enrolled_at    INTEGER NOT NULL,
    last_seen      INTEGER NOT NULL,
    generation     INTEGER NOT NULL DEFAULT 0,
    patch_name     TEXT    NOT NULL DEFAULT '',
    patch_version  TEXT    NOT NULL DEFAULT '',
    patch_sequence INTEGER NOT NULL DEFAULT 0,
    patch_state    TEXT    NOT NULL DEFAULT '',
    patch_standing TEXT    NOT NULL DEFAULT ''
) STRICT;

-- What machines reported of their patches, each once. Rows stay when the
-- machine leaves: they are evidence about the patch.
CREATE TABLE events (
    machine_id  TEXT    NOT NULL,
    id          TEXT    NOT NULL,
    kind        TEXT    NOT NULL,
    name        TEXT    NOT NULL,
    version     TEXT    NOT NULL,
    boot_id     TEXT    NOT NULL,
    at          INTEGER NOT NULL, -- by the machine's clock
    received_at INTEGER NOT NULL, -- by ours
    reason      TEXT    NOT NULL,
    message     TEXT    NOT NULL,
    PRIMARY KEY (machine_id, id)
) STRICT, WITHOUT ROWID;
CREATE INDEX events_received ON events (received_at);

-- Signed files as they are served. Not WITHOUT ROWID: the index must stay
-- small beside the bodies.
CREATE TABLE files (
    role          TEXT    NOT NULL,
    version       INTEGER NOT NULL,
    digest        BLOB    NOT NULL,
    expires_at    INTEGER NOT NULL,
    modified_at   INTEGER NOT NULL,
    superseded_at INTEGER, -- NULL: current
    body          BLOB    NOT NULL,
    gzip          BLOB    NOT NULL,
    UNIQUE (role, version)
) STRICT;
CREATE INDEX files_superseded ON files (superseded_at) WHERE superseded_at IS NOT NULL;

-- The current version of each role: what snapshot.json says.
CREATE TABLE roles (
    name       TEXT    PRIMARY KEY,
    version    INTEGER NOT NULL,
    expires_at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- Names under which blobs were uploaded. A file is served once a signed file
-- has named it.
CREATE TABLE targets (
    path        TEXT    NOT NULL,
    digest      BLOB    NOT NULL,
    length      INTEGER NOT NULL,
    uploaded_at INTEGER NOT NULL,
    published   INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (path, digest)
) STRICT, WITHOUT ROWID;
CREATE INDEX targets_digest ON targets (digest);
CREATE INDEX targets_waiting ON targets (uploaded_at) WHERE published = 0;

-- What the published kernel indexes say of support.
CREATE TABLE kernels (
    path           TEXT NOT NULL PRIMARY KEY, -- of the index target
    role           TEXT NOT NULL,             -- bin that lists it
    digest         BLOB NOT NULL,
    arch           TEXT NOT NULL,
    release        TEXT NOT NULL,
    flavour        TEXT NOT NULL,
    series         TEXT NOT NULL, -- "6.1"
    kernel_version TEXT NOT NULL,
    from_day       TEXT NOT NULL, -- "2026-11-22"
    until_day      TEXT NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX kernels_series ON kernels (arch, flavour, series);
CREATE INDEX kernels_role ON kernels (role);

CREATE TABLE rollouts (
    vendor       TEXT    NOT NULL,
    version      TEXT    NOT NULL,
    state        TEXT    NOT NULL CHECK (state IN ('running', 'halted', 'revoked')),
    salt         TEXT    NOT NULL,
    soak_seconds INTEGER NOT NULL,
    created_at   INTEGER NOT NULL,
    updated_at   INTEGER NOT NULL,
    PRIMARY KEY (vendor, version)
) STRICT, WITHOUT ROWID;

-- One row. An epoch counts decisions about rollouts; while epoch is above
-- signed_epoch, a decision waits for a server to sign it.
CREATE TABLE service (
    id           INTEGER PRIMARY KEY CHECK (id = 1),
    generation   INTEGER NOT NULL, -- grows whenever signed files change
    publication  INTEGER NOT NULL, -- grows with each publication
    epoch        INTEGER NOT NULL,
    signed_epoch INTEGER NOT NULL
) STRICT;
INSERT INTO service (id, generation, publication, epoch, signed_epoch) VALUES (1, 0, 0, 0, 0);
