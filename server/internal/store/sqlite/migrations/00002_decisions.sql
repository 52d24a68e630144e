-- +goose Up

-- Who decided what about a rollout, each with the epoch that it counted. Rows
-- are only added.
CREATE TABLE decisions (
    epoch      INTEGER PRIMARY KEY,
    at         INTEGER NOT NULL,
    decided_by TEXT    NOT NULL, -- the account that ran livepatch-admin
    reason     TEXT    NOT NULL, -- in that person's words; may be empty
    vendor     TEXT    NOT NULL,
    version    TEXT    NOT NULL,
    state      TEXT    NOT NULL CHECK (state IN ('running', 'halted', 'revoked'))
) STRICT;
