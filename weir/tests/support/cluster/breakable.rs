//! A TCP path that can fail in the ways that networks do.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, Weak};

use socket2::SockRef;

use super::net;

/// A way to the API server that can be broken. It is a TCP proxy inside the test: what passes
/// through is not looked at. Ends when dropped, and every connection on it.
pub struct Breakable {
    /// Where to dial instead of the API server.
    pub address: SocketAddr,
    listener: Arc<TcpListener>,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    way: Way,
    pairs: Vec<Weak<Pair>>,
    accepted: u64,
}

#[derive(Clone, Copy, Default, PartialEq)]
enum Way {
    #[default]
    Open,
    Silent,
    Cut,
    Ended,
}

/// A connection from a client and the one to the server.
struct Pair {
    client: TcpStream,
    server: TcpStream,
    /// Everything is swallowed, ends of streams too. For good: what was swallowed is missing.
    silent: AtomicBool,
}

impl Breakable {
    /// Opens a way to `server`, on another port of the same address and in the same namespace.
    pub(super) fn open(namespace: Option<&str>, server: SocketAddr) -> Breakable {
        let namespace = namespace.map(str::to_owned);
        let inside = move || {
            if let Some(name) = &namespace {
                net::enter(name);
            }
        };
        let listener = std::thread::spawn({
            let inside = inside.clone();
            move || {
                inside();
                TcpListener::bind((server.ip(), 0)).unwrap()
            }
        });
        let listener = Arc::new(listener.join().unwrap());
        let state = Arc::new(Mutex::new(State::default()));
        std::thread::spawn({
            let (listener, state) = (listener.clone(), state.clone());
            move || {
                inside();
                accept(&listener, server, &state);
            }
        });
        Breakable {
            address: listener.local_addr().unwrap(),
            listener,
            state,
        }
    }

    /// From now on every byte is swallowed, both ways and on every connection, without FIN or RST:
    /// what a peer sees whose packets are dropped. New connections are accepted, as by a router that
    /// answers for the server, and then silent too. Those silenced stay so for ever.
    pub fn silence(&self) {
        let mut state = lock(&self.state);
        state.way = Way::Silent;
        for pair in state.pairs.iter().filter_map(Weak::upgrade) {
            pair.silent.store(true, Ordering::SeqCst);
        }
    }

    /// Ends every connection, both ways, and every new one at once.
    pub fn cut(&self) {
        self.end(Way::Cut);
    }

    /// New connections pass again.
    pub fn heal(&self) {
        lock(&self.state).way = Way::Open;
    }

    /// How many connections have been made so far, those that were cut at once included.
    pub fn accepted(&self) -> u64 {
        lock(&self.state).accepted
    }

    fn end(&self, way: Way) {
        let mut state = lock(&self.state);
        state.way = way;
        for pair in state.pairs.drain(..).filter_map(|pair| pair.upgrade()) {
            let _ = pair.client.shutdown(Shutdown::Both);
            let _ = pair.server.shutdown(Shutdown::Both);
        }
    }
}

impl Drop for Breakable {
    fn drop(&mut self) {
        self.end(Way::Ended);
        // Its thread wakes up from accept (shutdown(2) on a listener; Linux).
        let _ = SockRef::from(&*self.listener).shutdown(Shutdown::Both);
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap()
}

/// Until the way has ended.
fn accept(listener: &TcpListener, server: SocketAddr, state: &Arc<Mutex<State>>) {
    while let Ok((client, _)) = listener.accept() {
        lock(state).accepted += 1;
        // A new thread is in the namespace of its maker.
        let state = state.clone();
        std::thread::spawn(move || carry(client, server, &state));
    }
}

/// A connection, from its first byte to its end.
fn carry(client: TcpStream, server: SocketAddr, state: &Mutex<State>) {
    // Without a server the client's connection ends here, as it would there.
    let Ok(server) = TcpStream::connect(server) else {
        return;
    };
    let pair = Arc::new(Pair {
        client,
        server,
        silent: AtomicBool::new(false),
    });
    {
        let mut state = lock(state);
        match state.way {
            Way::Open => {}
            Way::Silent => pair.silent.store(true, Ordering::SeqCst),
            Way::Cut | Way::Ended => return,
        }
        state.pairs.retain(|pair| pair.strong_count() > 0);
        state.pairs.push(Arc::downgrade(&pair));
    }
    std::thread::scope(|scope| {
        scope.spawn(|| pump(&pair, &pair.client, &pair.server));
        pump(&pair, &pair.server, &pair.client);
    });
}

/// One direction of a pair, until its end; the end is passed on like the bytes.
fn pump(pair: &Pair, mut from: &TcpStream, mut to: &TcpStream) {
    let mut buffer = [0; 16 << 10];
    while let Ok(length @ 1..) = from.read(&mut buffer) {
        if !pair.silent.load(Ordering::SeqCst) && to.write_all(&buffer[..length]).is_err() {
            break;
        }
    }
    if !pair.silent.load(Ordering::SeqCst) {
        let _ = to.shutdown(Shutdown::Write);
    }
}
