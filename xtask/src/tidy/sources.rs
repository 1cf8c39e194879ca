//! Checks of the sources' text: headers, leftovers of one machine, tests that are left out or sleep, IO
//! where something is only decided.

use super::{SourceFile, Violation};

/// Lines from which a file is worth a second look.
const LONG_FILE_LINES: usize = 900;

/// Starts of paths that exist on one machine only. In pieces, so that this file is not found.
const MACHINE_PATHS: [&str; 5] = [
    concat!("/ro", "ot/"),
    concat!("/ho", "me/"),
    concat!("/Us", "ers/"),
    concat!("/wo", "rk/"),
    concat!("/tm", "p/hw/"),
];

/// Hosts of package registries: the ordinary clients know them, the project need not.
const REGISTRY_HOSTS: [&str; 8] = [
    concat!("crates", ".io"),
    concat!("pypi", ".org"),
    concat!("pythonhosted", ".org"),
    concat!("npmjs", ".org"),
    concat!("npmjs", ".com"),
    concat!("maven.apache", ".org/maven2"),
    concat!("repo1.maven", ".org"),
    concat!("deb.debian", ".org"),
];

/// Lock files name their index by themselves.
const LOCK_FILE: &str = "Cargo.lock";

/// What may wait by the clock: one place of the end-to-end tests, and a collector that is slow on purpose.
const MAY_SLEEP: [&str; 2] = ["xtask/e2e/python/waiting.py", "agent/tests/agent/manner.rs"];

/// Files that decide what exactly-once depends on, from their arguments alone.
const PURE: [&str; 4] = [
    "collector/src/admission.rs",
    "collector/src/commit/plan.rs",
    "tables/src/catalog/outcome.rs",
    "tables/src/catalog/rest/outcome.rs",
];

/// What a pure file does not hold outside its tests.
const IMPURE: [&str; 7] = [
    "async",
    "tokio",
    "std::fs",
    "std::net",
    "Instant",
    "SystemTime",
    "tracing::",
];

/// Returns the Rust files that do not begin with `//!`.
pub(super) fn without_header(files: &[SourceFile]) -> Vec<Violation> {
    rust(files)
        .filter(|file| !file.text.starts_with("//! "))
        .map(|file| {
            Violation::at(
                file,
                0,
                "does not begin with `//!` and what the file is for",
            )
        })
        .collect()
}

/// Returns lines with a path of one machine or the host of a registry.
pub(super) fn machine_specifics(files: &[SourceFile]) -> Vec<Violation> {
    let mut found = Vec::new();
    for file in files.iter().filter(|file| !file.path.ends_with(LOCK_FILE)) {
        for (index, line) in file.text.lines().enumerate() {
            for path in MACHINE_PATHS {
                if begins_a_path(line, path) {
                    found.push(Violation::at(
                        file,
                        index,
                        format!("holds the machine's path `{path}`"),
                    ));
                }
            }
            for host in REGISTRY_HOSTS {
                if line.contains(host) {
                    found.push(Violation::at(
                        file,
                        index,
                        format!("names the registry `{host}`"),
                    ));
                }
            }
        }
    }
    found
}

/// Whether `path` occurs in `line` as the beginning of an absolute path, not within a longer one.
fn begins_a_path(line: &str, path: &str) -> bool {
    line.match_indices(path).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        !before.is_some_and(|c| c.is_ascii_alphanumeric() || "._-}~$>*".contains(c))
    })
}

/// Returns tests that are ignored, skipped or expected to fail.
pub(super) fn ignored_tests(files: &[SourceFile]) -> Vec<Violation> {
    let rust_words = [concat!("#[ign", "ore")];
    let python_words = [
        concat!("mark.sk", "ip"),
        concat!("mark.xf", "ail"),
        concat!("pytest.sk", "ip"),
        concat!("pytest.xf", "ail"),
    ];
    let mut found = lines_with(rust(files), &rust_words, "leaves a test out");
    let python = files.iter().filter(|file| file.path.ends_with(".py"));
    found.extend(lines_with(python, &python_words, "leaves a test out"));
    found
}

/// A sleep so few lines below the word `deadline` is the pause of a loop that awaits a condition.
const POLLING_LINES: usize = 5;

/// Returns sleeps in tests: a test waits for a condition, with a deadline.
pub(super) fn sleeping_tests(files: &[SourceFile]) -> Vec<Violation> {
    let words = [concat!("thread::sl", "eep("), concat!("time::sl", "eep(")];
    let may_sleep = |file: &&SourceFile| MAY_SLEEP.contains(&file.path.as_str());
    let tests = rust(files)
        .filter(|file| !may_sleep(file))
        .filter_map(|file| {
            let start = if file.path.contains("/tests/") {
                0
            } else {
                file.text.find("#[cfg(test)]")?
            };
            // Lines before the tests count, so that line numbers stay right.
            let before = "\n".repeat(file.text[..start].matches('\n').count());
            Some(SourceFile {
                path: file.path.clone(),
                text: format!("{before}{}", &file.text[start..]),
            })
        });
    let tests: Vec<SourceFile> = tests.collect();
    let mut found = Vec::new();
    for file in &tests {
        let lines: Vec<&str> = file.text.lines().collect();
        for (index, line) in lines.iter().enumerate() {
            let polls = lines[index.saturating_sub(POLLING_LINES)..index]
                .iter()
                .any(|before| before.contains("deadline"));
            if !polls && words.iter().any(|word| line.contains(word)) {
                found.push(Violation::at(
                    file,
                    index,
                    "sleeps; await a condition with a deadline",
                ));
            }
        }
    }
    let python = files
        .iter()
        .filter(|file| file.path.ends_with(".py") && !may_sleep(file));
    let python_words = [concat!("time.sl", "eep(")];
    found.extend(lines_with(
        python,
        &python_words,
        "sleeps; use `eventually`",
    ));
    found
}

/// Returns lines of pure files that do IO or ask a clock, and pure files that there are no more.
pub(super) fn impurities(files: &[SourceFile]) -> Vec<Violation> {
    let mut found = Vec::new();
    for path in PURE {
        let Some(file) = files.iter().find(|file| file.path == path) else {
            let message = "is gone; name what decides now in xtask/src/tidy/sources.rs";
            found.push(Violation::new(path, message));
            continue;
        };
        let lines = file.text.lines().take_while(|line| *line != "#[cfg(test)]");
        for (index, line) in lines.enumerate() {
            for word in IMPURE.iter().filter(|word| line.contains(**word)) {
                let message = format!("holds `{word}`, and must decide from its arguments alone");
                found.push(Violation::at(file, index, message));
            }
        }
    }
    found
}

/// Returns Rust files that are long, longest first, with their number of lines.
pub(super) fn long_files(files: &[SourceFile]) -> Vec<(String, usize)> {
    let mut found: Vec<(String, usize)> = rust(files)
        .map(|file| (file.path.clone(), file.text.lines().count()))
        .filter(|(_, lines)| *lines > LONG_FILE_LINES)
        .collect();
    found.sort_by_key(|(_, lines)| std::cmp::Reverse(*lines));
    found
}

fn rust(files: &[SourceFile]) -> impl Iterator<Item = &SourceFile> {
    files.iter().filter(|file| file.path.ends_with(".rs"))
}

fn lines_with<'a>(
    files: impl Iterator<Item = &'a SourceFile>,
    words: &[&str],
    message: &str,
) -> Vec<Violation> {
    let mut found = Vec::new();
    for file in files {
        for (index, line) in file.text.lines().enumerate() {
            if words.iter().any(|word| line.contains(word)) {
                found.push(Violation::at(file, index, message));
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tidy::file;

    fn places(violations: &[Violation]) -> Vec<&str> {
        violations
            .iter()
            .map(|violation| violation.place.as_str())
            .collect()
    }

    #[test]
    fn a_source_file_without_a_purpose_is_found() {
        let files = [
            file("a/src/lib.rs", "//! Purpose.\n"),
            file("a/src/b.rs", "use x;\n"),
            file("notes.md", "no header\n"),
        ];
        assert_eq!(places(&without_header(&files)), ["a/src/b.rs:1"]);
    }

    #[test]
    fn paths_of_a_machine_are_found_but_not_longer_words() {
        let own = MACHINE_PATHS[0];
        let files = [
            file("a.md", &format!("see {own}x\nsee `{own}y`")),
            file("b.md", &format!("https://example.org{own} ${{CARGO}}{own}")),
        ];
        assert_eq!(places(&machine_specifics(&files)), ["a.md:1", "a.md:2"]);
    }

    #[test]
    fn registry_hosts_are_found_outside_the_lock_file() {
        let host = REGISTRY_HOSTS[0];
        let files = [file("Cargo.lock", host), file("README.md", host)];
        assert_eq!(places(&machine_specifics(&files)), ["README.md:1"]);
    }

    #[test]
    fn ignored_tests_are_found_in_both_languages() {
        let files = [
            file("a/tests/a.rs", concat!("#[ign", "ore = \"slow\"]")),
            file("x/test_a.py", concat!("\n@pytest.mark.sk", "ip")),
        ];
        assert_eq!(
            places(&ignored_tests(&files)),
            ["a/tests/a.rs:1", "x/test_a.py:2"]
        );
    }

    #[test]
    fn io_and_clocks_are_found_in_pure_files_outside_their_tests() {
        let pure = "//! Pure.\nfn decide() {}\n#[cfg(test)]\nmod tests {\nuse std::fs;\n}\n";
        let mut files: Vec<SourceFile> = PURE.iter().map(|path| file(path, pure)).collect();
        files.push(file("collector/src/intake.rs", "use std::time::Instant;\n"));
        assert_eq!(places(&impurities(&files)), Vec::<&str>::new());
        files[1].text = "//! Pure.\nuse std::time::Instant;\nasync fn decide() {}\n".to_owned();
        files.remove(3);
        assert_eq!(
            places(&impurities(&files)),
            [
                "collector/src/commit/plan.rs:2",
                "collector/src/commit/plan.rs:3",
                "tables/src/catalog/rest/outcome.rs"
            ]
        );
    }

    #[test]
    fn sleeps_are_found_in_tests_only() {
        let sleep = concat!("std::thread::sl", "eep(x);");
        let files = [
            file("a/src/back_off.rs", sleep),
            file(
                "a/src/b.rs",
                &format!("{sleep}\n#[cfg(test)]\nmod tests {{\n{sleep}\n}}"),
            ),
            file("a/tests/a.rs", sleep),
            file(
                "b/tests/harness.rs",
                &format!("while !holds() {{\nassert!(now() < deadline);\n{sleep}\n}}"),
            ),
            file("xtask/e2e/python/waiting.py", concat!("time.sl", "eep(1)")),
            file("xtask/e2e/python/test_a.py", concat!("time.sl", "eep(1)")),
        ];
        assert_eq!(
            places(&sleeping_tests(&files)),
            [
                "a/src/b.rs:4",
                "a/tests/a.rs:1",
                "xtask/e2e/python/test_a.py:1"
            ]
        );
    }
}
