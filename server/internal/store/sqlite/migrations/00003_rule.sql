-- +goose Up

-- Tokens that opted out of being canaries are of the tier "late".

-- Which patch versions the published kernel indexes list.
CREATE TABLE coverage (
    path    TEXT NOT NULL REFERENCES kernels (path) ON DELETE CASCADE,
    version TEXT NOT NULL,
    PRIMARY KEY (path, version)
) STRICT, WITHOUT ROWID;

-- How far the rule has let a rollout come: JSON of a store.Spread; '' while it has
-- not looked at it.
ALTER TABLE rollouts ADD COLUMN spread TEXT NOT NULL DEFAULT '';

-- What machines reported that the rule has not taken yet, in the order in which it
-- was acknowledged. A row is everything of one commit.
CREATE TABLE reports (
    seq  INTEGER PRIMARY KEY AUTOINCREMENT,
    body BLOB NOT NULL -- JSON of []store.Sign
) STRICT;

-- Answers that machines wait for whose request another server has.
CREATE TABLE answers (
    id   TEXT    PRIMARY KEY,
    at   INTEGER NOT NULL,
    body TEXT    NOT NULL -- JSON of a store.Answer
) STRICT, WITHOUT ROWID;

-- One row. Whoever runs the rule has the term that is written here; what is decided
-- in an older term is refused.
CREATE TABLE lead (
    id     INTEGER PRIMARY KEY CHECK (id = 1),
    term   INTEGER NOT NULL,
    leader TEXT    NOT NULL,
    taken  INTEGER NOT NULL -- highest reports.seq that was taken
) STRICT;
INSERT INTO lead (id, term, leader, taken) VALUES (1, 0, '', 0);

-- What the rule was told of a rollout, step by step, and its state after some of
-- the steps. The state and the steps after it give the state now.
CREATE TABLE steps (
    vendor  TEXT    NOT NULL,
    version TEXT    NOT NULL,
    step    INTEGER NOT NULL,
    at      INTEGER NOT NULL,
    events  BLOB    NOT NULL, -- JSON of []rollout.Event
    PRIMARY KEY (vendor, version, step)
) STRICT, WITHOUT ROWID;
CREATE INDEX steps_at ON steps (at);

CREATE TABLE rule_states (
    vendor  TEXT    NOT NULL,
    version TEXT    NOT NULL,
    step    INTEGER NOT NULL,
    body    BLOB    NOT NULL, -- JSON of a rollout.State, compressed
    PRIMARY KEY (vendor, version)
) STRICT, WITHOUT ROWID;

-- What the rule decided, each with the evidence that it was decided from. Rows are
-- only added.
CREATE TABLE verdicts (
    vendor  TEXT    NOT NULL,
    version TEXT    NOT NULL,
    seq     INTEGER NOT NULL,
    at      INTEGER NOT NULL,
    unit    TEXT    NOT NULL,
    action  TEXT    NOT NULL,
    reason  TEXT    NOT NULL,
    body    BLOB    NOT NULL, -- JSON of a rollout.Decision
    PRIMARY KEY (vendor, version, seq)
) STRICT, WITHOUT ROWID;
CREATE INDEX verdicts_at ON verdicts (at);
