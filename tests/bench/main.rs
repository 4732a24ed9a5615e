//! The relay side by side with what would be used instead, and with the least that can be done.
//!
//! `tests/bench/run.sh` builds and starts everything; see tests/README.md. One program: it starts the
//! servers, is the load, and is itself one of the servers ([`bare`]).

mod bare;
mod bridge;
mod catch_up;
mod fan_out;
mod figure;
mod goals;
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
mod writers;

use std::pin::Pin;

use figure::Figure;

/// What is measured in one go, and lines of the table.
pub struct Part {
    /// On the command line.
    pub name: &'static str,
    /// What it should reach.
    pub goals: &'static [goals::Line],
    run: fn(bool) -> Measuring,
}

type Measuring = Pin<Box<dyn Future<Output = Vec<Figure>>>>;

/// In the order of the table.
#[rustfmt::skip]
const PARTS: &[Part] = &[
    Part { name: "fan_out", goals: &[goals::FAN_OUT], run: |quick| Box::pin(fan_out::saturated(quick)) },
    Part { name: "paced", goals: &[goals::PACED, goals::LATENCY], run: |quick| Box::pin(fan_out::paced(quick)) },
    Part { name: "one", goals: &[goals::ONE], run: |quick| Box::pin(one::run(quick)) },
    Part { name: "idle", goals: &[goals::IDLE, goals::DEFLATE], run: |quick| Box::pin(idle::run(quick)) },
    Part { name: "storm", goals: &[goals::STORM], run: |quick| Box::pin(storm::run(quick)) },
    Part { name: "sustained", goals: &[goals::SUSTAINED], run: |quick| Box::pin(sustained::run(quick)) },
    Part { name: "catch_up", goals: &[goals::CATCH_UP], run: |quick| Box::pin(catch_up::run(quick)) },
    Part { name: "growth", goals: &[goals::GROWTH], run: |quick| Box::pin(growth::run(quick)) },
    Part { name: "writers", goals: &[goals::WRITERS, goals::WIDE], run: |quick| Box::pin(writers::run(quick)) },
    Part { name: "start", goals: &[goals::START], run: |quick| Box::pin(start::run(quick)) },
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
