//! TCP: drives the connections of one worker.

use std::os::fd::BorrowedFd;
use std::rc::Rc;

use super::cx::Cx;
use super::local::Local;
use super::token::Token;
use crate::plane::Limits;
use crate::sys::epoll::Readiness;

/// Every connection of one worker.
pub(crate) struct Tcp {}

impl Tcp {
    pub(crate) fn new(_limits: &Limits) -> Tcp {
        Tcp {}
    }

    /// `listener` has callers. Level-triggered: takes a bounded number of them, the rest is told
    /// again. Never called while `cx.draining`... but for what was queued before.
    pub(crate) fn on_listener(&mut self, cx: &mut Cx, local: &Rc<Local>, listener: BorrowedFd<'_>) {
        let _ = cx.descriptors.accept(local, listener);
    }

    /// A socket of ours is ready. The token may be stale.
    pub(crate) fn on_event(&mut self, _cx: &mut Cx, _token: Token, _readiness: Readiness) {}

    /// A timer of ours came. The token may be stale.
    pub(crate) fn on_timer(&mut self, _cx: &mut Cx, _token: Token) {}

    /// Every event of the turn was given: send what is to be sent together.
    pub(crate) fn end_turn(&mut self, _cx: &mut Cx) {}

    /// `cx.draining` holds from now on: live connections may finish.
    pub(crate) fn drain(&mut self, _cx: &mut Cx) {}

    /// The deadline of the drain: every connection that is left ends now.
    pub(crate) fn cut(&mut self, _cx: &mut Cx) {}

    /// Does no connection live?
    pub(crate) fn is_idle(&self) -> bool {
        true
    }
}
