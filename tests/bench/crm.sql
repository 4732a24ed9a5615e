-- the small CRM that is measured: ten thousand users of one team, ten thousand listings of theirs;
-- a listing is about 300 bytes of JSON, so that those who put whole rows into NOTIFY can

create table public.teams (id uuid primary key, name text not null);

create table public.users (
  id uuid primary key,
  email text not null,
  role text not null default 'agent',
  team_id uuid references public.teams,
  is_active boolean not null default true
);

create table public.listings (
  id uuid primary key,
  property_address text,
  city text,
  list_price numeric(12,2),
  listing_status text not null default 'active',
  owner_id uuid references public.users,
  team_id uuid references public.teams,
  is_private boolean not null default false,
  version int not null default 1,
  updated_at timestamptz not null default now()
);

insert into public.teams values ('10000000-0000-4000-8000-000000000000', 'the team');

insert into public.users (id, email, team_id)
select format('20000000-0000-4000-8000-%s', lpad(n::text, 12, '0'))::uuid, format('agent%s@crm.example', n),
       '10000000-0000-4000-8000-000000000000'
  from generate_series(0, 9999) as n;

insert into public.listings (id, property_address, city, list_price, owner_id, team_id)
select format('30000000-0000-4000-8000-%s', lpad(n::text, 12, '0'))::uuid, format('%s Park Avenue', n), 'Springfield', 400000,
       '20000000-0000-4000-8000-000000000000', '10000000-0000-4000-8000-000000000000'
  from generate_series(0, 9999) as n;

vacuum analyze public.listings, public.users;
