//! Progress on standard output: bars on a terminal, plain lines otherwise.

use std::collections::HashMap;
use std::io::IsTerminal;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use headwater_warehouse::Progress;
use indicatif::{HumanCount, ProgressBar, ProgressStyle};

/// The stages of one run with their times, shown while they go on.
#[derive(Debug, Default)]
pub struct Stages {
    done: Vec<(String, Duration)>,
}

/// One stage under way.
#[derive(Debug, Clone)]
pub struct Stage {
    name: String,
    began: Instant,
    bar: ProgressBar,
}

impl Stages {
    /// Begins a stage; `total` is the number of units of work where it is known.
    pub fn begin(&self, name: &str, total: Option<u64>) -> Stage {
        let bar = bar(total);
        bar.set_message(name.to_owned());
        Stage {
            name: name.to_owned(),
            began: Instant::now(),
            bar,
        }
    }

    /// Ends a stage and prints one line about it.
    pub fn end(&mut self, stage: Stage, detail: &str) {
        let took = stage.began.elapsed();
        stage.bar.finish_and_clear();
        println!("  ✓ {:<26} {:<48} {:>7}", stage.name, detail, seconds(took));
        self.done.push((stage.name, took));
    }

    /// Returns the time of all stages together.
    pub fn total(&self) -> Duration {
        self.done.iter().map(|(_, took)| *took).sum()
    }
}

impl Stage {
    /// Shows that `done` units are done.
    pub fn set(&self, done: u64) {
        self.bar.set_position(done);
    }

    /// Shows what is being done right now.
    pub fn say(&self, what: &str) {
        self.bar.set_message(format!("{} · {what}", self.name));
    }

    /// Returns how long it has been going on.
    pub fn elapsed(&self) -> Duration {
        self.began.elapsed()
    }
}

fn bar(total: Option<u64>) -> ProgressBar {
    if !std::io::stdout().is_terminal() {
        return ProgressBar::hidden();
    }
    let (bar, template) = match total {
        Some(total) => (
            ProgressBar::new(total),
            "    {msg:<40} {bar:28} {human_pos}/{human_len} {per_sec} {eta}",
        ),
        None => (ProgressBar::new_spinner(), "  {spinner} {msg}"),
    };
    bar.set_draw_target(indicatif::ProgressDrawTarget::stdout());
    bar.enable_steady_tick(Duration::from_millis(120));
    bar.with_style(ProgressStyle::with_template(template).expect("the template is constant"))
}

/// Returns a duration as seconds for a person.
pub fn seconds(took: Duration) -> String {
    match took.as_secs() {
        0..100 => format!("{:.1} s", took.as_secs_f64()),
        whole => format!("{} min {} s", whole / 60, whole % 60),
    }
}

/// Returns a count with thousands separated.
pub fn count(number: u64) -> String {
    HumanCount(number).to_string()
}

/// Shows the steps of a night as the message of its stage.
#[derive(Debug)]
pub struct NightSteps {
    stage: Stage,
    totals: Mutex<HashMap<String, u64>>,
}

impl NightSteps {
    /// Shows the steps in `stage`.
    pub fn in_stage(stage: &Stage) -> Self {
        Self {
            stage: stage.clone(),
            totals: Mutex::default(),
        }
    }
}

impl Progress for NightSteps {
    fn started(&self, step: &str, total: Option<u64>) {
        if let (Some(total), Ok(mut totals)) = (total, self.totals.lock()) {
            totals.insert(step.to_owned(), total);
        }
        self.stage.say(step);
    }

    fn advanced(&self, step: &str, done: u64) {
        let total = self
            .totals
            .lock()
            .ok()
            .and_then(|totals| totals.get(step).copied());
        match total {
            Some(total) => self
                .stage
                .say(&format!("{step} {}/{}", count(done), count(total))),
            None => self.stage.say(&format!("{step} {}", count(done))),
        }
    }

    fn finished(&self, step: &str, detail: &str) {
        self.stage.say(&format!("{step}: {detail}"));
    }
}
