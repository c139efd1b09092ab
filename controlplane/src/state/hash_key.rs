//! The key of the balancing hash: a setting, or random and kept, so that clients meet the same
//! backends after a restart.

use std::path::Path;

use super::{Document, Problem, SaveError, StateFile, Undecodable, hex};

/// Why a configured hash key is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("hashKey must be 32 hexadecimal digits (16 bytes); make one with: openssl rand -hex 16")]
pub struct HashKeyError;

/// Reads 32 hexadecimal digits.
///
/// # Errors
/// Anything else. The message does not repeat the text: it is a secret.
pub fn parse_hash_key(text: &str) -> Result<[u8; 16], HashKeyError> {
    let digits = text.as_bytes();
    if digits.len() != 32 {
        return Err(HashKeyError);
    }
    let mut key = [0; 16];
    for (byte, pair) in key.iter_mut().zip(digits.chunks_exact(2)) {
        let digit = |digit: u8| char::from(digit).to_digit(16).ok_or(HashKeyError);
        *byte = (digit(pair[0])? << 4 | digit(pair[1])?) as u8;
    }
    Ok(key)
}

struct Kept([u8; 16]);

impl Document for Kept {
    const NAME: &'static str = "hash-key";
    const SCHEMA: u32 = 1;

    fn encode(&self) -> serde_json::Value {
        hex(&self.0).into()
    }

    fn decode(schema: u32, data: serde_json::Value) -> Result<Kept, Undecodable> {
        if schema != Self::SCHEMA {
            return Err(Undecodable::Schema {
                found: schema,
                known: Self::SCHEMA,
            });
        }
        let text: String = serde_json::from_value(data).map_err(Undecodable::Shape)?;
        parse_hash_key(&text)
            .map(Kept)
            .map_err(|error| Undecodable::Shape(serde::de::Error::custom(error)))
    }
}

/// What [`hash_key`] found or made.
#[derive(Debug)]
pub struct HashKey {
    /// 16 bytes, a secret: who knows it can aim connections at one backend.
    pub bytes: [u8; 16],
    /// What was wrong with the file, if anything.
    pub problems: Vec<Problem>,
    /// A new key that could not be kept: the next start makes another.
    pub unsaved: Option<SaveError>,
}

/// The `configured` key, or the one kept in `directory`, or a new random one, kept there in a file
/// of mode 0600. Without a directory nothing is kept. Blocks on the disk.
///
/// # Errors
/// getrandom(2) fails: no kernel that Weir runs on does that.
pub fn hash_key(
    directory: Option<&Path>,
    configured: Option<[u8; 16]>,
) -> Result<HashKey, getrandom::Error> {
    let mut found = HashKey {
        bytes: [0; 16],
        problems: Vec::new(),
        unsaved: None,
    };
    if let Some(bytes) = configured {
        found.bytes = bytes;
        return Ok(found);
    }
    let mut file = directory.map(StateFile::new::<Kept>);
    if let Some(file) = &mut file {
        let (kept, problems) = file.load::<Kept>();
        found.problems = problems;
        if let Some(Kept(bytes)) = kept {
            found.bytes = bytes;
            return Ok(found);
        }
    }
    getrandom::fill(&mut found.bytes)?;
    if let Some(file) = &mut file {
        // Twice, so that there is a previous generation of the one document that never changes.
        let kept = Kept(found.bytes);
        found.unsaved = file.save(&kept).and_then(|()| file.save(&kept)).err();
    }
    Ok(found)
}
