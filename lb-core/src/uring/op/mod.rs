//! The operations, a file each.

mod accept;
mod cancel;
mod close;
mod connect;
mod poll;
mod receive;
mod send;
