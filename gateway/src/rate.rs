//! How fast one caller may submit: files and bytes a second, each a leaky bucket.
//!
//! What a caller has submitted is a debt that is paid off at the permitted rate. It may submit as long as its debt is no
//! more than `burst` worth of time, so that a file longer than that goes as well, and is paid for afterwards.
//!
//! **Invariant.** A refused submission costs nothing: who is told to come back later is not punished for having asked.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::access::Caller;

/// Most callers whose debt is remembered. Keys are made by administrators; so many addresses of callers without a key in
/// debt at once are an attack, and whoever comes then is told to come back later.
const CALLERS_MAX: usize = 100_000;

/// How fast one caller may submit.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RateLimits {
    /// Files a second; 0: any number.
    pub submissions_per_second: f64,
    /// Bytes a second, as they are sent, or as they become when what was sent is decoded; 0: any number.
    pub bytes_per_second: u64,
    /// How much may come at once, as time: so many seconds' worth.
    pub burst: Duration,
}

impl Default for RateLimits {
    fn default() -> Self {
        Self { submissions_per_second: 0.0, bytes_per_second: 0, burst: Duration::from_secs(10) }
    }
}

/// What each caller owes, as the moment at which it will have paid everything.
#[derive(Debug, Clone, Copy, Default)]
struct Debt {
    submissions_until: Duration,
    bytes_until: Duration,
}

/// The debts of all callers.
#[derive(Debug, Default)]
pub(crate) struct Rates {
    limits: RateLimits,
    debts: Mutex<HashMap<Caller, Debt>>,
}

impl Rates {
    pub(crate) fn new(limits: RateLimits) -> Self {
        Self { limits, debts: Mutex::default() }
    }

    /// Takes one submission of `bytes` on, at `now` on a clock that never goes back; or tells how long to wait.
    pub(crate) fn take(&self, caller: &Caller, bytes: u64, now: Duration) -> Result<(), Duration> {
        if !self.is_limited() {
            return Ok(());
        }
        let mut debts = self.debts.lock().unwrap_or_else(PoisonError::into_inner);
        if debts.len() >= CALLERS_MAX && !debts.contains_key(caller) {
            debts.retain(|_, debt| debt.submissions_until.max(debt.bytes_until) > now);
            if debts.len() >= CALLERS_MAX {
                return Err(self.limits.burst);
            }
        }
        let debt = debts.entry(caller.clone()).or_default();
        let owed = debt.submissions_until.max(debt.bytes_until).saturating_sub(now);
        if owed > self.limits.burst {
            return Err(owed - self.limits.burst);
        }
        debt.submissions_until = debt.submissions_until.max(now).saturating_add(self.time_of_one());
        debt.bytes_until = debt.bytes_until.max(now).saturating_add(self.time_of(bytes));
        Ok(())
    }

    /// Adds bytes to the debt of a submission that became longer than what it was taken on for.
    pub(crate) fn add(&self, caller: &Caller, bytes: u64, now: Duration) {
        let mut debts = self.debts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(debt) = debts.get_mut(caller) {
            debt.bytes_until = debt.bytes_until.max(now).saturating_add(self.time_of(bytes));
        }
    }

    fn is_limited(&self) -> bool {
        self.limits.submissions_per_second > 0.0 || self.limits.bytes_per_second > 0
    }

    fn time_of_one(&self) -> Duration {
        if self.limits.submissions_per_second > 0.0 {
            Duration::try_from_secs_f64(1.0 / self.limits.submissions_per_second).unwrap_or(Duration::MAX)
        } else {
            Duration::ZERO
        }
    }

    fn time_of(&self, bytes: u64) -> Duration {
        match self.limits.bytes_per_second {
            0 => Duration::ZERO,
            rate => Duration::try_from_secs_f64(bytes as f64 / rate as f64).unwrap_or(Duration::MAX),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn caller(name: &str) -> Caller {
        Caller::User(name.to_owned())
    }

    #[test]
    fn a_burst_and_then_the_rate_for_each_caller_by_itself() {
        let limits = RateLimits { submissions_per_second: 5.0, burst: 2 * SECOND, ..RateLimits::default() };
        let rates = Rates::new(limits);
        let [ann, bob] = [caller("ann"), caller("bob")];
        let taken = |caller: &Caller, from: u64| {
            (0..100).filter(|_| rates.take(caller, 1, SECOND * from as u32).is_ok()).count()
        };
        assert_eq!(taken(&ann, 100), 11, "two seconds' worth, and the one with which the debt begins");
        let wait = rates.take(&ann, 1, 100 * SECOND).unwrap_err();
        assert!(wait > Duration::ZERO && wait <= SECOND / 5, "{wait:?}");
        assert_eq!(taken(&bob, 100), 11, "another one's debt is its own");
        assert_eq!(taken(&ann, 101), 5, "a second later a second's worth");
        assert_eq!(taken(&ann, 1000), 11, "what was not used is saved up to the burst and no more");
    }

    #[test]
    fn a_file_longer_than_the_burst_goes_and_is_paid_for_afterwards() {
        let limits = RateLimits { bytes_per_second: 1000, burst: SECOND, ..RateLimits::default() };
        let rates = Rates::new(limits);
        let ann = caller("ann");
        assert_eq!(rates.take(&ann, 10_000, SECOND), Ok(()));
        assert_eq!(rates.take(&ann, 1, SECOND), Err(9 * SECOND), "ten seconds' worth less the burst");
        assert_eq!(rates.take(&ann, 1, 10 * SECOND), Ok(()), "a refusal cost nothing");
        rates.add(&ann, 5_000, 10 * SECOND);
        assert!(rates.take(&ann, 1, 10 * SECOND).is_err());
        assert_eq!(rates.take(&ann, u64::MAX, 100 * SECOND), Ok(()), "nothing overflows");
    }

    #[test]
    fn without_limits_nothing_is_remembered() {
        let rates = Rates::new(RateLimits::default());
        assert_eq!(rates.take(&caller("ann"), u64::MAX, SECOND), Ok(()));
        assert!(rates.debts.lock().unwrap().is_empty());
    }

    #[test]
    fn the_callers_that_are_remembered_are_bounded_and_paid_debts_are_forgotten() {
        let limits = RateLimits { submissions_per_second: 1.0, burst: SECOND, ..RateLimits::default() };
        let rates = Rates::new(limits);
        for number in 0..CALLERS_MAX {
            assert_eq!(rates.take(&caller(&number.to_string()), 1, SECOND), Ok(()));
        }
        assert!(rates.take(&caller("one too many"), 1, SECOND).is_err());
        assert_eq!(rates.take(&caller("0"), 1, SECOND), Ok(()), "who is known goes on");
        assert_eq!(rates.take(&caller("one too many"), 1, 9 * SECOND), Ok(()), "all debts are paid by now");
        assert_eq!(rates.debts.lock().unwrap().len(), 1);
    }
}
