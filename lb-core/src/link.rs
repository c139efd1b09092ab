//! Frames on an interface: what whoever puts addresses on this machine needs to tell its neighbours.
//! Knows no protocol and no policy.

pub use crate::sys::packet::Packets;
