//! `POST /api/v1/deletions/confirm`: a person says that the Services missing are meant to be.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use crate::Appliance;
use crate::error::Problem;

#[derive(Serialize)]
struct Confirmed {
    /// Services that the guard held when the request came.
    confirmed: usize,
}

pub(super) async fn confirm(State(appliance): State<Arc<dyn Appliance>>) -> Response {
    match appliance.confirm_deletions() {
        0 => Problem::NothingHeld.into_response(),
        confirmed => (StatusCode::ACCEPTED, Json(Confirmed { confirmed })).into_response(),
    }
}
