//! Who this process is in a Lease. Thin I/O.
//!
//! The same after a restart, so that a process that was killed finds the Lease to be its own and need not wait
//! for its end. The state directory is one process's at a time, hence so is what is kept there.

use std::path::Path;

use crate::state::{Document, StateFile, Undecodable};

struct Kept(u64);

impl Document for Kept {
    const NAME: &'static str = "identity";
    const SCHEMA: u32 = 1;

    fn encode(&self) -> serde_json::Value {
        format!("{:016x}", self.0).into()
    }

    fn decode(schema: u32, data: serde_json::Value) -> Result<Kept, Undecodable> {
        if schema != Self::SCHEMA {
            return Err(Undecodable::Schema {
                found: schema,
                known: Self::SCHEMA,
            });
        }
        let text: String = serde_json::from_value(data).map_err(Undecodable::Shape)?;
        let number = u64::from_str_radix(&text, 16);
        let number = number.map_err(|error| Undecodable::Shape(serde::de::Error::custom(error)))?;
        Ok(Kept(number))
    }
}

/// `host` and a random number that is kept in `state_dir`. One that cannot be kept is another after the next
/// start, and said in the log. Blocks on the disk.
///
/// # Errors
/// getrandom(2) fails: no kernel that Weir runs on does that.
pub fn identity(host: &str, state_dir: &Path) -> Result<String, getrandom::Error> {
    let mut file = StateFile::new::<Kept>(state_dir);
    let (kept, problems) = file.load::<Kept>();
    for problem in problems {
        tracing::warn!("identity: {problem}");
    }
    let number = match kept {
        Some(Kept(number)) => number,
        None => {
            let mut bytes = [0; 8];
            getrandom::fill(&mut bytes)?;
            let number = u64::from_ne_bytes(bytes);
            if let Err(error) = file.save(&Kept(number)) {
                tracing::warn!("identity: {error}; the next start waits until the lease ends");
            }
            number
        }
    };
    let host: String = host.chars().take(200).collect();
    Ok(format!("{host}_{number:016x}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_the_same_after_a_restart_and_another_elsewhere() {
        let (one, other) = (tempfile::tempdir(), tempfile::tempdir());
        let (one, other) = (one.expect("temp"), other.expect("temp"));
        let of = |dir: &tempfile::TempDir| identity("edge", dir.path()).expect("random");
        let first = of(&one);
        assert!(first.starts_with("edge_") && first.len() == 21, "{first}");
        assert_eq!(of(&one), first);
        assert_ne!(of(&other), first);
        std::fs::write(one.path().join("identity.json"), "no JSON").expect("write");
        assert_ne!(of(&one), first, "damaged: a new one, and no failure");
    }
}
