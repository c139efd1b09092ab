//! The thin hand on the kernel: reads interfaces and addresses, adds and removes, listens for
//! changes (rtnetlink(7)). Decides nothing.

use std::io;
use std::net::IpAddr;

use futures_util::{Stream, StreamExt, TryStreamExt};
use netlink_packet_route::address::{
    AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage, AddressProtocol,
};
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkLayerType, LinkMessage};
use rtnetlink::{Error, Handle, MulticastGroup};
use tokio::task::JoinHandle;

use super::own::Own;
use super::plan::{Interface, Machine, Present, Step};

/// IFA_PROTO of the addresses that Weir adds: "who put it there", as `ip -d addr` prints it
/// (`proto 0x77`). The kernel itself uses 1 to 3; 0x77 is `w`. Since kernel 5.18; older ones drop
/// the attribute, and a leftover of a killed process then stays until somebody removes it.
pub const OURS: u8 = 0x77;

/// Why a step failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum StepError {
    /// EPERM.
    #[error("operation not permitted")]
    NotPermitted,
    /// EEXIST: the interface got it from somebody else just now.
    #[error("already there")]
    Exists,
    /// ENODEV, EADDRNOTAVAIL: nothing to remove.
    #[error("not there")]
    Gone,
    /// EACCES for IPv6: disable_ipv6 is set.
    #[error("IPv6 is disabled there")]
    Ipv6Disabled,
    /// Anything else.
    #[error(transparent)]
    Kernel(io::Error),
}

/// A netlink socket and the task that serves it.
pub(super) struct Netlink {
    handle: Handle,
    task: JoinHandle<()>,
}

impl Netlink {
    /// In the network namespace of the calling thread.
    pub(super) fn open() -> io::Result<Netlink> {
        let (connection, handle, _) = rtnetlink::new_connection()?;
        let task = tokio::spawn(connection);
        Ok(Netlink { handle, task })
    }

    /// Interfaces and addresses, ours told from others by `own`.
    pub(super) async fn machine(&self, own: &Own) -> io::Result<Machine> {
        // One after the other: a socket has one dump at a time, a second one is EBUSY.
        let links = self.handle.link().get().execute();
        let interfaces = links
            .map_ok(interface)
            .try_collect()
            .await
            .map_err(into_io)?;
        let addresses = self.handle.address().get().execute();
        let present = addresses.map_ok(|message| present(&message, own));
        let addresses: Vec<Option<Present>> = present.try_collect().await.map_err(into_io)?;
        Ok(Machine {
            interfaces,
            addresses: addresses.into_iter().flatten().collect(),
        })
    }

    pub(super) async fn run(&self, step: Step) -> Result<(), StepError> {
        let is_v6 = match step {
            Step::Add { address, .. } | Step::Remove { address, .. } => address.is_ipv6(),
        };
        let outcome = match step {
            Step::Add { address, interface } => self.add(address, interface).await,
            Step::Remove {
                address,
                prefix,
                interface,
            } => self.remove(address, prefix, interface).await,
        };
        outcome.map_err(|error| {
            let error = into_io(error);
            match error.raw_os_error() {
                Some(libc::EPERM) => StepError::NotPermitted,
                Some(libc::EEXIST) => StepError::Exists,
                Some(libc::ENODEV | libc::EADDRNOTAVAIL) => StepError::Gone,
                Some(libc::EACCES) if is_v6 => StepError::Ipv6Disabled,
                _ => StepError::Kernel(error),
            }
        })
    }

    async fn add(&self, address: IpAddr, interface: u32) -> Result<(), Error> {
        let prefix = if address.is_ipv4() { 32 } else { 128 };
        let mut request = self.handle.address().add(interface, address, prefix);
        let message = request.message_mut();
        let ours = AddressAttribute::Protocol(AddressProtocol::Other(OURS));
        message.attributes.push(ours);
        if address.is_ipv6() {
            // Without NODAD the address could not be listened on for a second or two, and a pair
            // of appliances that hold the same VIP would turn it off.
            message.header.flags |= AddressHeaderFlags::Nodad;
            let nodad = AddressAttribute::Flags(AddressFlags::Nodad);
            message.attributes.push(nodad);
        }
        request.execute().await
    }

    async fn remove(&self, address: IpAddr, prefix: u8, interface: u32) -> Result<(), Error> {
        // The message of an addition names the address just as well.
        let mut request = self.handle.address().add(interface, address, prefix);
        let message = std::mem::take(request.message_mut());
        self.handle.address().del(message).execute().await
    }
}

impl Drop for Netlink {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Yields whenever addresses or interfaces of this network namespace change, or may have: an
/// overrun of the socket counts.
pub(super) fn changes() -> io::Result<impl Stream<Item = ()> + Unpin> {
    let groups = [
        MulticastGroup::Link,
        MulticastGroup::Ipv4Ifaddr,
        MulticastGroup::Ipv6Ifaddr,
    ];
    let (connection, _, messages) = rtnetlink::new_multicast_connection(&groups)?;
    // Ends by itself once the receiver is dropped.
    tokio::spawn(connection);
    Ok(messages.map(drop))
}

fn into_io(error: Error) -> io::Error {
    match error {
        Error::NetlinkError(message) => message.to_io(),
        other => io::Error::other(other),
    }
}

fn interface(message: LinkMessage) -> Interface {
    let flags = message.header.flags;
    let asks =
        message.header.link_layer_type == LinkLayerType::Ether && !flags.contains(LinkFlags::Noarp);
    let (mut name, mut mac) = (String::new(), None);
    for attribute in message.attributes {
        match attribute {
            LinkAttribute::IfName(found) => name = found,
            LinkAttribute::Address(found) if asks => mac = found.try_into().ok(),
            _ => {}
        }
    }
    Interface {
        index: message.header.index,
        name,
        is_loopback: flags.contains(LinkFlags::Loopback),
        is_up: flags.contains(LinkFlags::Up),
        mac,
    }
}

fn present(message: &AddressMessage, own: &Own) -> Option<Present> {
    let mut address = None;
    let mut is_marked = false;
    let mut is_duplicate = message.header.flags.contains(AddressHeaderFlags::Dadfailed);
    for attribute in &message.attributes {
        match attribute {
            // With a peer, IFA_ADDRESS is the peer's and IFA_LOCAL is ours, in any order.
            AddressAttribute::Local(local) => address = Some(*local),
            AddressAttribute::Address(other) => address = address.or(Some(*other)),
            AddressAttribute::Protocol(protocol) => is_marked = u8::from(*protocol) == OURS,
            AddressAttribute::Flags(flags) => {
                is_duplicate |= flags.contains(AddressFlags::Dadfailed);
            }
            _ => {}
        }
    }
    let (address, interface) = (address?, message.header.index);
    Some(Present {
        address,
        prefix: message.header.prefix_len,
        interface,
        is_ours: own.is_ours(address, interface, is_marked),
        is_duplicate,
    })
}
