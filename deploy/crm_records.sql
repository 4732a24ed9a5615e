-- records for the small CRM of the demo: one brokerage, two teams, five people, a dozen of each module

insert into public.brokers (id, name) values
  ('b0000000-0000-4000-8000-000000000001', 'Truckee River Realty');

insert into public.teams (id, broker_id, name) values
  ('70000000-0000-4000-8000-000000000001', 'b0000000-0000-4000-8000-000000000001', 'North Valleys'),
  ('70000000-0000-4000-8000-000000000002', 'b0000000-0000-4000-8000-000000000001', 'Lakeside');

insert into public.users (id, email, first_name, last_name, role, team_id, broker_id, password_hash)
select u.id::uuid, u.email, u.first_name, u.last_name, u.role, u.team::uuid, 'b0000000-0000-4000-8000-000000000001', 'not a hash'
  from (values
    ('a0000000-0000-4000-8000-000000000001', 'ana.kessler@truckee.example', 'Ana', 'Kessler', 'team_owner', '70000000-0000-4000-8000-000000000001'),
    ('a0000000-0000-4000-8000-000000000002', 'ben.ruiz@truckee.example', 'Ben', 'Ruiz', 'agent', '70000000-0000-4000-8000-000000000001'),
    ('a0000000-0000-4000-8000-000000000003', 'carla.lindqvist@truckee.example', 'Carla', 'Lindqvist', 'team_owner', '70000000-0000-4000-8000-000000000002'),
    ('a0000000-0000-4000-8000-000000000004', 'dev.patel@truckee.example', 'Dev', 'Patel', 'agent', '70000000-0000-4000-8000-000000000002'),
    ('a0000000-0000-4000-8000-000000000005', 'edith.moreau@truckee.example', 'Edith', 'Moreau', 'broker', null)
  ) as u (id, email, first_name, last_name, role, team);

-- who owns the n-th record of a module: the four agents in turn
create function pg_temp.owner(n integer) returns public.users language sql stable as $$
  select u from public.users u where u.role <> 'broker' order by u.email limit 1 offset (n - 1) % 4
$$;

insert into public.listings (id, mls_number, property_address, display_address, city, state, zip_code, list_price,
                             listing_status, bedrooms, bathrooms, square_feet, year_built, description, features,
                             listing_date, listing_agent_id, team_id, broker_id, is_private, created_at)
select ('11000000-0000-4000-8000-' || lpad(l.n::text, 12, '0'))::uuid, 'NV26-' || 4100 + l.n * 7, l.address, l.address,
       l.city, l.state, l.zip, l.price, l.status, l.bedrooms, l.bathrooms, l.square_feet, l.built, l.description,
       l.features::jsonb, date '2026-11-01' - l.n * 5, (pg_temp.owner(l.n)).id, (pg_temp.owner(l.n)).team_id,
       (pg_temp.owner(l.n)).broker_id, l.n = 11, timestamptz '2026-11-01 09:00:00+00' + l.n * interval '1 minute'
  from (values
    (1, '1480 Cottonwood Ln', 'Reno', 'NV', '89502', 489000, 'active', 3, 2.0, 1640, 1998, 'Corner lot with mature trees and a new roof.', '["garage", "garden"]'),
    (2, '27 Granite Ct', 'Sparks', 'NV', '89431', 415000, 'active', 3, 2.5, 1520, 2004, 'Two blocks from the marina.', '["garage"]'),
    (3, '905 Lakeshore Blvd', 'Incline Village', 'NV', '89451', 2350000, 'active', 4, 3.5, 3280, 1987, 'Lake view from three rooms.', '["view", "deck", "sauna"]'),
    (4, '312 Juniper Hill Rd', 'Reno', 'NV', '89519', 899000, 'pending', 4, 3.0, 2710, 2011, 'Single level, views over the city.', '["view"]'),
    (5, '64 Sagebrush Way', 'Fernley', 'NV', '89408', 359000, 'active', 3, 2.0, 1410, 2016, 'Quiet street, low upkeep.', '[]'),
    (6, '1911 Plumas St', 'Reno', 'NV', '89509', 725000, 'active', 3, 2.0, 1890, 1948, 'Brick cottage, restored kitchen.', '["fireplace"]'),
    (7, '10288 Donner Pass Rd', 'Truckee', 'CA', '96161', 1195000, 'active', 4, 3.0, 2240, 2001, 'Walk to the old town.', '["deck", "garage"]'),
    (8, '5 Kings Beach Ct', 'Kings Beach', 'CA', '96143', 785000, 'coming_soon', 2, 2.0, 1180, 1972, 'Cabin with a new kitchen.', '["fireplace"]'),
    (9, '2206 Pyramid Hwy', 'Sparks', 'NV', '89436', 540000, 'active', 4, 2.5, 2105, 2008, 'Room for a boat.', '["garage", "rv parking"]'),
    (10, '738 Humboldt St', 'Reno', 'NV', '89509', 610000, 'sold', 2, 1.0, 1105, 1936, 'Bungalow near the river.', '[]'),
    (11, '44 Skyline Dr', 'Reno', 'NV', '89509', 1340000, 'draft', 5, 4.0, 3650, 1994, 'Not on the market yet.', '["pool", "view"]'),
    (12, '159 Brockway Vista Ave', 'Kings Beach', 'CA', '96143', 1520000, 'active', 3, 2.5, 1975, 2019, 'One row from the water.', '["view", "deck"]')
  ) as l (n, address, city, state, zip, price, status, bedrooms, bathrooms, square_feet, built, description, features);

insert into public.escrows (id, display_id, escrow_number, property_address, display_address, city, state, zip_code,
                            purchase_price, earnest_money_deposit, commission_percentage, gross_commission, escrow_status,
                            acceptance_date, closing_date, escrow_officer_name, title_company, people, timeline,
                            checklists, owner_id, team_id, broker_id, created_at)
select ('e5000000-0000-4000-8000-' || lpad(e.n::text, 12, '0'))::uuid, 'ESC-2026-' || lpad(e.n::text, 3, '0'),
       'TR-' || 88000 + e.n * 13, e.address, e.address, e.city, 'NV', e.zip, e.price, round(e.price * 0.01, 2), 2.5,
       round(e.price * 0.025, 2), e.status, date '2026-10-20' - e.n, date '2026-11-24' + e.n * 3, e.officer, e.title,
       jsonb_build_object('buyer', e.buyer, 'seller', e.seller),
       jsonb_build_array(jsonb_build_object('at', date '2026-10-20' - e.n, 'what', 'offer accepted')),
       jsonb_build_object('loan', false, 'inspection', e.n % 2 = 0, 'appraisal', e.n % 3 = 0, 'disclosures', true),
       (pg_temp.owner(e.n)).id, (pg_temp.owner(e.n)).team_id, (pg_temp.owner(e.n)).broker_id,
       timestamptz '2026-11-01 09:00:00+00' + e.n * interval '1 minute'
  from (values
    (1, '3025 Meridian Ln', 'Reno', '89509', 572000, 'active', 'Ruth Okafor', 'Sierra Title', 'H. Baxter', 'M. Vance'),
    (2, '611 Prater Way', 'Sparks', '89431', 398500, 'active', 'Ruth Okafor', 'Sierra Title', 'J. Nakamura', 'Estate of L. Dunn'),
    (3, '89 Tyner Way', 'Incline Village', '89451', 1875000, 'pending', 'Tomás Ibarra', 'First Nevada Title', 'P. and S. Abel', 'G. Rossi'),
    (4, '420 Zolezzi Ln', 'Reno', '89511', 815000, 'active', 'Tomás Ibarra', 'First Nevada Title', 'K. Osei', 'D. Holm'),
    (5, '17 Washington St', 'Reno', '89503', 455000, 'closed', 'Ruth Okafor', 'Sierra Title', 'A. Petrov', 'C. Mills'),
    (6, '2780 Wrondel Way', 'Reno', '89502', 389000, 'active', 'June Park', 'Stewart & Lowe', 'N. Ibrahim', 'T. Wade'),
    (7, '1040 Harold Dr', 'Incline Village', '89451', 1290000, 'active', 'Tomás Ibarra', 'First Nevada Title', 'R. Sato', 'B. Klein'),
    (8, '350 Crampton St', 'Reno', '89502', 367500, 'cancelled', 'June Park', 'Stewart & Lowe', 'E. Quist', 'V. Moss'),
    (9, '908 Glenda Way', 'Reno', '89509', 648000, 'active', 'Ruth Okafor', 'Sierra Title', 'F. Marsh', 'L. Tran'),
    (10, '55 Emerson Way', 'Sparks', '89431', 429900, 'pending', 'June Park', 'Stewart & Lowe', 'O. Lind', 'S. Bauer'),
    (11, '1225 Rocky Cove Ln', 'Reno', '89521', 739000, 'active', 'Tomás Ibarra', 'First Nevada Title', 'I. Novak', 'W. Chen'),
    (12, '76 Cochise St', 'Reno', '89506', 342000, 'active', 'June Park', 'Stewart & Lowe', 'D. Ames', 'Y. Flores')
  ) as e (n, address, city, zip, price, status, officer, title, buyer, seller);

insert into public.contacts (id, first_name, last_name, email, phone, city, state)
select ('c0000000-0000-4000-8000-' || lpad(c.n::text, 12, '0'))::uuid, c.first_name, c.last_name,
       lower(c.first_name || '.' || c.last_name) || '@mail.example', c.phone, c.city, 'NV'
  from (values
    (1, 'Harriet', 'Baxter', '775-555-0111', 'Reno'), (2, 'Jun', 'Nakamura', '775-555-0112', 'Sparks'),
    (3, 'Paolo', 'Abel', '775-555-0113', 'Incline Village'), (4, 'Kwame', 'Osei', '775-555-0114', 'Reno'),
    (5, 'Anya', 'Petrov', '775-555-0115', 'Reno'), (6, 'Nour', 'Ibrahim', '775-555-0116', 'Reno'),
    (7, 'Rei', 'Sato', '775-555-0117', 'Incline Village'), (8, 'Elsa', 'Quist', '775-555-0118', 'Fernley'),
    (9, 'Frank', 'Marsh', '775-555-0119', 'Reno'), (10, 'Olle', 'Lind', '775-555-0120', 'Sparks'),
    (11, 'Iva', 'Novak', '775-555-0121', 'Reno'), (12, 'Darnell', 'Ames', '775-555-0122', 'Reno')
  ) as c (n, first_name, last_name, phone, city);

insert into public.clients (id, contact_id, status, client_type, entity_type, owner_id, team_id, broker_id, created_at)
select ('c1000000-0000-4000-8000-' || lpad(n::text, 12, '0'))::uuid,
       ('c0000000-0000-4000-8000-' || lpad(n::text, 12, '0'))::uuid,
       (array['active', 'active', 'lead', 'past'])[1 + n % 4], (array['buyer', 'seller', 'buyer', 'investor'])[1 + n % 4],
       'individual', (pg_temp.owner(n)).id, (pg_temp.owner(n)).team_id, (pg_temp.owner(n)).broker_id,
       timestamptz '2026-11-01 09:00:00+00' + n * interval '1 minute'
  from generate_series(1, 12) n;

insert into public.leads (id, first_name, last_name, email, phone, source, status, notes, number_of_contacts,
                          next_follow_up_date, owner_id, team_id, broker_id, is_private, created_at)
select ('1ead0000-0000-4000-8000-' || lpad(l.n::text, 12, '0'))::uuid, l.first_name, l.last_name,
       lower(l.first_name || '@mail.example'), l.phone, l.source, l.status, l.notes, l.n % 5, date '2026-11-24' + l.n,
       (pg_temp.owner(l.n)).id, (pg_temp.owner(l.n)).team_id, (pg_temp.owner(l.n)).broker_id, l.n = 6,
       timestamptz '2026-11-01 09:00:00+00' + l.n * interval '1 minute'
  from (values
    (1, 'Mara', 'Velasco', '775-555-0141', 'open house', 'new', 'Liked the corner lot.'),
    (2, 'Theo', 'Brandt', '775-555-0142', 'website', 'contacted', 'Wants a garage for two.'),
    (3, 'Ines', 'Duarte', '775-555-0143', 'referral', 'qualified', 'Moving from Sacramento in March.'),
    (4, 'Sam', 'Whitfield', '775-555-0144', 'website', 'new', null),
    (5, 'Lucía', 'Herrera', '775-555-0145', 'sign call', 'contacted', 'Asks about schools.'),
    (6, 'Noah', 'Feld', '775-555-0146', 'referral', 'qualified', 'Would rather not be shared.'),
    (7, 'Yuki', 'Tanabe', '775-555-0147', 'open house', 'new', 'Lake view or nothing.'),
    (8, 'Grace', 'Adeyemi', '775-555-0148', 'website', 'contacted', null),
    (9, 'Oskar', 'Nyberg', '775-555-0149', 'referral', 'new', 'First home.'),
    (10, 'Priya', 'Raman', '775-555-0150', 'sign call', 'qualified', 'Pre-approved for 650.'),
    (11, 'Walt', 'Jennings', '775-555-0151', 'website', 'lost', 'Bought elsewhere.'),
    (12, 'Amélie', 'Roux', '775-555-0152', 'open house', 'new', 'Weekend house.')
  ) as l (n, first_name, last_name, phone, source, status, notes);

-- as the CRM inserts them: with an agent and no owner
insert into public.appointments (id, title, start_time, end_time, location, status, listing_id, agent_id, team_id, broker_id, created_at)
select ('a4000000-0000-4000-8000-' || lpad(a.n::text, 12, '0'))::uuid, a.title,
       timestamptz '2026-11-24 17:00:00+00' + a.n * interval '5 hours', timestamptz '2026-11-24 18:00:00+00' + a.n * interval '5 hours',
       a.location, (array['scheduled', 'confirmed', 'scheduled', 'completed'])[1 + a.n % 4],
       ('11000000-0000-4000-8000-' || lpad(a.n::text, 12, '0'))::uuid,
       (pg_temp.owner(a.n)).id, (pg_temp.owner(a.n)).team_id, (pg_temp.owner(a.n)).broker_id,
       timestamptz '2026-11-01 09:00:00+00' + a.n * interval '1 minute'
  from (values
    (1, 'Showing with H. Baxter', '1480 Cottonwood Ln'), (2, 'Listing photos', '27 Granite Ct'),
    (3, 'Second showing', '905 Lakeshore Blvd'), (4, 'Inspection', '312 Juniper Hill Rd'),
    (5, 'Open house', '64 Sagebrush Way'), (6, 'Seller meeting', 'Office, Liberty St'),
    (7, 'Showing with R. Sato', '10288 Donner Pass Rd'), (8, 'Key handover', '5 Kings Beach Ct'),
    (9, 'Appraisal', '2206 Pyramid Hwy'), (10, 'Final walk-through', '738 Humboldt St'),
    (11, 'Price talk', '44 Skyline Dr'), (12, 'Open house', '159 Brockway Vista Ave')
  ) as a (n, title, location);

drop function pg_temp.owner(integer);
