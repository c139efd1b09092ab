//! The appliance's own token: a ServiceAccount's, in the kubeconfig that the appliance runs by. It is
//! asked for once by somebody who may ([`issue`], [`document()`]), and from then on by the appliance
//! itself, well before it expires ([`renew()`]).
//!
//! `token` and `judge` are PURE: what a token says of itself, and when to do what about it. `file` puts
//! a token in another's place, in one step; `request` asks for one; `renew` is the loop.
//!
//! Only a token that stands in the kubeconfig itself is renewed. What a `tokenFile` names, a plugin
//! makes or a certificate proves is renewed by whoever gave it, and read anew here.

mod document;
mod file;
mod health;
mod judge;
mod renew;
mod request;
mod token;

pub use self::document::{ServerOf, document};
pub use self::file::create;
pub use self::health::{Health, describe};
pub use self::renew::renew;
pub use self::request::{Refused, issue};
pub use self::token::{Account, Token};
