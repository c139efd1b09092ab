//! A file per resource. Handlers read one snapshot and shape it.

mod deletions;
mod health;
mod metrics;
mod services;
mod version;

use std::sync::Arc;

use axum::Router;
use axum::middleware;
use axum::routing::{get, post};

use crate::Appliance;
use crate::error::Problem;
use crate::guard::{Arrival, guard};

pub(crate) fn router(appliance: Arc<dyn Appliance>, arrival: Arrival) -> Router {
    Router::new()
        .route("/livez", get(health::livez))
        .route("/healthz", get(health::livez))
        .route("/readyz", get(health::readyz))
        .route("/metrics", get(metrics::metrics))
        .route("/version", get(version::version))
        .route("/api/v1/services", get(services::services))
        .route("/api/v1/deletions/confirm", post(deletions::confirm))
        .fallback(async || Problem::NotFound)
        .method_not_allowed_fallback(async || Problem::MethodNotAllowed)
        .with_state(appliance)
        .layer(middleware::from_fn_with_state(arrival, guard))
}
