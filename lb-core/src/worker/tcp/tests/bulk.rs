//! Bulk: spliced through pipes, or copied where there is none; either way the same bytes, and each
//! end as what it was, after all that came before it.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::thread;
use std::time::Duration;

use rustix::net::{SendFlags, send};

use super::harness::*;
use super::stream::exchange;
use crate::stats::CloseReason;

const MANY: usize = 24 << 20;
/// Too few descriptors for a pipe.
const NO_PIPES: u64 = 20;

/// Waits until the proxy takes no more of what `proxy` is sent, with bytes in a pipe.
fn stalled(proxy: &Proxy) {
    let taken = || proxy.counters.bytes_upstream.value() + proxy.counters.bytes_downstream.value();
    let mut last = 0;
    until("the sender stands", || {
        let before = std::mem::replace(&mut last, taken());
        thread::sleep(Duration::from_millis(100));
        before > 0 && before == last
    });
}

/// Who sends, and who reads.
fn ends(downloads: bool, client: TcpStream, server: TcpStream) -> (TcpStream, TcpStream) {
    match downloads {
        true => (server, client),
        false => (client, server),
    }
}

#[test]
fn awkward_sizes_of_bulk_come_back() {
    let proxy = Proxy::start(V4, &[backend(V4, echo)], policy());
    let mut sizes = Vec::new();
    for edge in [2 << 16, 3 << 16, 4 << 16, 6 << 16, 8 << 16, 1 << 20] {
        sizes.extend([edge - 1, edge, edge + 1]);
    }
    for size in &sizes {
        let bytes = pattern(*size as u64, *size);
        same(&exchange(proxy.connect(), &bytes), &bytes);
    }
    proxy.settle_as(CloseReason::Finished, sizes.len() as u64);
    let sum = sizes.iter().sum::<usize>() as u64;
    assert_eq!(proxy.counters.bytes_downstream.value(), sum);
    assert_eq!(proxy.counters.bytes_upstream.value(), sum);
    assert_eq!(proxy.worker.bulk_copied.value(), 0);
    assert!(proxy.pipes() > 0, "nothing was spliced");
}

#[test]
fn without_pipes_the_same_bytes_are_copied() {
    let proxy = Proxy::within(NO_PIPES, V4, &[backend(V4, echo)], policy());
    for seed in 0..3 {
        let bytes = pattern(seed, 5 << 20);
        same(&exchange(proxy.connect(), &bytes), &bytes);
    }
    proxy.settle_as(CloseReason::Finished, 3);
    assert_eq!(proxy.pipes(), 0);
    assert!(proxy.worker.bulk_copied.value() > 0);
}

/// The FIN comes while a pipe, and both kernels' queues, are full; it goes out last.
#[test]
fn a_fin_waits_for_a_slow_reader_and_the_other_way_runs_on() {
    for (downloads, descriptors) in [(true, 4_096), (false, 4_096), (true, NO_PIPES)] {
        let (proxy, client, server) = pair_within(descriptors, policy());
        let (mut sender, mut reader) = ends(downloads, client, server);
        let sending = thread::spawn(move || {
            sender.write_all(&pattern(1, MANY)).expect("it takes all");
            sender.shutdown(Shutdown::Write).expect("open");
            same(&read_to_fin(&mut sender), &pattern(2, MANY));
        });
        stalled(&proxy);
        assert_eq!(proxy.pipes() > 0, descriptors != NO_PIPES);
        same(&read_to_fin(&mut reader), &pattern(1, MANY));
        reader.write_all(&pattern(2, MANY)).expect("half open");
        drop(reader);
        sending.join().expect("sent and read");
        proxy.settle_as(CloseReason::Finished, 1);
    }
}

/// The sender ends while the proxy holds bytes that the reader has no room for. With a FIN before
/// the reset, all must arrive; either way what arrives is what was sent, from its beginning on.
#[test]
fn an_end_while_a_pipe_is_full_delivers_what_came_before() {
    // What both kernels' queues and a pipe can hold, and the reader's cannot.
    const LEN: usize = 5 << 20;
    for (downloads, with_fin) in [(true, true), (true, false), (false, true), (false, false)] {
        let (proxy, client, server) = pair(policy());
        let (mut sender, mut reader) = ends(downloads, client, server);
        let sending = thread::spawn(move || {
            sender.write_all(&pattern(3, LEN)).expect("it takes all");
            if with_fin {
                sender.shutdown(Shutdown::Write).expect("open");
            }
            flushed(&sender);
            reset(sender);
        });
        let mut got = Vec::new();
        let mut piece = vec![0; 40_000];
        // A reader that is behind all the while.
        let end = loop {
            match reader.read(&mut piece) {
                Ok(0) => break Ok(()),
                Ok(n) => got.extend(&piece[..n]),
                Err(error) => break Err(error.kind()),
            }
            thread::sleep(Duration::from_micros(200));
        };
        sending.join().expect("sent");
        same(&got, &pattern(3, LEN));
        match with_fin {
            true => assert_eq!(end, Ok(())),
            false => assert_eq!(end, Err(ErrorKind::ConnectionReset)),
        }
        drop(reader);
        proxy.settle();
    }
}

/// The reader resets while a pipe holds bytes for it: they are nobody's, and neither is the pipe.
#[test]
fn a_reader_that_resets_leaves_a_pipe_to_nobody() {
    for downloads in [true, false] {
        let (address, streams) = one_backend(V4);
        let proxy = Proxy::start(V4, &[address], policy());
        let open = || {
            let client = proxy.connect();
            (
                client,
                streams.recv_timeout(PATIENCE).expect("it is dialled"),
            )
        };
        let (client, server) = open();
        let (mut sender, reader) = ends(downloads, client, server);
        let sending = thread::spawn(move || {
            // As long as it takes.
            let error = std::iter::repeat_with(|| sender.write_all(&pattern(4, 1 << 20)))
                .find_map(Result::err)
                .expect("it repeats for ever");
            error.kind()
        });
        stalled(&proxy);
        assert!(proxy.pipes() > 0, "nothing was spliced");
        reset(reader);
        let told = sending.join().expect("it ends");
        assert!(matches!(
            told,
            ErrorKind::ConnectionReset | ErrorKind::BrokenPipe
        ));
        let reason = match downloads {
            true => CloseReason::DownstreamReset,
            false => CloseReason::UpstreamReset,
        };
        proxy.settle_as(reason, 1);
        // What the next ones get through this worker's pipes is their own.
        let (client, server) = open();
        let echoing = thread::spawn(move || echo(server));
        let bytes = pattern(5, 3 << 20);
        same(&exchange(client, &bytes), &bytes);
        echoing.join().expect("echo ends");
        proxy.settle();
    }
}

/// A splice stops at the urgent mark and says nothing, or, with a FIN behind it, 0.
#[test]
fn urgent_data_in_bulk_stays_in_its_place() {
    for downloads in [true, false] {
        for last in [0, 1, 70_000] {
            let (proxy, client, server) = pair(policy());
            let (sender, mut reader) = ends(downloads, client, server);
            socket2::SockRef::from(&reader)
                .set_out_of_band_inline(true)
                .expect("an option");
            let bytes = pattern(6, 4 << 20);
            let sent = bytes.clone();
            let sending = thread::spawn(move || {
                let (most, rest) = sent.split_at(sent.len() - last);
                for piece in most.chunks(300_007) {
                    let mut at = 0;
                    while at < piece.len() {
                        // Its last byte is the urgent one.
                        at += send(&sender, &piece[at..], SendFlags::OOB).expect("open");
                    }
                }
                (&sender).write_all(rest).expect("open");
                sender.shutdown(Shutdown::Write).expect("open");
                sender
            });
            same(&read_to_fin(&mut reader), &bytes);
            drop(reader);
            drop(sending.join().expect("sent"));
            proxy.settle_as(CloseReason::Finished, 1);
        }
    }
}

/// More slow readers than pipes: every stream arrives, and one beside them is spliced all along.
#[test]
fn slow_readers_hold_no_more_than_their_part_of_the_pipes() {
    const SLOW: u64 = 14;
    // What no kernel's queues can hold.
    const LEN: usize = 12 << 20;
    // Ten pipes.
    let serve = |mut stream: TcpStream| {
        let mut seed = [0];
        stream.read_exact(&mut seed).expect("a byte");
        let _ = stream.write_all(&pattern(seed[0].into(), LEN));
    };
    let proxy = Proxy::within(400, V4, &[backend(V4, serve)], policy());
    let mut slow: Vec<_> = (0..SLOW as u8)
        .map(|seed| {
            let mut stream = proxy.connect();
            stream.write_all(&[seed]).expect("open");
            stream
        })
        .collect();
    stalled(&proxy);
    assert!(proxy.pipes() <= 10, "{} pipes", proxy.pipes());
    let copied = proxy.worker.bulk_copied.value();
    let mut quick = proxy.connect();
    quick.write_all(&[200]).expect("open");
    same(&read_to_fin(&mut quick), &pattern(200, LEN));
    assert_eq!(proxy.worker.bulk_copied.value(), copied, "no pipe was left");
    drop(quick);
    for (seed, stream) in slow.iter_mut().enumerate() {
        same(&read_to_fin(stream), &pattern(seed as u64, LEN));
    }
    drop(slow);
    proxy.settle_as(CloseReason::Finished, SLOW + 1);
}
