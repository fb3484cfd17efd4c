//! Which program this is.

use std::fs::File;
use std::sync::OnceLock;

/// A name that another build of the program does not have: the digest of its file. What takes files apart and judges them is in it, so
/// that a verdict stands as long as this name does. If the file can't be read, a name that nobody has.
pub(crate) fn identity() -> &'static str {
    static IDENTITY: OnceLock<String> = OnceLock::new();
    IDENTITY.get_or_init(|| {
        let mut hasher = blake3::Hasher::new();
        let read = File::open("/proc/self/exe").and_then(|program| hasher.update_reader(program).map(drop));
        if let Err(error) = read {
            tracing::warn!(%error, "this program can't be read: it takes no verdicts of former runs, and shares no file with other workers");
            hasher.update(lazaret_analysis::DataId::random().to_string().as_bytes());
        }
        hasher.finalize().to_string()
    })
}

#[cfg(test)]
mod tests {
    #[test]
    fn it_is_the_digest_of_the_file_that_runs() {
        let program = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        assert_eq!(super::identity(), blake3::hash(&program).to_string());
    }
}
