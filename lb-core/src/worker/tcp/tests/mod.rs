//! The driver over real loopback sockets. Every stream is compared byte by byte, every wait has a
//! deadline, and after each test nothing may be left open.

mod bulk;
mod dialing;
mod ending;
mod harness;
mod stream;
