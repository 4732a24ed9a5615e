-- capture: the trigger that writes the journal and rings

-- In a block that is rolled back, as all is where the trigger reads and the policy is asked, a function in SQL is
-- planned anew at each call: what is called there for each row or answer is PL/pgSQL, however short.
create or replace function crm_relay.readable(image json) returns json
language plpgsql immutable
set search_path = pg_catalog, pg_temp
as $$
begin
  if position(E'\\u0000' in image::text) > 0 then
    -- not where the backslash is itself escaped
    return regexp_replace(image::text, E'(?<!\\\\)((?:\\\\\\\\)*)\\\\u0000', E'\\1\\\\ufffd\\\\u2400\\\\ufffd', 'g')::json;
  end if;
  return image;
end
$$;
comment on function crm_relay.readable(json) is
  'an image that can be looked into: json may hold \u0000, but every operator on it raises then; here it stands as three other characters';

create or replace function crm_relay.without(image json, columns text[]) returns json
language plpgsql immutable
set search_path = pg_catalog, pg_temp
as $$
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
comment on function crm_relay.without(json, text[]) is 'an image without these columns, its other values as they were written';

create or replace function crm_relay.without_nulls(image json, nulls text[]) returns json
language plpgsql immutable
set search_path = pg_catalog, pg_temp
as $$
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
comment on function crm_relay.without_nulls(json, text[]) is
  'an image without columns that are there and null, each as it stands there, such as ,"notes":null: as without(), and quicker';
alter function crm_relay.without_nulls(json, text[]) owner to crm_relay_capture;
revoke all on function crm_relay.without_nulls(json, text[]) from public;

-- Rendering a row runs the table owner's code (casts), and so can planning a query on her table (a
-- function in the predicate of an index). As whom it runs is settled by the roles; what it leaves behind
-- is not: a set_config() that is not local outlives the search_path clauses of all functions around it
-- (a plain SET overrides them), and whoever goes on finds its operators in her schema. And it owns the
-- function that it runs in. So:
-- - whoever calls such code does it in a block that ends by raising CR000 and keeps what it gave in
--   variables: all else that it did, to settings, tables or functions, is undone with the block. What no
--   rollback undoes (prepared statements, a session's locks) has no part in what our functions do;
-- - where the block goes on after it, search_path is looked at first, by names and operators that need
--   none. It may hide another one under a local one: that is undone before it could show;
-- - image()'s role may not use this schema, so that nobody gets at the function between two rows.
-- https://www.postgresql.org/docs/current/sql-createfunction.html (SET, in the notes)
drop function if exists crm_relay.image(anyelement, text[]);
create or replace function crm_relay.image(record anyelement) returns json
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp
as $$
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
comment on function crm_relay.image(anyelement) is
  'a row as json, hidden columns and all; runs as a role without any right, because row_to_json runs casts that the table''s owner may have written';
do $made$
begin
  if to_regtype('crm_relay.made') is null then
    create type crm_relay.made as (old_image json, new_image json, is_without_large boolean, old_id text, new_id text, actor text);
  end if;
end
$made$;
comment on type crm_relay.made is 'what images() makes of a row before and after';

-- The settings decide what a rendered value looks like: unpinned, one unchanged row differed in six columns
-- between two sessions. The same are pinned wherever else a value is rendered.
create or replace function crm_relay.images(old_row anyelement, new_row anyelement, marks text[], large jsonb, others jsonb, out made crm_relay.made)
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set datestyle = 'ISO, MDY'
set intervalstyle = 'postgres'
set extra_float_digits = 1
set bytea_output = 'hex'
set lc_monetary = 'C'
set quote_all_identifiers = off
as $$
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
comment on function crm_relay.images(anyelement, anyelement, text[], jsonb, jsonb) is
  'a row before and after as json, see image(), which record it is and who made the change, as far as those of its columns say that are named in marks; where none but the others changed, the large ones are null, and it says so';
alter function crm_relay.images(anyelement, anyelement, text[], jsonb, jsonb) owner to crm_relay_image;
revoke all on function crm_relay.images(anyelement, anyelement, text[], jsonb, jsonb) from public;
grant execute on function crm_relay.images(anyelement, anyelement, text[], jsonb, jsonb) to crm_relay_capture;
alter function crm_relay.image(anyelement) owner to crm_relay_image;
revoke all on function crm_relay.image(anyelement) from public;
revoke all on function crm_relay.readable(json), crm_relay.without(json, text[]) from public;
-- what an earlier version gave it
revoke all on function crm_relay.readable(json), crm_relay.without(json, text[]) from crm_relay_image;
grant execute on function crm_relay.image(anyelement) to crm_relay_capture;
grant execute on function crm_relay.readable(json) to crm_relay_capture, crm_relay_snapshot, crm_relay_serve, crm_relay_audit;
grant execute on function crm_relay.without(json, text[]) to crm_relay_capture, crm_relay_snapshot;

create or replace function crm_relay.record_id(image json, key_columns text[]) returns text
language plpgsql immutable
set search_path = pg_catalog, pg_temp
as $$
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
comment on function crm_relay.record_id(json, text[]) is
  'a record''s id from its image: the key''s text; of several columns a JSON array of their texts; null if it has none that can be used, or a column of it has another name by now';

drop function if exists crm_relay.base_type(oid);
create or replace function crm_relay.base_of(type oid) returns pg_catalog.pg_type
language sql stable
set search_path = pg_catalog, pg_temp
as $$
  -- an enum goes by its label
  with recursive bases (type, base) as (
    select t.oid, t.typbasetype from pg_type t where t.oid = base_of.type
    union all
    select t.oid, t.typbasetype from bases b join pg_type t on t.oid = b.base
  )
  select t.* from bases b join pg_type t on t.oid = b.type where b.base = 0 and (t.typtype = 'e' or t.oid < 16384)
$$;
comment on function crm_relay.base_of(oid) is
  'the type that values can be read and compared as without running the code of whoever made theirs (casts, checks): of a domain what it is made of; null where there is none such';

create or replace function crm_relay.equals(column_name text, type oid, given text, is_any boolean default false) returns text
language sql stable
set search_path = pg_catalog, pg_temp
as $$
  select case when is_any then format('%s operator(pg_catalog.=) any (%s%s)', b.value, given, '::' || b.type || '[]')
              else format('%s operator(pg_catalog.=) %s%s', b.value, given, '::' || b.type) end
    from (select format_type(t.oid, -1), t.typtype from crm_relay.base_of(equals.type) t where t.oid is not null) as t (type, kind)
   -- a cast of text to an enum could be its owner's
   cross join lateral (select case when t.kind = 'e' then format('enum_out(r.%I::%s)::text', column_name, t.type) else format('r.%I', column_name) end,
                              case when t.kind = 'e' then 'text' else t.type end) as b (value, type)
$$;
comment on function crm_relay.equals(text, oid, text, boolean) is
  'the condition that a column of the row r is what was given as text, or one of those; null where that would run somebody''s code';

create or replace function crm_relay.readable_columns(relation regclass, columns text[]) returns text
language sql stable
set search_path = pg_catalog, pg_temp
as $$
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
comment on function crm_relay.readable_columns(regclass, text[]) is
  'the expression that renders these columns of a row r without running anybody''s code; null where that cannot be';

create or replace function crm_relay.column_types(relation regclass, columns text[]) returns oid[]
language sql stable
set search_path = pg_catalog, pg_temp
as $$
  select array_agg(a.atttypid order by a.attname) from pg_attribute a
   where a.attrelid = relation and a.attname = any (columns) and a.attnum > 0
$$;
comment on function crm_relay.column_types(regclass, text[]) is 'the types of these columns of a table, by name';

create or replace function crm_relay.key_condition(watched crm_relay.module, given text default '$1') returns text
language sql stable
set search_path = pg_catalog, pg_temp
as $$
  select string_agg(
           crm_relay.equals(k.name, a.atttypid,
                            case when cardinality(watched.key_columns) = 1 then given else format('(%s::json ->> %s)', given, k.place - 1) end),
           ' and ')
    from unnest(watched.key_columns) with ordinality as k (name, place)
    left join pg_attribute a on a.attrelid = watched.relation and a.attname = k.name and not a.attisdropped
  having bool_and(crm_relay.equals(k.name, a.atttypid, '') is not null)
$$;
comment on function crm_relay.key_condition(crm_relay.module, text) is
  'the condition that finds the row r of a record by its id, given as text; null where that would run somebody''s code';

create or replace function crm_relay.lookup_of(watched crm_relay.module) returns text
language sql stable
set search_path = pg_catalog, pg_temp
as $$
  select format('select %s as image from %%s r where %s', replace(columns, '%', '%%'), replace(condition, '%', '%%'))
    from (select crm_relay.readable_columns(watched.relation, watched.key_columns || watched.access_columns),
                 crm_relay.key_condition(watched, 'w.id')) as l (columns, condition)
   where columns is not null and condition is not null
$$;
comment on function crm_relay.lookup_of(crm_relay.module) is
  'what crm_relay.module.lookup should be; null where looking would run somebody''s code';

create or replace function crm_relay.only(image json, columns text[]) returns json
language plpgsql immutable
set search_path = pg_catalog, pg_temp
as $$
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
comment on function crm_relay.only(json, text[]) is 'these columns of an image, which must hold all of them';

create or replace function crm_relay.narrowed(images json[], hidden text[], shown text[]) returns json[]
language plpgsql immutable
set search_path = pg_catalog, pg_temp
as $$
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
comment on function crm_relay.narrowed(json[], text[], text[]) is 'two images without the columns that are hidden and, if given, with none but those that are shown';
alter function crm_relay.narrowed(json[], text[], text[]) owner to crm_relay_capture;
revoke all on function crm_relay.narrowed(json[], text[], text[]) from public;

create or replace function crm_relay.records_of(part crm_relay.module, ids text[], out record_ids text[], out record_images json[])
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set datestyle = 'ISO, MDY'
set intervalstyle = 'postgres'
set extra_float_digits = 1
set bytea_output = 'hex'
set lc_monetary = 'C'
set quote_all_identifiers = off
set lock_timeout = '10ms' -- the part's writer must not wait for whoever alters the record's table
set row_security = on -- "off" in the writer's session would make it raise
as $$
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
$$;
comment on function crm_relay.records_of(crm_relay.module, text[]) is
  'the records that rows of a part belong to; runs as a role that may do only this, because looking can run the table owner''s code, too (policies, views)';
alter function crm_relay.records_of(crm_relay.module, text[]) owner to crm_relay_part;
revoke all on function crm_relay.records_of(crm_relay.module, text[]), crm_relay.base_of(oid), crm_relay.equals(text, oid, text, boolean),
  crm_relay.readable_columns(regclass, text[]), crm_relay.column_types(regclass, text[]), crm_relay.key_condition(crm_relay.module, text),
  crm_relay.lookup_of(crm_relay.module),
  crm_relay.only(json, text[]) from public;
grant execute on function crm_relay.records_of(crm_relay.module, text[]), crm_relay.only(json, text[]) to crm_relay_capture;
grant execute on function crm_relay.base_of(oid), crm_relay.equals(text, oid, text, boolean) to crm_relay_part, crm_relay_snapshot, crm_relay_policy;
grant execute on function crm_relay.readable_columns(regclass, text[]) to crm_relay_part, crm_relay_policy;
grant execute on function crm_relay.key_condition(crm_relay.module, text) to crm_relay_snapshot;

drop function if exists crm_relay.actor(crm_relay.module, json, json);

create or replace function crm_relay.ring(module text, doorbell text) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
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
comment on function crm_relay.ring(text, text) is
  'the doorbell: a hint to look at the journal, where nobody looks anyway; everybody may hear and forge it, so it names no record and is never believed';

do $marks$
begin
  if to_regtype('crm_relay.marks') is null then
    create type crm_relay.marks as (id text, version text, last_modified_by text, deleted_by text, created_by text, user_id text);
  end if;
end
$marks$;
comment on type crm_relay.marks is 'the columns of any row that say which record it is and who made a change';

-- What a writer pays is counted in microseconds here: each statement, each expression, each look into json
-- and each setting that a function pins is some. What is rarely needed stands where it is rarely reached.
-- search_path is pinned against tables and types of the caller's own.
create or replace function crm_relay.capture() returns trigger
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
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
comment on function crm_relay.capture() is
  'after row trigger of watched tables, its argument is the module: writes the change to the journal and rings';

create or replace function crm_relay.capture_truncate() returns trigger
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
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
comment on function crm_relay.capture_truncate() is
  'after truncate trigger of watched tables: there are no rows to journal, so everybody fetches anew';

alter function crm_relay.record_id(json, text[]) owner to crm_relay_capture;
grant execute on function crm_relay.record_id(json, text[]) to crm_relay_part;
alter function crm_relay.ring(text, text) owner to crm_relay_capture;
alter function crm_relay.capture() owner to crm_relay_capture;
alter function crm_relay.capture_truncate() owner to crm_relay_capture;
revoke all on function crm_relay.ring(text, text) from public;
-- a new partition copies the triggers of its table with the rights of whoever creates it; only the
-- schema's own privileges keep others from naming these functions, and they look whose table it is
grant execute on function crm_relay.capture(), crm_relay.capture_truncate() to public;
