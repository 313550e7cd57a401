-- server_schema --
-- What all shards of a server share.
CREATE SCHEMA IF NOT EXISTS {server_schema}

-- next_id --
-- One id for a shard: unique and greater than every id the shard has ever given, whatever the clock does.
--
-- A shard has two sequences. `ids` counts: it is only ever drawn from. `origin` says where the count begins and only ever
-- rises. Their sum is the position, milliseconds * 1024 + sequence. A value counts only if `origin` was the same before and
-- after it was drawn; so draws fall into disjoint periods of rising origin, and within one the count rises: positions are
-- strictly increasing, without a lock and without a word about the clock. The clock only decides when to raise `origin`,
-- and when to wait.
--
-- The function has a search_path of its own: the plans of its expressions are kept for one path, and under a path that
-- changes with every transaction they would be made again each time (90 us a call, measured over eight shards).
CREATE OR REPLACE FUNCTION {server_schema}.next_id(ids regclass, origin regclass, shard integer) RETURNS bigint
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog AS $function$
DECLARE
    began bigint;
    pos bigint;
    ms bigint;
    raised bigint;
BEGIN
    LOOP
        began := pg_sequence_last_value(origin);
        pos := began + nextval(ids);
        ms := floor(date_part('epoch', clock_timestamp()) * 1000)::bigint - {epoch_ms};
        EXIT WHEN pos >> 10 = ms AND began = pg_sequence_last_value(origin);

        IF pos >> 10 < ms OR pos IS NULL THEN
            IF ms >> 40 > 0 THEN
                RAISE 'the clock of this server is past the year 2060: no id was made' USING ERRCODE = '22008';
            END IF;
            -- Behind the clock. One session raises the origin and draws before another can; nobody waits for it, the others
            -- go on a little behind. Lock, raise, draw and unlock are one expression (evaluated from left to right) because
            -- nothing can cancel a session inside it.
            raised := CASE WHEN pg_try_advisory_lock({lock_class}, shard) THEN
                setval(origin, greatest(pg_sequence_last_value(origin), (ms << 10) - pg_sequence_last_value(ids)))
                + nextval(ids) + CASE WHEN pg_advisory_unlock({lock_class}, shard) THEN 0 END END;
            IF raised IS NOT NULL THEN
                pos := raised;
                EXIT;
            END IF;
        END IF;

        IF began = pg_sequence_last_value(origin) THEN
            IF pos >> 10 > ms + 100 THEN
                -- The clock was set back: count on, and at 1,024 per millisecond at most, not to run further ahead of it.
                PERFORM pg_sleep(0.001) WHERE pos & 1023 = 0;
            ELSE
                -- More than 1,024 ids in a millisecond: wait for the one this id names (no wait where that is past).
                PERFORM pg_sleep(((pos >> 10) + {epoch_ms}) / 1000.0 - date_part('epoch', clock_timestamp()));
            END IF;
            EXIT;
        END IF;
    END LOOP;
    RETURN ((pos >> 10) << 23) | (shard::bigint << 10) | (pos & 1023);  -- SQL's bit operators bind equally: keep these ( )
END
$function$

-- shard_ids --
-- The furniture of one shard; its next_id() holds the sequences by oid, so it follows a rename of the schema.
CREATE SEQUENCE IF NOT EXISTS {schema}.{ids};
CREATE SEQUENCE IF NOT EXISTS {schema}.{origin} MINVALUE 0 MAXVALUE 1125899906842623;
SELECT setval({origin_name}::regclass, 0) WHERE pg_sequence_last_value({origin_name}::regclass) IS NULL;
CREATE OR REPLACE FUNCTION {schema}.next_id() RETURNS bigint LANGUAGE sql VOLATILE PARALLEL UNSAFE
RETURN {server_schema}.next_id({ids_name}::regclass, {origin_name}::regclass, {shard})
