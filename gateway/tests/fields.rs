//! Every base field of the API reference, by name and type, in every state of an analysis: present, of its type, never null.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use axum::Router;
use axum::body::Body;
use axum::http::Request;
use common::{Station, accepted, ask, get, submission};
use lazaret_analysis::conformance::{sample_nested, sample_result};
use lazaret_analysis::{ContainerResult, DataId, ResultCode};
use serde_json::Value;

/// The fields of GET /file/{data_id} and GET /hash/{hash} that every answer has: where, and of which type.
const BASE: &str = "
    data_id text
    file_info.display_name text
    file_info.file_size integer
    file_info.file_type text
    file_info.file_type_description text
    file_info.md5 text
    file_info.sha1 text
    file_info.sha256 text
    file_info.sha512 text
    file_info.signer_infos list
    file_info.type_category list
    file_info.receive_data_timestamp time
    file_info.upload_time integer
    file_info.upload_timestamp time
    filetype_info.file_info.description text
    filetype_info.file_info.detected_by text
    filetype_info.file_info.encrypted boolean
    filetype_info.file_info.extensions text
    filetype_info.file_info.groupID text
    filetype_info.file_info.groupIDs list
    filetype_info.file_info.group_description text
    filetype_info.file_info.likely_type_ids list
    filetype_info.file_info.type text
    filetype_info.file_info.typeID text
    filetype_info.file_info.type_ids list
    filetype_info.final_verdict.verdict text
    filetype_info.final_verdict.verdict_explanation text
    filetype_info.is_file_type_mismatch boolean
    filetype_info.other_detections list
    filetype_info.result_template_hash text
    filetype_info.spoofing_info.detection_result text
    filetype_info.spoofing_info.result_explanation text
    filetype_info.spoofing_info.result_overview text
    process_info.blocked_reason text
    process_info.blocked_reasons list
    process_info.file_type_skipped_scan boolean
    process_info.hash_time integer
    process_info.outdated_data list
    process_info.processing_time integer
    process_info.processing_time_details.av_scan_time integer
    process_info.processing_time_details.cdr_time integer
    process_info.processing_time_details.dlp_time integer
    process_info.processing_time_details.extraction_time integer
    process_info.processing_time_details.filetype_time integer
    process_info.processing_time_details.filetype_wait_time integer
    process_info.processing_time_details.opswatfilescan_time integer
    process_info.processing_time_details.others_time integer
    process_info.processing_time_details.parse_dgsg_time integer
    process_info.processing_time_details.vul_time integer
    process_info.processing_time_details.yara_time integer
    process_info.profile text
    process_info.progress_percentage integer
    process_info.queue_time integer
    process_info.result text
    process_info.user_agent text
    process_info.username text
    process_info.verdicts list
    process_info.post_processing.actions_failed text
    process_info.post_processing.actions_ran text
    process_info.post_processing.converted_destination text
    process_info.post_processing.converted_to text
    process_info.post_processing.copy_move_destination text
    process_info.post_processing.sanitization_details.cdr_wait_time integer
    process_info.post_processing.sanitization_details.description text
    process_info.post_processing.sanitization_details.details list
    process_info.post_processing.sanitization_details.failure_category text
    process_info.post_processing.sanitization_details.result text
    process_info.post_processing.sanitization_details.result_template_hash text
    process_info.post_processing.sanitization_details.sanitized_file_info.file_size integer
    process_info.post_processing.sanitization_details.sanitized_file_info.sha256 text
    process_info.post_processing.sanitization_details.verdict text
    process_info.post_processing.sanitization_details.verdict_explanations list
    scan_results.data_id text
    scan_results.progress_percentage integer
    scan_results.scan_all_result_a text
    scan_results.scan_all_result_i integer
    scan_results.start_time time
    scan_results.total_avs integer
    scan_results.total_time integer
    scan_results.scan_details object
";

/// What a container has besides.
const CONTAINER: &str = "
    extracted_files.detected_by integer
    extracted_files.scanned_with integer
    extracted_files.files_extracted_count integer
    extracted_files.first_index integer
    extracted_files.page_size integer
    extracted_files.worst_data_id text
    extracted_files.files_in_archive list
";

/// What each engine's entry has.
const ENGINE: &str = "
    def_time time
    eng_id text
    location text
    scan_result_i integer
    scan_time integer
    threat_found text
    wait_time integer
";

/// What each file in a page of a container has.
const EXTRACTED: &str = "
    data_id text
    detected_by integer
    display_name text
    file_size integer
    file_type text
    file_type_description text
    progress_percentage integer
    scan_all_result_i integer
    scanned_with integer
    process_info.blocked_reason text
    process_info.progress_percentage integer
    process_info.result text
    process_info.verdicts list
    process_info.post_processing.sanitization_details.sanitized_file_info.sha256 text
";

/// GET /file/batch/{batch_id}.
const BATCH: &str = "
    batch_files.batch_count integer
    batch_files.files_in_batch list
    batch_files.first_index integer
    batch_files.page_size integer
    batch_id text
    is_closed boolean
    process_info.blocked_reason text
    process_info.file_type_skipped_scan boolean
    process_info.profile text
    process_info.result text
    process_info.user_agent text
    process_info.username text
    scan_results.batch_id text
    scan_results.scan_all_result_a text
    scan_results.scan_all_result_i integer
    scan_results.start_time time
    scan_results.total_avs integer
    scan_results.total_time integer
    user_data text
";

/// Each file in a page of a batch.
const BATCH_FILE: &str = "
    data_id text
    detected_by integer
    display_name text
    file_size integer
    file_type text
    file_type_description text
    process_info.blocked_reason text
    process_info.progress_percentage integer
    process_info.result text
    process_info.verdicts list
    progress_percentage integer
    scan_all_result_a text
    scan_all_result_i integer
    scanned_with integer
";

/// That the document has every field of the list, each of its type, and no null anywhere.
fn check(document: &Value, fields: &str, state: &str) {
    for field in fields.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let (path, kind) = field.split_once(' ').unwrap();
        let value = document.pointer(&format!("/{}", path.replace('.', "/")));
        let value = value.unwrap_or_else(|| panic!("{state}: {path} is missing in {document:#}"));
        let fits = match kind {
            "text" => value.is_string(),
            "integer" => value.is_u64() || value.is_i64(),
            "boolean" => value.is_boolean(),
            "list" => value.is_array(),
            "object" => value.is_object(),
            "time" => value.as_str().is_some_and(is_time),
            other => panic!("no type {other}"),
        };
        assert!(fits, "{state}: {path} is {value}, not {kind}");
    }
    assert!(!has_null(document), "{state}: null in {document:#}");
}

/// `yyyy-MM-ddTHH:mm:ss.SSSZ`.
fn is_time(text: &str) -> bool {
    let shape = |c: char| if c.is_ascii_digit() { '0' } else { c };
    text.chars().map(shape).eq("0000-00-00T00:00:00.000Z".chars())
}

fn has_null(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Array(values) => values.iter().any(has_null),
        Value::Object(fields) => fields.values().any(has_null),
        _ => false,
    }
}

async fn document(router: &Router, path: &str, key: &str) -> Value {
    let (status, document) = ask(router, get(path, key)).await;
    assert_eq!(status, 200, "{document}");
    document
}

async fn check_file(router: &Router, id: DataId, key: &str, state: &str) -> Value {
    let document = document(router, &format!("/file/{id}"), key).await;
    check(&document, BASE, state);
    for engine in document["scan_results"]["scan_details"].as_object().unwrap().values() {
        check(engine, ENGINE, state);
    }
    document
}

#[tokio::test]
async fn every_field_is_there_in_every_state() {
    let station = Station::new().await;
    let router = station.router();
    let key = &station.alice;
    let batch = Request::post("/file/batch").header("apikey", key).body(Body::empty()).unwrap();
    let batch = ask(&router, batch).await.1["batch_id"].as_str().unwrap().to_owned();
    let batch_path = format!("/file/batch/{batch}");
    check(&document(&router, &batch_path, key).await, BATCH, "an empty batch");

    let mut ids = Vec::new();
    for body in [&b"to be done"[..], b"to be cancelled", b"a container"] {
        let mut request = submission(key, body);
        request.headers_mut().insert("batch", batch.parse().unwrap());
        ids.push(accepted(&router, request).await);
    }
    let (done, cancelled, container) = (ids[0], ids[1], ids[2]);
    check_file(&router, done, key, "queued").await;
    station.results.start(done, 1_700_000_000_000).await.unwrap();
    let progress = lazaret_analysis::Progress { percent: 40, last_file: "a/b".to_owned() };
    station.progress.set(done, progress).await.unwrap();
    let running = check_file(&router, done, key, "running").await;
    assert_eq!(running["scan_results"]["last_file_scanned"], "a/b");
    let open = document(&router, &batch_path, key).await;
    check(&open, BATCH, "a batch under way");
    assert_eq!(open["batch_files"]["files_in_batch"][0]["progress_percentage"], 40);

    station.results.finish(done, &sample_result(ResultCode::INFECTED, "x"), 1_700_000_000_000).await.unwrap();
    check_file(&router, done, key, "done").await;
    let cancel = Request::post(format!("/file/{cancelled}/cancel")).header("apikey", key).body(Body::empty()).unwrap();
    assert_eq!(ask(&router, cancel).await.0, 200);
    check_file(&router, cancelled, key, "cancelled").await;

    let nested: Vec<_> = (0..3).map(|ordinal| sample_nested(container, ordinal)).collect();
    station.results.put_nested(&nested).await.unwrap();
    let mut result = sample_result(ResultCode::NO_THREAT, "x");
    result.container = Some(ContainerResult { extracted_count: 3, ..ContainerResult::default() });
    station.results.finish(container, &result, 1_700_000_000_000).await.unwrap();
    let whole = check_file(&router, container, key, "container").await;
    check(&whole, CONTAINER, "container");
    for file in whole["extracted_files"]["files_in_archive"].as_array().unwrap() {
        check(file, EXTRACTED, "in a container");
    }
    check_file(&router, nested[1].data_id, key, "nested").await;
    let by_hash = format!("/hash/{}", nested[1].result.file.sha256);
    check(&document(&router, &by_hash, key).await, BASE, "found by hash");

    let close = Request::post(format!("{batch_path}/close")).header("apikey", key).body(Body::empty()).unwrap();
    let (_, closed) = ask(&router, close).await;
    check(&closed, BATCH, "a finished batch");
    let files = closed["batch_files"]["files_in_batch"].as_array().unwrap();
    assert_eq!(files.len(), 3);
    for file in files {
        check(file, BATCH_FILE, "in a batch");
    }
}
