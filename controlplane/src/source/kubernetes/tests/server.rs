//! A scripted API server: it has objects, versions, pages, watches and bookmarks as the real one,
//! and does on request what the real one will not. Blocking, a thread per connection.

use std::collections::{BTreeMap, VecDeque};
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// What is asked of a server.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    /// Without the query.
    pub path: String,
    /// By name.
    pub query: BTreeMap<String, String>,
    /// The header.
    pub authorization: Option<String>,
}

impl Asked {
    /// list or watch, or stream for a list as a stream.
    pub fn verb(&self) -> &'static str {
        if self.query.contains_key("sendInitialEvents") {
            return "stream";
        }
        match self.query.contains_key("watch") {
            true => "watch",
            false => "list",
        }
    }

    fn is(&self, verb: &str, plural: &str) -> bool {
        self.verb() == verb && self.path.ends_with(plural)
    }
}

/// What a server does instead of what it should.
#[derive(Clone, Debug)]
pub(crate) enum Fault {
    /// This status, with a Status object.
    Status(u16),
    /// 302, with this header.
    Redirect(String),
    /// 200 with this body, whatever it is.
    Body(Vec<u8>),
    /// 200 with this header and body.
    Header(&'static str, Vec<u8>),
    /// 200, the beginning of this body, and the connection is cut.
    Cut(Vec<u8>),
    /// 200 and a body that drips, a blank at a time, for ever.
    Drip,
    /// What it should, after so long.
    Late(Duration),
    /// Not a byte, for ever.
    Silence,
    /// 200, and not a byte more, for ever.
    SilentBody,
    /// An ERROR event of this code.
    Error(u16),
    /// These lines, then the watch goes on.
    Lines(Vec<u8>),
}

struct Planned {
    verb: &'static str,
    plural: &'static str,
    fault: Fault,
    /// How often; `None`: always.
    left: Option<usize>,
}

/// Events that are kept; a watch from before them is too old.
const EVENTS: usize = 10_000;

#[derive(Default)]
struct World {
    version: u64,
    objects: BTreeMap<(String, String, String), Value>,
    /// Version, plural, type, object.
    events: VecDeque<(u64, String, &'static str, Value)>,
    /// Watches from before this are too old.
    compacted: u64,
    page: usize,
    streams: bool,
    faults: Vec<Planned>,
    asked: Vec<Asked>,
    token: Option<String>,
    connections: Vec<TcpStream>,
    stopped: bool,
}

#[derive(Default)]
struct Shared {
    world: Mutex<World>,
    changed: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, World> {
        self.world.lock().expect("no thread of it panicked")
    }
}

/// The running server.
pub(crate) struct Server {
    shared: Arc<Shared>,
    pub address: SocketAddr,
    /// PEM of the authority, if it speaks TLS.
    pub authority: Option<String>,
    tls: Option<Arc<rustls::ServerConfig>>,
}

impl Server {
    /// Speaks in clear, on loopback.
    pub fn start() -> Server {
        Server::with(None, None)
    }

    /// Speaks TLS.
    pub fn start_tls() -> Server {
        let (authority, config) = tls();
        Server::with(Some(authority), Some(config))
    }

    fn with(authority: Option<String>, tls: Option<Arc<rustls::ServerConfig>>) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let server = Server {
            shared: Arc::new(Shared::default()),
            address: listener.local_addr().expect("bound"),
            authority,
            tls,
        };
        server.shared.lock().page = 500;
        server.shared.lock().version = 100;
        server.serve(listener);
        server
    }

    fn serve(&self, listener: TcpListener) {
        let (shared, tls) = (Arc::clone(&self.shared), self.tls.clone());
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let mut world = shared.lock();
                if world.stopped {
                    return;
                }
                world.connections.extend(stream.try_clone());
                drop(world);
                let (shared, tls) = (Arc::clone(&shared), tls.clone());
                thread::spawn(move || {
                    let end = stream.try_clone();
                    // A client that goes away is no fault of the test.
                    let _ = match tls {
                        None => converse(&shared, stream),
                        Some(config) => rustls::ServerConnection::new(config)
                            .map_err(io::Error::other)
                            .map(|tls| rustls::StreamOwned::new(tls, stream))
                            .and_then(|stream| converse(&shared, stream)),
                    };
                    let _ = end.map(|stream| stream.shutdown(Shutdown::Both));
                });
            }
        });
    }

    /// Cuts everything and answers nobody.
    pub fn stop(&self) {
        let mut world = self.shared.lock();
        world.stopped = true;
        for connection in world.connections.drain(..) {
            let _ = connection.shutdown(Shutdown::Both);
        }
        drop(world);
        self.shared.changed.notify_all();
        // Wakes the one that accepts.
        let _ = TcpStream::connect(self.address);
    }

    /// Answers again, at the same address.
    pub fn start_again(&self) {
        let begun = Instant::now();
        let listener = loop {
            match TcpListener::bind(self.address) {
                Ok(listener) => break listener,
                Err(error) => assert!(begun.elapsed() < Duration::from_secs(10), "{error}"),
            }
            thread::sleep(Duration::from_millis(10));
        };
        self.shared.lock().stopped = false;
        self.serve(listener);
    }

    /// Has another certificate from the next start on; returns its authority.
    pub fn renew(&mut self) -> String {
        let (authority, config) = tls();
        self.tls = Some(config);
        authority
    }

    /// From now on only who has this token is known.
    pub fn want_token(&self, token: &str) {
        self.shared.lock().token = Some(token.to_owned());
    }

    /// Objects of a page at most, whatever the client asks for.
    pub fn page(&self, page: usize) {
        self.shared.lock().page = page;
    }

    /// Offers lists as streams, as 1.32 and later do.
    pub fn offer_streams(&self) {
        self.shared.lock().streams = true;
    }

    /// The next `times` requests of this kind go wrong.
    pub fn fault(&self, verb: &'static str, plural: &'static str, times: usize, fault: Fault) {
        self.plan(verb, plural, Some(times), fault);
    }

    /// All requests of this kind go wrong.
    pub fn always(&self, verb: &'static str, plural: &'static str, fault: Fault) {
        self.plan(verb, plural, None, fault);
    }

    fn plan(&self, verb: &'static str, plural: &'static str, left: Option<usize>, fault: Fault) {
        self.shared.lock().faults.push(Planned {
            verb,
            plural,
            fault,
            left,
        });
    }

    /// Nothing goes wrong any more.
    pub fn mend(&self) {
        self.shared.lock().faults.clear();
    }

    /// Everything that was asked so far.
    pub fn asked(&self) -> Vec<Asked> {
        self.shared.lock().asked.clone()
    }

    /// How often this was asked.
    pub fn count(&self, verb: &str, plural: &str) -> usize {
        let world = self.shared.lock();
        let asked = world.asked.iter().filter(|asked| asked.is(verb, plural));
        asked.count()
    }

    /// Makes or changes an object.
    pub fn put(&self, mut object: Value) {
        let mut world = self.shared.lock();
        world.version += 1;
        let version = world.version;
        object["metadata"]["resourceVersion"] = version.to_string().into();
        let id = id(&object);
        let plural = id.0.clone();
        let before = world.objects.insert(id, object.clone());
        let kind = match before {
            Some(_) => "MODIFIED",
            None => "ADDED",
        };
        world.events.push_back((version, plural, kind, object));
        if world.events.len() > EVENTS
            && let Some((oldest, ..)) = world.events.pop_front()
        {
            world.compacted = world.compacted.max(oldest);
        }
        drop(world);
        self.shared.changed.notify_all();
    }

    /// Deletes an object.
    pub fn delete(&self, object: &Value) {
        let mut world = self.shared.lock();
        let Some(mut gone) = world.objects.remove(&id(object)) else {
            return;
        };
        world.version += 1;
        let version = world.version;
        gone["metadata"]["resourceVersion"] = version.to_string().into();
        world
            .events
            .push_back((version, id(&gone).0, "DELETED", gone));
        drop(world);
        self.shared.changed.notify_all();
    }

    /// Deletes without an event, as an etcd that is restored does.
    pub fn forget(&self, is_gone: impl Fn(&Value) -> bool) {
        self.shared
            .lock()
            .objects
            .retain(|_, object| !is_gone(object));
    }

    /// Whoever watches from before now is told that it is too old.
    pub fn compact(&self) {
        let mut world = self.shared.lock();
        world.version += 1;
        world.compacted = world.version;
        world.events.clear();
        drop(world);
        self.shared.changed.notify_all();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Plural, namespace, name.
fn id(object: &Value) -> (String, String, String) {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let plural = format!("{}s", text(&object["kind"]).to_lowercase());
    let metadata = &object["metadata"];
    (
        plural,
        text(&metadata["namespace"]),
        text(&metadata["name"]),
    )
}

fn tls() -> (String, Arc<rustls::ServerConfig>) {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let key = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).expect("a certificate");
    let certificate = key.cert.der().clone();
    let private = rustls::pki_types::PrivatePkcs8KeyDer::from(key.signing_key.serialize_der());
    let config = rustls::ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(vec![certificate], private.into())
        .expect("a key");
    (key.cert.pem(), Arc::new(config))
}

fn converse(shared: &Shared, mut stream: impl Read + Write) -> io::Result<()> {
    while let Some(asked) = head(&mut stream)? {
        let (fault, known) = {
            let mut world = shared.lock();
            world.asked.push(asked.clone());
            let known = world.token.as_ref().is_none_or(|token| {
                asked.authorization.as_deref() == Some(&format!("Bearer {token}"))
            });
            (take_fault(&mut world, &asked), known)
        };
        let fault = match fault {
            Some(Fault::Late(after)) => {
                thread::sleep(after);
                None
            }
            fault => fault,
        };
        match (known, fault) {
            (false, _) => status(&mut stream, 401)?,
            (true, Some(fault)) => misbehave(shared, &mut stream, &asked, fault)?,
            (true, None) if asked.verb() == "stream" => stream_list(shared, &mut stream, &asked)?,
            (true, None) if asked.verb() == "watch" => watch(shared, &mut stream, &asked)?,
            (true, None) => list(shared, &mut stream, &asked)?,
        }
    }
    Ok(())
}

fn take_fault(world: &mut World, asked: &Asked) -> Option<Fault> {
    let at = world
        .faults
        .iter()
        .position(|planned| asked.is(planned.verb, planned.plural) && planned.left != Some(0))?;
    let planned = &mut world.faults[at];
    if let Some(left) = &mut planned.left {
        *left -= 1;
    }
    Some(planned.fault.clone())
}

fn head(stream: &mut impl Read) -> io::Result<Option<Asked>> {
    let mut text = Vec::new();
    let mut byte = [0];
    while !text.ends_with(b"\r\n\r\n") {
        if stream.read(&mut byte)? == 0 {
            return Ok(None);
        }
        text.push(byte[0]);
    }
    let text = String::from_utf8_lossy(&text).into_owned();
    let target = text.split(' ').nth(1).unwrap_or_default();
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let pairs = query.split('&').filter_map(|pair| pair.split_once('='));
    let authorization = text.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("authorization")
            .then(|| value.trim().to_owned())
    });
    Ok(Some(Asked {
        path: path.to_owned(),
        query: pairs.map(|(n, v)| (n.to_owned(), v.to_owned())).collect(),
        authorization,
    }))
}

fn whole(stream: &mut impl Write, status: u16, header: &str, body: &[u8]) -> io::Result<()> {
    let head = format!(
        "HTTP/1.1 {status} x\r\nContent-Type: application/json\r\n{header}Content-Length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes())?;
    stream.write_all(body)?;
    stream.flush()
}

fn status(stream: &mut impl Write, code: u16) -> io::Result<()> {
    let body = json!({"kind": "Status", "apiVersion": "v1", "code": code,
        "message": format!("the scripted server says {code}")});
    whole(stream, code, "", body.to_string().as_bytes())
}

const CHUNKED: &[u8] = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";

fn chunk(stream: &mut impl Write, bytes: &[u8]) -> io::Result<()> {
    let mut all = format!("{:x}\r\n", bytes.len()).into_bytes();
    all.extend_from_slice(bytes);
    all.extend_from_slice(b"\r\n");
    stream.write_all(&all)?;
    stream.flush()
}

fn misbehave(
    shared: &Shared,
    stream: &mut (impl Read + Write),
    asked: &Asked,
    fault: Fault,
) -> io::Result<()> {
    let cut = || io::Error::from(io::ErrorKind::ConnectionReset);
    match fault {
        Fault::Status(code) => status(stream, code),
        Fault::Redirect(header) => whole(stream, 302, &header, b""),
        Fault::Body(body) => whole(stream, 200, "", &body),
        Fault::Header(header, body) => whole(stream, 200, header, &body),
        Fault::Cut(body) => {
            stream.write_all(CHUNKED)?;
            chunk(stream, &body)?;
            Err(cut())
        }
        Fault::Drip => {
            stream.write_all(CHUNKED)?;
            loop {
                chunk(stream, b" ")?;
                thread::sleep(Duration::from_millis(20));
            }
        }
        Fault::Silence | Fault::SilentBody | Fault::Late(_) => {
            if matches!(fault, Fault::SilentBody) {
                stream.write_all(CHUNKED)?;
                stream.flush()?;
            }
            // Until the client gives up, and says nothing to that either.
            while stream.read(&mut [0; 64])? > 0 {}
            Err(cut())
        }
        Fault::Error(code) => {
            let event = json!({"type": "ERROR", "object": {"kind": "Status", "code": code, "message": "scripted"}});
            stream.write_all(CHUNKED)?;
            chunk(stream, format!("{event}\n").as_bytes())?;
            chunk(stream, b"")
        }
        Fault::Lines(lines) => {
            stream.write_all(CHUNKED)?;
            chunk(stream, &lines)?;
            events(shared, stream, asked)
        }
    }
}

fn within(asked: &Asked, plural: &str, object: &Value) -> bool {
    let namespace = asked.path.split_once("/namespaces/").map(|(_, rest)| rest);
    let namespace = namespace.and_then(|rest| rest.split('/').next());
    let here = namespace.is_none_or(|namespace| object["metadata"]["namespace"] == namespace);
    here && asked.path.ends_with(&format!("/{plural}"))
}

fn list(shared: &Shared, stream: &mut impl Write, asked: &Asked) -> io::Result<()> {
    let number = |name: &str| {
        let text = asked.query.get(name)?;
        text.parse::<usize>().ok()
    };
    let world = shared.lock();
    // A token is good for one version of the world, as the real one's.
    let now = world.version.to_string();
    let token = asked.query.get("continue");
    let from = match token.and_then(|token| token.split_once("%2F")) {
        Some((of, from)) if of == now => from.parse().unwrap_or(0),
        Some(_) => {
            drop(world);
            return status(stream, 410);
        }
        None => 0,
    };
    let page = world.page.min(number("limit").unwrap_or(usize::MAX));
    let all = world.objects.iter();
    let mut left = all
        .filter(|((plural, _, _), object)| within(asked, plural, object))
        .skip(from);
    // As Go writes them: the items do not say what they are.
    let items: Vec<Value> = left
        .by_ref()
        .take(page)
        .map(|(_, object)| {
            let mut object = object.clone();
            if let Some(fields) = object.as_object_mut() {
                fields.remove("kind");
                fields.remove("apiVersion");
            }
            object
        })
        .collect();
    let next = match left.next() {
        Some(_) => format!("{now}/{}", from + page),
        None => String::new(),
    };
    drop(left);
    drop(world);
    let kind = match asked.path.rsplit('/').next() {
        Some("endpointslices") => "EndpointSliceList",
        Some("nodes") => "NodeList",
        _ => "ServiceList",
    };
    let body = json!({"kind": kind, "apiVersion": "v1", "items": items,
        "metadata": {"resourceVersion": now, "continue": next}});
    whole(stream, 200, "", body.to_string().as_bytes())
}

fn stream_list(shared: &Shared, stream: &mut impl Write, asked: &Asked) -> io::Result<()> {
    let world = shared.lock();
    if !world.streams {
        drop(world);
        return status(stream, 422);
    }
    let all = world.objects.iter();
    let here = all.filter(|((plural, _, _), object)| within(asked, plural, object));
    let mut lines: String = here
        .map(|(_, object)| format!("{}\n", json!({"type": "ADDED", "object": object})))
        .collect();
    let mut asked = asked.clone();
    let version = world.version.to_string();
    drop(world);
    let end = json!({"type": "BOOKMARK", "object": {"kind": "Service", "metadata": {
        "resourceVersion": version, "annotations": {"k8s.io/initial-events-end": "true"}}}});
    lines.push_str(&format!("{end}\n"));
    stream.write_all(CHUNKED)?;
    // Torn wherever it happens to be.
    for piece in lines.as_bytes().chunks(700) {
        chunk(stream, piece)?;
    }
    asked.query.insert("resourceVersion".to_owned(), version);
    events(shared, stream, &asked)
}

fn watch(shared: &Shared, stream: &mut impl Write, asked: &Asked) -> io::Result<()> {
    stream.write_all(CHUNKED)?;
    stream.flush()?;
    events(shared, stream, asked)
}

/// What happens after the version that was asked for, until the time that was asked for is over.
fn events(shared: &Shared, stream: &mut impl Write, asked: &Asked) -> io::Result<()> {
    let number = |name: &str| {
        asked
            .query
            .get(name)
            .and_then(|text| text.parse::<u64>().ok())
    };
    let mut from = number("resourceVersion").unwrap_or(0);
    let end = Instant::now() + Duration::from_secs(number("timeoutSeconds").unwrap_or(60));
    loop {
        let mut world = shared.lock();
        if from < world.compacted {
            drop(world);
            let event = json!({"type": "ERROR", "object": {"kind": "Status", "code": 410}});
            chunk(stream, format!("{event}\n").as_bytes())?;
            return chunk(stream, b"");
        }
        let old = world
            .events
            .partition_point(|(version, ..)| *version <= from);
        let news = world.events.range(old..);
        let lines: String = news
            .filter(|(_, plural, _, object)| within(asked, plural, object))
            .map(|(_, _, kind, object)| format!("{}\n", json!({"type": kind, "object": object})))
            .collect();
        from = from.max(world.version);
        let left = end.saturating_duration_since(Instant::now());
        if lines.is_empty() && !left.is_zero() && !world.stopped {
            world = shared
                .changed
                .wait_timeout(world, left)
                .expect("no panic")
                .0;
        }
        let stopped = world.stopped;
        drop(world);
        if !lines.is_empty() {
            chunk(stream, lines.as_bytes())?;
        } else if left.is_zero() || stopped {
            let object =
                json!({"kind": "Service", "metadata": {"resourceVersion": from.to_string()}});
            let bookmark = json!({"type": "BOOKMARK", "object": object});
            chunk(stream, format!("{bookmark}\n").as_bytes())?;
            return chunk(stream, b"");
        }
    }
}
