//! What the sandbox answers about contents, besides taking them apart: which rules match, and who signed a program.
//!
//! Invariants: no byte of a file is matched against rules outside of it, unless there is no sandbox; an answer is one of the rules
//! that were loaded last when it was asked for; and the worker cuts every answer to size, as whatever else comes from there.

use std::collections::{BTreeMap, HashSet};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use lazaret_analysis::YaraHit;
use lazaret_sandbox::{ANSWER_BYTES_MAX, Answers, Database, Sandbox};
use serde::{Deserialize, Serialize};
use yara_x::{Rules, Scanner};

use crate::engines::reload::LoadError;
use crate::engines::yara::{HITS_MAX, hits};
use crate::signers;

/// What is asked about.
#[derive(Debug, Clone, Copy)]
pub enum About<'c> {
    /// The file, as a whole. It is in memory.
    File,
    /// A piece of it, up to [`lazaret_sandbox::CONTENT_BYTES_MAX`].
    Piece(&'c [u8]),
}

/// A question.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Question<'q> {
    /// Who signed the program.
    Signers,
    /// Which rules of this set match, if their externals have these values; of a piece, only rules that may be judged by pieces.
    Matches {
        #[serde(borrow)]
        set: &'q str,
        #[serde(borrow)]
        externals: Vec<(&'q str, &'q str)>,
        piece: bool,
    },
    /// Which rules of these sets match each member, on the way. They have no externals.
    Members(#[serde(borrow)] Vec<&'q str>),
}

/// What is said of a member on the way: which rules of each set match.
type Said = BTreeMap<String, Result<Vec<YaraHit>, String>>;

/// A file that can be asked about.
pub trait Confined {
    /// The answer. An error in words, if there is none in time, or the process that was to give it ended.
    fn ask(&self, question: Vec<u8>, about: About<'_>, limit: Duration) -> Result<Vec<u8>, String>;

    /// What was said of the file when it came out of its container, if the rules are still those.
    fn remark(&self) -> Option<&[u8]>;
}

/// Which rules of a set match.
pub fn matches(
    confined: &dyn Confined,
    set: &str,
    externals: &[(&str, &str)],
    about: About<'_>,
    limit: Duration,
) -> Result<Vec<YaraHit>, String> {
    let piece = matches!(about, About::Piece(_));
    if let Some(remark) = confined.remark().filter(|_| !piece)
        && let Ok(mut said) = serde_json::from_slice::<Said>(remark)
        && let Some(said) = said.remove(set)
    {
        return bounded(said);
    }
    let question = Question::Matches { set, externals: externals.to_vec(), piece };
    let answer = confined.ask(question.to_bytes()?, about, limit)?;
    let said: Result<Vec<YaraHit>, String> =
        serde_json::from_slice(&answer).map_err(|_| "the sandboxed process said something senseless".to_owned())?;
    bounded(said)
}

fn bounded(said: Result<Vec<YaraHit>, String>) -> Result<Vec<YaraHit>, String> {
    said.map(|mut hits| {
        hits.truncate(HITS_MAX);
        hits
    })
}

impl Question<'_> {
    pub fn to_bytes(&self) -> Result<Vec<u8>, String> {
        postcard::to_allocvec(self).map_err(|error| error.to_string())
    }
}

/// The sets of rules that contents are matched against in a sandbox.
pub struct RuleSets {
    sandbox: Sandbox,
    sets: Mutex<BTreeMap<&'static str, Database>>,
}

/// A set of rules as the sandbox takes it.
#[derive(Serialize, Deserialize)]
struct Sealed<'s> {
    #[serde(borrow)]
    name: &'s str,
    #[serde(borrow)]
    rules: &'s [u8],
    /// Namespaces and names.
    by_pieces: HashSet<(String, String)>,
}

/// Makes a set of rules ready for the sandbox. Rules by namespace and name in `by_pieces` may be judged by pieces of a file.
pub fn seal(name: &'static str, rules: &Rules, by_pieces: &HashSet<(String, String)>) -> Result<Database, LoadError> {
    let failed = |error: &dyn std::fmt::Display| LoadError(format!("cannot hand rules to the sandbox: {error}"));
    let rules = rules.serialize().map_err(|error| failed(&error))?;
    let sealed = Sealed { name, rules: &rules, by_pieces: by_pieces.clone() };
    let sealed = postcard::to_allocvec(&sealed);
    Database::new(&sealed.map_err(|error| failed(&error))?).map_err(|error| failed(&error))
}

impl RuleSets {
    /// None yet.
    pub fn new(sandbox: Sandbox) -> Self {
        Self { sandbox, sets: Mutex::default() }
    }

    /// The sandbox.
    pub fn sandbox(&self) -> &Sandbox {
        &self.sandbox
    }

    /// Has what is asked from now on be answered by this set, in place of the former one of its name. Takes as long as making it ready
    /// takes; if it is refused, the former one stays.
    pub fn put(&self, name: &'static str, set: &Database) -> Result<(), LoadError> {
        let mut sets = self.sets.lock().unwrap_or_else(PoisonError::into_inner);
        let mut new = sets.clone();
        new.insert(name, set.clone());
        let refused = |error| LoadError(format!("the sandbox does not take the rules: {error}"));
        self.sandbox.load(new.values().cloned().collect()).map_err(refused)?;
        *sets = new;
        Ok(())
    }
}

/// Answers, in the sandbox.
#[derive(Default)]
pub struct Answering {
    sets: Vec<Set>,
}

struct Set {
    name: String,
    scanner: Scanner<'static>,
    by_pieces: HashSet<(String, String)>,
}

impl Answering {
    fn matches(
        &mut self,
        set: &str,
        externals: &[(&str, &str)],
        piece: bool,
        content: &[u8],
    ) -> Result<Vec<YaraHit>, String> {
        let set = self.sets.iter_mut().find(|one| one.name == set).ok_or("its rules are not in the sandbox")?;
        // Who asked looks at the clock: yara-x does so on a thread of its own, which can't be here.
        hits(&mut set.scanner, externals.iter().copied(), content, piece.then_some(&set.by_pieces))
    }
}

impl Answers for Answering {
    fn prepare(&mut self, databases: &[&[u8]]) -> Result<(), String> {
        for database in databases {
            let sealed: Sealed<'_> = postcard::from_bytes(database).map_err(|error| error.to_string())?;
            let rules = Rules::deserialize(sealed.rules).map_err(|error| error.to_string())?;
            // They are here until the process ends.
            let mut scanner = Scanner::new(Box::leak(Box::new(rules)));
            scanner.fast_scan(true);
            // What the first scan prepares is there for every job.
            hits(&mut scanner, [], b"to be ready", None)?;
            self.sets.push(Set { name: sealed.name.to_owned(), scanner, by_pieces: sealed.by_pieces });
        }
        Ok(())
    }

    fn answer(&mut self, question: &[u8], content: &[u8]) -> Vec<u8> {
        match postcard::from_bytes(question) {
            Ok(Question::Signers) => fitting(signers::read(content), serde_json::to_vec).unwrap_or_default(),
            Ok(Question::Matches { set, externals, piece }) => match self.matches(set, &externals, piece, content) {
                // Without an answer the file has failed. It never looks as if nothing matched.
                Ok(hits) => fitting(hits, |hits| serde_json::to_vec(&Ok::<_, String>(hits))).unwrap_or_default(),
                Err(reason) => serde_json::to_vec(&Err::<Vec<YaraHit>, _>(reason)).unwrap_or_default(),
            },
            Ok(Question::Members(sets)) => {
                let said: Said =
                    sets.into_iter().map(|set| (set.to_owned(), self.matches(set, &[], false, content))).collect();
                serde_json::to_vec(&said).unwrap_or_default()
            }
            Err(_) => Vec::new(),
        }
    }
}

/// A list as an answer. Of one that there is no room for the last entries are left out; none, if there is no room for the first.
fn fitting<T>(mut list: Vec<T>, written: impl Fn(&Vec<T>) -> serde_json::Result<Vec<u8>>) -> Option<Vec<u8>> {
    loop {
        let answer = written(&list).ok()?;
        if answer.len() <= ANSWER_BYTES_MAX {
            return Some(answer);
        }
        list.pop();
        if list.is_empty() {
            return None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_cut_to_fit_and_never_to_nothing() {
        let long = "x".repeat(ANSWER_BYTES_MAX / 3);
        let written = |list: &Vec<String>| serde_json::to_vec(list);
        let answer = fitting(vec![long.clone(); 9], written).unwrap();
        assert_eq!(serde_json::from_slice::<Vec<String>>(&answer).unwrap().len(), 2);
        assert_eq!(fitting(Vec::new(), written).unwrap(), b"[]");
        assert_eq!(fitting(vec![long.repeat(4)], written), None);
    }
}
