//! The programs of a cluster: where they are, and how they run.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::LazyLock;
use std::sync::mpsc::{Sender, channel};

const NEEDED: [&str; 4] = [
    "etcd",
    "kube-apiserver",
    "kube-controller-manager",
    "kubectl",
];

/// True, with a line that says why, where there is no Kubernetes to run. The same line for every
/// test: the summary of the suite shows it once.
pub fn skip() -> bool {
    let missing: Vec<&str> = NEEDED
        .into_iter()
        .filter(|name| !program(name).is_file())
        .collect();
    if missing.is_empty() {
        return false;
    }
    let missing = missing.join(", ");
    let (dir, remedy) = match assets() {
        Some(dir) => (
            format!("KUBEBUILDER_ASSETS={}", dir.display()),
            "add it, or unset that and install Go",
        ),
        None => (
            "target/kubernetes/bin".into(),
            "install Go and type `make setup-kubernetes`, or set KUBEBUILDER_ASSETS",
        ),
    };
    println!("SKIP: everything on a Kubernetes cluster: no {missing} in {dir}; {remedy}");
    true
}

/// The path of a program, such as kubectl or kube-proxy, whether or not it is there.
pub fn program(name: &str) -> PathBuf {
    let built = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/kubernetes/bin");
    assets().unwrap_or_else(built).join(name)
}

fn assets() -> Option<PathBuf> {
    let dir = std::env::var_os("KUBEBUILDER_ASSETS").filter(|dir| !dir.is_empty())?;
    Some(dir.into())
}

/// A command, not yet started: in a network namespace if one is named, killed by the kernel when
/// the thread that starts it ends, and with nothing of this process's environment (proxies,
/// KUBECONFIG) but a PATH.
pub fn command(namespace: Option<&str>, program: &Path, home: &Path) -> Command {
    let setpriv = ["setpriv", "--pdeathsig", "KILL", "--"];
    let mut words: Vec<&str> = Vec::new();
    if let Some(name) = namespace {
        words.extend(["ip", "netns", "exec", name]);
    }
    words.extend(setpriv);
    let path = std::env::var("PATH").unwrap_or_default();
    let mut command = Command::new(words[0]);
    command
        .args(&words[1..])
        .arg(program)
        .env_clear()
        .env("PATH", format!("{path}:/usr/sbin:/sbin"))
        .env("HOME", home)
        .stdin(Stdio::null());
    command
}

/// A program that runs in the background; killed when dropped, and with this process.
pub struct Process {
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts it; what it writes is added to the file `log`.
    #[track_caller]
    pub fn start(mut command: Command, log: &Path) -> Process {
        let file = File::options().create(true).append(true).open(log).unwrap();
        command.stdout(file.try_clone().unwrap()).stderr(file);
        Process {
            child: spawn(command),
            log: log.to_owned(),
        }
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Fails the test if it has ended.
    #[track_caller]
    pub fn assert_alive(&mut self) {
        if let Some(status) = self.child.try_wait().unwrap() {
            panic!("{status}\n{}", tail(&self.log));
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The last lines of a log, under its name.
pub fn tail(log: &Path) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let from = text.lines().count().saturating_sub(15);
    let lines: Vec<&str> = text.lines().skip(from).collect();
    format!("--- {}\n{}", log.display(), lines.join("\n"))
}

/// Starts a child from the one thread that lives as long as this process. The kernel kills the
/// child when its starter ends (PR_SET_PDEATHSIG), and a test's own thread ends with the test, while
/// a cluster may be in a static.
#[track_caller]
fn spawn(command: Command) -> Child {
    type Job = (Command, Sender<std::io::Result<Child>>);
    static STARTER: LazyLock<Sender<Job>> = LazyLock::new(|| {
        let (jobs, queue) = channel::<Job>();
        std::thread::spawn(move || {
            for (mut command, answer) in queue {
                let _ = answer.send(command.spawn());
            }
        });
        jobs
    });
    let (answer, child) = channel();
    let shown = format!("{command:?}");
    STARTER.send((command, answer)).unwrap();
    child
        .recv()
        .unwrap()
        .unwrap_or_else(|e| panic!("{shown}: {e}"))
}
