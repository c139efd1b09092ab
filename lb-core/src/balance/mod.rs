//! Which backend takes a connection or a flow.
//!
//! PURE. A pool freezes its backends into an [`Index`]; a worker asks it with the hash of the
//! client and a [`View`] of what only that worker knows: which backends to pass over just now, how
//! busy each is, and its own source of chance. Whatever the algorithm, passing over a backend moves
//! the keys of that backend and no other's, and the answer is `None` only if nothing is left.
//!
//! Only backends of weight above zero enter an index; the numbers it answers are positions in the
//! pool's own list all the same.

mod key;
mod maglev;
mod rendezvous;
mod weighted;

use std::net::SocketAddr;

pub use key::{HashKey, client_hash, tuple_hash};
pub use maglev::MAX_BACKENDS as MAX_MAGLEV_BACKENDS;

use maglev::Maglev;
use rendezvous::Rendezvous;
use weighted::Weighted;

/// How a pool chooses a backend for new work.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Algorithm {
    /// Weighted rendezvous hash: shares are exact, and a change moves no key that it need not.
    /// The cost of a pick grows with the pool: about 1 us at 1,000 backends.
    #[default]
    Consistent,
    /// Maglev lookup table: one look-up whatever the size, up to [`MAX_MAGLEV_BACKENDS`]; a change
    /// moves up to 1 % of other backends' keys, and far more where the table's size changes (at
    /// 16 and at 128 backends).
    Maglev,
    /// Each in turn, per worker; a backend of twice the weight has twice the turns, spread out.
    RoundRobin,
    /// By chance, in proportion to weight.
    Random,
    /// The less loaded, for its weight, of two chosen by chance.
    LeastConnections,
}

/// What the asking worker knows of a pool's backends; `i` counts as the pool's list does.
pub trait View {
    /// Pass over backend `i` this time: tried already, or marked. Asked for few backends only.
    fn skip(&self, i: usize) -> bool;
    /// Connections and flows of this worker that backend `i` holds now.
    fn active(&self, i: usize) -> u32;
    /// 64 fresh random bits.
    fn random(&mut self) -> u64;
    /// The next round-robin ticket: one more than the last, wrapping.
    fn round(&mut self) -> u64;
}

/// A backend as an index sees it.
#[derive(Clone, Copy, Debug)]
struct Member {
    /// Position in the pool's list.
    index: u32,
    /// Never 0.
    weight: u16,
    /// The backend's address under the hash key, as two independent words.
    seed: (u64, u64),
}

/// A frozen pool's answer to "who takes this one?".
#[derive(Clone, Debug)]
pub struct Index(Kind);

#[derive(Clone, Debug)]
enum Kind {
    Consistent(Rendezvous),
    Maglev(Maglev),
    RoundRobin(Weighted),
    Random(Weighted),
    LeastConnections(Weighted),
}

impl Index {
    /// An index over a pool's list of addresses and weights, of which those of weight 0 take no new
    /// work. Backends' seeds come from `key` and their addresses alone, so that appliances with one
    /// key agree.
    ///
    /// The caller keeps a Maglev pool within [`MAX_MAGLEV_BACKENDS`]: beyond it the table would
    /// hold fewer than 1,000 places per backend.
    pub(crate) fn new(
        algorithm: Algorithm,
        backends: impl ExactSizeIterator<Item = (SocketAddr, u16)>,
        key: &HashKey,
    ) -> Index {
        let size = backends.len();
        let members: Vec<Member> = (0u32..)
            .zip(backends)
            .filter(|(_, (_, weight))| *weight > 0)
            .map(|(index, (address, weight))| Member {
                index,
                weight,
                seed: key::backend_seed(key, address),
            })
            .collect();
        Index(match algorithm {
            Algorithm::Consistent => Kind::Consistent(Rendezvous::new(&members)),
            Algorithm::Maglev => Kind::Maglev(Maglev::new(&members, size)),
            Algorithm::RoundRobin => Kind::RoundRobin(Weighted::new(&members)),
            Algorithm::Random => Kind::Random(Weighted::new(&members)),
            Algorithm::LeastConnections => Kind::LeastConnections(Weighted::new(&members)),
        })
    }

    /// The backend for a client whose [`tuple_hash`] or [`client_hash`] is `hash`, as a position in the pool's list;
    /// `None` if every usable backend is skipped, or none is usable.
    pub fn pick(&self, hash: u64, view: &mut impl View) -> Option<usize> {
        match &self.0 {
            Kind::Consistent(index) => index.pick(hash, |i| view.skip(i)),
            Kind::Maglev(index) => index.pick(hash, |i| view.skip(i)),
            Kind::RoundRobin(index) => index.next(view),
            Kind::Random(index) => index.random(view),
            Kind::LeastConnections(index) => index.least(view),
        }
    }
}

#[cfg(test)]
mod tests;
