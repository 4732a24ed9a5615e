-- policy: who may see which record, and in which scope rooms a record is
--
-- Four functions are the CRM owner's to replace, and an installation leaves alone what it did not make:
-- principal(), may_see_row(), may_enter() and rooms_of(). As they come they call the usual_… of the
-- same name, which follow the rules of the usual CRM and may be called by what replaces them.
--
-- What the relay gives them of a record are its access columns (crm_relay.module.access_columns) and
-- nothing else: it asks once for each value of those and remembers the answer for a few minutes, so a
-- policy that looks at other columns has to have them registered: watch(…, access_columns => '{…}').
-- They run as crm_relay_serve, which may read nothing of the CRM; access_now() looks up for them. Who
-- raises sees nothing.

create or replace function crm_relay.lookup_now(module text) returns text
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
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
comment on function crm_relay.lookup_now(text) is
  'the query for key and access columns of the record w.id of a module; raises where its table is not as it was watched';

create or replace function crm_relay.access_now(module text, id text) returns json
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp
as $$
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
$$;
comment on function crm_relay.access_now(text, text) is
  'key and access columns of a record as it is now, null if there is none; for policies, which may read nothing themselves';
alter function crm_relay.access_now(text, text) owner to crm_relay_policy;

create or replace function crm_relay.accesses_now(module text, ids text[]) returns json[]
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp
as $$
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
$$;
comment on function crm_relay.accesses_now(text, text[]) is
  'access_now() of each of several records, in the order of their ids; null also where it would raise';
alter function crm_relay.accesses_now(text, text[]) owner to crm_relay_policy;

create or replace function crm_relay.heirs_of(module text, ids text[]) returns setof json
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp
set row_security = on
set enable_seqscan = on -- without an index on the link one pass over the table finds the heirs of all
as $$
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
$$;
comment on function crm_relay.heirs_of(text, text[]) is
  'the records whose access depends on these, such as the appointments of leads: of which one, module, record_id and image of key and access columns';
alter function crm_relay.heirs_of(text, text[]) owner to crm_relay_policy;

create or replace function crm_relay.owner_of(image json) returns text
language plpgsql immutable
set search_path = pg_catalog, pg_temp
as $$
begin
  return coalesce(image ->> 'owner_id', image ->> 'listing_agent_id', image ->> 'agent_id', image ->> 'user_id');
end
$$;
comment on function crm_relay.owner_of(json) is 'the owner of a record by its image: the first of these columns that is not null';

create or replace function crm_relay.is_private(image json) returns boolean
language plpgsql immutable
set search_path = pg_catalog, pg_temp
as $$
begin
  return coalesce(image ->> 'is_private', 'false') = 'true' or coalesce(image ->> 'access_level', '') = 'personal';
end
$$;
comment on function crm_relay.is_private(json) is 'whether a record is its owner''s alone, by its image';

create or replace function crm_relay.origin_of(module text, image json, out named boolean, out origin json)
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
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
comment on function crm_relay.origin_of(text, json) is
  'the record on which an image''s access depends, too, such as the lead of an appointment: whether it names one, and that one as it is now';

create or replace function crm_relay.named(claims jsonb) returns text
language plpgsql immutable
set search_path = pg_catalog, pg_temp
as $$
begin
  return coalesce(claims ->> 'id', claims ->> 'sub');
end
$$;
comment on function crm_relay.named(jsonb) is 'the id of whom a token names, by its claims';

create or replace function crm_relay.person(id text, image json) returns jsonb
language plpgsql immutable
set search_path = pg_catalog, pg_temp
as $$
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
comment on function crm_relay.person(text, json) is
  'user, team, broker and role of whoever has this id, by the image of their row in the table of users; null if there is none or they are not active';

create or replace function crm_relay.usual_principal(claims jsonb) returns jsonb
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
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
comment on function crm_relay.usual_principal(jsonb) is
  'who a token is: user, team, broker and role as the table of users has them; null for who is not known or not active';

create or replace function crm_relay.usual_may_see_row(principal jsonb, module text, image json) returns boolean
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
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
comment on function crm_relay.usual_may_see_row(jsonb, text, json) is
  'whether somebody may see an image of a record: admins all, owners their own, others what is not private of their brokerage or team';

create or replace function crm_relay.usual_may_enter(principal jsonb, room text) returns boolean
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
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
comment on function crm_relay.usual_may_enter(jsonb, text) is
  'whether somebody may be in a scope room: their own, their team''s, as a broker their brokerage''s; admins in any';

create or replace function crm_relay.usual_rooms_of(module text, image json) returns text[]
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
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
comment on function crm_relay.usual_rooms_of(text, json) is
  'the scope rooms that an image of a record is in: its owner''s, and unless it is private its team''s and its owner''s brokerage''s';

-- Theirs to replace: an installation makes them where there are none, or where they are as an earlier one made
-- them, in SQL.
do $replaceable$
declare
  its record;
begin
  for its in
    select u.signature, u.header, u.usual, u.purpose
      from (values
        ('crm_relay.principal(jsonb)', 'crm_relay.principal(claims jsonb) returns jsonb', 'crm_relay.usual_principal(claims)',
         'who a token is, by its claims; null: nobody; may be replaced by the CRM''s owner'),
        ('crm_relay.may_see_row(jsonb, text, json)', 'crm_relay.may_see_row(principal jsonb, module text, image json) returns boolean',
         'crm_relay.usual_may_see_row(principal, module, image)',
         'whether somebody may see an image of a record, by its access columns; may be replaced by the CRM''s owner'),
        ('crm_relay.may_enter(jsonb, text)', 'crm_relay.may_enter(principal jsonb, room text) returns boolean',
         'crm_relay.usual_may_enter(principal, room)',
         'whether somebody may be in a scope room, where they get what may_see_row() grants; may be replaced by the CRM''s owner'),
        ('crm_relay.rooms_of(text, json)', 'crm_relay.rooms_of(module text, image json) returns text[]',
         'crm_relay.usual_rooms_of(module, image)',
         'the scope rooms that an image of a record is in, by its access columns; may be replaced by the CRM''s owner')
      ) as u (signature, header, usual, purpose)
      left join pg_proc p on p.oid = to_regprocedure(u.signature)
     where p.oid is null
        or p.prosrc = 'select ' || u.usual and p.provolatile = 's' and not p.prosecdef and p.pronargdefaults = 0
           and pg_has_role(current_user, p.proowner, 'usage')
  loop
    execute format('create or replace function %s language plpgsql stable set search_path = pg_catalog, pg_temp as %L',
                   its.header, 'begin return ' || its.usual || '; end');
    execute format('comment on function %s is %L', its.signature, its.purpose);
  end loop;
end
$replaceable$;

create or replace function crm_relay.may_see(principal jsonb, module text, record_id text) returns boolean
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
  image json := crm_relay.access_now(module, record_id);
begin
  return image is not null and coalesce(crm_relay.may_see_row(principal, module, image), false);
end
$$;
comment on function crm_relay.may_see(jsonb, text, text) is
  'whether somebody may see a record as it is now; false also if there is none';

-- How the relay asks. A policy that raises must not stop everybody else, and opens nothing: null. What a
-- policy, or code that it came by, did besides answering is undone, see crm_relay.image().

create or replace function crm_relay.known(claims text) returns jsonb
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
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
comment on function crm_relay.known(text) is 'principal() as the relay asks it: null where it raises, also for claims that are no jsonb';

create or replace function crm_relay.known(several text[]) returns jsonb[]
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
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
comment on function crm_relay.known(text[]) is 'known() of each of several';

create or replace function crm_relay.sees(principal jsonb, module text, image json) returns boolean
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
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
comment on function crm_relay.sees(jsonb, text, json) is 'may_see_row() as the relay asks it: null where it raises';

create or replace function crm_relay.enters(principal jsonb, room text) returns boolean
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
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
comment on function crm_relay.enters(jsonb, text) is 'may_enter() as the relay asks it: null where it raises';

create or replace function crm_relay.may_subscribe(principal jsonb, room text, image json, replays boolean) returns boolean
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
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
comment on function crm_relay.may_subscribe(jsonb, text, json, boolean) is
  'whether somebody may be in a room: a scope room, or that of a record by its access columns as they are now, null if there is none, or, for replays, as they were when it was deleted';

-- as relays of version 6 ask, until they are restarted; one of version 8 may drop it
create or replace function crm_relay.may_subscribe(principal jsonb, room text, replays boolean) returns boolean
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
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
comment on function crm_relay.may_subscribe(jsonb, text, boolean) is 'the same of a record that it looks up itself';

create or replace function crm_relay.placed(module text, image json) returns text[]
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
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
comment on function crm_relay.placed(text, json) is
  'rooms_of() as the relay asks it; null where it raises, so that one row that it cannot judge does not stop all others';

create or replace function crm_relay.disconnect(user_id text) returns void
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
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
$$;
comment on function crm_relay.disconnect(text) is
  'ends all connections of a user, on all relays, and has tokens refused that were issued before';
alter function crm_relay.disconnect(text) owner to crm_relay_capture;
grant select, insert, update on crm_relay.disconnected to crm_relay_capture;
grant execute on function crm_relay.access_now(text, text) to crm_relay_capture;

revoke all on function
  crm_relay.lookup_now(text), crm_relay.access_now(text, text), crm_relay.heirs_of(text, text[]), crm_relay.owner_of(json), crm_relay.is_private(json),
  crm_relay.origin_of(text, json), crm_relay.named(jsonb), crm_relay.person(text, json), crm_relay.usual_principal(jsonb), crm_relay.usual_may_see_row(jsonb, text, json),
  crm_relay.usual_may_enter(jsonb, text), crm_relay.usual_rooms_of(text, json), crm_relay.principal(jsonb),
  crm_relay.may_see_row(jsonb, text, json), crm_relay.may_enter(jsonb, text), crm_relay.rooms_of(text, json),
  crm_relay.may_see(jsonb, text, text), crm_relay.known(text), crm_relay.known(text[]), crm_relay.sees(jsonb, text, json),
  crm_relay.enters(jsonb, text), crm_relay.accesses_now(text, text[]),
  crm_relay.may_subscribe(jsonb, text, json, boolean), crm_relay.may_subscribe(jsonb, text, boolean), crm_relay.placed(text, json), crm_relay.only(json, text[]),
  crm_relay.disconnect(text)
  from public;
-- crm-relay explain and tail ask as the relay does
grant execute on function
  crm_relay.access_now(text, text), crm_relay.heirs_of(text, text[]), crm_relay.owner_of(json), crm_relay.is_private(json),
  crm_relay.origin_of(text, json), crm_relay.named(jsonb), crm_relay.person(text, json), crm_relay.usual_principal(jsonb), crm_relay.usual_may_see_row(jsonb, text, json),
  crm_relay.usual_may_enter(jsonb, text), crm_relay.usual_rooms_of(text, json), crm_relay.principal(jsonb),
  crm_relay.may_see_row(jsonb, text, json), crm_relay.may_enter(jsonb, text), crm_relay.rooms_of(text, json),
  crm_relay.may_see(jsonb, text, text), crm_relay.known(text), crm_relay.known(text[]), crm_relay.sees(jsonb, text, json),
  crm_relay.enters(jsonb, text), crm_relay.accesses_now(text, text[]),
  crm_relay.may_subscribe(jsonb, text, json, boolean), crm_relay.may_subscribe(jsonb, text, boolean), crm_relay.placed(text, json), crm_relay.only(json, text[])
  to crm_relay_serve, crm_relay_audit;
grant execute on function crm_relay.disconnect(text) to crm_relay_audit;
grant execute on function crm_relay.record_id(json, text[]), crm_relay.lookup_now(text) to crm_relay_policy;
