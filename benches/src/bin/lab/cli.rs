//! The command line. The Makefile passes TESTS, PEERS, MODE and ROUNDS on.

use std::path::PathBuf;

use clap::{Parser, ValueEnum};
use serde::{Deserialize, Serialize};

use crate::peers::{self, Kind, Variant};

/// Measures load balancers side by side, in network namespaces of its own. Needs root.
#[derive(Debug, Parser)]
#[command(name = "lab")]
pub struct Args {
    /// Rows, or beginnings of their names: rr64,conn,udp. Default: all that belong to the mode.
    #[arg(long, env = "TESTS", value_delimiter = ',', value_name = "ROW")]
    pub tests: Vec<String>,
    /// Columns, `[LABEL=]KIND[@PROGRAM]`: haproxy,weir-epoll,old=weir-epoll@/tmp/weir. Default: all.
    #[arg(long, env = "PEERS", value_delimiter = ',', value_name = "PEER")]
    pub peers: Vec<Variant>,
    /// isolate: the load balancer on CPU 0, load on CPU 1. spread: two threads, unpinned.
    #[arg(long, env = "MODE", value_delimiter = ',', default_values = ["isolate", "spread"])]
    pub mode: Vec<Mode>,
    /// Rounds; in each, every row is measured for every variant in turn.
    #[arg(long, env = "ROUNDS", default_value_t = 3)]
    pub rounds: usize,
    /// Seconds that one measurement lasts.
    #[arg(long, env = "BENCH_SECONDS", default_value_t = 2.0)]
    pub seconds: f64,
    /// Seconds of load before it.
    #[arg(long, env = "BENCH_WARMUP", default_value_t = 0.4)]
    pub warmup: f64,
    /// The nice value of load balancers and load. On a machine that others use, -15 keeps their
    /// share small (the CPU figures of rows that do not fill the CPU still hold theirs).
    #[arg(
        long,
        env = "BENCH_NICE",
        default_value_t = 0,
        allow_hyphen_values = true
    )]
    pub nice: i32,
    /// The binary behind weir-epoll and weir-io_uring.
    #[arg(long, env = "WEIR", default_value = "target/release/weir")]
    pub weir: PathBuf,
    /// Directory for JSON, Markdown and plots.
    #[arg(long, env = "BENCH_OUT", default_value = "target/bench")]
    pub out: PathBuf,
    /// A shell command that runs during each measurement (to profile): LB_PID, VARIANT, ROW are set.
    #[arg(long, env = "DURING", value_name = "COMMAND")]
    pub during: Option<String>,
    /// A document that gets the tables between its two marks.
    #[arg(long)]
    pub readme: Option<PathBuf>,
    /// The short form: some rows, Weir against HAProxy and nginx, compared with the baseline.
    #[arg(long)]
    pub quick: bool,
    /// The baseline of the short form.
    #[arg(long, default_value = "benches/baseline.json")]
    pub baseline: PathBuf,
    /// Write the baseline anew instead of comparing with it.
    #[arg(long)]
    pub write_baseline: bool,
    /// Exit with 1 if a ratio is worse than the baseline beyond the noise.
    #[arg(long)]
    pub strict: bool,
}

impl Args {
    /// What the short form measures, unless something else is asked for.
    pub fn shorten(&mut self) {
        if self.tests.is_empty() {
            let rows = [
                "bulk8-down",
                "rr64",
                "rr64k",
                "conn-client",
                "idle4k",
                "udp-echo",
            ];
            self.tests = rows.map(String::from).to_vec();
        }
        if self.peers.is_empty() {
            let left_out = [Kind::Direct, Kind::Nft, Kind::Envoy];
            self.peers = peers::all();
            self.peers.retain(|peer| !left_out.contains(&peer.kind));
        }
        self.mode = vec![Mode::Isolate];
        self.seconds = self.seconds.min(1.5);
    }
}

/// Who runs where.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    Isolate,
    Spread,
}

impl Mode {
    pub fn name(self) -> &'static str {
        match self {
            Mode::Isolate => "isolate",
            Mode::Spread => "spread",
        }
    }
}
