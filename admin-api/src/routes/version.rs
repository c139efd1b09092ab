//! `GET /version`.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;

use crate::Appliance;
use crate::view::Version;

pub(super) async fn version(State(appliance): State<Arc<dyn Appliance>>) -> Json<Version> {
    Json(appliance.version())
}
