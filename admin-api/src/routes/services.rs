//! `GET /api/v1/services`: every Service seen, and what became of it.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};

use crate::Appliance;
use crate::view::Services;

pub(super) async fn services(State(appliance): State<Arc<dyn Appliance>>) -> Response {
    let items = appliance.services();
    Json(Services { items: &items }).into_response()
}
