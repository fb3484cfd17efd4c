//! Keys and certificates replaced while everything runs. The files beside the cluster's file are replaced one at a time, each
//! as a whole, in an order in which every state between is one that works: the former key, or the former CA, is good until
//! the rotation is finished, and nodes, gateways and workers read the files again when they change.
//!
//! Hosts with a directory of their own need the new files copied, in any order; `--finish` looks whether all nodes have them.

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, bail};
use lazaret_node_client::cluster_file::{ClusterFile, read_key, read_text};
use lazaret_node_client::trust::previous_key_path;
use lazaret_node_client::{Credentials, Environment, QuicTransport, tls};
use lazaret_protocol::NodeEntry;
use lazaret_protocol::message::Request;

use super::admin::{self, ask_all, told};
use super::path_of;
use crate::cli::{RotateOptions, Rotated};
use crate::components::cluster_over;
use crate::init::{self, ClusterIssuer};

/// What to do about a CA whose key this program did not make.
pub const FOREIGN_CA: &str =
    "the cluster's CA does not vouch for what its key signed: make certificates where the CA is, and put them in place";

/// Runs `lazaret cluster rotate`.
pub async fn run(options: &RotateOptions) -> anyhow::Result<ExitCode> {
    if options.new_ca && options.what != Rotated::Certificates {
        bail!("--new-ca goes with certificates only");
    }
    let path = path_of(&options.cluster)?;
    let file = ClusterFile::load(path)?;
    match options.what {
        Rotated::ConnectionKey => {
            let key =
                KeyFile { what: "connection key", path: file.connection_key.clone(), of: Credentials::Connection };
            rotate_key(&file, &key, options).await
        }
        Rotated::AdminKey => {
            let path =
                file.admin_key.clone().with_context(|| format!("{} names no storage admin key", path.display()))?;
            rotate_key(&file, &KeyFile { what: "storage admin key", path, of: Credentials::Admin }, options).await
        }
        Rotated::Certificates if options.finish => finish_ca(&file, options.force).await,
        Rotated::Certificates => replace_certificates(path, &file, options.new_ca).await,
    }
}

/// The directory that the cluster's file lies in.
pub fn directory(cluster_file: &Path) -> &Path {
    cluster_file.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// What signs the cluster's certificates, from the CA's key beside its certificate.
pub fn issuer(file: &ClusterFile) -> anyhow::Result<ClusterIssuer> {
    let pem = read_text("the CA's key", &ca_key_path(file))?;
    let key =
        rcgen::KeyPair::from_pem(&pem).with_context(|| format!("the CA's key {}", ca_key_path(file).display()))?;
    init::issuer(file.map.cluster, key)
}

fn ca_key_path(file: &ClusterFile) -> PathBuf {
    file.ca.with_file_name(init::CA_KEY_FILE)
}

/// A key that is rotated.
struct KeyFile {
    what: &'static str,
    path: PathBuf,
    of: fn(String) -> Credentials,
}

async fn rotate_key(file: &ClusterFile, key: &KeyFile, options: &RotateOptions) -> anyhow::Result<ExitCode> {
    let previous = previous_key_path(&key.path);
    if options.finish {
        if !previous.exists() {
            bail!("there is no {}: no rotation of the {} is under way", previous.display(), key.what);
        }
        let missing =
            without(file, &read_text("cluster CA", &file.ca)?, (key.of)(read_key(key.what, &key.path)?)).await?;
        check_finish(&missing, options.force)?;
        fs::remove_file(&previous).with_context(|| format!("cannot remove {}", previous.display()))?;
        writeln!(crate::output::stdout(), "the former {} is good no longer", key.what)?;
        return Ok(ExitCode::SUCCESS);
    }
    if previous.exists() {
        bail!(
            "{} is still there: finish the last rotation first (--finish), or whoever has only that key is shut out",
            previous.display()
        );
    }
    let new = init::random_hex(&*Environment::system().random);
    // First the former one beside it: nobody must find the new one alone.
    replace(&previous, &read_key(key.what, &key.path)?, 0o600)?;
    replace(&key.path, &new, 0o600)?;
    writeln!(
        crate::output::stdout(),
        "{} holds a new {}; the former one is good until --finish",
        key.path.display(),
        key.what
    )?;
    let missing = without(file, &read_text("cluster CA", &file.ca)?, (key.of)(new)).await?;
    if !missing.is_empty() {
        writeln!(
            crate::output::stdout(),
            "copy both {} and {} to the hosts of nodes that do not have them yet: {missing}",
            key.path.display(),
            previous.display()
        )?;
    }
    Ok(ExitCode::SUCCESS)
}

/// New certificates for all nodes whose files lie here; with `new_ca`, of a new CA that is trusted beside the former one.
async fn replace_certificates(path: &Path, file: &ClusterFile, new_ca: bool) -> anyhow::Result<ExitCode> {
    let mut trusted = file.read_ca()?;
    let issuer = if new_ca {
        if trusted.matches("-----BEGIN CERTIFICATE-----").count() > 1 {
            bail!("{} holds several CAs: finish the last rotation first (--finish)", file.ca.display());
        }
        let (certificate, key, issuer) = init::new_ca(file.map.cluster)?;
        // The newest first: `finish` keeps that one. All must trust it before anything is signed by it.
        trusted = format!("{certificate}{trusted}");
        replace(&file.ca, &trusted, 0o644)?;
        replace(&ca_key_path(file), &key, 0o600)?;
        issuer
    } else {
        issuer(file)?
    };
    let cluster = cluster_with(file, &trusted, Credentials::Connection(file.read_connection_key()?))?;
    let map = admin::survey(&cluster).await?.newest;
    cluster.close().await;
    let mut elsewhere = Vec::new();
    for node in &map.nodes {
        let at = |suffix: &str| directory(path).join(format!("{}{suffix}", node.name));
        if !at(".pem").exists() {
            elsewhere.push(node.name.as_str());
            continue;
        }
        let (certificate, key) = init::node_certificate(node, &issuer)?;
        tls::verify_node_certificate(&trusted, &certificate, node.id).context(FOREIGN_CA)?;
        // For a moment they do not fit together; the node then keeps what it has and looks again.
        replace(&at(".key"), &key, 0o600)?;
        replace(&at(".pem"), &certificate, 0o644)?;
        writeln!(crate::output::stdout(), "{}: new certificate", node.name)?;
    }
    if !elsewhere.is_empty() {
        writeln!(crate::output::stdout(), "not here, and left as they are: {}", elsewhere.join(", "))?;
    }
    if new_ca {
        let ca = file.ca.display();
        writeln!(
            crate::output::stdout(),
            "{ca} holds both CAs: copy it to other hosts, then their nodes' certificates"
        )?;
        writeln!(crate::output::stdout(), "the former CA is good until --finish")?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Trusts the newest CA alone.
async fn finish_ca(file: &ClusterFile, force: bool) -> anyhow::Result<ExitCode> {
    const END: &str = "-----END CERTIFICATE-----";
    let trusted = file.read_ca()?;
    let newest = match trusted.split_once(END) {
        Some((newest, rest)) if rest.contains(END) => format!("{newest}{END}\n"),
        _ => bail!("{} holds one CA: no rotation of it is under way", file.ca.display()),
    };
    let missing = without(file, &newest, Credentials::Connection(file.read_connection_key()?)).await?;
    check_finish(&missing, force)?;
    replace(&file.ca, &newest, 0o644)?;
    writeln!(crate::output::stdout(), "the former CA is good no longer")?;
    Ok(ExitCode::SUCCESS)
}

fn check_finish(missing: &str, force: bool) -> anyhow::Result<()> {
    if !missing.is_empty() && !force {
        bail!("these nodes do not go by the new one yet, and would be shut out: {missing}; insist with --force");
    }
    Ok(())
}

/// The nodes, with reasons, that whoever has only this CA and these credentials does not reach.
async fn without(file: &ClusterFile, ca: &str, credentials: Credentials) -> anyhow::Result<String> {
    // Which nodes there are is asked with what is good anyway.
    let known = cluster_with(file, &file.read_ca()?, Credentials::Connection(file.read_connection_key()?))?;
    let nodes: Vec<NodeEntry> = admin::survey(&known).await?.newest.nodes;
    known.close().await;
    let cluster = cluster_with(file, ca, credentials)?;
    let answers = ask_all(&cluster, &nodes, &Request::Status).await;
    cluster.close().await;
    Ok(told(&answers))
}

fn cluster_with(
    file: &ClusterFile,
    ca: &str,
    credentials: Credentials,
) -> anyhow::Result<lazaret_node_client::cluster::Cluster> {
    cluster_over(file.map.clone(), Arc::new(QuicTransport::new(ca, file.map.cluster, credentials)?))
}

/// Replaces a file as a whole, durably. An existing one keeps its mode.
fn replace(path: &Path, text: &str, mode: u32) -> anyhow::Result<()> {
    let folder = directory(path);
    let write = || -> std::io::Result<()> {
        let mode = fs::metadata(path).map_or_else(|_| fs::Permissions::from_mode(mode), |known| known.permissions());
        let mut file = tempfile::NamedTempFile::new_in(folder)?;
        file.write_all(text.as_bytes())?;
        file.as_file().set_permissions(mode)?;
        file.as_file().sync_all()?;
        file.persist(path)?;
        fs::File::open(folder)?.sync_all()
    };
    write().with_context(|| format!("cannot write {}", path.display()))
}
