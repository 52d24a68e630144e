-- +goose Up

-- What people ask of the rule that widens and halts, for the server that runs it;
-- and proposals, which need a second person's word. Rows are only added; what
-- became of one is filled in once.
CREATE TABLE requests (
    id       INTEGER PRIMARY KEY AUTOINCREMENT,
    at       INTEGER NOT NULL,
    kind     TEXT    NOT NULL CHECK (kind IN ('promote', 'resume', 'release', 'propose-resume')),
    vendor   TEXT    NOT NULL,
    version  TEXT    NOT NULL,
    unit     TEXT    NOT NULL, -- '': all that the kind fits
    tier     TEXT    NOT NULL, -- of promote
    account  TEXT    NOT NULL, -- that ran livepatch-admin, as it is shown
    person   TEXT    NOT NULL, -- whom it counts as: the login, whatever it became
    reason   TEXT    NOT NULL, -- in that person's words; may be empty
    proposal INTEGER REFERENCES requests (id), -- that this one seconds; NULL: none
    taken_at INTEGER,          -- NULL: waits
    done     INTEGER NOT NULL DEFAULT 0, -- 1 if it was granted
    outcome  TEXT    NOT NULL DEFAULT '' -- in words
) STRICT;
CREATE INDEX requests_waiting ON requests (id) WHERE taken_at IS NULL;
CREATE UNIQUE INDEX requests_seconded ON requests (proposal) WHERE proposal IS NOT NULL;

-- How far the rule has come with a patch, as of its last step: for people, who
-- ask another process than the one that runs it. The rule itself does not read it.
CREATE TABLE stages (
    vendor  TEXT    NOT NULL,
    version TEXT    NOT NULL,
    at      INTEGER NOT NULL,
    body    TEXT    NOT NULL, -- JSON
    PRIMARY KEY (vendor, version)
) STRICT, WITHOUT ROWID;

-- A revocation goes through shares of the machines, while the rollout is halted.
ALTER TABLE rollouts ADD COLUMN withdraw_share   INTEGER NOT NULL DEFAULT 0;  -- parts per million; 0: no revocation
ALTER TABLE rollouts ADD COLUMN withdraw_salt    TEXT    NOT NULL DEFAULT '';
ALTER TABLE rollouts ADD COLUMN withdraw_pause   INTEGER NOT NULL DEFAULT 0;  -- seconds from one share to the next
ALTER TABLE rollouts ADD COLUMN withdraw_began   INTEGER;                     -- with the first share; NULL: no revocation
ALTER TABLE rollouts ADD COLUMN withdraw_since   INTEGER;                     -- when this share began
ALTER TABLE rollouts ADD COLUMN withdraw_excused INTEGER NOT NULL DEFAULT 0;  -- crashes that a person has looked at
ALTER TABLE rollouts ADD COLUMN withdraw_held    TEXT    NOT NULL DEFAULT ''; -- why it waits for a person
-- The share that a decision begins with; 0 if it is not part of a revocation.
ALTER TABLE decisions ADD COLUMN withdraw INTEGER NOT NULL DEFAULT 0;

-- What makes two oopses the same, for people who look at one machine's reports.
ALTER TABLE events ADD COLUMN signature TEXT NOT NULL DEFAULT '';

-- Machines that gave a patch up, and those that went down: few of all events.
CREATE INDEX events_crashed ON events (received_at)
    WHERE kind = 'crashed' OR (kind = 'booted' AND reason = 'UNCLEAN');

CREATE INDEX events_removed ON events (version, received_at) WHERE kind = 'removed';

-- What is to be told to the webhook, kept in the transaction of what it tells of.
CREATE TABLE notices (
    seq      INTEGER PRIMARY KEY AUTOINCREMENT, -- in which they are sent
    id       TEXT    NOT NULL UNIQUE, -- the same however often it is sent
    at       INTEGER NOT NULL,
    kind     TEXT    NOT NULL,
    body     BLOB    NOT NULL, -- JSON
    attempts INTEGER NOT NULL DEFAULT 0,
    next_at  INTEGER NOT NULL, -- not to be tried before
    ended_at INTEGER,          -- NULL: to be sent
    sent     INTEGER NOT NULL DEFAULT 0, -- 1 if the other side took it
    failure  TEXT    NOT NULL DEFAULT '' -- of the last attempt
) STRICT;
CREATE INDEX notices_due ON notices (next_at) WHERE ended_at IS NULL;

-- The record of what was decided is only added to. Whoever can write the file can
-- take these away as well; they keep our own programs from it.

-- +goose StatementBegin
CREATE TRIGGER decisions_change BEFORE UPDATE ON decisions
BEGIN SELECT RAISE(ABORT, 'decisions are only added'); END;
-- +goose StatementEnd
-- +goose StatementBegin
CREATE TRIGGER decisions_delete BEFORE DELETE ON decisions
BEGIN SELECT RAISE(ABORT, 'decisions are only added'); END;
-- +goose StatementEnd
-- +goose StatementBegin
CREATE TRIGGER verdicts_change BEFORE UPDATE ON verdicts
BEGIN SELECT RAISE(ABORT, 'verdicts are only added'); END;
-- +goose StatementEnd
-- +goose StatementBegin
CREATE TRIGGER verdicts_delete BEFORE DELETE ON verdicts
BEGIN SELECT RAISE(ABORT, 'verdicts are only added'); END;
-- +goose StatementEnd
-- +goose StatementBegin
CREATE TRIGGER requests_change BEFORE UPDATE OF id, at, kind, vendor, version, unit, tier, account, person, reason, proposal ON requests
BEGIN SELECT RAISE(ABORT, 'requests are only added'); END;
-- +goose StatementEnd
-- +goose StatementBegin
CREATE TRIGGER requests_take BEFORE UPDATE ON requests WHEN OLD.taken_at IS NOT NULL
BEGIN SELECT RAISE(ABORT, 'a request is taken once'); END;
-- +goose StatementEnd
-- +goose StatementBegin
CREATE TRIGGER requests_delete BEFORE DELETE ON requests
BEGIN SELECT RAISE(ABORT, 'requests are only added'); END;
-- +goose StatementEnd
