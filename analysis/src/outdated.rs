//! What has changed since a file was judged, so that judging it again may come to something else.
//!
//! Pure: whoever asks brings the engines and rules of now. A file that is judged again is judged by these, since verdicts of
//! earlier scans are found by them.

use crate::analysis::FileResult;
use crate::rule::Rule;

/// An engine searches for more, or for something else, than when it judged the file.
pub const ENGINE_DEFINITION: &str = "enginedefinition";
/// The rule has been changed or removed.
pub const CONFIGURATION: &str = "configuration";

/// What is outdated about a result, in the words of the API. `rule` is the one by which it was made, `current` the rule of
/// that name now. `engines` are the ids of those at work now, and when what they search for was made.
pub fn outdated_data(
    result: &FileResult,
    rule: &Rule,
    current: Option<&Rule>,
    engines: &[(String, u64)],
) -> Vec<&'static str> {
    let newer = |id: &str, def_time_ms: u64| engines.iter().any(|(now, time)| now == id && *time > def_time_ms);
    let definitions = result.engines.iter().any(|engine| newer(&engine.engine_id, engine.def_time_ms));
    let mut outdated = Vec::new();
    outdated.extend(definitions.then_some(ENGINE_DEFINITION));
    outdated.extend((current.map(snapshot) != Some(snapshot(rule))).then_some(CONFIGURATION));
    outdated
}

/// A rule as an analysis keeps it: some of it is never kept.
fn snapshot(rule: &Rule) -> serde_json::Value {
    serde_json::to_value(rule).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conformance::sample_result;
    use crate::verdict::ResultCode;

    #[test]
    fn newer_definitions_and_changed_rules_are_told() {
        let result = sample_result(ResultCode::NO_THREAT, "a");
        let (id, time) = (result.engines[0].engine_id.clone(), result.engines[0].def_time_ms);
        let rule = Rule::with_defaults("one");
        let same = [(id.clone(), time), ("another".to_owned(), time + 9)];
        assert!(outdated_data(&result, &rule, Some(&rule), &same).is_empty());
        assert!(outdated_data(&result, &rule, Some(&rule), &[]).is_empty(), "an engine that is gone has nothing newer");
        assert_eq!(outdated_data(&result, &rule, Some(&rule), &[(id.clone(), time + 1)]), [ENGINE_DEFINITION]);
        let changed = Rule { priority: 9, ..rule.clone() };
        assert_eq!(outdated_data(&result, &rule, Some(&changed), &same), [CONFIGURATION]);
        assert_eq!(outdated_data(&result, &rule, None, &[(id, time + 1)]), [ENGINE_DEFINITION, CONFIGURATION]);
    }
}
