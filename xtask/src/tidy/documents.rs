//! Documents name files: every name must be one. Otherwise a page goes on describing a house that
//! was rebuilt long ago.

use std::collections::BTreeSet;

use super::{SourceFile, Violation};

/// Endings by which a name in backticks is taken for a file of the project.
const FILE_ENDINGS: [&str; 12] = [
    ".rs", ".md", ".toml", ".sql", ".py", ".java", ".cjs", ".sh", ".yaml", ".yml", ".service",
    ".json",
];

/// Folders that programs make; they are in no checkout.
const MADE_AT_RUN_TIME: [&str; 3] = ["headwater-data", "target", "~"];

/// Returns the paths in ARCHITECTURE.md, README.md and docs/*.md that do not exist.
pub(super) fn missing_paths(files: &[SourceFile]) -> Vec<Violation> {
    let tree = Tree::new(files);
    let mut found = Vec::new();
    for file in files.iter().filter(|file| is_checked(&file.path)) {
        for (index, line) in file.text.lines().enumerate() {
            for path in linked_paths(line) {
                if !tree.has_beside(&file.path, &path) {
                    found.push(Violation::at(
                        file,
                        index,
                        format!("links to `{path}`, which does not exist"),
                    ));
                }
            }
            for path in quoted_paths(line, &tree) {
                if !tree.has(&path) {
                    found.push(Violation::at(
                        file,
                        index,
                        format!("names `{path}`, which does not exist"),
                    ));
                }
            }
        }
    }
    found
}

fn is_checked(path: &str) -> bool {
    path == "ARCHITECTURE.md"
        || path == "README.md"
        || (path.starts_with("docs/") && path.ends_with(".md"))
}

/// The paths of all files and of the folders above them.
struct Tree {
    paths: BTreeSet<String>,
}

impl Tree {
    fn new(files: &[SourceFile]) -> Self {
        let mut paths = BTreeSet::new();
        for file in files {
            let mut path = file.path.as_str();
            paths.insert(path.to_owned());
            while let Some((parent, _)) = path.rsplit_once('/') {
                paths.insert(parent.to_owned());
                path = parent;
            }
        }
        Self { paths }
    }

    /// Whether `path` is a file or folder, counted from the root or (`src/lib.rs`) from a crate.
    fn has(&self, path: &str) -> bool {
        let path = path.trim_end_matches('/');
        self.paths.contains(path)
            || self.paths.iter().any(|known| {
                known
                    .strip_suffix(path)
                    .is_some_and(|before| before.ends_with('/'))
            })
    }

    /// Whether `path` exists, counted from the folder of `document`.
    fn has_beside(&self, document: &str, path: &str) -> bool {
        let mut parts: Vec<&str> = document.split('/').collect();
        parts.pop();
        for part in path.trim_end_matches('/').split('/') {
            match part {
                "." | "" => {}
                ".." => {
                    if parts.pop().is_none() {
                        return false;
                    }
                }
                name => parts.push(name),
            }
        }
        parts.is_empty() || self.paths.contains(&parts.join("/"))
    }
}

/// Targets of `[text](target)` that are no URL and no place on the same page.
fn linked_paths(line: &str) -> Vec<String> {
    line.split("](")
        .skip(1)
        .filter_map(|rest| rest.split(')').next())
        .map(|target| target.split('#').next().unwrap_or_default())
        .filter(|target| !target.is_empty() && !target.contains(':'))
        .map(str::to_owned)
        .collect()
}

/// Words in backticks that can only be paths of the project.
fn quoted_paths(line: &str, tree: &Tree) -> Vec<String> {
    line.split('`')
        .skip(1)
        .step_by(2)
        .filter_map(|word| path_in(word, tree))
        .collect()
}

fn path_in(word: &str, tree: &Tree) -> Option<String> {
    // `docs/*.md` and `models/<name>.sql` are checked up to the folder before the pattern.
    let (word, is_cut) = match word.find(['*', '{', '<', '$']) {
        Some(at) => (&word[..word[..at].rfind('/')?], true),
        None => (word, false),
    };
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "._-/".contains(c);
    if word.is_empty() || !word.chars().all(is_plain) || word.starts_with(['/', '-']) {
        return None;
    }
    let first = word.split('/').next().unwrap_or_default();
    if MADE_AT_RUN_TIME.contains(&first) {
        return None;
    }
    let is_file_name = FILE_ENDINGS
        .iter()
        .any(|ending| word.ends_with(ending) && word.len() > ending.len());
    let is_inside_folder = word.contains('/') && tree.paths.contains(first);
    (is_file_name || is_inside_folder || is_cut && word.contains('/')).then(|| word.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tidy::file;

    fn missing(document: &str) -> Vec<String> {
        let files = [
            file("README.md", document),
            file("agent/src/lib.rs", ""),
            file("docs/bench.md", ""),
            file("warehouse/models/company_day.sql", ""),
        ];
        missing_paths(&files)
            .iter()
            .map(ToString::to_string)
            .collect()
    }

    #[test]
    fn a_path_that_exists_is_no_violation() {
        let text = "`agent/`, `agent/src/lib.rs`, `src/lib.rs`, `docs/*.md`, [bench](docs/bench.md#machine)\n\
                    `warehouse/models/<name>.sql`, `bench.md`";
        assert_eq!(missing(text), Vec::<String>::new());
    }

    #[test]
    fn a_path_that_is_gone_is_found_with_its_line() {
        assert_eq!(
            missing("fine\n`agent/src/gone.rs` and [more](docs/gone.md)"),
            [
                "README.md:2: links to `docs/gone.md`, which does not exist",
                "README.md:2: names `agent/src/gone.rs`, which does not exist",
            ]
        );
        assert_eq!(missing("`old/src/lib2.rs`").len(), 1);
        assert_eq!(missing("`agent/models/*.sql`").len(), 1);
    }

    #[test]
    fn what_is_no_path_of_the_project_is_left_alone() {
        let text = "`raw.events` `/v1/batch` `headwater-data/catalog.db` `cargo xtask test` `a/b` \
                    [site](https://example.org) [above](#ports) `--data-dir` `application/json`";
        assert_eq!(missing(text), Vec::<String>::new());
    }
}
