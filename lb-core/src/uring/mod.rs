//! io_uring(7): one ring of one worker, behind safe calls that know no policy.
//!
//! UNSAFE: with `sys` the only module that may hold unsafe code, each block with its proof.
//!
//! An operation is submitted by a method of [`Ring`] (one file of `op` each) and answered by one
//! [`Completion`], or several of a multishot one. What it lends the kernel (bytes, an address) is
//! owned by the in-flight slab until the final completion; what the kernel receives into are
//! provided buffers, which change hands with each completion ([`Ring::buffers`]). Sockets are lent for
//! the length of a submission only: a request holds its file by itself then. So a socket may be
//! closed at any time by [`Ring::close`], which keeps the order of submissions; what is still under
//! way on it is to be cancelled first ([`Ring::cancel_all`]), or the socket lives on.
//!
//! | file | |
//! |---|---|
//! | `ring` | set-up, submission, completions, the end |
//! | `op` | an operation each: receive, send, connect, poll, cancel, close |
//! | `buffers` | the provided-buffer ring |
//! | `flights` | the in-flight slab |
//! | `tag` | what a completion is about, in 64 bits |
#![allow(unsafe_code)]

mod buffers;
mod completion;
mod flights;
mod op;
mod pinned;
mod ring;
mod tag;

pub(crate) use buffers::Chain;
pub(crate) use completion::{Completion, Got, Readable};
pub(crate) use flights::{Backlog, MAX_PIECES, Payload};
pub(crate) use ring::{Counts, Ring, Size};
pub(crate) use tag::Owner;
