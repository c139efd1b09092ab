//! One JSON object per line: `ts`, `level`, `msg`, and the fields of the event.

use std::fmt::{self, Debug};

use serde_json::{Map, Value};
use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

/// The format.
#[derive(Debug)]
pub struct Json;

impl<S, N> FormatEvent<S, N> for Json
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        _: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut line = Line::new(&event.metadata().level().as_str().to_lowercase());
        line.0
            .insert("target".into(), event.metadata().target().into());
        event.record(&mut line);
        writeln!(writer, "{}", Value::Object(line.0))
    }
}

/// The line that says how many were dropped.
pub fn dropped(lines: u64) -> String {
    let mut line = Line::new("warn");
    line.0.insert(
        "msg".into(),
        "the log was blocked: lines were dropped".into(),
    );
    line.0.insert("lines".into(), lines.into());
    format!("{}\n", Value::Object(line.0))
}

struct Line(Map<String, Value>);

impl Line {
    fn new(level: &str) -> Line {
        let mut ts = String::new();
        // Writing to a String cannot fail; the clock of the system can be any.
        let _ = SystemTime.format_time(&mut Writer::new(&mut ts));
        let mut map = Map::new();
        map.insert("ts".into(), ts.into());
        map.insert("level".into(), level.into());
        Line(map)
    }

    fn put(&mut self, field: &Field, value: Value) {
        let name = match field.name() {
            "message" => "msg",
            name => name,
        };
        self.0.insert(name.to_owned(), value);
    }
}

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.put(field, format!("{value:?}").into());
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field, value.into());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, value.into());
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, value.into());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, value.into());
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.put(field, value.into());
    }
}
