//! What outlives a restart: who held which address. The file is [`crate::state`]'s.

use std::net::IpAddr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::object::{Key, Kind, SourceId};
use crate::state::{Document, Undecodable};

/// One load balancer's addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Whose. After a restart it is found by cluster, kind, namespace, name, and uid where both
    /// sides know one; the source only decides between two that are else the same.
    pub key: Key,
    /// The pool it asked for by name.
    pub pool: Option<Arc<str>>,
    /// What it held.
    pub addresses: Vec<IpAddr>,
}

/// Every load balancer that holds an address.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Record {
    /// Sorted by key.
    pub entries: Vec<Entry>,
}

/// An entry as the file says it.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    source: u16,
    cluster: Arc<str>,
    kind: WrittenKind,
    namespace: Arc<str>,
    name: Arc<str>,
    uid: Arc<str>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pool: Option<Arc<str>>,
    addresses: Vec<IpAddr>,
}

#[derive(Serialize, Deserialize)]
enum WrittenKind {
    Service,
    LoadBalancer,
}

impl Document for Record {
    const NAME: &'static str = "addresses";
    const SCHEMA: u32 = 1;

    fn encode(&self) -> serde_json::Value {
        let entries = self.entries.iter().map(|entry| {
            let Key {
                source,
                cluster,
                kind,
                namespace,
                name,
                uid,
            } = entry.key.clone();
            let written = Written {
                source: source.0,
                cluster,
                kind: match kind {
                    Kind::LoadBalancer => WrittenKind::LoadBalancer,
                    Kind::Service | Kind::EndpointSlice | Kind::Node => WrittenKind::Service,
                },
                namespace,
                name,
                uid,
                pool: entry.pool.clone(),
                addresses: entry.addresses.clone(),
            };
            serde_json::to_value(written)
                .expect("strings and numbers under string keys always serialize")
        });
        entries.collect()
    }

    fn decode(schema: u32, data: serde_json::Value) -> Result<Record, Undecodable> {
        if schema != Self::SCHEMA {
            return Err(Undecodable::Schema {
                found: schema,
                known: Self::SCHEMA,
            });
        }
        let written: Vec<Written> = serde_json::from_value(data).map_err(Undecodable::Shape)?;
        let entries = written.into_iter().map(|written| {
            let Written {
                source,
                cluster,
                kind,
                namespace,
                name,
                uid,
                pool,
                addresses,
            } = written;
            Entry {
                key: Key {
                    source: SourceId(source),
                    cluster,
                    kind: match kind {
                        WrittenKind::LoadBalancer => Kind::LoadBalancer,
                        WrittenKind::Service => Kind::Service,
                    },
                    namespace,
                    name,
                    uid,
                },
                pool,
                addresses: addresses.into_iter().map(|a| a.to_canonical()).collect(),
            }
        });
        Ok(Record {
            entries: entries.collect(),
        })
    }
}
