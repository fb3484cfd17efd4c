//! `cluster.yml`: all that a client needs to reach a cluster. Keys lie in files of their own, so that this file can be
//! read by whoever may know the nodes.

use std::path::{Path, PathBuf};
use std::{fs, io};

use lazaret_protocol::cluster_map::{ClusterMap, MapError};
use serde::{Deserialize, Serialize};

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
    /// The file cannot be written as YAML.
    #[error("cluster file: {0}")]
    Write(String),
}

impl ClusterFile {
    /// Reads and checks the file at `path`. The paths in what it returns no longer depend on where the file lies.
    pub fn load(path: &Path) -> Result<Self, ClusterFileError> {
        let text = read("cluster file", path)?;
        let options = serde_saphyr::options! { with_snippet: false };
        let mut file: Self = serde_saphyr::from_str_with_options(&text, options).map_err(|error| {
            ClusterFileError::Format { path: path.to_owned(), reason: one_line(&error.to_string()) }
        })?;
        file.map.validate().map_err(|source| ClusterFileError::Map { path: path.to_owned(), source })?;
        let directory = path.parent().unwrap_or(Path::new(""));
        file.ca = directory.join(&file.ca);
        file.connection_key = directory.join(&file.connection_key);
        file.admin_key = file.admin_key.map(|key| directory.join(key));
        Ok(file)
    }

    /// The file's text.
    pub fn to_yaml(&self) -> Result<String, ClusterFileError> {
        serde_saphyr::to_string(self).map_err(|error| ClusterFileError::Write(one_line(&error.to_string())))
    }

    /// The CA's certificate.
    pub fn read_ca(&self) -> Result<String, ClusterFileError> {
        read("cluster CA", &self.ca)
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

/// Reads a key file: the key is its text without the white space around it. Nodes read theirs the same way.
pub fn read_key(what: &'static str, path: &Path) -> Result<String, ClusterFileError> {
    let text = read(what, path)?;
    match text.trim() {
        "" => Err(ClusterFileError::EmptyKey { what, path: path.to_owned() }),
        key => Ok(key.to_owned()),
    }
}

fn read(what: &'static str, path: &Path) -> Result<String, ClusterFileError> {
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
