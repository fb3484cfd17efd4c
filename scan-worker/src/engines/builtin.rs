//! The built-in signatures: rules of our own, compiled in, that make the EICAR test file Infected with nothing configured.
//!
//! None of the rules needs a whole file, so that a long sample is scanned in overlapping windows and judged as fully as a
//! short one. The engine answers like an antivirus (1, Infected, with a threat name). The operator's own YARA rules are
//! another engine.

use std::cell::RefCell;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use lazaret_analysis::YaraHit;
use lazaret_sandbox::CONTENT_BYTES_MAX;
use yara_x::{Rules, Scanner};

use super::reload::LoadError;
use super::yara::hits;
use crate::confined::{About, RuleSets, matches, seal};
use crate::engine::{Engine, EngineInfo, EngineVerdict, ScanContext, Subject};

const RULES_TEXT: &str = include_str!("builtin.yar");

/// The version of `builtin.yar`: raised with every change to it.
const DATABASE_VERSION: &str = "1";
/// When `builtin.yar` was last changed: 2026-11-22T00:00:00Z.
const DATABASE_TIME_MS: u64 = 1_795_305_600_000;

/// The engine's id, and the name of its rules in the sandbox.
const ENGINE_ID: &str = "lazaret-builtin";

/// No pattern in `builtin.yar` is longer. Windows overlap by as much.
const PATTERN_BYTES_MAX: u64 = 4096;
/// How much of a long sample is scanned at once: long enough that the overlap and the call cost nothing, short enough for
/// several threads to hold one each.
const WINDOW_BYTES: u64 = CONTENT_BYTES_MAX;

/// The rules, compiled at first use and kept: scanners of all threads share them.
static RULES: LazyLock<Result<Rules, RulesError>> = LazyLock::new(|| {
    let mut compiler = yara_x::Compiler::new();
    compiler.add_source(RULES_TEXT).map_err(|error| RulesError(error.to_string()))?;
    Ok(compiler.build())
});

/// The built-in rules do not compile. This build is broken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the built-in rules do not compile: {0}")]
pub struct RulesError(String);

thread_local! {
    // Making a scanner costs much more than scanning a small file with it.
    static SCANNER: RefCell<Option<Scanner<'static>>> = const { RefCell::new(None) };
}

/// The built-in signatures.
#[derive(Debug)]
pub struct BuiltinEngine {
    rules: &'static Rules,
}

impl BuiltinEngine {
    /// The engine. Its rules are compiled at the first call.
    pub fn new() -> Result<Self, RulesError> {
        RULES.as_ref().map(|rules| Self { rules }).map_err(Clone::clone)
    }
}

/// The test marker that the built-in rules find, put together at run time so that the program itself doesn't hold it.
pub fn marker() -> String {
    ["LAZARET", "QUARANTINE", "TEST", "MARKER", "7f3a9c05e1bd4862"].join("-")
}

impl Engine for BuiltinEngine {
    fn info(&self) -> EngineInfo {
        EngineInfo {
            id: ENGINE_ID.into(),
            name: "Lazaret".into(),
            version: env!("CARGO_PKG_VERSION").into(),
            kind: "signatures".into(),
            database_version: DATABASE_VERSION.into(),
            def_time_ms: DATABASE_TIME_MS,
            trouble: String::new(),
        }
    }

    fn confine(&self, rule_sets: &Arc<RuleSets>) -> Result<(), LoadError> {
        // Each of them may be judged by pieces.
        let all = self.rules.iter().map(|rule| (rule.namespace().to_owned(), rule.identifier().to_owned())).collect();
        rule_sets.put(ENGINE_ID, &seal(ENGINE_ID, self.rules, &all)?)
    }

    fn swift_rule_set(&self) -> Option<&'static str> {
        Some(ENGINE_ID)
    }

    fn scan(&self, subject: &Subject<'_>, context: &ScanContext) -> EngineVerdict {
        for window in subject.sample.windows(WINDOW_BYTES, PATTERN_BYTES_MAX) {
            let hits = match (window, context.remaining()) {
                (Err(error), _) => Err(error.to_string()),
                (_, None) => Err("the scan took longer than it may".to_owned()),
                (Ok(window), Some(remaining)) => match subject.confined {
                    Some(confined) => {
                        let about =
                            if subject.sample.bytes().is_some() { About::File } else { About::Piece(&window.bytes) };
                        matches(confined, ENGINE_ID, &[], about, remaining)
                    }
                    None => scan_here(self.rules, &window.bytes, remaining),
                },
            };
            match hits {
                Ok(hits) => {
                    if let Some(hit) = hits.first() {
                        let threat = hit.meta.get("threat").and_then(|threat| threat.as_str());
                        return EngineVerdict::infected(threat.unwrap_or(&hit.rule));
                    }
                }
                Err(reason) => return EngineVerdict::failed(reason),
            }
        }
        EngineVerdict::clean()
    }
}

/// Which rules match, found out on this thread.
fn scan_here(rules: &'static Rules, content: &[u8], most: Duration) -> Result<Vec<YaraHit>, String> {
    SCANNER.with(|slot| {
        // Taken out for the time of the scan: if it panics, the next scan begins with a new scanner.
        let mut scanner = slot.borrow_mut().take().unwrap_or_else(|| Scanner::new(rules));
        // yara-x counts whole seconds. Whether a rule matches is all that is asked.
        scanner.fast_scan(true).set_timeout(most.max(Duration::from_secs(1)));
        let found = hits(&mut scanner, [], content, None);
        *slot.borrow_mut() = Some(scanner);
        found
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample::Sample;
    use crate::testing::{LazyBlob, eicar, judge};
    use lazaret_analysis::ResultCode;

    fn scan(content: impl Into<bytes::Bytes>) -> EngineVerdict {
        let context = ScanContext::within(Duration::from_secs(60));
        judge(&BuiltinEngine::new().unwrap(), &Sample::memory("file", content), &context)
    }

    #[test]
    fn finds_eicar_and_the_marker_anywhere() {
        assert_eq!(eicar().len(), 68);
        assert_eq!(scan(eicar()), EngineVerdict::infected("EICAR-Test-File"));
        assert_eq!(scan(marker()), EngineVerdict::infected("Lazaret-Test-Marker"));
        let mut inside = vec![b'x'; 100_000];
        inside.extend_from_slice(&eicar());
        inside.extend_from_slice(&[0; 1000]);
        assert_eq!(scan(inside), EngineVerdict::infected("EICAR-Test-File"));
    }

    #[test]
    fn finds_nothing_in_nothing_in_its_own_rules_and_in_a_broken_eicar() {
        assert_eq!(scan(""), EngineVerdict::clean());
        assert_eq!(scan(RULES_TEXT), EngineVerdict::clean());
        let mut broken = eicar();
        broken[60] ^= 1;
        assert_eq!(scan(broken), EngineVerdict::clean());
    }

    #[test]
    fn the_program_itself_is_not_flagged() {
        let program = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        assert_eq!(scan(program), EngineVerdict::clean());
    }

    #[test]
    fn finds_a_pattern_that_lies_across_two_windows_of_a_long_sample() {
        let context = ScanContext::within(Duration::from_secs(60));
        for offset in [WINDOW_BYTES - 20, WINDOW_BYTES - 1, WINDOW_BYTES, 2 * WINDOW_BYTES - PATTERN_BYTES_MAX - 3] {
            let sample = LazyBlob::sample(3 * WINDOW_BYTES, offset, marker().as_bytes());
            let verdict = judge(&BuiltinEngine::new().unwrap(), &sample, &context);
            assert_eq!(verdict, EngineVerdict::infected("Lazaret-Test-Marker"), "at {offset}");
        }
    }

    #[test]
    fn past_its_deadline_it_fails_instead_of_finding_nothing() {
        let context = ScanContext::within(Duration::ZERO);
        let verdict = judge(&BuiltinEngine::new().unwrap(), &Sample::memory("file", "content"), &context);
        assert_eq!(verdict.code, ResultCode::SCAN_FAILED);
    }
}
