//! Files that hold one key, for its owner alone.
//!
//! A file appears under its name whole and durable or not at all, and never in place of another: a crash leaves no half a
//! key that would have to be removed by hand, and of two processes that start at once one is first.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use crate::error::IdentityFault;
use crate::key::{ApiKey, KeyHash};

/// Most of a file that is read. A key and white space take no more.
const FILE_BYTES_MAX: u64 = 1024;

/// The key in the file; none if there is no file.
pub(crate) async fn read(path: &Path) -> Result<Option<ApiKey>, IdentityFault> {
    let path = path.to_owned();
    blocking(move || {
        let file = match File::open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            opened => opened?,
        };
        let mut bytes = Vec::new();
        file.take(FILE_BYTES_MAX).read_to_end(&mut bytes)?;
        let key = String::from_utf8(bytes).map_err(|_| IdentityFault::NoKey)?.trim().to_owned();
        KeyHash::of(&key).ok_or(IdentityFault::NoKey)?;
        Ok(Some(ApiKey(key)))
    })
    .await
}

/// Makes the file with the key. One that is there already stays as it is.
pub(crate) async fn create(path: &Path, key: &ApiKey) -> Result<(), IdentityFault> {
    let (path, key) = (path.to_owned(), key.clone());
    blocking(move || {
        let mut suffix = [0; 8];
        getrandom::fill(&mut suffix).map_err(IdentityFault::Randomness)?;
        let mut temporary = path.as_os_str().to_owned();
        temporary.push(format!(".{}.new", hex::encode(suffix)));
        let temporary = PathBuf::from(temporary);
        let made = write_whole(&temporary, &key).and_then(|()| fs::hard_link(&temporary, &path));
        let removed = fs::remove_file(&temporary);
        match made {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            made => made?,
        }
        removed?;
        let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        File::open(directory)?.sync_all()?;
        Ok(())
    })
    .await
}

fn write_whole(path: &Path, key: &ApiKey) -> io::Result<()> {
    let mut file = File::options().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(key.0.as_bytes())?;
    file.write_all(b"\n")?;
    file.sync_all()
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, IdentityFault> + Send + 'static,
) -> Result<T, IdentityFault> {
    tokio::task::spawn_blocking(work).await.map_err(|_| IdentityFault::ShuttingDown)?
}
