//! A connection between two operations, out of its worker.
//!
//! What an upgrade will hand to the next process: both sockets, the machine, and the bytes that
//! were received and not yet sent. A driver [gives one up](super::tcp::Tcp::export) when nothing of
//! it is under way, and any driver of either engine [takes it over](super::tcp::Tcp::adopt). Neither
//! peer can tell.

use std::os::fd::OwnedFd;
use std::rc::Rc;

use super::local::{Claim, Local};
use crate::conn::Conn;

/// One side of a connection that was given up.
#[derive(Debug)]
pub(crate) struct ExportedEnd {
    pub(super) socket: OwnedFd,
    /// What came from it and waits to be sent to the other side: as many bytes as the machine says.
    pub(super) unsent: Vec<u8>,
}

/// A connection that was given up. Its timer was stopped; its times are the process's own.
#[derive(Debug)]
pub(crate) struct Exported {
    pub(super) machine: Conn,
    pub(super) local: Rc<Local>,
    pub(super) claim: Option<Claim>,
    /// Downstream first.
    pub(super) ends: [ExportedEnd; 2],
}

#[cfg(test)]
mod tests;
