//! The relay side by side with what would be used instead, and with the least that can be done.
//!
//! `tests/bench/run.sh` builds and starts everything; see tests/README.md. One program: it starts the
//! servers, is the load, and is itself one of the servers ([`bare`]).

mod bare;
mod bridge;
mod fan_out;
mod figure;
mod ground;
mod listen;
mod load;
mod machine;
mod plot;
mod server;
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
