//! The gateway as a whole: what its routes share, and its two faces, a router and a server.

use std::future::Future;
use std::io;
use std::sync::{Arc, OnceLock};

use axum::Router;
use lazaret_analysis::{PasswordSeal, ProgressCache, ResultStore, RuleSet, Rules, TaskQueue};
use lazaret_identity::Identity;
use lazaret_node_client::{Cluster, Environment};
use tokio::net::TcpListener;

use crate::admission::Admission;
use crate::backlog::Backlog;
use crate::callbacks::CallbackOptions;
use crate::metrics::{GatewayMetrics, GatewayMonitor};
use crate::options::GatewayOptions;
use crate::outbound::OutboundOptions;
use crate::rate::Rates;
use crate::readiness::Readiness;
use crate::signer::Signer;
use crate::submit::Intake;
use crate::{callbacks, history, routes, server};

/// What the routes share.
pub(crate) struct Shared {
    rules: Rules,
    pub(crate) version: String,
    pub(crate) results: Arc<dyn ResultStore>,
    pub(crate) progress: Arc<dyn ProgressCache>,
    pub(crate) identity: Identity,
    /// Whether files are taken from callers without a key.
    pub(crate) anonymous: bool,
    pub(crate) intake: Intake,
    pub(crate) readiness: Readiness,
    /// The engines that workers have loaded.
    pub(crate) engines: routes::EnginesSeen,
    /// What is counted as it happens.
    pub(crate) metrics: Arc<GatewayMetrics>,
    /// Whom files may be fetched from.
    pub(crate) downloads: OutboundOptions,
    /// Whom finished analyses may be told to.
    pub(crate) callbacks: Option<CallbackOptions>,
    /// What signs the results of batches.
    pub(crate) signer: Option<Arc<Signer>>,
    /// The answer to GET /openapi.json, made with the routes.
    pub(crate) openapi: OnceLock<String>,
}

impl Shared {
    /// The rules that are in force now.
    pub(crate) fn rules(&self) -> Arc<RuleSet> {
        self.rules.current()
    }

    /// What time it is, in Unix milliseconds.
    pub(crate) fn now_ms(&self) -> u64 {
        self.intake.environment.clock.unix_ms()
    }
}

/// What a gateway works on.
pub struct Backends {
    /// Analyses and their results.
    pub results: Arc<dyn ResultStore>,
    /// Tasks for workers.
    pub queue: Arc<dyn TaskQueue>,
    /// How far running analyses are.
    pub progress: Arc<dyn ProgressCache>,
    /// The storage cluster.
    pub cluster: Cluster,
    /// Who may ask.
    pub identity: Identity,
    /// What seals archive passwords for the workers.
    pub seal: Arc<PasswordSeal>,
}

/// The REST gateway.
pub struct Gateway {
    options: GatewayOptions,
    shared: Arc<Shared>,
}

impl Gateway {
    /// A gateway over the given back-ends. It does nothing until it is served.
    pub fn new(options: GatewayOptions, backends: Backends, environment: Environment) -> Gateway {
        let Backends { results, queue, progress, cluster, identity, seal } = backends;
        let readiness = Readiness::new(
            Arc::clone(&results),
            Arc::clone(&queue),
            Arc::clone(&progress),
            cluster.clone(),
            identity.clone(),
            environment.clone(),
        );
        let intake = Intake {
            results: Arc::clone(&results),
            backlog: Arc::new(Backlog::new(Arc::clone(&queue), environment.clone(), options.queue_max)),
            queue,
            cluster,
            rates: Arc::new(Rates::new(options.rate_limits)),
            environment,
            admission: Admission::new(options.inflight_bytes_max, options.inflight_uploads_max),
            seal,
            digests: options.digests,
            body_idle_timeout: options.body_idle_timeout,
        };
        let shared = Shared {
            rules: options.rules.clone(),
            version: options.version.clone(),
            results,
            progress,
            identity,
            anonymous: options.anonymous,
            intake,
            readiness,
            engines: routes::EnginesSeen::default(),
            metrics: Arc::default(),
            downloads: options.downloads.clone(),
            callbacks: options.callbacks.clone(),
            signer: options.signer.clone(),
            openapi: OnceLock::new(),
        };
        Gateway { options, shared: Arc::new(shared) }
    }

    /// The routes, for tests and for servers of other kinds.
    pub fn router(&self) -> Router {
        routes::router(Arc::clone(&self.shared))
    }

    /// The gateway as monitoring sees it.
    pub fn monitor(&self) -> GatewayMonitor {
        GatewayMonitor { shared: Arc::clone(&self.shared) }
    }

    /// Serves `listener` until `shutdown` completes; then accepts nothing more, lets requests in flight finish within
    /// [`GatewayOptions::shutdown_grace`], and returns.
    pub async fn serve(
        self,
        listener: TcpListener,
        shutdown: impl Future<Output = ()> + Send + 'static,
    ) -> io::Result<()> {
        let metrics = Arc::clone(&self.shared.metrics);
        let serving = server::serve(self.router(), &self.options, metrics, listener, shutdown);
        let kept = self.options.history;
        let forgetting = async {
            match kept {
                Some(kept) => history::forget(&self.shared, kept).await,
                None => std::future::pending().await,
            }
        };
        let telling = async {
            match &self.shared.callbacks {
                Some(options) => callbacks::tell(&self.shared, options).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            served = serving => served,
            () = forgetting => Ok(()),
            () = telling => Ok(()),
        }
    }
}
