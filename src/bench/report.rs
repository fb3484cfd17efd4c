//! `lazaret bench report`: runs the benchmarks one after the other, each in a process of its own, and writes what they say
//! as `report.json` and, with plots, as `report.html`, which needs no other file and no network.
//!
//! Figures of time differ between runs and machines; the counts of instructions (callgrind) hardly do, so a change for the
//! worse shows in them first.

use std::fmt::Write as _;
use std::io::Write as _;
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, bail};
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::cli::BenchReportOptions;

/// Rates at which files are submitted.
const SUBMIT_RATES: [u32; 4] = [100, 200, 400, 800];
/// What instructions are counted for, and how often: often enough that starting and stopping do not show.
const COUNTED_BYTES: u32 = 10 << 10;
const COUNTED_FEW: u32 = 100;
const COUNTED_MANY: u32 = 600;

/// Runs the command.
pub async fn run(options: BenchReportOptions) -> anyhow::Result<ExitCode> {
    tokio::task::spawn_blocking(move || write_report(&options)).await?
}

fn write_report(options: &BenchReportOptions) -> anyhow::Result<ExitCode> {
    std::fs::create_dir_all(&options.out).with_context(|| format!("cannot make {}", options.out.display()))?;
    let seconds = options.seconds.to_string();
    let mut failures = Vec::new();
    let mut measured = |what: &str, args: &[&str]| match bench(args) {
        Ok(value) => value,
        Err(error) => {
            tracing::error!(what, %error, "a benchmark failed");
            failures.push(format!("{what}: {error:#}"));
            Value::Null
        }
    };
    let store = |min: &'static str| ["store", "--json", "--seconds", &seconds, "--min-replica", min].map(str::to_owned);
    let strict = measured("store, replicas 3 of 3", &texts(&store("3")));
    let quorum = measured("store, replicas 2 of 3", &texts(&store("2")));
    let submit: Vec<Value> = SUBMIT_RATES
        .iter()
        .map(|rate| {
            let args = ["submit", "--json", "--seconds", &seconds, "--rate", &rate.to_string()].map(str::to_owned);
            measured(&format!("submit, {rate}/s"), &texts(&args))
        })
        .collect();
    let archive = measured("archive", &["archive", "--json", "--warm"]);
    let instructions = match counted() {
        Ok(counts) => counts,
        Err(error) => {
            failures.push(format!("instructions: {error:#}"));
            Value::Null
        }
    };
    let report = json!({
        "version": env!("CARGO_PKG_VERSION"),
        "made": OffsetDateTime::now_utc().format(&Rfc3339)?,
        "machine": machine(),
        "seconds": options.seconds,
        "store": { "3 of 3": strict, "2 of 3": quorum },
        "submit": submit,
        "archive": archive,
        "instructions": instructions,
        "failures": failures,
    });
    let write = |name: &str, text: &str| {
        let path = options.out.join(name);
        std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
    };
    write("report.json", &serde_json::to_string_pretty(&report)?)?;
    write("report.html", &html(&report))?;
    writeln!(crate::output::stdout(), "{}", options.out.join("report.html").display())?;
    for failure in &failures {
        writeln!(std::io::stderr(), "lazaret: {failure}")?;
    }
    Ok(if failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(2) })
}

fn texts(args: &[String]) -> Vec<&str> {
    args.iter().map(String::as_str).collect()
}

/// What one benchmark says, run in a process of its own. One that had failures says so by its exit code, and is shown.
fn bench(args: &[&str]) -> anyhow::Result<Value> {
    let output = Command::new(std::env::current_exe()?)
        .arg("bench")
        .args(args)
        .env_remove("LAZARET_CLUSTER")
        .stderr(Stdio::inherit())
        .output()
        .context("cannot start the benchmark")?;
    serde_json::from_slice(&output.stdout).with_context(|| format!("it ended with {} and no figures", output.status))
}

/// Instructions for each put and each get, everything of client and three nodes included, by the difference between few
/// and many of them.
fn counted() -> anyhow::Result<Value> {
    let few = instructions(COUNTED_FEW, 0)?;
    let per_request = |total: u64| total.saturating_sub(few) / u64::from(COUNTED_MANY - COUNTED_FEW);
    let puts = per_request(instructions(COUNTED_MANY, 0)?);
    let gets = instructions(COUNTED_FEW, COUNTED_MANY - COUNTED_FEW)?.saturating_sub(few)
        / u64::from(COUNTED_MANY - COUNTED_FEW);
    Ok(json!({ "size_bytes": COUNTED_BYTES, "put": puts, "get": gets }))
}

fn instructions(puts: u32, gets: u32) -> anyhow::Result<u64> {
    let (puts, gets, size) = (puts.to_string(), gets.to_string(), COUNTED_BYTES.to_string());
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(std::env::current_exe()?)
        .args(["bench", "store", "embedded", "--no-limits", "--json", "--concurrency", "1"])
        .args(["--size", &size, "--puts", &puts, "--gets", &gets])
        .output()
        .context("cannot start valgrind (Debian's package of that name), which counts instructions")?;
    let text = String::from_utf8_lossy(&output.stderr);
    let counted =
        text.lines().find_map(|line| line.split("Collected :").nth(1)).and_then(|count| count.trim().parse().ok());
    match counted {
        Some(count) if output.status.success() => Ok(count),
        _ => bail!("valgrind ended with {}: {}", output.status, text.lines().last().unwrap_or_default()),
    }
}

fn machine() -> Value {
    let line = |file: &str, key: &str| {
        let text = std::fs::read_to_string(file).unwrap_or_default();
        let value = text.lines().find_map(|line| line.strip_prefix(key)).unwrap_or_default();
        value.trim_start_matches([' ', '\t', ':']).to_owned()
    };
    json!({
        "cores": std::thread::available_parallelism().map_or(0, usize::from),
        "processor": line("/proc/cpuinfo", "model name"),
        "memory": line("/proc/meminfo", "MemTotal:"),
    })
}

/// A bar of a plot.
struct Bar {
    label: String,
    value: f64,
    /// What stands behind the bar.
    note: String,
}

fn html(report: &Value) -> String {
    let mut body = String::new();
    let machine = &report["machine"];
    let _ = write!(
        body,
        "<h1>Lazaret {}</h1><p>{}, {} cores, {} of memory, {}. Every figure is of this run.</p>",
        text(&report["version"]),
        text(&machine["processor"]),
        machine["cores"],
        text(&machine["memory"]),
        text(&report["made"]),
    );
    for (replicas, store) in report["store"].as_object().into_iter().flatten() {
        body += &store_section(replicas, store);
    }
    body += &submit_section(&report["submit"]);
    body += &archive_section(&report["archive"]);
    let counts = &report["instructions"];
    if counts.is_object() {
        let bar = |what: &str| Bar { label: what.to_owned(), value: number(&counts[what]), note: String::new() };
        body += "<h2>Instructions for one request of 10 KiB, client and three nodes</h2>";
        body += &plot(&[bar("put"), bar("get")]);
    }
    for failure in report["failures"].as_array().into_iter().flatten() {
        let _ = write!(body, "<p class=failed>{}</p>", text(failure));
    }
    format!(
        "<!doctype html><html lang=en><meta charset=utf-8><title>Lazaret benchmarks</title><style>\
         body{{font:15px/1.5 system-ui,sans-serif;max-width:60em;margin:2em auto;padding:0 1em;color:#222}}\
         h2{{margin-top:2em}}svg{{width:100%}}.failed{{color:#b00}}</style>{body}</html>\n"
    )
}

fn store_section(replicas: &str, store: &Value) -> String {
    let mut section = format!("<h2>Store, replicas {}</h2>", escaped(replicas));
    let limits = &store["limits"];
    if limits.is_object() {
        let megabytes = |key: &str| number(&limits[key]) / 1e6;
        let _ = write!(
            section,
            "<p>The machine allows: raw QUIC {:.0} MB/s, fdatasync {:.0}/s, disk {:.0} MB/s, BLAKE3 {:.0} MB/s, salt {:.0} MB/s.</p>",
            megabytes("quic_bytes_per_second"),
            number(&limits["fdatasync_per_second"]),
            megabytes("disk_bytes_per_second"),
            megabytes("blake3_bytes_per_second"),
            megabytes("salt_bytes_per_second"),
        );
    }
    let figures = store["figures"].as_array().map(Vec::as_slice).unwrap_or_default();
    for (title, small) in [("Requests per second", true), ("MB per second", false)] {
        let bars: Vec<Bar> = figures
            .iter()
            .filter(|figure| {
                (number(&figure["size_bytes"]) < 1e6) == small && !text(&figure["operation"]).contains("mixed")
            })
            .map(|figure| {
                let per_second = number(&figure["per_second"]);
                Bar {
                    label: format!("{} {:.0} KiB", text(&figure["operation"]), number(&figure["size_bytes"]) / 1024.0),
                    value: if small { per_second } else { number(&figure["bytes_per_second"]) / 1e6 },
                    note: format!("p99 {:.1} ms", number(&figure["p99_ms"])),
                }
            })
            .collect();
        if !bars.is_empty() {
            let _ = write!(section, "<h3>{title}</h3>{}", plot(&bars));
        }
    }
    section
}

fn submit_section(submit: &Value) -> String {
    let runs: Vec<&Value> = submit.as_array().into_iter().flatten().filter(|run| run.is_object()).collect();
    let bars = |what: &str, latency: &str| -> Vec<Bar> {
        runs.iter()
            .map(|run| Bar {
                label: format!("{:.0}/s due", number(&run["rate_per_second"])),
                value: number(&run[what]),
                note: format!(
                    "p50 {:.0} ms, p99 {:.0} ms, {} refused",
                    number(&run[latency]["p50_ms"]),
                    number(&run[latency]["p99_ms"]),
                    run["refused"]
                ),
            })
            .collect()
    };
    if runs.is_empty() {
        return String::new();
    }
    format!(
        "<h2>Files of 140 KB submitted, everything in one process</h2><h3>Accepted per second</h3>{}<h3>Judged per second</h3>{}",
        plot(&bars("accepted_per_second", "submission")),
        plot(&bars("judged_per_second", "verdict"))
    )
}

fn archive_section(archive: &Value) -> String {
    let bars: Vec<Bar> = archive["passes"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|pass| Bar {
            label: format!("verdicts {}", text(&pass["verdicts"])),
            value: number(&pass["members_per_second"]),
            note: format!("{:.2} s", number(&pass["seconds"])),
        })
        .collect();
    if bars.is_empty() {
        return String::new();
    }
    format!("<h2>Members of archives judged per second, everything in one process</h2>{}", plot(&bars))
}

/// A plot of horizontal bars.
fn plot(bars: &[Bar]) -> String {
    const ROW: usize = 24;
    let most = bars.iter().map(|bar| bar.value).fold(f64::MIN_POSITIVE, f64::max);
    let mut svg = format!("<svg viewBox=\"0 0 800 {}\" role=img>", bars.len() * ROW);
    for (row, bar) in bars.iter().enumerate() {
        let (top, length) = (row * ROW, 380.0 * bar.value / most);
        let _ = write!(
            svg,
            "<text x=140 y={} text-anchor=end font-size=13>{}</text>\
             <rect x=150 y={} width={length:.1} height=16 fill=\"#2a7f9e\"/>\
             <text x={:.1} y={} font-size=13>{} <tspan fill=\"#777\">{}</tspan></text>",
            top + 16,
            escaped(&bar.label),
            top + 4,
            156.0 + length,
            top + 16,
            grouped(bar.value),
            escaped(&bar.note),
        );
    }
    svg + "</svg>"
}

/// A number as people read it: with a comma between thousands.
fn grouped(value: f64) -> String {
    let digits = format!("{value:.0}");
    let mut grouped = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_default()
}

fn text(value: &Value) -> String {
    escaped(value.as_str().unwrap_or_default())
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_shows_every_figure_and_escapes_what_it_shows() {
        let figure = |operation: &str, size: u64| json!({ "operation": operation, "size_bytes": size, "per_second": 1234.0, "bytes_per_second": 5.6e7, "p99_ms": 7.8 });
        let report = json!({
            "version": "1.2.3", "made": "2026-01-01T00:00:00Z",
            "machine": { "cores": 2, "processor": "<cpu>", "memory": "24 GB" },
            "store": { "3 of 3": { "limits": null, "figures": [figure("put", 10_240), figure("get", 4_194_304)] } },
            "submit": [{ "rate_per_second": 100.0, "accepted_per_second": 99.0, "judged_per_second": 98.0, "refused": 3,
                         "submission": { "p50_ms": 1.0, "p99_ms": 2.0 }, "verdict": { "p50_ms": 3.0, "p99_ms": 4.0 } }, null],
            "archive": { "passes": [{ "verdicts": "cold", "members_per_second": 4321.0, "seconds": 1.25 }] },
            "instructions": { "put": 1_234_567, "get": 89 },
            "failures": ["archive: a & b"],
        });
        let page = html(&report);
        for part in [
            "&lt;cpu&gt;",
            "put 10 KiB",
            "1,234 ",
            "get 4096 KiB",
            "56 ",
            "p99 7.8 ms",
            "3 refused",
            "1,234,567",
            "4,321 ",
            "1.25 s",
            "a &amp; b",
        ] {
            assert!(page.contains(part), "{part} is not in {page}");
        }
        assert!(!page.contains("<cpu>") && !page.contains("http"), "{page}");
        assert_eq!(page.matches("<svg").count(), page.matches("</svg>").count());
    }
}
