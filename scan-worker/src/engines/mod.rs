//! The engines of this build.

pub mod builtin;

use std::sync::Arc;

pub use builtin::{BuiltinEngine, RulesError};

use crate::engine::Engine;

/// The engines that are always there: the built-in signatures. Compiles their rules, so call it off the asynchronous
/// threads.
pub fn builtin() -> Result<Vec<Arc<dyn Engine>>, RulesError> {
    Ok(vec![Arc::new(BuiltinEngine::new()?)])
}
