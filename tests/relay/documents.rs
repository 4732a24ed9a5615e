//! The documents say what the code does: settings, log lines, links.

use clap::Args;
use crm_relay::config::Given;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");
const DOCUMENTS: [&str; 5] = [
    "README.md",
    "relay/PROTOCOL.md",
    "sql/README.md",
    "deploy/README.md",
    "tests/README.md",
];

fn read(path: &str) -> String {
    std::fs::read_to_string(format!("{ROOT}/{path}"))
        .unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// The relay's Rust files, without their tests.
fn sources() -> Vec<(String, String)> {
    let mut sources = Vec::new();
    let mut folders = vec![std::path::PathBuf::from(format!("{ROOT}/relay"))];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = std::fs::read_to_string(&path).unwrap();
                let code = text.split("#[cfg(test)]").next().unwrap().to_owned();
                sources.push((path.display().to_string(), code));
            }
        }
    }
    assert!(sources.len() > 20);
    sources
}

/// All files below a folder but these documents' tests, as one text each.
fn texts(folder: &str) -> Vec<String> {
    let mut texts = Vec::new();
    let mut folders = vec![std::path::PathBuf::from(format!("{ROOT}/{folder}"))];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            match path.extension().and_then(|extension| extension.to_str()) {
                None => folders.push(path),
                Some("rs" | "sql") if !path.ends_with("documents.rs") => {
                    texts.push(std::fs::read_to_string(path).unwrap())
                }
                Some(_) => {}
            }
        }
    }
    texts
}

/// Cells of a table's rows, of all tables of a document.
fn rows(document: &str) -> Vec<Vec<String>> {
    let rows = document.lines().filter(|line| line.starts_with('|'));
    rows.map(|line| {
        line.trim_matches('|')
            .split(" | ")
            .map(|cell| cell.trim().to_owned())
            .collect()
    })
    .collect()
}

fn quoted(cell: &str) -> Vec<String> {
    cell.split('`')
        .skip(1)
        .step_by(2)
        .map(str::to_owned)
        .collect()
}

#[test]
fn every_setting_is_documented_with_its_default_and_nothing_else_is() {
    let documented = rows(&read("deploy/README.md"));
    let command = Given::augment_args(clap::Command::new("serve"));
    let mut known = Vec::new();
    for argument in command.get_arguments() {
        let flag = format!("--{}", argument.get_long().unwrap());
        let variable = argument.get_env().unwrap().to_str().unwrap().to_owned();
        let row = documented
            .iter()
            .find(|row| row[0] == format!("`{flag}`"))
            .unwrap_or_else(|| panic!("deploy/README.md has no row for {flag}"));
        assert_eq!(row[1], format!("`{variable}`"));
        let help = argument.get_help().unwrap().to_string();
        if let Some((_, default)) = help.split_once("[default: ") {
            let default = default.trim_end_matches(']');
            assert_eq!(row[2].trim_matches('`'), default, "{flag}");
        }
        known.extend([flag, variable]);
    }
    known.extend(["RELAY_DOORBELL".to_owned(), "--doorbell".to_owned()]);
    for row in documented.iter().filter(|row| row[0].starts_with("`--")) {
        assert!(known.contains(&quoted(&row[0])[0]), "{row:?}");
    }
    for document in DOCUMENTS {
        let text = read(document);
        for word in text.split(|c: char| !(c.is_ascii_uppercase() || c == '_')) {
            if word.starts_with("RELAY_") {
                assert!(
                    known.iter().any(|name| name == word),
                    "{document} names {word}"
                );
            }
        }
    }
}

#[test]
fn the_files_to_deploy_it_with_name_no_setting_that_there_is_not() {
    let command = Given::augment_args(clap::Command::new("serve"));
    let known: Vec<_> = command
        .get_arguments()
        .map(|one| one.get_env().unwrap())
        .collect();
    let mut folders = vec![std::path::PathBuf::from(format!("{ROOT}/deploy"))];
    let mut named = 0;
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let text = std::fs::read_to_string(&path).unwrap();
            // RELAY_… alone is all of them
            for word in text.split(|c: char| !(c.is_ascii_uppercase() || c == '_')) {
                if word.starts_with("RELAY_") && word.len() > "RELAY_".len() {
                    let is_known =
                        word == "RELAY_DOORBELL" || known.iter().any(|name| *name == word);
                    assert!(is_known, "{} names {word}", path.display());
                    named += 1;
                }
            }
        }
    }
    assert!(named > 50, "{named}");
}

#[test]
fn the_defaults_that_are_told_are_the_ones_that_count() {
    let config = Given {
        database_url: Some("postgresql://relay@db/crm".to_owned()),
        no_auth: Some("true".to_owned()),
        ..Given::default()
    }
    .serving()
    .unwrap();
    let documented = rows(&read("deploy/README.md"));
    for (flag, value) in [
        ("--listen", config.listen.to_string()),
        ("--log", config.log),
        (
            "--log-format",
            format!("{:?}", config.log_format).to_lowercase(),
        ),
        ("--queue-bytes", config.queue_bytes.to_string()),
        ("--max-connections", config.max_connections.to_string()),
    ] {
        let row = documented.iter().find(|row| row[0] == format!("`{flag}`"));
        assert_eq!(row.unwrap()[2], format!("`{value}`"));
    }
}

/// What stands between the parentheses of each `tracing::info!(…)`, `warn!` and `error!`.
fn log_calls(code: &str) -> Vec<&str> {
    let mut calls = Vec::new();
    for (start, _) in code.match_indices("tracing::") {
        let rest = &code[start + "tracing::".len()..];
        let Some(call) = ["info!(", "warn!(", "error!("]
            .iter()
            .find_map(|name| rest.strip_prefix(name))
        else {
            continue;
        };
        let (mut depth, mut in_text) = (1, false);
        let end = call.char_indices().find(|&(_, c)| {
            in_text ^= c == '"';
            depth += match c {
                '(' if !in_text => 1,
                ')' if !in_text => -1,
                _ => 0,
            };
            depth == 0
        });
        calls.push(&call[..end.unwrap().0]);
    }
    calls
}

#[test]
fn every_log_line_is_documented_with_its_fields_and_no_other_is() {
    let rows = rows(&read("deploy/README.md"));
    let mut logged = Vec::new();
    for (path, code) in sources() {
        for call in log_calls(&code) {
            let mut parts: Vec<&str> = call
                .split([',', '\n'])
                .map(str::trim)
                .filter(|part| !part.is_empty())
                .collect();
            let message = parts.pop().unwrap().trim_matches('"').to_owned();
            // what install and uninstall say is theirs, not the log's
            if message == "{line}" {
                continue;
            }
            // a message may hold a comma
            let message = match call.rsplit('"').nth(1) {
                Some(whole) if whole.ends_with(&message) => whole.to_owned(),
                _ => message,
            };
            let row = rows
                .iter()
                .find(|row| quoted(&row[0]).contains(&message))
                .unwrap_or_else(|| panic!("{path}: \"{message}\" is not in deploy/README.md"));
            for part in parts {
                let name = part.trim_start_matches('%').split(" = ").next().unwrap();
                let is_field =
                    !name.is_empty() && name.chars().all(|c| c.is_ascii_lowercase() || c == '_');
                assert!(
                    !is_field || quoted(&row[1]).iter().any(|known| known == name),
                    "\"{message}\" has field {name}, which deploy/README.md does not tell"
                );
            }
            logged.push(message);
        }
    }
    assert!(logged.len() > 20, "{logged:?}");
    let begin = rows.iter().position(|row| row[0] == "line").unwrap();
    for row in rows[begin + 2..]
        .iter()
        .take_while(|row| row[0] != "what you see")
    {
        for line in quoted(&row[0]) {
            assert!(logged.contains(&line), "nothing logs \"{line}\"");
        }
    }
}

#[test]
fn every_metric_is_documented_as_it_explains_itself_and_no_other_is() {
    let document = read("deploy/README.md");
    let is_metric = |row: &Vec<String>| {
        let name = row[0].trim_matches('`');
        name.starts_with("crm_relay_") || name.starts_with("process_")
    };
    let documented: Vec<_> = rows(&document).into_iter().filter(is_metric).collect();
    let defined = crm_relay::metrics::defined();
    assert!(defined.len() > 20);
    for (name, help, labels) in &defined {
        let row = documented.iter().find(|row| row[0] == format!("`{name}`"));
        let row = row.unwrap_or_else(|| panic!("deploy/README.md has no row for {name}"));
        assert_eq!(quoted(&row[1]), *labels, "labels of {name}");
        assert_eq!(row[2], *help, "{name}");
    }
    for row in &documented {
        let is_defined = defined
            .iter()
            .any(|(name, ..)| row[0] == format!("`{name}`"));
        assert!(is_defined, "nothing counts {}", row[0]);
    }
}

#[test]
fn every_trouble_is_one_that_the_code_or_a_test_knows() {
    let known: String = ["relay", "sql", "tests/relay"]
        .iter()
        .flat_map(|folder| texts(folder))
        .collect();
    // a text may run over lines there
    let known = known.replace("\\\n", "").replace("\\\"", "\"");
    let rows = rows(&read("deploy/README.md"));
    let begin = rows
        .iter()
        .position(|row| row[0] == "what you see")
        .unwrap();
    let troubles = rows[begin + 2..]
        .iter()
        .take_while(|row| row.len() == 4)
        .collect::<Vec<_>>();
    assert!(troubles.len() >= 20, "{}", troubles.len());
    // what an operator types, which says nothing by itself
    let typed = [
        "select ",
        "show ",
        "psql",
        "crm-relay",
        "docker",
        "cat ",
        "df",
        "\\",
        "/readyz",
        "install",
        "serve",
    ];
    for row in troubles {
        let mut signs = quoted(&format!("{} {}", row[0], row[1]));
        signs.retain(|sign| !typed.iter().any(|typed| sign.starts_with(typed)));
        for sign in &signs {
            assert!(known.contains(sign.as_str()), "nobody says {sign}");
        }
        let is_the_way_out = row[3].contains("crm-relay uninstall");
        assert!(!signs.is_empty() || is_the_way_out, "{row:?}");
    }
}

#[test]
fn every_frame_and_code_that_the_relay_sends_is_in_the_protocol() {
    let protocol = read("relay/PROTOCOL.md");
    let mut sent = Vec::new();
    for (_, code) in sources() {
        let code = code.replace('\\', "");
        for (before, documented) in [
            ("\"type\": \"", "\"type\":\"{}\""),
            ("\"type\":\"", "\"type\":\"{}\""),
            ("\"type\".to_owned(), \"", "\"type\":\"{}\""),
            ("code: \"", "`{}`"),
            ("\"code\": \"", "`{}`"),
            ("code: ", "| {}"),
        ] {
            for (start, _) in code.match_indices(before) {
                let rest = &code[start + before.len()..];
                let is_part = |c: char| c.is_ascii_alphanumeric() || c == '_';
                let name = rest.split(|c| !is_part(c)).next().unwrap();
                if before == "code: " && name.parse::<u16>().is_err() {
                    continue;
                }
                let wanted = documented.replace("{}", name);
                let is_told = protocol.contains(&wanted) || protocol.contains(&format!("`{name}`"));
                assert!(is_told, "relay/PROTOCOL.md does not tell {wanted}");
                sent.push(name.to_owned());
            }
        }
    }
    for known in ["welcome", "TRANSACTION", "snapshot", "bad_cursor", "4508"] {
        assert!(sent.iter().any(|name| name == known), "{known}: {sent:?}");
    }
}

#[test]
fn every_link_leads_somewhere() {
    for document in DOCUMENTS {
        let folder = document.rsplit_once('/').map_or("", |(folder, _)| folder);
        for link in read(document).split("](").skip(1) {
            let target = link.split(')').next().unwrap();
            if target.starts_with("http") || target.starts_with('#') {
                continue;
            }
            let (file, heading) = target.split_once('#').unwrap_or((target, ""));
            let path = format!("{ROOT}/{folder}/{file}");
            assert!(
                std::path::Path::new(&path).exists(),
                "{document} links to {target}"
            );
            let text = std::fs::read_to_string(&path).unwrap_or_default();
            let mut headings = text.lines().filter(|line| line.starts_with('#'));
            let is_it = |line: &str| {
                let name = line.trim_start_matches('#').trim().to_lowercase();
                name.replace(' ', "-") == heading
            };
            assert!(
                heading.is_empty() || headings.any(is_it),
                "{document} links to {target}"
            );
        }
    }
}
