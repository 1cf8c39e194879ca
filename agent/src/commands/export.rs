//! `headwater-agent export`: the events that a stopped agent has not delivered, as NDJSON.

use std::io::{self, BufWriter};
use std::process::ExitCode;

use headwater_service::cli::{self, EXIT_FAILED, EXIT_OK};

use super::{ExportArgs, unknown};
use crate::buffer::{Stopped, StoppedError, export_refused};
use crate::config::Config;

pub(super) const HELP: &str = "\
One JSON object per line and event: position, received_at, company, source, kind, path, event_type,
sent_at, ip, user_agent, and the body as the client sent it: `body` when it is JSON, else
`body_base64`. An event of refused/ has epoch, sequence and the collector's reason too. What cannot be
read is left out; `fsck` lists it. The buffer is not changed: what was exported is still shipped after
the next start. Memory does not grow with the buffer.

The lines hold what users sent: treat them as personal data.

Examples:
  headwater-agent export --config /etc/headwater/agent.toml > undelivered.ndjson
  headwater-agent export --config /etc/headwater/agent.toml --from 1000 --to 1999 | jq .body
  headwater-agent export --config /etc/headwater/agent.toml --quarantine > rescued.ndjson
  headwater-agent export --config /etc/headwater/agent.toml --refused | jq '{reason, body}'

Files:
  BUFFER/                    the directory that is read (buffer.directory): generations/, or with an
                             option quarantine/ or refused/

Environment:
  HEADWATER__SECTION__KEY    overrides section.key of the file
  TMPDIR                     where the copy of a generation goes, about 100 MB

Exit codes: 0 everything readable was written, 1 the output failed, 2 cannot tell (the agent runs, or
there is no such buffer)";

pub(super) fn execute(config: &Config, args: ExportArgs) -> ExitCode {
    let positions = args.from..=args.to;
    let mut out = BufWriter::new(io::stdout().lock());
    if args.refused {
        return exit_code(export_refused(
            &config.buffer.directory,
            positions,
            &mut out,
        ));
    }
    let stopped = match Stopped::open(&config.buffer.directory) {
        Ok(stopped) => stopped,
        Err(error @ StoppedError::InUse(_)) => {
            eprintln!("error: {error}; stop it first (systemctl stop headwater-agent)");
            return ExitCode::from(super::EXIT_UNKNOWN);
        }
        Err(error) => return unknown(&error),
    };
    exit_code(if args.quarantine {
        stopped.export_quarantine(positions, &mut out)
    } else {
        stopped.export(positions, &mut out)
    })
}

fn exit_code(written: Result<u64, StoppedError>) -> ExitCode {
    match written {
        Ok(_) => ExitCode::from(EXIT_OK),
        // The reader has seen enough.
        Err(StoppedError::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => {
            ExitCode::from(EXIT_OK)
        }
        Err(error @ StoppedError::Io { .. }) => unknown(&error),
        Err(error) => cli::fail(EXIT_FAILED, &error),
    }
}
