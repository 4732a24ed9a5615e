//! A batch of the journal: in which order it comes, and where a reader may go on that has come so far.

use crm_relay::journal::Journal;
use crm_relay::postgres;
use crm_relay::snapshot::Position;

use crate::glance::{LEADS, update};
use crate::harness::{Cluster, connect};

async fn journal(cluster: &Cluster) -> Journal {
    let database = postgres::Database::of(&cluster.url()).unwrap();
    let journal = Journal::open(database.session("test").await.unwrap());
    journal.await.unwrap()
}

/// The numbers of the leads that changed since; after each, where to go on.
async fn read(journal: &Journal, since: &Position) -> (Vec<u32>, Vec<Option<Position>>, Position) {
    let mut batch = journal.read(since).await.unwrap();
    assert_eq!(batch.so_far(), None, "nothing was taken");
    let (mut leads, mut so_far) = (Vec::new(), Vec::new());
    while let Some(change) = batch.next().await.unwrap() {
        leads.push(change.record_id[24..].parse().unwrap());
        so_far.push(batch.so_far());
    }
    (leads, so_far, batch.end().await.unwrap())
}

#[tokio::test]
async fn who_goes_on_in_the_middle_of_a_batch_gets_the_rest_of_it() {
    let cluster = Cluster::start().await;
    let dba = connect(&cluster.url()).await;
    dba.batch_execute(LEADS).await.unwrap();
    let (reader, other) = (journal(&cluster).await, journal(&cluster).await);
    let since = reader.present().await.unwrap();

    // the first transaction by its number ends as the third
    let (early, open) = (connect(&cluster.url()).await, connect(&cluster.url()).await);
    let begin = format!("begin; {}", update(1));
    early.batch_execute(&begin).await.unwrap();
    dba.batch_execute(&update(2)).await.unwrap();
    let begin = format!("begin; {}", update(8));
    open.batch_execute(&begin).await.unwrap();
    dba.batch_execute(&update(3)).await.unwrap();
    let commit = format!("{}; commit", update(4));
    early.batch_execute(&commit).await.unwrap();
    for lead in [5, 6] {
        dba.batch_execute(&update(lead)).await.unwrap();
    }
    let (leads, so_far, end) = read(&reader, &since).await;
    assert_eq!(leads, [2, 3, 1, 4, 5, 6]);
    let is_there = so_far.iter().map(Option::is_some);
    assert_eq!(
        is_there.collect::<Vec<_>>(),
        [false, false, false, true, true, true],
        "until the first by its number was taken there is none"
    );
    for (taken, position) in so_far.iter().enumerate() {
        if let Some(position) = position {
            let (rest, ..) = read(&other, position).await;
            assert_eq!(rest, leads[taken + 1..], "after {}", leads[taken]);
        }
    }

    // how many there are below what was read before is known by a row above it
    open.batch_execute("commit").await.unwrap();
    dba.batch_execute(&update(7)).await.unwrap();
    let (leads, so_far, _) = read(&reader, &end).await;
    assert_eq!(leads, [8, 7]);
    assert_eq!(so_far[0], None);
    let after = so_far[1].as_ref().unwrap();
    assert_eq!(read(&other, after).await.0, [0; 0]);
}
