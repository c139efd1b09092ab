//! Placeholder.

/// How a pool chooses a backend for new work.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Algorithm {
    /// Weighted rendezvous hash.
    #[default]
    Consistent,
    /// Maglev lookup table.
    Maglev,
    /// Each in turn.
    RoundRobin,
    /// By chance.
    Random,
    /// The less loaded of two chosen by chance.
    LeastConnections,
}
