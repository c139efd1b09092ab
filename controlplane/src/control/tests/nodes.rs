//! Nodes of a directory, dialled at their node ports: asked, found dead, and found again.

use std::sync::atomic::{AtomicBool, Ordering};

use super::*;
use crate::probe::KUBE_PROXY_PORT;

/// A listener that says `answer` to everybody, until it is dropped.
struct Says {
    address: SocketAddr,
    ended: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Says {
    fn at(address: SocketAddr, answer: &'static str) -> Option<Says> {
        let listener = TcpListener::bind(address).ok()?;
        let address = listener.local_addr().ok()?;
        let ended = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&ended);
        let thread = thread::spawn(move || {
            for stream in listener.incoming() {
                if seen.load(Ordering::Relaxed) {
                    return;
                }
                let _ = stream.and_then(|mut stream| {
                    if answer == HEALTHY {
                        // Unread, it would make a reset of the end.
                        stream.set_read_timeout(Some(SOON))?;
                        let _ = stream.read(&mut [0; 1_024])?;
                    }
                    stream.write_all(answer.as_bytes())
                });
            }
        });
        Some(Says {
            address,
            ended,
            thread: Some(thread),
        })
    }
}

impl Drop for Says {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        let _ = TcpStream::connect(self.address);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

const HEALTHY: &str = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";

/// The node at this address, whose service proxy is well.
fn well(node: [u8; 4]) -> Says {
    Says::at((node, KUBE_PROXY_PORT).into(), HEALTHY).expect("a port of this test alone")
}

#[test]
fn a_directory_of_nodes_is_dialled_at_node_ports_and_a_dead_one_is_not() {
    let bench = Bench::start(160);
    let (first, second) = ([127, 51, 160, 1], [127, 51, 160, 2]);
    let one = Says::at((first, 0).into(), "one").expect("a port");
    let port = one.address.port();
    let _two = Says::at((second, port).into(), "two").expect("an address of this test alone");
    let (healthy, _other) = (well(first), well(second));
    let service = manifest("web", SocketAddr::from(([127, 51, 160, 9], 9)))
        .replacen(
            "name: web,",
            "name: web, annotations: {weir.dev/backends: nodes},",
            1,
        )
        .replacen("port: 7000,", &format!("port: 7000, nodePort: {port},"), 1);
    bench.write("web.yaml", &service);
    let closed = || {
        bench
            .service("web")
            .filter(|(state, _)| *state == State::Closed)
    };
    eventually("closed: there is no node", closed);
    let node = |name: &str, [a, b, c, d]: [u8; 4]| {
        format!(
            "apiVersion: v1\nkind: Node\nmetadata: {{name: {name}}}\nstatus: {{addresses: [{{type: InternalIP, address: {a}.{b}.{c}.{d}}}]}}\n---\n"
        )
    };
    bench.write("nodes.yaml", &(node("n1", first) + &node("n2", second)));
    let vip = bench.serving("web");
    let answers = |what: &str, wanted: [bool; 2]| {
        eventually(what, || {
            let asked: Vec<_> = (0..20).map(|_| ask(vip)).collect::<Result<_, _>>().ok()?;
            let has = |name: &str| asked.iter().any(|said| said == name);
            ([has("one"), has("two")] == wanted).then_some(())
        });
    };
    answers("both nodes", [true, true]);
    // kube-proxy alone is gone: its node port says that the node forwards all the same.
    drop(healthy);
    let state = |wanted: &str| {
        let text = bench.metrics.render();
        let line = format!("weir_probe_targets{{kind=\"proxy\",state=\"{wanted}\"}} 1");
        text.contains(&line).then_some(())
    };
    eventually("its health is refused", || state("refused"));
    answers("both nodes still", [true, true]);
    drop(one);
    answers("the node port too is gone", [false, true]);
    assert_eq!(
        bench.service("web").map(|(state, _)| state),
        Some(State::Serving)
    );
    let _back = Says::at((first, port).into(), "one").expect("free again");
    let _well = well(first);
    answers("it is back", [true, true]);
}
