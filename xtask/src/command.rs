//! Runs a program to its end: everything it prints goes to a log file, people see as much as helps.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// Lines of the log that a failure shows.
const TAIL_LINES: usize = 60;
/// How often a quiet command shows that it is alive.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(20);

/// How much of a command's output people see while it runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Show {
    /// Every line.
    Everything,
    /// The last line, every [`PROGRESS_INTERVAL`].
    Progress,
    /// Nothing, not even after a failure: the caller says what it means.
    Nothing,
}

/// The log of one step. Commands append to it.
pub(crate) struct Log {
    path: PathBuf,
    file: File,
}

impl Log {
    /// Makes an empty log.
    pub(crate) fn create(directory: &Path, step: &str) -> Result<Self> {
        std::fs::create_dir_all(directory)
            .with_context(|| format!("cannot make `{}`", directory.display()))?;
        let path = directory.join(format!("{step}.log"));
        let file =
            File::create(&path).with_context(|| format!("cannot write `{}`", path.display()))?;
        Ok(Self { path, file })
    }

    /// Returns what was logged so far.
    pub(crate) fn text(&self) -> Result<String> {
        let bytes = std::fs::read(&self.path)
            .with_context(|| format!("cannot read `{}`", self.path.display()))?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// Runs `command` without standard input. A failure shows the end of the log, unless all of it
    /// was on the screen, and says where the whole is.
    pub(crate) fn run(&mut self, mut command: Command, show: Show) -> Result<()> {
        let line = line_of(&command);
        println!("$ {line}");
        writeln!(self.file, "$ {line}")?;
        let started_at_byte = self.file.metadata()?.len();

        let (reader, writer) = std::io::pipe()?;
        command
            .stdin(Stdio::null())
            .stdout(writer.try_clone()?)
            .stderr(writer);
        let mut child = command
            .spawn()
            .with_context(|| format!("cannot start `{line}`"))?;
        // Ours of the pipe's write ends, or reading would never come to an end.
        drop(command);
        self.copy(reader, show)?;
        let status = child.wait()?;
        if status.success() {
            return Ok(());
        }
        if show == Show::Progress {
            self.print_tail(started_at_byte)?;
        }
        bail!(
            "`{line}` failed ({status}); the whole log is in `{}`",
            self.path.display()
        );
    }

    fn copy(&mut self, reader: impl std::io::Read, show: Show) -> Result<()> {
        let mut lines = BufReader::new(reader);
        let mut line = Vec::new();
        let mut shown_at = Instant::now();
        let mut count = 0_u64;
        loop {
            line.clear();
            if lines.read_until(b'\n', &mut line)? == 0 {
                return Ok(());
            }
            count += 1;
            self.file.write_all(&line)?;
            let text = String::from_utf8_lossy(&line);
            match show {
                Show::Everything => print!("{text}"),
                Show::Progress if shown_at.elapsed() > PROGRESS_INTERVAL => {
                    println!("  … line {count}: {}", text.trim());
                    shown_at = Instant::now();
                }
                Show::Progress | Show::Nothing => {}
            }
            std::io::stdout().flush()?;
        }
    }

    fn print_tail(&self, from_byte: u64) -> Result<()> {
        let text = self.text()?;
        let own = text.get(from_byte as usize..).unwrap_or(&text);
        let lines: Vec<&str> = own.lines().collect();
        let first = lines.len().saturating_sub(TAIL_LINES);
        if first > 0 {
            println!("  … {first} lines before these");
        }
        for line in &lines[first..] {
            println!("  {line}");
        }
        Ok(())
    }
}

/// Returns the command as one would type it, with the environment left out.
fn line_of(command: &Command) -> String {
    std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(|word| {
            let word = word.to_string_lossy();
            if word.contains(' ') {
                format!("'{word}'")
            } else {
                word.into_owned()
            }
        })
        .collect::<Vec<_>>()
        .join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn both_streams_of_a_command_are_logged_in_order() {
        let directory = std::env::temp_dir().join(format!("xtask-log-{}", std::process::id()));
        let mut log = Log::create(&directory, "order").unwrap();
        log.run(shell("echo one; echo two >&2; echo three"), Show::Progress)
            .unwrap();
        assert!(log.text().unwrap().ends_with("one\ntwo\nthree\n"));
        std::fs::remove_dir_all(directory).unwrap();
    }

    #[test]
    fn a_failure_names_the_command_and_the_log() {
        let directory = std::env::temp_dir().join(format!("xtask-fail-{}", std::process::id()));
        let mut log = Log::create(&directory, "fail").unwrap();
        let error = log.run(shell("exit 3"), Show::Everything).unwrap_err();
        let text = format!("{error:#}");
        assert!(
            text.contains("exit 3") && text.contains("fail.log"),
            "{text}"
        );
        std::fs::remove_dir_all(directory).unwrap();
    }
}
