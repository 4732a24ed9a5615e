//! What was measured: one line of the table each.

use serde::Serialize;

/// A figure, beside what it is compared with.
#[derive(Debug, Clone, Serialize)]
pub struct Figure {
    /// The part that measured it, by its name on the command line.
    pub part: &'static str,
    /// What was measured, in words: `frames per CPU-second, saturated`.
    pub what: String,
    /// The relay's: the median of the runs.
    pub value: f64,
    /// Of each run, in order.
    pub runs: Vec<f64>,
    /// `frames/CPU-s`, `ms`, `KiB`, `rows/s`; `` for a plain ratio.
    pub unit: &'static str,
    /// Another's on the same work, in the same run.
    pub against: Option<Other>,
    /// What it should be.
    pub goal: Option<Goal>,
}

/// Whom it is compared with.
#[derive(Debug, Clone, Serialize)]
pub struct Other {
    /// `ws 8.18`, `bare loop, one write a frame`.
    pub name: String,
    /// The median of its runs, in the figure's unit.
    pub value: f64,
    /// Of each run, in order.
    pub runs: Vec<f64>,
}

/// A bound, of the ratio to the other where there is one, else of the value.
#[derive(Debug, Clone, Copy, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Goal {
    /// No less.
    AtLeast(f64),
    /// No more.
    AtMost(f64),
}

impl Figure {
    /// To the other, if there is one.
    pub fn ratio(&self) -> Option<f64> {
        self.against.as_ref().map(|other| self.value / other.value)
    }

    /// Whether the goal is met.
    pub fn is_met(&self) -> Option<bool> {
        let value = self.ratio().unwrap_or(self.value);
        self.goal.map(|goal| match goal {
            Goal::AtLeast(least) => value >= least,
            Goal::AtMost(most) => value <= most,
        })
    }
}

impl Figure {
    /// The relay's alone.
    pub fn alone(
        part: &'static str,
        what: impl Into<String>,
        unit: &'static str,
        runs: Vec<f64>,
        goal: Option<Goal>,
    ) -> Figure {
        let what = what.into();
        Figure {
            part,
            what,
            value: median(&runs),
            runs,
            unit,
            against: None,
            goal,
        }
    }

    /// Beside another's.
    pub fn beside(self, name: impl Into<String>, runs: Vec<f64>) -> Figure {
        let against = Some(Other {
            name: name.into(),
            value: median(&runs),
            runs,
        });
        Figure { against, ..self }
    }
}

/// The value that this share of the values is no more than.
pub fn percentile(values: &[f64], share: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let place = (sorted.len() as f64 * share).ceil() as usize;
    sorted.get(place.max(1) - 1).copied().unwrap_or(f64::NAN)
}

/// The one in the middle.
pub fn median(runs: &[f64]) -> f64 {
    let mut sorted = runs.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => f64::NAN,
        odd if odd % 2 == 1 => sorted[middle],
        _ => (sorted[middle - 1] + sorted[middle]) / 2.0,
    }
}
