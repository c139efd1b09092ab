//! One page of metrics text, bounded.

use std::fmt::{Display, Write};

/// Series on one page. 10,000 Services with two ports and ten families each are 200,000; past
/// that a scrape costs more than it tells.
const SERIES_LIMIT: usize = 250_000;

/// What a family's number is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Only grows; its name ends in `_total`.
    Counter,
    /// Goes up and down.
    Gauge,
}

/// A page under construction.
#[derive(Debug, Default)]
pub struct Page {
    text: String,
    series: usize,
    omitted: u64,
}

/// One family of a page: a name, its help, its samples.
#[derive(Debug)]
pub struct Family<'a> {
    page: &'a mut Page,
    name: &'a str,
}

impl Page {
    /// A page that begins with `rendered`, the text of [`super::Registry::render`]. It does not
    /// grow with the Services, and its series are not counted.
    pub fn after(rendered: String) -> Page {
        Page {
            text: rendered,
            ..Page::default()
        }
    }

    /// Begins the family `name`, with its unit as the last word of the name and in `help`.
    pub fn family<'a>(&'a mut self, name: &'a str, kind: Kind, help: &str) -> Family<'a> {
        let kind = match kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
        };
        // Writing to a String cannot fail, here and below.
        let _ = writeln!(self.text, "# HELP {name} {help}\n# TYPE {name} {kind}");
        Family { page: self, name }
    }

    /// The text, with the number of series that did not fit.
    pub fn finish(mut self) -> String {
        let omitted = self.omitted;
        self.family(
            "weir_metrics_series_omitted",
            Kind::Gauge,
            "Series left out of this page because it was full.",
        )
        .sample(&[], omitted);
        self.text
    }

    fn series(&mut self, name: &str, labels: &[(&str, &str)], value: impl Display) {
        // The last line of the page must always fit.
        if self.series >= SERIES_LIMIT && name != "weir_metrics_series_omitted" {
            self.omitted += 1;
            return;
        }
        self.series += 1;
        self.text.push_str(name);
        for (i, (label, text)) in labels.iter().enumerate() {
            self.text.push(if i == 0 { '{' } else { ',' });
            self.text.push_str(label);
            self.text.push_str("=\"");
            escape(&mut self.text, text);
            self.text.push('"');
        }
        if !labels.is_empty() {
            self.text.push('}');
        }
        let _ = writeln!(self.text, " {value}");
    }
}

impl Family<'_> {
    /// One series.
    pub fn sample(&mut self, labels: &[(&str, &str)], value: impl Display) {
        self.page.series(self.name, labels, value);
    }
}

/// Backslash, quote and line feed are the three that the format escapes.
fn escape(text: &mut String, value: &str) {
    for c in value.chars() {
        match c {
            '\\' => text.push_str("\\\\"),
            '"' => text.push_str("\\\""),
            '\n' => text.push_str("\\n"),
            c => text.push(c),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text() {
        let mut page = Page::after("weir_first 1\n".to_owned());
        let mut family = page.family("weir_x_total", Kind::Counter, "Xs.");
        family.sample(&[], 1);
        family.sample(&[("a", "q\"b\\c\nd"), ("b", "")], 2.5);
        let expected = "weir_first 1\n# HELP weir_x_total Xs.\n# TYPE weir_x_total counter\nweir_x_total 1\n\
            weir_x_total{a=\"q\\\"b\\\\c\\nd\",b=\"\"} 2.5\n";
        assert!(page.finish().starts_with(expected));
    }

    #[test]
    fn bounded() {
        let mut page = Page::default();
        let mut family = page.family("weir_x", Kind::Gauge, "Xs.");
        for _ in 0..SERIES_LIMIT + 7 {
            family.sample(&[], 1);
        }
        let text = page.finish();
        assert!(text.ends_with("weir_metrics_series_omitted 7\n"));
        assert_eq!(text.lines().count(), SERIES_LIMIT + 5);
    }
}
