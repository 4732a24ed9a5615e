//! What must not cost more when there is more.

use std::time::Duration;

use crate::figure::{Figure, Goal, median};
use crate::ground::{Ground, Pace, change, record};
use crate::load::Patience;
use crate::machine;
use crate::plot::{self, Scale};
use crate::server::{Kind, Server};
use crate::{statements, table};

const PACE: Pace = Pace::Every(Duration::from_millis(4));

/// CPU by connections; a look at the journal by its rows, and beside an open transaction.
pub async fn run(quick: bool) -> Vec<Figure> {
    let mut figures = connections(quick).await;
    figures.extend(journal(quick).await);
    figures
}

async fn connections(quick: bool) -> Vec<Figure> {
    let (runs, changes) = if quick { (1, 1000) } else { (5, 2500) };
    let sizes: &[usize] = if quick {
        &[10, 10_000]
    } else {
        &[10, 100, 1000, 10_000]
    };
    let ground = Ground::new().await;
    ground.bind(machine::LOAD).await;
    let mut found = vec![Vec::new(); sizes.len()];
    for _ in 0..runs {
        for (size, costs) in sizes.iter().zip(&mut found) {
            let server = Server::start(Kind::Relay, &ground, machine::SERVER, &[]).await;
            let (mut crowd, _) = server.crowd(*size, |number| number, Patience::Orderly(64));
            // who may see a record is asked at its first change and then remembered: that is not growth
            let session = ground.session(Kind::Relay.side()).await;
            let all = "update public.listings set list_price = list_price + 1 where id = any($1::text[]::uuid[])";
            let ids: Vec<String> = (0..*size).map(record).collect();
            session
                .execute(all, &[&ids])
                .await
                .expect("a change of each");
            let heard = crowd.listen(*size, Duration::from_secs(60), |_| {});
            assert_eq!(heard, *size, "frames were lost");
            tokio::time::sleep(Duration::from_secs(1)).await;
            let cpu = server.cpu();
            let writer = change(server.url(), *size, changes, PACE);
            let heard = crowd.listen(changes, Duration::from_secs(10), |_| {});
            writer.join().expect("the writer");
            assert_eq!(heard, changes, "frames were lost");
            let cost = (server.cpu() - cpu) * 1e6 / changes as f64;
            eprintln!("  {size:>6} connections and rooms: {cost:.0} µs a change");
            costs.push(cost);
        }
    }
    let points = sizes
        .iter()
        .zip(&found)
        .map(|(size, costs)| (*size as f64, median(costs)))
        .collect();
    let drawn = plot::curves(
        "Processor time of a change, by connections in rooms of their own",
        ("connections", Scale::Logarithmic),
        ("µs", Scale::Linear),
        &[("relay".to_owned(), points)],
    );
    std::fs::write(table::place(quick, "growth.svg"), drawn).expect("a plot");
    let most = found.pop().expect("sizes");
    let goal = Some(Goal::AtMost(1.2));
    vec![
        Figure::alone(
            "growth",
            "CPU per change, 10,000 in 10,000 rooms",
            "µs",
            most,
            goal,
        )
        .beside("10 in 10 rooms", found.swap_remove(0)),
    ]
}

async fn journal(quick: bool) -> Vec<Figure> {
    let runs = if quick { 1 } else { 5 };
    let rows = if quick { 200_000 } else { 10_000_000 };
    let ground = Ground::new().await;
    ground.bind(machine::LOAD).await;
    fill(&ground, 10_000).await;
    let few = look(&ground, runs).await;
    fill(&ground, rows - 10_000).await;
    let many = look(&ground, runs).await;
    let open = ground.session(Kind::Relay.side()).await;
    open.batch_execute("begin; update public.users set email = email where id = (select id from public.users limit 1)").await.expect("a transaction");
    // what makes an old transaction dear is what came after it, so that comes
    fill(&ground, 100_000).await;
    let beside = look(&ground, runs).await;
    open.batch_execute("rollback").await.expect("an end of it");
    let name = if quick {
        "a look, 200 thousand rows in the journal"
    } else {
        "a look, 10 million rows in the journal"
    };
    vec![
        Figure::alone("growth", name, "ms", many.clone(), Some(Goal::AtMost(1.2)))
            .beside("10 thousand rows", few),
        Figure::alone(
            "growth",
            "a look, a transaction open for 100,000 rows",
            "ms",
            beside,
            Some(Goal::AtMost(1.2)),
        )
        .beside("without", many),
    ]
}

/// Ms that the relay's look at the journal takes in Postgres, of runs of 250 changes.
async fn look(ground: &Ground, runs: usize) -> Vec<f64> {
    let session = ground.session(Kind::Relay.side()).await;
    let mut found = Vec::new();
    for _ in 0..runs {
        let server = Server::start(Kind::Relay, ground, machine::SERVER, &[]).await;
        let (mut crowd, _) = server.crowd(1, |_| 0, Patience::Orderly(1));
        // what is kept from one look to the next is warm
        for (changes, counts) in [(50, false), (250, true)] {
            if counts {
                statements::count(&session).await;
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
            let writer = change(server.url(), 1, changes, PACE);
            let heard = crowd.count(changes, Duration::from_secs(10));
            writer.join().expect("the writer");
            assert_eq!(heard.frames, changes, "frames were lost");
        }
        let (looks, ms) = statements::like(&session, "%c.record_image%crm_relay.change c%").await;
        statements::rest(&session).await;
        eprintln!("  {looks} looks, {:.3} ms each", ms / looks);
        found.push(ms / looks);
    }
    found
}

/// Puts rows into the journal, a thousand in a transaction, as if records had been edited.
async fn fill(ground: &Ground, rows: usize) {
    let session = ground.session(Kind::Relay.side()).await;
    let filled = format!(
        "do $$ begin
           for number in 1..{} loop
             insert into crm_relay.change (slot, module, action, record_id, db_user, db_role, application, old_image, new_image)
             select crm_relay.slot(clock_timestamp(), retention), 'listings', 'updated', gen_random_uuid()::text, 'crm', 'crm', 'bench',
                    '{{\"list_price\":1.00}}', '{{\"list_price\":2.00}}'
               from crm_relay.setting, generate_series(1, 1000);
             commit;
           end loop;
         end $$",
        rows / 1000
    );
    session
        .batch_execute(&filled)
        .await
        .expect("rows in the journal");
    session
        .batch_execute("analyze crm_relay.change")
        .await
        .expect("statistics");
}
