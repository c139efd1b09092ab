//! The provided-buffer ring: memory that the kernel picks from when it has something for us.
//!
//! ```text
//!            give: at the tail                 a completion names it
//!   ours ────────────────────▶ the kernel's ─────────────────────────▶ ours, in one Chain
//! ```
//!
//! A buffer is either the kernel's, and then nobody here reads it, or in exactly one [`Chain`],
//! and then the kernel does not write it. A chain is a list through the buffers' own records, so
//! that a connection holds eight bytes however much waits for it.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU16, Ordering};

use io_uring::types::BufRingEntry;

/// End of a chain.
const NONE: u16 = u16::MAX;
/// Buffers are given to the kernel at page boundaries, as io_uring_register_buf_ring(3) wants of
/// the ring itself.
const PAGE: usize = 4_096;

/// Bytes received, in the order of their coming, in buffers that are ours until given back.
///
/// Not to be dropped with something in it: [`Buffers::give`] it back.
#[derive(Debug)]
pub(crate) struct Chain {
    head: u16,
    tail: u16,
    len: u32,
}

impl Default for Chain {
    fn default() -> Chain {
        Chain::EMPTY
    }
}

impl Chain {
    /// Nothing.
    pub(crate) const EMPTY: Chain = Chain {
        head: NONE,
        tail: NONE,
        len: 0,
    };

    /// How many bytes.
    pub(crate) fn len(&self) -> u32 {
        self.len
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.head == NONE
    }

    /// All of it; nothing stays.
    pub(crate) fn take(&mut self) -> Chain {
        std::mem::take(self)
    }
}

/// What of a buffer holds bytes, and which one comes after it in its chain.
#[derive(Clone, Copy, Debug)]
struct Record {
    start: u32,
    len: u32,
    next: u16,
}

/// The buffers and the ring by which they are given to the kernel.
#[derive(Debug)]
pub(crate) struct Buffers {
    entries: NonNull<BufRingEntry>,
    data: NonNull<u8>,
    count: u16,
    size: u32,
    tail: u16,
    records: Vec<Record>,
    /// Buffers that are in chains.
    lent: u16,
}

impl Buffers {
    /// `count` buffers, a power of two up to 32,768, of `size` bytes each, all of them the kernel's
    /// once the ring is registered. The first page of each has its memory from the start, so that
    /// no message waits for it; the others get theirs from what is received.
    pub(super) fn new(count: u16, size: u32) -> Buffers {
        assert!(count.is_power_of_two() && count <= 1 << 15 && size > 0);
        let (ring, data) = layouts(count, size);
        let mut buffers = Buffers {
            entries: zeroed(ring).cast(),
            data: zeroed(data),
            count,
            size,
            tail: 0,
            records: vec![
                Record {
                    start: 0,
                    len: 0,
                    next: NONE
                };
                count.into()
            ],
            lent: 0,
        };
        for id in 0..count {
            buffers.touch(id);
            buffers.push(id);
        }
        buffers.publish();
        buffers
    }

    /// The address to register, and how many entries are there.
    pub(super) fn ring(&self) -> (u64, u16) {
        (self.entries.as_ptr().addr() as u64, self.count)
    }

    /// Buffers that are not the kernel's just now.
    pub(crate) fn lent(&self) -> u16 {
        self.lent
    }

    /// Has the kernel less than a quarter of them?
    pub(crate) fn is_short(&self) -> bool {
        self.lent > self.count - self.count / 4
    }

    /// The kernel has put `len` bytes into buffer `id`, which is ours from now on.
    ///
    /// To be called once for each completion that names a buffer: what keeps it from being in two
    /// chains is that the kernel names a buffer only after it was given.
    pub(super) fn received(&mut self, id: u16, len: u32) -> Chain {
        self.lent += 1;
        self.records[usize::from(id)] = Record {
            start: 0,
            len: len.min(self.size),
            next: NONE,
        };
        Chain {
            head: id,
            tail: id,
            len: len.min(self.size),
        }
    }

    /// Puts what came later behind what came before.
    pub(crate) fn append(&mut self, chain: &mut Chain, mut later: Chain) {
        if chain.is_empty() {
            *chain = later;
            return;
        }
        if later.is_empty() {
            return;
        }
        let Chain { head, tail, len } = later.take();
        self.records[usize::from(chain.tail)].next = head;
        chain.tail = tail;
        chain.len += len;
    }

    /// Parts the first `most` buffers from the rest, which stays in `chain`.
    pub(crate) fn split(&mut self, chain: &mut Chain, most: usize) -> Chain {
        let (mut last, mut len) = (chain.head, 0);
        if chain.is_empty() {
            return Chain::EMPTY;
        }
        for taken in 1.. {
            let record = self.records[usize::from(last)];
            len += record.len;
            if record.next == NONE {
                return chain.take();
            }
            if taken == most {
                break;
            }
            last = record.next;
        }
        let first = Chain {
            head: chain.head,
            tail: last,
            len,
        };
        let record = &mut self.records[usize::from(last)];
        chain.head = std::mem::replace(&mut record.next, NONE);
        chain.len -= len;
        first
    }

    /// The bytes, piece by piece.
    pub(crate) fn pieces<'a>(&'a self, chain: &'a Chain) -> impl Iterator<Item = &'a [u8]> {
        let mut next = chain.head;
        std::iter::from_fn(move || {
            let id = next;
            let record = self.records.get(usize::from(id))?;
            next = record.next;
            Some(self.bytes(id, *record))
        })
    }

    fn bytes(&self, id: u16, record: Record) -> &[u8] {
        let start = usize::from(id) * self.size as usize + record.start as usize;
        // SAFETY: buffer `id` is one of `count` of `size` bytes each that `data` was allocated
        // with, and `start + len` is within it (`received` and `consume` see to that). It is in a
        // chain, so the kernel does not write it, and nobody here writes buffers at all. Zeroed at
        // allocation: every byte is initialised.
        unsafe { std::slice::from_raw_parts(self.data.as_ptr().add(start), record.len as usize) }
    }

    /// The first `n` bytes are done with; buffers that are used up are given back.
    pub(crate) fn consume(&mut self, chain: &mut Chain, n: u32) {
        let mut left = n.min(chain.len);
        chain.len -= left;
        while chain.head != NONE {
            let record = &mut self.records[usize::from(chain.head)];
            if left < record.len {
                record.start += left;
                record.len -= left;
                break;
            }
            left -= record.len;
            let next = record.next;
            self.push(chain.head);
            self.lent -= 1;
            chain.head = next;
        }
        if chain.head == NONE {
            *chain = Chain::EMPTY;
        }
        self.publish();
    }

    /// Gives all of it back to the kernel.
    pub(crate) fn give(&mut self, mut chain: Chain) {
        let len = chain.len;
        self.consume(&mut chain, len);
    }

    /// Moves the bytes to the end of `to`, and gives the buffers back.
    pub(crate) fn move_to(&mut self, chain: Chain, to: &mut Vec<u8>) {
        to.reserve_exact(chain.len as usize);
        for piece in self.pieces(&chain) {
            to.extend_from_slice(piece);
        }
        self.give(chain);
    }

    /// Has the system give buffer `id` its first page.
    fn touch(&mut self, id: u16) {
        let start = usize::from(id) * self.size as usize;
        // SAFETY: `start` is within the allocation of `count * size` bytes, and the buffer is not
        // the kernel's yet. Volatile, or a zero over a zero would be none.
        unsafe { self.data.as_ptr().add(start).write_volatile(0) }
    }

    /// Writes buffer `id` at the tail; the kernel sees it after [`Buffers::publish`].
    fn push(&mut self, id: u16) {
        let at = usize::from(self.tail & (self.count - 1));
        let start = usize::from(id) * self.size as usize;
        // SAFETY: `start` is within the allocation of `count * size` bytes.
        let address = unsafe { self.data.as_ptr().add(start) };
        // SAFETY: `at` is below `count`, the number of entries allocated, zeroed and so valid. The
        // kernel reads only entries between its head and the published tail; the one at the tail
        // is not among them, for there are as many entries as buffers and this buffer is not the
        // kernel's. The fields are written singly: the last two bytes of entry 0 are the tail,
        // which is not touched here.
        unsafe {
            let entry = &mut *self.entries.as_ptr().add(at);
            entry.set_addr(address.expose_provenance() as u64);
            entry.set_len(self.size);
            entry.set_bid(id);
        }
        self.tail = self.tail.wrapping_add(1);
    }

    /// Lets the kernel see what was pushed.
    fn publish(&self) {
        // SAFETY: `entries` is the start of the ring, page-aligned, and lives as long as `self`;
        // its tail is 16 bits that the kernel reads and nobody else writes.
        unsafe {
            let tail = BufRingEntry::tail(self.entries.as_ptr());
            AtomicU16::from_ptr(tail.cast_mut()).store(self.tail, Ordering::Release);
        }
    }
}

impl Drop for Buffers {
    fn drop(&mut self) {
        let (ring, data) = layouts(self.count, self.size);
        // SAFETY: both were allocated with these layouts and are freed here only. The owner (the
        // ring) drops this after the kernel has finished every operation that could write a
        // buffer, or not at all.
        unsafe {
            dealloc(self.entries.as_ptr().cast(), ring);
            dealloc(self.data.as_ptr(), data);
        }
    }
}

/// The memory of the ring and of the buffers.
fn layouts(count: u16, size: u32) -> (Layout, Layout) {
    let count = usize::from(count);
    let ring = Layout::from_size_align(count * size_of::<BufRingEntry>(), PAGE);
    let data = Layout::from_size_align(count * size as usize, PAGE);
    let bounded = "at most 32,768 buffers of 4 GiB";
    (ring.expect(bounded), data.expect(bounded))
}

fn zeroed(layout: Layout) -> NonNull<u8> {
    // SAFETY: no layout here has size zero: `count` and `size` are at least one.
    let memory = unsafe { alloc_zeroed(layout) };
    NonNull::new(memory).unwrap_or_else(|| handle_alloc_error(layout))
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::*;

    /// Plays the kernel: takes the buffers in the order in which they were given.
    struct Kernel {
        head: u16,
        written: u8,
    }

    impl Kernel {
        fn write(&mut self, buffers: &mut Buffers, len: u32) -> Option<(Chain, Vec<u8>)> {
            // SAFETY: as in `publish`; the test is on one thread.
            let tail = unsafe { *BufRingEntry::tail(buffers.entries.as_ptr()) };
            if tail == self.head {
                return None;
            }
            let at = usize::from(self.head & (buffers.count - 1));
            // SAFETY: the entry at `head` was pushed.
            let entry = unsafe { &*buffers.entries.as_ptr().add(at) };
            self.head = self.head.wrapping_add(1);
            let len = len.min(entry.len());
            let bytes: Vec<u8> = (0..len)
                .map(|_| {
                    self.written = self.written.wrapping_add(1);
                    self.written
                })
                .collect();
            let to = std::ptr::with_exposed_provenance_mut::<u8>(entry.addr() as usize);
            // SAFETY: the buffer is the kernel's, which this plays.
            unsafe { to.copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
            Some((buffers.received(entry.bid(), len), bytes))
        }
    }

    fn all(buffers: &Buffers, chain: &Chain) -> Vec<u8> {
        buffers.pieces(chain).flatten().copied().collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig {
            cases: if cfg!(miri) { 8 } else { 256 },
            failure_persistence: None,
            ..ProptestConfig::default()
        })]

        /// Against queues of bytes: whatever is received, split, consumed and given back, each
        /// chain holds its bytes, and no buffer is lost or given twice.
        #[test]
        fn as_queues_of_bytes(steps in prop::collection::vec((0u8..5, 0usize..3, 1u32..20), 1..120)) {
            let mut buffers = Buffers::new(8, 16);
            let mut kernel = Kernel { head: 0, written: 0 };
            let mut chains = [Chain::EMPTY, Chain::EMPTY, Chain::EMPTY];
            let mut models = [const { VecDeque::<u8>::new() }; 3];
            for (step, at, n) in steps {
                match step {
                    0 | 1 => {
                        let free = buffers.lent() < 8;
                        let got = kernel.write(&mut buffers, n);
                        prop_assert_eq!(free, got.is_some());
                        if let Some((later, bytes)) = got {
                            buffers.append(&mut chains[at], later);
                            models[at].extend(bytes);
                        }
                    }
                    2 => {
                        buffers.consume(&mut chains[at], n);
                        models[at].drain(..(n as usize).min(models[at].len()));
                    }
                    3 => {
                        let first = buffers.split(&mut chains[at], n as usize % 3 + 1);
                        prop_assert!(buffers.pieces(&first).count() <= n as usize % 3 + 1);
                        let rest = chains[at].take();
                        chains[at] = first;
                        buffers.append(&mut chains[at], rest);
                    }
                    _ => {
                        let mut bytes = Vec::new();
                        let chain = chains[at].take();
                        buffers.move_to(chain, &mut bytes);
                        prop_assert_eq!(&bytes, &Vec::from(models[at].split_off(0)));
                    }
                }
                let mut held = 0;
                for (chain, model) in chains.iter().zip(&models) {
                    prop_assert_eq!(chain.len() as usize, model.len());
                    prop_assert_eq!(&all(&buffers, chain), &Vec::from(model.clone()));
                    held += buffers.pieces(chain).count();
                }
                prop_assert_eq!(usize::from(buffers.lent()), held);
            }
        }
    }
}
