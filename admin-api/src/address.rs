//! Where the admin listener listens: parsed once, so that nothing past this file can hold an
//! address that must not be bound.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;

/// A UNIX socket, or a loopback TCP address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// A socket file; reads and writes, by file mode (0660).
    Unix(PathBuf),
    /// A loopback address; reads only.
    Loopback(SocketAddr),
}

/// Why a text is not an [`Address`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// Neither form.
    #[error("{0:?} is no admin address; write unix:/run/weir/admin.sock or 127.0.0.1:9090")]
    Syntax(String),
    /// `unix:` without a path.
    #[error("unix: needs a path, for example unix:/run/weir/admin.sock")]
    EmptyPath,
    /// TCP beyond loopback.
    #[error(
        "{0} is not a loopback address: the admin listener has no login and is not served to a network; use unix:PATH, 127.0.0.1:{port} or [::1]:{port}", port = .0.port()
    )]
    NotLoopback(SocketAddr),
}

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Address, AddressError> {
        if let Some(path) = text.strip_prefix("unix:") {
            return match path {
                "" => Err(AddressError::EmptyPath),
                path => Ok(Address::Unix(PathBuf::from(path))),
            };
        }
        let numeric = match text.strip_prefix("localhost:") {
            Some(port) => format!("127.0.0.1:{port}"),
            None => text.to_owned(),
        };
        let address: SocketAddr = numeric
            .parse()
            .map_err(|_| AddressError::Syntax(text.to_owned()))?;
        if address.ip().to_canonical().is_loopback() {
            Ok(Address::Loopback(address))
        } else {
            Err(AddressError::NotLoopback(address))
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Unix(path) => write!(f, "unix:{}", path.display()),
            Address::Loopback(address) => address.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms() {
        let unix = Address::Unix("/run/x.sock".into());
        assert_eq!("unix:/run/x.sock".parse(), Ok(unix));
        for text in ["127.0.0.1:9", "[::1]:9", "127.9.9.9:0", "localhost:9"] {
            assert!(matches!(text.parse(), Ok(Address::Loopback(_))), "{text}");
        }
        assert_eq!("unix:".parse::<Address>(), Err(AddressError::EmptyPath));
        for text in ["", "9090", "/run/x", "host:1", "127.0.0.1"] {
            let parsed = text.parse::<Address>();
            assert!(matches!(parsed, Err(AddressError::Syntax(_))), "{text}");
        }
    }

    #[test]
    fn beyond_loopback_is_refused() {
        for text in ["0.0.0.0:9", "[::]:9", "10.0.0.1:9", "[::ffff:10.0.0.1]:9"] {
            let error = text.parse::<Address>().expect_err(text);
            assert!(matches!(error, AddressError::NotLoopback(_)), "{text}");
            assert!(error.to_string().contains("127.0.0.1:9"), "{error}");
        }
    }
}
