//! Why a tree is no longer scanned, and what the limits of its rule and the endings of its containers mean in result codes.

use std::sync::atomic::{AtomicU8, Ordering};

use lazaret_analysis::{Limits, ResultCode, Rule};
use lazaret_containers::{ExtractionOutcome, Limit, Protection, Stop};

/// Why a tree is no longer scanned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum StopReason {
    /// The submitter cancelled it.
    Cancelled = 1,
    /// It took longer than its rule allows in all.
    GlobalTimeout = 2,
    /// Its worker may no longer write: the lease is lost, or the process ends.
    Abandoned = 3,
    /// Records or contents could not be written or read; another attempt may succeed.
    Failed = 4,
}

impl StopReason {
    /// The result of what was not scanned for this reason; none if no result may be written at all.
    pub fn code(self) -> Option<ResultCode> {
        match self {
            Self::Cancelled => Some(ResultCode::CANCELLED),
            Self::GlobalTimeout => Some(ResultCode::GLOBAL_TIMEOUT),
            Self::Abandoned | Self::Failed => None,
        }
    }
}

/// Tells all threads that work on a tree to stop. The first reason stays.
#[derive(Debug, Default)]
pub struct StopSignal(AtomicU8);

impl StopSignal {
    /// Stops the tree, unless it was stopped already.
    pub fn stop(&self, reason: StopReason) {
        let _ = self.0.compare_exchange(0, reason as u8, Ordering::AcqRel, Ordering::Relaxed);
    }

    /// Why the tree was stopped, if it was.
    pub fn reason(&self) -> Option<StopReason> {
        match self.0.load(Ordering::Acquire) {
            1 => Some(StopReason::Cancelled),
            2 => Some(StopReason::GlobalTimeout),
            3 => Some(StopReason::Abandoned),
            4 => Some(StopReason::Failed),
            _ => None,
        }
    }
}

impl Stop for StopSignal {
    fn is_stopped(&self) -> bool {
        self.reason().is_some()
    }
}

/// What a rule allows, as the readers of containers know it.
pub fn limits(rule: &Rule) -> lazaret_containers::Limits {
    let Limits { depth, files, produced_bytes, ratio, ratio_free_bytes, archive_seconds, file_bytes } = rule.limits;
    lazaret_containers::Limits { depth, files, produced_bytes, ratio, ratio_free_bytes, archive_seconds, file_bytes }
}

/// The result of a container that hit a limit under a rule.
pub fn limit_code(limit: Limit, rule: &Rule) -> ResultCode {
    match limit {
        Limit::Depth => ResultCode::ARCHIVE_DEPTH,
        Limit::Files => ResultCode::ARCHIVE_FILES,
        // A dictionary larger than allowed is an archive larger than allowed: no other code says it better.
        Limit::Size | Limit::Memory => ResultCode::ARCHIVE_SIZE,
        Limit::Ratio => rule.ratio_code,
        Limit::Time => ResultCode::ARCHIVE_TIMEOUT,
    }
}

/// The result of a container, as far as taking it apart decides it.
pub fn outcome_code(outcome: &ExtractionOutcome, rule: &Rule) -> Option<ResultCode> {
    let limits = outcome.limits.iter().map(|limit| limit_code(*limit, rule));
    let protected = outcome.protected.iter().map(|protection| match protection {
        Protection::Archive => ResultCode::ENCRYPTED_ARCHIVE,
        Protection::Document => ResultCode::PASSWORD_PROTECTED,
    });
    let broken = outcome.broken.as_ref().map(|_| ResultCode::EXTRACTION_FAILED);
    let suspicious = outcome.suspicious.as_ref().map(|_| ResultCode::SUSPICIOUS);
    let policy = rule.policy();
    limits.chain(protected).chain(broken).chain(suspicious).reduce(|a, b| policy.worst(a, b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_reason_to_stop_stays() {
        let stop = StopSignal::default();
        assert!(!stop.is_stopped());
        stop.stop(StopReason::Cancelled);
        stop.stop(StopReason::Failed);
        assert_eq!((stop.reason(), stop.is_stopped()), (Some(StopReason::Cancelled), true));
    }

    #[test]
    fn the_worst_of_what_is_true_decides() {
        let rule = Rule::with_defaults("test");
        let mut outcome = ExtractionOutcome::default();
        assert_eq!(outcome_code(&outcome, &rule), None);
        outcome.note_protected(Protection::Document);
        assert_eq!(outcome_code(&outcome, &rule), Some(ResultCode::PASSWORD_PROTECTED));
        outcome.note_protected(Protection::Archive);
        assert_eq!(outcome_code(&outcome, &rule), Some(ResultCode::ENCRYPTED_ARCHIVE));
        outcome.note_limit(Limit::Ratio);
        assert_eq!(outcome_code(&outcome, &rule), Some(ResultCode::ARCHIVE_SIZE));
        outcome.note_broken("broken");
        assert_eq!(outcome_code(&outcome, &rule), Some(ResultCode::EXTRACTION_FAILED));
        outcome.note_suspicious("two directories");
        assert_eq!(outcome_code(&outcome, &rule), Some(ResultCode::SUSPICIOUS));
    }

    #[test]
    fn what_a_rule_allows_does_not_decide() {
        let mut rule = Rule::with_defaults("test");
        rule.allowed_codes.push(ResultCode::EXTRACTION_FAILED);
        let mut outcome = ExtractionOutcome::default();
        outcome.note_broken("broken");
        assert_eq!(outcome_code(&outcome, &rule), Some(ResultCode::EXTRACTION_FAILED));
        outcome.note_protected(Protection::Archive);
        assert_eq!(outcome_code(&outcome, &rule), Some(ResultCode::ENCRYPTED_ARCHIVE));
    }

    #[test]
    fn a_limit_that_a_rule_allows_hides_none_that_it_does_not() {
        let mut rule = Rule::with_defaults("test");
        rule.allowed_codes.extend([ResultCode::ARCHIVE_SIZE, ResultCode::ENCRYPTED_ARCHIVE]);
        let mut outcome = ExtractionOutcome::default();
        outcome.note_limit(Limit::Memory);
        outcome.note_protected(Protection::Archive);
        outcome.note_limit(Limit::Depth);
        assert_eq!(outcome_code(&outcome, &rule), Some(ResultCode::ARCHIVE_DEPTH));
        rule.allowed_codes.push(ResultCode::ARCHIVE_DEPTH);
        outcome.note_protected(Protection::Document);
        assert_eq!(outcome_code(&outcome, &rule), Some(ResultCode::PASSWORD_PROTECTED));
    }

    #[test]
    fn every_limit_has_a_code_that_blocks() {
        let rule = Rule { ratio_code: ResultCode::ARCHIVE_RATIO, ..Rule::with_defaults("test") };
        let codes: Vec<u16> = Limit::ALL.iter().map(|limit| limit_code(*limit, &rule).code()).collect();
        assert_eq!(codes, [9, 14, 13, 60, 16, 13]);
    }
}
