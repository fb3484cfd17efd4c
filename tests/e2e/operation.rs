//! What an operator has of a running station: metrics, logs without secrets, backups, word to the service manager.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::harness::{Gateway, Up, command, content, eicar, lazaret, verdict};

/// How long anything here may take before the test fails.
const PATIENCE: Duration = Duration::from_secs(120);

const PASSWORD: &str = "correct-horse-battery-9";
const WRONG_PASSWORD: &str = "wrong-mule-accumulator-7";
const ARCHIVE_PASSWORD: &str = "open-sesame-4711";

/// A loopback port that is free at this moment.
fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

async fn scraped(port: u16) -> String {
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    let response = http.get(format!("http://127.0.0.1:{port}/metrics")).send().await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    assert!(response.headers()["content-type"].to_str().unwrap().starts_with("application/openmetrics-text"));
    response.text().await.unwrap()
}

/// The value of the series that begins so.
fn value(text: &str, series: &str) -> f64 {
    let line = text.lines().find(|line| line.starts_with(series)).unwrap_or_else(|| panic!("{series} in:\n{text}"));
    line.rsplit(' ').next().unwrap().parse().unwrap()
}

/// Each family with its samples, after a check that it is in one piece and declared once, as scrapers ask.
fn families(text: &str) -> BTreeMap<&str, Vec<&str>> {
    let mut families: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    let mut current = "";
    for line in text.lines().take_while(|line| *line != "# EOF") {
        if let Some(declared) = line.strip_prefix("# ") {
            let [what, name] = [0, 1].map(|word| declared.split(' ').nth(word).unwrap());
            if name != current {
                assert!(families.insert(name, Vec::new()).is_none(), "{name} is declared again in:\n{text}");
                current = name;
            }
            let declarations = text.lines().filter(|line| line.starts_with(&format!("# {what} {name} "))).count();
            assert_eq!(declarations, 1, "{what} of {name}");
        } else {
            let sample = line.split(['{', ' ']).next().unwrap();
            let suffix = sample.strip_prefix(current).unwrap_or_else(|| panic!("{sample} below {current}"));
            assert!(["", "_total", "_bucket", "_sum", "_count"].contains(&suffix), "{sample} below {current}");
            families.get_mut(current).unwrap().push(line);
        }
    }
    families
}

#[tokio::test]
async fn one_listener_tells_of_nodes_gateway_and_worker() {
    let dir = tempfile::tempdir().unwrap();
    let port = free_port();
    let up = Up::start(dir.path(), &["--metrics", &format!("127.0.0.1:{port}")]);
    assert_eq!(verdict(&up.gateway.scan("a.com", eicar()).await), (1, false));
    assert_eq!(verdict(&up.gateway.scan("a.bin", content(1, 100_000)).await), (0, true));
    assert_eq!(verdict(&up.gateway.scan("a.bin", content(1, 100_000)).await), (0, true));

    let text = scraped(port).await;
    assert!(text.ends_with("# EOF\n"), "{text}");
    let families = families(&text);
    for (family, samples) in [("lazaret_node_map_epoch", 3), ("lazaret_disk_blobs", 3), ("lazaret_ready", 1)] {
        assert_eq!(families[family].len(), samples, "{family} of three nodes: {:?}", families[family]);
    }
    for (number, sample) in families["lazaret_node_map_epoch"].iter().enumerate() {
        assert!(sample.contains("node=\"") && sample.contains(&format!("name=\"node{}\"", number + 1)), "{sample}");
    }
    for (series, expected) in [
        ("lazaret_gateway_submissions_total{outcome=\"accepted\"}", 3.0),
        ("lazaret_gateway_request_seconds_count{route=\"/file\",method=\"POST\",status=\"200\"}", 3.0),
        ("lazaret_scan_analyses_total{code=\"1\",verdict=\"Infected\"}", 1.0),
        ("lazaret_scan_analyses_total{code=\"0\",verdict=\"No Threat Detected\"}", 2.0),
        ("lazaret_scan_engine_verdicts_total{engine=\"Lazaret\",code=\"1\"}", 1.0),
        ("lazaret_scan_verdicts_known_total", 1.0),
        ("lazaret_scan_sandbox_lost_total", 0.0),
        ("lazaret_queue_waiting ", 0.0),
        ("lazaret_queue_oldest_seconds ", 0.0),
        ("lazaret_gateway_sessions ", 0.0),
        ("lazaret_gateway_uploads ", 0.0),
        ("lazaret_ready ", 1.0),
        ("lazaret_component_up{component=\"filestorage\"}", 1.0),
    ] {
        assert_eq!(value(&text, series), expected, "{series} in:\n{text}");
    }
    let bytes = value(&text, "lazaret_gateway_submitted_bytes_total");
    assert_eq!(bytes, (eicar().len() + 200_000) as f64);
    for series in [
        "lazaret_scan_stage_seconds_count{stage=\"engines\"}",
        "lazaret_scan_engine_seconds_count{engine=\"Lazaret\"}",
        "lazaret_node_request_seconds_count",
        "process_resident_memory_bytes ",
    ] {
        assert!(value(&text, series) >= 1.0, "{series}");
    }
    assert!(value(&text, "lazaret_disk_free_bytes") > 0.0);
    assert!(value(&text, "process_cpu_seconds_total ") > 0.0);
    assert!(!text.contains(&up.gateway.key));
    // Only what runs is told, and nothing else is served there.
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    let other = http.get(format!("http://127.0.0.1:{port}/file/rules")).send().await.unwrap();
    assert_eq!(other.status(), StatusCode::NOT_FOUND);
    assert_eq!(up.process.terminate(), Some(0));
}

/// `lazaret up` whose error output goes to a file.
struct Logged {
    child: Child,
    gateway: Gateway,
}

impl Logged {
    fn start(data: &Path, stderr: &Path, environment: &[(&str, &str)], more: &[&str]) -> Self {
        let mut args = vec!["up", "--listen", "127.0.0.1:0", "--data", data.to_str().unwrap()];
        args.extend(more);
        let mut command = command(&args);
        command.envs(environment.iter().copied()).stdout(Stdio::piped()).stderr(File::create(stderr).unwrap());
        let mut child = command.spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let said = || fs::read_to_string(stderr).unwrap_or_default();
        let url = line
            .split_whitespace()
            .find_map(|fact| fact.strip_prefix("gateway="))
            .unwrap_or_else(|| panic!("{}", said()));
        let gateway = Gateway::new(url, &data.join("client.key"));
        Self { child, gateway }
    }

    fn stop(mut self) {
        Command::new("kill").args(["-TERM", &self.child.id().to_string()]).status().unwrap();
        assert!(self.child.wait().unwrap().success());
    }
}

impl Drop for Logged {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

async fn login(gateway: &Gateway, password: &str) -> (StatusCode, Value) {
    let body = json!({"user": "ada", "password": password}).to_string();
    let response = gateway.request(Method::POST, "/login").body(body).send().await.unwrap();
    (response.status(), response.json().await.unwrap())
}

/// Everything secret that a client can send, through every way that takes it; returns the session.
async fn secrets_are_used(gateway: &Gateway, admin: &str) -> String {
    assert_eq!(login(gateway, WRONG_PASSWORD).await.0, StatusCode::FORBIDDEN);
    let (status, begun) = login(gateway, PASSWORD).await;
    assert_eq!(status, StatusCode::OK, "{begun}");
    let session = begun["session_id"].as_str().unwrap().to_owned();
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    let url = &gateway.url;
    for query in [format!("/readyz?verbose=true&apikey={session}"), format!("/file/rules?apikey={admin}")] {
        assert_eq!(http.get(format!("{url}{query}")).send().await.unwrap().status(), StatusCode::OK, "{query}");
    }
    // A secret where none belongs.
    for path in [format!("/nothing/{admin}"), format!("/file/{PASSWORD}/what?apikey={admin}")] {
        let status = http.get(format!("{url}{path}")).send().await.unwrap().status();
        assert!(status.is_client_error(), "{path}");
    }
    let headers = [("archivepwd", ARCHIVE_PASSWORD), ("x-request-id", "the-callers-own-7")];
    let (status, answer) = gateway.post_with("a.zip", content(3, 5000), &headers).await.unwrap();
    assert_eq!(status, StatusCode::OK, "{answer}");
    gateway.finished(answer["data_id"].as_str().unwrap()).await;
    let bad =
        gateway.post_with("a.zip", content(4, 5000), &[("rule", "no-such-rule"), ("archivepwd", ARCHIVE_PASSWORD)]);
    assert_eq!(bad.await.unwrap().0, StatusCode::FORBIDDEN);
    let ended = http.post(format!("{url}/logout")).header("apikey", &session).send().await.unwrap();
    assert_eq!(ended.status(), StatusCode::OK);
    session
}

#[tokio::test]
async fn no_secret_is_in_any_log_at_its_most_verbose_and_requests_can_be_followed() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let data = at("data");
    let config = at("up.yml");
    let server = UnixDatagram::bind(at("syslog")).unwrap();
    server.set_read_timeout(Some(PATIENCE)).unwrap();
    fs::write(
        &config,
        format!(
            "log:\n  streams:\n    - {{log_type: file, log_level: dump, log_path: all.log}}\n    - {{log_type: syslog, \
             log_level: info, log_path: {}}}\n",
            at("syslog").display()
        ),
    )
    .unwrap();
    let stderr = at("stderr.log");
    let up = Logged::start(&data, &stderr, &[("LAZARET_LOG", "trace")], &["--config", config.to_str().unwrap()]);
    let mut adding = command(&["user", "--data", data.to_str().unwrap(), "add", "ada", "--password"]);
    let mut adding = adding.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    std::io::Write::write_all(&mut adding.stdin.take().unwrap(), format!("{PASSWORD}\n").as_bytes()).unwrap();
    assert!(adding.wait().unwrap().success());

    let file = |name: &str| fs::read_to_string(data.join(name)).unwrap().trim().to_owned();
    let session = secrets_are_used(&up.gateway, &file("admin.key")).await;
    let key = up.gateway.key.clone();
    // What is sent to syslog is the same, line by line.
    let mut buffer = vec![0; 16 * 1024];
    let mut syslog = String::new();
    while !syslog.contains("the-callers-own-7") {
        let length = server.recv(&mut buffer).expect("the access log comes");
        syslog.push_str(&String::from_utf8_lossy(&buffer[..length]));
        syslog.push('\n');
    }
    up.stop();

    let secrets = [
        key,
        session,
        file("admin.key"),
        file("connection.key"),
        file("storage-admin.key"),
        file("cluster.secret"),
        PASSWORD.to_owned(),
        WRONG_PASSWORD.to_owned(),
        ARCHIVE_PASSWORD.to_owned(),
    ];
    let log = fs::read_to_string(at("all.log")).unwrap();
    let error_output = fs::read_to_string(&stderr).unwrap();
    for (name, text) in [("the file", &log), ("the error output", &error_output), ("syslog", &syslog)] {
        assert!(text.lines().count() > 5, "{name} has nothing: {text}");
        for secret in &secrets {
            if let Some(line) = text.lines().find(|line| line.contains(secret.as_str())) {
                panic!("{name} has a secret: {line}");
            }
        }
    }
    // The submission's own event and its line in the access log bear the client's id.
    let followed: Vec<&str> = log.lines().filter(|line| line.contains("the-callers-own-7")).collect();
    assert!(followed.iter().any(|line| line.contains("file accepted")), "{followed:?}");
    let access = followed.iter().find(|line| line.contains("lazaret::access")).expect("an access line");
    for word in
        ["method=POST", "path=\"/file\"", "status=200", "user=\"client\"", "address=\"127.0.0.1\"", "bytes=5000"]
    {
        assert!(access.contains(word), "{word} in {access}");
    }
    assert!(log.lines().any(|line| line.contains("path=\"(none)\"") && line.contains("status=404")));
    assert!(!log.contains("/nothing/"));
    let mode = std::os::unix::fs::PermissionsExt::mode(&fs::metadata(at("all.log")).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);
}

#[tokio::test]
async fn a_request_id_is_answered_and_made_where_there_is_none() {
    let dir = tempfile::tempdir().unwrap();
    let up = Up::start(dir.path(), &[]);
    let id = async |sent: Option<&str>| {
        let mut request = up.gateway.request(Method::GET, "/version");
        if let Some(sent) = sent {
            request = request.header("X-Request-Id", sent);
        }
        request.send().await.unwrap().headers()["x-request-id"].to_str().unwrap().to_owned()
    };
    assert_eq!(id(Some("7f-3a.9")).await, "7f-3a.9");
    let (made, other) = (id(None).await, id(Some("not an id")).await);
    assert!(made.len() == 32 && other.len() == 32 && made != other, "{made} {other}");
}

#[tokio::test]
async fn settings_that_mean_nothing_are_refused_at_the_start() {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("up.yml");
    let data = dir.path().join("data");
    for (yaml, word) in [
        ("gateway: {rate_limits: {submissions_per_second: -1}}\n", "submissions_per_second"),
        ("gateway: {queue_maximum: 5}\n", "queue_maximum"),
        ("gateway: {results: elsewhere.db}\n", "gateway.results"),
        ("log: {streams: [{log_type: file}]}\n", "log_path"),
        ("log: {streams: [{log_type: file, log_path: /nowhere/at/all.log}]}\n", "/nowhere/at/all.log"),
        ("gateway: {header_read_seconds: 0}\n", "header_read_seconds"),
    ] {
        fs::write(&config, yaml).unwrap();
        let output = lazaret(&["up", "--data", data.to_str().unwrap(), "--config", config.to_str().unwrap()]);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{yaml}: {said}");
        assert!(said.contains(word) && said.lines().count() == 1, "{yaml}: {said}");
    }
    assert!(!data.join("results.db").exists());
}

#[tokio::test]
async fn results_are_backed_up_while_running_and_restored_while_not() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let target = dir.path().join("results.backup");
    let (data_text, target_text) = (data.to_str().unwrap(), target.to_str().unwrap());
    let up = Up::start(&data, &[]);
    let infected = up.gateway.scan("a.com", eicar()).await;
    let kept = infected["data_id"].as_str().unwrap().to_owned();
    let user = |args: &[&str]| {
        let output = lazaret(&[&["user", "--data", data_text], args].concat());
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    };
    user(&["add", "ada"]);
    let ada = user(&["key", "ada"]);
    // Under load: submissions go on while the backup is made.
    let backup = tokio::task::spawn_blocking({
        let args = ["backup", "--data", data_text, target_text].map(str::to_owned);
        move || lazaret(&args.each_ref().map(String::as_str))
    });
    let mut others = Vec::new();
    while others.len() < 5 || !backup.is_finished() {
        others.push(up.gateway.submit("b.bin", content(others.len() as u64, 3000)).await);
    }
    let output = backup.await.unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(String::from_utf8_lossy(&output.stdout).starts_with("backed up "));
    let after = up.gateway.submit("c.bin", content(9999, 3000)).await;
    for id in others.iter().chain([&after]) {
        up.gateway.finished(id).await;
    }
    let again = lazaret(&["backup", "--data", data_text, target_text]);
    assert_eq!(again.status.code(), Some(2), "nothing is overwritten");
    let running = lazaret(&["restore", "--data", data_text, target_text]);
    let said = String::from_utf8_lossy(&running.stderr).into_owned();
    assert!(running.status.code() == Some(2) && said.contains("in use"), "{said}");
    assert_eq!(up.process.terminate(), Some(0));
    user(&["rm", "ada"]);
    user(&["add", "eve"]);

    fs::write(dir.path().join("no.backup"), "x").unwrap();
    let refused = lazaret(&["restore", "--data", data_text, dir.path().join("no.backup").to_str().unwrap()]);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(refused.status.code() == Some(2) && said.contains("no.backup is no backup"), "{said}");
    let restore = |more: &[&str]| {
        let restored = lazaret(&[&["restore", "--data", data_text, target_text], more].concat());
        assert!(restored.status.success(), "{}", String::from_utf8_lossy(&restored.stderr));
        String::from_utf8(restored.stdout).unwrap()
    };
    assert!(restore(&["--keep-users"]).contains("stay as they are"));
    assert!(user(&["list"]).contains("eve"));
    assert!(restore(&[]).contains("identity.db: keys and users that were removed since are good again"));
    assert!(user(&["list"]).contains("ada") && !user(&["list"]).contains("eve"));
    assert!(!data.join("identity.db.restoring").exists() && !data.join("identity.db.restoring.lock").exists());
    let up = Up::start(&data, &[]);
    let mut again = up.gateway.clone();
    again.key = ada;
    again.scan("of ada", "of ada").await;
    assert_eq!(verdict(&up.gateway.finished(&kept).await), (1, false));
    let unknown = up.gateway.result(&after).await.unwrap();
    assert_eq!(unknown[&after], "Not Found");
    // What was queued in the backup is scanned; what is new is taken.
    up.gateway.scan("d.bin", content(77, 100)).await;
    assert_eq!(up.process.terminate(), Some(0));
}

#[tokio::test]
async fn the_service_manager_is_told_when_everything_serves_and_when_it_ends() {
    let dir = tempfile::tempdir().unwrap();
    let socket = UnixDatagram::bind(dir.path().join("notify")).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let name = dir.path().join("notify").display().to_string();
    let up = Logged::start(&dir.path().join("data"), &dir.path().join("err"), &[("NOTIFY_SOCKET", &name)], &[]);
    let mut buffer = [0; 64];
    let mut heard = || socket.recv(&mut buffer).map(|length| String::from_utf8_lossy(&buffer[..length]).into_owned());
    assert_eq!(heard().unwrap(), "READY=1");
    let began = Instant::now();
    up.stop();
    assert_eq!(heard().unwrap(), "STOPPING=1");
    assert!(began.elapsed() < PATIENCE);
}
