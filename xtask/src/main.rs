//! The project's own commands: `cargo xtask test` proves that everything works, `cargo xtask tidy`
//! that the house is in order, `cargo xtask soak` runs the long tests in full. Nothing here is shipped.

mod command;
mod mutations;
mod postgres;
mod project;
mod soak;
mod suite;
mod tidy;
mod toolbox;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Commands for people who work on Headwater
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Installs what is missing, then runs every check and test, from format to end to end
    #[command(
        after_help = "Examples:\n  cargo xtask test\n  cargo xtask test --only fmt,tidy\n  cargo xtask test --only e2e -- -k kills"
    )]
    Test {
        /// Runs only these steps (and what they need), separated by commas
        #[arg(long, value_name = "STEP", value_delimiter = ',')]
        only: Vec<String>,
        /// Lists the steps and exits
        #[arg(long)]
        list: bool,
        /// Arguments for pytest in the end-to-end step
        #[arg(last = true)]
        pytest: Vec<String>,
    },
    /// Runs the long tests in full: the simulation, power cuts, kills, full disks, corruption, SDKs, benches with bounds
    #[command(
        after_help = "Examples:\n  cargo xtask soak\n  cargo xtask soak --only sim\n  cargo xtask soak --only power_cut\n  cargo xtask soak --only clients\n  cargo xtask soak --only kills\n  cargo xtask soak --only benches"
    )]
    Soak {
        /// Runs only the tests whose name contains this; `sim` is the simulation, `mutations` are faults made on purpose, `clients` are the SDKs, `kills` are collectors and agents killed at every point, `benches` are those with bounds of the collector's speed and memory
        #[arg(long, value_name = "NAME")]
        only: Option<String>,
    },
    /// Checks what compilers do not: who may use whom, paths in the docs, file headers, leftovers
    Tidy,
}

fn main() -> ExitCode {
    let result = match Arguments::parse().task {
        Task::Test { list: true, .. } => {
            suite::list();
            Ok(())
        }
        Task::Test { only, pytest, .. } => suite::run(&only, pytest, suite::Extent::Short),
        Task::Soak { only } => soak::run(only.as_deref()),
        Task::Tidy => project::Project::find().and_then(|project| tidy::run(&project)),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
