//! What the kernel offers, behind safe calls that know no policy.
//!
//! UNSAFE: the one module that may hold unsafe code, each block with its proof. Descriptors go in
//! as [`BorrowedFd`](std::os::fd::BorrowedFd) and come out as [`OwnedFd`](std::os::fd::OwnedFd).
#![allow(unsafe_code)]

pub(crate) mod clock;
pub(crate) mod epoll;
pub(crate) mod eventfd;
pub(crate) mod filter;
pub(crate) mod packet;
pub(crate) mod pipe;
pub(crate) mod probe;
pub(crate) mod process;
pub(crate) mod rotation;
pub(crate) mod socket;
pub(crate) mod stream;
pub(crate) mod udp;
