//! A batch as clients read it: its result and a page of its files.

use lazaret_analysis::{AnalysisRecord, BatchRecord, Progress};
use serde::Serialize;
use utoipa::ToSchema;

use super::{Standing, detections, file_section, timestamp};

/// The answer to GET /file/batch/{batch_id}.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct BatchDocument {
    /// A page of its files.
    pub batch_files: BatchFiles,
    /// The batch.
    pub batch_id: String,
    /// Whether it takes no more files.
    pub is_closed: bool,
    /// What came out.
    pub process_info: BatchProcess,
    /// The result.
    pub scan_results: BatchScan,
    /// What its maker calls it.
    pub user_data: String,
}

/// `batch_files`.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct BatchFiles {
    /// All its files.
    pub batch_count: u64,
    /// The page.
    pub files_in_batch: Vec<BatchFile>,
    /// The index of the page's first file.
    pub first_index: u64,
    /// Files that a page holds at most.
    pub page_size: u64,
}

/// One file in `batch_files.files_in_batch`.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct BatchFile {
    /// The analysis.
    pub data_id: String,
    /// Engines that found a threat in it.
    pub detected_by: usize,
    /// The name the client gave.
    pub display_name: String,
    /// Length in bytes.
    pub file_size: u64,
    /// MIME type.
    pub file_type: String,
    /// The type for people.
    pub file_type_description: String,
    /// What came out.
    pub process_info: BatchFileProcess,
    /// 0 to 100.
    pub progress_percentage: u8,
    /// The result in words.
    pub scan_all_result_a: String,
    /// The result as a code.
    pub scan_all_result_i: u16,
    /// Engines that took part.
    pub scanned_with: usize,
}

/// `process_info` of one file.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct BatchFileProcess {
    /// Why it is blocked; empty when it is not.
    pub blocked_reason: String,
    /// 0 to 100.
    pub progress_percentage: u8,
    /// `Allowed`, `Blocked` or `Processing`.
    pub result: &'static str,
    /// The texts of the results that led to the outcome.
    pub verdicts: Vec<String>,
}

/// `process_info` of the batch.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct BatchProcess {
    /// Why it is blocked; empty when it is not.
    pub blocked_reason: String,
    /// Whether the rule skips files of some type: always false for a batch, which has none.
    pub file_type_skipped_scan: bool,
    /// The rule's name.
    pub profile: String,
    /// `Allowed`, `Blocked` or `Processing`.
    pub result: &'static str,
    /// How the program that made it calls itself.
    pub user_agent: String,
    /// Who made it.
    pub username: String,
}

/// `scan_results` of the batch.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct BatchScan {
    /// The batch.
    pub batch_id: String,
    /// The result in words.
    pub scan_all_result_a: String,
    /// The result as a code.
    pub scan_all_result_i: u16,
    /// When its first file was begun; when it was made, as long as none was.
    pub start_time: String,
    /// Always 0: engines judge files.
    pub total_avs: usize,
    /// Milliseconds from there to the end of its last finished file.
    pub total_time: u64,
}

/// The document of a batch with a page of its files, each with its progress if it is not finished.
pub fn batch_document(
    batch: &BatchRecord,
    files: &[(AnalysisRecord, Option<Progress>)],
    first: u32,
    size: u32,
) -> BatchDocument {
    BatchDocument {
        batch_files: BatchFiles {
            batch_count: batch.count(),
            files_in_batch: files.iter().map(|(record, progress)| batch_file(record, progress.as_ref())).collect(),
            first_index: u64::from(first),
            page_size: u64::from(size),
        },
        batch_id: batch.new.batch_id.to_string(),
        is_closed: batch.closed_ms.is_some(),
        process_info: process(batch),
        scan_results: scan(batch),
        user_data: batch.new.user_data.clone(),
    }
}

/// `process_info` of a batch.
pub fn process(batch: &BatchRecord) -> BatchProcess {
    BatchProcess {
        blocked_reason: blocked_reason(batch),
        file_type_skipped_scan: false,
        profile: batch.new.rule.name.clone(),
        result: batch.outcome().as_str(),
        user_agent: batch.new.user_agent.clone(),
        username: batch.new.principal.user_name.clone(),
    }
}

/// `scan_results` of a batch.
pub fn scan(batch: &BatchRecord) -> BatchScan {
    let code = batch.code();
    let took = batch.finished_ms.zip(batch.started_ms).map(|(finished, started)| finished.saturating_sub(started));
    BatchScan {
        batch_id: batch.new.batch_id.to_string(),
        scan_all_result_a: code.text().to_owned(),
        scan_all_result_i: code.code(),
        start_time: timestamp(batch.started_ms.unwrap_or(batch.new.created_ms)),
        total_avs: 0,
        total_time: took.unwrap_or(0),
    }
}

fn blocked_reason(batch: &BatchRecord) -> String {
    if batch.outcome() != lazaret_analysis::Outcome::Blocked {
        return String::new();
    }
    batch.worst_blocked().unwrap_or(batch.code()).text().to_owned()
}

fn batch_file(record: &AnalysisRecord, progress: Option<&Progress>) -> BatchFile {
    let now = Standing::of(record, progress);
    let file = file_section(record, now.result);
    let engines = now.result.map_or(&[][..], |result| &result.engines);
    BatchFile {
        data_id: record.data_id.to_string(),
        detected_by: detections(engines),
        display_name: file.display_name,
        file_size: file.file_size,
        file_type: file.file_type,
        file_type_description: file.file_type_description,
        process_info: BatchFileProcess {
            blocked_reason: now.blocked_reasons().join(", "),
            progress_percentage: now.percent,
            result: now.outcome.as_str(),
            verdicts: now.verdicts(),
        },
        progress_percentage: now.percent,
        scan_all_result_a: now.code.text().to_owned(),
        scan_all_result_i: now.code.code(),
        scanned_with: engines.len(),
    }
}
