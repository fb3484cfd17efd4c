//! Batches: submissions that belong together, and what their results come to.
//!
//! **Invariants.** A batch takes files until it is closed, and never again. Its result stands once it is closed and all its
//! files are finished; it is then the worst of theirs, and it passes only if every file passes by its own rule.

use serde::{Deserialize, Serialize};

use crate::analysis::Principal;
use crate::id::DataId;
use crate::rule::Rule;
use crate::verdict::{Outcome, Policy, ResultCode, worst};

/// A batch to be made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewBatch {
    /// The batch's id.
    pub batch_id: DataId,
    /// The rule of files that name no other, as it was when the batch was made. Files get the one of this name as it is when
    /// they come.
    pub rule: Rule,
    /// Who made it.
    pub principal: Principal,
    /// The program that made it, as it calls itself.
    pub user_agent: String,
    /// What its maker calls it.
    pub user_data: String,
    /// When it was made, in Unix milliseconds.
    pub created_ms: u64,
}

/// Files of a batch that are alike in all that its result depends on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BatchGroup {
    /// How many.
    pub count: u64,
    /// Their result, if they are finished.
    pub overall: Option<ResultCode>,
    /// The results that their rule lets pass.
    pub allowed: Vec<ResultCode>,
}

/// What is recorded of a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BatchRecord {
    /// What was asked for.
    pub new: NewBatch,
    /// When it was closed, in Unix milliseconds; nothing while it takes files.
    pub closed_ms: Option<u64>,
    /// Whether it was cancelled.
    pub cancelled: bool,
    /// Its files, in groups.
    pub groups: Vec<BatchGroup>,
    /// When the first of its files was begun.
    pub started_ms: Option<u64>,
    /// When the last of those that are finished was.
    pub finished_ms: Option<u64>,
}

impl BatchRecord {
    /// How many files it has.
    pub fn count(&self) -> u64 {
        self.groups.iter().fold(0, |sum, group| sum.saturating_add(group.count))
    }

    /// Whether its result stands.
    pub fn is_finished(&self) -> bool {
        self.closed_ms.is_some() && self.groups.iter().all(|group| group.overall.is_some())
    }

    /// The result: the worst of its files', once it stands. A batch without files has judged nothing.
    pub fn code(&self) -> ResultCode {
        if !self.is_finished() {
            return ResultCode::IN_PROGRESS;
        }
        let none = if self.cancelled { ResultCode::CANCELLED } else { ResultCode::NOT_SCANNED };
        self.groups.iter().filter_map(|group| group.overall).reduce(worst).unwrap_or(none)
    }

    /// Whether it may pass: if every file may, by its own rule.
    pub fn outcome(&self) -> Outcome {
        if !self.is_finished() {
            return Outcome::Processing;
        }
        if self.groups.is_empty() {
            return self.new.rule.outcome(self.code());
        }
        match self.worst_blocked() {
            Some(_) => Outcome::Blocked,
            None => Outcome::Allowed,
        }
    }

    /// The worst result of the files that may not pass.
    pub fn worst_blocked(&self) -> Option<ResultCode> {
        let blocked = self.groups.iter().filter_map(|group| {
            let code = group.overall?;
            let policy = Policy { allowed: group.allowed.clone() };
            (policy.outcome(code) == Outcome::Blocked).then_some(code)
        });
        blocked.reduce(worst)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch(groups: &[(u64, Option<ResultCode>, &[ResultCode])], closed: bool) -> BatchRecord {
        BatchRecord {
            new: NewBatch {
                batch_id: DataId([1; 16]),
                rule: Rule::with_defaults("default"),
                principal: Principal::default(),
                user_agent: String::new(),
                user_data: String::new(),
                created_ms: 1,
            },
            closed_ms: closed.then_some(2),
            cancelled: false,
            groups: groups
                .iter()
                .map(|(count, overall, allowed)| BatchGroup {
                    count: *count,
                    overall: *overall,
                    allowed: allowed.to_vec(),
                })
                .collect(),
            started_ms: None,
            finished_ms: None,
        }
    }

    #[test]
    fn a_batch_is_as_good_as_its_worst_file() {
        let (clean, infected, cancelled) = (ResultCode::NO_THREAT, ResultCode::INFECTED, ResultCode::CANCELLED);
        let allowed: &[ResultCode] = &[clean];
        let lenient: &[ResultCode] = &[clean, infected];
        let cases = [
            (batch(&[(3, Some(clean), allowed)], true), clean, Outcome::Allowed),
            (batch(&[(3, Some(clean), allowed)], false), ResultCode::IN_PROGRESS, Outcome::Processing),
            (
                batch(&[(3, Some(clean), allowed), (1, None, allowed)], true),
                ResultCode::IN_PROGRESS,
                Outcome::Processing,
            ),
            (batch(&[(3, Some(clean), allowed), (1, Some(infected), allowed)], true), infected, Outcome::Blocked),
            (batch(&[(1, Some(infected), lenient)], true), infected, Outcome::Allowed),
            (batch(&[(1, Some(infected), lenient), (1, Some(cancelled), allowed)], true), infected, Outcome::Blocked),
            (batch(&[], true), ResultCode::NOT_SCANNED, Outcome::Blocked),
            (BatchRecord { cancelled: true, ..batch(&[], true) }, cancelled, Outcome::Blocked),
            (batch(&[], false), ResultCode::IN_PROGRESS, Outcome::Processing),
        ];
        for (batch, code, outcome) in cases {
            assert_eq!((batch.code(), batch.outcome()), (code, outcome), "{:?}", batch.groups);
        }
        let mixed = batch(&[(1, Some(infected), lenient), (1, Some(cancelled), allowed)], true);
        assert_eq!((mixed.worst_blocked(), mixed.count()), (Some(cancelled), 2));
    }
}
