//! UDP: drives the flows of one worker.

use std::os::fd::BorrowedFd;
use std::rc::Rc;

use super::cx::Cx;
use super::local::Local;
use super::token::Token;
use crate::plane::Limits;
use crate::sys::epoll::Readiness;

/// Every flow of one worker.
pub(crate) struct Udp {}

impl Udp {
    pub(crate) fn new(_limits: &Limits) -> Udp {
        Udp {}
    }

    /// `listener` has datagrams. Level-triggered: takes a bounded number of them, the rest is told
    /// again. During a drain only those of live flows are forwarded.
    pub(crate) fn on_listener(
        &mut self,
        _cx: &mut Cx,
        _local: &Rc<Local>,
        _listener: BorrowedFd<'_>,
    ) {
    }

    /// A flow's socket is ready. The token may be stale.
    pub(crate) fn on_event(&mut self, _cx: &mut Cx, _token: Token, _readiness: Readiness) {}

    /// A flow's timer came. The token may be stale.
    pub(crate) fn on_timer(&mut self, _cx: &mut Cx, _token: Token) {}

    /// The table has a new state of `local`'s frontend: backends may be gone.
    pub(crate) fn on_frontend_changed(&mut self, _cx: &mut Cx, _local: &Rc<Local>) {}

    /// `local`'s listener is closed (no usable backend, or no such frontend any more): its flows
    /// end, for there is no socket that replies could leave from.
    pub(crate) fn on_frontend_closed(&mut self, _cx: &mut Cx, _local: &Rc<Local>) {}

    /// Every event of the turn was given: send what is to be sent together.
    pub(crate) fn end_turn(&mut self, _cx: &mut Cx) {}

    /// `cx.draining` holds from now on: live flows may finish.
    pub(crate) fn drain(&mut self, _cx: &mut Cx) {}

    /// The deadline of the drain: every flow that is left ends now.
    pub(crate) fn cut(&mut self, _cx: &mut Cx) {}

    /// Does no flow live?
    pub(crate) fn is_idle(&self) -> bool {
        true
    }
}
