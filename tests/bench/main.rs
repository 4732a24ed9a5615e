//! The relay side by side with what would be used instead, and with the least that can be done.
//!
//! `tests/bench/run.sh` builds and starts everything; see tests/README.md. One program: it starts the
//! servers, is the load, and is itself one of the servers ([`bare`]).

mod bare;
mod bridge;
mod catch_up;
mod fan_out;
mod figure;
mod ground;
mod growth;
mod idle;
mod listen;
mod load;
mod machine;
mod one;
mod plot;
mod server;
mod start;
mod statements;
mod storm;
mod sustained;
mod table;

use std::pin::Pin;

use figure::Figure;

/// What is measured in one go, and lines of the table.
pub struct Part {
    /// On the command line.
    pub name: &'static str,
    /// What is measured and what it should be, in the words of those who set the goals.
    pub goals: &'static [(&'static str, &'static str)],
    run: fn(bool) -> Measuring,
}

type Measuring = Pin<Box<dyn Future<Output = Vec<Figure>>>>;

/// In the order of the table.
const PARTS: &[Part] = &[
    Part {
        name: "fan_out",
        goals: &[(
            "fan-out saturated: 1,000 subscribers of one room, 500 changes by real SQL updates as fast as one writer can, frames per CPU-second of the relay",
            "at least 5 times Node ws, 5 times Socket.IO, 4 times nchan; at least 0.8 of a bare loop that writes up to 8 waiting frames per call",
        )],
        run: |quick| Box::pin(fan_out::saturated(quick)),
    },
    Part {
        name: "paced",
        goals: &[
            (
                "fan-out paced: 20 changes/s to 1,000 subscribers, CPU per frame",
                "at most 1.15 times a bare loop with one write per frame",
            ),
            (
                "its latency, change to the last subscriber, p99",
                "below each peer's p50 in the same run",
            ),
        ],
        run: |quick| Box::pin(fan_out::paced(quick)),
    },
    Part {
        name: "one",
        goals: &[(
            "one subscriber, commit to frame, p50",
            "at most 1.3 times a bare LISTEN-to-socket bridge (which neither journals nor diffs), p99 at most 2 times",
        )],
        run: |quick| Box::pin(one::run(quick)),
    },
    Part {
        name: "idle",
        goals: &[(
            "memory per idle subscribed connection, 10,000 of them (PSS growth)",
            "at most 4 KiB",
        )],
        run: |quick| Box::pin(idle::run(quick)),
    },
    Part {
        name: "storm",
        goals: &[(
            "connect, authenticate, subscribe: 10,000 clients at once after a restart",
            "all live within 10 s, at most 1 journal query per 100 clients",
        )],
        run: |quick| Box::pin(storm::run(quick)),
    },
    Part {
        name: "sustained",
        goals: &[(
            "sustained changes through the whole way (trigger, journal, diff, 1 subscriber each)",
            "at least 8,000 rows/s in transactions of 10 rows, on two cores shared with Postgres, lag p99 below 100 ms, flat over 5 minutes",
        )],
        run: |quick| Box::pin(sustained::run(quick)),
    },
    Part {
        name: "catch_up",
        goals: &[(
            "catch-up from the journal after downtime",
            "at least 100,000 changes/s decoded and diffed",
        )],
        run: |quick| Box::pin(catch_up::run(quick)),
    },
    Part {
        name: "growth",
        goals: &[(
            "growth",
            "CPU per change with 10,000 connections in 10,000 rooms within 20 % of that with 10 in 10; a poll's cost the same with 10 million journal rows as with 10 thousand, and with a transaction open for an hour as without",
        )],
        run: |quick| Box::pin(growth::run(quick)),
    },
    // writers, wide rows
    Part {
        name: "start",
        goals: &[(
            "binary, start",
            "at most 15 MB stripped; ready within 300 ms of a reachable Postgres (memory of recent changes is filled after)",
        )],
        run: |quick| Box::pin(start::run(quick)),
    },
];

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let given: Vec<String> = std::env::args().skip(1).collect();
    if let [what, frames] = &given[..]
        && what == "bare"
    {
        return bare::serve(frames.parse().expect("bare <frames a write>")).await;
    }
    let quick = given.iter().any(|word| word == "--quick");
    let named: Vec<&str> = given
        .iter()
        .map(String::as_str)
        .filter(|word| *word != "--quick")
        .collect();
    let known = || {
        PARTS
            .iter()
            .map(|part| part.name)
            .collect::<Vec<_>>()
            .join(" ")
    };
    if let Some(unknown) = named
        .iter()
        .find(|name| !PARTS.iter().any(|part| part.name == **name))
    {
        eprintln!("bench: there is no part {unknown:?}; parts are {}", known());
        std::process::exit(2);
    }
    let mut figures = Vec::new();
    for part in PARTS {
        if !named.is_empty() && !named.contains(&part.name) {
            continue;
        }
        let began = std::time::Instant::now();
        eprintln!("== {}", part.name);
        let found = (part.run)(quick).await;
        table::print(part, &found);
        eprintln!("   took {} s", began.elapsed().as_secs());
        table::keep(part, &found, quick);
        figures.extend(found);
    }
    println!();
    for part in PARTS {
        let of = |figure: &&Figure| figure.part == part.name;
        table::print(
            part,
            &figures.iter().filter(of).cloned().collect::<Vec<_>>(),
        );
    }
}
