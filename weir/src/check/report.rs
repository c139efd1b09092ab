//! What a check found, as text for a person: problems first, each with its place, then every
//! Service and what would become of it, then one line that sums up.

use std::fmt::{self, Write};

use controlplane::load_balancer::Translation;
use controlplane::object::{Key, Location};
use controlplane::reason::{Reason, Severity};
use controlplane::source::{Level, Problem};
use lb_core::table::Protocol;

use crate::settings;

/// The findings, in the order in which they came.
#[derive(Debug, Default)]
pub struct Report {
    problems: String,
    services: String,
    errors: usize,
    served: usize,
    not_served: usize,
}

impl Report {
    /// Nothing is wrong.
    pub fn is_good(&self) -> bool {
        self.errors == 0
    }

    /// A settings file is not as it should be.
    pub fn settings(&mut self, problem: &settings::Problem) {
        self.errors += 1;
        // Writing to a String cannot fail, here and below.
        let _ = writeln!(self.problems, "{problem}");
    }

    /// A source has something to say.
    pub fn problem(&mut self, problem: &Problem) {
        let _ = match problem.level {
            Level::Note => writeln!(
                self.problems,
                "{}: note: {}",
                problem.location, problem.message
            ),
            Level::Outage | Level::Error => {
                self.errors += 1;
                writeln!(self.problems, "{problem}")
            }
        };
        for line in problem.excerpt.lines() {
            let _ = writeln!(self.problems, "  {line}");
        }
    }

    /// One Service and what it means; `place` says where one of its annotations stands.
    pub fn service(
        &mut self,
        key: &Key,
        translation: &Translation,
        mut place: impl FnMut(&str) -> Option<Location>,
    ) {
        let text = &mut self.services;
        let _ = match &translation.load_balancer {
            Some(lb) => {
                self.served += 1;
                let ports = lb.ports.iter().map(|port| {
                    let protocol = match port.protocol {
                        Protocol::Tcp => "tcp",
                        Protocol::Udp => "udp",
                    };
                    format!("{}/{protocol}", port.port)
                });
                let ports = ports.collect::<Vec<_>>().join(", ");
                let ready = translation.endpoints.ready;
                let noun = if ready == 1 { "endpoint" } else { "endpoints" };
                writeln!(
                    text,
                    "{key}: would be served on {ports}; {ready} {noun} ready"
                )
            }
            None => {
                self.not_served += 1;
                writeln!(text, "{key}: would not be served")
            }
        };
        for reason in &translation.reasons {
            let _ = write!(text, "  {}: {reason}", reason.code());
            let at = annotation(reason).and_then(&mut place);
            let _ = match at {
                Some(at) => writeln!(text, " ({at})"),
                None => writeln!(text),
            };
            self.errors += usize::from(is_mistake(reason));
        }
    }

    /// One Service that did not parse. Its problems are told and counted as the source's.
    pub fn malformed(&mut self, key: &Key, problems: &[Problem]) {
        self.not_served += 1;
        let _ = writeln!(self.services, "{key}: would not be served");
        for problem in problems {
            let problem = problem.to_string().into();
            let reason = Reason::Malformed { problem };
            let _ = writeln!(self.services, "  {}: {reason}", reason.code());
        }
    }
}

/// The annotation that a reason is about.
fn annotation(reason: &Reason) -> Option<&str> {
    match reason {
        Reason::BadAnnotation { annotation, .. }
        | Reason::AnnotationIgnored { annotation, .. }
        | Reason::Ignored { annotation } => Some(annotation),
        _ => None,
    }
}

/// A refusal of something that was asked of us. That a Service is none of ours is no mistake: a
/// dump of a cluster is full of them.
fn is_mistake(reason: &Reason) -> bool {
    let not_ours = matches!(
        reason,
        Reason::NotALoadBalancer { .. } | Reason::ForeignClass { .. } | Reason::Ignored { .. }
    );
    reason.severity() == Severity::Refused && !not_ours
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.problems)?;
        f.write_str(&self.services)?;
        let errors = match self.errors {
            0 => "no error".to_owned(),
            1 => "1 error".to_owned(),
            n => format!("{n} errors"),
        };
        writeln!(
            f,
            "{} Services would be served, {} would not; {errors}",
            self.served, self.not_served
        )
    }
}
