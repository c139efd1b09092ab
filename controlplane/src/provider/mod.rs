//! Being a cluster's provider of load balancers: what is written back to the API server.
//!
//! `control` hands over each Service with what became of it ([`Outbox`]); `plan` decides on the next
//! step, one at a time, from what is stored in the Service and what should be; `patch` says it in
//! the API's words; `events` tells the Service's story; `queue` keeps one step per Service and
//! waits longer after each failure; `lease` says which of several processes may; `run` and `leader` do it over
//! `api`, all else is PURE.
//!
//! # Whose Service it is
//!
//! What `translate` admits is ours. That it *was* ours is known by our finalizer alone: the class is
//! wiped by the API server when the type changes (KEP-1959). The finalizer comes before the
//! address is published, and goes after the address is free and the status cleared (KEP-980). The
//! standard finalizer is added only to Services without a class: another controller that finds
//! it looks at no class, finds no load balancer of its own, and would take it away.
//!
//! # Others
//!
//! A Service without a class that shows another provider (`source::parse::rival`) and not our finalizer is not ours:
//! `translate` refuses it. Who undoes what we write is known by `held`, which compares the next step with the last;
//! `contest` then makes us write ever less often, and a Service without a class is given up (`yielded`).
//!
//! # How it is written
//!
//! Strategic merge patches, which name our entries of a list and leave everybody else's alone:
//! finalizers by value, conditions by type. `status.loadBalancer.ingress` is replaced whole, for it is
//! one writer's. Each patch carries the uid: a Service made anew under the same name refuses it.

pub(crate) mod api;
mod contest;
mod events;
mod health;
mod held;
mod identity;
mod leader;
mod lease;
mod outbox;
mod patch;
mod plan;
mod queue;
mod release;
mod run;
mod standing;
#[cfg(test)]
mod tests;
mod yielded;

pub use self::health::Health;
pub use self::identity::identity;
pub use self::leader::{LeaseName, lead};
pub use self::outbox::{Intent, Outbox, Provided};
pub(crate) use self::patch::ingress_of;
pub use self::release::{ReleaseError, Released, Which, release};
pub use self::run::{Settings, run};
pub use self::standing::Standing;
pub use self::yielded::Yielded;
