//! `/metrics`: the Prometheus text format, summed at the moment of the scrape.

use std::sync::Arc;

use axum::extract::State;
use axum::http::header;
use axum::response::IntoResponse;

use crate::Appliance;
use crate::metrics::{Page, plane};

pub(super) async fn metrics(State(appliance): State<Arc<dyn Appliance>>) -> impl IntoResponse {
    let mut page = Page::after(appliance.recorded());
    plane::write(&mut page, &appliance.stats());
    appliance.metrics(&mut page);
    let kind = "text/plain; version=0.0.4; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], page.finish())
}
