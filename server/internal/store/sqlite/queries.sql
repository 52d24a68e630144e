-- name: InsertToken :one
INSERT INTO tokens (kind, hash, tier, note, created_at, expires_at)
VALUES (?, ?, ?, ?, ?, ?)
RETURNING id;

-- name: TokenByHash :one
SELECT id, kind, tier, note, created_at, expires_at, revoked_at
FROM tokens WHERE hash = ?;

-- name: ListTokens :many
SELECT id, kind, tier, note, created_at, expires_at, revoked_at,
    (SELECT count(*) FROM machines WHERE auth_token_id = tokens.id) AS machines
FROM tokens WHERE kind = ? ORDER BY id;

-- name: RevokeToken :execrows
UPDATE tokens SET revoked_at = coalesce(revoked_at, ?) WHERE id = ? AND kind = ?;

-- name: UpsertMachine :exec
INSERT INTO machines (id, token_hash, auth_token_id, hostname, agent_version, arch, release, build_id,
    kernel_version, distribution, boot_id, enrolled_at, last_seen)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (id) DO UPDATE SET
    token_hash = excluded.token_hash, auth_token_id = excluded.auth_token_id, hostname = excluded.hostname,
    agent_version = excluded.agent_version, arch = excluded.arch, release = excluded.release,
    build_id = excluded.build_id, kernel_version = excluded.kernel_version, distribution = excluded.distribution,
    boot_id = excluded.boot_id, enrolled_at = excluded.enrolled_at, last_seen = excluded.last_seen;

-- name: MachineByToken :one
SELECT machines.id, machines.auth_token_id, machines.enrolled_at, tokens.tier, tokens.revoked_at
FROM machines JOIN tokens ON tokens.id = machines.auth_token_id
WHERE machines.token_hash = ?;

-- name: TouchMachine :execrows
UPDATE machines SET agent_version = ?, arch = ?, release = ?, build_id = ?, kernel_version = ?, distribution = ?,
    boot_id = ?, last_seen = ?, generation = ?, patch_name = ?, patch_version = ?, patch_sequence = ?,
    patch_state = ?, patch_standing = ?
WHERE id = ? AND token_hash = ?;

-- name: DeleteMachine :execrows
DELETE FROM machines WHERE token_hash = ?;

-- name: ListMachinesOfToken :many
SELECT machines.id, machines.enrolled_at, tokens.tier
FROM machines JOIN tokens ON tokens.id = machines.auth_token_id
WHERE tokens.id = ? ORDER BY machines.id;

-- name: ListMachines :many
SELECT machines.id, machines.hostname, machines.agent_version, machines.arch, machines.release, machines.build_id,
    machines.kernel_version, machines.distribution, machines.boot_id, machines.enrolled_at, machines.last_seen,
    machines.generation, machines.patch_name, machines.patch_version, machines.patch_sequence, machines.patch_state,
    machines.patch_standing, machines.auth_token_id, tokens.tier, tokens.revoked_at
FROM machines JOIN tokens ON tokens.id = machines.auth_token_id
ORDER BY machines.id;

-- name: InsertEvent :execrows
INSERT INTO events (machine_id, id, kind, name, version, boot_id, at, received_at, reason, message, signature)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (machine_id, id) DO NOTHING;

-- name: ListEvents :many
SELECT id, kind, name, version, boot_id, at, reason, message, signature
FROM events WHERE machine_id = ? ORDER BY received_at, at, id;

-- name: DeleteEventsBefore :execrows
DELETE FROM events WHERE received_at < ?;

-- name: InsertFile :exec
INSERT INTO files (role, version, digest, expires_at, modified_at, body, gzip)
VALUES (?, ?, ?, ?, ?, ?, ?);

-- name: GetFile :one
SELECT digest, expires_at, modified_at, body, gzip
FROM files WHERE role = ? AND version = ?;

-- name: SupersedeFiles :exec
UPDATE files SET superseded_at = ? WHERE role = ? AND version < ? AND superseded_at IS NULL;

-- name: DeleteFilesBefore :execrows
DELETE FROM files WHERE superseded_at < ? AND role <> 'root';

-- name: SetRole :exec
INSERT INTO roles (name, version, expires_at) VALUES (?, ?, ?)
ON CONFLICT (name) DO UPDATE SET version = excluded.version, expires_at = excluded.expires_at;

-- name: ListRoles :many
SELECT roles.name, roles.version, roles.expires_at, files.modified_at
FROM roles JOIN files ON files.role = roles.name AND files.version = roles.version
ORDER BY roles.name;

-- name: InsertTarget :exec
INSERT INTO targets (path, digest, length, uploaded_at) VALUES (?, ?, ?, ?)
ON CONFLICT (path, digest) DO UPDATE SET uploaded_at = excluded.uploaded_at;

-- name: GetTarget :one
SELECT length, uploaded_at, published FROM targets WHERE path = ? AND digest = ?;

-- name: PublishTarget :execrows
UPDATE targets SET published = 1 WHERE path = ? AND digest = ? AND length = ?;

-- name: DeleteForgottenTargets :execrows
DELETE FROM targets WHERE published = 0 AND uploaded_at < ?;

-- name: CountTargetsOfDigest :one
SELECT count(*) FROM targets WHERE digest = ?;

-- name: UpsertKernel :exec
INSERT INTO kernels (path, role, digest, arch, release, flavour, series, kernel_version, from_day, until_day)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (path) DO UPDATE SET role = excluded.role, digest = excluded.digest, arch = excluded.arch,
    release = excluded.release, flavour = excluded.flavour, series = excluded.series,
    kernel_version = excluded.kernel_version, from_day = excluded.from_day, until_day = excluded.until_day;

-- name: ListKernelsOfRole :many
SELECT path, digest FROM kernels WHERE role = ?;

-- name: DeleteKernel :exec
DELETE FROM kernels WHERE path = ? AND role = ?;

-- name: ListKernelsOfSeries :many
SELECT release, kernel_version, from_day, until_day
FROM kernels WHERE arch = ? AND flavour = ? AND series = ?;

-- name: InsertRollout :execrows
INSERT INTO rollouts (vendor, version, state, salt, soak_seconds, created_at, updated_at)
VALUES (?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (vendor, version) DO NOTHING;

-- name: GetRollout :one
SELECT *
FROM rollouts WHERE vendor = ? AND version = ?;

-- name: ListRollouts :many
SELECT *
FROM rollouts ORDER BY vendor, version;

-- name: SetRolloutState :exec
UPDATE rollouts SET state = ?, updated_at = ? WHERE vendor = ? AND version = ?;

-- name: InsertDecision :exec
INSERT INTO decisions (epoch, at, decided_by, reason, vendor, version, state, withdraw)
VALUES (?, ?, ?, ?, ?, ?, ?, ?);

-- name: ListDecisionsAfter :many
SELECT *
FROM decisions WHERE epoch > ? ORDER BY epoch;

-- name: GetService :one
SELECT generation, publication, epoch, signed_epoch FROM service WHERE id = 1;

-- name: BumpGeneration :one
UPDATE service SET generation = generation + 1, signed_epoch = epoch WHERE id = 1 RETURNING generation;

-- name: BumpPublication :exec
UPDATE service SET publication = publication + 1 WHERE id = 1;

-- name: BumpEpoch :one
UPDATE service SET epoch = epoch + 1 WHERE id = 1 RETURNING epoch;

-- name: InsertCoverage :exec
INSERT INTO coverage (path, version) VALUES (?, ?) ON CONFLICT DO NOTHING;

-- name: DeleteCoverage :exec
DELETE FROM coverage WHERE path = ?;

-- name: ListCoverage :many
SELECT kernels.path, kernels.release, kernels.arch, coverage.version
FROM coverage JOIN kernels ON kernels.path = coverage.path
ORDER BY kernels.path, coverage.version;

-- name: SetSpread :exec
UPDATE rollouts SET spread = ? WHERE vendor = ? AND version = ?;

-- name: CountPopulation :many
-- The machines of each token first: the join is then of few rows.
SELECT m.release, m.arch, tokens.tier, CAST(sum(m.machines) AS INTEGER) AS machines, count(*) AS accounts,
    CAST(min(m.auth_token_id) AS INTEGER) AS first_account
FROM (SELECT machines.release, machines.arch, machines.auth_token_id, count(*) AS machines
    FROM machines WHERE machines.last_seen >= ?
    GROUP BY machines.release, machines.arch, machines.auth_token_id) AS m
JOIN tokens ON tokens.id = m.auth_token_id
WHERE tokens.revoked_at IS NULL
GROUP BY m.release, m.arch, tokens.tier
ORDER BY m.release, m.arch, tokens.tier;

-- name: InsertReports :one
INSERT INTO reports (body) VALUES (?) RETURNING seq;

-- name: ListReports :many
SELECT seq, body FROM reports WHERE seq > ? ORDER BY seq LIMIT ?;

-- name: DeleteReports :exec
DELETE FROM reports WHERE seq <= ?;

-- name: GetLead :one
SELECT term, leader, taken FROM lead WHERE id = 1;

-- name: TakeLead :one
UPDATE lead SET term = term + 1, leader = ? WHERE id = 1 RETURNING term;

-- name: HoldLead :execrows
UPDATE lead SET taken = ? WHERE id = 1 AND term = ?;

-- name: InsertStep :exec
INSERT INTO steps (vendor, version, step, at, events) VALUES (?, ?, ?, ?, ?);

-- name: ListSteps :many
SELECT step, at, events FROM steps WHERE vendor = ? AND version = ? AND step > ? ORDER BY step;

-- name: DeleteStepsBefore :execrows
DELETE FROM steps WHERE steps.at < ? AND step <= (SELECT step FROM rule_states
    WHERE rule_states.vendor = steps.vendor AND rule_states.version = steps.version);

-- name: PutRuleState :exec
INSERT INTO rule_states (vendor, version, step, body) VALUES (?, ?, ?, ?)
ON CONFLICT (vendor, version) DO UPDATE SET step = excluded.step, body = excluded.body;

-- name: GetRuleState :one
SELECT step, body FROM rule_states WHERE vendor = ? AND version = ?;

-- name: InsertVerdict :exec
INSERT INTO verdicts (vendor, version, seq, at, unit, action, reason, body) VALUES (?, ?, ?, ?, ?, ?, ?, ?);

-- name: ListVerdicts :many
SELECT body FROM verdicts WHERE vendor = ? AND version = ? ORDER BY seq;

-- name: InsertAnswer :exec
INSERT INTO answers (id, at, body) VALUES (?, ?, ?) ON CONFLICT DO NOTHING;

-- name: GetAnswer :one
SELECT body FROM answers WHERE id = ?;

-- name: DeleteAnswersBefore :execrows
DELETE FROM answers WHERE at < ?;

-- What people ask for and are told.

-- name: InsertRequest :one
INSERT INTO requests (at, kind, vendor, version, unit, tier, account, person, reason, proposal, taken_at, done, outcome)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
RETURNING id;

-- name: ListWaitingRequests :many
SELECT sqlc.embed(requests), coalesce(proposals.account, '') AS first_account, coalesce(proposals.person, '') AS first_person
FROM requests LEFT JOIN requests AS proposals ON proposals.id = requests.proposal
WHERE requests.taken_at IS NULL AND requests.kind <> 'propose-resume'
ORDER BY requests.id;

-- name: ListRequests :many
SELECT sqlc.embed(requests), coalesce(proposals.account, '') AS first_account, coalesce(proposals.person, '') AS first_person
FROM requests LEFT JOIN requests AS proposals ON proposals.id = requests.proposal
ORDER BY requests.id;

-- name: GetRequest :one
SELECT sqlc.embed(requests), coalesce(proposals.account, '') AS first_account, coalesce(proposals.person, '') AS first_person
FROM requests LEFT JOIN requests AS proposals ON proposals.id = requests.proposal
WHERE requests.id = ?;

-- name: ListProposals :many
SELECT *
FROM requests
WHERE kind = 'propose-resume' AND vendor = ? AND version = ? AND unit = ?
    AND NOT EXISTS (SELECT 1 FROM requests AS seconds WHERE seconds.proposal = requests.id)
ORDER BY id DESC;

-- name: TakeRequest :execrows
UPDATE requests SET taken_at = ?, done = ?, outcome = ?
WHERE id = ? AND taken_at IS NULL AND kind <> 'propose-resume';

-- name: PutStages :exec
INSERT INTO stages (vendor, version, at, body) VALUES (?, ?, ?, ?)
ON CONFLICT (vendor, version) DO UPDATE SET at = excluded.at, body = excluded.body;

-- name: GetStages :one
SELECT at, body FROM stages WHERE vendor = ? AND version = ?;

-- name: ListAllVerdicts :many
SELECT vendor, version, body FROM verdicts ORDER BY at, vendor, version, seq;

-- name: SetWithdrawal :execrows
UPDATE rollouts SET withdraw_share = ?, withdraw_salt = ?, withdraw_pause = ?, withdraw_began = ?, withdraw_since = ?,
    withdraw_excused = ?, withdraw_held = ?
WHERE vendor = ? AND version = ?;

-- name: CountRemovals :one
SELECT count(DISTINCT machine_id) FROM events
WHERE kind = 'removed' AND version = sqlc.arg(version) AND received_at >= sqlc.arg(since);

-- name: CountCrashesAfterRemoval :one
SELECT count(DISTINCT crashes.machine_id) FROM events AS crashes
WHERE (crashes.kind = 'crashed' OR (crashes.kind = 'booted' AND crashes.reason = 'UNCLEAN'))
    AND crashes.received_at >= sqlc.arg(since)
    AND EXISTS (SELECT 1 FROM events AS removals
        -- The plus keeps SQLite from looking through all removals for each crash.
        WHERE removals.machine_id = crashes.machine_id AND +removals.kind = 'removed' AND removals.version = sqlc.arg(version)
            AND removals.received_at >= sqlc.arg(since) AND removals.received_at <= crashes.received_at);

-- name: InsertNotice :exec
INSERT INTO notices (id, at, kind, body, next_at) VALUES (?, ?, ?, ?, ?);

-- name: GetNotice :one
SELECT * FROM notices WHERE id = ?;

-- name: ListDueNotices :many
SELECT * FROM notices WHERE ended_at IS NULL AND next_at <= ? ORDER BY next_at, seq LIMIT ?;

-- name: ClaimNotice :execrows
UPDATE notices SET next_at = sqlc.arg(until) WHERE id = sqlc.arg(id) AND ended_at IS NULL AND next_at = sqlc.arg(seen);

-- name: PutOffNotice :exec
UPDATE notices SET attempts = ?, next_at = ?, failure = ? WHERE id = ? AND ended_at IS NULL;

-- name: EndNotice :exec
UPDATE notices SET attempts = ?, ended_at = ?, sent = ?, failure = ? WHERE id = ? AND ended_at IS NULL;

-- name: DeleteNoticesBefore :execrows
DELETE FROM notices WHERE at < ?;
