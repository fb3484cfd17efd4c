//! The document that clients read, against the field list of the API reference: in every state every base field is there,
//! has its type and is not null.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use lazaret_analysis::rule::{SkipReason, Skipped};
use lazaret_analysis::{
    AnalysisRecord, ContainerResult, DataId, EngineResult, FileInfo, FileResult, Findings, NestedRecord, NewAnalysis,
    Page, Principal, Progress, ResultCode, Rule, SentAlong, Signer, Spoofing, State, Times, YaraFindings, YaraHit,
};
use lazaret_gateway::view::{PageView, document};
use serde_json::{Value, json};

/// One pointer and the type that clients expect there: `s`tring, `n`umber, `b`oolean, `a`rray, `o`bject.
const BASE_FIELDS: &[(&str, char)] = &[
    ("/data_id", 's'),
    ("/file_info/display_name", 's'),
    ("/file_info/file_size", 'n'),
    ("/file_info/file_type", 's'),
    ("/file_info/file_type_description", 's'),
    ("/file_info/md5", 's'),
    ("/file_info/sha1", 's'),
    ("/file_info/sha256", 's'),
    ("/file_info/sha512", 's'),
    ("/file_info/type_category", 'a'),
    ("/file_info/upload_timestamp", 's'),
    ("/file_info/upload_time", 'n'),
    ("/file_info/receive_data_timestamp", 's'),
    ("/file_info/signer_infos", 'a'),
    ("/filetype_info/file_info/description", 's'),
    ("/filetype_info/file_info/detected_by", 's'),
    ("/filetype_info/file_info/encrypted", 'b'),
    ("/filetype_info/file_info/extensions", 's'),
    ("/filetype_info/file_info/groupID", 's'),
    ("/filetype_info/file_info/groupIDs", 'a'),
    ("/filetype_info/file_info/group_description", 's'),
    ("/filetype_info/file_info/likely_type_ids", 'a'),
    ("/filetype_info/file_info/type", 's'),
    ("/filetype_info/file_info/typeID", 's'),
    ("/filetype_info/file_info/type_ids", 'a'),
    ("/filetype_info/final_verdict/verdict", 's'),
    ("/filetype_info/final_verdict/verdict_explanation", 's'),
    ("/filetype_info/is_file_type_mismatch", 'b'),
    ("/filetype_info/other_detections", 'a'),
    ("/filetype_info/result_template_hash", 's'),
    ("/filetype_info/spoofing_info/detection_result", 's'),
    ("/filetype_info/spoofing_info/result_explanation", 's'),
    ("/filetype_info/spoofing_info/result_overview", 's'),
    ("/scan_results/data_id", 's'),
    ("/scan_results/progress_percentage", 'n'),
    ("/scan_results/scan_all_result_a", 's'),
    ("/scan_results/scan_all_result_i", 'n'),
    ("/scan_results/start_time", 's'),
    ("/scan_results/total_avs", 'n'),
    ("/scan_results/total_time", 'n'),
    ("/scan_results/scan_details", 'o'),
];

/// The same below `process_info`, which a nested file's entry has too.
const PROCESS_FIELDS: &[(&str, char)] = &[
    ("/blocked_reason", 's'),
    ("/blocked_reasons", 'a'),
    ("/file_type_skipped_scan", 'b'),
    ("/hash_time", 'n'),
    ("/outdated_data", 'a'),
    ("/processing_time", 'n'),
    ("/processing_time_details/av_scan_time", 'n'),
    ("/processing_time_details/cdr_time", 'n'),
    ("/processing_time_details/dlp_time", 'n'),
    ("/processing_time_details/extraction_time", 'n'),
    ("/processing_time_details/filetype_time", 'n'),
    ("/processing_time_details/filetype_wait_time", 'n'),
    ("/processing_time_details/opswatfilescan_time", 'n'),
    ("/processing_time_details/others_time", 'n'),
    ("/processing_time_details/parse_dgsg_time", 'n'),
    ("/processing_time_details/vul_time", 'n'),
    ("/processing_time_details/yara_time", 'n'),
    ("/profile", 's'),
    ("/progress_percentage", 'n'),
    ("/queue_time", 'n'),
    ("/result", 's'),
    ("/user_agent", 's'),
    ("/username", 's'),
    ("/verdicts", 'a'),
    ("/post_processing/actions_failed", 's'),
    ("/post_processing/actions_ran", 's'),
    ("/post_processing/converted_destination", 's'),
    ("/post_processing/converted_to", 's'),
    ("/post_processing/copy_move_destination", 's'),
    ("/post_processing/sanitization_details/description", 's'),
    ("/post_processing/sanitization_details/details", 'a'),
    ("/post_processing/sanitization_details/result", 's'),
    ("/post_processing/sanitization_details/sanitized_file_info/file_size", 'n'),
    ("/post_processing/sanitization_details/sanitized_file_info/sha256", 's'),
];

const TIMES: &[&str] =
    &["/file_info/upload_timestamp", "/file_info/receive_data_timestamp", "/scan_results/start_time"];

fn assert_typed(value: &Value, fields: &[(&str, char)]) {
    for (pointer, kind) in fields {
        let field = value.pointer(pointer).unwrap_or_else(|| panic!("{pointer} is missing in {value:#}"));
        let right = match kind {
            's' => field.is_string(),
            'n' => field.is_u64(),
            'b' => field.is_boolean(),
            'a' => field.is_array(),
            'o' => field.is_object(),
            other => panic!("no such type {other}"),
        };
        assert!(right, "{pointer} is {field}");
    }
}

fn assert_no_null(value: &Value) {
    match value {
        Value::Null => panic!("a null"),
        Value::Array(items) => items.iter().for_each(assert_no_null),
        Value::Object(fields) => fields.values().for_each(assert_no_null),
        _ => {}
    }
}

/// The document as JSON, checked for everything that holds in every state.
fn shown(record: &AnalysisRecord, page: Option<&PageView>, progress: Option<&Progress>) -> Value {
    let value = serde_json::to_value(document(record, page, progress)).unwrap();
    assert_typed(&value, BASE_FIELDS);
    assert_typed(&value["process_info"], PROCESS_FIELDS);
    assert_no_null(&value);
    for pointer in TIMES {
        let text = value.pointer(pointer).and_then(Value::as_str).unwrap();
        let shape: String = text.chars().map(|c| if c.is_ascii_digit() { '9' } else { c }).collect();
        assert_eq!(shape, "9999-99-99T99:99:99.999Z", "{pointer}");
    }
    assert_eq!(value["process_info"]["progress_percentage"], value["scan_results"]["progress_percentage"]);
    let done = value["process_info"]["progress_percentage"] == 100;
    assert_eq!(done, value["process_info"]["result"] != "Processing");
    assert_eq!(done, value["scan_results"]["scan_all_result_i"] != 255);
    assert_eq!(value["process_info"]["blocked_reason"] != "", value["process_info"]["result"] == "Blocked");
    value
}

fn queued() -> AnalysisRecord {
    let data_id = DataId([0xab; 16]);
    AnalysisRecord {
        data_id,
        new: NewAnalysis {
            data_id,
            blob: "c".repeat(64),
            file: FileInfo {
                display_name: "report.zip".into(),
                size_bytes: 4_000_000_000,
                md5: "aa".into(),
                sha1: "bb".into(),
                sha256: "cc".into(),
                sha512: String::new(),
                ..FileInfo::default()
            },
            rule: Rule::with_defaults("strict"),
            principal: Principal { user_id: "7".into(), user_name: "alice".into(), role: "submitter".into() },
            user_agent: "mail-gate".into(),
            metadata: None,
            sent_along: SentAlong::default(),
            passwords: None,
            // 2026-11-22T01:02:03.004Z
            receive_ms: 1_795_309_323_004,
            upload_ms: 1_795_309_324_004,
            hash_ms: 12,
            queued_ms: 1_795_309_324_010,
        },
        state: State::Queued,
        cancel_requested: false,
        sanitized_blob: None,
        started_ms: None,
        result: None,
        root: data_id,
        parent: None,
    }
}

fn result(overall: ResultCode) -> FileResult {
    FileResult {
        own: overall,
        overall,
        engines: Vec::new(),
        file: FileInfo {
            display_name: "report.zip".into(),
            size_bytes: 4_000_000_000,
            file_type: "application/zip".into(),
            file_type_description: "ZIP archive".into(),
            type_category: vec!["Archive".into()],
            extension: "zip".into(),
            ..FileInfo::default()
        },
        container: None,
        blocked_reasons: Vec::new(),
        times: Times { scan_ms: 30, extraction_ms: 20, filetype_ms: 5, total_ms: 70, ..Times::default() },
        detail: String::new(),
        findings: Findings::default(),
    }
}

fn done(result: FileResult) -> AnalysisRecord {
    AnalysisRecord { state: State::Done, started_ms: Some(1_795_309_325_004), result: Some(result), ..queued() }
}

fn engine(name: &str, code: ResultCode, threat: &str) -> EngineResult {
    EngineResult {
        engine: name.into(),
        engine_id: format!("{name}_1"),
        code,
        threat: threat.into(),
        def_time_ms: 1_700_000_000_123,
        scan_ms: 4,
        wait_ms: 6,
    }
}

#[test]
fn the_first_poll_has_every_field() {
    let value = shown(&queued(), None, None);
    assert_eq!(value["data_id"], "ab".repeat(16));
    assert_eq!(value["scan_results"]["scan_all_result_i"], 255);
    assert_eq!(value["scan_results"]["scan_all_result_a"], "In Progress");
    assert_eq!(value["process_info"]["result"], "Processing");
    assert_eq!(value["process_info"]["progress_percentage"], 0);
    assert_eq!(value["process_info"]["verdicts"], json!([]));
    assert_eq!(value["process_info"]["profile"], "strict");
    assert_eq!(value["process_info"]["username"], "alice");
    assert_eq!(value["process_info"]["user_agent"], "mail-gate");
    assert_eq!(value["file_info"]["receive_data_timestamp"], "2026-11-22T01:02:03.004Z");
    assert_eq!(value["file_info"]["upload_time"], 1000);
    assert_eq!(value["file_info"]["file_size"], 4_000_000_000_u64);
    assert_eq!(value["file_info"]["md5"], "aa");
    for absent in ["extracted_files", "extraction_info", "metadata"] {
        assert!(value.get(absent).is_none(), "{absent}");
    }
}

#[test]
fn a_running_analysis_shows_its_progress_and_never_100() {
    let record = AnalysisRecord { state: State::Running, started_ms: Some(1_795_309_325_004), ..queued() };
    let progress = Progress { percent: 63, last_file: "a/b.txt".into() };
    let value = shown(&record, None, Some(&progress));
    assert_eq!(value["scan_results"]["progress_percentage"], 63);
    assert_eq!(value["scan_results"]["last_file_scanned"], "a/b.txt");
    assert_eq!(value["scan_results"]["start_time"], "2026-11-22T01:02:05.004Z");
    assert_eq!(value["process_info"]["queue_time"], 1000);
    let too_far = Progress { percent: 200, last_file: String::new() };
    let value = shown(&record, None, Some(&too_far));
    assert_eq!(value["scan_results"]["progress_percentage"], 99);
    assert!(value["scan_results"].get("last_file_scanned").is_none());
}

#[test]
fn a_clean_file_is_allowed_without_a_reason() {
    let mut result = result(ResultCode::NO_THREAT);
    result.engines = vec![engine("Lazaret signatures", ResultCode::NO_THREAT, "")];
    let value = shown(&done(result), None, None);
    assert_eq!(value["process_info"]["result"], "Allowed");
    assert_eq!(value["process_info"]["verdicts"], json!(["No Threat Detected"]));
    assert_eq!(value["scan_results"]["total_avs"], 1);
    assert_eq!(
        value["scan_results"]["scan_details"],
        json!({"Lazaret signatures": {
            "def_time": "2023-11-14T22:13:20.123Z", "eng_id": "Lazaret signatures_1", "location": "local",
            "scan_result_i": 0, "scan_time": 4, "threat_found": "", "wait_time": 6,
        }})
    );
    // What the worker found of the file, and what only the submission knows.
    assert_eq!(value["file_info"]["file_type"], "application/zip");
    assert_eq!(value["file_info"]["sha256"], "cc");
    assert_eq!(value["filetype_info"]["file_info"]["typeID"], "zip");
    assert_eq!(value["process_info"]["processing_time_details"]["others_time"], 15);
}

#[test]
fn every_code_has_the_tables_text_and_outcome() {
    for code in ResultCode::all().filter(|code| code.is_final()) {
        let value = shown(&done(result(code)), None, None);
        assert_eq!(value["scan_results"]["scan_all_result_a"], code.text());
        assert_eq!(value["scan_results"]["scan_all_result_i"], code.code());
        let allowed = [0, 7, 33, 39, 41].contains(&code.code());
        assert_eq!(value["process_info"]["result"], if allowed { "Allowed" } else { "Blocked" }, "{code:?}");
        assert_eq!(value["process_info"]["blocked_reason"], if allowed { "" } else { code.text() });
    }
    let mut strict = done(result(ResultCode::NO_THREAT));
    strict.new.rule.allowed_codes.clear();
    assert_eq!(shown(&strict, None, None)["process_info"]["result"], "Blocked", "the rule's own policy counts");
}

#[test]
fn the_workers_reasons_come_first() {
    let mut failed = result(ResultCode::FAILED);
    failed.blocked_reasons = vec!["the blob is gone".into(), "Failed".into()];
    let value = shown(&done(failed), None, None);
    assert_eq!(value["process_info"]["blocked_reason"], "the blob is gone, Failed");
    assert_eq!(value["process_info"]["blocked_reasons"], json!(["the blob is gone", "Failed"]));
}

#[test]
fn a_cancelled_analysis_and_one_without_a_result_are_blocked() {
    let cancelled = AnalysisRecord { state: State::Cancelled, ..queued() };
    let value = shown(&cancelled, None, None);
    assert_eq!(value["scan_results"]["scan_all_result_i"], 19);
    assert_eq!(value["process_info"]["result"], "Blocked");
    let lost = AnalysisRecord { state: State::Done, ..queued() };
    assert_eq!(shown(&lost, None, None)["scan_results"]["scan_all_result_i"], 3);
}

#[test]
fn a_container_shows_its_page() {
    let root = queued().data_id;
    let child = |ordinal: u32, overall, engines| NestedRecord {
        data_id: DataId([u8::try_from(ordinal).unwrap(); 16]),
        root,
        parent: root,
        ordinal,
        path: format!("dir/file{ordinal}.com"),
        result: FileResult { engines, ..result(overall) },
    };
    let mut container = result(ResultCode::INFECTED);
    container.container = Some(ContainerResult {
        extracted_count: 70,
        detected_count: 1,
        worst_child: Some(DataId([51; 16])),
        ..ContainerResult::default()
    });
    let infected = vec![
        engine("A", ResultCode::INFECTED, "EICAR-Test-File"),
        engine("B", ResultCode::NOT_SCANNED, ""),
        engine("C", ResultCode::NO_THREAT, ""),
    ];
    let page = Page {
        records: vec![child(50, ResultCode::NO_THREAT, vec![]), child(51, ResultCode::INFECTED, infected)],
        total: 70,
    };
    let view = PageView { first: 50, size: 2, page };
    let value = shown(&done(container.clone()), Some(&view), None);
    let extracted = &value["extracted_files"];
    assert_eq!(extracted["files_extracted_count"], 70);
    assert_eq!(extracted["first_index"], 50);
    assert_eq!(extracted["page_size"], 2);
    assert_eq!(extracted["detected_by"], 1);
    assert_eq!(extracted["worst_data_id"], "33".repeat(16));
    let files = extracted["files_in_archive"].as_array().unwrap();
    assert_eq!(files.len(), 2);
    for file in files {
        assert_typed(&file["process_info"], PROCESS_FIELDS);
        assert_typed(
            file,
            &[
                ("/data_id", 's'),
                ("/detected_by", 'n'),
                ("/display_name", 's'),
                ("/file_size", 'n'),
                ("/file_type", 's'),
                ("/file_type_description", 's'),
                ("/progress_percentage", 'n'),
                ("/scan_all_result_i", 'n'),
                ("/scanned_with", 'n'),
            ],
        );
    }
    assert_eq!(files[0]["process_info"]["result"], "Allowed");
    assert_eq!(files[1]["process_info"]["result"], "Blocked");
    assert_eq!(files[1]["display_name"], "dir/file51.com");
    assert_eq!(files[1]["detected_by"], 1);
    assert_eq!(files[1]["scanned_with"], 3);
    assert!(value.get("extraction_info").is_none(), "it came apart completely");
}

#[test]
fn a_container_that_did_not_come_apart_says_why() {
    let mut broken = result(ResultCode::EXTRACTION_FAILED);
    broken.container = Some(ContainerResult {
        reason: Some(ResultCode::EXTRACTION_FAILED),
        detail: "the central directory is cut off".into(),
        ..ContainerResult::default()
    });
    let value = shown(&done(broken.clone()), None, None);
    assert_eq!(
        value["extraction_info"],
        json!({
            "err_category": "Extraction Failed", "err_code": 24,
            "err_details": "the central directory is cut off", "is_encrypted_file": false,
        })
    );
    broken.container = Some(ContainerResult { encrypted: true, ..ContainerResult::default() });
    let value = shown(&done(broken), None, None);
    assert_eq!(value["extraction_info"]["err_code"], 12);
    assert_eq!(value["extraction_info"]["decrypted_status"], "Failed");
    assert_eq!(value["filetype_info"]["file_info"]["encrypted"], true);
}

#[test]
fn a_container_that_a_password_opened_says_so() {
    let mut opened = result(ResultCode::NO_THREAT);
    opened.container = Some(ContainerResult { decrypted: true, ..ContainerResult::default() });
    let value = shown(&done(opened.clone()), None, None);
    assert_eq!(
        value["extraction_info"],
        json!({"decrypted_status": "Success", "err_category": "", "err_code": 0, "err_details": "", "is_encrypted_file": true})
    );
    assert_eq!(value["filetype_info"]["file_info"]["encrypted"], true);
    // One password opened something, and none the rest.
    opened.container = Some(ContainerResult { decrypted: true, encrypted: true, ..ContainerResult::default() });
    assert_eq!(shown(&done(opened), None, None)["extraction_info"]["decrypted_status"], "Failed");
}

#[test]
fn metadata_comes_back_as_it_was_sent() {
    let mut record = queued();
    record.new.metadata = Some(r#"{"ticket": [1, "two"]}"#.into());
    assert_eq!(shown(&record, None, None)["metadata"], json!({"ticket": [1, "two"]}));
    for text in ["not json", "null", ""] {
        record.new.metadata = Some(text.into());
        assert_eq!(shown(&record, None, None)["metadata"], text);
    }
}

#[test]
fn what_was_found_besides_results_is_shown_where_clients_look_for_it() {
    let hit = |namespace: &str| YaraHit {
        rule: "internal".into(),
        namespace: namespace.into(),
        tags: vec!["secret".into()],
        meta: [("description".to_owned(), json!("internal papers")), ("score".to_owned(), json!(75))].into(),
    };
    let mut found = result(ResultCode::YARA_MATCHED);
    found.engines =
        vec![engine("YARA", ResultCode::YARA_MATCHED, "internal"), engine("Known", ResultCode::KNOWN_BAD, "x")];
    found.findings = Findings {
        yara: Some(YaraFindings { verdict: 1, hits: vec![hit("a.yar"), hit("b.yar")] }),
        forbidden_type: Some("the rule blocks group:E".into()),
        spoofing: Some(Spoofing { overview: "Double extension".into(), explanation: "it reads like .pdf".into() }),
        signers: vec![Signer { vendor_name: "Vendor".into(), version: "2".into(), ..Signer::default() }],
        ..Findings::default()
    };
    let value = shown(&done(found.clone()), None, None);
    assert_eq!(value["scan_results"]["scan_details"]["YARA"]["scan_result_i"], 1);
    assert_eq!(value["scan_results"]["scan_details"]["Known"]["scan_result_i"], 1);
    assert_eq!(value["yara"]["verdict"], 1);
    let hits = value["yara"]["hits"].as_object().unwrap();
    assert_eq!(hits.keys().collect::<Vec<_>>(), ["internal", "internal (b.yar)"]);
    assert_eq!(
        hits["internal"],
        json!({"namespace": "a.yar", "description": "internal papers", "tags": ["secret"],
            "meta": {"description": "internal papers", "score": 75}})
    );
    assert_eq!(
        value["filetype_info"]["final_verdict"],
        json!({"verdict": "blocked", "verdict_explanation": "the rule blocks group:E"})
    );
    assert_eq!(
        value["filetype_info"]["spoofing_info"],
        json!({"detection_result": "spoofed", "result_explanation": "it reads like .pdf", "result_overview": "Double extension"})
    );
    assert_eq!(
        value["file_info"]["signer_infos"],
        json!([{"digest_algorithm": "", "digest_encryption_algorithm": "", "issuer": "", "serial_number": "",
            "vendor_name": "Vendor", "version": "2"}])
    );

    // A mismatch is told in any case, and decides only if the rule says so.
    let mismatch = || Findings { type_mismatch: Some("the name lies".into()), ..Findings::default() };
    let allowed = FileResult { findings: mismatch(), ..result(ResultCode::NO_THREAT) };
    let value = shown(&done(allowed), None, None);
    assert_eq!(value["filetype_info"]["is_file_type_mismatch"], true);
    assert_eq!(
        value["filetype_info"]["final_verdict"],
        json!({"verdict": "allowed", "verdict_explanation": "the name lies"})
    );
    let mut record = done(FileResult { findings: mismatch(), ..result(ResultCode::MISMATCH) });
    record.new.rule.file_types.mismatch = true;
    assert_eq!(shown(&record, None, None)["filetype_info"]["final_verdict"]["verdict"], "blocked");

    let skipped =
        |reason| Findings { skipped: Some(Skipped { code: ResultCode::NOT_SCANNED, reason }), ..Findings::default() };
    for (reason, by_type) in [(SkipReason::Type, true), (SkipReason::Size, false)] {
        let result = FileResult { findings: skipped(reason), ..result(ResultCode::NOT_SCANNED) };
        assert_eq!(shown(&done(result), None, None)["process_info"]["file_type_skipped_scan"], by_type);
    }
}
