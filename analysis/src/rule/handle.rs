//! The rules in force, as whoever uses them holds them.

use std::sync::{Arc, PoisonError, RwLock};

use super::RuleSet;

/// The rules in force. Cheap to clone; all clones see a replacement at once. Whoever has begun with a set keeps it.
#[derive(Debug, Clone, Default)]
pub struct Rules {
    shared: Arc<RwLock<Arc<RuleSet>>>,
}

impl Rules {
    /// The set in force.
    pub fn current(&self) -> Arc<RuleSet> {
        self.shared.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Puts another set in force, for whatever is submitted from now on.
    pub fn replace(&self, rules: RuleSet) {
        *self.shared.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(rules);
    }
}

impl From<RuleSet> for Rules {
    fn from(rules: RuleSet) -> Self {
        Self { shared: Arc::new(RwLock::new(Arc::new(rules))) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clones_see_a_replacement_and_who_has_begun_keeps_its_set() {
        let rules = Rules::default();
        let (clone, begun) = (rules.clone(), rules.current());
        rules.replace(RuleSet::from_yaml("rules: [{name: other}]").unwrap());
        assert_eq!(clone.current().rules()[0].name, "other");
        assert_eq!(*begun, RuleSet::builtin());
    }
}
