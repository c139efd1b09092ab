//! The ports that this process listens at, counted over its workers.
//!
//! Workers share a port by SO_REUSEPORT, and the kernel lets every process of the same user share
//! it with them: two would each get a part of the clients, in silence. So the first worker to open
//! a port looks whether somebody else has it.
//!
//! Shared by all workers, under a lock that is taken when a listener opens or closes and never for
//! traffic; held for three system calls at the most.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::sys::socket::{self, ListenError};
use crate::table::{FrontendKey, Protocol};

/// How many workers have each port open, or are about to.
#[derive(Debug, Default)]
pub(crate) struct Ports(Mutex<HashMap<FrontendKey, usize>>);

/// One worker's stake in a port: to be dropped after its socket is closed, and not before.
#[derive(Debug)]
pub(super) struct Port {
    ports: Arc<Ports>,
    key: FrontendKey,
}

impl Ports {
    /// Before a socket is opened at `key`.
    ///
    /// # Errors
    /// EADDRINUSE if somebody else listens there, or at the same port of every address; whatever
    /// else keeps this process from binding there.
    pub(super) fn enter(self: &Arc<Self>, key: FrontendKey) -> Result<Port, ListenError> {
        let mut open = self.lock();
        if !open.contains_key(&key) {
            let address = SocketAddr::new(key.address, key.port.get());
            match key.protocol {
                Protocol::Tcp => socket::find_tcp_free(address)?,
                Protocol::Udp => socket::find_udp_free(address)?,
            }
        }
        *open.entry(key).or_default() += 1;
        Ok(Port {
            ports: Arc::clone(self),
            key,
        })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<FrontendKey, usize>> {
        // Nothing panics while it is held.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Port {
    fn drop(&mut self) {
        let mut open = self.ports.lock();
        if let Some(count) = open.get_mut(&self.key) {
            *count -= 1;
            if *count == 0 {
                open.remove(&self.key);
            }
        }
    }
}
