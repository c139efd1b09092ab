//! Copies of datagrams that may have to be sent again, within a budget.

/// The longest datagram of which a copy is kept. DNS over UDP, SIP and QUIC's first datagrams
/// fit; what is longer is nearly always part of a stream that repairs itself.
pub const COPY_MAX: usize = 2048;

/// What all copies of a worker take.
#[derive(Debug)]
pub(super) struct Copies {
    budget: usize,
    used: usize,
}

impl Copies {
    pub(super) fn new(budget: usize) -> Copies {
        Copies { budget, used: 0 }
    }

    /// Bytes held.
    pub(super) fn used(&self) -> usize {
        self.used
    }

    /// Puts `payload` in the place of what `copy` holds. `false`: it does not fit, and `copy`
    /// holds nothing, since what it held is no longer the latest.
    pub(super) fn keep(&mut self, copy: &mut Option<Vec<u8>>, payload: &[u8]) -> bool {
        if let Some(held) = copy.as_mut()
            && payload.len() <= held.capacity()
        {
            held.clear();
            held.extend_from_slice(payload);
            return true;
        }
        self.forget(copy);
        if payload.len() > COPY_MAX || self.used + payload.len() > self.budget {
            return false;
        }
        let mut held = Vec::with_capacity(payload.len());
        held.extend_from_slice(payload);
        self.used += held.capacity();
        *copy = Some(held);
        true
    }

    pub(super) fn take(&mut self, copy: &mut Option<Vec<u8>>) -> Option<Vec<u8>> {
        let held = copy.take()?;
        self.used -= held.capacity();
        Some(held)
    }

    pub(super) fn forget(&mut self, copy: &mut Option<Vec<u8>>) {
        self.take(copy);
    }
}
