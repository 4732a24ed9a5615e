//! An explanation, for people and for programs.

use std::io::{self, Write};

use serde_json::json;

use crate::audit::table;
use crate::journal::Entry;
use crate::terminal::{visible, visible_json};

/// What a step found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// It is so.
    Yes,
    /// It is not.
    No,
    /// It may be.
    Maybe,
    /// Nothing that is left tells.
    Unknown,
}

/// What somebody got of a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing, wherever they were.
    Nothing,
    /// An event or a notice, if they were connected and in one of the rooms.
    IfThere,
    /// To fetch anew.
    Resync,
}

/// A step of the way, with how to see it for oneself.
#[derive(Debug)]
pub struct Step {
    /// Which.
    pub name: &'static str,
    /// What it found.
    pub answer: Answer,
    /// In words.
    pub says: String,
    /// What shows it.
    pub evidence: String,
}

/// One change, explained.
#[derive(Debug)]
pub struct Explained {
    record: String,
    action: &'static str,
    txid: u64,
    seq: u64,
    /// The way that it went.
    pub steps: Vec<Step>,
    outcome: Outcome,
    why: String,
    /// Changes of its transaction that are not explained.
    pub more: usize,
}

impl Answer {
    fn name(self) -> &'static str {
        match self {
            Answer::Yes => "yes",
            Answer::No => "no",
            Answer::Maybe => "maybe",
            Answer::Unknown => "unknown",
        }
    }
}

impl Outcome {
    fn name(self) -> &'static str {
        match self {
            Outcome::Nothing => "nothing",
            Outcome::IfThere => "if_subscribed",
            Outcome::Resync => "resync",
        }
    }
}

impl Explained {
    /// Of this change, before anything was found out.
    pub fn of(entry: &Entry) -> Explained {
        Explained {
            record: table::record(entry),
            action: entry.change.action.name(),
            txid: entry.change.txid,
            seq: entry.change.seq,
            steps: Vec::new(),
            outcome: Outcome::Nothing,
            why: String::new(),
            more: 0,
        }
    }

    /// How it ended.
    pub fn end(&mut self, outcome: Outcome, why: String) {
        (self.outcome, self.why) = (outcome, why);
    }
}

/// For people: a block for each change.
pub fn text(user: &str, all: &[Explained], out: &mut Vec<u8>) -> io::Result<()> {
    for one in all {
        writeln!(
            out,
            "{}  {}  seq {}  txid {}  for {}",
            one.record,
            one.action,
            one.seq,
            one.txid,
            visible(user)
        )?;
        for step in &one.steps {
            writeln!(
                out,
                "  {:10}  {:7}  {}",
                step.name,
                step.answer.name(),
                visible(&step.says)
            )?;
            writeln!(out, "  {:21}see: {}", "", visible(&step.evidence))?;
        }
        writeln!(out, "  so: {}", visible(&one.why))?;
        if one.more > 0 {
            writeln!(
                out,
                "{} more changes of this transaction; explain one of them by --seq",
                one.more
            )?;
        }
    }
    Ok(())
}

/// For programs: one object.
pub fn json(user: &str, all: &[Explained], out: &mut Vec<u8>) -> io::Result<()> {
    let changes: Vec<_> = (all.iter())
        .map(|one| {
            let steps: Vec<_> = (one.steps.iter())
                .map(|step| {
                    json!({
                        "step": step.name,
                        "answer": step.answer.name(),
                        "says": step.says,
                        "evidence": step.evidence,
                    })
                })
                .collect();
            json!({
                "record": one.record,
                "action": one.action,
                "txid": one.txid.to_string(),
                "seq": one.seq.to_string(),
                "steps": steps,
                "outcome": one.outcome.name(),
                "why": one.why,
            })
        })
        .collect();
    let more = all.last().map_or(0, |last| last.more);
    let all = json!({"user": user, "changes": changes, "more": more});
    writeln!(out, "{}", visible_json(&all.to_string()))
}
