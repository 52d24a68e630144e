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
SELECT machines.id, tokens.tier, tokens.revoked_at
FROM machines JOIN tokens ON tokens.id = machines.auth_token_id
WHERE machines.token_hash = ?;

-- name: TouchMachine :execrows
UPDATE machines SET agent_version = ?, arch = ?, release = ?, build_id = ?, kernel_version = ?, distribution = ?,
    boot_id = ?, last_seen = ?, generation = ?, patch_name = ?, patch_version = ?, patch_sequence = ?,
    patch_state = ?, patch_standing = ?
WHERE id = ? AND token_hash = ?;

-- name: DeleteMachine :execrows
DELETE FROM machines WHERE token_hash = ?;

-- name: ListMachines :many
SELECT machines.id, machines.hostname, machines.agent_version, machines.arch, machines.release, machines.build_id,
    machines.kernel_version, machines.distribution, machines.boot_id, machines.enrolled_at, machines.last_seen,
    machines.generation, machines.patch_name, machines.patch_version, machines.patch_sequence, machines.patch_state,
    machines.patch_standing, machines.auth_token_id, tokens.tier, tokens.revoked_at
FROM machines JOIN tokens ON tokens.id = machines.auth_token_id
ORDER BY machines.id;

-- name: InsertEvent :exec
INSERT INTO events (machine_id, id, kind, name, version, boot_id, at, received_at, reason, message)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (machine_id, id) DO NOTHING;

-- name: ListEvents :many
SELECT id, kind, name, version, boot_id, at, reason, message
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
INSERT INTO decisions (epoch, at, decided_by, reason, vendor, version, state)
VALUES (?, ?, ?, ?, ?, ?, ?);

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
