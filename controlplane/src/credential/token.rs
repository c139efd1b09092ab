//! What a token says of itself (PURE): whose it is and how long it is good for. Nothing is verified:
//! the API server does that, and we ask it for nothing but another of the same.

use std::sync::Arc;

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use serde::Deserialize;

/// No token is longer.
const LONGEST: usize = 16 << 10;

/// A ServiceAccount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    /// Its namespace.
    pub namespace: Arc<str>,
    /// Its name.
    pub name: Arc<str>,
}

impl std::fmt::Display for Account {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// A ServiceAccount's token that ends. Times are seconds since 1970.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    /// Whose it is.
    pub account: Account,
    /// Good from then on.
    pub issued: u64,
    /// Good until then.
    pub expires: u64,
}

#[derive(Deserialize)]
struct Claims {
    sub: String,
    exp: u64,
    iat: u64,
}

impl Token {
    /// Reads one; `None` if it is no ServiceAccount's, or has no end.
    pub fn read(text: &str) -> Option<Token> {
        if text.len() > LONGEST {
            return None;
        }
        let mut parts = text.trim().split('.');
        let (_, claims, _, None) = (parts.next()?, parts.next()?, parts.next()?, parts.next())
        else {
            return None;
        };
        let claims = BASE64_URL_SAFE_NO_PAD.decode(claims).ok()?;
        let claims: Claims = serde_json::from_slice(&claims).ok()?;
        let subject = claims.sub.strip_prefix("system:serviceaccount:")?;
        let (namespace, name) = subject.split_once(':')?;
        // Both become parts of a path.
        if !is_name(namespace) || !is_name(name) || claims.exp <= claims.iat {
            return None;
        }
        Some(Token {
            account: Account {
                namespace: namespace.into(),
                name: name.into(),
            },
            issued: claims.iat,
            expires: claims.exp,
        })
    }

    /// How long it is good for in all, in seconds.
    pub fn life(&self) -> u64 {
        self.expires - self.issued
    }
}

/// RFC 1123, as namespaces and ServiceAccounts are named.
fn is_name(text: &str) -> bool {
    let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '.';
    !text.is_empty()
        && text.len() <= 253
        && text.chars().all(fits)
        && text.starts_with(|c: char| c.is_ascii_alphanumeric())
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    pub fn token(claims: &Value) -> String {
        let part = |value: &Value| BASE64_URL_SAFE_NO_PAD.encode(value.to_string());
        format!("{}.{}.c2ln", part(&json!({"alg": "RS256"})), part(claims))
    }

    #[test]
    fn a_service_accounts_token_says_whose_it_is_and_until_when() {
        let text = token(
            &json!({"sub": "system:serviceaccount:weir-system:weir", "iat": 100, "exp": 700}),
        );
        let read = Token::read(&text).expect("a token");
        assert_eq!(read.account.to_string(), "weir-system/weir");
        assert_eq!((read.issued, read.expires, read.life()), (100, 700, 600));
        assert_eq!(
            Token::read(&format!("{text}\n")),
            Some(read),
            "as files have it"
        );
    }

    #[test]
    fn anything_else_is_nobodys_to_renew() {
        let of =
            |sub: &str, iat: u64, exp: u64| token(&json!({"sub": sub, "iat": iat, "exp": exp}));
        for text in [
            String::new(),
            "static-token".to_owned(),
            "a.b.c".to_owned(),
            of("system:node:n1", 1, 2),
            of("system:serviceaccount:weir", 1, 2),
            of("system:serviceaccount:a/b:weir", 1, 2),
            of("system:serviceaccount:a:..", 1, 2),
            of("system:serviceaccount::weir", 1, 2),
            of("system:serviceaccount:a:weir", 2, 2),
            token(&json!({"sub": "system:serviceaccount:a:weir", "iat": 1})),
            format!("{}.x", of("system:serviceaccount:a:weir", 1, 2)),
            "x".repeat(LONGEST + 1),
        ] {
            assert_eq!(Token::read(&text), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_text_is_too_odd(text in ".{0,200}") {
            let _ = Token::read(&text);
        }
    }
}
