-- crm_relay as PostgreSQL 15 dumps it
CREATE SCHEMA crm_relay;
ALTER SCHEMA crm_relay OWNER TO postgres;
COMMENT ON SCHEMA crm_relay IS 'crm-relay: captures changes of watched tables and hands them to the relay; see sql/README.md';
CREATE TYPE crm_relay.finding AS (
	code text,
	severity text,
	object text,
	what text,
	why text,
	mend text
);
ALTER TYPE crm_relay.finding OWNER TO postgres;
COMMENT ON TYPE crm_relay.finding IS 'what crm_relay.verify() found: code, severity (wrong or note), the object, what is the matter, why that matters, and the command or SQL that mends it';
CREATE TYPE crm_relay.made AS (
	old_image json,
	new_image json,
	is_without_large boolean,
	old_id text,
	new_id text,
	actor text
);
ALTER TYPE crm_relay.made OWNER TO postgres;
COMMENT ON TYPE crm_relay.made IS 'what images() makes of a row before and after';
CREATE TYPE crm_relay.marks AS (
	id text,
	version text,
	last_modified_by text,
	deleted_by text,
	created_by text,
	user_id text
);
ALTER TYPE crm_relay.marks OWNER TO postgres;
COMMENT ON TYPE crm_relay.marks IS 'the columns of any row that say which record it is and who made a change';
CREATE FUNCTION crm_relay.access_now(module text, id text) RETURNS json
    LANGUAGE plpgsql STABLE SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $_$
declare
  lookup text := crm_relay.lookup_now(module);
  image json;
begin
  execute format('select i.image from (select $1) as w (id) cross join lateral (%s) as i (image)', lookup) into image using id;
  raise sqlstate 'CR000';
exception
  when sqlstate 'CR000' then
    return image; -- and what the owner's code did is undone, see image()
  when data_exception then
    return null; -- an id that does not cast is no record's
end
$_$;
ALTER FUNCTION crm_relay.access_now(module text, id text) OWNER TO crm_relay_policy;
COMMENT ON FUNCTION crm_relay.access_now(module text, id text) IS 'key and access columns of a record as it is now, null if there is none; for policies, which may read nothing themselves';
CREATE FUNCTION crm_relay.accesses_now(module text, ids text[]) RETURNS json[]
    LANGUAGE plpgsql STABLE SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $_$
declare
  half integer := cardinality(ids) / 2;
  lookup text;
  images json[];
begin
  -- a transaction that looked before the installation sees lookups of another form
  if (select s.version from crm_relay.setting s) < 7 then
    raise exception 'crm_relay: another version was installed since this transaction began'
      using errcode = 'serialization_failure', hint = 'begin it anew';
  end if;
  begin
    lookup := crm_relay.lookup_now(module);
  exception when others then
    raise warning 'crm_relay.accesses_now(): %', sqlerrm;
    return array_fill(null::json, array[cardinality(ids)]);
  end;
  -- one image for each id, also where several rows have it
  execute format(
    'select array_agg(i.image order by w.place)
       from unnest($1) with ordinality as w (id, place) left join lateral (%s limit 1) as i (image) on true', lookup)
     into images using ids;
  raise sqlstate 'CR000';
exception
  when sqlstate 'CR000' then
    return coalesce(images, '{}'); -- as in access_now()
  when transaction_rollback or insufficient_resources or object_not_in_prerequisite_state or operator_intervention then
    raise; -- it passes: who asks asks again
  when others then
    -- an id that does not cast, or a row that cannot be read, must not hide the others
    if half > 0 then
      return crm_relay.accesses_now(module, ids[:half]) || crm_relay.accesses_now(module, ids[half + 1:]);
    end if;
    if sqlstate not like '22%' then
      raise warning 'crm_relay.accesses_now(): %', sqlerrm;
    end if;
    return array[null::json];
end
$_$;
ALTER FUNCTION crm_relay.accesses_now(module text, ids text[]) OWNER TO crm_relay_policy;
COMMENT ON FUNCTION crm_relay.accesses_now(module text, ids text[]) IS 'access_now() of each of several records, in the order of their ids; null also where it would raise';
CREATE FUNCTION crm_relay.add_triggers(target regclass, module text, part_of text) RETURNS void
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
declare
  given text := concat_ws(', ', quote_literal(module), quote_literal(part_of));
  argument bytea := convert_to(module, 'UTF8') || decode('00', 'hex') || coalesce(convert_to(part_of, 'UTF8') || decode('00', 'hex'), '');
  leaf regclass;
begin
  -- Creating a trigger locks out writers until the transaction ends, so what stands is left alone.
  -- '!' sorts before every letter and digit: the after triggers of a table fire by name.
  if not exists (
    select from pg_trigger t
     where t.tgrelid = target and t.tgname = '!crm_relay' and t.tgfoid = 'crm_relay.capture()'::regprocedure
       and t.tgtype = 1 + 4 + 8 + 16 -- for each row, insert, delete, update
       and t.tgenabled in ('O', 'A') and t.tgqual is null and t.tgattr::text = '' and t.tgargs = argument) then
    execute format('create or replace trigger "!crm_relay" after insert or update or delete on %s '
                   'for each row execute function crm_relay.capture(%s)', target, given);
    execute format('comment on trigger "!crm_relay" on %s is %L', target, 'crm-relay: writes each change to crm_relay.change');
  end if;
  -- a truncate fires the triggers of the tables that it names and of their partitions, no others
  for leaf in select t.relid from pg_partition_tree(target) t join pg_class c on c.oid = t.relid and c.relkind <> 'f'
              union select target loop
    if not exists (
      select from pg_trigger t
       where t.tgrelid = leaf and t.tgname = '!crm_relay_truncate' and t.tgfoid = 'crm_relay.capture_truncate()'::regprocedure
         and t.tgtype = 32 -- for each statement, truncate
         and t.tgenabled in ('O', 'A') and t.tgargs = argument) then
      execute format('create or replace trigger "!crm_relay_truncate" after truncate on %s '
                     'for each statement execute function crm_relay.capture_truncate(%s)', leaf, given);
      execute format('comment on trigger "!crm_relay_truncate" on %s is %L', leaf, 'crm-relay: tells everybody to fetch anew');
    end if;
  end loop;
end
$$;
ALTER FUNCTION crm_relay.add_triggers(target regclass, module text, part_of text) OWNER TO postgres;
COMMENT ON FUNCTION crm_relay.add_triggers(target regclass, module text, part_of text) IS 'gives a table (and for truncate its partitions) the relay''s triggers, unless they stand as they should';
CREATE FUNCTION crm_relay.base_of(type oid) RETURNS pg_type
    LANGUAGE sql STABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
  -- an enum goes by its label
  with recursive bases (type, base) as (
    select t.oid, t.typbasetype from pg_type t where t.oid = base_of.type
    union all
    select t.oid, t.typbasetype from bases b join pg_type t on t.oid = b.base
  )
  select t.* from bases b join pg_type t on t.oid = b.type where b.base = 0 and (t.typtype = 'e' or t.oid < 16384)
$$;
ALTER FUNCTION crm_relay.base_of(type oid) OWNER TO postgres;
COMMENT ON FUNCTION crm_relay.base_of(type oid) IS 'the type that values can be read and compared as without running the code of whoever made theirs (casts, checks): of a domain what it is made of; null where there is none such';
CREATE FUNCTION crm_relay.capture() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
#variable_conflict use_column
declare
  watched record;
  wide record;
  made crm_relay.made;
  by_image crm_relay.made;
  is_by_row boolean := true; -- whether its marks are got from the row
  seen json[]; -- both images, as they can be looked into
  images json[];
  column_name text;
  unchanged text[];
  is_moved boolean; -- whether others may see the record now
  outcome text; -- 'told' or 'same'; null where the row cannot say what happened to it
  record_ids text[];
  record_images json[];
begin
  select m.module, m.relation, m.key_columns, m.access_columns, m.hidden_columns, m.marks, m.large_from, m.names_size, m.part_of, m.narrow, m.doorbell,
         -- as slot(), which need not be called then
         (floor(date_part('epoch', clock_timestamp()) / m.slot_seconds)::bigint % 10)::smallint as slot
    into watched
    from crm_relay.module m where m.module = tg_argv[0];
  -- whoever may make triggers on a table of their own must not speak for another module
  if watched.relation <> tg_relid then
    -- by itself, so that the condition before needs no statement
    if not exists (select from pg_partition_ancestors(tg_relid) a where a.relid = watched.relation) then
      return null;
    end if;
  end if;
  -- Nothing in a row may make the CRM's write fail, and nothing that its owner's code did stays: the block
  -- only reads, into variables, and is always rolled back, see image(). It takes no transaction id of its own.
  loop
    begin
      -- something is stored out of line, and may be left there, unless the record moves
      if tg_op = 'UPDATE' and is_by_row and not watched.narrow and pg_column_size(new) > 8000 then
        select m.large_null, m.others_null, m.large_columns, m.large_nulls into wide from crm_relay.module m where m.module = watched.module;
        foreach column_name in array coalesce(wide.large_columns, '{}') loop
          exit when has_column_privilege(tg_relid, column_name, 'select') is null; -- it raises where that has another name by now
        end loop;
        made := crm_relay.images(old, new, watched.marks, wide.large_null, wide.others_null);
      else
        made := crm_relay.images(old, new, case when is_by_row then watched.marks end, null, null);
      end if;
      if watched.hidden_columns <> '{}' or watched.narrow then
        images := crm_relay.narrowed(array[made.old_image, made.new_image], watched.hidden_columns,
                                     case when watched.narrow then watched.key_columns || watched.access_columns end);
        made.old_image := images[1];
        made.new_image := images[2];
      end if;
      if made.old_image::text = made.new_image::text then
        outcome := 'same'; -- nothing that anybody may see has changed
        raise sqlstate 'CR000';
      end if;
      if not is_by_row then
        by_image := crm_relay.images(json_populate_record(null::crm_relay.marks, crm_relay.readable(made.old_image)),
                                     json_populate_record(null::crm_relay.marks, crm_relay.readable(made.new_image)), watched.marks, null, null);
        made.old_id := by_image.old_id;
        made.new_id := by_image.new_id;
        made.actor := by_image.actor;
      end if;
      if made.old_id is null and tg_op <> 'INSERT' or made.new_id is null and tg_op <> 'DELETE'
         or octet_length(made.old_id) > 2000 or octet_length(made.new_id) > 2000 then
        made.old_id := crm_relay.record_id(crm_relay.readable(made.old_image), watched.key_columns);
        made.new_id := crm_relay.record_id(crm_relay.readable(made.new_image), watched.key_columns);
        -- a transaction that looked before the table was watched sees no registry
        if watched.module is null or made.old_id is null and tg_op <> 'INSERT' or made.new_id is null and tg_op <> 'DELETE' then
          raise sqlstate 'CR000';
        end if;
      end if;
      -- both have to fit into one journal row
      if coalesce(pg_column_size(made.old_image), 0) + coalesce(pg_column_size(made.new_image), 0) > 500000000 then
        raise sqlstate 'CR000';
      end if;
      if tg_op = 'UPDATE' then
        -- leave out what is large and unchanged; where the record moves, whoever sees it enter gets the whole of it
        if made.is_without_large then
          made.old_image := crm_relay.without_nulls(made.old_image, wide.large_nulls);
          made.new_image := crm_relay.without_nulls(made.new_image, wide.large_nulls);
        end if;
        if pg_column_size(made.new_image) >= watched.large_from + watched.names_size then
          seen := array[crm_relay.readable(made.old_image), crm_relay.readable(made.new_image)];
          select array_agg(n.key) into unchanged
            from json_each(seen[2]) n
           where octet_length(n.value::text) >= watched.large_from
             and n.value::text <> 'null' -- it may have been left out above
             and n.value::text = (seen[1] -> n.key)::text
             and n.key <> all (watched.key_columns || watched.access_columns);
          if unchanged is not null then
            is_moved := made.old_id <> made.new_id;
            foreach column_name in array watched.access_columns loop
              exit when made.is_without_large; -- images() has compared them
              is_moved := is_moved or seen[1] ->> column_name is distinct from seen[2] ->> column_name;
            end loop;
            if not is_moved then
              made.old_image := crm_relay.without(made.old_image, unchanged);
              made.new_image := crm_relay.without(made.new_image, unchanged);
            end if;
          end if;
        end if;
      end if;
      -- what the session says goes before what the row does
      made.actor := coalesce(nullif(current_setting('crm_relay.user_id', true), ''), made.actor);
      if watched.part_of is not null then
        -- before a cascade has reached the records they still name the old key
        select r.record_ids, r.record_images into record_ids, record_images
          from crm_relay.module m cross join lateral crm_relay.records_of(m, array_remove(array[made.old_id, made.new_id], null)) r
         where m.module = watched.module;
      end if;
      outcome := 'told';
      raise sqlstate 'CR000';
    exception
      when undefined_column or datatype_mismatch or untranslatable_character then
        -- a column has another name than when the table was watched, or another type than when this session first saw
        -- it, or one of the marks holds \u0000: by the whole image, then
        if is_by_row then
          is_by_row := false;
          continue;
        end if;
      when others or assert_failure then
        -- if not told: such as a cast of the owner's that raises, or a record's table that was changed so
        -- that its part's look-up fails
    end;
    exit;
  end loop;
  if outcome = 'told' and watched.part_of is null and (tg_op <> 'UPDATE' or made.old_id = made.new_id) then
    insert into crm_relay.change (slot, module, action, record_id, actor,
                                  db_user, db_role, application, old_image, new_image)
    values (watched.slot, watched.module, case tg_op when 'INSERT' then 'created' when 'UPDATE' then 'updated' else 'deleted' end,
            coalesce(made.new_id, made.old_id), made.actor,
            session_user, coalesce(nullif(current_setting('role'), 'none'), session_user), current_setting('application_name'),
            made.old_image, made.new_image);
  elsif outcome = 'same' then
    return null;
  elsif outcome is null then
    -- say that something changed
    insert into crm_relay.change (slot, module, action, db_user, db_role, application)
    values (coalesce(watched.slot, crm_relay.slot(clock_timestamp(), coalesce((select s.retention from crm_relay.setting s), '7 days'))),
            coalesce(tg_argv[1], tg_argv[0]), 'truncated',
            session_user, coalesce(nullif(current_setting('role'), 'none'), session_user), current_setting('application_name'));
    perform crm_relay.ring(coalesce(tg_argv[1], tg_argv[0]), coalesce(watched.doorbell, (select s.doorbell from crm_relay.setting s), 'always'));
    return null;
  elsif watched.part_of is not null then
    insert into crm_relay.change (slot, module, action, record_id, part, part_id, actor,
                                  db_user, db_role, application, old_image, new_image, record_image)
    select watched.slot, watched.part_of, 'updated', record_id, watched.module, coalesce(made.new_id, made.old_id), made.actor,
           session_user, coalesce(nullif(current_setting('role'), 'none'), session_user), current_setting('application_name'),
           made.old_image, made.new_image, record_image
      from unnest(record_ids, record_images) as belongs (record_id, record_image);
  else
    -- another key is another record
    insert into crm_relay.change (slot, module, action, record_id, actor,
                                  db_user, db_role, application, old_image, new_image)
    values (watched.slot, watched.module, 'deleted', made.old_id, made.actor,
            session_user, coalesce(nullif(current_setting('role'), 'none'), session_user), current_setting('application_name'), made.old_image, null),
           (watched.slot, watched.module, 'created', made.new_id, made.actor,
            session_user, coalesce(nullif(current_setting('role'), 'none'), session_user), current_setting('application_name'), null, made.new_image);
  end if;
  -- as in ring(), which need not be called then
  if watched.doorbell = 'adaptive' and pg_try_advisory_xact_lock_shared('crm_relay.setting'::regclass::oid::int, 2) then
    return null;
  end if;
  perform crm_relay.ring(coalesce(watched.part_of, watched.module), watched.doorbell);
  return null;
end
$$;
ALTER FUNCTION crm_relay.capture() OWNER TO crm_relay_capture;
COMMENT ON FUNCTION crm_relay.capture() IS 'after row trigger of watched tables, its argument is the module: writes the change to the journal and rings';
CREATE FUNCTION crm_relay.capture_truncate() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
declare
  watched crm_relay.module;
  settings crm_relay.setting;
begin
  select * into watched from crm_relay.module m where m.module = tg_argv[0];
  if found and watched.relation <> tg_relid
     and not exists (select from pg_partition_ancestors(tg_relid) a where a.relid = watched.relation) then
    return null;
  end if;
  select * into settings from crm_relay.setting;
  insert into crm_relay.change (slot, module, action, db_user, db_role, application)
  values (crm_relay.slot(clock_timestamp(), coalesce(settings.retention, '7 days')), coalesce(tg_argv[1], tg_argv[0]), 'truncated',
          session_user, coalesce(nullif(current_setting('role'), 'none'), session_user), current_setting('application_name'));
  perform crm_relay.ring(coalesce(tg_argv[1], tg_argv[0]), coalesce(settings.doorbell, 'always'));
  return null;
end
$$;
ALTER FUNCTION crm_relay.capture_truncate() OWNER TO crm_relay_capture;
COMMENT ON FUNCTION crm_relay.capture_truncate() IS 'after truncate trigger of watched tables: there are no rows to journal, so everybody fetches anew';
CREATE SEQUENCE crm_relay.change_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;
ALTER TABLE crm_relay.change_seq OWNER TO postgres;
COMMENT ON SEQUENCE crm_relay.change_seq IS 'numbers the journal; cache 1, so that of two changes of one record the later has the greater number';
CREATE TABLE crm_relay.change (
    seq bigint DEFAULT nextval('crm_relay.change_seq'::regclass) NOT NULL,
    slot smallint NOT NULL,
    txid xid8 DEFAULT pg_current_xact_id() NOT NULL,
    module text NOT NULL,
    action text NOT NULL,
    record_id text,
    part text,
    part_id text,
    actor text,
    changed_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    db_user text NOT NULL,
    db_role text NOT NULL,
    application text NOT NULL,
    depth smallint DEFAULT pg_trigger_depth() NOT NULL,
    old_image json,
    new_image json,
    record_image json
)
PARTITION BY LIST (slot);
ALTER TABLE ONLY crm_relay.change ALTER COLUMN old_image SET COMPRESSION lz4;
ALTER TABLE ONLY crm_relay.change ALTER COLUMN new_image SET COMPRESSION lz4;
ALTER TABLE ONLY crm_relay.change ALTER COLUMN record_image SET COMPRESSION lz4;
ALTER TABLE crm_relay.change OWNER TO postgres;
COMMENT ON TABLE crm_relay.change IS 'the journal: one row for each change of a watched table, kept for crm_relay.setting.retention';
COMMENT ON COLUMN crm_relay.change.seq IS 'grows with each change of a record; numbers of rolled back changes are missing';
COMMENT ON COLUMN crm_relay.change.slot IS 'which partition of the ring holds the row; follows from changed_at';
COMMENT ON COLUMN crm_relay.change.txid IS 'the transaction that made the change';
COMMENT ON COLUMN crm_relay.change.module IS 'the module of the record (of the record that the part belongs to)';
COMMENT ON COLUMN crm_relay.change.action IS 'created, updated, deleted; truncated: of this module more was lost or changed than rows can say (a truncate, or a row too large to render)';
COMMENT ON COLUMN crm_relay.change.record_id IS 'the record''s key as Postgres prints it; more than one column: a JSON array of texts; null when truncated';
COMMENT ON COLUMN crm_relay.change.part IS 'the watched part that changed, such as contacts; null for the record''s own row';
COMMENT ON COLUMN crm_relay.change.part_id IS 'the key of the part''s row';
COMMENT ON COLUMN crm_relay.change.actor IS 'the user who made the change where that is certain, else null';
COMMENT ON COLUMN crm_relay.change.changed_at IS 'when the row changed (clock, not start of the transaction)';
COMMENT ON COLUMN crm_relay.change.db_user IS 'session_user: who logged in to Postgres';
COMMENT ON COLUMN crm_relay.change.db_role IS 'the role it had taken by set role, else the same';
COMMENT ON COLUMN crm_relay.change.application IS 'application_name of the session';
COMMENT ON COLUMN crm_relay.change.depth IS 'how deep in triggers the change was made: a trigger that edits the same row again can write its journal row first';
COMMENT ON COLUMN crm_relay.change.old_image IS 'the row before, without hidden columns; of an update without what is large and unchanged';
COMMENT ON COLUMN crm_relay.change.new_image IS 'the row after, the same way';
COMMENT ON COLUMN crm_relay.change.record_image IS 'of a part: key and access columns of the record it belongs to';
CREATE FUNCTION crm_relay.changes_since(cursor text) RETURNS SETOF crm_relay.change
    LANGUAGE plpgsql STABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET plan_cache_mode TO 'force_custom_plan'
    AS $_$
declare
  parts text[] := regexp_match(cursor, '^([0-9a-f]{8})[.]([0-9]{1,20}):([0-9]{1,20}):([0-9,+]*)[.]([0-9]{0,19})$');
  old_xmax xid8;
  old_xip xid8[];
begin
  if parts is null or length(cursor) > 4096 then
    raise exception 'crm_relay: % is no cursor', quote_literal(left(cursor, 100))
      using hint = 'a cursor looks like 3f2a91c0.7423:7430:7425.990; every event carries one';
  end if;
  if parts[1] <> crm_relay.epoch() then
    raise exception 'crm_relay: the cursor is of epoch %, this database is in epoch %', parts[1], crm_relay.epoch()
      using hint = 'it comes from another database, or this one was restored or failed over';
  end if;
  old_xmax := parts[3]::xid8;
  -- each is written whole, or with what it is above the one before it
  old_xip := array(
    select sum(step.value::numeric) over (partition by stretch.place order by step.place)::text::xid8
      from unnest(string_to_array(nullif(parts[4], ''), ',')) with ordinality as stretch (value, place)
     cross join unnest(string_to_array(stretch.value, '+')) with ordinality as step (value, place)
     order by stretch.place, step.place);
  if exists (select from crm_relay.setting s where s.pruned_txid >= least(old_xmax, old_xip[1])) then
    raise exception 'crm_relay: the cursor reaches back before what the journal still holds'
      using hint = 'select retention, pruned_at from crm_relay.setting';
  end if;
  -- two ranges of one index, never one "or": what began after the old snapshot, and what was open then
  return query
    select c.* from (
      select new_range.* from crm_relay.change new_range where new_range.txid >= old_xmax
      union all
      select was_open.* from crm_relay.change was_open where was_open.txid < old_xmax and was_open.txid = any (old_xip)
    ) c
    order by max(c.seq) over (partition by c.txid), c.seq;
end
$_$;
ALTER FUNCTION crm_relay.changes_since(cursor text) OWNER TO postgres;
COMMENT ON FUNCTION crm_relay.changes_since(cursor text) IS 'every change that a client with this cursor has not had, in the order of delivery';
CREATE FUNCTION crm_relay.column_types(relation regclass, columns text[]) RETURNS oid[]
    LANGUAGE sql STABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
  select array_agg(a.atttypid order by a.attname) from pg_attribute a
   where a.attrelid = relation and a.attname = any (columns) and a.attnum > 0
$$;
ALTER FUNCTION crm_relay.column_types(relation regclass, columns text[]) OWNER TO postgres;
COMMENT ON FUNCTION crm_relay.column_types(relation regclass, columns text[]) IS 'the types of these columns of a table, by name';
CREATE FUNCTION crm_relay.disconnect(user_id text) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $_$
declare
  settings crm_relay.setting;
  is_known boolean := true;
begin
  if current_user <> 'crm_relay_capture' then
    raise exception 'crm_relay: disconnect() belongs to %, it must belong to crm_relay_capture', current_user
      using hint = 'run crm-relay install again';
  end if;
  if coalesce(user_id, '') = '' then
    raise exception 'crm_relay: disconnect() needs the user as their tokens name them, usually the id of the table users';
  end if;
  -- a uuid goes by its lower case, as the relay takes it from tokens
  if user_id ~* '^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$' then
    user_id := lower(user_id);
  end if;
  begin
    is_known := not exists (select from crm_relay.module m where m.module = 'users')
                or crm_relay.access_now('users', user_id) is not null;
  exception when others then
    null; -- the table cannot be looked into
  end;
  if not is_known then
    -- who was deleted may still have a token
    raise warning 'crm_relay: no user % in the table users; their tokens are refused all the same', user_id
      using hint = 'a user is named as their tokens name them, usually by the id of the table users: select crm_relay.disconnect(id::text) from users where email = …';
  end if;
  select * into settings from crm_relay.setting;
  insert into crm_relay.disconnected as known (user_id) values (user_id)
  on conflict on constraint disconnected_pkey do update set disconnected_at = excluded.disconnected_at, by_role = excluded.by_role;
  -- a row, because anybody may notify
  insert into crm_relay.change (slot, module, action, record_id, db_user, db_role, application, new_image)
  values (crm_relay.slot(clock_timestamp(), settings.retention), 'crm_relay', 'created', user_id,
          session_user, coalesce(nullif(current_setting('role'), 'none'), session_user), current_setting('application_name'),
          '{"disconnected": true}');
  perform crm_relay.ring('crm_relay', settings.doorbell);
end
$_$;
ALTER FUNCTION crm_relay.disconnect(user_id text) OWNER TO crm_relay_capture;
COMMENT ON FUNCTION crm_relay.disconnect(user_id text) IS 'ends all connections of a user, on all relays, and has tokens refused that were issued before';
CREATE FUNCTION crm_relay.disown(known text) RETURNS boolean
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
begin
  -- one after the other: the first of several that notice does it, the others find another epoch
  perform from crm_relay.setting for update;
  if crm_relay.epoch() is distinct from known then
    return false;
  end if;
  update crm_relay.setting set install_id = gen_random_uuid();
  return true;
end
$$;
ALTER FUNCTION crm_relay.disown(known text) OWNER TO crm_relay_prune;
COMMENT ON FUNCTION crm_relay.disown(known text) IS 'makes this history another than the one of this epoch, because something that was read of it is gone, as after a crash without synchronous_commit or a journal emptied by hand; tells whether it did';
CREATE FUNCTION crm_relay.enters(principal jsonb, room text) RETURNS boolean
    LANGUAGE plpgsql STABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
declare
  answer boolean;
begin
  answer := crm_relay.may_enter(principal, room);
  raise sqlstate 'CR000';
exception
  when sqlstate 'CR000' then
    return coalesce(answer, false);
  when others then
    raise warning 'crm_relay.may_enter(): %', sqlerrm;
    return null;
end
$$;
ALTER FUNCTION crm_relay.enters(principal jsonb, room text) OWNER TO postgres;
COMMENT ON FUNCTION crm_relay.enters(principal jsonb, room text) IS 'may_enter() as the relay asks it: null where it raises';
CREATE FUNCTION crm_relay.epoch() RETURNS text
    LANGUAGE sql STABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
  select left(md5(concat_ws('.', s.install_id, c.system_identifier, d.oid,
                            substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))), 8)
    from crm_relay.setting s, pg_control_system() c, pg_database d
   where d.datname = current_database()
$$;
ALTER FUNCTION crm_relay.epoch() OWNER TO postgres;
COMMENT ON FUNCTION crm_relay.epoch() IS 'tells this history from every other: installation, server, database and timeline; part of each cursor';
CREATE FUNCTION crm_relay.equals(column_name text, type oid, given text, is_any boolean DEFAULT false) RETURNS text
    LANGUAGE sql STABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
  select case when is_any then format('%s operator(pg_catalog.=) any (%s%s)', b.value, given, '::' || b.type || '[]')
              else format('%s operator(pg_catalog.=) %s%s', b.value, given, '::' || b.type) end
    from (select format_type(t.oid, -1), t.typtype from crm_relay.base_of(equals.type) t where t.oid is not null) as t (type, kind)
   -- a cast of text to an enum could be its owner's
   cross join lateral (select case when t.kind = 'e' then format('enum_out(r.%I::%s)::text', column_name, t.type) else format('r.%I', column_name) end,
                              case when t.kind = 'e' then 'text' else t.type end) as b (value, type)
$$;
ALTER FUNCTION crm_relay.equals(column_name text, type oid, given text, is_any boolean) OWNER TO postgres;
COMMENT ON FUNCTION crm_relay.equals(column_name text, type oid, given text, is_any boolean) IS 'the condition that a column of the row r is what was given as text, or one of those; null where that would run somebody''s code';
CREATE FUNCTION crm_relay.fingerprint(function oid) RETURNS text
    LANGUAGE sql STABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
  select md5(concat_ws('|', p.prosrc, p.prosecdef, p.provolatile, array(select c from unnest(p.proconfig) c order by c))) from pg_proc p where p.oid = function
$$;
ALTER FUNCTION crm_relay.fingerprint(function oid) OWNER TO postgres;
COMMENT ON FUNCTION crm_relay.fingerprint(function oid) IS 'tells a function that was changed from the one that was installed';
CREATE TABLE crm_relay.module (
    module text NOT NULL,
    event text NOT NULL,
    relation regclass NOT NULL,
    key_columns text[] NOT NULL,
    access_columns text[] DEFAULT '{}'::text[] NOT NULL,
    hidden_columns text[] DEFAULT '{}'::text[] NOT NULL,
    quiet_columns text[] DEFAULT '{}'::text[] NOT NULL,
    large_from integer DEFAULT 1024 NOT NULL,
    part_of text,
    part_link text,
    chosen text[] DEFAULT '{}'::text[] NOT NULL,
    narrow boolean DEFAULT false NOT NULL,
    access_of text,
    access_link text,
    lookup text,
    lookup_types oid[],
    marks text[] DEFAULT '{}'::text[] NOT NULL,
    large_null jsonb,
    others_null jsonb,
    large_columns text[],
    large_nulls text[],
    names_size integer DEFAULT 0 NOT NULL,
    doorbell text DEFAULT 'adaptive'::text NOT NULL,
    slot_seconds double precision DEFAULT 100800 NOT NULL,
    CONSTRAINT hidden_is_hidden CHECK ((NOT (hidden_columns && (key_columns || access_columns)))),
    CONSTRAINT module_event_check CHECK ((event ~ '^[A-Z][A-Z0-9_]{0,62}$'::text)),
    CONSTRAINT module_key_columns_check CHECK ((cardinality(key_columns) > 0)),
    CONSTRAINT module_large_from_check CHECK ((large_from > 0)),
    CONSTRAINT module_name CHECK (((module ~ '^[a-z_][a-z0-9_]{0,62}$'::text) AND (module <> ALL (ARRAY['user'::text, 'team'::text, 'broker'::text])))),
    CONSTRAINT module_slot_seconds_check CHECK ((slot_seconds > (0)::double precision)),
    CONSTRAINT part_whole CHECK (((part_of IS NULL) = (part_link IS NULL)))
);
ALTER TABLE crm_relay.module OWNER TO postgres;
COMMENT ON TABLE crm_relay.module IS 'the registry: one row for each watched table; written by crm_relay.watch() and unwatch()';
COMMENT ON COLUMN crm_relay.module.module IS 'name of the module in rooms and events, such as listings';
COMMENT ON COLUMN crm_relay.module.event IS 'name of the module in event types, such as LISTING';
COMMENT ON COLUMN crm_relay.module.relation IS 'the watched table';
COMMENT ON COLUMN crm_relay.module.key_columns IS 'the columns that make a record''s id; more than one: the id is a JSON array of texts';
COMMENT ON COLUMN crm_relay.module.access_columns IS 'columns that decide who may see a record and in which scope rooms it is';
COMMENT ON COLUMN crm_relay.module.hidden_columns IS 'columns that never leave the table: in no journal row, event or log';
COMMENT ON COLUMN crm_relay.module.quiet_columns IS 'columns whose change alone is no event';
COMMENT ON COLUMN crm_relay.module.large_from IS 'a column that an update leaves as it was is left out of the images from this many bytes on';
COMMENT ON COLUMN crm_relay.module.part_of IS 'the module whose records this table''s rows belong to; null for a table of its own';
COMMENT ON COLUMN crm_relay.module.part_link IS 'the column of that module''s table that names the row of this one';
COMMENT ON COLUMN crm_relay.module.chosen IS 'which of these were chosen by whoever watched the table; the others follow the table when it is watched again';
COMMENT ON COLUMN crm_relay.module.narrow IS 'of a table that says who users are: only key and access columns are journaled, when one of them changed, and nobody can subscribe to it';
COMMENT ON COLUMN crm_relay.module.access_of IS 'the module on whose records it depends, too, who may see this one''s, such as leads for appointments';
COMMENT ON COLUMN crm_relay.module.access_link IS 'the column of this table that names that module''s record, such as lead_id';
COMMENT ON COLUMN crm_relay.module.lookup IS 'looks up key and access columns of the record whose id is w.id, in the table that format() is given for it; null where no such can be';
COMMENT ON COLUMN crm_relay.module.lookup_types IS 'the types of those columns when it was made: with others it is not run';
COMMENT ON COLUMN crm_relay.module.marks IS 'the columns that say by themselves which record it is and who made the change: id where it alone is the key; and those of version, last_modified_by, deleted_by, created_by and user_id that the table has and that are not hidden';
COMMENT ON COLUMN crm_relay.module.large_null IS 'an object with each column that may be stored out of line, is shown and decides nothing (json, jsonb, xml, bytea) as null: an update that changed none of them is rendered so; null where there is none';
COMMENT ON COLUMN crm_relay.module.others_null IS 'an object with each column that is not of these and decides nothing as null: two rows that are the same so differ in nothing that is large or decides';
COMMENT ON COLUMN crm_relay.module.large_columns IS 'the columns in large_null';
COMMENT ON COLUMN crm_relay.module.large_nulls IS 'what large_null makes of an image, such as ,"people":null';
COMMENT ON COLUMN crm_relay.module.names_size IS 'bytes of an image that are not values, at least: one that is not larger than this and large_from has nothing large';
COMMENT ON COLUMN crm_relay.module.doorbell IS 'as crm_relay.setting.doorbell';
COMMENT ON COLUMN crm_relay.module.slot_seconds IS 'how many seconds fall into one slot of the journal''s ring, by crm_relay.setting.retention';
CREATE FUNCTION crm_relay.goes_by(watched crm_relay.module, OUT marks text[], OUT large_null jsonb, OUT others_null jsonb, OUT large_columns text[], OUT large_nulls text[], OUT names_size integer, OUT doorbell text, OUT slot_seconds double precision) RETURNS record
    LANGUAGE sql STABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
  with columns (name, place, can_be_large, says_who, is_hidden) as (
    select a.attname::text, a.attnum, a.atttypid in ('json'::regtype, 'jsonb'::regtype, 'xml'::regtype, 'bytea'::regtype),
           a.attname in ('version', 'last_modified_by', 'deleted_by', 'created_by', 'user_id') and not watched.narrow,
           a.attname = any (watched.hidden_columns)
      from pg_attribute a
     where a.attrelid = watched.relation and a.attnum > 0 and not a.attisdropped
  ), undecided as (
    select c.name, c.place, c.can_be_large and not c.says_who and not c.is_hidden as is_large
      from columns c where c.name <> all (watched.key_columns || watched.access_columns)
  )
  select (select coalesce(array_agg(c.name order by c.place), '{}') from columns c
           where c.says_who and not c.is_hidden or c.name = 'id' and watched.key_columns = '{id}'),
         (select jsonb_object_agg(u.name, null) from undecided u where u.is_large),
         (select jsonb_object_agg(u.name, null) from undecided u where not u.is_large),
         (select array_agg(u.name order by u.place) from undecided u where u.is_large),
         (select array_agg(',' || to_json(u.name)::text || ':null' order by u.place) from undecided u where u.is_large),
         (select coalesce(sum(octet_length(to_json(c.name)::text) + 2), 0) from columns c where not c.is_hidden and not c.can_be_large),
         coalesce(s.doorbell, 'adaptive'), crm_relay.slot_seconds(coalesce(s.retention, '7 days'))
    from (values (true)) as one (row) left join crm_relay.setting s on true -- written last by a first installation
$$;
ALTER FUNCTION crm_relay.goes_by(watched crm_relay.module, OUT marks text[], OUT large_null jsonb, OUT others_null jsonb, OUT large_columns text[], OUT large_nulls text[], OUT names_size integer, OUT doorbell text, OUT slot_seconds double precision) OWNER TO postgres;
COMMENT ON FUNCTION crm_relay.goes_by(watched crm_relay.module, OUT marks text[], OUT large_null jsonb, OUT others_null jsonb, OUT large_columns text[], OUT large_nulls text[], OUT names_size integer, OUT doorbell text, OUT slot_seconds double precision) IS 'what capture() goes by: made of a row of the registry, of its table''s columns and of the settings, and kept in that row';
CREATE FUNCTION crm_relay.heirs_of(module text, ids text[]) RETURNS SETOF json
    LANGUAGE plpgsql STABLE SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET row_security TO 'on'
    SET enable_seqscan TO 'on'
    AS $_$
declare
  heir crm_relay.module;
  columns text;
  link text;
  found json[];
begin
  if current_user <> 'crm_relay_policy' then
    raise exception 'crm_relay: heirs_of() belongs to %, it must belong to crm_relay_policy', current_user
      using hint = 'run crm-relay install again';
  end if;
  for heir in select m.* from crm_relay.module m where m.access_of = heirs_of.module loop
    -- one table that cannot be looked into must not stop the others, nor the relay
    begin
      columns := crm_relay.readable_columns(heir.relation, heir.key_columns || heir.access_columns);
      select crm_relay.equals(a.attname, a.atttypid, 'w.of') into link
        from pg_attribute a join pg_class c on c.oid = a.attrelid
       where a.attrelid = heir.relation and a.attname = heir.access_link and not a.attisdropped and c.relkind in ('r', 'p');
      if columns is null or link is null then
        raise exception 'the access columns of % are not what they were when it was watched', heir.relation;
      end if;
      execute format(
        'select array_agg(json_build_object(''of'', w.of, ''module'', $1, ''record_id'', crm_relay.record_id(i.image, $2), ''image'', i.image))
           from unnest($3) as w (of)
           join %s r on %s
          cross join lateral (select %s) as i (image)', heir.relation, link, columns)
         into found using heir.module, heir.key_columns, ids;
      raise sqlstate 'CR000';
    exception
      when sqlstate 'CR000' then
        null; -- what the owner's code did is undone, see image()
      when data_exception then
        -- an id that does not cast names none; the others may
        found := case when cardinality(ids) > 1 then array(
          select h from unnest(ids) as w (of) cross join lateral crm_relay.heirs_of(heirs_of.module, array[w.of]) as h
           where h ->> 'module' = heir.module) end;
      when others then
        raise warning 'crm_relay.heirs_of(): %: %', heir.module, sqlerrm;
        -- any of them may be one: then nothing that was known of who may see what counts any more
        found := array(select json_build_object('of', w.of, 'module', heir.module, 'record_id', '') from unnest(ids) as w (of));
    end;
    return query select unnest(found);
  end loop;
end
$_$;
ALTER FUNCTION crm_relay.heirs_of(module text, ids text[]) OWNER TO crm_relay_policy;
COMMENT ON FUNCTION crm_relay.heirs_of(module text, ids text[]) IS 'the records whose access depends on these, such as the appointments of leads: of which one, module, record_id and image of key and access columns';
CREATE FUNCTION crm_relay.image(record anyelement) RETURNS json
    LANGUAGE plpgsql STABLE SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
declare
  rendered pg_catalog.json;
begin
  -- a dump that was restored without its owners must not lend anybody's rights to the rows' casts
  if current_user operator(pg_catalog.<>) 'crm_relay_image' then
    raise exception 'crm_relay: image() belongs to %, it must belong to crm_relay_image', current_user
      using hint = 'run crm-relay install again';
  end if;
  rendered := pg_catalog.row_to_json(record);
  if pg_catalog.current_setting('search_path') operator(pg_catalog.<>) 'pg_catalog, pg_temp' then
    raise exception 'crm_relay: a cast of the row''s types changes search_path';
  end if;
  return rendered;
end
$$;
ALTER FUNCTION crm_relay.image(record anyelement) OWNER TO crm_relay_image;
COMMENT ON FUNCTION crm_relay.image(record anyelement) IS 'a row as json, hidden columns and all; runs as a role without any right, because row_to_json runs casts that the table''s owner may have written';
CREATE FUNCTION crm_relay.images(old_row anyelement, new_row anyelement, marks text[], large jsonb, others jsonb, OUT made crm_relay.made) RETURNS crm_relay.made
    LANGUAGE plpgsql STABLE SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET "TimeZone" TO 'UTC'
    SET "DateStyle" TO 'ISO, MDY'
    SET "IntervalStyle" TO 'postgres'
    SET extra_float_digits TO '1'
    SET bytea_output TO 'hex'
    SET lc_monetary TO 'C'
    SET quote_all_identifiers TO 'off'
    AS $$
declare
  is_edited pg_catalog.bool;
begin
  if current_user operator(pg_catalog.<>) 'crm_relay_image' then
    raise exception 'crm_relay: images() belongs to %, it must belong to crm_relay_image', current_user
      using hint = 'run crm-relay install again';
  end if;
  -- As the images will have them, but got from the rows: each look into json reads all of it. And before the
  -- images: after the owner's code nothing needs to go on but the last look.
  if 'id' operator(pg_catalog.=) any (marks) then
    made.old_id := pg_catalog.to_json(old_row.id) operator(pg_catalog.#>>) '{}';
    made.new_id := pg_catalog.to_json(new_row.id) operator(pg_catalog.#>>) '{}';
  end if;
  -- who made it, certain or null: what this very change says of itself; who deletes a row is not in it
  if old_row is not distinct from null then
    -- a row that comes from another partition was not made here
    if 'version' operator(pg_catalog.=) any (marks) then
      is_edited := pg_catalog.to_json(new_row.version) operator(pg_catalog.#>>) '{}' operator(pg_catalog.<>) '1';
    end if;
    if is_edited is not true then
      if 'created_by' operator(pg_catalog.=) any (marks) then
        made.actor := pg_catalog.to_json(new_row.created_by) operator(pg_catalog.#>>) '{}';
      end if;
      if made.actor is null and 'user_id' operator(pg_catalog.=) any (marks) then
        made.actor := pg_catalog.to_json(new_row.user_id) operator(pg_catalog.#>>) '{}';
      end if;
    end if;
  elsif new_row is distinct from null then
    if 'deleted_by' operator(pg_catalog.=) any (marks) then
      if row(row(new_row.deleted_by)) operator(pg_catalog.*<>) row(row(old_row.deleted_by)) then
        made.actor := nullif(pg_catalog.to_json(new_row.deleted_by) operator(pg_catalog.#>>) '{}', '');
      end if;
    end if;
    if made.actor is null and 'last_modified_by' operator(pg_catalog.=) any (marks) then
      is_edited := row(row(new_row.last_modified_by)) operator(pg_catalog.*<>) row(row(old_row.last_modified_by));
      if not is_edited and 'version' operator(pg_catalog.=) any (marks) then
        is_edited := row(row(new_row.version)) operator(pg_catalog.*<>) row(row(old_row.version));
      end if;
      if is_edited then
        made.actor := pg_catalog.to_json(new_row.last_modified_by) operator(pg_catalog.#>>) '{}';
      end if;
    end if;
  end if;
  if large is not null then
    begin
      -- A statement: an expression of PL/pgSQL keeps what jsonb_populate_record() knows of a table's columns until
      -- the transaction ends, and where they are altered meanwhile it would read the row by what is no longer so,
      -- which once ended the server. A row in a row is compared as it is stored: what is compressed stays so.
      select pg_catalog.row_to_json(pg_catalog.jsonb_populate_record(old_row, large)),
             pg_catalog.row_to_json(pg_catalog.jsonb_populate_record(new_row, large)), true
        into made.old_image, made.new_image, made.is_without_large
       where row(row(pg_catalog.jsonb_populate_record(old_row, others))) operator(pg_catalog.*=)
             row(row(pg_catalog.jsonb_populate_record(new_row, others)));
    exception when others then
      made.is_without_large := null; -- a domain that takes no null
    end;
  end if;
  if made.is_without_large is null then
    made.old_image := pg_catalog.row_to_json(old_row);
    made.new_image := pg_catalog.row_to_json(new_row);
  end if;
  if pg_catalog.current_setting('search_path') operator(pg_catalog.<>) 'pg_catalog, pg_temp' then
    raise exception 'crm_relay: a cast of the row''s types changes search_path';
  end if;
end
$$;
ALTER FUNCTION crm_relay.images(old_row anyelement, new_row anyelement, marks text[], large jsonb, others jsonb, OUT made crm_relay.made) OWNER TO crm_relay_image;
COMMENT ON FUNCTION crm_relay.images(old_row anyelement, new_row anyelement, marks text[], large jsonb, others jsonb, OUT made crm_relay.made) IS 'a row before and after as json, see image(), which record it is and who made the change, as far as those of its columns say that are named in marks; where none but the others changed, the large ones are null, and it says so';
CREATE PROCEDURE crm_relay.in_short_transaction(IN command text, IN about text)
    LANGUAGE plpgsql
    AS $$
declare
  tries integer := 0;
begin
  -- Adding or dropping a trigger waits for the transactions that write to the table, and while it
  -- waits, new writers queue behind it: so it waits shortly, lets them pass, and tries again.
  loop
    tries := tries + 1;
    begin
      set local lock_timeout = '300ms';
      execute command;
      exit;
    exception when lock_not_available then
      if tries >= 100 then
        raise exception 'crm_relay: % is locked by others for a long time, gave up after % tries', about, tries
          using hint = 'end the transactions that hold it (pg_blocking_pids, pg_stat_activity) and run this again; it goes on where it stopped';
      end if;
    end;
    commit;
    perform pg_catalog.pg_sleep(0.2);
  end loop;
  commit;
end
$$;
ALTER PROCEDURE crm_relay.in_short_transaction(IN command text, IN about text) OWNER TO postgres;
COMMENT ON PROCEDURE crm_relay.in_short_transaction(IN command text, IN about text) IS 'runs one command in a transaction of its own, with a short lock_timeout and retries';
CREATE FUNCTION crm_relay.is_private(image json) RETURNS boolean
    LANGUAGE plpgsql IMMUTABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
begin
  return coalesce(image ->> 'is_private', 'false') = 'true' or coalesce(image ->> 'access_level', '') = 'personal';
end
$$;
ALTER FUNCTION crm_relay.is_private(image json) OWNER TO postgres;
COMMENT ON FUNCTION crm_relay.is_private(image json) IS 'whether a record is its owner''s alone, by its image';
CREATE FUNCTION crm_relay.is_secret(column_name text) RETURNS boolean
    LANGUAGE sql IMMUTABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
  select lower(column_name) like any (array['password%', E'%\\_hash', E'%\\_secret', '%token%', 'ssn', E'%\\_ssn', E'tax\\_id'])
$$;
ALTER FUNCTION crm_relay.is_secret(column_name text) OWNER TO postgres;
COMMENT ON FUNCTION crm_relay.is_secret(column_name text) IS 'whether a column is named like a secret, and so is hidden unless it is said otherwise';
CREATE FUNCTION crm_relay.key_condition(watched crm_relay.module, given text DEFAULT '$1'::text) RETURNS text
    LANGUAGE sql STABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
  select string_agg(
           crm_relay.equals(k.name, a.atttypid,
                            case when cardinality(watched.key_columns) = 1 then given else format('(%s::json ->> %s)', given, k.place - 1) end),
           ' and ')
    from unnest(watched.key_columns) with ordinality as k (name, place)
    left join pg_attribute a on a.attrelid = watched.relation and a.attname = k.name and not a.attisdropped
  having bool_and(crm_relay.equals(k.name, a.atttypid, '') is not null)
$$;
ALTER FUNCTION crm_relay.key_condition(watched crm_relay.module, given text) OWNER TO postgres;
COMMENT ON FUNCTION crm_relay.key_condition(watched crm_relay.module, given text) IS 'the condition that finds the row r of a record by its id, given as text; null where that would run somebody''s code';
CREATE FUNCTION crm_relay.known(several text[]) RETURNS jsonb[]
    LANGUAGE plpgsql STABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
declare
  ids text[];
begin
  -- the usual principal(), by one look at the table of users
  if cardinality(several) > 1
     and exists (select from crm_relay.module m where m.module = 'users')
     and exists (select from pg_proc p where p.oid = to_regprocedure('crm_relay.principal(jsonb)')
                                         and p.prosrc = 'begin return crm_relay.usual_principal(claims); end') then
    begin
      ids := array(select crm_relay.named(c.claims::jsonb) from unnest(several) with ordinality as c (claims, place) order by c.place);
      return array(select crm_relay.person(u.id, u.image)
                     from unnest(ids, crm_relay.accesses_now('users', ids)) with ordinality as u (id, image, place) order by u.place);
    exception when others then
      null; -- such as claims that are no jsonb: each by itself, then
    end;
  end if;
  return array(select crm_relay.known(c.claims) from unnest(several) with ordinality as c (claims, place) order by c.place);
end
$$;
ALTER FUNCTION crm_relay.known(several text[]) OWNER TO postgres;
COMMENT ON FUNCTION crm_relay.known(several text[]) IS 'known() of each of several';
CREATE FUNCTION crm_relay.known(claims text) RETURNS jsonb
    LANGUAGE plpgsql STABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
declare
  answer jsonb;
begin
  -- not every text that is JSON is jsonb, such as one with \u0000
  answer := crm_relay.principal(claims::jsonb);
  raise sqlstate 'CR000';
exception
  when sqlstate 'CR000' then
    return answer;
  when others then
    raise warning 'crm_relay.principal(): %', sqlerrm;
    return null;
end
$$;
ALTER FUNCTION crm_relay.known(claims text) OWNER TO postgres;
COMMENT ON FUNCTION crm_relay.known(claims text) IS 'principal() as the relay asks it: null where it raises, also for claims that are no jsonb';
CREATE FUNCTION crm_relay.lookup_now(module text) RETURNS text
    LANGUAGE plpgsql STABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
declare
  watched record;
begin
  if current_user <> 'crm_relay_policy' then
    raise exception 'crm_relay: access_now() and accesses_now() belong to %, they must belong to crm_relay_policy', current_user
      using hint = 'run crm-relay install again';
  end if;
  -- the table itself, and not a view that was put in its place, nor policies or types that would run
  -- their owner's code
  select m.lookup, m.relation, m.lookup is not null and not row_security_active(m.relation)
           and (select c.relkind in ('r', 'p') from pg_class c where c.oid = m.relation)
           and m.lookup_types = array(select a.atttypid from pg_attribute a
                                       where a.attrelid = m.relation and a.attname = any (m.key_columns || m.access_columns)
                                         and a.attnum > 0 order by a.attname) as is_same
    into watched
    from crm_relay.module m
   where m.module = lookup_now.module and m.part_of is null;
  if watched.is_same is distinct from true then
    raise exception 'crm_relay: the key and access columns of module %, table %, are not what they were when it was watched, or cannot be read', module, watched.relation
      using hint = 'watch it again; under row level security: alter role crm_relay_policy bypassrls';
  end if;
  return format(watched.lookup, watched.relation);
end
$$;
ALTER FUNCTION crm_relay.lookup_now(module text) OWNER TO postgres;
COMMENT ON FUNCTION crm_relay.lookup_now(module text) IS 'the query for key and access columns of the record w.id of a module; raises where its table is not as it was watched';
CREATE FUNCTION crm_relay.lookup_of(watched crm_relay.module) RETURNS text
    LANGUAGE sql STABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
  select format('select %s as image from %%s r where %s', replace(columns, '%', '%%'), replace(condition, '%', '%%'))
    from (select crm_relay.readable_columns(watched.relation, watched.key_columns || watched.access_columns),
                 crm_relay.key_condition(watched, 'w.id')) as l (columns, condition)
   where columns is not null and condition is not null
$$;
ALTER FUNCTION crm_relay.lookup_of(watched crm_relay.module) OWNER TO postgres;
COMMENT ON FUNCTION crm_relay.lookup_of(watched crm_relay.module) IS 'what crm_relay.module.lookup should be; null where looking would run somebody''s code';
CREATE FUNCTION crm_relay.may_enter(principal jsonb, room text) RETURNS boolean
    LANGUAGE plpgsql STABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$begin return crm_relay.usual_may_enter(principal, room); end$$;
ALTER FUNCTION crm_relay.may_enter(principal jsonb, room text) OWNER TO postgres;
COMMENT ON FUNCTION crm_relay.may_enter(principal jsonb, room text) IS 'whether somebody may be in a scope room, where they get what may_see_row() grants; may be replaced by the CRM''s owner';
CREATE FUNCTION crm_relay.may_see(principal jsonb, module text, record_id text) RETURNS boolean
    LANGUAGE plpgsql STABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
declare
  image json := crm_relay.access_now(module, record_id);
begin
  return image is not null and coalesce(crm_relay.may_see_row(principal, module, image), false);
end
$$;
ALTER FUNCTION crm_relay.may_see(principal jsonb, module text, record_id text) OWNER TO postgres;
COMMENT ON FUNCTION crm_relay.may_see(principal jsonb, module text, record_id text) IS 'whether somebody may see a record as it is now; false also if there is none';
CREATE FUNCTION crm_relay.may_see_row(principal jsonb, module text, image json) RETURNS boolean
    LANGUAGE plpgsql STABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$begin return crm_relay.usual_may_see_row(principal, module, image); end$$;
ALTER FUNCTION crm_relay.may_see_row(principal jsonb, module text, image json) OWNER TO postgres;
COMMENT ON FUNCTION crm_relay.may_see_row(principal jsonb, module text, image json) IS 'whether somebody may see an image of a record, by its access columns; may be replaced by the CRM''s owner';
CREATE FUNCTION crm_relay.may_subscribe(principal jsonb, room text, replays boolean) RETURNS boolean
    LANGUAGE plpgsql STABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
declare
  name text := split_part(room, ':', 1);
  image json;
begin
  select case when i.image is not null then coalesce(crm_relay.only(crm_relay.readable(i.image), m.access_columns), '{}') end into image
    from crm_relay.module m
   cross join unnest(crm_relay.accesses_now(m.module, array[substr(room, length(name) + 2)])) as i (image)
   where m.module = name and m.part_of is null and not m.narrow;
  return crm_relay.may_subscribe(principal, room, image, replays);
end
$$;
ALTER FUNCTION crm_relay.may_subscribe(principal jsonb, room text, replays boolean) OWNER TO postgres;
COMMENT ON FUNCTION crm_relay.may_subscribe(principal jsonb, room text, replays boolean) IS 'the same of a record that it looks up itself';
CREATE FUNCTION crm_relay.may_subscribe(principal jsonb, room text, image json, replays boolean) RETURNS boolean
    LANGUAGE plpgsql STABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
declare
  name text := split_part(room, ':', 1);
begin
  if principal is null then
    return false;
  end if;
  if name in ('user', 'team', 'broker') then
    return crm_relay.enters(principal, room);
  end if;
  if image is null and replays then
    -- it is told to its end to those who were allowed to see it
    select (select coalesce(json_object_agg(key, value), '{}') from json_each(crm_relay.readable(c.old_image)) where key = any (m.access_columns))
      into image
      from crm_relay.module m join crm_relay.change c on c.module = m.module
     where m.module = name and m.part_of is null and not m.narrow
       and c.record_id = substr(room, length(name) + 2) and c.action = 'deleted'
     order by c.txid desc, c.seq desc limit 1;
  end if;
  return image is not null and crm_relay.sees(principal, name, image);
end
$$;
ALTER FUNCTION crm_relay.may_subscribe(principal jsonb, room text, image json, replays boolean) OWNER TO postgres;
COMMENT ON FUNCTION crm_relay.may_subscribe(principal jsonb, room text, image json, replays boolean) IS 'whether somebody may be in a room: a scope room, or that of a record by its access columns as they are now, null if there is none, or, for replays, as they were when it was deleted';
CREATE FUNCTION crm_relay.named(claims jsonb) RETURNS text
    LANGUAGE plpgsql IMMUTABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
begin
  return coalesce(claims ->> 'id', claims ->> 'sub');
end
$$;
ALTER FUNCTION crm_relay.named(claims jsonb) OWNER TO postgres;
COMMENT ON FUNCTION crm_relay.named(claims jsonb) IS 'the id of whom a token names, by its claims';
CREATE FUNCTION crm_relay.narrowed(images json[], hidden text[], shown text[]) RETURNS json[]
    LANGUAGE plpgsql IMMUTABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
begin
  for place in 1..2 loop
    continue when images[place] is null;
    if hidden <> '{}' then
      images[place] := crm_relay.without(images[place], hidden);
    end if;
    if shown is not null then
      images[place] := crm_relay.only(crm_relay.readable(images[place]), shown);
    end if;
  end loop;
  return images;
end
$$;
ALTER FUNCTION crm_relay.narrowed(images json[], hidden text[], shown text[]) OWNER TO crm_relay_capture;
COMMENT ON FUNCTION crm_relay.narrowed(images json[], hidden text[], shown text[]) IS 'two images without the columns that are hidden and, if given, with none but those that are shown';
CREATE FUNCTION crm_relay."only"(image json, columns text[]) RETURNS json
    LANGUAGE plpgsql IMMUTABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
declare
  present integer;
  those json;
begin
  select count(*), json_object_agg(key, value) into present, those from json_each(image) where key = any (columns);
  if present < cardinality(columns) then
    raise exception 'crm_relay: not all of the columns % are there any more', columns
      using hint = 'watch the table again';
  end if;
  return those;
end
$$;
ALTER FUNCTION crm_relay."only"(image json, columns text[]) OWNER TO postgres;
COMMENT ON FUNCTION crm_relay."only"(image json, columns text[]) IS 'these columns of an image, which must hold all of them';
CREATE FUNCTION crm_relay.origin_of(module text, image json, OUT named boolean, OUT origin json) RETURNS record
    LANGUAGE plpgsql STABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
declare
  of_module text;
  of_id text;
begin
  select m.access_of, origin_of.image ->> m.access_link into of_module, of_id
    from crm_relay.module m where m.module = origin_of.module and m.access_of is not null
     and exists (select from crm_relay.module o where o.module = m.access_of);
  named := of_id is not null;
  origin := case when named then crm_relay.access_now(of_module, of_id) end;
end
$$;
ALTER FUNCTION crm_relay.origin_of(module text, image json, OUT named boolean, OUT origin json) OWNER TO postgres;
COMMENT ON FUNCTION crm_relay.origin_of(module text, image json, OUT named boolean, OUT origin json) IS 'the record on which an image''s access depends, too, such as the lead of an appointment: whether it names one, and that one as it is now';
CREATE FUNCTION crm_relay.owner_of(image json) RETURNS text
    LANGUAGE plpgsql IMMUTABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
begin
  return coalesce(image ->> 'owner_id', image ->> 'listing_agent_id', image ->> 'agent_id', image ->> 'user_id');
end
$$;
ALTER FUNCTION crm_relay.owner_of(image json) OWNER TO postgres;
COMMENT ON FUNCTION crm_relay.owner_of(image json) IS 'the owner of a record by its image: the first of these columns that is not null';
CREATE FUNCTION crm_relay.owners_apart(OUT relation regclass, OUT owner name, OUT others text) RETURNS SETOF record
    LANGUAGE sql STABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
  -- The planner calls functions that it finds in a table's indexes, constraints and statistics: those are
  -- the owner's, and run as the role that looks a record up, which may read the other tables, too.
  select c.oid::regclass, r.rolname, string_agg(o.oid::regclass::text, ', ' order by o.oid::regclass::text)
    from crm_relay.module m
    join pg_class c on c.oid = m.relation
    join pg_roles r on r.oid = c.relowner
    join crm_relay.module n on n.relation <> m.relation
    join pg_class o on o.oid = n.relation
   where not has_table_privilege(c.relowner, o.oid, 'select')
      or o.relrowsecurity and not pg_has_role(c.relowner, o.relowner, 'usage')
   group by c.oid, r.rolname
$$;
ALTER FUNCTION crm_relay.owners_apart(OUT relation regclass, OUT owner name, OUT others text) OWNER TO postgres;
COMMENT ON FUNCTION crm_relay.owners_apart(OUT relation regclass, OUT owner name, OUT others text) IS 'watched tables whose owner may not read all that is watched: by a function in an index of hers she can, with the rights of the roles that look records up';
CREATE FUNCTION crm_relay.person(id text, image json) RETURNS jsonb
    LANGUAGE plpgsql IMMUTABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
begin
  if image is null or image ->> 'is_active' = 'false' then
    return null;
  end if;
  -- what the token says of these is not believed: the table knows
  return jsonb_build_object(
    'user', id,
    'team', image ->> 'team_id',
    'broker', image ->> 'broker_id',
    'role', case json_typeof(image -> 'role') when 'array' then image -> 'role' ->> 0 else image ->> 'role' end);
end
$$;
ALTER FUNCTION crm_relay.person(id text, image json) OWNER TO postgres;
COMMENT ON FUNCTION crm_relay.person(id text, image json) IS 'user, team, broker and role of whoever has this id, by the image of their row in the table of users; null if there is none or they are not active';
CREATE FUNCTION crm_relay.placed(module text, image json) RETURNS text[]
    LANGUAGE plpgsql STABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
declare
  answer text[];
begin
  answer := crm_relay.rooms_of(module, crm_relay.readable(image));
  raise sqlstate 'CR000';
exception
  when sqlstate 'CR000' then
    return coalesce(answer, '{}');
  when others then
    return null;
end
$$;
ALTER FUNCTION crm_relay.placed(module text, image json) OWNER TO postgres;
COMMENT ON FUNCTION crm_relay.placed(module text, image json) IS 'rooms_of() as the relay asks it; null where it raises, so that one row that it cannot judge does not stop all others';
CREATE FUNCTION crm_relay.principal(claims jsonb) RETURNS jsonb
    LANGUAGE plpgsql STABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$begin return crm_relay.usual_principal(claims); end$$;
ALTER FUNCTION crm_relay.principal(claims jsonb) OWNER TO postgres;
COMMENT ON FUNCTION crm_relay.principal(claims jsonb) IS 'who a token is, by its claims; null: nobody; may be replaced by the CRM''s owner';
CREATE FUNCTION crm_relay.prune(needed xid8 DEFAULT pg_snapshot_xmin(pg_current_snapshot())) RETURNS SETOF text
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET lock_timeout TO '200ms'
    AS $_$
declare
  settings crm_relay.setting;
  partition regclass;
  greatest_txid xid8;
  newest timestamptz;
  fresh boolean;
begin
  if current_setting('transaction_isolation') <> 'read committed' then
    raise exception 'crm_relay: prune() in a transaction of isolation level %, which does not see what others committed',
      current_setting('transaction_isolation') using hint = 'call it in a transaction of isolation level read committed';
  end if;
  -- one at a time, whoever calls: two would only wait for each other
  if not pg_try_advisory_xact_lock('crm_relay.setting'::regclass::oid::int, 1) then
    return;
  end if;
  select * into settings from crm_relay.setting;
  -- nothing of a transaction that may still be open, or that the caller still needs
  needed := least(needed, pg_snapshot_xmin(pg_current_snapshot()));
  for slot in 0..9 loop
    continue when slot = crm_relay.slot(clock_timestamp(), settings.retention);
    partition := format('crm_relay.change_%s', slot)::regclass;
    execute format('select txid, changed_at from %s order by txid desc limit 1', partition)
      into greatest_txid, newest;
    continue when greatest_txid is null
      or greatest_txid >= needed
      or newest > clock_timestamp() - settings.retention;
    execute format('select exists (select from %s where changed_at > $1)', partition)
      into fresh using clock_timestamp() - settings.retention;
    continue when fresh;
    begin
      execute format('lock table %s in access exclusive mode', partition);
      -- whoever was about to write here when we looked was open then, so its txid tells
      execute format('select exists (select from %s where txid >= $1)', partition)
        into fresh using needed;
      if not fresh then
        update crm_relay.setting
           set pruned_txid = greatest(pruned_txid, greatest_txid), pruned_at = clock_timestamp();
        execute format('truncate table %s', partition);
        return next partition::text;
      end if;
      -- who reads the journal waits for that lock until this transaction ends
      exit;
    exception when lock_not_available then
      null; -- somebody reads it: next time
    end;
  end loop;
end
$_$;
ALTER FUNCTION crm_relay.prune(needed xid8) OWNER TO crm_relay_prune;
COMMENT ON FUNCTION crm_relay.prune(needed xid8) IS 'truncates a slot whose every row is older than the retention and below the transaction that anybody still needs; returns its name. Another one that is due is the next call''s';
CREATE FUNCTION crm_relay.readable(image json) RETURNS json
    LANGUAGE plpgsql IMMUTABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
begin
  if position(E'\\u0000' in image::text) > 0 then
    -- not where the backslash is itself escaped
    return regexp_replace(image::text, E'(?<!\\\\)((?:\\\\\\\\)*)\\\\u0000', E'\\1\\\\ufffd\\\\u2400\\\\ufffd', 'g')::json;
  end if;
  return image;
end
$$;
ALTER FUNCTION crm_relay.readable(image json) OWNER TO postgres;
COMMENT ON FUNCTION crm_relay.readable(image json) IS 'an image that can be looked into: json may hold \u0000, but every operator on it raises then; here it stands as three other characters';
CREATE FUNCTION crm_relay.readable_columns(relation regclass, columns text[]) RETURNS text
    LANGUAGE sql STABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
  select 'json_build_object(' || string_agg(
           format('%L, ', k.name) || case
             when t.typtype = 'e' then format('enum_out(r.%I::%s)::text', k.name, format_type(t.oid, -1))
             else format('r.%I::%s', k.name, format_type(t.oid, -1))
           end, ', ') || ')'
    from unnest(columns) k (name)
    left join pg_attribute a on a.attrelid = relation and a.attname = k.name and not a.attisdropped
    left join lateral crm_relay.base_of(a.atttypid) t on true
   having bool_and(t.oid is not null)
$$;
ALTER FUNCTION crm_relay.readable_columns(relation regclass, columns text[]) OWNER TO postgres;
COMMENT ON FUNCTION crm_relay.readable_columns(relation regclass, columns text[]) IS 'the expression that renders these columns of a row r without running anybody''s code; null where that cannot be';
CREATE FUNCTION crm_relay.recent_rows(per_slot integer) RETURNS SETOF crm_relay.change
    LANGUAGE sql STABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
  -- each by the index on txid, so that a large journal costs no more than a small one
  select c.* from generate_series(0, 9) as s (slot)
   cross join lateral (select r.* from crm_relay.change r where r.slot = s.slot order by r.txid desc limit per_slot) c
$$;
ALTER FUNCTION crm_relay.recent_rows(per_slot integer) OWNER TO postgres;
COMMENT ON FUNCTION crm_relay.recent_rows(per_slot integer) IS 'the newest rows of each slot of the journal, so many at most';
CREATE FUNCTION crm_relay.record_id(image json, key_columns text[]) RETURNS text
    LANGUAGE plpgsql IMMUTABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
declare
  id text;
begin
  if cardinality(key_columns) = 1 then
    id := coalesce(image ->> key_columns[1], case when image -> key_columns[1] is not null then '' end);
  elsif not exists (select from unnest(key_columns) k where image -> k is null) then
    id := array_to_json(array(
      select image ->> key_column
        from unnest(key_columns) with ordinality as keys (key_column, place)
       order by place));
  end if;
  return case when octet_length(id) <= 2000 then id end; -- more does not fit into an index
end
$$;
ALTER FUNCTION crm_relay.record_id(image json, key_columns text[]) OWNER TO crm_relay_capture;
COMMENT ON FUNCTION crm_relay.record_id(image json, key_columns text[]) IS 'a record''s id from its image: the key''s text; of several columns a JSON array of their texts; null if it has none that can be used, or a column of it has another name by now';
CREATE FUNCTION crm_relay.record_now(module text, id text) RETURNS json
    LANGUAGE plpgsql STABLE SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET "TimeZone" TO 'UTC'
    SET "DateStyle" TO 'ISO, MDY'
    SET "IntervalStyle" TO 'postgres'
    SET extra_float_digits TO '1'
    SET bytea_output TO 'hex'
    SET lc_monetary TO 'C'
    SET quote_all_identifiers TO 'off'
    SET row_security TO 'on'
    AS $$
declare
  watched crm_relay.module;
  image json;
begin
  if current_user <> 'crm_relay_snapshot' then
    raise exception 'crm_relay: record_now() belongs to %, it must belong to crm_relay_snapshot', current_user
      using hint = 'run crm-relay install again';
  end if;
  select * into strict watched from crm_relay.module m where m.module = record_now.module and m.part_of is null;
  -- Reading a view in the table's place, or a table under policies, would run their owner's code with
  -- the rights of this function's owner.
  if not exists (select from pg_class c, pg_roles r
                  where c.oid = watched.relation and c.relkind in ('r', 'p')
                    and r.rolname = current_user and (r.rolbypassrls or not c.relrowsecurity)) then
    raise exception 'crm_relay: module % cannot be read', watched.module
      using hint = 'it has no table any more, or row level security: alter role crm_relay_snapshot bypassrls';
  end if;
  if crm_relay.key_condition(watched) is null then
    raise exception 'crm_relay: the key of module % has a type of somebody''s own, or a column that is not there any more', watched.module;
  end if;
  begin
    execute format('select crm_relay.image(r) from %s r where %s', watched.relation, crm_relay.key_condition(watched))
       into image using id;
    raise sqlstate 'CR000';
  exception
    when sqlstate 'CR000' then
      null; -- what the owner's code did is undone, see image()
    when data_exception then
      return null; -- an id that does not cast is no record's
  end;
  if image is not null and cardinality(watched.hidden_columns) > 0 then
    return crm_relay.without(image, watched.hidden_columns);
  end if;
  return image;
end
$$;
ALTER FUNCTION crm_relay.record_now(module text, id text) OWNER TO crm_relay_snapshot;
COMMENT ON FUNCTION crm_relay.record_now(module text, id text) IS 'a record as it is, without its hidden columns; null if there is none';
CREATE FUNCTION crm_relay.records_of(part crm_relay.module, ids text[], OUT record_ids text[], OUT record_images json[]) RETURNS record
    LANGUAGE plpgsql STABLE SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET "TimeZone" TO 'UTC'
    SET "DateStyle" TO 'ISO, MDY'
    SET "IntervalStyle" TO 'postgres'
    SET extra_float_digits TO '1'
    SET bytea_output TO 'hex'
    SET lc_monetary TO 'C'
    SET quote_all_identifiers TO 'off'
    SET lock_timeout TO '10ms'
    SET row_security TO 'on'
    AS $_$
declare
  parent crm_relay.module;
  columns text;
  link text;
begin
  if current_user <> 'crm_relay_part' then
    raise exception 'crm_relay: records_of() belongs to %, it must belong to crm_relay_part', current_user
      using hint = 'run crm-relay install again';
  end if;
  select * into strict parent from crm_relay.module m where m.module = part.part_of;
  -- the table itself, whatever its name is by now, and not a view that was put in its place
  if not exists (select from pg_class c where c.oid = parent.relation and c.relkind in ('r', 'p')) then
    raise exception 'crm_relay: module % has no table any more', parent.module;
  end if;
  columns := crm_relay.readable_columns(parent.relation, parent.key_columns || parent.access_columns);
  select crm_relay.equals(a.attname, a.atttypid, '$1', true) into link
    from pg_attribute a
   where a.attrelid = parent.relation and a.attname = part.part_link and not a.attisdropped;
  if columns is null or link is null then
    raise exception 'crm_relay: the key, access and link columns of % are not what they were when % was watched', parent.relation, part.relation;
  end if;
  execute format('select array_agg(crm_relay.record_id(image, $2)), array_agg(image)
                    from (select %s as image from %s r where %s) parents', columns, parent.relation, link)
     into record_ids, record_images using ids, parent.key_columns;
end
$_$;
ALTER FUNCTION crm_relay.records_of(part crm_relay.module, ids text[], OUT record_ids text[], OUT record_images json[]) OWNER TO crm_relay_part;
COMMENT ON FUNCTION crm_relay.records_of(part crm_relay.module, ids text[], OUT record_ids text[], OUT record_images json[]) IS 'the records that rows of a part belong to; runs as a role that may do only this, because looking can run the table owner''s code, too (policies, views)';
CREATE FUNCTION crm_relay.redact(module text) RETURNS bigint
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
declare
  hidden text[] := (select m.hidden_columns from crm_relay.module m where m.module = redact.module);
  rewritten bigint;
begin
  update crm_relay.change c
     set old_image = crm_relay.stripped(c.old_image, hidden), new_image = crm_relay.stripped(c.new_image, hidden)
   where coalesce(c.part, c.module) = redact.module
     and exists (select from json_object_keys(crm_relay.readable(c.old_image)) k where k = any (hidden)
                 union all
                 select from json_object_keys(crm_relay.readable(c.new_image)) k where k = any (hidden));
  get diagnostics rewritten = row_count;
  if rewritten > 0 then
    -- relays remember what they told, and would tell it again to a cursor of before
    update crm_relay.setting set install_id = gen_random_uuid();
  end if;
  return rewritten;
end
$$;
ALTER FUNCTION crm_relay.redact(module text) OWNER TO postgres;
COMMENT ON FUNCTION crm_relay.redact(module text) IS 'takes the columns of a module that are hidden now out of journal rows that were written before, and makes history another; returns the number of rows';
CREATE FUNCTION crm_relay.refresh_module() RETURNS trigger
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
begin
  -- whoever changes them meanwhile comes before this, or after
  perform from crm_relay.setting for share;
  select o.* into new.marks, new.large_null, new.others_null, new.large_columns, new.large_nulls, new.names_size, new.doorbell, new.slot_seconds
    from crm_relay.goes_by(new) o;
  return new;
end
$$;
ALTER FUNCTION crm_relay.refresh_module() OWNER TO postgres;
COMMENT ON FUNCTION crm_relay.refresh_module() IS 'before a row of the registry is written: what capture() goes by is made anew';
CREATE FUNCTION crm_relay.refresh_modules() RETURNS trigger
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
begin
  update crm_relay.module m set module = m.module;
  return null;
end
$$;
ALTER FUNCTION crm_relay.refresh_modules() OWNER TO postgres;
COMMENT ON FUNCTION crm_relay.refresh_modules() IS 'after an update of the settings: the registry goes by them, too';
CREATE FUNCTION crm_relay.renew() RETURNS boolean
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
begin
  -- such rows would come to be read as new when the server gets to their transactions
  if not exists (select from crm_relay.change c where c.txid >= pg_snapshot_xmax(pg_current_snapshot()) and c.txid <> coalesce(pg_current_xact_id_if_assigned(), '0'))
     and not exists (select from crm_relay.setting s where s.pruned_txid >= pg_snapshot_xmax(pg_current_snapshot())) then
    return false;
  end if;
  for slot in 0..9 loop
    execute format('truncate table crm_relay.change_%s', slot);
  end loop;
  update crm_relay.setting set install_id = gen_random_uuid(), pruned_txid = '0', pruned_at = clock_timestamp();
  return true;
end
$$;
ALTER FUNCTION crm_relay.renew() OWNER TO crm_relay_prune;
COMMENT ON FUNCTION crm_relay.renew() IS 'empties a journal that holds, or held, transactions which this server has not come to, as after the restore of a dump, and makes its history another; tells whether it did';
CREATE FUNCTION crm_relay.ring(module text, doorbell text) RETURNS void
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
begin
  -- A relay that sleeps holds this lock, and one that wants to sleep waits for it: then there is no
  -- share of it, and it must be rung for. With a share there is somebody who looks anyway, or nobody at
  -- all; it is kept until the transaction ends, so that nobody falls asleep before.
  if doorbell = 'adaptive' and pg_try_advisory_xact_lock_shared('crm_relay.setting'::regclass::oid::int, 2) then
    return;
  end if;
  -- a full queue of notifications would abort the writer's commit; the relay's safety poll finds
  -- what no bell announced
  if doorbell <> 'never' and pg_notification_queue_usage() < 0.5 then
    -- the same for all rows of a transaction, so that Postgres folds them into one
    perform pg_notify('crm_relay', '{"txid":"' || pg_current_xact_id() || '","module":"' || module || '"}');
  end if;
end
$$;
ALTER FUNCTION crm_relay.ring(module text, doorbell text) OWNER TO crm_relay_capture;
COMMENT ON FUNCTION crm_relay.ring(module text, doorbell text) IS 'the doorbell: a hint to look at the journal, where nobody looks anyway; everybody may hear and forge it, so it names no record and is never believed';
CREATE FUNCTION crm_relay.rooms_of(module text, image json) RETURNS text[]
    LANGUAGE plpgsql STABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$begin return crm_relay.usual_rooms_of(module, image); end$$;
ALTER FUNCTION crm_relay.rooms_of(module text, image json) OWNER TO postgres;
COMMENT ON FUNCTION crm_relay.rooms_of(module text, image json) IS 'the scope rooms that an image of a record is in, by its access columns; may be replaced by the CRM''s owner';
CREATE FUNCTION crm_relay.sees(principal jsonb, module text, image json) RETURNS boolean
    LANGUAGE plpgsql STABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
declare
  answer boolean;
begin
  answer := crm_relay.may_see_row(principal, module, crm_relay.readable(image));
  raise sqlstate 'CR000';
exception
  when sqlstate 'CR000' then
    return coalesce(answer, false);
  when others then
    raise warning 'crm_relay.may_see_row(): %', sqlerrm;
    return null;
end
$$;
ALTER FUNCTION crm_relay.sees(principal jsonb, module text, image json) OWNER TO postgres;
COMMENT ON FUNCTION crm_relay.sees(principal jsonb, module text, image json) IS 'may_see_row() as the relay asks it: null where it raises';
CREATE FUNCTION crm_relay.slot(at timestamp with time zone, retention interval) RETURNS smallint
    LANGUAGE sql STABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
  select (floor(date_part('epoch', at) / crm_relay.slot_seconds(retention))::bigint % 10)::smallint
$$;
ALTER FUNCTION crm_relay.slot(at timestamp with time zone, retention interval) OWNER TO postgres;
COMMENT ON FUNCTION crm_relay.slot(at timestamp with time zone, retention interval) IS 'the slot of the ring that a moment falls in';
CREATE FUNCTION crm_relay.slot_seconds(retention interval) RETURNS double precision
    LANGUAGE sql STABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
  select date_part('epoch', retention) / 6
$$;
ALTER FUNCTION crm_relay.slot_seconds(retention interval) OWNER TO postgres;
COMMENT ON FUNCTION crm_relay.slot_seconds(retention interval) IS 'how many seconds fall into one slot of the ring: six slots hold the retention, so at least two of the ten are always spare';
CREATE FUNCTION crm_relay.stripped(image json, columns text[]) RETURNS json
    LANGUAGE plpgsql IMMUTABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
begin
  return crm_relay.without(image, array(
    select key from json_object_keys(crm_relay.readable(image)) as keys (key) where key = any (columns)));
exception when others then
  return json '{}'; -- better nothing than what is to be hidden
end
$$;
ALTER FUNCTION crm_relay.stripped(image json, columns text[]) OWNER TO postgres;
COMMENT ON FUNCTION crm_relay.stripped(image json, columns text[]) IS 'an image without those of these columns that it has';
CREATE FUNCTION crm_relay.unwatch(target regclass) RETURNS text
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
declare
  watched crm_relay.module;
  parent crm_relay.module;
  leaf regclass;
  namespace regnamespace;
begin
  select m.* into watched from crm_relay.module m where m.relation = target;
  if not found then
    raise exception 'crm_relay: % is not watched', target
      using hint = 'select relation, module from crm_relay.module lists what is';
  end if;
  if exists (select from crm_relay.module m where m.part_of = watched.module) then
    raise exception 'crm_relay: % has parts that are watched: %', target,
      (select string_agg(m.relation::text, ', ') from crm_relay.module m where m.part_of = watched.module)
      using hint = 'unwatch those first';
  end if;
  -- of a table that was dropped nothing is left but the registry's row
  if exists (select from pg_class c where c.oid = target) then
    execute format('drop trigger if exists "!crm_relay" on %s', target);
    for leaf in select relid from pg_partition_tree(target) union select target loop
      execute format('drop trigger if exists "!crm_relay_truncate" on %s', leaf);
    end loop;
    execute format('revoke all on %s from crm_relay_snapshot, crm_relay_policy', target);
    execute format('revoke select (%s) on %s from crm_relay_policy',
      (select string_agg(quote_ident(attname), ', ') from pg_attribute
        where attrelid = target and attnum > 0 and not attisdropped), target);
    select relnamespace::regnamespace into namespace from pg_class where oid = target;
    if not exists (select from crm_relay.module m join pg_class c on c.oid = m.relation
                    where c.relnamespace = namespace and m.relation <> target) then
      execute format('revoke usage on schema %s from crm_relay_snapshot, crm_relay_policy', namespace);
    end if;
  end if;
  select m.* into parent from crm_relay.module m join pg_class c on c.oid = m.relation where m.module = watched.part_of;
  delete from crm_relay.module m where m.relation = target;
  if parent.relation is null then
    return watched.module;
  end if;
  -- what no other part needs
  select relnamespace::regnamespace into namespace from pg_class where oid = parent.relation;
  if not exists (select from crm_relay.module m where m.part_of = parent.module) then
    execute format('revoke select (%s) on %s from crm_relay_part',
      (select string_agg(quote_ident(attname), ', ') from pg_attribute
        where attrelid = parent.relation and attnum > 0 and not attisdropped), parent.relation);
  end if;
  if not exists (select from crm_relay.module m join crm_relay.module p on p.module = m.part_of
                   join pg_class c on c.oid = p.relation where c.relnamespace = namespace) then
    execute format('revoke usage on schema %s from crm_relay_part', namespace);
  end if;
  return watched.module;
end
$$;
ALTER FUNCTION crm_relay.unwatch(target regclass) OWNER TO postgres;
COMMENT ON FUNCTION crm_relay.unwatch(target regclass) IS 'takes the triggers and the registry row of a table away; its changes so far stay in the journal';
CREATE PROCEDURE crm_relay.unwatch_all()
    LANGUAGE plpgsql
    AS $$
declare
  target regclass;
begin
  -- a procedure that commits cannot pin this by itself
  perform pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', false);
  loop
    -- parts before the modules that they belong to
    select m.relation into target from crm_relay.module m order by m.part_of is null, m.module limit 1;
    exit when target is null;
    call crm_relay.in_short_transaction(pg_catalog.format('select crm_relay.unwatch(%L)', target), target::text);
    raise notice '%: no longer watched', target;
  end loop;
end
$$;
ALTER PROCEDURE crm_relay.unwatch_all() OWNER TO postgres;
COMMENT ON PROCEDURE crm_relay.unwatch_all() IS 'unwatches every table, each in a short transaction of its own';
CREATE FUNCTION crm_relay.usual_may_enter(principal jsonb, room text) RETURNS boolean
    LANGUAGE plpgsql STABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
declare
  scope text := split_part(room, ':', 1);
  id text := split_part(substr(room, position(':' in room) + 1), '/', 1);
begin
  return coalesce(principal ->> 'user' is not null and (
           principal ->> 'role' = 'system_admin'
           or scope = 'user' and id = principal ->> 'user'
           or scope = 'team' and id = principal ->> 'team'
           or scope = 'broker' and id = principal ->> 'broker' and principal ->> 'role' = 'broker'), false);
end
$$;
ALTER FUNCTION crm_relay.usual_may_enter(principal jsonb, room text) OWNER TO postgres;
COMMENT ON FUNCTION crm_relay.usual_may_enter(principal jsonb, room text) IS 'whether somebody may be in a scope room: their own, their team''s, as a broker their brokerage''s; admins in any';
CREATE FUNCTION crm_relay.usual_may_see_row(principal jsonb, module text, image json) RETURNS boolean
    LANGUAGE plpgsql STABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
declare
  me text := principal ->> 'user';
  owner text := crm_relay.owner_of(image);
  brokerage text;
  depends record;
begin
  if me is null or image is null then
    return false;
  end if;
  if principal ->> 'role' = 'system_admin' or owner = me then
    return true;
  end if;
  if crm_relay.is_private(image) then
    return false;
  end if;
  depends := crm_relay.origin_of(module, image);
  -- one that cannot be found may have been private
  if depends.named and (depends.origin is null or crm_relay.is_private(depends.origin)) then
    return coalesce(crm_relay.owner_of(depends.origin) = me, false);
  end if;
  case principal ->> 'role'
    when 'broker' then
      brokerage := case when owner is null then image ->> 'broker_id'
                        else crm_relay.access_now('users', owner) ->> 'broker_id' end;
      return coalesce(brokerage = principal ->> 'broker', false);
    when 'team_owner', 'agent' then
      return coalesce(image ->> 'team_id' = principal ->> 'team', false);
    else
      return false;
  end case;
end
$$;
ALTER FUNCTION crm_relay.usual_may_see_row(principal jsonb, module text, image json) OWNER TO postgres;
COMMENT ON FUNCTION crm_relay.usual_may_see_row(principal jsonb, module text, image json) IS 'whether somebody may see an image of a record: admins all, owners their own, others what is not private of their brokerage or team';
CREATE FUNCTION crm_relay.usual_principal(claims jsonb) RETURNS jsonb
    LANGUAGE plpgsql STABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
declare
  id text := crm_relay.named(claims);
begin
  if id is null then
    return null;
  end if;
  -- without a table of users nobody is known to belong to anybody
  if not exists (select from crm_relay.module m where m.module = 'users') then
    return jsonb_build_object('user', id);
  end if;
  return crm_relay.person(id, crm_relay.access_now('users', id));
end
$$;
ALTER FUNCTION crm_relay.usual_principal(claims jsonb) OWNER TO postgres;
COMMENT ON FUNCTION crm_relay.usual_principal(claims jsonb) IS 'who a token is: user, team, broker and role as the table of users has them; null for who is not known or not active';
CREATE FUNCTION crm_relay.usual_rooms_of(module text, image json) RETURNS text[]
    LANGUAGE plpgsql STABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
declare
  owner text := crm_relay.owner_of(image);
  rooms text[] := array['user:' || owner];
  brokerage text := image ->> 'broker_id';
  depends record;
begin
  if not crm_relay.is_private(image) then
    depends := crm_relay.origin_of(module, image);
    if not depends.named or not coalesce(crm_relay.is_private(depends.origin), true) then
      if owner is not null and exists (select from crm_relay.module m where m.module = 'users') then
        brokerage := crm_relay.access_now('users', owner) ->> 'broker_id';
      end if;
      rooms := rooms || array['team:' || (image ->> 'team_id'), 'broker:' || brokerage];
    end if;
  end if;
  return array_remove(rooms, null);
end
$$;
ALTER FUNCTION crm_relay.usual_rooms_of(module text, image json) OWNER TO postgres;
COMMENT ON FUNCTION crm_relay.usual_rooms_of(module text, image json) IS 'the scope rooms that an image of a record is in: its owner''s, and unless it is private its team''s and its owner''s brokerage''s';
CREATE FUNCTION crm_relay.verify() RETURNS SETOF crm_relay.finding
    LANGUAGE plpgsql STABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET lock_timeout TO '2s'
    AS $$
declare
  subject text;
begin
  foreach subject in array array['tables', 'triggers', 'columns', 'hidden', 'functions', 'policy', 'journal', 'sessions', 'settings'] loop
    begin
      return query execute format('select * from crm_relay.verify_%s()', subject);
    exception when others then
      return next ('unchecked', 'wrong', subject, format('%s could not be looked at: %s', subject, sqlerrm),
        'what is wrong there is not told here',
        case when sqlstate = '42501' then format('grant crm_relay_audit to %I; -- or ask as a superuser', current_user)
             else format('select * from crm_relay.verify_%s(); -- again; after a lock timeout once who holds it is gone (pg_locks, pg_stat_activity)', subject) end)::crm_relay.finding;
    end;
  end loop;
end
$$;
ALTER FUNCTION crm_relay.verify() OWNER TO postgres;
COMMENT ON FUNCTION crm_relay.verify() IS 'what is wrong with the relay''s schema and its surroundings, why it matters and what mends it: one row each, none in health but notes; never raises';
CREATE FUNCTION crm_relay.verify_columns() RETURNS SETOF crm_relay.finding
    LANGUAGE sql STABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
  with watched as (
    select m as registered, m.*, p.relation as parent, columns.names, known.names as told,
           array(select c from unnest(m.key_columns) c where c <> all (columns.names)) as keys_gone,
           array(select c from unnest(m.access_columns) c where c <> all (columns.names)) as access_gone,
           array(select c from unnest(m.hidden_columns) c where c <> all (columns.names)) as hidden_gone,
           array(select c from unnest(m.quiet_columns || m.marks) c where c <> all (columns.names || m.key_columns)) as others_gone,
           p.relation is not null and not exists (
             select from pg_attribute a where a.attrelid = p.relation and a.attname = m.part_link and not a.attisdropped) as link_gone
      from crm_relay.module m
      join pg_class c on c.oid = m.relation
      left join crm_relay.module p on p.module = m.part_of and exists (select from pg_class t where t.oid = p.relation)
     cross join lateral (
       select array_agg(a.attname::text order by a.attnum) from pg_attribute a
        where a.attrelid = m.relation and a.attnum > 0 and not a.attisdropped) as columns (names)
     -- what the journal has seen of it under the names of then: what is not among them is new, or has a new name
      left join lateral (
       select array(select distinct k from crm_relay.recent_rows(50) r
                     cross join lateral json_object_keys(crm_relay.readable(coalesce(r.new_image, r.old_image))) k
                     where coalesce(r.part, r.module) = m.module)
        where exists (select from unnest(m.access_columns || m.hidden_columns) c where c <> all (columns.names))) as known (names) on true
  ), gone as (
    select w.*, keys_gone || access_gone || hidden_gone || others_gone as names_gone,
           case when coalesce(told, '{}') = '{}' then array['<its name now>']
                else array(select c from unnest(w.names) c where c <> all (told || w.hidden_columns)) end as renamed
      from watched w
  )
  select 'column_gone', case when names_gone = others_gone then 'note' else 'wrong' end, g.relation::text,
         format('%s was watched with column%s %s, which it no longer has', g.relation,
                case when cardinality(names_gone) > 1 then 's' else '' end, array_to_string(names_gone, ', ')),
         case when names_gone = others_gone then 'changes are told, but not as well: no actor, or an event for what should be quiet'
              else 'what they may have hidden must not get out, so that nothing of its rows is told but "fetch anew"' end,
         case when access_gone || hidden_gone = '{}' and not g.chosen && '{key_columns,quiet_columns}' then crm_relay.watch_command(g.relation)
              else format('select crm_relay.watch(%s);', concat_ws(', ', quote_literal(g.relation),
                'key_columns => ' || quote_literal(case when 'key_columns' = any (g.chosen) and keys_gone <> '{}' then (
                  select array_agg(a.attname) from pg_index i join pg_attribute a on a.attrelid = i.indrelid and a.attnum = any (i.indkey::int2[])
                   where i.indrelid = g.relation and i.indisprimary) end),
                'hidden_columns => ' || quote_literal(case when hidden_gone <> '{}' then
                  array(select c from unnest(g.hidden_columns) c where c <> all (hidden_gone)) || renamed end),
                'access_columns => ' || quote_literal(case when access_gone <> '{}' then
                  array(select c from unnest(g.access_columns) c where c <> all (access_gone))
                    || case when hidden_gone = '{}' then renamed else array['<its name now>'] end end),
                'quiet_columns => ' || quote_literal(case when 'quiet_columns' = any (g.chosen) then
                  array(select c from unnest(g.quiet_columns) c where c = any (g.names)) end))) end
    from gone g
   where names_gone <> '{}'
  union all
  select 'column_gone', 'wrong', g.parent::text,
         format('%s has no column %s, which named the rows of %s', g.parent, g.part_link, g.relation),
         'changes of the part find no record: the record''s rooms are told to fetch anew at each',
         format('select crm_relay.watch(%L, part_link => %L);', g.relation, coalesce((
           select a.attname from pg_constraint k join pg_attribute a on a.attrelid = k.conrelid and a.attnum = k.conkey[1]
            where k.conrelid = g.parent and k.confrelid = g.relation and k.contype = 'f' and cardinality(k.conkey) = 1
            order by k.oid limit 1), '<its name now>'))
    from gone g
   where g.link_gone
  union all
  select 'column_retyped', 'wrong', g.relation::text,
         format('a key or access column of %s has another type than when it was watched', g.relation),
         'nobody can be let in by what its rows say today',
         crm_relay.watch_command(g.relation)
    from gone g
   where names_gone = '{}' and g.lookup is not null
     and g.lookup_types is distinct from crm_relay.column_types(g.relation, g.key_columns || g.access_columns)
  union all
  select 'column_open', 'wrong', g.relation::text,
         format('%s has got columns since it was watched that are named like secrets: %s', g.relation, array_to_string(secret.names, ', ')),
         'they are in the journal and in events',
         format('select crm_relay.watch(%L, hidden_columns => %L);', g.relation, g.hidden_columns || secret.names)
    from gone g
   cross join lateral (
     select array(select c from unnest(g.names) c
                   where crm_relay.is_secret(c) and c <> all (g.hidden_columns || g.key_columns || g.access_columns))) as secret (names)
   where not g.narrow and secret.names <> '{}' and 'hidden_columns' <> all (g.chosen)
  union all
  select 'column_new', 'note', g.relation::text,
         format('%s has other columns than when it was watched, or the registry other settings than there are', g.relation),
         'changes are told, but not as well: no actor, or large columns whole',
         crm_relay.watch_command(g.relation)
    from gone g
   cross join lateral crm_relay.goes_by(g.registered) o
   where names_gone = '{}'
     and ((o.marks, o.large_null, o.doorbell, o.slot_seconds) is distinct from (g.marks, g.large_null, g.doorbell, g.slot_seconds)
          or g.large_null is not null and o.others_null is distinct from g.others_null)
$$;
ALTER FUNCTION crm_relay.verify_columns() OWNER TO postgres;
COMMENT ON FUNCTION crm_relay.verify_columns() IS 'columns that were renamed, dropped, retyped, came later and should be hidden, or are not made use of';
CREATE FUNCTION crm_relay.verify_functions() RETURNS SETOF crm_relay.finding
    LANGUAGE sql STABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
  with known as (
    select i.signature, i.fingerprint, i.owner, p.oid, p.proowner::regrole::text as owner_now, p.prosecdef, o.rolsuper,
           -- a procedure that commits cannot pin it
           p.prokind = 'p' or coalesce('search_path=pg_catalog, pg_temp' = any (p.proconfig), false) as is_pinned
      from crm_relay.installed i
      left join pg_proc p on p.oid = to_regprocedure(i.signature)
      left join pg_roles o on o.oid = p.proowner
  ), job as (
    select j.name, r.oid, r.rolname is null as is_gone, r.rolcanlogin, r.rolsuper, r.rolcreaterole, r.rolcreatedb, r.rolreplication,
           array(select g.rolname::text from pg_auth_members a join pg_roles g on g.oid = a.roleid where a.member = r.oid
                    and not (j.name = 'crm_relay_verify' and g.rolname = 'crm_relay_serve') order by 1) as member_of
      from unnest(array['crm_relay_image', 'crm_relay_part', 'crm_relay_snapshot', 'crm_relay_policy', 'crm_relay_capture', 'crm_relay_prune', 'crm_relay_verify']) j (name)
      left join pg_roles r on r.rolname = j.name
  )
  select 'function_missing', 'wrong', k.signature, format('function %s is not there', k.signature),
         'whoever calls it fails', 'crm-relay install'
    from known k where k.oid is null
  union all
  select 'function_owner', 'wrong', k.signature, format('function %s belongs to %s, it must belong to %s', k.signature, k.owner_now, k.owner),
         case when k.rolsuper then 'it would lend a superuser''s rights to code of a table''s owner, and so refuses to work'
              else 'it would run with rights that are not its own, and so refuses to work' end,
         'crm-relay install'
    from known k where k.owner <> k.owner_now
  union all
  select 'function_search_path', case when k.fingerprint is null then 'note' else 'wrong' end, k.signature,
         format('function %s does not pin its search_path to pg_catalog, pg_temp', k.signature),
         'who may create functions or tables elsewhere can lend it theirs',
         format('alter function %s set search_path = pg_catalog, pg_temp;', k.signature)
    from known k
   where k.oid is not null and not k.is_pinned
  union all
  select 'function_changed', 'wrong', k.signature, format('function %s is not the one that was installed', k.signature),
         'what it does now no one has tested', 'crm-relay install'
    from known k
   where k.oid is not null and k.fingerprint <> crm_relay.fingerprint(k.oid) and k.is_pinned
  union all
  select 'function_public', 'wrong', k.signature, format('everybody may run %s, which runs with the rights of %s', k.signature, k.owner_now),
         'it is for the relay''s roles alone', format('revoke all on function %s from public;', k.signature)
    from known k
   where k.owner is not null and has_function_privilege('public', k.oid, 'execute')
     and k.signature not in ('crm_relay.capture()', 'crm_relay.capture_truncate()')
  union all
  select 'policy_unasked', 'wrong', k.signature, format('role crm_relay_serve may not run %s', k.signature),
         'the relay cannot ask it: what it would grant stays closed', format('grant execute on function %s to crm_relay_serve;', k.signature)
    from known k
   where k.fingerprint is null and k.oid is not null and not has_function_privilege('crm_relay_serve', k.oid, 'execute')
  union all
  select 'role_unsafe', 'wrong', j.name,
         format('role %s ', j.name) || case when j.is_gone then 'is not there'
           else 'has more than its job needs: ' || concat_ws(', ', case when j.rolcanlogin then 'login' end, case when j.rolsuper then 'superuser' end,
             case when j.rolcreaterole then 'createrole' end, case when j.rolcreatedb then 'createdb' end,
             case when j.rolreplication then 'replication' end, 'member of ' || nullif(array_to_string(j.member_of, ', '), '')) end,
         case when j.is_gone then 'its functions do not work' else 'functions run with its rights, some of them over code of a table''s owner' end,
         case when j.is_gone then 'crm-relay install'
              else concat_ws(' ', format('alter role %I nologin nosuperuser nocreaterole nocreatedb noreplication;', j.name),
                             (select string_agg(format('revoke %I from %I;', g, j.name), ' ') from unnest(j.member_of) g)) end
    from job j
   where j.is_gone or j.rolcanlogin or j.rolsuper or j.rolcreaterole or j.rolcreatedb or j.rolreplication or j.member_of <> '{}'
$$;
ALTER FUNCTION crm_relay.verify_functions() OWNER TO postgres;
COMMENT ON FUNCTION crm_relay.verify_functions() IS 'functions that are missing, changed, unpinned, or belong to somebody else, and roles that have more than their job needs';
CREATE FUNCTION crm_relay.verify_hidden() RETURNS SETOF crm_relay.finding
    LANGUAGE sql STABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
  select 'hidden_journaled', 'wrong', m.module,
         format('the journal holds hidden columns of module %s, written before they were hidden: %s', m.module, string_agg(distinct k.name, ', ')),
         'who may read the journal reads them, and a client that resumes may get them',
         format('select crm_relay.redact(%L);', m.module)
    from (select r.part, r.module, r.old_image, r.new_image from crm_relay.recent_rows(100) r
          union all
          select r.part, r.module, r.old_image, r.new_image from generate_series(0, 9) as s (slot)
           cross join lateral (select o.* from crm_relay.change o where o.slot = s.slot order by o.txid limit 100) r) r
    join crm_relay.module m on m.module = coalesce(r.part, r.module) and m.hidden_columns <> '{}'
   cross join lateral (
     select key as name from json_object_keys(crm_relay.readable(r.old_image)) as keys (key)
     union
     select key from json_object_keys(crm_relay.readable(r.new_image)) as keys (key)) k
   where k.name = any (m.hidden_columns)
   group by m.module
$$;
ALTER FUNCTION crm_relay.verify_hidden() OWNER TO postgres;
COMMENT ON FUNCTION crm_relay.verify_hidden() IS 'hidden columns in the oldest and newest hundred rows of each slot of the journal';
CREATE FUNCTION crm_relay.verify_journal() RETURNS SETOF crm_relay.finding
    LANGUAGE sql STABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
  with slots as (
    select s.slot, format('crm_relay.change_%s', s.slot) as name, newest.txid as greatest_txid, newest.changed_at as newest_at, oldest.changed_at as oldest_at,
           newest.seq as newest_seq, oldest.seq as oldest_seq,
           s.slot = crm_relay.slot(clock_timestamp(), c.retention) as is_written, c.retention,
           pg_total_relation_size(format('crm_relay.change_%s', s.slot)::regclass) as bytes
      from generate_series(0, 9) as s (slot)
     cross join crm_relay.setting c
      -- a transaction that began early may have written late
      left join lateral (
        select max(r.txid) as txid, max(r.seq) as seq, max(r.changed_at) as changed_at
          from (select * from crm_relay.change c where c.slot = s.slot order by c.txid desc limit 100) r) newest on true
      left join lateral (select r.seq, r.changed_at from crm_relay.change r where r.slot = s.slot order by r.txid limit 1) oldest on true
  ), all_slots as (
    select sum(bytes)::bigint as bytes, coalesce(max(newest_seq) - min(oldest_seq) + 1, 0) as changes, max(retention) as retention,
           extract(epoch from max(newest_at) - min(oldest_at)) / 86400 as days
      from slots
  ), holder as (
    -- the transaction that was the first of those still open to take an id: nothing since then can go
    select format('the session %s (%s, %s)', a.pid, coalesce(a.usename, '?'), coalesce(nullif(a.application_name, ''), '?')) as who,
           format('select pg_terminate_backend(%s, 5000); ', a.pid) as mend
      from pg_stat_activity a where a.backend_xid = pg_snapshot_xmin(pg_current_snapshot())::xid
    union all
    select format('the prepared transaction %s', quote_literal(p.gid)), format('rollback prepared %L; ', p.gid)
      from pg_prepared_xacts p where p.transaction = pg_snapshot_xmin(pg_current_snapshot())::xid
    limit 1
  )
  select 'journal_size', 'note', 'crm_relay.change',
         format('the journal takes %s for about %s changes%s', pg_size_pretty(a.bytes), a.changes,
                case when a.days > 1.0 / 24 then format(', and grows by %s a day', pg_size_pretty((a.bytes / a.days)::bigint)) else '' end),
         format('it keeps changes for %s, and a sixth more', a.retention),
         'update crm_relay.setting set retention = ''3 days''; -- where it is too much'
    from all_slots a
  union all
  select 'slot_due', 'wrong', s.name,
         format('%s could not be truncated: its newest row is of %s, older than the retention of %s', s.name, s.newest_at, s.retention)
           || case when s.greatest_txid >= pg_snapshot_xmin(pg_current_snapshot())
                   then coalesce(format('; %s is open since before', h.who), '; an open transaction is older') else '' end,
         'the journal grows; no relay prunes, or somebody stands in its way',
         case when s.greatest_txid >= pg_snapshot_xmin(pg_current_snapshot()) then coalesce(h.mend, '') else '' end
           || 'select crm_relay.prune();'
    from slots s
    left join holder h on true
   where not s.is_written and s.newest_at < clock_timestamp() - s.retention - interval '3 minutes'
  union all
  select 'journal_foreign', 'wrong', 'crm_relay.change',
         'the journal holds transactions that this server has not come to: it was restored from elsewhere',
         'they would be told as new when the server gets to their numbers', 'select crm_relay.renew();'
   where exists (select from crm_relay.change c where c.txid >= pg_snapshot_xmax(pg_current_snapshot())
                    and c.txid <> coalesce(pg_current_xact_id_if_assigned(), '0'))
$$;
ALTER FUNCTION crm_relay.verify_journal() OWNER TO postgres;
COMMENT ON FUNCTION crm_relay.verify_journal() IS 'how large the journal is, slots that could not be truncated, a journal that comes from another server';
CREATE FUNCTION crm_relay.verify_policy() RETURNS SETOF crm_relay.finding
    LANGUAGE plpgsql STABLE SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET client_min_messages TO 'error'
    AS $_$
declare
  sample record;
  somebody text;
  person jsonb;
  people jsonb[] := array[]::jsonb[];
  names integer := 0;
  -- nobody whom the CRM could know
  stranger jsonb := jsonb_build_object('user', gen_random_uuid(), 'team', gen_random_uuid(), 'broker', gen_random_uuid(), 'role', 'agent');
  unknown text := gen_random_uuid()::text;
  images integer := 0;
  seen integer := 0;
  open_modules text[] := array[]::text[];
  asked text;
  -- the rules as they come, in the place of what does not work
  usual constant jsonb := jsonb_build_object(
    'principal', $mend$create or replace function crm_relay.principal(claims jsonb) returns jsonb language plpgsql stable set search_path = pg_catalog, pg_temp as 'begin return crm_relay.usual_principal(claims); end'; -- or correct yours$mend$,
    'may_see_row', $mend$create or replace function crm_relay.may_see_row(principal jsonb, module text, image json) returns boolean language plpgsql stable set search_path = pg_catalog, pg_temp as 'begin return crm_relay.usual_may_see_row(principal, module, image); end'; -- or correct yours$mend$,
    'may_enter', $mend$create or replace function crm_relay.may_enter(principal jsonb, room text) returns boolean language plpgsql stable set search_path = pg_catalog, pg_temp as 'begin return crm_relay.usual_may_enter(principal, room); end'; -- or correct yours$mend$,
    'rooms_of', $mend$create or replace function crm_relay.rooms_of(module text, image json) returns text[] language plpgsql stable set search_path = pg_catalog, pg_temp as 'begin return crm_relay.usual_rooms_of(module, image); end'; -- or correct yours$mend$);
begin
  if current_user <> 'crm_relay_verify' then
    raise exception 'crm_relay: verify_policy() belongs to %, it must belong to crm_relay_verify', current_user
      using hint = 'run crm-relay install again';
  end if;
  asked := 'principal';
  -- whoever the journal names
  for somebody in
    select distinct u.id from (
      select * from crm_relay.change c where c.module <> 'crm_relay_canary' order by c.txid desc limit 300) c
     cross join lateral (values (c.actor), (crm_relay.owner_of(crm_relay.readable(coalesce(c.new_image, c.old_image))))) as u (id)
     where u.id is not null limit 20
  loop
    names := names + 1;
    person := crm_relay.principal(jsonb_build_object('id', somebody, 'sub', somebody));
    if person is not null then
      people := people || person;
    end if;
  end loop;
  if names >= 3 and people = '{}' then
    return next ('policy_closed', 'wrong', 'crm_relay.principal(jsonb)',
      format('principal() knows none of the %s users whom the journal names', names), 'every token is refused',
      usual ->> 'principal')::crm_relay.finding;
  end if;
  if crm_relay.principal(jsonb_build_object('id', unknown, 'sub', unknown)) is not null
     and exists (select from crm_relay.module m where m.module = 'users') then
    return next ('policy_open', 'note', 'crm_relay.principal(jsonb)', 'principal() knows a user who was just made up',
      'who is removed or not active keeps what their token gives them',
      usual ->> 'principal')::crm_relay.finding;
  end if;
  asked := 'may_enter';
  if crm_relay.may_enter(stranger, 'team:' || gen_random_uuid()) or crm_relay.may_enter(stranger, 'user:' || gen_random_uuid()) then
    return next ('policy_open', 'wrong', 'crm_relay.may_enter(jsonb,text)', 'may_enter() lets somebody who was just made up into rooms of others',
      'what they get there may_see_row() decides alone',
      usual ->> 'may_enter')::crm_relay.finding;
  end if;
  for sample in
    select s.module, array_agg(s.image) as images,
           -- private, and somebody else's
           (select json_object_agg(c, case c when 'is_private' then 'true' when 'access_level' then 'personal' else gen_random_uuid()::text end)
              from unnest(m.access_columns) c) as made_up
      from (select c.module, i.image, row_number() over (partition by c.module order by max(c.seq) desc) as place
              from (select * from crm_relay.change r where r.part is null and r.module <> 'crm_relay_canary' order by r.txid desc limit 300) c
              join crm_relay.module m on m.module = c.module and not m.narrow and m.access_columns <> '{}'
             cross join lateral (
               select json_object_agg(key, value order by key)::text from json_each(crm_relay.readable(coalesce(c.new_image, c.old_image)))
                where key = any (m.access_columns)) as i (image)
             where i.image is not null
             group by c.module, i.image) s
      join crm_relay.module m on m.module = s.module
     where s.place <= 10
     group by s.module, m.access_columns
  loop
    asked := 'rooms_of';
    perform crm_relay.rooms_of(sample.module, i::json) from unnest(sample.images) i;
    asked := 'may_see_row';
    if crm_relay.sees(stranger, sample.module, sample.made_up)
       and (select bool_and(crm_relay.may_see_row(stranger, sample.module, i::json)) from unnest(sample.images) i) then
      open_modules := open_modules || sample.module::text;
    end if;
    select images + count(*), seen + count(*) filter (where crm_relay.may_see_row(p, sample.module, i::json))
      into images, seen from unnest(sample.images) i cross join unnest(people) p;
  end loop;
  if open_modules <> '{}' then
    return next ('policy_open', 'wrong', 'crm_relay.may_see_row(jsonb,text,json)',
      format('may_see_row() shows every record of %s to somebody who was just made up, private ones, too', array_to_string(open_modules, ', ')),
      'everybody with a token sees everything',
      usual ->> 'may_see_row')::crm_relay.finding;
  end if;
  if images >= 3 and seen = 0 then
    return next ('policy_closed', 'wrong', 'crm_relay.may_see_row(jsonb,text,json)',
      format('may_see_row() shows none of the records that were tried to any of the %s users whom the journal names', cardinality(people)),
      'every subscription is denied',
      usual ->> 'may_see_row')::crm_relay.finding;
  end if;
exception when others then
  if asked is null or sqlstate = '55P03' then
    raise; -- not the policy's doing: somebody locks the journal
  end if;
  return next ('policy_raises', 'wrong', 'crm_relay.' || asked, format('%s() raised: %s', asked, sqlerrm),
    'whatever it would grant stays closed', usual ->> asked)::crm_relay.finding;
end
$_$;
ALTER FUNCTION crm_relay.verify_policy() OWNER TO crm_relay_verify;
COMMENT ON FUNCTION crm_relay.verify_policy() IS 'a policy that raises, or says yes to everybody or to nobody: asked as the relay asks it, about recent images of the journal, for users whom it names and for one who was made up';
CREATE FUNCTION crm_relay.verify_sessions(old interval DEFAULT '00:01:00'::interval) RETURNS SETOF crm_relay.finding
    LANGUAGE sql STABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $_$
  with other as (
    select a.*, clock_timestamp() - a.xact_start as open_for, coalesce(a.usename, '?') as who,
           coalesce(nullif(a.application_name, ''), '?') as application, coalesce(host(a.client_addr), 'this machine') as host
      from pg_stat_activity a where a.pid <> pg_backend_pid()
  ), relay as (
    select o.*, r.version[1] as version
      from other o
     cross join lateral regexp_match(o.application, '^crm-relay reader ([0-9][^ ]*)$') as r (version)
     where o.datname = current_database() and r.version is not null
  ), queue as (
    select pg_notification_queue_usage() as usage
  )
  select 'sessions_unseen', 'wrong', current_user::text,
         format('role %s may not see what the sessions of others do', current_user),
         'long transactions and who holds notifications or locks cannot be found',
         format('grant pg_read_all_stats to %I; -- as a superuser', current_user)
   where not pg_has_role(current_user, 'pg_read_all_stats', 'usage')
  union all
  select 'transaction_old', case when o.state like 'idle in transaction%' then 'wrong' else 'note' end, format('session %s', o.pid),
         format('a transaction of %s (%s, from %s) is open for %s, and %s', o.who, o.application, o.host,
                date_trunc('second', o.open_for),
                case when o.state like 'idle in transaction%' then 'idle for ' || date_trunc('second', clock_timestamp() - o.state_change) else 'at work' end),
         concat_ws(' and ', case when o.backend_xid is not null then 'no slot of the journal that is younger can be truncated' end,
                   'vacuum keeps what it could see'),
         format('select pg_terminate_backend(%s, 5000);', o.pid)
    from other o
   where o.open_for > old and o.backend_type = 'client backend'
     and (o.backend_xid is not null or o.backend_xmin is not null and o.datname = current_database())
  union all
  select 'transaction_old', 'wrong', format('prepared transaction %s', quote_literal(p.gid)),
         format('transaction %L of %s was prepared %s ago and neither committed nor rolled back', p.gid, p.owner, date_trunc('second', clock_timestamp() - p.prepared)),
         'no slot of the journal that is younger can be truncated, and its locks stay',
         format('rollback prepared %L; -- or commit prepared', p.gid)
    from pg_prepared_xacts p
   where p.prepared < clock_timestamp() - old and p.database = current_database()
  union all
  select 'notifications_held', case when q.usage >= 0.25 then 'wrong' else 'note' end, coalesce('session ' || l.pid, 'server'),
         format('the queue of notifications is %s %% full', round((q.usage * 100)::numeric, 1))
           || coalesce(format('; who holds it the server does not say, most likely the session %s (%s, %s), idle in a transaction for %s',
                              l.pid, l.who, l.application, date_trunc('second', l.open_for)), ''),
         'from half full on writers ring no more and events come seconds late; a full one would abort who notifies',
         coalesce(format('select pg_terminate_backend(%s, 5000);', l.pid),
                  'select pid, usename, state, xact_start from pg_stat_activity where xact_start is not null order by xact_start;')
    from queue q
    left join lateral (
      select o.* from other o where o.state like 'idle in transaction%' and o.datname is not null order by o.xact_start limit 1) l on true
   where q.usage >= 0.01
  union all
  select 'lock_held', 'wrong', format('session %s', l.pid),
         format('the session %s (%s, %s) holds the advisory lock under which %s', l.pid, coalesce(o.who, '?'), coalesce(o.application, '?'), k.does),
         'that waits, or does not happen, for as long',
         format('select pg_terminate_backend(%s, 5000);', l.pid)
    from pg_locks l
    -- as crm_relay.prune(), relays and the installation take them
    join (values ('crm_relay.setting'::regclass::oid::bigint, 1::bigint, 2, 'the journal is pruned'),
                 ('crm_relay.setting'::regclass::oid::bigint, 2, 2, 'the leading relay sleeps'),
                 ('crm_relay.setting'::regclass::oid::bigint, 3, 2, 'one relay leads'),
                 (hashtextextended('crm_relay.install', 0) >> 32 & 4294967295, hashtextextended('crm_relay.install', 0) & 4294967295, 1, 'the schema is installed'))
      as k (class, object, kind, does)
      on l.classid::bigint = k.class and l.objid::bigint = k.object and l.objsubid = k.kind
    left join other o on o.pid = l.pid
   where l.locktype = 'advisory' and l.granted and l.database = (select d.oid from pg_database d where d.datname = current_database())
     and l.pid <> pg_backend_pid()
     -- they are the transaction's own there, and short
     and (o.state is null or o.state = 'idle' or o.open_for > old)
     and not (k.kind = 2 and k.object in (2, 3) and coalesce(o.application, '') like 'crm-relay sleep%')
     -- a writer's share ends with its transaction, and an old one of those is another finding
     and not (k.kind = 2 and k.object = 2 and l.mode = 'ShareLock' and o.state <> 'idle')
  union all
  select 'relay_missing', 'note', current_database()::text, 'no relay reads this journal',
         'nothing is told to anybody, and nobody prunes', 'crm-relay serve'
   where pg_has_role(current_user, 'pg_read_all_stats', 'usage')
     and not exists (select from other o where o.datname = current_database() and o.application like 'crm-relay reader%')
  union all
  select 'relay_versions', 'note', current_database()::text,
         'relays of different versions read this journal: '
           || (select string_agg(distinct format('%s on %s', r.version, r.host), ', ') from relay r),
         'while one is being upgraded that is as it should be; else one was forgotten',
         (select string_agg(format('select pg_terminate_backend(%s, 5000);', r.pid), ' ') || ' -- the older ones, once their daemons are stopped'
            from relay r where string_to_array(regexp_replace(r.version, '[^0-9.].*$', ''), '.')::int[]
                             < (select max(string_to_array(regexp_replace(v.version, '[^0-9.].*$', ''), '.')::int[]) from relay v))
   where (select count(distinct r.version) from relay r) > 1
$_$;
ALTER FUNCTION crm_relay.verify_sessions(old interval) OWNER TO postgres;
COMMENT ON FUNCTION crm_relay.verify_sessions(old interval) IS 'transactions that are open for longer than a minute, notifications that nobody takes, locks of the relay''s that others hold, relays of several versions';
CREATE FUNCTION crm_relay.verify_settings() RETURNS SETOF crm_relay.finding
    LANGUAGE sql STABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
  select 'doorbell_two_phase', 'wrong', 'crm_relay.setting',
         format('writers ring by notify, and this server allows %s prepared transactions', current_setting('max_prepared_transactions')),
         'prepare transaction fails after a write to a watched table', 'update crm_relay.setting set doorbell = ''never'';'
    from crm_relay.setting s
   where s.doorbell <> 'never' and current_setting('max_prepared_transactions')::int > 0
  union all
  select 'doorbell_never', 'note', 'crm_relay.setting',
         'the relay polls, though this server allows no prepared transactions that notify would disturb',
         'four queries a second that a bell would spare, and up to a quarter of a second more until an event is there',
         'update crm_relay.setting set doorbell = ''adaptive'';'
    from crm_relay.setting s
   where s.doorbell = 'never' and current_setting('max_prepared_transactions')::int = 0
  union all
  select 'wal_level', 'note', 'server', 'wal_level is logical, and nothing decodes it',
         'the relay needs no more than minimal: logical writes more for each update of a table with replica identity full',
         'alter system set wal_level = replica; -- and restart the server'
   where current_setting('wal_level') = 'logical'
     and not exists (select from pg_replication_slots s where s.slot_type = 'logical')
     and not exists (select from pg_publication)
  union all
  select 'max_locks', 'note', 'server',
         format('max_locks_per_transaction is %s; a read of the journal locks forty tables and indexes', current_setting('max_locks_per_transaction')),
         'with many sessions "out of shared memory" ends a statement, the CRM''s as well as the relay''s',
         'alter system set max_locks_per_transaction = 64; -- and restart the server'
   where current_setting('max_locks_per_transaction')::int < 64
  union all
  select 'commits_late', 'note', 'server', 'synchronous_commit is off',
         'a crash takes back commits whose events were sent; a relay that does not fall with the server notices, and then everybody fetches anew',
         'alter system set synchronous_commit = on; select pg_reload_conf();'
   where current_setting('synchronous_commit') = 'off'
$$;
ALTER FUNCTION crm_relay.verify_settings() OWNER TO postgres;
COMMENT ON FUNCTION crm_relay.verify_settings() IS 'settings of the server and of the relay that do not go together';
CREATE FUNCTION crm_relay.verify_tables() RETURNS SETOF crm_relay.finding
    LANGUAGE sql STABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
  with watched as (
    select m as registered, m.*, c.relname, n.nspname, coalesce(c.relkind in ('r', 'p'), false) as is_table,
           c.relrowsecurity, m.relation::text as name,
           -- what stands there now under the module's name
           (select o.oid::regclass from pg_class o join pg_namespace s on s.oid = o.relnamespace
             where o.relname = m.module and s.nspname = coalesce(n.nspname, 'public') and o.relkind in ('r', 'p')
               and o.oid <> m.relation and not exists (select from crm_relay.module w where w.relation = o.oid)) as namesake
      from crm_relay.module m
      left join pg_class c on c.oid = m.relation
      left join pg_namespace n on n.oid = c.relnamespace
  ), swapped as (
    select w.*,
           (select string_agg(format('select crm_relay.unwatch(%L);', p.relation), ' ') from crm_relay.module p where p.part_of = w.module) as parts_away,
           (select string_agg(crm_relay.watch_call(p, p.relation::text) || ';', ' ') from crm_relay.module p where p.part_of = w.module) as parts_back
      from watched w
     where not w.is_table
        or w.namesake is not null and w.relname <> w.module
       and not exists (
         select from unnest(w.key_columns || w.access_columns) k (name)
          where not exists (select from pg_attribute a where a.attrelid = w.namesake and a.attname = k.name and not a.attisdropped))
  ), readers as (
    select w.*, r.role, r.does
      from watched w
     cross join (values ('crm_relay_snapshot', 'snapshots of its records are refused'),
                        ('crm_relay_policy', 'nobody can be let in by what its rows say today'),
                        ('crm_relay_part', 'changes of its parts find no record')) as r (role, does)
     where w.is_table and w.part_of is null
       and case r.role when 'crm_relay_snapshot' then not w.narrow
                       when 'crm_relay_part' then exists (select from crm_relay.module p where p.part_of = w.module)
                       else true end
  )
  select case when s.is_table then 'table_swapped' else 'table_gone' end, 'wrong', s.module,
         case when s.is_table then format('module %s watches %s, while another table is called %s', s.module, s.name, s.namesake)
              else format('the table that module %s watched was dropped', s.module)
                   || coalesce(', and another is called ' || s.namesake::text, '') end,
         case when s.namesake is null then 'its rooms stay silent' else 'changes of the table that the CRM uses now reach nobody' end,
         concat_ws(' ', 'begin;', s.parts_away,
                   format('select crm_relay.unwatch(%L);', case when s.is_table then s.name else s.relation::oid::text end),
                   case when s.namesake is not null then crm_relay.watch_call(s.registered, s.namesake::text) || ';' end,
                   case when s.namesake is not null then s.parts_back end, 'commit;')
    from swapped s
  union all
  select 'row_security', 'wrong', r.name,
         format('%s has row level security, and role %s does not pass it', r.name, r.role), r.does,
         format('alter role %I bypassrls;', r.role)
    from readers r join pg_roles g on g.rolname = r.role
   where r.relrowsecurity and not g.rolbypassrls
  union all
  select 'right_missing', 'wrong', r.name,
         format('role %s may not read %s', r.role, r.name), r.does, crm_relay.watch_command(r.relation)
    from readers r join pg_roles g on g.rolname = r.role
   where not has_schema_privilege(g.oid, r.nspname, 'usage')
      or case when r.role = 'crm_relay_snapshot' then not has_table_privilege(g.oid, r.relation, 'select')
              else exists (select from unnest(r.key_columns || r.access_columns) k (name)
                             join pg_attribute a on a.attrelid = r.relation and a.attname = k.name and not a.attisdropped
                            where not has_column_privilege(g.oid, r.relation, a.attnum, 'select')) end
  union all
  select 'owners_apart', 'note', o.relation::text,
         format('%s belongs to %s, who may not read %s', o.relation, o.owner, o.others),
         'a function in an index of that table runs as the roles that look records up, and may read what they may',
         format('alter table %s owner to …; -- the owner of the others; or: select crm_relay.unwatch(%L)', o.relation, o.relation)
    from crm_relay.owners_apart() o
$$;
ALTER FUNCTION crm_relay.verify_tables() OWNER TO postgres;
COMMENT ON FUNCTION crm_relay.verify_tables() IS 'watched tables that are gone, replaced by another, or not readable for the relay''s roles';
CREATE FUNCTION crm_relay.verify_triggers() RETURNS SETOF crm_relay.finding
    LANGUAGE sql STABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
  with member as (
    select m.module, m.part_of, m.relation as root, t.relid as relation, t.relid = m.relation as is_root
      from crm_relay.module m
     cross join lateral (select m.relation::oid as relid union select p.relid from pg_partition_tree(m.relation) p) t
      join pg_class c on c.oid = t.relid and c.relkind in ('r', 'p')
  ), wanted as (
    select m.*, w.name, w.function, w.type,
           convert_to(m.module, 'UTF8') || decode('00', 'hex')
             || coalesce(convert_to(m.part_of, 'UTF8') || decode('00', 'hex'), '') as argument
      from member m
     cross join (values ('!crm_relay', 'crm_relay.capture()'::regprocedure, 29),
                        ('!crm_relay_truncate', 'crm_relay.capture_truncate()'::regprocedure, 32)) as w (name, function, type)
  ), seen as (
    select w.*, t.oid is not null as is_there, t.tgenabled, t.tgparentid <> 0 as is_copy, t.tgconstraint <> 0 as is_constraint,
           t.tgfoid = w.function and t.tgtype = w.type and t.tgargs = w.argument and t.tgqual is null
             and t.tgattr::text = '' and t.tgconstraint = 0 as is_same
      from wanted w
      left join pg_trigger t on t.tgrelid = w.relation and t.tgname = w.name
  ), other as (
    select m.relation, t.tgname, t.tgfoid, t.tgtype
      from member m
      join pg_trigger t on t.tgrelid = m.relation and not t.tgisinternal and t.tgparentid = 0 and t.tgenabled <> 'D'
     where t.tgname not in ('!crm_relay', '!crm_relay_truncate')
  ), asleep as (
    -- those whose triggers would not fire under session_replication_role = replica
    select w.root, w.name from seen w where w.is_root and w.tgenabled = 'O' and w.is_same
  )
  select case when not s.is_there then 'trigger_missing' when s.tgenabled in ('D', 'R') then 'trigger_disabled' else 'trigger_changed' end,
         'wrong', s.relation::regclass::text,
         format('trigger "%s" of %s ', s.name, s.relation::regclass) || case
           when not s.is_there then 'is not there'
           when s.tgenabled = 'D' then 'is disabled'
           when s.tgenabled = 'R' then 'fires under session_replication_role = replica only'
           else 'is not as it was made: other events, condition, function or argument' end,
         case s.name when '!crm_relay' then 'changes of its rows are lost, for the relay and for the audit'
                     else 'a truncate of it is not told: everybody goes on showing what is gone' end,
         case
           when not s.is_there and (s.is_root or s.name = '!crm_relay_truncate') then crm_relay.watch_command(s.root)
           when s.is_constraint or not s.is_there then
             format('begin; drop trigger if exists %I on %s; select crm_relay.watch(%L); commit;', s.name,
                    case when s.is_there then s.relation::regclass else s.root end, s.root)
           when s.is_copy and s.is_same then format('alter table %s enable trigger %I;', s.relation::regclass, s.name)
           else crm_relay.watch_command(s.root) end
    from seen s
   where not s.is_there or s.tgenabled in ('D', 'R') or not s.is_same
  union all
  select 'trigger_doubled', 'wrong', o.relation::regclass::text,
         format('trigger %I of %s captures, too', o.tgname, o.relation::regclass),
         'each change is in the journal twice',
         format('drop trigger %I on %s;', o.tgname, o.relation::regclass)
    from other o
   where o.tgfoid in ('crm_relay.capture()'::regprocedure, 'crm_relay.capture_truncate()'::regprocedure)
  union all
  select 'trigger_late', 'wrong', o.relation::regclass::text,
         format('after trigger %I of %s fires before the relay''s', o.tgname, o.relation::regclass),
         'where it edits the row again, the journal and the audit have the two edits in the wrong order',
         format('alter trigger %I on %s rename to %I;', o.tgname, o.relation::regclass,
                left('after_' || regexp_replace(o.tgname, '^[^a-zA-Z0-9]+', ''), 63))
    from other o
   where o.tgname < '!crm_relay' and o.tgtype & 1 = 1 and o.tgtype & 66 = 0 and o.tgtype & 20 <> 0
     and o.tgfoid <> 'crm_relay.capture()'::regprocedure
  union all
  select 'replication_role', 'wrong', coalesce(r.rolname, d.datname),
         format('%s begin with session_replication_role = replica, under which the relay''s triggers do not fire',
                concat_ws(' in ', 'sessions of role ' || r.rolname, case when r.rolname is null then 'sessions of ' end || 'database ' || d.datname)),
         'what they write is in no journal and reaches nobody',
         case when r.rolname is null then format('alter database %I reset session_replication_role;', d.datname)
              else format('alter role %I%s reset session_replication_role;', r.rolname, ' in database ' || quote_ident(d.datname)) end
    from pg_db_role_setting s
    left join pg_database d on d.oid = s.setdatabase
    left join pg_roles r on r.oid = s.setrole
   where 'session_replication_role=replica' = any (s.setconfig) and exists (select from asleep)
     and (d.datname is null or d.datname = current_database())
  union all
  select 'replication_role', 'wrong', 'server', 'the server''s settings say session_replication_role = replica',
         'no trigger fires: nothing is captured', 'alter system reset session_replication_role; select pg_reload_conf();'
    from pg_settings s
   where s.name = 'session_replication_role' and s.setting = 'replica' and s.source in ('configuration file', 'command line')
  union all
  select 'replication_role', 'wrong', a.root::text,
         format('%s gets rows by a subscription, which writes under session_replication_role = replica', a.root),
         'what it writes is in no journal and reaches nobody',
         format('alter table %s enable always trigger %I;', a.root, a.name)
    from asleep a
   where exists (select from pg_subscription_rel s where s.srrelid = a.root)
$$;
ALTER FUNCTION crm_relay.verify_triggers() OWNER TO postgres;
COMMENT ON FUNCTION crm_relay.verify_triggers() IS 'triggers that are missing, disabled, changed by hand, doubled, too late, or asleep where somebody writes as a replica';
CREATE FUNCTION crm_relay.watch(target regclass, module text DEFAULT NULL::text, event text DEFAULT NULL::text, key_columns text[] DEFAULT NULL::text[], access_columns text[] DEFAULT NULL::text[], hidden_columns text[] DEFAULT NULL::text[], quiet_columns text[] DEFAULT NULL::text[], part_of text DEFAULT NULL::text, part_link text DEFAULT NULL::text, narrow boolean DEFAULT NULL::boolean, access_of text DEFAULT NULL::text, access_link text DEFAULT NULL::text) RETURNS crm_relay.module
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $_$
#variable_conflict use_variable
declare
  watched crm_relay.module;
  parent crm_relay.module;
  present crm_relay.module;
  columns text[];
  missing text[];
  readable text;
  part regclass;
  namespace text;
begin
  if (select relkind from pg_class where oid = target) not in ('r', 'p') then
    raise exception 'crm_relay: % is not a table', target
      using hint = 'views, foreign tables and sequences have no row triggers that could be trusted; watch the table behind it';
  end if;
  select nspname into namespace from pg_class c join pg_namespace n on n.oid = c.relnamespace where c.oid = target;
  if (select relpersistence from pg_class where oid = target) = 't' then
    raise exception 'crm_relay: % is temporary', target;
  end if;
  if exists (select from pg_inherits i join pg_class c on c.oid = i.inhrelid where i.inhparent = target and not c.relispartition) then
    raise notice 'crm_relay: other tables inherit from %: watch them, too, their rows are captured by themselves', target;
  end if;
  -- what was dropped since
  delete from crm_relay.module m where not exists (select from pg_class c where c.oid = m.relation)
     and not exists (select from crm_relay.module p where p.part_of = m.module);
  if namespace in ('crm_relay', 'pg_catalog', 'information_schema') then
    raise exception 'crm_relay: % belongs to schema %, which is never watched', target, namespace;
  end if;
  if (select relispartition from pg_class where oid = target) then
    raise exception 'crm_relay: % is a partition', target using hint = 'watch the partitioned table';
  end if;
  columns := array(select attname::text from pg_attribute
                    where attrelid = target and attnum > 0 and not attisdropped order by attnum);
  select m.* into present from crm_relay.module m where m.relation = target;
  watched.relation := target;
  watched.chosen := array(
    select distinct c from unnest(coalesce(present.chosen, '{}') || array_remove(array[
      case when event is not null then 'event' end,
      case when key_columns is not null then 'key_columns' end,
      case when access_columns is not null then 'access_columns' end,
      case when hidden_columns is not null then 'hidden_columns' end,
      case when quiet_columns is not null then 'quiet_columns' end], null)) c order by c);
  watched.module := coalesce(module, present.module,
    (select lower(regexp_replace(relname, '[^a-zA-Z0-9_]+', '_', 'g')) from pg_class where oid = target));
  if watched.module in ('user', 'team', 'broker', 'crm_relay') then
    raise exception 'crm_relay: no module may be called %', watched.module
      using hint = 'that is the name of a scope in room names, or the relay''s own; give another: watch(…, module => ''…'')';
  end if;
  watched.narrow := coalesce(narrow, present.narrow, false);
  watched.event := coalesce(event, case when 'event' = any (present.chosen) then present.event end,
    upper(regexp_replace(regexp_replace(watched.module, 'ies$', 'ys'), 's$', '')));
  watched.key_columns := coalesce(key_columns, case when 'key_columns' = any (present.chosen) then present.key_columns end,
    (select array_agg(a.attname::text order by k.place)
       from pg_index i
      cross join unnest(i.indkey::int2[]) with ordinality as k (attnum, place)
       join pg_attribute a on a.attrelid = i.indrelid and a.attnum = k.attnum
      where i.indrelid = target and i.indisprimary));
  if watched.key_columns is null or watched.key_columns = '{}' then
    raise exception 'crm_relay: % has no primary key', target
      using hint = 'say which columns tell its rows apart: watch(…, key_columns => ''{…}'')';
  end if;
  watched.access_columns := coalesce(access_columns, case when 'access_columns' = any (present.chosen) then present.access_columns end,
    array(select c from unnest(columns) c
           where c = any (case when watched.narrow then '{team_id,broker_id,role,is_active}'::text[]
                               else '{owner_id,listing_agent_id,agent_id,user_id,team_id,broker_id,is_private,access_level,lead_id}' end)));
  watched.hidden_columns := coalesce(hidden_columns, case when 'hidden_columns' = any (present.chosen) then present.hidden_columns end,
    array(select c from unnest(columns) c
           where not watched.narrow and crm_relay.is_secret(c)));
  watched.quiet_columns := coalesce(quiet_columns, case when 'quiet_columns' = any (present.chosen) then present.quiet_columns end,
    array(select c from unnest(columns) c where c = any ('{updated_at,version,last_modified_by}')));
  -- what closed something must not be forgotten in silence, as when a column was renamed
  missing := array(select c from unnest(case when hidden_columns is null then present.hidden_columns end
                                        || case when access_columns is null then present.access_columns end) c
                    where c <> all (columns));
  if missing <> '{}' then
    raise exception 'crm_relay: % was watched with columns % that it no longer has, and that may have hidden something', target, missing
      using hint = 'were they renamed? say which hide and which decide now: watch(…, hidden_columns => ''{…}'', access_columns => ''{…}'')';
  end if;
  missing := array(
    select c from unnest(watched.key_columns || watched.access_columns || watched.hidden_columns || watched.quiet_columns) c
     where c <> all (columns));
  if missing <> '{}' then
    raise exception 'crm_relay: % has no column %', target, array_to_string(missing, ', ')
      using hint = 'its columns are ' || array_to_string(columns, ', ');
  end if;
  if watched.hidden_columns && (watched.key_columns || watched.access_columns) then
    raise exception 'crm_relay: what tells records apart, or decides who sees them, cannot be hidden: %', array_to_string(watched.hidden_columns, ', ');
  end if;
  watched.large_from := coalesce(present.large_from, 1024);
  watched.part_of := coalesce(part_of, present.part_of);
  watched.part_link := coalesce(part_link, present.part_link);
  watched.access_of := coalesce(access_of, present.access_of);
  watched.access_link := coalesce(access_link, present.access_link);
  if (watched.access_of is null) <> (watched.access_link is null)
     or watched.access_link is not null and watched.access_link <> all (watched.access_columns) then
    raise exception 'crm_relay: access_of and access_link belong together, and % must be one of the access columns of %', watched.access_link, target;
  end if;
  if watched.narrow and watched.part_of is not null then
    raise exception 'crm_relay: % cannot be narrow and a part', target;
  end if;
  if watched.part_of is null then
    watched.lookup := crm_relay.lookup_of(watched);
    if watched.lookup is null then
      raise notice 'crm_relay: a key or access column of % has a type of somebody''s own, so that nobody can be let in by today''s row', target
        using hint = 'leave it out: watch(…, access_columns => ''{…}'')';
    end if;
    watched.lookup_types := crm_relay.column_types(target, watched.key_columns || watched.access_columns);
  end if;
  if watched.part_of is not null then
    select m.* into parent from crm_relay.module m where m.module = watched.part_of;
    if not found or parent.part_of is not null then
      raise exception 'crm_relay: % cannot be a part of %', target, watched.part_of
        using hint = 'a part belongs to a module that is watched itself and is no part';
    end if;
    if cardinality(watched.key_columns) <> 1 then
      raise exception 'crm_relay: a part needs a key of one column, % has %', target, array_to_string(watched.key_columns, ', ');
    end if;
    if not exists (select from pg_attribute a where a.attrelid = parent.relation and a.attname = watched.part_link and not a.attisdropped) then
      raise exception 'crm_relay: % has no column % that could name a row of %', parent.relation, watched.part_link, target
        using hint = 'say which: watch(…, part_link => ''…'')';
    end if;
    -- see crm_relay.records_of(): rendering another type could run its owner's code
    select string_agg(quote_ident(a.attname), ', ') into readable
      from pg_attribute a
     where a.attrelid = parent.relation and a.attname::text = any (parent.key_columns || parent.access_columns || watched.part_link)
       and not a.attisdropped and (crm_relay.base_of(a.atttypid)).oid is null;
    if readable is not null then
      raise exception 'crm_relay: columns % of % have types of somebody''s own, which a change of % cannot show', readable, parent.relation, target
        using hint = 'leave them out of the key, access and link columns: watch(…, access_columns => ''{…}'')';
    end if;
    select string_agg(quote_ident(c), ', ') into readable
      from unnest(parent.key_columns || parent.access_columns || watched.part_link) c;
    execute format('grant usage on schema %s to crm_relay_part',
                   (select c.relnamespace::regnamespace from pg_class c where c.oid = parent.relation));
    execute format('grant select (%s) on %s to crm_relay_part', readable, parent.relation);
    if (select relrowsecurity from pg_class where oid = parent.relation)
       and not (select rolbypassrls from pg_roles where rolname = 'crm_relay_part') then
      raise notice 'crm_relay: % has row level security; so that changes of % find its rows: alter role crm_relay_part bypassrls', parent.relation, target;
    end if;
    if not exists (
      select from pg_index i join pg_attribute a on a.attrelid = i.indrelid and a.attnum = i.indkey[0]
       where i.indrelid = parent.relation and a.attname = watched.part_link and i.indisvalid) then
      raise notice 'crm_relay: no index of % begins with %: each change of % reads the whole table', parent.relation, watched.part_link, target;
    end if;
  end if;
  insert into crm_relay.module select (watched).*
  on conflict on constraint module_relation_key do update set
    module = excluded.module, event = excluded.event, key_columns = excluded.key_columns,
    access_columns = excluded.access_columns, hidden_columns = excluded.hidden_columns,
    quiet_columns = excluded.quiet_columns, part_of = excluded.part_of, part_link = excluded.part_link, chosen = excluded.chosen, narrow = excluded.narrow,
    access_of = excluded.access_of, access_link = excluded.access_link,
    lookup = excluded.lookup, lookup_types = excluded.lookup_types
  where (module.*) is distinct from (excluded.*);
  if present.module = watched.module and not watched.hidden_columns <@ present.hidden_columns then
    perform crm_relay.redact(watched.module);
  end if;
  perform crm_relay.add_triggers(target, watched.module, watched.part_of);
  if watched.part_of is null then
    -- the policy looks at today's row
    execute format('grant usage on schema %I to crm_relay_policy', namespace);
    execute format('grant select (%s) on %s to crm_relay_policy',
      (select string_agg(quote_ident(c), ', ') from unnest(watched.key_columns || watched.access_columns) c), target);
    if (select relrowsecurity from pg_class where oid = target)
       and not (select rolbypassrls from pg_roles where rolname = 'crm_relay_policy') then
      raise notice 'crm_relay: % has row level security; so that the policy finds its rows: alter role crm_relay_policy bypassrls', target;
    end if;
  end if;
  if watched.access_link is not null and not exists (
    select from pg_index i join pg_attribute a on a.attrelid = i.indrelid and a.attnum = i.indkey[0]
     where i.indrelid = target and a.attname = watched.access_link and i.indisvalid) then
    raise notice 'crm_relay: no index of % begins with %: each change of who may see records of % reads the whole table', target, watched.access_link, watched.access_of
      using hint = format('create index concurrently on %s (%I)', target, watched.access_link);
  end if;
  if watched.part_of is null and not watched.narrow then
    execute format('grant usage on schema %I to crm_relay_snapshot', namespace);
    execute format('grant select on %s to crm_relay_snapshot', target);
  end if;
  if exists (select from crm_relay.owners_apart() o) then
    raise notice 'crm_relay: watched tables have different owners: %',
      (select string_agg(format('%s is %s''s, who may not read %s', o.relation, o.owner, o.others), '; ') from crm_relay.owners_apart() o)
      using hint = 'code in an index of such a table can run as the roles that look records up, see "Security" in deploy/README.md; watch tables only of owners whom you trust with all of them';
  end if;
  -- its parts may read what their changes are judged by
  for part in select m.relation from crm_relay.module m where m.part_of = watched.module loop
    perform crm_relay.watch(part);
  end loop;
  return watched;
end
$_$;
ALTER FUNCTION crm_relay.watch(target regclass, module text, event text, key_columns text[], access_columns text[], hidden_columns text[], quiet_columns text[], part_of text, part_link text, narrow boolean, access_of text, access_link text) OWNER TO postgres;
COMMENT ON FUNCTION crm_relay.watch(target regclass, module text, event text, key_columns text[], access_columns text[], hidden_columns text[], quiet_columns text[], part_of text, part_link text, narrow boolean, access_of text, access_link text) IS 'watches a table: enters it in the registry and adds its triggers; again: changes what is given and leaves the rest';
CREATE FUNCTION crm_relay.watch_call(watched crm_relay.module, relation text) RETURNS text
    LANGUAGE sql STABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
  select format('select crm_relay.watch(%s)', string_agg(argument, ', ' order by place))
    from unnest(array[
      quote_literal(relation),
      'module => ' || quote_literal(watched.module),
      'event => ' || quote_literal(watched.event),
      'key_columns => ' || quote_literal(case when 'key_columns' = any (watched.chosen) then watched.key_columns end),
      'access_columns => ' || quote_literal(case when 'access_columns' = any (watched.chosen) then watched.access_columns end),
      'hidden_columns => ' || quote_literal(case when 'hidden_columns' = any (watched.chosen) then watched.hidden_columns end),
      'quiet_columns => ' || quote_literal(case when 'quiet_columns' = any (watched.chosen) then watched.quiet_columns end),
      'part_of => ' || quote_literal(watched.part_of),
      'part_link => ' || quote_literal(watched.part_link),
      case when watched.narrow then 'narrow => true' end,
      'access_of => ' || quote_literal(watched.access_of),
      'access_link => ' || quote_literal(watched.access_link)]) with ordinality as given (argument, place)
   where argument is not null
$$;
ALTER FUNCTION crm_relay.watch_call(watched crm_relay.module, relation text) OWNER TO postgres;
COMMENT ON FUNCTION crm_relay.watch_call(watched crm_relay.module, relation text) IS 'the SQL that watches a table as this module, with all that was chosen for it';
CREATE FUNCTION crm_relay.watch_command(relation regclass) RETURNS text
    LANGUAGE sql STABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $_$
  select case when relation = 'crm_relay.canary'::regclass then 'crm-relay install' else 'crm-relay watch ' || case when relation::text ~ '^[a-z0-9_.]+$' then relation::text
                                    else '''' || replace(relation::text, '''', '''\''''') || '''' end end
$_$;
ALTER FUNCTION crm_relay.watch_command(relation regclass) OWNER TO postgres;
COMMENT ON FUNCTION crm_relay.watch_command(relation regclass) IS 'the command that watches a table again, with what was chosen for it; it waits for nobody''s lock longer than 300 ms at a time';
CREATE PROCEDURE crm_relay.watch_crm(IN crm_schema text DEFAULT 'public'::text)
    LANGUAGE plpgsql
    AS $$
declare
  event text;
  of_lead boolean;
  wanted record;
  target regclass;
  missing text;
begin
  -- a procedure that commits cannot pin this by itself
  perform pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', false);
  for wanted in
    select * from (values
      (1, 'escrows',      'ESCROW',      'owner_id', null, null),
      (2, 'listings',     'LISTING',     'owner_id,listing_agent_id', null, null),
      (3, 'clients',      'CLIENT',      'owner_id', null, null),
      (4, 'leads',        'LEAD',        'owner_id', null, null),
      (5, 'appointments', 'APPOINTMENT', 'agent_id,lead_id', null, null),
      (6, 'contacts',     'CONTACT',     null, 'clients', 'contact_id'),
      (7, 'users',        'USER',        null, null, null)
    ) as crm (place, table_name, event, owners, part_of, part_link)
    order by place
  loop
    target := pg_catalog.to_regclass(pg_catalog.format('%I.%I', crm_schema, wanted.table_name));
    if target is null then
      if wanted.table_name = 'users' then
        raise notice '%.users: no such table, so that everybody sees their own records only', crm_schema;
      elsif wanted.part_of is null then
        raise notice '%.%: no such table, not watched', crm_schema, wanted.table_name;
      end if;
      continue;
    end if;
    if wanted.part_of is not null and not exists (
      select from pg_catalog.pg_attribute a
       where a.attrelid = pg_catalog.to_regclass(pg_catalog.format('%I.%I', crm_schema, wanted.part_of))
         and a.attname = wanted.part_link and not a.attisdropped) then
      raise notice '%: % has no column %, so it is no part of it, not watched', target, wanted.part_of, wanted.part_link;
      continue;
    end if;
    if not exists (select from pg_catalog.pg_class c join pg_catalog.pg_index i on i.indrelid = c.oid
                    where c.oid = target and c.relkind in ('r', 'p') and i.indisprimary) then
      raise notice '%: not a table with a primary key, not watched; say what tells its rows apart: select crm_relay.watch(%, key_columns => …)',
        target, pg_catalog.quote_literal(target);
      continue;
    end if;
    -- an appointment of a private lead is private, too
    of_lead := wanted.table_name = 'appointments' and exists (
      select from pg_catalog.pg_attribute a where a.attrelid = target and a.attname = 'lead_id' and not a.attisdropped);
    -- what was chosen since stays
    select wanted.event into event where not exists (select from crm_relay.module m where m.relation = target);
    call crm_relay.in_short_transaction(
      pg_catalog.format('select crm_relay.watch(%L, event => %L, part_of => %L, part_link => %L, narrow => %L, access_of => %L, access_link => %L)',
                        target, event, wanted.part_of, wanted.part_link, wanted.table_name = 'users',
                        case when of_lead then 'leads' end, case when of_lead then 'lead_id' end), target::text);
    continue when wanted.table_name = 'users';
    select pg_catalog.string_agg(expected, ', ') into missing
      from pg_catalog.unnest(pg_catalog.string_to_array(wanted.owners
             || ',user_id,team_id,broker_id,is_private,access_level,version,updated_at,last_modified_by,created_by,deleted_by', ',')) expected
     where not exists (select from pg_catalog.pg_attribute a
                        where a.attrelid = target and a.attname = expected and not a.attisdropped);
    raise notice '%: watched as %', target, coalesce(wanted.part_of || '''s part ', '') || wanted.table_name
      || coalesce('; expected columns that it does not have: ' || missing, '');
  end loop;
end
$$;
ALTER PROCEDURE crm_relay.watch_crm(IN crm_schema text) OWNER TO postgres;
COMMENT ON PROCEDURE crm_relay.watch_crm(IN crm_schema text) IS 'watches the CRM''s tables, those that exist, each in a short transaction of its own, and says table by table what it did';
CREATE FUNCTION crm_relay.without(image json, columns text[]) RETURNS json
    LANGUAGE plpgsql IMMUTABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
declare
  seen text := image::text;
  is_certain boolean := position(E'\\u0000' in seen) = 0; -- no operator can look into it then
  name text;
  one text;
  before integer;
  rest text;
begin
  -- each cut out as it stands there
  foreach one in array columns loop
    exit when not is_certain;
    name := to_json(one)::text || ':';
    one := ',' || name || (image -> one)::text;
    before := octet_length(seen);
    seen := replace(seen, one, '');
    -- but the first has no comma, and what was found would be a value's; another may stand in a value, too
    is_certain := coalesce(octet_length(seen) = before - octet_length(one), false) and not starts_with(seen, '{' || name);
  end loop;
  if is_certain then
    return seen::json;
  end if;
  seen := crm_relay.readable(image)::text;
  if seen <> image::text and position(E'\\ufffd\\u2400\\ufffd' in image::text) > 0 then
    raise exception 'crm_relay: an image holds both \u0000 and what stands for it';
  end if;
  -- a column that has another name by now must not get out under it
  if (select count(*) from json_object_keys(seen::json) as keys (key) where key = any (columns)) < cardinality(columns) then
    raise exception 'crm_relay: not all of the columns % are there any more', columns
      using hint = 'watch the table again';
  end if;
  -- written as above and by row_to_json: two images are the same where their texts are
  select '{' || coalesce(string_agg(to_json(key)::text || ':' || value::text, ',' order by place), '') || '}' into rest
    from json_each(seen::json) with ordinality as kept (key, value, place) where key <> all (columns);
  return case when seen = image::text then rest else replace(rest, E'\\ufffd\\u2400\\ufffd', E'\\u0000') end::json;
end
$$;
ALTER FUNCTION crm_relay.without(image json, columns text[]) OWNER TO postgres;
COMMENT ON FUNCTION crm_relay.without(image json, columns text[]) IS 'an image without these columns, its other values as they were written';
CREATE FUNCTION crm_relay.without_nulls(image json, nulls text[]) RETURNS json
    LANGUAGE plpgsql IMMUTABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
declare
  rest text := image::text;
  is_certain boolean := starts_with(rest, '{"'); -- a first column that was taken out leaves a space
  before integer;
  one text;
begin
  foreach one in array nulls loop
    before := octet_length(rest);
    rest := replace(rest, one, '');
    -- the first has no comma, and what was found would be a value's; another may stand in a value, too
    is_certain := is_certain and octet_length(rest) = before - octet_length(one) and not starts_with(rest, '{' || substr(one, 2));
    exit when not is_certain;
  end loop;
  if not is_certain then
    return crm_relay.without(image, array(
      select column_name from unnest(nulls) n (one) cross join json_object_keys(('{' || substr(n.one, 2) || '}')::json) as names (column_name)));
  end if;
  return rest::json;
end
$$;
ALTER FUNCTION crm_relay.without_nulls(image json, nulls text[]) OWNER TO crm_relay_capture;
COMMENT ON FUNCTION crm_relay.without_nulls(image json, nulls text[]) IS 'an image without columns that are there and null, each as it stands there, such as ,"notes":null: as without(), and quicker';
CREATE VIEW crm_relay.audit AS
 SELECT c.changed_at,
    c.txid,
    c.seq,
    c.module,
    c.record_id,
    c.part,
    c.part_id,
    c.action,
    c.actor,
    c.db_user,
    c.db_role,
    c.application,
    f.field,
    f.old_value,
    f.new_value
   FROM (crm_relay.change c
     LEFT JOIN LATERAL ( SELECT COALESCE(o.key, n.key) AS field,
            o.value AS old_value,
            n.value AS new_value
           FROM (json_each(
                CASE
                    WHEN (POSITION(('\u0000'::text) IN ((c.old_image)::text)) > 0) THEN crm_relay.readable(c.old_image)
                    ELSE COALESCE(c.old_image, '{}'::json)
                END) o(key, value)
             FULL JOIN json_each(
                CASE
                    WHEN (POSITION(('\u0000'::text) IN ((c.new_image)::text)) > 0) THEN crm_relay.readable(c.new_image)
                    ELSE COALESCE(c.new_image, '{}'::json)
                END) n(key, value) ON ((n.key = o.key)))
          WHERE (COALESCE((o.value)::text, 'null'::text) <> COALESCE((n.value)::text, 'null'::text))) f ON (true));
ALTER TABLE crm_relay.audit OWNER TO postgres;
COMMENT ON VIEW crm_relay.audit IS 'who changed what from what to what, field by field: one row for each field of each change; ten questions to it are in sql/README.md';
COMMENT ON COLUMN crm_relay.audit.changed_at IS 'when the row changed (clock, not start of the transaction)';
COMMENT ON COLUMN crm_relay.audit.txid IS 'the transaction that made the change';
COMMENT ON COLUMN crm_relay.audit.seq IS 'the number of the change in the journal; grows with each change of a record';
COMMENT ON COLUMN crm_relay.audit.module IS 'the module of the record, such as listings';
COMMENT ON COLUMN crm_relay.audit.record_id IS 'the record''s key as Postgres prints it; null when truncated: any record of the module may be concerned';
COMMENT ON COLUMN crm_relay.audit.part IS 'the watched part that changed, such as contacts; null for the record''s own row';
COMMENT ON COLUMN crm_relay.audit.part_id IS 'the key of the part''s row';
COMMENT ON COLUMN crm_relay.audit.action IS 'created, updated, deleted or truncated';
COMMENT ON COLUMN crm_relay.audit.actor IS 'the user of the CRM who made the change where that is certain, else null';
COMMENT ON COLUMN crm_relay.audit.db_user IS 'session_user: who logged in to Postgres';
COMMENT ON COLUMN crm_relay.audit.db_role IS 'the role it had taken by set role, else the same';
COMMENT ON COLUMN crm_relay.audit.application IS 'application_name of the session';
COMMENT ON COLUMN crm_relay.audit.field IS 'the column that changed, never a hidden one; null where rows cannot say it, as when truncated';
COMMENT ON COLUMN crm_relay.audit.old_value IS 'its value before, as json; null where there was no row. As text: old_value #>> ''{}''';
COMMENT ON COLUMN crm_relay.audit.new_value IS 'its value after; null where there is no row any more';
CREATE TABLE crm_relay.canary (
    relay uuid NOT NULL,
    beat bigint NOT NULL,
    written_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL
);
ALTER TABLE crm_relay.canary OWNER TO postgres;
COMMENT ON TABLE crm_relay.canary IS 'one row for each relay that runs with --canary; watched like a table of the CRM';
COMMENT ON COLUMN crm_relay.canary.relay IS 'the relay, anew with each start';
COMMENT ON COLUMN crm_relay.canary.beat IS 'counts what it wrote';
COMMENT ON COLUMN crm_relay.canary.written_at IS 'when it last wrote';
CREATE TABLE crm_relay.change_0 (
    seq bigint DEFAULT nextval('crm_relay.change_seq'::regclass) NOT NULL,
    slot smallint NOT NULL,
    txid xid8 DEFAULT pg_current_xact_id() NOT NULL,
    module text NOT NULL,
    action text NOT NULL,
    record_id text,
    part text,
    part_id text,
    actor text,
    changed_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    db_user text NOT NULL,
    db_role text NOT NULL,
    application text NOT NULL,
    depth smallint DEFAULT pg_trigger_depth() NOT NULL,
    old_image json,
    new_image json,
    record_image json
)
WITH (toast_tuple_target='1600');
ALTER TABLE ONLY crm_relay.change_0 ALTER COLUMN old_image SET COMPRESSION lz4;
ALTER TABLE ONLY crm_relay.change_0 ALTER COLUMN new_image SET COMPRESSION lz4;
ALTER TABLE ONLY crm_relay.change_0 ALTER COLUMN record_image SET COMPRESSION lz4;
ALTER TABLE crm_relay.change_0 OWNER TO postgres;
COMMENT ON TABLE crm_relay.change_0 IS 'a slot of the journal''s ring; read crm_relay.change';
CREATE TABLE crm_relay.change_1 (
    seq bigint DEFAULT nextval('crm_relay.change_seq'::regclass) NOT NULL,
    slot smallint NOT NULL,
    txid xid8 DEFAULT pg_current_xact_id() NOT NULL,
    module text NOT NULL,
    action text NOT NULL,
    record_id text,
    part text,
    part_id text,
    actor text,
    changed_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    db_user text NOT NULL,
    db_role text NOT NULL,
    application text NOT NULL,
    depth smallint DEFAULT pg_trigger_depth() NOT NULL,
    old_image json,
    new_image json,
    record_image json
)
WITH (toast_tuple_target='1600');
ALTER TABLE ONLY crm_relay.change_1 ALTER COLUMN old_image SET COMPRESSION lz4;
ALTER TABLE ONLY crm_relay.change_1 ALTER COLUMN new_image SET COMPRESSION lz4;
ALTER TABLE ONLY crm_relay.change_1 ALTER COLUMN record_image SET COMPRESSION lz4;
ALTER TABLE crm_relay.change_1 OWNER TO postgres;
COMMENT ON TABLE crm_relay.change_1 IS 'a slot of the journal''s ring; read crm_relay.change';
CREATE TABLE crm_relay.change_2 (
    seq bigint DEFAULT nextval('crm_relay.change_seq'::regclass) NOT NULL,
    slot smallint NOT NULL,
    txid xid8 DEFAULT pg_current_xact_id() NOT NULL,
    module text NOT NULL,
    action text NOT NULL,
    record_id text,
    part text,
    part_id text,
    actor text,
    changed_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    db_user text NOT NULL,
    db_role text NOT NULL,
    application text NOT NULL,
    depth smallint DEFAULT pg_trigger_depth() NOT NULL,
    old_image json,
    new_image json,
    record_image json
)
WITH (toast_tuple_target='1600');
ALTER TABLE ONLY crm_relay.change_2 ALTER COLUMN old_image SET COMPRESSION lz4;
ALTER TABLE ONLY crm_relay.change_2 ALTER COLUMN new_image SET COMPRESSION lz4;
ALTER TABLE ONLY crm_relay.change_2 ALTER COLUMN record_image SET COMPRESSION lz4;
ALTER TABLE crm_relay.change_2 OWNER TO postgres;
COMMENT ON TABLE crm_relay.change_2 IS 'a slot of the journal''s ring; read crm_relay.change';
CREATE TABLE crm_relay.change_3 (
    seq bigint DEFAULT nextval('crm_relay.change_seq'::regclass) NOT NULL,
    slot smallint NOT NULL,
    txid xid8 DEFAULT pg_current_xact_id() NOT NULL,
    module text NOT NULL,
    action text NOT NULL,
    record_id text,
    part text,
    part_id text,
    actor text,
    changed_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    db_user text NOT NULL,
    db_role text NOT NULL,
    application text NOT NULL,
    depth smallint DEFAULT pg_trigger_depth() NOT NULL,
    old_image json,
    new_image json,
    record_image json
)
WITH (toast_tuple_target='1600');
ALTER TABLE ONLY crm_relay.change_3 ALTER COLUMN old_image SET COMPRESSION lz4;
ALTER TABLE ONLY crm_relay.change_3 ALTER COLUMN new_image SET COMPRESSION lz4;
ALTER TABLE ONLY crm_relay.change_3 ALTER COLUMN record_image SET COMPRESSION lz4;
ALTER TABLE crm_relay.change_3 OWNER TO postgres;
COMMENT ON TABLE crm_relay.change_3 IS 'a slot of the journal''s ring; read crm_relay.change';
CREATE TABLE crm_relay.change_4 (
    seq bigint DEFAULT nextval('crm_relay.change_seq'::regclass) NOT NULL,
    slot smallint NOT NULL,
    txid xid8 DEFAULT pg_current_xact_id() NOT NULL,
    module text NOT NULL,
    action text NOT NULL,
    record_id text,
    part text,
    part_id text,
    actor text,
    changed_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    db_user text NOT NULL,
    db_role text NOT NULL,
    application text NOT NULL,
    depth smallint DEFAULT pg_trigger_depth() NOT NULL,
    old_image json,
    new_image json,
    record_image json
)
WITH (toast_tuple_target='1600');
ALTER TABLE ONLY crm_relay.change_4 ALTER COLUMN old_image SET COMPRESSION lz4;
ALTER TABLE ONLY crm_relay.change_4 ALTER COLUMN new_image SET COMPRESSION lz4;
ALTER TABLE ONLY crm_relay.change_4 ALTER COLUMN record_image SET COMPRESSION lz4;
ALTER TABLE crm_relay.change_4 OWNER TO postgres;
COMMENT ON TABLE crm_relay.change_4 IS 'a slot of the journal''s ring; read crm_relay.change';
CREATE TABLE crm_relay.change_5 (
    seq bigint DEFAULT nextval('crm_relay.change_seq'::regclass) NOT NULL,
    slot smallint NOT NULL,
    txid xid8 DEFAULT pg_current_xact_id() NOT NULL,
    module text NOT NULL,
    action text NOT NULL,
    record_id text,
    part text,
    part_id text,
    actor text,
    changed_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    db_user text NOT NULL,
    db_role text NOT NULL,
    application text NOT NULL,
    depth smallint DEFAULT pg_trigger_depth() NOT NULL,
    old_image json,
    new_image json,
    record_image json
)
WITH (toast_tuple_target='1600');
ALTER TABLE ONLY crm_relay.change_5 ALTER COLUMN old_image SET COMPRESSION lz4;
ALTER TABLE ONLY crm_relay.change_5 ALTER COLUMN new_image SET COMPRESSION lz4;
ALTER TABLE ONLY crm_relay.change_5 ALTER COLUMN record_image SET COMPRESSION lz4;
ALTER TABLE crm_relay.change_5 OWNER TO postgres;
COMMENT ON TABLE crm_relay.change_5 IS 'a slot of the journal''s ring; read crm_relay.change';
CREATE TABLE crm_relay.change_6 (
    seq bigint DEFAULT nextval('crm_relay.change_seq'::regclass) NOT NULL,
    slot smallint NOT NULL,
    txid xid8 DEFAULT pg_current_xact_id() NOT NULL,
    module text NOT NULL,
    action text NOT NULL,
    record_id text,
    part text,
    part_id text,
    actor text,
    changed_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    db_user text NOT NULL,
    db_role text NOT NULL,
    application text NOT NULL,
    depth smallint DEFAULT pg_trigger_depth() NOT NULL,
    old_image json,
    new_image json,
    record_image json
)
WITH (toast_tuple_target='1600');
ALTER TABLE ONLY crm_relay.change_6 ALTER COLUMN old_image SET COMPRESSION lz4;
ALTER TABLE ONLY crm_relay.change_6 ALTER COLUMN new_image SET COMPRESSION lz4;
ALTER TABLE ONLY crm_relay.change_6 ALTER COLUMN record_image SET COMPRESSION lz4;
ALTER TABLE crm_relay.change_6 OWNER TO postgres;
COMMENT ON TABLE crm_relay.change_6 IS 'a slot of the journal''s ring; read crm_relay.change';
CREATE TABLE crm_relay.change_7 (
    seq bigint DEFAULT nextval('crm_relay.change_seq'::regclass) NOT NULL,
    slot smallint NOT NULL,
    txid xid8 DEFAULT pg_current_xact_id() NOT NULL,
    module text NOT NULL,
    action text NOT NULL,
    record_id text,
    part text,
    part_id text,
    actor text,
    changed_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    db_user text NOT NULL,
    db_role text NOT NULL,
    application text NOT NULL,
    depth smallint DEFAULT pg_trigger_depth() NOT NULL,
    old_image json,
    new_image json,
    record_image json
)
WITH (toast_tuple_target='1600');
ALTER TABLE ONLY crm_relay.change_7 ALTER COLUMN old_image SET COMPRESSION lz4;
ALTER TABLE ONLY crm_relay.change_7 ALTER COLUMN new_image SET COMPRESSION lz4;
ALTER TABLE ONLY crm_relay.change_7 ALTER COLUMN record_image SET COMPRESSION lz4;
ALTER TABLE crm_relay.change_7 OWNER TO postgres;
COMMENT ON TABLE crm_relay.change_7 IS 'a slot of the journal''s ring; read crm_relay.change';
CREATE TABLE crm_relay.change_8 (
    seq bigint DEFAULT nextval('crm_relay.change_seq'::regclass) NOT NULL,
    slot smallint NOT NULL,
    txid xid8 DEFAULT pg_current_xact_id() NOT NULL,
    module text NOT NULL,
    action text NOT NULL,
    record_id text,
    part text,
    part_id text,
    actor text,
    changed_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    db_user text NOT NULL,
    db_role text NOT NULL,
    application text NOT NULL,
    depth smallint DEFAULT pg_trigger_depth() NOT NULL,
    old_image json,
    new_image json,
    record_image json
)
WITH (toast_tuple_target='1600');
ALTER TABLE ONLY crm_relay.change_8 ALTER COLUMN old_image SET COMPRESSION lz4;
ALTER TABLE ONLY crm_relay.change_8 ALTER COLUMN new_image SET COMPRESSION lz4;
ALTER TABLE ONLY crm_relay.change_8 ALTER COLUMN record_image SET COMPRESSION lz4;
ALTER TABLE crm_relay.change_8 OWNER TO postgres;
COMMENT ON TABLE crm_relay.change_8 IS 'a slot of the journal''s ring; read crm_relay.change';
CREATE TABLE crm_relay.change_9 (
    seq bigint DEFAULT nextval('crm_relay.change_seq'::regclass) NOT NULL,
    slot smallint NOT NULL,
    txid xid8 DEFAULT pg_current_xact_id() NOT NULL,
    module text NOT NULL,
    action text NOT NULL,
    record_id text,
    part text,
    part_id text,
    actor text,
    changed_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    db_user text NOT NULL,
    db_role text NOT NULL,
    application text NOT NULL,
    depth smallint DEFAULT pg_trigger_depth() NOT NULL,
    old_image json,
    new_image json,
    record_image json
)
WITH (toast_tuple_target='1600');
ALTER TABLE ONLY crm_relay.change_9 ALTER COLUMN old_image SET COMPRESSION lz4;
ALTER TABLE ONLY crm_relay.change_9 ALTER COLUMN new_image SET COMPRESSION lz4;
ALTER TABLE ONLY crm_relay.change_9 ALTER COLUMN record_image SET COMPRESSION lz4;
ALTER TABLE crm_relay.change_9 OWNER TO postgres;
COMMENT ON TABLE crm_relay.change_9 IS 'a slot of the journal''s ring; read crm_relay.change';
CREATE TABLE crm_relay.disconnected (
    user_id text NOT NULL,
    disconnected_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    by_role text DEFAULT SESSION_USER NOT NULL
);
ALTER TABLE crm_relay.disconnected OWNER TO postgres;
COMMENT ON TABLE crm_relay.disconnected IS 'users whose tokens are refused that were issued before a moment; written by crm_relay.disconnect()';
COMMENT ON COLUMN crm_relay.disconnected.user_id IS 'the user, as their tokens name them';
COMMENT ON COLUMN crm_relay.disconnected.disconnected_at IS 'tokens issued up to then are refused';
COMMENT ON COLUMN crm_relay.disconnected.by_role IS 'session_user: who did it';
CREATE TABLE crm_relay.installed (
    signature text NOT NULL,
    fingerprint text,
    owner text
);
ALTER TABLE crm_relay.installed OWNER TO postgres;
COMMENT ON TABLE crm_relay.installed IS 'the functions as they were installed, so that crm_relay.verify() sees what was changed by hand';
COMMENT ON COLUMN crm_relay.installed.signature IS 'the function';
COMMENT ON COLUMN crm_relay.installed.fingerprint IS 'of its text and settings; null of one that may be replaced';
COMMENT ON COLUMN crm_relay.installed.owner IS 'whose rights it runs with; null of one that runs with its caller''s';
CREATE TABLE crm_relay.setting (
    only_row boolean DEFAULT true NOT NULL,
    version integer NOT NULL,
    install_id uuid DEFAULT gen_random_uuid() NOT NULL,
    installed_at timestamp with time zone DEFAULT now() NOT NULL,
    doorbell text DEFAULT 'adaptive'::text NOT NULL,
    retention interval DEFAULT '7 days'::interval NOT NULL,
    pruned_txid xid8 DEFAULT '0'::xid8 NOT NULL,
    pruned_at timestamp with time zone,
    CONSTRAINT setting_doorbell_check CHECK ((doorbell = ANY (ARRAY['adaptive'::text, 'always'::text, 'never'::text]))),
    CONSTRAINT setting_only_row_check CHECK (only_row),
    CONSTRAINT setting_retention_check CHECK ((retention >= '00:01:00'::interval))
);
ALTER TABLE crm_relay.setting OWNER TO postgres;
COMMENT ON TABLE crm_relay.setting IS 'the settings of this installation: one row';
COMMENT ON COLUMN crm_relay.setting.version IS 'version of the schema; an older crm-relay refuses to install over it';
COMMENT ON COLUMN crm_relay.setting.install_id IS 'tells this installation from every other; part of the epoch of cursors';
COMMENT ON COLUMN crm_relay.setting.installed_at IS 'when it was first installed';
COMMENT ON COLUMN crm_relay.setting.doorbell IS 'adaptive: transactions with changes ring by notify while the relay sleeps; always: each does; never: the relay polls (for servers with two-phase commit, which refuses notify)';
COMMENT ON COLUMN crm_relay.setting.retention IS 'how long a change is kept in the journal at least';
COMMENT ON COLUMN crm_relay.setting.pruned_txid IS 'greatest transaction id that was ever truncated away: a cursor below it is not whole';
COMMENT ON COLUMN crm_relay.setting.pruned_at IS 'when a slot was last truncated';
ALTER TABLE ONLY crm_relay.change ATTACH PARTITION crm_relay.change_0 FOR VALUES IN ('0');
ALTER TABLE ONLY crm_relay.change ATTACH PARTITION crm_relay.change_1 FOR VALUES IN ('1');
ALTER TABLE ONLY crm_relay.change ATTACH PARTITION crm_relay.change_2 FOR VALUES IN ('2');
ALTER TABLE ONLY crm_relay.change ATTACH PARTITION crm_relay.change_3 FOR VALUES IN ('3');
ALTER TABLE ONLY crm_relay.change ATTACH PARTITION crm_relay.change_4 FOR VALUES IN ('4');
ALTER TABLE ONLY crm_relay.change ATTACH PARTITION crm_relay.change_5 FOR VALUES IN ('5');
ALTER TABLE ONLY crm_relay.change ATTACH PARTITION crm_relay.change_6 FOR VALUES IN ('6');
ALTER TABLE ONLY crm_relay.change ATTACH PARTITION crm_relay.change_7 FOR VALUES IN ('7');
ALTER TABLE ONLY crm_relay.change ATTACH PARTITION crm_relay.change_8 FOR VALUES IN ('8');
ALTER TABLE ONLY crm_relay.change ATTACH PARTITION crm_relay.change_9 FOR VALUES IN ('9');
ALTER TABLE ONLY crm_relay.canary
    ADD CONSTRAINT canary_pkey PRIMARY KEY (relay);
ALTER TABLE ONLY crm_relay.disconnected
    ADD CONSTRAINT disconnected_pkey PRIMARY KEY (user_id);
ALTER TABLE ONLY crm_relay.installed
    ADD CONSTRAINT installed_pkey PRIMARY KEY (signature);
ALTER TABLE ONLY crm_relay.module
    ADD CONSTRAINT module_pkey PRIMARY KEY (module);
ALTER TABLE ONLY crm_relay.module
    ADD CONSTRAINT module_relation_key UNIQUE (relation);
ALTER TABLE ONLY crm_relay.setting
    ADD CONSTRAINT setting_pkey PRIMARY KEY (only_row);
CREATE INDEX change_record ON ONLY crm_relay.change USING btree (module, record_id, txid);
COMMENT ON INDEX crm_relay.change_record IS 'for the history of one record, also from a snapshot on';
CREATE INDEX change_0_module_record_id_txid_idx ON crm_relay.change_0 USING btree (module, record_id, txid);
CREATE INDEX change_txid ON ONLY crm_relay.change USING btree (txid);
COMMENT ON INDEX crm_relay.change_txid IS 'for the relay, which reads from snapshot to snapshot';
CREATE INDEX change_0_txid_idx ON crm_relay.change_0 USING btree (txid);
CREATE INDEX change_1_module_record_id_txid_idx ON crm_relay.change_1 USING btree (module, record_id, txid);
CREATE INDEX change_1_txid_idx ON crm_relay.change_1 USING btree (txid);
CREATE INDEX change_2_module_record_id_txid_idx ON crm_relay.change_2 USING btree (module, record_id, txid);
CREATE INDEX change_2_txid_idx ON crm_relay.change_2 USING btree (txid);
CREATE INDEX change_3_module_record_id_txid_idx ON crm_relay.change_3 USING btree (module, record_id, txid);
CREATE INDEX change_3_txid_idx ON crm_relay.change_3 USING btree (txid);
CREATE INDEX change_4_module_record_id_txid_idx ON crm_relay.change_4 USING btree (module, record_id, txid);
CREATE INDEX change_4_txid_idx ON crm_relay.change_4 USING btree (txid);
CREATE INDEX change_5_module_record_id_txid_idx ON crm_relay.change_5 USING btree (module, record_id, txid);
CREATE INDEX change_5_txid_idx ON crm_relay.change_5 USING btree (txid);
CREATE INDEX change_6_module_record_id_txid_idx ON crm_relay.change_6 USING btree (module, record_id, txid);
CREATE INDEX change_6_txid_idx ON crm_relay.change_6 USING btree (txid);
CREATE INDEX change_7_module_record_id_txid_idx ON crm_relay.change_7 USING btree (module, record_id, txid);
CREATE INDEX change_7_txid_idx ON crm_relay.change_7 USING btree (txid);
CREATE INDEX change_8_module_record_id_txid_idx ON crm_relay.change_8 USING btree (module, record_id, txid);
CREATE INDEX change_8_txid_idx ON crm_relay.change_8 USING btree (txid);
CREATE INDEX change_9_module_record_id_txid_idx ON crm_relay.change_9 USING btree (module, record_id, txid);
CREATE INDEX change_9_txid_idx ON crm_relay.change_9 USING btree (txid);
ALTER INDEX crm_relay.change_record ATTACH PARTITION crm_relay.change_0_module_record_id_txid_idx;
ALTER INDEX crm_relay.change_txid ATTACH PARTITION crm_relay.change_0_txid_idx;
ALTER INDEX crm_relay.change_record ATTACH PARTITION crm_relay.change_1_module_record_id_txid_idx;
ALTER INDEX crm_relay.change_txid ATTACH PARTITION crm_relay.change_1_txid_idx;
ALTER INDEX crm_relay.change_record ATTACH PARTITION crm_relay.change_2_module_record_id_txid_idx;
ALTER INDEX crm_relay.change_txid ATTACH PARTITION crm_relay.change_2_txid_idx;
ALTER INDEX crm_relay.change_record ATTACH PARTITION crm_relay.change_3_module_record_id_txid_idx;
ALTER INDEX crm_relay.change_txid ATTACH PARTITION crm_relay.change_3_txid_idx;
ALTER INDEX crm_relay.change_record ATTACH PARTITION crm_relay.change_4_module_record_id_txid_idx;
ALTER INDEX crm_relay.change_txid ATTACH PARTITION crm_relay.change_4_txid_idx;
ALTER INDEX crm_relay.change_record ATTACH PARTITION crm_relay.change_5_module_record_id_txid_idx;
ALTER INDEX crm_relay.change_txid ATTACH PARTITION crm_relay.change_5_txid_idx;
ALTER INDEX crm_relay.change_record ATTACH PARTITION crm_relay.change_6_module_record_id_txid_idx;
ALTER INDEX crm_relay.change_txid ATTACH PARTITION crm_relay.change_6_txid_idx;
ALTER INDEX crm_relay.change_record ATTACH PARTITION crm_relay.change_7_module_record_id_txid_idx;
ALTER INDEX crm_relay.change_txid ATTACH PARTITION crm_relay.change_7_txid_idx;
ALTER INDEX crm_relay.change_record ATTACH PARTITION crm_relay.change_8_module_record_id_txid_idx;
ALTER INDEX crm_relay.change_txid ATTACH PARTITION crm_relay.change_8_txid_idx;
ALTER INDEX crm_relay.change_record ATTACH PARTITION crm_relay.change_9_module_record_id_txid_idx;
ALTER INDEX crm_relay.change_txid ATTACH PARTITION crm_relay.change_9_txid_idx;
CREATE TRIGGER "!crm_relay" AFTER INSERT OR DELETE OR UPDATE ON crm_relay.canary FOR EACH ROW EXECUTE FUNCTION crm_relay.capture('crm_relay_canary');
COMMENT ON TRIGGER "!crm_relay" ON crm_relay.canary IS 'crm-relay: writes each change to crm_relay.change';
CREATE TRIGGER "!crm_relay_truncate" AFTER TRUNCATE ON crm_relay.canary FOR EACH STATEMENT EXECUTE FUNCTION crm_relay.capture_truncate('crm_relay_canary');
COMMENT ON TRIGGER "!crm_relay_truncate" ON crm_relay.canary IS 'crm-relay: tells everybody to fetch anew';
CREATE TRIGGER refresh_module BEFORE INSERT OR UPDATE ON crm_relay.module FOR EACH ROW EXECUTE FUNCTION crm_relay.refresh_module();
ALTER TABLE crm_relay.module ENABLE ALWAYS TRIGGER refresh_module;
CREATE TRIGGER refresh_modules AFTER UPDATE OF doorbell, retention ON crm_relay.setting FOR EACH STATEMENT EXECUTE FUNCTION crm_relay.refresh_modules();
ALTER TABLE crm_relay.setting ENABLE ALWAYS TRIGGER refresh_modules;
ALTER TABLE ONLY crm_relay.module
    ADD CONSTRAINT module_part_of_fkey FOREIGN KEY (part_of) REFERENCES crm_relay.module(module);
GRANT ALL ON FUNCTION crm_relay."only"(image json, columns text[]) TO crm_relay_audit;
GRANT ALL ON FUNCTION crm_relay."only"(image json, columns text[]) TO crm_relay_capture;
GRANT ALL ON FUNCTION crm_relay."only"(image json, columns text[]) TO crm_relay_serve;
GRANT ALL ON FUNCTION crm_relay.access_now(module text, id text) TO crm_relay_audit;
GRANT ALL ON FUNCTION crm_relay.access_now(module text, id text) TO crm_relay_capture;
GRANT ALL ON FUNCTION crm_relay.access_now(module text, id text) TO crm_relay_serve;
GRANT ALL ON FUNCTION crm_relay.accesses_now(module text, ids text[]) TO crm_relay_audit;
GRANT ALL ON FUNCTION crm_relay.accesses_now(module text, ids text[]) TO crm_relay_serve;
GRANT ALL ON FUNCTION crm_relay.base_of(type oid) TO crm_relay_part;
GRANT ALL ON FUNCTION crm_relay.base_of(type oid) TO crm_relay_policy;
GRANT ALL ON FUNCTION crm_relay.base_of(type oid) TO crm_relay_snapshot;
GRANT ALL ON FUNCTION crm_relay.changes_since(cursor text) TO crm_relay_audit;
GRANT ALL ON FUNCTION crm_relay.changes_since(cursor text) TO crm_relay_serve;
GRANT ALL ON FUNCTION crm_relay.column_types(relation regclass, columns text[]) TO crm_relay_audit;
GRANT ALL ON FUNCTION crm_relay.column_types(relation regclass, columns text[]) TO crm_relay_serve;
GRANT ALL ON FUNCTION crm_relay.disconnect(user_id text) TO crm_relay_audit;
GRANT ALL ON FUNCTION crm_relay.disown(known text) TO crm_relay_serve;
GRANT ALL ON FUNCTION crm_relay.enters(principal jsonb, room text) TO crm_relay_audit;
GRANT ALL ON FUNCTION crm_relay.enters(principal jsonb, room text) TO crm_relay_serve;
GRANT ALL ON FUNCTION crm_relay.epoch() TO crm_relay_audit;
GRANT ALL ON FUNCTION crm_relay.epoch() TO crm_relay_prune;
GRANT ALL ON FUNCTION crm_relay.epoch() TO crm_relay_serve;
GRANT ALL ON FUNCTION crm_relay.equals(column_name text, type oid, given text, is_any boolean) TO crm_relay_part;
GRANT ALL ON FUNCTION crm_relay.equals(column_name text, type oid, given text, is_any boolean) TO crm_relay_policy;
GRANT ALL ON FUNCTION crm_relay.equals(column_name text, type oid, given text, is_any boolean) TO crm_relay_snapshot;
GRANT ALL ON FUNCTION crm_relay.fingerprint(function oid) TO crm_relay_audit;
GRANT ALL ON FUNCTION crm_relay.fingerprint(function oid) TO crm_relay_serve;
GRANT ALL ON FUNCTION crm_relay.goes_by(watched crm_relay.module, OUT marks text[], OUT large_null jsonb, OUT others_null jsonb, OUT large_columns text[], OUT large_nulls text[], OUT names_size integer, OUT doorbell text, OUT slot_seconds double precision) TO crm_relay_audit;
GRANT ALL ON FUNCTION crm_relay.goes_by(watched crm_relay.module, OUT marks text[], OUT large_null jsonb, OUT others_null jsonb, OUT large_columns text[], OUT large_nulls text[], OUT names_size integer, OUT doorbell text, OUT slot_seconds double precision) TO crm_relay_serve;
GRANT ALL ON FUNCTION crm_relay.heirs_of(module text, ids text[]) TO crm_relay_audit;
GRANT ALL ON FUNCTION crm_relay.heirs_of(module text, ids text[]) TO crm_relay_serve;
GRANT ALL ON FUNCTION crm_relay.image(record anyelement) TO crm_relay_capture;
GRANT ALL ON FUNCTION crm_relay.image(record anyelement) TO crm_relay_snapshot;
GRANT ALL ON FUNCTION crm_relay.images(old_row anyelement, new_row anyelement, marks text[], large jsonb, others jsonb, OUT made crm_relay.made) TO crm_relay_capture;
GRANT ALL ON FUNCTION crm_relay.is_private(image json) TO crm_relay_audit;
GRANT ALL ON FUNCTION crm_relay.is_private(image json) TO crm_relay_serve;
GRANT ALL ON FUNCTION crm_relay.is_secret(column_name text) TO crm_relay_audit;
GRANT ALL ON FUNCTION crm_relay.is_secret(column_name text) TO crm_relay_serve;
GRANT ALL ON FUNCTION crm_relay.key_condition(watched crm_relay.module, given text) TO crm_relay_snapshot;
GRANT ALL ON FUNCTION crm_relay.known(claims text) TO crm_relay_audit;
GRANT ALL ON FUNCTION crm_relay.known(claims text) TO crm_relay_serve;
GRANT ALL ON FUNCTION crm_relay.known(several text[]) TO crm_relay_audit;
GRANT ALL ON FUNCTION crm_relay.known(several text[]) TO crm_relay_serve;
GRANT ALL ON FUNCTION crm_relay.lookup_now(module text) TO crm_relay_policy;
GRANT ALL ON FUNCTION crm_relay.may_enter(principal jsonb, room text) TO crm_relay_audit;
GRANT ALL ON FUNCTION crm_relay.may_enter(principal jsonb, room text) TO crm_relay_serve;
GRANT ALL ON FUNCTION crm_relay.may_see(principal jsonb, module text, record_id text) TO crm_relay_audit;
GRANT ALL ON FUNCTION crm_relay.may_see(principal jsonb, module text, record_id text) TO crm_relay_serve;
GRANT ALL ON FUNCTION crm_relay.may_see_row(principal jsonb, module text, image json) TO crm_relay_audit;
GRANT ALL ON FUNCTION crm_relay.may_see_row(principal jsonb, module text, image json) TO crm_relay_serve;
GRANT ALL ON FUNCTION crm_relay.may_subscribe(principal jsonb, room text, image json, replays boolean) TO crm_relay_audit;
GRANT ALL ON FUNCTION crm_relay.may_subscribe(principal jsonb, room text, image json, replays boolean) TO crm_relay_serve;
GRANT ALL ON FUNCTION crm_relay.may_subscribe(principal jsonb, room text, replays boolean) TO crm_relay_audit;
GRANT ALL ON FUNCTION crm_relay.may_subscribe(principal jsonb, room text, replays boolean) TO crm_relay_serve;
GRANT ALL ON FUNCTION crm_relay.named(claims jsonb) TO crm_relay_audit;
GRANT ALL ON FUNCTION crm_relay.named(claims jsonb) TO crm_relay_serve;
GRANT ALL ON FUNCTION crm_relay.origin_of(module text, image json, OUT named boolean, OUT origin json) TO crm_relay_audit;
GRANT ALL ON FUNCTION crm_relay.origin_of(module text, image json, OUT named boolean, OUT origin json) TO crm_relay_serve;
GRANT ALL ON FUNCTION crm_relay.owner_of(image json) TO crm_relay_audit;
GRANT ALL ON FUNCTION crm_relay.owner_of(image json) TO crm_relay_serve;
GRANT ALL ON FUNCTION crm_relay.owners_apart(OUT relation regclass, OUT owner name, OUT others text) TO crm_relay_audit;
GRANT ALL ON FUNCTION crm_relay.owners_apart(OUT relation regclass, OUT owner name, OUT others text) TO crm_relay_serve;
GRANT ALL ON FUNCTION crm_relay.person(id text, image json) TO crm_relay_audit;
GRANT ALL ON FUNCTION crm_relay.person(id text, image json) TO crm_relay_serve;
GRANT ALL ON FUNCTION crm_relay.placed(module text, image json) TO crm_relay_audit;
GRANT ALL ON FUNCTION crm_relay.placed(module text, image json) TO crm_relay_serve;
GRANT ALL ON FUNCTION crm_relay.principal(claims jsonb) TO crm_relay_audit;
GRANT ALL ON FUNCTION crm_relay.principal(claims jsonb) TO crm_relay_serve;
GRANT ALL ON FUNCTION crm_relay.prune(needed xid8) TO crm_relay_serve;
GRANT ALL ON FUNCTION crm_relay.readable(image json) TO crm_relay_audit;
GRANT ALL ON FUNCTION crm_relay.readable(image json) TO crm_relay_capture;
GRANT ALL ON FUNCTION crm_relay.readable(image json) TO crm_relay_serve;
GRANT ALL ON FUNCTION crm_relay.readable(image json) TO crm_relay_snapshot;
GRANT ALL ON FUNCTION crm_relay.readable_columns(relation regclass, columns text[]) TO crm_relay_part;
GRANT ALL ON FUNCTION crm_relay.readable_columns(relation regclass, columns text[]) TO crm_relay_policy;
GRANT ALL ON FUNCTION crm_relay.recent_rows(per_slot integer) TO crm_relay_audit;
GRANT ALL ON FUNCTION crm_relay.recent_rows(per_slot integer) TO crm_relay_serve;
GRANT ALL ON FUNCTION crm_relay.record_id(image json, key_columns text[]) TO crm_relay_part;
GRANT ALL ON FUNCTION crm_relay.record_id(image json, key_columns text[]) TO crm_relay_policy;
GRANT ALL ON FUNCTION crm_relay.record_now(module text, id text) TO crm_relay_serve;
GRANT ALL ON FUNCTION crm_relay.records_of(part crm_relay.module, ids text[], OUT record_ids text[], OUT record_images json[]) TO crm_relay_capture;
GRANT ALL ON FUNCTION crm_relay.renew() TO crm_relay_serve;
GRANT ALL ON FUNCTION crm_relay.rooms_of(module text, image json) TO crm_relay_audit;
GRANT ALL ON FUNCTION crm_relay.rooms_of(module text, image json) TO crm_relay_serve;
GRANT ALL ON FUNCTION crm_relay.sees(principal jsonb, module text, image json) TO crm_relay_audit;
GRANT ALL ON FUNCTION crm_relay.sees(principal jsonb, module text, image json) TO crm_relay_serve;
GRANT ALL ON FUNCTION crm_relay.slot(at timestamp with time zone, retention interval) TO crm_relay_audit;
GRANT ALL ON FUNCTION crm_relay.slot(at timestamp with time zone, retention interval) TO crm_relay_capture;
GRANT ALL ON FUNCTION crm_relay.slot(at timestamp with time zone, retention interval) TO crm_relay_prune;
GRANT ALL ON FUNCTION crm_relay.slot(at timestamp with time zone, retention interval) TO crm_relay_serve;
GRANT ALL ON FUNCTION crm_relay.slot_seconds(retention interval) TO crm_relay_audit;
GRANT ALL ON FUNCTION crm_relay.slot_seconds(retention interval) TO crm_relay_capture;
GRANT ALL ON FUNCTION crm_relay.slot_seconds(retention interval) TO crm_relay_prune;
GRANT ALL ON FUNCTION crm_relay.slot_seconds(retention interval) TO crm_relay_serve;
GRANT ALL ON FUNCTION crm_relay.usual_may_enter(principal jsonb, room text) TO crm_relay_audit;
GRANT ALL ON FUNCTION crm_relay.usual_may_enter(principal jsonb, room text) TO crm_relay_serve;
GRANT ALL ON FUNCTION crm_relay.usual_may_see_row(principal jsonb, module text, image json) TO crm_relay_audit;
GRANT ALL ON FUNCTION crm_relay.usual_may_see_row(principal jsonb, module text, image json) TO crm_relay_serve;
GRANT ALL ON FUNCTION crm_relay.usual_principal(claims jsonb) TO crm_relay_audit;
GRANT ALL ON FUNCTION crm_relay.usual_principal(claims jsonb) TO crm_relay_serve;
GRANT ALL ON FUNCTION crm_relay.usual_rooms_of(module text, image json) TO crm_relay_audit;
GRANT ALL ON FUNCTION crm_relay.usual_rooms_of(module text, image json) TO crm_relay_serve;
GRANT ALL ON FUNCTION crm_relay.verify() TO crm_relay_audit;
GRANT ALL ON FUNCTION crm_relay.verify() TO crm_relay_serve;
GRANT ALL ON FUNCTION crm_relay.verify_columns() TO crm_relay_audit;
GRANT ALL ON FUNCTION crm_relay.verify_columns() TO crm_relay_serve;
GRANT ALL ON FUNCTION crm_relay.verify_functions() TO crm_relay_audit;
GRANT ALL ON FUNCTION crm_relay.verify_functions() TO crm_relay_serve;
GRANT ALL ON FUNCTION crm_relay.verify_hidden() TO crm_relay_audit;
GRANT ALL ON FUNCTION crm_relay.verify_hidden() TO crm_relay_serve;
GRANT ALL ON FUNCTION crm_relay.verify_journal() TO crm_relay_audit;
GRANT ALL ON FUNCTION crm_relay.verify_journal() TO crm_relay_serve;
GRANT ALL ON FUNCTION crm_relay.verify_policy() TO crm_relay_audit;
GRANT ALL ON FUNCTION crm_relay.verify_policy() TO crm_relay_serve;
GRANT ALL ON FUNCTION crm_relay.verify_sessions(old interval) TO crm_relay_audit;
GRANT ALL ON FUNCTION crm_relay.verify_sessions(old interval) TO crm_relay_serve;
GRANT ALL ON FUNCTION crm_relay.verify_settings() TO crm_relay_audit;
GRANT ALL ON FUNCTION crm_relay.verify_settings() TO crm_relay_serve;
GRANT ALL ON FUNCTION crm_relay.verify_tables() TO crm_relay_audit;
GRANT ALL ON FUNCTION crm_relay.verify_tables() TO crm_relay_serve;
GRANT ALL ON FUNCTION crm_relay.verify_triggers() TO crm_relay_audit;
GRANT ALL ON FUNCTION crm_relay.verify_triggers() TO crm_relay_serve;
GRANT ALL ON FUNCTION crm_relay.watch_call(watched crm_relay.module, relation text) TO crm_relay_audit;
GRANT ALL ON FUNCTION crm_relay.watch_call(watched crm_relay.module, relation text) TO crm_relay_serve;
GRANT ALL ON FUNCTION crm_relay.watch_command(relation regclass) TO crm_relay_audit;
GRANT ALL ON FUNCTION crm_relay.watch_command(relation regclass) TO crm_relay_serve;
GRANT ALL ON FUNCTION crm_relay.without(image json, columns text[]) TO crm_relay_capture;
GRANT ALL ON FUNCTION crm_relay.without(image json, columns text[]) TO crm_relay_snapshot;
GRANT INSERT ON TABLE crm_relay.change TO crm_relay_capture;
GRANT SELECT ON TABLE crm_relay.audit TO crm_relay_audit;
GRANT SELECT ON TABLE crm_relay.canary TO crm_relay_policy;
GRANT SELECT ON TABLE crm_relay.canary TO crm_relay_snapshot;
GRANT SELECT ON TABLE crm_relay.change TO crm_relay_audit;
GRANT SELECT ON TABLE crm_relay.change TO crm_relay_prune;
GRANT SELECT ON TABLE crm_relay.change TO crm_relay_serve;
GRANT SELECT ON TABLE crm_relay.disconnected TO crm_relay_audit;
GRANT SELECT ON TABLE crm_relay.disconnected TO crm_relay_serve;
GRANT SELECT ON TABLE crm_relay.installed TO crm_relay_audit;
GRANT SELECT ON TABLE crm_relay.installed TO crm_relay_serve;
GRANT SELECT ON TABLE crm_relay.module TO crm_relay_audit;
GRANT SELECT ON TABLE crm_relay.module TO crm_relay_capture;
GRANT SELECT ON TABLE crm_relay.module TO crm_relay_part;
GRANT SELECT ON TABLE crm_relay.module TO crm_relay_policy;
GRANT SELECT ON TABLE crm_relay.module TO crm_relay_prune;
GRANT SELECT ON TABLE crm_relay.module TO crm_relay_serve;
GRANT SELECT ON TABLE crm_relay.module TO crm_relay_snapshot;
GRANT SELECT ON TABLE crm_relay.setting TO crm_relay_audit;
GRANT SELECT ON TABLE crm_relay.setting TO crm_relay_capture;
GRANT SELECT ON TABLE crm_relay.setting TO crm_relay_prune;
GRANT SELECT ON TABLE crm_relay.setting TO crm_relay_serve;
GRANT SELECT(version) ON TABLE crm_relay.setting TO crm_relay_policy;
GRANT SELECT,INSERT,DELETE,UPDATE ON TABLE crm_relay.canary TO crm_relay_serve;
GRANT SELECT,INSERT,UPDATE ON TABLE crm_relay.disconnected TO crm_relay_capture;
GRANT SELECT,TRUNCATE ON TABLE crm_relay.change_0 TO crm_relay_prune;
GRANT SELECT,TRUNCATE ON TABLE crm_relay.change_1 TO crm_relay_prune;
GRANT SELECT,TRUNCATE ON TABLE crm_relay.change_2 TO crm_relay_prune;
GRANT SELECT,TRUNCATE ON TABLE crm_relay.change_3 TO crm_relay_prune;
GRANT SELECT,TRUNCATE ON TABLE crm_relay.change_4 TO crm_relay_prune;
GRANT SELECT,TRUNCATE ON TABLE crm_relay.change_5 TO crm_relay_prune;
GRANT SELECT,TRUNCATE ON TABLE crm_relay.change_6 TO crm_relay_prune;
GRANT SELECT,TRUNCATE ON TABLE crm_relay.change_7 TO crm_relay_prune;
GRANT SELECT,TRUNCATE ON TABLE crm_relay.change_8 TO crm_relay_prune;
GRANT SELECT,TRUNCATE ON TABLE crm_relay.change_9 TO crm_relay_prune;
GRANT UPDATE(install_id) ON TABLE crm_relay.setting TO crm_relay_prune;
GRANT UPDATE(pruned_at) ON TABLE crm_relay.setting TO crm_relay_prune;
GRANT UPDATE(pruned_txid) ON TABLE crm_relay.setting TO crm_relay_prune;
GRANT USAGE ON SCHEMA crm_relay TO crm_relay_audit;
GRANT USAGE ON SCHEMA crm_relay TO crm_relay_capture;
GRANT USAGE ON SCHEMA crm_relay TO crm_relay_part;
GRANT USAGE ON SCHEMA crm_relay TO crm_relay_policy;
GRANT USAGE ON SCHEMA crm_relay TO crm_relay_prune;
GRANT USAGE ON SCHEMA crm_relay TO crm_relay_serve;
GRANT USAGE ON SCHEMA crm_relay TO crm_relay_snapshot;
GRANT USAGE ON SEQUENCE crm_relay.change_seq TO crm_relay_capture;
REVOKE ALL ON FUNCTION crm_relay."only"(image json, columns text[]) FROM PUBLIC;
REVOKE ALL ON FUNCTION crm_relay.access_now(module text, id text) FROM PUBLIC;
REVOKE ALL ON FUNCTION crm_relay.accesses_now(module text, ids text[]) FROM PUBLIC;
REVOKE ALL ON FUNCTION crm_relay.add_triggers(target regclass, module text, part_of text) FROM PUBLIC;
REVOKE ALL ON FUNCTION crm_relay.base_of(type oid) FROM PUBLIC;
REVOKE ALL ON FUNCTION crm_relay.changes_since(cursor text) FROM PUBLIC;
REVOKE ALL ON FUNCTION crm_relay.column_types(relation regclass, columns text[]) FROM PUBLIC;
REVOKE ALL ON FUNCTION crm_relay.disconnect(user_id text) FROM PUBLIC;
REVOKE ALL ON FUNCTION crm_relay.disown(known text) FROM PUBLIC;
REVOKE ALL ON FUNCTION crm_relay.enters(principal jsonb, room text) FROM PUBLIC;
REVOKE ALL ON FUNCTION crm_relay.epoch() FROM PUBLIC;
REVOKE ALL ON FUNCTION crm_relay.equals(column_name text, type oid, given text, is_any boolean) FROM PUBLIC;
REVOKE ALL ON FUNCTION crm_relay.fingerprint(function oid) FROM PUBLIC;
REVOKE ALL ON FUNCTION crm_relay.goes_by(watched crm_relay.module, OUT marks text[], OUT large_null jsonb, OUT others_null jsonb, OUT large_columns text[], OUT large_nulls text[], OUT names_size integer, OUT doorbell text, OUT slot_seconds double precision) FROM PUBLIC;
REVOKE ALL ON FUNCTION crm_relay.heirs_of(module text, ids text[]) FROM PUBLIC;
REVOKE ALL ON FUNCTION crm_relay.image(record anyelement) FROM PUBLIC;
REVOKE ALL ON FUNCTION crm_relay.images(old_row anyelement, new_row anyelement, marks text[], large jsonb, others jsonb, OUT made crm_relay.made) FROM PUBLIC;
REVOKE ALL ON FUNCTION crm_relay.is_private(image json) FROM PUBLIC;
REVOKE ALL ON FUNCTION crm_relay.is_secret(column_name text) FROM PUBLIC;
REVOKE ALL ON FUNCTION crm_relay.key_condition(watched crm_relay.module, given text) FROM PUBLIC;
REVOKE ALL ON FUNCTION crm_relay.known(claims text) FROM PUBLIC;
REVOKE ALL ON FUNCTION crm_relay.known(several text[]) FROM PUBLIC;
REVOKE ALL ON FUNCTION crm_relay.lookup_now(module text) FROM PUBLIC;
REVOKE ALL ON FUNCTION crm_relay.lookup_of(watched crm_relay.module) FROM PUBLIC;
REVOKE ALL ON FUNCTION crm_relay.may_enter(principal jsonb, room text) FROM PUBLIC;
REVOKE ALL ON FUNCTION crm_relay.may_see(principal jsonb, module text, record_id text) FROM PUBLIC;
REVOKE ALL ON FUNCTION crm_relay.may_see_row(principal jsonb, module text, image json) FROM PUBLIC;
REVOKE ALL ON FUNCTION crm_relay.may_subscribe(principal jsonb, room text, image json, replays boolean) FROM PUBLIC;
REVOKE ALL ON FUNCTION crm_relay.may_subscribe(principal jsonb, room text, replays boolean) FROM PUBLIC;
REVOKE ALL ON FUNCTION crm_relay.named(claims jsonb) FROM PUBLIC;
REVOKE ALL ON FUNCTION crm_relay.narrowed(images json[], hidden text[], shown text[]) FROM PUBLIC;
REVOKE ALL ON FUNCTION crm_relay.origin_of(module text, image json, OUT named boolean, OUT origin json) FROM PUBLIC;
REVOKE ALL ON FUNCTION crm_relay.owner_of(image json) FROM PUBLIC;
REVOKE ALL ON FUNCTION crm_relay.owners_apart(OUT relation regclass, OUT owner name, OUT others text) FROM PUBLIC;
REVOKE ALL ON FUNCTION crm_relay.person(id text, image json) FROM PUBLIC;
REVOKE ALL ON FUNCTION crm_relay.placed(module text, image json) FROM PUBLIC;
REVOKE ALL ON FUNCTION crm_relay.principal(claims jsonb) FROM PUBLIC;
REVOKE ALL ON FUNCTION crm_relay.prune(needed xid8) FROM PUBLIC;
REVOKE ALL ON FUNCTION crm_relay.readable(image json) FROM PUBLIC;
REVOKE ALL ON FUNCTION crm_relay.readable_columns(relation regclass, columns text[]) FROM PUBLIC;
REVOKE ALL ON FUNCTION crm_relay.recent_rows(per_slot integer) FROM PUBLIC;
REVOKE ALL ON FUNCTION crm_relay.record_id(image json, key_columns text[]) FROM PUBLIC;
REVOKE ALL ON FUNCTION crm_relay.record_now(module text, id text) FROM PUBLIC;
REVOKE ALL ON FUNCTION crm_relay.records_of(part crm_relay.module, ids text[], OUT record_ids text[], OUT record_images json[]) FROM PUBLIC;
REVOKE ALL ON FUNCTION crm_relay.redact(module text) FROM PUBLIC;
REVOKE ALL ON FUNCTION crm_relay.refresh_module() FROM PUBLIC;
REVOKE ALL ON FUNCTION crm_relay.refresh_modules() FROM PUBLIC;
REVOKE ALL ON FUNCTION crm_relay.renew() FROM PUBLIC;
REVOKE ALL ON FUNCTION crm_relay.ring(module text, doorbell text) FROM PUBLIC;
REVOKE ALL ON FUNCTION crm_relay.rooms_of(module text, image json) FROM PUBLIC;
REVOKE ALL ON FUNCTION crm_relay.sees(principal jsonb, module text, image json) FROM PUBLIC;
REVOKE ALL ON FUNCTION crm_relay.slot(at timestamp with time zone, retention interval) FROM PUBLIC;
REVOKE ALL ON FUNCTION crm_relay.slot_seconds(retention interval) FROM PUBLIC;
REVOKE ALL ON FUNCTION crm_relay.stripped(image json, columns text[]) FROM PUBLIC;
REVOKE ALL ON FUNCTION crm_relay.unwatch(target regclass) FROM PUBLIC;
REVOKE ALL ON FUNCTION crm_relay.usual_may_enter(principal jsonb, room text) FROM PUBLIC;
REVOKE ALL ON FUNCTION crm_relay.usual_may_see_row(principal jsonb, module text, image json) FROM PUBLIC;
REVOKE ALL ON FUNCTION crm_relay.usual_principal(claims jsonb) FROM PUBLIC;
REVOKE ALL ON FUNCTION crm_relay.usual_rooms_of(module text, image json) FROM PUBLIC;
REVOKE ALL ON FUNCTION crm_relay.verify() FROM PUBLIC;
REVOKE ALL ON FUNCTION crm_relay.verify_columns() FROM PUBLIC;
REVOKE ALL ON FUNCTION crm_relay.verify_functions() FROM PUBLIC;
REVOKE ALL ON FUNCTION crm_relay.verify_hidden() FROM PUBLIC;
REVOKE ALL ON FUNCTION crm_relay.verify_journal() FROM PUBLIC;
REVOKE ALL ON FUNCTION crm_relay.verify_policy() FROM PUBLIC;
REVOKE ALL ON FUNCTION crm_relay.verify_sessions(old interval) FROM PUBLIC;
REVOKE ALL ON FUNCTION crm_relay.verify_settings() FROM PUBLIC;
REVOKE ALL ON FUNCTION crm_relay.verify_tables() FROM PUBLIC;
REVOKE ALL ON FUNCTION crm_relay.verify_triggers() FROM PUBLIC;
REVOKE ALL ON FUNCTION crm_relay.watch(target regclass, module text, event text, key_columns text[], access_columns text[], hidden_columns text[], quiet_columns text[], part_of text, part_link text, narrow boolean, access_of text, access_link text) FROM PUBLIC;
REVOKE ALL ON FUNCTION crm_relay.watch_call(watched crm_relay.module, relation text) FROM PUBLIC;
REVOKE ALL ON FUNCTION crm_relay.watch_command(relation regclass) FROM PUBLIC;
REVOKE ALL ON FUNCTION crm_relay.without(image json, columns text[]) FROM PUBLIC;
REVOKE ALL ON FUNCTION crm_relay.without_nulls(image json, nulls text[]) FROM PUBLIC;
REVOKE ALL ON PROCEDURE crm_relay.in_short_transaction(IN command text, IN about text) FROM PUBLIC;
REVOKE ALL ON PROCEDURE crm_relay.unwatch_all() FROM PUBLIC;
REVOKE ALL ON PROCEDURE crm_relay.watch_crm(IN crm_schema text) FROM PUBLIC;
