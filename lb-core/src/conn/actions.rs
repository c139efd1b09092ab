//! The list of actions that one step writes: of fixed capacity, in the caller's memory.

use super::Action;

/// The most that one step can say: leaving a try or a relay behind takes at most `Reset, Reset,
/// Close`, going on at most `Receive, Receive, Arm`.
const CAPACITY: usize = 4;

/// What one step of a [`Conn`](super::Conn) asks for, in order.
#[derive(Clone, Copy, Debug)]
pub struct Actions {
    list: [Action; CAPACITY],
    len: u8,
}

impl Actions {
    /// An empty list.
    pub const fn new() -> Actions {
        Actions {
            list: [Action::Connect; CAPACITY],
            len: 0,
        }
    }

    /// Forgets the actions of the step before.
    pub fn clear(&mut self) {
        self.len = 0;
    }

    /// The actions, in the order in which to carry them out.
    pub fn as_slice(&self) -> &[Action] {
        &self.list[..usize::from(self.len)]
    }

    /// # Panics
    ///
    /// Past the capacity: no transition says so much, and the tests walk all of them.
    pub(super) fn push(&mut self, action: Action) {
        self.list[usize::from(self.len)] = action;
        self.len += 1;
    }
}

impl Default for Actions {
    fn default() -> Actions {
        Actions::new()
    }
}
