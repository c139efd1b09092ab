//! The real binary in the appliance's namespace.

use std::net::IpAddr;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use serde_json::Value;

use super::http;
use super::manifest::Service;
use super::net::{Lab, Net, POOL_V4, POOL_V6};
use super::{SOON, eventually, eventually_some};

/// A running `weir serve`; killed when dropped.
pub struct Weir {
    child: Child,
    dir: tempfile::TempDir,
    /// Ends of pipes that it had open when it was ready: the runtime's.
    own_pipes: usize,
}

/// How to start one.
pub struct Start {
    pub dir: tempfile::TempDir,
    args: Vec<String>,
    env: Vec<(String, String)>,
    wrap: Vec<String>,
    stderr: Option<Stdio>,
    serves_manifests: bool,
}

impl Weir {
    /// A fresh appliance with the laboratory's pools and an empty manifest directory.
    pub fn start(lab: &Lab) -> Weir {
        Weir::prepare().pools().launch(&lab.lb)
    }

    /// Settings first: nothing but the directories is set.
    pub fn prepare() -> Start {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("manifests")).unwrap();
        Start {
            dir,
            args: Vec::new(),
            env: Vec::new(),
            wrap: Vec::new(),
            stderr: None,
            serves_manifests: true,
        }
    }

    pub fn manifests(&self) -> PathBuf {
        self.dir.path().join("manifests")
    }

    pub fn state_dir(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    pub fn pid(&self) -> i32 {
        // `ip netns exec` and the wrappers exec: the child is weir itself.
        self.child.id() as i32
    }

    /// Writes a file of the manifest directory in one step, as kubectl or git would.
    pub fn write(&self, file: &str, text: &str) {
        write(&self.manifests(), file, text);
    }

    /// One Service in a file of its name.
    pub fn apply(&self, service: &Service) {
        self.write(
            &format!("{}.{}.yaml", service.namespace, service.name),
            &service.yaml(),
        );
    }

    pub fn remove(&self, service: &Service) {
        std::fs::remove_file(
            self.manifests()
                .join(format!("{}.{}.yaml", service.namespace, service.name)),
        )
        .unwrap();
    }

    /// Applies it and waits until it is served; its addresses.
    #[track_caller]
    pub fn serve(&self, service: &Service) -> Vec<IpAddr> {
        self.apply(service);
        self.wait_state(service, "serving");
        self.addresses(service)
    }

    #[track_caller]
    pub fn wait_state(&self, service: &Service, state: &str) {
        let deadline = std::time::Instant::now() + SOON;
        loop {
            let last = self.service(service).unwrap_or(Value::Null);
            if last["state"] == state {
                return;
            }
            assert!(
                std::time::Instant::now() < deadline,
                "{} is not {state}: {last:#}\n{}",
                service.name,
                self.log()
            );
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Waits until its entry in the admin API satisfies `holds`; the entry.
    #[track_caller]
    pub fn wait_service(
        &self,
        service: &Service,
        what: &str,
        holds: impl Fn(&Value) -> bool,
    ) -> Value {
        eventually_some(&format!("{}: {what}", service.name), SOON, || {
            self.service(service).filter(|entry| holds(entry))
        })
    }

    /// Waits until one of its reasons has this code; the reason's message.
    #[track_caller]
    pub fn wait_reason(&self, service: &Service, code: &str) -> String {
        let mut message = String::new();
        let deadline = std::time::Instant::now() + SOON;
        while message.is_empty() {
            let last = self.service(service).unwrap_or(Value::Null);
            for reason in last["reasons"].as_array().into_iter().flatten() {
                if reason["code"] == code {
                    message = reason["message"].as_str().unwrap().to_owned();
                }
            }
            assert!(
                std::time::Instant::now() < deadline,
                "{} never got the reason {code}: {last:#}",
                service.name
            );
            std::thread::sleep(Duration::from_millis(5));
        }
        message
    }

    pub fn service(&self, service: &Service) -> Option<Value> {
        self.services().into_iter().find(|s| {
            s["namespace"] == service.namespace.as_str() && s["name"] == service.name.as_str()
        })
    }

    pub fn addresses(&self, service: &Service) -> Vec<IpAddr> {
        let entry = self.service(service).unwrap_or(Value::Null);
        entry["addresses"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|a| a.as_str().unwrap().parse().unwrap())
            .collect()
    }

    pub fn services(&self) -> Vec<Value> {
        let (status, body) = self.get("/api/v1/services");
        assert_eq!(status, 200, "{body}");
        let value: Value = serde_json::from_str(&body).unwrap();
        value["items"].as_array().unwrap().clone()
    }

    /// GET on the admin socket; the status and the body.
    #[track_caller]
    pub fn get(&self, path: &str) -> (u16, String) {
        self.request("GET", path)
    }

    #[track_caller]
    pub fn request(&self, method: &str, path: &str) -> (u16, String) {
        self.try_request(method, path)
            .unwrap_or_else(|e| panic!("{method} {path}: {e}\n{}", self.log()))
    }

    /// Does the admin socket answer at all?
    pub fn admin_answers(&self) -> bool {
        self.try_request("GET", "/livez").is_ok()
    }

    /// A raw connection to the admin socket.
    pub fn admin_stream(&self) -> std::io::Result<UnixStream> {
        UnixStream::connect(self.dir.path().join("admin.sock"))
    }

    fn try_request(&self, method: &str, path: &str) -> std::io::Result<(u16, String)> {
        http::request(&self.dir.path().join("admin.sock"), method, path, "", "")
    }

    /// The sum of a metric over its series that contain every one of `labels`.
    pub fn metric(&self, name: &str, labels: &[&str]) -> f64 {
        let (_, text) = self.get("/metrics");
        text.lines()
            .filter(|line| {
                line.strip_prefix(name)
                    .is_some_and(|rest| rest.starts_with(['{', ' ']))
            })
            .filter(|line| labels.iter().all(|label| line.contains(label)))
            .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
            .sum()
    }

    /// Waits until every gauge of things that connections and flows hold is at zero, and no pipe is
    /// open that was not before: spare ones are closed when nobody has needed them for a while.
    #[track_caller]
    pub fn nothing_in_use(&self) {
        const HELD: [&str; 4] = [
            "weir_worker_descriptors",
            "weir_worker_pipe_descriptors",
            "weir_worker_copy_bytes",
            "weir_worker_ring_buffers",
        ];
        let held = || {
            let (_, text) = self.get("/metrics");
            let held = text.lines().filter(|line| {
                let name = line.split(['{', ' ']).next().unwrap_or_default();
                let mut ends = ["_active", "_in_use", "_in_flight"].iter();
                let is_held = ends.any(|end| name.ends_with(end)) || HELD.contains(&name);
                is_held && !line.ends_with(" 0")
            });
            let mut held: Vec<String> = held.map(str::to_owned).collect();
            let pipes = self.pipe_ends();
            if pipes > self.own_pipes {
                held.push(format!("{pipes} ends of pipes, {} before", self.own_pipes));
            }
            held
        };
        let deadline = std::time::Instant::now() + Duration::from_secs(15);
        while !held().is_empty() {
            let now = std::time::Instant::now();
            assert!(now < deadline, "still held: {:#?}", held());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Asserts that a ring made tiny ran full: submissions, completions or buffers. Without a ring
    /// there is nothing to assert.
    #[track_caller]
    pub fn ring_ran_full(&self) {
        if self.engine() != "io_uring" {
            return;
        }
        let count = |what| self.metric(&format!("weir_worker_ring_{what}_total"), &[]);
        let [full, overflows, starved] = ["full", "overflows", "no_buffers"].map(count);
        println!(
            "full {full} times, overflowed {overflows} times, without a buffer {starved} times"
        );
        assert!(full + overflows + starved > 0.0, "the ring was not tiny");
    }

    /// Everything it has logged.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    pub fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_raw(self.pid()).unwrap();
        rustix::process::kill_process(pid, signal).unwrap();
    }

    pub fn try_exit(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().unwrap()
    }

    #[track_caller]
    pub fn wait_exit(&mut self, within: Duration) -> ExitStatus {
        eventually_some("weir exits", within, || self.child.try_wait().unwrap())
    }

    /// kill -9; the directories stay for the next start.
    pub fn kill(mut self) -> Start {
        let _ = self.child.kill();
        let _ = self.child.wait();
        self.again()
    }

    /// SIGTERM and wait; the directories stay for the next start.
    #[track_caller]
    pub fn stop(mut self) -> Start {
        self.signal(rustix::process::Signal::TERM);
        let status = self.wait_exit(Duration::from_secs(10));
        assert!(status.success(), "{status}: {}", self.log());
        self.again()
    }

    fn again(&mut self) -> Start {
        let dir = std::mem::replace(&mut self.dir, tempfile::tempdir().unwrap());
        Start {
            dir,
            args: Vec::new(),
            env: Vec::new(),
            wrap: Vec::new(),
            stderr: None,
            serves_manifests: true,
        }
    }

    /// A line of /proc/PID/status, in its own unit.
    pub fn proc_status(&self, key: &str) -> u64 {
        let text = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = text.lines().find(|l| l.starts_with(key)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }

    /// How many descriptors it has open.
    pub fn descriptors(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.pid()))
            .unwrap()
            .count()
    }

    /// How many of them are of this kind, as /proc names it.
    pub fn open(&self, kind: &str) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.pid()))
            .unwrap()
            .filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok())
            .filter(|target| target.to_string_lossy().starts_with(kind))
            .count()
    }

    /// How many of them are pipes' ends.
    pub fn pipe_ends(&self) -> usize {
        self.open("pipe:")
    }

    /// The engine that runs.
    pub fn engine(&self) -> String {
        let (_, body) = self.get("/version");
        let version: Value = serde_json::from_str(&body).unwrap();
        version["engine"].as_str().unwrap().to_owned()
    }

    /// CPU time used so far by all its threads.
    pub fn cpu(&self) -> Duration {
        let text = std::fs::read_to_string(format!("/proc/{}/stat", self.pid())).unwrap();
        let fields: Vec<&str> = text
            .rsplit(')')
            .next()
            .unwrap()
            .split_whitespace()
            .collect();
        let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
        Duration::from_millis(ticks * 10)
    }
}

impl Drop for Weir {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("--- weir's log\n{}", self.log());
        }
    }
}

impl Start {
    pub fn arg(mut self, arg: impl ToString) -> Start {
        self.args.push(arg.to_string());
        self
    }

    pub fn args<'a>(mut self, args: impl IntoIterator<Item = &'a str>) -> Start {
        self.args.extend(args.into_iter().map(str::to_owned));
        self
    }

    pub fn env(mut self, key: &str, value: &str) -> Start {
        self.env.push((key.into(), value.into()));
        self
    }

    /// Runs it under another program, such as prlimit or setpriv, that executes it.
    pub fn wrap<'a>(mut self, program: impl IntoIterator<Item = &'a str>) -> Start {
        self.wrap.extend(program.into_iter().map(str::to_owned));
        self
    }

    /// Runs it as a user of its own, with the privileges that it documents and no other: the
    /// limits that the kernel spares root are in force.
    pub fn unprivileged(self, uid: u32) -> Start {
        let dir = self.dir.path();
        for path in [dir.to_owned(), dir.join("manifests")] {
            std::os::unix::fs::chown(path, Some(uid), Some(uid)).unwrap();
        }
        let id = [format!("--reuid={uid}"), format!("--regid={uid}")];
        self.wrap([
            "setpriv",
            &id[0],
            &id[1],
            "--clear-groups",
            "--inh-caps=-all,+net_bind_service,+net_admin",
            "--ambient-caps=-all,+net_bind_service,+net_admin",
            "--bounding-set=-all,+net_bind_service,+net_admin",
        ])
    }

    /// Its Services come from elsewhere.
    pub fn without_manifests(mut self) -> Start {
        self.serves_manifests = false;
        self
    }

    pub fn stderr(mut self, stderr: Stdio) -> Start {
        self.stderr = Some(stderr);
        self
    }

    pub fn pools(self) -> Start {
        self.args(["--pool", POOL_V4, "--pool", POOL_V6])
    }

    /// A manifest that is there before the start.
    pub fn with(self, service: &Service) -> Start {
        write(
            &self.dir.path().join("manifests"),
            &format!("{}.{}.yaml", service.namespace, service.name),
            &service.yaml(),
        );
        self
    }

    /// Starts it in `net` and waits until it is ready.
    #[track_caller]
    pub fn launch(self, net: &Net) -> Weir {
        let mut weir = self.spawn(net);
        let deadline = std::time::Instant::now() + Duration::from_secs(20);
        loop {
            assert!(
                weir.try_exit().is_none(),
                "weir ended at start:\n{}",
                weir.log()
            );
            if matches!(weir.try_request("GET", "/readyz"), Ok((200, _))) {
                weir.own_pipes = weir.pipe_ends();
                return weir;
            }
            if std::time::Instant::now() > deadline {
                let verbose = weir.try_request("GET", "/readyz?verbose");
                panic!("weir is not ready: {verbose:?}\n{}", weir.log());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Starts it and waits for nothing.
    pub fn spawn(mut self, net: &Net) -> Weir {
        let path = |name: &str| self.dir.path().join(name).to_str().unwrap().to_owned();
        let mut words = std::mem::take(&mut self.wrap);
        words.push(env!("CARGO_BIN_EXE_weir").into());
        words.push("serve".into());
        if self.serves_manifests {
            words.extend(["--manifests".into(), path("manifests")]);
        }
        words.extend(["--admin".into(), format!("unix:{}", path("admin.sock"))]);
        words.extend(["--state-dir".into(), path("state")]);
        words.append(&mut self.args);
        let log = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(path("log"))
            .unwrap();
        let mut command: Command = net.command(&words[0]);
        command
            .args(&words[1..])
            .envs(self.env.drain(..))
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(self.stderr.take().unwrap_or_else(|| log.into()));
        Weir {
            child: command.spawn().unwrap(),
            dir: self.dir,
            own_pipes: 0,
        }
    }
}

fn write(dir: &Path, file: &str, text: &str) {
    // A name that the source ignores, then one step.
    let temporary = dir.join(format!(".{file}.tmp"));
    std::fs::write(&temporary, text).unwrap();
    std::fs::rename(&temporary, dir.join(file)).unwrap();
}

/// Waits until the admin socket answers nothing more, used after a stop.
pub fn gone(path: &Path) {
    eventually("the admin socket is gone", SOON, || {
        UnixStream::connect(path).is_err()
    });
}
