//! The shape of an analysis on the wire, field by field as the API reference has it.
//!
//! **Invariant.** Every field that is not an `Option` is present and not null, whatever the state: texts are `""`, lists
//! `[]`, numbers 0. An `Option` is a whole section that the reference leaves out when it does not apply.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;

/// The answer to GET /file/{data_id}.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Document {
    /// The analysis or nested file.
    pub data_id: String,
    /// What is known of the file.
    pub file_info: FileSection,
    /// How its type was judged.
    pub filetype_info: FiletypeSection,
    /// How far the processing is and what came out.
    pub process_info: ProcessSection,
    /// What the engines said.
    pub scan_results: ScanSection,
    /// A page of a container's files.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub extracted_files: Option<ExtractedSection>,
    /// Why a container was not taken apart to its end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub extraction_info: Option<ExtractionSection>,
    /// How the file was fetched, if it was not sent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub download_info: Option<DownloadSection>,
    /// What the operator's YARA rules said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub yara: Option<YaraSection>,
    /// What the submitter sent along.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metadata: Option<Value>,
}

/// `file_info`.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct FileSection {
    /// The name the client gave.
    pub display_name: String,
    /// Length in bytes.
    pub file_size: u64,
    /// MIME type.
    pub file_type: String,
    /// The type for people.
    pub file_type_description: String,
    /// MD5 in hexadecimal.
    pub md5: String,
    /// SHA-1 in hexadecimal.
    pub sha1: String,
    /// SHA-256 in hexadecimal.
    pub sha256: String,
    /// SHA-512 in hexadecimal.
    pub sha512: String,
    /// Categories of the type.
    pub type_category: Vec<String>,
    /// When the upload's last byte came.
    pub upload_timestamp: String,
    /// Milliseconds the upload took.
    pub upload_time: u64,
    /// When the upload's first byte came.
    pub receive_data_timestamp: String,
    /// Who signed it, if it is a signed Windows program.
    pub signer_infos: Vec<SignerSection>,
}

/// One signer in `file_info.signer_infos`.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct SignerSection {
    /// The digest that was signed.
    pub digest_algorithm: String,
    /// How it was signed.
    pub digest_encryption_algorithm: String,
    /// Who issued the certificate.
    pub issuer: String,
    /// The certificate's serial number.
    pub serial_number: String,
    /// To whom it was issued.
    pub vendor_name: String,
    /// The certificate's version, counted from 0.
    pub version: String,
}

/// `filetype_info`.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct FiletypeSection {
    /// The type that was found.
    pub file_info: FiletypeFile,
    /// Whether the type itself is a reason to block.
    pub final_verdict: FinalVerdict,
    /// Whether name and content disagree.
    pub is_file_type_mismatch: bool,
    /// Types other analysers found.
    pub other_detections: Vec<Value>,
    /// Whether the type is spoofed.
    pub spoofing_info: SpoofingSection,
    /// For the reference's own console.
    pub result_template_hash: String,
}

/// `filetype_info.file_info`.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct FiletypeFile {
    /// The type for people.
    pub description: String,
    /// The analyser that found it.
    #[serde(rename = "detected_by")]
    pub detected_by: String,
    /// Whether the file is protected by a password.
    pub encrypted: bool,
    /// The usual extension.
    pub extensions: String,
    /// The category.
    #[serde(rename = "groupID")]
    pub group_id: String,
    /// All categories.
    #[serde(rename = "groupIDs")]
    pub group_ids: Vec<String>,
    /// The category for people.
    #[serde(rename = "group_description")]
    pub group_description: String,
    /// Other likely types.
    #[serde(rename = "likely_type_ids")]
    pub likely_type_ids: Vec<Value>,
    /// MIME type.
    #[serde(rename = "type")]
    pub mime: String,
    /// Identifier of the type.
    #[serde(rename = "typeID")]
    pub type_id: String,
    /// All identifiers.
    #[serde(rename = "type_ids")]
    pub type_ids: Vec<String>,
}

/// `filetype_info.final_verdict`.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct FinalVerdict {
    /// `allowed` or `blocked`.
    pub verdict: &'static str,
    /// Why.
    pub verdict_explanation: String,
}

/// `filetype_info.spoofing_info`.
#[derive(Debug, Clone, Default, Serialize, ToSchema)]
pub struct SpoofingSection {
    /// The result.
    pub detection_result: String,
    /// Its explanation.
    pub result_explanation: String,
    /// Its summary.
    pub result_overview: String,
}

/// `process_info`.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct ProcessSection {
    /// Why the file is blocked; empty when it is not.
    pub blocked_reason: String,
    /// All reasons.
    pub blocked_reasons: Vec<String>,
    /// Whether the rule skips files of this type.
    pub file_type_skipped_scan: bool,
    /// Milliseconds spent on digests.
    pub hash_time: u64,
    /// Data that was outdated at the time of the scan.
    pub outdated_data: Vec<String>,
    /// Milliseconds from the start of the processing to its end.
    pub processing_time: u64,
    /// Where the time went.
    pub processing_time_details: ProcessingTimes,
    /// The rule's name.
    pub profile: String,
    /// 0 to 100; 100 only when the whole result is readable.
    pub progress_percentage: u8,
    /// Milliseconds between the upload's end and the processing's start.
    pub queue_time: u64,
    /// `Allowed`, `Blocked` or `Processing`.
    pub result: &'static str,
    /// The client's own identification.
    pub user_agent: String,
    /// Who submitted.
    pub username: String,
    /// The texts of the results that led to the outcome.
    pub verdicts: Vec<String>,
    /// What was done to the file afterwards.
    pub post_processing: PostProcessing,
}

/// `process_info.processing_time_details`, all in milliseconds.
#[derive(Debug, Clone, Default, Serialize, ToSchema)]
#[allow(missing_docs, reason = "each field is the time of what its name says")]
pub struct ProcessingTimes {
    pub av_scan_time: u64,
    pub cdr_time: u64,
    pub dlp_time: u64,
    pub extraction_time: u64,
    pub filetype_time: u64,
    pub filetype_wait_time: u64,
    pub opswatfilescan_time: u64,
    pub others_time: u64,
    pub parse_dgsg_time: u64,
    pub vul_time: u64,
    pub yara_time: u64,
}

/// `process_info.post_processing`. Nothing is sanitised or moved yet, so its texts are empty.
#[derive(Debug, Clone, Default, Serialize, ToSchema)]
pub struct PostProcessing {
    /// Actions that failed, separated by spaces.
    pub actions_failed: String,
    /// Actions that ran.
    pub actions_ran: String,
    /// The sanitised file's name.
    pub converted_destination: String,
    /// The sanitised file's type.
    pub converted_to: String,
    /// Where the file was copied or moved to.
    pub copy_move_destination: String,
    /// What the sanitisation did.
    pub sanitization_details: SanitizationDetails,
}

/// `process_info.post_processing.sanitization_details`.
#[derive(Debug, Clone, Default, Serialize, ToSchema)]
pub struct SanitizationDetails {
    /// Milliseconds it took.
    pub cdr_wait_time: u64,
    /// Whether it succeeded, in words.
    pub description: String,
    /// What was sanitised or removed.
    pub details: Vec<Value>,
    /// The kind of failure; empty when there was none.
    pub failure_category: String,
    /// The result; empty when there was no sanitisation.
    pub result: String,
    /// For the reference's own console.
    pub result_template_hash: String,
    /// The file that came out.
    pub sanitized_file_info: SanitizedFile,
    /// Whether the sanitisation advises to block; empty when there was none.
    pub verdict: String,
    /// Why.
    pub verdict_explanations: Vec<String>,
}

/// `sanitized_file_info`.
#[derive(Debug, Clone, Default, Serialize, ToSchema)]
pub struct SanitizedFile {
    /// Length in bytes.
    pub file_size: u64,
    /// SHA-256 in hexadecimal.
    pub sha256: String,
}

/// `scan_results`.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct ScanSection {
    /// The analysis or nested file.
    pub data_id: String,
    /// The same as in `process_info`.
    pub progress_percentage: u8,
    /// The result in words.
    pub scan_all_result_a: String,
    /// The result as a code.
    pub scan_all_result_i: u16,
    /// When the processing began; when it was queued, as long as it has not.
    pub start_time: String,
    /// Engines that took part.
    pub total_avs: usize,
    /// Milliseconds of the scan.
    pub total_time: u64,
    /// The member that was scanned last, while the scan goes on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_file_scanned: Option<String>,
    /// What each engine said, by its name.
    pub scan_details: BTreeMap<String, EngineSection>,
}

/// One engine's entry in `scan_results.scan_details`.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct EngineSection {
    /// The time of the engine's database.
    pub def_time: String,
    /// The engine's identifier.
    pub eng_id: String,
    /// Where it ran.
    pub location: &'static str,
    /// Its result as a code.
    pub scan_result_i: u16,
    /// Milliseconds it took.
    pub scan_time: u64,
    /// The threat's name, or the engine's error.
    pub threat_found: String,
    /// Milliseconds it was waited for.
    pub wait_time: u64,
}

/// `yara`.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct YaraSection {
    /// The rules that matched, by name.
    pub hits: BTreeMap<String, YaraHitSection>,
    /// 0 clean, 1 found matched data, 3 failed, 4 not scanned.
    pub verdict: u8,
}

/// One rule in `yara.hits`.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct YaraHitSection {
    /// The file it comes from.
    pub namespace: String,
    /// Its author's description.
    pub description: String,
    /// Its tags.
    pub tags: Vec<String>,
    /// Everything its author wrote about it.
    pub meta: BTreeMap<String, Value>,
}

/// `extracted_files`.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct ExtractedSection {
    /// Files in which a threat was found, at any depth.
    pub detected_by: u64,
    /// Engines that took part.
    pub scanned_with: usize,
    /// Files directly inside.
    pub files_extracted_count: u64,
    /// The index of the page's first file.
    pub first_index: u64,
    /// Files a page holds at most.
    pub page_size: u64,
    /// The file with the worst result.
    pub worst_data_id: String,
    /// The page.
    pub files_in_archive: Vec<ExtractedFile>,
}

/// One file in `extracted_files.files_in_archive`.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct ExtractedFile {
    /// The nested file; GET /file/{data_id} knows it too.
    pub data_id: String,
    /// Engines that found a threat in it.
    pub detected_by: usize,
    /// Its path inside the submitted file.
    pub display_name: String,
    /// Length in bytes.
    pub file_size: u64,
    /// MIME type.
    pub file_type: String,
    /// The type for people.
    pub file_type_description: String,
    /// Always 100: a nested file appears when it is done.
    pub progress_percentage: u8,
    /// The result as a code.
    pub scan_all_result_i: u16,
    /// Engines that took part.
    pub scanned_with: usize,
    /// As in the file's own document.
    pub process_info: ProcessSection,
}

/// `download_info`.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct DownloadSection {
    /// How it went. A file is recorded once it is there, so this is `Download Success`.
    pub status: &'static str,
    /// Where from.
    pub url: String,
}

/// `extraction_info`.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct ExtractionSection {
    /// Whether a protected container could be opened; absent when it is not protected.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub decrypted_status: Option<&'static str>,
    /// The kind of failure; empty if there is none.
    pub err_category: String,
    /// The result code of the failure; 0 if there is none.
    pub err_code: u16,
    /// What failed.
    pub err_details: String,
    /// Whether the container is protected by a password.
    pub is_encrypted_file: bool,
}
