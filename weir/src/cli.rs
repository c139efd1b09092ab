//! The command line. Names are fixed: scripts depend on them.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::settings::Layer;
use crate::settings::values::Span;

/// A userspace L4 load balancer that gives Kubernetes Services working addresses.
#[derive(Debug, Parser)]
#[command(
    name = "weir",
    version,
    propagate_version = true,
    arg_required_else_help = true
)]
#[command(
    after_help = "Exit codes: 0 ok, 1 negative answer, invalid input or failed start, 2 usage, 4 denied."
)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve the Services of a directory of manifests, or of a cluster.
    #[command(after_help = SERVE_HELP)]
    Serve(Box<ServeArgs>),
    /// Roll backends under live traffic, in one process: no root, no cluster.
    Demo(DemoArgs),
    /// Judge manifests and settings files, without root or network.
    Check(CheckArgs),
    /// Say what this machine has for Weir and what it keeps from it, and how to change that.
    Doctor(DoctorArgs),
    /// Write the kubeconfig that an appliance outside the cluster runs by: a token of its own.
    #[command(after_help = KUBECONFIG_HELP)]
    Kubeconfig(KubeconfigArgs),
    /// Leave a cluster: take status, conditions and finalizers off Services, by the API server alone.
    #[command(after_help = RELEASE_HELP)]
    Release(ReleaseArgs),
    /// Look at settings.
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Print the version.
    Version(VersionArgs),
}

const SERVE_HELP: &str =
    "A setting is taken from its flag, else from the environment (WEIR_ and the \
flag's name, upper case with _), else from the settings file, else it has its default.
Signals: SIGTERM and SIGINT drain, a second one ends at once; SIGHUP rescans, and twice within ten \
seconds confirms deletions that the guard holds, as POST /api/v1/deletions/confirm on the admin socket does.

Example: weir serve --manifests ./manifests --pool 192.0.2.0/28";

const KUBECONFIG_HELP: &str =
    "It is run once, by somebody who may create tokens (an administrator), where kubectl works. The \
ServiceAccount and what it may do are made before: kubectl apply -f deploy/kubernetes/rbac.yaml. The token is \
renewed by `weir serve` in the file, if deploy/kubernetes/token.yaml lets it; otherwise run this again before it expires.

Example: weir kubeconfig --output weir.kubeconfig";

#[derive(Debug, Args)]
pub struct KubeconfigArgs {
    /// Write here, for its owner alone.
    #[arg(short, long, value_name = "FILE")]
    pub output: PathBuf,

    /// Replace the file if it is there.
    #[arg(long)]
    pub force: bool,

    /// Ask with these credentials; without it KUBECONFIG's, or ~/.kube/config.
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,

    /// Ask in this context; without it, in the current one.
    #[arg(long, value_name = "NAME")]
    pub context: Option<String>,

    /// The API server's address as the appliance reaches it; without it, as the kubeconfig names it.
    #[arg(long, value_name = "URL", value_parser = https)]
    pub server: Option<String>,

    /// The ServiceAccount's namespace.
    #[arg(short, long, value_name = "NAME", default_value = "weir-system")]
    pub namespace: String,

    /// The ServiceAccount.
    #[arg(long, value_name = "NAME", default_value = "weir")]
    pub service_account: String,

    /// How long the token is good for, 10 minutes at least; the API server may give less.
    #[arg(long, value_name = "TIME", default_value = "720h")]
    pub expires_in: Span,
}

fn https(text: &str) -> Result<String, String> {
    match text.strip_prefix("https://") {
        Some(host) if !host.is_empty() => Ok(text.to_owned()),
        _ => Err(format!(
            "{text:?} is no address of an API server; write https://ADDRESS:6443"
        )),
    }
}

const RELEASE_HELP: &str =
    "Stop every weir first: one that runs takes its Services again. Only what carries the finalizer \
weir.dev/load-balancer is touched.

Example: weir release --kubeconfig weir.kubeconfig --all";

#[derive(Debug, Args)]
pub struct ReleaseArgs {
    /// The Service to leave, NAMESPACE/NAME.
    #[arg(value_name = "SERVICE")]
    pub service: Option<String>,

    /// Leave every one.
    #[arg(long)]
    pub all: bool,

    /// How to reach the API server; without it, as a pod does.
    #[arg(long, env = "WEIR_KUBECONFIG", value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub struct ServeArgs {
    /// Settings file (YAML); `weir config schema` prints its schema.
    #[arg(long, env = "WEIR_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,

    #[command(flatten)]
    pub layer: Layer,
}

#[derive(Debug, Args)]
pub struct DemoArgs {
    /// End after this many seconds; without it, on Ctrl-C.
    #[arg(long, value_name = "N", value_parser = seconds)]
    pub seconds: Option<u64>,
}

fn seconds(text: &str) -> Result<u64, String> {
    text.parse()
        .map_err(|_| format!("{text:?} is no number of seconds; write a whole number, 10"))
}

#[derive(Debug, Args)]
pub struct CheckArgs {
    /// Manifests (a file, or a directory of *.yaml, *.yml, *.json) and settings files.
    #[arg(required = true, value_name = "PATH")]
    pub paths: Vec<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Print the JSON Schema of the settings file.
    Schema,
    /// Print the settings that `weir serve` with the same flags would use, and where each is from.
    Show(Box<ServeArgs>),
}

#[derive(Debug, Args)]
pub struct DoctorArgs {
    /// How to print.
    #[arg(short, long, value_enum, default_value_t = DoctorOutput::Table)]
    pub output: DoctorOutput,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum DoctorOutput {
    /// For people.
    Table,
    /// One JSON object.
    Json,
}

#[derive(Debug, Args)]
pub struct VersionArgs {
    /// How to print.
    #[arg(short, long, value_enum, default_value_t = Output::Text)]
    pub output: Output,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// One line.
    Text,
    /// One JSON object.
    Json,
}
