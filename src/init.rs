//! A new cluster's files: CA, one certificate a node, keys, `cluster.yml` and a configuration file a component.
//!
//! `cluster.yml` is written last: where it is, the rest is complete. Nothing that exists is ever overwritten.

use std::fs::{self, File};
use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use lazaret_node_client::cluster_file::ClusterFile;
use lazaret_node_client::environment::Random;
use lazaret_protocol::{ClusterId, ClusterMap, NodeEntry, NodeId, NodeState, StorageType};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};

use crate::cli::InitOptions;
use crate::config::{GatewayConfig, ScanWorkerConfig, StorageNodeConfig, to_yaml};

/// The cluster's file inside its directory.
pub const CLUSTER_FILE: &str = "cluster.yml";
/// The file that holds the secret from which nested ids and sealed passwords are keyed.
pub const SECRET_FILE: &str = "cluster.secret";
/// The key of the CA, beside the CA's certificate.
pub const CA_KEY_FILE: &str = "ca.key";
/// Weight of a node of which nothing else was said: leaves room for lighter ones.
pub const DEFAULT_WEIGHT: u32 = 100;
/// Ports of the nodes start at the reference's own and leave the other components' alone.
const FIRST_NODE_PORT: u16 = 8890;
const NODE_PORT_STEP: u16 = 10;

/// Makes a cluster in `options.dir` and returns the path of its `cluster.yml`.
pub fn init(options: &InitOptions, random: &dyn Random) -> anyhow::Result<PathBuf> {
    let dir = &options.dir;
    let path = dir.join(CLUSTER_FILE);
    if path.exists() {
        bail!("{} holds a cluster already: choose another directory", dir.display());
    }
    let map = new_map(options, random)?;
    map.validate()?;
    // For nobody else's eyes: keys lie in it, and results and blobs will, unless the configuration says otherwise.
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .with_context(|| format!("cannot make the directory {}", dir.display()))?;

    let ca_key = KeyPair::generate()?;
    write_new(&dir.join("ca.pem"), &ca_parameters(map.cluster)?.self_signed(&ca_key)?.pem(), 0o644)?;
    write_new(&dir.join(CA_KEY_FILE), &ca_key.serialize_pem(), 0o600)?;
    let issuer = issuer(map.cluster, ca_key)?;

    write_new(&dir.join("connection.key"), &random_hex(random), 0o600)?;
    write_new(&dir.join("storage-admin.key"), &random_hex(random), 0o600)?;
    write_new(&dir.join(SECRET_FILE), &random_hex(random), 0o600)?;
    for node in &map.nodes {
        let (certificate, key) = node_certificate(node, &issuer)?;
        write_node(dir, node, (&certificate, &key))?;
    }
    write_new(
        &dir.join("gateway.yml"),
        &to_yaml(&GatewayConfig { listen: options.gateway_address, ..Default::default() })?,
        0o644,
    )?;
    write_new(&dir.join("scan-worker.yml"), &to_yaml(&ScanWorkerConfig::default())?, 0o644)?;
    write_new(&path, &cluster_file(map).to_yaml()?, 0o644)?;
    Ok(path)
}

/// The cluster's file as it lies beside the files it names.
pub fn cluster_file(map: ClusterMap) -> ClusterFile {
    ClusterFile {
        ca: "ca.pem".into(),
        connection_key: "connection.key".into(),
        admin_key: Some("storage-admin.key".into()),
        map,
    }
}

fn new_map(options: &InitOptions, random: &dyn Random) -> anyhow::Result<ClusterMap> {
    let addresses: Vec<SocketAddr> = if options.node_addresses.is_empty() {
        (0..options.nodes)
            .map(|i| SocketAddr::from((Ipv4Addr::LOCALHOST, FIRST_NODE_PORT + i * NODE_PORT_STEP)))
            .collect()
    } else {
        options.node_addresses.clone()
    };
    let nodes = (1..)
        .zip(addresses)
        .map(|(number, address)| NodeEntry {
            id: NodeId(random_bytes(random)),
            name: format!("node{number}"),
            address,
            weight: DEFAULT_WEIGHT,
            state: NodeState::Up,
        })
        .collect();
    Ok(ClusterMap {
        cluster: ClusterId(random_bytes(random)),
        epoch: 1,
        min_replica: options.min_replica,
        max_replica: options.max_replica,
        cleanuprange: 0,
        storage_type: StorageType::Salt,
        nodes,
    })
}

/// What signs a cluster's certificates.
pub type ClusterIssuer = Issuer<'static, KeyPair>;

/// The cluster's CA, which signs with `key`.
pub fn issuer(cluster: ClusterId, key: KeyPair) -> anyhow::Result<ClusterIssuer> {
    Ok(Issuer::new(ca_parameters(cluster)?, key))
}

/// A new CA for the cluster: its certificate, its key, and what signs with that.
pub fn new_ca(cluster: ClusterId) -> anyhow::Result<(String, String, ClusterIssuer)> {
    let key = KeyPair::generate()?;
    let certificate = ca_parameters(cluster)?.self_signed(&key)?.pem();
    Ok((certificate, key.serialize_pem(), issuer(cluster, key)?))
}

/// The CA as all of a cluster's certificates name it.
fn ca_parameters(cluster: ClusterId) -> anyhow::Result<CertificateParams> {
    let mut ca = CertificateParams::new(Vec::new())?;
    ca.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    ca.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    ca.distinguished_name.push(DnType::CommonName, format!("lazaret cluster {cluster}"));
    Ok(ca)
}

/// A certificate for `node` and its key. The certificate names the node's id, so that a client knows it reached the node it
/// meant.
pub fn node_certificate(node: &NodeEntry, issuer: &ClusterIssuer) -> anyhow::Result<(String, String)> {
    let key = KeyPair::generate()?;
    let mut certificate = CertificateParams::new(vec![lazaret_node_client::tls::server_name(node.id)])?;
    certificate.distinguished_name.push(DnType::CommonName, node.name.clone());
    certificate.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    Ok((certificate.signed_by(&key, issuer)?.pem(), key.serialize_pem()))
}

/// A node's certificate, key and configuration.
pub fn write_node(dir: &Path, node: &NodeEntry, (certificate, key): (&str, &str)) -> anyhow::Result<()> {
    let file = |suffix: &str| dir.join(format!("{}{suffix}", node.name));
    write_new(&file(".pem"), certificate, 0o644)?;
    write_new(&file(".key"), key, 0o600)?;
    write_new(&file(".yml"), &to_yaml(&StorageNodeConfig::of_node(node))?, 0o644)
}

/// Random bytes.
pub fn random_bytes<const N: usize>(random: &dyn Random) -> [u8; N] {
    let mut bytes = [0; N];
    random.fill(&mut bytes);
    bytes
}

/// A new key.
pub fn random_hex(random: &dyn Random) -> String {
    hex::encode(random_bytes::<32>(random))
}

/// Writes a file that must not be there yet, durably.
fn write_new(path: &Path, text: &str, mode: u32) -> anyhow::Result<()> {
    let write = || -> std::io::Result<()> {
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()
    };
    write().with_context(|| format!("cannot write {}", path.display()))
}

/// Replaces a file as a whole, durably.
pub fn replace(path: &Path, text: &str) -> anyhow::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    let write = || -> std::io::Result<()> {
        let mut file = tempfile::NamedTempFile::new_in(folder)?;
        file.write_all(text.as_bytes())?;
        file.as_file().sync_all()?;
        file.persist(path)?;
        File::open(folder)?.sync_all()
    };
    write().with_context(|| format!("cannot write {}", path.display()))
}
