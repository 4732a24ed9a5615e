//! What the command does for those who type it: help, completions, tokens.

use std::process::{Command, Output};

use serde_json::json;

use crate::harness::{Client, Database, Relay, SECRET, crm_relay};

const NOWHERE: &str = "postgresql://relay@127.0.0.1:1/crm";

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// `token`, with these settings.
fn token(settings: &[(&str, &str)], arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_crm-relay"))
        .arg("token")
        .args(arguments)
        .env_remove("RELAY_JWT_SECRET")
        .envs(settings.iter().copied())
        .output()
        .unwrap()
}

#[test]
fn the_help_of_every_command_has_an_example() {
    let help = text(&crm_relay(NOWHERE, &["--help"]).stdout);
    let (_, commands) = help.split_once("Commands:\n").unwrap();
    let commands = commands.split("\n\n").next().unwrap();
    let commands: Vec<&str> = (commands.lines())
        .filter_map(|line| line.split_whitespace().next())
        .filter(|name| *name != "help")
        .collect();
    for known in ["serve", "audit", "tail", "explain", "token", "completions"] {
        assert!(commands.contains(&known), "{commands:?}");
    }
    for command in commands {
        let help = text(&crm_relay(NOWHERE, &[command, "--help"]).stdout);
        assert!(help.contains("\nExample: "), "{command}\n{help}");
    }
}

#[test]
fn every_shell_gets_completions_that_know_the_commands() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = crm_relay(NOWHERE, &["completions", shell]);
        assert!(script.status.success());
        let script = text(&script.stdout);
        for known in ["audit", "explain", "db-user", "sign-as-production"] {
            assert!(script.contains(known), "{shell}: {known}");
        }
    }
    // bash takes it, and completes by it
    let script = format!(
        r#"source <({} completions bash)
           [[ $(complete -p crm-relay) =~ -F\ ([^ ]+) ]]
           COMP_WORDS=(crm-relay expl) COMP_CWORD=1
           "${{BASH_REMATCH[1]}}" crm-relay expl crm-relay
           echo "${{COMPREPLY[@]}}""#,
        env!("CARGO_BIN_EXE_crm-relay")
    );
    let completed = Command::new("bash").args(["-c", &script]).output().unwrap();
    assert_eq!(
        text(&completed.stdout).trim(),
        "explain",
        "{}",
        text(&completed.stderr)
    );
}

#[tokio::test]
async fn a_relay_takes_a_token_for_development_until_it_is_over() {
    let database = Database::create().await;
    let (ann, team) = (
        "00000000-0000-4000-8000-00000000000a",
        "00000000-0000-4000-8000-0000000000f1",
    );
    database
        .execute(&format!(
            "insert into teams (id, name) values ('{team}', 'T');
             insert into users (id, email, first_name, last_name, team_id) values ('{ann}', 'ann', '', '', '{team}')"
        ))
        .await;
    let audience = ("RELAY_JWT_AUDIENCE", "crm");
    let relay = Relay::guarded(&database.url(), |command| {
        command.env(audience.0, audience.1);
    })
    .await;
    let settings = [("RELAY_JWT_SECRET", SECRET), audience];
    let issued = token(&settings, &["--user", ann, "--for", "2m"]);
    assert!(issued.status.success(), "{}", text(&issued.stderr));
    let mut client = Client::silent(&relay).await;
    client
        .send(json!({"type": "hello", "token": text(&issued.stdout).trim()}))
        .await;
    let welcome = client.next_frame().await;
    assert_eq!(
        (&welcome["type"], &welcome["userId"]),
        (&json!("welcome"), &json!(ann))
    );
    let answer = client.subscribe(&[format!("team:{team}")]).await;
    assert_eq!(answer["rooms"], json!([format!("team:{team}")]), "{answer}");

    // one that is over in a moment ends the connection
    let brief = token(&settings, &["--user", ann, "--for", "1s"]);
    let mut client = Client::silent(&relay).await;
    client
        .send(json!({"type": "hello", "token": text(&brief.stdout).trim()}))
        .await;
    assert_eq!(client.closed().await, 4401);
}

#[test]
fn what_looks_like_productions_secret_signs_nothing_unasked() {
    let production = [(
        "RELAY_JWT_SECRET",
        "q1Zk9vT8qP0rW1xY2zA3bB4cC5dD6eE7f+gH8iJ9kK0=",
    )];
    let refused = token(&production, &["--user", "a"]);
    let why = text(&refused.stderr);
    assert_eq!(refused.status.code(), Some(2), "{why}");
    assert!(refused.stdout.is_empty());
    assert!(
        why.contains("production") && why.contains("--sign-as-production"),
        "{why}"
    );
    assert!(!why.contains("q1Zk9"), "{why}");
    let meant = token(&production, &["--user", "a", "--sign-as-production"]);
    assert!(meant.status.success());
    assert_eq!(text(&meant.stdout).split('.').count(), 3);

    let dev = ("RELAY_JWT_SECRET", "dev-only-0123456789abcdef0123456789");
    for (settings, arguments, wanted) in [
        (&[][..], &["--user", "a"][..], "RELAY_JWT_SECRET"),
        (
            &[("RELAY_JWT_SECRET", "dev-short")],
            &["--user", "a"],
            "at least 32",
        ),
        (&[dev], &["--user", ""], "--user"),
        (&[dev], &["--user", "a", "--for", "25h"], "24h"),
        (&[dev], &["--user", "a", "--for", "soon"], "--for"),
        (
            &[("RELAY_JWKS", "/nowhere.json")],
            &["--user", "a"],
            "private key",
        ),
    ] {
        let refused = token(settings, arguments);
        let why = text(&refused.stderr);
        assert_eq!(refused.status.code(), Some(2), "{arguments:?}: {why}");
        assert!(why.contains(wanted), "{why}");
    }
}
