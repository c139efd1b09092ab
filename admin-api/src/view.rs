//! The shapes that go over the wire. A field's name is part of the interface: see the changelog
//! before one is renamed.

use std::net::IpAddr;

use serde::Serialize;

/// `/version`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Version {
    /// Always `weir`.
    pub name: &'static str,
    /// SemVer.
    pub version: &'static str,
    /// The driver that runs, for example `epoll`.
    pub engine: String,
}

/// `/api/v1/services`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Services<'a> {
    pub(crate) items: &'a [Service],
}

/// What became of a Service. Closed: clients may match on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Every port of every address listens in every worker.
    Serving,
    /// Some ports or addresses serve, others do not; the reasons say which.
    Degraded,
    /// It has its addresses and no usable endpoint: clients are refused.
    Closed,
    /// It will be served once something else changes; the reasons say what.
    Pending,
    /// It is not served as it stands; the reasons say why.
    Refused,
}

impl State {
    /// Every state, in the order of the enum.
    pub const ALL: [State; 5] = [
        State::Serving,
        State::Degraded,
        State::Closed,
        State::Pending,
        State::Refused,
    ];

    /// As it stands in JSON and in metrics.
    pub fn label(self) -> &'static str {
        match self {
            State::Serving => "serving",
            State::Degraded => "degraded",
            State::Closed => "closed",
            State::Pending => "pending",
            State::Refused => "refused",
        }
    }
}

/// One Service, served or not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Service {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// What became of it.
    pub state: State,
    /// Its VIPs; empty while it has none.
    pub addresses: Vec<IpAddr>,
    /// Its ports, as clients dial them.
    pub ports: Vec<Port>,
    /// Its endpoints by state.
    pub endpoints: Endpoints,
    /// Why, or what else its owner should know.
    pub reasons: Vec<Reason>,
}

/// One port of a Service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Port {
    /// "" where none is given.
    pub name: String,
    /// What clients dial.
    pub port: u16,
    /// `tcp` or `udp`.
    pub protocol: &'static str,
}

/// Endpoints by state, counted once per address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Endpoints {
    /// Ready.
    pub ready: u32,
    /// Terminating but serving.
    pub serving: u32,
    /// Terminating and not serving.
    pub terminating: u32,
    /// Not ready.
    pub not_ready: u32,
    /// Refused for their address.
    pub refused: u32,
    /// Of those that are ready or serving: their health check fails.
    pub unhealthy: u32,
}

/// One reason.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Reason {
    /// Stable, CamelCase.
    pub code: &'static str,
    /// For a person; says what to do.
    pub message: String,
}

/// How one thing that was looked at stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// As it should be.
    Good,
    /// Serving goes on, and somebody should look.
    Warning,
    /// Not as it should be: the whole answer is no.
    Failed,
}

/// One thing that `/livez` or `/readyz` looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    /// Stable, lower case with dashes.
    pub name: &'static str,
    /// How it stands.
    pub level: Level,
    /// What was found; says what to do unless the level is good.
    pub message: String,
}

impl Check {
    /// A check that is as it should be.
    pub fn good(name: &'static str, message: impl Into<String>) -> Check {
        Check::new(name, Level::Good, message)
    }

    /// A check that somebody should look at.
    pub fn warning(name: &'static str, message: impl Into<String>) -> Check {
        Check::new(name, Level::Warning, message)
    }

    /// A check that makes the answer no.
    pub fn failed(name: &'static str, message: impl Into<String>) -> Check {
        Check::new(name, Level::Failed, message)
    }

    fn new(name: &'static str, level: Level, message: impl Into<String>) -> Check {
        Check {
            name,
            level,
            message: message.into(),
        }
    }
}
