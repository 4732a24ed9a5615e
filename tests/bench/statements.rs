//! What sessions asked of Postgres, by `pg_stat_statements`, which tests/bench/run.sh loads.

use tokio_postgres::Client;

/// Counts from now on.
pub async fn count(session: &Client) {
    let begun =
        "create extension if not exists pg_stat_statements; select pg_stat_statements_reset()";
    session
        .batch_execute(begun)
        .await
        .expect("pg_stat_statements in shared_preload_libraries");
    track(session, "top").await;
}

/// Counts no more, so that it costs those nothing who are measured next.
pub async fn rest(session: &Client) {
    track(session, "none").await;
}

async fn track(session: &Client, which: &str) {
    session
        .batch_execute(&format!(
            "alter system set pg_stat_statements.track = {which}"
        ))
        .await
        .expect("a superuser");
    session
        .batch_execute("select pg_reload_conf()")
        .await
        .expect("a superuser");
}

/// How often, and for how many ms together, statements like this were run.
pub async fn like(session: &Client, pattern: &str) -> (f64, f64) {
    let asked = "select coalesce(sum(calls), 0)::float8, coalesce(sum(total_exec_time), 0)::float8 from pg_stat_statements where query like $1 and query not like '%pg_stat_statements%'";
    let row = session
        .query_one(asked, &[&pattern])
        .await
        .expect("pg_stat_statements");
    (row.get(0), row.get(1))
}

/// Tells those that were run most often.
pub async fn tell(session: &Client) {
    let asked = "select calls, total_exec_time, left(regexp_replace(query, '[[:space:]]+', ' ', 'g'), 100) from pg_stat_statements order by total_exec_time desc limit 8";
    for row in session.query(asked, &[]).await.expect("pg_stat_statements") {
        let (calls, ms, query): (i64, f64, String) = (row.get(0), row.get(1), row.get(2));
        eprintln!("    {calls:>7} times, {ms:>8.0} ms: {query}");
    }
}
