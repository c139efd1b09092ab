//! The search for a backend: what was tried, and what to try next.

use std::net::SocketAddr;

use crate::worker::cx::Cx;
use crate::worker::local::{Claim, Local};

/// A connection that has no backend yet.
#[derive(Debug)]
pub(super) struct Dial {
    client: SocketAddr,
    /// The backends tried in this round.
    tried: Vec<SocketAddr>,
    /// How often all of them have been tried.
    round: u8,
}

impl Dial {
    pub(super) fn new(client: SocketAddr) -> Dial {
        Dial {
            client,
            tried: Vec::new(),
            round: 0,
        }
    }

    /// A backend not tried in this round, and the number of the round; when all were tried, a new
    /// round begins. `None` if there is none at all.
    pub(super) fn pick(&mut self, cx: &mut Cx, local: &Local) -> Option<(Claim, u8)> {
        let mut picked = local.pick(cx, self.client, &self.tried);
        if picked.is_none() && !self.tried.is_empty() {
            self.tried.clear();
            self.round = self.round.saturating_add(1);
            picked = local.pick(cx, self.client, &self.tried);
        }
        let claim = picked?;
        self.tried.push(claim.address);
        Some((claim, self.round))
    }
}
