//! Arguments that all programs share, and what their exit codes mean.

use std::path::PathBuf;
use std::process::ExitCode;

/// The program did what it was asked to.
pub const EXIT_OK: u8 = 0;
/// The program failed while running.
pub const EXIT_FAILED: u8 = 1;
/// The arguments or the configuration cannot be used; nothing was started.
pub const EXIT_CONFIG: u8 = 2;

/// Arguments of every program.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct CommonArgs {
    /// Configuration file (TOML); `HEADWATER__SECTION__KEY` variables override it
    #[arg(long, value_name = "FILE", global = true, display_order = 0)]
    pub config: Option<PathBuf>,
    /// Read and check the configuration, then exit: 0 when it can be used, 2 when not
    #[arg(long, global = true, display_order = 900)]
    pub check_config: bool,
}

/// Prints `error` with its causes as one line to standard error and returns `code`.
pub fn fail(code: u8, error: &dyn std::error::Error) -> ExitCode {
    let mut line = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let text = cause.to_string();
        if !line.contains(&text) {
            line.push_str(": ");
            line.push_str(&text);
        }
        source = cause.source();
    }
    eprintln!("error: {}", line.replace('\n', " "));
    ExitCode::from(code)
}
