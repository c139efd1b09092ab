//! Who is measured: the variants, and how each is started.

mod envoy;
mod haproxy;
mod nft;
mod nginx;
mod weir;

use std::fmt;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::str::FromStr;

use anyhow::{Context, Result, bail};

use crate::cli::Mode;
use crate::load::Route;
use crate::net::{self, Topology, VIP};
use crate::rows::{Row, Who};

/// What stands between client and servers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Direct,
    Nft,
    Haproxy,
    HaproxySplice,
    Nginx,
    Envoy,
    WeirEpoll,
    WeirUring,
}

/// Names as they are written in PEERS, in the order of the tables.
const KINDS: [(&str, Kind); 8] = [
    ("direct", Kind::Direct),
    ("nft", Kind::Nft),
    ("haproxy", Kind::Haproxy),
    ("haproxy-splice", Kind::HaproxySplice),
    ("nginx", Kind::Nginx),
    ("envoy", Kind::Envoy),
    ("weir-epoll", Kind::WeirEpoll),
    ("weir-io_uring", Kind::WeirUring),
];

/// One column of the tables: `[LABEL=]KIND[@PROGRAM]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Variant {
    pub label: String,
    pub kind: Kind,
    pub program: Option<PathBuf>,
}

impl FromStr for Variant {
    type Err = String;

    fn from_str(text: &str) -> Result<Variant, String> {
        let (label, rest) = match text.split_once('=') {
            Some((label, rest)) => (Some(label), rest),
            None => (None, text),
        };
        let (name, program) = match rest.split_once('@') {
            Some((name, program)) => (name, Some(PathBuf::from(program))),
            None => (rest, None),
        };
        let Some((_, kind)) = KINDS.iter().find(|(known, _)| *known == name) else {
            let names: Vec<&str> = KINDS.iter().map(|(name, _)| *name).collect();
            return Err(format!("no peer {name:?}; there are {}", names.join(", ")));
        };
        Ok(Variant {
            label: label.unwrap_or(rest).to_owned(),
            kind: *kind,
            program,
        })
    }
}

impl fmt::Display for Variant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.label.fmt(f)
    }
}

/// Every variant, in the order of the tables.
pub fn all() -> Vec<Variant> {
    KINDS
        .iter()
        .map(|(name, kind)| Variant {
            label: name.to_string(),
            kind: *kind,
            program: None,
        })
        .collect()
}

impl Variant {
    /// Can it do what the row asks for?
    pub fn takes_part(&self, row: &Row) -> bool {
        match row.who {
            Who::Everybody => true,
            Who::Udp => !matches!(self.kind, Kind::Haproxy | Kind::HaproxySplice),
            Who::Proxies => !matches!(self.kind, Kind::Direct | Kind::Nft),
            Who::Weir => self.is_weir(),
        }
    }

    pub fn is_weir(&self) -> bool {
        matches!(self.kind, Kind::WeirEpoll | Kind::WeirUring)
    }

    /// A proxy that terminates connections, and is not Weir.
    pub fn is_rival(&self) -> bool {
        matches!(
            self.kind,
            Kind::Haproxy | Kind::HaproxySplice | Kind::Nginx | Kind::Envoy
        )
    }

    /// Whom the client dials.
    pub fn route(&self) -> Route {
        Route {
            sources: net::clients().collect(),
            targets: match self.kind {
                Kind::Direct => net::backends().collect(),
                _ => vec![VIP],
            },
        }
    }

    /// Is its program here?
    ///
    /// # Errors
    /// What is missing and how to get it.
    pub fn available(&self, weir: &Path) -> Result<String, String> {
        match self.kind {
            Kind::Direct => Ok("plain routing".into()),
            Kind::Nft => version("nft", &["--version"]),
            Kind::Haproxy | Kind::HaproxySplice => version(self.program("haproxy"), &["-v"]),
            Kind::Nginx => version(self.program("nginx"), &["-v"]),
            Kind::Envoy => envoy::available(self.program.as_deref()),
            Kind::WeirEpoll | Kind::WeirUring => {
                weir::available(self.kind, self.program.as_deref().unwrap_or(weir))
            }
        }
    }

    fn program<'a>(&'a self, default: &'a str) -> &'a Path {
        self.program.as_deref().unwrap_or(Path::new(default))
    }

    /// Starts it in the topology's middle namespace.
    pub fn start(&self, topology: &Topology, row: &Row, weir: &Path) -> Result<Running> {
        let dir = tempfile::tempdir().context("no temporary directory")?;
        let command = match self.kind {
            Kind::Direct => None,
            Kind::Nft => {
                nft::set_up(topology, dir.path())?;
                None
            }
            Kind::Haproxy => Some(haproxy::command(
                self.program("haproxy"),
                "",
                topology,
                dir.path(),
            )?),
            Kind::HaproxySplice => {
                let options = "option splice-request\n    option splice-response";
                Some(haproxy::command(
                    self.program("haproxy"),
                    options,
                    topology,
                    dir.path(),
                )?)
            }
            Kind::Nginx => Some(nginx::command(self.program("nginx"), topology, dir.path())?),
            Kind::Envoy => Some(envoy::command(
                self.program.as_deref(),
                topology,
                dir.path(),
            )?),
            Kind::WeirEpoll | Kind::WeirUring => {
                let program = self.program.as_deref().unwrap_or(weir);
                Some(weir::command(
                    self.kind,
                    program,
                    topology,
                    row.services,
                    dir.path(),
                )?)
            }
        };
        if !matches!(self.kind, Kind::Direct | Kind::WeirEpoll | Kind::WeirUring) {
            topology
                .lb
                .ip_batch(&format!("addr replace {VIP}/32 dev front"))?;
        }
        let child = match command {
            Some(mut command) => {
                let log = std::fs::File::create(dir.path().join("log"))?;
                command
                    .stdin(Stdio::null())
                    .stdout(log.try_clone()?)
                    .stderr(log);
                let spawned = topology
                    .lb
                    .run(topology.lb_place(), move || command.spawn())?;
                Some(spawned.with_context(|| format!("cannot start {self}"))?)
            }
            None => None,
        };
        Ok(Running { child, dir })
    }
}

/// Threads of a load balancer in this mode.
fn threads(topology: &Topology) -> usize {
    match topology.mode {
        Mode::Isolate => 1,
        Mode::Spread => 2,
    }
}

/// Fills `@NAME@`s of a template.
fn fill(template: &str, values: &[(&str, &str)]) -> String {
    values
        .iter()
        .fold(template.to_owned(), |text, (name, value)| {
            text.replace(&format!("@{name}@"), value)
        })
}

/// What a program says about itself: a line.
fn version(program: impl AsRef<Path>, args: &[&str]) -> Result<String, String> {
    let program = program.as_ref();
    let output = Command::new(program)
        .args(args)
        .output()
        .map_err(|error| format!("{} cannot be run: {error}", program.display()))?;
    // nginx says it on standard error.
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text);
    let line = text.lines().map(str::trim).find(|line| !line.is_empty());
    Ok(line.unwrap_or_default().to_owned())
}

/// A started variant; ended when dropped.
pub struct Running {
    child: Option<Child>,
    dir: tempfile::TempDir,
}

impl Running {
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// Fails if the process has ended by itself.
    pub fn check(&mut self) -> Result<()> {
        if let Some(child) = &mut self.child
            && let Some(status) = child.try_wait()?
        {
            bail!("it ended ({status}): {}", self.log());
        }
        Ok(())
    }

    /// The end of what it has said.
    pub fn log(&self) -> String {
        let text = std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(5)..].join("\n")
    }

    /// Ends it, and everything that it started in its namespace.
    pub fn stop(mut self, topology: &Topology) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            topology.lb.kill_all();
            let _ = child.wait();
            self.child = None;
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// `ADDRESS` as it goes into configurations.
fn vip() -> String {
    Ipv4Addr::to_string(&VIP)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_variant_has_a_kind_and_may_have_a_label_and_a_program() {
        let parse = |text: &str| text.parse::<Variant>();
        let plain = parse("haproxy").expect("known");
        assert_eq!((plain.label.as_str(), plain.program), ("haproxy", None));
        let other = parse("weir-epoll@/x/weir").expect("known");
        assert_eq!(other.label, "weir-epoll@/x/weir");
        assert_eq!(other.program, Some("/x/weir".into()));
        let named = parse("old=weir-io_uring@/x/weir").expect("known");
        assert_eq!((named.label.as_str(), named.kind), ("old", Kind::WeirUring));
        assert!(parse("apache").is_err());
    }

    #[test]
    fn templates_are_filled() {
        assert_eq!(fill("a @B@ @C@ @B@", &[("B", "1"), ("C", "2")]), "a 1 2 1");
    }
}
