//! The commands that the documents show: all of a document's, one after the other, in an empty folder and on a
//! server of its own. `cargo` builds nothing there: it has, or this would not run.

use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, Stdio};

use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::time::timeout;

use crate::edge::Folder;
use crate::harness::{Cluster, DEADLINE, SECRET, connect};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");
const CRM: [&str; 2] = [
    include_str!("../../deploy/crm.sql"),
    include_str!("../../deploy/crm_records.sql"),
];

/// What is shown and not run here, by how it begins, and why not.
const NOT_RUN: [(&str, &str); 9] = [
    (
        "./deploy/demo.sh",
        "tests/relay/demo.rs runs the demo, and tests/run.sh runs this",
    ),
    (
        "sudo install",
        "needs systemd as the first process; tests/deploy/run.sh asks systemd-analyze",
    ),
    (
        "docker build",
        "needs images that cannot be fetched everywhere; tests/deploy/run.sh asks hadolint",
    ),
    (
        "kubectl",
        "needs a cluster; tests/deploy/run.sh holds the files against its schemas",
    ),
    (
        "deploy/postgres.sh run -- cargo test --release",
        "a measurement",
    ),
    (
        "crm-relay audit",
        "goes on live; tests/relay/audit.rs runs each of them",
    ),
    (
        "crm-relay tail",
        "goes on live; tests/relay/tail.rs runs it",
    ),
    (
        "crm-relay explain",
        "needs a change of that number; tests/relay/explain.rs runs it",
    ),
    (
        "crm-relay completions",
        "writes to the home folder; tests/relay/shell.rs runs it",
    ),
];

/// The blocks of a document that are shell, but for those that are not run.
fn blocks(document: &str) -> Vec<String> {
    let text = std::fs::read_to_string(format!("{ROOT}/{document}")).unwrap();
    let blocks = text.split("\n```sh\n").skip(1);
    let blocks = blocks.map(|rest| rest.split("\n```").next().unwrap().to_owned());
    blocks
        .filter(|block| !NOT_RUN.iter().any(|(begins, _)| block.starts_with(begins)))
        .collect()
}

/// Runs a document's blocks; one whose last word is `serve` is told to stop once it is ready.
async fn run(document: &str) {
    let cluster = Cluster::bare();
    let server = connect(&cluster.url()).await;
    server.batch_execute("create database crm").await.unwrap();
    let url = format!("{}/crm", cluster.url().trim_end_matches("/postgres"));
    let crm = connect(&url).await;
    crm.batch_execute(&CRM.concat()).await.unwrap();

    let folder = Folder::new();
    let place = |name: &str| folder.0.join(name);
    for name in ["bin", "target/release"] {
        std::fs::create_dir_all(place(name)).unwrap();
    }
    let link = |from: &str, to: &str| std::os::unix::fs::symlink(from, place(to)).unwrap();
    let binary = env!("CARGO_BIN_EXE_crm-relay");
    link(binary, "target/release/crm-relay");
    link(binary, "bin/crm-relay");
    link("/bin/true", "bin/cargo");
    link(&format!("{ROOT}/sql"), "sql");
    let path = [
        place("bin").display().to_string(),
        std::env::var("PG_BIN").expect("PG_BIN, as deploy/postgres.sh sets it"),
        std::env::var("PATH").unwrap(),
    ];
    let port = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let shown = blocks(document).join("\n");
    let script = shown
        .replace("127.0.0.1:5432", &format!("127.0.0.1:{}", cluster.port()))
        .replace(
            "RELAY_JWT_SECRET=…",
            &format!("RELAY_JWT_SECRET='{SECRET}'"),
        );
    let mut bash = Command::new("bash");
    bash.args(["-euxo", "pipefail", "-c", &script])
        .current_dir(&folder.0)
        .env("PATH", path.join(":"))
        .env("RELAY_LISTEN", format!("127.0.0.1:{port}"))
        .env("DATABASE_URL", url)
        .envs([
            ("PGHOST", "127.0.0.1"),
            ("PGUSER", "postgres"),
            ("PGDATABASE", "crm"),
        ])
        .env("PGPORT", cluster.port().to_string())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0);
    let mut bash = tokio::process::Command::from(bash)
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut complaints = bash.stderr.take().unwrap();
    let said = tokio::spawn(async move {
        let mut said = String::new();
        complaints.read_to_string(&mut said).await.map(|_| said)
    });
    let last = shown
        .lines()
        .rev()
        .map(|line| line.split('#').next().unwrap().trim());
    let ends_by_signal = last
        .clone()
        .find(|line| !line.is_empty())
        .unwrap()
        .ends_with(" serve");
    let mut lines = BufReader::new(bash.stdout.take().unwrap()).lines();
    let group = format!("-{}", bash.id().unwrap());
    let mut was_ready = false;
    let ended = timeout(3 * DEADLINE, async {
        while let Some(line) = lines.next_line().await.unwrap() {
            was_ready |= line.starts_with("ready ");
            if was_ready && ends_by_signal {
                let _ = Command::new("kill").args(["-TERM", "--", &group]).status();
            }
        }
        bash.wait().await.unwrap()
    });
    let ended = ended.await;
    // bash may have become the relay, which ends well, or have ended with it
    let is_good = ended.as_ref().is_ok_and(|status| {
        let by_signal = status.signal() == Some(15) || status.success();
        if ends_by_signal {
            was_ready && by_signal
        } else {
            status.success()
        }
    });
    // what it left running goes with it
    let _ = Command::new("kill")
        .args(["-KILL", "--", &group])
        .stderr(Stdio::null())
        .status();
    assert!(
        is_good,
        "{document}: {ended:?}\n{}",
        said.await.unwrap().unwrap()
    );
}

#[tokio::test]
async fn the_commands_of_the_first_page_work() {
    run("README.md").await;
}

#[tokio::test]
async fn the_commands_for_operators_work() {
    run("deploy/README.md").await;
}

#[tokio::test]
async fn the_commands_for_dbas_work() {
    run("sql/README.md").await;
}

#[test]
fn nothing_is_left_out_that_is_not_shown() {
    let documents = ["README.md", "deploy/README.md", "sql/README.md"]
        .map(|document| std::fs::read_to_string(format!("{ROOT}/{document}")).unwrap());
    for (begins, _) in NOT_RUN {
        let block = format!("```sh\n{begins}");
        assert!(
            documents.iter().any(|text| text.contains(&block)),
            "{begins}"
        );
    }
}
