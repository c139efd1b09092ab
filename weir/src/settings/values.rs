//! The values that settings hold: each parses from one text, the same on a flag, in the
//! environment and in the file, and says what it wanted if it does not.

use std::fmt;
use std::net::IpAddr;
use std::num::NonZeroUsize;
use std::str::FromStr;
use std::time::Duration;

use controlplane::allocate::Range;
use controlplane::nodes::{Selector, SelectorError};
use ipnet::IpNet;
use serde::Deserialize;

/// Gives a type that parses from text its place in the file and in the schema.
macro_rules! text_value {
    ($type:ty, $description:literal, [$($example:literal),*]) => {
        impl<'de> serde::Deserialize<'de> for $type {
            fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                let text = String::deserialize(from)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }

        impl serde::Serialize for $type {
            fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
                to.collect_str(self)
            }
        }

        impl schemars::JsonSchema for $type {
            fn schema_name() -> std::borrow::Cow<'static, str> {
                stringify!($type).into()
            }

            fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
                schemars::json_schema!({
                    "type": "string",
                    "description": $description,
                    "examples": [$($example),*],
                })
            }
        }
    };
}

/// A duration with its unit: `250ms`, `30s`, `5m`, `1h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span(pub Duration);

impl FromStr for Span {
    type Err = String;

    fn from_str(text: &str) -> Result<Span, String> {
        let wrong = || {
            format!(
                "{text:?} is no duration; write a whole number and its unit: 250ms, 30s, 5m, 1h"
            )
        };
        let digits = text
            .find(|c: char| !c.is_ascii_digit())
            .unwrap_or(text.len());
        let (number, unit) = text.split_at(digits);
        let number: u64 = number.parse().map_err(|_| wrong())?;
        let millis = match unit {
            "ms" => 1,
            "s" => 1_000,
            "m" => 60_000,
            "h" => 3_600_000,
            _ => return Err(wrong()),
        };
        // A year is longer than any timeout means, and far from every overflow.
        let total = number
            .checked_mul(millis)
            .filter(|ms| *ms <= 31_536_000_000);
        let total = total.ok_or_else(|| format!("{text:?} is longer than a year"))?;
        Ok(Span(Duration::from_millis(total)))
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.as_millis() {
            ms if ms % 1_000 == 0 => write!(f, "{}s", ms / 1_000),
            ms => write!(f, "{ms}ms"),
        }
    }
}

text_value!(
    Span,
    "A whole number and its unit: ms, s, m or h.",
    ["250ms", "30s", "5m", "1h"]
);

/// A number of worker threads.
pub fn workers(text: &str) -> Result<NonZeroUsize, String> {
    text.parse()
        .map_err(|_| format!("{text:?} is no number of workers; write a whole number from 1 on"))
}

/// As [`workers`], where the file has it.
pub fn workers_in_file<'de, D: serde::Deserializer<'de>>(
    from: D,
) -> Result<Option<NonZeroUsize>, D::Error> {
    let text = match serde_json::Value::deserialize(from)? {
        serde_json::Value::Null => return Ok(None),
        serde_json::Value::String(text) => text,
        other => other.to_string(),
    };
    workers(&text).map(Some).map_err(serde::de::Error::custom)
}

/// What is wrong with `ADDRESS/PREFIX` if it is that the prefix is longer than the address.
fn long_prefix(text: &str) -> Option<String> {
    let (address, prefix) = text.split_once('/')?;
    let most = match address.parse().ok()? {
        IpAddr::V4(_) => 32,
        IpAddr::V6(_) => 128,
    };
    let long = !prefix.is_empty()
        && prefix.chars().all(|c| c.is_ascii_digit())
        && prefix.parse().map_or(true, |prefix: u32| prefix > most);
    long.then(|| format!("{text:?}: the prefix is too long; /{most} is the longest"))
}

/// An address range in CIDR form.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cidr(pub IpNet);

impl FromStr for Cidr {
    type Err = String;

    fn from_str(text: &str) -> Result<Cidr, String> {
        if let Ok(net) = text.parse::<IpNet>() {
            return Ok(Cidr(net.trunc()));
        }
        if let Some(wrong) = long_prefix(text) {
            return Err(wrong);
        }
        let single = text.parse::<IpAddr>().map(IpNet::from);
        single
            .map(Cidr)
            .map_err(|_| format!("{text:?} is no address range; write for example 127.0.0.0/8"))
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

text_value!(
    Cidr,
    "An address range in CIDR form.",
    ["127.0.0.0/8", "fd00::/8"]
);

/// One range of a pool: `RANGE`, or `NAME=RANGE`. Ranges of one name make one pool; one without a
/// name is a pool of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolEntry {
    /// The pool's name.
    pub name: Option<String>,
    /// The addresses.
    pub range: Range,
}

impl FromStr for PoolEntry {
    type Err = String;

    fn from_str(text: &str) -> Result<PoolEntry, String> {
        let (name, range) = match text.split_once('=') {
            Some((name, range)) => (Some(name), range),
            None => (None, text),
        };
        let good = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        if let Some(name) = name
            && (name.is_empty() || name.len() > 63 || !name.chars().all(good))
        {
            return Err(format!(
                "pool name {name:?} is not made of a to z, 0 to 9 and -, 1 to 63 of them"
            ));
        }
        if let Some(wrong) = long_prefix(range) {
            return Err(format!("pool {wrong}"));
        }
        // One address alone is a range of one.
        let range = match range.parse::<IpAddr>() {
            Ok(single) => IpNet::from(single).to_string().parse::<Range>(),
            Err(_) => range.parse::<Range>(),
        };
        Ok(PoolEntry {
            name: name.map(str::to_owned),
            range: range.map_err(|error| error.to_string())?,
        })
    }
}

impl fmt::Display for PoolEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(name) = &self.name {
            write!(f, "{name}=")?;
        }
        self.range.fmt(f)
    }
}

text_value!(
    PoolEntry,
    "RANGE or NAME=RANGE, where RANGE is a CIDR, FIRST-LAST or one address. Ranges of one name make one pool.",
    [
        "192.0.2.0/28",
        "192.0.2.10-192.0.2.20",
        "public=2001:db8::/120"
    ]
);

/// A label selector of nodes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeSelector(pub Selector);

impl FromStr for NodeSelector {
    type Err = SelectorError;

    fn from_str(text: &str) -> Result<NodeSelector, SelectorError> {
        text.parse().map(NodeSelector)
    }
}

impl fmt::Display for NodeSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

text_value!(
    NodeSelector,
    "A label selector: a=b, a!=b, a in (b,c), a notin (b,c), a, !a, a>1, a<1, comma-joined.",
    [
        "topology.kubernetes.io/zone=a,!old",
        "class in (edge,spare)"
    ]
);

/// Where the admin listener listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdminAddress(pub admin_api::Address);

impl FromStr for AdminAddress {
    type Err = admin_api::AddressError;

    fn from_str(text: &str) -> Result<AdminAddress, admin_api::AddressError> {
        text.parse().map(AdminAddress)
    }
}

impl fmt::Display for AdminAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

text_value!(
    AdminAddress,
    "unix:PATH (reads and writes) or a loopback address and port (reads only).",
    ["unix:/run/weir/admin.sock", "127.0.0.1:9090"]
);

/// The key of the consistent hash: 32 hexadecimal digits. Never printed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct HashKeyText(pub [u8; 16]);

impl FromStr for HashKeyText {
    type Err = String;

    fn from_str(text: &str) -> Result<HashKeyText, String> {
        // The text is a secret: it is not repeated in the error.
        let wrong = || "a hash key is 32 hexadecimal digits (openssl rand -hex 16)".to_owned();
        if text.len() != 32 || !text.is_ascii() {
            return Err(wrong());
        }
        let mut key = [0; 16];
        for (i, byte) in key.iter_mut().enumerate() {
            let pair = &text[2 * i..2 * i + 2];
            if pair.starts_with('+') {
                return Err(wrong());
            }
            *byte = u8::from_str_radix(pair, 16).map_err(|_| wrong())?;
        }
        Ok(HashKeyText(key))
    }
}

impl fmt::Display for HashKeyText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(hidden)")
    }
}

impl fmt::Debug for HashKeyText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

text_value!(HashKeyText, "32 hexadecimal digits.", []);

/// A closed set of words, for a flag and for the file.
macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $word:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, serde::Deserialize, serde::Serialize, schemars::JsonSchema)]
        pub enum $name {
            $($(#[$variant_doc])* #[serde(rename = $word)] #[value(name = $word)] $variant,)+
        }
    };
}

words!(
    /// Which I/O driver runs.
    EngineName {
        /// The best that this build and kernel have.
        Auto = "auto",
        /// io_uring, or fail to start.
        IoUring = "io_uring",
        /// epoll.
        Epoll = "epoll",
    }
);

words!(
    /// What is dialled for a Service.
    BackendsName {
        /// Its endpoints.
        Pods = "pods",
        /// Nodes, at its node ports.
        Nodes = "nodes",
        /// Endpoints while they can be reached, else nodes.
        Auto = "auto",
    }
);

words!(
    /// How log lines look.
    LogFormat {
        /// Text on a terminal, JSON elsewhere.
        Auto = "auto",
        /// One JSON object per line.
        Json = "json",
        /// For people.
        Text = "text",
    }
);
