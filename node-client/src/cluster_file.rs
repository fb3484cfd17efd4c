//! `cluster.yml`: all that a client needs to reach a cluster. Keys lie in files of their own, so that this file can be
//! read by whoever may know the nodes.

use std::fs::File;
use std::future::Future;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::{fs, io};

use lazaret_protocol::cluster_map::{ClusterMap, MapError};
use serde::{Deserialize, Serialize};

use crate::cluster::Cluster;

/// A map of the most nodes takes about 200 KiB; a larger file is not a cluster file.
const FILE_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// What `cluster.yml` says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClusterFile {
    /// The cluster CA's certificate (PEM). Relative paths are relative to the file.
    pub ca: PathBuf,
    /// The connection key.
    pub connection_key: PathBuf,
    /// The storage admin key, where this client has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub admin_key: Option<PathBuf>,
    /// The cluster map as of when the file was written.
    pub map: ClusterMap,
}

/// Why a cluster file, or a file it names, cannot be used. Always one line.
#[derive(Debug, thiserror::Error)]
pub enum ClusterFileError {
    /// The file cannot be read.
    #[error("cannot read {what} {}: {source}", path.display())]
    Read {
        /// What it should be.
        what: &'static str,
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file is not a cluster file.
    #[error("cluster file {}: {reason}", path.display())]
    Format {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it, and where.
        reason: String,
    },
    /// The map in it cannot be used.
    #[error("cluster file {}: map: {source}", path.display())]
    Map {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        source: MapError,
    },
    /// A key file without a key.
    #[error("{what} {} is empty", path.display())]
    EmptyKey {
        /// Which key.
        what: &'static str,
        /// Which file.
        path: PathBuf,
    },
    /// The file cannot be replaced.
    #[error("cannot replace cluster file {}: {source}", path.display())]
    Replace {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file cannot be written as YAML.
    #[error("cluster file: {0}")]
    Write(String),
}

impl ClusterFile {
    /// Reads and checks the file at `path`. The paths in what it returns no longer depend on where the file lies.
    pub fn load(path: &Path) -> Result<Self, ClusterFileError> {
        let mut file = Self::parse(path)?;
        let directory = path.parent().unwrap_or(Path::new(""));
        file.ca = directory.join(&file.ca);
        file.connection_key = directory.join(&file.connection_key);
        file.admin_key = file.admin_key.map(|key| directory.join(key));
        Ok(file)
    }

    /// The file as it is, its paths included.
    fn parse(path: &Path) -> Result<Self, ClusterFileError> {
        let text = read_text("cluster file", path)?;
        let options = serde_saphyr::options! { with_snippet: false };
        let file: Self = serde_saphyr::from_str_with_options(&text, options).map_err(|error| {
            ClusterFileError::Format { path: path.to_owned(), reason: one_line(&error.to_string()) }
        })?;
        file.map.validate().map_err(|source| ClusterFileError::Map { path: path.to_owned(), source })?;
        Ok(file)
    }

    /// Puts `map` in the file at `path` in place of an older one; whether it did. The file is replaced as a whole and durably,
    /// by one process at a time; comments in it are lost. Blocks.
    pub fn store_map(path: &Path, map: &ClusterMap) -> Result<bool, ClusterFileError> {
        let failed = |source| ClusterFileError::Replace { path: path.to_owned(), source };
        let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let opened = File::open(directory).map_err(failed)?;
        // Until it is closed. The file itself is replaced, so that a lock on it would hold nobody up.
        opened.lock().map_err(failed)?;
        let mut file = Self::parse(path)?;
        if file.map.cluster != map.cluster || file.map.epoch >= map.epoch {
            return Ok(false);
        }
        file.map = map.clone();
        let text = file.to_yaml()?;
        let replace = || {
            let mut new = tempfile::NamedTempFile::new_in(directory)?;
            new.write_all(text.as_bytes())?;
            new.as_file().set_permissions(fs::metadata(path)?.permissions())?;
            new.as_file().sync_all()?;
            new.persist(path)?;
            opened.sync_all()
        };
        replace().map(|()| true).map_err(failed)
    }

    /// The file's text.
    pub fn to_yaml(&self) -> Result<String, ClusterFileError> {
        serde_saphyr::to_string(self).map_err(|error| ClusterFileError::Write(one_line(&error.to_string())))
    }

    /// The CA's certificate.
    pub fn read_ca(&self) -> Result<String, ClusterFileError> {
        read_text("cluster CA", &self.ca)
    }

    /// The connection key.
    pub fn read_connection_key(&self) -> Result<String, ClusterFileError> {
        read_key("connection key", &self.connection_key)
    }

    /// The storage admin key, if the file names one.
    pub fn read_admin_key(&self) -> Result<Option<String>, ClusterFileError> {
        self.admin_key.as_deref().map(|path| read_key("storage admin key", path)).transpose()
    }
}

/// Keeps the map in the file at `path` as new as the one that `cluster` goes by, until `shutdown` completes, so that the next
/// process begins with the nodes there are now. Where the file may not be written that is logged, and all else goes on.
pub async fn keep_map(path: PathBuf, cluster: Cluster, shutdown: impl Future<Output = ()>) {
    let mut maps = cluster.watch_map();
    let keep = async {
        loop {
            let (map, path) = (maps.borrow_and_update().clone(), path.clone());
            let epoch = map.epoch;
            match cluster.environment().blocking(move || ClusterFile::store_map(&path, &map)).await {
                Some(Ok(true)) => tracing::info!(epoch, "cluster file brought up to date"),
                Some(Ok(false)) => {}
                Some(Err(error)) => tracing::warn!(%error, epoch, "the cluster file keeps an older map"),
                None => tracing::warn!(epoch, "writing the cluster file was given up"),
            }
            if maps.changed().await.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        () = keep => {}
        () = shutdown => {}
    }
}

/// Reads a key file: the key is its text without the white space around it. Nodes read theirs the same way.
pub fn read_key(what: &'static str, path: &Path) -> Result<String, ClusterFileError> {
    let text = read_text(what, path)?;
    match text.trim() {
        "" => Err(ClusterFileError::EmptyKey { what, path: path.to_owned() }),
        key => Ok(key.to_owned()),
    }
}

/// Reads a file that says whom to trust, or a key.
pub fn read_text(what: &'static str, path: &Path) -> Result<String, ClusterFileError> {
    let failed = |source| ClusterFileError::Read { what, path: path.to_owned(), source };
    let bytes = fs::metadata(path).map_err(failed)?.len();
    if bytes > FILE_BYTES_MAX {
        return Err(failed(io::Error::other(format!("{bytes} bytes are over the limit of {FILE_BYTES_MAX}"))));
    }
    fs::read_to_string(path).map_err(failed)
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, SocketAddr};
    use std::os::unix::fs::PermissionsExt;

    use lazaret_protocol::cluster_map::{NodeEntry, NodeState, StorageType};
    use lazaret_protocol::name::{ClusterId, NodeId};

    use super::*;

    fn file() -> ClusterFile {
        ClusterFile {
            ca: "ca.pem".into(),
            connection_key: "keys/connection.key".into(),
            admin_key: None,
            map: ClusterMap {
                cluster: ClusterId([0; 16]),
                epoch: 1,
                min_replica: 1,
                max_replica: 1,
                cleanuprange: 0,
                storage_type: StorageType::Salt,
                nodes: vec![NodeEntry {
                    // Digits only, and one that reads as a number with an exponent: both must stay text.
                    id: "00000000000000000000000000000e10".parse::<NodeId>().unwrap(),
                    name: "1e3".to_owned(),
                    address: SocketAddr::from((Ipv4Addr::LOCALHOST, 8891)),
                    weight: 1,
                    state: NodeState::Up,
                }],
            },
        }
    }

    #[test]
    fn what_was_written_loads_with_its_paths_resolved() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("cluster.yml");
        fs::write(&path, file().to_yaml().unwrap()).unwrap();
        let loaded = ClusterFile::load(&path).unwrap();
        assert_eq!(loaded.map, file().map);
        assert_eq!(loaded.ca, directory.path().join("ca.pem"));
        fs::create_dir(directory.path().join("keys")).unwrap();
        fs::write(&loaded.connection_key, "secret\n").unwrap();
        assert_eq!(loaded.read_connection_key().unwrap(), "secret");
        assert_eq!(loaded.read_admin_key().unwrap(), None);
    }

    #[test]
    fn a_newer_map_replaces_an_older_one_and_nothing_else_changes() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("cluster.yml");
        fs::write(&path, file().to_yaml().unwrap()).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        let mut newer = file();
        newer.map.epoch = 7;
        newer.map.cleanuprange = 48;
        assert!(ClusterFile::store_map(&path, &newer.map).unwrap());
        assert_eq!(fs::read_to_string(&path).unwrap(), newer.to_yaml().unwrap());
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o640);
        let mut foreign = newer.map.clone();
        (foreign.epoch, foreign.cluster) = (8, ClusterId([1; 16]));
        for refused in [&file().map, &newer.map, &foreign] {
            assert!(!ClusterFile::store_map(&path, refused).unwrap());
        }
        assert_eq!(ClusterFile::load(&path).unwrap().map, newer.map);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn errors_are_one_line_and_name_file_and_fault() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("cluster.yml");
        let good = file().to_yaml().unwrap();
        let mut bad_map = file();
        bad_map.map.min_replica = 2;
        let cases = [
            (format!("{good}colour: blue\n"), "colour"),
            (good.replace("weight: 1", "weight: heavy"), "line 14"),
            (bad_map.to_yaml().unwrap(), "min_replica"),
            ("ca: [".to_owned(), "line"),
            (String::new(), "line 1"),
            ("ca: ca.pem\n".to_owned(), "connection_key"),
        ];
        for (text, fault) in cases {
            fs::write(&path, &text).unwrap();
            let error = ClusterFile::load(&path).unwrap_err().to_string();
            assert!(error.contains("cluster.yml") && error.contains(fault) && !error.contains('\n'), "{text}: {error}");
        }
        let absent = ClusterFile::load(&directory.path().join("absent.yml")).unwrap_err().to_string();
        assert!(absent.contains("absent.yml"), "{absent}");
    }
}
