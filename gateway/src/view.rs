//! From a record, a page of nested files and the progress to the document that clients read.
//!
//! Pure: nothing is queried here, so that each state can be tested alone. The shape is in [`mod@document`], the texts of
//! result codes come from `lazaret_analysis::verdict` only.

pub mod batch;
pub mod certificate;
pub mod document;

use std::collections::BTreeMap;

use lazaret_analysis::rule::SkipReason;
use lazaret_analysis::{
    AnalysisRecord, ContainerResult, EngineResult, FileInfo, FileResult, Findings, NestedRecord, Outcome, Page, Policy,
    Progress, ResultCode, Signer, State, YaraFindings,
};
use serde_json::Value;
use time::OffsetDateTime;
use time::format_description::BorrowedFormatItem;
use time::macros::format_description;

use document::{
    Document, DownloadSection, EngineSection, ExtractedFile, ExtractedSection, ExtractionSection, FileSection,
    FiletypeFile, FiletypeSection, FinalVerdict, PostProcessing, ProcessSection, ProcessingTimes, ScanSection,
    SignerSection, SpoofingSection, YaraHitSection, YaraSection,
};

/// Progress of a finished analysis. Nothing unfinished shows it.
const PERCENT_DONE: u8 = 100;
/// The analyser that detects file types.
const DETECTOR: &str = "Lazaret";
/// Where engines run.
const ENGINE_LOCATION: &str = "local";

/// A page of a container's files, and how it was asked for.
#[derive(Debug, Clone)]
pub struct PageView {
    /// The index of its first file.
    pub first: u32,
    /// Files it may hold.
    pub size: u32,
    /// What the result store answered.
    pub page: Page,
}

/// The document of an analysis or nested file. `page` is for a finished container; `progress` must have been read before
/// the record, so that it is never older than what an earlier poll saw.
pub fn document(record: &AnalysisRecord, page: Option<&PageView>, progress: Option<&Progress>) -> Document {
    let now = Standing::of(record, progress);
    let container = now.result.and_then(|result| result.container.as_ref());
    Document {
        data_id: record.data_id.to_string(),
        file_info: file_section(record, now.result),
        filetype_info: filetype_section(record, now.result),
        // A submission's digests are taken by the gateway, a nested file's by the worker.
        process_info: process_section(
            record,
            &now,
            started_ms(record, now.result),
            record.parent.is_none().then_some(record.new.hash_ms),
        ),
        scan_results: scan_section(record, &now),
        extracted_files: now
            .result
            .zip(container)
            .zip(page)
            .map(|((result, container), view)| extracted_section(record, result, container, view)),
        extraction_info: now
            .result
            .zip(container)
            .and_then(|(result, container)| extraction_section(result, container)),
        download_info: record
            .new
            .sent_along
            .download_url
            .clone()
            .map(|url| DownloadSection { status: "Download Success", url }),
        yara: now.result.and_then(|result| result.findings.yara.as_ref()).map(yara_section),
        metadata: record.new.metadata.as_deref().map(metadata_value),
    }
}

/// Where a file stands: the one place that decides on code, outcome and percentage.
struct Standing<'a> {
    /// Present once the analysis is finished.
    result: Option<&'a FileResult>,
    code: ResultCode,
    outcome: Outcome,
    percent: u8,
    last_file: Option<&'a str>,
}

impl<'a> Standing<'a> {
    fn of(record: &'a AnalysisRecord, progress: Option<&'a Progress>) -> Self {
        let policy = record.new.rule.policy();
        if !record.state.is_finished() {
            return Self {
                result: None,
                code: ResultCode::IN_PROGRESS,
                outcome: Outcome::Processing,
                percent: progress.map_or(0, |progress| progress.percent.min(PERCENT_DONE - 1)),
                last_file: progress.map(|progress| progress.last_file.as_str()).filter(|name| !name.is_empty()),
            };
        }
        let result = record.result.as_ref();
        let code = match (record.state, result) {
            (State::Cancelled, None) => ResultCode::CANCELLED,
            // A finished analysis without a result was not judged, whatever the reason.
            (_, None) => ResultCode::FAILED,
            (_, Some(result)) => result.overall,
        };
        Self::finished(result, code, &policy)
    }

    fn of_nested(result: &'a FileResult, policy: &Policy) -> Self {
        Self::finished(Some(result), result.overall, policy)
    }

    fn finished(result: Option<&'a FileResult>, code: ResultCode, policy: &Policy) -> Self {
        Self { result, code, outcome: policy.outcome(code), percent: PERCENT_DONE, last_file: None }
    }

    /// The texts of the results that led to the outcome.
    fn verdicts(&self) -> Vec<String> {
        if self.outcome == Outcome::Processing { Vec::new() } else { vec![self.code.text().to_owned()] }
    }

    /// Why the file is blocked; empty unless it is.
    fn blocked_reasons(&self) -> Vec<String> {
        match (self.outcome, self.result) {
            (Outcome::Blocked, Some(result)) if !result.blocked_reasons.is_empty() => result.blocked_reasons.clone(),
            (Outcome::Blocked, _) => vec![self.code.text().to_owned()],
            _ => Vec::new(),
        }
    }
}

fn file_section(record: &AnalysisRecord, result: Option<&FileResult>) -> FileSection {
    let submitted = &record.new.file;
    let found = result.map_or(submitted, |result| &result.file);
    let either = |field: fn(&FileInfo) -> &String| {
        let value = field(found);
        if value.is_empty() { field(submitted).clone() } else { value.clone() }
    };
    FileSection {
        display_name: either(|file| &file.display_name),
        file_size: submitted.size_bytes,
        file_type: either(|file| &file.file_type),
        file_type_description: either(|file| &file.file_type_description),
        md5: either(|file| &file.md5),
        sha1: either(|file| &file.sha1),
        sha256: either(|file| &file.sha256),
        sha512: either(|file| &file.sha512),
        type_category: found.type_category.clone(),
        upload_timestamp: timestamp(record.new.upload_ms),
        upload_time: record.new.upload_ms.saturating_sub(record.new.receive_ms),
        receive_data_timestamp: timestamp(record.new.receive_ms),
        signer_infos: findings(result).signers.iter().map(signer_section).collect(),
    }
}

/// What was found besides results; nothing before the end of the analysis.
fn findings(result: Option<&FileResult>) -> Findings {
    result.map(|result| result.findings.clone()).unwrap_or_default()
}

fn signer_section(signer: &Signer) -> SignerSection {
    let Signer { digest_algorithm, digest_encryption_algorithm, issuer, serial_number, vendor_name, version } =
        signer.clone();
    SignerSection { digest_algorithm, digest_encryption_algorithm, issuer, serial_number, vendor_name, version }
}

fn filetype_section(record: &AnalysisRecord, result: Option<&FileResult>) -> FiletypeSection {
    let file = result.map_or(&record.new.file, |result| &result.file);
    let findings = findings(result);
    let rule = &record.new.rule;
    let group = file.type_category.first().cloned().unwrap_or_default();
    let blocking = [
        findings.forbidden_type.clone(),
        findings.type_mismatch.clone().filter(|_| rule.file_types.mismatch),
        findings.spoofing.as_ref().filter(|_| rule.file_types.spoofing).map(|spoofing| spoofing.explanation.clone()),
    ];
    let reasons: Vec<String> = blocking.into_iter().flatten().collect();
    let explanation =
        if reasons.is_empty() { findings.type_mismatch.clone().unwrap_or_default() } else { reasons.join("; ") };
    FiletypeSection {
        file_info: FiletypeFile {
            description: file.file_type_description.clone(),
            detected_by: if file.file_type.is_empty() { String::new() } else { DETECTOR.to_owned() },
            encrypted: result
                .and_then(|result| result.container.as_ref())
                .is_some_and(|container| container.encrypted || container.decrypted),
            extensions: file.extension.clone(),
            group_description: group_description(&group).to_owned(),
            group_id: group,
            group_ids: file.type_category.clone(),
            likely_type_ids: Vec::new(),
            mime: file.file_type.clone(),
            type_id: file.extension.clone(),
            type_ids: if file.extension.is_empty() { Vec::new() } else { vec![file.extension.clone()] },
        },
        final_verdict: FinalVerdict {
            verdict: if reasons.is_empty() { "allowed" } else { "blocked" },
            verdict_explanation: explanation,
        },
        is_file_type_mismatch: findings.type_mismatch.is_some(),
        other_detections: Vec::new(),
        spoofing_info: findings.spoofing.map_or_else(SpoofingSection::default, |spoofing| SpoofingSection {
            detection_result: "spoofed".to_owned(),
            result_explanation: spoofing.explanation,
            result_overview: spoofing.overview,
        }),
        result_template_hash: String::new(),
    }
}

/// What a type's group is called; the letters are those that clients know.
fn group_description(group: &str) -> &'static str {
    match group {
        "A" => "Archive",
        "D" => "Document",
        "E" => "Executable",
        "G" => "Graphic",
        "I" => "Disk image",
        "M" => "Media",
        "O" => "Other",
        "P" => "PDF",
        "T" => "Text",
        "Z" => "Mail",
        _ => "",
    }
}

/// What the operator's YARA rules said; absent if they were not asked. A name that several rule files use is followed by
/// its file.
fn yara_section(found: &YaraFindings) -> YaraSection {
    let mut hits = BTreeMap::new();
    for hit in &found.hits {
        let section = YaraHitSection {
            namespace: hit.namespace.clone(),
            description: hit.meta.get("description").and_then(Value::as_str).unwrap_or_default().to_owned(),
            tags: hit.tags.clone(),
            meta: hit.meta.clone(),
        };
        let key =
            if hits.contains_key(&hit.rule) { format!("{} ({})", hit.rule, hit.namespace) } else { hit.rule.clone() };
        hits.insert(key, section);
    }
    YaraSection { hits, verdict: found.verdict }
}

fn process_section(
    record: &AnalysisRecord,
    now: &Standing<'_>,
    started_ms: u64,
    submission_hash_ms: Option<u64>,
) -> ProcessSection {
    let times = now.result.map(|result| result.times).unwrap_or_default();
    let reasons = now.blocked_reasons();
    let accounted = times.scan_ms.saturating_add(times.extraction_ms).saturating_add(times.filetype_ms);
    ProcessSection {
        blocked_reason: reasons.join(", "),
        blocked_reasons: reasons,
        file_type_skipped_scan: now.result.is_some_and(|result| {
            result.findings.skipped.as_ref().is_some_and(|skipped| skipped.reason == SkipReason::Type)
        }),
        hash_time: submission_hash_ms.unwrap_or(times.hash_ms),
        outdated_data: Vec::new(),
        processing_time: times.total_ms,
        processing_time_details: ProcessingTimes {
            av_scan_time: times.scan_ms,
            extraction_time: times.extraction_ms,
            filetype_time: times.filetype_ms,
            // The first thing that a file waits for, and the only one with a name of its own here.
            filetype_wait_time: times.wait_ms,
            others_time: times.total_ms.saturating_sub(accounted),
            ..ProcessingTimes::default()
        },
        profile: record.new.rule.name.clone(),
        progress_percentage: now.percent,
        queue_time: started_ms.saturating_sub(record.new.upload_ms),
        result: now.outcome.as_str(),
        user_agent: record.new.user_agent.clone(),
        username: record.new.principal.user_name.clone(),
        verdicts: now.verdicts(),
        post_processing: PostProcessing::default(),
    }
}

fn scan_section(record: &AnalysisRecord, now: &Standing<'_>) -> ScanSection {
    let engines = now.result.map_or(&[][..], |result| &result.engines);
    ScanSection {
        data_id: record.data_id.to_string(),
        progress_percentage: now.percent,
        scan_all_result_a: now.code.text().to_owned(),
        scan_all_result_i: now.code.code(),
        start_time: timestamp(started_ms(record, now.result)),
        total_avs: engines.len(),
        total_time: now.result.map_or(0, |result| result.times.total_ms),
        last_file_scanned: now.last_file.map(str::to_owned),
        scan_details: engines
            .iter()
            .map(|engine| (engine.engine.clone(), engine_section(engine)))
            .collect::<BTreeMap<_, _>>(),
    }
}

fn engine_section(engine: &EngineResult) -> EngineSection {
    EngineSection {
        def_time: timestamp(engine.def_time_ms),
        eng_id: engine.engine_id.clone(),
        location: ENGINE_LOCATION,
        scan_result_i: engine_code(engine.code).code(),
        scan_time: engine.scan_ms,
        threat_found: engine.threat.clone(),
        wait_time: engine.wait_ms,
    }
}

/// A result as one engine's. Clients know fewer codes of engines than of files: whatever matched is Infected there.
fn engine_code(code: ResultCode) -> ResultCode {
    match code {
        ResultCode::YARA_MATCHED | ResultCode::KNOWN_BAD => ResultCode::INFECTED,
        ResultCode::KNOWN_GOOD => ResultCode::NO_THREAT,
        other => other,
    }
}

fn extracted_section(
    record: &AnalysisRecord,
    result: &FileResult,
    container: &ContainerResult,
    view: &PageView,
) -> ExtractedSection {
    let policy = record.new.rule.policy();
    ExtractedSection {
        detected_by: container.detected_count,
        scanned_with: result.engines.len(),
        files_extracted_count: container.extracted_count,
        first_index: u64::from(view.first),
        page_size: u64::from(view.size),
        worst_data_id: container.worst_child.map(|id| id.to_string()).unwrap_or_default(),
        files_in_archive: view.page.records.iter().map(|nested| extracted_file(record, nested, &policy)).collect(),
    }
}

fn extracted_file(record: &AnalysisRecord, nested: &NestedRecord, policy: &Policy) -> ExtractedFile {
    let result = &nested.result;
    let now = Standing::of_nested(result, policy);
    ExtractedFile {
        data_id: nested.data_id.to_string(),
        detected_by: detections(&result.engines),
        display_name: nested.path.clone(),
        file_size: result.file.size_bytes,
        file_type: result.file.file_type.clone(),
        file_type_description: result.file.file_type_description.clone(),
        progress_percentage: now.percent,
        scan_all_result_i: now.code.code(),
        scanned_with: result.engines.len(),
        process_info: process_section(record, &now, result.times.start_ms, None),
    }
}

/// How many engines found something.
fn detections(engines: &[EngineResult]) -> usize {
    engines.iter().filter(|engine| is_detection(engine.code)).count()
}

/// Whether an engine's result says that it found something.
fn is_detection(code: ResultCode) -> bool {
    [ResultCode::INFECTED, ResultCode::SUSPICIOUS, ResultCode::POTENTIALLY_UNWANTED].contains(&engine_code(code))
}

/// Present only when the container did not come apart completely, or a password opened it.
fn extraction_section(result: &FileResult, container: &ContainerResult) -> Option<ExtractionSection> {
    let decrypted_status = match (container.encrypted, container.decrypted) {
        // Something in it stayed closed, whatever else was opened.
        (true, _) => Some("Failed"),
        (false, true) => Some("Success"),
        (false, false) => None,
    };
    let is_encrypted_file = decrypted_status.is_some();
    if container.reason.is_none() && !container.encrypted {
        let (err_category, err_code, err_details) = (String::new(), 0, String::new());
        let opened = ExtractionSection { decrypted_status, err_category, err_code, err_details, is_encrypted_file };
        return container.decrypted.then_some(opened);
    }
    let code = container.reason.unwrap_or(ResultCode::ENCRYPTED_ARCHIVE);
    Some(ExtractionSection {
        decrypted_status,
        err_category: code.text().to_owned(),
        err_code: code.code(),
        err_details: if container.detail.is_empty() { result.detail.clone() } else { container.detail.clone() },
        is_encrypted_file,
    })
}

/// When the processing began. Until it has, the time it was queued: clients parse this field from the first poll on.
fn started_ms(record: &AnalysisRecord, result: Option<&FileResult>) -> u64 {
    let by_result = || result.map(|result| result.times.start_ms).filter(|start_ms| *start_ms > 0);
    // What polls were shown while it ran stands.
    record.started_ms.or_else(by_result).unwrap_or(record.new.queued_ms)
}

/// What the submitter sent along: as JSON if it is JSON, else as a text. A bare `null` is a text too, since no field of
/// the document is null.
fn metadata_value(text: &str) -> Value {
    match serde_json::from_str(text) {
        Ok(Value::Null) | Err(_) => Value::String(text.to_owned()),
        Ok(value) => value,
    }
}

/// The one format of times in the API: `2026-01-31T23:59:59.999Z`.
const TIMESTAMP: &[BorrowedFormatItem<'static>] =
    format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:3]Z");

/// Unix milliseconds as the API writes times. A time past the year 9999 is not one; it is shown as the epoch.
pub(crate) fn timestamp(unix_ms: u64) -> String {
    OffsetDateTime::from_unix_timestamp_nanos(i128::from(unix_ms) * 1_000_000)
        .unwrap_or(OffsetDateTime::UNIX_EPOCH)
        .format(TIMESTAMP)
        .unwrap_or_default()
}
