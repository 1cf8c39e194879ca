//! What the agent promises about its speed. A bench that misses one ends with an error; a busy machine
//! misses them as well, so read the load average first.

use std::process::ExitCode;

/// Figures held against what is promised.
#[derive(Default)]
pub(crate) struct Targets {
    missed: Vec<String>,
}

impl Targets {
    pub(crate) fn at_least(&mut self, what: &str, figure: f64, promised: f64) {
        self.note(what, figure, "at least", promised, figure >= promised);
    }

    pub(crate) fn at_most(&mut self, what: &str, figure: f64, promised: f64) {
        self.note(what, figure, "at most", promised, figure <= promised);
    }

    fn note(&mut self, what: &str, figure: f64, bound: &str, promised: f64, is_met: bool) {
        if !is_met {
            self.missed.push(format!(
                "{what}: {figure:.2}, promised is {bound} {promised}"
            ));
        }
    }

    /// Says what was missed.
    pub(crate) fn end(self) -> ExitCode {
        for line in &self.missed {
            eprintln!("missed: {line}");
        }
        if self.missed.is_empty() {
            println!("every promise is kept");
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        }
    }
}
