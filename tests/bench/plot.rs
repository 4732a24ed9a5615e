//! Plots, as SVG that a README can show in the light and in the dark.

use std::fmt::Write;

const WIDTH: f64 = 720.0;
const LEFT: f64 = 190.0;
const COLOURS: [&str; 7] = [
    "#d9480f", "#1c7ed6", "#2b8a3e", "#862e9c", "#868e96", "#495057", "#c2255c",
];

/// A bar for each, with its number, under what it counts; the first is the relay's.
pub fn bars(title: &str, unit: &str, bars: &[(String, f64)]) -> String {
    let most = bars
        .iter()
        .map(|(_, value)| *value)
        .fold(f64::MIN_POSITIVE, f64::max);
    let mut body = String::new();
    for (place, (name, value)) in bars.iter().enumerate() {
        let y = 52.0 + place as f64 * 28.0;
        let width = (WIDTH - LEFT - 120.0) * value / most;
        let colour = if place == 0 { COLOURS[0] } else { COLOURS[4] };
        let _ = write!(
            body,
            r#"<text x="{:.1}" y="{:.1}" text-anchor="end">{name}</text><rect x="{LEFT}" y="{y:.1}" width="{width:.1}" height="20" fill="{colour}"/><text x="{:.1}" y="{:.1}">{}</text>"#,
            LEFT - 8.0,
            y + 15.0,
            LEFT + width + 6.0,
            y + 15.0,
            short(*value),
        );
        body.push('\n');
    }
    let _ = writeln!(body, r#"<text x="8" y="38">{unit}</text>"#);
    page(title, 64.0 + bars.len() as f64 * 28.0, &body)
}

/// How the axis of a curve's values goes.
#[derive(Debug, Clone, Copy)]
pub enum Scale {
    /// From zero.
    Linear,
    /// By powers of ten.
    Logarithmic,
}

/// A line for each through its points.
pub fn curves(
    title: &str,
    across: (&str, Scale),
    up: (&str, Scale),
    lines: &[(String, Vec<(f64, f64)>)],
) -> String {
    let points = || lines.iter().flat_map(|(_, points)| points);
    let across_scale = Axis::of(points().map(|point| point.0), across.1, 60.0, WIDTH - 180.0);
    let up_scale = Axis::of(points().map(|point| point.1), up.1, 300.0, 44.0);
    let mut body = String::new();
    for tick in across_scale.ticks() {
        let x = across_scale.place(tick);
        let _ = writeln!(
            body,
            r#"<path d="M{x:.1} 44V300" class="grid"/><text x="{x:.1}" y="316" text-anchor="middle">{}</text>"#,
            short(tick)
        );
    }
    for tick in up_scale.ticks() {
        let y = up_scale.place(tick);
        let _ = writeln!(
            body,
            r#"<path d="M60 {y:.1}H{:.1}" class="grid"/><text x="54" y="{:.1}" text-anchor="end">{}</text>"#,
            WIDTH - 180.0,
            y + 4.0,
            short(tick)
        );
    }
    for (place, (name, points)) in lines.iter().enumerate() {
        let colour = COLOURS[place % COLOURS.len()];
        let path: Vec<String> = points
            .iter()
            .map(|&(x, y)| format!("{:.1} {:.1}", across_scale.place(x), up_scale.place(y)))
            .collect();
        let y = 56.0 + place as f64 * 20.0;
        let _ = writeln!(
            body,
            r#"<path d="M{}" fill="none" stroke="{colour}" stroke-width="2"/><path d="M{:.1} {y:.1}h16" stroke="{colour}" stroke-width="2"/><text x="{:.1}" y="{:.1}">{name}</text>"#,
            path.join("L"),
            WIDTH - 170.0,
            WIDTH - 150.0,
            y + 4.0,
        );
    }
    let _ = writeln!(
        body,
        r#"<text x="{:.1}" y="336" text-anchor="middle">{}</text><text x="8" y="38">{}</text>"#,
        (60.0 + WIDTH - 180.0) / 2.0,
        across.0,
        up.0
    );
    page(title, 350.0, &body)
}

/// What part of the values is no more than each: a distribution as a curve of at most 200 points.
pub fn distribution(values: &[f64]) -> Vec<(f64, f64)> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let step = sorted.len().div_ceil(200).max(1);
    let share = |place: usize| 100.0 * (place + 1) as f64 / sorted.len() as f64;
    (0..sorted.len())
        .step_by(step)
        .chain(sorted.len().checked_sub(1))
        .map(|place| (sorted[place], share(place)))
        .collect()
}

struct Axis {
    least: f64,
    most: f64,
    scale: Scale,
    from: f64,
    to: f64,
}

impl Axis {
    fn of(values: impl Iterator<Item = f64>, scale: Scale, from: f64, to: f64) -> Axis {
        let (least, most) = values.fold((f64::MAX, f64::MIN_POSITIVE), |(least, most), value| {
            (least.min(value), most.max(value))
        });
        match scale {
            Scale::Linear => Axis {
                least: 0.0,
                most: most * 1.05,
                scale,
                from,
                to,
            },
            Scale::Logarithmic => Axis {
                least: 10f64.powf(least.max(1e-6).log10().floor()),
                most: 10f64.powf(most.log10().ceil()),
                scale,
                from,
                to,
            },
        }
    }

    fn place(&self, value: f64) -> f64 {
        let share = match self.scale {
            Scale::Linear => (value - self.least) / (self.most - self.least),
            Scale::Logarithmic => {
                (value.max(self.least) / self.least).log10()
                    / (self.most / self.least).log10().max(1.0)
            }
        };
        self.from + (self.to - self.from) * share
    }

    fn ticks(&self) -> Vec<f64> {
        match self.scale {
            Scale::Linear => {
                let step = 10f64.powf((self.most / 4.0).log10().floor());
                let step = [1.0, 2.0, 5.0, 10.0]
                    .map(|times| step * times)
                    .into_iter()
                    .find(|step| self.most / step <= 6.0)
                    .unwrap_or(self.most);
                (0..)
                    .map(|number| f64::from(number) * step)
                    .take_while(|tick| *tick <= self.most)
                    .collect()
            }
            Scale::Logarithmic => {
                let (first, last) = (
                    self.least.log10().round() as i32,
                    self.most.log10().round() as i32,
                );
                (first..=last).map(|power| 10f64.powi(power)).collect()
            }
        }
    }
}

fn short(value: f64) -> String {
    match value.abs() {
        0.0 => "0".to_owned(),
        millions if millions >= 1e6 => format!("{:.2} M", value / 1e6),
        thousands if thousands >= 1e4 => format!("{:.0} k", value / 1e3),
        some if some >= 100.0 => format!("{value:.0}"),
        few if few >= 1.0 => format!("{:.1}", value).trim_end_matches(".0").to_owned(),
        _ => format!("{value:.3}").trim_end_matches('0').to_owned(),
    }
}

fn page(title: &str, height: f64, body: &str) -> String {
    format!(
        r##"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="system-ui, sans-serif" font-size="12">
<style>rect.page{{fill:#fff}}text{{fill:#212529}}.grid{{stroke:#dee2e6}}@media(prefers-color-scheme:dark){{rect.page{{fill:#16181b}}text{{fill:#e9ecef}}.grid{{stroke:#343a40}}}}</style>
<rect class="page" width="{WIDTH}" height="{height}"/>
<text x="8" y="20" font-size="14" font-weight="600">{title}</text>
{body}</svg>
"##
    )
}
