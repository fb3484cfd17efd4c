//! From rule files to a compiled set.
//!
//! Each file is a namespace of its own, named by its path below the rule folder, so that files may use the same names. A
//! set is taken as a whole: one rule that does not compile refuses all. What rules include is part of the set, wherever it lies.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};

use lazaret_sandbox::Database;
use yara_x::{Compiler, Rules, SourceCode};
use yara_x_parser::ast::{AST, Item};

use super::includes::Includes;
use super::windows;
use crate::confined::seal;
use crate::engines::reload::{Found, LoadError};

/// The longest rule file: longer ones are no rules.
const FILE_BYTES_MAX: u64 = 256 << 20;
/// Names that rules may use for what is known of the file, all texts.
pub(super) const EXTERNALS: [&str; 4] = ["filename", "filepath", "extension", "filetype"];

/// In which form a set is there.
pub(super) enum Form {
    /// For the threads of this process.
    Here(Box<Rules>),
    /// For the sandbox.
    Sealed(Database),
}

/// A compiled set.
pub(super) struct Compiled {
    pub form: Form,
    pub count: usize,
    /// Digest of the sources: the same rules have the same version everywhere.
    pub version: String,
    pub time_ms: u64,
    /// Rules, by namespace and name, that may be judged by pieces of a file.
    pub by_pieces: HashSet<(String, String)>,
}

/// Whether a file is a rule file, to be compiled by itself. Others may be included.
fn is_rule_file(found: &Found) -> bool {
    matches!(found.path.extension().and_then(|extension| extension.to_str()), Some("yar" | "yara" | "rule" | "rules"))
}

/// Rule files as they were read, and what they include.
pub(super) struct Sources<'f> {
    /// Those that are compiled by themselves.
    texts: Vec<(&'f Found, String)>,
    pub includes: Includes,
    version: String,
    time_ms: u64,
}

impl<'f> Sources<'f> {
    /// Reads all rule files among these. Includes are looked for in `folders`, then beside the files.
    pub fn read(files: &'f [Found], folders: &[PathBuf]) -> Result<Self, LoadError> {
        let mut digest = blake3::Hasher::new();
        let mut texts = Vec::new();
        for found in files {
            let bytes = read(&found.path)?;
            digest.update(found.name.as_bytes()).update(&[0]);
            digest.update(&(bytes.len() as u64).to_le_bytes()).update(&bytes);
            if is_rule_file(found) {
                let text =
                    String::from_utf8(bytes).map_err(|error| LoadError::of("read", &found.path, error.utf8_error()))?;
                texts.push((found, text));
            }
        }
        let included = included(&texts);
        texts.retain(|(found, _)| !included.contains(&found.path));
        let mut includes = Includes::default();
        folders.iter().filter(|folder| folder.is_dir()).for_each(|folder| includes.look_in(folder));
        for (found, text) in &texts {
            if let Some(folder) = found.path.parent() {
                includes.look_in(folder);
            }
            includes.follow(text)?;
        }
        digest.update(includes.digest.finalize().as_bytes());
        let version = digest.finalize().to_hex().chars().take(16).collect();
        let time_ms = files.iter().chain(&includes.found).map(Found::modified_ms).max().unwrap_or_default();
        Ok(Self { texts, includes, version, time_ms })
    }
}

/// Compiles what was read, with the same folders.
pub(super) fn compile(sources: &Sources<'_>, folders: &[PathBuf]) -> Result<Compiled, LoadError> {
    let mut by_pieces = HashSet::new();
    let mut any_global = false;
    let mut compiler = Compiler::new();
    compiler.relaxed_re_syntax(true).switch_all_warnings(false);
    for name in EXTERNALS {
        compiler.define_global(name, "").map_err(|error| LoadError(format!("cannot define {name}: {error}")))?;
    }
    for folder in folders.iter().filter(|folder| folder.is_dir()) {
        compiler.add_include_dir(folder);
    }
    for (found, text) in &sources.texts {
        if let Some(folder) = found.path.parent() {
            compiler.add_include_dir(folder);
        }
        compiler.new_namespace(&found.name);
        compiler.add_source(SourceCode::from(text.as_str()).with_origin(found.name.as_str())).map_err(|error| {
            let text = error.to_string();
            LoadError::of("compile", &found.path, text.lines().take(2).collect::<Vec<_>>().join(" "))
        })?;
        let judged = windows::rules_by_pieces(text);
        any_global |= judged.any_global;
        by_pieces.extend(judged.rules.into_iter().map(|rule| (found.name.clone(), rule)));
    }
    if any_global {
        // A global rule decides whether the others count, and it may need the whole file.
        by_pieces.clear();
    }
    let rules = compiler.build();
    let count = rules.iter().len();
    let (version, time_ms) = (sources.version.clone(), sources.time_ms);
    Ok(Compiled { form: Form::Here(Box::new(rules)), count, version, time_ms, by_pieces })
}

impl Compiled {
    /// The same for the sandbox.
    pub fn sealed(&self, name: &'static str) -> Result<Self, LoadError> {
        let database = match &self.form {
            Form::Here(rules) => seal(name, rules, &self.by_pieces)?,
            Form::Sealed(database) => database.clone(),
        };
        Ok(Self {
            form: Form::Sealed(database),
            count: self.count,
            version: self.version.clone(),
            time_ms: self.time_ms,
            by_pieces: self.by_pieces.clone(),
        })
    }
}

pub(super) fn read(path: &Path) -> Result<Vec<u8>, LoadError> {
    let length = fs::metadata(path).map_err(|error| LoadError::of("read", path, error))?.len();
    if length > FILE_BYTES_MAX {
        return Err(LoadError::of("read", path, format!("it is longer than {FILE_BYTES_MAX} bytes")));
    }
    fs::read(path).map_err(|error| LoadError::of("read", path, error))
}

/// The rule files that others include: they are compiled with those alone, or every rule of theirs would be there twice.
fn included(sources: &[(&Found, String)]) -> HashSet<PathBuf> {
    let mut included = HashSet::new();
    for (found, text) in sources.iter().filter(|(_, text)| text.contains("include")) {
        for item in AST::from(text.as_str()).items() {
            if let Item::Include(include) = item {
                let beside = found.path.parent().unwrap_or(Path::new(".")).join(include.file_name);
                included.extend(
                    sources.iter().filter(|(other, _)| same(&other.path, &beside)).map(|(other, _)| other.path.clone()),
                );
            }
        }
    }
    included
}

fn same(a: &Path, b: &Path) -> bool {
    match (a.canonicalize(), b.canonicalize()) {
        (Ok(a), Ok(b)) => a == b,
        _ => false,
    }
}
