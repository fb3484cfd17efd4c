//! Which files rules include, wherever those lie: a set is made of them too.
//!
//! They are looked for where yara-x looks: beside the including file if that is included itself, then in the folders that
//! the compiler was told, in their order; the first that is there counts. Rejected: asking the compiler, which doesn't tell.

use std::collections::{BTreeSet, HashSet};
use std::path::{Path, PathBuf};

use yara_x_parser::ast::{AST, Item};

use super::compile::read;
use crate::engines::reload::{Found, LoadError};

/// Most places in which included files are looked for. All of them are watched.
const PLACES_MAX: usize = 10_000;

/// What rules include, and what those include.
#[derive(Default)]
pub(super) struct Includes {
    /// Where the compiler looks.
    folders: Vec<PathBuf>,
    /// Where it was looked: what appears there later counts too.
    pub places: BTreeSet<PathBuf>,
    /// The files that were found, as they were before they were read.
    pub found: Vec<Found>,
    /// Digest of their contents.
    pub digest: blake3::Hasher,
    read: HashSet<PathBuf>,
}

impl Includes {
    /// The compiler looks here too from now on.
    pub fn look_in(&mut self, folder: &Path) {
        if !self.folders.iter().any(|known| known == folder) {
            self.folders.push(folder.to_owned());
        }
    }

    /// Reads all that a rule file includes.
    pub fn follow(&mut self, text: &str) -> Result<(), LoadError> {
        let mut waiting = self.of(text, None)?;
        // Each file is read once, so this ends whatever includes whatever.
        while let Some((path, bytes)) = waiting.pop() {
            waiting.extend(self.of(&String::from_utf8_lossy(&bytes), path.parent())?);
        }
        Ok(())
    }

    /// The files that a text includes and that were not read yet.
    fn of(&mut self, text: &str, beside: Option<&Path>) -> Result<Vec<(PathBuf, Vec<u8>)>, LoadError> {
        let mut fresh = Vec::new();
        // Parsing takes long, and hardly any rule file includes others.
        if !text.contains("include") {
            return Ok(fresh);
        }
        for item in AST::from(text).items() {
            let Item::Include(include) = item else { continue };
            let folders = beside.into_iter().chain(self.folders.iter().map(PathBuf::as_path));
            let places: Vec<PathBuf> = folders.map(|folder| folder.join(include.file_name)).collect();
            for place in places {
                let found = Found::at(&place);
                let path = place.canonicalize();
                self.places.insert(place);
                if self.places.len() > PLACES_MAX {
                    let reason = format!("rules include files in more than {PLACES_MAX} places");
                    return Err(LoadError(reason));
                }
                let (Some(found), Ok(path)) = (found, path) else { continue };
                if !self.found.contains(&found) {
                    self.found.push(found);
                }
                if self.read.insert(path.clone()) {
                    let bytes = read(&path)?;
                    self.digest.update(include.file_name.as_bytes()).update(&[0]);
                    self.digest.update(&(bytes.len() as u64).to_le_bytes()).update(&bytes);
                    fresh.push((path, bytes));
                }
                // The compiler takes the first.
                break;
            }
        }
        Ok(fresh)
    }
}
