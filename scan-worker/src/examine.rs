//! What is said of one file without taking it apart: what its rule says of its type and content, and what the engines say.
//!
//! Invariants: a file that no engine was shown never looks judged; an engine that panics or gives no final answer has
//! failed; engines that the rule names and that are not there have failed; so has a rule that blocks files by digests which
//! are not taken.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use lazaret_analysis::rule::SkipReason;
use lazaret_analysis::{EngineResult, EngineVersion, Findings, ResultCode, Rule, Signer, YaraFindings};

use crate::engine::{Engine, EngineVerdict, ScanContext, Subject};
use crate::pool::Pool;
use crate::{engines, file_type};

/// What was said of a file.
#[derive(Debug, Default)]
pub struct Examined {
    /// What each engine said.
    pub engines: Vec<EngineResult>,
    /// What else was found.
    pub findings: Findings,
    /// The result of what the rule forbids about it.
    pub failure: Option<ResultCode>,
    /// Why the rule could not be applied, if it could not.
    pub detail: String,
    /// Whether its content alone decided, so that it need not be taken apart.
    pub closed: bool,
    /// Whether another scan may find otherwise although nothing has changed.
    pub passing: bool,
    /// What judged it, where that may be other versions than the engines tell of themselves.
    pub judged_by: Vec<EngineVersion>,
}

/// Whether a file's digests must be there before it is examined.
pub fn needs_digests(loaded: &[Arc<dyn Engine>], rule: &Rule) -> bool {
    rule.needs_digests() || loaded.iter().any(|engine| engine.needs_digests() && takes_part(engine, rule))
}

/// Examines a file that has waited so long already. `signers` tells who signed it. Each engine may take `limit`. Called on a thread of the pool.
pub fn examine(
    loaded: &[Arc<dyn Engine>],
    rule: &Rule,
    subject: &Subject<'_>,
    limit: Duration,
    waited: Duration,
    pool: &Pool,
    signers: impl FnOnce() -> Vec<Signer>,
) -> Examined {
    let began = Instant::now();
    let mut examined = Examined::default();
    if rule.blocked_hashes.iter().any(|hash| hash.is_of(subject.file)) {
        examined.failure = Some(ResultCode::BLACKLISTED);
        examined.closed = true;
        return examined;
    }
    let findings = &mut examined.findings;
    findings.type_mismatch = file_type::mismatch(subject.file);
    findings.spoofing = file_type::spoofing(&subject.file.display_name);
    let name_agrees = findings.type_mismatch.is_none();
    findings.forbidden_type = rule.file_types.forbids(subject.file, name_agrees);
    let unknown = rule.blocked_hashes.iter().find_map(|hash| hash.unknown_of(subject.file));
    if let Some(kind) = unknown {
        examined.detail = format!("the rule blocks files by {kind}, which is not taken of this one");
    }
    let reasons = [
        unknown.map(|_| ResultCode::SCAN_FAILED),
        findings.forbidden_type.as_ref().map(|_| ResultCode::BLACKLISTED),
        findings.type_mismatch.as_ref().filter(|_| rule.file_types.mismatch).map(|_| ResultCode::MISMATCH),
        findings.spoofing.as_ref().filter(|_| rule.file_types.spoofing).map(|_| ResultCode::MISMATCH),
    ];
    let policy = rule.policy();
    examined.failure = reasons.into_iter().flatten().reduce(|a, b| policy.worst(a, b));
    findings.skipped = rule.skip.applies(subject.file, name_agrees);
    if let Some(skipped) = &findings.skipped {
        examined.closed = skipped.reason == SkipReason::Hash;
        return examined;
    }
    findings.signers = signers();
    for engine in loaded.iter().filter(|engine| takes_part(engine, rule)) {
        let (result, verdict) = run(&**engine, subject, limit, waited.saturating_add(began.elapsed()), pool);
        if result.engine_id == engines::yara::ENGINE_ID {
            findings.yara = Some(yara_findings(&verdict));
        }
        examined.passing |= verdict.passing;
        examined.judged_by.extend(verdict.judged_by);
        examined.engines.push(result);
    }
    for name in &rule.engines {
        if !examined.engines.iter().any(|result| result.engine == *name) {
            examined.engines.push(missing(name));
        }
    }
    examined
}

/// Whether the rule has this engine judge files.
pub(crate) fn takes_part(engine: &Arc<dyn Engine>, rule: &Rule) -> bool {
    rule.engines.is_empty() || rule.engines.contains(&engine.info().name)
}

fn run(
    engine: &dyn Engine,
    subject: &Subject<'_>,
    limit: Duration,
    waited: Duration,
    pool: &Pool,
) -> (EngineResult, EngineVerdict) {
    let began = Instant::now();
    let context = ScanContext::within(limit);
    let judge = || match engine.waits() {
        true => pool.while_waiting(|| engine.scan(subject, &context)),
        false => engine.scan(subject, &context),
    };
    let verdict = match catch_unwind(AssertUnwindSafe(judge)) {
        Ok(verdict) if verdict.code.is_final() => verdict,
        Ok(_) => EngineVerdict::failed("the engine gave no final verdict"),
        Err(panic) => {
            let reason = format!("the engine panicked: {}", panic_text(&*panic));
            tracing::error!(engine = engine.info().name, reason, "engine panicked");
            EngineVerdict::failed(reason)
        }
    };
    // After the scan: the database that judged may be newer than the one of before.
    let info = engine.info();
    let result = EngineResult {
        engine: info.name,
        engine_id: info.id,
        code: verdict.code,
        threat: verdict.threat.clone(),
        def_time_ms: verdict.judged_by.as_ref().map_or(info.def_time_ms, |version| version.database.1),
        scan_ms: (began.elapsed().as_millis() as u64).saturating_sub(verdict.wait_ms),
        wait_ms: (waited.as_millis() as u64).saturating_add(verdict.wait_ms),
    };
    (result, verdict)
}

fn missing(name: &str) -> EngineResult {
    EngineResult {
        engine: name.to_owned(),
        engine_id: String::new(),
        code: ResultCode::SCAN_FAILED,
        threat: "the rule names this engine, but it is not loaded".into(),
        def_time_ms: 0,
        scan_ms: 0,
        wait_ms: 0,
    }
}

fn yara_findings(verdict: &EngineVerdict) -> YaraFindings {
    let shown = match verdict.code {
        ResultCode::NO_THREAT => 0,
        ResultCode::YARA_MATCHED => 1,
        ResultCode::NOT_SCANNED => 4,
        _ => 3,
    };
    YaraFindings { verdict: shown, hits: verdict.hits.clone() }
}

/// What a panic said.
pub fn panic_text(panic: &(dyn std::any::Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no reason given")
}
