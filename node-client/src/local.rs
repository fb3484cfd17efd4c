//! Nodes inside this process: a stream is a pair of bounded channels, and no byte is copied or encrypted. Who shares the
//! process is trusted, so there is no key and no `Hello`; the handler is registered with the role it grants.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};

use async_trait::async_trait;
use lazaret_protocol::cluster_map::NodeEntry;
use lazaret_protocol::name::NodeId;

use crate::stream::{RecvHalf, SendHalf, local_pair};
use crate::transport::{Transport, TransportError};

/// Takes one stream of a node; returns at once and serves it elsewhere.
pub type Handler = Arc<dyn Fn(SendHalf, RecvHalf) + Send + Sync>;

/// The nodes of this process. Clones share them.
#[derive(Clone, Default)]
pub struct LocalNetwork {
    handlers: Arc<RwLock<HashMap<NodeId, Handler>>>,
}

impl LocalNetwork {
    /// A network without nodes.
    pub fn new() -> Self {
        Self::default()
    }

    /// Streams to `node` go to `handler` from now on.
    pub fn register(&self, node: NodeId, handler: Handler) {
        self.handlers.write().unwrap_or_else(PoisonError::into_inner).insert(node, handler);
    }

    /// `node` can no longer be reached; streams already open live on.
    pub fn unregister(&self, node: NodeId) {
        self.handlers.write().unwrap_or_else(PoisonError::into_inner).remove(&node);
    }
}

#[async_trait]
impl Transport for LocalNetwork {
    async fn open(&self, node: &NodeEntry) -> Result<(SendHalf, RecvHalf), TransportError> {
        let handler = self.handlers.read().unwrap_or_else(PoisonError::into_inner).get(&node.id).cloned();
        let handler = handler.ok_or(TransportError::NotHere(node.id))?;
        let (caller, callee) = local_pair();
        handler(callee.0, callee.1);
        Ok(caller)
    }
}
