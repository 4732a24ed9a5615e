//! `crm-relay audit`, and the view behind it: who changed what, from what to what.

use std::process::{Command, Stdio};

use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStderr, ChildStdout};
use tokio::time::timeout;

use crate::harness::{DEADLINE, Database, crm_relay};

const LEAD: &str = "leads:1ead0000-0000-4000-8000-000000000001";

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// A client with a contact and a lead, edited, deleted and truncated by somebody who means no good.
async fn edited() -> Database {
    let database = Database::create().await;
    database
        .execute(
            "set application_name = '=crm';
             insert into contacts (id, phone) values ('c0000000-0000-4000-8000-000000000001', '555-0100');
             insert into clients (id, contact_id, created_at, updated_at) values
               ('c1000000-0000-4000-8000-000000000001', 'c0000000-0000-4000-8000-000000000001', '2026-11-01 09:00Z', '2026-11-01 09:00Z')",
        )
        .await;
    for transaction in [
        "insert into leads (id, first_name, created_at, updated_at, created_by) values
           ('1ead0000-0000-4000-8000-000000000001', 'Ann', '2026-11-01 09:00Z', '2026-11-01 09:00Z', 'a0000000-0000-4000-8000-00000000000a')",
        "update leads set status = 'qualified', notes = U&'\\009b2J\\202e=1', version = version + 1,
                updated_at = '2026-11-02 10:30Z', last_modified_by = 'a0000000-0000-4000-8000-00000000000b';
         update contacts set phone = '555-0199'",
        "delete from leads",
        "truncate leads",
    ] {
        database.execute(transaction).await;
        // each of another millisecond, by which they are told apart
        database.execute("select pg_sleep(0.002)").await;
    }
    database
}

/// What was printed, with moments and transactions by their place.
async fn normalised(database: &Database, printed: &[u8]) -> String {
    let rows = database
        .client()
        .query(
            "select dense_rank() over (order by txid), txid::text,
                    to_char(changed_at at time zone 'UTC', 'YYYY-MM-DD HH24:MI:SS.MS') || 'Z',
                    to_char(changed_at at time zone 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US') || 'Z'
               from crm_relay.change order by seq",
            &[],
        )
        .await
        .unwrap();
    let mut printed = text(printed);
    for (place, row) in rows.iter().enumerate() {
        let (number, txid): (i64, String) = (row.get(0), row.get(1));
        for (before, after) in [("txid ", ""), ("txid\":\"", "\""), (",", ",")] {
            printed = printed.replace(
                &format!("{before}{txid}{after}"),
                &format!("{before}<txid {number}>{after}"),
            );
        }
        printed = printed
            .replace(row.get::<_, &str>(2), &format!("<time {}>", place + 1))
            .replace(row.get::<_, &str>(3), &format!("<at {}>", place + 1));
    }
    printed
}

#[tokio::test]
async fn each_format_tells_the_same_edits() {
    let database = edited().await;
    for (arguments, expected) in [
        (&["--color", "never"][..], include_str!("audit/table.txt")),
        (&["--color", "always"], include_str!("audit/colour.txt")),
        (&["--format", "json"], include_str!("audit/lines.jsonl")),
        (&["--format", "csv"], include_str!("audit/sheet.csv")),
        // what is no terminal gets no colours
        (&[], include_str!("audit/table.txt")),
    ] {
        let told = crm_relay(&database.url(), &[&["audit"], arguments].concat());
        assert!(told.status.success(), "{}", text(&told.stderr));
        let printed = normalised(&database, &told.stdout).await;
        assert_eq!(printed, expected, "{arguments:?}");
    }
}

/// The changes that are told, by their `seq`.
fn told(database: &Database, arguments: &[&str]) -> String {
    let told = crm_relay(
        &database.url(),
        &[&["audit", "--format", "json"], arguments].concat(),
    );
    assert!(told.status.success(), "{}", text(&told.stderr));
    let numbers = text(&told.stdout);
    let numbers = numbers.lines().map(|line| {
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        line["seq"].as_str().unwrap().to_owned()
    });
    numbers.collect::<Vec<_>>().join(" ")
}

#[tokio::test]
async fn each_filter_keeps_what_fits_it_and_nothing_else() {
    let database = edited().await;
    let txid = database
        .value("select txid from crm_relay.change where seq = 3")
        .await;
    let at = database
        .value("select changed_at at time zone 'UTC' from crm_relay.change where seq = 3")
        .await;
    let role = format!("audited_{}", uuid::Uuid::new_v4().simple());
    database
        .execute(&format!(
            "create role {role}; grant insert on leads to {role}; set role {role}; set application_name = 'psql';
             insert into public.leads (id) values ('1ead0000-0000-4000-8000-000000000002'); reset role"
        ))
        .await;
    for (arguments, seqs) in [
        (&["leads"][..], "2 3 5 6 7"),
        // with what happened to the whole module
        (&[LEAD], "2 3 5 6"),
        (&["clients:c1000000-0000-4000-8000-000000000001"], "1 4"),
        (&["--module", "clients"], "1 4"),
        (&["--user", "a0000000-0000-4000-8000-00000000000b"], "3"),
        (&["--db-user", &role], "7"),
        (&["--db-user", "postgres", "clients"], "1 4"),
        (&["--application", "psql"], "7"),
        (&["--txid", &txid], "3 4"),
        (&["--since", &at], "3 4 5 6 7"),
        (&["--until", &at], "1 2"),
        (&["--since", "1h"], "1 2 3 4 5 6 7"),
        (&["--since", "2020-01-01", "--until", "2020-01-02"], ""),
        (&[LEAD, "--since", &at, "--user", "nobody"], ""),
    ] {
        assert_eq!(told(&database, arguments), seqs, "{arguments:?}");
    }
    database
        .execute(&format!("drop owned by {role}; drop role {role}"))
        .await;
}

#[tokio::test]
async fn a_transaction_stays_one_block_and_blocks_come_in_the_order_of_commits() {
    let database = Database::create().await;
    let late = database.connect().await;
    // the first to begin is the last to commit
    late.batch_execute("begin; insert into leads (first_name) values ('1')")
        .await
        .unwrap();
    database
        .execute("insert into leads (first_name) values ('2')")
        .await;
    late.batch_execute("insert into leads (first_name) values ('3'); commit")
        .await
        .unwrap();
    assert_eq!(told(&database, &[]), "2 1 3");
}

#[tokio::test]
async fn more_than_is_read_at_once_is_told_whole_and_in_order() {
    let database = Database::create().await;
    let many = "do $$ begin for n in 1..1200 loop insert into leads (number_of_contacts) values (n); commit; end loop; end $$";
    database.execute(many).await;
    database
        .execute("insert into leads (number_of_contacts) select generate_series(1, 1000)")
        .await;
    let all: Vec<String> = (1..=2200).map(|seq| seq.to_string()).collect();
    assert_eq!(told(&database, &["leads"]), all.join(" "));
}

/// `audit --follow` or `tail` as it prints.
#[tokio::test]
async fn a_record_a_transaction_and_what_is_new_are_looked_up_by_the_index() {
    let database = Database::create().await;
    for _ in 0..30 {
        database
            .execute("insert into leads (first_name) select 'x' from generate_series(1, 1000)")
            .await;
    }
    let wanted = database
        .value("insert into leads (first_name) values ('new') returning id || ' ' || pg_current_xact_id()")
        .await;
    let (id, txid) = wanted.split_once(' ').unwrap();
    let next = txid.parse::<u64>().unwrap() + 1;
    let none = "null, null, null, null, null, null";
    let record = format!("array['leads'], array['{id}'], {none}, null");
    let one = format!("null, null, {none}, null");
    let of_txid = format!("null, null, null, null, null, null, null, {txid}, null");
    let plans = [
        (
            crm_relay::journal::TRANSACTIONS,
            format!("{record}, '{{0}}', '{{{next}}}'"),
        ),
        (
            crm_relay::journal::TRANSACTIONS,
            format!("{of_txid}, '{{0}}', '{{{next}}}'"),
        ),
        (
            crm_relay::journal::TRANSACTIONS,
            format!("{one}, '{{{txid}}}', '{{{next}}}'"),
        ),
        (
            crm_relay::journal::ENTRIES,
            format!("{record}, '{{{txid}}}'"),
        ),
        (crm_relay::journal::ENTRIES, format!("{one}, '{{{txid}}}'")),
    ];
    // without statistics and with them: the plan must not depend on them
    for analyze in ["select 1", "analyze crm_relay.change"] {
        database.execute(analyze).await;
        for (statement, parameters) in &plans {
            let plan = plan(&database, statement, parameters).await;
            assert!(!plan.contains("Seq Scan"), "{parameters}\n{plan}");
            assert!(plan.contains("Index Scan"), "{parameters}\n{plan}");
            let pages = plan
                .lines()
                .find_map(|line| line.trim().strip_prefix("Buffers: shared hit="))
                .and_then(|rest| rest.split(' ').next())
                .and_then(|hits| hits.parse::<u64>().ok());
            // the whole journal has more than 2000
            assert!(
                pages.is_some_and(|pages| pages < 300),
                "{parameters}\n{plan}"
            );
        }
    }
}

/// How Postgres reads with these parameters.
async fn plan(database: &Database, statement: &str, parameters: &str) -> String {
    let session = database.connect().await;
    for settings in [
        crm_relay::journal::READ_SETTINGS,
        crm_relay::journal::FILTER_SETTINGS,
    ] {
        session.batch_execute(settings).await.unwrap();
    }
    let types =
        "text[], text[], text, text, text, timestamptz, timestamptz, bigint, bigint, bigint[]";
    let beyond = match statement.contains("$11") {
        true => ", bigint[]",
        false => "",
    };
    session
        .batch_execute(&format!("prepare audit ({types}{beyond}) as {statement}"))
        .await
        .unwrap();
    let explain = format!("explain (analyze, buffers, timing off) execute audit ({parameters})");
    let lines = session.query(&explain, &[]).await.unwrap();
    let lines: Vec<String> = lines.iter().map(|row| row.get(0)).collect();
    lines.join("\n")
}

#[tokio::test]
async fn a_read_that_is_cut_off_goes_on_where_it_was() {
    let database = Database::create().await;
    let many = "do $$ begin for n in 1..3000 loop insert into leads (number_of_contacts) values (n); commit; end loop; end $$";
    database.execute(many).await;
    let follow = ["audit", "leads", "--follow", "--format", "json"];
    let mut audit = Running::start(&database.url(), &follow);
    let mut next = 1;
    let mut read = async |audit: &mut Running, until: u64| {
        while next <= until {
            let line: serde_json::Value = serde_json::from_str(&audit.line().await).unwrap();
            assert_eq!(line["seq"], next.to_string());
            next += 1;
        }
    };
    // live, so that there is somebody to come back
    read(&mut audit, 3000).await;
    database.execute(many).await;
    // the rest waits in the pipe, which holds less
    read(&mut audit, 3100).await;
    let cut = "select pg_terminate_backend(pid) from pg_stat_activity
                where datname = current_database() and application_name like 'crm-relay %'";
    database.execute(cut).await;
    read(&mut audit, 4000).await;
    database.execute(cut).await;
    read(&mut audit, 6000).await;
    audit.complains("reading the journal again").await;
    database
        .execute("insert into leads (first_name) values ('last')")
        .await;
    read(&mut audit, 6001).await;
}

#[tokio::test]
async fn colours_are_for_terminals_and_for_who_wants_them() {
    let database = Database::create().await;
    database
        .execute("insert into leads (first_name) values ('x')")
        .await;
    let on_terminal = |setting: (&str, &str), arguments: &str| {
        let command = format!("{} audit {arguments}", env!("CARGO_BIN_EXE_crm-relay"));
        let told = Command::new("script")
            .args(["-qec", &command, "/dev/null"])
            .env("DATABASE_URL", database.url())
            .env("TERM", "xterm")
            .env_remove("NO_COLOR")
            .env(setting.0, setting.1)
            .stdin(Stdio::null())
            .output()
            .unwrap();
        assert!(told.status.success());
        let told = text(&told.stdout);
        assert!(told.contains("first_name"), "{told}");
        told.contains("\u{1b}[32m")
    };
    assert!(on_terminal(("NO_COLOR", ""), ""));
    assert!(!on_terminal(("NO_COLOR", "1"), ""));
    assert!(!on_terminal(("TERM", "dumb"), ""));
    assert!(on_terminal(("NO_COLOR", "1"), "--color always"));
    assert!(!on_terminal(("NO_COLOR", ""), "--color never"));
}

/// One that runs on.
pub struct Running {
    child: Child,
    pub out: Lines<BufReader<ChildStdout>>,
    pub err: Lines<BufReader<ChildStderr>>,
}

impl Running {
    pub fn start(url: &str, arguments: &[&str]) -> Running {
        let mut child = tokio::process::Command::new(env!("CARGO_BIN_EXE_crm-relay"))
            .args(arguments)
            .env("DATABASE_URL", url)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        Running {
            out: BufReader::new(child.stdout.take().unwrap()).lines(),
            err: BufReader::new(child.stderr.take().unwrap()).lines(),
            child,
        }
    }

    /// The next line that it prints.
    pub async fn line(&mut self) -> String {
        let line = timeout(DEADLINE, self.out.next_line()).await;
        line.expect("a line in time").unwrap().expect("a line")
    }

    /// Waits for a complaint that holds this text.
    pub async fn complains(&mut self, wanted: &str) {
        let complained = async {
            while let Some(line) = self.err.next_line().await.unwrap() {
                if line.contains(wanted) {
                    return;
                }
            }
            panic!("it ended without a word of {wanted}");
        };
        timeout(DEADLINE, complained).await.expect(wanted);
    }

    /// How it ends at a signal.
    pub async fn signalled(mut self, name: &str) -> std::process::ExitStatus {
        let pid = self.child.id().unwrap().to_string();
        let sent = Command::new("kill")
            .args([&format!("-{name}"), &pid])
            .status();
        assert!(sent.unwrap().success());
        timeout(DEADLINE, self.child.wait()).await.unwrap().unwrap()
    }
}

#[tokio::test]
async fn follow_goes_on_live_after_what_was() {
    let database = Database::create().await;
    database
        .execute("insert into leads (first_name) values ('before')")
        .await;
    let follow = ["audit", "leads", "--follow", "--format", "json"];
    let mut audit = Running::start(&database.url(), &follow);
    assert!(audit.line().await.contains(r#""new":"before""#));
    database
        .execute("update listings set id = id; insert into clients default values; insert into leads (first_name) values ('after')")
        .await;
    let line = audit.line().await;
    assert!(line.contains(r#""new":"after""#), "{line}");
    assert_eq!(audit.signalled("INT").await.code(), Some(130));
}

#[tokio::test]
async fn who_reads_no_more_ends_it_without_an_error() {
    let database = edited().await;
    let shell = |script: &str| {
        let script = format!("set -o pipefail; {script}")
            .replace("crm-relay", env!("CARGO_BIN_EXE_crm-relay"));
        let told = Command::new("bash")
            .args(["-c", &script])
            .env("DATABASE_URL", database.url())
            .output()
            .unwrap();
        assert!(told.status.success(), "{script}: {}", text(&told.stderr));
        assert_eq!(text(&told.stderr), "", "{script}");
        text(&told.stdout)
    };
    let head = shell("crm-relay audit --format csv | head -n 1");
    assert!(head.starts_with("changed_at,txid,seq,"), "{head}");
    // also one that would go on for ever, and has nothing to print
    assert!(!shell("crm-relay audit --follow | head -n 1").is_empty());
}

#[tokio::test]
async fn the_right_to_audit_is_all_that_it_needs() {
    let database = edited().await;
    let name = format!("dba_{}", uuid::Uuid::new_v4().simple());
    database.execute(&format!("create role {name} login")).await;
    let url = database.url().replace("//postgres@", &format!("//{name}@"));
    let refused = crm_relay(&url, &["audit"]);
    assert_eq!(refused.status.code(), Some(1));
    let why = text(&refused.stderr);
    let mend = format!("grant crm_relay_audit to {name}");
    assert!(why.contains(&mend), "{why}");
    database.execute(&mend).await;
    let granted = crm_relay(&url, &["audit", "--format", "csv"]);
    assert!(granted.status.success(), "{}", text(&granted.stderr));
    let printed = normalised(&database, &granted.stdout).await;
    assert_eq!(printed, include_str!("audit/sheet.csv"));
    database
        .execute(&format!("drop owned by {name}; drop role {name}"))
        .await;
}

#[tokio::test]
async fn an_image_that_is_no_row_is_told_as_it_is() {
    let database = Database::create().await;
    database
        .execute(
            "insert into crm_relay.change (slot, module, action, record_id, db_user, db_role, application, old_image, new_image)
             values (0, 'leads', 'updated', 'x', 'x', 'x', 'x', '[1]', '{\"a\": 2}')",
        )
        .await;
    for (format, wanted) in [
        ("table", "    *  [1] -> {\"a\": 2}"),
        ("json", r#""*":{"old":[1],"new":{"a": 2}}"#),
        ("csv", r#",*,[1],"{""a"": 2}""#),
    ] {
        let told = crm_relay(&database.url(), &["audit", "--format", format]);
        let told = text(&told.stdout);
        assert!(told.contains(wanted), "{told}");
    }
}

#[tokio::test]
async fn what_cannot_be_is_refused_with_what_would_be_right() {
    let database = Database::create().await;
    for (arguments, wanted) in [
        (&["listings:7"][..], "a uuid in lower case"),
        (&["contacts"], "part of other records"),
        (&["--since", "once"], "2026-11-22"),
        (&["--txid", "0"], "--txid"),
        (&["--until", "1h", "--follow"], "--follow"),
    ] {
        let refused = crm_relay(&database.url(), &[&["audit"], arguments].concat());
        let why = text(&refused.stderr);
        assert_eq!(refused.status.code(), Some(2), "{arguments:?}: {why}");
        assert!(why.contains(wanted), "{why}");
    }
    // what is not watched may have been
    let unknown = crm_relay(&database.url(), &["audit", "listing"]);
    assert!(unknown.status.success());
    let why = text(&unknown.stderr);
    assert!(why.contains("watched are appointments, clients"), "{why}");
    assert!(why.contains("no such change is in the journal"), "{why}");
}

#[tokio::test]
async fn the_view_and_the_command_tell_the_same() {
    let database = Database::create().await;
    database
        .execute(include_str!("../../deploy/crm_records.sql"))
        .await;
    database
        .execute("update listings set list_price = list_price + 1, description = repeat('x', 2000);
                  update escrows set notes = U&'\\0041\\00e9\\D83D\\DE00', people = '{\"a\": [1, 2]}'; delete from appointments")
        .await;
    let told = crm_relay(&database.url(), &["audit", "--format", "csv"]);
    let view = database
        .client()
        .query(
            "select seq, field, old_value::text, new_value::text from crm_relay.audit order by seq, field",
            &[],
        )
        .await
        .unwrap();
    let mut sheet = csv::Reader::from_reader(&told.stdout[..]);
    let mut rows: Vec<(i64, String, String, String)> = sheet
        .records()
        .map(|row| {
            let row = row.unwrap();
            let cell = |place: usize| row[place].to_owned();
            (cell(2).parse().unwrap(), cell(12), cell(13), cell(14))
        })
        .collect();
    rows.sort();
    let value = |value: Option<String>| value.unwrap_or_default();
    let mut view: Vec<_> = view
        .iter()
        .map(|row| {
            (
                row.get(0),
                value(row.get(1)),
                value(row.get(2)),
                value(row.get(3)),
            )
        })
        .collect();
    view.sort();
    assert!(rows.len() > 500, "{}", rows.len());
    assert_eq!(rows, view);
}

/// The SQL of each question in `sql/README.md`.
fn questions() -> Vec<String> {
    let document = include_str!("../../sql/README.md");
    let (_, section) = document.split_once("\n## Ten questions\n").unwrap();
    let section = section.split("\n## ").next().unwrap();
    let blocks = section.split("```sql\n").skip(1);
    let blocks = blocks.map(|block| block.split("```").next().unwrap());
    blocks
        .map(|sql| sql.trim().trim_end_matches(';').to_owned())
        .collect()
}

#[tokio::test]
async fn the_ten_questions_have_the_answers_that_were_lived() {
    let database = Database::create().await;
    database
        .execute("set application_name = 'crm backend'")
        .await;
    database
        .execute(include_str!("../../deploy/crm_records.sql"))
        .await;
    let (ana, ben) = (
        "a0000000-0000-4000-8000-000000000001",
        "a0000000-0000-4000-8000-000000000002",
    );
    let listing = "11000000-0000-4000-8000-000000000001";
    let edit = async |by: &str, what: &str| {
        database
            .execute(&format!(
                "update listings set {what}, version = version + 1, last_modified_by = '{by}' where id = '{listing}'"
            ))
            .await;
    };
    edit(ben, "list_price = 479000").await;
    edit(ana, "list_price = 484000").await;
    edit(ana, &format!("listing_agent_id = '{ben}'")).await;
    edit(ana, &format!("listing_agent_id = '{ana}'")).await;
    let whole = "update listings set bedrooms = 4 where id = '11000000-0000-4000-8000-000000000005';
                 update leads set status = 'contacted' where id = '1ead0000-0000-4000-8000-000000000003'";
    database.execute(whole).await;
    let txid = database
        .value("select txid from crm_relay.change order by seq desc limit 1")
        .await;
    database
        .execute(&format!(
            "set crm_relay.user_id = '{ben}'; delete from leads where id = '1ead0000-0000-4000-8000-000000000001'; reset crm_relay.user_id"
        ))
        .await;
    database
        .execute("set application_name = 'psql'; update escrows set notes = 'by hand' where display_id = 'ESC-2026-001'")
        .await;
    // an hour passes for one of them
    database
        .execute("update crm_relay.change set changed_at = changed_at - interval '2 hours' where record_id = '11000000-0000-4000-8000-000000000002'")
        .await;

    let name = format!("dba_{}", uuid::Uuid::new_v4().simple());
    database
        .execute(&format!(
            "create role {name} login; grant crm_relay_audit to {name}"
        ))
        .await;
    let url = database.url().replace("//postgres@", &format!("//{name}@"));
    let dba = crate::harness::connect(&url).await;
    let lead = "1ead0000-0000-4000-8000-000000000001";
    // of each answer some rows, in their order, each as it is from some cell on
    let expected: [&[String]; 10] = [
        &[
            format!("{ben}|postgres|crm backend|489000.00|479000.00"),
            format!("{ana}|postgres|crm backend|479000.00|484000.00"),
        ],
        &[
            format!("|listings|{listing}|updated|list_price"),
            format!("|leads|{lead}|deleted|access_level, broker_id, created_at, "),
        ],
        &["postgres|postgres|psql|1|".to_owned()],
        &[
            "|listings|11000000-0000-4000-8000-000000000005||updated|bedrooms|3|4".to_owned(),
            "|leads|1ead0000-0000-4000-8000-000000000003||updated|status|".to_owned(),
        ],
        &[format!("|{ben}|postgres|crm backend|{{ \"")],
        &[
            "city||\"Sparks\"|".to_owned(),
            "list_price||415000.00|".to_owned(),
        ],
        &[
            format!("|listings|{listing}|{ana}|listing_agent_id|{ana}|{ben}"),
            format!("|listings|{listing}|{ana}|listing_agent_id|{ben}|{ana}"),
        ],
        &[format!(
            "|listings|{listing}|list_price|{ben}|479000.00|{ana}|484000.00"
        )],
        &[format!("listings|{listing}|4|2")],
        &["|postgres|crm backend|listings|created|12".to_owned()],
    ];
    for (number, (sql, expected)) in questions().iter().zip(expected).enumerate() {
        let told = answer(&dba, &sql.replace("7423", &txid)).await;
        let mut rows = told.iter();
        for expected in expected {
            let is_told = rows.any(|row| row.contains(expected));
            assert!(is_told, "question {}: {expected}\n{told:#?}", number + 1);
        }
    }
    assert_eq!(questions().len(), 10);
    drop(dba);
    database
        .execute(&format!("drop owned by {name}; drop role {name}"))
        .await;
}

/// Rows of an answer, their cells as text.
async fn answer(client: &tokio_postgres::Client, sql: &str) -> Vec<String> {
    let rows = client.simple_query(sql).await;
    let rows = rows.unwrap_or_else(|error| panic!("{error:?}\n{sql}"));
    let rows = rows.iter().filter_map(|message| match message {
        tokio_postgres::SimpleQueryMessage::Row(row) => {
            let cells = (0..row.len()).map(|place| row.get(place).unwrap_or_default());
            Some(cells.collect::<Vec<_>>().join("|"))
        }
        _ => None,
    });
    rows.collect()
}
