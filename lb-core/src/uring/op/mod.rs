//! The operations, a file each.

mod cancel;
mod close;
mod connect;
mod poll;
mod receive;
mod send;
