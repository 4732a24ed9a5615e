//! What the relay is built of: licences, doubles and sources, by the rules of `.cargo/deny.toml`. Known
//! vulnerabilities need the network: `cargo deny check advisories`.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use serde_json::Value;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

fn rules() -> toml::Table {
    let text = std::fs::read_to_string(format!("{ROOT}/.cargo/deny.toml")).unwrap();
    text.parse().unwrap()
}

fn texts(value: &toml::Value) -> Vec<String> {
    let all = value.as_array().unwrap().iter();
    all.map(|one| one.as_str().unwrap().to_owned()).collect()
}

/// The packages that the binary is built of, on any system that the rules name.
fn packages() -> Vec<Value> {
    let mut used = BTreeMap::new();
    for target in texts(&rules()["graph"]["targets"]) {
        let told = Command::new(env!("CARGO"))
            .args([
                "metadata",
                "--format-version=1",
                "--locked",
                "--filter-platform",
                &target,
            ])
            .current_dir(ROOT)
            .output()
            .unwrap();
        assert!(
            told.status.success(),
            "{}",
            String::from_utf8_lossy(&told.stderr)
        );
        let told: Value = serde_json::from_slice(&told.stdout).unwrap();
        let nodes = told["resolve"]["nodes"].as_array().unwrap();
        let mut ahead = vec![told["resolve"]["root"].as_str().unwrap().to_owned()];
        let mut reached = BTreeSet::new();
        while let Some(id) = ahead.pop() {
            if !reached.insert(id.clone()) {
                continue;
            }
            let node = nodes.iter().find(|node| node["id"] == id.as_str()).unwrap();
            for dependency in node["deps"].as_array().unwrap() {
                let kinds = dependency["dep_kinds"].as_array().unwrap();
                if kinds.iter().any(|kind| kind["kind"] != "dev") {
                    ahead.push(dependency["pkg"].as_str().unwrap().to_owned());
                }
            }
        }
        for package in told["packages"].as_array().unwrap() {
            let id = package["id"].as_str().unwrap();
            if reached.contains(id) {
                used.insert(id.to_owned(), package.clone());
            }
        }
    }
    assert!(used.len() > 50, "{}", used.len());
    used.into_values().collect()
}

#[test]
fn every_licence_is_one_that_may_be_given_away() {
    let allowed = texts(&rules()["licenses"]["allow"]);
    let allowed: Vec<_> = allowed
        .iter()
        .map(|name| spdx::Licensee::parse(name).unwrap())
        .collect();
    let mut needed = BTreeSet::new();
    for package in packages() {
        let licence = package["license"].as_str().unwrap_or("none");
        let expression = spdx::Expression::parse_mode(licence, spdx::ParseMode::LAX);
        let expression = expression.unwrap_or_else(|error| panic!("{}: {error}", package["id"]));
        let is_good = expression.evaluate(|wanted| {
            let found = allowed.iter().position(|allowed| allowed.satisfies(wanted));
            needed.extend(found);
            found.is_some()
        });
        assert!(is_good, "{}: {licence}", package["id"]);
    }
    let idle = (0..allowed.len()).filter(|place| !needed.contains(place));
    let idle: Vec<_> = idle.map(|place| allowed[place].to_string()).collect();
    assert!(idle.is_empty(), "nothing needs {idle:?} any more");
}

#[test]
fn no_crate_is_there_twice_unless_it_is_said() {
    let skipped: BTreeSet<String> = texts(&rules()["bans"]["skip"]).into_iter().collect();
    let mut versions: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for package in packages() {
        let text = |field: &str| package[field].as_str().unwrap().to_owned();
        versions
            .entry(text("name"))
            .or_default()
            .insert(text("version"));
    }
    let twice = versions.iter().filter(|(_, versions)| versions.len() > 1);
    // the newest stays: the older ones must be said
    let older: BTreeSet<String> = twice
        .flat_map(|(name, versions)| {
            let mut versions: Vec<_> = versions.iter().collect();
            versions.sort_by_key(|version| {
                let parts = version
                    .split(['.', '+', '-'])
                    .map(|part| part.parse().unwrap_or(0));
                parts.collect::<Vec<u64>>()
            });
            versions.pop();
            versions
                .into_iter()
                .map(move |version| format!("{name}@{version}"))
        })
        .collect();
    assert_eq!(
        older, skipped,
        "left: there twice; right: said in .cargo/deny.toml"
    );
}

#[test]
fn every_crate_is_from_the_registry() {
    for package in packages() {
        let source = package["source"].as_str();
        let is_own = package["name"] == "crm-relay" && source.is_none();
        let is_registered = source.is_some_and(|source| {
            source == "registry+https://github.com/rust-lang/crates.io-index"
        });
        assert!(is_own || is_registered, "{}: {source:?}", package["id"]);
    }
}
