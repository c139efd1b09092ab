//! What an API server keeps in a Service for the provider of its load balancer. Read leniently: whoever may
//! write a status must not be able to have the Service refused by it. What cannot be read is as
//! if it were not there, and is written anew.

use std::sync::Arc;

use super::rival::rival;
use super::{MAX_STATUS_ADDRESSES, MAX_TEXT, Node, Reader, protocol};
use crate::object::{
    CLEANUP_FINALIZER, Condition, FINALIZER, Ingress, IngressPort, Rival, Stored, Version,
};

/// Finalizers and conditions that are looked at.
const MAX_ENTRIES: usize = 256;
/// Ports of an ingress (core/v1 MaxItems).
const MAX_PORTS: usize = 100;
/// metav1.Condition.message.
const MAX_MESSAGE: usize = 32_768;

impl Reader {
    pub(super) fn stored(&mut self, root: &Node<'_>) -> Stored {
        let mut stored = Stored::default();
        if !self.read_status {
            return stored;
        }
        if let Ok(Some(metadata)) = root.field("metadata") {
            let generation = metadata.field("generation").ok().flatten();
            let generation = generation.and_then(|node| node.integer(0, i64::MAX).ok());
            stored.generation = generation.unwrap_or(0);
            let finalizers = list(&metadata, "finalizers", MAX_ENTRIES, |entry| {
                entry.text(MAX_TEXT).ok().map(str::to_owned)
            });
            stored.finalizer = finalizers.iter().any(|name| name == FINALIZER);
            stored.cleanup_finalizer = finalizers.iter().any(|name| name == CLEANUP_FINALIZER);
            let version = metadata.field("resourceVersion").ok().flatten();
            let version = version.and_then(|node| node.text(MAX_TEXT).ok()?.parse().ok());
            stored.version = Version(version.unwrap_or(0));
            stored.rival = rival(metadata.value(), &finalizers).map(|(name, mark)| Rival {
                name: self.share(name),
                mark,
            });
        }
        if let Ok(Some(status)) = root.field("status") {
            if let Ok(Some(balancer)) = status.field("loadBalancer") {
                stored.ingress = list(&balancer, "ingress", MAX_STATUS_ADDRESSES, |entry| {
                    Some(self.ingress(entry))
                });
            }
            stored.conditions = list(&status, "conditions", MAX_ENTRIES, |entry| {
                self.condition(entry)
            });
        }
        stored
    }

    fn ingress(&mut self, entry: &Node<'_>) -> Ingress {
        let mut text = |field: &str| self.optional_text(entry, field).ok().flatten();
        let (ip, hostname) = (text("ip"), text("hostname"));
        let mode = text("ipMode");
        Ingress {
            ip: ip.and_then(|ip| ip.parse().ok()),
            hostname,
            proxied: mode.as_deref() == Some("Proxy"),
            ports: list(entry, "ports", MAX_PORTS, |port| self.ingress_port(port)),
        }
    }

    fn ingress_port(&mut self, port: &Node<'_>) -> Option<IngressPort> {
        Some(IngressPort {
            port: port.required("port").ok()?.port().ok()?.get(),
            protocol: protocol(port).ok()?,
            error: self.optional_text(port, "error").ok()?,
        })
    }

    /// `None` if it is of a type that is not ours to write.
    fn condition(&mut self, entry: &Node<'_>) -> Option<Condition> {
        let kind = self.optional_text(entry, "type").ok().flatten()?;
        if !kind.starts_with("weir.dev/") && &*kind != "LoadBalancerPortsError" {
            return None;
        }
        let mut text = |field: &str| self.optional_text(entry, field).ok().flatten();
        let (status, reason) = (text("status"), text("reason"));
        let since = text("lastTransitionTime");
        let message = entry.field("message").ok().flatten();
        let message = message.and_then(|node| node.text(MAX_MESSAGE).ok());
        let generation = entry.field("observedGeneration").ok().flatten();
        let generation = generation.and_then(|node| node.integer(0, i64::MAX).ok());
        Some(Condition {
            kind,
            status: status.unwrap_or_default(),
            reason: reason.unwrap_or_default(),
            message: message.map_or_else(Arc::default, Arc::from),
            observed_generation: generation.unwrap_or(0),
            since: since.unwrap_or_default(),
        })
    }
}

/// The entries of a list that can be read; none of one that is too long.
fn list<T>(
    node: &Node<'_>,
    field: &str,
    most: usize,
    mut read: impl FnMut(&Node<'_>) -> Option<T>,
) -> Vec<T> {
    let Ok(Some(list)) = node.field(field) else {
        return Vec::new();
    };
    let Ok(entries) = list.entries(most) else {
        return Vec::new();
    };
    entries.filter_map(|entry| read(&entry)).collect()
}
