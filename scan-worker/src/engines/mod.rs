//! The engines of this build.

pub mod builtin;
pub mod clamav;
pub mod conformance;
mod connection;
pub mod external;
pub mod hashes;
pub mod reload;
pub mod yara;

use std::sync::Arc;

pub use builtin::{BuiltinEngine, RulesError};
pub use clamav::{ClamavEngine, ClamavOptions, ClamdAddress};
pub use external::{ExternalAddress, ExternalEngine, ExternalOptions};
pub use hashes::{HashListEngine, HashListOptions};
pub use yara::{YaraEngine, YaraOptions};

use crate::engine::Engine;

/// The engines that are always there: the built-in signatures. Compiles their rules, so call it off the asynchronous
/// threads.
pub fn builtin() -> Result<Vec<Arc<dyn Engine>>, RulesError> {
    Ok(vec![Arc::new(BuiltinEngine::new()?)])
}
