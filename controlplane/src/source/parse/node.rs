//! Nodes.

use std::net::IpAddr;

use super::{MAX_STATUS_ADDRESSES, MAX_TEXT, Reader};
use crate::object::{Meta, Node as KubernetesNode};
use crate::source::field::{FieldError, Node};

impl Reader {
    pub(super) fn node(
        &mut self,
        root: &Node<'_>,
        meta: Meta,
    ) -> Result<KubernetesNode, FieldError> {
        Ok(KubernetesNode {
            addresses: node_addresses(root)?,
            taints: match root.field("spec")? {
                Some(spec) => match spec.field("taints")? {
                    Some(taints) => taints
                        .entries(MAX_STATUS_ADDRESSES)?
                        .map(|taint| Ok(self.share(taint.required("key")?.text(MAX_TEXT)?)))
                        .collect::<Result<_, FieldError>>()?,
                    None => Vec::new(),
                },
                None => Vec::new(),
            },
            meta,
        })
    }
}

/// InternalIP, then ExternalIP; host names are passed over.
fn node_addresses(root: &Node<'_>) -> Result<Vec<IpAddr>, FieldError> {
    let (mut internal, mut external) = (Vec::new(), Vec::new());
    let Some(status) = root.field("status")? else {
        return Ok(internal);
    };
    let Some(addresses) = status.field("addresses")? else {
        return Ok(internal);
    };
    for entry in addresses.entries(MAX_STATUS_ADDRESSES)? {
        let address = entry.required("address")?.text(MAX_TEXT)?;
        let address = address.parse::<IpAddr>().ok();
        match entry.required("type")?.text(MAX_TEXT)? {
            "InternalIP" => internal.extend(address),
            "ExternalIP" => external.extend(address),
            _ => {}
        }
    }
    internal.append(&mut external);
    Ok(internal)
}
