-- what is written by hand where no relay is: the new row into NOTIFY

create function public.notify() returns trigger
language plpgsql
as $$
begin
  perform pg_notify('listings', row_to_json(new)::text);
  return null;
end
$$;

create trigger notify after insert or update on public.listings
  for each row execute function public.notify();
