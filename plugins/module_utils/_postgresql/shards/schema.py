# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# **PRIVATE** to the collection: may change at any time without notice.
"""The schema ``headroom`` that every member of a sharded cluster has: the map, the journal of moves, and functions. No I/O.

``cluster`` says which member this is and the highest epoch of a placement that it knows. ``shard``, ``router``, ``shard_group``,
``shard_table`` and ``bucket`` are the map, the same on all members but for a ``bucket`` whose move they have not been told of:
the row with the highest epoch is the true one. ``move``, its view ``progress``, ``decision`` and ``fence`` belong to the moves of buckets.
"""

from __future__ import annotations

import hashlib

SCHEMA = "headroom"
FORMAT = 1
"""The format of the tables; a member with a higher one was written by a newer version of this collection."""

PREFIX = "headroom_"
"""What the names of servers, slots, publications, subscriptions and prepared transactions begin with."""

SQLSTATE_MOVED = "HR001"
"""Raised by a statement for rows of a bucket that has moved."""
SQLSTATE_NO_BUCKET = "HR002"
"""Raised for a key or a group that has no bucket."""

MOVE_STATES = ("planned", "copying", "catching_up", "verified", "switched", "retired", "failed", "reverted")

_TABLES = """
CREATE SCHEMA IF NOT EXISTS headroom;

CREATE TABLE IF NOT EXISTS headroom.cluster (
  one boolean PRIMARY KEY DEFAULT true CHECK (one),
  name text NOT NULL,
  format integer NOT NULL,
  epoch bigint NOT NULL,
  digest text NOT NULL,
  self text NOT NULL,
  role text NOT NULL CHECK (role IN ('shard', 'router')),
  schema_digest text NOT NULL
);
COMMENT ON TABLE headroom.cluster IS 'The cluster that this database belongs to, and which member of it this is';

CREATE TABLE IF NOT EXISTS headroom.shard (
  name text PRIMARY KEY,
  position integer NOT NULL,
  weight double precision NOT NULL,
  state text NOT NULL,
  capacity_bytes bigint,
  host text NOT NULL,
  port integer NOT NULL,
  dbname text NOT NULL,
  application_host text NOT NULL,
  application_port integer NOT NULL
);

CREATE TABLE IF NOT EXISTS headroom.router (
  name text PRIMARY KEY,
  host text NOT NULL,
  port integer NOT NULL,
  dbname text NOT NULL
);

CREATE TABLE IF NOT EXISTS headroom.shard_group (
  name text PRIMARY KEY,
  position integer NOT NULL,
  strategy text NOT NULL,
  key_type text NOT NULL
);

CREATE TABLE IF NOT EXISTS headroom.shard_table (
  name text PRIMARY KEY,
  group_name text NOT NULL,
  key text NOT NULL,
  position integer NOT NULL
);

CREATE TABLE IF NOT EXISTS headroom.bucket (
  group_name text NOT NULL,
  number integer NOT NULL,
  position integer NOT NULL,
  lower jsonb,
  upper jsonb,
  tenants jsonb,
  shard text NOT NULL,
  epoch bigint NOT NULL,
  PRIMARY KEY (group_name, number)
);
COMMENT ON TABLE headroom.bucket IS 'Where each bucket lies, as far as this member was told; the highest epoch of all members is true';
CREATE INDEX IF NOT EXISTS bucket_tenants ON headroom.bucket USING gin (tenants jsonb_path_ops);

CREATE TABLE IF NOT EXISTS headroom.move (
  id text PRIMARY KEY,
  plan_id text,
  group_name text NOT NULL,
  bucket integer NOT NULL,
  source text NOT NULL,
  target text NOT NULL,
  state text NOT NULL,
  step text,
  detail jsonb NOT NULL DEFAULT '{}',
  created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
  updated_at timestamptz NOT NULL DEFAULT clock_timestamp(),
  bytes_total bigint,
  bytes_done bigint,
  rows bigint,
  error text,
  retire_after timestamptz
);
COMMENT ON TABLE headroom.move IS 'The journal of moves: what is on its way, how far it is, and what came of it';

CREATE OR REPLACE VIEW headroom.progress AS
SELECT m.id, m.group_name, m.bucket, m.source, m.target, m.state, m.step, m.bytes_done, m.bytes_total,
  r.rate_bytes_s::bigint AS rate_bytes_s, ceil((m.bytes_total - m.bytes_done) / nullif(r.rate_bytes_s, 0)) AS copied_in_s, m.updated_at
FROM headroom.move m LEFT JOIN LATERAL (SELECT m.bytes_done / nullif(extract(epoch FROM m.updated_at - m.created_at), 0) AS rate_bytes_s
  WHERE m.state = 'copying' AND m.step = 'copy') r ON true
WHERE m.state IN ('planned', 'copying', 'catching_up', 'verified', 'switched');
COMMENT ON VIEW headroom.progress IS 'The moves that have not ended, with the rate of the copy and the seconds that it takes from here';

CREATE TABLE IF NOT EXISTS headroom.decision (
  gid text PRIMARY KEY,
  decided text NOT NULL CHECK (decided IN ('commit', 'rollback')),
  move_id text NOT NULL
);

CREATE TABLE IF NOT EXISTS headroom.fence (
  move_id text,
  beat bigint,
  PRIMARY KEY (move_id, beat)
);
"""

# hash: hash_combine64(0, hash) is the hash plus 0x49A0F4DD15E5A8E3, unsigned; the words of 32 bits keep it within bigint
_FUNCTIONS = """
CREATE OR REPLACE FUNCTION headroom.bucket_of(group_name text, key text) RETURNS integer
LANGUAGE plpgsql STABLE STRICT PARALLEL SAFE AS $function$
DECLARE
  kind record;
  modulus bigint;
  hashed bigint;
  low bigint;
  answer integer;
BEGIN
  SELECT g.strategy, g.key_type INTO kind FROM headroom.shard_group g WHERE g.name = $1;
  IF NOT FOUND THEN
    RAISE EXCEPTION 'no colocation group is named %', $1 USING ERRCODE = 'HR002';
  END IF;
  IF kind.strategy = 'hash' THEN
    SELECT max(b.number) + 1 INTO modulus FROM headroom.bucket b WHERE b.group_name = $1;
    hashed := CASE kind.key_type
      WHEN 'uuid' THEN pg_catalog.uuid_hash_extended($2::uuid, 8816678312871386365)
      WHEN 'text' THEN pg_catalog.hashtextextended($2, 8816678312871386365)
      WHEN 'varchar' THEN pg_catalog.hashtextextended($2, 8816678312871386365)
      ELSE pg_catalog.hashint8extended($2::bigint, 8816678312871386365)
    END;
    low := (hashed & 4294967295) + 367372515;
    hashed := ((hashed >> 32) & 4294967295) + 1235285213 + (low >> 32);
    RETURN ((hashed & 4294967295) % modulus * (4294967296 % modulus) + (low & 4294967295) % modulus) % modulus;
  END IF;
  IF kind.strategy = 'directory' THEN
    SELECT b.number INTO answer FROM headroom.bucket b WHERE b.group_name = $1 AND b.tenants @> CASE
      WHEN kind.key_type IN ('smallint', 'integer', 'bigint') THEN to_jsonb($2::bigint)
      WHEN kind.key_type = 'uuid' THEN to_jsonb($2::uuid)
      WHEN kind.key_type = 'date' THEN to_jsonb($2::date)
      ELSE to_jsonb($2)
    END;
    RETURN answer;
  END IF;
  IF kind.key_type IN ('smallint', 'integer', 'bigint') THEN
    SELECT b.number INTO answer FROM headroom.bucket b WHERE b.group_name = $1
      AND (b.upper IS NULL OR $2::bigint < (b.upper #>> '{}')::bigint) ORDER BY b.position LIMIT 1;
  ELSIF kind.key_type = 'uuid' THEN
    SELECT b.number INTO answer FROM headroom.bucket b WHERE b.group_name = $1
      AND (b.upper IS NULL OR $2::uuid < (b.upper #>> '{}')::uuid) ORDER BY b.position LIMIT 1;
  ELSIF kind.key_type = 'date' THEN
    SELECT b.number INTO answer FROM headroom.bucket b WHERE b.group_name = $1
      AND (b.upper IS NULL OR $2::date < (b.upper #>> '{}')::date) ORDER BY b.position LIMIT 1;
  ELSE
    SELECT b.number INTO answer FROM headroom.bucket b WHERE b.group_name = $1
      AND (b.upper IS NULL OR $2 COLLATE "C" < (b.upper #>> '{}') COLLATE "C") ORDER BY b.position LIMIT 1;
  END IF;
  RETURN answer;
END
$function$;
COMMENT ON FUNCTION headroom.bucket_of(text, text) IS 'The number of the bucket that a key belongs to, null for a tenant without one';

CREATE OR REPLACE FUNCTION headroom.bucket_of(group_name text, key anyelement) RETURNS integer
LANGUAGE sql STABLE STRICT PARALLEL SAFE AS $function$
  SELECT headroom.bucket_of($1, to_jsonb($2) #>> '{}')
$function$;

CREATE OR REPLACE FUNCTION headroom.route(group_name text, key text,
  OUT bucket integer, OUT shard text, OUT epoch bigint, OUT conninfo text)
LANGUAGE plpgsql STABLE PARALLEL SAFE AS $function$
#variable_conflict use_column
BEGIN
  SELECT b.number, b.shard, b.epoch, format('host=%s port=%s dbname=''%s''', s.application_host, s.application_port,
      replace(replace(s.dbname, '\\', '\\\\'), '''', '\\'''))
    INTO route.bucket, route.shard, route.epoch, route.conninfo
    FROM headroom.bucket b JOIN headroom.shard s ON s.name = b.shard
    WHERE b.group_name = $1 AND b.number = headroom.bucket_of($1, $2);
  IF NOT FOUND THEN
    RAISE EXCEPTION 'no bucket of group % has the key %', $1, $2 USING ERRCODE = 'HR002';
  END IF;
END
$function$;
COMMENT ON FUNCTION headroom.route(text, text) IS
  'The bucket of a key, its shard, the epoch since which it is there, and how to connect to it';

CREATE OR REPLACE FUNCTION headroom.route(group_name text, key anyelement,
  OUT bucket integer, OUT shard text, OUT epoch bigint, OUT conninfo text)
LANGUAGE sql STABLE PARALLEL SAFE AS $function$
  SELECT * FROM headroom.route($1, to_jsonb($2) #>> '{}')
$function$;

CREATE OR REPLACE FUNCTION headroom.refuse_moved() RETURNS trigger
LANGUAGE plpgsql AS $function$
DECLARE
  now_at record;
BEGIN
  SELECT b.shard, b.epoch, s.application_host, s.application_port, s.dbname INTO now_at
    FROM headroom.bucket b JOIN headroom.shard s ON s.name = b.shard
    WHERE b.group_name = TG_ARGV[0] AND b.number = TG_ARGV[1]::integer;
  RAISE EXCEPTION 'moved to % at epoch %: %:%/%',
    now_at.shard, now_at.epoch, now_at.application_host, now_at.application_port, now_at.dbname
    USING ERRCODE = 'HR001', HINT = 'Read the map again (headroom.route) and send the statement there.';
END
$function$;
COMMENT ON FUNCTION headroom.refuse_moved() IS
  'A row trigger, with a group and the number of a bucket as arguments, that names the shard where the bucket is now';
"""

_RESOLVE = """
CREATE OR REPLACE FUNCTION headroom.in_doubt(older interval DEFAULT '15 seconds') RETURNS SETOF text
LANGUAGE plpgsql AS $function$
DECLARE
  one record;
  keeper text;
  verdict text;
BEGIN
  FOR one IN SELECT p.gid, regexp_replace(p.gid, '_(give|take)$', '') AS attempt, m.id, m.target
      FROM pg_prepared_xacts p JOIN headroom.move m ON starts_with(p.gid, 'headroom_' || m.id || '_')
      WHERE p.database = current_database() AND p.gid ~ '_(give|take)$' AND p.prepared < clock_timestamp() - older
  LOOP
    keeper := 'decision';
    IF one.target <> (SELECT self FROM headroom.cluster) THEN
      keeper := 'decision_of_' || one.target;
      EXECUTE format('CREATE FOREIGN TABLE IF NOT EXISTS headroom.%I (gid text, decided text, move_id text) SERVER %I '
        'OPTIONS (schema_name ''headroom'', table_name ''decision'')', keeper, 'headroom_' || one.target);
    END IF;
    EXECUTE format('INSERT INTO headroom.%I (gid, decided, move_id) VALUES ($1, ''rollback'', $2) ON CONFLICT DO NOTHING', keeper)
      USING one.attempt, one.id;
    EXECUTE format('SELECT decided FROM headroom.%I WHERE gid = $1', keeper) INTO STRICT verdict USING one.attempt;
    IF keeper <> 'decision' THEN
      EXECUTE format('DROP FOREIGN TABLE headroom.%I', keeper);
    END IF;
    RETURN NEXT format('%s PREPARED %L;', upper(verdict), one.gid);
  END LOOP;
END
$function$;
COMMENT ON FUNCTION headroom.in_doubt(interval) IS
  'Statements that end the transactions which an interrupted switch has left prepared, as decided; to be run after this one has committed';
REVOKE EXECUTE ON FUNCTION headroom.in_doubt(interval) FROM PUBLIC;
"""

_GRANTS = """
GRANT USAGE ON SCHEMA headroom TO PUBLIC;
GRANT SELECT ON headroom.cluster, headroom.shard, headroom.router, headroom.shard_group, headroom.shard_table,
  headroom.bucket, headroom.move, headroom.progress TO PUBLIC;
"""

SQL = _TABLES + _FUNCTIONS + _RESOLVE + _GRANTS
"""Makes the schema, or brings an older one up to date; can be run again at any time. Statements, to be sent without parameters."""

DIGEST = hashlib.sha256(SQL.encode()).hexdigest()[:16]
"""Tells whether a member has this very schema (``cluster.schema_digest``)."""
